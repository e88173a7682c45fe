import multiprocessing
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from loopwright import Column, Home, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import DeclarationInvalid, IngestRefused, NameInvalid, TableNotFound
from loopwright.base.progress import Silent
from loopwright.base.settings import Settings
from loopwright.data.ingest import csv_text, quarantine_writer, source_reader
from loopwright.data.ingest.contract import conform
from loopwright.data.ingest.ingestion import files, ingest, put_contract
from loopwright.data.ingest.source import open_source
from loopwright.data.ingest.source_reader import Reading
from loopwright.records.ingestions import Ingested
from loopwright.stores.contracts import Contract, changes, contract, contracts

THINGS = Table(
    "things",
    {"id": Column("string"), "at": Column("timestamp"), "size": Column("float", minimum=0)},
    key=["id"],
    event_time="at",
)
CSV = "id,at,size\na,2024-01-01T00:00:00Z,1\nb,2024-01-01T00:00:00Z,-2\nc\nd,2024-01-02T00:00:00Z,3\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(datetime(2024, 2, 1, tzinfo=UTC))) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "things.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def test_good_rows_land_bad_rows_wait_in_quarantine_and_the_ledger_knows(home: Home, file: Path) -> None:
    done = ingest(home, THINGS, file)
    assert (done.rows, done.good, done.quarantined, done.already) == (4, 2, 2, False)
    assert done.reasons == {"size: below 0": 1, "row: cannot be read": 1}
    assert sorted(home.lake.read("things")["id"].to_pylist()) == ["a", "d"]
    bad = sorted(home.lake.read("quarantine.things").to_pylist(), key=lambda r: r["_row"])
    assert [(r["_source"], r["_digest"], r["_row"]) for r in bad] == [
        ("things.csv", done.digest, 2),
        ("things.csv", done.digest, 3),
    ]
    assert bad[0]["_reason"] == "size: '-2' is below 0"
    assert bad[0]["_raw"] == '{"id":"b","at":"2024-01-01T00:00:00Z","size":"-2"}'
    [entry] = home.ledger.find(Ingested, key="things")
    assert entry.record == done
    assert [link.source for link in home.ledger.links(entry.id)] == [f"file:{done.digest}:things.csv"]
    assert [link.target for link in home.ledger.links(entry.id, direction="down")] == [f"table:things@{done.version}"]


def test_rows_that_repeat_key_and_moment_of_earlier_ones_are_counted(home: Home, tmp_path: Path) -> None:
    found: list[Ingested] = []
    for rows in (
        "a,2024-01-01T00:00:00Z,1\nb,2024-01-02T00:00:00Z,2\n",
        "a,2024-01-01T00:00:00Z,0\na,2024-01-02T00:00:00Z,0\n",
        "c,2024-01-01T00:00:00Z,1\n",
        "x,,\n",
    ):
        path = tmp_path / f"{len(found)}.csv"
        path.write_text("id,at,size\n" + rows, encoding="utf-8")
        found.append(ingest(home, THINGS, path))
    assert [done.repeated for done in found] == [0, 1, 0, 0]
    assert ingest(home, THINGS, tmp_path / "1.csv").repeated == 1


def test_the_same_content_again_adds_nothing_under_any_name(home: Home, file: Path, tmp_path: Path) -> None:
    first = ingest(home, THINGS, file)
    copy = tmp_path / "copy.csv"
    copy.write_bytes(file.read_bytes())
    again = ingest(home, THINGS, copy)
    assert again == msgspec.structs.replace(first, already=True)
    assert home.lake.version("things") == first.version
    assert (len(home.lake.read("things")), len(home.lake.read("quarantine.things"))) == (2, 2)
    assert len(home.ledger.find(Ingested)) == 1


