"""Releases: put into service, roll back, and the history of both. Every change is a compare-and-swap in the ledger.

With a fleet the packages of the segments are part of the same state: they are released with the package of the loop that
they were compared with, rolled back with it, and each can be released and rolled back alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import (
    LedgerUnavailable,
    NotFound,
    PackageNotFound,
    PackageRefused,
    ReleaseConflict,
    SegmentNotFound,
)
from loopwright.base.ids import check_name, new_id
from loopwright.base.moment import WRITTEN, moment_option, read_moment
from loopwright.deploy.blocklist import bad_packages, marked_here
from loopwright.deploy.plans import ReleaseTarget, begin
from loopwright.deploy.release_commit import (
    LEDGER_SECONDS,
    Asked,
    Change,
    changing,
    commit_release,
    commit_release_locally,
    in_time,
    repeated,
    unrecorded,
)
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.segment_router import check_segment
from loopwright.deploy.strategies import AT_ONCE, Strategy
from loopwright.records.conditions import counted_from
from loopwright.records.entries import Entry
from loopwright.records.releases import HEURISTIC, Arm, BadPackage, ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package

GLOBAL = "global"
"""Value of `to` that lets the loop's own package answer a segment."""

BY_HAND = "by hand"
"""The reason of a change for which nobody gave one."""


class _RollbackRequest(NamedTuple):
    """Arguments of a rollback."""

    segment: str | None
    to: str | None
    why: str
    by: str
    expected: int | None
    force: bool
    request: str

    @property
    def arguments(self) -> dict[str, str | bool]:
        """The arguments that a repeated idempotency key must repeat."""
        why = None if self.why == BY_HAND else self.why
        return arguments("rollback", to=self.to or "", segment=self.segment, force=self.force, why=why)


def arguments(action: Literal["release", "rollback"], **values: str | bool | None) -> dict[str, str | bool]:
    """The arguments of a change as they are stored with its key."""
    return {"action": action, **{name: value for name, value in values.items() if value is not None}}


def release(
    home: Home,
    loop: str,
    package: str,
    *,
    strategy: Strategy = AT_ONCE,
    fleet: str = "",
    segments: Mapping[str, str] | None = None,
    why: str,
    by: str | None = None,
    expected: int | None = None,
    force: bool = False,
    despite: Sequence[str] = (),
    request: str = "",
    request_arguments: Asked | None = None,
) -> Entry[ReleaseState]:
    """Put a package (its digest, or the beginning of it) into service, by a strategy of `deploy.strategies`.

    A plan begins with its first stage; `deploy.controller` takes it further. Where nothing serves yet, or the same package, it serves at once.

    `segments` are the packages (whole digests) of the segments of column `fleet` that come with it; the segments of
    the previous package are dropped. A package of one segment replaces that of its segment only.

    `despite` names the checks that it failed, where a person releases it anyway.

    `expected` is the generation that the caller has seen (default: the current one). `request` is an idempotency key: the
    same one again, with the same `request_arguments`, returns the same entry and changes nothing; with others it raises
    RequestConflict. Raises ReleaseConflict when the release is at another generation, PackageNotFound, PackageRefused when a package is of another loop or segment, or damaged, or
    marked bad (unless `force`), and NotFound for a segment's package where no package of the loop serves.
    """
    _record_pending(home, check_name(loop, "loop"))
    entries = history(home, loop)
    states = [entry.record for entry in entries]
    request_arguments = arguments("release", package=package, force=force) if request_arguments is None else request_arguments
    if (before := repeated(states, request, request_arguments)) is not None:
        return next(entry for entry in entries if entry.record == before)
    made = _checked(home, loop, home.packages.resolve(package))
    if not force:
        refuse_bad([made.digest, *(segments or {}).values()], bad_packages(home, loop))
    if made.manifest.segment is not None:
        column, segment = made.manifest.segment.column, made.manifest.segment.value
        if not states:
            raise NotFound("release of loop", loop, next_step="a segment's package serves beside one of the whole loop")
        target = _with_segment(home, states[-1], column, segment, made.digest)
    else:
        for segment, digest in (segments or {}).items():
            check_segment(home.packages.read(digest), made, fleet, segment)
        target = begin(home, strategy, made, states, fleet if segments else "", dict(segments or {}))
    present = present_generation(loop, states, expected)
    why = f"{why} (despite {', '.join(despite)})" if despite else why
    state = _state(home, loop, target, present + 1, "release", why, by or home.by, request, request_arguments)
    return commit_release(home, Change(msgspec.structs.replace(state, despite=list(despite)), states))


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
    request: str = "",
) -> Entry[ReleaseState]:
    """Roll back to the package before the current one, or `to` a package that served before or to the state at a time.

    The segments' packages go back with it, to those that served last with that package. With `segment` only that segment goes
    back, to its previous package, or to the loop's own package where it had none (`to="global"` forces that).

    Packages marked bad are skipped; naming one in `to` needs `force`. Where the current package is bad and no good one
    served before, its heuristic answers alone.

    `to` is the beginning of a digest, ISO 8601, or a moment such as "tuesday 09:00" (UTC unless it names a zone). While
    the ledger is down, or does not answer within a second, the change is made in the local copy, which the servers
    follow, and recorded later.

    The target and the generation are fixed before anything is changed: a rollback that runs late, is recorded later,
    or is repeated with the same idempotency key (`request`) takes effect once.
    Raises PackageNotFound, PackageRefused, NotFound (nothing served then, no such segment), RequestConflict,
    ReleaseConflict.
    """
    asked = _RollbackRequest(segment, to, why, by or home.by, expected, force, request)
    path = release_files.path_of(home, check_name(loop, "loop"))
    copy = release_files.read_intact(path)
    if copy is None:
        plan = _planned(home, loop, asked)
        return plan if isinstance(plan, Entry) else commit_release(home, plan)
    until = home.clock.monotonic() + LEDGER_SECONDS
    try:
        plan = in_time(lambda: _planned(home, loop, asked), LEDGER_SECONDS)
    except LedgerUnavailable:
        plan = _plan(home, copy.states, loop, asked, {} if force else marked_here(home, loop), local=True)
    if isinstance(plan, Entry):
        return plan
    change = plan
    with changing(home, loop):
        now = release_files.read_intact(path)
        if change.local or (now is not None and now.state.generation > change.expected):
            return commit_release_locally(home, change)
        try:
            return in_time(lambda: commit_release(home, change), until - home.clock.monotonic())
        except LedgerUnavailable:
            return commit_release_locally(home, change)


