"""The writing end of the prediction log: one writer per worker process, loop and kind of record.

Durability `process`: a batch is in the page cache before `append` returns, so it survives `kill -9` of any process.
Durability `disk`: `sync` is called before an answer is sent; concurrent callers share one fdatasync (group commit, DeWitt et
al. 1984, doi:10.1145/971697.602261). A failed sync is not retried on that file: the unsynced records count as lost,
and the next record begins a new segment (Rebello et al. 2020, "Can applications recover from fsync failures?", USENIX ATC).

The writer holds a lock (flock) on its open segment; by it a committer distinguishes segments of live and dead writers.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from struct import Struct
from typing import Literal, NamedTuple, Self

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import LogUnavailable
from loopwright.base.files import sync
from loopwright.base.supervision import start
from loopwright.records.prediction import OutcomeRow, Prediction
from loopwright.stores.prediction_log.segment import FRAME, HEADER, KINDS, file_name, footer, header, seal_file, seed

_LENGTH_CRC = Struct(">II")
_SEQUENCE = Struct(">Q")
_BLANK = bytes(FRAME.size)


class _Open:
    """A segment being written: its descriptor, which holds the lock, and the contents of its footer.

    `named`: its name is on the disk; `lost`: a sync of it failed.
    """

    __slots__ = ("born", "count", "crc", "fd", "first", "lost", "named", "number", "path", "seed", "size")

    def __init__(self, fd: int, path: Path, number: int, start: int, first: int) -> None:
        self.fd, self.path, self.number, self.seed, self.first = fd, path, number, start, first
        self.size, self.count, self.crc, self.born = HEADER.size, 0, 0, time.perf_counter()
        self.named = self.lost = False


class LogPosition(NamedTuple):
    """A place in a writer's log: records below `sequence`, and how often something had been lost when they were appended."""

    sequence: int
    lost: int


class Retired(Exception):
    """This writer was closed because nothing was appended for long; another one goes on."""


