"""Rows from JSON, strictly by a contract: one msgspec decoder generated from the columns.

The fast path decides in well under a microsecond per field and alone decides what is accepted; only when it
refuses does the slow way look again, to name every wrong field. A key that is there twice is found by counting quotation
marks: a valid body has exactly two per key and two per text value, so that any other number (a double key, or an escaped
quotation mark) is worth a strict parse.
"""

import json
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from itertools import chain
from typing import Annotated, Any, NamedTuple, NoReturn

import msgspec

from loopwright.base.clock import EPOCH, microseconds
from loopwright.base.errors import FieldProblem, RequestInvalid, RequestMalformed, RequestTooLarge
from loopwright.base.moment import EARLIEST, LATEST
from loopwright.records.declarations import Column

MAX_ROWS = 10_000
MAX_PROBLEMS = 20

Row = dict[str, Any]

_MICROSECOND = timedelta(microseconds=1)
_EARLIEST, _LATEST = microseconds(EARLIEST), microseconds(LATEST)
_SPACE = b" \t\r\n"
_MAX_FLOAT32 = (2 - 2**-24) * 2.0**127 * (1 - 2**-53)  # the largest value below which float64 rounds to a finite float32
_TYPES: dict[str, Any] = {
    "float": float,
    "integer": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "boolean": bool,
    "string": str,
    "timestamp": Annotated[datetime, msgspec.Meta(tz=True)],
    "array": Annotated[float, msgspec.Meta(ge=-_MAX_FLOAT32, le=_MAX_FLOAT32)],
}
_WANTED = {
    "float": "a number that a float64 holds",
    "integer": "an integer of at most 64 bits",
    "boolean": "true or false",
    "string": "text",
    "timestamp": "a time with its zone, such as 2024-05-01T09:00:00Z, between the years 1900 and 2200",
    "array": "numbers that a float32 holds",
}


class Rows(NamedTuple):
    """The rows of a body, and whether it was a single object rather than a list."""

    rows: list[Row]
    single: bool


class _NoMoment(ValueError):
    """A time of a year in which nothing was decided."""


class _Shape(NamedTuple):
    """Decoders of one struct, for a body with one row and for a body with a list of them; and the type of that list."""

    one: Callable[[bytes], Any]
    many: Callable[[bytes], list[Any]]
    rows: Any


