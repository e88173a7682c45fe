"""Differences between tasks, as one frozen value: facts, and functions of arrays. Types are in `records.declarations.task`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from loopwright.base.arrays import Array
from loopwright.records.declarations import SHAPES, Task, TaskShape, Value
from loopwright.records.package import Output
from loopwright.tasks.statistic import Slices, Statistic


class Metric(NamedTuple):
    """A metric: whether higher is better, its best possible value if it has one, one line of help (with its paper)."""

    higher: bool
    best: float | None
    help: str


class Answered(NamedTuple):
    """Answers on N rows: score [N], label (bool [N], or string [N] of classes; None if the task has none), values [N, K] or None."""

    score: Array
    label: Array | None = None
    values: Array | None = None

    def at(self, rows: Array) -> "Answered":
        """Those of some rows (a mask or indices)."""
        return Answered(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]  # score is never None


class RowData(NamedTuple):
    """N rows that metrics are computed of: the truth [N], the answers, money over no model [N], slices and groups [N], if there are any."""

    truth: Array
    answers: Answered
    output: Output = Output()
    earned: Array | None = None
    slices: Slices | None = None
    groups: Array | None = None


class LabelQuery(NamedTuple):
    """Input of a label summary: `run` runs a query over table `kept`, whose column `_label` has the labels of `rows` examples.

    `targets` are the names of the targets, `group` the quoted name of the group column, if there is one.
    """

    run: Callable[[str], list[tuple[Any, ...]]]
    rows: int
    targets: Sequence[str]
    group: str


class LabelSummary(NamedTuple):
    """Number of true labels (0 if the task has none), a few words, and the reason why no model can learn from them, if any."""

    positives: int
    words: str
    problem: str = ""


class Border(NamedTuple):
    """Input of the threshold function.

    Scores [N], the share of positives among the training rows, the declared share of alerts, and the score from which on acting pays
    by the value table, if there is one.
    """

    score: Array
    share: float
    alert_share: float
    pays: float | None


class Draft(NamedTuple):
    """Texts of `loopwright init` for a task, and its measure of rules on one column."""

    wish: str  # name of the first objective
    metric: str
    bound: str  # at_least or at_most
    value: str  # arguments of the value table
    linear: str  # class of the linear candidate, and its arguments
    settings: str
    boosted: str  # class of the boosted candidate
    what: Callable[[str, int], str]  # the prediction target in words, from the label's name and the number of different labels
    guess: Callable[[Array], Any]  # the best single answer for a truth [N]
    reach: Callable[[Array, Any], float]  # the metric of a guess in the first objective on a truth [N]
    worth: Callable[[Array, Array], float]  # the quality of a condition [N] as a predictor of a truth [N]
    unpriced: str = " each class is as good as another"  # without a value table
    objective: str = ""  # the objective of the boosted candidate, if not its default
    is_condition: bool = False  # a rule is the condition itself, and not one answer or another by it


def gap_metric(rate: str) -> Metric:
    """The gap of a rate between the values of a slice."""
    return Metric(False, 0.0, f"largest minus smallest {rate} over the values of a slice")


def no_money(value: Value, truth: Array, answers: Answered) -> tuple[Array, Array]:
    """Money is not defined for the task: every answer, and no answer, is worth 0."""
    del value, answers
    return np.zeros(len(truth)), np.zeros(len(truth))


@dataclass(frozen=True, kw_only=True)
class TaskType:
    """One task: facts, and functions of a truth [N] and the answers to it. See `SHAPES` for its types."""

    name: Task
    estimator: Literal["classifier", "regressor", "detector"]  # kind of its candidates
    learns_unjudged: bool = False  # also from decisions with unknown outcome
    least_kinds: int = 0  # how many different labels each part of a split needs
    leak_limit: float  # limit from which a column leaks the label: see `tasks.leakage`
    metrics: Mapping[str, Metric]  # of rows
    part_metrics: Mapping[str, Metric] = field(default_factory=dict)  # of rows, with a part named after a colon
    gaps: Mapping[str, Metric] = field(default_factory=dict)  # of rows and a slice, written GAP:SLICE
    primary: str  # default metric of the task
    decay: str = ""  # default metric of decay; empty: `primary`
    steady: Sequence[str] = ()  # metrics that stay where only the shares of the labels change; empty: labels are no classes
    gap: str = ""  # the gap that is looked at by itself
    summary: Sequence[str]  # the few metrics that are watched by slice and shown first
    watched: Sequence[str] = ()  # measured on logged answers, by window; empty: all but money
    card: Sequence[str] = ()  # shown by a model card; empty: all
    card_slices: Sequence[str] = ()  # by slice; empty: `summary`
    statistics: Callable[
        [Sequence[str], RowData], list[Statistic]
    ]  # metrics of rows by their names; NaN where undefined, never 0
    measured: Callable[[Output, list[str]], list[str]] = lambda output, names: (
        names
    )  # on every package, from names of `metrics`
    money: Callable[[Value, Array, Answered], tuple[Array, Array]] = no_money  # of each answer [N], and [N] without any answer
    money_words: tuple[str, str] = ("expects", " over no model")  # before and after a number of expected money
    kinds: Callable[[Array, Answered], dict[str, Array]] = (
        lambda truth, answers: {}
    )  # of answers, masks [N]; None: not right or wrong
    threshold: Callable[[Border], float] | None = None  # score from which a label is positive; None: no threshold
    valued_threshold: bool = False  # a value table sets it, for the heuristic as for the model
    middle: Callable[[Array], list[float]] = lambda truth: [0.0]  # replaces null answers of a heuristic, by target
    summarise: Callable[[LabelQuery], LabelSummary]  # the labels of examples
    made_up: Callable[
        [Array, Array], Array
    ]  # labels for a rehearsal, from whole numbers 0 to 2 [N] and positive numbers [N, targets]
    describe: Callable[[Output], str]  # answers in a sentence, with places for `names`, `border` and `group`
    draft: Draft | None = None  # None: `init` proposes no loop of this task

    @property
    def shape(self) -> TaskShape:
        """Types of its labels and answers."""
        return SHAPES[self.name]


MONEY = Metric(True, None, "mean money per row by the value table, over no model")
"""The metric `value_per_prediction` of every task with money."""
