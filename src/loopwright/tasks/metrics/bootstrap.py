"""Metrics of rows with bootstrap intervals, and paired differences.

Every metric is a function of weighted rows. The measured value has weight 1 on every row; a bootstrap resample (Efron 1979) is
a multinomial draw of weights, so that a ranking metric needs one sort for all resamples, and two models compared on the same
draws are compared in pairs. Of a ranking whole groups are drawn, not rows. Intervals are 95 % percentile intervals.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import Value
from loopwright.records.evaluation import Estimate
from loopwright.records.package import Output
from loopwright.tasks.metrics.answered import money
from loopwright.tasks.metrics.registry import MEASURES, metric
from loopwright.tasks.registry import TASKS
from loopwright.tasks.task import Answered, MeasuredRows, RowData, Slices

_BLOCK = 400_000
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
    rows = _rows([name], truth, Answered(score, label, values), output, groups, value, slices)
    return float(rows.values(np.ones((1, rows.units)))[0, 0])


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
    resamples: int = 200,
    value: Value | None = None,
    slices: Slices | None = None,
) -> dict[str, Estimate]:
    """Each metric of N rows with its bootstrap interval; the same seed and N draw the same resamples.

    What was answered is as `Answered` says, `output` says of which task; `groups` [N] are those of a ranking.
    """
    if not len(truth):
        return {name: Estimate(float("nan"), float("nan"), float("nan"), 0) for name in names}
    rows = _rows(names, truth, Answered(score, label, values), output, groups, value, slices)
    measured = rows.values(np.ones((1, rows.units)))[0]
    drawn = np.concatenate([rows.values(w) for w in _weights(rows.units, resamples, seed)]) if resamples else measured[None, :]
    return _estimates(names, measured, drawn, len(truth))


def differences(
    names: Sequence[str],
    truth: Array,
    challenger: Sequence[Array | None],
    incumbent: Sequence[Array | None],
    *,
    seed: int,
    output: Output = _BINARY,
    groups: Array | None = None,
    resamples: int = 200,
    value: Value | None = None,
    slices: Slices | None = None,
) -> dict[str, Estimate]:
    """Challenger minus incumbent (each `Answered`, or its parts) on the same N rows, with the interval of a paired bootstrap."""
    if not len(truth):
        return {name: Estimate(float("nan"), float("nan"), float("nan"), 0) for name in names}
    new, old = (
        _rows(names, truth, Answered(*given), output, groups, value, slices)  # type: ignore[arg-type]  # a score is there
        for given in (challenger, incumbent)
    )
    ones = np.ones((1, new.units))
    measured = (new.values(ones) - old.values(ones))[0]
    drawn = np.concatenate([new.values(w) - old.values(w) for w in _weights(new.units, resamples, seed)])
    return _estimates(names, measured, drawn, len(truth))


def _rows(
    names: Sequence[str],
    truth: Array,
    answers: Answered,
    output: Output,
    groups: Array | None,
    value: Value | None,
    slices: Slices | None,
) -> MeasuredRows:
    for name in names:
        metric(name)
        if name in MEASURES:
            raise DeclarationInvalid("metric", [(name, "is measured on the package, not computed from rows")])
        if name == "value_per_prediction" and value is None:
            raise DeclarationInvalid("metric", [(name, "needs the scope's value table")])
    truth, answers = np.asarray(truth), answers._replace(score=np.asarray(answers.score, dtype=np.float64))
    earned = None
    if value is not None and "value_per_prediction" in names:
        acted, idle = money(value, output, truth, answers)
        earned = acted - idle
    return TASKS[output.task].rows(names, RowData(truth, answers, output, earned, slices, groups))


def _weights(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks [r, n] of multinomial weights, `resamples` rows in all."""
    rng = np.random.default_rng([seed & 0xFFFFFFFF, n])
    block = max(1, _BLOCK // n)
    for start in range(0, resamples, block):
        r = min(block, resamples - start)
        drawn = rng.integers(0, n, size=(r, n), dtype=np.int64)
        drawn += np.arange(r, dtype=np.int64)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def _estimates(names: Sequence[str], measured: Array, drawn: Array, n: int) -> dict[str, Estimate]:
    found = {}
    for i, name in enumerate(names):
        column = drawn[:, i][np.isfinite(drawn[:, i])]
        low, high = np.percentile(column, [2.5, 97.5]) if len(column) else (float("nan"), float("nan"))
        found[name] = Estimate(float(measured[i]), float(low), float(high), n)
    return found
