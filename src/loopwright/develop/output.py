"""Prediction outputs: how the raw numbers of an estimator, or of its graph, become the `records.package.Output` of a package.

Raw output [N, K] of an estimator: the probability of true or those of the classes, numbers by target or quantile, or one column
of ranking or anomaly scores. The same few steps turn it into answers, in NumPy (`Goal.answers`) for comparison
and in the graph (`features.TracedFeatures.model_graph`) for serving.
"""

from typing import NamedTuple

import msgspec
import numpy as np

from loopwright.base.arrays import Array
from loopwright.graph.calibration import calibrated
from loopwright.records.declarations import Outcome
from loopwright.records.package import Calibration, Output


class Answers(NamedTuple):
    """Answers to N rows, float64: score [N] and values [N, K] (K = 0 when `Output` names none)."""

    score: Array
    values: Array

    def at(self, rows: Array) -> "Answers":
        """The answers of some rows, by their indices."""
        return Answers(self.score[rows], self.values[rows])


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """The prediction target of a model.

    Quantiles that cross are sorted (Chernozhukov, Fernandez-Val & Galichon 2010, Quantile and probability curves without
    crossing). `factors`, one per class, undo sampling and weights: probabilities are multiplied by them and made to sum to one
    again (Elkan 2001, The foundations of cost-sensitive learning). After that the score of a binary model may be calibrated.
    """

    output: Output = Output()
    factors: list[float] = []
    calibration: Calibration | None = None

    @property
    def plain(self) -> "Goal":
        """The goal of the estimator itself: sampling is not undone, and nothing calibrated."""
        return msgspec.structs.replace(self, factors=[], calibration=None)

    @property
    def quantiles(self) -> list[float]:
        """The quantiles of a quantile regression, ascending."""
        return self.output.quantiles

    @property
    def column(self) -> int | None:
        """The raw column of the score; None for the largest of them."""
        if self.output.shape.has_classes:
            return None
        return int(np.argmin([abs(q - 0.5) for q in self.quantiles])) if self.quantiles else 0

    def answers(self, raw: Array) -> Answers:
        """The answers from raw numbers [N, K]."""
        raw = np.asarray(raw, dtype=np.float64)
        if self.factors:
            alone = not self.output.shape.has_classes  # the probability of true; that of false is added
            raw = np.column_stack([1 - raw, raw]) if alone else raw
            raw = raw * np.array(self.factors)
            raw = (raw / raw.sum(axis=1, keepdims=True))[:, 1 if alone else 0 :]
        if self.quantiles:
            raw = np.sort(raw, axis=1)
        score = raw.max(axis=1) if self.column is None else raw[:, self.column]
        score = score if self.calibration is None else calibrated(self.calibration, score)
        return Answers(score, raw if self.output.names else raw[:, :0])


def goal_of(outcome: Outcome, truth: Array) -> Goal:
    """The goal of an outcome; the classes are those found in `truth` (of the training rows, string [N])."""
    names = [f"q{q:g}" for q in outcome.quantiles] or list(outcome.labels)
    classes = sorted({str(c) for c in truth}) if outcome.shape.has_classes else []
    names = classes or (names if len(names) > 1 else [])
    return Goal(output=Output(task=outcome.task, classes=classes, names=names, quantiles=outcome.quantiles))
