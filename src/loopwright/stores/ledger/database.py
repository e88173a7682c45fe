"""The ledger's connections: one set of rules for SQLite, one for PostgreSQL, transactions for both.

SQLite: WAL, synced at every commit. A writer holds a file lock next to the database, from before the transaction
until its checkpoint is done: writers queue instead of failing as busy, and no checkpoint ever runs during a
write (SQLite before 3.51.3 can lose pages when a WAL is reset that way). Readers never checkpoint.
PostgreSQL: writers wait for each other on a row (`schema.head`). Connections never cross a fork.
"""

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, exc, inspect, make_url, select, text

from loopwright.base.errors import Damaged, ExtraMissing, LedgerUnavailable, SettingInvalid
from loopwright.base.lock import FileLock
from loopwright.base.settings import SQLITE
from loopwright.stores.ledger import schema
from loopwright.stores.ledger.seen import SeenLedger

HAD = "this home had one (ledger.json, packages or served/ tell of it)"
RESTORE = "restore it from a backup; to begin with an empty one, use another home (LOOPWRIGHT_HOME)"
"""Next step when a ledger is gone."""

PATIENCE_SECONDS = 30.0
"""Timeout of a writer in the queue, before the ledger counts as unavailable."""

STATEMENT_SECONDS = 30.0
"""Timeout of a statement on PostgreSQL before the ledger counts as unavailable; `verify` may take longer."""

_ADVISORY = 0x6C6F6F70  # "loop": the PostgreSQL lock under which the schema changes


class Database:
    """Transactions on the ledger's database. Safe to share among threads; after a fork the child opens its own connections."""

    _reader: Engine
    _writer: Engine

    def __init__(self, url: str, seen: SeenLedger | None = None, patience: float | None = None) -> None:
        self.url = _parse(url)
        self.seen = seen or SeenLedger(None)
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self.seen.chain_of = self._chain_of
        self._identity: tuple[int, int] | None = None
        self.file = Path(self.url.database or "").absolute() if self.url.get_backend_name() == "sqlite" else None
        with _files():
            self._only_reads = self.file is not None and self.file.exists() and not os.access(self.file.parent, os.W_OK)
        self._lock = FileLock(Path(f"{self.file}.lock")) if self.file else None
        self._open()
        try:
            with self._errors():
                self._bring_up_to_date()
                self._identity = self._on_disk()
                self.seen.stands = not self.seen.behind()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the ledger; inside `write` of the same thread, that transaction."""
        self._after_fork()
        with self._errors():
            active: Connection | None = getattr(self._local, "connection", None)
            if active is not None:
                yield active
                return
            with self._reader.connect() as connection:
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed at the end, undone by an exception. Inside another one it joins that."""
        self._after_fork()
        active: Connection | None = getattr(self._local, "connection", None)
        if active is not None:
            with self._errors():
                yield active
            return
        with self._errors(), self._turn():
            self.seen.begin()
            with self._writer.begin() as connection:
                self._local.connection = connection
                try:
                    yield connection
                finally:
                    del self._local.connection
            self.seen.commit()

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction whose statements all see the same state, for reading the whole ledger."""
        self._after_fork()
        with self._errors(), self._reader.connect() as connection:
            if self.file is None:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
                connection.execute(text("SET LOCAL statement_timeout = 0"))
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._reader.dispose()
        self._writer.dispose()
        if self._lock:
            self._lock.close()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._local = threading.local()
        self._reopening = threading.Lock()  # not the one of before a fork, which a thread of the parent may hold
        if self.file is None:
            limits = f"-c lock_timeout={int(self._patience * 1000)} -c statement_timeout={int(STATEMENT_SECONDS * 1000)}"
            connect: dict[str, Any] = {"connect_timeout": 5, "options": limits, "tcp_user_timeout": 30_000}
            connect = {name: value for name, value in connect.items() if name not in self.url.query}
            self._reader = create_engine(self.url, pool_pre_ping=True, pool_size=5, max_overflow=20, connect_args=connect)
            self._writer = self._reader
            return
        arguments = {"timeout": self._patience, "check_same_thread": False}
        reading = _read_only(self.file) if self._only_reads else self.url
        self._reader = create_engine(reading, poolclass=QueuePool, pool_size=5, max_overflow=35, connect_args=arguments)
        self._writer = create_engine(self.url, pool_size=1, max_overflow=0, connect_args=arguments)
        _sqlite_rules(self._reader, "BEGIN", ["PRAGMA wal_autocheckpoint=0", "PRAGMA query_only=ON"])
        _sqlite_rules(self._writer, "BEGIN IMMEDIATE", ["PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"])

    def _after_fork(self) -> None:
        if os.getpid() != self._pid:
            self._reader.dispose(close=False)
            self._writer.dispose(close=False)
            self._open()
        elif self._identity is not None and getattr(self._local, "connection", None) is None:
            self._follow_file()

    def _follow_file(self) -> None:
        """Reopen the database file when it was replaced: never write into a deleted file."""
        with self._reopening, self._errors():
            now = self._on_disk()
            if now is None:
                raise LedgerUnavailable(f"the ledger {self.file} is gone: {RESTORE}")
            if now != self._identity:
                self._reader.dispose()
                self._writer.dispose()
                self._bring_up_to_date()
                self._identity = now
                self.seen.stands = not self.seen.behind()

    def _chain_of(self, number: int) -> str | None:
        with self._reader.connect() as connection:
            return connection.execute(select(schema.entry.c.chain).where(schema.entry.c.sequence == number)).scalar()

    def _on_disk(self) -> tuple[int, int] | None:
        """Device and inode of the database file; None if it does not exist, or the ledger is not a file."""
        with _files():
            try:
                found = self.file.stat() if self.file is not None else None
            except FileNotFoundError:
                return None
        return (found.st_dev, found.st_ino) if found is not None else None

    def _bring_up_to_date(self) -> None:
        if self.file is not None and not self.file.exists():
            if self.seen.had_ledger() and not self.file.exists():  # else another process has made both since
                raise LedgerUnavailable(f"the ledger {self.file} is gone, and {HAD}: {RESTORE}")
            with _files():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                os.close(
                    os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
                )  # SQLite gives its other files the same mode
        elif self._version() == schema.VERSION:
            return
        with self._turn(), self._writer.begin() as connection:
            if self.file is None:
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY})"))
            found = _version(connection)
            if found == schema.VERSION:
                return
            if found is not None and found > schema.VERSION:
                raise LedgerUnavailable(
                    f"the ledger has schema {found}, and this loopwright knows {schema.VERSION}: install the newer loopwright"
                )
            if found is None and self.seen.had_ledger():
                raise LedgerUnavailable(f"the ledger {self.url.database} is empty, and {HAD}: {RESTORE}")
            from loopwright.stores.ledger.upgrade import upgrade  # here: it loads alembic, which a ledger of today needs not

            upgrade(connection)

    def _version(self) -> str | None:
        with self._reader.connect() as connection:
            return _version(connection)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """This process's and this thread's turn to write (SQLite; PostgreSQL locks a row instead)."""
        with ExitStack() as held:
            if self._lock:
                with _files():
                    held.enter_context(self._lock.hold(self._patience))
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate errors of the database into loopwright's."""
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
            raise LedgerUnavailable(f"the ledger does not answer: {_reason(error)}") from error
        except (exc.IntegrityError, exc.ProgrammingError, exc.DataError):
            raise
        except exc.DatabaseError as error:
            raise Damaged(f"the ledger's database is damaged: {_reason(error)}") from error


