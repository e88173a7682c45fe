"""Context for serving: which tables a loop needs, and their rows in the order in which they became known.

The key of a context row is the text of its key values joined by "|", in alphabetical order of the table's key columns;
`ContextNeed.by` is in the same order. Of all rows of a key known at a moment, the one with the latest event time counts,
and among those the one known last.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.declarations import Context, Table, duration
from loopwright.records.home import Home
from loopwright.records.package import ContextNeed

Row = tuple[str, int, int, dict[str, Any]]
"""Key text, known at, event time (both microseconds since 1970, UTC), values by column (timestamps as microseconds)."""

_MOMENT = pa.timestamp("us", tz="UTC")


def needs(context: list[Context]) -> list[ContextNeed]:
    """What a package has to know about its context; context columns are always nullable."""
    return [
        ContextNeed(
            table=c.table.name,
            by={key: c.by[key] for key in sorted(c.by)},
            columns={name: msgspec.structs.replace(c.table.columns[name], nullable=True) for name in c.columns},
            max_age_s=duration(c.max_age).total_seconds() if c.max_age else None,
        )
        for c in context
    ]


def feed(home: Home, context: list[Context], *, known_from: datetime | None, known_to: datetime) -> int:
    """Put the rows that became known in (`known_from`, `known_to`] into the online table; return how many rows were new.

    Without `known_from`: all that was known at `known_to`, of which only the row that counts per key is put. Putting a row
    again changes nothing. A table without rows is skipped.
    """
    count = 0
    for table, columns in _tables(context):
        if home.lake.exists(table.name):
            data = _newest(table, _known(home, table, columns, known_from, known_to))
            home.online.put(table.name, [row for _, row in _rows(table, columns, data)])
            count += len(data)
    return count


def rows_by_known(home: Home, context: list[Context], *, until: datetime | None = None) -> Iterator[tuple[int, str, list[Row]]]:
    """Everything that became known by `until`, tick by tick: (microseconds, table, rows), earliest tick first.

    Tables are read once; the ticks are then made one at a time.
    """
    rows: list[tuple[int, str, Row]] = []
    for table, columns in _tables(context):
        if home.lake.exists(table.name):
            data = _known(home, table, columns, None, until)
            rows += [(known, table.name, row) for known, row in _rows(table, columns, data)]
    rows.sort(key=itemgetter(0, 1))
    for (known, name), group in groupby(rows, key=itemgetter(0, 1)):
        yield known, name, [row for _, _, row in group]


def _tables(context: list[Context]) -> list[tuple[Table, list[str]]]:
    """Each table once, with all the columns wanted of it."""
    found: dict[str, tuple[Table, list[str]]] = {}
    for c in context:
        _, columns = found.setdefault(c.table.name, (c.table, []))
        columns += [n for n in c.columns if n not in columns]
    return list(found.values())


def _known(home: Home, table: Table, columns: list[str], after: datetime | None, until: datetime | None) -> pa.Table:
    """Rows whose known time (with `known_after`) is in (`after`, `until`], with `_known` and `_event` in microseconds."""
    delay = duration(table.known_after)
    wanted = None
    if until is not None:
        wanted = pc.field(table.known) <= pa.scalar(until - delay, _MOMENT)
    if after is not None:
        later = pc.field(table.known) > pa.scalar(after - delay, _MOMENT)
        wanted = later if wanted is None else wanted & later
    needed = list(dict.fromkeys([*table.key, *columns, table.event_time, table.known]))
    data = home.lake.read(table.name, columns=needed, filters=wanted)
    known = pc.add(data[table.known].cast(_MOMENT).cast(pa.int64()), delay // timedelta(microseconds=1))
    event = data[table.event_time].cast(_MOMENT).cast(pa.int64())
    return (
        data.append_column("_known", known)
        .append_column("_event", event)
        .sort_by([("_known", "ascending"), ("_event", "ascending")])
    )


def _newest(table: Table, data: pa.Table) -> pa.Table:
    """The row that counts of each key, of rows sorted by known, then event time."""
    numbered = data.select([*table.key, "_event"]).append_column("_row", pa.array(range(len(data)), pa.int64()))
    latest = numbered.group_by(table.key).aggregate([("_event", "max")])
    best = numbered.join(latest, table.key).filter(pc.field("_event") == pc.field("_event_max"))
    return data.take(best.group_by(table.key).aggregate([("_row", "max")])["_row_max"].sort())


def _rows(table: Table, columns: list[str], data: pa.Table) -> Iterator[tuple[int, Row]]:
    keys = [_plain(data[k]) for k in sorted(table.key)]
    values = [_plain(data[c]) for c in columns]
    for i, (known, event) in enumerate(zip(data["_known"].to_pylist(), data["_event"].to_pylist(), strict=True)):
        text = "|".join(str(k[i]) for k in keys)
        yield known, (text, known, event, {c: v[i] for c, v in zip(columns, values, strict=True)})


def _plain(values: pa.ChunkedArray) -> list[Any]:
    """Python values; timestamps as microseconds."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(_MOMENT).cast(pa.int64())
    return values.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
