"""What a user declares in a loop file: typed, validated with errors that name the field, JSON both ways.

Code (features, heuristic, slices, estimators) is given as functions. In JSON a function becomes its source text, which
is for reading only: what runs later is the ONNX graph in the package, never the user's code.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from loopwright.base.errors import DeclarationInvalid
from loopwright.base.ids import digest
from loopwright.records.field_rules import duration as duration  # part of what declarations offer
from loopwright.records.field_rules import range_problems, type_problems

RETIRED = "is retired: nothing may use it; take `retired=True` off where it is still delivered"
ColumnType = Literal["float", "integer", "boolean", "string", "timestamp", "array"]
Task = Literal["binary", "multiclass", "regression", "ranking", "anomaly"]


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything a user declares. `problems` says what is wrong; the constructor raises them all at once."""

    def problems(self) -> list[tuple[str, str]]:
        """Pairs of field and reason, beyond types and ranges (`field_rules`); empty when all is well."""
        return []

    def __post_init__(self) -> None:
        """Refuse values of another type, out of range, and what `problems` names."""
        found = type_problems(self)
        if not found:  # else a range or a problem could not be looked at
            found = range_problems(self)
            ranged = {field for field, _ in found}
            found += [problem for problem in self.problems() if problem[0] not in ranged]
        if found:
            raise DeclarationInvalid(type(self).__name__, found)


# --- 1 scope -----------------------------------------------------------------------------------------------------


