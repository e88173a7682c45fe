"""Loop: the six declarations of one ML system, and how a user's loop file is found and loaded."""

import difflib
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from loopwright.base.errors import Damaged, DeclarationInvalid, LoopFileNotFound, LoopwrightError, first_line
from loopwright.records.declarations import (
    RETIRED,
    Aggregate,
    Candidate,
    Column,
    Context,
    Declaration,
    Fleet,
    GroupSplit,
    Monitor,
    Outcome,
    Release,
    Retrain,
    Sampling,
    Scope,
    Slice,
    StratifiedSplit,
    Table,
    TimeSplit,
    declaration_digest,
    to_builtins,
)
from loopwright.records.turns import LoopRecord

SEGMENT_TYPES = ("string", "integer", "boolean")
"""What a column by which a fleet is divided can be."""


class Loop(Declaration, frozen=True, kw_only=True):
    """One ML system, declared.

    Attributes:
        name: Name of the loop: 1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit.
        scope: Stage scope: the problem, objectives, value, budget and the heuristic.
        requests: Stage data: the table of decisions, one row each.
        outcome: The truth about a request, known later.
        features: Stage develop: a function of the columns that returns a dictionary of name to feature.
        candidates: The models to try; at least one.
        context: Tables joined to each request by key, as known at its moment.
        aggregates: Numbers over recent rows of a table, as known at its moment.
        slices: Parts of the traffic looked at everywhere.
        split: How examples are divided into training and validation.
        sampling: Which examples are trained on, and how they weigh.
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
        named = [("outcome.group", self.outcome.group), ("fleet.by", self.fleet.by if self.fleet else None)]
        named += [("split.column", None if isinstance(self.split, TimeSplit) else self.split.column)]
        found = [
            (where, f"no request column {column!r}")
            for where, column in named
            if column and column not in self.requests.columns
        ]
        segment = self.requests.columns.get(self.fleet.by) if self.fleet else None
        if segment is not None and segment.type not in SEGMENT_TYPES:
            found.append(("fleet.by", f"a segment is a value of a {', '.join(SEGMENT_TYPES)} column, not of a {segment.type}"))
        return found

    def _split_problems(self) -> list[tuple[str, str]]:
        """A split or a sampling that does not go with the outcome's task."""
        found, task = [], self.outcome.task
        if task == "ranking" and isinstance(self.split, StratifiedSplit):
            found.append(
                ("split", f"would tear apart what is ranked together: GroupSplit({self.outcome.group!r}) or TimeSplit()")
            )
        if self.sampling != Sampling() and task not in ("binary", "multiclass"):
            found.append(("sampling", f"samples by label, which is for binary and multiclass outcomes, not {task}"))
        elif task == "binary":
            named = [(f, n) for f in ("keep", "weights") for n in getattr(self.sampling, f) if n not in ("true", "false")]
            found += [(f"sampling.{f}.{n}", "the labels of a binary outcome are true and false") for f, n in named]
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
        """What features, heuristic and slices see: request columns, then context columns."""
        return {**self.requests.columns, **self.context_columns}

    @property
    def named_columns(self) -> frozenset[str]:
        """The request columns that declarations name: key and times, and what rows are joined, ranked, split and told apart by."""
        by = [c.by for c in self.context] + [a.by for a in self.aggregates]
        joined = [column for columns in by for column in columns.values()]
        split = None if isinstance(self.split, TimeSplit) else self.split.column
        named = [*self.requests.key, self.requests.event_time, self.requests.known, *joined]
        named += [name for name in (self.outcome.group, split, self.fleet.by if self.fleet else None) if name]
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


def load_loop(path: str | Path) -> Loop:
    """Import a loop file and return its `loop`.

    Raises LoopFileNotFound when there is no such file, DeclarationInvalid when it declares nothing usable.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "loop.py"
    if not file.is_file():
        raise LoopFileNotFound(file)
    module = _imported(file.absolute())
    loop = getattr(module, "loop", None)
    if not isinstance(loop, Loop):
        raise DeclarationInvalid(str(file), [("loop", "the file must set `loop = Loop(...)`")])
    return loop


def _imported(file: Path) -> ModuleType:
    """The module of a loop file. Raises DeclarationInvalid naming the file, the line and what to write instead."""
    name = f"loopwright_loop_{file.parent.name}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise LoopFileNotFound(file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:  # of who waits, not of the file
        raise
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, LoopwrightError) and not isinstance(error, DeclarationInvalid):
            raise
        raise DeclarationInvalid(str(file), _explained(error, file)) from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _explained(error: BaseException, file: Path) -> list[tuple[str, str]]:
    """Where a loop file, or a module beside it, fails, and why."""
    if isinstance(error, SyntaxError) and error.filename:
        return [(_line(error.filename, error.lineno or 0, file), f"{type(error).__name__}: {error.msg}")]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_beside(f.filename, file)]
    place = _line(frames[-1].filename, frames[-1].lineno or 0, file) if frames else file.name
    if isinstance(error, DeclarationInvalid):
        return [(f"{place}: {error.what}.{p.field}", p.reason) for p in error.problems]
    if isinstance(error, SystemExit):
        return [(place, f"ends the process (SystemExit: {error.code}): a loop file only declares")]
    return [(place, f"{type(error).__name__}: {first_line(error)}{_nearest(error)}")]


def _is_beside(name: str, file: Path) -> bool:
    """Whether code is the user's own: the loop file, or a module in its folder that is not installed there."""
    path = Path(name)
    return path.is_relative_to(file.parent) and not {"site-packages", "dist-packages"} & set(path.parts)


def _line(name: str, number: int, file: Path) -> str:
    text = linecache.getline(name, number).strip()
    other = "" if Path(name) == file else f"{Path(name).name}, "
    return f"{other}line {number}" + (f" `{text[:100]}`" if text else "")


def _nearest(error: BaseException) -> str:
    """The name that was probably meant by a misspelt argument, import or name; empty where there is none."""
    said = first_line(error)
    if isinstance(error, TypeError) and "argument" in said:
        known: Collection[str] = {field for kind in _declarations() for field in kind.__struct_fields__}
        wrong = said.rpartition(" argument ")[2].strip("'")
    elif isinstance(error, ModuleNotFoundError):
        return f": install it where loopwright runs (pip install {str(error.name).partition('.')[0]}), or mend its name"
    elif isinstance(error, ImportError) and error.name and error.name in sys.modules:
        known, wrong = dir(sys.modules[error.name]), said.partition("'")[2].partition("'")[0]
    elif isinstance(error, NameError):
        known, wrong = sys.modules["loopwright"].__all__, error.name or ""
    else:
        return ""
    near = difflib.get_close_matches(wrong, known, 1)
    return f": did you mean `{near[0]}`?" if near else ""


def _declarations() -> list[type[Declaration]]:
    """Every kind of declaration there is."""
    found, waiting = list[type[Declaration]](), [Declaration]
    while waiting:
        waiting += (kinds := waiting.pop().__subclasses__())
        found += kinds
    return found
