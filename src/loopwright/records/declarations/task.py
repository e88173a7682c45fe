"""The tasks by name, and the shape of each: its declarable fields, labels and answers.

All other differences between tasks are in `tasks`, one file a task.
"""

import math
import sys
from collections.abc import Mapping
from typing import Literal, NamedTuple

Task = Literal["binary", "multiclass", "regression", "ranking", "anomaly", "count"]

PROBABILITY = (-1e-6, 1 + 1e-6)
NUMBER = (-sys.float_info.max, sys.float_info.max)
NOT_NEGATIVE = (0.0, sys.float_info.max)


class TaskShape(NamedTuple):
    """Types of a task's labels and answers.

    Attributes:
        label: Type of the label; of several targets, of each.
        answer: Type of an answer's label: `boolean` for a threshold, `string` for a class; empty: none.
        score: Smallest and largest valid score.
        several: Several targets, or quantiles of one, may be declared.
        grouped: Rows are ranked within groups, whose column must be declared.
        perfect: Values that metrics must reach, all of them, to be practically perfect (see `tasks.plausibility`).
        words: Labels as `Sampling` names them; None: examples are not sampled by label; empty: any.
    """

    label: Literal["boolean", "string", "float"] = "float"
    answer: Literal["boolean", "string", ""] = ""
    score: tuple[float, float] = NUMBER
    several: bool = False
    grouped: bool = False
    words: tuple[str, ...] | None = None
    perfect: Mapping[str, float] = {}

    @property
    def is_probability(self) -> bool:
        """Whether scores and values are probabilities."""
        return self.score == PROBABILITY

    @property
    def clip(self) -> tuple[float, float] | None:
        """Range to which the numbers of a rule are clipped."""
        return (0.0, 1.0) if self.is_probability else (0.0, 3e38) if self.score == NOT_NEGATIVE else None

    def reads(self, label: str) -> bool:
        """Whether a text is a label of the task."""
        if self.label == "boolean":
            return label in ("true", "false")
        try:
            return bool(label) and (self.label == "string" or math.isfinite(float(label)))
        except ValueError:
            return False

    @property
    def has_border(self) -> bool:
        """Whether an answer's label is score >= threshold."""
        return self.answer == "boolean"

    @property
    def has_classes(self) -> bool:
        """Whether an answer's label is one of several classes, and its values are their probabilities."""
        return self.answer == "string"


_RANKED = {"roc_auc": 0.999, "average_precision": 0.99}

SHAPES: dict[Task, TaskShape] = {
    "binary": TaskShape("boolean", "boolean", PROBABILITY, words=("true", "false"), perfect=_RANKED),
    "multiclass": TaskShape("string", "string", PROBABILITY, words=(), perfect={"macro_f1": 0.999, "accuracy": 0.999}),
    "regression": TaskShape(several=True, perfect={"r2": 0.999}),
    "ranking": TaskShape(grouped=True, perfect={"ndcg:10": 0.999, "map": 0.999}),
    "anomaly": TaskShape("boolean", "boolean", perfect=_RANKED),
    "count": TaskShape(score=NOT_NEGATIVE, perfect={"d2": 0.999}),
}
