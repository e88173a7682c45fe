"""Multiclass: the label is one of several strings, predicted is the probability of each."""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import Value
from loopwright.records.package import Output
from loopwright.tasks import binary
from loopwright.tasks.statistic import TINY, Statistic, calibration, gaps, mean, ratio
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

GAPS = {"recall_gap": binary.GAPS["recall_gap"]}


def statistics(names: Sequence[str], data: RowData) -> list[Statistic]:
    """Multiclass: `truth` and label string [N], values [N, K] in the order of the output's classes."""
    truth, given, output = data.truth, data.answers, data.output
    n, everything = len(truth), np.ones(len(truth))
    classes, code = np.unique([*np.asarray(truth, dtype=str), *np.asarray(given.label, dtype=str)], return_inverse=True)
    true, said = code[:n], code[n:]
    right = true == said
    values = given.values if given.values is not None else np.zeros((n, len(output.classes)))
    place_of = {c: i for i, c in enumerate(output.classes)}
    place = np.array([place_of.get(c, -1) for c in classes.tolist()], dtype=np.int64)[true]
    own = np.where(place >= 0, values[np.arange(n), place], 0.0)[:, None]
    of_slices = gaps(names, data.slices, {"recall_gap": (right, everything)})

    def before() -> Array:
        """How many classes are likelier than the true one."""
        later = np.arange(values.shape[1])[None, :] > place[:, None]
        return np.where(place >= 0, ((values > own) | ((values == own) & later)).sum(axis=1), values.shape[1])

    def one(name: str) -> Statistic:
        base, _, of = name.partition(":")
        if name in of_slices:
            return of_slices[name]
        if of and base in ("recall", "precision"):
            under = (true if base == "recall" else said) == (classes.tolist().index(of) if of in classes else -1)
            return ratio(right & under, under, "rate")
        match base:
            case "accuracy":
                return ratio(right, everything, "rate")
            case "balanced_accuracy":
                return _by_class(true, [true], right, len(classes))
            case "macro_f1":
                return _by_class(true, [true, said], right, len(classes))
            case "calibration_error":
                return calibration(given.score, right)
            case "log_loss":
                return mean(-np.log(np.clip(own[:, 0], TINY, 1.0)), "log")
            case "top_k":
                return ratio(before() < int(of), everything, "rate")
            case _:
                assert data.earned is not None
                return mean(data.earned)

    return [one(name) for name in names]


def _by_class(true: Array, sides: Sequence[Array], right: Array, classes: int) -> Statistic:
    """The mean over classes of their hits by their rows on each of the sides, the hits counted once a side; classes without rows are left out.

    It has as many events as half its classes have rows on fewer of: classes of a few rows are told by chance.
    """
    hits, counts = (
        np.bincount(true[right], minlength=classes),
        np.sum([np.bincount(side, minlength=classes) for side in sides], axis=0),
    )
    there = np.asarray(counts > 0)
    rates = np.where(there, len(sides) * hits / np.maximum(counts, 1), 0.0)
    influence = np.where(right, len(sides) / np.maximum(counts, 1)[true], 0.0)
    leverage = np.zeros(len(true))
    for side in sides:
        influence = influence - (rates / np.maximum(counts, 1))[side]
        leverage = leverage + (1 / np.maximum(counts, 1))[side] / there.sum()
    events = float(np.median(np.bincount(true, minlength=classes)[there]))
    return Statistic(float(rates[there].mean()), influence / there.sum(), leverage, events, "logit")


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
    decay="balanced_accuracy", steady=("balanced_accuracy", "recall"),
    statistics=statistics, measured=_measured, money=_money, kinds=_kinds,
    summarise=_summarise, made_up=lambda part, targets: np.array(["a", "b", "c"])[part], draft=_DRAFT,
    describe=lambda output: "It gives the probability of each class ({names}); the label is the likeliest, the score its probability.",
)  # fmt: skip
