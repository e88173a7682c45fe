"""Commit log segments to Delta, exactly once; and verify every byte of the log.

One committer per loop at a time (a lock on `home/log/<loop>/commit.lock`). The cursor is in Delta: the number of a writer's
last committed segment is stored in the same transaction as its rows (application transactions of the Delta protocol), and
only then are segments deleted. So after a crash at any point the next commit resumes there.
"""

import fcntl
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base import failpoints
from loopwright.base.errors import Damaged, LogUnavailable, Unavailable
from loopwright.base.files import sync
from loopwright.base.ids import check_name
from loopwright.records.entries import Problem
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import ANSWERS, contract_of, to_table
from loopwright.stores.prediction_log.read import cursor, first_of_each
from loopwright.stores.prediction_log.segment import (
    HEADER,
    KINDS,
    LogSegment,
    file_name,
    footer,
    log_folder,
    parse_name,
    parse_segment,
    read_segment,
    seal_file,
    table_name,
)

GROUP_BYTES = 64 * 1024 * 1024
SAME_ID_MICROSECONDS = 24 * 3600 * 1_000_000


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that a commit moved to Delta, and the damage that it found."""

    predictions: int
    outcomes: int
    problems: list[Problem]


def commit(home: Home, loop: str, *, final: bool = False) -> Committed:
    """Move the sealed segments of a loop's log to the Delta tables `predictions.<loop>` and `outcomes.<loop>`.

    Segments that a dead writer left open are sealed first, a torn tail (never answered) is moved to `quarantine/`. Segments
    that live writers hold open stay. With `final`, after all writers have stopped, such a segment is a problem.
    An id repeated within a day is one row: the first. Damaged segments are committed as far as they are readable
    and kept in `quarantine/`, where `verify` reports them until an operator has removed them.

    Raises LogUnavailable when the log's folder cannot be read or written, and the errors of `Lake.append_once`; the next commit
    resumes there.
    """
    folder = log_folder(home.path, check_name(loop, "loop"))
    rows = dict.fromkeys(KINDS, 0)
    problems: list[Problem] = []
    try:
        if folder.is_dir():
            with _alone(folder), ExitStack() as one_by_one:  # outcomes are committed also where predictions cannot be
                for kind in reversed(KINDS):
                    if (folder / kind).is_dir():
                        one_by_one.callback(_commit_kind, home, loop, kind, problems, rows, final=final)
    except OSError as error:
        raise LogUnavailable(f"the log of loop {loop} cannot be committed: {error.strerror or error}") from error
    return Committed(predictions=rows["predictions"], outcomes=rows["outcomes"], problems=problems)


def _commit_kind(home: Home, loop: str, kind: str, problems: list[Problem], rows: dict[str, int], *, final: bool) -> None:
    rows[kind] = _Committer(home, loop, kind, problems).run(final=final)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    fd = os.open(folder / "commit.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o660)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _while_read(folder: Path) -> AbstractContextManager[None]:
    """As `_alone` where files can be made; without a lock in a folder that is read-only here."""
    return _alone(folder) if os.access(folder, os.W_OK) else nullcontext()


class _Committer:
    """One commit of one kind of record of one loop, under the loop's lock."""

    def __init__(self, home: Home, loop: str, kind: str, problems: list[Problem]) -> None:
        self.home, self.loop, self.kind, self.problems = home, loop, kind, problems
        self.folder = log_folder(home.path, loop) / kind
        self.quarantine = self.folder / "quarantine"
        self.table = table_name(kind, loop)
        self.committed = self.folder.with_name(f"{kind}.committed")
        """A marker file: the lake has a table of this log."""

    def run(self, *, final: bool) -> int:
        """Rows newly in Delta."""
        for path in sorted(self.folder.glob("*.new")):
            _if_dead(path, lambda fd, path: path.unlink())
        for path in sorted(self.folder.glob("*.open")):
            if not _if_dead(path, self._recover) and final:
                self._problem(path, "still being written")
        segments: dict[str, dict[int, Path]] = {}
        for path in sorted(self.folder.glob("*-*.*")):
            if name := parse_name(path.name):
                segments.setdefault(name.writer, {}).setdefault(name.number, path)
        if segments:
            self._refuse_lost_table()
        return sum(self._writer(writer, paths) for writer, paths in segments.items())

    def _refuse_lost_table(self) -> None:
        """A lake that is away (moved, not mounted) looks empty: a new table in its place would split the log. Raises Unavailable."""
        if self.committed.exists() and not self.home.lake.exists(self.table):
            raise Unavailable(
                f"rows of this log were committed to table {self.table}, which is not in the lake at {self.home.settings.lake_root}: "
                f"put the lake back; to begin a new table instead, remove {self.committed}"
            )

    def _note_committed(self) -> None:
        if not self.committed.exists():
            self.committed.touch()
            sync(self.folder.parent)

    def _writer(self, writer: str, paths: dict[int, Path]) -> int:
        committed = cursor(self.home, self.table, writer)
        rows, group, size, expected = 0, [], 0, committed + 1
        try:
            for number, path in sorted(paths.items()):
                if number <= committed:
                    self._sweep(read_segment(path, self.kind))
                    continue
                if path.suffix == ".open":
                    break
                segment = read_segment(path, self.kind)
                self._report_missing(path, writer, expected, number)
                expected = number + 1
                self.problems += segment.problems
                if segment.foreign or (segment.writer, segment.number) != (writer, number):
                    self._set_aside(path)
                    continue
                group.append(segment)
                size += segment.size
                if size >= GROUP_BYTES:
                    rows += self._commit(writer, group, paths)
                    group, size = [], 0
        except Damaged as error:  # a file of a newer version: it and all later ones wait
            self._problem(self.folder, str(error))
        return rows + self._commit(writer, group, paths)

    def _commit(self, writer: str, group: list[LogSegment], paths: dict[int, Path]) -> int:
        """Rows and cursor in one Delta transaction, then the segments go."""
        if not group:
            return 0
        records = [record for segment in group for record in segment.records]
        top = group[-1]
        ended = top.footer.final if top.footer else top.number == max(paths)
        rows = 0
        if records:
            table = self._table(records)
            failpoints.hit("log.commit.before")
            if self.home.lake.append_once(self.table, table, application=writer, sequence=top.number) is not None:
                rows = table.num_rows
            else:
                self.home.lake.settle(self.table)
            failpoints.hit("log.commit.delta")
            self._note_committed()
        elif not ended and not any(segment.problems for segment in group):
            return 0  # empty, so no cursor was written: it stays until rows follow, or no gap would be left to find
        if ended:
            (self.folder / f"{writer}.writer").unlink(missing_ok=True)
        for i, segment in enumerate(group):
            if i == (len(group) + 1) // 2:
                failpoints.hit("log.commit.half")
            self._retire(segment)
        sync(self.folder)
        return rows

    def _table(self, records: list[Any]) -> pa.Table:
        lake, existing = self.home.lake, None
        if lake.exists(self.table):
            existing = lake.schema(self.table)
        table, misfits = to_table(self.kind, records, contract_of(self.home, self.kind, self.loop, records), existing)
        for misfit in misfits:
            self._problem(self.folder, misfit)
        if self.kind in ANSWERS:
            table = first_of_each(table)
            if existing is not None:
                table = table.filter(pc.invert(pc.is_in(table["_id"], value_set=self._committed_ids(table))))
        return table

    def _committed_ids(self, table: pa.Table) -> Any:
        """Those ids of `table` (and others) that Delta has from a day before on. Ids sort by time, so few files are read."""
        if not table.num_rows:
            return table["_id"]
        low, high = pc.min_max(table["_id"]).as_py().values()
        since = pa.scalar(pc.min(table["_at"].cast(pa.int64())).as_py() - SAME_ID_MICROSECONDS, pa.timestamp("us", tz="UTC"))
        near = (pc.field("_id") >= low) & (pc.field("_id") <= high) & (pc.field("_at") >= since)
        return self.home.lake.read(self.table, columns=["_id"], filters=near)["_id"]

    def _sweep(self, segment: LogSegment) -> None:
        """Delete a segment that the cursor marks as committed (a crash came before its deletion), after verifying the commit.

        The crash may have come before the commit was on the disk, too.
        """
        self.home.lake.settle(self.table)
        ids = pa.array([record.id for record in segment.records], pa.string())
        if len(ids):
            near = (pc.field("_id") >= pc.min(ids).as_py()) & (pc.field("_id") <= pc.max(ids).as_py())
            there = self.home.lake.read(self.table, columns=["_id"], filters=near)["_id"]
            lost = pc.sum(pc.invert(pc.is_in(ids, value_set=there))).as_py()
            if lost:
                self._problem(
                    segment.path, f"its number is committed, but {lost} of its {len(ids)} records are not in the table"
                )
                self._set_aside(segment.path)
                return
        if segment.footer is None or segment.footer.final:
            (self.folder / f"{segment.writer}.writer").unlink(missing_ok=True)
        self._retire(segment)

    def _retire(self, segment: LogSegment) -> None:
        if segment.problems:
            self._set_aside(segment.path)
        else:
            segment.path.unlink(missing_ok=True)

    def _recover(self, fd: int, path: Path) -> None:
        """Seal a dead writer's segment, whose lock `fd` now holds."""
        name = parse_name(path.name)
        if name is None:
            return
        if path.with_suffix(".sealed").exists():
            self._problem(path, "doubled: there is a sealed segment of the same number")
            self._set_aside(path)
            return
        data = path.read_bytes()
        try:
            segment = parse_segment(data, path, name, self.kind)
        except Damaged as error:
            self._problem(path, str(error))
            return
        if segment.footer is not None or segment.problems:
            # Complete but not renamed; or damaged: then it is read as far as possible and kept unchanged.
            os.fsync(fd)
            path.rename(path.with_suffix(".sealed"))
            sync(self.folder)
            return
        end = len(data)
        if segment.torn is not None:
            end = segment.torn
            self.quarantine.mkdir(exist_ok=True)
            (self.quarantine / f"{path.name}.torn").write_bytes(data[end:])
            failpoints.hit("log.recover.torn")
            os.ftruncate(fd, end)
            failpoints.hit("log.recover.cut")
        higher = any((n := parse_name(p.name)) and n.number > name.number for p in self.folder.glob(f"{name.writer}-*"))
        count = len(segment.frames)
        first, last = (segment.frames[0].sequence, segment.frames[-1].sequence) if count else (0, 0)
        os.lseek(fd, 0, os.SEEK_END)
        seal_file(fd, path, footer(count, first, last, zlib.crc32(memoryview(data)[HEADER.size : end]), final=not higher))

    def _report_missing(self, path: Path, writer: str, expected: int, number: int) -> None:
        for lost in range(expected, number):
            if not _explained(self.folder, writer, lost):
                self._problem(path, f"segment {lost} of the same writer is missing")
                self.quarantine.mkdir(exist_ok=True)
                (self.quarantine / f"{writer}-{lost:08d}.missing").touch()

    def _set_aside(self, path: Path) -> None:
        self.quarantine.mkdir(exist_ok=True)
        path.rename(self.quarantine / f"{path.name}.damaged")

    def _problem(self, path: Path, what: str) -> None:
        self.problems.append(Problem(where=str(path), what=what))


