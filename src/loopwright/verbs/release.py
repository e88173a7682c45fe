"""The verb `release`."""

from typing import Any

from loopwright.base.errors import NotFound, UsageError
from loopwright.deploy.gate import check_release, sound
from loopwright.deploy.release_commit import answered, unchanged
from loopwright.deploy.releases import BY_HAND, arguments, serving
from loopwright.deploy.releases import release as put_into_service
from loopwright.deploy.strategies import AT_ONCE, Strategy, new_package, rules_of, strategy_of
from loopwright.records.evaluation import Leaderboard
from loopwright.records.releases import HEURISTIC, ReleaseState
from loopwright.records.turns import Turn
from loopwright.stores.home import Home
from loopwright.stores.outcomes.rescore import SegmentPackages
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
        strategy: release strategy (default: as declared): `direct` replaces what serves at once, `canary` by steps that are judged on live traffic.
        why: the reason in one sentence, for the audit trail.
        force: release a package that was marked bad (all other checks run), or the heuristic despite its guards.
        despite_guard: release a package that misses a target, is worse than what serves, or is too good to be true; requires
            `--why`, and the release lists the failed checks. A package that does not load or answer is still refused.
        request_id: an idempotency key: a repeated request returns the same answer and changes nothing.
    """
    check_reason(why, despite_guard=despite_guard)
    declared, rule = known_loop(home, loop), package == HEURISTIC
    strategy_wanted = AT_ONCE if rule else strategy_of(declared, strategy)
    said = {"why": why or None, "strategy": strategy or None, "despite_guard": despite_guard or None}
    asked = arguments("release", package=package, force=force, **said)
    if (before := answered(home, loop, request_id, asked)) is not None:
        return switched(home, before)
    digest = _heuristic(home, loop) if rule else home.packages.resolve(package) if package else _newest_board(home, loop).winner
    chosen = home.packages.read(digest)
    exempt = rule or (force and chosen.manifest.is_rule)
    if exempt and not why.strip():
        raise UsageError("the heuristic in place of a model needs a reason: add --why REASON")
    now = serving(home, loop)
    if now is not None and _serves_already(now, chosen, rule):
        unchanged(home, now, request_id, asked)
        return switched(home, now)
    _refuse_second(now, strategy_wanted)
    fixed: dict[str, Any] = {
        "strategy": strategy_wanted,
        "why": why or BY_HAND,
        "force": force,
        "expected": now.generation if now is not None else 0,  # the checks take a while
        "request": request_id,
        "request_arguments": asked,
    }
    segments = None if rule else _segment_packages(home, loop, chosen.digest)
    if segments is not None:
        fixed |= {"fleet": segments.column, "segments": {name: package.digest for name, package in segments.packages.items()}}
    despite = despite_guard or exempt
    result = check_release(home, chosen, loop=loop, scope=declared.scope, segments=segments, despite_guard=despite)
    fixed["despite"] = [check.name for check in result.failed] if despite_guard else []
    return switched(home, put_into_service(home, loop, chosen.digest, **fixed).record)


def _refuse_second(now: ReleaseState | None, strategy: Strategy) -> None:
    """Raise UsageError where another release is under way, unless this one replaces everything at once."""
    stage = now.under_way if now is not None else None
    if now is not None and stage is not None and strategy.plan:
        raise UsageError(
            f"another release is under way ({rules_of(stage).words(stage)} of {new_package(now)[:12]}): wait for its end, "
            f"`loopwright rollback {now.loop}` ends it, `--strategy {AT_ONCE.name}` replaces it"
        )


def _serves_already(now: ReleaseState, chosen: Package, rule: bool) -> bool:
    """Whether a release of the package would change nothing."""
    segment = chosen.manifest.segment
    ends = now.is_divided and segment is None
    serves = now.package_of(segment.value if segment is not None else None) == chosen.digest
    return serves and not ends and not (rule and (now.segments or not now.keeps_rule))


def _segment_packages(home: Home, loop: str, winner: str) -> SegmentPackages | None:
    """The segment packages that were evaluated with a turn's winner; None without any."""
    boards = [e.record for e in home.ledger.find(Leaderboard, loop=loop) if e.record.winner == winner]
    fleet = next((b.fleet for b in boards if b.fleet is not None and b.fleet.serving), None)
    if fleet is None:
        return None
    own, _ = sound(home, {name: home.packages.read(digest) for name, digest in fleet.serving.items()})
    return SegmentPackages(fleet.by, own)


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
