"""Binary: the label is true or false, predicted is the probability of true."""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.tasks.statistic import TINY, Statistic, calibration, gaps, mean, ratio, undefined
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
    "recall_gap": gap_metric("recall (of several classes: accuracy)"),
    "precision_gap": gap_metric("precision"),
    "positive_rate_gap": gap_metric("share of labelled rows"),
}

SUMMARY = ("precision", "recall", "positive_rate")

STEADY = ("roc_auc", "recall", "recall_gap")
"""They are of positives and negatives apart, so that more of either alone moves none of them."""


def statistics(names: Sequence[str], data: RowData) -> list[Statistic]:
    """Binary and anomaly: `truth` bool [N], score [N], label bool [N]; `earned` is money over no model [N], if there is any."""
    truth, score = np.asarray(data.truth, dtype=np.bool_), data.answers.score
    label, everything = np.asarray(data.answers.label, dtype=np.bool_), np.ones(len(truth))
    hit = truth & label
    rates = {"recall_gap": (hit, truth), "precision_gap": (hit, label), "positive_rate_gap": (label, everything)}
    of_slices = gaps(names, data.slices, rates)
    ranked = Ranked(truth, score) if {"average_precision", "roc_auc"} & set(names) else None

    def one(name: str) -> Statistic:
        if name in of_slices:
            return of_slices[name]
        match name:
            case "average_precision" if ranked is not None:
                return ranked.average_precision()
            case "roc_auc" if ranked is not None:
                return ranked.roc_auc()
            case "accuracy":
                return ratio(truth == label, everything, "rate")
            case "precision":
                return ratio(hit, label, "rate")
            case "recall":
                return ratio(hit, truth, "rate")
            case "f1":
                return ratio(2 * hit.astype(np.float64), truth.astype(np.float64) + label, "logit")._replace(
                    events=float((truth | label).sum())
                )
            case "positive_rate":
                return ratio(label, everything, "rate")
            case "calibration_error":
                return calibration(score, truth)
            case _:
                return _of_probability(name, truth, score, data.earned)

    return [one(name) for name in names]


def _of_probability(name: str, truth: Array, score: Array, earned: Array | None) -> Statistic:
    if name == "brier":
        return mean(np.square(score - truth), "log")
    if name == "log_loss":
        p = np.clip(score, TINY, 1 - TINY)
        return mean(-np.where(truth, np.log(p), np.log1p(-p)), "log")
    assert earned is not None
    return mean(earned)


class Ranked:
    """Rows [N] sorted by their score: how many positives and how many rows are at or above each distinct score."""

    def __init__(self, truth: Array, score: Array) -> None:
        self.truth, n = truth, len(truth)
        order = np.argsort(-score, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(score[order])), n - 1)
        self.place = np.empty(n, dtype=np.int64)
        self.place[order] = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
        self.found, self.rows = np.cumsum(truth[order])[ends].astype(np.float64), (ends + 1).astype(np.float64)
        self.positives = float(truth.sum())
        self.events = min(self.positives, n - self.positives)

    def average_precision(self) -> Statistic:
        """Area under the precision-recall curve, as a step function; a row moves its own precision and that of all below it."""
        if not self.positives:
            return undefined(len(self.truth))
        precision, here = self.found / self.rows, np.diff(self.found, prepend=0.0)
        value = float(here @ precision) / self.positives
        more, less = (np.cumsum(part[::-1])[::-1] for part in (here / self.rows, here * precision / self.rows))
        influence = np.where(self.truth, (precision + more)[self.place] - value, 0.0) - less[self.place]
        return Statistic(value, influence / self.positives, self.truth / self.positives, self.events, "logit")

    def roc_auc(self) -> Statistic:
        """Chance that a positive row scores above a negative one (DeLong, DeLong & Clarke-Pearson 1988)."""
        negatives = len(self.truth) - self.positives
        if not self.positives or not negatives:
            return undefined(len(self.truth))
        here, false = np.diff(self.found, prepend=0.0), self.rows - self.found
        below = 1 - (false - np.diff(false, prepend=0.0) / 2) / negatives  # share of the negatives below each score
        above = (self.found - here / 2) / self.positives  # share of the positives above it
        value = float(here @ below) / self.positives
        influence = np.where(self.truth, (below[self.place] - value) / self.positives, (above[self.place] - value) / negatives)
        return Statistic(value, influence, np.where(self.truth, 0.5 / self.positives, 0.5 / negatives), self.events, "logit")


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
    metrics=METRICS, gaps=GAPS, primary="average_precision", decay="roc_auc", steady=STEADY, gap="recall_gap", summary=SUMMARY,
    watched=("average_precision", "roc_auc", "precision", "recall", "positive_rate", "brier", "calibration_error"),
    card=("average_precision", "roc_auc", "brier", "calibration_error", "precision", "recall", "f1", "value_per_prediction"),
    card_slices=("average_precision", "recall", "precision"),
    statistics=statistics, money=money, kinds=kinds, threshold=_threshold, valued_threshold=True,
    summarise=_summarise, made_up=lambda part, targets: np.asarray(part == 1), draft=_DRAFT,
    describe=lambda output: (
        "The score is the probability of a positive outcome; from {border:.3f} on the label is positive."
    ),
)  # fmt: skip
