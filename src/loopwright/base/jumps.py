"""Jumps of the wall clock, detected by comparing it with the machine's uptime, which nobody can set.

A machine that is set to another year for some seconds must not close months of windows or delete data as too old. So the
offset of both clocks is stored in `home/clock.json`, and a new one counts only after it has held for `SETTLE_SECONDS`.
"""

import os
from pathlib import Path

import msgspec

from loopwright.base.clock import Clock, RealClock
from loopwright.base.files import replace_file
from loopwright.base.holder import boot_id

JUMP_SECONDS = 60.0
"""A larger change of the difference, from one look to the next, is a jump: no correction of a clock that runs takes as much."""

SETTLE_SECONDS = 600.0
FILE = "clock.json"

_PROCESS = f"process {os.urandom(8).hex()}"
"""Used as the boot id where the system has none: then a reboot, or a container with its own uptime, looks like a
jump, and only a process that lived through one can tell."""


class ClockMark(msgspec.Struct, frozen=True, kw_only=True):
    """Offset of wall clock and uptime: `offset` is in force; `new` is a candidate first seen at the uptime `since`."""

    boot: str
    offset: float
    new: float | None = None
    since: float = 0.0


def jump(home: Path, clock: Clock) -> str:
    """Why the time of day does not count just now; "" where it does. Raises OSError where it cannot be noted."""
    mark, why = _look(home, clock)
    if mark != _read(home):
        home.mkdir(parents=True, exist_ok=True)
        replace_file(home / FILE, msgspec.json.encode(mark), durable=False)
    return why


def jumped(home: Path, clock: Clock) -> str:
    """As `jump`, but read-only: nothing is stored."""
    return _look(home, clock)[1]


def _look(home: Path, clock: Clock) -> tuple[ClockMark, str]:
    uptime = clock.uptime()
    offset, before = clock.now().timestamp() - uptime, _read(home)
    boot = (boot_id() or _PROCESS) if isinstance(clock, RealClock) else "simulated"
    if before is None or before.boot != boot:
        return ClockMark(boot=boot, offset=offset), ""
    by = offset - before.offset
    if abs(by) <= JUMP_SECONDS:
        # Seconds are not noted each time: a clock that is corrected little by little moves the mark little by little.
        return (before if abs(by) < 1 and before.new is None else ClockMark(boot=before.boot, offset=offset)), ""
    if before.new is None or abs(offset - before.new) > JUMP_SECONDS:
        before = msgspec.structs.replace(before, new=offset, since=uptime)
    left = before.since + SETTLE_SECONDS - uptime
    if left <= 0:
        return ClockMark(boot=before.boot, offset=offset), ""
    way = "forward" if by > 0 else "back"
    return before, f"the time of day jumped {way} by {abs(by):,.0f} s; it counts once it has held for another {left:,.0f} s"


def _read(home: Path) -> ClockMark | None:
    try:
        return msgspec.json.decode((home / FILE).read_bytes(), type=ClockMark)
    except (OSError, msgspec.DecodeError):
        return None
