import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from tests.deploy.loops import NOW
from tests.waiting import until

from loopwright.base.clock import SimulatedClock
from loopwright.server.processes.child import LONGEST_PAUSE, Child

READY = "import socket, sys, time; socket.socket(fileno=int(sys.argv[-1])).send(b'ready'); time.sleep(60)"


class Hands(SimulatedClock):
    """A clock whose durations are set by hand."""

    now_s = 100.0

    def monotonic(self) -> float:
        """See `SimulatedClock`."""
        return self.now_s


@pytest.fixture
def modules(tmp_path: Path) -> dict[str, str]:
    """Modules that end at once, and that say they are ready and stay."""
    (tmp_path / "ends.py").write_text("")
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    (tmp_path / "stays.py").write_text(READY)
    return {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}


def test_it_says_when_it_is_ready_and_ends_with_its_link(modules: dict[str, str]) -> None:
    child = Child(Hands(NOW), "stays", [], fds=[], environment=modules)
    assert child.keep()
    assert not child.keep()
    until(lambda: child.ready)
    child.tell(signal.SIGTERM)
    child.end(5)
    assert child.pid == 0


def test_one_that_dies_is_started_again_each_time_later(modules: dict[str, str]) -> None:
    clock = Hands(NOW)
    codes: list[int] = []
    child = Child(clock, "fails", [], fds=[], environment=modules, ended=codes.append)
    starts = []
    for _ in range(8):
        while not child.keep():
            clock.now_s += 0.125
        starts.append(clock.now_s)
        until(lambda: not child.pid)
    pauses = [b - a for a, b in pairwise(starts)]
    assert pauses == [0.125, 0.25, 0.5, 0.875, 1.625, 3.25, LONGEST_PAUSE]
    assert codes == [3] * 7
    child.end(5)


def test_one_that_was_steady_is_started_again_soon(modules: dict[str, str]) -> None:
    clock = Hands(NOW)
    child = Child(clock, "ends", [], fds=[], environment=modules)
    for _ in range(4):
        child.keep()
        until(lambda: not child.pid)
        child.keep()
        clock.now_s += LONGEST_PAUSE
    child.keep()
    clock.now_s += 11
    until(lambda: not child.pid)
    assert not child.keep()
    clock.now_s += 0.11
    assert child.keep()
    child.end(5)


def test_two_hundred_restarts_keep_no_descriptor(modules: dict[str, str]) -> None:
    clock = Hands(NOW)
    child = Child(clock, "ends", [], fds=[], environment={**modules, "PYTHONNOUSERSITE": "1"})
    descriptors = []
    for i in range(200):
        while not child.keep():
            clock.now_s += LONGEST_PAUSE
        child.tell(signal.SIGKILL)
        until(lambda: not child.pid)
        if i in (5, 199):
            descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
    child.end(5)
    assert descriptors[0] == descriptors[1]
