"""Why workers died, and what follows: a package that kills or hangs workers, or fails again and again, goes out of service.

What counts: a death by SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE, SIGTRAP or SIGSYS; one by the kernel for want of memory;
and an event loop that did not go round for 15 seconds. Three of these within five minutes while the same package was being
loaded or asked, and it is marked bad. A worker that somebody kills by hand counts for nothing.
"""

import re
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from loopwright.deploy import bad
from loopwright.deploy.controller import withdraw
from loopwright.deploy.vitals import Busy
from loopwright.monitor.alerts import decide
from loopwright.records import failpoints
from loopwright.records.errors import LoopwrightError, ReleaseConflict
from loopwright.records.home import Home
from loopwright.records.releases import BadPackage

DEATHS = 3
WITHIN_SECONDS = 300.0
HUNG_SECONDS = 15.0

_CRASHES = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
)
_THREAD = re.compile(rb"Current thread 0x([0-9a-f]+)")

Cause = Literal["crash", "hang", "failures"]


def crashed(code: int, *, out_of_memory: bool) -> bool:
    """Whether a worker that ended with `code` was ended by what it was doing."""
    return -code in _CRASHES or (code == -signal.SIGKILL and out_of_memory)


def thread_of(dump: bytes) -> int | None:
    """The thread that died, from what `faulthandler` wrote; None where that does not say."""
    found = _THREAD.search(dump)
    return int(found.group(1), 16) if found else None


def blamed(busy: Sequence[Busy], thread: int | None) -> list[str]:
    """The packages that a death is put down to: that of the thread that died.

    Where the thread is not known: those that were being loaded, and if there were none those that were being asked.
    """
    if thread is not None and any(b.thread == thread for b in busy):
        return [b.package for b in busy if b.thread == thread]
    if thread is not None:
        return []  # something of our own
    loading = [b.package for b in busy if b.doing == "loads"]
    return sorted(set(loading or [b.package for b in busy]))


def kills_for_memory() -> int:
    """How many processes the kernel has ended for want of memory so far: here, or in this control group. 0 where it does not say."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with suppress(OSError, ValueError, StopIteration):
            lines = Path(path).read_text().splitlines()
            count += next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return count


class Deaths:
    """Counts the deaths put down to each package."""

    def __init__(self) -> None:
        self._at: dict[str, deque[float]] = {}

    def count(self, package: str, now: float) -> bool:
        """One more, at `now` in seconds; whether it was the third within five minutes, from which on they count anew."""
        at = self._at.setdefault(package, deque())
        at.append(now)
        while at[0] < now - WITHIN_SECONDS:
            at.popleft()
        if len(at) < DEATHS:
            return False
        del self._at[package]
        return True


def condemn(home: Home, package: str, cause: Cause, detail: str) -> str:
    """Mark a package bad, unless a mark is about to be settled; a line that says so. Raises what reading its manifest does."""
    if any(m.package.package == package and not m.settled for m in bad.marks(home)):
        return ""
    loop = home.packages.manifest(package).loop
    bad.mark(home, BadPackage(loop=loop, package=package, cause=cause, detail=detail, since=home.clock.now()))
    return f"loop {loop}: package {package[:12]} is marked bad: {detail}"


def withdraw_bad(home: Home) -> list[str]:
    """Put what is marked bad out of service, whether the ledger answers or not; lines that say what was done.

    What a server that died left undone is done by the next one.
    """
    said = []
    for mark in bad.marks(home):
        if mark.withdrawn:
            continue
        package = mark.package
        try:
            state = withdraw(home, package)
        except ReleaseConflict:  # the copy here is behind the ledger: the next time
            continue
        except LoopwrightError as error:
            said.append(
                f"loop {package.loop}: package {package.package[:12]} is bad and cannot be taken out of service: {error}"
            )
            continue
        if state is not None:
            now = "its heuristic alone" if state.arms[0].role == "heuristic" else f"package {state.arms[0].package[:12]}"
            said.append(f"loop {package.loop}: rolled back, {now} serves")
        failpoints.hit("bad.rolled_back")
        bad.keep(home, msgspec.structs.replace(mark, withdrawn=True))
    return said


def record_bad(home: Home) -> None:
    """Record what was put out of service, and decide on an alert, which upkeep sends. Raises LedgerUnavailable."""
    for mark in bad.marks(home):
        if mark.withdrawn and not mark.settled:
            package = mark.package
            home.ledger.put(package, loop=package.loop, key=package.package)
            title = f"Package {package.package[:12]} was marked bad and taken out of service"
            decide(
                home,
                package.loop,
                f"{bad.ALERT}:{package.package[:12]}",
                severity="critical",
                title=title,
                detail=package.detail,
            )
            bad.keep(home, msgspec.structs.replace(mark, settled=True))
