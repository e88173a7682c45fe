"""What a column is measured by when it is examined for leaks: values, targets, and the area under the ROC curve or R² of ranks."""

from typing import NamedTuple

import numpy as np
from scipy import special, stats

from loopwright.base.arrays import Array

BINS, WORDS, LEAST = 64, 20_000, 30

_SIGMAS, _FEW = 3.0, 3.0  # where n rows show no exception, up to 3 / n may be exceptions (Hanley & Lippman-Hand 1983)


class Values(NamedTuple):
    """A column [N], float64 or objects (texts), and where it is missing [N]."""

    array: Array
    missing: Array

    @property
    def is_text(self) -> bool:
        """Whether values are texts."""
        return bool(self.array.dtype == object)


class LeakTarget(NamedTuple):
    """A target of leak detection: a truth, bool [N]; or for numbers their ranks in [0, 1], float64 [N], and the numbers themselves."""

    name: str
    truth: Array
    raw: Array

    @property
    def is_class(self) -> bool:
        """Whether it is a class, and not a number."""
        return bool(self.truth.dtype == np.bool_)

    @property
    def rarer(self) -> int:
        """Rows of the rarer side; of numbers all."""
        return int(min(self.truth.sum(), (~self.truth).sum())) if self.is_class else len(self.truth)


def bins(part: Values) -> Array:
    """The bin of each row, int64 [N]: 0 for missing values."""
    if part.is_text:
        words, code, counts = np.unique(part.array.astype(str), return_inverse=True, return_counts=True)
        place = np.empty(len(words), dtype=np.int64)
        place[np.argsort(-counts, kind="stable")] = np.arange(len(words))
        bins = np.minimum(place[code], WORDS) + 1
    else:
        there = part.array[~part.missing]
        distinct, counts = np.unique(there, return_counts=True)
        if len(distinct) > BINS:  # of equal size, and one for each number that is there that often
            often = distinct[counts * BINS > counts.sum()]
            even = np.quantile(there, np.linspace(0, 1, BINS + 1)[:-1], method="lower")
            distinct = np.unique([*even, *often, *np.nextafter(often, np.inf)])
        bins = np.searchsorted(distinct, part.array, side="right") + 1
    return np.where(part.missing, 0, bins)


def ends(present: Array) -> list[float]:
    """Values that replace missing numbers when rows are ranked: below all others, or above them."""
    return [float(present.min()) - 1, float(present.max()) + 1] if len(present) else []


def other_half(bins: Array, truth: Array, half: Array) -> Array:
    """Mean truth of the other half's rows in the same bin, shrunk slightly to the mean of all, float64 [N]."""
    said = np.empty(len(bins))
    size = int(bins.max()) + 1 if len(bins) else 1
    for side in (half, ~half):
        other = ~side
        mean = truth[other].mean() if other.any() else 0.5
        count = np.bincount(bins[other], minlength=size)
        total = np.bincount(bins[other], weights=truth[other].astype(np.float64), minlength=size)
        said[side] = ((total + mean) / (count + 1))[bins[side]]
    return said


def measured(guess: Array, truth: Array) -> tuple[float, float]:
    """How well a guess [N] predicts a class or the ranks of numbers, and the lower end of the interval."""
    return area(guess, truth) if truth.dtype == np.bool_ else fit(guess, truth)


def area(score: Array, truth: Array) -> tuple[float, float]:
    """Area under the ROC curve, whichever way the score points, and the lower end of its interval."""
    yes, no = score[truth], score[~truth]
    ranks, n, m = stats.rankdata(score), len(yes), len(no)
    of_yes = (ranks[truth] - stats.rankdata(yes)) / m
    of_no = 1 - (ranks[~truth] - stats.rankdata(no)) / n
    found = float(of_yes.mean())
    error = float(np.sqrt(of_yes.var(ddof=1) / n + of_no.var(ddof=1) / m))
    found = max(found, 1 - found)
    low = 1.0
    if found < 1:  # on the scale of log odds, where the interval is even close to 1
        low = float(special.expit(special.logit(found) - _SIGMAS * error / (found * (1 - found))))
    return found, min(low, 1 - _FEW / min(n, m))


def fit(score: Array, ranks: Array) -> tuple[float, float]:
    """R² of ranks (squared correlation of the ranks), and the lower end of its interval."""
    if len(score) < LEAST or score.min() == score.max():
        return 0.0, 0.0
    r = abs(float(np.corrcoef(stats.rankdata(score), ranks)[0, 1]))
    low = float(np.tanh(np.arctanh(min(r, 1 - 1e-12)) - _SIGMAS / np.sqrt(len(score) - 3)))
    return r * r, min(max(low, 0.0) ** 2, 1 - _FEW / len(score))