def test_an_ingestion_that_died_before_its_record_is_completed_by_the_next(home: Home, file: Path) -> None:
    opened = open_source(file)
    batch = opened.whole()
    good = conform(THINGS, batch.frame, rows=batch.rows).good
    home.lake.append_once("things", good, application=f"ingest:things:{opened.digest}", sequence=1)
    done = ingest(home, THINGS, file)
    assert (done.already, done.good, done.quarantined) == (False, 2, 2)
    assert len(home.lake.read("things")) == 2
    assert len(home.ledger.find(Ingested)) == 1
    assert ingest(home, THINGS, file).already


def race(settings: Settings, file: Path) -> None:
    with Home(settings, SimulatedClock(datetime(2024, 2, 1, tzinfo=UTC))) as home:
        ingest(home, THINGS, file)


def test_many_at_once_with_the_same_file_add_it_once(home: Home, file: Path) -> None:
    put_contract(home, THINGS)
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=race, args=(home.settings, file)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert len(home.lake.read("things")) == 2
    assert len(home.lake.read("quarantine.things")) == 2
    assert len({e.record.digest for e in home.ledger.find(Ingested)}) == 1


def test_what_is_refused_leaves_nothing_behind(home: Home, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("id,at\na,2024-01-01T00:00:00Z\n", encoding="utf-8")
    with pytest.raises(IngestRefused, match="'size' is missing"):
        ingest(home, THINGS, wrong)
    assert home.lake.names() == []
    assert home.ledger.find(Ingested) == []


def test_a_source_of_only_bad_rows_makes_an_empty_table(home: Home) -> None:
    frame = pa.table({"id": ["a"], "at": ["never"], "size": ["1"]})
    done = ingest(home, THINGS, frame, name="all bad")
    assert (done.good, done.quarantined, done.source) == (0, 1, "all bad")
    assert len(home.lake.read("things")) == 0
    assert ingest(home, THINGS, frame).already


def test_files_are_known_by_version_of_the_table(home: Home, file: Path, tmp_path: Path) -> None:
    first = ingest(home, THINGS, file)
    other = tmp_path / "more" / "things.csv"
    other.parent.mkdir()
    other.write_text("id,at,size\nz,2024-01-05T00:00:00Z,1\n", encoding="utf-8")
    second = ingest(home, THINGS, other)
    assert files(home, "things", first.version) == {"things.csv": first.digest}
    assert files(home, "things", second.version) == {
        "things.csv": first.digest,
        f"things.csv#{second.digest[:8]}": second.digest,
    }


def test_a_contract_is_kept_once_and_its_rules_may_change(home: Home, file: Path) -> None:
    entry = put_contract(home, THINGS)
    assert put_contract(home, THINGS).id == entry.id
    assert contract(home, "things") == THINGS
    ingest(home, THINGS, file)
    wider = msgspec.structs.replace(THINGS, columns={**THINGS.columns, "size": Column("float", minimum=-10, nullable=True)})
    put_contract(home, wider)
    assert contract(home, "things") == wider
    assert [e.record.table for e in home.ledger.find(Contract, newest=False)] == [THINGS, wider]
    assert contracts(home) == ["things"]


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"size": Column("string")}, "columns.size"),
        ({"colour": Column("string")}, "columns.colour"),
    ],
)
def test_other_columns_or_types_are_refused_once_there_are_rows(
    home: Home, file: Path, columns: dict[str, Column], field: str
) -> None:
    changed = msgspec.structs.replace(THINGS, columns={**THINGS.columns, **columns})
    put_contract(home, changed)
    put_contract(home, THINGS)
    ingest(home, THINGS, file)
    with pytest.raises(DeclarationInvalid) as refused:
        put_contract(home, changed)
    assert [p.field for p in refused.value.problems] == [field]


