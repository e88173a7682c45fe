"""Quality over time from the outcomes that are known, overall, by slice and by package; and whether it decayed."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.declarations import Outcome
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.package import Output
from loopwright.records.windows import Quality
from loopwright.stores.outcomes.labelled import Known, known, matures
from loopwright.tasks import metrics

Array = np.ndarray[Any, Any]

SEED = 0
SLICE_ROWS = 30
"""A slice value with fewer rows with an outcome is only named: its numbers would be chance."""


class Decay(NamedTuple):
    """When quality has decayed: `metric` is worse than the package's own evaluation by the share `by` of it or more (never when None)."""

    metric: str
    by: float | None


def quality(
    joined: pa.Table,
    slices: Mapping[str, Array],
    evaluations: Mapping[str, Evaluation],
    start: datetime,
    end: datetime,
    *,
    outcome: Outcome,
    outputs: Mapping[str, Output],
    known_at: datetime,
    decay: Decay,
    minimum_rows: int = 1,
    unit: str = "",
) -> Quality:
    """Quality of the window [start, end) from `joined` [N rows: see `stores.outcomes.labelled.with_truth`].

    `slices` maps slice name to a string per row of `joined` [N]; `evaluations` package digest to its evaluation, `outputs` to what
    it predicts. Intervals are over units (column `unit`, else the key). The state is `no data` with fewer than `minimum_rows` outcomes, where
    the decay metric is undefined or too few events tell it, or while some of the predictions still wait for their outcome; `decayed` when the drop against the evaluations (weighted by rows of each package) reaches the
    share `decay.by` of what they promised *and* the evaluations' value is outside the window's interval, so that one thin window does not cry wolf.
    """
    found = known(joined, outcome, outputs, unit)
    count = int(found.rows.sum())
    parts = {name: np.asarray(values)[found.rows] for name, values in slices.items()}
    gap = metrics.gap(outcome.task)
    gaps = [f"{gap}:{s}" for s in parts] if gap else []
    further = [decay.metric, *(name for e in evaluations.values() for name in e.metrics if name not in metrics.METRICS)]
    usable = [name for name in further if _of_rows(name, parts, found.output)]
    names = list(dict.fromkeys([*metrics.watched(found.output), *gaps, *usable]))
    package = joined["_package"].to_numpy()[found.rows]
    overall = _measured(names, found, slice(None), parts) if count else {}
    promised, mature_at = _promised(decay.metric, package, evaluations), matures(joined, end, outcome)
    return Quality(
        start=start,
        end=end,
        known_at=known_at,
        rows=joined.num_rows,
        with_outcome=count,
        state=_state(overall.get(decay.metric), promised, decay, count, minimum_rows) if mature_at is None else "no data",
        metrics=overall,
        slices={name: _by_value(values, found) for name, values in parts.items()},
        by_package=_by(package, overall, names, found, parts),
        by_arm=_by_arm(joined, overall, names, found, parts),
        minimum_rows=minimum_rows,
        mature_at=mature_at,
        small_groups=metrics.small_groups(parts, SLICE_ROWS),
    )


def _measured(names: Sequence[str], known: Known, rows: Any, slices: Mapping[str, Array] | None = None) -> dict[str, Estimate]:
    """Metrics of some of the rows (a mask or a slice)."""
    return metrics.intervals(
        names,
        known.truth[rows],
        *known.given.at(rows),
        output=known.output,
        groups=None if known.groups is None else known.groups[rows],
        units=known.units[rows],
        seed=SEED,
        slices={name: values[rows] for name, values in (slices or {}).items()},
    )


def _of_rows(metric: str, slices: Mapping[str, Array], output: Output) -> bool:
    """Whether a metric can be computed from logged rows."""
    return metrics.problem(metric, slices, output) == "" and metrics.of_rows(metric) and metric != "value_per_prediction"


def _promised(metric: str, package: Array, evaluations: Mapping[str, Evaluation]) -> float:
    """What the packages' own evaluations say of the metric, weighted by the rows each answered; NaN where none says it."""
    digests, rows = np.unique(package.astype(str), return_counts=True)
    told = [
        (evaluations[d].promised[metric].value, n)
        for d, n in zip(digests.tolist(), rows.tolist(), strict=True)
        if d in evaluations and metric in evaluations[d].metrics
    ]
    return float(np.average([v for v, _ in told], weights=[n for _, n in told])) if told else float("nan")


def _state(
    now: Estimate | None, promised: float, decay: Decay, count: int, minimum_rows: int
) -> Literal["ok", "decayed", "no data"]:
    if not count or count < minimum_rows:
        return "no data"
    if decay.by is None:
        return "ok"
    if now is None or now.too_few or np.isnan(now.value) or np.isnan(promised):
        return "no data"
    return "decayed" if decayed(now, promised, decay) else "ok"


def decayed(now: Estimate, promised: float, decay: Decay) -> bool:
    """Whether `now` is worse than `promised` by the share `decay.by` of it or more, and surely worse (95 %)."""
    if decay.by is None:
        return False
    least = decay.by * abs(promised)
    if metrics.metric(decay.metric).higher:
        return promised - now.value >= least and now.high < promised
    return now.value - promised >= least and now.low > promised


def _by_value(values: Array, known: Known) -> dict[str, dict[str, Estimate]]:
    shown = metrics.summary(known.output)
    return {
        value: _measured(shown, known, values == value)
        for value in np.unique(values.astype(str)).tolist()
        if (values == value).sum() >= SLICE_ROWS
    }


def _by_arm(
    joined: pa.Table, overall: dict[str, Estimate], names: list[str], known: Known, slices: Mapping[str, Array]
) -> dict[str, dict[str, Estimate]]:
    if len(pc.unique(joined["_arm"])) < 2:
        return {}
    return _by(joined["_arm"].to_numpy()[known.rows], overall, names, known, slices)


def _by(
    part: Array, overall: dict[str, Estimate], names: list[str], known: Known, slices: Mapping[str, Array]
) -> dict[str, dict[str, Estimate]]:
    """Metrics by package, or by arm: `part` [N] names that of each row."""
    values = np.unique(part.astype(str)).tolist()
    if len(values) == 1:
        return {values[0]: overall}
    return {name: _measured(names, known, part == name, slices) for name in values}
