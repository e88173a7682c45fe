"""Headings, facts and tables in a terminal, and how states look there."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loopwright.records.conditions import LOOKS, StateStyle
from loopwright.render.words import word

ALIKE = 10
"""Lines that are alike, of files, packages or reasons, are shown at most; `--json` has all."""

MAX_SEGMENTS = 12
"""Maximum number of segments shown."""


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


def fact_table(title: str, facts: Iterable[tuple[str, Any]]) -> RenderableType:
    """Names and values in two columns below a title, which may be empty."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(word(name), value if isinstance(value, Text) else plain(value))
    return Group(heading(title), grid) if title else grid


def state(word: str) -> Text:
    """A state with its sign and colour; numbers may follow it in brackets."""
    sign, style = LOOKS.get(word.partition(" (")[0], StateStyle("●", ""))
    return Text(f"{sign} {word}", style=style)
