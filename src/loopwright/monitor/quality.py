"""Quality over time from the outcomes that are known, overall, by slice and by package; and whether it decayed."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.monitor.decay import Decay, decay_check
from loopwright.records.declarations import Outcome
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.package import Output
from loopwright.records.windows import DecayCheck, Quality
from loopwright.stores.outcomes.labelled import Known, known, matures
from loopwright.tasks import metrics

Array = np.ndarray[Any, Any]

SEED = 0
SLICE_ROWS = 30
"""A slice value with fewer rows with an outcome is only named: its numbers would be chance."""


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
    the decay metric is undefined or too few events tell it (here or in the evaluation), or while some of the predictions still wait for their
    outcome; `decayed` where it is worse than the evaluations (weighted by rows of each package) promised: see `monitor.decay`.
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
    by_package, mature_at = _by(package, overall, names, found, parts), matures(joined, end, outcome)
    checks = _Checks(found, parts, package, evaluations, decay, minimum_rows) if mature_at is None else None
    check = checks.check(overall) if checks is not None else None
    return Quality(
        start=start,
        end=end,
        known_at=known_at,
        rows=joined.num_rows,
        with_outcome=count,
        state=_state(check, decay, count, minimum_rows) if mature_at is None else "no data",
        metrics=overall,
        slices={name: _by_value(values, found) for name, values in parts.items()},
        by_package=by_package,
        by_arm=_by_arm(joined, overall, names, found, parts),
        minimum_rows=minimum_rows,
        mature_at=mature_at,
        small_groups=metrics.small_groups(parts, SLICE_ROWS),
        arrived=pc.sum(joined["_stated"]).as_py() or 0,
        decay=check,
        decay_by_package=checks.by_package(by_package, check) if checks is not None else {},
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


class _Checks:
    """Checks of the decay metric on the rows of one window: of all of them, and by package."""

    def __init__(
        self,
        known: Known,
        slices: Mapping[str, Array],
        package: Array,
        evaluations: Mapping[str, Evaluation],
        decay: Decay,
        minimum_rows: int,
    ) -> None:
        self.known, self.slices, self.package = known, slices, package.astype(str)
        self.evaluations, self.decay, self.minimum_rows = evaluations, decay, max(1, minimum_rows)

    def check(self, measured: Mapping[str, Estimate], digest: str = "") -> DecayCheck | None:
        """The check of all rows, or of one package; None where nothing can be judged."""
        metric = self.decay.metric
        rows = self.package == digest if digest else np.ones(len(self.package), dtype=np.bool_)
        promising = self._promising(rows)
        if self.decay.by is None or rows.sum() < self.minimum_rows or not promising:
            return None
        promised, now = _weighted([(e.promised[metric], n) for e, n in promising]), measured.get(metric)
        task = self.known.output.task
        if metrics.moves_with_labels(metric, task) and metrics.adjusts(metric, task):
            rate = float(np.average([e.positives / max(e.rows, 1) for e, _ in promising], weights=[n for _, n in promising]))
            picked = _at_base_rate(self.known.truth, np.flatnonzero(rows), rate)
            now = _measured([metric], self.known, picked, self.slices)[metric]
        if now is None or now.too_few or promised.too_few or np.isnan([now.value, promised.value]).any():
            return None
        windows = [q.decay for q in self.decay.history if q.decay is not None]
        own = [q.decay_by_package[digest] for q in self.decay.history if digest in q.decay_by_package] if digest else windows
        return decay_check(now, promised, self.decay, windows, own)

    def by_package(self, measured: Mapping[str, Mapping[str, Estimate]], whole: DecayCheck | None) -> dict[str, DecayCheck]:
        """The check of each package that can be judged; `whole` is that of all rows, and so of a package that answered all."""
        alone = len(measured) == 1
        checks = {digest: whole if alone else self.check(of_package, digest) for digest, of_package in measured.items()}
        return {digest: check for digest, check in checks.items() if check is not None}

    def _promising(self, rows: Array) -> list[tuple[Evaluation, int]]:
        """The evaluations that have the metric, each with the number of rows that its package answered."""
        digests, counts = np.unique(self.package[rows], return_counts=True)
        each = [(self.evaluations.get(d), n) for d, n in zip(digests.tolist(), counts.tolist(), strict=True)]
        return [(e, n) for e, n in each if e is not None and self.decay.metric in e.metrics]


def _weighted(estimates: Sequence[tuple[Estimate, int]]) -> Estimate:
    """The mean of promises by rows. They were made on much the same rows, so their errors do not cancel."""
    weights = [n for _, n in estimates]
    value, low, high = (
        float(np.average([getattr(e, end) for e, _ in estimates], weights=weights)) for end in ("value", "low", "high")
    )
    return Estimate(value, low, high, sum(e.n for e, _ in estimates), any(e.too_few for e, _ in estimates))


def _at_base_rate(truth: Array, rows: Array, rate: float) -> Array:
    """As many of the rows (indices) as have positives at the rate: all of one label, and of the other a random part."""
    positive, negative = rows[truth[rows]], rows[~truth[rows]]
    if not 0 < rate < 1 or not len(positive) or not len(negative):
        return rows
    rng = np.random.default_rng(SEED)
    odds = rate / (1 - rate)
    more = min(len(positive), round(len(negative) * odds)), min(len(negative), round(len(positive) / odds))
    picked = (rng.choice(part, max(1, n), replace=False) for part, n in zip((positive, negative), more, strict=True))
    return np.sort(np.concatenate(list(picked)))


def _state(check: DecayCheck | None, decay: Decay, count: int, minimum_rows: int) -> Literal["ok", "decayed", "no data"]:
    if not count or count < minimum_rows:
        return "no data"
    if decay.by is None:
        return "ok"
    if check is None:
        return "no data"
    return "decayed" if check.cause else "ok"


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
