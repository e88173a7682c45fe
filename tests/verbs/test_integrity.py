"""Each store removed, damaged or older in turn: `verify` and `doctor` never say well of it, and the others are looked at all the same."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from tests.traffic import LANDINGS, LOOP, OUTCOME, START, WEEK, World

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import Damaged, LedgerUnavailable, PredictionNotFound
from loopwright.base.ids import new_id
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.deploy.serving import release_files
from loopwright.monitor import alerts
from loopwright.monitor.windows import watch
from loopwright.records.declarations import Monitor, Retrain
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.read import find
from loopwright.verbs.doctor import doctor
from loopwright.verbs.status import status
from loopwright.verbs.trace import trace
from loopwright.verbs.verify import Verified, verify

NOW = START + 2 * WEEK
Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a release, predictions, a window and an ingested table; `older.db` is its ledger before the second release."""
    folder = tmp_path_factory.mktemp("whole")
    world = World(folder / "home")
    home = world.home
    landings = {"flight": ["f1"], "landed_at": [START], "arr_delay": [3.0]}
    ingest(home, LANDINGS, pa.table(landings))
    world.week(0, 200)
    watch(home, loop_name=LOOP, monitor=Monitor(), retrain=Retrain(), outcome=OUTCOME, until=world.clock.now())
    with closing(sqlite3.connect(folder / "home" / "ledger.db")) as now, closing(sqlite3.connect(folder / "older.db")) as older:
        now.backup(older)  # a copy of the file alone would lack what waits in its log
    world.release(world.package)
    release_files.copy(home, LOOP)
    world.week(1, 200)
    home.close()
    return folder


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "home", tmp_path / "home")
    shutil.copy(whole / "older.db", tmp_path)
    return tmp_path / "home"


def opened(folder: Path) -> Home:
    return Home(Settings(home=folder, by="tests"), SimulatedClock(NOW))


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


PREDICTIONS = f"lake/predictions.{LOOP}"
COMMITS = f"{PREDICTIONS}/_delta_log/*.json"
BREAKS: dict[str, tuple[Break, str, str | None]] = {
    "ledger removed": (lambda home: (home / "ledger.db").unlink(), "ledger", "ledger"),
    "ledger damaged": (lambda home: (home / "ledger.db").write_bytes(bytes(8192)), "ledger", "ledger"),
    "ledger older": (lambda home: shutil.copy(home.parent / "older.db", home / "ledger.db"), "ledger", "ledger"),
    "predictions removed": (lambda home: shutil.rmtree(home / PREDICTIONS), f"table predictions.{LOOP}", "lake"),
    "newest commit removed": (lambda home: newest(home, COMMITS).unlink(), f"table predictions.{LOOP}", "lake"),
    "newest commit cut": (lambda home: cut(newest(home, COMMITS)), f"table predictions.{LOOP}", "lake"),
    "data file removed": (lambda home: newest(home, f"{PREDICTIONS}/*.parquet").unlink(), f"table predictions.{LOOP}", None),
    "data file flipped": (lambda home: flip(newest(home, f"{PREDICTIONS}/*.parquet")), f"table predictions.{LOOP}", None),
    "ingested table removed": (lambda home: shutil.rmtree(home / "lake/landings"), "table landings", "lake"),
    "whole lake removed": (lambda home: shutil.rmtree(home / "lake"), "table landings", "lake"),
    "package removed": (lambda home: shutil.rmtree(newest(home, "packages/*")), "packages/", "packages"),
    "all packages removed": (lambda home: shutil.rmtree(home / "packages"), "packages/", "packages"),
    "package file removed": (lambda home: newest(home, "packages/*/model.onnx").unlink(), "packages/", "packages"),
    "package file flipped": (lambda home: flip(newest(home, "packages/*/model.onnx")), "packages/", "packages"),
    "served copy cut": (lambda home: cut(newest(home, "served/*.json")), f"served/{LOOP}.json", "lake"),
}


def test_a_whole_home_has_no_problems(home: Path) -> None:
    with opened(home) as opening:
        assert verify(opening).problems == []
        items = {item.name: item.ok for item in doctor(opening).items}
        assert {items[name] for name in ("ledger", "lake", "packages", "upkeep", "clock")} == {True}


@pytest.mark.parametrize("what", BREAKS)
def test_neither_verify_nor_doctor_says_well_of_a_store_that_is_broken(home: Path, what: str) -> None:
    break_it, where, item = BREAKS[what]
    break_it(home)
    with opened(home) as opening:
        found = verify(opening)
        assert not found.ok
        assert any(problem.where.startswith(where) for problem in found.problems), found.problems
    with opened(home) as opening:
        said = doctor(opening)
    if item is not None:
        assert item in {each.name for each in said.items if not each.ok}, said.items
        assert not said.ok
    assert (home / "ledger.db").exists() == (what != "ledger removed"), "who only looks begins no new ledger"


