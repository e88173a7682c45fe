"""Into a table, through its contract: good rows land, bad rows go to quarantine, the ledger gets one record.

The same content again adds nothing: both writes are Delta application transactions named by the SHA-256 of the source (or by
and the position from which a growing source was read, so an interrupted ingestion is completed by running it again.
A source is read in batches, so that a large one needs no more memory than a small one.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from datetime import datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import DeclarationInvalid, PackageNotFound, PackageRefused
from loopwright.base.ids import check_name
from loopwright.base.progress import Progress
from loopwright.data.ingest.contract import RowOrigin, SeenKeys, conform
from loopwright.data.ingest.following import Followed, by_watermark
from loopwright.data.ingest.openlineage import emitting
from loopwright.data.ingest.quarantine_writer import QUARANTINE, QuarantineWriter
from loopwright.data.ingest.source import open_source
from loopwright.data.ingest.source_reader import OpenSource
from loopwright.graph.columns import ARROW_TYPES
from loopwright.records.declarations import Table, declaration_digest
from loopwright.records.entries import Entry
from loopwright.records.ingestions import Ingested
from loopwright.records.releases import ReleaseState
from loopwright.sql.engine import quoted, sql_engine
from loopwright.stores.contracts import Contract, as_stored, disagreements
from loopwright.stores.home import Home
from loopwright.stores.ingestions import require_rows
from loopwright.stores.lake.tables import Stream

UNREADABLE = "row: cannot be read"


class _Note(msgspec.Struct):
    """Metadata in the commit of a growing source."""

    application: str
    reached: str


@emitting
def ingest(
    home: Home,
    table: Table,
    source: Any,
    *,
    name: str | None = None,
    watermark: str = "",
    known: dict[str, Ingested] | None = None,
    progress: Progress | None = None,
) -> Ingested:
    """Ingest `source` (a path, an Arrow data frame, an opened source, or a step of `following`) into `table`.

    `name` is the source's name in the ledger and the quarantine (the file's name by default). With `watermark` only rows
    come in whose column of that name is above its previous maximum. `known` is the result of `ingested`, reused when many
    sources come in one after another; it is updated in place. Raises IngestRefused when the source cannot be read or its
    schema is not the contract's; then nothing was written.
    """
    table = as_stored(table)
    require_rows(home, table.name)
    known = ingested(home, table.name) if known is None else known
    if watermark:
        source = by_watermark(table, watermark, reached(known, f"watermark:{watermark}"), open_source(source, name))
    followed = source if isinstance(source, Followed) else None
    opened = followed.upto(followed.reached) if followed else open_source(source, name)
    if opened.digest in known:
        return _again(home, table, known[opened.digest])
    put_contract(home, table)
    if followed and followed.since == followed.reached:
        return _nothing_new(home, table, opened, followed)
    start = f"{followed.follows}:{followed.since}" if followed else opened.digest
    with closing(_Ingestion(home, table, opened, f"ingest:{table.name}:{start}", progress)) as run:
        version = run.write(followed.reached if followed else "")
        if version is None:  # a run before this one was interrupted after its commit, or another one was faster
            known.update(ingested(home, table.name))
            if followed:
                followed = followed._replace(reached=_noted(home, table.name, run.application) or followed.reached)
                run.opened = opened = followed.upto(followed.reached)
            if opened.digest in known:
                return _again(home, table, known[opened.digest])
            version = run.again()
        record = run.record(version, followed)
        run.quarantine()
    put_ingested(home, record)
    known[opened.digest] = record
    return record


def put_ingested(home: Home, record: Ingested) -> None:
    """Store the record of an ingestion, linked with its source and with the version of the table that holds it."""
    with home.ledger.batch():
        entry = home.ledger.put(record, key=record.table, links=[(record.file, "ingested")])
        home.ledger.link(entry.id, f"table:{record.table}@{record.version}", "ingested")


def ingested(home: Home, table: str) -> dict[str, Ingested]:
    """Ingestions of a table so far, oldest first, by the digest of the content."""
    return {e.record.digest: e.record for e in home.ledger.find(Ingested, key=table, newest=False)}


def reached(known: dict[str, Ingested], follows: str) -> str:
    """The position up to which a growing source was read; empty if it never was."""
    return next((r.reached for r in reversed(known.values()) if r.follows == follows), "")


def _again(home: Home, table: Table, record: Ingested) -> Ingested:
    """The record of an earlier ingestion of this source, with the columns declared since, which its rows lack."""
    contracts = (e.record for e in home.ledger.find(Contract, key=table.name))
    columns = next((c.table.columns for c in contracts if c.digest == record.contract), table.columns)
    return msgspec.structs.replace(record, already=True, declared_since=[n for n in table.columns if n not in columns])


def _nothing_new(home: Home, table: Table, opened: OpenSource, followed: Followed) -> Ingested:
    return Ingested(
        table=table.name,
        source=opened.name,
        digest=opened.digest,
        rows=0,
        good=0,
        quarantined=0,
        reasons={},
        version=home.lake.version(table.name) if home.lake.exists(table.name) else 0,
        contract=declaration_digest(table),
        follows=followed.follows,
        reached=followed.reached,
        already=True,
    )


def _noted(home: Home, table: str, application: str) -> str:
    notes = (msgspec.json.decode(note) for _, note in home.lake.notes(table))
    return next((str(n["reached"]) for n in notes if n.get("application") == application), "")


class _Ingestion:
    """One source on its way into one table: its rows judged batch by batch, counted, and the bad ones put aside."""

    def __init__(self, home: Home, table: Table, opened: OpenSource, application: str, progress: Progress | None) -> None:
        self.home, self.table, self.opened, self.application = home, table, opened, application
        self._progress = progress
        filled = any(c.filled == "ingested_at" for c in table.columns.values())
        self._moment = _moment(home, opened.digest) if filled else home.clock.now()
        self._absent = _may_lack(home, table, loose=opened.loose)
        self._bad = QuarantineWriter(home)
        self._rows = self._good = 0
        self._counts: Counter[str] = Counter()
        self._lacked: list[str] = []

    def write(self, reached: str) -> int | None:
        """Write the good rows; None if they are stored already."""
        note = msgspec.json.encode(_Note(self.application, reached)).decode() if reached else ""
        schema = pa.schema([(name, ARROW_TYPES[c.type]) for name, c in self.table.columns.items()])
        stream = Stream(schema, self._judged)
        return self.home.lake.append_once(self.table.name, stream, application=self.application, sequence=1, note=note)

    def again(self) -> int:
        """Judge rows that were written before."""
        for _ in self._judged():
            pass
        return self.home.lake.version(self.table.name)

    def _judged(self) -> Iterator[pa.Table]:
        self._rows = self._good = 0
        self._counts, self._lacked = Counter(), []
        self._bad.close()
        seen = SeenKeys()
        origin = RowOrigin(self.opened.name, self.opened.digest, self._moment)
        with closing(self.opened.narrowed(self.table).batches()) as batches:
            for batch in batches:
                found = conform(self.table, batch.frame, origin=origin, rows=batch.rows, absent=self._absent, seen=seen)
                self._bad.add(self.opened, batch.broken, found.bad)
                self._rows += len(batch.frame) + len(batch.broken)
                self._good += len(found.good)
                self._counts.update(found.counts)
                self._counts.update({UNREADABLE: len(batch.broken)} if len(batch.broken) else {})
                self._lacked += [n for n in found.absent if n not in self._lacked]
                if self._progress:
                    self._progress.advance(f"ingest {self.opened.name}", batch.done, 1.0)
                yield found.good

    def quarantine(self) -> None:
        """Put the bad rows into the quarantine of the table."""
        self._bad.into(self.home, self.table.name, self.application)

    def close(self) -> None:
        """Discard the bad rows that were not written."""
        self._bad.close()

    def record(self, version: int, followed: Followed | None) -> Ingested:
        """The record of this ingestion."""
        return Ingested(
            table=self.table.name,
            source=self.opened.name,
            digest=self.opened.digest,
            rows=self._rows,
            good=self._good,
            quarantined=self._rows - self._good,
            reasons=dict(self._counts),
            version=version,
            repeated=repeated_rows(self.home, self.table, version),
            contract=declaration_digest(self.table),
            encoding=self.opened.encoding,
            absent=self._lacked,
            moment=self._moment,
            follows=followed.follows if followed else "",
            reached=followed.reached if followed else "",
        )


def repeated_rows(home: Home, table: Table, version: int) -> int:
    """Number of rows of a table's version that have the key, event time and known time of earlier rows."""
    new = home.lake.added(table.name, version) if version > 1 else None
    if new is None:
        return 0
    by, event = ", ".join(map(quoted, dict.fromkeys([*table.key, table.event_time, table.known]))), pc.field(table.event_time)
    with sql_engine(home, ordered=False) as database:
        database.register("new", new)
        ends = database.sql(f"SELECT unnest([min(_e), max(_e)]) FROM (SELECT {quoted(table.event_time)} AS _e FROM new)")  # noqa: S608 - a declared column, quoted
        first, last = ends.to_arrow_table()[0]
        database.register("old", home.lake.dataset(table.name, version - 1).filter((event >= first) & (event <= last)))
        [(found,)] = database.execute(f"SELECT count(*) FROM new SEMI JOIN (SELECT {by} FROM old) USING ({by})").fetchall()  # noqa: S608 - declared columns, quoted
    return int(found)


