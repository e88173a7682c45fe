"""A table's contract applied to rows: good rows in the contract's types, bad rows with every reason.

Reads text (CSV) and typed columns (Parquet, data frames) alike. A fault that affects every row, such as a missing column or a
column of another type, is a schema change and refuses the whole source; a fault of one row sends that row to quarantine.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from loopwright.base.errors import IngestRefused
from loopwright.base.moment import EARLIEST, LATEST
from loopwright.data.ingest.plain import plain
from loopwright.data.ingest.values import Mask, flags, read, unusable
from loopwright.graph.columns import ARROW_TYPES
from loopwright.records.declarations import Column, Table
from loopwright.sql.engine import quoted, sql_engine

BAD_SCHEMA = pa.schema([("_row", pa.int64()), ("_reason", pa.string()), ("_raw", pa.string())])
Numbers = npt.NDArray[np.int64]
KEYLESS = "missing, but it is the key: give each row one, for outcomes to find it by"
REPEATED = "the same key and times as an earlier row"


class Conformed(NamedTuple):
    """`good`: rows [G] in the contract's columns and types. `bad`: rows [B] as BAD_SCHEMA. `counts`: rows by reason.

    `_row` counts the source's rows from 1, `_reason` names every broken field, `_raw` is the row as JSON: the columns that
    the contract takes, under the source's names. A row that breaks two rules counts under both. `at` [G]: which of the
    rows given the good ones are; `absent`: the contract's columns that the source does not have.
    """

    good: pa.Table
    bad: pa.Table
    counts: dict[str, int]
    at: npt.NDArray[np.int64]
    absent: list[str]


class _Broken(NamedTuple):
    """Rows [N] that break one rule; `with_value` says whether the value belongs in the reason."""

    field: str
    rule: str
    rows: Mask
    with_value: bool


class RowOrigin(NamedTuple):
    """Origin of rows, the source of `filled` columns. `digest` is one for all rows, or one per row [N]."""

    name: str = "the source"
    digest: str | list[str] = ""
    moment: datetime = datetime(1970, 1, 1, tzinfo=UTC)


def conform(
    table: Table,
    frame: pa.Table,
    *,
    origin: RowOrigin | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    absent: Collection[str] = (),
    seen: "SeenKeys | None" = None,
    optional: Collection[str] = (),
    whose: str = "",
) -> Conformed:
    """Sort the rows of `frame` [N] into good and bad by the contract of `table`.

    `rows` [N] are the row numbers in the source, where they are not 1 to N; `absent` names columns that a source may
    lack in addition to those declared `optional`; `seen` remembers the keys of earlier frames of the same source.
    Rows may lack the columns in `optional`, which are then null. Rows of no table, named by `whose` ("the requests of loop 'a'"),
    may repeat a key, or have an empty one.
    Raises IngestRefused naming every missing, extra or wrongly typed column.
    """
    origin = origin or RowOrigin()
    numbers = np.arange(1, len(frame) + 1, dtype=np.int64) if rows is None else rows
    frame = plain(frame)
    columns = {n: replace(c, optional=True, nullable=True) if n in optional else c for n, c in table.columns.items()}
    sources = _sources(table, columns, frame, origin.name, absent, whose or f"table {table.name!r}")
    broken: list[_Broken] = []
    kept: dict[str, Any] = {}
    for name, column in columns.items():
        if column.filled:
            kept[name] = _filled(column, origin, numbers)
            continue
        values = frame.column(sources[name]) if name in sources else pa.chunked_array([pa.nulls(len(frame))])
        found = read(column, values)
        kept[name] = found.values
        broken += [_Broken(name, rule, rows, True) for rule, rows in found.faults.items()]
        broken += [
            b
            for b in _checks(
                name, column, found.values, found.unreadable, not whose and name in table.key, bool(whose) and name in table.key
            )
            if b.rows.any()
        ]
    good = pa.table(kept, schema=pa.schema([(name, ARROW_TYPES[c.type]) for name, c in table.columns.items()]))
    wrong = np.zeros(len(frame), dtype=bool)
    for b in broken:
        wrong |= b.rows
    repeated = _repeated(table, good, wrong, seen) if not whose else np.zeros(len(good), dtype=bool)
    if repeated.any():
        broken.append(_Broken("key", REPEATED, repeated, False))
        wrong |= repeated
    counts = {f"{b.field}: {b.rule}": int(b.rows.sum()) for b in broken}
    bad = bad_rows(frame, sources.values(), np.flatnonzero(wrong), numbers, partial(_reasons, broken, sources))
    lacked = [n for n, c in table.columns.items() if n not in sources and not c.filled]
    return Conformed(good.filter(pa.array(~wrong)) if wrong.any() else good, bad, counts, np.flatnonzero(~wrong), lacked)


def _sources(
    table: Table, columns: dict[str, Column], frame: pa.Table, source: str, absent: Collection[str], whose: str
) -> dict[str, str]:
    """Column of the contract -> column of the frame it is read from; a column that may be missing and is, is left out."""
    names = frame.column_names
    problems = [f"column {n!r} is there twice" for i, n in enumerate(names) if n in names[:i]]
    found: dict[str, str] = {}
    missing: list[str] = []
    for name, column in columns.items():
        written = name if column.source is None or column.source not in names else column.source
        if written in names and not column.filled:
            found[name] = written
        elif not (column.filled or column.may_lack or (column.nullable and name in absent)):
            missing.append(name if column.source is None else column.source)
    problems += missing_columns(missing, [n for n in names if n not in found.values()])
    if "*" not in table.ignore:
        taken = {*found.values(), *table.ignore, *(n for n, c in columns.items() if c.filled)}
        problems += [
            f"column {n!r} is not in the contract (declare it as a nullable column, or name it in the table's `ignore`)"
            for n in names
            if n not in taken
        ]
    if not problems:
        for name, written in found.items():
            why = unusable(columns[name], frame.schema.field(written).type)
            problems += [f"column {written!r} {why}"] if why else []
    if problems:
        more = f" (and {len(problems) - 20} more)" if len(problems) > 20 else ""
        raise IngestRefused(
            source, f"its schema is not that of {whose}: {'; '.join(problems[:20])}{more}{_header(found, names)}"
        )
    return found


def missing_columns(missing: list[str], names: list[str]) -> list[str]:
    """Advice for each column that a file lacks: the most similar name among the unmatched `names`."""
    plain_names = {n.casefold().replace(" ", "_").replace("-", "_"): n for n in names}
    problems = []
    for name in missing:
        near = [plain_names[n] for n in get_close_matches(name.casefold(), plain_names, 1)]
        advice = f"the nearest name in the file is {near[0]!r}, rename it" if near else "add it"
        problems.append(f"column {name!r} is missing: {advice}")
    return problems


def _header(renamed: Mapping[str, str], names: list[str]) -> str:
    """Advice for a file that has none of a contract's columns."""
    shown = ", ".join(repr(n[:40]) for n in names[:5]) + (" ..." if len(names) > 5 else "")
    return "" if renamed else f"; its columns are {shown}: if the first line is a row of data, give --names"


