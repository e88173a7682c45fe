"""The new records of a log that other processes write: read from open segments, in bounded memory."""

import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loopwright.stores.prediction_log.segment import FRAME, HEADER, KINDS, MAX_PAYLOAD, parse_name, seed, segment_paths


class NewRecords(NamedTuple):
    """The newest records that were appended since the last look, and how many older ones were left out."""

    records: list[Any]
    dropped: int


class _File:
    """A segment that is followed: open, so that what a commit deletes can be read to its end."""

    def __init__(self, path: Path, start: int, *, at_end: bool) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.seed, self.at = start, HEADER.size
        if at_end:
            self.at = max(HEADER.size, os.fstat(self.fd).st_size)

    def payloads(self) -> list[bytes]:
        """The payloads of whole frames since the last call; a frame that is being written, or is damaged, ends them."""
        data = os.pread(self.fd, max(os.fstat(self.fd).st_size - self.at, 0), self.at)
        found, at = [], 0
        while at + FRAME.size <= len(data):
            length, crc, _ = FRAME.unpack_from(data, at)
            end = at + FRAME.size + length
            if length > MAX_PAYLOAD or end > len(data) or zlib.crc32(memoryview(data)[at + 8 : end], self.seed) != crc:
                break
            found.append(data[at + FRAME.size : end])
            at = end
        self.at += at
        return found


class LogTail:
    """Follows the segments of `folder`, which may not be there yet. `at_end`: what is there at the first look is not read."""

    def __init__(self, folder: Path, kind: str, *, at_end: bool = False) -> None:
        self._folder, self._at_end = folder, at_end
        self._decode = msgspec.msgpack.Decoder(KINDS[kind][1]).decode
        self._files: dict[tuple[str, int], _File] = {}

    def new(self, most: int) -> NewRecords:
        """What was appended since the last look, at most the `most` newest records of it."""
        there = {(name.writer, name.number): path for path in segment_paths(self._folder) if (name := parse_name(path.name))}
        for key in there.keys() - self._files.keys():
            for path in (there[key], there[key].with_suffix(".sealed")):  # it may be sealed just now
                with suppress(FileNotFoundError):
                    self._files[key] = _File(path, seed(*key), at_end=self._at_end)
                    break
        self._at_end = False
        payloads = [payload for _, file in sorted(self._files.items()) for payload in file.payloads()]
        for key in self._files.keys() - there.keys():
            os.close(self._files.pop(key).fd)
        return NewRecords([self._decode(payload) for payload in payloads[-most:]], max(len(payloads) - most, 0))

    def close(self) -> None:
        """Close the segments."""
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()
