"""Progress of running work: a live display on a terminal, plain lines elsewhere; always on standard error."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loopwright.base.printable import printable
from loopwright.base.progress import Progress
from loopwright.records.windows import alert_text

STEP = 0.25
"""Plain lines report progress each time another quarter is done."""


class PlainLines:
    """The story line by line, for logs and pipes."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line of the story."""
        print(printable(text, newlines=True), file=sys.stderr, flush=True)

    def advance(self, what: str, done: float, total: float) -> None:
        """A line whenever another quarter of `what` is done."""
        share = done / total if total else 1.0
        told = self._told.get(what, 0.0)
        if share < told:
            told = 0.0
        if share - told >= STEP or (share >= 1.0 > told):
            self._told[what] = share
            print(printable(f"{what}: {share:.0%}"), file=sys.stderr, flush=True)


class Alerts(logging.Handler):
    """Print alerts as lines of the terminal output (closed alerts are left out); other handlers still get the structured line."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line per alert; other messages (a webhook that failed) are printed unchanged."""
        self._progress.say(alert_text(record.getMessage()))


@contextmanager
def _print_alerts(progress: Progress) -> Iterator[Progress]:
    """Send alerts of `loopwright.alerts` to `progress` while the block runs."""
    log, handler = logging.getLogger("loopwright.alerts"), Alerts(progress)
    log.addHandler(handler)
    try:
        yield progress
    finally:
        log.removeHandler(handler)


@contextmanager
def listener(*, as_json: bool) -> Iterator[Progress]:
    """The listener for a verb's progress: a live display on a terminal (not for machines), else plain lines."""
    if as_json or not sys.stderr.isatty():
        with _print_alerts(PlainLines()) as plain:
            yield plain
        return
    from loopwright.cli.live import Live, display  # here: rich, which plain lines need not

    with display() as shown, _print_alerts(Live(shown)) as live:
        yield live
