"""Answers to N rows and their value: labels from scores and values, and money by the scope's value table."""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.records.package import Output
from loopwright.tasks.registry import TASKS
from loopwright.tasks.task import Answered


def answered(output: Output, score: Array, values: Array | None, threshold: float) -> Answered:
    """Answers with their label, from what a graph gives: score [N] and values [N, K] (None or K = 0 where there are none)."""
    score = np.asarray(score, dtype=np.float64).reshape(-1)
    wide = None if values is None or not output.names else np.asarray(values, dtype=np.float64)
    label = None
    if output.shape.has_border:
        label = score >= threshold
    elif output.shape.has_classes and wide is not None:
        label = np.array(output.classes, dtype=object)[wide.argmax(axis=1)]
    return Answered(score, label, wide)


def aligned(values: Array, names: Sequence[str], onto: Sequence[str]) -> Array:
    """Reorder values [N, K] by `names` to values [N, M] by `onto`; 0 for a class that the package does not know."""
    place = {name: i for i, name in enumerate(names)}
    return np.stack([values[:, place[n]] if n in place else np.zeros(len(values)) for n in onto], axis=1)


def money(value: Value, output: Output, truth: Array, answers: Answered) -> tuple[Array, Array]:
    """Money of each row [N] with these answers, and without any, in the value table's currency; float64."""
    return TASKS[output.task].money(value, truth, answers)


def kinds(output: Output, truth: Array, answers: Answered) -> dict[str, Array]:
    """Kinds of rows by name, each a mask [N]; none where answers are neither right nor wrong."""
    return TASKS[output.task].kinds(truth, answers)
