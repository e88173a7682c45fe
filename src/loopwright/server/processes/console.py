"""The console and the control API, next to the data plane: `python -m loopwright.server.processes.console LISTEN_FD FOLDER LINK_FD`.

A process of its own, so that its failures never affect predictions.
"""

import asyncio
import resource
import socket
import sys
from pathlib import Path

from loopwright.base import log_lines
from loopwright.base.settings import load_settings
from loopwright.base.supervision import report_to, watch_event_loop
from loopwright.server.api.access import Access
from loopwright.server.api.control import control
from loopwright.server.http.admission import Admission, places
from loopwright.server.http.listener import Listener
from loopwright.server.processes.child import supervised
from loopwright.stores.home import Home

LEDGER_SECONDS = 5.0
"""Timeout of a change over HTTP in the ledger's queue: then it is 503, and the client retries."""


def main(argv: list[str]) -> None:
    """Entry of the process."""
    listening, link = (socket.socket(fileno=int(fd)) for fd in (argv[0], argv[-1]))
    folder = Path(argv[1])
    log_lines.set_up("console")
    report_to(folder, "console")
    with Home(load_settings(), ledger_patience=LEDGER_SECONDS) as home:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        admission = Admission(places(home.settings.connections, files), home.settings.address_share)
        application = control(home, Access(home.settings, always=True), folder=folder)
        listener = Listener(application, admission, started=lambda: link.sendall(b"ready\n"))
        listener.heed_signals()

        def end() -> None:
            listener.should_exit = True

        supervised(link, end)

        async def serve() -> None:
            watch_event_loop()
            await listener.serve(sockets=[listening])

        with asyncio.Runner(loop_factory=listener.config.get_loop_factory()) as runner:
            runner.run(serve())


if __name__ == "__main__":
    main(sys.argv[1:])
