from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

from loopwright.base.clock import RealClock
from loopwright.base.errors import LedgerUnavailable
from loopwright.stores.ledger import schema
from loopwright.stores.ledger.store import Ledger
from loopwright.stores.ledger.upgrade import scripts


def engine_of(url: str) -> Any:
    return create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def test_the_code_knows_the_newest_migration() -> None:
    assert scripts().get_heads() == [schema.VERSION]


def test_migrations_are_numbered_oldest_first_without_a_gap() -> None:
    revisions = [script.revision for script in scripts().walk_revisions()]
    assert revisions[::-1] == [f"{n:04}" for n in range(1, len(revisions) + 1)]


def test_migrations_make_the_schema_that_the_code_uses(ledger_url: str) -> None:
    Ledger(ledger_url, clock=RealClock(), by="ada").close()
    engine = engine_of(ledger_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    engine.dispose()


def test_a_database_without_entries_is_refused_where_home_had_a_ledger(ledger_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "home" / "served" / "loop.json"
    copy.parent.mkdir(parents=True)
    copy.touch()

    def opened() -> Ledger:
        return Ledger(ledger_url, clock=RealClock(), by="ada", seen=tmp_path / "home" / "ledger.json")

    with pytest.raises(LedgerUnavailable, match=r"is (gone|empty), and this home had one"):
        opened()
    copy.unlink()
    with closing(opened()) as ledger:
        assert ledger.count() == 0


def test_many_may_open_an_empty_ledger_at_once(ledger_url: str) -> None:
    def open_it(_: int) -> int:
        with closing(Ledger(ledger_url, clock=RealClock(), by="ada")) as ledger:
            return len(ledger.history())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(open_it, range(8))) == [0] * 8


def test_a_ledger_of_a_newer_loopwright_is_left_alone(ledger_url: str) -> None:
    Ledger(ledger_url, clock=RealClock(), by="ada").close()
    engine = engine_of(ledger_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(LedgerUnavailable, match="schema 9999"):
        Ledger(ledger_url, clock=RealClock(), by="ada")


def test_opening_a_ledger_that_is_up_to_date_takes_no_lock_and_reads_no_migration(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(ledger_url, clock=RealClock(), by="ada").close()
    monkeypatch.setattr("loopwright.stores.ledger.database.Database._turn", None)
    monkeypatch.setattr("loopwright.stores.ledger.upgrade.scripts", None)
    Ledger(ledger_url, clock=RealClock(), by="ada").close()


def test_sqlite_syncs_every_commit_and_readers_cannot_write(tmp_path: Any) -> None:
    with closing(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", clock=RealClock(), by="ada")) as ledger:
        with ledger._database.write() as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
            assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        with ledger._database.read() as connection:
            assert connection.execute(text("PRAGMA wal_autocheckpoint")).scalar() == 0
            with pytest.raises(LedgerUnavailable, match="readonly"), ledger._database.read() as reader:
                reader.execute(text("DELETE FROM entry"))
