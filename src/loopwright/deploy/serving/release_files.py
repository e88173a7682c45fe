"""Release files: one small file per loop with its release state, which servers follow; kept up to date from the ledger.

Workers read only these files, so prediction and rollback go on while the ledger is down. A file is replaced as a whole.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from loopwright.base import failpoints
from loopwright.base.clock import Clock
from loopwright.base.errors import Damaged, ReleaseConflict, Unavailable
from loopwright.base.files import read_regular, replace_file
from loopwright.base.ids import NAME, scoped_name
from loopwright.base.lock import FileLock
from loopwright.records.declarations import Table
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home

FEW = 64
"""Number of loops up to which all files are checked each time, and packages loaded before the first request."""

LOCK_SECONDS = 10.0
"""Timeout of a writer for the lock; each holds it for one write."""

LOOK_SECONDS = 15.0
MAX_NOTED = 2**16
MAX_PAST = 100
MAX_BYTES = 64 * 2**20
MAX_PACKAGES = 20_000
"""Maximum number of packages in the past states of a file: fewer states for a large fleet."""


class ReleaseFile(msgspec.Struct, frozen=True, kw_only=True):
    """A loop's release state, the contract of its outcomes, and its earlier states (oldest first).

    `unrecorded` counts the newest states that were made while the ledger was down and are not yet recorded in it.
    """

    state: ReleaseState
    outcome: Table | None = None
    past: list[ReleaseState] = []
    unrecorded: int | bool = 0  # earlier versions wrote whether `state` was

    @property
    def states(self) -> list[ReleaseState]:
        """All states, oldest first."""
        return [*self.past, self.state]

    @property
    def pending(self) -> list[ReleaseState]:
        """The states to be recorded in the ledger, oldest first."""
        return self.states[len(self.past) + 1 - int(self.unrecorded) :]


def pointer_name(loop: str) -> str:
    """The ledger's pointer to the release state of a loop."""
    return scoped_name("release", loop)


def folder(home: Home) -> Path:
    """The folder of the files."""
    return home.folder("served")


def read(path: Path) -> ReleaseFile | None:
    """One loop's file; None when there is none. Raises Damaged when it cannot be read."""
    return _decode(path, _bytes(path))


def read_intact(path: Path) -> ReleaseFile | None:
    """As `read`, but None for a damaged file, where the caller can use the ledger; the next change rewrites it."""
    try:
        return read(path)
    except Damaged:
        return None


def _bytes(path: Path) -> bytes | None:
    try:
        return read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"served/{path.name} cannot be read: {error}") from error


def _decode(path: Path, data: bytes | None) -> ReleaseFile | None:
    try:
        return None if data is None else msgspec.json.decode(data, type=ReleaseFile)
    except ValueError as error:
        raise Damaged(f"served/{path.name} cannot be read: {error}") from error


def write(path: Path, served: ReleaseFile) -> None:
    """Replace one loop's file."""
    replace(path, msgspec.json.encode(served))
    _note(path)


def change(path: Path, decide: Callable[[ReleaseFile | None], ReleaseFile | None]) -> ReleaseFile | None:
    """Compare-and-swap on one loop's file: write the result of `decide` (None: leave it), or call it again if the file changed.

    `decide` may be slow, as no lock is held meanwhile. Returns what was written; None where nothing was. An unreadable
    file is passed to `decide` as None.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent.with_name(f"{path.parent.name}.lock"))
    try:
        while True:
            seen = _bytes(path)
            try:
                now = _decode(path, seen)
            except Damaged:
                now = None
            wanted = decide(now)
            if wanted is None or wanted == now:
                return None
            with lock.hold(LOCK_SECONDS):
                if _bytes(path) == seen:
                    write(path, wanted)
                    return wanted
    except TimeoutError as error:
        raise Unavailable(f"{path.parent.name}/{path.name} is being written for too long: {error}") from error
    finally:
        lock.close()


def replace(path: Path, data: bytes) -> None:
    """Replace a file in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)


