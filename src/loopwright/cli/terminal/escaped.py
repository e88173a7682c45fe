"""Rich output without control characters in its text."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from loopwright.base.printable import printable


class Escaped:
    """A renderable of which only the styles reach the terminal as control sequences: the text of every segment is escaped."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        """The segments of the renderable, escaped."""
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, newlines=True), segment.style)
