"""The console and the control API beside the data plane: `python -m loopwright.server.controlling LISTEN_FD LINK_FD`.

A process of its own, so that whatever happens to it, predictions go on.
"""

import asyncio
import resource
import socket
import sys

from loopwright.records.home import Home
from loopwright.records.settings import load_settings
from loopwright.server.access import Access
from loopwright.server.admission import Admission, places
from loopwright.server.child import supervised
from loopwright.server.control import control
from loopwright.server.listener import Listener


def main(argv: list[str]) -> None:
    """Entry of the process."""
    listening, link = (socket.socket(fileno=int(fd)) for fd in argv)
    with Home(load_settings()) as home:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        admission = Admission(places(home.settings.connections, files), home.settings.address_share)
        listener = Listener(control(home, Access(home.settings, always=True)), admission)
        listener.heed_signals()

        def end() -> None:
            listener.should_exit = True

        supervised(link, end)

        async def serve() -> None:
            serving = asyncio.ensure_future(listener.serve(sockets=[listening]))
            while not listener.started and not serving.done():
                await asyncio.sleep(0.005)
            if listener.started:
                link.sendall(b"ready\n")
            await serving

        with asyncio.Runner(loop_factory=listener.config.get_loop_factory()) as runner:
            runner.run(serve())


if __name__ == "__main__":
    main(sys.argv[1:])
