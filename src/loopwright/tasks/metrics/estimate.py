"""Metrics of rows with their 95 % intervals, and paired differences. docs/reference/statistics.md has the papers and measured coverage.

Units are what is independent (customers), not rows: influences of rows (`tasks.statistic`) are added up by unit first. Then

    rate      Wilson's interval of a share (1927), with as many rows as the design effect of the units leaves (Kish 1965)
    logit     of AP, AUC, F1 and other means of shares: t interval of the log odds
    others    studentised bootstrap (Hall 1988): units are drawn 1,000 times, on the scale of the statistic

Fewer than 20 units use t. A quantity that cannot be below zero is in `nonnegative`.
"""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import Value
from loopwright.records.evaluation import Estimate
from loopwright.records.package import Output
from loopwright.tasks.metrics.answered import money
from loopwright.tasks.metrics.nonnegative import nonnegative, shrunk
from loopwright.tasks.metrics.registry import MEASURES, metric
from loopwright.tasks.metrics.resample import Units, ends
from loopwright.tasks.registry import TASKS
from loopwright.tasks.statistic import Slices, Statistic, mean, undefined
from loopwright.tasks.task import Answered, RowData

MIN_EVENTS = 10
"""Below so many events (positives of a recall, rows that outweigh the others of a mean) an estimate is too few to tell."""

_BINARY = Output()


def compute(
    name: str,
    truth: Array,
    score: Array,
    label: Array | None = None,
    values: Array | None = None,
    *,
    output: Output = _BINARY,
    groups: Array | None = None,
    value: Value | None = None,
    slices: Slices | None = None,
) -> float:
    """One metric of N rows; NaN where it is undefined. `value_per_prediction` needs `value`, a gap its slice in `slices`."""
    if not len(truth):
        return float("nan")
    (found,) = statistics_of([name], truth, Answered(score, label, values), output, groups, value, slices)
    return found.value if found.parts is None else shrunk(found.parts, Units(None, len(truth)))


def intervals(
    names: Sequence[str],
    truth: Array,
    score: Array,
    label: Array | None = None,
    values: Array | None = None,
    *,
    seed: int,
    output: Output = _BINARY,
    groups: Array | None = None,
    units: Array | None = None,
    value: Value | None = None,
    slices: Slices | None = None,
) -> dict[str, Estimate]:
    """Each metric of N rows with its interval; the same seed draws the same resamples.

    What was answered is as `Answered` says, `output` says of which task; `groups` [N] are those of a ranking. `units` [N] names the
    unit of each row; None: each row (of a ranking, each group) is one.
    """
    if not len(truth):
        return {name: Estimate(float("nan"), float("nan"), float("nan"), 0) for name in names}
    found = statistics_of(names, truth, Answered(score, label, values), output, groups, value, slices)
    return dict(zip(names, estimates(found, Units(unit_codes(units, groups), len(truth), seed)), strict=True))


def differences(
    names: Sequence[str],
    truth: Array,
    challenger: Sequence[Array | None],
    incumbent: Sequence[Array | None],
    *,
    seed: int,
    output: Output = _BINARY,
    groups: Array | None = None,
    units: Array | None = None,
    value: Value | None = None,
    slices: Slices | None = None,
) -> dict[str, Estimate]:
    """Challenger minus incumbent (each `Answered`, or its parts) on the same N rows, in pairs: the influences are subtracted."""
    if not len(truth):
        return {name: Estimate(float("nan"), float("nan"), float("nan"), 0) for name in names}
    new, old = (
        statistics_of(names, truth, Answered(*given), output, groups, value, slices)  # type: ignore[arg-type]  # a score is there
        for given in (challenger, incumbent)
    )
    found = [subtracted(*pair) for pair in zip(new, old, strict=True)]
    return dict(zip(names, estimates(found, Units(unit_codes(units, groups), len(truth), seed)), strict=True))


def total(values: Array, units: Array | None = None, seed: int = 0) -> Estimate:
    """The sum of values [N] with its interval; `units` as of `intervals`."""
    n = len(values)
    if not n:
        return Estimate(0.0, 0.0, 0.0, 0)
    each = mean(values)
    return estimates([each._replace(value=each.value * n, influence=each.influence * n)], Units(units, n, seed))[0]


def statistics_of(
    names: Sequence[str],
    truth: Array,
    answers: Answered,
    output: Output,
    groups: Array | None,
    value: Value | None,
    slices: Slices | None,
) -> list[Statistic]:
    """Metrics by name of answers to N rows; see `intervals`."""
    for name in names:
        metric(name)
        if name in MEASURES:
            raise DeclarationInvalid("metric", [(name, "is measured on the package, not computed from rows")])
        if name == "value_per_prediction" and value is None:
            raise DeclarationInvalid("metric", [(name, "needs the scope's value table")])
    if not len(truth):
        return [undefined(0) for _ in names]
    truth, answers = np.asarray(truth), answers._replace(score=np.asarray(answers.score, dtype=np.float64))
    earned = None
    if value is not None and "value_per_prediction" in names:
        acted, idle = money(value, output, truth, answers)
        earned = acted - idle
    return TASKS[output.task].statistics(names, RowData(truth, answers, output, earned, slices, groups))


def unit_codes(units: Array | None, groups: Array | None) -> Array | None:
    """The unit of each row [N]. Rows of a ranking's group share the unit of its first row, or are a unit themselves."""
    if groups is None:
        return units
    _, first, code = np.unique(np.asarray(groups, dtype=str), return_index=True, return_inverse=True)
    return code if units is None else np.asarray(units)[first][code]


def estimates(statistics: Sequence[Statistic], units: Units) -> list[Estimate]:
    """The value of each statistic with its interval."""
    between = ends(statistics, units)
    return [
        nonnegative(one.parts, units, (high - low) / 2)
        if one.parts is not None and not np.isnan(one.value)
        else Estimate(one.value, low, high, units.rows, one.events < MIN_EVENTS or units.count < 2)
        if not np.isnan(one.value)
        else Estimate(float("nan"), float("nan"), float("nan"), units.rows)
        for one, (low, high) in zip(statistics, between, strict=True)
    ]


def subtracted(new: Statistic, old: Statistic) -> Statistic:
    """The difference of one metric of two models on the same rows."""
    return Statistic(
        new.value - old.value,
        new.influence - old.influence,
        (new.leverage + old.leverage) / 2,
        min(new.events, old.events),
        size=min(new.size, old.size) if new.scale == "rate" else 0.0,
    )
