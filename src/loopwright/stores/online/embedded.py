"""The online store in one SQLite file, synced at checkpoints only: lost data is fed again."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from loopwright.base.clock import RealClock
from loopwright.base.errors import Damaged, Unavailable
from loopwright.base.lock import FileLock
from loopwright.stores.online.steps import CACHED_KEYS, FRESH_SECONDS, Fed, Items, Steps

_PATIENCE_SECONDS = 30.0

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS steps (store TEXT NOT NULL, key TEXT NOT NULL, steps BLOB NOT NULL, PRIMARY KEY (store, key)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS fed (store TEXT PRIMARY KEY, version INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL)
        WITHOUT ROWID;
    CREATE TEMP TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_PUT = """INSERT INTO steps (store, key, steps) VALUES (?, ?, ?)
    ON CONFLICT (store, key) DO UPDATE SET steps = excluded.steps WHERE steps.steps <> excluded.steps"""
_FED = """INSERT INTO fed (store, version, since, until) VALUES (?, ?, ?, ?) ON CONFLICT (store) DO UPDATE
    SET version = excluded.version, since = excluded.since, until = max(fed.until, excluded.until)"""
_GET = "SELECT steps FROM steps WHERE store = ? AND key = ?"


class Embedded:
    """The table at `path`; see `stores.online.Online`. Reading never makes the file: where nothing was ever written, nothing is found."""

    _reader: sqlite3.Connection | None
    _writer: sqlite3.Connection | None
    _cache: dict[str, dict[str, Steps | None]]
    _fed: dict[str, Fed] | None

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._turn = FileLock(self._path.with_name(self._path.name + ".lock"))
        self._now = RealClock().monotonic
        self._mutex = threading.RLock()
        self._forget()

    def write(self, store: str, items: Items, fed: Fed) -> int:
        """See `Online`."""
        with self._writing() as writer:
            found = writer.execute("SELECT version FROM fed WHERE store = ?", (store,)).fetchone()
            if found is not None and found[0] > fed.version:
                return 0
            before = writer.total_changes
            rest = iter(items)
            while batch := list(islice(rest, 1000)):
                writer.executemany(_PUT, [(store, key, steps) for key, steps in batch])
                before += writer.executemany("INSERT INTO kept VALUES (?)", [(key,) for key, _ in batch]).rowcount
            writer.execute("DELETE FROM steps WHERE store = ? AND key NOT IN (SELECT key FROM kept)", (store,))
            changed = writer.total_changes - before
            writer.execute("DELETE FROM kept")
            writer.execute(_FED, (store, fed.version, fed.since, fed.until))
            return changed

    def mark(self, store: str, until: int) -> None:
        """See `Online`."""
        with self._writing() as writer:
            writer.execute("UPDATE fed SET until = ? WHERE store = ? AND until < ?", (until, store, until))

    def fed(self, store: str, /) -> Fed | None:
        """See `Online`."""
        if self._now() >= self._fresh_until:
            self._refresh()
        if self._fed is None:
            with self._mutex:
                rows = self._ask("SELECT store, version, since, until FROM fed", (), sqlite3.Cursor.fetchall) or []
                self._fed = {name: Fed(version, since, until) for name, version, since, until in rows}
        return self._fed.get(store)

    def get_many(self, store: str, keys: list[str], /) -> list[Steps | None]:
        """See `Online`."""
        if self._now() >= self._fresh_until:
            self._refresh()
        known = self._cache.get(store)
        if known is None:
            known = self._cache.setdefault(store, {})
        if len(keys) == 1:  # as for most requests
            key = keys[0]
            return [known[key] if key in known else self._load(store, key)]
        return [known[key] if key in known else self._load(store, key) for key in keys]

    def close(self) -> None:
        """See `Online`."""
        with self._mutex:
            for connection in (self._reader, self._writer):
                if connection is not None:
                    connection.close()
            self._turn.close()
            self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._reader = None
        self._asking: sqlite3.Cursor | None = None
        self._writer = None
        self._cache = {}
        self._fed = None
        self._version = -1
        self._fresh_until = 0.0

    def _after_fork(self) -> None:
        if os.getpid() != self._pid:
            self._inherited = (self._reader, self._asking, self._writer)  # referenced but unused: they are the parent's
            self._forget()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The writing connection in a transaction, one process at a time."""
        with self._errors(), self._mutex:
            self._after_fork()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._turn.hold(_PATIENCE_SECONDS):
                if self._writer is None:
                    self._writer = self._connect("rwc", _PATIENCE_SECONDS)
                    self._writer.execute("PRAGMA journal_mode=WAL")
                    self._writer.execute("PRAGMA synchronous=NORMAL")
                    self._writer.executescript(_SCHEMA)
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                except BaseException:
                    self._writer.execute("ROLLBACK")
                    raise
                self._writer.execute("COMMIT")
            self._cache, self._fed = {}, None

    def _refresh(self) -> None:
        """Drop the cache if the database was written since; `data_version` detects that without reading a page."""
        with self._errors(), self._mutex:
            self._after_fork()
            if self._reader is None and self._path.exists():
                self._reader = self._connect("ro", 1.0)
                self._asking = self._reader.cursor()
            version = self._reader.execute("PRAGMA data_version").fetchone()[0] if self._reader else -1
            if version != self._version or sum(map(len, self._cache.values())) > CACHED_KEYS:
                self._cache, self._fed = {}, None
                self._version = version
            self._fresh_until = self._now() + FRESH_SECONDS

    def _load(self, store: str, key: str) -> Steps | None:
        with self._mutex:
            row = self._ask(_GET, (store, key), sqlite3.Cursor.fetchone)
            steps = Steps(row[0]) if row else None
            self._cache.setdefault(store, {})[key] = steps
            return steps

    def _ask(self, sql: str, values: tuple[str, ...], fetch: Callable[[sqlite3.Cursor], Any]) -> Any:
        """The result of `fetch`; None if there is no file yet, or no committed transaction."""
        if self._asking is None or os.getpid() != self._pid:
            self._refresh()
        if self._asking is None:
            return None
        try:
            return fetch(self._asking.execute(sql, values))
        except (sqlite3.DatabaseError, OSError) as error:
            if "no such table" in str(error):
                return None
            raise _translated(error) from error

    def _connect(self, mode: str, patience: float) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}", uri=True, timeout=patience, isolation_level=None, check_same_thread=False
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise _translated(error) from error


def _translated(error: Exception) -> Unavailable | Damaged:
    """The loopwright error for an error of SQLite or of the system."""
    if isinstance(error, (sqlite3.OperationalError, OSError)):
        return Unavailable(f"the online table does not answer: {error}")
    return Damaged(f"the online table is damaged: {error}")
