"""One column of a source, read in the type of its contract: text and typed columns alike, each value that cannot be read named.

Times without a zone are local times of the contract's `zone`, by the IANA database that Arrow uses. A local time that the
clocks skip or repeat is not a moment: it is reported, never guessed.
"""

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.moment import EARLIEST, LATEST
from loopwright.graph.columns import ARROW_TYPES
from loopwright.records.declarations import Column
from loopwright.sql.engine import sql_engine, sql_error
from loopwright.sql.engine import text as sql_text

Mask = npt.NDArray[np.bool_]

MISSING_TEXT = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"})
"""Text that means a missing number, boolean, timestamp or array. A string is missing only when its field is empty and unquoted."""

TRUE_TEXT, FALSE_TEXT = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0"})
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)

NO_ZONE = "not a time with a zone (ISO 8601, e.g. 2013-01-31T05:15:00Z, or declare zone= for the column)"
_NOT = {"float": "not a number", "integer": "not a whole number of 64 bits", "boolean": "not true or false"}
_INT64 = 2**63
_NAIVE = pa.timestamp("us")
_MOMENT = ARROW_TYPES["timestamp"]
_ZONED = r"(?:[Zz]|[+-]\d{2}(?::?\d{2}(?::?\d{2})?)?)\s*$"
_TICKS = {"unix": 1_000_000, "unix_ms": 1_000}


class Read(NamedTuple):
    """`values` [N] in the column's Arrow type, null where missing or unreadable; `faults`: rule -> rows [N] that break it."""

    values: pa.ChunkedArray
    faults: dict[str, Mask]

    @property
    def unreadable(self) -> Mask:
        """Rows [N] that hold something which cannot be read."""
        return np.logical_or.reduce(list(self.faults.values())) if self.faults else np.zeros(len(self.values), dtype=bool)


def is_text(type: Any) -> bool:
    """Whether an Arrow type is one of strings."""
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def is_list(type: Any) -> bool:
    """Whether an Arrow type is one of lists."""
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type))


def _is_number(type: Any) -> bool:
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type))


def _is_bytes(type: Any) -> bool:
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type))


def unusable(column: Column, value: Any) -> str:
    """Why no value of an Arrow type could be of the column's type; empty if some could."""
    if is_text(value) or pa.types.is_null(value):
        return ""
    local = pa.types.is_date(value) or (pa.types.is_timestamp(value) and value.tz is None)
    if column.type == "timestamp" and local:
        return "" if column.zone else "has no time zone: say in the contract which, e.g. Column('timestamp', zone='UTC')"
    fits = {
        "float": _is_number(value),
        "integer": _is_number(value),
        "boolean": pa.types.is_boolean(value) or pa.types.is_integer(value),
        "string": _is_bytes(value),
        "timestamp": pa.types.is_timestamp(value) or (column.format in _TICKS and _is_number(value)),
        "array": is_list(value),
    }[column.type]
    return "" if fits else f"is {value} where the contract says {column.type}"


def read(column: Column, values: pa.ChunkedArray) -> Read:
    """Values [N] of a source in the type of the contract. NaN is a data frame's way of saying missing, so it becomes null."""
    if pa.types.is_null(values.type):
        return Read(pa.chunked_array([pa.nulls(len(values), ARROW_TYPES[column.type])]), {})
    if is_text(values.type):
        values = values.cast(pa.string())
        if column.type != "string":
            values = _without(values, MISSING_TEXT)
        values = _without(values, column.missing) if column.missing else values
    found = _READERS[column.type](column, values)
    return Read(_without(found.values, missing), found.faults) if (missing := column.missing_values) else found


def _without(values: pa.ChunkedArray, words: Collection[Any]) -> pa.ChunkedArray:
    """Values [N], with null in place of `words`."""
    return pc.if_else(pc.is_in(values, value_set=pa.array(sorted(words), values.type)), pa.scalar(None, values.type), values)


# --- numbers, booleans, text -------------------------------------------------------------------------------------


def _float(column: Column, values: pa.ChunkedArray) -> Read:
    if is_text(values.type):
        found, faults = _from_text(column, values)
    else:
        found, faults = values.cast(pa.float64(), safe=False), {}
    return Read(pc.if_else(pc.is_nan(found), pa.scalar(None, pa.float64()), found), faults)


