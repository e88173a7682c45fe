"""Who serves: releasing, rolling back, and the history of both. Every change is a compare-and-swap in the ledger.

With a fleet the packages of the segments are part of the same state: they come with the package of the loop that they
were judged against, go back with it, and each can be released and rolled back alone.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from difflib import get_close_matches
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

import msgspec

from loopwright.deploy import served
from loopwright.deploy.bad import bad_packages, marked_here
from loopwright.deploy.moment import read_moment
from loopwright.deploy.segments import check_segment
from loopwright.records import failpoints
from loopwright.records.errors import LedgerUnavailable, NotFound, PackageNotFound, PackageRefused, UsageError
from loopwright.records.home import Home
from loopwright.records.ids import check_name, new_id
from loopwright.records.ledger import Entry
from loopwright.records.packages import Package
from loopwright.records.releases import Arm, BadPackage, ReleaseState

GLOBAL = "global"
"""What `to` says to let a segment be answered by the loop's own package."""


LEDGER_SECONDS = 1.0
"""So long a rollback waits for the ledger before it is made without it."""


class _Asked(NamedTuple):
    """What a rollback was asked for."""

    segment: str | None
    to: str | None
    why: str
    by: str | None
    expected: int | None
    force: bool


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Who is to serve: the package of the loop, the column of its fleet, and the packages of segments."""

    package: str
    role: Literal["champion", "heuristic"] = "champion"
    fleet: str = ""
    segments: dict[str, str] = {}


def release(
    home: Home,
    loop: str,
    package: str,
    *,
    strategy: Literal["direct"] = "direct",
    fleet: str = "",
    segments: Mapping[str, str] | None = None,
    why: str,
    by: str | None = None,
    expected: int | None = None,
    force: bool = False,
) -> Entry[ReleaseState]:
    """Put a package (its digest, or the beginning of it) into service. `direct` replaces what serves at once.

    `segments` are the packages (whole digests) of the segments of column `fleet` that come with it; those that served
    beside another package go. A package of one segment replaces that of its segment only.

    `expected` is the generation that the caller has seen (default: the present one). Raises ReleaseConflict when the
    release is at another, PackageNotFound, PackageRefused when a package is of another loop or segment, or damaged, or
    marked bad (unless `force`), and NotFound for a segment's package where nothing serves beside which it could.
    """
    if strategy != "direct":
        raise UsageError(f"no strategy {strategy!r}: this version knows `direct`")
    made = _checked(home, loop, home.packages.resolve(package))
    if not force:
        _refuse_bad([made.digest, *(segments or {}).values()], bad_packages(home, loop))
    if made.manifest.segment is not None:
        column, segment = made.manifest.segment.column, made.manifest.segment.value
        present = serving(home, loop)
        if present is None:
            raise NotFound("release of loop", loop, next_step="a segment's package serves beside one of the whole loop")
        target = _with_segment(home, present, column, segment, made.digest)
        expected = present.generation if expected is None else expected
    else:
        for segment, digest in (segments or {}).items():
            check_segment(home.packages.read(digest), made, fleet, segment)
        target = Target(package=made.digest, fleet=fleet if segments else "", segments=dict(segments or {}))
    return _change(home, loop, target, "release", why, by, expected)


def rollback(
    home: Home,
    loop: str,
    *,
    segment: str | None = None,
    to: str | None = None,
    why: str,
    by: str | None = None,
    expected: int | None = None,
    force: bool = False,
) -> Entry[ReleaseState]:
    """Go back: to the package that served before the present one, or `to` a package that served or to who served at a time.

    The segments' packages go back with it, to those that served beside it last. With `segment` only that segment goes
    back, to its package before, or to the loop's own package where it had none (`to="global"` says so at once).

    Packages marked bad are passed over, and named in `to` only with `force`. Where the present package is bad and none
    that is not served before, its heuristic answers alone.

    `to` is the beginning of a digest, ISO 8601, or a moment such as "tuesday 09:00" (UTC unless it names a zone). While
    the ledger is down, or does not answer within a second, the change is made in the local copy, which the servers
    follow, and recorded later.
    Raises PackageNotFound, PackageRefused, NotFound (nothing served then, no such segment), ReleaseConflict.
    """
    asked = _Asked(segment, to, why, by, expected, force)
    if served.read(served.path_of(home, check_name(loop, "loop"))) is None:
        return _rollback(home, loop, asked)
    try:
        return _in_time(lambda: _rollback(home, loop, asked))
    except LedgerUnavailable:
        return _rollback_locally(home, loop, asked)


def withdraw(home: Home, package: BadPackage) -> ReleaseState | None:
    """Take a bad package out of service, by rolling back; the new state, or None where it does not serve.

    A segment whose package is bad is answered by the loop's own. Raises what `rollback` raises.
    """
    copy = served.read(served.path_of(home, package.loop))
    if copy is None:
        return None
    found = None
    why = f"package {package.package[:12]} was marked bad: {package.detail}"
    if copy.state.arms[0].package == package.package:
        if copy.state.arms[0].role == "champion":
            found = rollback(home, package.loop, why=why, by="loopwright", expected=copy.state.generation).record
    else:
        for segment in [name for name, digest in copy.state.segments.items() if digest == package.package]:
            found = rollback(home, package.loop, segment=segment, to=GLOBAL, why=why, by="loopwright").record
    return found


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


def _rollback(home: Home, loop: str, asked: _Asked) -> Entry[ReleaseState]:
    """A rollback in the ledger."""
    states = [entry.record for entry in history(home, loop)]
    bad = {} if asked.force else bad_packages(home, loop)
    target = _target(home, states, loop, asked, bad)
    expected = states[-1].generation if asked.expected is None else asked.expected
    return _change(home, loop, target, "rollback", asked.why, asked.by, expected)


def _in_time(call: Callable[[], Entry[ReleaseState]]) -> Entry[ReleaseState]:
    """What `call` gives; LedgerUnavailable when that takes too long. It goes on then: whichever is first counts."""
    done: SimpleQueue[Entry[ReleaseState] | Exception] = SimpleQueue()

    def run() -> None:
        try:
            done.put(call())
        except Exception as error:  # noqa: BLE001  # raised again by who waits
            done.put(error)

    threading.Thread(target=run, name="rollback", daemon=True).start()
    try:
        found = done.get(timeout=LEDGER_SECONDS)
    except Empty:
        raise LedgerUnavailable("the ledger does not answer in time") from None
    if isinstance(found, Exception):
        raise found
    return found


def _target(home: Home, states: list[ReleaseState], loop: str, asked: _Asked, bad: Mapping[str, BadPackage]) -> Target:
    """Who is to serve after going back; `states` oldest first."""
    if not states:
        raise NotFound("release of loop", loop, next_step="nothing serves yet: `loopwright release LOOP`")
    if asked.segment is not None:
        return _segment_target(home, states, asked.segment, asked.to, bad)
    if asked.to is None:
        return _before(home, states, bad)
    found = _named(home, states, [s.arms[0].package for s in states], asked.to)
    _refuse_bad([found.arms[0].package], bad)
    _checked(home, loop, found.arms[0].package)
    return _again(found, bad)


def _before(home: Home, states: list[ReleaseState], bad: Mapping[str, BadPackage]) -> Target:
    """The state before the present one, by its package, or else by those of its segments; passing over what is bad."""
    present = states[-1]
    own = present.arms[0].package
    earlier = [s for s in reversed(states) if s.arms[0].package != own and s.arms[0].package not in bad]
    if own not in bad:
        found = next(iter([*earlier, *(s for s in reversed(states) if s.segments != present.segments)]), None)
        if found is not None:
            _checked(home, present.loop, found.arms[0].package)
            return _again(found, bad)
    for state in earlier:
        with suppress(PackageRefused, PackageNotFound):  # what serves now is worse than whatever served before that
            _checked(home, present.loop, state.arms[0].package)
            return _again(state, bad)
    if own not in bad or present.arms[0].role == "heuristic":
        raise NotFound("earlier release of loop", present.loop, next_step="only one package ever served")
    return Target(package=own, role="heuristic")


def _again(state: ReleaseState, bad: Mapping[str, BadPackage]) -> Target:
    """A state to go back to, without the segments' packages that are bad."""
    segments = {name: package for name, package in state.segments.items() if package not in bad}
    arm = state.arms[0]
    return Target(package=arm.package, role=arm.role, fleet=state.fleet if segments else "", segments=segments)


