"""Binary: the label is true or false, predicted is the probability of true."""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.tasks.rows import TINY, Calibration, gaps, ratio
from loopwright.tasks.task import (
    MONEY,
    Answered,
    Border,
    Draft,
    LabelQuery,
    LabelSummary,
    Metric,
    RowData,
    TaskType,
    gap_metric,
)

METRICS = {
    "average_precision": Metric(True, 1.0, "area under the precision-recall curve, as a step function"),
    "roc_auc": Metric(True, 1.0, "chance that a positive row scores above a negative one"),
    "log_loss": Metric(False, 0.0, "mean negative log likelihood of the truth, in nats"),
    "brier": Metric(False, 0.0, "mean squared difference of score and truth (Brier 1950)"),
    "accuracy": Metric(True, 1.0, "share of right labels"),
    "precision": Metric(True, 1.0, "share of the labelled that are positive"),
    "recall": Metric(True, 1.0, "share of the positive that are labelled"),
    "f1": Metric(True, 1.0, "harmonic mean of precision and recall"),
    "positive_rate": Metric(True, None, "share of rows that are labelled"),
    "calibration_error": Metric(
        False, 0.0, "expected calibration error of the score over ten equally wide bins (Naeini et al. 2015)"
    ),
    "value_per_prediction": MONEY,
}

GAPS = {
    "recall_gap": gap_metric("recall (of several classes: accuracy)", "recall"),
    "precision_gap": gap_metric("precision", "precision"),
    "positive_rate_gap": gap_metric("share of labelled rows", "positive_rate"),
}

SUMMARY = ("precision", "recall", "positive_rate")


class YesNo:
    """Binary and anomaly: `truth` bool [N], score [N], label bool [N]; `earned` is money over no model [N], if there is any."""

    def __init__(self, names: Sequence[str], data: RowData) -> None:
        truth, given, _, earned, slices, _ = data
        self.names, self.units = list(names), len(truth)
        self.truth = np.asarray(truth, dtype=np.bool_)
        self.score, self.label = given.score, np.asarray(given.label, dtype=np.bool_)
        self.earned = earned
        everything, hit = np.ones(self.units, dtype=np.bool_), self.truth & self.label
        rates = {
            "recall_gap": (hit, self.truth),
            "precision_gap": (hit, self.label),
            "positive_rate_gap": (self.label, everything),
        }
        self.gaps = gaps(names, slices, rates)
        self.calibration = Calibration(self.score, self.truth) if "calibration_error" in names else None
        self.order = np.argsort(-self.score, kind="stable") if {"average_precision", "roc_auc"} & set(names) else None
        if self.order is not None:
            ranked = self.score[self.order]
            self.ends = np.append(np.flatnonzero(np.diff(ranked)), self.units - 1)
            self.ranked_truth = self.truth[self.order].astype(np.float64)

    def values(self, w: Array) -> Array:
        """See the module."""
        total, positives = w.sum(axis=1), w @ self.truth
        tp, labelled = w @ (self.truth & self.label), w @ self.label
        curve = self._curve(w)
        return np.stack([self._one(name, w, total, positives, labelled, tp, curve) for name in self.names], axis=1)

    def _curve(self, w: Array) -> tuple[Array, Array]:
        """Positives and rows at or above each distinct score, [R, number of distinct scores]."""
        if self.order is None:
            return w[:, :0], w[:, :0]
        ranked = w[:, self.order]
        return np.cumsum(ranked * self.ranked_truth, axis=1)[:, self.ends], np.cumsum(ranked, axis=1)[:, self.ends]

    def _one(
        self, name: str, w: Array, total: Array, positives: Array, labelled: Array, tp: Array, curve: tuple[Array, Array]
    ) -> Array:
        found, n = curve
        match name:
            case "average_precision":
                with np.errstate(divide="ignore", invalid="ignore"):
                    steps = np.diff(found, axis=1, prepend=0.0) * np.where(n > 0, found / n, 0.0)
                return ratio(steps.sum(axis=1), positives)
            case "roc_auc":
                false = n - found
                area = (np.diff(false, axis=1, prepend=0.0) * (found - np.diff(found, axis=1, prepend=0.0) / 2)).sum(axis=1)
                return ratio(area, positives * (total - positives))
            case "accuracy":
                return np.asarray((total - labelled - positives + 2 * tp) / total)
            case "precision":
                return ratio(tp, labelled)
            case "recall":
                return ratio(tp, positives)
            case "f1":
                return ratio(2 * tp, labelled + positives)
            case "positive_rate":
                return np.asarray(labelled / total)
            case _:
                return self._of_probability(name, w, total)

    def _of_probability(self, name: str, w: Array, total: Array) -> Array:
        if name in self.gaps:
            return self.gaps[name].values(w)
        if name == "calibration_error" and self.calibration is not None:
            return self.calibration.values(w)
        if name == "brier":
            return np.asarray(w @ np.square(self.score - self.truth) / total)
        if name == "log_loss":
            p = np.clip(self.score, TINY, 1 - TINY)
            return np.asarray(w @ -np.where(self.truth, np.log(p), np.log1p(-p)) / total)
        return np.asarray(w @ self.earned / total)


