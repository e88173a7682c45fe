"""Outcomes out of a file into a loop's outcome log: the way for truth that comes in batches and not by POST."""

from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base.clock import microseconds
from loopwright.base.errors import IngestRefused
from loopwright.base.ids import is_trace_id
from loopwright.data.ingest.contract import Numbers, RowOrigin, bad_rows, conform, missing_columns
from loopwright.data.ingest.ingestion import UNREADABLE, ingested, put_contract
from loopwright.data.ingest.quarantine import application, brought_for, exported, last_of, waiting_refs
from loopwright.data.ingest.quarantine_writer import QuarantineWriter
from loopwright.data.ingest.source import AS_DETECTED, open_source
from loopwright.data.ingest.source_reader import Reading
from loopwright.records.declarations import Loop, Table, declaration_digest
from loopwright.records.ingestions import OutcomesMended
from loopwright.records.prediction import OutcomeRow
from loopwright.stores.contracts import contracts
from loopwright.stores.home import Home
from loopwright.stores.outcomes.contract import KNOWN_AT, OutcomeContract
from loopwright.stores.prediction_log.arrow import rows as plain_rows
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter

_BATCH = 1000
_ID = "_id"
"""Name of the id column in files that `loopwright predict` writes."""


class Delivered(NamedTuple):
    """Counts of logged and of quarantined rows of a source, the latter by reason (a row may have several).

    `encoding` is that of its text; `undated` rows say no time, so their truth is known from now on.
    """

    accepted: int
    quarantined: int
    reasons: dict[str, int]
    encoding: str = ""
    undated: int = 0


class _Judged(NamedTuple):
    """`rows` of a frame [N] to be logged, and which they are (`at`); the others as BAD_SCHEMA, and counted by reason."""

    rows: list[OutcomeRow]
    at: list[int]
    bad: pa.Table
    counts: Counter[str]


def accept(home: Home, loop: str, table: Table, requests: Table, source: Any, reading: Reading = AS_DETECTED) -> Delivered:
    """Log the outcomes of a source (see `open_source`); bad rows go to the table's quarantine.

    A row has the fields of a posted outcome (see `OutcomeContract`); the same ones are optional, and an empty value is missing. A file
    that `loopwright predict` wrote names its predictions in `_id`; its other columns are ignored. The same outcome again (here or by
    POST) is one row when it is read. Raises IngestRefused when the source cannot be read or has other columns, LogUnavailable when the
    log cannot be written; rows logged before that stay.
    """
    if table.name not in contracts(home):  # a loop that declares it differently from another one may still log its own outcomes
        put_contract(home, table)
    table = msgspec.structs.replace(table, key=requests.key)  # in the order in which the units of predictions are written
    opened = open_source(source, reading=reading)
    batch = opened.narrowed(table).whole()
    origin = RowOrigin(opened.name, opened.digest, home.clock.now())
    frame = _without_answers(table, requests, batch.frame)
    found = _judge(loop, table, frame, _id_columns(table, frame), batch.rows, origin, loose=opened.loose)
    counts = found.counts + Counter({UNREADABLE: len(batch.broken)})
    bad = QuarantineWriter(home)
    bad.add(opened, batch.broken, found.bad)
    quarantined = bad.count
    bad.into(home, table.name, application(loop, opened.digest))
    _log(home, loop, found.rows)
    undated = sum(row.known_at == microseconds(origin.moment) for row in found.rows)
    return Delivered(len(found.rows), quarantined, dict(counts.most_common()), opened.encoding, undated)


def mend(home: Home, loop: Loop, table: Table, source: Any = None, reading: Reading = AS_DETECTED) -> OutcomesMended | None:
    """Log mended quarantine rows that were ingested as outcomes of a loop (see `quarantine.mend`); None when there are none.

    Rows whose source was also ingested into the table keep waiting, so that `quarantine.mend` ingests them there too.
    """
    file = exported(home, table.name, source, reading)
    both, of_loop = ingested(home, table.name), brought_for(home, table.name, loop.name, file.refs)
    chosen, replaced = last_of(file.refs, {ref for ref in waiting_refs(home, table.name) if ref[0] in of_loop})
    if not chosen:
        return None
    refs = [file.refs[i] for i in chosen]
    origin = RowOrigin(file.opened.name, [digest for digest, _ in refs], home.clock.now())
    numbers = np.array([row for _, row in refs], dtype=np.int64)
    frame, table = file.frame.take(pa.array(chosen)), msgspec.structs.replace(table, key=loop.requests.key)
    found = _judge(loop.name, table, frame, _called_ids(table, frame), numbers, origin, loose=True)
    _log(home, loop.name, found.rows)
    mended: dict[str, list[int]] = {}
    for digest, row in (refs[i] for i in found.at):
        if digest not in both:
            mended.setdefault(digest, []).append(row)
    record = OutcomesMended(
        loop=loop.name,
        table=table.name,
        source=file.opened.name,
        digest=file.opened.digest,
        rows=len(chosen),
        good=len(found.rows),
        quarantined=len(chosen) - len(found.rows),
        reasons=dict(found.counts),
        version=0,
        contract=declaration_digest(table),
        mended=mended,
        replaced=replaced,
    )
    if mended:
        home.ledger.put(record, loop=loop.name, key=table.name, links=[(record.file, "ingested")])
    return record


