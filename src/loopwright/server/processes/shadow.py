"""Shadows of the server: `python -m loopwright.server.processes.shadow FOLDER LINK_FD`, which runs only while a loop has a shadow.

A process of its own, with the lowest priority: it takes no time from requests, and a package that crashes takes down nothing else.
"""

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from loopwright.base import log_lines
from loopwright.base.settings import load_settings
from loopwright.base.supervision import Component, report_to
from loopwright.deploy.serving.shadow import ShadowCounts, Shadows
from loopwright.server.api.metrics import Metrics
from loopwright.server.processes.child import supervised
from loopwright.stores.home import Home

PAUSE_SECONDS, FLUSH_SECONDS = 0.1, 1.0


def _last() -> None:
    """Let every other process go first: under load the shadow gets what is left."""
    os.nice(19)
    with suppress(OSError, AttributeError):  # a system without it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main(argv: list[str]) -> None:
    """Entry of the process."""
    link, run = socket.socket(fileno=int(argv[-1])), Path(argv[0])
    log_lines.set_up("shadows")
    report_to(run, "shadows")
    _last()
    over = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    supervised(link, over.set)
    with Home(load_settings()) as home:
        metrics = Metrics("shadows", run, home.folder("run"))

        def counted(loop: str, counts: ShadowCounts) -> None:
            metrics.shadowed(loop, counts.answered, counts.dropped)

        def report(line: str) -> None:
            log_lines.say(line, line)

        shadows, part, flushed = Shadows(home, run, counted, report), Component("shadows", needed=False), 0.0
        while not over.wait(PAUSE_SECONDS):
            part.round(shadows.round)
            if home.clock.monotonic() - flushed > FLUSH_SECONDS:
                metrics.flush()
                log_lines.flush()
                flushed = home.clock.monotonic()
        shadows.close()
        metrics.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
