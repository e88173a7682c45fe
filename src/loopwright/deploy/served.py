"""What servers follow: one small file per loop that says who serves, kept up to date from the ledger.

Workers read only these files, so prediction and rollback go on while the ledger is down. A file is replaced as a whole.
"""

import os
from pathlib import Path

import msgspec

from loopwright.records import failpoints
from loopwright.records.declarations import Table
from loopwright.records.errors import Damaged, ReleaseConflict
from loopwright.records.home import Home
from loopwright.records.ids import scoped_name
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import LoopRecord

MOST_PAST = 100
MOST_PACKAGES = 20_000
"""So many packages are named by the states of the past that a file holds: fewer states for a large fleet."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Who serves a loop, the contract of its outcomes, and who served before (oldest first).

    `unrecorded` marks a rollback made while the ledger was down, which it is still to be told of.
    """

    state: ReleaseState
    outcome: Table | None = None
    past: list[ReleaseState] = []
    unrecorded: bool = False


def pointer_name(loop: str) -> str:
    """The ledger's pointer to the release state of a loop."""
    return scoped_name("release", loop)


def folder(home: Home) -> Path:
    """Where the files are."""
    return home.folder("served")


def read(path: Path) -> Served | None:
    """One loop's file; None when there is none. Raises Damaged when it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Served)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Damaged(f"served/{path.name} cannot be read: {error}") from error


def write(path: Path, served: Served) -> None:
    """Replace one loop's file."""
    replace(path, msgspec.json.encode(served))


def replace(path: Path, data: bytes) -> None:
    """Replace a file: synced before it gets its name, so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        temporary.unlink(missing_ok=True)


def path_of(home: Home, loop: str) -> Path:
    """The file of one loop."""
    return folder(home) / f"{loop}.json"


def follow(home: Home) -> list[str]:
    """Bring the files up to date with the ledger; the loops that changed. Raises LedgerUnavailable.

    A rollback made while the ledger was down is recorded now, unless somebody released meanwhile: then the ledger is right.
    """
    return Follower(home).follow()


class Follower:
    """Follows a ledger again and again: while neither the ledger nor a file has changed, it reads nothing else."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._seen: tuple[int, dict[str, tuple[int, int, int]]] | None = None

    def follow(self) -> list[str]:
        """See `follow`."""
        home = self._home
        seen = home.ledger.count(), self._stamps()
        if self._seen == seen:
            return []
        changed = []
        states: dict[str, list[ReleaseState]] = {}
        for entry in home.ledger.find(ReleaseState, newest=False):
            states.setdefault(entry.loop, []).append(entry.record)
        for loop in sorted(states):
            path = path_of(home, loop)
            try:
                now = read(path)
            except Damaged:
                now = None
            if now is not None and now.unrecorded and (recorded := _record(home, now)) is not None:
                states[loop].append(recorded)
            wanted = _served(home, loop, states[loop])
            if wanted != now:
                failpoints.hit("release.followed")
                write(path, wanted)
                changed.append(loop)
        self._seen = None if changed else seen
        return changed

    def _stamps(self) -> dict[str, tuple[int, int, int]]:
        stats = ((path.name, path.stat()) for path in folder(self._home).glob("*.json"))
        return {name: (stat.st_mtime_ns, stat.st_ino, stat.st_size) for name, stat in stats}


def copy(home: Home, loop: str) -> None:
    """Bring the file of one loop up to date with the ledger."""
    states = [entry.record for entry in home.ledger.find(ReleaseState, loop=loop, newest=False)]
    if states:
        write(path_of(home, loop), _served(home, loop, states))


def _record(home: Home, served: Served) -> ReleaseState | None:
    state = served.state
    before = served.past[-1].packages if served.past else []
    links = [(package, "released") for package in state.packages if package not in before]
    try:
        home.ledger.swap(
            pointer_name(state.loop), state.generation - 1, state, loop=state.loop, key=state.arms[0].package, links=links
        )
    except ReleaseConflict:
        return None
    failpoints.hit("release.caught_up")
    return state


def _served(home: Home, loop: str, states: list[ReleaseState]) -> Served:
    declared = home.ledger.latest(LoopRecord, loop=loop)
    outcome = declared.record.declaration.get("outcome") if declared else None
    return Served(
        state=states[-1],
        outcome=msgspec.convert(outcome["table"], Table) if outcome else None,
        past=_past(states[:-1]),
    )


def _past(states: list[ReleaseState]) -> list[ReleaseState]:
    """The newest states, as many as a file may hold, oldest first."""
    kept: list[ReleaseState] = []
    room = MOST_PACKAGES
    for state in reversed(states[-MOST_PAST:]):
        room -= 1 + len(state.segments)
        if room < 0 and kept:
            break
        kept.append(state)
    return kept[::-1]
