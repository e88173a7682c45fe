"""Verbs that look at tables: their contracts, and what waits in their quarantine."""

from pathlib import Path
from typing import TYPE_CHECKING

from loopwright.base.errors import TableNotFound, UsageError
from loopwright.stores.contracts import Contract, changes
from loopwright.stores.contracts import contract as newest
from loopwright.stores.home import Home
from loopwright.verbs.act import loop_with_code
from loopwright.verbs.results import ContractShown, ContractVersion

if TYPE_CHECKING:
    from loopwright.records.declarations import Table
    from loopwright.records.ingestions import Quarantined
    from loopwright.records.profiles import Profile

MOST_SHOWN = 1000


def contract(
    home: Home, table: str, *, loop: str = "", odcs: Path | None = None, import_file: Path | None = None
) -> ContractShown:
    """The contract of a table and its versions; written to a file, or read from one.

    Args:
        table: name of a table.
        loop: path of the loop file that declares the table; not needed once the ledger knows the contract.
        odcs: file to write it to as Open Data Contract Standard v3, YAML or .json.
        import_file: file of that standard to take the contract from; say it in your loop file as well.
    """
    from loopwright.data.ingest import odcs as standard

    notes: list[str] = []
    if loop:
        declared, _ = loop_with_code(home, loop)
        if table not in declared.tables:
            raise TableNotFound(table, sorted(declared.tables))
        _put(home, declared.tables[table])
    if import_file is not None:
        imported, left = standard.read(import_file, table)
        _put(home, imported)
        notes = [f"not taken over: {what}" for what in left]
    found = newest(home, table)
    if odcs is not None:
        standard.write(found, odcs)
        notes.append(f"written to {odcs}")
    entries = home.ledger.find(Contract, key=table, newest=False)
    versions = [
        ContractVersion(
            number=i + 1,
            digest=e.record.digest,
            at=e.at,
            by=e.by,
            changes=changes(entries[i - 1].record.table, e.record.table) if i else [],
        )
        for i, e in enumerate(entries)
    ]
    rows = home.lake.count(table) if home.lake.exists(table) else 0
    return ContractShown(table=found, rows=rows, versions=versions, notes=notes)


def _put(home: Home, table: "Table") -> None:
    from loopwright.data.ingest.ingestion import put_contract  # here: it loads what reads files

    put_contract(home, table)


def profile(home: Home, table: str) -> "Profile":
    """What the rows of a table look like: nulls, distinct values, ranges, quantiles, common values, rows per day, freshness.

    Args:
        table: name of a table.
    """
    from loopwright.data.ingest.profile import profiled

    return profiled(home, table)


def quarantine(home: Home, table: str, *, export: Path | None = None, most: int = 20) -> "Quarantined":
    """What waits in the quarantine of a table, by reason; written to a file to be mended.

    Args:
        table: name of a table.
        export: file to write the rows and their reasons to (.csv, .jsonl or .parquet); `ingest --mend` brings it in again.
        most: rows to show.
    """
    from loopwright.data.ingest.quarantine import quarantined

    if not 1 <= most <= MOST_SHOWN:
        raise UsageError(f"--most {most}: must be 1 to {MOST_SHOWN:,}; --export FILE writes all")
    newest(home, table)
    return quarantined(home, table, most=most, export=export)