def _filled(column: Column, origin: RowOrigin, numbers: npt.NDArray[np.int64]) -> pa.ChunkedArray:
    """A column that no source has; see `Column.filled`."""
    if column.filled == "ingested_at":
        return pa.chunked_array([pa.repeat(pa.scalar(origin.moment, ARROW_TYPES["timestamp"]), len(numbers))])
    digests = [origin.digest] if isinstance(origin.digest, str) else origin.digest
    start = pa.array([d[:12] for d in digests])
    start = pa.repeat(start[0], len(numbers)) if isinstance(origin.digest, str) else start
    return pa.chunked_array([pc.binary_join_element_wise(start, pa.array(numbers).cast(pa.string()), "-")])


def _checks(name: str, column: Column, values: pa.ChunkedArray, unreadable: Mask, key: bool, is_request: bool) -> list[_Broken]:
    """Check all rules of one column and return the rows that break them; `key`: a key column, `is_request`: a column of requests."""
    found = []
    missing = flags(pc.is_null(values))
    if is_request and column.type == "string":
        missing |= _mask(pc.equal(values, ""), values)
    if column.type == "float":
        found.append(_Broken(name, "infinite", _mask(pc.is_inf(values), values), True))
    if not column.nullable:
        found.append(_Broken(name, KEYLESS if is_request else "missing", missing & ~unreadable, False))
    if column.minimum is not None:
        below = pc.less(values, _bound(column, math.ceil, column.minimum))
        found.append(_Broken(name, f"below {column.minimum:g}", _mask(below, values), True))
    if column.maximum is not None:
        above = pc.greater(values, _bound(column, math.floor, column.maximum))
        found.append(_Broken(name, f"above {column.maximum:g}", _mask(above, values), True))
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


def _bound(column: Column, whole: Callable[[float], int], limit: float) -> pa.Scalar:
    """A limit as a value of the column: for integers the nearest whole number inside, so that they are compared exactly."""
    if column.type != "integer":
        return pa.scalar(limit)
    return pa.scalar(min(max(whole(limit) if math.isfinite(limit) else limit, -(2**63)), 2**63 - 1), pa.int64())


def _repeated(table: Table, good: pa.Table, wrong: Mask, seen: "SeenKeys | None") -> Mask:
    """Rows [N] with the key, event time and known time of an earlier row that is not `wrong`."""
    by = list(dict.fromkeys([*table.key, table.event_time, table.known]))
    kept = np.flatnonzero(~wrong)
    rows = good.select(by).append_column("_at", pa.array(np.arange(len(good))))
    if wrong.any():
        rows = rows.take(pa.array(kept))
    repeated = np.zeros(len(good), dtype=bool)
    # Usually one column of the key is already unique, which is checked at a fraction of the cost.
    if not any(pc.count_distinct(rows[k]).as_py() == len(kept) for k in table.key[:1]):
        first = rows.group_by(by).aggregate([("_at", "min")])
        if len(first) < len(kept):
            repeated[kept] = True
            repeated[first["_at_min"].to_numpy()] = False
    if seen is not None:
        new = np.flatnonzero(~wrong & ~repeated)
        repeated[new[seen.before(good.select(by).take(pa.array(new)) if len(new) < len(good) else good.select(by))]] = True
    return repeated


