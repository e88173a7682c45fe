from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loopwright.base import jumps
from loopwright.base.clock import RealClock, SimulatedClock
from loopwright.base.jumps import SETTLE_SECONDS, jump, jumped

START = datetime(2024, 1, 1, tzinfo=UTC)


class SetClock(SimulatedClock):
    """A simulated machine whose time of day somebody sets; its uptime is not touched by that."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


@pytest.fixture
def clock() -> SetClock:
    return SetClock(START)


def test_time_that_passes_and_small_corrections_are_no_jumps(tmp_path: Path, clock: SetClock) -> None:
    for _ in range(50):
        assert jump(tmp_path, clock) == ""
        clock.advance(timedelta(days=3))
        clock.ahead += timedelta(seconds=20)
    assert jump(tmp_path, clock) == ""


@pytest.mark.parametrize("days", [400, -400])
def test_a_jump_does_not_count_until_it_has_held(tmp_path: Path, clock: SetClock, days: int) -> None:
    assert jump(tmp_path, clock) == ""
    clock.ahead = timedelta(days=days)
    assert ("forward" if days > 0 else "back") in jumped(tmp_path, clock)
    assert f"by {400 * 86_400:,} s" in jump(tmp_path, clock)
    clock.advance(timedelta(seconds=SETTLE_SECONDS - 1))
    assert "another 1 s" in jump(tmp_path, clock)
    clock.advance(timedelta(seconds=1))
    assert jumped(tmp_path, clock) == ""
    assert jump(tmp_path, clock) == ""
    clock.ahead = timedelta(0)
    assert jump(tmp_path, clock) != "", "the way back is a jump, too"


def test_a_jump_that_is_taken_back_costs_nothing_afterwards(tmp_path: Path, clock: SetClock) -> None:
    jump(tmp_path, clock)
    clock.ahead = timedelta(days=400)
    assert jump(tmp_path, clock) != ""
    clock.advance(timedelta(seconds=14))
    clock.ahead = timedelta(0)
    assert jump(tmp_path, clock) == ""
    clock.advance(timedelta(seconds=SETTLE_SECONDS))
    clock.ahead = timedelta(days=400)
    assert jump(tmp_path, clock) != "", "the next one must hold for itself"


def test_a_mark_that_cannot_be_read_or_is_of_another_boot_is_begun_anew(tmp_path: Path, clock: SetClock) -> None:
    (tmp_path / "clock.json").write_text("{")
    assert jump(tmp_path, clock) == ""
    (tmp_path / "clock.json").write_text('{"boot": "another", "offset": 5.0}')
    assert jump(tmp_path, clock) == ""
    clock.ahead = timedelta(days=1)
    assert jump(tmp_path, clock) != ""


class ContainerClock(RealClock):
    """The time of day of a machine, and the uptime of a container that starts when this is made."""

    def __init__(self) -> None:
        self.started = super().uptime()

    def uptime(self) -> float:
        return super().uptime() - self.started


def test_a_container_that_starts_again_on_a_system_without_boot_id_is_no_jump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumps, "boot_id", lambda: "")
    assert jump(tmp_path, RealClock()) == ""
    assert jump(tmp_path, ContainerClock()) != "", "a process that lives through it tells"
    monkeypatch.setattr(jumps, "_PROCESS", "process of the next container")
    assert jump(tmp_path, ContainerClock()) == ""
