"""Quality that is too good to be true: practically perfect metrics, which leaks cause and real data rarely allow.

Practically perfect is a validation metric within a thousandth of its best possible value (average precision: a hundredth), on
enough rows to rule out chance. A real problem can be that easy; a column that was filled in afterwards always is.
"""

from loopwright.records.declarations import SHAPES, Task
from loopwright.records.evaluation import Evaluation

MIN_ROWS, MIN_OF_A_CLASS = 100, 10


def practically_perfect(evaluation: Evaluation, task: Task) -> str:
    """The measures that are practically perfect, in words; empty where the quality is believable or rows are too few to say."""
    shown = "" if _few(evaluation, task) else _perfect(evaluation, task)
    return (
        f"{shown} on {evaluation.rows:,} rows is practically perfect, as if the answer were among the columns" if shown else ""
    )


def perfect_on_few(evaluation: Evaluation, task: Task) -> str:
    """The metrics that are practically perfect on too few rows to distinguish a leak from an easy problem, in words; else empty."""
    few = _few(evaluation, task)
    shown = _perfect(evaluation, task) if few else ""
    return f"{shown} on {few}: practically perfect, on too few to tell an easy problem from a leak" if shown else ""


def _few(evaluation: Evaluation, task: Task) -> str:
    """The rows, where chance alone may make them look perfect: too few, or too few of the rarer label; else empty."""
    rarer = min(evaluation.positives, evaluation.rows - evaluation.positives)
    if SHAPES[task].has_border and rarer < MIN_OF_A_CLASS:
        return f"{evaluation.rows:,} rows, {rarer:,} of the rarer label"
    return f"{evaluation.rows:,} rows" if evaluation.rows < MIN_ROWS else ""


def _perfect(evaluation: Evaluation, task: Task) -> str:
    least = SHAPES[task].perfect
    measured = {name: evaluation.metrics.get(name) for name in least}
    if any(found is None or not found.value >= least[name] for name, found in measured.items()):
        return ""
    return " and ".join(f"{name.replace('_', ' ')} {found.value:.4f}" for name, found in measured.items() if found is not None)


def too_good(evaluation: Evaluation, task: Task) -> list[str]:
    """Why the quality of a package is too good to be true, and which of its features may be why; empty where it is believable."""
    perfect = practically_perfect(evaluation, task)
    return [*([perfect] if perfect else []), *(f"{s.what} {s.why}" for s in evaluation.suspects if s.used)]