def next_back(home: Home, state: ReleaseState) -> str:
    """The package that another rollback without `to` would go to from a rollback's state; empty where it is not known here, or only segments would change.

    By the local copy and the marks on this machine, so that it costs nothing and works without the ledger.
    """
    copy = release_files.read_intact(release_files.path_of(home, state.loop)) if state.action == "rollback" else None
    states = [s for s in copy.states if s.generation <= state.generation] if copy is not None else []
    if not states or states[-1] != state:  # a repeated request gets its original answer, whatever happened later
        return ""
    with suppress(NotFound, PackageRefused):
        [found] = {arm.package for arm in _before(home, states, marked_here(home, state.loop)).arms}
        return found if found != state.champion.package else ""
    return ""


def withdraw(home: Home, package: BadPackage) -> ReleaseState | None:
    """Take a bad package out of service, by rolling back; the new state, or None where its model does not serve.

    The loop's own package answers a segment whose package is bad. Raises the errors of `rollback`.
    """
    copy = release_files.read(release_files.path_of(home, package.loop))
    if copy is None:
        return None
    found = None
    why = f"package {package.package[:12]} was marked bad: {package.detail}"
    if any(arm.package == package.package and not arm.heuristic for arm in copy.state.arms):
        found = rollback(home, package.loop, why=why, by="loopwright", expected=copy.state.generation).record
    elif package.package != copy.state.champion.package:
        for segment in [name for name, digest in copy.state.segments.items() if digest == package.package]:
            found = rollback(home, package.loop, segment=segment, to=GLOBAL, why=why, by="loopwright").record
    return found


def history(home: Home, loop: str) -> list[Entry[ReleaseState]]:
    """The releases of a loop, oldest first."""
    return home.ledger.find(ReleaseState, loop=loop, newest=False)


def serving(home: Home, loop: str, at: datetime | None = None) -> ReleaseState | None:
    """The release in service, or at the moment `at`; None where there is or was none."""
    if at is None:
        entry = home.ledger.latest(ReleaseState, loop=loop)
        return entry.record if entry else None
    return _serving_at([entry.record for entry in history(home, loop)], at)


def rule_since(home: Home, loop: str) -> datetime | None:
    """Since when a rule serves the loop instead of a model; None where a model serves, nothing does, or its package cannot be read."""
    state = serving(home, loop)
    return counted_from(state) if state is not None and is_rule(home, state) else None


