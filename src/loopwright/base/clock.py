"""The clock: the only place in the package that asks for the time."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime | int) -> int:
    """Microseconds since 1970 (UTC) of a zone-aware datetime; an int is taken to be that already."""
    if isinstance(moment, int):
        return moment
    if moment.tzinfo is None:
        raise ValueError(f"a moment needs a zone, not {moment!r}")
    delta = moment - EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def moment_at(us: int) -> datetime:
    """The moment `us` microseconds after 1970 began (UTC), exactly."""
    return EPOCH + timedelta(microseconds=us)


class Clock(Protocol):
    """Source of the time: `now` only dates records; measure durations with `monotonic`."""

    def now(self) -> datetime:
        """The current moment, in UTC and zone-aware."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never run backwards."""
        ...

    def uptime(self) -> float:
        """Seconds since this machine started, sleep included: the same for all its processes, and not adjustable."""
        ...


class RealClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """The current moment in UTC."""
        return datetime.now(UTC)

    monotonic = staticmethod(time.perf_counter)
    """Seconds of the machine's monotonic clock."""

    def uptime(self) -> float:
        """Seconds since the machine started."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SimulatedClock:
    """A clock that stands still until it is advanced: for replays and tests.

    `monotonic` stays real, so that measured durations (latencies, training times) remain true.
    """

    def __init__(self, start: datetime) -> None:
        if start.tzinfo is None:
            raise ValueError(f"a simulated clock needs a zone-aware start, not {start!r}")
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        """The simulated moment."""
        return self._now

    def monotonic(self) -> float:
        """Seconds of the machine's monotonic clock."""
        return time.perf_counter()

    def uptime(self) -> float:
        """Moves as the simulated time does."""
        return self._now.timestamp()

    def advance_to(self, moment: datetime) -> None:
        """Move the clock to `moment`; going back is refused."""
        if moment < self._now:
            raise ValueError(f"a simulated clock does not go back: {moment} is before {self._now}")
        self._now = moment.astimezone(UTC)

    def advance(self, by: timedelta) -> None:
        """Move the clock forward by `by`."""
        self.advance_to(self._now + by)
