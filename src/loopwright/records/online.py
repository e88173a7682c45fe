"""Context while serving: the newest known row per table and key, in one small SQLite file. Light: the prediction path reads it.

What is in it can always be made again from the lake, so it is synced at checkpoints only.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from loopwright.records.clock import RealClock
from loopwright.records.errors import Damaged, Unavailable
from loopwright.records.file_lock import FileLock

FRESH_SECONDS = 0.05
"""For so long a reader answers from memory before it asks whether another process has written."""

_CACHED_ROWS = 200_000
_PATIENCE_SECONDS = 30.0

_TABLE = """CREATE TABLE IF NOT EXISTS context (
    name TEXT NOT NULL, key TEXT NOT NULL, event_at INTEGER NOT NULL, known_at INTEGER NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (name, key)) WITHOUT ROWID"""

_PUT = """INSERT INTO context (name, key, event_at, known_at, row) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (name, key) DO UPDATE SET event_at = excluded.event_at, known_at = excluded.known_at, row = excluded.row
    WHERE (excluded.event_at, excluded.known_at) >= (context.event_at, context.known_at)"""

_GET = "SELECT known_at, event_at, row FROM context WHERE name = ? AND key = ?"


class ContextRow(msgspec.Struct, frozen=True, gc=False):
    """A row of context: when it became known and when it happened (microseconds since 1970, UTC), and its columns."""

    known_at: int
    event_at: int
    values: dict[str, Any]


class Online:
    """The key-value table at `path`. Reading never makes the file: where nothing was ever written, nothing is found.

    Safe to share among threads; a forked child opens its own connections. What another process writes is seen within
    0.1 s. Raises Unavailable when the file does not answer and Damaged when it is not what was written.
    """

    _reader: sqlite3.Connection | None
    _writer: sqlite3.Connection | None
    _cache: dict[tuple[str, str], ContextRow | None]

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._turn = FileLock(self._path.with_name(self._path.name + ".lock"))
        self._clock = RealClock()
        self._mutex = threading.RLock()
        self._forget()

    def put(self, table: str, rows: Iterable[tuple[str, int, int, dict[str, Any]]]) -> None:
        """Take in rows (key, known at, event at, columns) in one transaction; times in microseconds since 1970 (UTC).

        Per key the row with the newest event stays, and of several about the same event the one known last: a correction
        wins, a straggler does not.
        """
        encoded = [(table, key, event_at, known_at, msgspec.msgpack.encode(values)) for key, known_at, event_at, values in rows]
        with self._errors(), self._mutex:
            self._after_fork()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._turn.hold(_PATIENCE_SECONDS):
                if self._writer is None:
                    self._writer = self._connect("rwc", _PATIENCE_SECONDS)
                    self._writer.execute("PRAGMA journal_mode=WAL")
                    self._writer.execute("PRAGMA synchronous=NORMAL")
                    self._writer.execute(_TABLE)
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    self._writer.executemany(_PUT, encoded)
                except BaseException:
                    self._writer.execute("ROLLBACK")
                    raise
                self._writer.execute("COMMIT")
            self._cache.clear()

    def get(self, table: str, key: str) -> ContextRow | None:
        """The newest known row of `table` for a key, or None."""
        if self._clock.monotonic() >= self._fresh_until:
            self._refresh()
        try:
            return self._cache[table, key]
        except KeyError:
            return self._load(table, key)

    def get_many(self, table: str, keys: Sequence[str]) -> list[ContextRow | None]:
        """As `get`, for many keys, in their order."""
        return [self.get(table, key) for key in keys]

    def close(self) -> None:
        """Close the connections."""
        with self._mutex:
            for connection in (self._reader, self._writer):
                if connection is not None:
                    connection.close()
            self._turn.close()
            self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._reader = None
        self._writer = None
        self._cache = {}
        self._version = -1
        self._fresh_until = 0.0

    def _after_fork(self) -> None:
        if os.getpid() != self._pid:
            self._inherited = (self._reader, self._writer)  # kept, never used: they are the parent's
            self._forget()

    def _refresh(self) -> None:
        """Drop what is in memory if anybody has written since; `data_version` tells, without reading a page."""
        with self._errors(), self._mutex:
            self._after_fork()
            if self._reader is None and self._path.exists():
                self._reader = self._connect("ro", 1.0)
            version = self._reader.execute("PRAGMA data_version").fetchone()[0] if self._reader else -1
            if version != self._version or len(self._cache) > _CACHED_ROWS:
                self._cache.clear()
                self._version = version
            self._fresh_until = self._clock.monotonic() + FRESH_SECONDS

    def _load(self, table: str, key: str) -> ContextRow | None:
        with self._errors(), self._mutex:
            self._after_fork()
            if self._reader is None:
                self._refresh()
            row = self._select(self._reader, table, key) if self._reader else None
            self._cache[table, key] = row
            return row

    def _select(self, reader: sqlite3.Connection, table: str, key: str) -> ContextRow | None:
        try:
            found = reader.execute(_GET, (table, key)).fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # the file is there, its first transaction not yet
                return None
            raise
        return ContextRow(found[0], found[1], msgspec.msgpack.decode(found[2])) if found else None

    def _connect(self, mode: str, patience: float) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}",
            uri=True,
            timeout=patience,
            isolation_level=None,
            check_same_thread=False,
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise Unavailable(f"the context table does not answer: {error}") from error
        except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
            raise Damaged(f"the context table is damaged: {error}") from error
