"""Decay: the quality of a window against the promise of its package, and all windows since the release together.

drop   The window is worse than promised by the declared share or more, and an unchanged model would be so in a small share of windows
       only: of all windows of a year together in DECAY_SHARE of the alarms that are allowed. The error of the difference has three
       parts, each on the scale on which the metric's interval is made: that of the window and that of the promise, recovered from the
       better half of their intervals (Zou & Donner 2008, Statistics in Medicine 27:1693), and the shocks that all rows of a window
       share, twice, since the promise has one as well. Shocks are what successive windows with the same promise differ by beyond
       their rows (von Neumann 1941: a lasting change or a trend is none); half of the declared share until windows show it.
harm   The mean drop over all windows of the package reaches the share, and is surely more than its promise was too good: the lower
       limit of a confidence sequence for the mean drop is above the upper limit of the error of the promise (Podkopaev & Ramdas 2022,
       "Tracking the risk of a deployed model"). Windows are the unit, so rows may depend on each other within a window in any way. The
       sequence is that of the t-test with unknown variance and a normal prior (Lai 1976; Wang & Ramdas 2024, "Anytime-valid t-tests"):
       exact for normal means of windows, whichever metric, and valid at all times at once. So at most 5 % of unchanged packages are
       called harmful in their whole life.
"""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from statistics import NormalDist, fmean, median
from typing import NamedTuple

from loopwright.records.evaluation import Z_95, Estimate, standard_error
from loopwright.records.windows import DecayCheck, Harm, Quality
from loopwright.tasks import metrics

DECAY_SHARE = 0.1
"""Share of the alarms of a year that single windows may spend on decay."""

MAX_LEVEL = 0.025
# Until windows show how much they differ: by half of the declared drop, as if two windows had shown it.
_ASSUMED, _PRIOR_WINDOWS = 0.5, 2.0
_OUTLYING, _MEDIAN_OF_CHI2 = 3.0, 0.455
_YEAR = timedelta(days=365)
_ALWAYS = 0.05  # two-sided, of the confidence sequence
_PRECISION = 1.0  # of the prior of the mean drop, in deviations of a window


class Decay(NamedTuple):
    """When quality has decayed: `metric` is worse than promised by the share `by` of it or more (never when None), at `level`.

    `history` has the quality of earlier windows, oldest first.
    """

    metric: str
    by: float | None
    level: float = MAX_LEVEL
    history: Sequence[Quality] = ()


def decay_level(every: timedelta, alarms_per_year: float = 1.0) -> float:
    """The chance that one window may have of being called decayed by chance."""
    return min(MAX_LEVEL, DECAY_SHARE * alarms_per_year * (every / _YEAR))


def decay_check(
    now: Estimate, promised: Estimate, decay: Decay, windows: Sequence[DecayCheck] = (), own: Sequence[DecayCheck] = ()
) -> DecayCheck:
    """A window against its promise.

    Args:
        now: the metric in the window.
        promised: the metric in the evaluation of the package.
        decay: when quality has decayed.
        windows: checks of all rows of earlier windows; they show how much windows differ.
        own: checks of the same package in earlier windows, oldest first.
    """
    sign = 1 if metrics.metric(decay.metric).higher else -1
    unit, by = abs(promised.value) or 1.0, decay.by or 0.0
    drop = sign * (promised.value - now.value) / unit
    spread = _spread([check for check in windows if check.metric == decay.metric], by)
    before = next((c for c in reversed(own) if c.metric == decay.metric and c.promised == promised), None)
    harm = _harm(drop, before.since_release if before is not None else None)
    z = _deviations(now, promised, decay.metric, spread * unit)
    p = NormalDist().cdf(-z)
    optimism = math.hypot((promised.value - promised.low if sign > 0 else promised.high - promised.value) / unit, Z_95 * spread)
    surely_harmful = harm.low is not None and harm.low > optimism
    return DecayCheck(
        metric=decay.metric,
        now=now,
        promised=promised,
        drop=drop,
        p=p,
        level=decay.level,
        spread=spread,
        since_release=harm,
        cause="drop" if drop >= by and p < decay.level else "harm" if harm.mean >= by and surely_harmful else "",
    )


def _deviations(now: Estimate, promised: Estimate, name: str, shock: float) -> float:
    """How many standard errors `now` is worse than `promised`; `shock` is the deviation between windows, on the metric's own scale."""
    on_scale, slope = _scale(name, now, promised)
    if metrics.metric(name).higher:
        worse = on_scale(promised.value) - on_scale(now.value)
        halves = on_scale(now.high) - on_scale(now.value), on_scale(promised.value) - on_scale(promised.low)
    else:
        worse = on_scale(now.value) - on_scale(promised.value)
        halves = on_scale(now.value) - on_scale(now.low), on_scale(promised.high) - on_scale(promised.value)
    error = math.hypot(*(half / Z_95 for half in halves), math.sqrt(2) * shock * slope)
    return worse / error if error else math.copysign(math.inf, worse) if worse else 0.0


def _scale(name: str, now: Estimate, promised: Estimate) -> tuple[Callable[[float], float], float]:
    """The scale of a metric's interval (log odds of a share, logarithm of an error, else itself), and its slope at the promise."""
    about, ends = metrics.metric(name), (now.low, now.value, now.high, promised.low, promised.value, promised.high)
    value = promised.value
    if about.higher and about.best == 1.0 and all(0 < end < 1 for end in ends):
        return lambda share: math.log(share / (1 - share)), 1 / (value * (1 - value))
    if not about.higher and about.best == 0.0 and all(end > 0 for end in ends):
        return math.log, 1 / value
    return lambda plain: plain, 1.0


def _spread(checks: Sequence[DecayCheck], by: float) -> float:
    """Standard deviation of the drop between windows beyond what their rows explain, pooled with the half of `by` that is assumed."""
    pairs = [(one, next_) for one, next_ in pairwise(checks) if one.promised == next_.promised]
    if not pairs:
        return _ASSUMED * by
    squares = [(next_.drop - one.drop) ** 2 / 2 for one, next_ in pairs]
    between = min(fmean(squares), _OUTLYING * median(squares) / _MEDIAN_OF_CHI2)  # one lasting drop is no shock
    of_rows = fmean((standard_error(c.now) / (abs(c.promised.value) or 1.0)) ** 2 for c in checks)
    freedom = len(pairs) * 2 / 3  # of a mean square of successive differences
    return math.sqrt(
        (_PRIOR_WINDOWS * (_ASSUMED * by) ** 2 + freedom * max(0.0, between - of_rows)) / (_PRIOR_WINDOWS + freedom)
    )


def _harm(drop: float, before: Harm | None) -> Harm:
    """The mean drop with one window more (Welford 1962)."""
    windows, mean, squares = (before.windows, before.mean, before.squares) if before is not None else (0, 0.0, 0.0)
    windows, off = windows + 1, drop - mean
    mean += off / windows
    squares += off * (drop - mean)
    half = _always_half(windows, squares)
    return Harm(
        windows=windows,
        mean=mean,
        squares=squares,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
    )


def _always_half(windows: int, squares: float) -> float | None:
    """Half the width of the confidence sequence: the means under which the Bayes factor of the t-test is below 1 / alpha; None: all are."""
    weight = windows / (windows + _PRECISION)
    factor = (math.sqrt((windows + _PRECISION) / _PRECISION) / _ALWAYS) ** (2 / windows)
    left = factor * weight - (factor - 1)
    return math.sqrt(squares / windows * (factor - 1) / left) if left > 0 else None
