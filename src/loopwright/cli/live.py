"""Progress on a terminal: bars for running work."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from loopwright.base.printable import printable


class Live:
    """Bars for running work, with the log lines scrolling above them."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        """Print one log line; the stage or date at its start is highlighted."""
        text = printable(text, newlines=True)
        head, colon, rest = text.partition(": ")
        line = Text.assemble((head + colon, "bold cyan"), rest) if colon and len(head) <= 24 else Text(text)
        self._display.console.print(line)

    def advance(self, what: str, done: float, total: float) -> None:
        """Move the bar of `what`; it disappears when the work is complete."""
        if what not in self._tasks:
            self._tasks[what] = self._display.add_task(printable(what), total=total)
        task = self._tasks[what]
        self._display.update(task, completed=done, total=total)
        if done >= total:
            self._display.remove_task(self._tasks.pop(what))


def display() -> Progress:
    """A progress display on standard error."""
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
