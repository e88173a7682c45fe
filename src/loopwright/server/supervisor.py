"""The control process: opens the sockets, starts workers and upkeep, restarts what dies, follows the ledger, ends in order.

Workers share one listening socket: while one is restarted the others answer, and connections wait in the socket's queue.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from loopwright.deploy.served import Follower
from loopwright.records.errors import LoopwrightError, Unavailable
from loopwright.records.home import Home
from loopwright.server.access import Access, check_address
from loopwright.server.control import control
from loopwright.server.listener import GRACE_SECONDS, Listener, listen, url
from loopwright.server.shared_port import address, check_extras, reserve

FOLLOW_SECONDS = 0.25
START_SECONDS = 60.0
LONGEST_PAUSE = 5.0
STEADY_SECONDS = 10.0


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """What `home/serve.json` says of a server that runs: its process, its workers, where to reach it."""

    pid: int
    workers: list[int]
    data: str
    control: str
    grpc: str = ""


class Child:
    """A process kept alive: started again when it dies, each time later (0.1 s, 0.2 s ... 5 s) unless it was steady.

    Its link is a socket pair: it ends itself when this end is closed, as it is when this process dies.
    """

    def __init__(
        self, home: Home, module: str, arguments: list[str], fds: list[int], environment: dict[str, str], log: Path | None
    ) -> None:
        self._clock, self._module, self._arguments, self._fds = home.clock, module, arguments, fds
        self._environment, self._log = environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._pause, self._due, self._begun = 0.0, 0.0, 0.0

    @property
    def pid(self) -> int:
        """The process, 0 while there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def keep(self) -> bool:
        """Start it if it is not running and its pause is over; whether it was started."""
        now = self._clock.monotonic()
        if self.pid:
            return False
        if self._process is not None:
            self._process.wait()
            self._process = None
            self._pause = 0.1 if now - self._begun > STEADY_SECONDS else min(max(0.1, self._pause * 2), LONGEST_PAUSE)
            self._due = now + self._pause
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
        self._link, self._begun = ours, now
        return True

    def wait_ready(self, seconds: float) -> bool:
        """Wait until it says that it is ready; False when it dies first or takes too long."""
        assert self._link is not None
        self._link.settimeout(seconds)
        try:
            return bool(self._link.recv(64))
        except OSError:
            return False

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


def serve(home: Home, *, workers: int | None = None, tend: bool = True, announce: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT: data plane, control API, console, and upkeep unless `tend` is False.

    `announce` gets a line when everything is ready (default: standard output). Raises AddressRefused for an address that
    is taken, or beyond loopback without a token, ExtraMissing for gRPC or traces without their libraries, and Unavailable when
    no worker comes up.
    """
    settings = home.settings
    check_address(settings)
    check_extras(settings)
    with ExitStack() as sockets:
        data, controlling = (sockets.enter_context(listen(settings.host, p)) for p in (settings.port, settings.control_port))
        grpc = sockets.enter_context(reserve(settings.host, settings.grpc_port)) if settings.grpc_port >= 0 else None
        server = Supervisor(home, data, controlling, grpc, settings.workers if workers is None else workers, tend=tend)
        server.run(announce or _say)


class Supervisor:
    """One server: see `serve`."""

    def __init__(
        self,
        home: Home,
        data: socket.socket,
        controlling: socket.socket,
        grpc: socket.socket | None,
        workers: int,
        *,
        tend: bool,
    ) -> None:
        self._home, self._data, self._controlling = home, data, controlling
        host = home.settings.host
        self._urls = url(data, host), url(controlling, host)
        grpc_port = grpc.getsockname()[1] if grpc is not None else -1
        self._grpc = address(host, grpc_port) if grpc is not None else ""
        self._metrics = _metrics_folder(home)
        environment = {
            **os.environ,
            **home.settings.environment(),
            "LOOPWRIGHT_GRPC_PORT": str(grpc_port),
            "PROMETHEUS_MULTIPROC_DIR": str(self._metrics),
            "OMP_NUM_THREADS": "1",
        }
        fd = data.fileno()
        self._workers = [Child(home, "loopwright.server.worker", [str(fd)], [fd], environment, None) for _ in range(workers)]
        self._tending = [Child(home, "loopwright.server.tending", [], [], environment, home.path / "tend.log")] if tend else []
        self._over = threading.Event()
        self._follower = Follower(home)
        self._trouble = ""

    def run(self, announce: Callable[[str], None]) -> None:
        """Start everything, serve the control port, end everything."""
        self._follow_once()
        for worker in self._workers:
            worker.keep()
        try:
            ready = [worker.wait_ready(START_SECONDS) for worker in self._workers]
            if not all(ready):
                raise Unavailable("a worker did not come up; what it said stands above")
            listener = Listener(control(self._home, Access(self._home.settings, always=True)))
            self._write_state()
            threads = [threading.Thread(target=t, daemon=True) for t in (self._watch, self._follow)]
            for thread in threads:
                thread.start()
            listener.heed_signals()
            grpc = f", gRPC at {self._grpc}" if self._grpc else ""
            announce(f"ready: predictions at {self._urls[0]}{grpc}, console at {self._urls[1]}")
            listener.run(sockets=[self._controlling])
            self._over.set()
            for thread in threads:
                thread.join()
        finally:
            self._over.set()
            self._end()

    def _watch(self) -> None:
        """Keep workers and upkeep alive."""
        while not self._over.wait(0.05):
            try:
                started = [child.keep() for child in [*self._workers, *self._tending]]
                if any(started):
                    self._write_state()
            except OSError as error:  # no process or file to be had just now
                sys.stderr.write(f"loopwright: a process could not be started: {error}\n")
                self._over.wait(1.0)

    def _follow(self) -> None:
        while not self._over.wait(FOLLOW_SECONDS):
            self._follow_once()

    def _follow_once(self) -> None:
        """Ledger to local copies; while the ledger is down the copies stand."""
        trouble = ""
        try:
            self._follower.follow()
        except Exception as error:  # noqa: BLE001  # whatever it is, following goes on
            trouble = str(error) if isinstance(error, LoopwrightError) else f"{type(error).__name__}: {error}"
        if trouble and trouble != self._trouble:
            sys.stderr.write(f"loopwright: the ledger is not followed, what serves goes on: {trouble}\n")
        self._trouble = trouble

    def _end(self) -> None:
        children = [*self._workers, *self._tending]
        for child in children:
            child.tell(signal.SIGTERM)
        for child in children:
            child.end(GRACE_SECONDS + 5)
        with suppress(OSError):
            (self._home.path / "serve.json").unlink(missing_ok=True)
        shutil.rmtree(self._metrics, ignore_errors=True)

    def _write_state(self) -> None:
        state = Serving(
            pid=os.getpid(),
            workers=[w.pid for w in self._workers],
            data=self._urls[0],
            control=self._urls[1],
            grpc=self._grpc,
        )
        path = self._home.path / "serve.json"
        temporary = path.with_name(f".serve.{os.getpid()}.json")
        temporary.write_bytes(msgspec.json.encode(state))
        temporary.rename(path)


def _metrics_folder(home: Home) -> Path:
    """A folder for this server's metrics; those of servers that are gone are removed."""
    for left in home.folder("metrics").iterdir():
        if left.name.isdigit() and not Path(f"/proc/{left.name}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = home.folder("metrics") / str(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
