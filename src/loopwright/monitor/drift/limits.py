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
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.special import stdtrit

from loopwright.base.arrays import Array
from loopwright.monitor.drift.measures import Cuts, Measured, measure, natural, share_of

LEAST_WINDOWS = 3.0
ASSUMED_SPREAD = 0.05
"""Standard deviation of shares from window to window, on the arcsine scale, where no history tells it: 10 % become 7 to 13 %."""

MANY = 1e6
WATCH = 10.0
"""A column is watched from limits that are reached so many times as often."""


class Usual(msgspec.Struct, frozen=True, kw_only=True):
    """A measure over the windows of a history, on its scale of comparison.

    `variance` between windows, `sampling` the mean variance by the sampling of rows, `windows` how many independent ones
    they are worth; `step` the mean square of the difference of neighbours, over `steps` of them; `last` the newest value.
    """

    center: float
    variance: float
    sampling: float
    windows: float
    step: float
    steps: int
    last: float


class Judged(NamedTuple):
    """How far a measure moved: `moved` 1 is the limit, `watched` whether the limit to watch is reached; the usual `low` to `high`."""

    moved: float
    watched: bool
    low: float
    high: float


def usual(found: Sequence[Measured], at: Array) -> Usual:
    """The usual values of a measure from its windows, oldest first, `at` [N] the number of each window in time (ascending)."""
    values = np.array([m.value for m in found])
    moved = values - values.mean()
    square = float((moved**2).mean())
    next_to = np.flatnonzero(np.diff(at) == 1)
    steps = values[next_to + 1] - values[next_to]
    m, together = len(values), 0.0
    if square > 0 and len(next_to):
        together = float((moved[next_to] * moved[next_to + 1]).mean()) / square
        together = min(max(together + (1 + 3 * together) / m, 0.0), 0.99)  # Kendall's correction (1954)
    windows = m**2 / float((together ** np.abs(at[:, None] - at[None, :])).sum())
    return Usual(
        center=float(values.mean()),
        variance=square / max(1 - 1 / windows, 0.01) if windows > 1 else math.inf,
        sampling=float(np.mean([f.variance for f in found])),
        windows=windows,
        step=float((steps**2).mean()) if len(steps) else math.inf,
        steps=len(steps),
        last=float(values[-1]),
    )


def pooled(found: dict[str, Usual]) -> dict[str, Usual]:
    """Categories of one column: none is taken to be steadier than they all are on average, for its sampling."""
    ratio = max(1.0, float(np.mean([u.variance / u.sampling for u in found.values()]))) if found else 1.0
    return {n: msgspec.structs.replace(u, variance=max(u.variance, ratio * u.sampling)) for n, u in found.items()}


def assumed_share(count: int, rows: int) -> Usual:
    """The usual values of a share of which no history is known, only `count` of `rows`: windows are taken to vary by ASSUMED_SPREAD."""
    here = share_of(count, rows)
    variance = here.variance + ASSUMED_SPREAD**2
    return Usual(
        center=here.value, variance=variance, sampling=here.variance, windows=MANY, step=math.inf, steps=0, last=here.value
    )


def judged(name: str, now: Measured, before: Usual, cuts: Cuts, alpha: float, last: float | None, gap: float) -> Judged:
    """Judge a measure, each limit two-sided at `alpha`; `last` is the newest usual value (None: of the history), `gap` windows ago."""
    more = max(0.0, now.variance - before.sampling)
    last = before.last if last is None else last
    level = step = 0.0
    low, high = -math.inf, math.inf
    watched = False
    if before.windows >= LEAST_WINDOWS:
        spread = math.sqrt((max(before.variance, before.sampling) + more) * (1 + 1 / before.windows))
        degrees = before.windows - 1
        if name.startswith("category:"):
            degrees *= 2  # the spread is that of several categories together
        half = spread * _t(degrees, alpha)
        low, high = before.center - half, before.center + half
        level = _ratio(name, now.value, before.center, half, cuts)
        watched = _ratio(name, now.value, before.center, spread * _t(degrees, WATCH * alpha), cuts) >= 1
    if before.steps >= LEAST_WINDOWS:
        # Differences of independent windows overlap, so that three tell as much as two.
        degrees = before.steps * 2 / 3
        spread = math.sqrt((max(before.step, 2 * before.sampling) + more) * max(gap, 1.0))
        half = spread * _t(degrees, alpha)
        if step_beyond := _ratio(name, now.value, last, half, cuts):
            step = step_beyond
        if level < 1 <= step or low == -math.inf:
            low, high = last - half, last + half
        watched |= _ratio(name, now.value, last, spread * _t(degrees, WATCH * alpha), cuts) >= 1
    return Judged(max(level, step), watched, low, high)


def _ratio(name: str, now: float, center: float, half: float, cuts: Cuts) -> float:
    """The difference as a multiple of the limit, or of the least difference that matters where that is larger."""
    kind = measure(name)
    unit = 1.0 if kind.share else cuts.deviation
    difference = abs(natural(name, now, cuts) - natural(name, center, cuts)) / unit
    return min(abs(now - center) / half, difference / kind.floor)


def _t(degrees: float, alpha: float) -> float:
    return float(stdtrit(degrees, 1 - min(alpha, 0.5) / 2))
