"""Sources of every kind into a table, and read on: files, folders, globs, Delta tables and queries."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from loopwright import Column, Home, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import FileMissing, IngestRefused, NotFound, Refused, UsageError
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import files, ingest
from loopwright.data.ingest.load import bring, bring_query
from loopwright.data.scaffold.infer import inferred
from loopwright.records.ingestions import Ingested

AT = datetime(2024, 1, 1, tzinfo=UTC)
THINGS = Table(
    "things",
    {"id": Column("integer"), "at": Column("timestamp", zone="UTC"), "size": Column("float", nullable=True, minimum=0)},
    key=["id"],
    event_time="at",
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(AT)) as opened:
        yield opened


def rows(*ids: int, size: float = 1.0) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64()), "at": [AT] * len(ids), "size": [size] * len(ids)})


def ids(home: Home) -> list[int]:
    return sorted(home.lake.read("things")["id"].to_pylist())


def test_a_folder_comes_in_file_by_file_in_order_and_only_what_is_new(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    pq.write_table(rows(3), folder / "b" / "part.parquet")
    pq.write_table(rows(2), folder / "a.parquet")
    (folder / "c.csv").write_text("id,at,size\n1,2024-01-01,\n", encoding="utf-8")
    (folder / "d.jsonl").write_text('{"id": 4, "at": "2024-01-01 10:00"}\n', encoding="utf-8")
    (folder / "_SUCCESS").write_text("", encoding="utf-8")
    (folder / ".hidden.csv").write_text("x\n", encoding="utf-8")
    (folder / "notes.txt").write_text("x\n", encoding="utf-8")
    done = bring(home, THINGS, [str(folder)])
    assert [(d.source, d.good) for d in done] == [("a.parquet", 1), ("b/part.parquet", 1), ("c.csv", 1), ("d.jsonl", 1)]
    pq.write_table(rows(5), folder / "e.parquet")
    again = bring(home, THINGS, [str(folder / "*.parquet"), str(folder / "c.csv")])
    assert [(d.source, d.already) for d in again] == [("a.parquet", True), ("e.parquet", False), ("c.csv", True)]
    assert ids(home) == [1, 2, 3, 4, 5]
    assert len(files(home, "things", home.lake.version("things"))) == 5


def test_folders_tell_columns_that_the_contract_asks_for(home: Home, tmp_path: Path) -> None:
    for month in ("1", "2", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / "in" / f"month={month}").mkdir(parents=True)
        pq.write_table(rows(1), tmp_path / "in" / f"month={month}" / "part.parquet")
    asked = msgspec.structs.replace(THINGS, columns={**THINGS.columns, "month": Column("integer", nullable=True)})
    done = bring(home, asked, [str(tmp_path / "in")])
    assert [d.good for d in done] == [1, 1, 1], "the same rows of another month are other rows"
    assert sorted(home.lake.read("things")["month"].to_pylist(), key=str) == [1, 2, None]
    assert ingest(home, msgspec.structs.replace(THINGS, name="others"), tmp_path / "in" / "month=1" / "part.parquet").good == 1
    assert "month" in inferred(tmp_path / "in", "t").table.columns
    assert "month" not in inferred(tmp_path / "in" / "month=1", "t").table.columns


def test_what_is_not_there_is_refused(home: Home, tmp_path: Path) -> None:
    for sources, why in [
        ([str(tmp_path / "no.csv")], r"no file '.*no\.csv'"),
        ([str(tmp_path / "*.csv")], "called like"),
        ([str(tmp_path)], "no file in this folder"),
    ]:
        with pytest.raises(FileMissing, match=why):
            bring(home, THINGS, sources)
    with pytest.raises(UsageError, match="at least one"):
        bring(home, THINGS, [])


def test_a_delta_table_is_read_on_from_the_version_read_before(home: Home, tmp_path: Path) -> None:
    uri = str(tmp_path / "delta")
    write_deltalake(uri, rows(1, 2))
    [first] = bring(home, THINGS, [uri])
    assert (first.good, first.reached, first.source) == (2, "0", "Delta table delta@0")
    [nothing] = bring(home, THINGS, [uri])
    assert (nothing.already, nothing.rows) == (True, 0)
    write_deltalake(uri, rows(3), mode="append")
    write_deltalake(uri, rows(4), mode="append")
    DeltaTable(uri).optimize.compact()
    [more] = bring(home, THINGS, [uri])
    assert (more.good, more.reached) == (2, "3")
    assert ids(home) == [1, 2, 3, 4]
    DeltaTable(uri).delete("id = 1")
    with pytest.raises(Refused, match=r"version 4 \(DELETE\) changed or removed rows"):
        bring(home, THINGS, [uri])
    with pytest.raises(NotFound, match="no Delta table"):
        bring(home, THINGS, ["file://" + str(tmp_path / "none")])


def test_a_source_that_grows_is_read_on_by_a_watermark(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "growing.csv"
    file.write_text("id,at,size\n1,2024-01-01,1\n2,2024-01-02,-1\n", encoding="utf-8")
    [first] = bring(home, THINGS, [str(file)], watermark="at")
    assert (first.good, first.quarantined) == (1, 1)
    [same] = bring(home, THINGS, [str(file)], watermark="at")
    assert same.already
    file.write_text(
        "id,at,size\n1,2024-01-01,1\n2,2024-01-02,-1\n7,2024-01-02 00:00:00.000001,1\n3,2024-01-03,1\n", encoding="utf-8"
    )
    [more] = bring(home, THINGS, [str(file)], watermark="at")
    assert (more.rows, more.good) == (2, 2)
    assert datetime.fromtimestamp(int(more.reached) / 1e6, UTC) == datetime(2024, 1, 3, tzinfo=UTC)
    assert ids(home) == [1, 3, 7]
    assert len(home.lake.read("quarantine.things")) == 1, "a bad row below the watermark is not looked at again"
    with pytest.raises(UsageError, match="id, at, size can"):
        bring(home, THINGS, [str(file)], watermark="nothing")


def test_a_step_that_died_before_its_record_is_completed_and_not_doubled(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(Exception):
        pass

    def die(*_: object, **__: object) -> None:
        raise Died

    from loopwright.data.ingest.following import by_watermark
    from loopwright.data.ingest.source import open_source

    with monkeypatch.context() as patched:
        patched.setattr(home.ledger, "put", die)
        with pytest.raises(Died):
            ingest(home, THINGS, by_watermark(THINGS, "id", "", open_source(rows(1, 2), "grows")))
    with monkeypatch.context() as patched:
        put = home.ledger.put
        patched.setattr(
            home.ledger, "put", lambda record, **given: die() if isinstance(record, Ingested) else put(record, **given)
        )
        with pytest.raises(Died):
            ingest(home, THINGS, rows(1, 2), name="grows", watermark="id")
    assert ids(home) == [1, 2]
    done = ingest(home, THINGS, rows(1, 2, 3), name="grows", watermark="id")
    assert (done.good, done.reached) == (2, "2"), "the step that died is told; it had reached 2"
    done = ingest(home, THINGS, rows(1, 2, 3), name="grows", watermark="id")
    assert (done.good, done.reached) == (1, "3")
    assert ids(home) == [1, 2, 3]


def test_a_query_is_a_source_and_is_read_on(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE things (id INTEGER, at TEXT, size)")
        database.executemany("INSERT INTO things VALUES (?, ?, ?)", [(i, "2024-01-01 10:00", 1.5) for i in range(25_000)])
        database.execute("INSERT INTO things VALUES (25000, '2024-01-01', 'large')")
    url, query = f"sqlite:///{file}", "SELECT id, at, size FROM things WHERE id > :watermark"
    done = bring_query(home, THINGS, url, query, watermark="id")
    assert (done.good, done.quarantined, done.reached) == (25_000, 1, "25000")
    assert bring_query(home, THINGS, url, query, watermark="id").already
    with sqlite3.connect(file) as database:
        database.execute("INSERT INTO things VALUES (25001, '2024-01-01', NULL)")
    assert bring_query(home, THINGS, url, query, watermark="id").rows == 1
    plain = "SELECT id, at, size FROM things WHERE id < 3 AND id > 0"
    assert bring_query(home, THINGS, url, plain).good == 2
    assert bring_query(home, THINGS, url, plain).already, "the same answer again adds nothing"
    database.close()


@pytest.mark.parametrize(
    ("url", "query", "why"),
    [
        ("sqlite:////nowhere/at/all.db", "SELECT 1", "there is no file"),
        ("sqlite://", "SELEC 1", "syntax error"),
        ("nonsense", "SELECT 1", "not a database URL"),
        ("postgresql://ann:secret@127.0.0.1:1/shop", "SELECT 1", "the database says"),
        ("postgresql://127.0.0.1:1/shop?user=ann&password=secret&connect_timeout=secret", "SELECT 1", r"\*\*\*"),
        ("postgresql://ann:top@secret:x@127.0.0.1:port/shop", "SELECT 1", "cannot be read"),
        ("nonsense://ann:secret@127.0.0.1/shop", "SELECT 1", "not a database URL"),
    ],
)
def test_a_database_that_does_not_answer_is_told_without_the_password(home: Home, url: str, query: str, why: str) -> None:
    with pytest.raises(IngestRefused, match=why) as refused:
        bring_query(home, THINGS, url, query)
    assert "secret" not in str(refused.value)


def test_a_query_with_a_watermark_needs_its_column(home: Home) -> None:
    with pytest.raises(UsageError, match="name its column with --watermark"):
        bring_query(home, THINGS, "sqlite://", "SELECT 1 AS id WHERE 1 > :watermark")


def test_nothing_that_is_kept_or_told_holds_the_url_of_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The password is the name of a file here, so that the query succeeds."""
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("secret.db") as database:
        database.execute("CREATE TABLE things (id INTEGER, at TEXT, size)")
        database.executemany("INSERT INTO things VALUES (?, ?, ?)", [(1, "2024-01-01", 1.5), (2, "2024-01-01", "large")])
    database.close()
    told = tmp_path / "told.jsonl"
    with Home(Settings(home=tmp_path / "home", by="tests", openlineage=str(told)), SimulatedClock(AT)) as opened:
        done = bring_query(opened, THINGS, "sqlite:///secret.db", "SELECT id, at, size FROM things")
        assert (done.good, done.quarantined) == (1, 1)
        with pytest.raises(IngestRefused):
            bring_query(opened, THINGS, "postgresql://ann:secret@127.0.0.1:1/shop", "SELECT 1")
    assert told.stat().st_size > 0
    kept = [told, *(f for f in (tmp_path / "home").rglob("*") if f.is_file())]
    assert [f.name for f in kept if b"secret" in f.read_bytes()] == []
