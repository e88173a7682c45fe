"""A record as the text the ledger keeps, and back.

JSON by msgspec, fields and dictionaries in the order they came. JSON has no NaN and no infinity, and a measurement may
be either: such a number is written as `{"$float": "nan"}` (or `inf`, `-inf`) and comes back as the number it was.
"""

import math
from typing import Any, TypeVar

import msgspec

from loopwright.base.errors import Damaged, UsageError
from loopwright.records.entries import Record, Untyped

R = TypeVar("R", bound=Record)

_MARK = "$float"
_MARK_TEXT = f'"{_MARK}"'
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(record: Record) -> str:
    """The record's JSON; raises UsageError for values that JSON cannot hold."""
    try:
        return msgspec.json.encode(_marked(msgspec.to_builtins(record, str_keys=True))).decode()
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise UsageError(f"a record of kind {record.kind!r} cannot be written as JSON: {error}") from error


def decode(text: str, type: type[R], id: str) -> R:
    """The record in `text`; raises Damaged, naming the entry, when it is not one of that type."""
    try:
        if type is Untyped:
            return type(fields=_unmarked(msgspec.json.decode(text)))
        if _MARK_TEXT in text:
            return msgspec.convert(_unmarked(msgspec.json.decode(text)), type, str_keys=True)
        return msgspec.json.decode(text, type=type)
    except msgspec.DecodeError as error:
        raise Damaged(f"ledger entry {id} does not hold a {type.kind} record: {error}") from error


def _marked(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else {_MARK: repr(value)}
    if isinstance(value, dict):
        return {k: _marked(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_marked(v) for v in value]
    return value


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(text := value.get(_MARK), str) and text in _FLOATS:
            return _FLOATS[text]
        return {k: _unmarked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_unmarked(v) for v in value]
    return value
