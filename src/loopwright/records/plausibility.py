"""Quality that is too good to be true: what a leak does to a measure, and what real data hardly ever allow.

Practically perfect is a validation measure at its best possible value but for a thousandth (average precision: a hundredth), on
rows enough that chance does not get there. An honest problem can be that easy; a column that was filled in afterwards always is.
"""

from collections.abc import Mapping

from loopwright.records.declarations import Task
from loopwright.records.evaluation import Evaluation

LEAST_ROWS, LEAST_OF_A_CLASS = 100, 10

PERFECT: Mapping[Task, Mapping[str, float]] = {
    "binary": {"roc_auc": 0.999, "average_precision": 0.99},
    "anomaly": {"roc_auc": 0.999, "average_precision": 0.99},
    "multiclass": {"macro_f1": 0.999, "accuracy": 0.999},
    "regression": {"r2": 0.999},
    "ranking": {"ndcg:10": 0.999, "map": 0.999},
}
"""What each measure of a task must reach, all of them, to be practically perfect."""


def practically_perfect(evaluation: Evaluation, task: Task) -> str:
    """The measures that are practically perfect, in words; empty where the quality is believable or rows are too few to say."""
    if evaluation.rows < LEAST_ROWS:
        return ""
    rarer = min(evaluation.positives, evaluation.rows - evaluation.positives)
    if task in ("binary", "anomaly") and rarer < LEAST_OF_A_CLASS:
        return ""
    measured = {name: evaluation.metrics.get(name) for name in PERFECT[task]}
    if any(found is None or not found.value >= PERFECT[task][name] for name, found in measured.items()):
        return ""
    shown = " and ".join(f"{name.replace('_', ' ')} {found.value:.4f}" for name, found in measured.items() if found is not None)
    return f"{shown} on {evaluation.rows:,} rows is practically perfect, as if the answer were among the columns"


def too_good(evaluation: Evaluation, task: Task) -> list[str]:
    """Why the quality of a package is too good to be true, and which of its features may be why; empty where it is believable."""
    perfect = practically_perfect(evaluation, task)
    return [*([perfect] if perfect else []), *(f"{s.what} {s.why}" for s in evaluation.suspects if s.used)]
