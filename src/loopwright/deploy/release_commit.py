"""Commit a change of the release: its target and generation are fixed first, then it is made exactly once.

A change is a release state that is complete before anything is written. Every writer, be it a late thread, the
later recording of the local copy, or a repeated request, writes that very state at that very generation: the
first one succeeds, the others find it done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

from loopwright.base import failpoints
from loopwright.base.errors import LedgerUnavailable, ReleaseConflict, RequestConflict, Unavailable
from loopwright.base.ids import new_id
from loopwright.base.lock import FileLock
from loopwright.base.supervision import start
from loopwright.deploy.serving import release_files
from loopwright.records.entries import Entry
from loopwright.records.releases import ReleaseState, Unchanged
from loopwright.stores.home import Home

T = TypeVar("T")

LEDGER_SECONDS = 1.0
"""Timeout of the ledger in a rollback, before it is made without it."""

Asked = Mapping[str, str | bool]
"""The arguments of a change: a repeated idempotency key must come with the same ones."""


class Change(NamedTuple):
    """A change of the release before it is made: the new state, and those before it, oldest first.

    `local` where these are the local copy's, because the ledger did not answer.
    """

    state: ReleaseState
    before: Sequence[ReleaseState]
    local: bool = False

    @property
    def expected(self) -> int:
        """The generation that the release must be at."""
        return self.state.generation - 1


def repeated(states: Sequence[ReleaseState], request: str, arguments: Asked) -> ReleaseState | None:
    """The state that an earlier request with this key led to. Raises RequestConflict if its arguments differ."""
    found = next((state for state in states if request and state.request == request), None)
    if found is not None and found.arguments != arguments:
        raise RequestConflict(request)
    return found


def answered(home: Home, loop: str, request: str, arguments: Asked) -> ReleaseState | None:
    """As `repeated`, from the local copy and the ledger; also where the request changed nothing."""
    copy = release_files.read_intact(release_files.path_of(home, loop))
    found = repeated(copy.states, request, arguments) if copy is not None else None
    if found is None and request:
        states = [entry.record for entry in home.ledger.find(ReleaseState, loop=loop, newest=False)]
        found = repeated(states, request, arguments)
        unchanged = home.ledger.latest(Unchanged, loop=loop, key=request) if found is None else None
        if unchanged is not None:
            if unchanged.record.arguments != arguments:
                raise RequestConflict(request)
            found = next(state for state in states if state.generation == unchanged.record.generation)
    return found


def unchanged(home: Home, state: ReleaseState, request: str, arguments: Asked) -> None:
    """Store that a request changed nothing because `state` was in service, so that it changes nothing later either."""
    if request:
        record = Unchanged(loop=state.loop, request=request, arguments=dict(arguments), generation=state.generation)
        home.ledger.put(record, loop=state.loop, key=request)


def commit_release(home: Home, change: Change) -> Entry[ReleaseState]:
    """Make a change in the ledger, unless it is made already. Raises ReleaseConflict when a concurrent change was first."""
    state = change.state
    before = change.before[-1].packages if change.before else []
    links = [(p, "released") for p in state.packages if p == state.champion.package or p not in before]
    name, key = release_files.pointer_name(state.loop), state.champion.package
    failpoints.hit("release.intent")
    try:
        entry = home.acting_as(state.by).ledger.swap(name, change.expected, state, loop=state.loop, key=key, links=links)
    except ReleaseConflict:
        entries = home.ledger.find(ReleaseState, loop=state.loop, newest=False)
        if repeated([e.record for e in entries], state.request, state.arguments) is None:
            raise
        entry = next(e for e in entries if e.record.request == state.request)
    failpoints.hit("release.recorded")
    release_files.copy(home, state.loop)
    failpoints.hit("release.copied")
    return entry


def commit_release_locally(home: Home, change: Change) -> Entry[ReleaseState]:
    """Make a change in the local copy, to be recorded later, unless it is made already.

    The returned entry is not in the ledger yet: its chain is empty. Raises ReleaseConflict when a concurrent change was
    first.
    """
    made = change.state

    def decide(now: release_files.ReleaseFile | None) -> release_files.ReleaseFile | None:
        nonlocal made
        if now is None:
            return release_files.ReleaseFile(state=made, past=release_files.past(change.before), unrecorded=1)
        before = repeated(now.states, made.request, made.arguments)
        if before is not None:
            made = before
            return None
        based = bool(change.before) and now.state == change.before[-1]
        if now.state.generation > change.expected or (change.local and not based):
            raise ReleaseConflict(release_files.pointer_name(made.loop), change.expected, now.state.generation)
        past = release_files.past(change.before)
        pending = min(len(now.pending), len(past)) if based else 0
        return release_files.ReleaseFile(state=made, outcome=now.outcome, past=past, unrecorded=pending + 1)

    release_files.change(release_files.path_of(home, made.loop), decide)
    failpoints.hit("release.local")
    return unrecorded(made)


def unrecorded(state: ReleaseState) -> Entry[ReleaseState]:
    """A state as an entry that is not in the ledger yet, or was not looked for there."""
    return Entry(
        id=new_id(state.since),
        sequence=0,
        kind=ReleaseState.kind,
        loop=state.loop,
        key=state.champion.package,
        at=state.since,
        by=state.by,
        record=state,
        digest="",
        chain="",
    )


@contextmanager
def changing(home: Home, loop: str) -> Iterator[None]:
    """One change at a time of a loop by those on this machine that can do without the ledger."""
    lock = FileLock(home.folder("locks") / f"{loop}.lock")
    try:
        with lock.hold(2 * LEDGER_SECONDS):
            yield
    except TimeoutError as error:
        raise Unavailable(
            f"another process changes the release of loop {loop}: check `loopwright history {loop}`, then try again"
        ) from error
    finally:
        lock.close()


def in_time(call: Callable[[], T], seconds: float) -> T:
    """The result of `call`; LedgerUnavailable on timeout. `call` then keeps running, so it must be safe to finish late."""
    done: SimpleQueue[tuple[T] | Exception] = SimpleQueue()

    def run() -> None:
        try:
            done.put((call(),))
        except Exception as error:  # noqa: BLE001  # raised again in the caller
            done.put(error)

    start("rollback", run)
    try:
        found = done.get(timeout=max(0.0, seconds))
    except Empty:
        raise LedgerUnavailable("the ledger does not answer in time") from None
    if isinstance(found, Exception):
        raise found
    return found[0]
