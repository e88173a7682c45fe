"""Metrics of binary decisions, with bootstrap intervals. One implementation, used by development, gates, monitoring and reports.

Every metric is a function of weighted rows. The measured value has weight 1 on every row; a bootstrap resample (Efron
1979) is a multinomial draw of weights, so that a ranking metric needs one sort for all resamples, and two models
compared on the same draws are compared in pairs. Intervals are 95 % percentile intervals.

Shapes: `truth` bool [N], `score` float [N] in [0, 1] (the probability of true), `label` bool [N] (score >= threshold),
slices: slice name -> string [N]. A metric that is undefined on the rows (recall without positives) is NaN, never 0.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loopwright.records.declarations import Value
from loopwright.records.errors import DeclarationInvalid
from loopwright.records.evaluation import Estimate

Array = np.ndarray[Any, Any]
Slices = Mapping[str, Array]


class Metric(NamedTuple):
    """What a metric is: whether more is better, its best possible value if it has one, and one line about it."""

    higher: bool
    best: float | None
    help: str


METRICS: dict[str, Metric] = {
    "average_precision": Metric(True, 1.0, "area under the precision-recall curve, as a step function"),
    "roc_auc": Metric(True, 1.0, "chance that a positive row scores above a negative one"),
    "log_loss": Metric(False, 0.0, "mean negative log likelihood of the truth, in nats"),
    "brier": Metric(False, 0.0, "mean squared difference of score and truth (Brier 1950)"),
    "accuracy": Metric(True, 1.0, "share of right labels"),
    "precision": Metric(True, 1.0, "share of the labelled that are positive"),
    "recall": Metric(True, 1.0, "share of the positive that are labelled"),
    "f1": Metric(True, 1.0, "harmonic mean of precision and recall"),
    "positive_rate": Metric(True, None, "share of rows that are labelled"),
    "calibration_error": Metric(False, 0.0, "expected calibration error over ten equally wide bins (Naeini et al. 2015)"),
    "value_per_prediction": Metric(True, None, "mean money per row by the value table, over labelling nothing"),
}
"""Metrics of rows."""

GAPS: dict[str, Metric] = {
    "recall_gap": Metric(False, 0.0, "largest minus smallest recall over the values of a slice"),
    "precision_gap": Metric(False, 0.0, "largest minus smallest precision over the values of a slice"),
    "positive_rate_gap": Metric(False, 0.0, "largest minus smallest share of labelled rows over the values of a slice"),
}
"""Metrics of rows and a slice, written `recall_gap:SLICE`."""

MEASURES: dict[str, Metric] = {
    "latency_p50_us": Metric(False, 0.0, "median time of one row through the graph, microseconds"),
    "latency_p99_us": Metric(False, 0.0, "99th percentile of the time of one row through the graph, microseconds"),
    "latency_p50_ms": Metric(False, 0.0, "the same median in milliseconds"),
    "latency_p99_ms": Metric(False, 0.0, "the same percentile in milliseconds"),
    "size_bytes": Metric(False, 0.0, "size of the graph"),
    "train_seconds": Metric(False, 0.0, "how long training took, search included"),
}
"""What is measured on the package rather than on rows."""

GAP_ROWS = 30
"""A slice value counts in a gap when its rate has at least so many rows under it: the rates of a handful of rows differ by chance."""

_BINS = 10
_BLOCK = 400_000


def metric(name: str) -> Metric:
    """What a metric's name means. Raises DeclarationInvalid for a name that means nothing."""
    base, _, of = name.partition(":")
    found = GAPS.get(base) if of else METRICS.get(name) or MEASURES.get(name)
    if found is None:
        raise DeclarationInvalid("metric", [(name[:80], _known())])
    return found


def problem(name: str, slices: Collection[str]) -> str:
    """Why a metric's name cannot be used in a loop with these slices; empty when it can."""
    base, _, of = name.partition(":")
    if of and base in GAPS:
        return "" if of in slices else f"{name!r}: no slice {of!r}; the loop declares {', '.join(slices) or 'none'}"
    return "" if name in METRICS or name in MEASURES else f"{name[:80]!r} is not a metric; {_known()}"


def of_rows(name: str) -> bool:
    """Whether a metric is computed from rows (and so has an interval), not measured on the package."""
    return name not in MEASURES


