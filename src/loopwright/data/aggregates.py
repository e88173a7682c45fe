"""Aggregates as step functions: what a window holds changes only when a row enters or leaves it.

A row enters when serving could know it, but not before it happened: `max(known + known_after + lag, event)`. It leaves when it
is as old as the window, or when a later version of it (same table key and event time) enters. So the window is (d - W, d] on
event time, of what was known at d.

count, sum, mean and share are running sums of what enters less what leaves. Sums are whole multiples of 2^-40 (9.1e-13) in 128
bits, so they do not depend on order and do not drift: a value is rounded to the nearest multiple (those from 4,096 on are
multiples as they are), and one beyond 1.5e26 is refused. distinct is the running count of values that are there
at all. min and max are a sweep over the rows in order of entry with a heap of those inside: O(n log n).
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from loopwright.data.database import quoted
from loopwright.records.declarations import Aggregate, Table

SCALE = 2**40
"""Sums are whole multiples of 1 / SCALE."""

_BATCH = 131_072
_NEVER = 2**63 - 1


def value(aggregate: Aggregate) -> str:
    """SQL for what one row adds: null is not counted (a row always counts as one for `count`)."""
    of = aggregate.of
    if aggregate.function == "count":
        return "1"
    if aggregate.function == "share":
        return f"CAST(CAST(({of}) AS BOOLEAN) AS INTEGER)"
    if aggregate.function == "distinct":
        return f"({of})"
    number = f"CAST(({of}) AS DOUBLE)"
    if aggregate.function in ("sum", "mean"):
        return f"CASE WHEN isfinite({number}) THEN CAST({number} * {SCALE} AS HUGEINT) END"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def create(
    database: Any, name: str, table: Table, declared: list[Aggregate], *, by: list[str], delay: int, window: int
) -> None:
    """Make the temporary table `name` with the steps (see `data.steps`) of the aggregates over the relation `_rows`.

    `by` are columns of the table; `delay` (from known time to when a row may count) and `window` are microseconds.
    """
    keys = [f"k{i}" for i in range(len(by))]
    inside = _inside(table, declared, by=by, delay=delay, window=window)
    if declared[0].function not in ("min", "max"):
        database.execute(f"CREATE TEMP TABLE {name} AS {_running(declared, keys, inside)}")
        return
    database.execute(f"CREATE TABLE {name}_inside AS {inside}")  # not temporary: the reader is another connection
    with database.cursor() as reader:
        chosen = f"SELECT {', '.join(keys)}, _enter, _leave, v0 FROM {name}_inside"  # noqa: S608 - names of ours
        ordered = reader.sql(f"{chosen} WHERE v0 IS NOT NULL ORDER BY ALL")
        types = dict(zip(ordered.columns, ordered.types, strict=True))
        sign = 1.0 if declared[0].function == "min" else -1.0
        batches = ordered.to_arrow_reader(_BATCH)
        schema = pa.schema([*(batches.schema.field(k) for k in keys), ("_at", pa.int64()), ("c0", pa.float64())])
        database.register("_swept", pa.RecordBatchReader.from_batches(schema, _swept(batches, schema, sign)))
        casts = ", ".join(f"CAST({k} AS {types[k]}) AS {k}" for k in keys)
        database.execute(f"CREATE TEMP TABLE {name} AS SELECT {casts}, _at, NULL::BIGINT AS _event, c0 FROM _swept")  # noqa: S608 - as above
        database.unregister("_swept")
    database.execute(f"DROP TABLE {name}_inside")


def _inside(table: Table, declared: list[Aggregate], *, by: list[str], delay: int, window: int) -> str:
    """SQL for when each version of each row is inside the window: key, `_enter`, `_leave`, and what it adds (v0, v1, ...)."""
    keys = [f"k{i}" for i in range(len(by))]
    values = [f"v{i}" for i in range(len(declared))]
    of = ", ".join(f"{value(a)} AS {v}" for a, v in zip(declared, values, strict=True))
    chosen = ", ".join(f"{quoted(column)} AS {k}" for column, k in zip(by, keys, strict=True))
    row = ", ".join(["_event", *(f"p{i}" for i in range(len(table.key)))])
    parts = ", ".join(f"{quoted(column)} AS p{i}" for i, column in enumerate(table.key))
    known = ", ".join(["_known", *keys, *values])
    there = " AND ".join(f"{k} IS NOT NULL" for k in keys)
    return f"""
        WITH version AS (
            SELECT {chosen}, {parts}, epoch_us({quoted(table.event_time)}) AS _event,
                   epoch_us({quoted(table.known)}) + {delay} AS _known, {of} FROM _rows
        ), entered AS (
            SELECT {", ".join([*keys, *values])}, _event, greatest(_known, _event) AS _enter,
                   lead(greatest(_known, _event)) OVER (PARTITION BY {row} ORDER BY {known}) AS _next FROM version
        )
        SELECT {", ".join([*keys, *values])}, _enter, least(_event + {window}, coalesce(_next, {_NEVER})) AS _leave
        FROM entered WHERE {there} AND _enter < least(_event + {window}, coalesce(_next, {_NEVER}))"""  # noqa: S608 - names of declared columns, quoted, and the loop's own expressions


def _running(declared: list[Aggregate], keys: list[str], inside: str) -> str:
    """SQL for running sums of what enters less what leaves."""
    key = ", ".join(keys)
    if declared[0].function == "distinct":
        changes = f"""
            SELECT {key}, v0, _at, CAST(_running > 0 AS INTEGER) - CAST(coalesce(_before, 0) > 0 AS INTEGER) AS _n FROM (
                SELECT {key}, v0, _at, _running, lag(_running) OVER (PARTITION BY {key}, v0 ORDER BY _at) AS _before FROM (
                    SELECT {key}, v0, _at, sum(_n) OVER (PARTITION BY {key}, v0 ORDER BY _at ROWS UNBOUNDED PRECEDING) AS _running
                    FROM (SELECT {key}, v0, _at, sum(_n) AS _n FROM (
                        SELECT {key}, v0, _enter AS _at, 1 AS _n FROM inside WHERE v0 IS NOT NULL UNION ALL
                        SELECT {key}, v0, _leave, -1 FROM inside WHERE v0 IS NOT NULL) GROUP BY {key}, v0, _at)))"""  # noqa: S608 - names of ours
        sums, finished = {"_n": "_n"}, ["CAST(_n AS BIGINT)"]
    else:
        taken = ["1 AS _n", *(f"v{i} AS s{i}, CAST(v{i} IS NOT NULL AS INTEGER) AS n{i}" for i in range(len(declared)))]
        given = ["-1", *(f"-v{i}, -CAST(v{i} IS NOT NULL AS INTEGER)" for i in range(len(declared)))]
        changes = f"""
            SELECT {key}, _enter AS _at, {", ".join(taken)} FROM inside UNION ALL
            SELECT {key}, _leave, {", ".join(given)} FROM inside"""  # noqa: S608 - names of ours
        used = [(i, a) for i, a in enumerate(declared) if a.function != "count"]
        sums = {"_n": "_n"} | {f"{kind}{i}": f"{kind}{i}" for i, _ in used for kind in "sn"}
        finished = [_finished(a, i) for i, a in enumerate(declared)]
    summed = ", ".join(f"sum({expression}) AS {name}" for name, expression in sums.items())
    running = ", ".join(f"coalesce(sum({name}) OVER _so_far, 0) AS {name}" for name in sums)
    return f"""
        WITH inside AS ({inside}), change AS ({changes}),
        point AS (SELECT {key}, _at, {summed} FROM change GROUP BY {key}, _at),
        running AS (SELECT {key}, _at, {running} FROM point
                    WINDOW _so_far AS (PARTITION BY {key} ORDER BY _at ROWS UNBOUNDED PRECEDING))
        SELECT {key}, _at, NULL::BIGINT AS _event, {", ".join(f"{sql} AS c{i}" for i, sql in enumerate(finished))}
        FROM running"""  # noqa: S608 - names of ours


def _finished(aggregate: Aggregate, i: int) -> str:
    """SQL for the value of an aggregate from its running sum and count."""
    if aggregate.function == "count":
        return "CAST(_n AS BIGINT)"
    if aggregate.function == "sum":
        return f"CAST(s{i} AS DOUBLE) / {SCALE}.0"
    scale = SCALE if aggregate.function == "mean" else 1
    return f"CASE WHEN n{i} > 0 THEN CAST(s{i} AS DOUBLE) / (CAST(n{i} AS DOUBLE) * {scale}.0) END"


def _swept(batches: Any, schema: pa.Schema, sign: float) -> Iterator[pa.RecordBatch]:
    """Batches of steps: the least of sign * value (times sign again) of the rows inside."""
    rows = (row for batch in batches for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
    steps: list[tuple[Any, ...]] = []
    for key, group in groupby(rows, itemgetter(slice(-3))):
        for at, least in sweep((enter, leave, sign * v) for *_, enter, leave, v in group):
            steps.append((*key, at, None if least is None else sign * least))
            if len(steps) >= _BATCH:
                yield _batch(steps, schema)
                steps = []
    if steps:
        yield _batch(steps, schema)


def _batch(steps: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = list(zip(*steps, strict=True))
    return pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


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
    """What the least value becomes by rows that leave up to `until`."""
    while inside and inside[0][1] <= until:
        at = inside[0][1]
        while inside and inside[0][1] <= at:
            heapq.heappop(inside)
        yield at, inside[0][0] if inside else None
