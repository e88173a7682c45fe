"""`Loop`: the declarations of one ML system, held together."""

from typing import Any

import msgspec

from loopwright.base.errors import Damaged, DeclarationInvalid
from loopwright.records.declarations.data import Aggregate, Column, Context, Outcome, Slice, Table
from loopwright.records.declarations.declaration import RETIRED, Declaration, declaration_digest, to_builtins
from loopwright.records.declarations.deploy import Release
from loopwright.records.declarations.develop import Candidate, Fleet, GroupSplit, Sampling, StratifiedSplit, TimeSplit
from loopwright.records.declarations.monitor import Monitor, Retrain
from loopwright.records.declarations.scope import Scope
from loopwright.records.declarations.task import SHAPES
from loopwright.records.turns import LoopRecord

SEGMENT_TYPES = ("string", "integer", "boolean")
"""Types of a column that can divide a fleet."""


class Loop(Declaration, frozen=True, kw_only=True):
    """One ML system, declared.

    Attributes:
        name: Name of the loop: 1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit.
        scope: Stage scope: the problem, objectives, value, budget and the heuristic.
        requests: Stage data: the table of decisions, one row each.
        outcome: The truth about a request, known later.
        features: Stage develop: a function of the columns that returns a dictionary of name to feature.
        candidates: The models to try; at least one.
        context: Tables joined to each request by key, as known at the decision.
        aggregates: Numbers over recent rows of a table, as known at the decision.
        slices: Parts of the traffic that are evaluated, guarded and monitored separately.
        unit: Request column of what is independent, such as the customer; rows of one unit are not. None: the key.
        split: How examples are divided into training and validation.
        sampling: Which examples train, and with which weights.
        fleet: One model per segment; None: one model.
        release: Stage deploy: guards, durability, deadline.
        monitor: Stage monitor: windows and thresholds of drift.
        retrain: When to retrain.
        seed: Seed of everything random.

    Example:
        Loop(
            name="weather-delays",
            scope=scope,
            requests=flights,
            outcome=Outcome(table=landings, label="delay > 15", wait="2d"),
            context=[Context(table=weather, by={"airport": "origin"}, columns=["wind"])],
            features=lambda c: {"wind": c.wind, "carrier": c.carrier},
            candidates=[Candidate("logistic", lambda: LogisticRegression(max_iter=1000))],
        )
    """

    name: str
    scope: Scope
    requests: Table
    outcome: Outcome
    features: Any
    candidates: list[Candidate]
    context: list[Context] = []
    aggregates: list[Aggregate] = []
    slices: list[Slice] = []
    unit: str | None = None
    split: TimeSplit | GroupSplit | StratifiedSplit = TimeSplit()
    sampling: Sampling = Sampling()
    fleet: Fleet | None = None
    release: Release = Release()
    monitor: Monitor = Monitor()
    retrain: Retrain = Retrain()
    seed: int = 0

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found: list[tuple[str, str]] = []
        if not callable(self.features) and not isinstance(self.features, str):
            found.append(("features", f"must be a function, not {type(self.features).__name__}"))
        rule = self.scope.heuristic.name
        found += [("candidates", f"{rule!r} is the heuristic's name") for c in self.candidates if c.name == rule]
        if self.fleet is not None and (self.release.plan or self.release.strategy != Release().strategy):
            found.append(("release", "a fleet's packages are released at once: leave `plan` and `strategy` off"))
        found += self._context_problems() + self._column_problems() + self._split_problems()
        found += [(f"requests.columns.{n}", RETIRED) for n in self.requests.retired(sorted(self.named_columns))]
        if set(self.outcome.table.key) != set(self.requests.key):
            found.append(("outcome.table.key", f"must be the key of the requests table, {self.requests.key}"))
        return found

    def _context_problems(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        taken = set(self.requests.columns)
        joined = [(f"context[{i}]", "columns", c.table, c.by, list(c.wanted)) for i, c in enumerate(self.context)]
        joined += [(f"aggregates[{i}]", "name", a.table, a.by, [a.name]) for i, a in enumerate(self.aggregates)]
        for where, field, table, by, columns in joined:
            for table_column, request_column in by.items():
                if why := self._key_problem(table.columns.get(table_column), request_column):
                    found.append((f"{where}.by.{table_column}", why))
            for column in columns:
                if column in taken:
                    found.append((f"{where}.{field}", f"{column!r} is there twice: give it another name"))
                taken.add(column)
        return found

    def _key_problem(self, column: Column | None, request_column: str) -> str:
        """Why rows of a table cannot be found by a request column; empty where they can."""
        asked = self.requests.columns.get(request_column)
        if asked is None:
            return f"no request column {request_column!r}"
        if column is not None and column.type != asked.type:
            return f"is {column.type} in the table, but {request_column!r} is {asked.type}: they would never be equal"
        return f"{asked.type} values are no keys" if asked.type in ("float", "array") else ""

    def _column_problems(self) -> list[tuple[str, str]]:
        """Request columns that other declarations name and that are not there."""
        named = [
            ("outcome.group", self.outcome.group),
            ("unit", self.unit),
            ("fleet.by", self.fleet.by if self.fleet else None),
        ]
        named += [("split.column", None if isinstance(self.split, TimeSplit) else self.split.column)]
        columns = self.requests.columns
        found = [(where, f"no request column {name!r}") for where, name in named if name and name not in columns]
        segment = self.requests.columns.get(self.fleet.by) if self.fleet else None
        if segment is not None and segment.type not in SEGMENT_TYPES:
            found.append(("fleet.by", f"a segment is a value of a {', '.join(SEGMENT_TYPES)} column, not of a {segment.type}"))
        return found

    def _split_problems(self) -> list[tuple[str, str]]:
        """A split or a sampling that does not go with the outcome's task."""
        found, shape = [], self.outcome.shape
        if shape.grouped and isinstance(self.split, StratifiedSplit):
            found.append(
                ("split", f"would tear apart what is ranked together: GroupSplit({self.outcome.group!r}) or TimeSplit()")
            )
        if self.sampling != Sampling() and shape.words is None:
            sampled = " and ".join(task for task, other in SHAPES.items() if other.words is not None)
            found.append(("sampling", f"samples by label, which is for {sampled} outcomes, not {self.outcome.task}"))
        elif shape.words:
            named = [(f, n) for f in ("keep", "weights") for n in getattr(self.sampling, f) if n not in shape.words]
            why = f"the labels of a {self.outcome.task} outcome are {' and '.join(shape.words)}"
            found += [(f"sampling.{f}.{n}", why) for f, n in named]
        return found

    @property
    def tables(self) -> dict[str, Table]:
        """Every table by name: requests, context, aggregates, outcome."""
        joined = [*(c.table for c in self.context), *(a.table for a in self.aggregates)]
        return {t.name: t for t in [self.requests, *joined, self.outcome.table]}

    @property
    def context_columns(self) -> dict[str, Column]:
        """The columns that context and aggregates add to a request; always nullable: they may be missing or too old."""
        columns = {
            name: msgspec.structs.replace(context.table.columns[column], nullable=True)
            for context in self.context
            for name, column in context.wanted.items()
        }
        return columns | {aggregate.name: aggregate.column for aggregate in self.aggregates}

    @property
    def columns(self) -> dict[str, Column]:
        """Columns that features, heuristic and slices see: request columns, then context columns."""
        return {**self.requests.columns, **self.context_columns}

    @property
    def named_columns(self) -> frozenset[str]:
        """The request columns that declarations name: key, times, and columns for joins, ranking, splits and segments."""
        by = [c.by for c in self.context] + [a.by for a in self.aggregates]
        joined = [column for columns in by for column in columns.values()]
        split = None if isinstance(self.split, TimeSplit) else self.split.column
        named = [*self.requests.key, self.requests.event_time, self.requests.known, *joined]
        named += [name for name in (self.outcome.group, self.unit, split, self.fleet.by if self.fleet else None) if name]
        return frozenset(named)

    def record(self, file: str) -> LoopRecord:
        """This loop as the ledger keeps it."""
        return LoopRecord(name=self.name, file=file, digest=declaration_digest(self), declaration=to_builtins(self))


def recorded_loop(record: LoopRecord) -> Loop:
    """A loop as the ledger has it, functions as source text. Raises Damaged where it is no declaration of this version."""
    try:
        return msgspec.convert(record.declaration, Loop)
    except (msgspec.ValidationError, DeclarationInvalid) as error:
        why = " ".join(str(error).split())
        next_step = f"mend its loop file and run it: `loopwright run {record.file or 'FILE'}`"
        raise Damaged(f"the declaration of loop {record.name!r} cannot be read: {why}; {next_step}") from error
