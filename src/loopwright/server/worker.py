"""A worker process of the data plane: `python -m loopwright.server.worker LISTEN_FD LINK_FD`.

It serves on a socket it inherits, follows the local copies of the releases, and ends when told, or when its supervisor is gone.
"""

import asyncio
import socket
import sys
import threading

from loopwright import __version__
from loopwright.deploy.router import Router
from loopwright.deploy.services import Watcher
from loopwright.records.home import Home
from loopwright.records.settings import load_settings
from loopwright.server.access import Access
from loopwright.server.app import DataPlane
from loopwright.server.listener import Listener
from loopwright.server.metrics import Metrics

FOLLOW_SECONDS = 0.1
READY = b"ready\n"


def work(home: Home, listening: socket.socket, link: socket.socket) -> None:
    """Serve until SIGTERM or until the other end of `link` is closed; `ready` is sent over it once requests are answered."""
    metrics = Metrics()

    def every_second() -> None:
        router.tick()
        metrics.flush()

    router = Router(home.path, home.packages, home.online, home.clock, _watcher(metrics))
    app = DataPlane(router, Access(home.settings, always=False), metrics, home.clock, version=__version__)
    listener = Listener(app, ignore_interrupt=True, every_second=every_second)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(FOLLOW_SECONDS):
            router.refresh()

    def supervised() -> None:
        try:
            while link.recv(64):
                pass
        except OSError:
            pass
        listener.should_exit = True

    router.refresh()
    app.ready = True
    threads = [threading.Thread(target=t, name=t.__name__, daemon=True) for t in (follow, supervised)]
    for thread in threads:
        thread.start()

    async def serve() -> None:
        serving = asyncio.ensure_future(listener.serve(sockets=[listening]))
        while not listener.started and not serving.done():
            await asyncio.sleep(0.005)
        if listener.started:
            link.sendall(READY)
        await serving

    try:
        with asyncio.Runner(loop_factory=listener.config.get_loop_factory()) as runner:
            runner.run(serve())
    finally:
        over.set()
        threads[0].join()
        app.close()
        router.close()


def _watcher(metrics: Metrics) -> Watcher:
    """Counts what a router tells, and says what went wrong on standard error."""

    def refused(loop: str, why: str) -> None:
        metrics.refused(loop, why)
        sys.stderr.write(f"loopwright: loop {loop}: not switched, what served goes on: {why}\n")

    def unlogged(loop: str, count: int) -> None:
        metrics.unlogged(loop, count)
        sys.stderr.write(f"loopwright: loop {loop}: {count} predictions could not be logged\n")

    return Watcher(metrics.swapped, refused, unlogged)


def main(argv: list[str]) -> None:
    """Entry of the process."""
    listening, link = (socket.socket(fileno=int(fd)) for fd in argv)
    with Home(load_settings()) as home:
        work(home, listening, link)


if __name__ == "__main__":
    main(sys.argv[1:])
