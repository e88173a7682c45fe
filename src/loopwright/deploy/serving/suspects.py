"""Inputs on which a model overran or killed its worker: a small table in shared memory, which outlives workers.

The supervisor counts, workers look up: an input with one strike is run alone, so that the next one names it and nothing else; one with
`STRIKES` is a query of death, and the heuristic answers it. Each entry is two aligned words, so it is read whole without a lock.
"""

import mmap
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

STRIKES = 2
_BUCKETS, _WAYS = 512, 8
_FIRST = 8  # words before the table; the first one is how many entries were ever made
_SIZE = 8 * (_FIRST + 2 * _BUCKETS * _WAYS)
FILE = "inputs"

_encode = msgspec.msgpack.Encoder().encode
_ROWS = msgspec.msgpack.Decoder(list[msgspec.Raw])


Values = Sequence[Sequence[Any]]
"""For each row the values that the client sent and a package's model sees."""


def fingerprint(package: bytes, values: bytes) -> bytes:
    """Eight bytes, a hash of a row's encoded values and of the package."""
    return blake2b(package + values, digest_size=8).digest()


def encoded(values: Values) -> bytes:
    """All values as bytes, at low cost for each run; empty if they are not plain data."""
    try:
        return _encode(values)
    except (TypeError, ValueError, OverflowError):
        return b""


def fingerprints(package: bytes, values: bytes) -> tuple[bytes, ...]:
    """The fingerprint of each row encoded by `encoded`; empty if the bytes are incomplete."""
    try:
        return tuple(fingerprint(package, bytes(row)) for row in _ROWS.decode(values))
    except msgspec.DecodeError:
        return ()


class Suspects:
    """The table of one server. `strike` is called by one process only, the others in any."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def fresh(cls, path: Path) -> "Suspects":
        """Make the file, blank."""
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _SIZE)
        return cls(path)

    def close(self) -> None:
        """Close the file, without removing it."""
        self._words.release()
        self._map.close()

    def __bool__(self) -> bool:
        """Whether there is any entry at all."""
        return self._words[0] != 0

    def strikes(self, input: bytes) -> int:
        """Number of strikes against an input."""
        place = self._find(_key(input))
        return self._words[place + 1] if place else 0

    def strike(self, input: bytes) -> int:
        """Add one strike; returns their number."""
        words, key = self._words, _key(input)
        place = self._find(key)
        if not place:
            place = min(self._places(key), key=lambda at: words[at + 1] if words[at] else -1)
            words[place] = 0
            words[place + 1] = 0
            words[place] = key
            words[0] += 1
        words[place + 1] += 1
        return words[place + 1]

    def acquit(self, input: bytes) -> None:
        """Clear the strikes of an input that was answered alone, unless it has reached the limit."""
        place = self._find(_key(input))
        if place and self._words[place + 1] < STRIKES:
            self._words[place + 1] = 0

    def _find(self, key: int) -> int:
        return next((place for place in self._places(key) if self._words[place] == key), 0)

    @staticmethod
    def _places(key: int) -> range:
        first = _FIRST + 2 * _WAYS * (key % _BUCKETS)
        return range(first, first + 2 * _WAYS, 2)


def _key(input: bytes) -> int:
    return int.from_bytes(input, "little") or 1
