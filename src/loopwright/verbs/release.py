"""The verb `release`."""

from collections.abc import Sequence
from functools import partial

from loopwright.base.errors import NotFound, ReleaseBlocked, UsageError
from loopwright.deploy.blocklist import FORCED_ALERT
from loopwright.deploy.gate import check_release
from loopwright.deploy.pending import begin_pending, checked_release, open_pending
from loopwright.deploy.preconditions import APPROVAL, Planned, blockers, waiting
from loopwright.deploy.release_commit import answered, unchanged
from loopwright.deploy.releases import BY_HAND, arguments, serving
from loopwright.deploy.strategies import AT_ONCE, strategy_of
from loopwright.monitor.alerts import raise_alert
from loopwright.parity import parity_check
from loopwright.records.evaluation import Leaderboard
from loopwright.records.releases import HEURISTIC, ReleaseState
from loopwright.records.turns import Turn
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package
from loopwright.verbs.known_loop import known_loop
from loopwright.verbs.switched import Switched, check_reason, switched


def release(
    home: Home,
    loop: str,
    package: str = "",
    *,
    strategy: str = "",
    why: str = "",
    force: bool = False,
    despite_guard: bool = False,
    request_id: str = "",
) -> Switched:
    """Put a package into service, after the checks of a turn; a package that already serves keeps serving.

    `heuristic` instead of a package serves the loop's heuristic, whatever its metrics and guards say; turns then evaluate models and release none.

    Waits up to five seconds until every worker on this machine has switched, and reports the state of each.
    The winner of a turn includes the segment packages that were evaluated with it; the package of a segment replaces only that one.

    Args:
        loop: name of the loop.
        package: the package, or the beginning of its digest, or `heuristic` (default: the winner of the latest turn without `--as-of`).
        strategy: release strategy (default: as declared): `direct` replaces at once, `canary` by steps judged on live traffic, `shadow` first unseen.
        why: the reason in one sentence, for the audit trail.
        force: release a package that was marked bad, in a freeze, without an approval or while something else keeps it from beginning
            (requires `--why`; all other checks run), or the heuristic despite its guards.
        despite_guard: release a package that misses a target, is worse than what serves, or is too good to be true; requires
            `--why`, and the release lists the failed checks. A package that does not load or answer is still refused.
        request_id: an idempotency key: a repeated request returns the same answer and changes nothing.
    """
    check_reason(why, despite_guard=despite_guard)
    declared, rule = known_loop(home, loop), package == HEURISTIC
    strategy_wanted = AT_ONCE if rule else strategy_of(declared, strategy)
    optional = {"why": why or None, "strategy": strategy or None, "despite_guard": despite_guard or None}
    asked = arguments("release", package=package, force=force, **optional)
    if (before := answered(home, loop, request_id, asked)) is not None:
        return switched(home, before)
    chosen = _chosen(home, loop, package)
    exempt = rule or (force and chosen.manifest.is_rule)
    if exempt and not why.strip():
        raise UsageError("the heuristic in place of a model needs a reason: add --why REASON")
    now = serving(home, loop)
    if now is not None and _serves_already(now, chosen, rule):
        unchanged(home, now, request_id, asked)
        return switched(home, now)
    planned = _planned(Planned(home, declared, chosen.digest, strategy_wanted, now))
    forced = [] if rule else _forced(planned, why=why, force=force, despite_guard=despite_guard)
    entry = checked_release(
        planned,
        chosen,
        despite_guard=despite_guard or exempt,
        despite=None if exempt else forced,
        with_segments=not rule,
        why=why or BY_HAND,
        force=force,
        request=request_id,
        request_arguments=asked,
    )
    _tell_forced(home, entry.record, chosen.digest[:12], forced)
    begin_pending(home, declared)  # one that waited is superseded
    return switched(home, entry.record)


def _chosen(home: Home, loop: str, package: str) -> Package:
    if not package:
        return home.packages.read(_newest_board(home, loop).winner)
    return home.packages.read(_heuristic(home, loop) if package == HEURISTIC else home.packages.resolve(package))


def _planned(release: Planned) -> Planned:
    """A release with the case of its package, where it waits, and the checks of other stages."""
    pending = waiting(release.home, release.loop.name)
    pending = pending if pending is not None and pending.package == release.package else None
    return release._replace(pending=pending, more=partial(parity_check, release.home, release.loop))


def _tell_forced(home: Home, state: ReleaseState, package: str, forced: Sequence[str]) -> None:
    """Alert that a person began a release despite what stood against it."""
    if forced:
        key = f"{FORCED_ALERT}:{package}:{state.generation}"
        detail = f"{state.by} began it: {state.why}"
        raise_alert(home, state.loop, key, severity="warning", title=f"The release of {package} was forced", detail=detail)


def _forced(planned: Planned, *, why: str, force: bool, despite_guard: bool) -> list[str]:
    """The names of what would keep the release from beginning, where a person forces it.

    Else a release that waits for an approval is opened, and ReleaseBlocked raised. UsageError where no reason is given.
    """
    held = blockers(planned)
    if not held:
        return []
    if force:
        if not why.strip():
            raise UsageError(f"--force needs --why REASON where a release may not begin: {'; '.join(b.detail for b in held)}")
        return [blocker.name for blocker in held]
    next_step = f"`loopwright release {planned.loop.name} {planned.package[:12]} --force --why REASON` begins it all the same"
    if APPROVAL in [blocker.name for blocker in held]:
        home, loop = planned.home, planned.loop
        check_release(
            home,
            home.packages.read(planned.package),
            loop=loop.name,
            scope=loop.scope,
            despite_guard=despite_guard,
            more=planned.more,
        )
        open_pending(planned, why or BY_HAND, held, by_hand=True, despite=despite_guard)
        next_step = f"it waits, and begins once it may; {next_step}"
    raise ReleaseBlocked(planned.package, [blocker.detail for blocker in held], next_step)


def _serves_already(now: ReleaseState, chosen: Package, rule: bool) -> bool:
    """Whether a release of the package would change nothing."""
    segment = chosen.manifest.segment
    ends = (now.is_divided or now.shadow is not None) and segment is None
    serves = now.package_of(segment.value if segment is not None else None) == chosen.digest
    return serves and not ends and not (rule and (now.segments or not now.keeps_rule))


def _heuristic(home: Home, loop: str) -> str:
    """The package of the heuristic alone, as the newest turn made it."""
    found = next((row.package for row in _newest_board(home, loop).rows if row.phase == 1), "")
    if not found:
        raise NotFound("heuristic's package of loop", loop, next_step=f"`loopwright run {loop} --until develop` makes it")
    return found


def _newest_board(home: Home, loop: str) -> Leaderboard:
    """The leaderboard of the newest turn that was not backdated."""
    for entry in home.ledger.find(Leaderboard, loop=loop):
        turn = home.ledger.latest(Turn, loop=loop, key=entry.record.turn)
        if turn is None or not turn.record.backdated:
            return entry.record
    raise NotFound(
        "leaderboard of loop",
        loop,
        next_step="make one with `loopwright run LOOP`; one of `--as-of` is released by its package's name",
    )