def _if_dead(path: Path, act: Callable[[int, Path], None]) -> bool:
    """Call `act` with a lock on `path` unless a live writer holds it; returns whether no writer holds the file now."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
            act(fd, path)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def verify(home: Home) -> list[Problem]:
    """Damage in the logs of all loops: each flipped byte, truncation, missing or doubled segment; nothing is changed.

    A torn tail of an open segment is not damage: its record was never answered. Segments that a commit moved to `quarantine/`
    is reported until it is removed.
    """
    problems: list[Problem] = []
    for folder in sorted(p for p in (home.path / "log").glob("*") if p.is_dir()):
        with _while_read(folder):
            for kind in KINDS:
                if not (folder / kind).is_dir():
                    continue
                problems += _verify_quarantine(folder / kind / "quarantine", kind)
                found = _verify_kind(home, folder, kind)
                if found:  # a live writer may have moved on meanwhile: only damage found twice counts
                    again = set(map(msgspec.json.encode, _verify_kind(home, folder, kind)))
                    problems += [p for p in found if msgspec.json.encode(p) in again]
    return problems


def _verify_quarantine(folder: Path, kind: str) -> list[Problem]:
    problems: list[Problem] = []
    for path in sorted(folder.glob("*")):
        name = parse_name(path.name.removesuffix(".damaged"))
        if path.suffix == ".missing":
            problems.append(Problem(where=str(path), what="this segment was missing when its neighbours were committed"))
        elif path.suffix == ".damaged":
            problems.append(Problem(where=str(path), what="set aside by a commit"))
            if name is not None:
                problems += parse_segment(path.read_bytes(), path, name, kind).problems
    return problems


def _verify_kind(home: Home, folder: Path, kind: str) -> list[Problem]:
    problems: list[Problem] = []
    writers: dict[str, dict[int, list[Path]]] = {}
    for path in sorted((folder / kind).iterdir()):
        name = parse_name(path.name)
        if name is not None:
            writers.setdefault(name.writer, {}).setdefault(name.number, []).append(path)
        elif path.suffix == ".writer":
            writers.setdefault(path.stem, {})
        elif path.suffix != ".new" and path.name != "quarantine":
            problems.append(Problem(where=str(path), what="not a file of the log"))
    table = table_name(kind, folder.name)
    for writer, paths in writers.items():
        try:
            committed = cursor(home, table, writer)
        except Damaged as error:  # a problem of the table, and the segments are looked at all the same
            problems.append(Problem(where=f"log of writer {writer}", what=f"how much is committed is not known: {error}"))
            committed = min(paths, default=0) - 1
        problems += _verify_writer(folder / kind, kind, writer, paths, committed)
    return problems


def _verify_writer(folder: Path, kind: str, writer: str, paths: dict[int, list[Path]], committed: int) -> list[Problem]:
    problems: list[Problem] = []
    expected, ended = committed + 1, False
    follows: int | None = None  # the sequence that comes next, where it is known
    for number in sorted(paths):
        if len(paths[number]) > 1:
            problems.append(Problem(where=str(paths[number][0]), what="doubled: an open and a sealed segment of this number"))
        path = paths[number][-1]
        try:
            segment = read_segment(path, kind)
        except FileNotFoundError:
            continue
        except Damaged as error:
            problems.append(Problem(where=str(path), what=str(error)))
            continue
        problems += segment.problems
        ended = path.suffix == ".open" or segment.footer is None or segment.footer.final
        if number <= committed:
            continue
        for lost in range(expected, number):
            problems += _missing(folder, writer, lost)
        follows = follows if number == expected else None
        expected = number + 1
        if segment.problems:
            follows = None
        elif segment.frames:
            if follows is not None and segment.frames[0].sequence != follows:
                problems.append(Problem(where=str(path), what=f"begins at record {segment.frames[0].sequence}, not {follows}"))
            follows = segment.frames[-1].sequence + 1
    if not ended and (folder / f"{writer}.writer").exists():
        problems += _missing(folder, writer, expected)
    return problems


def _missing(folder: Path, writer: str, number: int) -> list[Problem]:
    path = folder / file_name(writer, number, "sealed")
    return [] if _explained(folder, writer, number) else [Problem(where=str(path), what="this segment is missing")]


def _explained(folder: Path, writer: str, number: int) -> bool:
    """Whether the quarantine explains why a segment is missing among its neighbours."""
    names = (f"{file_name(writer, number, state)}.damaged" for state in ("open", "sealed"))
    return any((folder / "quarantine" / name).exists() for name in (*names, f"{writer}-{number:08d}.missing"))
