from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import pytest
from tests.stores.prediction_log.samples import START, outcome, prediction

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import NotFound
from loopwright.base.settings import Settings
from loopwright.stores.home import Home
from loopwright.stores.lake.tables import Lake
from loopwright.stores.outcomes.join import outcomes
from loopwright.stores.prediction_log import retention
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.prediction_log.retention import Retained, retain
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter

DAY = 24 * 3600


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path), SimulatedClock(START)) as opened:
        yield opened


def logged(home: Home, days: range) -> None:
    """One commit a day, of three predictions and an outcome."""
    for day in days:
        with LogWriter(log_folder(home.path, "loop"), "predictions") as writer:
            writer.append([prediction(day * DAY + i) for i in range(3)])
        with LogWriter(log_folder(home.path, "loop"), "outcomes") as writer:
            writer.append([outcome(day * DAY)])
        commit(home, "loop")


def units(home: Home) -> list[str]:
    return sorted(predictions(home, "loop", columns=["_unit"])["_unit"].to_pylist())


def test_nothing_is_done_before_there_is_anything_to_do(home: Home) -> None:
    assert retain(home, "loop", before=START, max_files=1, busy=True) == []
    logged(home, range(2))
    before = home.lake.version("predictions.loop")
    assert retain(home, "loop", before=None, max_files=10, busy=True) == []
    assert retain(home, "loop", before=START, max_files=0, busy=True) == []
    assert home.lake.version("predictions.loop") == before


def test_many_small_files_become_one_with_the_same_rows(home: Home) -> None:
    logged(home, range(6))
    had, version = units(home), home.lake.version("predictions.loop")
    done = retain(home, "loop", before=None, max_files=5, busy=True)
    assert [(d.table, d.fewer, d.deleted) for d in done] == [("predictions.loop", 5, 0), ("outcomes.loop", 5, 0)]
    assert len(home.lake.files("predictions.loop")) == 1
    assert units(home) == had
    assert len(home.lake.read("predictions.loop", version=version)) == 18, "who began with the version before reads on"
    assert [e.record for e in home.ledger.find(Retained, loop="loop", newest=False)] == done
    logged(home, range(6, 7))
    assert len(units(home)) == 21
    assert home.lake.verify("predictions.loop") == verify(home) == []


def test_what_is_older_goes_and_what_is_not_stays(home: Home) -> None:
    logged(home, range(6))
    before = START + timedelta(days=2)
    done = retain(home, "loop", before=before, max_files=0, busy=False)
    # Outcomes are known an hour after: the second day's is younger than the limit.
    assert [(d.table, d.deleted, d.before) for d in done] == [("predictions.loop", 6, before), ("outcomes.loop", 2, before)]
    assert min(predictions(home, "loop")["_at"].to_pylist()) == before
    assert len(units(home)) == 12
    assert outcomes(home, "loop").num_rows == 4
    assert retain(home, "loop", before=before, max_files=0, busy=False) == []
    logged(home, range(6, 7))
    assert len(units(home)) == 15, "and the log goes on"
    assert home.lake.verify("predictions.loop") == verify(home) == []


def test_files_go_a_week_after_and_versions_before_say_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(home, range(6))
    version = home.lake.version("predictions.loop")
    retain(home, "loop", before=None, max_files=5, busy=True)
    folder = Path(home.lake._root) / "predictions.loop"
    assert len(list(folder.glob("*.parquet"))) == 7
    home.clock.advance(timedelta(days=8))  # type: ignore[attr-defined]  # a simulated clock
    # Delta looks at the real time, which has not moved on.
    assert retain(home, "loop", before=None, max_files=5, busy=False) == []
    monkeypatch.setattr(retention, "SAFE", timedelta(0))
    home.clock.advance(timedelta(days=8))  # type: ignore[attr-defined]  # a simulated clock
    logged(home, range(6, 13))
    [done, _] = retain(home, "loop", before=None, max_files=5, busy=True)
    assert done.removed > 6
    assert len(list(folder.glob("*.parquet"))) == 1
    assert len(units(home)) == 39
    assert home.lake.verify("predictions.loop") == []
    with pytest.raises(NotFound, match="upkeep has removed"):
        home.lake.read("predictions.loop", version=version)


def test_a_reader_sees_every_row_once_while_files_are_put_together(home: Home) -> None:
    logged(home, range(3))
    stop, seen = Event(), []

    def read() -> None:
        with Home(home.settings) as other:
            while not stop.is_set():
                seen.append(units(other))

    reader = Thread(target=read)
    reader.start()
    try:
        for day in range(3, 9):
            had = units(home)
            retain(home, "loop", before=None, max_files=1, busy=True)
            assert units(home) == had
            logged(home, range(day, day + 1))
    finally:
        stop.set()
        reader.join()
    assert len(seen) > 3
    assert all(len(rows) == len(set(rows)) and len(rows) % 3 == 0 and len(rows) >= 9 for rows in seen)


def test_a_committer_that_comes_between_is_not_lost(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(home, range(3))
    whole = Lake._table

    def meanwhile(self: Lake, name: str, version: int | None = None) -> object:
        found = whole(self, name, version)
        monkeypatch.setattr(Lake, "_table", whole)
        logged(home, range(3, 4))
        return found

    monkeypatch.setattr(Lake, "_table", meanwhile)
    home.lake.compact("predictions.loop")
    assert len(units(home)) == 12
    assert home.lake.verify("predictions.loop") == []