def _refuse_bad(packages: Sequence[str], bad: Mapping[str, BadPackage]) -> None:
    """Raise PackageRefused for the first of the packages that is marked bad."""
    for package in packages:
        if package in bad:
            why = f"marked bad on {bad[package].since:%Y-%m-%d %H:%M} UTC: {bad[package].detail}"
            raise PackageRefused(package, f"{why}; `--force` puts it into service all the same")


def _segment_target(
    home: Home, states: list[ReleaseState], segment: str, to: str | None, bad: Mapping[str, BadPackage]
) -> Target:
    present = states[-1]
    known = dict.fromkeys(name for state in reversed(states) for name in state.segments)
    if segment not in known:
        near = get_close_matches(segment, list(known), 3, 0.4) or list(known)[:3]
        raise NotFound("package of segment", segment, near=near, next_step="the loop's own package answers it")
    own = [state.segments.get(segment, "") for state in states]
    if to is None:
        wanted = next((package for package in reversed(own) if package != own[-1] and package not in bad), "")
    elif to == GLOBAL:
        wanted = ""
    else:
        wanted = _named(home, states, own, to).segments.get(segment, "")
        _refuse_bad([wanted], bad)
    column = present.fleet or next(state.fleet for state in reversed(states) if segment in state.segments)
    return _with_segment(home, present, column, segment, wanted)


