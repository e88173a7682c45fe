"""Feed the online table: the steps of each key, computed by the SQL that training uses (`data.examples.asof`).

A store holds the steps for decisions from `SLACK` before now on, also those that lie ahead (a row that leaves its window later,
a forecast). They change only when the table does; between, only the moment is moved until which the store has all that is known.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from loopwright.base.clock import microseconds
from loopwright.data.examples import asof
from loopwright.data.examples.asof import Joined, joined
from loopwright.records.declarations import Aggregate, Context
from loopwright.records.package import ContextNeed
from loopwright.sql.engine import quoted, sql_engine
from loopwright.stores.home import Home
from loopwright.stores.online.steps import Fed, key_of, pack

SLACK = timedelta(days=1)
"""How long before now (or before the table's newest row, where that is older) a decision may lie and still find its context."""

_ROWS = 65_536


def needs(context: list[Context], aggregates: Sequence[Aggregate] = ()) -> list[ContextNeed]:
    """Describe the context and aggregates that a package looks up."""
    return [j.need for j in joined(context, list(aggregates))]


def feed(home: Home, wanted: Iterable[Joined], *, since: datetime | None = None, until: datetime | None = None) -> int:
    """Bring the online table up to what the tables hold now; return how many keys changed.

    Right for decisions from `since` on (`SLACK` before now), with all that is known `until` a moment (now; for a replay, which
    feeds ahead, a moment to come). A table without rows is skipped. Raises Unavailable when the online table does not answer.
    """
    changed = 0
    for store, j in {j.need.store: j for j in wanted}.items():
        if not home.lake.exists(j.table.name):
            continue
        now = microseconds(until or home.clock.now())
        version, before = home.lake.version(j.table.name), home.online.fed(store)
        if before is not None and before.version == version and (since is None or before.since <= microseconds(since)):
            home.online.mark(store, now)
            continue
        data = home.lake.dataset(j.table.name, version, order=asof.ORDER)
        with sql_engine(home, ordered=False) as database:
            first = microseconds(since) if since is not None else min(now, _newest(database, j, data)) - _us_of(SLACK)
            asof.create(database, "steps", j, data, since=first)
            changed += home.online.write(store, _items(database, j, first), Fed(version, first, now))
    return changed


def _us_of(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _newest(database: Any, j: Joined, data: Any) -> int:
    """When the newest row of the table may first count."""
    database.register("_all", data)
    known = f"max(epoch_us({quoted(j.table.known)}))"
    [(newest,)] = database.execute(f"SELECT {known} FROM _all").fetchall()  # noqa: S608 - a declared column, quoted
    database.unregister("_all")
    return 0 if newest is None else int(newest) + j.delay


def _items(database: Any, j: Joined, since: int) -> Iterator[tuple[str, bytes]]:
    """Yield each key with its packed steps, without steps that ended before `since`."""
    keys, columns = [f"k{i}" for i in range(len(j.need.by))], [f"c{i}" for i in range(len(j.need.columns))]
    order = ", ".join([*keys, "_at"])
    ordered = database.sql(f"SELECT {', '.join([*keys, '_at', '_event', *columns])} FROM steps ORDER BY {order}")  # noqa: S608 - names of ours
    rows = (row for batch in ordered.to_arrow_reader(_ROWS) for row in zip(*(_plain(c) for c in batch.columns), strict=True))
    width = len(keys)
    for key, group in groupby(rows, itemgetter(slice(width))):
        text = key_of(key)
        moments: list[int] = []
        values: list[Any] = []
        for row in group:
            if moments and row[width] <= since:
                moments, values = [], []
            moments.append(row[width])
            values.append(row[width + 1 :])
        if text is not None and not _over(j, values):
            yield text, pack(moments, values)


def _over(j: Joined, values: list[Any]) -> bool:
    """Whether all that is left of a key is that nothing counts any more."""
    return bool(j.aggregates) and len(values) == 1 and list(values[0][1:]) == list(j.need.empty.values())


def _plain(values: Any) -> list[Any]:
    """Python values; timestamps as microseconds."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return values.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
