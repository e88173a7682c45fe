"""Into a table, through its contract: good rows land, bad rows go to quarantine, the ledger gets one record.

The same content again adds nothing: both writes are Delta application transactions named by the SHA-256 of the source, so
an ingestion that was interrupted anywhere is completed by running it again.
"""

from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pyarrow as pa

from loopwright.data.contract import BAD_SCHEMA, Conformed, Origin, conform
from loopwright.data.source import Opened, open_source
from loopwright.records import openlineage
from loopwright.records.columns import ARROW_TYPES
from loopwright.records.declarations import Table, declaration_digest
from loopwright.records.errors import DeclarationInvalid, TableNotFound
from loopwright.records.home import Home
from loopwright.records.ids import check_name
from loopwright.records.ledger.record import Entry, Record

QUARANTINE = "quarantine."
QUARANTINE_SCHEMA = pa.schema([("_source", pa.string()), ("_digest", pa.string()), *BAD_SCHEMA])


class Contract(Record, frozen=True, kw_only=True):
    """A table's contract as the ledger keeps it; a new entry whenever the declaration changes."""

    kind: ClassVar[str] = "contract"
    digest: str
    table: Table


class Ingested(Record, frozen=True, kw_only=True):
    """One source brought into one table.

    `digest` is the SHA-256 of its content, `version` that of the table with its rows, `reasons` the rows in quarantine
    by reason (a row may have several), `contract` the digest of the contract that judged them. `already` is true when
    the same content was there before; then nothing was added.
    """

    kind: ClassVar[str] = "ingested"
    table: str
    source: str
    digest: str
    rows: int
    good: int
    quarantined: int
    reasons: dict[str, int]
    version: int
    contract: str
    already: bool = False

    @property
    def ok(self) -> bool:
        """Whether anything landed; a source whose every row went to quarantine did not come in."""
        return self.good > 0 or self.already or self.rows == 0


def ingest(home: Home, table: Table, source: Any, *, name: str | None = None) -> Ingested:
    """Bring `source` (path of a CSV or Parquet file, or a data frame that speaks Arrow) into `table`; see the module.

    `name` is what the source is called in the ledger and the quarantine (the file's name by default). Raises
    IngestRefused when the source cannot be read or its schema is not the contract's; then nothing was written.
    """
    with home.openlineage.run(f"ingest.{table.name}", kind="INGESTION", about=table.description) as run:
        done = _ingest(home, table, source, name)
        if run.wanted:
            _tell(run, home, table, source, done)
    return done


def _tell(run: openlineage.Run, home: Home, table: Table, source: Any, done: "Ingested") -> None:
    """What was read, how it met the contract, and the version that holds it: each column is the source's own."""
    path = Path(source) if isinstance(source, (str, Path)) and Path(source).exists() else None
    read = openlineage.source(done.source, done.digest, path)
    columns = {column: declared.source or column for column, declared in table.columns.items()}
    made = openlineage.copied(
        openlineage.table(home.settings.lake_root, table.name, done.version, table.columns), read, columns
    )
    run.inputs.append({**read, "inputFacets": openlineage.judged(done.rows, done.reasons, table.columns)})
    run.outputs.append(openlineage.written(made, 0 if done.already else done.good))