class SeenKeys:
    """The keys of a source's rows so far, as 16 bytes each (MD5 of the values: two that differ never meet by accident).

    The first frame is only stored until there is a second: most sources have one.
    """

    def __init__(self) -> None:
        self._first: pa.Table | None = None
        self._runs: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = []

    def before(self, keys: pa.Table) -> Mask:
        """Which rows of `keys` [N] (all different) were in an earlier frame; they are remembered for the next."""
        if self._first is None:
            self._first = keys
            return np.zeros(len(keys), dtype=bool)
        if not self._runs:
            self._add(*_hashed(self._first))
        upper, lower = _hashed(keys)
        known = np.zeros(len(keys), dtype=bool)
        for run_upper, run_lower in self._runs:
            at = np.minimum(np.searchsorted(run_upper, upper), max(len(run_upper) - 1, 0))
            if len(run_upper):
                known |= (run_upper[at] == upper) & (run_lower[at] == lower)
        self._add(upper[~known], lower[~known])
        return known

    def _add(self, upper: npt.NDArray[np.uint64], lower: npt.NDArray[np.uint64]) -> None:
        """Add a sorted run; runs of similar size are merged, so that there are few."""
        while self._runs and len(self._runs[-1][0]) <= 2 * len(upper):
            other = self._runs.pop()
            upper, lower = np.concatenate([other[0], upper]), np.concatenate([other[1], lower])
        order = np.argsort(upper, kind="stable")
        self._runs.append((upper[order], lower[order]))


def _hashed(keys: pa.Table) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Two halves [N] of the MD5 of each row: each value's length, then the value, so that no two rows read alike."""
    texts = [f"CAST({'epoch_us(%s)' % q if pa.types.is_timestamp(t) else q} AS VARCHAR)" for q, t in _quoted(keys)]  # noqa: UP031 - a quoted name
    whole = " || ".join(f"length({t}) || ':' || {t}" for t in texts)
    with sql_engine() as database:
        database.register("keys", keys)
        query = f"SELECT md5_number_upper({whole}) AS upper, md5_number_lower({whole}) AS lower FROM keys"  # noqa: S608 - names of columns, quoted
        found = database.sql(query).to_arrow_table()
    return found["upper"].to_numpy(), found["lower"].to_numpy()


def _quoted(keys: pa.Table) -> list[tuple[str, Any]]:
    return [(quoted(f.name), f.type) for f in keys.schema]


def bad_rows(
    frame: pa.Table, names: Iterable[str], at: Numbers, numbers: Numbers, reason: Callable[[int, dict[str, Any]], str]
) -> pa.Table:
    """The rows `at` of a frame [N] with these numbers [N] as BAD_SCHEMA, of the columns `names`; `reason` takes the row's place and values."""
    raw = _raw(frame.select(list(dict.fromkeys(names))).take(pa.array(at))) if len(at) else []
    reasons = [reason(i, row) for i, row in zip(at.tolist(), raw, strict=True)]
    encode = msgspec.json.Encoder(enc_hook=str).encode
    return pa.table([pa.array(numbers[at], pa.int64()), reasons, [encode(r).decode() for r in raw]], schema=BAD_SCHEMA)


def _reasons(broken: list[_Broken], sources: dict[str, str], row: int, values: dict[str, Any]) -> str:
    return "; ".join(_reason(b, values, sources) for b in broken if b.rows[row])


def _raw(frame: pa.Table) -> list[dict[str, Any]]:
    """Rows as plain values; times that Python has no moment for (nanoseconds, years beyond 9999) as Arrow writes them."""
    for i, field in enumerate(frame.schema):
        if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type):
            try:
                frame.column(i).to_pylist()
            except (OverflowError, ValueError):
                frame = frame.set_column(i, field.name, frame.column(i).cast(pa.string()))
    return frame.to_pylist()  # type: ignore[no-any-return]  # rows, as pyarrow makes them


def _reason(broken: _Broken, row: dict[str, Any], sources: dict[str, str]) -> str:
    if not broken.with_value:
        return f"{broken.field}: {broken.rule}"
    return f"{broken.field}: {str(row[sources[broken.field]])[:80]!r} is {broken.rule}"


def _mask(condition: Any, values: pa.ChunkedArray) -> Mask:
    """The rows where the condition is true; never for null."""
    return flags(pc.and_(pc.is_valid(values), pc.fill_null(condition, False)))
