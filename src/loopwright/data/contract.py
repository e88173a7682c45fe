"""A table's contract applied to rows: good rows in the contract's types, bad rows with every reason.

Reads text (CSV) and typed columns (Parquet, data frames) alike. What no row could ever meet, such as a missing column or a
column of another type, is a change of schema and refuses the whole source; what a row breaks sends that row to quarantine.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.columns import ARROW_TYPES
from loopwright.records.declarations import Column, Table
from loopwright.records.errors import IngestRefused

Mask = npt.NDArray[np.bool_]

MISSING_TEXT = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"})
"""Text that means a missing number, boolean or timestamp. A string is missing only when its field is empty and unquoted."""

TRUE_TEXT, FALSE_TEXT = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0"})
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Timestamps outside of this are mistakes of unit (seconds read as microseconds, say), not moments."""

BAD_SCHEMA = pa.schema([("_row", pa.int64()), ("_reason", pa.string()), ("_raw", pa.string())])
_INT64 = 2**63


class Conformed(NamedTuple):
    """`good`: rows [G] in the contract's columns and types. `bad`: rows [B] as BAD_SCHEMA. `counts`: rows by reason.

    `_row` counts the source's rows from 1, `_reason` names every broken field, `_raw` is the row as JSON. A row that
    breaks two rules counts under both.
    """

    good: pa.Table
    bad: pa.Table
    counts: dict[str, int]


class _Broken(NamedTuple):
    """Rows [N] that break one rule; `with_value` says whether the value belongs in the reason."""

    field: str
    rule: str
    rows: Mask
    with_value: bool


def conform(
    table: Table, frame: pa.Table, *, source: str = "the source", rows: npt.NDArray[np.int64] | None = None
) -> Conformed:
    """Sort the rows of `frame` [N] into good and bad by the contract of `table`.

    `rows` [N] are the numbers of the rows in the source, where they are not 1 to N. Raises IngestRefused naming every
    missing, extra or wrongly typed column.
    """
    _same_columns(table, frame, source)
    frame = _without_views(frame)
    broken: list[_Broken] = []
    kept: dict[str, Any] = {}
    for name, column in table.columns.items():
        values = frame.column(name)
        found, unreadable = typed(column, values)
        kept[name] = found
        broken += [b for b in _checks(name, column, found, unreadable, name in table.key) if b.rows.any()]
    good = pa.table(kept, schema=pa.schema([(name, ARROW_TYPES[c.type]) for name, c in table.columns.items()]))
    wrong = np.zeros(len(frame), dtype=bool)
    for b in broken:
        wrong |= b.rows
    repeated = _repeated(table, good, wrong)
    if repeated.any():
        broken.append(_Broken("key", "the same key and times as an earlier row", repeated, False))
        wrong |= repeated
    counts = {f"{b.field}: {b.rule}": int(b.rows.sum()) for b in broken}
    bad = _bad(frame, broken, np.flatnonzero(wrong), rows)
    return Conformed(good.filter(pa.array(~wrong)) if wrong.any() else good, bad, counts)


def _same_columns(table: Table, frame: pa.Table, source: str) -> None:
    names = frame.column_names
    problems = [f"column {n!r} is there twice" for i, n in enumerate(names) if n in names[:i]]
    problems += [f"column {n!r} is missing" for n in table.columns if n not in names]
    extra = [n for n in names if n not in table.columns]
    problems += [
        f"column {n!r} is not in the contract (this version does not add columns; drop it from the source)" for n in extra
    ]
    if not problems:
        for name, column in table.columns.items():
            why = _unusable(column, frame.schema.field(name).type)
            problems += [f"column {name!r} {why}"] if why else []
    if problems:
        raise IngestRefused(source, f"its schema is not that of table {table.name!r}: {'; '.join(problems[:20])}")


def _without_views(frame: pa.Table) -> pa.Table:
    """Arrow cannot yet gather rows of string views, which polars hands out."""
    views = [f.with_type(pa.string()) if pa.types.is_string_view(f.type) else f for f in frame.schema]
    return frame.cast(pa.schema(views))


