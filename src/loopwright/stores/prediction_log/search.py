"""The newest predictions that match: by unit, time, flag and package. Parts that cannot match are not read."""

from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.stores.home import Home
from loopwright.stores.lake.tables import newest_first
from loopwright.stores.prediction_log.arrow import FIXED, contract_of, rows, to_table
from loopwright.stores.prediction_log.read import KIND, uncommitted_records
from loopwright.stores.prediction_log.segment import table_name

COLUMNS = ("_id", "_at", "_unit", "_score", "_label", "_flags", "_package", "_arm", "_segment", "_latency_us")
_MILLISECOND = timedelta(milliseconds=1)
"""Statistics of files are cut to milliseconds."""


class PredictionFilter(NamedTuple):
    """Filter of a prediction search; "" and None match all. `before` is the position of a row: older rows, or as old with a lower id."""

    key: str = ""
    since: datetime | None = None
    until: datetime | None = None
    flag: str = ""
    package: str = ""
    before: tuple[datetime, str] | None = None

    @property
    def where(self) -> Any:
        """The filter as a condition on columns, without the flag; None if it matches every row."""
        at, moment = pc.field("_at"), pa.timestamp("us", "UTC")
        tests = [pc.field("_unit") == self.key] if self.key else []
        tests += [at >= pa.scalar(self.since, moment)] if self.since is not None else []
        tests += [at < pa.scalar(self.until, moment)] if self.until is not None else []
        tests += [pc.starts_with(pc.field("_package"), self.package)] if self.package else []
        if self.before is not None:
            limit = pa.scalar(self.before[0], moment)
            tests += [at <= limit, (at < limit) | (pc.field("_id") < self.before[1])]
        return reduce(and_, tests) if tests else None


def search(home: Home, loop: str, wanted: PredictionFilter, most: int) -> list[dict[str, Any]]:
    """At most `most` matching predictions, newest first, as rows of `COLUMNS` (times in microseconds); one row per id."""
    name, where = table_name(KIND, loop), wanted.where
    found: dict[str, dict[str, Any]] = {}
    records = list(uncommitted_records(home, KIND, loop))
    if records:
        table, _ = to_table(KIND, records, contract_of(home, KIND, loop, records))
        _take(found, table if where is None else table.filter(where), wanted, most)
    if home.lake.exists(name):
        columns = [c for c in COLUMNS if c in home.lake.schema(name).names]
        for newest, part in newest_first(home.lake, name, "_at", columns=columns, where=where):
            if len(found) >= most and newest is not None and _oldest(found, most) >= newest + _MILLISECOND:
                break
            _take(found, part, wanted, most)
    return _sorted(found)[:most]


def _take(by_id: dict[str, dict[str, Any]], table: pa.Table, wanted: PredictionFilter, most: int) -> None:
    """Add the newest rows of a table that have the flag."""
    if wanted.flag:
        table = table.filter(_has_flag(table["_flags"], wanted.flag))
    if table.num_rows > most:
        table = table.take(pc.select_k_unstable(table, most, [("_at", "descending"), ("_id", "descending")]))
    blank = dict.fromkeys(FIXED[KIND].names)
    for row in rows(table.select([c for c in COLUMNS if c in table.column_names])):
        by_id.setdefault(row["_id"], blank | row)


def _has_flag(flags: pa.ChunkedArray, flag: str) -> pa.Array:
    """Which rows [N] have the flag: itself, or one of its kind (`out_of_range` is that of every column)."""
    flags = flags.combine_chunks()
    flat = pc.list_flatten(flags)
    hit = pc.or_(pc.equal(flat, flag), pc.starts_with(flat, f"{flag.rstrip(':')}:"))
    return pc.is_in(pa.array(range(len(flags)), pa.int64()), pc.list_parent_indices(flags).filter(hit).unique())


def _sorted(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows.values(), key=lambda row: (row["_at"], row["_id"]), reverse=True)


def _oldest(rows: dict[str, dict[str, Any]], most: int) -> datetime:
    """The time of the last prediction that would be shown."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=_sorted(rows)[most - 1]["_at"])
