"""What a number hides: which labels are taken for which, and what another threshold would bring."""

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.records.evaluation import Confusion, TradePoint
from loopwright.records.package import Output
from loopwright.tasks.metrics.answered import answered, kinds, money
from loopwright.tasks.task import Answered

MAX_LABELS = 50
"""A table of more labels than this is left out: nobody reads it."""

POINTS = 20


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
