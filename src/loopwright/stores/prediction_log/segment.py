"""Segments: the prediction log's files, framed so that every byte is accounted for.

    header   36 bytes: magic "LWSG", version u16, kind in 2 bits and the loop's mark in 14 (0: none), writer 16 bytes, number u64,
             CRC-32 of all that u32
    frame    16 bytes: length of payload u32, CRC-32 of sequence and payload u32 (from the segment's `seed`), sequence u64; then the payload,
             one `Prediction` or `OutcomeRow` in MessagePack
    footer   44 bytes, at sealing: 0xFFFFFFFF where a frame has its length, magic "LWFT", count u64, first and last
             sequence u64, CRC-32 of all bytes between header and footer u32, 1 if the writer's last segment u32,
             CRC-32 of the footer u32

Numbers are big-endian. Sequences run on from one segment of a writer to its next, numbers too, from 0; so a missing or
doubled segment is a gap or an overlap. A writer's highest segment is open, or sealed as its last.

    home/log/<loop>/<kind>/<writer>-<number>.open      being written (its writer holds a lock on it), or left by a dead writer
    home/log/<loop>/<kind>/<writer>-<number>.sealed    complete; waits for its rows to be committed to Delta
    home/log/<loop>/<kind>/<writer>.writer             there from a writer's first record until its last segment is committed
    home/log/<loop>/<kind>/quarantine/                 damaged segments as they were found, torn tails
"""

import errno
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import Damaged
from loopwright.base.files import sync
from loopwright.records.entries import Problem
from loopwright.records.prediction import OutcomeRow, Prediction

VERSION = 1
KINDS: dict[str, tuple[int, type[Prediction] | type[OutcomeRow]]] = {
    "predictions": (1, Prediction),
    "outcomes": (2, OutcomeRow),
    "shadows": (3, Prediction),
}

HEADER = struct.Struct(">4sHH16sQI")
FRAME = struct.Struct(">IIQ")
FOOTER = struct.Struct(">I4sQQQIII")
MAX_PAYLOAD = 64 * 1024 * 1024

_MAGIC, _FOOTER_MAGIC, _FOOTER_MARK = b"LWSG", b"LWFT", 0xFFFFFFFF
_NAME = re.compile(r"([0-9a-f]{32})-(\d{8,20})\.(open|sealed)")
_SEQUENCE = struct.Struct(">Q")


class Name(NamedTuple):
    """The parts of a segment's file name."""

    writer: str
    number: int
    state: str


class Frame(NamedTuple):
    """One record with its sequence number and its place: bytes [start, end) of the file."""

    sequence: int
    record: Any
    start: int
    end: int


class Footer(NamedTuple):
    """The footer of a sealed segment."""

    records: int
    first: int
    last: int
    crc: int
    final: bool


class LogSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A segment as read: its complete records, its damage, and the torn tail.

    `writer` and `number` come from the header if it is intact, else from the file name.
    `problems` describe damage: bytes that differ from what was written. `torn` is the offset at which an
    unfinished write begins (the writer died in it; it was never answered), None when the file ends at a frame's end.
    A `foreign` segment was written for another loop.
    """

    path: Path
    writer: str
    number: int
    frames: list[Frame]
    footer: Footer | None
    problems: list[Problem]
    torn: int | None
    size: int
    foreign: bool = False

    @property
    def records(self) -> list[Any]:
        """The whole records, in the order of writing."""
        return [frame.record for frame in self.frames]


def file_name(writer: str, number: int, state: str) -> str:
    """The name of a segment's file; names sort by writer and number."""
    return f"{writer}-{number:08d}.{state}"


def parse_name(name: str) -> Name | None:
    """Parse a file name; None when it is not a segment's."""
    found = _NAME.fullmatch(name)
    return Name(found[1], int(found[2]), found[3]) if found else None


def log_folder(home: Path, loop: str) -> Path:
    """The folder of a loop's log under the folder of home; not made here."""
    return home / "log" / loop


def table_name(kind: str, loop: str) -> str:
    """The Delta table of a loop's `predictions`, `outcomes` or `shadows`."""
    return f"{kind}.{loop}"


def segment_paths(folder: Path) -> list[Path]:
    """The files of a folder that have a segment's name."""
    return sorted(path for path in folder.glob("*-*.*") if parse_name(path.name))


def segments_in(folder: Path, kind: str) -> Iterator[LogSegment]:
    """The segments of a folder, in order of writing per writer; one that a commit deletes meanwhile is left out."""
    for path in segment_paths(folder):
        try:
            yield read_segment(path, kind)
        except FileNotFoundError:
            renamed = path.with_suffix(".sealed")  # sealed since the folder was listed
            if path.suffix == ".open" and renamed.exists():
                yield read_segment(renamed, kind)
        except Damaged:  # another version's: `commit` and `verify` say so
            continue