def compute(
    name: str, truth: Array, score: Array, label: Array, *, value: Value | None = None, slices: Slices | None = None
) -> float:
    """One metric of N rows; NaN where it is undefined. `value_per_prediction` needs `value`, a gap its slice in `slices`."""
    if not len(truth):
        return float("nan")
    rows = _Rows([name], truth, score, label, value, slices)
    return float(rows.values(np.ones((1, rows.n)))[0, 0])


def intervals(
    names: Sequence[str],
    truth: Array,
    score: Array,
    label: Array,
    *,
    seed: int,
    resamples: int = 200,
    value: Value | None = None,
    slices: Slices | None = None,
) -> dict[str, Estimate]:
    """Each metric of N rows with its bootstrap interval; the same seed and N draw the same resamples."""
    if not len(truth):
        return {name: Estimate(float("nan"), float("nan"), float("nan"), 0) for name in names}
    rows = _Rows(names, truth, score, label, value, slices)
    measured = rows.values(np.ones((1, rows.n)))[0]
    drawn = np.concatenate([rows.values(w) for w in _weights(rows.n, resamples, seed)]) if resamples else measured[None, :]
    return _estimates(names, measured, drawn, rows.n)


def differences(
    names: Sequence[str],
    truth: Array,
    challenger: tuple[Array, Array],
    incumbent: tuple[Array, Array],
    *,
    seed: int,
    resamples: int = 200,
    value: Value | None = None,
    slices: Slices | None = None,
) -> dict[str, Estimate]:
    """Challenger minus incumbent (each a pair of score and label) on the same N rows, with the interval of a paired bootstrap."""
    if not len(truth):
        return {name: Estimate(float("nan"), float("nan"), float("nan"), 0) for name in names}
    new, old = (_Rows(names, truth, score, label, value, slices) for score, label in (challenger, incumbent))
    ones = np.ones((1, new.n))
    measured = (new.values(ones) - old.values(ones))[0]
    drawn = np.concatenate([new.values(w) - old.values(w) for w in _weights(new.n, resamples, seed)])
    return _estimates(names, measured, drawn, new.n)


def _known() -> str:
    return f"known are {', '.join([*METRICS, *(f'{g}:SLICE' for g in GAPS), *MEASURES])}"


def _weights(n: int, resamples: int, seed: int) -> list[Array] | Any:
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


def _ratio(over: Array, under: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under > 0, over / under, np.nan)