class Objective(Declaration, frozen=True):
    """What one stakeholder wants, as a metric with a target. Exactly one of `at_least` and `at_most` is declared.

    Attributes:
        name: Name in the leaderboard, the report and `status`; each objective of a scope has another one.
        owner: The stakeholder who wants it.
        metric: Name of a metric: `average_precision`, `mae`, `latency_p99_ms`, `recall_gap:SLICE` ...
        at_least: The target of a metric that should be high.
        at_most: The target of a metric that should be low.
        weight: How much it counts in the leaderboard, 0 or more.

    Example:
        Objective("find leavers", "retention", "average_precision", at_least=0.4)
    """

    name: str
    owner: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    weight: float = 1.0

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = []
        if (self.at_least is None) == (self.at_most is None):
            found.append(("at_least/at_most", "give exactly one of the two"))
        return found

    def met(self, value: float) -> bool:
        """Whether a measured value reaches the target; NaN never does."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


class Budget(Declaration, frozen=True):
    """What the loop may cost.

    Attributes:
        train_minutes: Longest training of one turn, minutes; None: no limit.
        usd_per_month: Highest cost of training and serving, USD a month; None: no limit.
        usd_per_hour: Price of one machine hour in USD, used to cost training and serving.

    Example:
        Budget(train_minutes=10, usd_per_month=50)
    """

    train_minutes: float | None = None
    usd_per_month: float | None = None
    usd_per_hour: float = 0.10


class Value(Declaration, frozen=True):
    """Money for each kind of outcome.

    Binary and anomaly tasks use the four kinds, relative to doing nothing when the truth is negative; multiclass `correct`
    and `wrong`; regression `correct`, `under` and `over`; ranking none.

    Attributes:
        currency: Name of the currency, for display.
        true_positive: Worth of acting where the truth is positive.
        false_positive: Worth of acting where the truth is negative (a cost is below 0).
        true_negative: Worth of not acting where the truth is negative.
        false_negative: Worth of not acting where the truth is positive (a cost is below 0).
        correct: Worth of each right answer (multiclass), or of each answer (regression).
        wrong: Worth of each wrong answer (multiclass).
        under: Worth of each unit by which an answer is below the truth (regression; a cost is below 0).
        over: Worth of each unit by which an answer is above the truth (regression; a cost is below 0).

    Example:
        Value(true_positive=40, false_positive=-5)
    """

    currency: str = "USD"
    true_positive: float = 0.0
    false_positive: float = 0.0
    true_negative: float = 0.0
    false_negative: float = 0.0
    correct: float = 0.0
    wrong: float = 0.0
    under: float = 0.0
    over: float = 0.0

    @property
    def given(self) -> bool:
        """Whether it says anything."""
        return any(
            isinstance(money, float | int) and money != 0 for money in (getattr(self, f) for f in self.__struct_fields__)
        )

    @property
    def over_nothing(self) -> bool:
        """Whether doing nothing is an alternative to compare with: not where an answer can only cost."""
        kinds = (self.true_positive, self.false_positive, self.true_negative, self.false_negative)
        return any(kinds) or self.correct > 0

    def threshold(self) -> float:
        """The score above which acting pays, for calibrated scores (Elkan 2001, The foundations of cost-sensitive learning)."""
        act = self.true_negative - self.false_positive
        miss = self.true_positive - self.false_negative
        return act / (act + miss) if act + miss > 0 else 0.5


class Heuristic(Declaration, frozen=True):
    """Phase 1 of the ladder: a rule over request and context columns, traced to ONNX. It also answers when the model fails.

    Attributes:
        rule: A function of the columns. Its result depends on the outcome's task: binary a condition or a score in [0, 1];
            multiclass a string, one of the classes; regression a number, or a dictionary of target (or quantile, "q0.9") to
            number; ranking and anomaly a number, larger for what ranks higher or is stranger.
        name: Name in the leaderboard and in answers.

    Example:
        Heuristic(lambda c: c.tenure_months < 6, name="new-customers")
    """

    rule: Any
    name: str = "heuristic"

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        return _code_problem("rule", self.rule)


class Scope(Declaration, frozen=True, kw_only=True):
    """The problem, who wants what, what it may cost, what it is worth, and the rule to beat.

    Attributes:
        problem: One sentence: which problem the system solves.
        objectives: What the stakeholders want; at least one.
        heuristic: The rule to beat.
        value: Money for each kind of outcome; without it nothing is said about money.
        budget: What the loop may cost.
        horizon: Over so long the money is added up before the loop is said to earn or to lose.

    Example:
        Scope(
            problem="Call customers who are about to leave.",
            objectives=[Objective("find leavers", "retention", "average_precision", at_least=0.4)],
            heuristic=Heuristic(lambda c: c.tenure_months < 6),
        )
    """

    problem: str
    objectives: list[Objective]
    heuristic: Heuristic
    value: Value = Value()
    budget: Budget = Budget()
    horizon: str = "28d"


# --- 2 data ------------------------------------------------------------------------------------------------------


class Column(Declaration, frozen=True):
    """One column of a contract.

    Attributes:
        type: `float`, `integer`, `boolean`, `string`, `timestamp` (zone-aware, microseconds) or `array` (float32 numbers).
        nullable: Whether a value may be missing.
        minimum: Smallest value allowed (numbers).
        maximum: Largest value allowed (numbers).
        categories: All values that a string column may have.
        tags: Free labels, searched in lineage (`pii`, `sensitive` ...).
        description: What the column means.
        zone: IANA zone of a timestamp that its source writes without one; such a time is refused without `zone`.
        shape: Shape of one value of an array: `[28, 28]` for an image, `[384]` for an embedding.
        source: Its name in the sources, where that is another one.
        format: How sources write it: a timestamp that is not ISO 8601 (`%d/%m/%Y %H:%M`, or `unix` and `unix_ms` for seconds
            and milliseconds since 1970), or a number with separators (`1,234.5` or `1.234,5`).
        missing: Texts of the sources that mean a missing value (`?`); of a column of numbers those that are numbers (`-999`) mean it
            in typed sources and in requests as well.
        optional: Whether a source, or a request, may lack the column altogether (null then).
        retired: Whether the column is no longer used: as `optional`, and no code, join or label may use it. What came is kept.
        filled: For a column that no source has: `row_id`, a text of the source's digest and the row number, or
            `ingested_at`, the moment when that content was first ingested.

    Example:
        Column("float", nullable=True, minimum=0, missing=["?"])
    """

    type: ColumnType
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    categories: list[str] | None = None
    tags: list[str] = []
    description: str = ""
    zone: str | None = None
    shape: list[int] | None = None
    source: str | None = None
    format: str | None = None
    missing: list[str] = []
    optional: bool = False
    retired: bool = False
    filled: Literal["row_id", "ingested_at"] | None = None

    @property
    def missing_numbers(self) -> list[float] | list[int]:
        """The numbers that mean a missing value, of a column of numbers."""
        if self.type not in ("float", "integer"):
            return []
        numbers = [float(word) for word in self.missing if re.fullmatch(r"[-+]?\d+(\.\d*)?", word)]
        return numbers if self.type == "float" else [int(n) for n in numbers if n.is_integer()]

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = []
        if self.categories is not None and self.type != "string":
            found.append(("categories", f"only a string column has categories, not {self.type}"))
        if (self.minimum is not None or self.maximum is not None) and self.type not in ("float", "integer"):
            found.append(("minimum/maximum", f"only a number has a range, not {self.type}"))
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            found.append(("minimum", f"{self.minimum} is above maximum {self.maximum}"))
        if self.zone is not None and self.type != "timestamp":
            found.append(("zone", f"only a timestamp has a zone, not {self.type}"))
        if (self.type == "array") != (self.shape is not None):
            found.append(("shape", "an array has a shape such as [28, 28], and nothing else has one"))
        return found + self._source_problems()

    @property
    def may_lack(self) -> bool:
        """Whether a source may lack the column."""
        return self.optional or self.retired

    def _source_problems(self) -> list[tuple[str, str]]:
        found = []
        numbers, times = ("1,234.5", "1.234,5"), ("unix", "unix_ms")
        if self.format is not None and self.type not in ("timestamp", "float", "integer"):
            found.append(("format", f"only a timestamp or a number has a format, not {self.type}"))
        elif self.format is not None and self.type == "timestamp" and self.format not in times and "%" not in self.format:
            found.append(
                ("format", f"{self.format[:80]!r} is no format: write one such as %d/%m/%Y %H:%M, or unix, or unix_ms")
            )
        elif self.format is not None and self.type != "timestamp" and self.format not in numbers:
            found.append(("format", f"{self.format[:80]!r} is no format of numbers: one of {', '.join(numbers)}"))
        if self.may_lack and not self.nullable:
            name = "optional" if self.optional else "retired"
            found.append((name, "where a source lacks the column it is null: say nullable=True as well"))
        wanted = {"row_id": "string", "ingested_at": "timestamp"}.get(self.filled or "", self.type)
        if wanted != self.type:
            found.append(("filled", f"{self.filled} is a {wanted}, not {self.type}"))
        return found


class Table(Declaration, frozen=True):
    """A table and its contract.

    Attributes:
        name: Name of the table in the lake.
        columns: The contract: name of each column to its declaration.
        key: Columns that identify an entity.
        event_time: Column of when a row happened.
        known_time: Column of when a row became known; None: `event_time`.
        known_after: Delay added to `known_time` ("20m"), for rows that arrive later than they say.
        description: What a row of the table is.
        ignore: Columns of the sources that the table does not take; `["*"]`: whatever it does not name.

    Example:
        Table(
            "customers",
            columns={"customer": Column("string"), "seen": Column("timestamp"), "calls": Column("integer")},
            key=["customer"],
            event_time="seen",
        )
    """

    name: str
    columns: dict[str, Column]
    key: list[str]
    event_time: str
    known_time: str | None = None
    known_after: str = "0s"
    description: str = ""
    ignore: list[str] = []

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found: list[tuple[str, str]] = []
        for field, names in (
            ("key", self.key),
            ("event_time", [self.event_time]),
            ("known_time", [self.known_time] if self.known_time else []),
        ):
            found += [(field, f"no column {n!r} in table {self.name!r}") for n in names if n not in self.columns]
        for name in dict.fromkeys([self.event_time, self.known]):
            column = self.columns.get(name)
            if column and (column.type != "timestamp" or column.nullable):
                found.append((f"columns.{name}", "must be a timestamp that is never null"))
        found += [
            (f"key.{n}", "a key column cannot be null") for n in self.key if n in self.columns and self.columns[n].nullable
        ]
        return found

    @property
    def prediction_field(self) -> str:
        """What the field of an outcome is called that holds the prediction's id; empty where every such name is a column."""
        return next(iter(self.prediction_fields), "")

    @property
    def prediction_fields(self) -> list[str]:
        """What that field may be called: each of these that is no column; the first is the one that is documented."""
        return [name for name in ("id", "prediction", "prediction_id") if name not in self.columns]

    def retired(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are retired."""
        return [n for n in dict.fromkeys(names) if n in self.columns and self.columns[n].retired]

    @property
    def known(self) -> str:
        """The column of when a row became known (before `known_after` is added)."""
        return self.known_time or self.event_time


class Context(Declaration, frozen=True):
    """Columns joined to each request: the latest row of a table known at that moment. Context columns are always nullable.

    Attributes:
        table: The table to join.
        by: The table's key columns to request columns.
        columns: The columns wanted; a dictionary renames them (new name to the table's column), so that one table can be
            joined twice.
        max_age: A row older than this (event time to decision) counts as missing; None: no limit.
        lag: How long after a row became known serving may take to see it; training waits as long.

    Example:
        Context(table=weather, by={"airport": "origin"}, columns=["temp", "wind"], max_age="3h")
    """

    table: Table
    by: dict[str, str]
    columns: list[str] | dict[str, str]
    max_age: str | None = None
    lag: str = "1m"

    @property
    def wanted(self) -> dict[str, str]:
        """Name under which features see a column -> column of the table."""
        return self.columns if isinstance(self.columns, dict) else {name: name for name in self.columns}

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = [
            ("columns", f"no column {c!r} in table {self.table.name!r}")
            for c in self.wanted.values()
            if c not in self.table.columns
        ]
        found += [(f"columns.{c}", RETIRED) for c in self.table.retired(self.wanted.values())]
        if sorted(self.by) != sorted(self.table.key):
            found.append(("by", f"must name exactly the key of table {self.table.name!r}: {self.table.key}"))
        return found


class Aggregate(Declaration, frozen=True, kw_only=True):
    """A number over the recent rows of a table: "mean arrival delay of this carrier over the last 24 hours, known at push-back".

    Counted are the rows of `table` whose event time is in the `window` before the decision, that were known by then (and
    `lag` later, see Context), and whose columns equal the request's. Of several versions of one row (same key and event
    time) the one known last counts.

    Attributes:
        name: Name of the column that it adds to a request.
        table: The table whose rows are aggregated.
        by: Table columns to request columns that must be equal.
        function: `count`, `sum`, `mean`, `min`, `max`, `share` or `distinct`.
        of: SQL expression over the table's columns: a number, for `share` a condition, for `distinct` anything; `count`
            takes none.
        window: How far back rows count ("24h").
        lag: How long after a row became known serving may take to see it.
        description: What the number means.

    Example:
        Aggregate(name="calm_share", table=weather, by={"airport": "origin"}, function="share", of="wind < 10", window="24h")
    """

    name: str
    table: Table
    by: dict[str, str]
    function: Literal["count", "sum", "mean", "min", "max", "share", "distinct"]
    of: str = ""
    window: str
    lag: str = "1m"
    description: str = ""

    @property
    def column(self) -> Column:
        """The column it adds to a request: null where there is nothing to take a mean, minimum, maximum or share of."""
        kind: ColumnType = "integer" if self.function in ("count", "distinct") else "float"
        return Column(kind, nullable=True, description=self.description)

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found: list[tuple[str, str]] = []
        if bool(self.of.strip()) == (self.function == "count"):
            found.append(("of", "count counts rows and takes none; every other function needs an SQL expression"))
        if not self.by:
            found.append(("by", "name at least one column of the table and the request column it equals"))
        found += [(f"by.{c}", f"no column {c!r} in table {self.table.name!r}") for c in self.by if c not in self.table.columns]
        found += [(f"by.{c}", RETIRED) for c in self.table.retired(self.by)]
        return found


class Outcome(Declaration, frozen=True):
    """The truth about a request: a row of `table` with the same key; `label` is an SQL expression over it.

    `task` says what the label is and what is predicted of it:

    binary      true or false; predicted is the probability of true
    multiclass  one of several strings; predicted is the probability of each
    regression  a number; predicted is its mean, or with `quantiles` those quantiles
    ranking     a relevance (0, 1, 2 ...) within the requests that share the column `group`; predicted is a score to sort by
    anomaly     true for what was strange, where anybody ever says so; predicted is how strange a request is

    Attributes:
        table: The table of outcomes; its key is that of the requests.
        label: SQL expression over the table; for several targets (regression) a dictionary of name to expression.
        wait: How long after the decision an outcome may come before the prediction counts as never answered.
        task: `binary`, `multiclass`, `regression`, `ranking` or `anomaly`.
        quantiles: Quantiles to predict instead of the mean (regression), between 0 and 1, ascending.
        group: Request column whose equal values are ranked together (ranking).
        alert_share: Share of the training rows that is as strange as what is called an anomaly (anomaly).

    Example:
        Outcome(table=landings, label="delay > 15", wait="2d")
    """

    table: Table
    label: str | dict[str, str]
    wait: str = "30d"
    task: Task = "binary"
    quantiles: list[float] = []
    group: str | None = None
    alert_share: float = 0.01

    @property
    def labels(self) -> dict[str, str]:
        """Name of each target -> SQL expression; one target is called `label`."""
        return self.label if isinstance(self.label, dict) else {"label": self.label}

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = []
        if not self.labels:
            found.append(("label", "an SQL expression such as 'arr_delay > 15'"))
        if isinstance(self.label, dict) and self.task != "regression":
            found.append(("label", f"several targets are for regression only, not {self.task}"))
        if self.quantiles and self.task != "regression":
            found.append(("quantiles", f"only regression predicts quantiles, not {self.task}"))
        if self.quantiles and isinstance(self.label, dict):
            found.append(("quantiles", "of one target only"))
        if sorted(self.quantiles) != list(self.quantiles):
            found.append(("quantiles", f"{self.quantiles}: write them ascending"))
        if (self.group is not None) != (self.task == "ranking"):
            found.append(
                ("group", "ranking needs the request column whose equal values are ranked together; nothing else does")
            )
        return found


class Slice(Declaration, frozen=True):
    """A part of the traffic looked at everywhere: in evaluation, guards, monitoring and the report.

    Attributes:
        name: Name of the slice.
        of: A function of the columns that returns a string (one slice per value) or a boolean.

    Example:
        Slice("contract", lambda c: c.contract)
    """

    name: str
    of: Any

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        return _code_problem("of", self.of)


# --- 3 develop ---------------------------------------------------------------------------------------------------


class TimeSplit(Declaration, frozen=True, tag_field="by", tag="time"):
    """The newest part of the examples validates, the rest trains.

    Where it holds too few rows, or too few of a label, it reaches back until it holds enough, at most over half of the examples.
    Training examples whose outcome became known only after the boundary are left out: a model made then could not have learnt
    from them.

    Attributes:
        validation: Length of the newest part ("14d").
        embargo: Examples whose decision is within this before the boundary are left out of both parts.
        late_outcomes: `train`: train on examples whose outcome came after the boundary for another reason (all of them
            delivered at once).

    Example:
        TimeSplit(validation="28d", embargo="1d")
    """

    validation: str = "14d"
    embargo: str = "0s"
    late_outcomes: Literal["leave out", "train"] = "leave out"


class GroupSplit(Declaration, frozen=True, tag_field="by", tag="group"):
    """Whole groups (equal values of a request column, such as a patient) validate or train, never both.

    A hash of the value and the loop's seed decides.

    Attributes:
        column: Request column whose equal values stay together.
        validation: Share of the groups that validate, above 0 and at most 0.9.

    Example:
        GroupSplit("patient", validation=0.25)
    """

    column: str
    validation: float = 0.2


class StratifiedSplit(Declaration, frozen=True, tag_field="by", tag="stratum"):
    """A random share of every stratum validates: a stratum is a value of the label and, where declared, of a request column.

    Attributes:
        column: Request column that divides the strata further.
        validation: Share of each stratum that validates, above 0 and at most 0.9.

    Example:
        StratifiedSplit("country", validation=0.2)
    """

    column: str | None = None
    validation: float = 0.2


class Sampling(Declaration, frozen=True, kw_only=True):
    """Which examples are trained on, and how they weigh. It is undone at serving: probabilities are those of real traffic.

    Attributes:
        keep: Share of the examples kept by label ("false" and "true", or a class), above 0 and at most 1.
        weights: Weight of each label in fitting, above 0.
        balanced: Weigh each label by how rare it is; instead of `weights`.

    Example:
        Sampling(keep={"false": 0.1})
    """

    keep: dict[str, float] = {}
    weights: dict[str, float] = {}
    balanced: bool = False

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        return [("balanced", "either balanced or weights of your own")] if self.balanced and self.weights else []


class Fleet(Declaration, frozen=True, kw_only=True):
    """One declaration, many models: one per value of the request column `by`, where there are enough examples of it.

    A value with too few training examples, one never seen, or one whose own model is not surely as good as the global model,
    is answered by the global model.

    Attributes:
        by: Request column (string, integer or boolean) whose values are the segments.
        minimum_rows: Least number of training examples for a model of a segment's own.
        most: How many segments get a model at most (the largest ones).

    Example:
        Fleet(by="store", minimum_rows=500)
    """

    by: str
    minimum_rows: int = 1000
    most: int = 1000


class Candidate(Declaration, frozen=True):
    """One way to solve the problem.

    Attributes:
        name: Name in the leaderboard.
        estimator: A function that returns an unfitted scikit-learn compatible estimator (or pipeline) for a float32 matrix, or
            the class of one. A function that takes a parameter gets an Optuna trial (parameters with a default value and
            those of a class are not asked for).
        phase: Rung of the ladder: 2 simple model, 3 optimised, 4 complex (1 is the heuristic).
        encoding: How string features enter the matrix: `ordinal` (one column of codes, for trees) or `onehot` (one column
            per category).
        trials: How many trials are searched where the estimator takes one.

    Example:
        Candidate("logistic", lambda: LogisticRegression(max_iter=1000), phase=2)
    """

    name: str
    estimator: Any
    phase: Literal[2, 3, 4] = 2
    encoding: Literal["ordinal", "onehot"] = "onehot"
    trials: int = 0

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = _code_problem("estimator", self.estimator)
        if self.trials and not found and callable(self.estimator) and not self.takes_trial:
            found.append(("trials", "the estimator function takes no parameter, so there is nothing to search"))
        return found

    @property
    def takes_trial(self) -> bool:
        """Whether `estimator` wants an Optuna trial."""
        if isinstance(self.estimator, type):
            return False
        try:
            parameters = inspect.signature(self.estimator).parameters.values()
        except ValueError:  # of a function without a signature, written in C
            return False
        return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


# --- 4 deploy, 5 monitor, 6 business -----------------------------------------------------------------------------


class Guard(Declaration, frozen=True):
    """A condition that a package must meet before release: no worse than the serving one by more than `tolerance` of `metric`.

    Attributes:
        metric: Name of a metric.
        tolerance: How much worse the new package may be, in units of the metric; None: as much as chance alone makes of the serving
            package's own number on these rows, one standard error of it (the rule of one standard error; Breiman et al. 1984,
            Classification and regression trees), and at least a hundredth of it.
        slices: Slices in which the condition must hold too.

    Example:
        Guard("average_precision", tolerance=0.01)
    """

    metric: str
    tolerance: float | None = None
    slices: list[str] = []


class Release(Declaration, frozen=True, kw_only=True):
    """How packages are released and served.

    Attributes:
        strategy: `direct`: a package that passes the guards serves all traffic.
        guards: Conditions that a package must meet.
        durability: Of the prediction log: `process` survives the death of a process, `disk` also a power cut.
        on_unloggable: What becomes of an answer that cannot be logged: `serve` answers it, marked, `refuse` answers 503.
        deadline_ms: Milliseconds until a request that the model has not answered is answered by the heuristic, 1 to 600000.

    Example:
        Release(guards=[Guard("average_precision", tolerance=0.01)], durability="disk")
    """

    strategy: Literal["direct"] = "direct"
    guards: list[Guard] = []
    durability: Literal["process", "disk"] = "process"
    on_unloggable: Literal["serve", "refuse"] = "serve"
    deadline_ms: int = 1000


class Monitor(Declaration, frozen=True, kw_only=True):
    """What is watched. Thresholds are effect sizes, not significance levels.

    Attributes:
        every: Length of a window.
        psi: Population stability index of a column from which it has drifted.
        jensen_shannon: Jensen-Shannon distance of a column from which it has drifted.
        minimum_rows: Least number of rows of a window about which anything is said.

    Example:
        Monitor(every="1d", minimum_rows=200)
    """

    every: str = "7d"
    psi: float = 0.25
    jensen_shannon: float = 0.1
    minimum_rows: int = 500


class Retrain(Declaration, frozen=True, kw_only=True):
    """When to retrain: the first of `every`, `drift` and `decay` that holds, at most once per `cooldown`.

    Attributes:
        every: Age of the serving package from which it is retrained; None: age alone is no reason.
        drift: Number of drifted columns from which to retrain; None: drift is no reason.
        decay: By which share of the package's own evaluation `decay_metric` may get worse (0.05: an average precision of 0.60 falls
            to 0.57, a mean absolute error of 30 rises to 31.5); None: decay is no reason.
        decay_metric: Metric of decay; empty: that of the task (average precision, macro F1, mean absolute error, NDCG of the
            first 10).
        cooldown: Least time between two retrainings.
        window: Length of history trained on; None: all.

    Example:
        Retrain(every="30d", decay=0.05, cooldown="7d")
    """

    every: str | None = None
    drift: int | None = None
    decay: float | None = None
    decay_metric: str = ""
    cooldown: str = "7d"
    window: str | None = None


def _code_problem(field: str, code: Any) -> list[tuple[str, str]]:
    return [] if callable(code) or isinstance(code, str) else [(field, f"must be a function, not {type(code).__name__}")]


def source_of(code: Callable[..., Any] | str) -> str:
    """The source text of a declared function (its qualified name where the source cannot be read)."""
    if isinstance(code, str):
        return code
    if isinstance(code, functools.partial):
        bound = [*map(_written, code.args), *(f"{name}={_written(value)}" for name, value in sorted(code.keywords.items()))]
        return f"partial({', '.join([source_of(code.func), *bound])})"
    try:
        return inspect.getsource(code).strip()
    except (OSError, TypeError):
        named = code if hasattr(code, "__qualname__") else type(code)
        return f"{named.__module__}.{named.__qualname__}"


def _written(value: Any) -> str:
    """An argument as text that is the same in every process."""
    return source_of(value) if callable(value) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def to_json(value: Any) -> bytes:
    """Any declaration as JSON, functions as their source text."""
    return msgspec.json.encode(value, enc_hook=_encode, order="deterministic")


def to_builtins(value: Any) -> Any:
    """Any declaration as plain dicts, lists and scalars, functions as their source text."""
    return msgspec.to_builtins(value, enc_hook=_encode, order="deterministic")


def declaration_digest(value: Any) -> str:
    """SHA-256 of a declaration's JSON: changes exactly when the declaration or its code does."""
    return digest(to_json(value))


NO_EFFECT_ON_MODELS = frozenset(
    {"Loop.monitor", "Loop.retrain", "Scope.problem", "Scope.horizon", "Objective.owner", "Budget.usd_per_month"}
    | {"Budget.usd_per_hour", "Table.description", "Table.ignore", "Outcome.wait"}
)
"""Fields that decide neither what is trained from given examples nor what a package is served by: a change of them trains nothing."""


def model_inputs(value: Any) -> Any:
    """A declaration as dictionaries and lists without `NO_EFFECT_ON_MODELS`; functions as they are."""
    if isinstance(value, Declaration):
        kind = type(value).__name__
        fields = [name for name in value.__struct_fields__ if f"{kind}.{name}" not in NO_EFFECT_ON_MODELS]
        return {"": kind, **{name: model_inputs(getattr(value, name)) for name in fields}}
    if isinstance(value, dict):
        return {name: model_inputs(each) for name, each in value.items()}
    return [model_inputs(each) for each in value] if isinstance(value, list) else value


def _encode(value: Any) -> Any:
    if callable(value):
        return source_of(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be written as JSON")
