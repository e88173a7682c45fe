"""The control process: opens the sockets, starts workers, console and upkeep, restarts dead ones, follows the ledger, shuts down in order.

Workers share one listening socket: while one is restarted the others answer, and connections wait in the socket's queue.
A package that kills or hangs workers is taken out of service (`server.processes.crashes`).
"""

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

import msgspec

from loopwright.base import log_lines
from loopwright.base.errors import LoopwrightError, Unavailable
from loopwright.base.files import replace_file
from loopwright.base.holder import Holder, this_process
from loopwright.base.supervision import Component, Repeating, report_to
from loopwright.deploy.serving.heartbeat import FOLDER, Heartbeat
from loopwright.deploy.serving.registry import STAND_INS
from loopwright.deploy.serving.release_files import Follower
from loopwright.deploy.serving.release_files import folder as copies
from loopwright.deploy.serving.shadow import ShadowWatch
from loopwright.deploy.serving.suspects import FILE as SUSPECTS
from loopwright.deploy.serving.suspects import Suspects
from loopwright.server.api.access import check_address, is_loopback
from loopwright.server.api.first_steps import first_steps
from loopwright.server.http.connection import GRACE_SECONDS
from loopwright.server.http.listener import listen, url
from loopwright.server.http.shared_port import address, check_extras, reserve
from loopwright.server.processes.child import Child
from loopwright.server.processes.crashes import (
    DEATHS,
    HUNG_SECONDS,
    WITHIN_SECONDS,
    Blame,
    Cause,
    Deaths,
    QueriesOfDeath,
    blamed,
    condemn,
    crashed,
    kills_for_memory,
    record_bad,
    thread_of,
    withdraw_bad,
)
from loopwright.server.processes.stand_ins import StandIns
from loopwright.stores.home import Home

FOLLOW_SECONDS = 0.25
FOLLOW_FIRST_SECONDS = 2.0
"""Maximum seconds that a start without release files waits for the ledger."""

WATCH_SECONDS = 0.05
START_SECONDS = 60.0
DRAIN_SECONDS = 5
"""Seconds of failing readiness after SIGTERM if other machines may send requests and no setting says how long."""

MAX_DUMP = 4096


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `home/serve.json`: a running server's process, its workers, and its addresses."""

    pid: int
    holder: Holder
    workers: list[int]
    data: str
    control: str
    grpc: str = ""


