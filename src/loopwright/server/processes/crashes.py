"""Causes of worker deaths, and their consequences: a package that repeatedly kills, hangs or fails workers is taken out of service.

These count: a death by SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE, SIGTRAP or SIGSYS; one by the kernel's OOM killer;
and an event loop without a heartbeat for 15 seconds. After three of these within five minutes, while the same package was being
loaded or run, it is marked bad. A worker killed by hand does not count.

A package that has answered other inputs is not bad for every input: after the second death, or overrun, on the same input, the
heuristic answers that input, and all its deaths count once against the package.
"""

import re
import signal
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import LoopwrightError, PackageNotFound, PackageRefused, ReleaseConflict
from loopwright.base.holder import encode_holder, this_process
from loopwright.deploy import blocklist
from loopwright.deploy.releases import withdraw
from loopwright.deploy.serving.heartbeat import Busy
from loopwright.deploy.serving.predictor import TRUSTED_ROWS
from loopwright.deploy.serving.suspects import STRIKES, Suspects
from loopwright.monitor.alerts import decide
from loopwright.records.releases import BadPackage
from loopwright.stores.home import Home

DEATHS = 3
WITHIN_SECONDS = 300.0
HUNG_SECONDS = 15.0

_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
)
_THREAD = re.compile(rb"Current thread 0x([0-9a-f]+)")

Cause = Literal["crash", "hang", "failures"]


def crashed(code: int, *, out_of_memory: bool) -> bool:
    """Whether a worker that ended with `code` died by its own work."""
    return -code in _CRASHES or (code == -signal.SIGKILL and out_of_memory)


def thread_of(dump: bytes) -> int | None:
    """The thread that crashed, from the output of `faulthandler`; None if it is not in there."""
    found = _THREAD.search(dump)
    return int(found.group(1), 16) if found else None


def blamed(busy: Sequence[Busy], thread: int | None) -> list[str]:
    """The packages that a death is put down to: that of the thread that died.

    If the thread is unknown: those that were being loaded, else those that were running.
    """
    if thread is not None and any(b.thread == thread for b in busy):
        return [b.package for b in busy if b.thread == thread]
    if thread is not None:
        return []  # something of our own
    loading = [b.package for b in busy if b.doing == "loads"]
    return sorted(set(loading or [b.package for b in busy]))


def kills_for_memory() -> int:
    """Number of OOM kills by the kernel so far: here, or in this control group. 0 if unknown."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with suppress(OSError, ValueError, StopIteration):
            lines = Path(path).read_text().splitlines()
            count += next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return count


class Blame(NamedTuple):
    """A death blamed on a package, and the inputs of its run (fingerprints; none if it was being loaded)."""

    package: str
    cause: Cause
    detail: str
    inputs: tuple[bytes, ...] = ()
    answered: int = 0


class Deaths:
    """Deaths by package. Those of one input count once: see `deploy.serving.suspects`."""

    def __init__(self) -> None:
        self._at: dict[str, list[tuple[float, frozenset[bytes]]]] = {}

    def count(self, package: str, now: float, inputs: Iterable[bytes] = ()) -> bool:
        """Whether this is the third within five minutes; then counting starts again. A repeated death by the same input does not count."""
        given = frozenset(inputs)
        before = [(at, earlier) for at, earlier in self._at.get(package, []) if at >= now - WITHIN_SECONDS]
        same = next((one for one in before if given & one[1]), None)
        if same is not None:
            before.remove(same)
            given &= same[1]
        before.append((now, given))
        self._at[package] = before
        if len(before) < DEATHS:
            return False
        del self._at[package]
        return True


class QueriesOfDeath:
    """Effects of inputs on the models of this server: strikes in the table that workers read, and alerts still to be recorded."""

    def __init__(self, suspects: Suspects) -> None:
        self._suspects = suspects
        self._trusted: set[str] = set()
        self._alerts: deque[tuple[str, bytes]] = deque(maxlen=64)

    def trusts(self, package: str, answered: int) -> bool:
        """Whether a package has answered other inputs, here and now or in a worker before."""
        if answered >= TRUSTED_ROWS:
            self._trusted.add(package)
        return package in self._trusted

    def strike(self, package: str, inputs: Iterable[bytes]) -> list[str]:
        """Count a failure against the inputs of its run; returns log lines about inputs that the heuristic answers from now on."""
        lines = []
        for input in inputs:
            if self._suspects.strike(input) == STRIKES:
                self._alerts.append((package, input))
                lines.append(
                    f"package {package[:12]}: input {input.hex()} overran or killed its model {STRIKES} times, the heuristic answers it"
                )
        return lines

    def record(self, home: Home) -> None:
        """Record the alerts, which upkeep sends. Raises LedgerUnavailable; the rest is recorded next time."""
        while self._alerts:
            package, input = self._alerts[0]
            with suppress(PackageNotFound, PackageRefused):
                decide(
                    home,
                    home.packages.manifest(package).loop,
                    f"{blocklist.QUERY_ALERT}:{package[:12]}:{input.hex()}",
                    severity="warning",
                    title=f"An input of package {package[:12]} is answered by the heuristic",
                    detail=f"The model overran or killed its worker {STRIKES} times on the input with fingerprint {input.hex()}. "
                    "Its answers are flagged `query_of_death`, all other inputs are answered by the model.",
                    holder=encode_holder(this_process("server", 0.0)),
                )
            self._alerts.popleft()


def condemn(home: Home, package: str, cause: Cause, detail: str) -> str:
    """Mark a package bad, unless an unsettled mark exists; returns a log line. Raises the errors of reading its manifest."""
    if any(m.package.package == package and not m.settled for m in blocklist.marks(home)):
        return ""
    loop = home.packages.manifest(package).loop
    blocklist.mark(home, BadPackage(loop=loop, package=package, cause=cause, detail=detail, since=home.clock.now()))
    return f"loop {loop}: package {package[:12]} is marked bad: {detail}"


def withdraw_bad(home: Home) -> list[str]:
    """Take packages that are marked bad out of service, with or without the ledger; returns log lines.

    Marks that a dead server left open are completed by the next one.
    """
    said = []
    for mark in blocklist.marks(home):
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
            now = "its heuristic alone" if state.champion.heuristic else f"package {state.champion.package[:12]}"
            said.append(f"loop {package.loop}: rolled back, {now} serves")
        failpoints.hit("bad.rolled_back")
        blocklist.keep(home, msgspec.structs.replace(mark, withdrawn=True))
    return said


def record_bad(home: Home) -> None:
    """Record packages that were taken out of service, with an alert, which upkeep sends. Raises LedgerUnavailable."""
    for mark in blocklist.marks(home):
        if mark.withdrawn and not mark.settled:
            package = mark.package
            home.ledger.put(package, loop=package.loop, key=package.package)
            title = f"Package {package.package[:12]} was marked bad and taken out of service"
            decide(
                home,
                package.loop,
                f"{blocklist.ALERT}:{package.package[:12]}",
                severity="critical",
                title=title,
                detail=package.detail,
            )
            blocklist.keep(home, msgspec.structs.replace(mark, settled=True))
