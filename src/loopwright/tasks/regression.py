"""Regression: the label is a number, or several; predicted is the mean of each, or quantiles of one."""

import re
from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.records.package import Output
from loopwright.tasks.statistic import HEAVY_SQUARES, Statistic, averaged, distances, gaps, mean, ratio, root, telling
from loopwright.tasks.task import MONEY, Answered, Draft, LabelQuery, LabelSummary, Metric, RowData, TaskType, gap_metric

METRICS = {
    "mae": Metric(False, 0.0, "mean absolute error"),
    "rmse": Metric(False, 0.0, "root of the mean squared error"),
    "r2": Metric(True, 1.0, "share of the variance explained"),
    "mape": Metric(False, 0.0, "mean of the error as a share of the truth, over rows whose truth is not 0"),
    "bias": Metric(False, 0.0, "size of the mean error"),
    "mean_error": Metric(True, None, "mean of prediction less truth, with its sign"),
    "pinball": Metric(False, 0.0, "pinball loss, mean over the declared quantiles (Koenker and Bassett 1978)"),
    "value_per_prediction": MONEY,
}

PARTS = {
    "mae": Metric(False, 0.0, "mean absolute error of one target: mae:TARGET"),
    "rmse": Metric(False, 0.0, "root of the mean squared error of one target: rmse:TARGET"),
    "r2": Metric(True, 1.0, "share of the variance of one target explained: r2:TARGET"),
    "pinball": Metric(False, 0.0, "pinball loss of one declared quantile: pinball:0.9"),
    "coverage": Metric(True, 1.0, "share of truths between two declared quantiles: coverage:0.1-0.9"),
}

GAPS = {"mae_gap": gap_metric("mean absolute error"), "bias_gap": gap_metric("mean error")}
_COVERAGE = re.compile(r"(0?\.\d+)-(0?\.\d+)")


def statistics(names: Sequence[str], data: RowData) -> list[Statistic]:
    """Regression: `truth` [N] or, of several targets, [N, T]; predicted are the score, the values by target, or by quantile."""
    given, output, n = data.answers, data.output, len(data.truth)
    truth = np.asarray(data.truth, dtype=np.float64).reshape(n, -1)
    several = given.values is not None and not output.quantiles
    targets = output.names if several else []
    error = (given.values if several and given.values is not None else given.score[:, None]) - truth
    by_quantile = given.values if given.values is not None else given.score[:, None]
    first = error[:, 0]
    of_slices = gaps(names, data.slices, {"mae_gap": (np.abs(first), np.ones(n)), "bias_gap": (first, np.ones(n))})

    def one(name: str) -> Statistic:
        base, _, of = name.partition(":")
        if name in of_slices:
            return of_slices[name]
        if base in ("pinball", "coverage"):
            wanted = quantiles_of(name) or output.quantiles
            return _of_quantiles(base, truth[:, 0], by_quantile[:, [output.quantiles.index(q) for q in wanted]], wanted)
        columns = [targets.index(of)] if of else list(range(error.shape[1]))
        if base == "bias":
            return distances(error[:, columns])
        if base == "value_per_prediction":
            assert data.earned is not None
            return mean(data.earned)
        return averaged([_of_target(base, truth[:, i], error[:, i]) for i in columns])

    return [one(name) for name in names]


def _of_target(name: str, truth: Array, error: Array) -> Statistic:
    """A metric of one target [N]."""
    match name:
        case "mae":
            return mean(np.abs(error), "log")
        case "rmse":
            return root(np.square(error))
        case "mape":
            there = truth != 0
            share = np.abs(np.divide(error, truth, where=there, out=np.zeros_like(error)))
            return ratio(share, there, "log")._replace(events=telling(share[there]))
        case "r2":
            squares = np.square(error)
            found = explained(squares, np.square(truth - truth.mean()))
            return found._replace(events=min(found.events, telling(squares, HEAVY_SQUARES)))
    return mean(error)


def explained(left: Array, spread: Array) -> Statistic:
    """1 - sum of residuals [N] / sum of deviations [N]."""
    share = ratio(left, spread)
    return share._replace(value=1 - share.value, influence=-share.influence, events=min(telling(left), telling(spread)))


