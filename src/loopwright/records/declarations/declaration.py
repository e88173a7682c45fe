"""The base of every declaration: typed, validated with errors that name the field, convertible to and from JSON.

Code (features, heuristic, slices, estimators) is declared as functions. In JSON a function becomes its source text, which
is for reading only: the ONNX graph in the package runs later, never the user's code.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from loopwright.base.errors import DeclarationInvalid
from loopwright.base.ids import digest
from loopwright.records.field_rules import duration as duration  # part of what declarations offer
from loopwright.records.field_rules import range_problems, type_problems

RETIRED = "is retired: nothing may use it; take `retired=True` off where it is still delivered"
ColumnType = Literal["float", "integer", "boolean", "string", "timestamp", "array"]


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything a user declares. `problems` lists the faults; the constructor raises them all at once."""

    def problems(self) -> list[tuple[str, str]]:
        """Pairs of field and reason, beyond types and ranges (`field_rules`); empty when all is well."""
        return []

    def __post_init__(self) -> None:
        """Refuse values of the wrong type, out of range, or with `problems`."""
        found = type_problems(self)
        if not found:  # else a range or a problem could not be looked at
            found = range_problems(self)
            ranged = {field for field, _ in found}
            found += [problem for problem in self.problems() if problem[0] not in ranged]
        if found:
            raise DeclarationInvalid(type(self).__name__, found)


def code_problem(field: str, code: Any) -> list[tuple[str, str]]:
    """Why a declared function is invalid, as a list of problems."""
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
    | {"Budget.usd_per_hour", "Table.description", "Table.ignore", "Release.strategy", "Release.plan", "Release.alpha"}
    | {"Release.freeze", "Release.zone", "Scope.tier", "Scope.approvers", "Scope.approvals"}
)
"""Fields that affect neither training on given examples nor serving: changing them does not retrain."""


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
