"""Stage data: tables and their columns, context and aggregates, outcomes and slices."""

import re
from collections.abc import Iterable
from typing import Any, Literal

from loopwright.records.declarations.declaration import RETIRED, ColumnType, Declaration, code_problem
from loopwright.records.declarations.task import SHAPES, Task, TaskShape


class Column(Declaration, frozen=True):
    """One column of a contract.

    Attributes:
        type: `float`, `integer`, `boolean`, `string`, `timestamp` (zone-aware, microseconds) or `array` (float32 numbers).
        nullable: Whether a value may be missing.
        minimum: Smallest value allowed (numbers).
        maximum: Largest value allowed (numbers).
        categories: All values that a string column may have.
        tags: Free labels, searched in lineage (`pii`, `sensitive` ...).
        description: Meaning of the column.
        zone: IANA zone of a timestamp that its source writes without one; such a time is refused without `zone`.
        shape: Shape of one value of an array: `[28, 28]` for an image, `[384]` for an embedding.
        source: Its name in the sources, if different.
        format: How sources write it: a timestamp that is not ISO 8601 (`%d/%m/%Y %H:%M`, or `unix` and `unix_ms` for seconds
            and milliseconds since 1970), or a number with separators (`1,234.5` or `1.234,5`).
        missing: Texts of the sources that mean a missing value (`?`). In a column of texts, and those that are numbers (`-999`) in a
            column of numbers, they mean it in typed sources and in requests as well.
        optional: Whether a source, or a request, may omit the column (it is then null).
        retired: Whether the column is no longer used: as `optional`, and no code, join or label may use it. Existing values are kept.
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
    def missing_values(self) -> list[float] | list[int] | list[str]:
        """The values that mean missing: texts for a string column, numbers for a numeric column."""
        if self.type not in ("float", "integer"):
            return self.missing if self.type == "string" else []
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
                ("format", f"{self.format[:80]!r} is not a time format: use one such as %d/%m/%Y %H:%M, or unix, or unix_ms")
            )
        elif self.format is not None and self.type != "timestamp" and self.format not in numbers:
            found.append(("format", f"{self.format[:80]!r} is not a number format: use one of {', '.join(numbers)}"))
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
        known_time: Column with the time when a row became known; None: `event_time`.
        known_after: Delay added to `known_time` ("20m"), for rows that arrive later than they say.
        description: Meaning of a row of the table.
        ignore: Columns of the sources that the table ignores; `["*"]`: all undeclared columns.

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
        """Name of an outcome's field for the prediction's id."""
        return self.prediction_fields[0]

    @property
    def prediction_fields(self) -> list[str]:
        """Accepted names of the prediction id field: those that are not columns (`_id` never is); the first is the documented one."""
        return [name for name in ("id", "prediction", "prediction_id", "_id") if name not in self.columns]

    def retired(self, names: Iterable[str]) -> list[str]:
        """The retired ones of `names`."""
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
        columns: The columns to join; a dictionary renames them (new name to the table's column), so that one table can be
            joined twice.
        max_age: A row older than this (event time to decision) counts as missing; None: no limit.
        lag: Delay from when a row became known until serving sees it; training waits as long.

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

    Counts rows of `table` whose event time is in the `window` before the decision, that were known by then (and
    `lag` later, see Context), and whose columns equal the request's. Of several versions of one row (same key and event
    time) the one that became known last counts.

    Attributes:
        name: Name of the column that it adds to a request.
        table: The table whose rows are aggregated.
        by: Table columns to request columns that must be equal.
        function: `count`, `sum`, `mean`, `min`, `max`, `share` or `distinct`.
        of: SQL expression over the table's columns: a number, for `share` a condition, for `distinct` any type; `count`
            takes none.
        window: How far back rows count ("24h").
        lag: Delay from when a row became known until serving sees it.
        description: Meaning of the number.

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

    `task` defines the label and the prediction:

    binary      true or false; predicts the probability of true
    multiclass  one of several strings; predicts the probability of each
    regression  a number; predicts its mean, or with `quantiles` those quantiles
    ranking     a relevance (0, 1, 2 ...) within the requests that share the column `group`; predicts a score to sort by
    anomaly     true for an anomaly, where labels exist; predicts how anomalous a request is
    count       a whole number of 0 or more; predicts its mean

    Attributes:
        table: The table of outcomes; its key is that of the requests.
        label: SQL expression over the table; for several targets (regression) a dictionary of name to expression.
        wait: How long after the decision an outcome may arrive. A decision is trained on, validated on, monitored and accounted for only
            when its wait is over, so that labels that are known early do not outweigh those that are known late. Declare the longest
            delay that matters; the default suits outcomes of a month.
        absent: The label of a decision that has no outcome when its wait is over, as text ("false", "0", "stays"): for tables of
            events, which say nothing of those to whom nothing happened. Without it such a decision has no label.
        task: `binary`, `multiclass`, `regression`, `ranking`, `anomaly` or `count`.
        quantiles: Quantiles to predict instead of the mean (regression), between 0 and 1, ascending.
        group: Request column whose equal values are ranked together (ranking).
        alert_share: Share of the training rows above the anomaly threshold (anomaly).

    Example:
        Outcome(table=landings, label="delay > 15", wait="2d")
    """

    table: Table
    label: str | dict[str, str]
    wait: str = "30d"
    absent: str | None = None
    task: Task = "binary"
    quantiles: list[float] = []
    group: str | None = None
    alert_share: float = 0.01

    @property
    def labels(self) -> dict[str, str]:
        """Name of each target -> SQL expression; one target is called `label`."""
        return self.label if isinstance(self.label, dict) else {"label": self.label}

    @property
    def shape(self) -> TaskShape:
        """Types of its labels and answers."""
        return SHAPES[self.task]

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = []
        if not self.labels:
            found.append(("label", "an SQL expression such as 'arr_delay > 15'"))
        if isinstance(self.label, dict) and not self.shape.several:
            found.append(("label", f"several targets are for regression only, not {self.task}"))
        if self.quantiles and not self.shape.several:
            found.append(("quantiles", f"only regression predicts quantiles, not {self.task}"))
        if self.quantiles and isinstance(self.label, dict):
            found.append(("quantiles", "of one target only"))
        if sorted(self.quantiles) != list(self.quantiles):
            found.append(("quantiles", f"{self.quantiles}: write them ascending"))
        if self.absent is not None and (len(self.labels) > 1 or not self.shape.reads(self.absent)):
            found.append(("absent", f"{self.absent!r} is no {self.shape.label} label of one target"))
        if (self.group is not None) != self.shape.grouped:
            found.append(
                ("group", "ranking needs the request column whose equal values are ranked together; nothing else does")
            )
        return found


class Slice(Declaration, frozen=True):
    """A part of the traffic that evaluation, guards, monitoring and the report treat separately.

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
        return code_problem("of", self.of)
