"""What a power cut leaves, at every moment: with durability `disk` every answered prediction, once, and nothing that is not one."""

import random
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.power import ForgetfulDisk
from tests.stores.prediction_log.samples import prediction

from loopwright.base import failpoints
from loopwright.base.errors import Unavailable
from loopwright.base.settings import Settings
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.prediction_log.segment import log_folder, read_segment
from loopwright.stores.prediction_log.writer import LogWriter

Check = Callable[[Home, set[str]], None]


class Cuts:
    """Takes the power away at each moment that the disk tells of, some states each, and checks what a restart finds."""

    def __init__(self, scratch: Path, check: Check, seed: int) -> None:
        self.scratch, self.check, self.dice = scratch, check, random.Random(seed)
        self.answered: set[str] = set()
        self.count = 0
        self.failed: list[str] = []
        scratch.mkdir()

    def __call__(self, disk: ForgetfulDisk) -> None:
        answered = set(self.answered)
        for lost in (1.0, self.dice.choice((0.0, 0.2)), 0.5):
            self.count += 1
            disk.left(self.scratch / str(self.count), self.dice, lost=lost)
            try:  # also in the threads of the log
                with Home(Settings(home=self.scratch / str(self.count))) as home:
                    self.check(home, answered)
            except Exception:  # noqa: BLE001  # told at the end, with the state it happened in
                self.failed.append(f"{self.count}, {lost:.0%} lost: {traceback.format_exc()}")


@pytest.fixture
def written() -> dict[str, Prediction]:
    return {}


def serve(home: Home, cuts: Cuts, disk: ForgetfulDisk, written: dict[str, Prediction], *, durable: bool) -> None:
    """What a worker and upkeep do: append, sync, answer; seal; commit; a second worker after the first."""
    for worker in range(2):
        with LogWriter(log_folder(home.path, "loop"), "predictions", segment_bytes=1300) as writer:
            for i in range(9):
                records = [prediction(100 * worker + 10 * i + j) for j in range(i % 3 + 1)]
                written |= {record.id: record for record in records}
                lost = writer.lost
                writer.append(records)
                disk.cut()
                if durable:
                    writer.sync(writer.mark(lost))
                cuts.answered |= {record.id for record in records}
                if i in (3, 7):
                    commit(home, "loop")
    commit(home, "loop")
    disk.cut()


def recovered(home: Home, written: dict[str, Prediction], *, commits: bool) -> set[str]:
    """The ids that are there after a restart; every one of them is a record as it was written, in Delta once."""
    before = predictions(home, "loop", columns=["_id", "_unit"]).to_pydict()
    found = dict(zip(before["_id"], before["_unit"], strict=True))
    assert found == {id: written[id].unit for id in found}
    if commits:
        commit(home, "loop", final=True)
        after = home.lake.read("predictions.loop", columns=["_id"])["_id"].to_pylist() if found else []
        assert sorted(after) == sorted(found)
        folder = log_folder(home.path, "loop") / "predictions"
        assert [p.name for p in folder.glob("*-*.*") if p.is_file()] == []
        assert not found or home.lake.verify("predictions.loop") == []
    return set(found)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_durable_what_was_answered_is_there_after_a_power_cut_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: dict[str, Prediction], seed: int
) -> None:
    lost = 0

    def check(home: Home, answered: set[str]) -> None:
        nonlocal lost
        there = recovered(home, written, commits=cuts.count % 7 == 0)
        assert answered <= there
        lost += len(written.keys() - there)

    cuts = Cuts(tmp_path / "cuts", check, seed)
    with Home(Settings(home=tmp_path / "home")) as home:
        home.path.mkdir()
        with ForgetfulDisk(home.path, cuts, monkeypatch) as disk:
            serve(home, cuts, disk, written, durable=True)
    assert cuts.failed == []
    assert cuts.count > 200
    assert lost > 50, "the disk forgot nothing, so nothing was shown"


def test_of_a_process_a_power_cut_may_lose_the_last_moments_and_harms_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: dict[str, Prediction]
) -> None:
    lost = 0

    def check(home: Home, answered: set[str]) -> None:
        nonlocal lost
        sealed = {
            record.id
            for path in (log_folder(home.path, "loop") / "predictions").glob("*.sealed")
            for record in read_segment(path, "predictions").records
        }
        there = recovered(home, written, commits=cuts.count % 7 == 0)
        assert sealed <= there
        lost += len(answered - there)

    cuts = Cuts(tmp_path / "cuts", check, 7)
    with Home(Settings(home=tmp_path / "home")) as home:
        home.path.mkdir()
        with ForgetfulDisk(home.path, cuts, monkeypatch) as disk:
            serve(home, cuts, disk, written, durable=False)
    assert cuts.failed == []
    assert lost > 50


def test_segments_of_a_commit_that_was_never_sealed_go_only_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: dict[str, Prediction]
) -> None:
    def check(home: Home, answered: set[str]) -> None:
        assert answered <= recovered(home, written, commits=True)

    cuts = Cuts(tmp_path / "cuts", check, 3)
    with Home(Settings(home=tmp_path / "home")) as home:
        home.path.mkdir()
        with ForgetfulDisk(home.path, cuts, monkeypatch) as disk:
            with LogWriter(log_folder(home.path, "loop"), "predictions") as writer:
                records = [prediction(i) for i in range(5)]
                written |= {record.id: record for record in records}
                writer.append(records)
                writer.sync(writer.mark())
                cuts.answered |= written.keys()
            failpoints.arm("lake.committed=EIO@1")
            with pytest.raises(Unavailable):
                commit(home, "loop")
            failpoints.arm("")
            assert len(home.lake.read("predictions.loop")) == 5
            commit(home, "loop")
            for _ in range(15):
                disk.cut()
    assert cuts.failed == []
