"""The quarantine of a table: its contents, export to a file for mending, and ingestion of mended rows.

Nothing is deleted: a row has left the quarantine when an `Ingested` record says that it was mended. Its good version is committed
together with a numbered note of the rows that it mends, so that of two concurrent menders one gets a conflict and looks
again, and no row is ingested twice.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from loopwright.base.errors import IngestRefused, Unavailable, UsageError
from loopwright.data.ingest.contract import RowOrigin, conform
from loopwright.data.ingest.formulas import neutral, original
from loopwright.data.ingest.ingestion import ingested, put_contract, put_ingested
from loopwright.data.ingest.quarantine_writer import QUARANTINE, QUARANTINE_SCHEMA
from loopwright.data.ingest.source import AS_DETECTED, open_source, texts
from loopwright.data.ingest.source_reader import OpenSource, Reading
from loopwright.records.declarations import Table, declaration_digest
from loopwright.records.ingestions import Ingested, OutcomesMended, Quarantined
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home

_REASON = re.compile(r"""(\w+): (?:(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*") is )?([^;]+)(?:; (?=\w+: )|$)""")
_ATTEMPTS = 10
_EXACT = (".parquet", ".arrow", ".feather", ".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
"""Files that no spreadsheet opens, so that their texts are written as they are."""
_MARKS = ("_digest", "_row")

Ref = tuple[str, int]
"""A row of a source: the SHA-256 of its content and the number of the row."""


class ExportedRows(NamedTuple):
    """An exported file: `frame` has its rows [N] without their identifying columns, which are in `refs` [N]."""

    opened: OpenSource
    frame: pa.Table
    refs: list[Ref]


def quarantined(home: Home, table: str, *, most: int = 20, export: Path | None = None) -> Quarantined:
    """Summarise the quarantined rows of a table, and export them to `export` (CSV, JSON Lines or Parquet).

    In CSV, which spreadsheets open, texts that begin like formulas get an apostrophe in front; `mend` removes it.
    """
    waiting, mended = _waiting(home, table)
    reasons: Counter[str] = Counter()
    for reason in waiting["_reason"].to_pylist():
        reasons.update(f"{field}: {rule}" for field, rule in _REASON.findall(reason) or [("row", reason)])
    sources = Counter(waiting["_source"].to_pylist())
    if export is not None:
        _write(_rows(waiting), export)
    shown = (
        waiting.slice(0, most).select(["_source", "_row", "_reason", "_raw"]).rename_columns(["source", "row", "reason", "raw"])
    )
    return Quarantined(
        table=table,
        rows=len(waiting),
        mended=mended,
        by_reason=dict(reasons.most_common()),
        by_source=dict(sources.most_common()),
        shown=shown.to_pylist(),
        file=str(export or ""),
    )


def mend(home: Home, table: Table, source: Any = None, reading: Reading = AS_DETECTED) -> Ingested:
    """Ingest mended rows of the quarantine into the table; rows that are still bad stay in quarantine.

    `source` is an exported file after mending: its columns `_digest` and `_row` identify the rows. Without a source the rows
    are retried as they are; do that after a change of the contract. The record's `mended` names the rows that left; a row
    that left before is skipped, of several versions of a row the last counts (`replaced`), and one that was ingested only as a loop's outcome stays for `outcomes.mend`.
    Raises FileMissing when the source does not exist.
    """
    table = put_contract(home, table).record.table
    opened, whole, refs = exported(home, table.name, source, reading)
    elsewhere = brought_for(home, table.name, "", refs) - ingested(home, table.name).keys()
    for _ in range(_ATTEMPTS):
        _settle(home, table.name)
        chosen, replaced = last_of(refs, {ref for ref in waiting_refs(home, table.name) if ref[0] not in elsewhere})
        digests = [refs[i][0] for i in chosen]
        numbers = np.array([refs[i][1] for i in chosen], dtype=np.int64)
        origin = RowOrigin(opened.name, digests, home.clock.now())
        # With no row waiting there may be no columns to judge.
        frame = whole.take(pa.array(chosen, pa.int64())) if chosen else _empty(table)
        found = conform(table, frame, origin=origin, rows=numbers, absent=table.columns)
        left: dict[str, list[int]] = {}
        for i in found.at.tolist():
            left.setdefault(digests[i], []).append(int(numbers[i]))
        record = Ingested(
            table=table.name,
            source=opened.name,
            digest=opened.digest,
            rows=len(chosen),
            good=len(found.good),
            quarantined=len(chosen) - len(found.good),
            reasons=found.counts,
            version=0,
            contract=declaration_digest(table),
            mended=left,
            replaced=replaced,
            already=not chosen,
        )
        if not len(found.good):
            return msgspec.structs.replace(record, version=home.lake.version(table.name) if home.lake.exists(table.name) else 0)
        sequence, note = len(_records(home, table.name)) + 1, msgspec.json.encode(record).decode()
        mending = f"mend:{table.name}"
        if home.lake.append_once(table.name, found.good, application=mending, sequence=sequence, note=note) is not None:
            return _settle(home, table.name) or record
    raise Unavailable(f"table {table.name}: too many concurrent corrections of its quarantine; try again")


def _empty(table: Table) -> pa.Table:
    return pa.table({c.source or n: pa.nulls(0) for n, c in table.columns.items() if not c.filled})


def exported(home: Home, table: str, source: Any, reading: Reading) -> ExportedRows:
    """The rows of a file that `quarantined` wrote, or without one the waiting rows. Raises IngestRefused for any other file."""
    rows, name = (source, None) if source is not None else (_rows(_waiting(home, table)[0]), "the quarantine")
    opened = open_source(rows, name, reading)
    whole = opened.whole().frame
    if isinstance(source, str | Path) and not str(source).lower().endswith(_EXACT):
        whole = original(whole)
    if missing := [n for n in _MARKS if n not in whole.column_names]:
        export = f"loopwright quarantine {table} --export FILE"
        raise IngestRefused(opened.name, f"it has no column {missing[0]!r}: mend a file made by `{export}`")
    refs, data = _refs(opened.name, whole), _data(whole)
    if source is not None:
        _check_marks(home, table, opened.name, refs, data.column_names)
    return ExportedRows(opened, data, refs)


def _check_marks(home: Home, table: str, file: str, refs: list[Ref], columns: list[str]) -> None:
    """Refuse a file with rows that are not of this quarantine, or without a column in which its rows have values there."""
    name = QUARANTINE + table
    rows = home.lake.read(name) if home.lake.exists(name) else QUARANTINE_SCHEMA.empty_table()
    known = _refs(name, rows)
    named, there = set(refs), set(known)
    if strange := [ref for ref in refs if ref not in there]:
        where = f"row {strange[0][1]} of source {str(strange[0][0])[:12]}"
        why = "mend a file exported from this table, and leave _digest and _row as they are"
        raise IngestRefused(file, f"{where} is not in the quarantine of table {table!r} ({len(strange):,} such rows): {why}")
    data = _data(_rows(rows.filter(pa.array([ref in named for ref in known], pa.bool_()))))
    if lost := [n for n in data.column_names if n not in columns and data[n].null_count < len(data)]:
        raise IngestRefused(file, f"it lacks the column {lost[0]!r}, in which its rows have values: put it back as exported")


def waiting_refs(home: Home, table: str) -> set[Ref]:
    """The rows that wait in the quarantine of a table."""
    return set(_refs(QUARANTINE + table, _waiting(home, table)[0]))


def application(loop: str, digest: str) -> str:
    """The name under which the bad rows of a source of a loop's outcomes go to quarantine."""
    return f"outcomes:{loop}:{digest}"


def brought_for(home: Home, table: str, loop: str, refs: list[Ref]) -> set[str]:
    """Digests of the sources of `refs` that were ingested as outcomes of a loop (of any, if it is "")."""
    loops, name = [loop] if loop else home.ledger.loops(LoopRecord), QUARANTINE + table
    digests = {digest for digest, _ in refs}
    return {d for d in digests if any(home.lake.last_sequence(name, application(o, d)) is not None for o in loops)}


def last_of(refs: list[Ref], waiting: set[Ref]) -> tuple[list[int], int]:
    """The last position of each waiting row in `refs`, and the number of earlier positions that it replaces."""
    places = [i for i, ref in enumerate(refs) if ref in waiting]
    last = {refs[i]: i for i in places}
    return sorted(last.values()), len(places) - len(last)


def _records(home: Home, table: str) -> list[Ingested]:
    """Mended rows of the table, one record per commit."""
    return [e.record for e in home.ledger.find(Ingested, key=table, newest=False) if e.record.mended]


def _settle(home: Home, table: str) -> Ingested | None:
    """Put the records of mended rows that are in the table and not in the ledger; return the last of all.

    A run that was interrupted between the two leaves its record as the note of its commit.
    """
    known = _records(home, table)
    notes = [(v, msgspec.json.decode(n)) for v, n in home.lake.notes(table)]
    for version, note in [(v, n) for v, n in notes if "mended" in n][len(known) :]:
        record = msgspec.structs.replace(msgspec.convert(note, Ingested), version=version)
        put_ingested(home, record)
        known.append(record)
    return known[-1] if known else None


def _waiting(home: Home, table: str) -> tuple[pa.Table, int]:
    """The rows in quarantine that were not mended, in order of source and row, and how many were."""
    name = QUARANTINE + table
    if not home.lake.exists(name):
        return QUARANTINE_SCHEMA.empty_table(), 0
    rows = home.lake.read(name).sort_by([("_source", "ascending"), ("_digest", "ascending"), ("_row", "ascending")])
    records = [*_records(home, table), *(e.record for e in home.ledger.find(OutcomesMended, key=table))]
    left = {(digest, row) for record in records for digest, numbers in record.mended.items() for row in numbers}
    if not left:
        return rows, 0
    waits = np.array([ref not in left for ref in _refs(name, rows)], dtype=bool)
    return rows.filter(pa.array(waits)), int((~waits).sum())


def _refs(name: str, frame: pa.Table) -> list[Ref]:
    try:
        digests, rows = frame["_digest"].cast(pa.string()), frame["_row"].cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise IngestRefused(name, "its column '_row' does not hold the numbers that were exported") from error
    return list(zip(digests.to_pylist(), rows.to_pylist(), strict=True))


def _data(frame: pa.Table) -> pa.Table:
    return frame.drop_columns([n for n in ("_source", "_digest", "_row", "_reason", "_raw") if n in frame.column_names])


def _rows(waiting: pa.Table) -> pa.Table:
    """Quarantined rows as text, as in their source, with their identifying columns. A line that could not be split is in `_raw`."""
    raw = waiting["_raw"].to_pylist()
    read = [_object(text) for text in raw]
    data = texts([r or {} for r in read])
    frame = waiting.select(["_source", "_digest", "_row", "_reason"])
    for name in data.column_names:
        frame = frame.append_column(name, data[name])
    if any(r is None for r in read):
        uncut = [text if r is None else None for text, r in zip(raw, read, strict=True)]
        frame = frame.append_column("_raw", pa.array(uncut, pa.string()))
    return frame


def _object(text: str) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def _write(frame: pa.Table, file: Path) -> None:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        pq.write_table(frame, file)
    elif suffix in (".jsonl", ".ndjson"):
        file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in frame.to_pylist()))
    elif suffix == ".csv":
        for i, field in enumerate(frame.schema):
            if pa.types.is_nested(field.type):
                listed = [None if v is None else msgspec.json.encode(v).decode() for v in frame[field.name].to_pylist()]
                frame = frame.set_column(i, field.name, pa.array(listed, pa.string()))
        # Quotes distinguish the empty text from a missing value, as when it is read.
        pa_csv.write_csv(neutral(frame), file, pa_csv.WriteOptions(quoting_style="all_valid"))
    else:
        raise UsageError(f"{file.name}: name a file that ends in .csv, .jsonl or .parquet")