def _moment(home: Home, digest: str) -> datetime:
    """When this content was first ingested into any table: rows of one file have one moment in all tables."""
    found = (e.record for e in home.ledger.find(Ingested, newest=False) if e.record.digest == digest)
    return next((r.moment for r in found if r.moment), home.clock.now())


def _may_lack(home: Home, table: Table, *, loose: bool) -> Collection[str]:
    """Columns that a source may omit: those added to the contract later, and any column of a `loose` source."""
    if loose:
        return table.columns
    first = next(iter(home.ledger.find(Contract, key=table.name, newest=False)), None)
    return [n for n in table.columns if first is not None and n not in first.record.table.columns]


def put_contract(home: Home, table: Table, *, loop: str = "", file: str = "") -> Entry[Contract]:
    """Store a contract; the newest entry if it is still the same.

    With `loop`, which declares it in `file`, a change is refused while another loop declares the table differently: else two
    loops would rewrite it in turns.

    Ranges, categories, descriptions and the like may change at any time. Once the table has rows the types of its columns stay,
    new ones may be null (they are, in the rows there are), and any but key and times may go, or be declared retired: the rows
    there are keep them. Raises DeclarationInvalid naming every other difference, and a column that goes while a package
    in service looks it up.
    """
    check_name(QUARANTINE + table.name, "table")
    table = as_stored(table)
    changed = declaration_digest(table)
    newest = home.ledger.latest(Contract, key=table.name)
    if newest is not None and newest.record.digest == changed:
        return newest
    if loop and (problems := disagreements(home, table, loop, file)):
        raise DeclarationInvalid(f"the contract of table {table.name!r}", problems)
    if home.lake.exists(table.name):
        _grow(home, table, newest.record.table if newest else None)
    return home.ledger.put(Contract(digest=changed, table=table, loop=loop, file=file), key=table.name)


