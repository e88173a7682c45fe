"""What was answered on N rows, and what it is worth: labels of scores and values, and money by the scope's value table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from loopwright.records.declarations import Value
from loopwright.records.package import Output

Array = np.ndarray[Any, Any]


class Answered(NamedTuple):
    """Answers on N rows: score [N], label (bool [N], or string [N] of several classes; None where the task has none), values [N, K] or None."""

    score: Array
    label: Array | None = None
    values: Array | None = None

    def at(self, rows: Array) -> "Answered":
        """Those of some rows (a mask or indices)."""
        return Answered(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]  # score is never None


def answered(output: Output, score: Array, values: Array | None, threshold: float) -> Answered:
    """Answers with their label, from what a graph gives: score [N] and values [N, K] (None or K = 0 where there are none)."""
    score = np.asarray(score, dtype=np.float64).reshape(-1)
    wide = None if values is None or not output.names else np.asarray(values, dtype=np.float64)
    label = None
    if output.has_border:
        label = score >= threshold
    elif output.task == "multiclass" and wide is not None:
        label = np.array(output.classes, dtype=object)[wide.argmax(axis=1)]
    return Answered(score, label, wide)


def aligned(values: Array, names: Sequence[str], onto: Sequence[str]) -> Array:
    """Values [N, K] by `names` as values [N, M] by `onto`; 0 for what they lack (a class that a package does not know)."""
    place = {name: i for i, name in enumerate(names)}
    return np.stack([values[:, place[n]] if n in place else np.zeros(len(values)) for n in onto], axis=1)


def money(value: Value, output: Output, truth: Array, given: Answered) -> tuple[Array, Array]:
    """Money of each row [N] with these answers, and without any, in the value table's currency; float64.

    binary, anomaly  the table's four kinds; without answers nobody acts
    multiclass       `correct` or `wrong`; without answers nothing
    regression       `correct`, and `under` or `over` for each unit by which the score is below or above the truth (the first
                     target's, where there are several); without answers nothing
    ranking          nothing: money is not defined for it
    """
    none = np.zeros(len(truth))
    if output.task in ("binary", "anomaly"):
        table = np.array([[value.true_negative, value.false_positive], [value.false_negative, value.true_positive]])
        happened, said = np.asarray(truth, dtype=np.int64), np.asarray(given.label, dtype=np.int64)
        return table[happened, said], table[happened, 0]
    if output.task == "multiclass":
        return np.where(np.asarray(truth == given.label, dtype=np.bool_), value.correct, value.wrong), none
    if output.task == "regression":
        error = given.score - (truth if truth.ndim == 1 else truth[:, 0])
        return value.correct + np.where(error < 0, value.under * -error, value.over * error), none
    return none, none


def kinds(output: Output, truth: Array, given: Answered) -> dict[str, Array]:
    """Kinds of rows by name, each a mask [N]; none where answers are neither right nor wrong."""
    if output.task in ("binary", "anomaly"):
        true, said = np.asarray(truth, dtype=np.bool_), np.asarray(given.label, dtype=np.bool_)
        return {
            "true positive": true & said,
            "false positive": ~true & said,
            "true negative": ~true & ~said,
            "false negative": true & ~said,
        }
    if output.task == "multiclass":
        right = np.asarray(truth == given.label, dtype=np.bool_)
        return {"correct": right, "wrong": ~right}
    if output.task == "regression":
        error = given.score - (truth if truth.ndim == 1 else truth[:, 0])
        return {"under": error < 0, "over": error > 0, "exact": error == 0}
    return {}
