"""The effect of an experiment at a fixed end: the difference of a metric between two arms of different units, with interval and p.

A metric is its value and the influence of each row, so that one code serves all. Influences are added up by unit, which is the delta method
for ratios of clustered rows (Deng, Knoblich & Lu 2018, "Applying the delta method in metric analytics", KDD): of a mean of rows per unit
the influence of a unit is (sum - value * rows) / all rows. Arms are independent; the t interval has Satterthwaite's degrees of freedom.

CUPED (Deng, Xu, Kohavi & Walker 2013, "Improving the sensitivity of online controlled experiments by utilizing pre-experiment data", WSDM):
a number of each unit that the arm cannot have changed, such as its share in the same metric before the release, explains a part of the
influences; that part is taken off both arms. Without correlation nothing changes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from loopwright.base.arrays import Array
from loopwright.records.evaluation import Z_95, t_95
from loopwright.tasks.metrics.sequence import MIN_EVENTS, MIN_UNITS
from loopwright.tasks.statistic import Statistic

POWER_Z = 0.8416
"""One-sided, 80 %."""


class ArmUnits(NamedTuple):
    """A metric of one arm: its value, and over its U units the influences (they add up to 0) and, if there is one, the covariate [U]."""

    value: float
    influence: Array
    events: float
    covariate: Array | None = None


class FixedEffect(NamedTuple):
    """New less old with its 95 % interval at a fixed end, and p of no difference; NaN and 1 where too few units or events tell."""

    value: float
    low: float
    high: float
    p: float
    error: float


def arm_units(statistic: Statistic, units: Array | None, covariate: Array | None = None) -> ArmUnits:
    """Add up the influences of rows [N] by unit, a number from 0 for each row (None: each row is one)."""
    influence = statistic.influence if units is None else np.bincount(units, weights=statistic.influence)
    return ArmUnits(statistic.value, influence, statistic.events, covariate)


def fixed_effect(new: ArmUnits, old: ArmUnits) -> FixedEffect:
    """The difference between two arms."""
    value = new.value - old.value
    counts = len(new.influence), len(old.influence)
    variances = [float(np.square(arm.influence).sum()) * n / max(n - 1, 1) for arm, n in zip((new, old), counts, strict=True)]
    error = math.sqrt(sum(variances))
    if min(counts) < MIN_UNITS or min(new.events, old.events) < MIN_EVENTS or not math.isfinite(value) or not error:
        return FixedEffect(value, math.nan, math.nan, 1.0, error)
    freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, counts, strict=True))
    half = t_95(freedom) * error
    return FixedEffect(value, value - half, value + half, float(2 * stdtr(freedom, -abs(value) / error)), error)


def adjusted(new: ArmUnits, old: ArmUnits) -> tuple[ArmUnits, ArmUnits, float]:
    """Both arms with what their covariate explains taken off, and the share of the variance that went with it."""
    if new.covariate is None or old.covariate is None:
        return new, old, 0.0
    centred = [arm.covariate - arm.covariate.mean() for arm in (new, old) if arm.covariate is not None]
    scaled = [arm.influence * len(arm.influence) for arm in (new, old)]
    squares = sum(float(x @ x) for x in centred)
    if not squares:
        return new, old, 0.0
    slope = sum(float(x @ y) for x, y in zip(centred, scaled, strict=True)) / squares
    of_new, of_old = (
        arm._replace(value=arm.value - slope * float((arm.covariate - x).mean()), influence=(y - slope * x) / len(y))
        for arm, x, y in zip((new, old), centred, scaled, strict=True)
    )
    before, after = (sum(float(np.square(arm.influence).sum()) for arm in pair) for pair in ((new, old), (of_new, of_old)))
    return of_new, of_old, 1 - after / before if before else 0.0


def holm_adjusted(p: Sequence[float]) -> list[float]:
    """P values of several comparisons, each so large that all below a level together are wrong with at most that chance (Holm 1979)."""
    found, largest = [1.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, p[i] * (len(p) - rank)))
        found[i] = largest
    return found


def uneven_p(new: int, old: int, due: float) -> float:
    """The chance of arms at least as uneven as `new` beside `old` units where a share `due` of both is new's (sample ratio mismatch).

    The chi-squared test; Fabijan et al. 2019, "Diagnosing sample ratio mismatch in online controlled experiments", KDD.
    """
    of = new + old
    return math.erfc(abs(new - due * of) / math.sqrt(2 * of * due * (1 - due))) if of and 0 < due < 1 else 1.0


def units_needed(error: float, units: int, effect: float) -> int | None:
    """Units in each arm for an effect to be seen in 80 % of experiments with a fixed end; `error` is that of a difference at `units` in each."""
    if not units or not math.isfinite(error) or not error or not effect:
        return None
    return max(MIN_UNITS, math.ceil(units * ((Z_95 + POWER_Z) * error / effect) ** 2))


def smallest_effect(error: float, units: int, of: float) -> float:
    """The smallest effect that is seen in 80 % of experiments with `of` units in each arm."""
    return (Z_95 + POWER_Z) * error * math.sqrt(units / of) if of > 0 else math.inf
