"""How long work is shown while it runs: a live display on a terminal, plain lines elsewhere; always on standard error."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loopwright.base.printable import printable
from loopwright.base.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

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


class Live:
    """Bars for what is under way, the story scrolling above them."""

    def __init__(self, display: "Display") -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        """One line of the story; the stage or date it begins with stands out."""
        from rich.text import Text

        text = printable(text, newlines=True)
        head, colon, rest = text.partition(": ")
        line = Text.assemble((head + colon, "bold cyan"), rest) if colon and len(head) <= 24 else Text(text)
        self._display.console.print(line)

    def advance(self, what: str, done: float, total: float) -> None:
        """Move the bar of `what`; it disappears when all is done."""
        if what not in self._tasks:
            self._tasks[what] = self._display.add_task(printable(what), total=total)
        task = self._tasks[what]
        self._display.update(task, completed=done, total=total)
        if done >= total:
            self._display.remove_task(self._tasks.pop(what))


class Alerts(logging.Handler):
    """Alerts as lines of the story (that one closed is not told); the structured line stays what other handlers get."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """One line for one alert; what is not an alert (a webhook that failed) is shown as it is."""
        from loopwright.monitor.alerts import in_words  # here: progress is shown by commands that load no stage

        self._progress.say(in_words(record.getMessage()))


@contextmanager
def _print_alerts(progress: Progress) -> Iterator[Progress]:
    """Tell the alerts of `loopwright.alerts` to `progress` while the block runs."""
    log, handler = logging.getLogger("loopwright.alerts"), Alerts(progress)
    log.addHandler(handler)
    try:
        yield progress
    finally:
        log.removeHandler(handler)


@contextmanager
def listener(*, as_json: bool) -> Iterator[Progress]:
    """Who listens to a verb's progress: a live display on a terminal (not for machines), else plain lines."""
    if as_json or not sys.stderr.isatty():
        with _print_alerts(PlainLines()) as plain:
            yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    display = Display(*columns, console=Console(stderr=True), transient=True, expand=True)
    with display, _print_alerts(Live(display)) as live:
        yield live
