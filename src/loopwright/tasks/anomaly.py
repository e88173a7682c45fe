"""Anomaly detection: predicts an anomaly score; the label is true for an anomaly, where labels exist."""

import numpy as np

from loopwright.base.arrays import Array
from loopwright.tasks.binary import GAPS, METRICS, STEADY, SUMMARY, kinds, money, statistics
from loopwright.tasks.task import Border, LabelQuery, LabelSummary, TaskType

_OF_PROBABILITIES = ("log_loss", "brier", "accuracy", "calibration_error")


def _threshold(border: Border) -> float:
    """The score exceeded by the declared share of alerts; scores with two values are a condition: the threshold is between them."""
    distinct = np.unique(border.score)
    return float(distinct.mean()) if len(distinct) == 2 else alert_threshold(border.score, border.alert_share)


def alert_threshold(score: Array, share: float) -> float:
    """The score from which on a row is called an anomaly: at most `share` of the training scores are above the one below it."""
    return float(np.quantile(score, 1 - share, method="higher"))


def _summarise(labels: LabelQuery) -> LabelSummary:
    [(positives, known)] = labels.run("SELECT count(*) FILTER (_label), count(_label) FROM kept")
    return LabelSummary(positives, f"{known:,} with a known outcome, {positives:,} of them anomalies")


ANOMALY = TaskType(
    name="anomaly", estimator="detector", learns_unjudged=True, leak_limit=0.98,
    metrics={name: metric for name, metric in METRICS.items() if name not in _OF_PROBABILITIES},
    gaps=GAPS, primary="average_precision", decay="roc_auc", steady=STEADY, gap="recall_gap", summary=SUMMARY,
    statistics=statistics, money=money, kinds=kinds, threshold=_threshold,
    summarise=_summarise, made_up=lambda part, targets: np.zeros(len(part), dtype=np.bool_),
    describe=lambda output: "The score says how strange a request is; from {border:.4g} on it is called an anomaly.",
)  # fmt: skip