def test_a_contract_may_gain_columns_that_are_null_in_the_rows_there_are(home: Home, file: Path, tmp_path: Path) -> None:
    ingest(home, THINGS, file)
    grown = msgspec.structs.replace(THINGS, columns={**THINGS.columns, "colour": Column("string", nullable=True)})
    put_contract(home, grown)
    assert home.lake.read("things", columns=["id", "colour"]).sort_by("id").to_pylist() == [
        {"id": "a", "colour": None},
        {"id": "d", "colour": None},
    ]
    again = ingest(home, grown, file)
    assert (again.already, again.declared_since) == (True, ["colour"])
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("id,at,size\ne,2024-01-05T00:00:00Z,1\n", encoding="utf-8")
    new.write_text("id,at,size,colour\nf,2024-01-05T00:00:00Z,1,red\n", encoding="utf-8")
    assert ingest(home, grown, old).absent == ["colour"], "a source of before the column came"
    assert ingest(home, grown, new).absent == []
    colours = {r["id"]: r["colour"] for r in home.lake.read("things").to_pylist()}
    assert colours == {"a": None, "d": None, "e": None, "f": "red"}
    before, after = (e.record.table for e in home.ledger.find(Contract, newest=False))
    assert changes(before, after) == ["colour: absent -> string"]
    with pytest.raises(IngestRefused, match="'colour' is not in the contract"):
        conform(THINGS, open_source(new).whole().frame)


def test_every_other_change_of_columns_is_refused_with_what_was_and_what_is(home: Home, file: Path, tmp_path: Path) -> None:
    loose = {**THINGS.columns, "note": Column("string", nullable=True), "v": Column("array", shape=[2], nullable=True)}
    kept = msgspec.structs.replace(THINGS, columns=loose)
    put_contract(home, kept)
    path = tmp_path / "t.csv"
    path.write_text('id,at,size,note,v\na,2024-01-01T00:00:00Z,1,,"[1,2]"\n', encoding="utf-8")
    assert ingest(home, kept, path).good == 1
    assert home.lake.read("things")["v"].to_pylist() == [[1.0, 2.0]]
    columns = loose | {
        "note": Column("string"),
        "v": Column("array", shape=[1, 2], nullable=True),
        "at": Column("timestamp", zone="UTC"),
    }
    with pytest.raises(DeclarationInvalid) as refused:
        put_contract(home, msgspec.structs.replace(THINGS, columns=columns | {"new": Column("float")}))
    assert {p.field: p.reason.split(";")[0] for p in refused.value.problems} == {
        "columns.note": "nullable -> never null",
        "columns.v": "shape [2] -> [1, 2]",
        "columns.new": "absent -> float",
    }


ROWS = "id,at{more}\n{name},2024-01-07T00:00:00Z{value}\n"


def written(path: Path, name: str, size: str | None) -> Path:
    """A file with one thing, with or without its size."""
    more, value = ("", "") if size is None else (",size", f",{size}")
    path.write_text(ROWS.format(more=more, name=name, value=value), encoding="utf-8")
    return path


def test_a_column_is_retired_by_taking_it_out_of_the_contract(home: Home, file: Path, tmp_path: Path) -> None:
    ingest(home, THINGS, file)
    less = msgspec.structs.replace(THINGS, columns={n: c for n, c in THINGS.columns.items() if n != "size"})
    assert ingest(home, less, written(tmp_path / "new.csv", "e", None)).good == 1
    assert {r["id"]: r["size"] for r in home.lake.read("things").to_pylist()} == {"a": 1.0, "d": 3.0, "e": None}
    with pytest.raises(IngestRefused, match="'size' is not in the contract"):
        ingest(home, less, written(tmp_path / "old.csv", "f", "4"))
    with pytest.raises(DeclarationInvalid, match="it is null in 1 rows"):
        put_contract(home, THINGS)
    with pytest.raises(DeclarationInvalid, match="a type stays"):
        put_contract(home, msgspec.structs.replace(THINGS, columns={**THINGS.columns, "size": Column("string", nullable=True)}))
    back = msgspec.structs.replace(THINGS, columns={**THINGS.columns, "size": Column("float", nullable=True)})
    assert ingest(home, back, written(tmp_path / "back.csv", "g", "5")).good == 1
    assert {r["id"]: r["size"] for r in home.lake.read("things").to_pylist()} == {"a": 1.0, "d": 3.0, "e": None, "g": 5.0}


