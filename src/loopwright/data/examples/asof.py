"""Context and aggregates as step functions of the decision time: one per key, determined by a table's rows.

A row, or a version of a row, counts for the decisions d with enter <= d < leave. For a context, enter is when serving could
know the row (known time, `known_after` and `lag` later), and of the rows that entered the one with the newest event counts
(among those, the one known last; of those alike in that the one ingested last). For an aggregate see `data.examples.aggregates`. So training needs one ASOF join of the decisions
with the steps, serving one search for the moment in the steps of a key, and both find the same, whenever it was fed.

A table of steps has the key `k0, k1, ...`, `_at` (microseconds since 1970, UTC: from then on), `_event` (of the row that counts; null
for an aggregate) and the columns `c0, c1, ...` in the order of `ContextNeed.values`.
"""

from datetime import timedelta
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import DeclarationInvalid, first_line
from loopwright.base.ids import digest
from loopwright.data.examples import aggregates
from loopwright.records.declarations import Aggregate, Context, Table, declaration_digest, duration
from loopwright.records.package import ContextNeed
from loopwright.sql.engine import quoted, sql_error

MICROSECOND = timedelta(microseconds=1)

ORDER = "_order"
"""The column of a dataset with the order in which its rows were ingested."""

_MOMENT = pa.timestamp("us", tz="UTC")


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """One step function: its description in the package (`need`), its source table, and how it is computed.

    `columns` are the table's columns that a context takes, `aggregates` those made in one pass (none for a context). `lag`
    is in microseconds.
    """

    need: ContextNeed
    table: Table
    lag: int
    columns: list[str] = []
    aggregates: list[Aggregate] = []

    @property
    def window(self) -> int:
        """How far back an aggregate looks, microseconds (0 for a context)."""
        return duration(self.aggregates[0].window) // MICROSECOND if self.aggregates else 0

    @property
    def delay(self) -> int:
        """From the known time of a row to the moment from which it may count, microseconds."""
        return duration(self.table.known_after) // MICROSECOND + self.lag


