"""Confusion matrix, reliability curve and threshold trade-off of a model."""

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.records.evaluation import Confusion, ReliabilityBin, TradePoint
from loopwright.records.package import Output
from loopwright.tasks.metrics.answered import answered, kinds, money
from loopwright.tasks.metrics.estimate import intervals
from loopwright.tasks.task import Answered

MAX_LABELS = 50
"""A table of more labels than this is left out: nobody reads it."""

POINTS = 20


MAX_BINS, BIN_ROWS, BIN_EVENTS = 10, 50, 10
"""Bins of a reliability curve, at most, and how many rows, and rows of the rarer label, there are on average in each, at least."""


def reliability(output: Output, truth: Array, answers: Answered, units: Array | None = None) -> list[ReliabilityBin]:
    """How often rows [N] with about the same score are positive, in bins of equally many rows; none for tasks without such a score.

    The interval of each share is Wilson's, with as many rows as `units` [N] leave.
    """
    if not (output.shape.has_border and output.shape.is_probability) or not len(truth):
        return []
    score, truth = answers.score, np.asarray(truth, dtype=np.bool_)
    rarer = int(min(truth.sum(), (~truth).sum()))
    bins = max(2, min(MAX_BINS, len(score) // BIN_ROWS, rarer // BIN_EVENTS))
    ends = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1)[1:], method="nearest"))
    code = np.searchsorted(ends, score)
    curve = []
    for k in range(len(ends)):
        rows = code == k
        of, mine = truth[rows], None if units is None else units[rows]
        share = intervals(["positive_rate"], of, score[rows], of, seed=0, units=mine)["positive_rate"]
        curve.append(
            ReliabilityBin(
                low=float(score[rows].min()), high=float(score[rows].max()), score=float(score[rows].mean()), share=share
            )
        )
    return curve


def confusion(output: Output, truth: Array, answers: Answered) -> Confusion | None:
    """How often each true label [N] got each label; None for tasks without labels, and for more than 50 of them."""
    if answers.label is None:
        return None
    named = [_names(truth), _names(answers.label)]
    labels = list(dict.fromkeys([*(output.classes or ["no", "yes"]), *sorted({*named[0], *named[1]})]))
    if len(labels) > MAX_LABELS:
        return None
    place = {label: i for i, label in enumerate(labels)}
    happened, said = (np.array([place[name] for name in names], dtype=np.int64) for names in named)
    counts = np.bincount(happened * len(labels) + said, minlength=len(labels) ** 2).reshape(len(labels), -1)
    return Confusion(labels, counts.tolist())


def _names(labels: Array) -> list[str]:
    return [label if isinstance(label, str) else "yes" if label else "no" for label in labels.tolist()]


def trade(output: Output, truth: Array, answers: Answered, threshold: float, value: Value | None) -> list[TradePoint]:
    """What thresholds at quantiles of the score [N], and the one in use, bring; none for tasks whose label is no threshold's."""
    if answers.label is None or answers.label.dtype == object or not len(truth):
        return []
    levels = np.quantile(answers.score, np.linspace(0, 1, POINTS + 1)[1:-1], method="nearest")
    points = []
    for level in np.unique([*levels, threshold]).tolist():
        at = answered(output, answers.score, answers.values, level)
        counts = {kind: int(rows.sum()) for kind, rows in kinds(output, truth, at).items()}
        hits, said = counts["true positive"], counts["true positive"] + counts["false positive"]
        positive = hits + counts["false negative"]
        worth = None
        if value is not None and value.is_set:
            earned, nothing = money(value, output, truth, at)
            worth = float((earned - nothing).mean())
        points.append(
            TradePoint(
                threshold=level,
                rate=said / len(truth),
                precision=hits / said if said else None,
                recall=hits / positive if positive else None,
                value=worth,
                used=level == threshold,
            )
        )
    return points