def is_rule(home: Home, state: ReleaseState) -> bool:
    """Whether a rule answers and no model: the package of the heuristic itself, or a package's heuristic alone."""
    arm = state.champion
    with suppress(NotFound, PackageRefused):
        return arm.heuristic or home.packages.manifest(arm.package).is_rule
    return False


def _serving_at(states: list[ReleaseState], at: datetime) -> ReleaseState | None:
    return next((state for state in reversed(states) if state.since <= at), None)


def _record_pending(home: Home, loop: str) -> None:
    """Record local changes in the ledger that were made while it was down: the change planned now must follow them."""
    copy = release_files.read_intact(release_files.path_of(home, loop))
    if copy is not None and copy.pending:
        release_files.copy(home, loop)


def _planned(home: Home, loop: str, wanted: _RollbackRequest) -> Change | Entry[ReleaseState]:
    """The change that a rollback makes, by the ledger; the existing entry if it was made before."""
    failpoints.hit("release.planning")
    _record_pending(home, loop)
    entries = history(home, loop)
    bad = {} if wanted.force else bad_packages(home, loop)
    plan = _plan(home, [entry.record for entry in entries], loop, wanted, bad, local=False)
    return plan if isinstance(plan, Change) else next(entry for entry in entries if entry.record == plan.record)


def _plan(
    home: Home, states: list[ReleaseState], loop: str, wanted: _RollbackRequest, bad: Mapping[str, BadPackage], *, local: bool
) -> Change | Entry[ReleaseState]:
    """The same by the states there were; nothing is changed yet."""
    before = repeated(states, wanted.request, wanted.arguments)
    if before is not None:
        return unrecorded(before)
    target = _target(home, states, loop, wanted, bad)
    present = present_generation(loop, states, wanted.expected)
    state = _state(home, loop, target, present + 1, "rollback", wanted.why, wanted.by, wanted.request, wanted.arguments)
    return Change(state, states, local)


def present_generation(loop: str, states: Sequence[ReleaseState], expected: int | None) -> int:
    """The generation that the release is at. Raises ReleaseConflict when another one is expected."""
    generation = states[-1].generation if states else 0
    if expected not in (None, generation):
        raise ReleaseConflict(release_files.pointer_name(loop), expected, generation)
    return generation


def _target(
    home: Home, states: list[ReleaseState], loop: str, wanted: _RollbackRequest, bad: Mapping[str, BadPackage]
) -> ReleaseTarget:
    """The target of a rollback; `states` oldest first."""
    if not states:
        raise NotFound("release of loop", loop, next_step="nothing serves yet: `loopwright release LOOP`")
    if wanted.segment is not None:
        return _segment_target(home, states, wanted.segment, wanted.to, bad)
    if wanted.to is None:
        return _before(home, states, bad)
    found = _named(home, states, [s.champion.package for s in states], wanted.to)
    refuse_bad([found.champion.package], bad)
    _checked(home, loop, found.champion.package)
    return _again(found, bad)


def _before(home: Home, states: list[ReleaseState], bad: Mapping[str, BadPackage]) -> ReleaseTarget:
    """The target of a plain rollback: the champion alone if other arms serve, else the previous state; bad packages are skipped.

    "Before" is by the package of the loop, or else by those of its segments.
    """
    present = states[-1]
    own = present.champion.package
    former = present.former if present.under_way is not None else None
    if former is not None and own != former.package and former.package not in bad:
        return ReleaseTarget(arms=[former])
    if (present.is_divided or present.shadow is not None) and own not in bad:
        return _again(present, bad)
    earlier = [s for s in reversed(states) if s.champion.package != own and s.champion.package not in bad]
    if own not in bad:
        found = next(iter([*earlier, *(s for s in reversed(states) if s.segments != present.segments)]), None)
        if found is not None:
            _checked(home, present.loop, found.champion.package)
            return _again(found, bad)
    for state in earlier:
        with suppress(PackageRefused, PackageNotFound):  # any earlier package is better than a bad one
            _checked(home, present.loop, state.champion.package)
            return _again(state, bad)
    if own not in bad or present.champion.heuristic:
        raise NotFound(
            "earlier release of loop",
            present.loop,
            next_step=f"only one package ever served; `loopwright release {present.loop} PACKAGE` serves another",
        )
    return ReleaseTarget(arms=[Arm(package=own, heuristic=True)])


