"""A metric of N rows as interval estimators need it: its value, the influence of each row, and its scale.

The influence of a row is the derivative of the value by the row's weight (infinitesimal jackknife; Jaeckel 1972, Efron 1982, chapter 6).
It adds up to 0 over the rows. Its sums over units give the variance of any metric whose rows depend on each other within a unit (Liang &
Zeger 1986), in one pass, and that of the difference of two models on the same rows.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid

Slices = Mapping[str, Array]

Scale = Literal["plain", "log", "root", "logit", "rate"]
"""On what an interval is made: the value itself; its logarithm; that of its square; its log odds; the counts of a share."""

TINY = np.finfo(np.float64).eps


class Parts(NamedTuple):
    """Parts [B] of a non-negative quantity, each estimated around its true value, with its variance.

    `code` [N] is the part of each row, -1 of none, and `influence` [N] what the row adds to it; `rows` [B] are those of each part,
    infinite where parts are not pooled.
    `kind` is `sum` of the sizes of the parts, or `range`, the largest less the smallest.
    """

    kind: Literal["sum", "range"]
    code: Array
    influence: Array
    value: Array
    rows: Array


class Statistic(NamedTuple):
    """A metric of N rows: its value, influence and leverage of each row [N], and how many events tell it (positives of a recall).

    The leverage of a row is its share of the denominator; it adds up to 1. `size` is the denominator of a share of rows. `parts`
    are those of a quantity that cannot be below zero.
    """

    value: float
    influence: Array
    leverage: Array
    events: float
    scale: Scale = "plain"
    size: float = 0.0
    parts: Parts | None = None


def quotient(over: Array, under: Array) -> Array:
    """`over` / `under`, NaN where that is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under > 0, over / under, np.nan)


def undefined(n: int) -> Statistic:
    """A metric that N rows do not define."""
    return Statistic(float("nan"), np.zeros(n), np.zeros(n), 0.0)


def ratio(over: Array, under: Array, scale: Scale = "plain") -> Statistic:
    """Sum of `over` [N] by the sum of `under` [N]; undefined where that is not above 0."""
    over, under = over.astype(np.float64), under.astype(np.float64)
    size = float(under.sum())
    if size <= 0:
        return undefined(len(over))
    value = float(over.sum()) / size
    return Statistic(value, (over - value * under) / size, under / size, size, scale, size)


def mean(values: Array, scale: Scale = "plain") -> Statistic:
    """The mean of values [N]."""
    value = float(values.mean())
    return Statistic(value, (values - value) / len(values), np.full(len(values), 1 / len(values)), telling(values), scale)


def root(squares: Array) -> Statistic:
    """The root of the mean of squares [N]."""
    found = mean(squares, "root")
    value = float(np.sqrt(found.value))
    influence = found.influence / (2 * value) if value else found.influence
    return found._replace(value=value, influence=influence, events=telling(squares, HEAVY_SQUARES))


def averaged(parts: Sequence[Statistic], scale: Scale | None = None) -> Statistic:
    """The mean of metrics of the same rows, those left out that are undefined."""
    known = [part for part in parts if not np.isnan(part.value)]
    if not known:
        return parts[0]
    return Statistic(
        float(np.mean([part.value for part in known])),
        np.asarray(np.mean([part.influence for part in known], axis=0)),
        np.asarray(np.mean([part.leverage for part in known], axis=0)),
        min(part.events for part in known),
        scale or known[0].scale,
    )


_ENOUGH, _HEAVY = 300, 0.8

HEAVY_SQUARES = 0.7
"""The tail of squares: errors of t with three degrees of freedom have squares without a variance, which 0.8 took for known in a third."""


