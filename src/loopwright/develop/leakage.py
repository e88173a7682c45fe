"""Features that predict too well to be true, one at a time (Kaufman, Rosset, Perlich & Stitelman 2012, Leakage in data mining).

Each feature alone predicts the label: by its place in order, and by its bins (at most 64 of equal size, or the commonest values,
and what is missing), with what half of the rows say of a bin judged on the other half, so that names of things and noise predict
nothing. Measured is the area under the ROC curve (each class against the rest), for numbers the R² of their ranks.

It is a suspect when it is surely above LIMIT: the lower end of the interval, three standard errors below (DeLong, DeLong &
Clarke-Pearson 1988, on the scale of log odds; Fisher's z), and never above what so few rows can show. Honest predictors of things worth predicting hardly get there: the best single
measurement of a tumour (Wisconsin) has an area of 0.975, the delay at push-back 0.90 for a late arrival; the end of a table that
was filled in afterwards has 0.99 and more. One honest feature in 700 at the limit itself is named by chance, far below it none.
"""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pyarrow as pa
from scipy import special, stats

from loopwright.develop.feature_values import FeatureValues
from loopwright.develop.features import Traced
from loopwright.develop.lineage import feature_columns
from loopwright.records.columns import arrow_feed
from loopwright.records.declarations import Task
from loopwright.records.graph import Array
from loopwright.records.progress import Progress, Silent
from loopwright.records.split import draws, units

LIMIT: dict[Task, float] = {"binary": 0.98, "multiclass": 0.98, "anomaly": 0.98, "regression": 0.99, "ranking": 0.99}
ROWS = 50_000
"""At most so many rows are looked at, evenly over the examples."""

BINS, WORDS, CLASSES, LEAST = 64, 255, 20, 30
_SIGMAS, _FEW = 3.0, 3.0  # where n rows show no exception, up to 3 / n may be exceptions (Hanley & Lippman-Hand 1983)
_PURE, _MIXED = 0.95, 0.8
_UNIQUE = 0.9


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """A feature to doubt: the columns it is made of, why (a sentence), and what was measured, with the lower end of its interval.

    `kind` is `tells`, `names`, `order`, or `missing`: then it is a column that is meant, not a feature.
    """

    feature: str
    columns: list[str]
    kind: str
    why: str
    measure: float
    low: float


def scan(
    traced: Traced, examples: pa.Table, *, task: Task, key: Sequence[str], progress: Progress | None = None
) -> list[Suspect]:
    """Suspects among the features, on (at most ROWS of) examples as `records.examples` describes them; `key` is that of the requests."""
    progress = progress or Silent()
    rows = examples.filter(examples.column("_label").is_valid())
    if len(rows) < LEAST:
        return []
    if len(rows) > ROWS:
        rows = rows.take(pa.array(np.unique(np.linspace(0, len(rows) - 1, ROWS).astype(np.int64))))
    targets = list(_targets(rows.column("_label"), task))
    half = draws(0, "leakage", units(rows)) < 0.5
    decided = rows.column("_decided_at").cast(pa.int64()).to_numpy()
    values = FeatureValues(traced)
    found = values.graph.run(arrow_feed(values.graph, values.columns, rows))
    made_of = feature_columns(traced)
    suspects = list(_missing(traced, rows, targets))
    doubted = {s.feature for s in suspects}
    for i, name in enumerate(traced.order):
        array, null = found[f"value.{name}"], found.get(f"null.{name}")
        columns = made_of[name]
        parts = [
            suspect
            for part, missing in _parts(array, null)
            for suspect in _suspects(name, columns, part, missing, targets, half, decided, task, set(columns) <= set(key))
        ]
        worst = {kind: max((s for s in parts if s.kind == kind), key=lambda s: s.low) for kind in {s.kind for s in parts}}
        suspects += [worst[kind] for kind in sorted(worst) if kind != "tells" or not set(columns) <= doubted]
        progress.advance("leakage scan", i + 1, len(traced.order))
    return suspects