def money(value: Value, truth: Array, answers: Answered) -> tuple[Array, Array]:
    """The table's four kinds; without answers no row is acted on."""
    table = np.array([[value.true_negative, value.false_positive], [value.false_negative, value.true_positive]])
    happened, said = np.asarray(truth, dtype=np.int64), np.asarray(answers.label, dtype=np.int64)
    return table[happened, said], table[happened, 0]


def kinds(truth: Array, answers: Answered) -> dict[str, Array]:
    """The four kinds."""
    true, said = np.asarray(truth, dtype=np.bool_), np.asarray(answers.label, dtype=np.bool_)
    return {
        "true positive": true & said,
        "false positive": ~true & said,
        "true negative": ~true & ~said,
        "false negative": true & ~said,
    }


def _threshold(border: Border) -> float:
    """The score from which acting pays by the value table, within (0, 1]; without one, about the share of positives is above it."""
    return share_threshold(border.score, border.share) if border.pays is None else min(1.0, max(1e-6, border.pays))


def share_threshold(score: Array, share: float) -> float:
    """The border between scores above which about `share` of them lie, by ratio: in the middle between two of them.

    Scores of two values are a condition, and the border lies between them; where all are the same it is 0.5.
    """
    distinct, counts = np.unique(score, return_counts=True)
    if len(distinct) <= 2:
        return float(distinct.mean()) if len(distinct) == 2 else 0.5
    # of each value but the lowest: the share that it and those above it have
    above = counts[::-1].cumsum()[::-1][1:] / len(score)
    place = int(np.abs(np.log(above / max(share, 1 / len(score)))).argmin())
    return float((distinct[place] + distinct[place + 1]) / 2)


def _summarise(labels: LabelQuery) -> LabelSummary:
    [(positives,)] = labels.run("SELECT count(*) FILTER (_label) FROM kept")
    alike = "" if 0 < positives < labels.rows else f"all {labels.rows:,} outcomes are {'true' if positives else 'false'}"
    return LabelSummary(positives, f"{positives / max(labels.rows, 1):.1%} positive", alike)


def commonest(truth: Array) -> str:
    """The commonest label of a truth [N], as text."""
    classes, counts = np.unique(truth, return_counts=True)
    return str(classes[counts.argmax()])


def _worth(truth: Array, holds: Array) -> float:
    """Youden's J of a condition; ranked below all others if it is true for less than half or more than twice the positive share."""
    if truth.all() or not truth.any():
        return 0.0
    apart = float(holds[truth].mean() - holds[~truth].mean())
    return apart if truth.mean() / 2 <= holds.mean() <= 2 * truth.mean() else apart - 2


_DRAFT = Draft(
    wish="find them", metric="average_precision", bound="at_least", value="true_positive=10, false_positive=-1, false_negative=-5",
    linear="LogisticRegression", settings="max_iter=300", boosted="LGBMClassifier",
    what=lambda label, kinds: f"whether {label}",  # always two
    guess=commonest, reach=lambda truth, guess: float(truth.mean()), worth=_worth,  # average precision of chance
    unpriced=" as many are\n        # labelled positive as were positive in training", is_condition=True,
)  # fmt: skip

BINARY = TaskType(
    name="binary", estimator="classifier", least_kinds=2, leak_limit=0.98,
    metrics=METRICS, gaps=GAPS, primary="average_precision", gap="recall_gap", summary=SUMMARY,
    watched=("average_precision", "roc_auc", "precision", "recall", "positive_rate", "brier", "calibration_error"),
    card=("average_precision", "roc_auc", "brier", "calibration_error", "precision", "recall", "f1", "value_per_prediction"),
    card_slices=("average_precision", "recall", "precision"),
    rows=YesNo, money=money, kinds=kinds, threshold=_threshold, valued_threshold=True,
    summarise=_summarise, made_up=lambda part, targets: np.asarray(part == 1), draft=_DRAFT,
    describe=lambda output: (
        "The score is the probability of a positive outcome; from {border:.3f} on the label is positive. Where the value "
        "table sets that threshold, it is right for calibrated scores only: see the calibration error."
    ),
)  # fmt: skip
