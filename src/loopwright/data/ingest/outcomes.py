"""Outcomes out of a file into a loop's outcome log: the way for truth that comes in batches and not by POST."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from loopwright.base.ids import digest, is_trace_id
from loopwright.data.ingest.contract import RowOrigin, conform
from loopwright.data.ingest.ingestion import Aside
from loopwright.data.ingest.opened import Reading
from loopwright.data.ingest.source import AS_DETECTED, open_source
from loopwright.records.declarations import Column, Table, duration
from loopwright.records.prediction import OutcomeRow
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter

_BATCH = 1000
_MOMENT = pa.timestamp("us", tz="UTC")


class Delivered(NamedTuple):
    """How many rows of a source were logged, and how many went to quarantine."""

    accepted: int
    quarantined: int


def accept(home: Home, loop: str, table: Table, key: list[str], source: Any, reading: Reading = AS_DETECTED) -> Delivered:
    """Log the outcomes of a source (see `open_source`); bad rows go to the table's quarantine.

    The source has the columns of the outcome table, or instead of its key columns one with prediction ids: the first of
    `Table.prediction_fields` that it has. Then it may leave out the times too, as a posted outcome may: they are the moment of ingestion.
    The same outcome again (here or by POST) is one row when it is read. Raises IngestRefused when the source cannot be read
    or has other columns, LogUnavailable when the log cannot be written; rows logged before that stay.
    """
    opened = open_source(source, reading=reading)
    batch = opened.narrowed(table).whole()
    names = batch.frame.column_names
    id = _id_column(table, batch.frame)
    expected = _by_id(table, id, names) if id else table
    origin = RowOrigin(opened.name, opened.digest, home.clock.now())
    result = conform(expected, batch.frame, origin=origin, rows=batch.rows, absent=table.columns if opened.loose else ())
    bad = Aside(home)
    bad.add(opened, batch.broken, result.bad)
    quarantined = bad.count
    bad.into(home, table.name, f"outcomes:{loop}:{opened.digest}")
    rows = _rows(expected, key, id, result.good, round(home.clock.now().timestamp() * 1e6), f"file {opened.name}")
    writer = LogWriter(log_folder(home.path, loop), "outcomes")
    try:
        for at in range(0, len(rows), _BATCH):
            writer.append(rows[at : at + _BATCH])
    finally:
        writer.close()
    return Delivered(len(rows), quarantined)


def _id_column(table: Table, frame: pa.Table) -> str:
    """The column of a source that names predictions, "" for none: beside the whole key only one that holds ids, not answers."""
    fields = [name for name in table.prediction_fields if name in frame.column_names]
    if all((table.columns[name].source or name) in frame.column_names for name in table.key):
        fields = [name for name in fields if any(is_trace_id(str(v)) for v in frame[name].slice(0, _BATCH).to_pylist())]
    return next(iter(fields), "")


def _by_id(table: Table, id: str, names: Collection[str]) -> Table:
    """The contract of outcomes that name their prediction in the column `id`, of a source with the columns `names`.

    A time that the source has not is the moment of ingestion.
    """
    columns = {id: Column("string"), **{n: c for n, c in table.columns.items() if n not in table.key}}
    for name in {table.event_time, table.known}:
        declared = table.columns[name]
        columns[name] = declared if (declared.source or name) in names else Column("timestamp", filled="ingested_at")
    ignored = [n for n in table.key if n not in columns]
    return msgspec.structs.replace(table, columns=columns, key=[id], ignore=[*table.ignore, *ignored])


def _rows(table: Table, key: list[str], id: str, good: pa.Table, received_at: int, provenance: str) -> list[OutcomeRow]:
    """One outcome per row, of the prediction that column `id` names, or where that is "" of those with the row's `key`."""
    for i, field in enumerate(good.schema):
        if pa.types.is_timestamp(field.type):
            good = good.set_column(i, field.name, good[field.name].cast(_MOMENT).cast(pa.int64()))
    ingested = {name for name, column in table.columns.items() if column.filled == "ingested_at"}
    delay = 0 if table.known in ingested else duration(table.known_after) // timedelta(microseconds=1)
    unsaid = {id, *key, *ingested}
    rows = []
    for row in good.to_pylist():
        prediction = row[id] if id else ""
        unit = "" if id else "|".join(str(row[k]) for k in key)
        values = {name: value for name, value in row.items() if name not in unsaid}
        rows.append(
            OutcomeRow(
                # The same text as for a posted outcome, so that one delivered both ways is one row.
                id=digest(msgspec.json.encode([prediction, unit, sorted(values.items())]))[:32],
                prediction=prediction,
                unit=unit,
                values=values,
                known_at=row[table.known] + delay,
                received_at=received_at,
                provenance=provenance,
            )
        )
    return rows
