"""Who serves: releasing, rolling back, and the history of both. Every change is a compare-and-swap in the ledger."""

from datetime import datetime
from typing import Literal

from loopwright.deploy import served
from loopwright.deploy.moment import read_moment
from loopwright.records.errors import LedgerUnavailable, NotFound, PackageNotFound, PackageRefused, UsageError
from loopwright.records.home import Home
from loopwright.records.ids import check_name, new_id
from loopwright.records.ledger import Entry
from loopwright.records.releases import Arm, ReleaseState


def release(
    home: Home,
    loop: str,
    package: str,
    *,
    strategy: Literal["direct"] = "direct",
    why: str,
    by: str | None = None,
    expected: int | None = None,
) -> Entry[ReleaseState]:
    """Put a package (its digest, or the beginning of it) into service. `direct` replaces what serves at once.

    `expected` is the generation that the caller has seen (default: the present one). Raises ReleaseConflict when the
    release is at another, PackageNotFound, PackageRefused when the package is of another loop or damaged.
    """
    if strategy != "direct":
        raise UsageError(f"no strategy {strategy!r}: this version knows `direct`")
    return _change(home, loop, _checked(home, loop, home.packages.resolve(package)), "release", why, by, expected)


def rollback(
    home: Home, loop: str, *, to: str | None = None, why: str, by: str | None = None, expected: int | None = None
) -> Entry[ReleaseState]:
    """Go back: to the package that served before the present one, or `to` a package that served or to who served at a time.

    `to` is the beginning of a digest, ISO 8601, or a moment such as "tuesday 09:00" (UTC unless it names a zone). While
    the ledger is down the change is made in the local copy, which the servers follow, and recorded later.
    Raises PackageNotFound, NotFound (nothing served then), ReleaseConflict.
    """
    try:
        states = [entry.record for entry in history(home, loop)]
    except LedgerUnavailable:
        return _rollback_locally(home, loop, to, why, by)
    package = _checked(home, loop, _target(home, states, loop, to))
    return _change(home, loop, package, "rollback", why, by, expected)


def history(home: Home, loop: str) -> list[Entry[ReleaseState]]:
    """Who served when, oldest first."""
    return home.ledger.find(ReleaseState, loop=loop, newest=False)


def serving(home: Home, loop: str, at: datetime | None = None) -> ReleaseState | None:
    """Who serves, or served at the moment `at`; None when nobody does or did."""
    if at is None:
        entry = home.ledger.latest(ReleaseState, loop=loop)
        return entry.record if entry else None
    return _serving_at([entry.record for entry in history(home, loop)], at)


def _serving_at(states: list[ReleaseState], at: datetime) -> ReleaseState | None:
    return next((state for state in reversed(states) if state.since <= at), None)


def _target(home: Home, states: list[ReleaseState], loop: str, to: str | None) -> str:
    """The package to go back to; `states` oldest first."""
    if not states:
        raise NotFound("release of loop", loop, next_step="nothing serves yet: `loopwright release LOOP`")
    present = states[-1].arms[0].package
    served_before = list(dict.fromkeys(state.arms[0].package for state in reversed(states)))
    if to is None:
        before = [package for package in served_before if package != present]
        if not before:
            raise NotFound("earlier release of loop", loop, next_step="only one package ever served")
        return before[0]
    matches = [package for package in served_before if package.startswith(to)] if len(to) >= 4 else []
    if len(matches) == 1:
        return matches[0]
    moment = None if matches else read_moment(to, home.clock.now())
    if moment is None:
        raise PackageNotFound(to, [package[:12] for package in matches or served_before])
    state = _serving_at(states, moment)
    if state is None:
        raise NotFound(
            "release at", f"{moment:%Y-%m-%d %H:%M}", next_step=f"the first one was at {states[0].since:%Y-%m-%d %H:%M} UTC"
        )
    return state.arms[0].package


def _checked(home: Home, loop: str, package: str) -> str:
    """The digest of a package that is whole and of this loop."""
    found = home.packages.read(package)
    if found.manifest.loop != loop:
        raise PackageRefused(package, f"it was made for loop {found.manifest.loop!r}, not {loop!r}")
    return found.digest


def _change(
    home: Home,
    loop: str,
    package: str,
    action: Literal["release", "rollback"],
    why: str,
    by: str | None,
    expected: int | None,
) -> Entry[ReleaseState]:
    pointer = home.ledger.pointer(served.pointer_name(check_name(loop, "loop")))
    generation = expected if expected is not None else pointer.generation if pointer else 0
    state = _state(home, loop, package, generation + 1, action, why, by)
    entry = home.ledger.swap(
        served.pointer_name(loop), generation, state, loop=loop, key=package, links=[(package, "released")]
    )
    served.copy(home, loop)
    return entry


def _state(
    home: Home, loop: str, package: str, generation: int, action: Literal["release", "rollback"], why: str, by: str | None
) -> ReleaseState:
    return ReleaseState(
        loop=loop,
        generation=generation,
        arms=[Arm(package=package, role="champion", share=1.0)],
        strategy="direct",
        action=action,
        since=home.clock.now(),
        by=by or home.by,
        why=why,
    )


def _rollback_locally(home: Home, loop: str, to: str | None, why: str, by: str | None) -> Entry[ReleaseState]:
    """A rollback without the ledger. The entry that is returned is not in the ledger yet: its chain is empty."""
    path = served.path_of(home, check_name(loop, "loop"))
    copy = served.read(path)
    if copy is None:
        raise NotFound("release of loop", loop, next_step="nothing serves here, and the ledger does not answer")
    states = [*copy.past, copy.state]
    package = _checked(home, loop, _target(home, states, loop, to))
    # One change while the ledger is down is one generation: a second one replaces the first, which nobody else has seen.
    generation = copy.state.generation if copy.unrecorded else copy.state.generation + 1
    state = _state(home, loop, package, generation, "rollback", why, by)
    past = copy.past if copy.unrecorded else states
    served.write(path, served.Served(state=state, outcome=copy.outcome, past=past, unrecorded=True))
    return Entry(
        id=new_id(state.since),
        sequence=0,
        kind=ReleaseState.kind,
        loop=loop,
        key=package,
        at=state.since,
        by=state.by,
        record=state,
        digest="",
        chain="",
    )
