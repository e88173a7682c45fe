"""Upkeep beside the server: `python -m loopwright.server.tending LINK_FD`, the verb `tend` until the supervisor is gone."""

import os
import signal
import socket
import sys

from loopwright.records.home import Home
from loopwright.records.printable import printable
from loopwright.records.settings import load_settings
from loopwright.server.child import supervised
from loopwright.verbs import verb


class Lines:
    """Tells progress as lines on standard error. See `records.progress.Progress`."""

    def say(self, text: str) -> None:
        """One line."""
        sys.stderr.write(f"tend: {printable(text)}\n")
        sys.stderr.flush()

    def advance(self, what: str, done: float, total: float) -> None:
        """Nothing to tell."""


def main(argv: list[str]) -> None:
    """Entry of the process."""
    link = socket.socket(fileno=int(argv[0]))

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # an orderly end gives the lease back
    supervised(link, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with Home(load_settings()) as home:
        verb("tend").call(home, progress=Lines())


if __name__ == "__main__":
    main(sys.argv[1:])