class Decoder:
    """Decodes a body that is one object or a list of objects, each with the columns of a contract.

    Every column must be there, nothing else may be; those declared `optional` in the contract, and those named by `optional`, may
    be left out (and are then missing in the row); text in `key` is not empty. Timestamps become int microseconds since 1970 (UTC), arrays flat lists in
    row-major order.

    Columns that the contract declares optional cost nothing: callers usually send all of them or none, so there is a struct
    for rows that have all of them, and one for all others. The one that fitted last is tried first.
    """

    def __init__(self, columns: Mapping[str, Column], *, optional: Collection[str] = (), key: Collection[str] = ()) -> None:
        declared = {name for name, column in columns.items() if column.may_lack}
        self.columns, self.optional = dict(columns), declared.union(optional)
        self._names = tuple(columns)
        self._types = {name: _type(column, is_key=name in key) for name, column in columns.items()}
        texts = [name for name, column in columns.items() if column.type in ("string", "timestamp")]
        self._marks = len(columns) + len(texts)
        self._unsure = [name for name in texts if columns[name].nullable or name in self.optional]
        self._times = [name for name, column in columns.items() if column.type == "timestamp"]
        self._deep = {name: len(column.shape) for name, column in columns.items() if column.shape and len(column.shape) > 1}
        self._moment = sorted(self.optional - declared)
        self._fewest, self._sure = len(columns) - len(self.optional), len(texts) - len(self._unsure)
        self._needed_unsure = [name for name in self._unsure if name not in self.optional]
        self._needed_times = [name for name in self._times if name not in self.optional]
        self._whole = self._likely = self._shape(self._moment)
        self._shapes = (self._whole, self._shape(self.optional)) if declared else (self._whole,)

    def _shape(self, optional: Collection[str]) -> "_Shape":
        """The decoder of rows that may lack the columns in `optional`."""
        fields: list[Any] = [
            (name, self._types[name] | msgspec.UnsetType, msgspec.UNSET) if name in optional else (name, self._types[name])
            for name in self.columns
        ]
        row = msgspec.defstruct("Row", fields, forbid_unknown_fields=True, kw_only=True, gc=False)
        rows: Any = list[row]  # type: ignore[valid-type]  # a type made at run time
        return _Shape(msgspec.json.Decoder(row).decode, msgspec.json.Decoder(rows).decode, rows)

    def __call__(self, body: bytes) -> Rows:
        """The rows of `body`.

        Raises RequestMalformed (not strict JSON), RequestTooLarge (more than 10,000 rows), RequestInvalid naming at most 20 fields.
        """
        first = body[:1]
        if first not in (b"{", b"["):
            first = body.lstrip(_SPACE)[:1]
            if not first:
                raise RequestMalformed("it is empty")
        single, shape = first == b"{", self._likely
        try:
            try:
                found = [shape.one(body)] if single else shape.many(body)
            except msgspec.ValidationError:
                shape, found = self._other(shape, lambda other: [other.one(body)] if single else other.many(body))
            if not 0 < len(found) <= MAX_ROWS:
                _refuse_count(found)
            rows, marks = self._settled(found) if shape is self._whole else self._partial(found)
        except (msgspec.ValidationError, _NoMoment):
            self._explain(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _malformed(error) from error
        if body.count(b'"') != 2 * marks:
            strict(body)
        return Rows(rows, single)

    def _other(self, shape: "_Shape", decode: Callable[["_Shape"], list[Any]]) -> tuple["_Shape", list[Any]]:
        """Decode rows with the other shape, for rows that do not have this one. Raises what `decode` raises."""
        other = next((s for s in self._shapes if s is not shape), shape)
        found = decode(other)
        self._likely = other
        return other, found

    def _settled(self, decoded: list[Any]) -> tuple[list[Row], int]:
        """Rows without omitted columns, times as microseconds, and the number of their keys and texts."""
        times, unset = self._times, msgspec.UNSET
        rows: list[Row] = list(map(msgspec.structs.asdict, decoded))
        marks = self._marks * len(rows)
        for row in rows:
            for name in self._unsure:
                value = row[name]
                if value is None or value is unset:
                    marks -= 1
            for name in self._moment:
                if row[name] is unset:
                    del row[name]
                    marks -= 1
            for name in times:
                value = row.get(name)
                if value is not None:
                    row[name] = moment = (value - EPOCH) // _MICROSECOND
                    if not _EARLIEST <= moment <= _LATEST:
                        raise _NoMoment
        self._flatten(rows)
        return rows, marks

    def _partial(self, decoded: list[Any]) -> tuple[list[Row], int]:
        """As `_settled`, for rows that lack some optional columns, which are skipped."""
        rows: list[Row] = msgspec.to_builtins(decoded, builtin_types=(datetime,))
        marks = self._sure * len(rows)
        for row in rows:
            least = len(row) == self._fewest
            marks += len(row)
            for name in self._needed_unsure if least else self._unsure:
                if row.get(name) is not None:
                    marks += 1
            for name in self._needed_times if least else self._times:
                value = row.get(name)
                if value is not None:
                    row[name] = moment = (value - EPOCH) // _MICROSECOND
                    if not _EARLIEST <= moment <= _LATEST:
                        raise _NoMoment
        self._flatten(rows)
        return rows, marks

    def check(self, rows: list[Any], *, single: bool = False) -> list[Row]:
        """Rows of plain values (already parsed, as from another protocol) by the same rules. Raises RequestInvalid."""
        try:
            shape = self._likely
            try:
                found = msgspec.convert(rows, shape.rows)
            except (ValueError, OverflowError):  # ValidationError is a ValueError
                shape, found = self._other(shape, lambda other: msgspec.convert(rows, other.rows))
            return (self._settled(found) if shape is self._whole else self._partial(found))[0]
        except (ValueError, OverflowError):  # ValidationError is a ValueError
            self._judge(rows, single=single)
            raise

    def _flatten(self, rows: list[Row]) -> None:
        for name, depth in self._deep.items():
            for row in rows:
                if row.get(name) is not None:
                    for _ in range(depth - 1):
                        row[name] = list(chain.from_iterable(row[name]))

    def _explain(self, body: bytes) -> NoReturn:
        """Raise the detailed error for a body that the fast path refused."""
        plain = parse(body)
        if isinstance(plain, list):
            _refuse_count(plain)
            self._judge(plain, single=False)
        elif isinstance(plain, dict):
            self._judge([plain], single=True)
        raise RequestInvalid([("body", f"must be an object, or a list of objects, not {_kind(plain)}")])

    def _judge(self, rows: list[Any], *, single: bool) -> None:
        problems: list[FieldProblem] = []
        for i, row in enumerate(rows):
            self._judge_row(row, "" if single else f"[{i}]", problems)
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise RequestInvalid(problems)

    def _judge_row(self, row: Any, where: str, problems: list[FieldProblem]) -> None:
        if not isinstance(row, dict):
            problems.append(FieldProblem(where or "body", f"must be an object with the columns as fields, not {_kind(row)}"))
            return
        prefix = f"{where}." if where else ""
        for name, column in self.columns.items():
            if name not in row:
                if name not in self.optional:
                    problems.append(FieldProblem(prefix + name, f"is missing; must be {_wanted(column)}"))
            elif not self._fits(name, row[name]):
                found = _shape(row[name]) if column.type == "array" else _kind(row[name], column)
                problems.append(FieldProblem(prefix + name, f"must be {_wanted(column)}, not {found}"))
        for name in row:
            if len(problems) >= MAX_PROBLEMS:
                return
            if name not in self.columns:
                near = get_close_matches(name[:80], self._names, 1)
                problems.append(
                    FieldProblem(prefix + name[:80], "is not in the contract" + (f"; is {near[0]!r} meant?" if near else ""))
                )

    def _fits(self, name: str, value: Any) -> bool:
        try:
            found = msgspec.convert(value, self._types[name])
        except (ValueError, OverflowError):  # ValidationError is a ValueError
            return False
        return not isinstance(found, datetime) or EARLIEST <= found <= LATEST


def parse(body: bytes) -> Any:
    """Strict JSON as plain values: no NaN, no double keys, bounded depth. Raises RequestMalformed."""
    try:
        plain = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from error
    strict(body)
    return plain


def strict(body: bytes) -> None:
    """Refuse a body in which an object has a key twice. Raises RequestMalformed."""
    try:
        json.loads(body.decode("utf-8"), object_pairs_hook=_no_doubles)
    except (ValueError, RecursionError) as error:
        raise _malformed(error) from error


def _no_doubles(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RequestMalformed(f"the key {name[:80]!r} is there twice")
            seen.add(name)
    return found


def _malformed(error: Exception) -> RequestMalformed:
    if isinstance(error, UnicodeDecodeError):
        return RequestMalformed("it is not UTF-8")
    if isinstance(error, RecursionError):
        return RequestMalformed("it is nested too deep")
    if isinstance(error, msgspec.ValidationError):
        return RequestMalformed("a number is larger than a float64 holds")
    return RequestMalformed(str(error)[:200])


def _refuse_count(rows: list[Any]) -> None:
    if not rows:
        raise RequestInvalid([("body", "an empty list: send at least one row")])
    if len(rows) > MAX_ROWS:
        raise RequestTooLarge("rows", MAX_ROWS)


def _type(column: Column, *, is_key: bool) -> Any:
    found = Annotated[str, msgspec.Meta(min_length=1)] if is_key and column.type == "string" else _TYPES[column.type]
    for length in reversed(column.shape or []):
        found = Annotated[list[found], msgspec.Meta(min_length=length, max_length=length)]  # type: ignore[valid-type]  # a type made at run time
    return found | None if column.nullable else found


def _wanted(column: Column) -> str:
    shape = f"nested lists of shape {column.shape} of " if column.shape else ""
    return ("null or " if column.nullable else "") + shape + _WANTED[column.type]


def _shape(value: Any) -> str:
    """Describe a value that is not the required array: its shape, its raggedness, or its invalid element."""
    shape: list[int] = []
    level = [value]
    while level and all(isinstance(v, list) for v in level):
        lengths = {len(v) for v in level}
        if len(lengths) > 1:
            return f"ragged lists of {min(lengths)} and {max(lengths)}"
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
    odd = next((v for v in level if isinstance(v, bool) or not isinstance(v, int | float)), None)
    if any(isinstance(v, list) for v in level):
        return "lists of different depth"
    if odd is not None or None in level:
        return f"lists with {_kind(odd)} in them" if shape else _kind(odd)
    if any(abs(v) > _MAX_FLOAT32 for v in level):
        return "with a number too large for a float32"
    return f"of shape {shape}" if shape else _kind(value)


def _kind(value: Any, column: Column | None = None) -> str:
    """Describe a refused value in words; for a timestamp given as text, what the text lacks."""
    if column is not None and column.type == "timestamp" and isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            return "a time without its zone" if moment.tzinfo is None else f"a time of the year {moment.year}"
        except ValueError:
            return "another text"
    if value in (None, ""):
        return "null" if value is None else "empty text"
    if isinstance(value, bool):
        return "true" if value else "false"
    if column is not None and column.type == "integer" and isinstance(value, float):
        return "a number with a decimal point"
    if isinstance(value, (int, float)):
        return "a number" if isinstance(value, float) or -(2**63) <= value < 2**63 else "an integer that large"
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
