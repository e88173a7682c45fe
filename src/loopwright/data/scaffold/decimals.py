"""Whether a file writes decimal commas: decided by all its columns, since one alone may hold nothing but `1,234`."""

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.data.ingest.values import is_text
from loopwright.records.declarations import Column, ColumnType

NUMBERS = ("1,234.5", "1.234,5")
"""Number formats other than the plain one."""

LOOKED_AT = 10_000
"""Rows of each column that are looked at."""

_COMMA = r"^\s*[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?\s*$"
_PROOF = r"^\s*[+-]?(0,\d+|\d+,\d{1,2}|\d+,\d{4,}|\d{4,},\d+|\d{1,3}(\.\d{3})+,\d+)\s*$"


def decimal_comma(frame: pa.Table) -> bool:
    """Whether a text column holds only numbers with decimal commas, at least one of which cannot be read with thousands' commas."""
    return any(_is_proof(column.slice(0, LOOKED_AT)) for column in frame.columns if is_text(column.type))


def numbers(*, comma: bool) -> tuple[list[Column], list[Column]]:
    """The numbers that text may be, likely ones first: those tried before times, and those tried after them."""
    types: tuple[ColumnType, ...] = ("integer", "float")
    points, commas = ([Column(t, format=f) for t in types] for f in NUMBERS)
    whole, real = Column("integer"), Column("float")
    return ([whole, *commas, real], points) if comma else ([whole, real], [*points, *commas])


def _is_proof(values: pa.ChunkedArray) -> bool:
    trimmed = pc.utf8_trim_whitespace(values.cast(pa.string()))
    written = trimmed.filter(pc.not_equal(trimmed, ""))
    every, some = pc.match_substring_regex(written, _COMMA), pc.match_substring_regex(written, _PROOF)
    return len(written) > 0 and bool(pc.all(every).as_py() and pc.any(some).as_py())
