"""Quality over time from the outcomes that are known, overall, by slice and by package; and whether it decayed."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records import metrics
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.windows import Quality

Array = np.ndarray[Any, Any]

METRICS = ("average_precision", "roc_auc", "precision", "recall", "positive_rate", "brier", "calibration_error")
SLICE_METRICS = ("precision", "recall", "positive_rate")
RESAMPLES = 200
SLICE_RESAMPLES = 100
SLICE_ROWS = 30
"""A slice value with fewer rows with an outcome is left out: its numbers would be chance."""


class Decay(NamedTuple):
    """When quality has decayed: `metric` is worse than the package's own evaluation by `by` or more (never when None)."""

    metric: str
    by: float | None


def quality(
    joined: pa.Table,
    slices: Mapping[str, Array],
    evaluations: Mapping[str, Evaluation],
    start: datetime,
    end: datetime,
    *,
    known_at: datetime,
    decay: Decay,
    minimum_rows: int = 1,
    seed: int = 0,
) -> Quality:
    """Quality of the window [start, end) from `joined` [N rows: `_package, _score, _label, _truth`, null where unknown].

    `slices` maps slice name to a string per row of `joined` [N]; `evaluations` package digest to its evaluation. Intervals
    are 95 % bootstrap percentiles. The state is `no data` with fewer than `minimum_rows` outcomes or where the decay metric
    is undefined; `decayed` when the drop against the evaluations (weighted by rows of each package) reaches `decay.by`
    *and* the evaluations' value is outside the window's interval, so that one thin window does not cry wolf.
    """
    known = pc.is_valid(joined["_truth"]).to_numpy()
    count = int(known.sum())
    table = joined.filter(pa.array(known))
    truth, label = (table[name].to_numpy().astype(bool) for name in ("_truth", "_label"))
    score = table["_score"].to_numpy().astype(np.float64)
    parts = {name: np.asarray(values)[known] for name, values in slices.items()}
    names = list(dict.fromkeys([*METRICS, *(f"recall_gap:{s}" for s in parts), *_of_rows(decay.metric, parts)]))
    package = table["_package"].to_numpy() if count else np.array([], dtype=object)
    overall = metrics.intervals(names, truth, score, label, seed=seed, resamples=RESAMPLES, slices=parts) if count else {}
    return Quality(
        start=start,
        end=end,
        known_at=known_at,
        rows=joined.num_rows,
        with_outcome=count,
        state=_state(overall.get(decay.metric), _promised(decay.metric, package, evaluations), decay, count, minimum_rows),
        metrics=overall,
        slices={name: _by_value(values, truth, score, label, seed) for name, values in parts.items()},
        by_package=_by_package(package, overall, names, truth, score, label, parts, seed),
    )


def _of_rows(metric: str, slices: Mapping[str, Array]) -> list[str]:
    """The decay metric, where it can be computed from logged rows."""
    known = metrics.problem(metric, slices) == "" and metrics.of_rows(metric) and metric != "value_per_prediction"
    return [metric] if known else []


def _promised(metric: str, package: Array, evaluations: Mapping[str, Evaluation]) -> float:
    """What the packages' own evaluations say of the metric, weighted by the rows each answered; NaN where none says it."""
    digests, rows = np.unique(package.astype(str), return_counts=True)
    told = [
        (evaluations[d].metrics[metric].value, n)
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
    if now is None or np.isnan(now.value) or np.isnan(promised):
        return "no data"
    return "decayed" if decayed(now, promised, decay) else "ok"


def decayed(now: Estimate, promised: float, decay: Decay) -> bool:
    """Whether `now` is worse than `promised` by `decay.by` or more, and surely worse (95 %)."""
    if decay.by is None:
        return False
    if metrics.metric(decay.metric).higher:
        return promised - now.value >= decay.by and now.high < promised
    return now.value - promised >= decay.by and now.low > promised


def _by_value(values: Array, truth: Array, score: Array, label: Array, seed: int) -> dict[str, dict[str, Estimate]]:
    found = {}
    for value in np.unique(values.astype(str)).tolist():
        mask = values == value
        if mask.sum() >= SLICE_ROWS:
            found[value] = metrics.intervals(
                SLICE_METRICS, truth[mask], score[mask], label[mask], seed=seed, resamples=SLICE_RESAMPLES
            )
    return found


def _by_package(
    package: Array,
    overall: dict[str, Estimate],
    names: list[str],
    truth: Array,
    score: Array,
    label: Array,
    slices: Mapping[str, Array],
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    digests = np.unique(package.astype(str)).tolist()
    if len(digests) == 1:
        return {digests[0]: overall}
    found = {}
    for digest in digests:
        mask = package == digest
        found[digest] = metrics.intervals(
            names,
            truth[mask],
            score[mask],
            label[mask],
            seed=seed,
            resamples=SLICE_RESAMPLES,
            slices={name: values[mask] for name, values in slices.items()},
        )
    return found
