"""A worker process of the data plane: `python -m loopwright.server.processes.worker LISTEN_FD HEARTBEAT LINK_FD`.

It serves on an inherited socket, follows the release files, and ends on request, or when its supervisor is gone.
"""

import asyncio
import faulthandler
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from logging import CRITICAL
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import msgspec
import uvloop

from loopwright import __version__
from loopwright.base import log_lines
from loopwright.base.outbound_http import receiver
from loopwright.base.settings import Settings, load_settings
from loopwright.base.supervision import Component, Repeating, report_to, together, watch_event_loop
from loopwright.deploy.serving.engine import ServingEngine
from loopwright.deploy.serving.heartbeat import Heartbeat
from loopwright.deploy.serving.registry import STAND_INS, Registry, StandIn, Watcher
from loopwright.deploy.serving.release_files import replace
from loopwright.records.releases import Arm
from loopwright.server.api.access import Access
from loopwright.server.api.app import DataPlane
from loopwright.server.api.loading import settle
from loopwright.server.api.metrics import Metrics
from loopwright.server.api.spans import Spans
from loopwright.server.api.spans import resource as resource_of
from loopwright.server.http.admission import Admission, places
from loopwright.server.http.connection import GRACE_SECONDS, Server
from loopwright.server.http.shared_port import address
from loopwright.server.processes.child import supervised
from loopwright.stores.home import Home

FOLLOW_SECONDS = 0.1
SWITCH_SECONDS = 0.0005
"""Switch interval of threads: a large request, or loading a package, delays small requests by this much; Python's own is ten times that."""

READY = b"ready\n"


def work(home: Home, listening: socket.socket, link: socket.socket, heartbeat: Heartbeat) -> None:
    """Serve until SIGTERM or until the other end of `link` is closed; `ready` is sent over it once requests are answered."""
    metrics = Metrics(heartbeat.path.stem, heartbeat.path.parent, home.folder("run"))
    logs, counts = Component("logs"), Component("metrics", needed=False)

    def every_second() -> None:
        heartbeat.beat(home.clock.monotonic())
        logs.round(engine.tick)
        counts.round(metrics.flush)
        log_lines.flush()

    budget = home.settings.memory * 2**20
    engine = ServingEngine(
        Registry(
            home.path,
            home.packages,
            home.online,
            home.clock,
            _watcher(metrics, heartbeat.path.with_name(STAND_INS)),
            budget=budget,
            heartbeat=heartbeat,
            threads=home.settings.threads,
        )
    )
    spans = _spans(home, metrics)
    app = DataPlane(engine, Access(home.settings, always=False), metrics, home.clock, version=__version__, spans=spans)
    server = Server(app, every_second=every_second, admission=_admission(home.settings))
    door = _grpc(home, engine, app, metrics)

    def drain(_number: int, _frame: FrameType | None) -> None:
        app.ready = False

    def follow() -> None:
        if engine.registry.refresh():
            settle()

    def end() -> None:
        server.should_exit = True

    sys.setswitchinterval(SWITCH_SECONDS)
    engine.registry.refresh()
    gc.collect()
    gc.freeze()  # exclude loaded objects from garbage collection, which takes 17 ms for them
    app.ready = True
    heartbeat.beat(home.clock.monotonic())  # from now on it counts among the workers
    following = Repeating("follow", follow, FOLLOW_SECONDS).start()
    signal.signal(signal.SIGUSR1, drain)
    supervised(link, end)

    server.heed_signals()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(server, door, home, listening, link))
    finally:
        following.stop()
        app.close()
        metrics.flush()
        if spans is not None:
            spans.close()
        engine.close()


async def _serve(server: Server, door: Any, home: Home, listening: socket.socket, link: socket.socket) -> None:
    watch_event_loop()
    if door is None:
        await server.serve(listening, lambda: link.sendall(READY))
        return
    await door.open(address(home.settings.host, home.settings.grpc_port))

    async def close_with_it() -> None:
        while not server.should_exit:
            await asyncio.sleep(0.1)
        await door.close(GRACE_SECONDS)

    await together(http=server.serve(listening, lambda: link.sendall(READY)), grpc=close_with_it())


def _admission(settings: Settings) -> Admission:
    """The connections of this worker, within its limit of open files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    doors = 1 if settings.grpc_port < 0 else 2
    return Admission(places(settings.connections, files // doors), settings.address_share)


def _grpc(home: Home, engine: ServingEngine, app: DataPlane, metrics: Metrics) -> Any:
    """The gRPC server, None without a port for it."""
    if home.settings.grpc_port < 0:
        return None
    from loopwright.server.api.grpc import Door  # not above: it needs an extra, and takes time and memory

    access = Access(home.settings, always=False)
    return Door(
        engine,
        access,
        metrics,
        app.batches,
        lambda: app.serves,
        version=__version__,
        spans=app.spans,
        admission=_admission(home.settings),
    )


def _spans(home: Home, metrics: Metrics) -> Spans | None:
    settings = home.settings
    if not settings.traces:
        return None
    about = resource_of(settings.service_name, settings.resource_attributes)
    return Spans(receiver(settings, "traces"), settings.trace_share, home.clock, __version__, metrics.traced, about)


def _watcher(metrics: Metrics, stand_ins: Path) -> Watcher:
    """Callbacks that count events of the engine and log failures to standard error; stand-ins also to `stand_ins`, for the supervisor."""

    def swapped(loop: str, arms: Sequence[Arm]) -> None:
        metrics.swapped(loop, arms)
        with suppress(OSError):
            (stand_ins / f"{loop}.json").unlink(missing_ok=True)

    def stood_in(loop: str, declared: str, instead: str, why: str) -> None:
        which = f"package {instead[:12]}, which served before, stands in" if instead else "no earlier one can stand in"
        log_lines.say(f"stood-in.{loop}", f"loop {loop}: package {declared[:12]} cannot be loaded, {which}: {why}", CRITICAL)
        with suppress(OSError):  # no room on the disk: it was logged
            stand_ins.mkdir(exist_ok=True)
            replace(stand_ins / f"{loop}.json", msgspec.json.encode(StandIn(package=declared, instead=instead, why=why)))

    def refused(loop: str, why: str) -> None:
        metrics.refused(loop, why)
        log_lines.say(f"refused.{loop}", f"loop {loop}: not switched, what served goes on: {why}")

    def unlogged(loop: str, count: int) -> None:
        metrics.unlogged(loop, count)
        log_lines.say(f"unlogged.{loop}", f"loop {loop}: {count} predictions could not be logged")

    return Watcher(swapped, refused, unlogged, metrics.loaded, stood_in)


def _dump(path: Path) -> BinaryIO:
    """The output file of `faulthandler`; os.devnull if there is no space for a file."""
    try:
        return path.open("wb", buffering=0)
    except OSError:
        return Path(os.devnull).open("wb", buffering=0)


def main(argv: list[str]) -> None:
    """Entry of the process."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a file for each loop in use, one for each connection
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    listening, link = (socket.socket(fileno=int(fd)) for fd in (argv[0], argv[-1]))
    heartbeat = Heartbeat(Path(argv[1]))
    log_lines.set_up(heartbeat.path.stem)
    report_to(heartbeat.path.parent, heartbeat.path.stem)
    with _dump(heartbeat.path.with_suffix(".dump")) as dump, Home(load_settings()) as home:
        faulthandler.enable(dump)  # which thread died, and where: its supervisor reads it
        work(home, listening, link, heartbeat)


if __name__ == "__main__":
    main(sys.argv[1:])
