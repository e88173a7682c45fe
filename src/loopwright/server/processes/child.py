"""A supervised child process: counted and restarted when it dies, with back-off unless it was up for long."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from loopwright.base.clock import Clock
from loopwright.base.supervision import Component, Repeating

LONGEST_PAUSE = 5.0
STEADY_SECONDS = 10.0


def supervised(link: socket.socket, end: Callable[[], None]) -> None:
    """In a child: call `end`, in a thread of its own, once the other end of its link is closed."""

    def watch() -> bool:
        try:
            if link.recv(64):
                return True
        except OSError:
            pass
        end()
        return False

    Repeating("link", watch, blocks=True).start()


class Child:
    """`python -m MODULE ARGUMENTS... LINK_FD`; `ended` is called with the exit code of each that ended by itself (minus the signal).

    The back-off before a restart is 0.1 s, 0.2 s ... 5 s, and 0.1 s again after the child was up for 10 s. The link is a
    socket pair: the child reports over it that it is ready, and ends when this end is closed, which happens when this process dies.
    """

    def __init__(
        self,
        clock: Clock,
        module: str,
        arguments: list[str],
        *,
        fds: list[int],
        environment: dict[str, str],
        log: Path | None = None,
        ended: Callable[[int], None] | None = None,
        name: str = "",
    ) -> None:
        self._part = Component(f"process {name or module.rpartition('.')[2]}")
        self._clock, self._module, self._arguments, self._fds = clock, module, arguments, fds
        self._environment, self._log, self._ended = environment, log, ended
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._pause, self._due, self.begun, self._ready = 0.0, 0.0, 0.0, False

    @property
    def pid(self) -> int:
        """The process id, 0 while it is down."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    @property
    def ready(self) -> bool:
        """Whether the current process has reported that it is ready."""
        if not self._ready and self._link is not None:
            try:
                self._ready = bool(self._link.recv(64, socket.MSG_DONTWAIT))
            except OSError:  # no message yet, or the child is gone
                return False
        return self._ready

    def keep(self) -> bool:
        """Start it if it is not running and its pause is over; whether it was started."""
        now = self._clock.monotonic()
        if self.pid:
            return False
        if self._process is not None:
            code = self._process.wait()
            self._process, self._ready = None, False
            self._pause = 0.1 if now - self.begun > STEADY_SECONDS else min(max(0.1, self._pause * 2), LONGEST_PAUSE)
            self._due = now + self._pause
            self._part.failed("")
            if self._ended is not None:
                self._ended(code)
        if now < self._due:
            return False
        self.close_link()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", self._module, *self._arguments, str(theirs.fileno())]
        fds = [*self._fds, theirs.fileno()]
        with theirs:
            if self._log is None:
                self._process = subprocess.Popen(command, pass_fds=fds, env=self._environment, stdin=subprocess.DEVNULL)
            else:
                with self._log.open("ab") as output:
                    self._process = subprocess.Popen(
                        command, pass_fds=fds, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                    )
        self._link, self.begun = ours, now
        self._part.works()
        return True

    def tell(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def end(self, seconds: float) -> None:
        """Wait for its end after SIGTERM; then kill it."""
        if self._process is not None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.close_link()

    def close_link(self) -> None:
        """Close this end of the link, which ends the process."""
        if self._link is not None:
            self._link.close()
            self._link = None
