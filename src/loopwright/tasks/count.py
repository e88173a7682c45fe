"""Count: the label is how often something happened (0, 1, 2 ...), predicted is its mean (Cameron and Trivedi 2013, ISBN 978-1107667273)."""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.tasks.regression import DRAFT, explained, kinds, money, summarise
from loopwright.tasks.regression import METRICS as OF_NUMBERS
from loopwright.tasks.statistic import TINY, Statistic, gaps, mean, ratio, telling
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
    "mae_gap": gap_metric("mean absolute error"),
    "calibration_ratio_gap": gap_metric("calibration ratio"),
}


def statistics(names: Sequence[str], data: RowData) -> list[Statistic]:
    """`truth` [N] of 0 or more and score [N]; of a score of 0 or less the deviance is that of the smallest positive number."""
    truth, score = np.asarray(data.truth, dtype=np.float64), data.answers.score
    rates = {"mae_gap": (np.abs(score - truth), np.ones(len(truth))), "calibration_ratio_gap": (score, truth)}
    of_slices = gaps(names, data.slices, rates)

    def one(name: str) -> Statistic:
        match name:
            case "poisson_deviance":
                return mean(_deviance(truth, score), "log")
            case "d2":
                return explained(_deviance(truth, score), _deviance(truth, np.full(len(truth), truth.mean())))
            case "mae":
                return mean(np.abs(score - truth), "log")
            case "mean_error":
                return mean(score - truth)
            case "calibration_ratio":
                return ratio(score, truth, "log")._replace(events=telling(truth))
            case "value_per_prediction":
                assert data.earned is not None
                return mean(data.earned)
            case _:
                return of_slices[name]

    return [one(name) for name in names]


def _deviance(truth: Array, score: Array) -> Array:
    """Poisson deviance of each row [N]."""
    means = np.maximum(score, TINY)
    own = truth * np.log(np.maximum(truth, 1.0))  # 0 and 1 have none
    return np.asarray(2 * (own - truth * np.log(means) - truth + means))


def _summarise(labels: LabelQuery) -> LabelSummary:
    """As `summarise` of numbers, but reports labels that are not counts."""
    [(wrong, example)] = labels.run("SELECT count(*), min(_label) FROM kept WHERE _label < 0 OR _label <> floor(_label)")
    found = summarise(labels)
    why = f"a count is a whole number of 0 or more, and {wrong:,} labels are none, {example:g} for instance" if wrong else ""
    return found._replace(problem=why or found.problem)


COUNT = TaskType(
    name="count", estimator="regressor", leak_limit=0.99,
    metrics=METRICS, gaps=GAPS, primary="poisson_deviance", gap="calibration_ratio_gap", summary=("mae", "calibration_ratio"),
    statistics=statistics, money=money, money_words=("expects its errors to come to", ""), kinds=kinds,
    middle=lambda truth: [float(truth.mean())], summarise=_summarise, made_up=lambda part, targets: part.astype(np.float64),
    describe=lambda output: "The score is how often it is to be expected: the mean of a count, and no whole number.",
    draft=DRAFT._replace(
        linear="PoissonRegressor", objective="poisson", what=lambda label, kinds: f"the count {label}", guess=lambda truth: float(truth.mean())
    ),
)  # fmt: skip
