"""Every metric there is: of which tasks, whether more is better, its best value, one line about it. One table for all rooms."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import Outcome, Task
from loopwright.records.package import Output

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression", "ranking", "anomaly")


class Metric(NamedTuple):
    """What a metric is: whether more is better, its best possible value if it has one, one line about it, the tasks it is for."""

    higher: bool
    best: float | None
    help: str
    tasks: tuple[Task, ...] = TASKS


_YES_NO: tuple[Task, ...] = ("binary", "anomaly")
_CLASSES: tuple[Task, ...] = ("binary", "multiclass")
_NUMBER: tuple[Task, ...] = ("regression",)
_ORDER: tuple[Task, ...] = ("ranking",)

METRICS: dict[str, Metric] = {
    "average_precision": Metric(True, 1.0, "area under the precision-recall curve, as a step function", _YES_NO),
    "roc_auc": Metric(True, 1.0, "chance that a positive row scores above a negative one", _YES_NO),
    "log_loss": Metric(False, 0.0, "mean negative log likelihood of the truth, in nats", _CLASSES),
    "brier": Metric(False, 0.0, "mean squared difference of score and truth (Brier 1950)", ("binary",)),
    "accuracy": Metric(True, 1.0, "share of right labels", _CLASSES),
    "balanced_accuracy": Metric(True, 1.0, "mean over the classes of the share that is found", ("multiclass",)),
    "macro_f1": Metric(True, 1.0, "mean over the classes of the harmonic mean of precision and recall", ("multiclass",)),
    "precision": Metric(True, 1.0, "share of the labelled that are positive", _YES_NO),
    "recall": Metric(True, 1.0, "share of the positive that are labelled", _YES_NO),
    "f1": Metric(True, 1.0, "harmonic mean of precision and recall", _YES_NO),
    "positive_rate": Metric(True, None, "share of rows that are labelled", _YES_NO),
    "calibration_error": Metric(
        False, 0.0, "expected calibration error of the score over ten equally wide bins (Naeini et al. 2015)", _CLASSES
    ),
    "mae": Metric(False, 0.0, "mean absolute error", _NUMBER),
    "rmse": Metric(False, 0.0, "root of the mean squared error", _NUMBER),
    "r2": Metric(True, 1.0, "share of the variance explained", _NUMBER),
    "mape": Metric(False, 0.0, "mean of the error as a share of the truth, over rows whose truth is not 0", _NUMBER),
    "bias": Metric(False, 0.0, "size of the mean error", _NUMBER),
    "mean_error": Metric(True, None, "mean of prediction less truth, with its sign", _NUMBER),
    "pinball": Metric(False, 0.0, "pinball loss, mean over the declared quantiles (Koenker and Bassett 1978)", _NUMBER),
    "map": Metric(True, 1.0, "mean over the groups of average precision (relevant is above 0)", _ORDER),
    "mrr": Metric(True, 1.0, "mean over the groups of 1 / place of the first relevant row", _ORDER),
    "value_per_prediction": Metric(
        True, None, "mean money per row by the value table, over no model", ("binary", "multiclass", "regression", "anomaly")
    ),
}
"""Metrics of rows."""

PARTS: dict[str, Metric] = {
    "top_k": Metric(True, 1.0, "share of rows whose class is among the K likeliest: top_k:3", ("multiclass",)),
    "recall": Metric(True, 1.0, "share of the rows of a class that are found: recall:CLASS", ("multiclass",)),
    "precision": Metric(True, 1.0, "share of the rows called a class that are of it: precision:CLASS", ("multiclass",)),
    "mae": Metric(False, 0.0, "mean absolute error of one target: mae:TARGET", _NUMBER),
    "rmse": Metric(False, 0.0, "root of the mean squared error of one target: rmse:TARGET", _NUMBER),
    "r2": Metric(True, 1.0, "share of the variance of one target explained: r2:TARGET", _NUMBER),
    "pinball": Metric(False, 0.0, "pinball loss of one declared quantile: pinball:0.9", _NUMBER),
    "coverage": Metric(True, 1.0, "share of truths between two declared quantiles: coverage:0.1-0.9", _NUMBER),
    "ndcg": Metric(
        True, 1.0, "normalised discounted cumulative gain of the first K: ndcg:10 (Jarvelin and Kekalainen 2002)", _ORDER
    ),
}
"""Metrics of rows that need a part named after a colon."""

GAPS: dict[str, Metric] = {
    "recall_gap": Metric(
        False,
        0.0,
        "largest minus smallest recall (of several classes: accuracy) over the values of a slice",
        (*_CLASSES, "anomaly"),
    ),
    "precision_gap": Metric(False, 0.0, "largest minus smallest precision over the values of a slice", _YES_NO),
    "positive_rate_gap": Metric(
        False, 0.0, "largest minus smallest share of labelled rows over the values of a slice", _YES_NO
    ),
    "mae_gap": Metric(False, 0.0, "largest minus smallest mean absolute error over the values of a slice", _NUMBER),
    "bias_gap": Metric(False, 0.0, "largest minus smallest mean error over the values of a slice", _NUMBER),
}
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

_PRIMARY: dict[Task, str] = {
    "binary": "average_precision",
    "multiclass": "macro_f1",
    "regression": "mae",
    "ranking": "ndcg:10",
    "anomaly": "average_precision",
}
_GAP: dict[Task, str] = {
    "binary": "recall_gap",
    "multiclass": "recall_gap",
    "regression": "mae_gap",
    "anomaly": "recall_gap",
}
_COVERAGE = re.compile(r"(0?\.\d+)-(0?\.\d+)")


def metric(name: str) -> Metric:
    """What a metric's name means. Raises DeclarationInvalid for a name that means nothing."""
    base, _, of = name.partition(":")
    found = PARTS.get(base) or GAPS.get(base) if of else METRICS.get(name) or MEASURES.get(name)
    if found is None:
        raise DeclarationInvalid("metric", [(name[:80], f"is not a metric; known are {', '.join(known(TASKS))}")])
    return found