def _again(state: ReleaseState, bad: Mapping[str, BadPackage]) -> ReleaseTarget:
    """A state to go back to: its champion for every unit, without the segments' packages that are bad."""
    segments = {name: package for name, package in state.segments.items() if package not in bad}
    alone = msgspec.structs.replace(state.champion, share=1.0)
    return ReleaseTarget(arms=[alone], fleet=state.fleet if segments else "", segments=segments)


def refuse_bad(packages: Sequence[str], bad: Mapping[str, BadPackage]) -> None:
    """Raise PackageRefused for the first of the packages that is marked bad."""
    for package in packages:
        if package in bad:
            why = f"marked bad on {bad[package].since:%Y-%m-%d %H:%M} UTC: {bad[package].detail}"
            raise PackageRefused(package, f"{why}; `--force` puts it into service all the same")


def _segment_target(
    home: Home, states: list[ReleaseState], segment: str, to: str | None, bad: Mapping[str, BadPackage]
) -> ReleaseTarget:
    present = states[-1]
    known = dict.fromkeys(name for state in reversed(states) for name in state.segments)
    if segment not in known:
        raise SegmentNotFound(segment, known)
    own = [state.segments.get(segment, "") for state in states]
    if to is None:
        wanted = next((package for package in reversed(own) if package != own[-1] and package not in bad), "")
    elif to == GLOBAL:
        wanted = ""
    else:
        wanted = _named(home, states, own, to).segments.get(segment, "")
        refuse_bad([wanted], bad)
    column = present.fleet or next(state.fleet for state in reversed(states) if segment in state.segments)
    return _with_segment(home, present, column, segment, wanted)


def _named(home: Home, states: list[ReleaseState], packages: Sequence[str], to: str) -> ReleaseState:
    """The newest state with the package that `to` begins, or the one at the moment it means; `packages` one per state."""
    served_before = list(dict.fromkeys(package for package in reversed(packages) if package))
    matches = [package for package in served_before if package.startswith(to)] if len(to) >= 4 else []
    if len(matches) == 1:
        return next(s for s, package in zip(reversed(states), reversed(packages), strict=True) if package == matches[0])
    now = home.clock.now()
    if matches or read_moment(to, now) is None:
        other = "`loopwright release LOOP PACKAGE` serves another one"
        if to == HEURISTIC:
            other = f"`loopwright release LOOP {HEURISTIC} --why REASON` serves the rule"
        raise PackageNotFound(
            to,
            [package[:12] for package in matches or served_before],
            what="package that served",
            next_step=f"`loopwright history LOOP` lists who served when, {other}; and it is not a time: write {WRITTEN}",
        )
    moment = moment_option(to, now, "--to", ahead="nothing has served then")
    state = _serving_at(states, moment)
    if state is None:
        raise NotFound(
            "release at", f"{moment:%Y-%m-%d %H:%M}", next_step=f"the first one was at {states[0].since:%Y-%m-%d %H:%M} UTC"
        )
    return state


def _with_segment(home: Home, present: ReleaseState, column: str, segment: str, package: str) -> ReleaseTarget:
    """The current state with another package for one segment (none: the loop's own answers it). Raises PackageRefused."""
    if present.segments and column != present.fleet:
        raise PackageRefused(package, f"it is of a fleet by {column!r}, and the one in service is by {present.fleet!r}")
    own = present.champion.package
    others = {name: digest for name, digest in present.segments.items() if name != segment}
    if package:
        check_segment(home.packages.read(package), home.packages.read(own), column, segment)
        others[segment] = package
    kept = {name: getattr(present, name) for name in ReleaseTarget.__struct_fields__}
    return ReleaseTarget(**kept | {"fleet": column if others else "", "segments": others})


def _checked(home: Home, loop: str, package: str) -> Package:
    """A package that is whole and of this loop."""
    found = home.packages.read(package)
    if found.manifest.loop != loop:
        raise PackageRefused(package, f"it was made for loop {found.manifest.loop!r}, not {loop!r}")
    return found


def _state(
    home: Home,
    loop: str,
    target: ReleaseTarget,
    generation: int,
    action: Literal["release", "rollback"],
    why: str,
    by: str,
    request: str,
    request_arguments: Asked,
) -> ReleaseState:
    since = home.clock.now()
    return ReleaseState(
        loop=loop,
        generation=generation,
        action=action,
        since=since,
        by=by,
        why=why,
        request=request or new_id(since),
        arguments=dict(request_arguments),
        **msgspec.structs.asdict(target),
    )
