"""The package: an immutable folder named by the SHA-256 of its manifest. `develop` makes it, `deploy` and `monitor` read it.

    manifest.json       this file's `Manifest`; names every other file with its SHA-256 and size
    model.onnx          features + estimator in one graph: outputs `score` (float32 [N]) and, if any, `values` (float32 [N, K],
                        see `Output`) and `features` (float32 [N, F])
    heuristic.onnx      the fall-back: output `score` (float32 [N])
    slices.onnx         one string output [N] per slice, named by the slice (absent when the loop has no slices)
    evaluation.json     `Evaluation`
    reference.json      `Reference`: compact summary of training inputs and outputs, and golden requests with their answers
    explanation.msgpack contributions of the features, see `graph.contributions`; absent without an exact explanation
    explain.onnx        from `features` to the matrix that is explained: `matrix` (float64 [N, G]); absent where that is `features`
    MLmodel             so that `mlflow.pyfunc.load_model` works on the folder; with requirements.txt, conda.yaml and python_env.yaml
                        `mlflow models serve` does
    card.md             the model card

Files are read once, hashed, and those same bytes are used. Nothing is ever unpickled.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from loopwright.records.declarations import SHAPES, Column, GroupSplit, StratifiedSplit, Task, TaskShape, TimeSplit

GOLDEN_TOLERANCE = 1e-6
NUMBER_TOLERANCE = 1e-5


class ContextNeed(msgspec.Struct, frozen=True, kw_only=True):
    """A look-up for a request while serving: the row of `table` in force, or aggregates over it, matched on `by`.

    `by` maps table columns to request columns. `store` names the steps in the online table (made by `data.examples.asof`), and
    `values` the columns whose values they hold, in order (a manifest loses that of `columns`). A row whose event time is more than `max_age_s` seconds before the decision counts
    as missing. Rows count from `lag_s` seconds after they became known, by when serving must have them. `empty`
    is the value of a column where no row counts (null if not named); missing context is flagged, so `empty` is for
    aggregates only.
    """

    table: str
    by: dict[str, str]
    columns: dict[str, Column]
    max_age_s: float | None = None
    store: str = ""
    values: list[str] = []
    lag_s: float = 0.0
    empty: dict[str, Any] = {}


class FileInfo(msgspec.Struct, frozen=True):
    """SHA-256 and size in bytes of one file of a package."""

    sha256: str
    size: int


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """The training of a package: the examples record, its rows, its newest decision, and the time of fitting."""

    examples: str
    rows: int
    as_of: datetime
    first: datetime
    last: datetime
    sources: dict[str, int]
    seconds: float


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """Differences between graph and estimator on the validation rows.

    `max_difference` is at most `tolerance`; it is `relative` to max(1, |number|) unless probabilities are compared.
    """

    rows: int
    max_difference: float
    tolerance: float = 1e-6
    relative: bool = False


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """The output of a package. `names` are the columns of the graph's output `values` (float32 [N, K]), none if K = 0.

    binary      score = P(true), no values; the label is score >= threshold
    multiclass  values = the probability of each of `classes` (sorted, `names` are the same); score = the largest of them, the
                label its class
    regression  score = the number predicted (of several targets the first, of several quantiles the one nearest the median);
                values = one column per target or quantile ("q0.9") where there are several; no label
    ranking     score = what to sort by; no values, no label
    anomaly     score = anomaly score (larger is more anomalous); the label is score >= threshold

    `quantiles` are those in `names`, none otherwise.
    """

    task: Task = "binary"
    classes: list[str] = []
    names: list[str] = []
    quantiles: list[float] = []

    @property
    def shape(self) -> TaskShape:
        """Types of its labels and answers."""
        return SHAPES[self.task]


def tolerance(output: Output, score: float) -> float:
    """By how much a golden answer may differ."""
    return GOLDEN_TOLERANCE if output.shape.is_probability else NUMBER_TOLERANCE * max(1.0, abs(score))


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of a column, or of the label, as columns of tables (`TABLE.COLUMN`).

    `of` are the columns that its value is computed from, `by` those that select the rows: keys and times. `how` describes
    the computation, where it is more than the value of one row.
    """

    of: list[str] = []
    by: list[str] = []
    how: str = ""


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Lineage of features, heuristic and slices from columns of the contract, and of those from tables.

    `features` maps a feature to the columns that reach it in the graph, `slices` a slice to its own; `columns` maps every
    column of the contract, and `labels` every target, to the table columns that it is computed from.
    """

    features: dict[str, list[str]] = {}
    heuristic: list[str] = []
    slices: dict[str, list[str]] = {}
    columns: dict[str, Origin] = {}
    labels: dict[str, Origin] = {}

    def reaches_model(self, column: str) -> bool:
        """Whether a column of the contract reaches the answer: by a feature, or by the rule of a package that has none.

        Every column does in a package that was made before lineage was recorded.
        """
        if not self.columns:
            return True
        return any(column in used for used in self.features.values()) if self.features else column in self.heuristic


class SplitSide(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a split: its rows, the units and groups in them, first and last decision, SHA-256 of the rows' ids in order.

    A row's id is `UNIT|MICROSECONDS OF DECISION|PREDICTION`, ended by a newline; `groups` is 0 unless the split is by group.
    """

    rows: int
    units: int
    groups: int
    first: datetime
    last: datetime
    digest: str


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """How examples were divided, with the proof that training and validation are disjoint: every count of `overlap` is 0.

    `boundary` is the last moment before validation (by time only); `left_out` counts rows in neither part by reason; `cuts` are
    by stratum ("" for groups) the hash value up to which rows validate, `edges` the limits between strata of numeric labels:
    see `tasks.split`, which assigns any row to its side by them. `extended` is the reason why validation reaches further back than
    declared, or "".
    """

    split: TimeSplit | GroupSplit | StratifiedSplit
    seed: int
    boundary: datetime | None
    training: SplitSide
    validation: SplitSide
    left_out: dict[str, int]
    overlap: dict[str, int]
    cuts: dict[str, float]
    edges: list[float] = []
    extended: str = ""


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling and weights of training rows, by label: rows `available`, rows `sampled` for fitting, the weight of each.

    `factors` undo it: the graph multiplies the probability of each label by its factor and makes them sum to one again.
    """

    available: dict[str, int] = {}
    sampled: dict[str, int] = {}
    weights: dict[str, float]
    factors: dict[str, float]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How the score became a probability, and the threshold for it; decided on training rows, scored by models not fitted on them.

    Log odds of `sigmoid` and `beta` are a ln s - b ln(1 - s) + c with `coefficients` [a, b, c]; `isotonic` joins `points` (score,
    probability) by lines. `method` is "" where scores are used as they are; `why` says so in numbers. `log_loss` has that of each
    method tried ("": of the scores as they were) on the `rows`, which it was not fitted on either. `threshold_by` says what set the
    threshold, `seconds` what all of this took.
    """

    method: Literal["", "sigmoid", "beta", "isotonic"] = ""
    coefficients: list[float] = []
    points: list[tuple[float, float]] = []
    why: str = ""
    threshold: float
    threshold_by: str = "the value table"
    rows: int = 0
    positives: int = 0
    log_loss: dict[str, float] = {}
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """The calibration and the threshold in a sentence."""
        scores = f"calibrated by {self.method}" if self.method else "used as they are"
        border = "no score is acted on" if self.threshold > 1 else f"acted on from {self.threshold:.3f}"
        return f"scores are {scores} ({self.why}), and {border} (by {self.threshold_by})"


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """The requests that a segment package answers: those whose `column` has `value` (as text)."""

    column: str
    value: str


