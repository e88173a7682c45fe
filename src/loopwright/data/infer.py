"""Propose a contract from a file, and begin a loop with it.

A proposal says what the file shows, a little wider: it is a draft for a person to correct, not a statistic. Times
without a zone are taken as UTC.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loopwright.data.draft import Drafted, blank_file, loop_file, positive_sql
from loopwright.data.source import open_source
from loopwright.data.values import is_text, read
from loopwright.records.declarations import Column, ColumnType, Table
from loopwright.records.errors import IngestRefused, UsageError
from loopwright.records.home import Home
from loopwright.records.ids import check_name

FEW = 20
"""A string column with at most this many values, each seen twenty times on average, gets categories."""

ROW_ID = "row_id"
_NAIVE = pa.timestamp("us")
_MOMENT = pa.timestamp("us", tz="UTC")
_TRIED: tuple[ColumnType, ...] = ("integer", "float", "boolean", "timestamp")


class Inferred(NamedTuple):
    """A proposed contract, the rows [N] in its types, and what a person should know about how it was found."""

    table: Table
    frame: pa.Table
    notes: list[str]


def infer(source: Any, name: str, *, time: str = "", key: str = "") -> Table:
    """Propose the contract of a table called `name` from a source (see `open_source`).

    `time` and `key` name the event time and the key where they cannot be guessed: else the event time is the first
    timestamp without a gap, the key the first column of text or whole numbers whose values are all different. Raises
    UsageError when there is no such column, IngestRefused when the source cannot be read.
    """
    return inferred(source, name, time=time, key=key).table


def inferred(source: Any, name: str, *, time: str = "", key: str = "") -> Inferred:
    """As `infer`, with the rows and notes. A key that repeats is completed by the event time, or by a new column `row_id`."""
    opened = open_source(source)
    batch = opened.whole()
    if not len(batch.frame):
        raise IngestRefused(opened.name, "it has no rows to infer a contract from")
    notes = [f"{len(batch.broken):,} rows are cut wrongly into fields and were left out"] if len(batch.broken) else []
    frame = _renamed(batch.frame, notes)
    frame = pa.table({n: _as_found(n, frame[n], notes) for n in frame.column_names})
    types = {n: _type_of(frame[n]) for n in frame.column_names}
    event_time = _event_time(frame, types, _clean(time))
    frame, keys = _key(frame, types, _clean(key), event_time, notes)
    never_null = {event_time, *keys}
    columns = {n: _column(frame[n], types.get(n, "integer"), nullable=n not in never_null) for n in frame.column_names}
    # Numbers that only tell rows apart go on counting: a range of those seen would turn later rows away.
    columns |= {n: Column("integer") for n in keys if types.get(n, "integer") == "integer"}
    return Inferred(Table(name=name, columns=columns, key=keys, event_time=event_time), frame, notes)


def _clean(name: str) -> str:
    """A lawful column name out of any text."""
    cleaned = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    return (cleaned if not cleaned or cleaned[0].isalpha() else f"c_{cleaned}")[:63]


def _renamed(frame: pa.Table, notes: list[str]) -> pa.Table:
    names: list[str] = []
    for i, name in enumerate(frame.column_names):
        cleaned = _clean(name) or f"column_{i + 1}"
        names.append(cleaned if cleaned not in names else f"{cleaned[:58]}_{i + 1}")
        if names[-1] != name:
            notes.append(f"column {name!r} is called {names[-1]!r} here")
    return frame.rename_columns(names)


def _as_found(name: str, values: pa.ChunkedArray, notes: list[str]) -> pa.ChunkedArray:
    """The values in the narrowest contract type that holds them all."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if is_text(values.type):
        return _parsed(name, values.cast(pa.string()), notes)
    if pa.types.is_date(values.type) or (pa.types.is_timestamp(values.type) and values.type.tz is None):
        notes.append(f"column {name!r} has no time zone: taken as UTC")
        return values.cast(_NAIVE, safe=False).cast(_MOMENT)
    if pa.types.is_boolean(values.type):
        return values
    if pa.types.is_timestamp(values.type):
        return values.cast(_MOMENT, safe=False)
    if pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type):
        return values.cast(pa.int64())
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        return read(Column("float", nullable=True), values).values
    if pa.types.is_null(values.type):
        return values.cast(pa.string())
    raise IngestRefused(name, f"column {name!r} is {values.type}, which no contract can hold; drop it")


def _parsed(name: str, values: pa.ChunkedArray, notes: list[str]) -> pa.ChunkedArray:
    if values.null_count < len(values):
        for type in _TRIED:
            found, faults = read(Column(type, nullable=True), values)
            if not faults and found.null_count < len(found):
                return found
        try:
            found = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values).cast(_NAIVE).cast(_MOMENT)
        except pa.ArrowInvalid:
            return values
        notes.append(f"column {name!r} has no time zone: taken as UTC")
        return found
    return values


def _type_of(values: pa.ChunkedArray) -> ColumnType:
    if pa.types.is_timestamp(values.type):
        return "timestamp"
    if pa.types.is_boolean(values.type):
        return "boolean"
    if pa.types.is_floating(values.type):
        return "float"
    return "integer" if pa.types.is_integer(values.type) else "string"


def _event_time(frame: pa.Table, types: dict[str, ColumnType], time: str) -> str:
    moments = [n for n, t in types.items() if t == "timestamp"]
    if time and time not in types:
        raise UsageError(f"there is no column {time!r}; there is {', '.join(frame.column_names)}")
    if time and time not in moments:
        raise UsageError(
            f"column {time!r} is not a time (ISO 8601); {f'these are: {moments}' if moments else 'no column is one'}"
        )
    found = [time] if time else [n for n in moments if not frame[n].null_count]
    if not found:
        raise UsageError("no column says when a row happened: name one with --time (ISO 8601, e.g. 2013-01-31T05:15:00Z)")
    return found[0]


