"""Metric files shared by several workers: prometheus_client's format, kept in memory and written once a second.

The library maps its files, and a write to a mapped page without space on the disk kills the process (SIGBUS).
Here only `write_all` meets a full disk: it reports it, counting goes on in memory, and is written when there is space.

A file: its used size (int32, and 4 bytes of padding), then for each value its key (int32 length, UTF-8, padded with spaces
to a multiple of 8), the value and a time (two float64).
"""

import os
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Any

from prometheus_client import values

_HEAD, _LENGTH, _PAIR = Struct("i4x"), Struct("i"), Struct("dd")
_files: "list[WrittenFile]" = []


def install(worker: str) -> None:
    """Store metrics that are created from now on in files of `worker`, and continue from the values in them."""
    _files.clear()
    values.MmapedDict = WrittenFile  # type: ignore[attr-defined,assignment]  # the class behind each file of the library's values
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


def write_all() -> None:
    """Write the changes since the last call. Raises OSError after trying every file."""
    failed: OSError | None = None
    for file in _files:
        try:
            file.write()
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


class WrittenFile:
    """One file of values: implements the interface of the library's `MmapedDict`."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        self._path, self._fd, self._dirty = Path(filename), -1, True
        self._places: dict[str, int] = {}
        self._data = bytearray(_HEAD.pack(_HEAD.size))
        with suppress(OSError):
            self._load(self._path.read_bytes())
        if not read_mode:
            _files.append(self)

    def _load(self, data: bytes) -> None:
        """Load the contents of the file, as far as it is intact."""
        used = min(_LENGTH.unpack_from(data, 0)[0], len(data)) if len(data) >= _HEAD.size else 0
        at = _HEAD.size
        while at + _LENGTH.size <= used:
            length = _LENGTH.unpack_from(data, at)[0]
            end = at + _LENGTH.size + length + _padding(length) + _PAIR.size
            if length <= 0 or end > used:
                return
            key = data[at + _LENGTH.size : at + _LENGTH.size + length].decode("utf-8", "replace")
            self._add(key, *_PAIR.unpack_from(data, end - _PAIR.size))
            at = end

    def _add(self, key: str, value: float, timestamp: float) -> int:
        encoded = key.encode()
        self._data += _LENGTH.pack(len(encoded)) + encoded + b" " * _padding(len(encoded)) + _PAIR.pack(value, timestamp)
        self._data[: _HEAD.size] = _HEAD.pack(len(self._data))
        self._places[key] = len(self._data) - _PAIR.size
        return self._places[key]

    def read_value(self, key: str) -> tuple[float, float]:
        """A value and its time; both 0 for a key that is new."""
        place = self._places.get(key) or self._add(key, 0.0, 0.0)
        value, timestamp = _PAIR.unpack_from(self._data, place)
        return value, timestamp

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Set a value and its time."""
        place = self._places.get(key) or self._add(key, 0.0, 0.0)
        self._data[place : place + _PAIR.size] = _PAIR.pack(value, timestamp)
        self._dirty = True

    def write(self) -> None:
        """Update the file; its header last, so that a reader never sees an incomplete entry. Raises OSError."""
        if not self._dirty:
            return
        self._dirty = False
        data = bytes(self._data)
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _write(self._fd, data[_HEAD.size :], _HEAD.size)
            _write(self._fd, data[: _HEAD.size], 0)
        except OSError:
            self._dirty = True
            if self._fd >= 0 and os.fstat(self._fd).st_size < _HEAD.size:  # no file is better than one without a head
                self._path.unlink(missing_ok=True)
                self.close()
            raise

    def close(self, *_: Any) -> None:
        """Close the file, without removing it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _padding(length: int) -> int:
    return 8 - (length + _LENGTH.size) % 8


def _write(fd: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
