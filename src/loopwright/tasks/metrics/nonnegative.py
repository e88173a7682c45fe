"""Quantities that cannot be below zero: calibration error, gaps between groups, size of a bias.

Chance alone makes each of them larger, so the raw value is too large and an interval around it does not contain the truth. The variance
of the parts is taken off the squares: of calibration as Kumar, Liang & Ma (2019) do, between groups as Lum, Zhang & Bower (2022) do, whose
groups are pooled partially (an empirical Bayes estimate that keeps the spread: Louis 1984), so that a small group counts as far as its
rows can tell. The interval has the values under which what was measured is not among the most extreme 5 % (inversion of a parametric
bootstrap test: Davison & Hinkley 1997, chapter 5), so it begins at 0 where chance explains all.
"""

from typing import NamedTuple

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.evaluation import Estimate
from loopwright.tasks.metrics.resample import FEW_UNITS, RESAMPLES, Units
from loopwright.tasks.statistic import TINY, Parts

_PRIOR = 10.0
"""The variance of a part is pooled with that of all parts, which counts as so many rows: three rows that agree have none of their own."""

_STEPS = 20


def shrunk(parts: Parts, units: Units) -> float:
    """The value without what chance adds."""
    if float(_size(parts.kind, parts.value)) < TINY:
        return 0.0
    variance = np.maximum(_variances(parts, units), TINY * float(np.square(parts.value).max()))
    return _without_chance(parts, variance).value


def nonnegative(parts: Parts, units: Units, half: float) -> Estimate:
    """The value without what chance adds, and its interval; `half` is half the width that it has where all parts are far from 0.

    It reaches at least so far above the middle of the raw value and this: which parts are 0 is not known, and chance adds less to others.
    """
    variance = _variances(parts, units)
    rng = np.random.default_rng([units.seed & 0xFFFFFFFF, len(parts.value)])
    noise = rng.standard_normal((RESAMPLES, len(parts.value)))
    if 1 < units.count < FEW_UNITS:
        noise *= np.sqrt((units.count - 1) / rng.chisquare(units.count - 1, (RESAMPLES, 1)))
    value, low, high = _interval(parts, variance, noise, half)
    return Estimate(value, low, high, units.rows, units.count < 2)


def _interval(parts: Parts, variance: Array, noise: Array, half: float) -> tuple[float, float, float]:
    if float(_size(parts.kind, parts.value)) < TINY:  # nothing differs, not even by chance
        return 0.0, 0.0, 0.0 if np.isnan(half) else half
    variance = np.maximum(variance, TINY * float(np.square(parts.value).max()))
    corrected = _without_chance(parts, variance)
    low, high = _inverted(parts.kind, corrected, noise * np.sqrt(variance))
    return corrected.value, min(low, corrected.value), max(high, (corrected.value + corrected.raw) / 2 + half)


class _Shrunk(NamedTuple):
    """`value` without what chance adds and `raw` with it; the parts [B] as `measured`, scaled to a value of 1, and their weights."""

    value: float
    raw: float
    measured: Array
    direction: Array
    factor: Array


def _variances(parts: Parts, units: Units) -> Array:
    """The variance of each part [B] by units, pooled a little with that of all parts."""
    code, influence, count = parts.code, parts.influence, len(parts.value)
    inside = code >= 0
    if units.code is None:
        own = np.bincount(code[inside], weights=np.square(influence[inside]), minlength=count)
    else:
        of_units = np.repeat(units.code, len(code) // units.rows)
        pair, place = np.unique(of_units[inside] * count + code[inside], return_inverse=True)
        sums = np.bincount(place, weights=influence[inside])
        own = np.bincount(pair % count, weights=np.square(sums), minlength=count)
    if not np.isfinite(parts.rows).all():
        return np.asarray(own)
    scale = parts.rows if parts.kind == "range" else np.full(count, parts.rows.sum())
    squares = np.bincount(code[inside], weights=np.square(influence[inside] * scale[code[inside]]), minlength=count)
    effect = float((own * scale**2).sum() / squares.sum()) if squares.any() else 1.0
    pooled = effect * squares.sum() / parts.rows.sum() * parts.rows / scale**2
    unbiased = own * parts.rows / np.maximum(parts.rows - 1, 1)
    return np.asarray((parts.rows * unbiased + _PRIOR * pooled) / (parts.rows + _PRIOR))


def _without_chance(parts: Parts, variance: Array) -> _Shrunk:
    measured = parts.value
    if parts.kind == "range":
        between = between_variance(measured, variance)
        precision = 1 / (between + variance)
        measured = measured - float(precision @ measured / precision.sum())
        factor = np.sqrt(precision)
        kept = factor * measured
        value = between**0.5 * float(np.ptp(kept))
        return _Shrunk(value, value, measured, kept / np.ptp(kept), factor)
    share = parts.rows / parts.rows.sum() if np.isfinite(parts.rows).all() else np.ones(len(measured))
    squares = float((np.square(measured) / share).sum())
    left = max(0.0, 1 - float((variance / share).sum()) / squares) if squares > 0 else 0.0
    raw = float(np.abs(measured).sum())
    return _Shrunk(left**0.5 * raw, raw, measured, measured / raw, np.ones(len(measured)))


def between_variance(rates: Array, variance: Array) -> float:
    """The variance of true rates between groups, by Paule & Mandel (1982); 0 where chance explains their differences."""

    def excess(between: float) -> float:
        precision = 1 / (between + variance)
        middle = float(precision @ rates / precision.sum())
        return float(precision @ np.square(rates - middle)) - (len(rates) - 1)

    low, high = 0.0, float(np.ptp(rates)) ** 2
    if excess(low) <= 0:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def _size(kind: str, parts: Array) -> Array:
    return np.asarray(np.ptp(parts, axis=-1) if kind == "range" else np.abs(parts).sum(axis=-1))


def _inverted(kind: str, corrected: _Shrunk, noise: Array) -> tuple[float, float]:
    """Values for which the measurement lies inside the middle 95 % of the draws."""
    seen = float(_size(kind, corrected.factor * corrected.measured))

    def below(value: float) -> float:
        return float((_size(kind, corrected.factor * (value * corrected.direction + noise)) <= seen).mean())

    most = 2 * float(_size(kind, corrected.measured)) + 10 * float(np.sqrt(np.square(noise).mean(axis=0)).max()) + 1e-12

    def border(share: float) -> float:
        if below(0.0) <= share:
            return 0.0
        low, high = 0.0, most
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) > share else (low, middle)
        return (low + high) / 2

    return border(0.975), border(0.025)
