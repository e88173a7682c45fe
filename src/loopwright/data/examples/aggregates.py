"""Aggregates as step functions: what a window holds changes only when a row enters or leaves it.

A row enters when serving could know it, but not before it happened: `max(known + known_after + lag, event)`. It leaves when it
is as old as the window, or when a later version of it (same table key and event time; known later, or ingested later) enters. So the window is (d - W, d] on
event time, of what was known at d.

count, sum, mean and share are running sums of what enters less what leaves. Sums are whole multiples of 2^-40 (9.1e-13), so they
do not depend on order and do not drift: a value is rounded to the nearest multiple (those from 8,192 on are multiples as they
are), and an aggregate whose largest value times the most rows in a window reaches 2.9e17 is refused. distinct is the running
count of the values that are there at all. min and max are a sweep over the rows in order of entry with a heap of those inside.
All take O(n log n) and stream: memory does not grow with the rows of a key.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.declarations import Aggregate, Table
from loopwright.sql.engine import quoted
from loopwright.sql.expression import row_sql

SCALE = 2**40
"""Sums are whole multiples of 1 / SCALE."""

_LOW = 36
"""A sum is two int64: high * 2^_LOW + low multiples of 1 / SCALE, so that the lows of 2^27 rows fit."""

_BATCH = 131_072
_NEVER = 2**63 - 1
_ARROW = {"BIGINT": pa.int64(), "DOUBLE": pa.float64()}


def value(aggregate: Aggregate) -> str:
    """SQL for what one row adds: null is not counted (a row always counts as one for `count`).

    Raises DeclarationInvalid when it is no expression over one row.
    """
    if aggregate.function == "count":
        return "1"
    of = row_sql(f"Aggregate {aggregate.name}", "of", aggregate.of, aggregate.table)
    if aggregate.function == "share":
        return f"CAST(CAST(({of}) AS BOOLEAN) AS DOUBLE)"
    if aggregate.function == "distinct":
        return f"({of})"
    number = f"CAST(({of}) AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def create(
    database: Any, name: str, table: Table, declared: list[Aggregate], *, by: list[str], delay: int, window: int
) -> None:
    """Make the temporary table `name` with the steps (see `data.examples.asof`) of the aggregates over the relation `_rows`.

    `by` are columns of the table; `delay` (from known time to when a row may count) and `window` are microseconds.
    """
    keys, source = [f"k{i}" for i in range(len(by))], f"{name}_inside"
    inside = _inside(table, declared, by=by, delay=delay, window=window)
    # Read below by a connection of its own, which sees tables, but neither temporary ones nor what is registered here.
    database.execute(f"CREATE TABLE {source} AS {inside}")
    if declared[0].function in ("min", "max"):
        rows = f"SELECT {', '.join(keys)}, _enter, _leave, v0 FROM {source} WHERE v0 IS NOT NULL ORDER BY ALL"  # noqa: S608 - names of ours
        sign = 1.0 if declared[0].function == "min" else -1.0
        _stream(database, name, rows, declared, keys, lambda batches: _swept(batches, sign))
    else:
        changes = _distinct(keys, source) if declared[0].function == "distinct" else _changes(declared, keys, source)
        rows = f"{changes} ORDER BY {', '.join(keys)}, _at"
        _stream(database, name, rows, declared, keys, lambda batches: _running(batches, declared, len(keys)))
    database.execute(f"DROP TABLE {source}")


def _inside(table: Table, declared: list[Aggregate], *, by: list[str], delay: int, window: int) -> str:
    """SQL for when each version of each row is inside the window: key, `_enter`, `_leave`, and what it adds (v0, v1, ...)."""
    keys = [f"k{i}" for i in range(len(by))]
    values = [f"v{i}" for i in range(len(declared))]
    of = ", ".join(f"{value(a)} AS {v}" for a, v in zip(declared, values, strict=True))
    chosen = ", ".join(f"{quoted(column)} AS {k}" for column, k in zip(by, keys, strict=True))
    row = ", ".join(["_event", *(f"p{i}" for i in range(len(table.key)))])
    parts = ", ".join(f"{quoted(column)} AS p{i}" for i, column in enumerate(table.key))
    known = ", ".join(["_known", "_order", *keys, *values])
    there = " AND ".join(f"{k} IS NOT NULL" for k in keys)
    return f"""
        WITH version AS (
            SELECT {chosen}, {parts}, epoch_us({quoted(table.event_time)}) AS _event,
                   epoch_us({quoted(table.known)}) + {delay} AS _known, _order, {of} FROM _rows
        ), entered AS (
            SELECT {", ".join([*keys, *values])}, _event, greatest(_known, _event) AS _enter,
                   lead(greatest(_known, _event)) OVER (PARTITION BY {row} ORDER BY {known}) AS _next FROM version
        )
        SELECT {", ".join([*keys, *values])}, _enter, least(_event + {window}, coalesce(_next, {_NEVER})) AS _leave
        FROM entered WHERE {there} AND _enter < least(_event + {window}, coalesce(_next, {_NEVER}))"""  # noqa: S608 - names of declared columns, quoted, and the loop's own expressions


def _changes(declared: list[Aggregate], keys: list[str], source: str) -> str:
    """SQL for what enters and, negative, what leaves: `_n` rows, and of each aggregate n (values), h and l (see `_LOW`)."""
    enters, leaves = ["1 AS _n"], ["-1"]
    scale = f"{SCALE >> _LOW}.0"
    for i, a in enumerate(declared):
        if a.function == "count":
            continue
        high = f"floor(v{i} * {scale})"
        low = f"(v{i} * {scale} - {high}) * {2**_LOW}.0"
        parts = {"n": f"CAST(v{i} IS NOT NULL AS BIGINT)"}
        parts |= {"h": f"coalesce(CAST({high} AS BIGINT), 0)", "l": f"coalesce(CAST({low} AS BIGINT), 0)"}
        enters += [f"{sql} AS {part}{i}" for part, sql in parts.items()]
        leaves += [f"-{sql}" for sql in parts.values()]
    key = ", ".join(keys)
    return f"""
        SELECT {key}, _enter AS _at, {", ".join(enters)} FROM {source} UNION ALL
        SELECT {key}, _leave, {", ".join(leaves)} FROM {source}"""  # noqa: S608 - names of ours


def _distinct(keys: list[str], source: str) -> str:
    """SQL for when a value comes to be there at all (`_n` = 1), and when it is gone (-1)."""
    key = ", ".join(keys)
    return f"""
        WITH change AS (
            SELECT {key}, v0, _enter AS _at, 1 AS _n FROM {source} WHERE v0 IS NOT NULL UNION ALL
            SELECT {key}, v0, _leave, -1 FROM {source} WHERE v0 IS NOT NULL
        ), there AS (
            SELECT {key}, v0, _at,
                   sum(CAST(sum(_n) AS INTEGER)) OVER (PARTITION BY {key}, v0 ORDER BY _at ROWS UNBOUNDED PRECEDING) > 0 AS _there
            FROM change GROUP BY {key}, v0, _at
        )
        SELECT {key}, _at, CAST(_there AS BIGINT)
               - CAST(lag(_there, 1, false) OVER (PARTITION BY {key}, v0 ORDER BY _at) AS BIGINT) AS _n
        FROM there"""  # noqa: S608 - names of ours


def _stream(
    database: Any,
    name: str,
    rows: str,
    declared: list[Aggregate],
    keys: list[str],
    made: Callable[[Iterable[pa.RecordBatch]], Iterator[list[Any]]],
) -> None:
    """Make the table of steps from what `made` makes of ordered `rows`: batches of columns key, `_at`, c0, c1, ..."""
    values = [(f"c{i}", "BIGINT" if a.function in ("count", "distinct") else "DOUBLE") for i, a in enumerate(declared)]
    with database.cursor() as reader:
        ordered = reader.sql(rows)
        types = dict(zip(ordered.columns, ordered.types, strict=True))
        batches = ordered.to_arrow_reader(_BATCH)
        schema = pa.schema(
            [*(batches.schema.field(k) for k in keys), ("_at", pa.int64()), *((c, _ARROW[kind]) for c, kind in values)]
        )
        steps = (
            pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(batch, schema, strict=True)], schema=schema)
            for batch in made(batches)
        )
        database.register("_steps", pa.RecordBatchReader.from_batches(schema, steps))
        key = ", ".join(f"CAST({k} AS {types[k]}) AS {k}" for k in keys)
        chosen = ", ".join(c for c, _ in values)
        database.execute(f"CREATE TEMP TABLE {name} AS SELECT {key}, _at, NULL::BIGINT AS _event, {chosen} FROM _steps")  # noqa: S608 - as above
        database.unregister("_steps")


def _running(batches: Iterable[pa.RecordBatch], declared: list[Aggregate], width: int) -> Iterator[list[Any]]:
    """Steps of running sums of changes in order of key and `_at`.

    What enters leaves, so at the end of a key all sums are 0 again, and they may run on. The last change of a moment makes its
    step. Raises ValueError where sums could be too large.
    """
    sums: dict[str, Any] = {}
    largest, most = 0, 0
    for batch, following in pairwise(chain(batches, [None])):
        steps = _ends(batch, following, width)
        running = {}
        for column in batch.schema.names[width + 1 :]:
            changes = batch.column(column).to_numpy()
            running[column] = np.cumsum(changes) + sums.get(column, 0)
            sums[column] = running[column][-1]
            if column[0] == "h":
                largest = max(largest, -int(changes.min()), int(changes.max()))
            elif column[0] == "n":
                most = max(most, int(running[column].max()))
        if largest * most >= 2**62:
            raise ValueError("its sums are too large")
        at = np.flatnonzero(steps)
        kept = {column: values[at] for column, values in running.items()}
        yield [
            *(batch.column(i).take(pa.array(at)) for i in range(width + 1)),
            *(_finished(a, i, kept) for i, a in enumerate(declared)),
        ]


def _ends(batch: pa.RecordBatch, following: pa.RecordBatch | None, width: int) -> Any:
    """Whether each row [N] is the last of its key and moment."""
    last = np.zeros(batch.num_rows, dtype=bool)
    last[-1] = following is None
    for i in range(width + 1):
        column = batch.column(i)
        last[:-1] |= pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy(zero_copy_only=False)
        last[-1] |= following is not None and column[-1] != following.column(i)[0]
    return last


def _finished(aggregate: Aggregate, i: int, sums: dict[str, Any]) -> Any:
    """The values of an aggregate from its running sums."""
    if aggregate.function in ("count", "distinct"):
        return sums["_n"]
    low = sums[f"l{i}"]
    high = sums[f"h{i}"] + (low >> _LOW)
    total = high / float(SCALE >> _LOW) + (low & (2**_LOW - 1)) / float(SCALE)
    if aggregate.function == "sum":
        return total
    rows = sums[f"n{i}"]
    return pa.array(total / np.maximum(rows, 1), mask=rows == 0)


def _swept(batches: Iterable[pa.RecordBatch], sign: float) -> Iterator[list[Any]]:
    """Steps of the least of sign * value (times sign again) of the rows inside."""
    rows = (row for batch in batches for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
    steps: list[tuple[Any, ...]] = []
    for key, group in groupby(rows, itemgetter(slice(-3))):
        for at, least in sweep((enter, leave, sign * v) for *_, enter, leave, v in group):
            steps.append((*key, at, None if least is None else sign * least))
            if len(steps) >= _BATCH:
                yield list(zip(*steps, strict=True))
                steps = []
    if steps:
        yield list(zip(*steps, strict=True))


def sweep(rows: Iterable[tuple[int, int, float]]) -> Iterator[tuple[int, float | None]]:
    """Steps (at, least value inside; None where there is none) of rows (enter, leave, value) in order of entry."""
    inside: list[tuple[float, int]] = []
    pending: tuple[int, float | None] | None = None
    last: float | None = None

    def moments() -> Iterator[tuple[int, float | None]]:
        for enter, leave, value in rows:
            yield from _leaving(inside, enter)
            heapq.heappush(inside, (value, leave))
            yield enter, inside[0][0]
        yield from _leaving(inside, _NEVER)

    for step in moments():
        if pending is not None and step[0] != pending[0] and pending[1] != last:
            yield pending
            last = pending[1]
        pending = step
    if pending is not None and pending[1] != last:
        yield pending


def _leaving(inside: list[tuple[float, int]], until: int) -> Iterator[tuple[int, float | None]]:
    """Yield the minimum each time rows leave the window, up to `until`."""
    while inside and inside[0][1] <= until:
        at = inside[0][1]
        while inside and inside[0][1] <= at:
            heapq.heappop(inside)
        yield at, inside[0][0] if inside else None