def _integer(column: Column, values: pa.ChunkedArray) -> Read:
    if is_text(values.type):
        return _from_text(column, values)
    if pa.types.is_floating(values.type):
        return _whole(values.cast(pa.float64()))
    try:
        return Read(values.cast(pa.int64()), {})
    except pa.ArrowInvalid:  # unsigned beyond 2**63, or decimals with a fraction
        whole = [None if v is None else str(int(v)) if v == int(v) else str(v) for v in values.to_pylist()]
        return _each(column, pa.chunked_array([pa.array(whole, pa.string())]))


def _whole(values: pa.ChunkedArray) -> Read:
    """Floats [N] that are whole numbers as integers; NaN is missing."""
    numbers = values.to_numpy()
    missing = np.isnan(numbers)
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < _INT64)
    array = pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole)
    return Read(pa.chunked_array([array]), _faults(_NOT["integer"], ~whole & ~missing))


def _boolean(column: Column, values: pa.ChunkedArray) -> Read:
    if is_text(values.type):
        return _from_text(column, values)
    if pa.types.is_integer(values.type):
        wrong = pc.invert(pc.is_in(values, value_set=pa.array([0, 1], values.type)))
        wrong = pc.and_(pc.is_valid(values), wrong)
        return Read(pc.equal(values, pa.scalar(1, values.type)), _faults(_NOT["boolean"], flags(wrong)))
    return Read(values, {})


def _string(column: Column, values: pa.ChunkedArray) -> Read:
    if not _is_bytes(values.type):
        return Read(values, {})
    try:
        return Read(values.cast(pa.string()), {})
    except pa.ArrowInvalid:
        texts = [None if v is None else _utf8(v) for v in values.to_pylist()]
        found = pa.chunked_array([pa.array(texts, pa.string())])
        return Read(found, _faults("not text in UTF-8", flags(pc.and_(pc.is_null(found), pc.is_valid(values)))))


