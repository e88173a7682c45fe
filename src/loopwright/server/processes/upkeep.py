"""Upkeep of the server: `python -m loopwright.server.processes.upkeep FOLDER ALERTS_FD LINK_FD`, runs `tend` until the supervisor is gone.

Its output goes to `tend.log` in home; alerts are also written to the supervisor's standard error (ALERTS_FD).
"""

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TextIO

from loopwright.base import log_lines
from loopwright.base.printable import printable
from loopwright.base.settings import load_settings
from loopwright.base.supervision import report_to
from loopwright.monitor import alerts
from loopwright.records.windows import alert_text
from loopwright.server.processes.child import supervised
from loopwright.stores.home import Home
from loopwright.verbs import verb


class Lines:
    """Reports progress as lines of the log. See `base.progress.Progress`."""

    def say(self, text: str) -> None:
        """One line."""
        log_lines.LOG.info("%s", text)

    def advance(self, what: str, done: float, total: float) -> None:
        """Bars are not logged."""


class AlertLines(logging.StreamHandler[TextIO]):
    """Write each alert that opens or closes as one line for the person at the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without characters that a terminal would obey."""
        return printable(f"loopwright: {alert_text(record.getMessage())}")


def main(argv: list[str]) -> None:
    """Entry of the process."""
    link = socket.socket(fileno=int(argv[-1]))
    log_lines.set_up("upkeep")
    report_to(Path(argv[0]), "upkeep")
    alerts.LOG.addHandler(AlertLines(os.fdopen(int(argv[1]), "w", encoding="utf-8", buffering=1)))

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # an orderly end gives the lease back
    supervised(link, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with Home(load_settings()) as home:
        verb("tend").call(home, progress=Lines())


if __name__ == "__main__":
    main(sys.argv[1:])