def test_a_retired_column_is_taken_where_it_comes_and_missed_where_it_does_not(home: Home, file: Path, tmp_path: Path) -> None:
    ingest(home, THINGS, file)
    retired = Column("float", minimum=0, nullable=True, retired=True)
    less = msgspec.structs.replace(THINGS, columns={**THINGS.columns, "size": retired})
    without = ingest(home, less, written(tmp_path / "new.csv", "e", None))
    assert (without.good, without.absent) == (1, ["size"])
    assert ingest(home, less, written(tmp_path / "old.csv", "f", "4")).good == 1
    assert ingest(home, less, written(tmp_path / "bad.csv", "g", "-4")).quarantined == 1
    assert {r["id"]: r["size"] for r in home.lake.read("things").to_pylist()} == {"a": 1.0, "d": 3.0, "e": None, "f": 4.0}
    with pytest.raises(DeclarationInvalid, match="nullable=True"):
        Column("float", retired=True)


def test_a_source_in_many_parts_is_one_ingestion(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_text, "BATCH_BYTES", 4096)
    monkeypatch.setattr(source_reader, "BATCH_BYTES", 4096)
    monkeypatch.setattr(quarantine_writer, "_IN_MEMORY", 2000)
    lines = [f"k{i % 900},2024-01-01T00:00:00Z,{-1 if i % 100 == 0 else 1}" for i in range(1000)]
    path = tmp_path / "large.csv"
    path.write_text("id,at,size\n" + "\n".join(lines), encoding="utf-8")
    told: list[float] = []

    class Listener(Silent):
        def advance(self, what: str, done: float, total: float) -> None:
            told.append(done / total)

    done = ingest(home, THINGS, path, progress=Listener())
    repeated = {f"k{i - 900}" for i in range(901, 1000)}
    assert (done.rows, done.good, done.reasons) == (
        1000,
        891,
        {"size: below 0": 10, "key: the same key and times as an earlier row": 99},
    )
    assert len(repeated) == 99
    assert (home.lake.count("things"), home.lake.count("quarantine.things"), home.lake.version("things")) == (891, 109, 1)
    assert len(told) > 3
    assert told == sorted(told)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("id,at,size\n" + "\n".join(lines) + "\nk,2024-01-01T00:00:00Z,\xff", encoding="latin-1")
    with pytest.raises(IngestRefused, match="UTF-8"):
        ingest(home, THINGS, open_source(wrong, reading=Reading(encoding="utf-8")))
    assert home.lake.count("things") == 891, "what fails at its end leaves nothing behind"
    assert not list(home.path.glob("tmp*"))


def test_a_declaration_and_what_the_ledger_kept_of_it_are_one_contract(home: Home, file: Path) -> None:
    put_contract(home, THINGS)
    ingest(home, contract(home, "things"), file)
    put_contract(home, THINGS)
    assert len(home.ledger.find(Contract)) == 1


def test_rows_of_one_file_have_one_moment_in_every_table(home: Home, file: Path) -> None:
    columns = {"id": Column("string"), "at": Column("timestamp", filled="ingested_at")}
    tables = [Table(name, columns, key=["id"], event_time="at", ignore=["*"]) for name in ("asked", "told")]
    ingest(home, tables[0], file)
    home.clock.advance(timedelta(hours=1))  # type: ignore[attr-defined]  # a simulated clock
    ingest(home, tables[1], file)
    assert {r["at"] for t in tables for r in home.lake.read(t.name).to_pylist()} == {datetime(2024, 2, 1, tzinfo=UTC)}


def test_names(home: Home) -> None:
    put_contract(home, THINGS)
    with pytest.raises(TableNotFound, match="things"):
        contract(home, "thing")
    with pytest.raises(NameInvalid):
        put_contract(home, msgspec.structs.replace(THINGS, name="t" * 60))