def _targets(label: pa.ChunkedArray, task: Task) -> Iterator[tuple[str, Array]]:
    """What a feature may tell: name and a truth, bool [N], or for numbers their ranks in [0, 1], float64 [N]."""
    if task in ("binary", "anomaly"):
        yield "the label", label.to_numpy()
    elif task == "multiclass":
        values = np.array(label.to_pylist(), dtype=object)
        words, counts = np.unique(values.astype(str), return_counts=True)
        for word in words[np.argsort(-counts, kind="stable")][:CLASSES]:
            yield f"class {str(word)!r}", values == word
    else:
        numbers = np.array(label.to_pylist(), dtype=np.float64).reshape(len(label), -1)
        for i, column in enumerate(numbers.T):
            name = "the label" if numbers.shape[1] == 1 else f"target {i + 1}"
            yield name, (stats.rankdata(column) - 0.5) / len(column)


def _parts(array: Array, null: Array | None) -> Iterator[tuple[Array, Array]]:
    """Each number of a feature (one, or those of an array) [N], and where it is missing."""
    flat = array.reshape(len(array), -1).T
    hidden = (
        np.zeros_like(flat, dtype=np.bool_) if null is None else np.broadcast_to(null.reshape(len(array), -1).T, flat.shape)
    )
    for part, missing in zip(flat, hidden, strict=True):
        if part.dtype != object:
            part = part.astype(np.float64)
            missing = missing | np.isnan(part)
        yield part, missing


def _suspects(
    name: str,
    columns: list[str],
    part: Array,
    missing: Array,
    targets: Sequence[tuple[str, Array]],
    half: Array,
    decided: Array,
    task: Task,
    of_key: bool,
) -> Iterator[Suspect]:
    text = part.dtype == object
    there = part[~missing]
    distinct = len(np.unique(there.astype(str) if text else there))
    if len(there) >= 100 and distinct >= _UNIQUE * len(there) and (text or of_key):
        why = f"{distinct:,} different values in {len(there):,} rows: a name of the row, from which nothing is learnt for the next"
        yield Suspect(
            feature=name, columns=columns, kind="names", why=why, measure=distinct / len(there), low=distinct / len(there)
        )
    bins = _bins(part, missing)
    scores = [] if text else [np.where(missing, worst, part) for worst in _ends(there)]
    for target, truth in targets:
        if truth.dtype == np.bool_ and min(truth.sum(), (~truth).sum()) < LEAST:
            continue
        guesses = [_told(bins, truth, half), *scores]
        measure, low = max(
            (_area(g, truth) if truth.dtype == np.bool_ else _fit(g, truth) for g in guesses), key=lambda m: m[1]
        )
        if low > LIMIT[task]:
            unit = "AUC" if truth.dtype == np.bool_ else "R² of ranks"
            why = f"tells {target} by itself, {unit} {measure:.4f} (at least {low:.3f})"
            yield Suspect(feature=name, columns=columns, kind="tells", why=why, measure=measure, low=low)
    dense = not text and len(there) >= 100 and distinct >= _UNIQUE * len(there) and not missing.any()
    if dense and np.ptp(decided) > 0:  # rows without a time were all decided when they were ingested
        order = abs(float(stats.spearmanr(part, decided).statistic))
        if order > 0.999:
            why = "grows with time, row by row: in every row to come it is beyond what was learnt from; take the hour or the weekday"
            yield Suspect(feature=name, columns=columns, kind="order", why=why, measure=order, low=order)


def _bins(part: Array, missing: Array) -> Array:
    """The bin of each row, int64 [N]: 0 for what is missing."""
    if part.dtype == object:
        words, code, counts = np.unique(part.astype(str), return_inverse=True, return_counts=True)
        place = np.empty(len(words), dtype=np.int64)
        place[np.argsort(-counts, kind="stable")] = np.arange(len(words))
        bins = np.minimum(place[code], WORDS) + 1
    else:
        distinct, counts = np.unique(part[~missing], return_counts=True)
        if len(distinct) > BINS:  # of equal size, and one for each number that is there that often
            often = distinct[counts * BINS > counts.sum()]
            even = np.quantile(part[~missing], np.linspace(0, 1, BINS + 1)[:-1], method="lower")
            distinct = np.unique([*even, *often, *np.nextafter(often, np.inf)])
        bins = np.searchsorted(distinct, part, side="right") + 1
    return np.where(missing, 0, bins)