def _utf8(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _from_text(column: Column, values: pa.ChunkedArray) -> Read:
    if column.format:
        return _marked(column, values)
    try:
        return Read(_all_at_once(column, values), {})
    except pa.ArrowInvalid:
        return _each(column, values)


def _marked(column: Column, values: pa.ChunkedArray) -> Read:
    """Numbers with marks between thousands, `1,234.5` or `1.234,5`; no thousands begin with 0, so `0,539` has a decimal comma."""
    mark, point = (",", ".") if column.format == "1,234.5" else (".", ",")
    form = rf"^\s*[-+]?([1-9]\d{{0,2}}({re.escape(mark)}\d{{3}})+|\d+)?({re.escape(point)}\d*)?([eE][-+]?\d+)?\s*$"
    fits = pc.match_substring_regex(values, form)
    plain = pc.replace_substring(pc.replace_substring(values, mark, ""), point, ".")
    found = _from_text(msgspec.structs.replace(column, format=None), pc.if_else(fits, plain, pa.scalar(None, pa.string())))
    wrong = flags(pc.and_(pc.is_valid(values), pc.invert(pc.fill_null(fits, False))))
    return Read(found.values, _faults(_NOT[column.type], wrong | found.unreadable))


def _each(column: Column, values: pa.ChunkedArray) -> Read:
    parse = _PARSE[column.type]
    parsed = [None if v is None else parse(v) for v in values.to_pylist()]
    result = pa.chunked_array([pa.array(parsed, type=ARROW_TYPES[column.type])])
    return Read(result, _faults(_NOT[column.type], flags(pc.and_(pc.is_null(result), pc.is_valid(values)))))


def _all_at_once(column: Column, values: pa.ChunkedArray) -> pa.ChunkedArray:
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


def _parse_float(text: str) -> float | None:
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def _parse_integer(text: str) -> int | None:
    try:
        number = int(text) if text.isascii() and "_" not in text and len(text) <= 20 else _INT64
    except ValueError:
        return None
    return number if -_INT64 <= number < _INT64 else None


def _parse_boolean(text: str) -> bool | None:
    lower = text.lower()
    return True if lower in TRUE_TEXT else False if lower in FALSE_TEXT else None


_PARSE: dict[str, Callable[[str], Any]] = {"float": _parse_float, "integer": _parse_integer, "boolean": _parse_boolean}


# --- times ---------------------------------------------------------------------------------------------------------


def _timestamp(column: Column, values: pa.ChunkedArray) -> Read:
    if column.format in _TICKS:
        return _ticks(column, values)
    if is_text(values.type):
        return _formatted(column, values) if column.format else _iso(column, values)
    if pa.types.is_timestamp(values.type) and values.type.tz is not None:
        return Read(_in_microseconds(values, _MOMENT), {})
    return _localised(_in_microseconds(values, _NAIVE), column.zone)


def _in_microseconds(values: pa.ChunkedArray, type: Any) -> pa.ChunkedArray:
    """Times and dates [N] of any unit in microseconds; those before year 1 or after year 9999 as the end of that range.

    Microseconds would overflow to another moment in silence, and no contract takes either.
    """
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s" if pa.types.is_date32(values.type) else "ms"))
    ticks = {"s": 1, "ms": 1_000}.get(values.type.unit)
    if ticks is not None:
        least, most = (round(moment.timestamp()) * ticks for moment in (_FIRST, _LAST))
        numbers = pc.max_element_wise(values.cast(pa.int64()), least, skip_nulls=False)
        values = pc.min_element_wise(numbers, most, skip_nulls=False).cast(values.type)
    return values.cast(type, safe=False)


def _ticks(column: Column, values: pa.ChunkedArray) -> Read:
    """Seconds or milliseconds since 1970, as numbers or text."""
    if pa.types.is_timestamp(values.type):
        return Read(_in_microseconds(values, _MOMENT), {})
    found = _float(Column("float"), values)
    ticks = pc.multiply(found.values, float(_TICKS[column.format or ""])).to_numpy()
    with np.errstate(invalid="ignore"):
        moment = np.abs(ticks) < 2**62
    faults = _faults(f"no time in {column.format} format", found.unreadable | (~moment & ~np.isnan(ticks)))
    array = pa.array(np.where(moment, ticks, 0).round().astype(np.int64), mask=~moment).cast(_MOMENT)
    return Read(pa.chunked_array([array]), faults)


def _iso(column: Column, values: pa.ChunkedArray) -> Read:
    try:
        return Read(values.cast(_MOMENT), {})
    except pa.ArrowInvalid:
        zoned = flags(pc.fill_null(pc.match_substring_regex(values, r"\d[T ].*" + _ZONED), False))
    here, there = pa.array(~zoned), pa.array(zoned)
    with_zone = pc.if_else(there, values, pa.scalar(None, pa.string()))
    without = pc.if_else(here, values, pa.scalar(None, pa.string()))
    try:
        moments = with_zone.cast(_MOMENT)
    except pa.ArrowInvalid:
        parsed = [None if v is None else _parse_moment(v) for v in with_zone.to_pylist()]
        moments = pa.chunked_array([pa.array(parsed, _MOMENT)])
    if column.zone is None:
        return Read(moments, _faults(NO_ZONE, flags(pc.and_(pc.is_null(moments), pc.is_valid(values)))))
    try:
        naive = without.cast(_NAIVE)
    except pa.ArrowInvalid:
        naive = pa.chunked_array([pa.array([None if v is None else _parse_naive(v) for v in without.to_pylist()], _NAIVE)])
    wrong = flags(pc.and_(pc.is_null(pc.coalesce(moments, naive.cast(_MOMENT))), pc.is_valid(values)))
    faults = _faults("not a time (ISO 8601, e.g. 2013-01-31 05:15)", wrong)
    local = _localised(naive, column.zone)
    return Read(pc.coalesce(moments, local.values), faults | local.faults)


def _parse_moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo and EARLIEST.year <= moment.year <= LATEST.year else None


def _parse_naive(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return moment if moment.tzinfo is None else None


def _formatted(column: Column, values: pa.ChunkedArray) -> Read:
    """Text in the column's own format, read by DuckDB's strptime."""
    with sql_engine() as database:
        database.register("source", pa.table({"v": values}))
        query = f"SELECT try_strptime(trim(v), {sql_text(column.format or '')}) AS v FROM source"  # noqa: S608 - a literal, quoted
        try:
            found = database.sql(query).to_arrow_table()["v"]
        except sql_error():
            found = pa.chunked_array([pa.nulls(len(values), _NAIVE)])
    wrong = flags(pc.and_(pc.is_null(found), pc.is_valid(values)))
    if found.type.tz is None and column.zone is None:
        return Read(pa.chunked_array([pa.nulls(len(values), _MOMENT)]), _faults(NO_ZONE, flags(pc.is_valid(values))))
    moments = Read(found.cast(_MOMENT), {}) if found.type.tz is not None else _localised(found.cast(_NAIVE), column.zone)
    return Read(moments.values, _faults(f"not a time as {column.format}", wrong) | moments.faults)


def _localised(naive: pa.ChunkedArray, zone: str | None) -> Read:
    """Local times [N] of a zone as moments; skipped and ambiguous ones are reported."""
    zone = zone or "UTC"
    early = pc.assume_timezone(naive, zone, ambiguous="earliest", nonexistent="earliest").cast(_MOMENT)
    if zone == "UTC":
        return Read(early, {})
    late = pc.assume_timezone(naive, zone, ambiguous="latest", nonexistent="latest").cast(_MOMENT)
    odd = flags(pc.fill_null(pc.not_equal(early, late), False))
    if not odd.any():
        return Read(early, {})
    at = np.flatnonzero(odd)
    said, first, last = (_microseconds(v.take(pa.array(at))) for v in (naive, early, late))
    faults: dict[str, Mask] = {}
    for row, local, a, b in zip(at.tolist(), said.tolist(), first.tolist(), last.tolist(), strict=True):
        # Of a time that is skipped Arrow gives the last moment before the gap and the first after it.
        rule = (
            f"a time that {zone} skips (the clocks go forward)"
            if b - a <= 1
            else f"a time that {zone} has twice, as {_offset(local - a)} and as {_offset(local - b)}: write which"
        )
        faults.setdefault(rule, np.zeros(len(odd), dtype=bool))[row] = True
    return Read(pc.if_else(pa.array(odd), pa.scalar(None, _MOMENT), early), faults)


def _microseconds(values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return values.cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]  # pyarrow has no types


def _offset(microseconds: int) -> str:
    minutes = round(microseconds / 60_000_000)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


# --- arrays --------------------------------------------------------------------------------------------------------


def _array(column: Column, values: pa.ChunkedArray) -> Read:
    """Lists as deep as the column's shape, or flat ones in row-major order; from text, JSON lists."""
    shape = column.shape or []
    rule = f"not an array of shape {shape} of numbers"
    if is_text(values.type):
        parsed = [None if v is None else _parse_array(v, shape) for v in values.to_pylist()]
        found = pa.chunked_array([pa.array(parsed, ARROW_TYPES["array"])])
        return Read(found, _faults(rule, flags(pc.and_(pc.is_null(found), pc.is_valid(values)))))
    count, size = len(values), int(np.prod(shape))
    level = values.combine_chunks()
    level = level.combine_chunks() if isinstance(level, pa.ChunkedArray) else level
    rows = np.flatnonzero(flags(pc.is_valid(level)))
    there = np.zeros(count, dtype=bool)
    there[rows] = True
    level = level.take(pa.array(rows))
    dimensions = list(shape) if is_list(level.type.value_type) else [size]
    of = rows
    wrong = np.zeros(count, dtype=bool)
    for length in dimensions:
        if not is_list(level.type):
            wrong[rows] = True
            break
        fits = flags(pc.fill_null(pc.equal(pc.list_value_length(level), length), False))
        wrong[of[~fits]] = True
        level, of = pc.list_flatten(level.filter(pa.array(fits))), np.repeat(of[fits], length)
    if not wrong.all() and not _is_number(level.type) and not pa.types.is_null(level.type):
        wrong[rows] = True
    if wrong[rows].all():
        return Read(pa.chunked_array([pa.nulls(count, ARROW_TYPES["array"])]), _faults(rule, wrong & there))
    with np.errstate(over="ignore"):
        numbers = pc.fill_null(level.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False).astype(np.float32)
    wrong[of[~np.isfinite(numbers)]] = True
    kept = there & ~wrong
    offsets = np.concatenate([[0], np.cumsum(np.where(kept, size, 0))]).astype(np.int32)
    lists = pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(numbers[kept[of]], pa.float32()), mask=pa.array(~kept)
    )  # fmt: skip
    return Read(pa.chunked_array([lists]), _faults(rule, wrong & there))


def _parse_array(text: str, shape: list[int]) -> npt.NDArray[np.float32] | None:
    try:
        with np.errstate(over="ignore"):
            found = np.asarray(msgspec.json.decode(text), dtype=np.float32)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError, OverflowError):
        return None
    fits = list(found.shape) in (shape, [int(np.prod(shape))]) and np.isfinite(found).all()
    return found.ravel() if fits else None


# --- masks -----------------------------------------------------------------------------------------------------------

_READERS: dict[str, Callable[[Column, pa.ChunkedArray], Read]] = {
    "float": _float,
    "integer": _integer,
    "boolean": _boolean,
    "string": _string,
    "timestamp": _timestamp,
    "array": _array,
}


def _faults(rule: str, rows: Mask) -> dict[str, Mask]:
    return {rule: rows} if rows.any() else {}


def flags(condition: Any) -> Mask:
    """An Arrow column of booleans [N] without nulls, as a mask."""
    return np.asarray(
        condition.to_numpy() if isinstance(condition, pa.ChunkedArray) else condition.to_numpy(zero_copy_only=False), dtype=bool
    )
