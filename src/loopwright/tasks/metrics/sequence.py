"""Intervals of a difference between two arms that may be looked at at any time, as often as one likes.

Arms answer different rows at the same time. A confidence sequence holds at all looks together with probability 1 - `alpha`, so a
release may be judged every minute and stopped at the first certain look.

Means, shares and metrics with influences: the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024,
"Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52), which is the normal mixture of
Robbins (1970): so many standard errors as `mixture_deviations` says. Standard errors are over units, and at least that of both arms pooled. It needs enough units and
events that the sum is normal (MIN_UNITS, MIN_EVENTS in each arm); before that there is none.

Shares of rare events: the exact sequence of a Bernoulli mean by a mixture of binomials under a Beta(1/2, 1/2) prior (Robbins 1970;
Howard, Ramdas, McAuliffe & Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49), at
`alpha` / 2 in each arm; the difference is that of their ends. With several rows a unit the counts shrink by the design effect (Kish 1965).

Of very many rows those of a sample of the units are looked at: one of 2^h, more halvings h as the rows grow (`halvings_of`). The units of one h
are a growing sample like any other, so its sequence holds at its level; the levels of all h add up to `alpha` (`level_of`), and whichever h
a look uses, the sequences hold at all looks together.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from loopwright.base.arrays import Array
from loopwright.tasks.metrics.estimate import subtracted
from loopwright.tasks.metrics.resample import Units, spread
from loopwright.tasks.statistic import Statistic

MIN_UNITS = 100
"""With fewer units in an arm the sums are not taken for normal."""

MIN_EVENTS = 30
"""With fewer events (positives of a recall, rows that outweigh the others of a mean) neither."""

SAMPLED_ALPHA = 0.1
"""The part of a sequence's level that is kept for looks at a sample of the units."""

_BISECTIONS = 60


def halvings_of(rows: float, most: int) -> int:
    """How often the units are halved so that at most so many rows are left, of `rows`."""
    return max(0, math.ceil(math.log2(rows / most))) if rows else 0


def level_of(alpha: float, halvings: int) -> float:
    """The level of looks at one of 2^`halvings` units; those of all halvings add up to `alpha`."""
    return alpha * (1 - SAMPLED_ALPHA) if not halvings else alpha * SAMPLED_ALPHA / 2**halvings


class ArmDifference(NamedTuple):
    """A metric of the new arm, of the old one, and their difference (new less old) with its confidence sequence.

    `error` is the standard error of the difference. `low` and `high` are infinite where nothing can be said yet.
    """

    new: float
    old: float
    low: float
    high: float
    error: float

    @property
    def value(self) -> float:
        """The estimate of the difference."""
        return self.new - self.old

    @property
    def known(self) -> bool:
        """Whether anything can be said."""
        return math.isfinite(self.low) or math.isfinite(self.high)


def mixture_deviations(units: float, planned: float, alpha: float) -> float:
    """Half the width of a two-sided asymptotic confidence sequence after so many units, in standard errors; narrowest at about `planned`."""
    rho = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / planned
    return math.sqrt((1 + 1 / (units * rho)) * math.log((units * rho + 1) / alpha**2))


def arm_difference(
    new: Statistic, new_units: Units, old: Statistic, old_units: Units, *, alpha: float, planned: float
) -> ArmDifference:
    """The difference of one metric between two arms of different rows, by its influences; `planned` is the number of units of both arms."""
    errors = [
        spread(units.sums(one.influence), units.sums(one.leverage)).error for one, units in ((new, new_units), (old, old_units))
    ]
    counts = new_units.count, old_units.count
    # A small arm beside a large one, such as a hold-back, hardly knows its own error: one that is right by chance looks sure of it.
    pooled = sum(each**2 * count**2 for each, count in zip(errors, counts, strict=True)) / max(sum(counts), 1)
    error = max(math.hypot(*errors), math.sqrt(pooled * sum(1 / max(count, 1) for count in counts)))
    enough = min(counts) >= MIN_UNITS and min(new.events, old.events) >= MIN_EVENTS
    if not enough or not math.isfinite(new.value - old.value) or not error:
        return ArmDifference(new.value, old.value, -math.inf, math.inf, error)
    half = mixture_deviations(sum(counts), planned, alpha) * error
    value = new.value - old.value
    return ArmDifference(new.value, old.value, value - half, value + half, error)