def _grow(home: Home, table: Table, before: Table | None) -> None:
    """Add the new columns of a contract to the table's rows, or raise DeclarationInvalid naming the incompatible changes."""
    if problems := _growth_problems(home, table, before):
        raise DeclarationInvalid(f"the contract of table {table.name!r}", problems)
    found = home.lake.schema(table.name)
    if new := [(n, ARROW_TYPES[c.type]) for n, c in table.columns.items() if n not in found.names]:
        home.lake.add_columns(table.name, pa.schema(new))


def contract_problems(home: Home, table: Table, *, loop: str = "", file: str = "") -> list[tuple[str, str]]:
    """Problems for which `put_contract` would refuse a contract; stores nothing."""
    table, newest = as_stored(table), home.ledger.latest(Contract, key=table.name)
    if newest is not None and newest.record.digest == declaration_digest(table):
        return []
    problems = disagreements(home, table, loop, file) if loop else []
    grown = _growth_problems(home, table, newest.record.table if newest else None) if home.lake.exists(table.name) else []
    return problems + grown


def _growth_problems(home: Home, table: Table, before: Table | None) -> list[tuple[str, str]]:
    """Incompatible changes of the contract of a table that has rows."""
    found = home.lake.schema(table.name)
    problems = _looked_up(home, table.name, _leaving(before, table)) if before else []
    for name, column in table.columns.items():
        if name not in found.names:
            if not column.nullable or name in (*table.key, table.event_time, table.known):
                problems.append(
                    (f"columns.{name}", f"absent -> {column.type}; a new column must be nullable, for the rows there are")
                )
        elif not found.field(name).type.equals(ARROW_TYPES[column.type]):
            problems.append(
                (f"columns.{name}", f"{_shown(before, name, found.field(name).type)} -> {column.type}; a type stays")
            )
        elif before and name in before.columns and before.columns[name].shape != column.shape:
            problems.append((f"columns.{name}", f"shape {before.columns[name].shape} -> {column.shape}; a shape stays"))
        elif not column.nullable and (before is None or name not in before.columns or before.columns[name].nullable):
            nulls = home.lake.read(table.name, columns=[name])[name].null_count
            problems += [(f"columns.{name}", f"nullable -> never null; it is null in {nulls:,} rows")] if nulls else []
    return problems


def _leaving(before: Table, after: Table) -> set[str]:
    """The columns that a contract had, and that are gone or retired."""
    now = {n for n, c in after.columns.items() if not c.retired}
    return {n for n, c in before.columns.items() if not c.retired} - now


def _looked_up(home: Home, table: str, leaving: set[str]) -> list[tuple[str, str]]:
    """Problems: columns of a table that are to go, but that a package in service looks up and uses."""
    problems: dict[str, str] = {}
    states = {e.loop: e.record for e in home.ledger.find(ReleaseState, newest=False)} if leaving else {}
    for loop, state in states.items():
        for package in state.packages:
            with suppress(PackageNotFound, PackageRefused):
                manifest = home.packages.manifest(package)
                for column in sorted(leaving & manifest.looked_up(table)):
                    why = f"package {package[:12]} of loop {loop!r}, which is in service, uses it: release one that does not, then retire it"
                    problems.setdefault(f"columns.{column}", why)
    return list(problems.items())


def _shown(before: Table | None, name: str, value: Any) -> str:
    return before.columns[name].type if before and name in before.columns else str(value)


def files(home: Home, table: str, version: int) -> dict[str, str]:
    """Sources of a table's version: name of the source -> SHA-256 (`NAME#12345678` where a name occurs twice)."""
    found: dict[str, str] = {}
    for digest, record in ingested(home, table).items():
        if record.version <= version:
            found[record.source if record.source not in found else f"{record.source}#{digest[:8]}"] = digest
    return found