def _named(home: Home, states: list[ReleaseState], packages: Sequence[str], to: str) -> ReleaseState:
    """The newest state with the package that `to` begins, or the one at the moment it means; `packages` one per state."""
    served_before = list(dict.fromkeys(package for package in reversed(packages) if package))
    matches = [package for package in served_before if package.startswith(to)] if len(to) >= 4 else []
    if len(matches) == 1:
        return next(s for s, package in zip(reversed(states), reversed(packages), strict=True) if package == matches[0])
    moment = None if matches else read_moment(to, home.clock.now())
    if moment is None:
        raise PackageNotFound(to, [package[:12] for package in matches or served_before])
    state = _serving_at(states, moment)
    if state is None:
        raise NotFound(
            "release at", f"{moment:%Y-%m-%d %H:%M}", next_step=f"the first one was at {states[0].since:%Y-%m-%d %H:%M} UTC"
        )
    return state


def _with_segment(home: Home, present: ReleaseState, column: str, segment: str, package: str) -> Target:
    """The present state with another package for one segment (none: the loop's own answers it). Raises PackageRefused."""
    if present.segments and column != present.fleet:
        raise PackageRefused(package, f"it is of a fleet by {column!r}, and the one in service is by {present.fleet!r}")
    own = present.arms[0].package
    others = {name: digest for name, digest in present.segments.items() if name != segment}
    if package:
        check_segment(home.packages.read(package), home.packages.read(own), column, segment)
        others[segment] = package
    return Target(package=own, role=present.arms[0].role, fleet=column if others else "", segments=others)


def _checked(home: Home, loop: str, package: str) -> Package:
    """A package that is whole and of this loop."""
    found = home.packages.read(package)
    if found.manifest.loop != loop:
        raise PackageRefused(package, f"it was made for loop {found.manifest.loop!r}, not {loop!r}")
    return found


def _change(
    home: Home,
    loop: str,
    target: Target,
    action: Literal["release", "rollback"],
    why: str,
    by: str | None,
    expected: int | None,
) -> Entry[ReleaseState]:
    pointer = home.ledger.pointer(served.pointer_name(check_name(loop, "loop")))
    generation = expected if expected is not None else pointer.generation if pointer else 0
    before = home.ledger.get(pointer.entry, ReleaseState).record.packages if pointer else []
    state = _state(home, loop, target, generation + 1, action, why, by)
    links = [(p, "released") for p in state.packages if p == target.package or p not in before]
    failpoints.hit("release.intent")
    entry = home.ledger.swap(served.pointer_name(loop), generation, state, loop=loop, key=target.package, links=links)
    failpoints.hit("release.recorded")
    served.copy(home, loop)
    failpoints.hit("release.copied")
    return entry


def _state(
    home: Home, loop: str, target: Target, generation: int, action: Literal["release", "rollback"], why: str, by: str | None
) -> ReleaseState:
    return ReleaseState(
        loop=loop,
        generation=generation,
        arms=[Arm(package=target.package, role=target.role, share=1.0)],
        strategy="direct",
        action=action,
        since=home.clock.now(),
        by=by or home.by,
        why=why,
        fleet=target.fleet,
        segments=target.segments,
    )


def _rollback_locally(home: Home, loop: str, asked: _Asked) -> Entry[ReleaseState]:
    """A rollback without the ledger. The entry that is returned is not in the ledger yet: its chain is empty."""
    path = served.path_of(home, check_name(loop, "loop"))
    copy = served.read(path)
    if copy is None:
        raise NotFound("release of loop", loop, next_step="nothing serves here, and the ledger does not answer")
    states = [*copy.past, copy.state]
    target = _target(home, states, loop, asked, {} if asked.force else marked_here(home, loop))
    # One change while the ledger is down is one generation: a second one replaces the first, which nobody else has seen.
    generation = copy.state.generation if copy.unrecorded else copy.state.generation + 1
    state = _state(home, loop, target, generation, "rollback", asked.why, asked.by)
    past = copy.past if copy.unrecorded else states
    served.write(path, served.Served(state=state, outcome=copy.outcome, past=past, unrecorded=True))
    failpoints.hit("release.local")
    return Entry(
        id=new_id(state.since),
        sequence=0,
        kind=ReleaseState.kind,
        loop=loop,
        key=target.package,
        at=state.since,
        by=state.by,
        record=state,
        digest="",
        chain="",
    )
