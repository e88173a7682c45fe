"""Units of resampling, and the ends of a 95 % interval from influences of rows.

Units beyond 1,000 are dealt at random into 1,000 bags, and bags are drawn: sums over bags have the variance and the skewness of sums over
units, so that a resample costs the same for any number of rows.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.evaluation import Z_95, t_95
from loopwright.tasks.statistic import Statistic

RESAMPLES = 1000
BAGS = 1000
FEW_UNITS = 20
"""Fewer units than this are not drawn: their t interval is used."""

_NONE_SEEN = 3.0  # of n events without an exception up to 3 / n may be exceptions (Hanley & Lippman-Hand 1983)
_LEVEL = 0.975
_WIDEST = 50.0  # so many standard errors, where resamples have only rows that are alike
_LOGARITHMIC = ("log", "root")


class Units:
    """N rows by their unit: `code` [N] names the unit of each, None where each row is one."""

    def __init__(self, of: Array | None, n: int, seed: int = 0) -> None:
        self.rows, self.seed, self.clustered = n, seed, False
        self.code: Array | None = None
        self.count = n
        if of is not None:
            known, code = np.unique(np.asarray(of), return_inverse=True)
            self.count, self.clustered = len(known), len(known) < n
            self.code = code if self.clustered else None
        self._bag = _bags(self.count, seed) if self.count > BAGS else None
        self.bags = min(self.count, BAGS)

    def sums(self, of_rows: Array) -> Array:
        """Sums over bags of values of rows [N]."""
        found = of_rows if self.code is None else np.bincount(self.code, weights=of_rows, minlength=self.count)
        return np.bincount(self._bag, weights=found, minlength=self.bags) if self._bag is not None else found

    def drawn(self) -> Array:
        """How often each bag is drawn, [RESAMPLES, bags]."""
        return _weights(self.bags, self.seed)


@lru_cache(maxsize=16)
def _bags(count: int, seed: int) -> Array:
    return np.random.default_rng([seed & 0xFFFFFFFF, count]).permutation(count) % BAGS


@lru_cache(maxsize=16)
def _weights(bags: int, seed: int) -> Array:
    """Multinomial weights [RESAMPLES, bags] (Efron 1979)."""
    rng = np.random.default_rng([seed & 0xFFFFFFFF, bags, RESAMPLES])
    picked = rng.integers(0, bags, size=(RESAMPLES, bags), dtype=np.int32)
    picked += (np.arange(RESAMPLES, dtype=np.int32) * bags)[:, None]
    return np.bincount(picked.ravel(), minlength=RESAMPLES * bags).reshape(RESAMPLES, bags).astype(np.float64)


class Spread(NamedTuple):
    """Standard error of a sum of influences, and the degrees of freedom it is known with."""

    error: float
    freedom: float


def spread(sums: Array, leverage: Array | None = None) -> Spread:
    """Of sums over G bags that add up to 0: the sandwich estimator, its degrees of freedom by Satterthwaite (1946) from the kurtosis.

    A bag that has a share of all (`leverage` [G]) draws the value to itself; its sum is what would be without it (Mancl & DeRouen 2001).
    """
    count = len(sums)
    squares = np.square(sums)
    if count < 2 or not squares.any():
        return Spread(0.0, 1.0)
    kurtosis = float(np.square(squares).sum()) * count / float(squares.sum()) ** 2
    if leverage is not None:
        squares = squares / np.square(1 - np.minimum(leverage, 0.9))
    variance = float(squares.sum()) * (count - 1) / count
    return Spread(variance**0.5, float(np.clip(2 * count / max(kurtosis - 1, 1e-9), 1, count - 1)))


def ends(statistics: Sequence[Statistic], units: Units) -> list[tuple[float, float]]:
    """The ends of the 95 % interval of each statistic, on its scale."""
    if units.count < 2:
        return [(float("nan"), float("nan"))] * len(statistics)
    sums = [units.sums(one.influence) for one in statistics]
    spreads = [spread(part, units.sums(one.leverage)) for one, part in zip(statistics, sums, strict=True)]
    drawn = [i for i, one in enumerate(statistics) if one.scale not in ("rate", "logit") and spreads[i].error]
    cut: dict[int, tuple[float, float]] = {}
    if drawn and units.count >= FEW_UNITS:
        cut = dict(zip(drawn, _studentised([statistics[i] for i in drawn], [sums[i] for i in drawn], units), strict=True))
    return [_ends(one, units, sums[i], spreads[i], cut.get(i)) for i, one in enumerate(statistics)]


def _ends(statistic: Statistic, units: Units, sums: Array, of: Spread, cut: tuple[float, float] | None) -> tuple[float, float]:
    if statistic.scale == "rate":
        return _wilson(statistic, units, of)
    if not of.error:
        return _exact(statistic)
    t = t_95(of.freedom)
    if statistic.scale == "logit":
        value = min(max(statistic.value, 1e-12), 1 - 1e-12)
        half = t * of.error / (value * (1 - value))
        middle = math.log(value / (1 - value))
        return _share(middle - half), _share(middle + half)
    low_t, high_t = (min(cut[0], -t), max(cut[1], t)) if cut else (-t, t)  # no shorter than t: skewness is known poorly
    value, factor = _scaled(statistic)
    error = of.error * abs(factor)
    if statistic.scale in _LOGARITHMIC:
        low, high = (float(value * np.exp(min(700.0, -side * error / value))) for side in (high_t, low_t))
    else:
        low, high = value - high_t * error, value - low_t * error
    return (low**0.5, high**0.5) if statistic.scale == "root" else (low, high)


def _share(odds: float) -> float:
    return 1 / (1 + math.exp(min(700.0, -odds)))


def _scaled(statistic: Statistic) -> tuple[float, float]:
    """The studentised transform of a statistic, and its derivative, which scales the influence."""
    return (statistic.value**2, 2 * statistic.value) if statistic.scale == "root" else (statistic.value, 1.0)


def _exact(statistic: Statistic) -> tuple[float, float]:
    """Interval for rows without variance: the value itself, or, for a share of 0 or 1, what the number of rows leaves open."""
    if statistic.scale != "logit":
        return statistic.value, statistic.value
    unseen = min(1.0, _NONE_SEEN / max(statistic.events, 1.0))
    return (1 - unseen, 1.0) if statistic.value > 0.5 else (0.0, unseen)


def _wilson(statistic: Statistic, units: Units, of: Spread) -> tuple[float, float]:
    share, rows, z = statistic.value, statistic.size, Z_95
    if units.clustered:
        counting = int(np.count_nonzero(units.sums(statistic.leverage)))
        of_rows = share * (1 - share)
        rows = min(rows, of_rows / of.error**2 if of_rows > 0 and of.error else counting)
        z = t_95(max(1.0, min(counting - 1.0, of.freedom) if of.error else counting - 1.0))
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * (share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _studentised(statistics: Sequence[Statistic], sums: Sequence[Array], units: Units) -> list[tuple[float, float]]:
    """Bootstrap-t (Hall 1988): middle 95 % of (draw - value) / standard error, with the standard error of each resample."""
    scales = [_scaled(one) for one in statistics]
    part = np.stack(sums, axis=1) * np.array([factor for _, factor in scales])
    count, width = len(part), len(statistics)
    drawn = units.drawn() @ np.concatenate([part, np.square(part)], axis=1)
    off, value = drawn[:, :width], np.array([value for value, _ in scales])
    error = np.sqrt(np.maximum(drawn[:, width:] - np.square(off) / count, 0.0))
    on_log = np.array([one.scale in _LOGARITHMIC for one in statistics])
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(on_log, np.log(np.maximum(1 + off / value, 1e-9)) * (value + off) / error, off / error)
    low, high = np.quantile(np.clip(np.nan_to_num(t), -_WIDEST, _WIDEST), [1 - _LEVEL, _LEVEL], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
