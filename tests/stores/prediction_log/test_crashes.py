"""Kill at random, and fail the n-th system call: what was answered is in the log, once. Every point: `journeys/test_points`."""

import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores.prediction_log.samples import prediction
from tests.waiting import PATIENCE_SECONDS, until

from loopwright.base import failpoints
from loopwright.base.errors import LogUnavailable
from loopwright.base.settings import Settings
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    failpoints.arm("")
    with Home(Settings(home=tmp_path)) as opened:
        yield opened
    failpoints.arm("")


def start(home: Home, mode: str, *args: str, points: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.stores.prediction_log.child", mode, str(home.path), *args]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, failpoints.VARIABLE: points}, stdout=subprocess.PIPE, text=True
    )


def finished(child: "subprocess.Popen[str]") -> list[str]:
    """The ids the child answered: whole lines only, as a client counts whole answers only."""
    out, _ = child.communicate(timeout=PATIENCE_SECONDS)
    return [line.strip() for line in out.splitlines(keepends=True) if line.endswith("\n")]


def logged(home: Home, *, uncommitted: bool = True) -> list[str]:
    # A crash may leave a row in Delta and in a segment: `predictions` shows it once; Delta alone must never hold it twice.
    return predictions(home, "loop", columns=["_id"], uncommitted=uncommitted)["_id"].to_pylist()  # type: ignore[no-any-return]


def in_delta(home: Home) -> list[str]:
    return (
        home.lake.read("predictions.loop", columns=["_id"])["_id"].to_pylist() if home.lake.exists("predictions.loop") else []
    )


def check(home: Home, answered: list[str]) -> None:
    """Answered ⊆ recovered, before and after a commit; Delta has each row once; nothing is damaged; nothing is left over."""
    assert verify(home) == []
    before = logged(home)
    assert set(answered) <= set(before)
    committed = commit(home, "loop", final=True)
    assert committed.problems == []
    after = in_delta(home)
    assert len(after) == len(set(after))
    assert set(after) == set(before)
    assert verify(home) == []
    assert [p.name for p in (home.path / "log" / "loop" / "predictions").glob("*") if p.name != "quarantine"] == []


def test_kill_at_random_moments(home: Home) -> None:
    dice = random.Random(8)
    answered: list[str] = []
    for turn in range(5):
        children = [start(home, "append", "100000") for _ in range(2)]
        committer = start(home, "commit") if turn in (1, 3) else None
        for child in children:
            until(lambda child=child: select.select([child.stdout], [], [], 0)[0])  # it has begun to answer
            time.sleep(dice.random() * 0.2)
            child.kill()
        if committer is not None:
            time.sleep(dice.random())
            committer.kill()
            committer.communicate()
        for child in children:
            answered += finished(child)
    assert len(answered) > 100
    check(home, answered)


def test_two_committers_at_once_commit_each_row_once(home: Home) -> None:
    answered = finished(start(home, "append", "60"))
    for child in [start(home, "commit"), start(home, "commit")]:
        finished(child)
        assert child.returncode == 0
    assert sorted(in_delta(home)) == sorted(answered)
    check(home, answered)


def test_a_commit_beside_a_live_writer_takes_what_is_sealed_and_no_more(home: Home) -> None:
    with LogWriter(log_folder(home.path, "loop"), "predictions", segment_bytes=1000) as writer:
        ids = []
        for i in range(30):
            record = prediction(i)
            ids.append(record.id)
            writer.append([record])
            if i % 7 == 0:
                assert commit(home, "loop").problems == []
                assert verify(home) == []
                assert sorted(logged(home)) == sorted(ids)
        assert len(in_delta(home)) < 30
        assert "still being written" in commit(home, "loop", final=True).problems[0].what
    check(home, ids)


def test_fail_the_nth_system_call_for_every_n(home: Home) -> None:
    folder = log_folder(home.path, "loop")
    answered: list[str] = []
    for n in range(1, 200):
        failpoints.arm(f"log.*=EIO@{n}")
        writer = LogWriter(folder, "predictions", segment_bytes=700)
        for i in range(4):
            records = [prediction(i), prediction(i)]
            lost = writer.lost
            try:
                writer.append(records)
                writer.sync(writer.mark(lost))
            except LogUnavailable:
                continue
            answered += [record.id for record in records]
        writer.close()
        try:
            commit(home, "loop")
        except LogUnavailable:
            assert n > 10
        reached = failpoints.hits("log.*") >= n
        failpoints.arm("")
        if n % 10 == 0 or not reached:
            check(home, answered)
        if not reached:
            break
    assert not reached
    assert n > 20
