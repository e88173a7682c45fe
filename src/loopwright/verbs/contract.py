"""The verb `contract`."""

from datetime import datetime
from pathlib import Path

import msgspec

from loopwright.base.errors import TableNotFound
from loopwright.data.ingest import odcs as standard
from loopwright.records.declarations import Table
from loopwright.stores.contracts import Contract, changes
from loopwright.stores.contracts import contract as newest
from loopwright.stores.home import Home
from loopwright.verbs.loop_file import loop_with_code


class ContractVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a contract, and how it differs from the one before."""

    number: int
    digest: str
    at: datetime
    by: str
    changes: list[str]


class ContractShown(msgspec.Struct, frozen=True, kw_only=True):
    """The contract of a table as it is now, the rows it holds, and its versions, oldest first."""

    table: Table
    rows: int
    versions: list[ContractVersion]
    notes: list[str] = []


def contract(
    home: Home, table: str, *, loop: str = "", odcs: Path | None = None, import_file: Path | None = None
) -> ContractShown:
    """Show the contract of a table and its versions, write it to a file, or read it from one.

    Args:
        table: name of a table.
        loop: path of the loop file that declares the table; optional once the ledger has the contract.
        odcs: output file in Open Data Contract Standard v3, YAML or .json.
        import_file: file of that standard from which to read the contract; declare it in your loop file, too.
    """
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


def _put(home: Home, table: Table) -> None:
    from loopwright.data.ingest.ingestion import put_contract  # here: it loads DuckDB, which reading commands do not need

    put_contract(home, table)
