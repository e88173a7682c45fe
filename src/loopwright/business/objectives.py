"""Compare each objective of the scope with its measurement while serving, now and over the loop's whole life.

Now are the newest windows whose outcomes are complete: one, and more only where it is too few to tell. A metric is computed from all
rows of the windows together: the mean of weekly average precisions is not an average precision.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from loopwright.business.deliveries import MAX_NOW, Delivery, life, newest_latencies, now_of
from loopwright.business.totals import WindowTotals
from loopwright.records.declarations import Objective, Outcome, Scope
from loopwright.records.evaluation import Z_95, Estimate
from loopwright.records.windows import span_to, state_text
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package
from loopwright.tasks import metrics

Met = Literal["met", "missed", "uncertain", "too few", "not measured"]


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """One objective: its target in words, the serving package's evaluation, the measurement, and whether it is met now.

    `now` is of `when`, the newest windows with complete outcomes, and decides `met`; `measured` is of the whole life.
    `uncertain`: the target lies inside the 95 % interval. `too few`: there are `rows` of the `minimum_rows` that monitoring needs.
    """

    objective: str
    owner: str
    metric: str
    target: str
    expected: float | None
    now: Estimate | None
    measured: Estimate | None
    met: Met
    when: str = ""
    rows: int = 0
    minimum_rows: int = 0

    @property
    def settled(self) -> bool:
        """Whether the objective is met or missed."""
        return self.met in ("met", "missed")

    @property
    def met_text(self) -> str:
        """`met` for a person: of too few rows, how many there are of how many."""
        return state_text("no data", self.rows, self.minimum_rows) if self.met == "too few" else self.met


class Deliveries(NamedTuple):
    """What a loop delivered in its whole life and now, with the latencies of now."""

    life: Delivery
    now: Delivery
    newest_latencies: Any

    @property
    def when(self) -> str:
        """Which windows are now, "" where none has complete outcomes."""
        return span_to(self.now.weeks[0].start, self.now.weeks[-1].end) if self.now.weeks else ""


class Terms(NamedTuple):
    """What a loop's delivery is measured by."""

    loop: str
    scope: Scope
    outcome: Outcome
    minimum_rows: int
    unit: str = ""


def delivered(home: Home, terms: Terms, weeks: Sequence[WindowTotals]) -> Deliveries:
    """Measure what a loop delivered, as far as its objectives need it."""
    names = [o.metric for o in terms.scope.objectives]
    latency = any("latency" in name for name in names)
    slices = list(dict.fromkeys(of for base, _, of in (name.partition(":") for name in names) if base in metrics.GAPS))
    least = terms.minimum_rows
    whole = life(home, terms.loop, terms.outcome, weeks, unit=terms.unit, minimum_rows=least, latency=latency, slices=slices)
    newest = newest_latencies(home, terms.loop, weeks) if latency else np.zeros(0)
    return Deliveries(whole, now_of(whole, names), newest)


def promises(terms: Terms, made: Deliveries, package: Package | None) -> list[Promise]:
    """Every objective of the scope, in its order. On fewer than the monitor's `minimum_rows` rows none is met or missed."""
    least, objectives = terms.minimum_rows, terms.scope.objectives
    names = [o.metric for o in objectives]
    whole = _Measuring(terms, made.life, made.life, made.life.metrics(names), made.life.latencies, package)
    newest = _Measuring(terms, made.life, made.now, made.now.metrics(names), made.newest_latencies, package)
    found = []
    for objective in objectives:
        now, rows = newest.of(objective.metric)
        found.append(
            Promise(
                objective=objective.name,
                owner=objective.owner,
                metric=objective.metric,
                target=f"at least {objective.at_least:g}"
                if objective.at_least is not None
                else f"at most {objective.at_most:g}",
                expected=_expected(objective.metric, package),
                now=now,
                measured=whole.of(objective.metric)[0],
                met=_met(objective, now, rows, least),
                when=made.when,
                rows=rows or 0,
                minimum_rows=least,
            )
        )
    return found


def _met(objective: Objective, estimate: Estimate | None, rows: int | None, minimum_rows: int) -> Met:
    if rows is not None and 0 < rows < minimum_rows:
        return "too few"
    if estimate is None or np.isnan(estimate.value):
        return "not measured"
    if estimate.too_few:
        return "too few"
    sides = {objective.met(estimate.low), objective.met(estimate.high)}
    if len(sides) == 2:
        return "uncertain"
    return "met" if objective.met(estimate.value) else "missed"


class _Measuring(NamedTuple):
    """Measures of one delivery: `rows` are its metrics of rows, `latencies` microseconds [N]."""

    terms: Terms
    life: Delivery
    delivery: Delivery
    rows: dict[str, Estimate]
    latencies: Any
    package: Package | None

    def of(self, metric: str) -> tuple[Estimate | None, int | None]:
        """A measure, and of how many rows it is; None where it is measured on the package."""
        base = metric.partition(":")[0]
        qualities = self.delivery.qualities
        most = max((q.with_outcome for q in qualities), default=0)
        if base == "value_per_prediction":
            per = self.delivery.per_prediction
            return per, 0 if per is None else per.n
        if base in metrics.GAPS:
            return self._gap(metric, most)
        if base.startswith("latency_"):
            return _quantile(self.latencies, base), len(self.latencies)
        if base in metrics.MEASURES:
            size = _expected(metric, self.package)
            return None if size is None else Estimate(size, size, size, 1), None
        return self.rows.get(metric), most

    def _gap(self, metric: str, most: int) -> tuple[Estimate | None, int]:
        """A gap between slices; of a few more windows where a value of the slice has too few rows in these."""
        gap, rows = self.delivery.gap(metric)
        for count in range(len(self.delivery.weeks) + 1, min(MAX_NOW, len(self.life.weeks)) + 1):
            if rows >= self.terms.minimum_rows:
                break
            gap, rows = self.life.newest(count).gap(metric)
        return gap, min(rows, most)


def _quantile(values: Any, metric: str) -> Estimate | None:
    """A quantile of N values with the interval of its order statistics (binomial, normal approximation)."""
    n = len(values)
    if not n:
        return None
    _, part, unit = metric.split("_")
    q = float(part.removeprefix("p")) / 100
    spread = Z_95 * np.sqrt(q * (1 - q) / n)
    low, value, high = np.quantile(values, np.clip([q - spread, q, q + spread], 0, 1)) / (1000 if unit == "ms" else 1)
    return Estimate(float(value), float(low), float(high), n)


def _expected(metric: str, package: Package | None) -> float | None:
    """The value in the package's own evaluation."""
    if package is None:
        return None
    evaluation = package.evaluation
    if metric in evaluation.metrics:
        value = evaluation.promised[metric].value
        return None if np.isnan(value) else value
    if metric.endswith("_ms"):
        return float(getattr(evaluation, metric.removesuffix("_ms") + "_us")) / 1000 if metric in metrics.MEASURES else None
    return float(getattr(evaluation, metric)) if metric in (*metrics.MEASURES, "value_per_prediction") else None
