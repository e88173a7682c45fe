"""Reading the prediction log: rows in Delta and rows still in segments, as one."""

import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import Damaged, NotFound, PackageRefused
from loopwright.base.ids import check_name, is_trace_id
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import FIXED, contract_of, rows, to_prediction, to_table
from loopwright.stores.prediction_log.segment import (
    LogSegment,
    log_folder,
    read_segment,
    segment_paths,
    segments_in,
    table_name,
)

KIND = "predictions"


def predictions(
    home: Home,
    loop: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    columns: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    uncommitted: bool = True,
) -> pa.Table:
    """The predictions of a loop with `start` <= `_at` < `end` (of some `arms`), one row per `_id`, in no particular order.

    `_id, _at, _package, _arm, _probability, _score, _label, _flags, _latency_us, _unit, _context_age_s`, then request and
    context columns; `columns` picks some (unknown ones are left out). Timestamps are UTC with microseconds. Empty, with the
    fixed columns, when nothing was ever predicted.
    """
    table = stored(home, KIND, loop, columns, where=between(start, end, arms), uncommitted=uncommitted)
    return table if columns is None else table.select([name for name in columns if name in table.column_names])


def find(home: Home, id: str, loop: str | None = None, *, kind: str = KIND) -> tuple[str, Prediction] | None:
    """The prediction (or the one of another `kind`) with that id and its loop, or None; searches `loop`, or all loops."""
    if not is_trace_id(id):
        return None
    damaged: Damaged | None = None
    for name in [check_name(loop, "loop")] if loop is not None else loops(home):
        try:
            # Segments first: records that a commit moves meanwhile are then found in Delta.
            found = _in_segments(home, kind, name, id) or _in_delta(home, kind, name, id)
        except Damaged as error:  # it may be in the log of another loop
            damaged = damaged or error
            continue
        if found is not None:
            return name, found
    if damaged is not None:
        raise damaged
    return None


def loops(home: Home) -> list[str]:
    """The names of all loops with a prediction log."""
    prefix = table_name(KIND, "")
    logged = {path.name for path in (home.path / "log").glob("*") if path.is_dir()}
    return sorted(logged | {name.removeprefix(prefix) for name in home.lake.names() if name.startswith(prefix)})


def first_at(home: Home, loop: str) -> datetime | None:
    """The time of a loop's first logged prediction (to the millisecond), None without any."""
    return _extent(home, loop)[1]


def summary(home: Home, loop: str) -> tuple[int, datetime | None]:
    """Number of a loop's logged predictions, and the time of the newest (to the millisecond)."""
    count, _, last = _extent(home, loop)
    return count, last


def _extent(home: Home, loop: str) -> tuple[int, datetime | None, datetime | None]:
    """Rows, first and last moment, from the table's transaction log and from uncommitted segments: reads no row of the table."""
    name = table_name(KIND, check_name(loop, "loop"))
    count, first, last = home.lake.extent(name, "_at") if home.lake.exists(name) else (0, None, None)
    if last is not None and not isinstance(last, datetime):
        raise Damaged(f"table {name}: column `_at` holds no times")
    for record in uncommitted_records(home, KIND, loop):
        count += 1
        at = datetime.fromtimestamp(record.at / 1e6, UTC)
        first = at if first is None or at < first else first
        last = at if last is None or at > last else last
    return count, first, last


