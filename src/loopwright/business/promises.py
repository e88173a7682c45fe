"""Promised and delivered: each objective of the scope against what was measured while serving."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from loopwright.business.delivered import Totals, Week
from loopwright.records import metrics
from loopwright.records.declarations import Objective, Scope, Task
from loopwright.records.evaluation import Estimate, averaged, standard_error
from loopwright.records.home import Home
from loopwright.records.packages import Package
from loopwright.records.predictions.read import predictions

Met = Literal["met", "missed", "uncertain", "not measured"]

_Z = 1.959964


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """One objective: its target in words, what the serving package's evaluation said, what was measured, and whether it is met.

    `uncertain`: the target lies inside the 95 % interval. `how` says what the measured value is of.
    """

    objective: str
    owner: str
    metric: str
    target: str
    expected: float | None
    measured: Estimate | None
    met: Met
    how: str


def promises(
    home: Home,
    loop: str,
    scope: Scope,
    weeks: Sequence[Week],
    totals: Totals,
    package: Package | None,
    task: Task = "binary",
) -> list[Promise]:
    """Every objective of the scope, in its order."""
    latencies = _latencies(home, loop, weeks) if any("latency" in o.metric for o in scope.objectives) else np.zeros(0)
    found = []
    for objective in scope.objectives:
        measured, how = _measured(objective.metric, task, weeks, totals, package, latencies)
        found.append(
            Promise(
                objective=objective.name,
                owner=objective.owner,
                metric=objective.metric,
                target=f"at least {objective.at_least:g}"
                if objective.at_least is not None
                else f"at most {objective.at_most:g}",
                expected=_expected(objective.metric, package),
                measured=measured,
                met=_met(objective, measured),
                how=how,
            )
        )
    return found


def _met(objective: Objective, measured: Estimate | None) -> Met:
    if measured is None or np.isnan(measured.value):
        return "not measured"
    sides = {objective.met(measured.low), objective.met(measured.high)}
    if len(sides) == 2:
        return "uncertain"
    return "met" if objective.met(measured.value) else "missed"


def _measured(
    metric: str, task: Task, weeks: Sequence[Week], totals: Totals, package: Package | None, latencies: Any
) -> tuple[Estimate | None, str]:
    base, _, of = metric.partition(":")
    qualities = [w.quality for w in weeks if w.quality is not None and w.quality.with_outcome]
    if base == "value_per_prediction":
        n = totals.with_outcome
        per = Estimate(totals.model.value / n, totals.model.low / n, totals.model.high / n, n) if n else None
        return per, "predictions with an outcome"
    if base in metrics.GAPS:
        return _gap(metrics.rate_of(base, task), of, weeks), "predictions with an outcome, each slice over all windows"
    if base.startswith("latency_"):
        return _quantile(latencies, base), "logged predictions"
    if base in metrics.MEASURES:
        found = _expected(metric, package)
        return None if found is None else Estimate(found, found, found, 1), "the package that serves"
    return averaged(
        [q.metrics[metric] for q in qualities if metric in q.metrics]
    ), "predictions with an outcome, mean over windows"


def _gap(rate: str, of: str, weeks: Sequence[Week]) -> Estimate | None:
    """Largest less smallest rate over the values of a slice, each averaged over the windows first, so that a week's chance is not a gap."""
    by_value: dict[str, list[Estimate]] = {}
    for week in weeks:
        for value, measured in (week.quality.slices.get(of, {}) if week.quality else {}).items():
            if rate in measured:
                by_value.setdefault(value, []).append(measured[rate])
    means = [m for m in map(averaged, by_value.values()) if m is not None]
    if len(means) < 2:
        return None
    high, low = max(means, key=lambda m: m.value), min(means, key=lambda m: m.value)
    spread = _Z * float(np.hypot(standard_error(high), standard_error(low)))
    gap = high.value - low.value
    return Estimate(gap, max(0.0, gap - spread), gap + spread, sum(m.n for m in means))


def _latencies(home: Home, loop: str, weeks: Sequence[Week]) -> Any:
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
    spread = _Z * np.sqrt(q * (1 - q) / n)
    low, value, high = np.quantile(values, np.clip([q - spread, q, q + spread], 0, 1)) / (1000 if unit == "ms" else 1)
    return Estimate(float(value), float(low), float(high), n)


def _expected(metric: str, package: Package | None) -> float | None:
    """What the package's own evaluation said."""
    if package is None:
        return None
    evaluation = package.evaluation
    if metric in evaluation.metrics:
        value = evaluation.metrics[metric].value
        return None if np.isnan(value) else value
    if metric.endswith("_ms"):
        return float(getattr(evaluation, metric.removesuffix("_ms") + "_us")) / 1000 if metric in metrics.MEASURES else None
    return float(getattr(evaluation, metric)) if metric in (*metrics.MEASURES, "value_per_prediction") else None
