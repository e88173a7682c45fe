"""The only access to DuckDB: in memory, sees only registered tables, installs no extension, works in bounded memory."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from loopwright.base.clock import Clock
from loopwright.base.errors import Unavailable
from loopwright.base.ids import new_id
from loopwright.base.memory import memory_limit

MAX_MEMORY = 5 * 2**30

_CONFIGURATION: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
}


class Workspace(Protocol):
    """A folder for queries that spill to disk: a `Home`."""

    @property
    def clock(self) -> Clock:
        """Names the folder by its time."""
        ...

    def folder(self, name: str, /) -> Path:
        """A folder to write to; raises `Unavailable` without one."""
        ...


def _engine() -> Any:
    import duckdb  # here: commands that only look evaluate SQL only where there are rows to evaluate it of

    return duckdb


def sql_error() -> type[Exception]:
    """Errors of the engine for SQL that it cannot run. A call in an `except` clause loads the engine only where something was raised."""
    error: type[Exception] = _engine().Error
    return error


@contextmanager
def sql_engine(home: Workspace | None = None, *, ordered: bool = True) -> Iterator[Any]:
    """A database for SQL that may come out of the ledger (labels, aggregates): no files, no network, no settings. Times are UTC.

    Its memory limit is a third of the memory that this process may use, at most `MAX_MEMORY`. It spills to a folder of its own under
    `home`, removed when the connection closes; without a writable `home` the query fails instead.

    Args:
        ordered: results keep the order of the rows registered, which takes more memory.
    """
    spill = _spill_folder(home)
    try:
        with _engine().connect(":memory:", config=_CONFIGURATION) as database:
            for setting in (  # once it is open: the extension that knows time zones is there only then
                "GLOBAL TimeZone = 'UTC'",  # of cursors too, which would have the machine's
                f"memory_limit = '{min(MAX_MEMORY, memory_limit() // 3) // 2**20}MiB'",
                f"temp_directory = {text('' if spill is None else str(spill))}",
                f"preserve_insertion_order = {str(ordered).lower()}",
                "python_enable_replacements = false",
                "enable_external_access = false",
                "lock_configuration = true",
            ):
                database.execute(f"SET {setting}")
            yield database
    finally:
        if spill is not None:
            shutil.rmtree(spill, ignore_errors=True)


def _spill_folder(home: Workspace | None) -> Path | None:
    try:
        return None if home is None else home.folder("tmp") / new_id(home.clock.now())
    except Unavailable:  # a home that may only be read is read all the same
        return None


def quoted(name: str) -> str:
    """A name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text as SQL."""
    return "'" + value.replace("'", "''") + "'"
