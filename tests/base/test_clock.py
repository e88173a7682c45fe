from datetime import UTC, datetime, timedelta, timezone

import pytest

from loopwright.base.clock import Clock, RealClock, SimulatedClock

START = datetime(2013, 4, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("clock", [RealClock(), SimulatedClock(START)])
def test_every_clock_is_in_utc_and_its_monotonic_time_never_runs_back(clock: Clock) -> None:
    assert clock.now().utcoffset() == timedelta(0)
    ticks = [clock.monotonic() for _ in range(100)]
    assert ticks == sorted(ticks)
    assert ticks[-1] > ticks[0]


def test_the_real_clock_goes_on() -> None:
    clock = RealClock()
    first = clock.now()
    while clock.now() == first:
        pass
    assert clock.now() > first


def test_a_simulated_clock_stands_still_until_told() -> None:
    clock = SimulatedClock(datetime(2013, 4, 1, 8, tzinfo=timezone(timedelta(hours=-4))))
    assert clock.now() == clock.now() == START
    clock.advance(timedelta(days=1))
    clock.advance_to(START + timedelta(days=7))
    clock.advance_to(START + timedelta(days=7))
    assert clock.now() == START + timedelta(days=7)
    assert clock.now().tzinfo is UTC


def test_a_simulated_clock_does_not_go_back() -> None:
    clock = SimulatedClock(START)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance_to(START - timedelta(microseconds=1))
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(timedelta(seconds=-1))
    assert clock.now() == START


def test_a_simulated_clock_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="zone-aware"):
        SimulatedClock(datetime(2013, 4, 1))  # noqa: DTZ001