def header(kind: str, writer: str, number: int, loop: str = "") -> bytes:
    """The first bytes of a segment of a loop."""
    head = HEADER.pack(_MAGIC, VERSION, KINDS[kind][0] | _mark(loop) << 2, bytes.fromhex(writer), number, 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4)


def _mark(loop: str) -> int:
    """A hash that distinguishes the segments of loops, 1 to 16383; 0 for none."""
    return zlib.crc32(loop.encode()) % 0x3FFF + 1 if loop else 0


def footer(count: int, first: int, last: int, crc: int, *, final: bool) -> bytes:
    """The last bytes of a sealed segment; `crc` is the CRC-32 of everything between header and footer."""
    foot = FOOTER.pack(_FOOTER_MARK, _FOOTER_MAGIC, count, first, last, crc, final, 0)[:-4]
    return foot + zlib.crc32(foot).to_bytes(4)


def seed(writer: str, number: int) -> int:
    """The CRC-32 that a segment's frames start from: a frame of another segment, or one sent in by a client, never fits."""
    return zlib.crc32(bytes.fromhex(writer) + _SEQUENCE.pack(number))


def frame(start: int, sequence: int, payload: bytes) -> bytes:
    """One frame of the segment with the `seed` `start`."""
    tail = _SEQUENCE.pack(sequence) + payload
    return FRAME.pack(len(payload), zlib.crc32(tail, start), sequence) + payload


def seal_file(fd: int, path: Path, foot: bytes) -> None:
    """Write a footer to a locked open segment, sync it, give it its sealed name, sync the folder. Raises OSError."""
    if failpoints.write("log.seal.write", fd, foot) != len(foot):
        raise OSError(errno.ENOSPC, "no room for a segment's footer")
    failpoints.hit("log.seal.footer")
    os.fsync(fd)
    failpoints.hit("log.seal.synced")
    path.rename(path.with_suffix(".sealed"))
    failpoints.hit("log.seal.renamed")
    sync(path.parent)


def read_segment(path: Path, kind: str) -> LogSegment:
    """Read a segment file; damage is reported in the result, not raised, and intact neighbours are returned.

    Raises FileNotFoundError when it is not there, Damaged when its name is not a segment's or another version wrote it.
    """
    name = parse_name(path.name)
    if name is None:
        raise Damaged(f"{path.name} is not the name of a segment")
    return parse_segment(path.read_bytes(), path, name, kind)


def parse_segment(data: bytes, path: Path, name: Name, kind: str) -> LogSegment:
    """Read a segment's bytes (see `read_segment`)."""
    of = path.parent.parent if path.parent.name == "quarantine" else path.parent
    reader = _SegmentReader(data, name, kind, of.parent.name if of.name == kind else "")
    damage = reader.read()
    return LogSegment(
        path=path,
        writer=reader.writer,
        number=reader.number,
        frames=reader.frames,
        footer=reader.footer,
        problems=[Problem(where=str(path), what=what) for what in damage],
        torn=reader.torn,
        size=len(data),
        foreign=reader.foreign,
    )


