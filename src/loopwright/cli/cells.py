"""Headings and tables in a terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from loopwright.render.words import word

ALIKE = 10


def plain(value: Any) -> Text:
    """A scalar in words: times to the minute in UTC, numbers short, absent values as a dash, digests to 12 digits."""
    return Text(word(value))


def heading(text: str) -> Text:
    """A heading."""
    return Text("\n" + word(text), style="bold")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> Table:
    """A table without borders; columns named in `right` hold numbers."""
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        wraps = column not in ("candidate", "package", "since", "when", "from")
        made.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=not wraps)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else plain(cell) for cell in row))
    return made
