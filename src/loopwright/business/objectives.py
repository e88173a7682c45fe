"""Promised and delivered: each objective of the scope against what was measured while serving."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from loopwright.business.totals import Totals, WindowTotals
from loopwright.records.declarations import Objective, Scope, Task
from loopwright.records.evaluation import Z_95, Estimate, averaged
from loopwright.records.windows import Quality, state_text
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package
from loopwright.stores.prediction_log.read import predictions
from loopwright.tasks import metrics

Met = Literal["met", "missed", "uncertain", "too few", "not measured"]


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """One objective: its target in words, what the serving package's evaluation said, what was measured, and whether it is met.

    `uncertain`: the target lies inside the 95 % interval. `too few`: there are `rows` of the `minimum_rows` that monitoring needs, in the
    window that has most.
    `how` says what the measured value is of.
    """

    objective: str
    owner: str
    metric: str
    target: str
    expected: float | None
    measured: Estimate | None
    met: Met
    how: str
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


class _Measured(NamedTuple):
    """An estimate, what it is of, and of how many rows; None where it is measured on the package."""

    estimate: Estimate | None
    how: str
    rows: int | None


def promises(
    home: Home,
    loop: str,
    scope: Scope,
    weeks: Sequence[WindowTotals],
    totals: Totals,
    package: Package | None,
    *,
    task: Task,
    minimum_rows: int,
) -> list[Promise]:
    """Every objective of the scope, in its order.

    On fewer than `minimum_rows` rows none is met or missed; windows with fewer outcomes do not count, as in monitoring.
    """
    latencies = _latencies(home, loop, weeks) if any("latency" in o.metric for o in scope.objectives) else np.zeros(0)
    found = []
    for objective in scope.objectives:
        measured = _measured(objective.metric, task, weeks, totals, package, latencies, minimum_rows)
        found.append(
            Promise(
                objective=objective.name,
                owner=objective.owner,
                metric=objective.metric,
                target=f"at least {objective.at_least:g}"
                if objective.at_least is not None
                else f"at most {objective.at_most:g}",
                expected=_expected(objective.metric, package),
                measured=measured.estimate,
                met=_met(objective, measured, minimum_rows),
                how=measured.how,
                rows=measured.rows or 0,
                minimum_rows=minimum_rows,
            )
        )
    return found


def _met(objective: Objective, measured: _Measured, minimum_rows: int) -> Met:
    estimate, _, rows = measured
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


def _measured(
    metric: str,
    task: Task,
    weeks: Sequence[WindowTotals],
    totals: Totals,
    package: Package | None,
    latencies: Any,
    minimum_rows: int,
) -> _Measured:
    base, _, of = metric.partition(":")
    known = [w.quality for w in weeks if w.quality is not None and w.quality.with_outcome and w.quality.mature_at is None]
    qualities = [q for q in known if q.with_outcome >= minimum_rows] or known
    most = max((q.with_outcome for q in qualities), default=0)
    if base == "value_per_prediction":
        n = totals.with_outcome
        per = Estimate(totals.model.value / n, totals.model.low / n, totals.model.high / n, n) if n else None
        return _Measured(per, "predictions with an outcome", n)
    if base in metrics.GAPS:
        gap, rows = _gap(metrics.rate_of(base, task), of, qualities)
        return _Measured(gap, "predictions with an outcome, each slice over all windows", min(rows, most))
    if base.startswith("latency_"):
        return _Measured(_quantile(latencies, base), "logged predictions", len(latencies))
    if base in metrics.MEASURES:
        size = _expected(metric, package)
        return _Measured(None if size is None else Estimate(size, size, size, 1), "the package that serves", None)
    mean = averaged([q.metrics[metric] for q in qualities if metric in q.metrics])
    return _Measured(mean, "predictions with an outcome, mean over windows", most)


def _gap(rate: str, of: str, qualities: Sequence[Quality]) -> tuple[Estimate | None, int]:
    """Largest less smallest rate over the values of a slice, and how many rows the smaller of two values has at least.

    Each value is averaged over the windows first, so that a week's chance is not a gap; few rows of a value count as far as they tell.
    """
    by_value: dict[str, list[Estimate]] = {}
    for quality in qualities:
        for value, measured in quality.slices.get(of, {}).items():
            if rate in measured:
                by_value.setdefault(value, []).append(measured[rate])
    means = sorted((m for m in map(averaged, by_value.values()) if m is not None), key=lambda m: -m.n)
    return (metrics.between_groups(means), means[1].n) if len(means) > 1 else (None, 0)


def _latencies(home: Home, loop: str, weeks: Sequence[WindowTotals]) -> Any:
    """Latency of every logged prediction of the windows, microseconds [N]."""
    if not weeks:
        return np.zeros(0)
    table = predictions(home, loop, start=weeks[0].start, end=weeks[-1].end, columns=["_latency_us"])
    return table["_latency_us"].to_numpy()


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
    """What the package's own evaluation said."""
    if package is None:
        return None
    evaluation = package.evaluation
    if metric in evaluation.metrics:
        value = evaluation.promised[metric].value
        return None if np.isnan(value) else value
    if metric.endswith("_ms"):
        return float(getattr(evaluation, metric.removesuffix("_ms") + "_us")) / 1000 if metric in metrics.MEASURES else None
    return float(getattr(evaluation, metric)) if metric in (*metrics.MEASURES, "value_per_prediction") else None
