"""Text of unknown origin (names of categories, owners, candidates, errors) in Markdown that people and pages render."""

import re
from collections.abc import Iterable, Sequence

from loopwright.base.printable import printable

_SIGNS = re.compile(r"[\\`*<>\[\]#|]|&(?=[#\w]+;)")


def plain(text: str) -> str:
    """The text as one line that means itself in Markdown: no markup, table cell, HTML or entity begins or ends in it."""
    return _SIGNS.sub(r"\\\g<0>", printable(" ".join(text.split())))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; each cell is `plain`."""
    return "\n".join(row(line) for line in (head, ["---"] * len(head), *rows))


def row(cells: Sequence[str]) -> str:
    """One row of a table; each cell is `plain`."""
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"
