"""How values are written in a terminal: words, numbers, intervals, headings and tables."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from loopwright.records.evaluation import Estimate
from loopwright.records.printable import printable

NEVER = "–"
ALIKE = 10


def plain(value: Any) -> Text:
    """A scalar in words: times to the minute in UTC, numbers short, absent values as a dash, digests to 12 digits."""
    return Text(word(value))


def word(value: Any) -> str:
    """A value in words, as `plain` writes it."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return NEVER
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, Estimate):
        return interval(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {word(v)}" for k, v in value.items()) or NEVER
    if isinstance(value, list | tuple | set):
        return ", ".join(word(v) for v in value) or NEVER
    if isinstance(value, msgspec.Struct):
        return ", ".join(f"{n} {word(getattr(value, n))}" for n in value.__struct_fields__)
    return printable(str(value), newlines=True)


def number(value: float) -> str:
    """A number with as many digits as matter: 1,234,567; 12.3; 0.0123."""
    if math.isnan(value):
        return NEVER
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 or value == int(value) else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def count(number_of: int, thing: str) -> str:
    """How many of a thing: `1 row`, `3 rows`."""
    return f"{number_of:,} {thing}" if number_of == 1 else f"{number_of:,} {thing}s"


def interval(estimate: Estimate) -> str:
    """A value with its 95 % interval."""
    if math.isnan(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def short(digest: str) -> str:
    """The first twelve digits of a digest: enough to name it in any command."""
    return digest[:12] or NEVER


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
