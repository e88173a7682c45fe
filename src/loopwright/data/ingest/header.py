"""The names of the columns of a text table: from its first line, from a person, or counted; and whether a first line holds names."""

import re
from collections.abc import Sequence

from loopwright.base.errors import IngestRefused
from loopwright.data.ingest.source_reader import Reading

MAX_COLUMNS = 10_000
"""Limit for a header, or for the keys of JSON objects together; a file with more is not a table with a row per decision."""

_NUMBER = re.compile(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*")
_DAY = re.compile(r"\s*(\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{2,4})([ T].*)?")


def column_names(first: list[str], rows: Sequence[Sequence[str]], reading: Reading, name: str) -> tuple[list[str], bool]:
    """The names of the columns, and whether the first line holds them.

    `first` has the fields of the first line [N], `rows` those of some lines after it. A repeated name gets the number
    of its column: `x`, `x#3`. Raises IngestRefused where the first line looks like data and no option says what it is.
    """
    asked = list(reading.names)
    if asked and len(asked) != len(first):
        raise IngestRefused(name, f"--names has {len(asked)} names and its first line {len(first)} columns")
    if not asked and not reading.no_header and looks_like_a_row(first, rows):
        shown = ", ".join(first[:4]) + (", ..." if len(first) > 4 else "")
        why = f"its first line ({shown}) looks like a row, not like the names of columns: say --no-header or --names A,B,..."
        raise IngestRefused(name, f"{why} (with the names of the first line itself it is a header)")
    header = asked == first or not (asked or reading.no_header)
    names = asked or (first if header else [f"column_{i + 1}" for i in range(len(first))])
    return [n if n not in names[:i] else f"{n}#{i + 1}" for i, n in enumerate(names)], header


def check_columns(count: int, name: str) -> None:
    """Raise IngestRefused for too many columns."""
    if count > MAX_COLUMNS:
        raise IngestRefused(name, f"it has more than {MAX_COLUMNS:,} columns")


def looks_like_a_row(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first line of a table looks like data, judged by numbers, dates and repeated words in the lines after it.

    Every column that allows a judgement must agree: a number within the range of the numbers below it, a date above dates, a word
    that occurs again below. A first line that counts from 0 or 1 is a header.
    """
    rows = [r for r in rows if len(r) == len(first)]
    if len(rows) < 3 or list(first) in ([str(i) for i in range(len(first))], [str(i + 1) for i in range(len(first))]):
        return False
    said = [_is_value(cell, [row[i] for row in rows if row[i].strip()]) for i, cell in enumerate(first)]
    return any(said) and False not in said


def _is_value(cell: str, below: Sequence[str]) -> bool | None:
    """Whether a cell resembles those below it; None if undecidable."""
    if not cell.strip() or len(below) < 3:
        return None
    if all(_NUMBER.fullmatch(v) for v in below):
        numbers = [float(v.replace(",", ".")) for v in below]
        if not _NUMBER.fullmatch(cell):
            return False
        margin = max(numbers) - min(numbers)
        return min(numbers) - margin <= float(cell.replace(",", ".")) <= max(numbers) + margin or None
    if all(_DAY.fullmatch(v) for v in below):
        return _DAY.fullmatch(cell) is not None
    kinds = set(below)
    return cell in kinds if len(kinds) <= len(below) / 3 else None