def test_verify_goes_on_after_a_damaged_commit_and_finds_what_else_is_damaged(home: Path) -> None:
    cut(newest(home, f"lake/outcomes.{LOOP}/_delta_log/*.json"))
    flip(newest(home, f"{PREDICTIONS}/*.parquet"))
    flip(newest(home, "packages/*/model.onnx"))
    (home / "log" / LOOP / "predictions" / "nonsense").touch()
    with opened(home) as opening:
        found: Verified = verify(opening)
    said = {problem.where.split()[0].split("/")[0] for problem in found.problems}
    assert said >= {"table", "packages", ""}, found.problems
    assert {f"table predictions.{LOOP}", f"table outcomes.{LOOP}"} <= {" ".join(p.where.split()[:2]) for p in found.problems}
    assert any("not a file of the log" in problem.what for problem in found.problems)


def test_a_lost_newest_commit_is_damage_and_not_an_older_version(home: Path) -> None:
    newest(home, COMMITS).unlink()
    with opened(home) as opening, pytest.raises(Damaged, match="is missing from its log"):
        opening.lake.count(f"predictions.{LOOP}")


@pytest.mark.parametrize("verb", [status, verify, doctor])
@pytest.mark.parametrize("note", [True, False], ids=["noted", "home of an earlier version"])
def test_who_only_looks_begins_no_new_ledger_in_a_home_that_had_one(
    home: Path, verb: Callable[[Home], object], note: bool
) -> None:
    for path in home.glob("ledger.db*"):
        path.unlink()
    if not note:
        (home / "ledger.json").unlink()
    with opened(home) as opening:
        if verb is status:
            with pytest.raises(LedgerUnavailable, match="restore it from a backup"):
                verb(opening)
        else:
            assert not verb(opening).ok  # type: ignore[attr-defined]  # both have it
    assert not (home / "ledger.db").exists()


@pytest.mark.parametrize("left", ["ledger.json", "packages", "served"])
def test_an_empty_ledger_is_not_begun_anew_where_something_tells_of_another(home: Path, left: str) -> None:
    for path in home.glob("ledger.db*"):
        path.unlink()
    (home / "ledger.db").touch()  # a file cut off at its beginning
    for name in {"packages", "served"} - {left}:
        shutil.rmtree(home / name)
    if left != "ledger.json":
        (home / "ledger.json").unlink()
    with opened(home) as opening, pytest.raises(LedgerUnavailable, match=r"is empty.*another home"):
        opening.ledger.count()


def test_a_home_with_nothing_but_a_ledger_file_begins_one(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()  # made by a process that was killed before it made the tables
    with opened(tmp_path) as opening:
        assert opening.ledger.count() == 0


def test_an_older_ledger_in_its_place_makes_no_server_go_back(home: Path) -> None:
    shutil.copy(home.parent / "older.db", home / "ledger.db")
    copy = home / "served" / f"{LOOP}.json"
    before = copy.read_bytes()
    with opened(home) as opening:
        assert release_files.follow(opening) == []
        assert copy.read_bytes() == before
        assert "restore the newer one" in opening.ledger.seen.behind()
        mark = (home / "ledger.json").read_bytes()
        for number in range(50):  # it grows beyond what was seen
            alerts.decide(opening, LOOP, f"key-{number}", severity="info", title="", detail="")
        assert (home / "ledger.json").read_bytes() == mark, "what was seen is not forgotten"


def test_a_trace_is_found_though_the_log_of_another_loop_is_damaged(home: Path) -> None:
    with opened(home) as opening:
        opening.lake.write("predictions.a-first", pa.table({"_id": ["x"]}))
        cut(newest(home, "lake/predictions.a-first/_delta_log/*.json"))
        id = opening.lake.read(f"predictions.{LOOP}", columns=["_id"])["_id"][0].as_py()
        found = find(opening, id)
        assert found is not None
        assert found[0] == LOOP
        with pytest.raises((Damaged, PredictionNotFound)):
            trace(opening, new_id(START))


def test_a_ledger_file_replaced_under_an_open_one_is_opened_anew(home: Path) -> None:
    with opened(home) as opening, opened(home) as other:
        count = opening.ledger.count()
        shutil.copy(home / "ledger.db", home / "copy.db")
        (home / "copy.db").rename(home / "ledger.db")
        alerts.decide(opening, LOOP, "key", severity="info", title="", detail="")
        with opened(home) as third:
            assert (other.ledger.count(), third.ledger.count()) == (count + 1, count + 1)
        (home / "ledger.db").unlink()
        with pytest.raises(LedgerUnavailable, match="is gone"):
            alerts.decide(opening, LOOP, "key", severity="info", title="", detail="")
        assert not (home / "ledger.db").exists()


def test_a_ledger_whose_folder_cannot_be_looked_at_does_not_answer(home: Path) -> None:
    with opened(home) as opening:
        opening.ledger.count()
        home.rename(home.parent / "moved")
        home.write_text("a file")
        with pytest.raises(LedgerUnavailable, match="Not a directory"):
            opening.ledger.count()
