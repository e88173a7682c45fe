"""All metrics by name: those of the tasks, and measures of the package. The only table of metrics."""

from collections.abc import Collection, Sequence

from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import SHAPES, Objective, Outcome, Task
from loopwright.records.package import Output
from loopwright.tasks.registry import TASKS
from loopwright.tasks.regression import quantiles_of
from loopwright.tasks.task import Metric

METRICS = {name: metric for task in TASKS.values() for name, metric in task.metrics.items()}
"""Metrics of rows."""

PARTS = {name: metric for task in TASKS.values() for name, metric in task.part_metrics.items()}
"""Metrics of rows that need a part named after a colon."""

GAPS = {name: metric for task in TASKS.values() for name, metric in task.gaps.items()}
"""Metrics of rows and a slice, written `recall_gap:SLICE`."""

MEASURES: dict[str, Metric] = {
    "latency_p50_us": Metric(False, 0.0, "median time of one row through the graph, microseconds"),
    "latency_p99_us": Metric(False, 0.0, "99th percentile of the time of one row through the graph, microseconds"),
    "latency_p50_ms": Metric(False, 0.0, "the same median in milliseconds"),
    "latency_p99_ms": Metric(False, 0.0, "the same percentile in milliseconds"),
    "size_bytes": Metric(False, 0.0, "size of the graph"),
    "load_ms": Metric(False, 0.0, "how long the graph takes to load, milliseconds"),
    "memory_bytes": Metric(False, 0.0, "memory of the loaded graph"),
    "train_seconds": Metric(False, 0.0, "how long training took, search included"),
}
"""What is measured on the package rather than on rows."""


def metric(name: str) -> Metric:
    """Parse a metric's name. Raises DeclarationInvalid for an unknown one."""
    base, _, of = name.partition(":")
    found = PARTS.get(base) or GAPS.get(base) if of else METRICS.get(name) or MEASURES.get(name)
    if found is None:
        raise DeclarationInvalid("metric", [(name[:80], f"is not a metric; known are {', '.join(known(TASKS))}")])
    return found


def known(tasks: Collection[Task]) -> list[str]:
    """The metrics of some tasks, as they are written; those measured on the package last."""
    every = [TASKS[task] for task in tasks]
    parts = [m.help.rpartition(": ")[2].partition(" ")[0] for task in every for m in task.part_metrics.values()]
    gaps = [f"{n}:SLICE" for task in every for n in task.gaps]
    return list(dict.fromkeys([*(n for task in every for n in task.metrics), *parts, *gaps, *MEASURES]))


def problem(name: str, slices: Collection[str], outcome: Outcome | Output = Output()) -> str:  # noqa: B008  # a frozen value
    """Why a metric's name cannot be used in a loop with these slices and this outcome; empty when it can."""
    (base, _, of), task = name.partition(":"), TASKS[outcome.task]
    if name in MEASURES:
        return ""
    if of and base in task.gaps:
        return "" if of in slices else f"{name!r}: no slice {of!r}; the loop declares {', '.join(slices) or 'none'}"
    if base not in task.part_metrics if of else name not in task.metrics:
        other = f" of a {outcome.task} loop" if (base in PARTS if of else name in METRICS) else ""
        return f"{name[:80]!r} is not a metric{other}; known are {', '.join(known([outcome.task]))}"
    return _part_problem(name, base, of, outcome) if of or base == "pinball" else ""


def unattainable(objective: Objective) -> str:
    """Why no model can meet the target of an objective, as one beyond the best value that its metric can have; empty when one may."""
    about, least, most = metric(objective.metric), objective.at_least, objective.at_most
    if about.best is None or (least is None or least <= about.best if about.higher else most is None or most >= about.best):
        return ""
    target = f"at_least={least:g}" if about.higher else f"at_most={most:g}"
    return f"{objective.metric}: {target} can never be met, the best there is is {about.best:g}"


def _part_problem(name: str, base: str, of: str, outcome: Outcome | Output) -> str:
    """Why the part after the colon cannot be."""
    if base in ("top_k", "ndcg"):
        return "" if of.isdecimal() and int(of) > 0 else f"{name!r}: write a whole number, such as {base}:3"
    if base in ("pinball", "coverage"):
        declared = ", ".join(f"{q:g}" for q in outcome.quantiles) or "none"
        wanted = quantiles_of(name)
        if not outcome.quantiles or wanted is None or any(q not in outcome.quantiles for q in wanted):
            example = "coverage:0.1-0.9" if base == "coverage" else "pinball:0.9"
            return f"{name!r}: name declared quantiles, such as {example}; the outcome declares {declared}"
        return ""
    targets = (list(outcome.labels) if len(outcome.labels) > 1 else []) if isinstance(outcome, Outcome) else outcome.names
    if base in ("mae", "rmse", "r2") and (outcome.quantiles or of not in targets):
        return f"{name!r}: no target {of!r}; the outcome declares {', '.join(targets) or 'one'}"
    return ""  # a class is known once there are examples; one that is not there measures as no data


def of_rows(name: str) -> bool:
    """Whether a metric is computed from rows (and so has an interval), not measured on the package."""
    return name not in MEASURES


def primary(task: Task) -> str:
    """The metric by which a task is judged where nobody says otherwise."""
    return TASKS[task].primary


def decay(task: Task) -> str:
    """The metric of decay where none is declared: one that stays where only the shares of the labels change."""
    return TASKS[task].decay or TASKS[task].primary


def moves_with_labels(name: str, task: Task) -> bool:
    """Whether a metric changes where only the shares of the labels do (the base rate), and the model does not."""
    return bool(TASKS[task].steady) and name.partition(":")[0] not in TASKS[task].steady


def adjusts(name: str, task: Task) -> bool:
    """Whether it can be measured at another base rate: labels are yes and no, and it is of all rows together."""
    return SHAPES[task].has_border and name.partition(":")[0] not in GAPS


def gap(task: Task) -> str:
    """The gap between slices that is looked at without being asked for; empty where there is none."""
    return TASKS[task].gap


def measured(output: Output) -> list[str]:
    """The metrics that are measured on every package of this output."""
    task = TASKS[output.task]
    return task.measured(output, list(task.metrics))


def watched(output: Output) -> list[str]:
    """Select the metrics that are measured on logged answers, window by window."""
    return list(TASKS[output.task].watched) or [name for name in measured(output) if name != "value_per_prediction"]


def summary(output: Output) -> Sequence[str]:
    """The few of them that are watched by slice and shown first."""
    return TASKS[output.task].summary