class LogWriter:
    """Appends records of one `kind` (`predictions`, `outcomes` or `shadows`) to segments in `folder/kind`.

    `folder` is the loop's (`segment.log_folder(home.path, loop)`). A segment is sealed once it has `segment_bytes` or is
    `segment_seconds` old, at an append or a `tick`. Files appear with the first record. `losing` is called before records count as
    lost, i.e. appended, but not synced. Safe to use from several threads; open one per process, after a fork.
    """

    def __init__(
        self,
        folder: Path,
        kind: Literal["predictions", "outcomes", "shadows"],
        *,
        segment_bytes: int = 8 * 1024 * 1024,
        segment_seconds: float = 10.0,
        losing: Callable[[], None] | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"no log of kind {kind!r}")
        self.folder, self.kind, self.writer = folder / kind, kind, os.urandom(16).hex()
        self.segment_bytes, self.segment_seconds = segment_bytes, segment_seconds
        self._lock = threading.Lock()
        self._encode = msgspec.msgpack.Encoder().encode_into
        self._buffer = bytearray(_BLANK)
        self._sequence = self._number = 0
        self._segment: _Open | None = None
        self._abandoned: list[_Open] = []
        self._sealing: tuple[threading.Thread, _Open] | None = None
        self._syncing, self._turn = False, threading.Condition()
        self._durable = self._lost = 0
        self._retired = False
        self._losing = losing or (lambda: None)

    def append(self, records: Sequence[Prediction] | Sequence[OutcomeRow]) -> None:
        """Write the records, in order, with one system call; when this returns they survive the death of this process.

        Raises LogUnavailable when they could not all be written (disk full, I/O error); none of them counts as logged then,
        and the next call tries a new segment. Raises Retired.
        """
        with self._lock:
            if self._retired:
                raise Retired
            segment = self._segment or self._create()
            if segment.size >= self.segment_bytes or self._is_old(segment):
                segment = self._roll(segment, wait=False)
            buffer, sequence, start = self._buffer, self._sequence, 0
            for record in records:
                if start:
                    buffer += _BLANK
                self._encode(record, buffer, start + FRAME.size)
                _SEQUENCE.pack_into(buffer, start + 8, sequence)
                crc = zlib.crc32(memoryview(buffer)[start + 8 :], segment.seed)
                _LENGTH_CRC.pack_into(buffer, start, len(buffer) - start - FRAME.size, crc)
                start = len(buffer)
                sequence += 1
            if not start:
                return
            if failpoints.armed():
                self._write_armed(segment, buffer)
            else:
                self._write(segment, buffer)
            segment.crc = zlib.crc32(buffer, segment.crc)
            segment.size += start
            segment.count += sequence - self._sequence
            self._sequence = sequence

    def mark(self, lost: int | None = None) -> LogPosition:
        """The end of the appended records. `lost`: this writer's loss counter before the caller appended (default: the current one)."""
        return LogPosition(self._sequence, self._lost if lost is None else lost)

    @property
    def lost(self) -> int:
        """Loss counter: number of failed syncs of appended records."""
        return self._lost

    def sync(self, mark: LogPosition) -> None:
        """Block until the records below `mark` are on the disk; concurrent callers share the system call.

        Raises LogUnavailable if any record was lost since the mark was taken, so perhaps these.
        """
        cause: OSError | None = None
        while True:
            with self._turn:
                while self._syncing and self._durable < mark.sequence and self._lost == mark.lost:
                    self._turn.wait()
                if self._lost != mark.lost:
                    raise LogUnavailable(f"the log of {self.kind} cannot be synced to the disk") from cause
                if self._durable >= mark.sequence:
                    return
                self._syncing = True
            cause = self._sync()

    def _sync(self) -> OSError | None:
        """Sync all appended records, in order of writing; returns the error, if any."""
        held: list[tuple[_Open, int]] = []
        try:
            with self._lock:
                upto = self._sequence
                sealing = [self._sealing[1]] if self._sealing else []
                unsynced = (*self._abandoned, *sealing, *([self._segment] if self._segment else []))
                # Duplicates, since appending goes on meanwhile, and may close its own.
                held.extend((segment, os.dup(segment.fd)) for segment in unsynced if not segment.lost)
            for segment, fd in held:
                self._sync_segment(segment, fd)
        except OSError as error:
            self._lose()
            return error
        else:
            with self._turn:
                self._durable = max(self._durable, upto)
            return None
        finally:
            for _, fd in held:
                os.close(fd)
            with self._turn:
                self._syncing = False
                self._turn.notify_all()

    def _sync_segment(self, segment: _Open, fd: int) -> None:
        try:
            failpoints.hit("log.sync")
            os.fdatasync(fd)
            if not segment.named:
                self._sync_names(segment)
            failpoints.hit("log.synced")
        except OSError:
            with self._lock:
                segment.lost = True
                if segment is self._segment:
                    self._abandoned.append(segment)
                    self._segment = None
            raise

    def _sync_names(self, segment: _Open) -> None:
        """Sync the folder entry of a segment; for the writer's first segment, the entries of its folders too."""
        for folder in (self.folder, *([*self.folder.parents][:3] if segment.number == 0 else [])):
            sync(folder)
        segment.named = True

    def _lose(self) -> None:
        with self._turn:
            self._losing()
            self._lost += 1
            self._turn.notify_all()

    def tick(self) -> bool:
        """Seal the open segment if it is old enough; whether it was. To be called now and then, so that a quiet loop's rows move on too.

        Raises LogUnavailable when the next segment cannot be made.
        """
        with self._lock:
            if self._sealing is not None and not self._sealing[0].is_alive():
                self._join()
            if self._segment is not None and self._is_old(self._segment):
                self._roll(self._segment, wait=False)
                return True
            return False

    def quiet(self, seconds: float) -> bool:
        """Whether nothing was appended for `seconds`, and no write is running."""
        segment = self._segment
        if segment is None or segment.count or time.perf_counter() - segment.born < seconds:
            return False
        return not (self._sealing or self._syncing or self._lost or self._abandoned)

    def retire(self, seconds: float) -> bool:
        """Close it if it is quiet; `append` raises Retired from then on. This syncs a file."""
        with self._lock:
            segment = self._segment
            if segment is None or not self.quiet(seconds):
                return False
            self._finish(segment, final=True)
            os.close(segment.fd)
            self._segment, self._retired = None, True
            return True

    def seal(self) -> None:
        """Seal the open segment now, if it holds records, and begin the next. Raises LogUnavailable as `tick`."""
        with self._lock:
            if self._segment is not None and self._segment.count:
                self._roll(self._segment, wait=True)
            self._join()

    def close(self) -> None:
        """Seal the open segment as this writer's last; the writer may not be used again."""
        with self._lock:
            self._join()
            if self._segment is not None:
                self._finish(self._segment, final=True)
                os.close(self._segment.fd)
                self._segment = None
            self._release_abandoned()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_old(self, segment: _Open) -> bool:
        return segment.count > 0 and time.perf_counter() - segment.born >= self.segment_seconds

    def _write(self, segment: _Open, buffer: bytearray) -> None:
        try:
            written = os.write(segment.fd, buffer)
        except OSError as error:
            self._abandon(segment, 0, str(error.strerror), error)
        if written != len(buffer):
            self._abandon(segment, written, f"only {written} of {len(buffer)} bytes were written", None)

    def _write_armed(self, segment: _Open, buffer: bytearray) -> None:
        """`_write` with its fail points."""
        written = 0
        try:
            failpoints.hit("log.append.before")
            written = failpoints.write("log.append.write", segment.fd, buffer)
            failpoints.hit("log.append.written")
        except OSError as error:
            self._abandon(segment, written, str(error.strerror), error)
        if written != len(buffer):
            self._abandon(segment, written, f"only {written} of {len(buffer)} bytes were written", None)

    def _abandon(self, segment: _Open, written: int, why: str, cause: OSError | None) -> None:
        """Roll back a partly written batch, leave the segment to the committer, raise LogUnavailable.

        If the bytes cannot be taken back, records that are whole on disk keep their sequences: such a record was not answered
        and may be found once. The segment stays locked until the next one is there, so that it is not taken for the last.
        """
        try:
            os.ftruncate(segment.fd, segment.size)
        except OSError:
            at = 0
            while at + FRAME.size <= written:
                at += FRAME.size + _LENGTH_CRC.unpack_from(self._buffer, at)[0]
                self._sequence += at <= written
        self._segment = None
        self._abandoned.append(segment)
        raise LogUnavailable(f"the log of {self.kind} cannot be written: {why}") from cause

    def _release_abandoned(self) -> None:
        """Release abandoned segments to the committer; their answered records are synced first."""
        for segment in self._abandoned:
            try:
                if not segment.lost:
                    os.fdatasync(segment.fd)
            except OSError:
                self._lose()
            finally:
                os.close(segment.fd)
        self._abandoned.clear()

    def _create(self) -> _Open:
        """A new segment: made under another name and locked before it gets its own, so that no committer takes it for dead."""
        number, fd = self._number, -1
        new = self.folder / f"{self.writer}-{number:08d}.new"
        path = self.folder / file_name(self.writer, number, "open")
        try:
            failpoints.hit("log.create")
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o660)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(fd, header(self.kind, self.writer, number, self.folder.parent.name)) != HEADER.size:
                raise OSError(errno.ENOSPC, "no room for a segment's header")
            failpoints.hit("log.created")
            new.rename(path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise LogUnavailable(f"the log of {self.kind} cannot be written: {error.strerror}") from error
        self._number += 1
        if number == 0:
            with contextlib.suppress(OSError):  # an aid to `verify` only
                path.with_name(f"{self.writer}.writer").touch()
        self._segment = _Open(fd, path, number, seed(self.writer, number), self._sequence)
        self._release_abandoned()
        return self._segment

    def _roll(self, old: _Open, *, wait: bool) -> _Open:
        """Begin the next segment, then seal `old`: here if `wait`, else in a thread, since syncing takes milliseconds."""
        new = self._create()
        self._join()
        self._sealing = start("seal", lambda: self._finish(old, final=False, next_made=True), daemon=False), old
        if wait:
            self._join()
        return new

    def _join(self) -> None:
        if self._sealing is not None:
            thread, segment = self._sealing
            thread.join()
            os.close(segment.fd)
            self._sealing = None

    def _finish(self, segment: _Open, *, final: bool, next_made: bool = False) -> None:
        """Footer, sync, rename, sync. A segment that cannot be sealed stays open, soon unlocked: the committer seals it."""
        if segment.lost:
            return
        try:
            if next_made:
                failpoints.hit("log.seal.next")
            last = segment.first + max(segment.count - 1, 0)
            seal_file(segment.fd, segment.path, footer(segment.count, segment.first, last, segment.crc, final=final))
        except OSError:
            segment.lost = True
            self._lose()
