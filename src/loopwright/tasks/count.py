"""Count: the label is how often something happened (0, 1, 2 ...), predicted is its mean (Cameron and Trivedi 2013, ISBN 978-1107667273)."""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.tasks.regression import DRAFT, kinds, money, summarise
from loopwright.tasks.regression import METRICS as OF_NUMBERS
from loopwright.tasks.rows import TINY, gaps, ratio
from loopwright.tasks.task import MONEY, LabelQuery, LabelSummary, Metric, RowData, TaskType, gap_metric

METRICS = {
    "poisson_deviance": Metric(
        False, 0.0, "mean Poisson deviance, twice the loss in log likelihood (McCullagh and Nelder 1989)"
    ),
    "d2": Metric(True, 1.0, "share of the Poisson deviance explained (Hastie, Tibshirani and Wainwright 2015)"),
    "mae": OF_NUMBERS["mae"],
    "mean_error": OF_NUMBERS["mean_error"],
    "calibration_ratio": Metric(True, None, "sum of the predictions by the sum of the truth; 1 is right on the whole"),
    "value_per_prediction": MONEY,
}
GAPS = {
    "mae_gap": gap_metric("mean absolute error", "mae"),
    "calibration_ratio_gap": gap_metric("calibration ratio", "calibration_ratio"),
}


class Counts:
    """`truth` [N] of 0 or more and score [N]; of a score of 0 or less the deviance is that of the smallest positive number."""

    def __init__(self, names: Sequence[str], data: RowData) -> None:
        self.names, self.units, self.earned = list(names), len(data.truth), data.earned
        self.truth, self.score = np.asarray(data.truth, dtype=np.float64), data.answers.score
        self.error = self.score - self.truth
        self.own = self.truth * np.log(np.maximum(self.truth, 1.0))  # 0 and 1 have none
        mean = np.maximum(self.score, TINY)
        self.deviance = 2 * (self.own - self.truth * np.log(mean) - self.truth + mean)
        rates = {"mae_gap": (np.abs(self.error), np.ones(self.units)), "calibration_ratio_gap": (self.score, self.truth)}
        self.gaps = gaps(names, data.slices, rates)

    def values(self, w: Array) -> Array:
        """See `MeasuredRows`."""
        return np.stack([self._one(name, w, w.sum(axis=1)) for name in self.names], axis=1)

    def _one(self, name: str, w: Array, total: Array) -> Array:
        match name:
            case "poisson_deviance":
                return np.asarray(w @ self.deviance / total)
            case "d2":
                counted = w @ self.truth
                spread = 2 * (w @ self.own - counted * np.log(np.maximum(counted, TINY) / total))
                return 1 - ratio(w @ self.deviance, spread)
            case "mae":
                return np.asarray(w @ np.abs(self.error) / total)
            case "mean_error":
                return np.asarray(w @ self.error / total)
            case "calibration_ratio":
                return ratio(w @ self.score, w @ self.truth)
            case "value_per_prediction":
                return np.asarray(w @ self.earned / total)
            case _:
                return self.gaps[name].values(w)


def _summarise(labels: LabelQuery) -> LabelSummary:
    """As `summarise` of numbers, but reports labels that are not counts."""
    [(wrong, example)] = labels.run("SELECT count(*), min(_label) FROM kept WHERE _label < 0 OR _label <> floor(_label)")
    found = summarise(labels)
    why = f"a count is a whole number of 0 or more, and {wrong:,} labels are none, {example:g} for instance" if wrong else ""
    return found._replace(problem=why or found.problem)


COUNT = TaskType(
    name="count", estimator="regressor", leak_limit=0.99,
    metrics=METRICS, gaps=GAPS, primary="poisson_deviance", gap="calibration_ratio_gap", summary=("mae", "calibration_ratio"),
    rows=Counts, money=money, money_words=("expects its errors to come to", ""), kinds=kinds,
    middle=lambda truth: [float(truth.mean())], summarise=_summarise, made_up=lambda part, targets: part.astype(np.float64),
    describe=lambda output: "The score is how often it is to be expected: the mean of a count, and no whole number.",
    draft=DRAFT._replace(
        linear="PoissonRegressor", objective="poisson", what=lambda label, kinds: f"the count {label}", guess=lambda truth: float(truth.mean())
    ),
)  # fmt: skip
