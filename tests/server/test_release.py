"""Killed, or failed, at every point of a release: one declared state, in the ledger and in what servers follow; workers converge."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.deploy.loops import LOOP, flight, opened, package
from tests.server.releasing import STEPS
from tests.server.running import running
from tests.waiting import until

from loopwright.base import failpoints
from loopwright.base.clock import RealClock
from loopwright.deploy import blocklist, releases
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.decode import Decoder
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.heartbeat import workers
from loopwright.deploy.serving.registry import Registry
from loopwright.records.releases import ReleaseState
from loopwright.server.processes.crashes import record_bad, withdraw_bad
from loopwright.stores.home import Home

ROOT = Path(__file__).parents[2]

POINTS = {
    "release.planning": "gone_back",
    "release.intent": "released",
    "release.recorded": "released",
    "release.copied": "released",
    "release.followed": "followed",
    "release.loaded": "switched",
    "release.switched": "switched",
    "release.local": "back",
    "release.caught_up": "back",
    "bad.marked": "condemned",
    "bad.rolled_back": "condemned",
}
TWICE = {"release.loaded", "release.switched"}
"""Passed once for the package before."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    failpoints.arm("")
    with opened(tmp_path, RealClock()) as home:
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        yield home
    failpoints.arm("")


def test_every_point_of_a_release_is_here() -> None:
    listed = {name for name, _ in failpoints.POINTS if name.startswith(("release.", "bad."))}
    of_plans = {"release.judged", "release.blocked"}  # tests/deploy/test_controller.py dies there
    assert listed == set(POINTS) | of_plans


def die(home: Home, point: str, digest: str) -> None:
    environment = {**os.environ, failpoints.VARIABLE: f"{point}=kill@{2 if point in TWICE else 1}"}
    command = [sys.executable, "-m", "tests.server.releasing", POINTS[point], str(home.path), digest]
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == -9, "the point was never reached"


def fail(home: Home, point: str, digest: str, error: str) -> None:
    failpoints.arm(f"{point}={error}@{2 if point in TWICE else 1}")
    with suppress(OSError):
        STEPS[POINTS[point]](home, digest)
    assert failpoints.hits(point), "the point was never reached"
    failpoints.arm("")


def converged(home: Home, second: str, point: str) -> None:
    """What a server does that starts now leads to one state, known everywhere, and a worker serves it."""
    release_files.follow(home)
    withdraw_bad(home)
    record_bad(home)
    release_files.follow(home)
    history = [e.record for e in releases.history(home, LOOP)]
    assert [s.generation for s in history] == list(range(1, len(history) + 1))
    assert home.ledger.verify() == []
    copy = release_files.read(release_files.path_of(home, LOOP))
    assert copy is not None
    assert (copy.state, copy.unrecorded) == (history[-1], False)
    assert actions(history) == {
        "release.intent": ["release"],
        "release.local": ["release", "release", "rollback"],
        "release.caught_up": ["release", "release", "rollback"],
        "bad.marked": ["release", "release", "rollback"],
        "bad.rolled_back": ["release", "release", "rollback"],
    }.get(point, ["release", "release"])
    assert all(mark.withdrawn and mark.settled for mark in blocklist.marks(home))
    engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock))
    engine.registry.refresh()
    row, _ = Decoder(engine.registry.service(LOOP).predictor.package.manifest.request)(body())
    found = engine.answer(LOOP, [PredictionRequest(row)])[0]
    assert isinstance(found, list)
    assert found[0].package == history[-1].champion.package
    engine.close()


def body() -> bytes:
    return json.dumps(flight()).encode()


def actions(history: list[ReleaseState]) -> list[str]:
    return [s.action for s in history]


@pytest.mark.parametrize("point", [p if p.startswith("bad.") else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_killed_at_every_point_of_a_release(home: Home, point: str) -> None:
    second = package(home.packages, weight=0.06).digest
    die(home, point, second)
    converged(home, second, point)


@pytest.mark.parametrize("point", POINTS)
def test_failed_at_every_point_of_a_release(home: Home, point: str) -> None:
    second = package(home.packages, weight=0.06).digest
    fail(home, point, second, "EIO")
    converged(home, second, point)


def test_workers_killed_in_the_middle_of_a_switch_converge(home: Home) -> None:
    second = package(home.packages, weight=0.06).digest
    with running(home, workers=2, LOOPWRIGHT_FAILPOINTS="release.switched=kill@2") as server:
        before = server.state.workers
        releases.release(home, LOOP, second, why="second")
        state = releases.serving(home, LOOP)
        assert state is not None
        until(lambda: set(server.state.workers).isdisjoint({*before, 0}))
        until(lambda: [w.state for w in workers(home.path, state)] == ["serves", "serves"])
        assert {w.pid for w in workers(home.path, state)} == set(server.state.workers)
        assert server.data().post(f"/loops/{LOOP}/predict", flight()).json["package"] == second
        assert blocklist.marks(home) == []  # killed by somebody: nothing is put down to the package