def paired_difference(new: Statistic, old: Statistic, units: Units, *, alpha: float, planned: float) -> ArmDifference:
    """The difference of one metric of two packages on the same rows, by the differences of their influences; as `arm_difference` otherwise."""
    both = subtracted(new, old)
    error = spread(units.sums(both.influence), units.sums(both.leverage)).error
    if units.count < MIN_UNITS or both.events < MIN_EVENTS or not math.isfinite(both.value):
        return ArmDifference(new.value, old.value, -math.inf, math.inf, error)
    half = mixture_deviations(units.count, planned, alpha) * error
    return ArmDifference(new.value, old.value, both.value - half, both.value + half, error)


class Share(NamedTuple):
    """How many of `of` rows were hit; both shrunk by the design effect where units have several rows."""

    hits: float
    of: float

    @property
    def value(self) -> float:
        """The share."""
        return self.hits / self.of if self.of else math.nan


class UnitSums(NamedTuple):
    """What the share of hit rows and its error need of an arm: rows, units, hits, and over units the sums of rows^2, hits * rows and hits^2."""

    rows: float
    units: float
    hits: float
    squared_rows: float
    hits_rows: float
    squared_hits: float


def unit_sums(hits: Array, units: Array) -> UnitSums:
    """The sums of rows [N] that are hit (bool), by their unit [N]."""
    _, code = np.unique(units, return_inverse=True)
    rows, hit = np.bincount(code).astype(np.float64), np.bincount(code, weights=hits)
    return UnitSums(len(hits), len(rows), float(hit.sum()), *(float(a @ b) for a, b in ((rows, rows), (hit, rows), (hit, hit))))


def share_of(sums: UnitSums) -> Share:
    """The share of rows that are hit, with the number of independent rows that it is worth."""
    if sums.units == sums.rows or not 0 < sums.hits < sums.rows:
        return Share(sums.hits, sums.rows)
    value = sums.hits / sums.rows
    squares = sums.squared_hits - 2 * value * sums.hits_rows + value**2 * sums.squared_rows
    variance = squares / sums.rows**2 * (sums.units - 1) / sums.units
    effect = max(1.0, variance / (value * (1 - value) / sums.rows))
    return Share(sums.hits / effect, sums.rows / effect)


def share_difference(new: Share, old: Share, *, alpha: float) -> ArmDifference:
    """The difference of two shares of rare events; exact at any number of rows."""
    if not new.of or not old.of:
        return ArmDifference(new.value, old.value, -math.inf, math.inf, math.inf)
    ends = [(share_end(one, alpha / 2, upper=False), share_end(one, alpha / 2, upper=True)) for one in (new, old)]
    error = math.hypot(*(math.sqrt((one.hits + 0.5) * (one.of - one.hits + 0.5) / (one.of + 1) ** 3) for one in (new, old)))
    return ArmDifference(new.value, old.value, ends[0][0] - ends[1][1], ends[0][1] - ends[1][0], error)


def share_end(share: Share, alpha: float, *, upper: bool) -> float:
    """An end of the exact two-sided confidence sequence of a share: where the mixture is 1 / `alpha` times as likely as the share."""
    a, b = share.hits + 0.5, share.of - share.hits + 0.5
    mixture = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) - math.lgamma(0.5) * 2

    def excess(p: float) -> float:
        likelihood = (share.hits * math.log(p) if share.hits else 0.0) + (
            (share.of - share.hits) * math.log1p(-p) if share.of > share.hits else 0.0
        )
        return mixture - likelihood + math.log(alpha)

    if upper:
        return 1.0 if share.hits == share.of else _root(excess, share.value, 1 - 1e-12)
    return 0.0 if not share.hits else _root(excess, share.value, 1e-12)


def _root(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """The border between `inside`, where `excess` is not positive, and `outside`."""
    inside = min(max(inside, 1e-12), 1 - 1e-12)
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if excess(middle) > 0:
            outside = middle
        else:
            inside = middle
    return outside
