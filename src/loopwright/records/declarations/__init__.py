"""What a user declares in a loop file, one module a stage, and `Loop`, which holds it all."""

from loopwright.records.declarations.data import Aggregate, Column, Context, Outcome, Slice, Table
from loopwright.records.declarations.declaration import (
    NO_EFFECT_ON_MODELS,
    RETIRED,
    ColumnType,
    Declaration,
    Task,
    declaration_digest,
    model_inputs,
    source_of,
    to_builtins,
    to_json,
)
from loopwright.records.declarations.deploy import Guard, Release
from loopwright.records.declarations.develop import Candidate, Fleet, GroupSplit, Sampling, StratifiedSplit, TimeSplit
from loopwright.records.declarations.loop import SEGMENT_TYPES, Loop, recorded_loop
from loopwright.records.declarations.monitor import Monitor, Retrain
from loopwright.records.declarations.scope import Budget, Heuristic, Objective, Scope, Value
from loopwright.records.field_rules import duration

__all__ = [
    "NO_EFFECT_ON_MODELS",
    "RETIRED",
    "SEGMENT_TYPES",
    "Aggregate",
    "Budget",
    "Candidate",
    "Column",
    "ColumnType",
    "Context",
    "Declaration",
    "Fleet",
    "GroupSplit",
    "Guard",
    "Heuristic",
    "Loop",
    "Monitor",
    "Objective",
    "Outcome",
    "Release",
    "Retrain",
    "Sampling",
    "Scope",
    "Slice",
    "StratifiedSplit",
    "Table",
    "Task",
    "TimeSplit",
    "Value",
    "declaration_digest",
    "duration",
    "model_inputs",
    "recorded_loop",
    "source_of",
    "to_builtins",
    "to_json",
]
