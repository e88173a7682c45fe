"""The verb `quarantine`."""

from pathlib import Path

from loopwright.base.errors import UsageError
from loopwright.data.ingest.quarantine import quarantined
from loopwright.records.ingestions import Quarantined
from loopwright.stores.contracts import contract as newest
from loopwright.stores.home import Home

MAX_SHOWN = 1000


def quarantine(home: Home, table: str, *, export: Path | None = None, most: int = 20) -> Quarantined:
    """List the quarantined rows of a table by reason, or write them to a file to correct them.

    Args:
        table: name of a table.
        export: output file for the rows and their reasons (.csv, .jsonl or .parquet); `ingest --mend` loads it.
        most: rows to show.
    """
    if not 1 <= most <= MAX_SHOWN:
        raise UsageError(f"--most {most}: must be 1 to {MAX_SHOWN:,}; --export FILE writes all")
    newest(home, table)
    return quarantined(home, table, most=most, export=export)
