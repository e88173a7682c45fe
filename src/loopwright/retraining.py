"""Retraining as child processes of upkeep: one at a time, each within a limit of time, while the rounds of upkeep go on.

A retraining needs the user's code, which a scheduler never imports: the child is `loopwright run FILE`.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from loopwright.base.ids import new_id
from loopwright.monitor.alerts import close_alert, raise_alert, send
from loopwright.records.declarations import Loop
from loopwright.records.windows import Alert, Trigger
from loopwright.stores.home import Home
from loopwright.stores.turn_lease import turn_holder

LOG = logging.getLogger("loopwright.upkeep")

FAILED = "retraining"
"""Key of the alert that a retraining failed."""
RETRY_AFTER = timedelta(minutes=15)
BESIDE_TRAINING_S = 3600.0
"""Seconds that a retraining may take in addition to the budget's `train_minutes`: examples, conversion, gate."""
WITHOUT_BUDGET_S = 24 * 3600.0
GRACE_S = 60.0
"""Seconds after the limit at which upkeep kills a retraining that has not ended itself."""
_LIMITED = "import os, signal, sys; signal.alarm(int(sys.argv[1])); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
"""Ends itself by SIGALRM, which survives the exec: the limit holds for the child of an upkeep that was killed, too."""


class Due(NamedTuple):
    """A loop that is to be retrained: its file, the reason, and the most seconds that it may take."""

    file: str
    trigger: Trigger
    limit_s: float


def limit_s(loop: Loop) -> float:
    """The most seconds that a retraining of a loop may take."""
    minutes = loop.scope.budget.train_minutes
    return WITHOUT_BUDGET_S if minutes is None else minutes * 60 + BESIDE_TRAINING_S


class _Running(NamedTuple):
    loop: str
    child: subprocess.Popen[bytes]
    log: Path
    limit_s: float
    until: float


class Retrainer:
    """Runs the retrainings of one process of upkeep, one after another; a loop's turn comes after those of the others."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._running: _Running | None = None
        self._last = ""

    @property
    def pid(self) -> int:
        """The process id of the running retraining, 0 while none runs."""
        return self._running.child.pid if self._running is not None else 0

    def begin(self, due: Mapping[str, Due]) -> bool:
        """Start the retraining of the next loop that is due, unless one runs; whether one was started.

        A loop is skipped while another turn of it runs (by hand, or of an upkeep that was killed): its trigger is checked
        again after that turn. A failed retraining is retried after `RETRY_AFTER`, if the trigger still holds.
        """
        if self._running is not None:
            return False
        return any(self._start(loop, due[loop]) for loop in sorted(due, key=lambda name: (name <= self._last, name)))

    def conclude(self, timeout_s: float = 0.0) -> bool:
        """Wait for the running retraining; raise the alert if it failed, or close it. Whether none runs now."""
        if self._running is None:
            return True
        running = self._running
        if ended := self._home.clock.monotonic() > running.until:  # the user's code has taken SIGALRM for itself
            running.child.kill()
        try:
            code = running.child.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._running = None
        home, loop = self._home, running.loop
        if code:
            end = (
                f"it took longer than {timedelta(seconds=running.limit_s)}"
                if code == -signal.SIGALRM or ended
                else f"exit {code}"
            )
            detail = f"{end}: {running.log.read_text(errors='replace')[-1000:].strip()}"
            raise_alert(home, loop, FAILED, severity="critical", title="Retraining failed", detail=detail)
        elif close_alert(home, loop, FAILED, detail="a retraining went through") is not None:
            send(home, loop)
        return True

    def run(self, loop: str, due: Due, every_s: float, meanwhile: Callable[[], object]) -> None:
        """Retrain a loop and wait for the end; call `meanwhile` every `every_s` seconds of it."""
        self.begin({loop: due})
        while not self.conclude(every_s):
            meanwhile()

    def _start(self, loop: str, due: Due) -> bool:
        home, self._last = self._home, loop
        if (holder := turn_holder(home.ledger, loop)) is not None:
            LOG.info("loop %s is not retrained now: %s runs a turn of it", loop, holder)
            return False
        failed = home.ledger.latest(Alert, loop=loop, key=FAILED)
        if failed is not None and failed.record.state == "open" and home.clock.now() - failed.at < RETRY_AFTER:
            return False
        environment = {**os.environ, **home.settings.environment(), "LOOPWRIGHT_BY": "tend"}
        about = ["--cause", due.trigger.cause, "--why", due.trigger.reason]
        run = ["-m", "loopwright", "run", due.file, "--named", loop, "--refit", *about]
        command = [sys.executable, "-I", "-c", _LIMITED, str(int(due.limit_s)), *run]
        log = home.folder("runs") / f"{new_id(home.clock.now())}.log"
        with log.open("wb") as output:
            try:
                child = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, cwd=Path(due.file).parent, env=environment
                )
            except OSError as error:  # the loop's folder is gone, or no process can be started
                raise_alert(home, loop, FAILED, severity="critical", title="Retraining failed", detail=str(error))
                return False
        self._running = _Running(loop, child, log, due.limit_s, home.clock.monotonic() + due.limit_s + GRACE_S)
        return True