def _unusable(column: Column, found: Any) -> str:
    """Why no value of an Arrow type could be of the column's type; empty if some could."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if is_text(found) or pa.types.is_null(found):
        return ""
    number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
    fits = {
        "float": number,
        "integer": number,
        "boolean": pa.types.is_boolean(found) or pa.types.is_integer(found),
        "string": False,
        "timestamp": pa.types.is_timestamp(found) and found.tz is not None,
    }[column.type]
    if not fits and pa.types.is_timestamp(found) and column.type == "timestamp":
        return "has no time zone: say which (e.g. `.dt.tz_localize('UTC')`)"
    return "" if fits else f"is {found} where the contract says {column.type}"


def is_text(type: Any) -> bool:
    """Whether an Arrow type is one of strings."""
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def typed(column: Column, values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Mask]:
    """Values [N] in the column's Arrow type (null where missing or unreadable), and which are unreadable [N].

    NaN is a data frame's way of saying missing, so it becomes null.
    """
    found, unreadable = _cast(column, values)
    if column.type == "float":
        found = pc.if_else(pc.is_nan(found), pa.scalar(None, pa.float64()), found)
    return found, unreadable


def _cast(column: Column, values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Mask]:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    target = ARROW_TYPES[column.type]
    if pa.types.is_null(values.type):
        return values.cast(target), np.zeros(len(values), dtype=bool)
    if is_text(values.type):
        values = values.cast(pa.string())
        return (values, np.zeros(len(values), dtype=bool)) if column.type == "string" else _from_text(column, values)
    if column.type == "timestamp":
        return values.cast(target, safe=False), np.zeros(len(values), dtype=bool)
    if column.type == "integer" and not pa.types.is_integer(values.type):
        return _whole(values.cast(pa.float64()))
    if column.type == "boolean" and pa.types.is_integer(values.type):
        wrong = _mask(pc.invert(pc.is_in(values, value_set=pa.array([0, 1], values.type))), values)
        return pc.equal(values, pa.scalar(1, values.type)), wrong
    if pa.types.is_uint64(values.type) and (pc.max(values).as_py() or 0) >= _INT64:
        return _whole(values.cast(pa.float64(), safe=False))
    return values.cast(target, safe=column.type != "float"), _none(values)


def _whole(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Mask]:
    """Floats [N] that are whole numbers as integers; NaN is missing."""
    numbers = values.to_numpy()
    missing = np.isnan(numbers)
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < _INT64)
    array = pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole)
    return pa.chunked_array([array]), ~whole & ~missing


def _from_text(column: Column, values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Mask]:
    missing = pc.is_in(values, value_set=pa.array(sorted(MISSING_TEXT)))
    values = pc.if_else(missing, pa.scalar(None, pa.string()), values)
    try:
        return _parse_all(column, values), _none(values)
    except pa.ArrowInvalid:
        read = _READ[column.type]
        parsed = [None if v is None else read(v) for v in values.to_pylist()]
        result = pa.chunked_array([pa.array(parsed, type=ARROW_TYPES[column.type])])
        return result, _flags(pc.and_(pc.is_null(result), pc.is_valid(values)))


def _parse_all(column: Column, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """All values at once, the usual case; ArrowInvalid as soon as one cannot be read."""
    if column.type == "integer" and pc.all(pc.match_substring_regex(values, r"^-?[0-9]+$")).as_py() is False:
        raise pa.ArrowInvalid("not all are whole numbers")  # Arrow would read 0x10
    if column.type == "boolean":
        lower = pc.utf8_lower(values)
        known = pc.if_else(
            pc.is_null(lower), pa.scalar(None, pa.bool_()), pc.is_in(lower, value_set=pa.array(sorted(TRUE_TEXT)))
        )
        if pc.any(pc.and_(pc.invert(known), pc.invert(pc.is_in(lower, value_set=pa.array(sorted(FALSE_TEXT)))))).as_py():
            raise pa.ArrowInvalid("not all are booleans")
        return known
    return values.cast(ARROW_TYPES[column.type])


def _read_float(text: str) -> float | None:
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def _read_integer(text: str) -> int | None:
    try:
        number = int(text) if text.isascii() and "_" not in text and len(text) <= 20 else _INT64
    except ValueError:
        return None
    return number if -_INT64 <= number < _INT64 else None


def _read_boolean(text: str) -> bool | None:
    lower = text.lower()
    return True if lower in TRUE_TEXT else False if lower in FALSE_TEXT else None


def _read_timestamp(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo and EARLIEST.year <= moment.year <= LATEST.year else None


_READ: dict[str, Callable[[str], Any]] = {
    "float": _read_float,
    "integer": _read_integer,
    "boolean": _read_boolean,
    "timestamp": _read_timestamp,
}
_UNREADABLE = {
    "float": "not a number",
    "integer": "not a whole number of 64 bits",
    "boolean": "not true or false",
    "timestamp": "not a time with a zone (ISO 8601, e.g. 2013-01-31T05:15:00Z)",
}


def _checks(name: str, column: Column, values: pa.ChunkedArray, unreadable: Mask, key: bool) -> list[_Broken]:
    """Every rule of one column, with the rows that break it."""
    found = [_Broken(name, _UNREADABLE.get(column.type, "not text"), unreadable, True)]
    missing = _flags(pc.is_null(values))
    if column.type == "float":
        found.append(_Broken(name, "infinite", _mask(pc.is_inf(values), values), True))
    if not column.nullable:
        found.append(_Broken(name, "missing", missing & ~unreadable, False))
    if column.minimum is not None:
        found.append(
            _Broken(name, f"below {column.minimum:g}", _mask(pc.less(values, pa.scalar(column.minimum)), values), True)
        )
    if column.maximum is not None:
        found.append(
            _Broken(name, f"above {column.maximum:g}", _mask(pc.greater(values, pa.scalar(column.maximum)), values), True)
        )
    if column.categories is not None:
        known = pc.is_in(values, value_set=pa.array(column.categories, pa.string()))
        shown = ", ".join(column.categories[:10]) + (" ..." if len(column.categories) > 10 else "")
        found.append(_Broken(name, f"not one of {shown}", _mask(pc.invert(known), values), True))
    if column.type == "timestamp":
        moment = ARROW_TYPES["timestamp"]
        outside = pc.or_(pc.less(values, pa.scalar(EARLIEST, moment)), pc.greater(values, pa.scalar(LATEST, moment)))
        found.append(_Broken(name, "not between the years 1900 and 2200", _mask(outside, values), True))
    if key and column.type == "string":
        found.append(_Broken(name, "an empty key", _mask(pc.equal(values, ""), values), False))
    return found


def _repeated(table: Table, good: pa.Table, wrong: Mask) -> Mask:
    """Rows [N] with the key, event time and known time of an earlier row that is not `wrong`."""
    by = list(dict.fromkeys([*table.key, table.event_time, table.known]))
    kept = np.flatnonzero(~wrong)
    rows = good.select(by).append_column("_at", pa.array(np.arange(len(good))))
    first = (
        rows.take(pa.array(kept)).group_by(by).aggregate([("_at", "min")])
        if wrong.any()
        else rows.group_by(by).aggregate([("_at", "min")])
    )
    repeated = np.zeros(len(good), dtype=bool)
    if len(first) < len(kept):
        repeated[kept] = True
        repeated[first["_at_min"].to_numpy()] = False
    return repeated


def _bad(frame: pa.Table, broken: list[_Broken], at: npt.NDArray[np.int64], rows: npt.NDArray[np.int64] | None) -> pa.Table:
    raw = frame.take(pa.array(at)).to_pylist() if len(at) else []
    reasons = [
        "; ".join(_reason(b, row) for b in broken if b.rows[i])
        for i, row in zip(at.tolist(), raw, strict=True)
    ]  # fmt: skip
    numbers = at + 1 if rows is None else rows[at]
    encode = msgspec.json.Encoder(enc_hook=str).encode
    return pa.table([pa.array(numbers, pa.int64()), reasons, [encode(r).decode() for r in raw]], schema=BAD_SCHEMA)


def _reason(broken: _Broken, row: dict[str, Any]) -> str:
    return (
        f"{broken.field}: {str(row[broken.field])[:80]!r} is {broken.rule}"
        if broken.with_value
        else f"{broken.field}: {broken.rule}"
    )


def _none(values: pa.ChunkedArray) -> Mask:
    return np.zeros(len(values), dtype=bool)


def _mask(condition: Any, values: pa.ChunkedArray) -> Mask:
    """Where the condition holds; never where the value is null."""
    return _flags(pc.and_(pc.is_valid(values), pc.fill_null(condition, False)))


def _flags(condition: Any) -> Mask:
    return np.asarray(
        condition.to_numpy() if isinstance(condition, pa.ChunkedArray) else condition.to_numpy(zero_copy_only=False), dtype=bool
    )