def stored(
    home: Home,
    kind: str,
    loop: str,
    columns: Sequence[str] | None = None,
    *,
    where: Any = None,
    uncommitted: bool = True,
    repeated: bool = False,
) -> pa.Table:
    """Rows of one `kind` (`predictions`, `outcomes`) of a loop, from Delta and from segments, one row per `_id`.

    `where` is an Arrow expression over columns. Of rows with the same `_id` the first counts; all are there if `repeated`.
    """
    name = table_name(kind, check_name(loop, "loop"))
    records = list(uncommitted_records(home, kind, loop)) if uncommitted else []
    parts = []
    existing = None
    if home.lake.exists(name):
        existing = home.lake.schema(name)
        wanted = None if columns is None else [c for c in dict.fromkeys(["_id", *columns]) if c in existing.names]
        parts.append(home.lake.read(name, columns=wanted, filters=where))
    if records:
        table, _ = to_table(kind, records, contract_of(home, kind, loop, records), existing)
        table = table if where is None else table.filter(where)
        if columns is not None:
            table = table.select([c for c in dict.fromkeys(["_id", *columns]) if c in table.column_names])
        parts.append(table)
    if not parts:
        return FIXED[kind].empty_table()
    table = pa.concat_tables(parts, promote_options="permissive")
    return table if repeated else first_of_each(table)


def uncommitted_records(home: Home, kind: str, loop: str) -> Iterator[Any]:
    """The records of segments whose number is above their writer's cursor."""
    cursors: dict[str, int] = {}
    for segment in segments(home, kind, loop):
        if segment.writer not in cursors:
            cursors[segment.writer] = cursor(home, table_name(kind, loop), segment.writer)
        if segment.number > cursors[segment.writer] and not segment.foreign:
            yield from segment.records


def cursor(home: Home, table: str, writer: str) -> int:
    """The number of a writer's last segment in a Delta table, -1 without any."""
    last = home.lake.last_sequence(table, writer) if home.lake.exists(table) else None
    return -1 if last is None else last


def segments(home: Home, kind: str, loop: str) -> Iterator[LogSegment]:
    """The segments on disk, in order of writing per writer; one that a commit deletes meanwhile is left out."""
    return segments_in(log_folder(home.path, loop) / kind, kind)


def first_of_each(table: pa.Table) -> pa.Table:
    """One row per `_id`, the first, in the same order."""
    if pc.count_distinct(table["_id"]).as_py() == table.num_rows:
        return table
    first: dict[str, int] = {}
    for i, id in enumerate(table["_id"].to_pylist()):
        first.setdefault(id, i)
    return table.take(pa.array(first.values(), pa.int64()))


def between(start: datetime | None, end: datetime | None, arms: Sequence[str] | None = None, column: str = "_at") -> Any:
    """An Arrow expression: `start` <= `column` < `end`, and one of some arms; None where everything is asked for."""
    bounds = []
    if start is not None:
        bounds.append(pc.field(column) >= pa.scalar(start, pa.timestamp("us", tz="UTC")))
    if end is not None:
        bounds.append(pc.field(column) < pa.scalar(end, pa.timestamp("us", tz="UTC")))
    if arms is not None:
        bounds.append(pc.field("_arm").isin(list(arms)))
    return functools.reduce(operator.and_, bounds) if bounds else None


def _in_segments(home: Home, kind: str, loop: str, id: str) -> Prediction | None:
    text = id.encode()
    for path in segment_paths(log_folder(home.path, loop) / kind):
        for place in (path, path.with_suffix(".sealed")):
            try:
                if text in place.read_bytes():
                    found = next((r for r in read_segment(place, kind).records if r.id == id), None)
                    if found is not None:
                        return found  # type: ignore[no-any-return]  # a segment of predictions holds predictions
                break
            except FileNotFoundError:
                continue
            except Damaged:
                break
    return None


def _in_delta(home: Home, kind: str, loop: str, id: str) -> Prediction | None:
    name = table_name(kind, loop)
    if not home.lake.exists(name):
        return None
    found = rows(home.lake.read(name, filters=pc.field("_id") == id))
    if not found:
        return None
    row = found[0]
    try:
        manifest = home.packages.manifest(row["_package"])
    except (NotFound, PackageRefused):
        given = [c for c, value in row.items() if not c.startswith("_") and value is not None]
        return to_prediction(row, given, [])
    return to_prediction(row, manifest.request, itertools.chain.from_iterable(need.columns for need in manifest.context))