class Explained(msgspec.Struct, frozen=True):
    """Answer of `explain=true`: the method, and the unit in which contributions and base add up; or `why` there are none.

    `elements` is the number of conditions (of trees) that one row is tested against: the cost of an explanation.
    """

    method: str = ""
    unit: str = ""
    why: str = ""
    elements: int = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a package but its bytes. `request`, `key`, `event_time` are the contract of the request.

    Unused columns of `request` are nullable and optional there, whatever the table's contract says (`unused_optional`).
    `group` is the request column within which is ranked, `unit` that of the independent units ("": the key); `heuristic_threshold` that of the heuristic, where it is not `threshold`.
    `explained` is None for packages of versions without explanations, `calibration` where no value table sets the threshold, and of rules.
    """

    format: int
    loop: str
    candidate: str
    phase: int
    created_at: datetime
    by: str
    declaration: str
    request: dict[str, Column]
    key: list[str]
    event_time: str
    context: list[ContextNeed]
    features: list[str]
    vocabulary: dict[str, list[str]]
    slices: list[str]
    threshold: float
    params: dict[str, Any]
    seed: int
    training: Training
    conversion: Conversion
    commit: str
    environment: dict[str, str]
    parent: str
    release: dict[str, Any]
    files: dict[str, FileInfo]
    output: Output = Output()
    group: str = ""
    unit: str = ""
    heuristic_threshold: float | None = None
    segment: Segment | None = None
    lineage: Lineage = Lineage()
    split: Partition | None = None
    sampling: Sampled | None = None
    explained: Explained | None = None
    calibration: Calibration | None = None

    def looked_up(self, table: str) -> set[str]:
        """The columns of a table that requests are joined with and that reach a feature, the heuristic or a slice, and keys."""
        used = {c for columns in (*self.lineage.features.values(), *self.lineage.slices.values()) for c in columns}
        used |= {*self.lineage.heuristic}
        needs = [need for need in self.context if need.table == table and used & need.columns.keys()]
        named = {f"{table}.{column}" for need in needs for column in need.by}
        named |= {origin for need in needs for name in used & need.columns.keys() for origin in self.lineage.columns[name].of}
        return {name.removeprefix(f"{table}.") for name in named if name.startswith(f"{table}.")}

    @property
    def is_rule(self) -> bool:
        """Whether the package is the heuristic alone, the lowest rung of the ladder."""
        return self.phase == 1

    @property
    def may_lack(self) -> frozenset[str]:
        """The columns that a request may omit: the event time, columns that no source has, and those declared optional or retired."""
        return frozenset(
            {self.event_time, *(name for name, column in self.request.items() if column.filled or column.may_lack)}
        )


def unused_optional(request: Mapping[str, Column], used: Collection[str]) -> dict[str, Column]:
    """The contract of a request in which all columns but those in `used` may be null, or left out."""
    return {
        name: column if name in used or column.filled else msgspec.structs.replace(column, nullable=True, optional=True)
        for name, column in request.items()
    }


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Reference distribution of one column: numbers in bins (inner edges, ascending), or categories; `counts` one longer than `edges`.

    Bin i holds edges[i - 1] <= x < edges[i] (`np.searchsorted(edges, x, side="right")`); NaN counts as missing.
    For categories the last count is of everything not in `categories`. `missing` counts nulls; `mean` is of the numbers.
    """

    column: str
    role: str
    edges: list[float]
    categories: list[str]
    counts: list[int]
    missing: int
    rows: int
    mean: float | None
    minimum: float | None
    maximum: float | None


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its context and the score that the graph must give for it (|difference| <= 1e-6)."""

    request: dict[str, Any]
    context: dict[str, Any]
    score: float


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Reference of drift detection (validation rows: the newest that the model saw), and the golden requests."""

    columns: list[Histogram]
    golden: list[Golden]