class _SegmentReader:
    """One pass over a segment's bytes."""

    def __init__(self, data: bytes, name: Name, kind: str, loop: str) -> None:
        self.data, self.view, self.name, self.kind = data, memoryview(data), name, kind
        self.loop, self.foreign = loop, False
        self.frames: list[Frame] = []
        self.footer = _read_footer(data)
        self.torn: int | None = None
        self.end = len(data) - (FOOTER.size if self.footer else 0)
        self.last: int | None = None

    def read(self) -> list[str]:
        """Fill `frames` and `torn`; return the damage."""
        damage: list[str] = []
        self.writer, self.number, why, mark = _identity(self.data, self.name, self.kind)
        damage += [why] if why else []
        self.foreign = bool(mark and self.loop and mark != _mark(self.loop))
        damage += ["written for another loop"] if self.foreign else []
        self.seed = seed(self.writer, self.number)
        damage += self._frames()
        complete = self.name.state == "sealed" or self.footer is not None
        if self.torn is not None and complete:
            damage.append(f"bytes {self.torn} to {self.end} are not a whole record")
            self.torn = None
        if self.footer is not None:
            damage += self._against_footer(self.footer)
        elif complete:
            damage.append(f"sealed but without a whole footer; {len(self.frames)} records are readable")
        return damage

    def _frames(self) -> list[str]:
        damage: list[str] = []
        decode = msgspec.msgpack.Decoder(KINDS[self.kind][1]).decode
        at = min(HEADER.size, self.end)
        while at < self.end:
            found = self._frame_at(at)
            if found is None:
                after = self._resume(at + 1)
                if after is None:
                    if not self._is_torn(at):
                        damage.append(f"bytes {at} to {self.end} are damaged")
                    else:
                        self.torn = at
                    return damage
                damage.append(f"bytes {at} to {after} are damaged; the records after them are readable")
                at = after
                continue
            sequence, stop = found
            if self.last is not None and sequence != self.last + 1:
                damage.append(f"record {sequence} follows record {self.last}")
            if self.last is None or sequence > self.last:
                self.last = sequence
                try:
                    self.frames.append(Frame(sequence, decode(self.view[at + FRAME.size : stop]), at, stop))
                except msgspec.MsgspecError as error:
                    damage.append(f"record {sequence} is whole but not one of {self.kind}: {error}")
            at = stop
        return damage

    def _frame_at(self, at: int) -> tuple[int, int] | None:
        """Sequence and end of the frame at `at`, None without a complete frame there."""
        if at + FRAME.size > self.end:
            return None
        length, crc, sequence = FRAME.unpack_from(self.data, at)
        stop = at + FRAME.size + length
        if length > MAX_PAYLOAD or stop > self.end or zlib.crc32(self.view[at + 8 : stop], self.seed) != crc:
            return None
        return sequence, stop

    def _resume(self, at: int) -> int | None:
        """The start of the next complete frame at or after `at`.

        A frame's sequence shares its upper bytes with its neighbours', so candidates are found by searching for these.
        """
        prefixes = {b"\0\0"} if self.last is None else {_SEQUENCE.pack(s)[:5] for s in (self.last + 1, self.last + (1 << 24))}
        starts: list[int] = []
        for prefix in prefixes:
            place = self.data.find(prefix, at + 8, self.end)
            while place != -1:
                if self._frame_at(place - 8) is not None:
                    starts.append(place - 8)
                    break
                place = self.data.find(prefix, place + 1, self.end)
        return min(starts, default=None)

    def _is_torn(self, at: int) -> bool:
        """Whether the bytes from `at` on are the beginning of a frame or footer, as a writer that died in a write leaves them."""
        rest = self.view[at : self.end]
        if not any(rest):  # room that the file system gave before a power cut, and bytes that never came
            return True
        if len(rest) < FRAME.size or rest[:4] == _FOOTER_MARK.to_bytes(4):
            return len(rest) < FOOTER.size
        length: int
        length, crc, sequence = FRAME.unpack_from(rest)
        expected = self.last is None or sequence == self.last + 1
        return expected and len(rest) - FRAME.size < length <= MAX_PAYLOAD and zlib.crc32(rest[8:], self.seed) != crc

    def _against_footer(self, foot: Footer) -> list[str]:
        have = {f.sequence for f in self.frames}
        lost = [s for s in range(foot.first, foot.first + foot.records) if s not in have]
        if lost:
            some = ", ".join(map(str, lost[:5])) + (" ..." if len(lost) > 5 else "")
            return [f"{len(lost)} of {foot.records} records lost (sequences {some})"]
        if zlib.crc32(self.view[HEADER.size : self.end]) != foot.crc or foot.records != len(self.frames):
            return ["the bytes are not those that were sealed, but every record is readable"]
        return []


def _identity(data: bytes, name: Name, kind: str) -> tuple[str, int, str | None, int]:
    """Writer and number, from the header if it is intact, else from the name; the fault of the header; the loop's mark."""
    if len(data) < HEADER.size:
        return name.writer, name.number, f"only {len(data)} bytes: no whole header", 0
    magic, version, code, writer, number, crc = HEADER.unpack_from(data)
    if magic != _MAGIC or crc != zlib.crc32(data[: HEADER.size - 4]):
        return name.writer, name.number, "the header is damaged", 0
    if version != VERSION:
        raise Damaged(f"{file_name(*name)} is written in format {version}; this version of loopwright reads {VERSION}")
    code, mark = code & 3, code >> 2
    if code != KINDS[kind][0]:
        return writer.hex(), number, f"holds records of another kind than {kind}", mark
    if (writer.hex(), number) != (name.writer, name.number):
        what = f"doubled or renamed: its header says {file_name(writer.hex(), number, name.state)}"
        return writer.hex(), number, what, mark
    return name.writer, name.number, None, mark


def _read_footer(data: bytes) -> Footer | None:
    if len(data) < HEADER.size + FOOTER.size:
        return None
    tail = data[-FOOTER.size :]
    mark, magic, count, first, last, crc, final, own = FOOTER.unpack(tail)
    if mark != _FOOTER_MARK or magic != _FOOTER_MAGIC or own != zlib.crc32(tail[:-4]):
        return None
    return Footer(count, first, last, crc, bool(final))
