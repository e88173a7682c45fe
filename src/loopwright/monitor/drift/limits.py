"""From where a measure counts as moved: prediction limits for one more window, from the windows of the training history.

Rows are not independent: those of a week share the week's weather, so weeks differ by more than their rows explain, and
limits for independent rows raise alarms all year. So the spread is that *between windows*. Two limits:

- *level*: the new window against the mean of the history. Where windows follow each other closely (a season), m of them
  tell as much as fewer independent ones (first-order autocorrelation; Bartlett 1935, Priestley 1981, 5.3). With fewer than
  LEAST_WINDOWS of these the level is not judged: from a spring nobody knows the summer.
- *step*: the new window against the last one that was as usual, by the differences between neighbouring windows of the
  history. A slow season passes, a sensor that changes its unit does not.

Both are t prediction intervals (Hahn and Meeker 1991, 4.7). The spread is never taken to be smaller than the sampling of
rows makes it. Assumes that the measure is near normal from window to window.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.special import stdtrit

from loopwright.base.arrays import Array
from loopwright.monitor.drift.measures import MEASURES, Cuts, MeasureValue, measure, natural, share_of

LEAST_WINDOWS = 3.0
PRIOR = 4.0
"""Weight of the assumed spread of a measure, in windows."""

FEW = 8
"""Up to so many windows autocorrelation counts only above its standard error: a chance likeness of a few is no season."""

TINY = 1e-9
"""Half a limit is no narrower, so that a difference can be divided by it."""

MANY = 1e6
"""So many windows stand for a variance that is assumed and not estimated."""

WATCH = 10.0
"""A column is watched from limits that are reached so many times as often."""


class Variation(msgspec.Struct, frozen=True, kw_only=True):
    """A measure over the windows of a history, on its scale of comparison.

    `variance` between windows, `sampling` the mean variance by the sampling of rows, `windows` how many independent ones
    they are worth; `step` the mean square of the difference of neighbours, over `steps` of them (0: none); `last` the newest value.
    """

    center: float
    variance: float
    sampling: float
    windows: float
    step: float
    steps: int
    last: float


class Movement(NamedTuple):
    """How far a measure moved: `moved` 1 is the limit, `watched` whether the limit to watch is reached; the usual `low` to `high`."""

    moved: float
    watched: bool
    low: float
    high: float


def variation_of(readings: Sequence[MeasureValue], at: Array) -> Variation:
    """The variation of a measure over its windows, oldest first, `at` [N] the number of each window in time (ascending)."""
    values = np.array([m.value for m in readings])
    moved = values - values.mean()
    square = float((moved**2).mean())
    next_to = np.flatnonzero(np.diff(at) == 1)
    steps = values[next_to + 1] - values[next_to]
    m, correlation = len(values), 0.0
    if square > 0 and len(next_to):
        correlation = float((moved[next_to] * moved[next_to + 1]).mean()) / square
        correlation = min(correlation + (1 + 3 * correlation) / m, 0.99)  # Kendall's correction (1954)
        error = math.sqrt(max(1 - correlation**2, 0.0) / m)
        correlation = max(0.0, correlation - min(1.0, FEW / m) * error)
    windows = m**2 / float((correlation ** np.abs(at[:, None] - at[None, :])).sum())
    return Variation(
        center=float(values.mean()),
        variance=square / max(1 - 1 / windows, 0.01),
        sampling=float(np.mean([f.variance for f in readings])),
        windows=windows,
        step=float((steps**2).mean()) if len(steps) else 0.0,
        steps=len(steps),
        last=float(values[-1]),
    )


def pooled(each: dict[str, Variation]) -> dict[str, Variation]:
    """Categories of one column: none is taken to be steadier than they all are on average, for its sampling."""
    ratio = max(1.0, float(np.mean([u.variance / u.sampling for u in each.values()]))) if each else 1.0
    return {n: msgspec.structs.replace(u, variance=max(u.variance, ratio * u.sampling)) for n, u in each.items()}


def assumed_share(count: int, rows: int) -> Variation:
    """The variation of a share without a history, by `count` of `rows` of the reference and the spread that is assumed."""
    here = share_of(count, rows)
    variance = here.variance + MEASURES["nulls"].spread ** 2
    return Variation(
        center=here.value, variance=variance, sampling=here.variance, windows=MANY, step=0.0, steps=0, last=here.value
    )


def judged(
    name: str, now: MeasureValue, before: Variation, cuts: Cuts, alpha: float, last: float | None = None, gap: float = 1.0
) -> Movement:
    """Judge a measure, each limit two-sided at `alpha`; `last` is the newest usual value (None: of the history), `gap` windows ago."""
    more = max(0.0, now.variance - before.sampling)
    last = before.last if last is None else last
    level = step = level_watch = step_watch = 0.0
    low, high = -math.inf, math.inf
    if before.windows >= LEAST_WINDOWS:
        wider = 1 + 1 / before.windows
        # The spread of a category is that of several together.
        degrees = (before.windows - 1) * (2 if name.startswith("category:") else 1)
        half, near = (
            _half(name, max(before.variance, before.sampling), more, degrees, wider, a) for a in (alpha, WATCH * alpha)
        )
        low, high = before.center - half, before.center + half
        level, level_watch = (_ratio(name, now.value, before.center, h, cuts) for h in (half, near))
    if before.steps >= LEAST_WINDOWS:
        # Differences of independent windows overlap, so that three tell as much as two.
        square, degrees = max(before.step, 2 * before.sampling) / 2, before.steps * 2 / 3
        half, near = (_half(name, square, more / 2, degrees, 2 * max(gap, 1.0), a) for a in (alpha, WATCH * alpha))
        step, step_watch = (_ratio(name, now.value, last, h, cuts) for h in (half, near))
        if level < 1 <= step or low == -math.inf:
            low, high = last - half, last + half
    return Movement(max(level, step), max(level_watch, step_watch) >= 1, low, high)


def _half(name: str, variance: float, more: float, degrees: float, wider: float, alpha: float) -> float:
    """Half the width of a prediction interval: `variance` of one window on so many degrees of freedom, `more` of the new one.

    Where few windows tell the variance, Student's t is wide enough to hide anything. So it is also estimated together with what
    the measure is assumed to vary by, as if PRIOR windows had told that (Smyth 2004), and the narrower interval counts.
    """
    pooled_variance = (PRIOR * measure(name).spread ** 2 + degrees * variance) / (PRIOR + degrees)
    return min(
        math.sqrt((variance + more) * wider) * _t(degrees, alpha),
        math.sqrt((max(pooled_variance, variance / 4) + more) * wider) * _t(PRIOR + degrees, alpha),
    )


def _ratio(name: str, now: float, center: float, half: float, cuts: Cuts) -> float:
    """The difference as a multiple of the limit, or of the least difference that matters where that is larger."""
    kind = measure(name)
    unit = 1.0 if kind.share else cuts.deviation
    difference = abs(natural(name, now, cuts) - natural(name, center, cuts)) / unit
    return min(abs(now - center) / max(half, TINY), difference / kind.floor)


@lru_cache(maxsize=1024)
def _t(degrees: float, alpha: float) -> float:
    return float(stdtrit(degrees, 1 - min(alpha, 0.5) / 2))
