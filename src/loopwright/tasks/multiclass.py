"""Multiclass: the label is one of several strings, predicted is the probability of each."""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.records.package import Output
from loopwright.tasks import binary
from loopwright.tasks.rows import TINY, Calibration, gaps, ratio
from loopwright.tasks.task import MONEY, Answered, Draft, LabelQuery, LabelSummary, Metric, RowData, TaskType

MAX_CLASSES = 1000
SHOWN = 5
"""Maximum number of classes named in a summary."""

METRICS = {
    "log_loss": binary.METRICS["log_loss"],
    "accuracy": binary.METRICS["accuracy"],
    "balanced_accuracy": Metric(True, 1.0, "mean over the classes of the share that is found"),
    "macro_f1": Metric(True, 1.0, "mean over the classes of the harmonic mean of precision and recall"),
    "calibration_error": binary.METRICS["calibration_error"],
    "value_per_prediction": MONEY,
}

PARTS = {
    "top_k": Metric(True, 1.0, "share of rows whose class is among the K likeliest: top_k:3"),
    "recall": Metric(True, 1.0, "share of the rows of a class that are found: recall:CLASS"),
    "precision": Metric(True, 1.0, "share of the rows called a class that are of it: precision:CLASS"),
}

GAPS = {"recall_gap": binary.GAPS["recall_gap"]._replace(rate="accuracy")}


class Classes:
    """Multiclass: `truth` and label string [N], values [N, K] in the order of the output's classes."""

    def __init__(self, names: Sequence[str], data: RowData) -> None:
        truth, given, output, earned, slices, _ = data
        self.names, self.units, self.earned = list(names), len(truth), earned
        truth, label = np.asarray(truth, dtype=str), np.asarray(given.label, dtype=str)
        values = given.values if given.values is not None else np.zeros((self.units, len(output.classes)))
        self.right = truth == label
        self.classes = sorted({*output.classes, *truth.tolist()})
        self.true, self.said = (side[:, None] == np.array(self.classes)[None, :] for side in (truth, label))
        place = {c: i for i, c in enumerate(output.classes)}
        self.place = np.array([place.get(t, -1) for t in truth.tolist()], dtype=np.int64)
        known = self.place >= 0
        own = np.where(known, values[np.arange(self.units), self.place], 0.0)[:, None]
        later = np.arange(values.shape[1])[None, :] > self.place[:, None]
        self.before = np.where(known, ((values > own) | ((values == own) & later)).sum(axis=1), values.shape[1])
        self.loss = -np.log(np.clip(own[:, 0], TINY, 1.0))
        self.calibration = Calibration(given.score, self.right) if "calibration_error" in names else None
        self.gaps = gaps(names, slices, {"recall_gap": (self.right, np.ones(self.units, dtype=np.bool_))})

    def values(self, w: Array) -> Array:
        """See the module."""
        total = w.sum(axis=1)
        counts = w @ (self.true & self.said), w @ self.true, w @ self.said  # each [R, number of classes]
        return np.stack([self._one(name, w, total, *counts) for name in self.names], axis=1)

    def _one(self, name: str, w: Array, total: Array, hits: Array, true: Array, predicted: Array) -> Array:
        base, _, of = name.partition(":")
        if name in self.gaps:
            return self.gaps[name].values(w)
        if name == "calibration_error" and self.calibration is not None:
            return self.calibration.values(w)
        if of and base in ("recall", "precision"):
            column = self.classes.index(of) if of in self.classes else None
            under = true if base == "recall" else predicted
            return np.full(len(w), np.nan) if column is None else ratio(hits[:, column], under[:, column])
        match base:
            case "accuracy":
                return np.asarray(w @ self.right / total)
            case "balanced_accuracy":
                return _mean(ratio(hits, true))
            case "macro_f1":
                return _mean(ratio(2 * hits, true + predicted))
            case "log_loss":
                return np.asarray(w @ self.loss / total)
            case "top_k":
                return np.asarray(w @ (self.before < int(of)) / total)
            case _:
                return np.asarray(w @ self.earned / total)


def _mean(rates: Array) -> Array:
    """The mean over classes [R] of rates [R, C]; classes that do not occur (NaN) are left out."""
    there = np.isfinite(rates)
    return ratio(np.where(there, rates, 0.0).sum(axis=1), there.sum(axis=1).astype(np.float64))


def _money(value: Value, truth: Array, answers: Answered) -> tuple[Array, Array]:
    """`correct` or `wrong`; without answers nothing."""
    return np.where(np.asarray(truth == answers.label, dtype=np.bool_), value.correct, value.wrong), np.zeros(len(truth))


def _kinds(truth: Array, answers: Answered) -> dict[str, Array]:
    right = np.asarray(truth == answers.label, dtype=np.bool_)
    return {"correct": right, "wrong": ~right}


def _summarise(labels: LabelQuery) -> LabelSummary:
    rows, counted = labels.rows, labels.run("SELECT _label, count(*) AS n FROM kept GROUP BY _label ORDER BY n DESC, _label")
    shown = ", ".join(f"{name} {n / max(rows, 1):.1%}" for name, n in counted[:SHOWN])
    more = f" and {len(counted) - SHOWN} more" if len(counted) > SHOWN else ""
    alike = f"all {rows:,} outcomes are {counted[0][0]!r}" if len(counted) == 1 else ""
    if len(counted) > MAX_CLASSES:
        alike = f"the label has {len(counted):,} different values, more than {MAX_CLASSES:,} classes: does it name things?"
    return LabelSummary(0, f"{len(counted)} classes: {shown}{more}", alike)


def _measured(output: Output, names: list[str]) -> list[str]:
    return [*names, "top_k:3"] if len(output.classes) > 3 else names


def _worth(truth: Array, holds: Array) -> float:
    """Number of correct rows when each side is given its most frequent class."""
    return float(sum(np.unique(side, return_counts=True)[1].max() for side in (truth[holds], truth[~holds]) if len(side)))


_DRAFT = Draft(
    wish="tell them apart", metric="accuracy", bound="at_least", value="correct=1, wrong=-1",
    linear="LogisticRegression", settings="max_iter=300", boosted="LGBMClassifier",
    what=lambda label, kinds: f"which of {kinds:,} classes {label} is",
    guess=binary.commonest, reach=lambda truth, guess: float((truth == guess).mean()), worth=_worth,
)  # fmt: skip

MULTICLASS = TaskType(
    name="multiclass", estimator="classifier", least_kinds=2, leak_limit=0.98,
    metrics=METRICS, part_metrics=PARTS, gaps=GAPS, primary="macro_f1", gap="recall_gap", summary=("accuracy", "macro_f1"),
    rows=Classes, measured=_measured, money=_money, kinds=_kinds,
    summarise=_summarise, made_up=lambda part, targets: np.array(["a", "b", "c"])[part], draft=_DRAFT,
    describe=lambda output: "It gives the probability of each class ({names}); the label is the likeliest, the score its probability.",
)  # fmt: skip