def telling(values: Array, heavy: float = _HEAVY) -> float:
    """How many of N values tell their mean: all where they are alike, one where one outweighs the others (Kish 1965).

    Counted around the median: of one million zeros and four tens four do. None do where the tail (Hill 1975, of the largest tenth) is so
    heavy that the largest values are still to come, which would move mean and variance: then neither is known. A largest value that
    comes again is an end of the scale. `heavy`: from where the tail is.
    """
    far = np.sort(np.abs(values - np.median(values))) if len(values) else values
    squares = float(np.square(far).sum())
    if not squares:
        return float(len(values))
    found = float(far.sum()) ** 2 / squares
    there = far[far > 0]
    tail = there[-max(2, len(there) // 10) :]
    is_heavy = found < _ENOUGH and tail[-3:].min() < tail[-1] and float(np.log(tail / tail[0]).mean()) > heavy
    return 0.0 if is_heavy else found


def of_slice(slices: Slices | None, name: str) -> Array:
    """The values [N] of the slice that a gap's name speaks of. Raises DeclarationInvalid where there is none."""
    of = name.partition(":")[2]
    if slices is None or of not in slices:
        raise DeclarationInvalid("metric", [(name, f"no slice {of!r}")])
    return slices[of]


def small_groups(slices: Slices, least: int) -> dict[str, dict[str, int]]:
    """Values of each slice with fewer than `least` rows, and their counts; slices without any are left out."""
    found = {}
    for name, values in slices.items():
        words, counts = np.unique(np.asarray(values, dtype=str), return_counts=True)
        found[name] = {word: n for word, n in zip(words.tolist(), counts.tolist(), strict=True) if n < least}
    return {name: few for name, few in found.items() if few}


def gap(of: Array, over: Array, under: Array) -> Statistic:
    """Largest less smallest rate over the values of a slice [N]; a rate is the sum of `over` [N] by the sum of `under` [N].

    Small groups count too: how far each is believed is for whoever puts an interval around it (`metrics.nonnegative`).
    """
    _, code = np.unique(np.asarray(of, dtype=str), return_inverse=True)
    over, under = over.astype(np.float64), under.astype(np.float64)
    sizes = np.bincount(code, weights=under)
    there = sizes > 0
    if there.sum() < 2:
        return undefined(len(code))
    place = np.where(there, np.cumsum(there) - 1, -1)
    rates = np.bincount(code, weights=over)[there] / sizes[there]
    mine = place[code]
    influence = np.where(mine >= 0, (over - rates[mine] * under) / sizes[there][mine], 0.0)
    top, bottom = int(rates.argmax()), int(rates.argmin())
    sign = (mine == top).astype(np.float64) - (mine == bottom)
    parts = Parts("range", mine, influence, rates, sizes[there])
    return Statistic(
        float(rates[top] - rates[bottom]), influence * sign, under / under.sum(), float(sizes[there].sum()), parts=parts
    )


def gaps(names: Sequence[str], slices: Slices | None, rates: Mapping[str, tuple[Array, Array]]) -> dict[str, Statistic]:
    """The gaps among the names of metrics, by name; `rates` are by a gap's own name the sums `over` and `under` of its rate, [N] each."""
    return {name: gap(of_slice(slices, name), *rates[base]) for name in names if (base := name.partition(":")[0]) in rates}


_BINS = 10


def calibration(score: Array, right: Array) -> Statistic:
    """Expected calibration error of scores [N] in [0, 1] against how often they are right [N] (bool), over ten equally wide bins."""
    bins = np.clip((score * _BINS).astype(np.int64), 0, _BINS - 1)
    _, code = np.unique(bins, return_inverse=True)
    error = right.astype(np.float64) - score
    counts = np.bincount(code)
    sums = np.bincount(code, weights=error)
    n = len(score)
    parts = Parts("sum", code, (error - (sums / counts)[code]) / n, sums / n, counts.astype(np.float64))
    value = float(np.abs(sums).sum() / n)
    return Statistic(value, (error * np.sign(sums)[code] - value) / n, np.full(n, 1 / n), float(n), parts=parts)


def distances(values: Array) -> Statistic:
    """The mean over K columns of the size of the mean of values [N, K]."""
    n, k = values.shape
    means = values.mean(axis=0)
    influence = (values - means) / (n * k)
    code = np.tile(np.arange(k), n) if k > 1 else np.zeros(n, dtype=np.int64)
    parts = Parts("sum", code, influence.ravel(), means / k, np.full(k, np.inf))
    return Statistic(float(np.abs(means).mean()), influence @ np.sign(means), np.full(n, 1 / n), float(n), parts=parts)
