"""What the loop delivered so far, window by window and in total: the facts that a report is made of.

Windows are independent stretches of rows, so a total's interval comes from adding variances.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from loopwright.records.errors import NotFound, PackageRefused
from loopwright.records.evaluation import Estimate, added, moved
from loopwright.records.home import Home
from loopwright.records.releases import ReleaseState
from loopwright.records.windows import Quality, ValueWindow, Window


class Week(msgspec.Struct, frozen=True, kw_only=True):
    """One monitoring window (a week by default): the newest revision of its inputs, quality and value."""

    start: datetime
    end: datetime
    window: Window
    quality: Quality | None
    value: ValueWindow | None


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A package that was put into service: when, by whom, why."""

    since: datetime
    package: str
    candidate: str
    trained_until: datetime | None
    action: str
    by: str
    why: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all windows with an account. Money in `currency`, over no model; `cost` in USD over `days`."""

    currency: str
    predictions: int
    with_outcome: int
    model: Estimate
    heuristic: Estimate
    over_heuristic: Estimate
    cost: float
    days: float


def weeks(home: Home, loop: str) -> list[Week]:
    """Every closed window of the loop, oldest first."""
    windows, qualities, values = (_newest(home, kind, loop) for kind in (Window, Quality, ValueWindow))
    return [
        Week(start=w.start, end=w.end, window=w, quality=qualities.get(w.start), value=values.get(w.start))
        for _, w in sorted(windows.items())
    ]


def _newest(home: Home, kind: type[Any], loop: str) -> dict[datetime, Any]:
    return {e.record.start: e.record for e in home.ledger.find(kind, loop=loop, newest=False)}


def served(home: Home, loop: str) -> list[Served]:
    """Every change of who serves, oldest first."""
    found = []
    for entry in home.ledger.find(ReleaseState, loop=loop, newest=False):
        state = entry.record
        package = state.arms[0].package if state.arms else ""
        candidate, until = _made(home, package)
        found.append(
            Served(
                since=state.since,
                package=package,
                candidate=candidate,
                trained_until=until,
                action=state.action,
                by=state.by,
                why=state.why,
            )
        )
    return found


def _made(home: Home, package: str) -> tuple[str, datetime | None]:
    try:
        manifest = home.packages.manifest(package)
    except (NotFound, PackageRefused):
        return "", None
    return manifest.candidate, manifest.training.as_of


def totals(given: Sequence[Week], currency: str) -> Totals:
    """Sums over the windows that have an account."""
    values = [w.value for w in given if w.value is not None]
    return Totals(
        currency=currency,
        predictions=sum(v.predictions for v in values),
        with_outcome=sum(v.with_outcome for v in values),
        model=added([v.over_no_model for v in values]),
        heuristic=added([moved(v.heuristic, -v.no_model) for v in values]),
        over_heuristic=added([v.over_heuristic for v in values]),
        cost=sum(v.cost for v in values),
        days=sum((w.end - w.start).total_seconds() for w in given) / 86400,
    )
