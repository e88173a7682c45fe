"""The verb `ingest`."""

from typing import Unpack

import msgspec

from loopwright.base.errors import TableNotFound, UsageError
from loopwright.base.progress import Progress
from loopwright.data.examples.build import repeated_units
from loopwright.data.ingest.ingestion import put_contract
from loopwright.data.ingest.load import bring, bring_mended, bring_query
from loopwright.data.ingest.profile import keep_profile
from loopwright.data.ingest.source_reader import FileOptions, Reading
from loopwright.records.attempts import Attempts
from loopwright.records.ingestions import Ingested
from loopwright.stores.contracts import contract
from loopwright.stores.home import Home
from loopwright.tend import loops, refresh
from loopwright.verbs.loop_file import loop_with_code


def ingest(
    home: Home,
    table: str,
    files: list[str] | None = None,
    *,
    loop: str = "",
    query: str = "",
    from_url: str = "",
    watermark: str = "",
    mend: bool = False,
    progress: Progress | None = None,
    **file_options: Unpack[FileOptions],
) -> list[Ingested]:
    """Load rows into a table, through its contract; bad rows go to quarantine with the reason.

    Args:
        table: name of a declared table.
        files: CSV, JSON Lines, Excel, Parquet or Arrow files, folders or globs of them, or Delta tables (folder or URL).
        loop: path of the loop file that declares the table; optional once the ledger has the contract.
        query: an SQL query instead of files; `:watermark` is the highest value ingested before.
        from_url: the database to query, e.g. postgresql://user@host/shop or sqlite:///shop.db.
        watermark: a growing column; only rows above the highest value ingested before are loaded.
        mend: load quarantined rows from a file of `quarantine --export`; without files, reload them as they are.
    """
    if bool(query) != bool(from_url) or (query and (files or mend)):
        raise UsageError("name at least one file, or set both --query and --from-url")
    if not (files or query or mend):
        raise UsageError(f"table {table!r}: name at least one file")
    reading = Reading.of(**file_options)
    if query and reading.options():
        raise UsageError(f"{reading.options().split()[0]} is about a file, and --query asks a database: leave it off")
    declared = None
    if loop:
        declared, file = loop_with_code(home, loop)
        if table not in declared.tables:
            raise TableNotFound(table, sorted(declared.tables))
        put_contract(home, declared.tables[table], loop=declared.name, file=file)
    found = contract(home, table)
    if query:
        results = [bring_query(home, found, from_url, query, watermark=watermark, progress=progress)]
    elif mend:
        results = bring_mended(home, found, files or [], reading)
    else:
        results = bring(home, found, files or [], watermark=watermark, reading=reading, progress=progress)
    refresh(home, {table})
    if sum(r.good for r in results if not r.already):
        # Ingested rows stay, even if they cannot be profiled.
        Attempts(table).run("profile", lambda: keep_profile(home, table), None)
        of_loops = [declared] if declared is not None else [known for known, _ in loops(home)]
        asking = next((each for each in of_loops if each.requests.name == table), None)
        if asking is not None:
            again = Attempts(table).run("repeated keys", lambda: repeated_units(home, asking.requests, asking.outcome), "")
            results[-1] = msgspec.structs.replace(results[-1], repeated_keys=again)
    return results