def _key(
    frame: pa.Table, types: dict[str, ColumnType], key: str, event_time: str, notes: list[str]
) -> tuple[pa.Table, list[str]]:
    """The columns that tell rows apart; `row_id` is added to the rows when none do."""
    if key and key not in types:
        raise UsageError(f"there is no column {key!r}; there is {', '.join(frame.column_names)}")
    tried = [[key], [key, event_time]] if key else [[n] for n, t in types.items() if t in ("string", "integer")]
    for names in tried:
        if not any(frame[n].null_count for n in names) and len(frame.group_by(names).aggregate([])) == len(frame):
            if len(names) > 1:
                notes.append(f"column {key!r} repeats, so the key is {' and '.join(names)}")
            return frame, names
    if ROW_ID in types:
        raise UsageError("no column tells the rows apart, and `row_id` is taken: name a key with --key")
    notes.append(
        "no column tells the rows apart, so the key is a new column `row_id`"
        if not key
        else f"column {key!r} has gaps or repeats at the same time, so the key is a new column `row_id`"
    )
    return frame.append_column(ROW_ID, pa.array(np.arange(1, len(frame) + 1))), [ROW_ID]


def _column(values: pa.ChunkedArray, type: ColumnType, *, nullable: bool) -> Column:
    """A column's contract: what was seen, a little wider."""
    nullable = nullable and values.null_count > 0
    if type in ("float", "integer"):
        seen = pc.min_max(values).as_py()
        if seen["min"] is None:
            return Column(type, nullable=True)
        low = 0.0 if seen["min"] >= 0 else -_round_up(-2 * seen["min"])
        high = _round_up(2 * seen["max"]) if seen["max"] > 0 else 0.0
        return Column(type, nullable=nullable, minimum=low, maximum=high)
    if type == "string":
        words = sorted(w for w in pc.unique(values).to_pylist() if w is not None)
        few = 0 < len(words) <= FEW and len(words) * FEW <= len(values)
        return Column(type, nullable=nullable, categories=words if few else None)
    return Column(type, nullable=nullable)


def _round_up(number: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 ... at or above a positive number."""
    power = 10.0 ** np.floor(np.log10(number))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= number))


def begin(
    home: Home, directory: Path, *, from_file: Path | None = None, label: str = "", time: str = "", key: str = "", name: str
) -> dict[str, list[str]]:
    """Write a loop into `directory` and return the `files` made and the `next_steps`.

    With `from_file`, a CSV or Parquet file with one row per decision: loop.py with an inferred contract, and the file's rows
    split into data/NAME-requests.parquet and data/NAME-outcomes.parquet. Raises UsageError when the directory holds a loop
    already or a column is not there.
    """
    check_name(name, "loop name")
    file = directory / "loop.py"
    if file.exists():
        raise UsageError(f"{file} is there already; `init` makes a new loop")
    if from_file is None:
        directory.mkdir(parents=True, exist_ok=True)
        file.write_text(blank_file(name), encoding="utf-8")
        steps = [f"describe your data and your problem in {file}", f"loopwright check {directory}"]
        return {"files": [str(file)], "next_steps": steps}
    found = inferred(from_file, f"{name}-requests", time=time, key=key)
    drafted, outcomes = _drafted(found, name, _clean(label) if label else "")
    folder = directory / "data"
    folder.mkdir(parents=True, exist_ok=True)
    written = {drafted.requests.name: found.frame.select(list(drafted.requests.columns)), drafted.outcome.name: outcomes}
    paths = {table: folder / f"{table}.parquet" for table, rows in written.items() if rows is not None}
    for table, path in paths.items():
        pq.write_table(written[table], path, compression="zstd")
    file.write_text(loop_file(drafted, found.frame), encoding="utf-8")
    steps = [f"note: {note}" for note in found.notes]
    if not label:
        steps.append(f"say in {file} what the outcome is, and ingest it into table {drafted.outcome.name}")
    steps += [f"loopwright check {directory}"]
    steps += [f"loopwright ingest {table} {path} --loop {directory}" for table, path in paths.items()]
    steps += [f"loopwright run {directory}", "loopwright serve"]
    return {"files": [str(file), *(str(p) for p in paths.values())], "next_steps": steps}


def _drafted(found: Inferred, name: str, label: str) -> tuple[Drafted, pa.Table | None]:
    """The two tables of the loop, and the rows of the outcome table (None without a label)."""
    table = found.table
    if label and label not in table.columns:
        raise UsageError(f"there is no column {label!r}; there is {', '.join(table.columns)}")
    if label in (*table.key, table.event_time):
        raise UsageError(f"column {label!r} cannot be the label and {'the key' if label in table.key else 'the time'} as well")
    requests = Table(
        name=table.name,
        columns={n: c for n, c in table.columns.items() if n != label},
        key=table.key,
        event_time=table.event_time,
    )
    shared = {n: table.columns[n] for n in dict.fromkeys([*table.key, table.event_time])}
    judged = {label: Column(table.columns[label].type)} if label else {"happened": Column("boolean")}
    outcome = Table(name=f"{name}-outcomes", columns={**shared, **judged}, key=table.key, event_time=table.event_time)
    rows = found.frame.select(list(outcome.columns)).filter(pc.is_valid(found.frame[label])) if label else None
    sql, positive = positive_sql(label, found.frame[label]) if label else ("happened", None)
    return Drafted(name=name, requests=requests, outcome=outcome, label=sql, positive=positive), rows