class Worker:
    """A supervised worker process and its heartbeat, which is read when it dies or hangs."""

    def __init__(
        self, home: Home, fd: int, folder: Path, number: int, environment: dict[str, str], say: Callable[[str], None]
    ) -> None:
        self._home, self._say = home, say
        self._file = folder / f"worker-{number}.heartbeat"
        self.heartbeat = Heartbeat.fresh(self._file)
        self.blamed: list[Blame] = []
        arguments = [str(fd), str(self._file)]
        module = "loopwright.server.processes.worker"
        self.child = Child(
            home.clock, module, arguments, fds=[fd], environment=environment, ended=self._ended, name=self._file.stem
        )
        self.failed = False
        self._hung, self._kills = "", kills_for_memory()

    def look(self) -> None:
        """Start it if it is due; kill it if its event loop hangs, or if it does not come up."""
        if self.child.keep():
            self._kills = kills_for_memory()
        pid = self.child.pid
        if not pid or self._hung:
            return
        now, beaten = self._home.clock.monotonic(), self.heartbeat.beaten
        if beaten and self.heartbeat.pid == pid:
            silent, limit = now - beaten, HUNG_SECONDS
        else:
            silent, limit = now - self.child.begun, START_SECONDS
        if silent > limit:
            self._hung = f"did not go on for {limit:.0f} seconds"
            self.child.tell(signal.SIGKILL)

    def _ended(self, code: int) -> None:
        """Blame a worker's death on its activity."""
        busy, main, dump = self.heartbeat.busy(), self.heartbeat.main, self._dump()
        self.heartbeat.clear()
        hung, self._hung = self._hung, ""
        self.failed = code > 0 and not self.child.ready
        thread = thread_of(dump) if not hung else main or None
        if hung:
            cause: Cause = "hang"
            said, packages = hung, blamed(busy, thread)
        elif crashed(code, out_of_memory=kills_for_memory() > self._kills):
            cause = "crash"
            said = f"was killed by {signal.Signals(-code).name}"
            packages = blamed(busy, thread)
        else:
            self._say(_gone("a worker", code))
            return
        doing = {b.package: "loading" if b.doing == "loads" else "asking" for b in busy}
        for package in packages:
            ran = [b for b in busy if b.package == package and b.doing == "answers" and thread in (None, b.thread)]
            inputs = tuple(dict.fromkeys(input for b in ran for input in b.inputs))
            answered = max((b.answered for b in ran), default=0)
            self.blamed.append(Blame(package, cause, f"a worker {said} while {doing[package]} it", inputs, answered))
        told = f", while {doing[packages[0]]} package {packages[0][:12]}" if packages else ""
        self._say(f"a worker {said}{told}")
        if b"Current thread" in dump:  # where it was
            self._say(dump[dump.index(b"Current thread") :][:MAX_DUMP].decode("utf-8", "replace"))

    def _dump(self) -> bytes:
        """The output of its crash handler."""
        try:
            return self._file.with_suffix(".dump").read_bytes()
        except FileNotFoundError:
            return b""


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
        try:
            server = Supervisor(home, data, controlling, grpc, settings.workers if workers is None else workers, tend=tend)
        except OSError as error:
            raise Unavailable(f"the server's own files cannot be written: {error.strerror} ({home.path})") from error
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
        self._home = home
        host = home.settings.host
        self._urls = url(data, host), url(controlling, host)
        grpc_port = grpc.getsockname()[1] if grpc is not None else -1
        self._grpc = address(host, grpc_port) if grpc is not None else ""
        self._metrics, run = own_folder(home, "metrics"), own_folder(home, FOLDER)
        self._folders = [self._metrics, run]
        self._run_folder, self._rounds = run, Component("watch")
        environment = {
            **os.environ,
            **home.settings.environment(),
            "LOOPWRIGHT_GRPC_PORT": str(grpc_port),
            "PROMETHEUS_MULTIPROC_DIR": str(self._metrics),
            "OMP_NUM_THREADS": "1",
        }
        self._workers = [Worker(home, data.fileno(), run, i, environment, _complain) for i in range(workers)]
        fd, log = controlling.fileno(), home.path / "tend.log"
        self._console = Child(
            home.clock,
            "loopwright.server.processes.console",
            [str(fd), str(run)],
            fds=[fd],
            environment=environment,
            ended=lambda code: _complain(_gone("the console", code)),
            name="console",
        )
        self._others = [self._console]
        self._shadow = _shadow_process(home, run, environment)
        self._shadow_watch, self._shadowed = ShadowWatch(home), False
        self._standard_error = os.dup(2)  # upkeep's own stderr goes to its log, its alerts come here
        if tend:
            self._others.append(
                Child(
                    home.clock,
                    "loopwright.server.processes.upkeep",
                    [str(run), str(self._standard_error)],
                    fds=[self._standard_error],
                    environment=environment,
                    log=log,
                    ended=lambda code: _complain(_gone("upkeep", code)),
                    name="upkeep",
                )
            )
        self._followed, self._told, self._hurried = threading.Event(), False, False
        self._holder = this_process("serve", 0.0)
        self._started, self._written = False, [0] * workers
        self._follower, self._deaths = Follower(home), Deaths()
        self._queries = QueriesOfDeath(Suspects.fresh(run / SUSPECTS))
        self._stand_ins = StandIns(run / STAND_INS)

    def run(self, announce: Callable[[str], None]) -> None:
        """Start everything, supervise it until asked to stop, stop everything."""
        self._heed_signals()
        log_lines.set_up()
        report_to(self._run_folder, "supervisor")
        threads = [
            Repeating("follow-ledger", self._follow, FOLLOW_SECONDS, at_once=True).start(),
            Repeating("withdraw", self._withdraw, FOLLOW_SECONDS).start(),
        ]
        try:
            if not any(copies(self._home).glob("*.json")):  # no release files: wait for the ledger
                self._followed.wait(FOLLOW_FIRST_SECONDS)
            self._start()
            if not self._told:
                grpc = f", gRPC at {self._grpc}" if self._grpc else ""
                ready = f"ready: predictions at {self._urls[0]}{grpc}, console at {self._urls[1]}"
                announce("\n".join([ready, *first_steps(self._home, *self._urls)]))
            while not self._told:
                self._rounds.round(self._watch)
                log_lines.flush()
                time.sleep(WATCH_SECONDS)
            self._drain()
        finally:
            for thread in threads:
                thread.over.set()
            self._end()

    def _heed_signals(self) -> None:
        def stop(number: int, _frame: FrameType | None) -> None:
            self._hurried = self._told or number == signal.SIGINT
            self._told = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def _start(self) -> None:
        """Start everything and wait until it is ready; children that die by a signal are restarted. Raises Unavailable."""
        until = self._home.clock.monotonic() + START_SECONDS
        children = [self._console, *(worker.child for worker in self._workers)]
        while not self._told:
            self._watch()
            if all(child.ready for child in children):
                self._followed.wait(FOLLOW_FIRST_SECONDS)
                self._started = True
                self._write_state()
                return
            if any(worker.failed for worker in self._workers) or self._home.clock.monotonic() > until:
                raise Unavailable("a worker did not start; its output is above")
            time.sleep(0.01)

    def _watch(self) -> None:
        """Supervise everything; deaths of workers are counted."""
        try:
            for worker in self._workers:
                worker.look()
            for child in self._others:
                child.keep()
            self._keep_shadow()
            if self._started and self._pids() != self._written:
                self._write_state()
        except OSError as error:  # no process or file to be had just now
            _complain(f"a process could not be started: {error}")
            time.sleep(1.0)
        for worker in self._workers:
            self._judge(worker)

    def _keep_shadow(self) -> None:
        """Run the process of shadows while a loop has one."""
        if self._shadowed:
            self._shadow.keep()
        elif self._shadow.pid:
            self._shadow.tell(signal.SIGTERM)

    def _judge(self, worker: Worker) -> None:
        """Count a worker's deaths, overruns and reported failures against packages and inputs."""
        now = self._home.clock.monotonic()
        for package, cause, detail, inputs, answered in worker.blamed:
            inputs = inputs if self._queries.trusts(package, answered) else ()
            self._strike(package, inputs)
            if self._deaths.count(package, now, inputs):
                self._condemn(package, cause, f"{DEATHS} times within {WITHIN_SECONDS / 60:.0f} minutes, at last: {detail}")
        worker.blamed.clear()
        for overrun in worker.heartbeat.troubles.take_overruns():
            if self._queries.trusts(overrun.package, overrun.answered):
                self._strike(overrun.package, overrun.inputs)
        for package in worker.heartbeat.troubles.take_failing():
            self._condemn(package, "failures", "its model failed again and again, and the heuristic answered")

    def _strike(self, package: str, inputs: tuple[bytes, ...]) -> None:
        for line in self._queries.strike(package, inputs):
            _complain(line)

    def _condemn(self, package: str, cause: Cause, detail: str) -> None:
        try:
            _complain(condemn(self._home, package, cause, detail))
        except (LoopwrightError, OSError) as error:
            _complain(f"package {package[:12]} is bad and cannot be marked: {error}")

    def _pids(self) -> list[int]:
        return [worker.child.pid for worker in self._workers]

    def _follow(self) -> None:
        """Copy the ledger to the release files, and bad packages to the ledger; while it is down the files stay unchanged."""
        try:
            self._shadowed = self._shadow_watch()
            self._follower.follow()
            record_bad(self._home)
            self._queries.record(self._home)
            self._stand_ins.record(self._home)
        except LoopwrightError as error:  # the ledger is away: that is no fault of this thread
            log_lines.say("follow", f"the ledger is not followed, what serves goes on: {error}")
        finally:
            self._followed.set()

    def _withdraw(self) -> None:
        """Bad packages out of service, in a thread of its own: nothing may keep it waiting."""
        for line in withdraw_bad(self._home):
            log_lines.say(line, line)

    def _drain(self) -> None:
        """Be unready for a while and answer on, so that load balancers go elsewhere; SIGINT or a second signal cuts it short."""
        seconds = self._home.settings.drain_seconds
        if seconds < 0:
            seconds = 0 if is_loopback(self._home.settings.host) else DRAIN_SECONDS
        until = self._home.clock.monotonic() + seconds
        draining: list[int] = []
        while not self._hurried and self._home.clock.monotonic() < until:
            for worker in self._workers:
                if worker.child.ready and worker.child.pid not in draining:
                    draining.append(worker.child.pid)
                    worker.child.tell(signal.SIGUSR1)
            self._rounds.round(self._watch)
            time.sleep(WATCH_SECONDS)

    def _end(self) -> None:
        children = [*(worker.child for worker in self._workers), *self._others, self._shadow]
        for child in children:
            child.tell(signal.SIGTERM)
        for child in children:
            child.end(GRACE_SECONDS + 5)
        os.close(self._standard_error)
        with suppress(OSError):
            (self._home.path / "serve.json").unlink(missing_ok=True)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_state(self) -> None:
        state = Serving(
            pid=os.getpid(),
            holder=self._holder,
            workers=self._pids(),
            data=self._urls[0],
            control=self._urls[1],
            grpc=self._grpc,
        )
        path = self._home.path / "serve.json"
        try:
            replace_file(path, msgspec.json.encode(state), durable=False)
        except OSError as error:  # a full disk: the next round tries again
            log_lines.say("state", f"serve.json is not written: {error.strerror}")
        else:
            self._written = state.workers


def _shadow_process(home: Home, run: Path, environment: dict[str, str]) -> Child:
    """The process of shadows, not started."""
    return Child(
        home.clock,
        "loopwright.server.processes.shadow",
        [str(run)],
        fds=[],
        environment=environment,
        ended=lambda code: _complain(_gone("the shadow", code) if code else ""),
        name="shadows",
    )


def own_folder(home: Home, name: str) -> Path:
    """Create this server's own folder in home, and remove the folders of servers that no longer run."""
    for left in home.folder(name).iterdir():
        if left.name.isdigit() and not Path(f"/proc/{left.name}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = home.folder(name) / str(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _gone(who: str, code: int) -> str:
    """Log text on a process that ended by itself or was killed."""
    killer = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
    return f"{who} {f'was killed by {killer}' if code < 0 else f'ended with {code}'}; it is started again"


def _complain(line: str) -> None:
    if line:
        log_lines.LOG.warning("%s", line)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
