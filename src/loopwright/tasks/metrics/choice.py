"""Choosing among many models that answered the same rows. docs/reference/statistics.md has the measured honesty.

Of many equal models some look better by chance, and the one that looks best looks better than it is. So

    p            of one comparison: the difference by the root of the sum of its squared parts by unit (a self-normalised sum: Efron
                 1969). The parts are those under "no difference", as in a randomisation test of signs (Romano 1990), whose tail this
                 bounds; that is what keeps a p-value of one in ten thousand right on a hundred rows
    adjusted     of all comparisons together: step-down over the maximum (Romano & Wolf 2005), which has the correlation of
                 the models' influences (Gaussian multipliers: Chernozhukov, Chetverikov & Kato 2013)
    confidence_set  the models among which the best is with 95 % (model confidence set: Hansen, Lunde & Nason 2011)
    winners_curse   by how much a figure is too good for having been chosen: figures within the confidence set are drawn to their mean as
                 far as chance explains their spread (empirical Bayes: Efron & Morris 1975; immune to selection: Efron 2011)
"""

from collections.abc import Sequence
from itertools import combinations
from statistics import NormalDist

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.records.evaluation import Z_95, Estimate, standard_error
from loopwright.records.package import Output
from loopwright.tasks.metrics.estimate import MIN_EVENTS, estimates, statistics_of, subtracted, unit_codes
from loopwright.tasks.metrics.nonnegative import between_variance
from loopwright.tasks.metrics.registry import metric
from loopwright.tasks.metrics.resample import Units
from loopwright.tasks.statistic import TINY, Statistic
from loopwright.tasks.task import Answered

FAMILY_WISE = 0.05
"""The chance that any of the comparisons of a choice is called better that is not."""

_DRAWS = 2000
_FIRST = 0.5  # standard errors: of 5 % in all about 4 % fall to the comparisons with the first model
_NORMAL = NormalDist()