def known(tasks: Collection[Task]) -> list[str]:
    """The metrics of some tasks, as they are written; those measured on the package last."""
    parts = [m.help.rpartition(": ")[2].partition(" ")[0] for m in PARTS.values() if set(m.tasks) & set(tasks)]
    names = [n for n, m in METRICS.items() if set(m.tasks) & set(tasks)]
    gaps = [f"{n}:SLICE" for n, m in GAPS.items() if set(m.tasks) & set(tasks)]
    return [*names, *parts, *gaps, *MEASURES]


def problem(name: str, slices: Collection[str], outcome: Outcome | Output = Output()) -> str:  # noqa: B008  # a frozen value
    """Why a metric's name cannot be used in a loop with these slices and this outcome; empty when it can."""
    base, _, of = name.partition(":")
    if name in MEASURES:
        return ""
    if of and base in GAPS and outcome.task in GAPS[base].tasks:
        return "" if of in slices else f"{name!r}: no slice {of!r}; the loop declares {', '.join(slices) or 'none'}"
    found = PARTS.get(base) if of else METRICS.get(name)
    if found is None or outcome.task not in found.tasks:
        other = "" if found is None else f" of a {outcome.task} loop"
        return f"{name[:80]!r} is not a metric{other}; known are {', '.join(known([outcome.task]))}"
    return _part_problem(name, base, of, outcome) if of or base == "pinball" else ""


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


def quantiles_of(name: str) -> list[float] | None:
    """The quantiles that a metric's name speaks of: none for `pinball`, one, or two; None where it cannot be read."""
    base, _, of = name.partition(":")
    if base == "coverage":
        found = _COVERAGE.fullmatch(of)
        return [float(found[1]), float(found[2])] if found and float(found[1]) < float(found[2]) else None
    try:
        return [float(of)] if of else []
    except ValueError:
        return None


def of_rows(name: str) -> bool:
    """Whether a metric is computed from rows (and so has an interval), not measured on the package."""
    return name not in MEASURES


def primary(task: Task) -> str:
    """The metric by which a task is judged where nobody says otherwise."""
    return _PRIMARY[task]


def gap(task: Task) -> str:
    """The gap between slices that is looked at without being asked for; empty where there is none."""
    return _GAP.get(task, "")


def measured(output: Output) -> list[str]:
    """The metrics that are measured on every package of this output."""
    names = [name for name, m in METRICS.items() if output.task in m.tasks]
    if output.task == "multiclass" and len(output.classes) > 3:
        names.append("top_k:3")
    if output.task == "ranking":
        names.append("ndcg:10")
    if output.quantiles:
        names += [f"pinball:{q:g}" for q in output.quantiles]
        if len(output.quantiles) > 1:
            names.append(f"coverage:{output.quantiles[0]:g}-{output.quantiles[-1]:g}")
    elif output.task == "regression":
        names.remove("pinball")
        names += [f"mae:{target}" for target in output.names]
    return names


def watched(output: Output) -> list[str]:
    """Those of them that are measured on logged answers, window by window."""
    if output.task == "binary":
        return ["average_precision", "roc_auc", "precision", "recall", "positive_rate", "brier", "calibration_error"]
    return [name for name in measured(output) if name != "value_per_prediction"]


def rate_of(gap: str, task: Task) -> str:
    """The metric whose spread over the values of a slice a gap is."""
    if gap == "recall_gap" and task == "multiclass":
        return "accuracy"
    return {"bias_gap": "mean_error"}.get(gap, gap.removesuffix("_gap"))


def summary(output: Output) -> Sequence[str]:
    """The few of them that are watched by slice and shown first."""
    return {
        "binary": ("precision", "recall", "positive_rate"),
        "anomaly": ("precision", "recall", "positive_rate"),
        "multiclass": ("accuracy", "macro_f1"),
        "regression": ("mae", "mean_error"),
        "ranking": ("ndcg:10", "mrr"),
    }[output.task]