def _of_quantiles(base: str, truth: Array, predicted: Array, wanted: Sequence[float]) -> Statistic:
    if base == "coverage":
        return ratio((predicted[:, 0] <= truth) & (truth <= predicted[:, 1]), np.ones(len(truth)), "rate")
    below = truth[:, None] - predicted
    return mean(np.maximum(np.array(wanted) * below, (np.array(wanted) - 1) * below).mean(axis=1), "log")


def quantiles_of(name: str) -> list[float] | None:
    """The quantiles in a metric's name: none for `pinball`, one, or two; None if it is invalid."""
    base, _, of = name.partition(":")
    if base == "coverage":
        found = _COVERAGE.fullmatch(of)
        return [float(found[1]), float(found[2])] if found and float(found[1]) < float(found[2]) else None
    try:
        return [float(of)] if of else []
    except ValueError:
        return None


def _error(truth: Array, answers: Answered) -> Array:
    """Errors of the first target, if there are several."""
    return np.asarray(answers.score - (truth if truth.ndim == 1 else truth[:, 0]))


def money(value: Value, truth: Array, answers: Answered) -> tuple[Array, Array]:
    """`correct`, and `under` or `over` for each unit by which the score is below or above the truth; without answers nothing."""
    error = _error(truth, answers)
    return value.correct + np.where(error < 0, value.under * -error, value.over * error), np.zeros(len(truth))


def kinds(truth: Array, answers: Answered) -> dict[str, Array]:
    """On which side of the truth the score is."""
    error = _error(truth, answers)
    return {"under": error < 0, "over": error > 0, "exact": error == 0}


def summarise(labels: LabelQuery) -> LabelSummary:
    """Mean and range of each target."""
    names = list(labels.targets)
    columns = ["_label"] if len(names) == 1 else [f"_label[{i + 1}]" for i in range(len(names))]
    parts, alike = [], ""
    for name, column in zip(names, columns, strict=True):
        [(low, high, mean)] = labels.run(
            f"SELECT min({column}), max({column}), avg({column}) FROM kept"  # noqa: S608 - a name of ours and a whole number
        )
        if labels.rows and low == high:
            alike = f"all {labels.rows:,} values of {name!r} are {low:g}"
        if labels.rows:
            parts.append(f"{name} {mean:.4g} on average, from {low:.4g} to {high:.4g}")
    return LabelSummary(0, "; ".join(parts), alike)


def middle(truth: Array) -> list[float]:
    """The median of each target."""
    return [float(m) for m in np.median(truth.reshape(len(truth), -1), axis=0)]


def _measured(output: Output, names: list[str]) -> list[str]:
    quantiles = output.quantiles
    if not quantiles:
        return [name for name in names if name != "pinball"] + [f"mae:{target}" for target in output.names]
    between = [f"coverage:{quantiles[0]:g}-{quantiles[-1]:g}"] if len(quantiles) > 1 else []
    return [*names, *(f"pinball:{q:g}" for q in quantiles), *between]


def _describe(output: Output) -> str:
    what = "The quantiles {names} of the outcome" if output.quantiles else "{names}" if output.names else "The outcome itself"
    return f"It predicts numbers. {what}; the score is the {'one nearest the median' if output.quantiles else 'first of them'}."


def _worth(truth: Array, holds: Array) -> float:
    """The absolute errors where each side is given its median, less than nothing."""
    return -sum(float(np.abs(side - np.median(side)).sum()) for side in (truth[holds], truth[~holds]) if len(side))


DRAFT = Draft(
    wish="come close", metric="mae", bound="at_most", value="under=-1, over=-1",
    linear="Ridge", settings="", boosted="LGBMRegressor",
    what=lambda label, kinds: f"the number {label}",  # of any size
    guess=lambda truth: float(np.median(truth)), reach=lambda truth, guess: float(np.abs(truth - guess).mean()), worth=_worth,
    unpriced=" each error counts alike",
)  # fmt: skip

REGRESSION = TaskType(
    name="regression", estimator="regressor", leak_limit=0.99,
    metrics=METRICS, part_metrics=PARTS, gaps=GAPS, primary="mae", gap="mae_gap", summary=("mae", "mean_error"),
    statistics=statistics, measured=_measured, money=money, money_words=("expects its errors to come to", ""), kinds=kinds,
    middle=middle, summarise=summarise, made_up=lambda part, targets: targets if targets.shape[1] > 1 else targets[:, 0],
    describe=_describe, draft=DRAFT,
)  # fmt: skip
