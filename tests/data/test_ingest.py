import multiprocessing
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from loopwright import Column, Home, Table
from loopwright.data.contract import conform
from loopwright.data.ingest import Contract, Ingested, contract, contracts, files, ingest, put_contract
from loopwright.data.source import open_source
from loopwright.records.clock import SimulatedClock
from loopwright.records.errors import DeclarationInvalid, IngestRefused, NameInvalid, TableNotFound
from loopwright.records.settings import Settings

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
    assert done.reasons == {"size: below 0": 1, "row: cut wrongly into fields": 1}
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


def test_names(home: Home) -> None:
    put_contract(home, THINGS)
    with pytest.raises(TableNotFound, match="things"):
        contract(home, "thing")
    with pytest.raises(NameInvalid):
        put_contract(home, msgspec.structs.replace(THINGS, name="t" * 60))