def _ingest(home: Home, table: Table, source: Any, name: str | None) -> Ingested:
    opened = open_source(source, name)
    if (before := _before(home, table.name, opened.digest)) is not None:
        return msgspec.structs.replace(before.record, already=True)
    put_contract(home, table)
    result = conform(table, opened.frame, origin=Origin(opened.name, opened.digest, home.clock.now()), rows=opened.rows)
    application = f"ingest:{table.name}:{opened.digest}"
    quarantined = quarantine(home, table.name, opened, result, application=application)
    version = home.lake.append_once(table.name, result.good, application=application, sequence=1)
    if version is None:  # a run before this one was interrupted after its commit, or another one was faster
        if (before := _before(home, table.name, opened.digest)) is not None:
            return msgspec.structs.replace(before.record, already=True)
        version = home.lake.version(table.name)
    record = Ingested(
        table=table.name,
        source=opened.name,
        digest=opened.digest,
        rows=len(opened.frame) + len(opened.broken),
        good=len(result.good),
        quarantined=quarantined,
        reasons=result.counts | ({"row: cut wrongly into fields": len(opened.broken)} if len(opened.broken) else {}),
        version=version,
        contract=declaration_digest(table),
    )
    place = f"table:{table.name}@{version}"
    with home.ledger.batch():
        entry = home.ledger.put(record, key=table.name, links=[(f"file:{opened.digest}:{opened.name}"[:512], "ingested")])
        home.ledger.link(entry.id, place, "ingested")
    return record


def _before(home: Home, table: str, digest: str) -> Entry[Ingested] | None:
    return next((e for e in home.ledger.find(Ingested, key=table) if e.record.digest == digest), None)


def quarantine(home: Home, table: str, opened: Opened, result: Conformed, *, application: str) -> int:
    """Put the bad rows of a source into the quarantine of a table, once per `application`; return how many there are."""
    bad = pa.concat_tables([opened.broken, result.bad]).sort_by("_row")
    if len(bad):
        source = [[opened.name] * len(bad), [opened.digest] * len(bad)]
        rows = pa.table([*source, *bad.columns], schema=QUARANTINE_SCHEMA)
        home.lake.append_once(QUARANTINE + table, rows, application=application, sequence=1)
    return len(bad)


def put_contract(home: Home, table: Table) -> Entry[Contract]:
    """Store a contract; the newest entry if it is still the same.

    Raises DeclarationInvalid when the table has rows already and the contract gives it other columns or types: ranges,
    categories and descriptions may change, columns not yet.
    """
    check_name(QUARANTINE + table.name, "table")
    changed = declaration_digest(table)
    newest = home.ledger.latest(Contract, key=table.name)
    if newest is not None and newest.record.digest == changed:
        return newest
    if home.lake.exists(table.name):
        _same_types(table, home.lake.schema(table.name))
    return home.ledger.put(Contract(digest=changed, table=table), key=table.name)


def _same_types(table: Table, found: pa.Schema) -> None:
    problems = [
        (f"columns.{n}", "is in the table's rows but not in the contract") for n in found.names if n not in table.columns
    ]
    for name, column in table.columns.items():
        if name not in found.names:
            problems.append((f"columns.{name}", "is not in the table's rows; this version does not add columns"))
        elif not _alike(found.field(name).type, column.type):
            problems.append((f"columns.{name}", f"the table holds {found.field(name).type}, which is no {column.type}"))
    if problems:
        raise DeclarationInvalid(f"the contract of table {table.name!r}", problems)


def _alike(found: Any, type: str) -> bool:
    wanted = ARROW_TYPES[type]
    text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    return bool(found.equals(wanted)) or (type == "string" and text) or (type == "timestamp" and pa.types.is_timestamp(found))


def contract(home: Home, name: str) -> Table:
    """The newest contract of a table. Raises TableNotFound with the names that are known."""
    entry = home.ledger.latest(Contract, key=name)
    if entry is None:
        raise TableNotFound(name, contracts(home))
    return entry.record.table


def contracts(home: Home) -> list[str]:
    """The names of all tables with a contract."""
    return sorted({e.key for e in home.ledger.find(Contract)})


def files(home: Home, table: str, version: int) -> dict[str, str]:
    """What a table's version was ingested from: name of the source to SHA-256 (`NAME#12345678` where a name comes twice)."""
    found: dict[str, str] = {}
    for entry in home.ledger.find(Ingested, key=table, newest=False):
        record = entry.record
        if record.version <= version and record.digest not in found.values():
            found[record.source if record.source not in found else f"{record.source}#{record.digest[:8]}"] = record.digest
    return found