def joined(context: list[Context], aggregates: list[Aggregate]) -> list[Joined]:
    """The step functions of a loop: one per context, and one for all aggregates that can be made in one pass."""
    found = []
    for c in context:
        # In an order that does not depend on how a dictionary was written: the ledger and manifests sort them.
        by, wanted = dict(sorted(c.by.items())), dict(sorted(c.wanted.items(), key=lambda item: (item[1], item[0])))
        need = ContextNeed(
            table=c.table.name,
            store=_store(c.table, list(by), [c.lag, *wanted.values()]),
            by=by,
            columns={name: msgspec.structs.replace(c.table.columns[column], nullable=True) for name, column in wanted.items()},
            values=list(wanted),
            max_age_s=duration(c.max_age).total_seconds() if c.max_age else None,
            lag_s=duration(c.lag).total_seconds(),
        )
        found.append(Joined(need=need, table=c.table, lag=duration(c.lag) // MICROSECOND, columns=list(wanted.values())))
    return found + _in_one_pass(aggregates)


def _in_one_pass(declared: list[Aggregate]) -> list[Joined]:
    groups: dict[str, list[Aggregate]] = {}
    for a in declared:
        alone = a.name if a.function in ("min", "max", "distinct") else ""
        same = [declaration_digest(a.table), sorted(a.by.items()), duration(a.window) // MICROSECOND, a.lag, alone]
        groups.setdefault(digest(msgspec.json.encode(same)), []).append(a)
    found = []
    for group in groups.values():
        first = group[0]
        by = dict(sorted(first.by.items()))
        need = ContextNeed(
            table=first.table.name,
            store=_store(first.table, list(by), [first.lag, first.window, *(f"{a.function} {a.of}" for a in group)]),
            by=by,
            columns={a.name: a.column for a in group},
            values=[a.name for a in group],
            lag_s=duration(first.lag).total_seconds(),
            empty={a.name: {"count": 0, "distinct": 0, "sum": 0.0}.get(a.function) for a in group},
        )
        found.append(Joined(need=need, table=first.table, lag=duration(first.lag) // MICROSECOND, aggregates=group))
    return found


def _store(table: Table, by: list[str], how: list[str]) -> str:
    """The name under which steps are kept while serving: the same exactly where the steps are."""
    rows = [table.key, table.event_time, table.known, table.known_after, sorted((n, c.type) for n, c in table.columns.items())]
    return f"{table.name}.{digest(msgspec.json.encode([rows, by, how]))[:16]}"


def create(
    database: Any, name: str, joined: Joined, data: Any, *, since: int | None = None, known_by: int | None = None
) -> None:
    """Make the temporary table `name` with the steps of the rows of `data`, a dataset of the table with `ORDER`.

    They are right for decisions from `since` on (any, if None), and of rows that were known by `known_by` (both microseconds;
    without the lag: who decides later than that finds what was known then). Raises DeclarationInvalid naming the aggregate
    whose expression cannot be evaluated.
    """
    table = joined.table
    wanted = None
    if known_by is not None:
        wanted = pc.field(table.known) <= _moment(known_by - (joined.delay - joined.lag))
    if since is not None and joined.aggregates:
        within = pc.field(table.event_time) > _moment(since - joined.window)
        wanted = within if wanted is None else wanted & within
    database.register("_rows", data if wanted is None else data.filter(wanted))
    try:
        if joined.aggregates:
            _check(database, joined.aggregates)
            aggregates.create(
                database, name, table, joined.aggregates, by=list(joined.need.by), delay=joined.delay, window=joined.window
            )
        else:
            database.execute(f"CREATE TEMP TABLE {name} AS {_context(joined, since)}")
    except sql_error() as error:
        if not joined.aggregates:
            raise
        names = ", ".join(a.name for a in joined.aggregates)
        raise DeclarationInvalid(f"Aggregate {names}", [("of", f"cannot be evaluated: {first_line(error)}")]) from error
    finally:
        database.unregister("_rows")


def _check(database: Any, declared: list[Aggregate]) -> None:
    """Each expression alone, so that a wrong one is named."""
    for a in declared:
        try:
            database.execute(f"SELECT {aggregates.value(a)} FROM _rows LIMIT 0")  # noqa: S608 - the loop's own expression
        except sql_error() as error:
            why = f"{a.of!r} cannot be evaluated over {', '.join(a.table.columns)}: {first_line(error)}"
            raise DeclarationInvalid(f"Aggregate {a.name}", [("of", why)]) from error


def _moment(microseconds: int) -> Any:
    return pa.scalar(min(max(microseconds, -(2**62)), 2**62), _MOMENT)


def _context(joined: Joined, since: int | None) -> str:
    """Steps of a context: a row that was known later but happened earlier than one known before never counts."""
    table = joined.table
    keys = [f"k{i}" for i in range(len(joined.need.by))]
    by = ", ".join(f"{quoted(column)} AS {k}" for column, k in zip(joined.need.by, keys, strict=True))
    columns = [f"c{i}" for i in range(len(joined.columns))]
    taken = "".join(f", {quoted(source)} AS {c}" for source, c in zip(joined.columns, columns, strict=True))
    key, every = ", ".join(keys), ", ".join([*keys, "_at", "_event", *columns])
    ties = ", ".join(["_event DESC", f"{ORDER} DESC", *columns])
    rows = f"""
        SELECT {by}, epoch_us({quoted(table.known)}) + {joined.delay} AS _at, epoch_us({quoted(table.event_time)}) AS _event{taken}, {ORDER}
        FROM _rows"""  # noqa: S608 - names of declared columns, quoted, and a whole number
    if since is not None:  # of all that entered before, only the row that counts can matter
        rows = f"""
        SELECT * FROM ({rows}) WHERE _at > {since} UNION ALL
        (SELECT * FROM ({rows}) WHERE _at <= {since}
         QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY _event DESC, _at DESC, {ties}) = 1)"""  # noqa: S608 - as above
    return f"""
        SELECT {every} FROM ({rows})
        WINDOW earlier AS (PARTITION BY {key} ORDER BY _at, {ties} ROWS UNBOUNDED PRECEDING)
        QUALIFY lag(_at) OVER earlier IS DISTINCT FROM _at AND _event >= max(_event) OVER earlier"""  # noqa: S608 - as above


def asof(decisions: str, steps: list[tuple[str, Joined]]) -> str:
    """SQL from `decisions` (called `d`, with its moment `_us`) and what was in force then of each table of steps, called as it is."""
    found = f"{decisions} d"
    for name, j in steps:
        on = " AND ".join(f"d.{quoted(request)} = {name}.k{i}" for i, request in enumerate(j.need.by.values()))
        found += f" ASOF LEFT JOIN {name} ON {on} AND d._us >= {name}._at"
    return found


def values(name: str, joined: Joined) -> dict[str, str]:
    """Column that the request gets -> SQL for it, after `asof`."""
    need, found = joined.need, {}
    for i, column in enumerate(need.columns):
        sql = f"{name}.c{i}"
        if need.max_age_s is not None:
            sql = f"CASE WHEN d._us - {name}._event <= {timedelta(seconds=need.max_age_s) // MICROSECOND} THEN {sql} END"
        if need.empty.get(column) is not None:
            sql = f"coalesce({sql}, {need.empty[column]})"
        found[column] = sql
    return found