class _Rows:
    """N rows made ready (sorted once), so that metrics under weights [R, N] are a few passes over memory."""

    def __init__(
        self, names: Sequence[str], truth: Array, score: Array, label: Array, value: Value | None, slices: Slices | None
    ) -> None:
        self.names = list(names)
        self.truth = np.asarray(truth, dtype=np.bool_)
        self.score = np.asarray(score, dtype=np.float64)
        self.label = np.asarray(label, dtype=np.bool_)
        self.n = len(self.truth)
        self.value = value
        self.groups: dict[str, tuple[Array, Array, Array, Array]] = {}
        for name in names:
            base, _, of = name.partition(":")
            metric(name)
            if name in MEASURES:
                raise DeclarationInvalid("metric", [(name, "is measured on the package, not computed from rows")])
            if base == "value_per_prediction" and value is None:
                raise DeclarationInvalid("metric", [(name, "needs the scope's value table")])
            if of:
                if slices is None or of not in slices:
                    raise DeclarationInvalid("metric", [(name, f"no slice {of!r}")])
                self.groups[name] = self._group(base, slices[of])
        wanted = {"average_precision", "roc_auc", "calibration_error"} & set(names)
        self.order = np.argsort(-self.score, kind="stable") if wanted else None
        if self.order is not None:
            ranked = self.score[self.order]
            self.ends = np.append(np.flatnonzero(np.diff(ranked)), self.n - 1)
            self.ranked_truth = self.truth[self.order].astype(np.float64)
            bins = np.minimum((ranked * _BINS).astype(np.int64), _BINS - 1)
            self.bin_starts = np.append(0, np.flatnonzero(np.diff(bins)) + 1)
            self.ranked_error = self.ranked_truth - ranked

    def _group(self, base: str, of: Array) -> tuple[Array, Array, Array, Array]:
        """Row indices, starts of the groups, numerator and denominator of the rate, rows in order of the group."""
        under = {"recall_gap": self.truth, "precision_gap": self.label, "positive_rate_gap": np.ones(self.n, dtype=np.bool_)}[
            base
        ]
        over = {
            "recall_gap": self.truth & self.label,
            "precision_gap": self.truth & self.label,
            "positive_rate_gap": self.label,
        }[base]
        _, code = np.unique(np.asarray(of, dtype=str), return_inverse=True)
        kept = np.flatnonzero((np.bincount(code, weights=under) >= GAP_ROWS)[code])
        rows = kept[np.argsort(code[kept], kind="stable")]
        starts = np.append(0, np.flatnonzero(np.diff(code[rows])) + 1) if len(rows) else np.array([], dtype=np.int64)
        return rows, starts, over[rows].astype(np.float64), under[rows].astype(np.float64)

    def values(self, w: Array) -> Array:
        """Every metric [R, M] under weights [R, N]."""
        total = w.sum(axis=1)
        positives = w @ self.truth
        true_positive, labelled = w @ (self.truth & self.label), w @ self.label
        ranked = w[:, self.order] if self.order is not None else None
        curve = self._curve(ranked) if ranked is not None and {"average_precision", "roc_auc"} & set(self.names) else None
        false_positive, false_negative = labelled - true_positive, positives - true_positive
        columns = []
        for name in self.names:
            if name == "average_precision" and curve is not None:
                tp, n = curve
                gained = np.diff(tp, axis=1, prepend=0.0)
                with np.errstate(divide="ignore", invalid="ignore"):
                    steps = gained * np.where(n > 0, tp / n, 0.0)
                column = _ratio(steps.sum(axis=1), positives)
            elif name == "roc_auc" and curve is not None:
                tp, n = curve
                fp = n - tp
                area = (np.diff(fp, axis=1, prepend=0.0) * (tp - np.diff(tp, axis=1, prepend=0.0) / 2)).sum(axis=1)
                column = _ratio(area, positives * (total - positives))
            elif name == "calibration_error" and ranked is not None:
                column = np.abs(np.add.reduceat(ranked * self.ranked_error, self.bin_starts, axis=1)).sum(axis=1) / total
            elif name in self.groups:
                column = self._gap(name, w)
            else:
                column = self._plain(name, w, total, positives, labelled, true_positive, false_positive, false_negative)
            columns.append(column)
        return np.stack(columns, axis=1)

    def _curve(self, ranked: Array) -> tuple[Array, Array]:
        """Positives and rows at or above each distinct score, [R, number of distinct scores]."""
        return np.cumsum(ranked * self.ranked_truth, axis=1)[:, self.ends], np.cumsum(ranked, axis=1)[:, self.ends]

    def _gap(self, name: str, w: Array) -> Array:
        rows, starts, over, under = self.groups[name]
        if len(starts) < 2:
            return np.full(len(w), np.nan)
        part = w[:, rows]
        rates = _ratio(np.add.reduceat(part * over, starts, axis=1), np.add.reduceat(part * under, starts, axis=1))
        return np.asarray(np.fmax.reduce(rates, axis=1) - np.fmin.reduce(rates, axis=1))

    def _plain(
        self, name: str, w: Array, total: Array, positives: Array, labelled: Array, tp: Array, fp: Array, fn: Array
    ) -> Array:
        match name:
            case "accuracy":
                return np.asarray((total - fp - fn) / total)
            case "precision":
                return _ratio(tp, labelled)
            case "recall":
                return _ratio(tp, positives)
            case "f1":
                return _ratio(2 * tp, 2 * tp + fp + fn)
            case "positive_rate":
                return np.asarray(labelled / total)
            case "brier":
                return np.asarray(w @ np.square(self.score - self.truth) / total)
            case "log_loss":
                tiny = np.finfo(np.float64).eps
                p = np.clip(self.score, tiny, 1 - tiny)
                return np.asarray(w @ -np.where(self.truth, np.log(p), np.log1p(-p)) / total)
            case _:
                value = self.value or Value()
                gain, loss = value.true_positive - value.false_negative, value.false_positive - value.true_negative
                return np.asarray((tp * gain + fp * loss) / total)
