"""A claim about a number, measured by simulation: how often what is said holds, beside how often it says so."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Verdict(NamedTuple):
    """One trial: whether something definite was said, and whether it was true."""

    definite: bool
    true: bool


class Claim(NamedTuple):
    """What is claimed: a share of trials in which it holds or, if it `counts`, the mean of a number that trials give. A trial is drawn from a generator of its own seed; `least` and `most` bound the share that may be right.

    Counted as right are also trials in which nothing definite was said: that is what "too few to tell" is for. `definite`
    is the least share of the others.
    """

    name: str
    what: str
    trial: Callable[[np.random.Generator], Verdict | int]
    trials: int = 1000
    nominal: float = 0.95
    least: float = 0.93
    most: float = 1.0
    definite: float = 0.0
    counts: bool = False


class Measured(NamedTuple):
    """A claim with what came out: the share that was right or the mean, its standard error, the share in which something definite was said."""

    claim: Claim
    right: float
    error: float
    definite: float
    trials: int

    @property
    def honest(self) -> bool:
        """Whether the share is inside its bounds, within two standard errors."""
        inside = self.claim.least - 2 * self.error <= self.right <= self.claim.most + 2 * self.error
        return inside and self.definite >= self.claim.definite


def measure(claim: Claim, trials: int | None = None) -> Measured:
    """Run the trials of a claim, each with a seed of its own."""
    count = trials or claim.trials
    found = [claim.trial(np.random.default_rng([i, 20_261_130])) for i in range(count)]
    if claim.counts:
        numbers = np.array(found, dtype=np.float64)
        error = float(numbers.std(ddof=1)) / count**0.5 if count > 1 else 1.0
        return Measured(claim, float(numbers.mean()), max(error, 1 / count), 1.0, count)
    verdicts = [v for v in found if isinstance(v, Verdict)]
    right = sum(not v.definite or v.true for v in verdicts) / count
    share = (right * count + 1) / (count + 2)  # so that none of a few trials wrong is no certainty
    return Measured(claim, right, (share * (1 - share) / count) ** 0.5, sum(v.definite for v in verdicts) / count, count)