@contextmanager
def _files() -> Iterator[None]:
    """Say in loopwright's words that a file or folder cannot be had."""
    try:
        yield
    except OSError as error:
        raise LedgerUnavailable(f"the ledger does not answer: {error.strerror or error}") from error


def _read_only(file: Path) -> URL:
    """The URL of a database in a read-only folder, where SQLite cannot create its auxiliary files.

    Without changes that wait in its log the file is whole (the last connection that closed put them in), and is read as it is.
    """
    log = file.with_name(f"{file.name}-wal")
    whole = not log.exists() or not log.stat().st_size
    options = {"mode": "ro", "uri": "true"} | ({"immutable": "1"} if whole else {})
    return URL.create("sqlite", database="file:" + quote(str(file)), query=options)


def _parse(url: str) -> URL:
    if url.startswith(SQLITE):  # versions of SQLAlchemy decode differently
        path, _, options = url.removeprefix(SQLITE).partition("?")
        url = f"{SQLITE}?{options}" if options else SQLITE
        return _checked(url, make_url(url).set(database=unquote(path)))
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise SettingInvalid("LOOPWRIGHT_LEDGER", url, "is not a URL: sqlite:///PATH or postgresql://...") from None
    return _checked(url, parsed)


def _checked(url: str, parsed: URL) -> URL:
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        if importlib.util.find_spec("psycopg") is None:
            raise ExtraMissing("postgres", "a ledger on PostgreSQL")
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise SettingInvalid("LOOPWRIGHT_LEDGER", parsed.render_as_string(), "must be sqlite:///PATH or postgresql://...")
    return parsed


def _sqlite_rules(engine: Engine, begin: str, pragmas: list[str]) -> None:
    """Transactions begin with `begin` (the driver's own way of beginning them is switched off); `pragmas` at connect."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(schema.version.name):
        return None
    return connection.execute(select(schema.version.c.version_num)).scalar()


def _reason(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]