class Contest:
    """K models on the same rows by one metric: `of` are their statistics, `higher` whether more is better."""

    def __init__(self, of: Sequence[Statistic], units: Units, *, higher: bool) -> None:
        self._of, self._units, self._sign = of, units, 1.0 if higher else -1.0
        self._sums = np.stack([units.sums(one.influence) for one in of])
        self._leverage = np.stack([units.sums(one.leverage) for one in of])

    def differences(self, pairs: Sequence[tuple[int, int]]) -> list[Estimate]:
        """Difference new minus old of each pair (new, old), on the same rows."""
        return estimates([subtracted(self._of[new], self._of[old]) for new, old in pairs], self._units)

    def p(self, new: int, old: int) -> float:
        """One-sided p-value of "`new` is not better than `old`", at most 0.5 where it looks better; 1 where it does not, or too few tell."""
        a, b = self._of[new], self._of[old]
        gain = self._sign * (a.value - b.value)
        if not gain > 0 or not self._tells(new, old):
            return 1.0
        leverage = (self._leverage[new] + self._leverage[old]) / 2
        parts = np.abs(self._sums[new] - self._sums[old] + (a.value - b.value) * leverage)
        parts = parts[parts > 1e-9 * parts.max()]
        step = float(parts.min())  # the sum moves by twice that; half a step corrects for it (continuity: Edwards 1948)
        far = (gain - min(step, gain)) / float(np.square(parts).sum()) ** 0.5
        return float(max(_NORMAL.cdf(-far), 0.5 ** len(parts)))

    def adjusted(self, pairs: Sequence[tuple[int, int]], first: int = 0) -> list[float]:
        """The p-values of pairs (new, old) together: all that are at most 5 % are better, with a chance of 5 % that any is not.

        Those with `first` as the old one come first: they get most of that chance, and leave it to the others when all of them are better.
        """
        own = np.array([self.p(*pair) for pair in pairs])
        head_start = np.array([_FIRST if old == first else 0.0 for _, old in pairs])
        far, noise = np.array([_z(p) for p in own]) + head_start, self._noise(pairs) + head_start
        order, largest, found = np.argsort(-far, kind="stable"), np.full(_DRAWS, -np.inf), np.ones(len(pairs))
        for i in reversed(order):  # each is compared with the largest of those that are left when better ones are taken
            largest = np.maximum(largest, noise[:, i])
            found[i] = max(own[i], (1 + np.count_nonzero(largest >= far[i])) / (1 + _DRAWS))
        found[order] = np.maximum.accumulate(found[order])
        return [float(p) for p in found]

    def confidence_set(self) -> list[int]:
        """The models among which the best is with 95 %; all that too few events tell."""
        left = [i for i in range(len(self._of)) if self._tells(i)]
        pairs = list(combinations(left, 2))
        noise = np.abs(self._noise(pairs))
        far = np.array([_z(self.p(*pair)) - _z(self.p(*pair[::-1])) for pair in pairs])
        while len(left) > 1:
            inside = [k for k, pair in enumerate(pairs) if set(pair) <= set(left)]
            worst = max(inside, key=lambda k: abs(far[k]))
            if (noise[:, inside].max(axis=1) >= abs(far[worst])).mean() > FAMILY_WISE:
                break
            left.remove(pairs[worst][int(far[worst] > 0)])
        return left

    def winners_curse(self, among: Sequence[int]) -> list[float]:
        """Selection correction of each of the models `among`: the expected change on other rows, never an improvement."""
        values, count = np.array([self._of[i].value for i in among]), len(among)
        if count < 2:
            return [0.0] * count
        sums = self._sums[list(among)]
        off = sums - sums.mean(axis=0)
        chance, spread = float(np.square(off).sum()) / (count - 1), float(values.var(ddof=1))
        kept, mean = max(0.0, 1 - chance / spread) if spread > 0 else 1.0, float(values.mean())
        return [self._sign * min(0.0, self._sign * (kept - 1) * (v - mean)) for v in values.tolist()]

    def _tells(self, *models: int) -> bool:
        """Whether there is enough to tell models apart by."""
        events = [0.0 if np.isnan(self._of[i].value) else self._of[i].events for i in models]
        return self._units.count > 1 and min(events) >= MIN_EVENTS

    def _noise(self, pairs: Sequence[tuple[int, int]]) -> Array:
        """What chance makes of the standardised difference of each pair [_DRAWS, pairs], with the correlation between them."""
        rng = np.random.default_rng([self._units.seed & 0xFFFFFFFF, len(self._of)])
        drawn = rng.standard_normal((_DRAWS, self._sums.shape[1])) @ self._sums.T
        found = np.zeros((_DRAWS, len(pairs)), dtype=np.float32)
        for k, (new, old) in enumerate(pairs):
            error = float(np.linalg.norm(self._sums[new] - self._sums[old]))
            if error > 0 and self._tells(new, old):
                found[:, k] = self._sign * (drawn[:, new] - drawn[:, old]) / error
        return found


def contest(
    name: str,
    truth: Array,
    answers: Sequence[Answered],
    *,
    seed: int,
    output: Output,
    groups: Array | None = None,
    units: Array | None = None,
    value: Value | None = None,
) -> Contest:
    """The models with these answers to the same N rows, by metric `name`; the rest as of `intervals`."""
    of = [statistics_of([name], truth, each, output, groups, value, None)[0] for each in answers]
    return Contest(of, Units(unit_codes(units, groups), len(truth), seed), higher=metric(name).higher)


def pooled(groups: Sequence[Estimate]) -> list[Estimate]:
    """Estimates of the same kind, of groups apart, drawn to their common mean as far as chance explains what differs between them.

    Empirical Bayes (Efron & Morris 1975), the variance between groups by Paule & Mandel (1982), intervals as Morris (1983): each has the
    expected value of its group whether or not it was chosen for being large.
    """
    if len(groups) < 3:
        return list(groups)
    values, variance = np.array([one.value for one in groups]), np.square([standard_error(one) for one in groups])
    variance = np.maximum(variance, TINY + 1e-6 * variance.mean())
    between = between_variance(values, variance)
    precision = 1 / (between + variance)
    mean = float(precision @ values / precision.sum())
    keeps = between * precision
    unsure = 2 * np.square((1 - keeps) * (values - mean)) / max(len(groups) - 3, 1)  # of how far chance explains
    spread = np.sqrt(keeps * variance + np.square(1 - keeps) / precision.sum() + unsure)
    return [
        Estimate(value, value - Z_95 * half, value + Z_95 * half, one.n, one.too_few)
        for one, value, half in zip(groups, (mean + keeps * (values - mean)).tolist(), spread.tolist(), strict=True)
    ]


def _z(p: float) -> float:
    return -_NORMAL.inv_cdf(min(max(p, 1e-300), 0.5))
