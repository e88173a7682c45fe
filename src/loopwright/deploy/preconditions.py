"""What keeps the release of a package that passed its checks from beginning: one function each in CHECKS.

    tier          the loop declares less than its tier requires (`Scope.tier`)
    under way     another release is under way
    freeze        it is a time in which nothing is released (`Release.freeze`)
    alert         an alert is open about what would keep the release from being watched: a damaged log, a failing upkeep, a clock that jumped
    live traffic  the stages of a plan are judged on live traffic, and there has been none
    approval      approvers are named (`Scope.approvers`), and too few have approved

`--force` with a reason begins it all the same. None of them stands against a rollback, the heuristic, or what serves already.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from loopwright.base.text import count
from loopwright.deploy.gate import MoreChecks
from loopwright.deploy.strategies import AT_ONCE, Strategy, new_package, rules_of, strategy_of
from loopwright.records.declarations import Loop, duration
from loopwright.records.declarations.scope import is_placeholder
from loopwright.records.freeze import frozen_until
from loopwright.records.releases import Approval, Blocker, PendingRelease, ReleaseState
from loopwright.records.windows import Alert
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.summary import summary

APPROVAL = "approval"

LEAST_CRITICAL = 3
"""The tier that requires nothing."""

_LEAST_QUIET = timedelta(days=1)


class Planned(NamedTuple):
    """A release that is about to begin: of `package`, where `serving` serves (None: nothing does). `automatic`: no person asks for it.

    `more` are checks of the gate that other stages make.
    """

    home: Home
    loop: Loop
    package: str
    strategy: Strategy
    serving: ReleaseState | None
    automatic: bool = False
    pending: PendingRelease | None = None
    more: MoreChecks | None = None


def blockers(planned: Planned) -> list[Blocker]:
    """Everything that keeps a release from beginning now."""
    return [Blocker(name=name, detail=detail) for name, check in CHECKS.items() if (detail := check(planned))]


def tier_misses(loop: Loop) -> list[str]:
    """What the loop's tier requires and its declaration lacks."""
    return [advice for most, advice, has in _REQUIRED if loop.scope.tier <= most and not has(loop)]


def waiting(home: Home, loop: str) -> PendingRelease | None:
    """The release of a loop that waits until it may begin."""
    entry = home.ledger.latest(PendingRelease, loop=loop)
    return entry.record if entry is not None and entry.record.state == "waiting" else None


def approvals(home: Home, pending: PendingRelease) -> dict[str, Approval]:
    """The last word of each approver about a pending release, by name, the first one first."""
    entries = home.ledger.find(Approval, loop=pending.loop, key=pending.package, newest=False)
    return {e.record.name: e.record for e in entries if e.record.case == pending.case}


def _tier(planned: Planned) -> str:
    missing = tier_misses(planned.loop)
    return f"tier {planned.loop.scope.tier} requires {'; '.join(missing)}" if missing else ""


def _under_way(planned: Planned) -> str:
    now = planned.serving
    stage = now.under_way if now is not None else None
    if now is None or stage is None or not (planned.automatic or planned.strategy.plan):
        return ""
    return (
        f"another release is under way ({rules_of(stage).words(stage)} of {new_package(now)[:12]} since {now.since:%Y-%m-%d %H:%M} UTC): "
        f"`loopwright rollback {now.loop}` ends it, `--strategy {AT_ONCE.name}` replaces it"
    )


def _frozen(planned: Planned) -> str:
    release = planned.loop.release
    end = frozen_until(release.freeze, release.zone, planned.home.clock.now())
    return f"nothing is released until {end:%a %Y-%m-%d %H:%M} {release.zone}" if end is not None else ""


def _alert(planned: Planned) -> str:
    ledger = planned.home.ledger
    for loop in (planned.loop.name, ""):
        newest = {entry.key: entry.record for entry in ledger.find(Alert, loop=loop, newest=False)}
        found = [alert.title for alert in newest.values() if alert.state == "open" and alert.holds_releases]
        if found:
            return f"an alert is open: {'; '.join(found)}"
    return ""


def _quiet(planned: Planned) -> str:
    now, at = planned.serving, planned.home.clock.now()
    since = at - max(duration(planned.loop.monitor.every), _LEAST_QUIET)
    if now is None or not planned.strategy.plan or now.since > since:
        return ""
    _, last = summary(planned.home, planned.loop.name)
    if last is not None and last > since:
        return ""
    return (
        f"no prediction was logged since {since:%Y-%m-%d %H:%M} UTC, and the stages of a plan are judged on live traffic: "
        f"`--strategy {AT_ONCE.name}` releases it at once"
    )


def _approval(planned: Planned) -> str:
    scope, pending = planned.loop.scope, planned.pending
    if not scope.approvers:
        return ""
    said = approvals(planned.home, pending) if pending is not None else {}
    maker = pending.made_by if pending is not None else ""
    yes = [
        name for name, approval in said.items() if approval.answer == "approve" and name in scope.approvers and name != maker
    ]
    if len(yes) >= scope.approvals:
        return ""
    of = ", ".join(name for name in scope.approvers if name != maker and name not in yes)
    have = f" ({', '.join(yes)} approved)" if yes else ""
    return (
        f"waits for {count(scope.approvals - len(yes), 'approval')} of {of or 'nobody: name another approver'}{have}: "
        f"`loopwright approve {planned.loop.name} {planned.package[:12]} --why REASON`"
    )


CHECKS: dict[str, Callable[[Planned], str]] = {
    "tier": _tier,
    "under way": _under_way,
    "freeze": _frozen,
    "alert": _alert,
    "live traffic": _quiet,
    APPROVAL: _approval,
}
"""Each says why a release may not begin, "" where it may."""

_REQUIRED: tuple[tuple[int, str, Callable[[Loop], bool]], ...] = (
    (2, "an owner of every objective", lambda loop: not any(is_placeholder(o.owner) for o in loop.scope.objectives)),
    (2, "guards (`Release(guards=[Guard(...)])`)", lambda loop: bool(loop.release.guards)),
    (
        2,
        'a release that is judged on live traffic (`Release(strategy="canary")` or a plan)',
        lambda loop: bool(strategy_of(loop).plan),
    ),
    (1, "a guard on slices (`Guard(..., slices=[...])`)", lambda loop: any(guard.slices for guard in loop.release.guards)),
    (1, "approvers (`Scope(approvers=[...])`)", lambda loop: bool(loop.scope.approvers)),
)
"""The highest tier number that requires it, what it is, and whether a loop has it."""
