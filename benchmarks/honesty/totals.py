"""Sums over windows: how often the interval of a total has the truth where something moves all rows of a week."""

import numpy as np
from benchmarks.honesty.claims import Claim, Verdict

from loopwright.records.evaluation import added
from loopwright.tasks import metrics


def _weeks(count: int, shock: float) -> Claim:
    """Weeks of 500 rows; with a shock, in deviations of a row, that all rows of a week share."""

    def trial(rng: np.random.Generator) -> Verdict:
        weeks = [rng.normal(1, 5, 500) + shock * 5 * rng.normal() for _ in range(count)]
        found = added([metrics.total(week) for week in weeks])
        return Verdict(True, found.low <= 500 * count <= found.high)

    name = f"total of {count} weeks, {'weekly shocks' if shock else 'independent rows'}"
    return Claim(name, "the 95 % interval has the truth", trial, definite=1.0)


CLAIMS = [_weeks(2, 0.2), _weeks(8, 0.2), _weeks(8, 0.0), _weeks(30, 0.2)]