def _note(path: Path) -> None:
    """Append the name of a written file to the list next to the folder. A list that has become too long is started again."""
    noted, line = _list(path.parent), f"{path.name}\n".encode()
    try:
        with noted.open("ab") as file:
            file.write(line)
            if file.tell() <= MAX_NOTED:
                return
        replace_file(noted, line, durable=False)
    except OSError:  # a full disk: the change is still found, later
        return


def _list(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.changed")


class Changes:
    """Finds the files of the folder that changed since the last call (the first time: all of them), as names of loops.

    Writers append to a list next to the folder, so in a large folder a change costs reading one file, and no change one
    system call. Other changes of files are noticed at once in a folder of at most `FEW` files, in a larger one
    every `LOOK_SECONDS`.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self._read = (0, 0)
        self._looked = -LOOK_SECONDS

    def __call__(self) -> list[str]:
        """The changed loops' names, sorted; also those whose file is gone."""
        noted = self._noted()
        now = self._clock.monotonic()
        if noted is None or len(self._stamps) <= FEW or now - self._looked >= LOOK_SECONDS:
            self._looked = now
            return self._look()
        changed = []
        for loop in noted:
            stamp = _stamp(self._folder / f"{loop}.json")
            if self._stamps.get(loop) != stamp:
                self._keep(loop, stamp)
                changed.append(loop)
        return changed

    @property
    def loops(self) -> list[str]:
        """Names of all loops with a release file, sorted."""
        return sorted(self._stamps)

    def _look(self) -> list[str]:
        now: dict[str, tuple[int, int, int]] = {}
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for number, entry in enumerate(entries, 1):
                loop = entry.name.removesuffix(".json")
                if loop != entry.name and NAME.fullmatch(loop) and (stamp := _stamp(entry)) is not None:
                    now[loop] = stamp
                if number % 256 == 0:
                    time.sleep(0.001)  # requests must not wait for the whole scan
        changed = sorted(loop for loop in {*now, *self._stamps} if self._stamps.get(loop) != now.get(loop))
        self._stamps = now
        return changed

    def _keep(self, loop: str, stamp: tuple[int, int, int] | None) -> None:
        if stamp is None:
            self._stamps.pop(loop, None)
        else:
            self._stamps[loop] = stamp

    def _noted(self) -> list[str] | None:
        """The loops on the list since the last call; None if the list was started again meanwhile."""
        try:
            with _list(self._folder).open("rb") as file:
                stat = os.fstat(file.fileno())
                inode, offset = self._read
                self._read = stat.st_ino, stat.st_size
                if stat.st_ino != inode or stat.st_size < offset:
                    return None
                file.seek(offset)
                lines = file.read(stat.st_size - offset).decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            return []
        return sorted({loop for line in lines if NAME.fullmatch(loop := line.removesuffix(".json"))})


def _stamp(file: "Path | os.DirEntry[str]") -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def path_of(home: Home, loop: str) -> Path:
    """The file of one loop."""
    return folder(home) / f"{loop}.json"


def follow(home: Home) -> list[str]:
    """Update all files from the ledger; returns the loops that changed. Raises LedgerUnavailable.

    Rollbacks made while the ledger was down are recorded now, unless it has a newer release: then the ledger wins.
    """
    return Follower(home).follow()


class _Known(NamedTuple):
    """The ledger's facts on a loop: its release states, oldest first, and its newest declaration."""

    states: list[ReleaseState]
    declared: LoopRecord | None = None


class Follower:
    """Follows a ledger: after changes there, or of a file, it reads only the loops concerned."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._changes = Changes(folder(home), home.clock)
        self._seen = 0
        self._due: set[str] = set()
        """Loops still to be updated, e.g. because the ledger became unavailable in between."""

    def follow(self) -> list[str]:
        """See `follow`."""
        ledger = self._home.ledger
        newest = ledger.count()
        self._due.update(self._changes())
        if newest < self._seen:  # the ledger was replaced
            self._seen = 0
        if newest > self._seen:
            for kind in (ReleaseState, LoopRecord):
                self._due.update(ledger.loops(kind, after=self._seen))
            self._seen = newest
        changed = []
        known = _known(self._home, None) if len(self._due) > FEW else None
        for loop in sorted(self._due):
            found = (known if known is not None else _known(self._home, loop)).get(loop)
            if found is not None and self._mend(loop, found):
                changed.append(loop)
            self._due.discard(loop)
        return changed

    def _mend(self, loop: str, known: _Known) -> bool:
        """Update the file of one loop from its known states; returns whether it had to be written."""
        return _bring(self._home, loop, known, "release.followed")


def copy(home: Home, loop: str) -> None:
    """Record the local changes of one loop in the ledger, then update its file from the ledger."""
    _bring(home, loop, None, "")


def _bring(home: Home, loop: str, known: _Known | None, point: str) -> bool:
    """See `copy`; `known` are the loop's states in the ledger a moment ago. Returns whether the file had to be written."""

    def decide(now: ReleaseFile | None) -> ReleaseFile | None:
        nonlocal known
        newest = known.states[-1].generation if known is not None else 0
        if known is None or (now is not None and now.state.generation - int(now.unrecorded) > newest):
            known = _known(home, loop).get(loop)  # also where a release was made since the ledger was read
        if known is None:
            return None
        if point and now is not None and now.state.generation - int(now.unrecorded) > known.states[-1].generation:
            return None  # an older ledger has been restored: keep serving until the next release
        if now is not None and now.pending:
            known = known._replace(states=_record(home, now, known.states))
        wanted = _served(known)
        if point and wanted != now:
            failpoints.hit(point)
        return wanted

    return change(path_of(home, loop), decide) is not None


def _record(home: Home, served: ReleaseFile, states: list[ReleaseState]) -> list[ReleaseState]:
    """Record in the ledger, which has `states`, the changes that it lacks. Returns the states that it has then.

    A concurrent change ends this: then the ledger wins.
    """
    before = served.states[-1 - len(served.pending)].packages if len(served.past) >= len(served.pending) else []
    for state in served.pending:
        links = [(package, "released") for package in state.packages if package not in before]
        name, key, before = pointer_name(state.loop), state.champion.package, state.packages
        try:
            home.acting_as(state.by).ledger.swap(name, state.generation - 1, state, loop=state.loop, key=key, links=links)
        except ReleaseConflict:
            states = [entry.record for entry in home.ledger.find(ReleaseState, loop=state.loop, newest=False)]
            if state not in states:
                return states
            continue
        states = [*states, state]
        failpoints.hit("release.caught_up")
    return states


def _known(home: Home, loop: str | None) -> dict[str, _Known]:
    """The ledger's facts on a released loop; for all of them (`loop` is None) with two queries."""
    found: dict[str, _Known] = {}
    for entry in home.ledger.find(ReleaseState, loop=loop, newest=False):
        found.setdefault(entry.loop, _Known([])).states.append(entry.record)
    if loop is None:
        declared = {entry.loop: entry.record for entry in home.ledger.find(LoopRecord, newest=False)}
    else:
        newest = home.ledger.latest(LoopRecord, loop=loop)
        declared = {loop: newest.record} if newest is not None else {}
    return {name: known._replace(declared=declared.get(name)) for name, known in found.items()}


def _served(known: _Known) -> ReleaseFile:
    declared = known.declared.declaration if known.declared is not None else {}
    table = declared["outcome"]["table"] | {"key": declared["requests"]["key"]} if "outcome" in declared else None
    return ReleaseFile(
        state=known.states[-1],
        outcome=msgspec.convert(table, Table) if table else None,  # its key in the order of the predictions' units
        past=past(known.states[:-1]),
    )


def past(states: Sequence[ReleaseState]) -> list[ReleaseState]:
    """The newest states, as many as a file may hold, oldest first."""
    kept: list[ReleaseState] = []
    room = MAX_PACKAGES
    for state in reversed(states[-MAX_PAST:]):
        room -= 1 + len(state.segments)
        if room < 0 and kept:
            break
        kept.append(state)
    return kept[::-1]
