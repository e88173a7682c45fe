"""What the loop delivered so far, window by window and in total: the facts that a report is made of.

Windows are what is independent, so a total's interval is over windows (`records.evaluation.added`).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import pyarrow.compute as pc

from loopwright.base.errors import NotFound, PackageRefused
from loopwright.records.declarations import Outcome
from loopwright.records.evaluation import Estimate, added, moved
from loopwright.records.package import Manifest
from loopwright.records.releases import CHAMPION, Arm, ReleaseState
from loopwright.records.windows import Quality, ValueWindow, Window
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import with_truth


class WindowTotals(msgspec.Struct, frozen=True, kw_only=True):
    """One monitoring window (a week by default): the newest revision of its inputs, quality and value."""

    start: datetime
    end: datetime
    window: Window
    quality: Quality | None
    value: ValueWindow | None


class ServedPackage(msgspec.Struct, frozen=True, kw_only=True):
    """A package that was put into service as an arm: when, for which share, by whom, why. `rule`: a rule answers, not a model."""

    since: datetime
    package: str
    candidate: str
    trained_until: datetime | None
    action: str
    by: str
    why: str
    rule: bool
    arm: str
    share: float


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all windows with an account. Money in `currency`, over no model; `cost` in USD over `days`.

    Of `predictions`, `pending` are not older than the loop's wait: they are not in the sums yet.
    """

    currency: str
    predictions: int
    with_outcome: int
    pending: int
    model: Estimate
    heuristic: Estimate
    over_heuristic: Estimate
    cost: float
    days: float

    @property
    def missing(self) -> int:
        """Predictions whose wait is over, without an outcome."""
        return max(0, self.predictions - self.with_outcome - self.pending)

    @property
    def cost_per_month(self) -> float | None:
        """USD in 30 days at the pace so far; None where less than a day was accounted for: a month made of minutes says nothing."""
        return self.cost / self.days * 30 if self.days >= 1 else None


def weeks(home: Home, loop: str) -> list[WindowTotals]:
    """Every closed window of the loop, oldest first."""
    windows, qualities, values = (_newest(home, kind, loop) for kind in (Window, Quality, ValueWindow))
    return [
        WindowTotals(start=w.start, end=w.end, window=w, quality=qualities.get(w.start), value=values.get(w.start))
        for _, w in sorted(windows.items())
    ]


def _newest(home: Home, kind: type[Any], loop: str) -> dict[datetime, Any]:
    return {e.record.start: e.record for e in home.ledger.find(kind, loop=loop, newest=False)}


def served(home: Home, loop: str) -> list[ServedPackage]:
    """Every change of who serves, oldest first, arm by arm with the champion last."""
    states = [entry.record for entry in home.ledger.find(ReleaseState, loop=loop, newest=False)]
    arms = [(state, arm) for state in states for arm in sorted(state.arms, key=lambda arm: arm.name == CHAMPION)]
    return [_served_arm(state, arm, _manifest(home, arm.package)) for state, arm in arms]


def _served_arm(state: ReleaseState, arm: Arm, manifest: Manifest | None) -> ServedPackage:
    return ServedPackage(
        since=state.since,
        package=arm.package,
        candidate="heuristic" if arm.heuristic else manifest.candidate if manifest is not None else "",
        trained_until=manifest.training.last if manifest is not None else None,
        rule=arm.heuristic or (manifest is not None and manifest.is_rule),
        arm=arm.name,
        share=arm.share,
        action=state.action,
        by=state.by,
        why=state.why,
    )


def _manifest(home: Home, package: str) -> Manifest | None:
    try:
        return home.packages.manifest(package)
    except (NotFound, PackageRefused):
        return None


def totals(home: Home, loop: str, windows: Sequence[WindowTotals], currency: str, outcome: Outcome) -> Totals:
    """Sums over the windows that have an account."""
    values = [w.value for w in windows if w.value is not None]
    return Totals(
        currency=currency,
        predictions=sum(v.predictions for v in values),
        with_outcome=sum(v.with_outcome for v in values),
        pending=_pending(home, loop, values, outcome),
        model=added([v.over_no_model for v in values]),
        heuristic=added([moved(v.heuristic, -v.no_model) for v in values]),
        over_heuristic=added([v.over_heuristic for v in values]),
        cost=sum(v.cost for v in values),
        days=sum((w.end - w.start).total_seconds() for w in windows) / 86400,
    )


def _pending(home: Home, loop: str, values: Sequence[ValueWindow], outcome: Outcome) -> int:
    """Predictions of these windows whose wait was not over when they were accounted for."""
    return sum(
        pc.sum(pc.invert(with_truth(home, loop, outcome, start=v.start, end=v.end, known_at=v.known_at)["_mature"])).as_py()
        or 0
        for v in values
        if v.mature_at is not None
    )