def _judge(
    loop: str, table: Table, frame: pa.Table, ids: list[str], rows: Numbers, origin: RowOrigin, *, loose: bool
) -> _Judged:
    """Which rows of `frame` [N] are outcomes of a loop; `ids` are the columns that name predictions. Raises IngestRefused for other columns."""
    contract = OutcomeContract(table)
    if missing := [] if ids else [n for n in _sources(table, frame, table.key) if n not in frame.column_names]:
        why = "; ".join(missing_columns(missing, frame.column_names))
        raise IngestRefused(origin.name, f"{why}; or name the predictions, by their ids in a column {contract.fields[0]!r}")
    said = {*ids, KNOWN_AT} & {*frame.column_names} - {*table.ignore}
    own = {name: column for name, column in contract.own.items() if name in said}
    expected = msgspec.structs.replace(table, columns={**own, **table.columns})
    optional = {*own, table.event_time, table.known, *(table.key if ids else ())}
    absent, whose = table.columns if loose else (), f"the outcomes of loop {loop!r}"
    found = conform(expected, frame, origin=origin, rows=rows, absent=absent, optional=optional, whose=whose)
    received_at, good, at, wrong = microseconds(origin.moment), list[OutcomeRow](), list[int](), dict[int, str]()
    for i, row in zip(found.at.tolist(), plain_rows(found.good), strict=True):
        sent = {name: value for name, value in row.items() if value is not None or name not in optional}
        if problem := contract.problem(sent):
            wrong[i] = f"{problem.field}: {problem.reason}"
        else:
            good.append(contract.row(sent, received_at=received_at, provenance=f"file {origin.name}", place=i))
            at.append(i)
    taken = [n for n in _sources(expected, frame, expected.columns) if n in frame.column_names]
    strange = bad_rows(frame, taken, np.array(list(wrong), dtype=np.int64), rows, lambda i, _: wrong[i])
    return _Judged(good, at, pa.concat_tables([found.bad, strange]), Counter(found.counts) + Counter(wrong.values()))


def _sources(table: Table, frame: pa.Table, names: Collection[str]) -> list[str]:
    """The names of a table's columns in a source."""
    sources = {name: table.columns[name].source or name for name in names}
    return [source if source in frame.column_names else name for name, source in sources.items()]


def _without_answers(table: Table, requests: Table, frame: pa.Table) -> pa.Table:
    """A frame unchanged; one that `loopwright predict` wrote with its ids under a name that outcomes have, without answers and requests."""
    free = [n for n in table.prediction_fields if n != _ID and n not in frame.column_names]
    if not (free and _ID in frame.column_names and _holds_ids(frame[_ID])):
        return frame
    own = {*table.columns, *_sources(table, frame, table.columns)}
    others = {n for n in frame.column_names if n != _ID and (n.startswith("_") or (n in requests.columns and n not in own))}
    frame = frame.drop_columns(sorted(others))
    return frame.rename_columns([free[0] if n == _ID else n for n in frame.column_names])


def _id_columns(table: Table, frame: pa.Table) -> list[str]:
    """Columns of a source that name predictions: they contain ids, or, if the key is incomplete, have such a name."""
    called = _called_ids(table, frame)
    with_ids = [n for n in called if _holds_ids(frame[n])]
    return with_ids or ([] if set(_sources(table, frame, table.key)) <= set(frame.column_names) else called)


def _called_ids(table: Table, frame: pa.Table) -> list[str]:
    """The columns of a source that are called as a prediction's id is, and are no columns of the table."""
    others = {_ID, *_sources(table, frame, table.columns)}
    return [n for n in table.prediction_fields if n in frame.column_names and n not in others]


def _holds_ids(values: pa.ChunkedArray) -> bool:
    """Whether one of the first values is a prediction's id: an outcome column may have the name of an id column."""
    return any(is_trace_id(str(v)) for v in values.slice(0, _BATCH).to_pylist())


def _log(home: Home, loop: str, rows: list[OutcomeRow]) -> None:
    with LogWriter(log_folder(home.path, loop), "outcomes") as writer:
        for at in range(0, len(rows), _BATCH):
            writer.append(rows[at : at + _BATCH])