def _ends(there: Array) -> list[float]:
    """What stands for a missing number when rows are put in order: below all others, or above them."""
    return [float(there.min()) - 1, float(there.max()) + 1] if len(there) else []


def _told(bins: Array, truth: Array, half: Array) -> Array:
    """What the other half's rows of the same bin say on average, drawn a little to the mean of all, float64 [N]."""
    told = np.empty(len(bins))
    for side in (half, ~half):
        size = int(bins.max()) + 1
        other = ~side
        mean = truth[other].mean() if other.any() else 0.5
        count = np.bincount(bins[other], minlength=size)
        total = np.bincount(bins[other], weights=truth[other].astype(np.float64), minlength=size)
        told[side] = ((total + mean) / (count + 1))[bins[side]]
    return told


def _area(score: Array, truth: Array) -> tuple[float, float]:
    """Area under the ROC curve, whichever way the score points, and the lower end of its interval."""
    yes, no = score[truth], score[~truth]
    ranks, n, m = stats.rankdata(score), len(yes), len(no)
    of_yes = (ranks[truth] - stats.rankdata(yes)) / m
    of_no = 1 - (ranks[~truth] - stats.rankdata(no)) / n
    area = float(of_yes.mean())
    error = float(np.sqrt(of_yes.var(ddof=1) / n + of_no.var(ddof=1) / m))
    area = max(area, 1 - area)
    low = 1.0
    if area < 1:  # on the scale of log odds, where the interval is even close to 1
        low = float(special.expit(special.logit(area) - _SIGMAS * error / (area * (1 - area))))
    return area, min(low, 1 - _FEW / min(n, m))


def _fit(score: Array, ranks: Array) -> tuple[float, float]:
    """R² of ranks (squared correlation of the ranks), and the lower end of its interval."""
    if len(score) < LEAST or score.min() == score.max():
        return 0.0, 0.0
    r = abs(float(np.corrcoef(stats.rankdata(score), ranks)[0, 1]))
    low = float(np.tanh(np.arctanh(min(r, 1 - 1e-12)) - _SIGMAS / np.sqrt(len(score) - 3)))
    return r * r, min(max(low, 0.0) ** 2, 1 - _FEW / len(score))


def _missing(traced: Traced, rows: pa.Table, targets: Sequence[tuple[str, Array]]) -> Iterator[Suspect]:
    """Columns that features use, of which it tells the label whether they are missing, whatever the features put there instead."""
    for name in traced.used:
        missing = rows.column(name).is_null().to_numpy()
        pure = [p for target, truth in targets if truth.dtype == np.bool_ and (p := _pure(missing, target, truth))]
        for why, share, low in pure[:1]:
            yield Suspect(feature=name, columns=[name], kind="missing", why=why, measure=share, low=low)


def _pure(missing: Array, target: str, truth: Array) -> tuple[str, float, float] | None:
    """Whether nearly all rows with a missing (or with a given) value have one truth, and the others do not."""
    for part, words in ((missing, "missing"), (~missing, "given")):
        n = int(part.sum())
        if min(n, len(part) - n) < LEAST:
            return None
        for value in (True, False):
            hits, rest = int((truth[part] == value).sum()), float((truth[~part] == value).mean())
            low = float(stats.beta.ppf(0.001, hits, n - hits + 1)) if hits else 0.0
            if low > _PURE and rest < _MIXED:
                said = f"where it is {words} {target} is {str(value).lower()} in {hits / n:.1%} of {n:,} rows, elsewhere in {rest:.1%}"
                return said, hits / n, low
    return None
