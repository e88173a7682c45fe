"""DuckDB for as-of joins: sees what is registered and nothing else, works in bounded memory, and writes only below home."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import duckdb

from loopwright.records.home import Home
from loopwright.records.ids import new_id

MICROSECOND = timedelta(microseconds=1)


@contextmanager
def locked(home: Home) -> Iterator[Any]:
    """A DuckDB whose SQL may come out of the ledger (labels, aggregates): no files, no network, no settings.

    What does not fit into 5 GiB, or a third of the machine's memory, goes to a folder of its own under home, gone when the connection closes.
    """
    memory = min(5 * 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 3)
    spill = home.folder("tmp") / new_id(home.clock.now())
    try:
        with duckdb.connect(":memory:") as database:
            # Set once it is open: the extension that knows time zones is there only then.
            for setting in (
                "TimeZone = 'UTC'",
                f"memory_limit = '{memory // 2**20}MiB'",
                f"temp_directory = {text(str(spill))}",
                "preserve_insertion_order = false",
                "python_enable_replacements = false",
                "enable_external_access = false",
                "lock_configuration = true",
            ):
                database.execute(f"SET {setting}")
            yield database
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def quoted(name: str) -> str:
    """A name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text as SQL."""
    return "'" + value.replace("'", "''") + "'"
