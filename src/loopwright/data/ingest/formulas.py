"""Cells that a spreadsheet would run (`=HYPERLINK(...)`) as cells that it shows, and back again.

A text that begins like a formula gets an apostrophe before it, also where it has some already, and loses one on the way back; so any
text comes back as it was. Numbers with a sign are no formulas. See https://owasp.org/www-community/attacks/CSV_Injection
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

_FORMULA = r"^'*[=+\-@\t\r\n＝＋－＠]"
_NUMBER = r"^'*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def neutral(frame: pa.Table) -> pa.Table:
    """The frame with an apostrophe before every text that begins like a formula, column names too."""
    return _each(
        frame,
        lambda texts, formula: pc.if_else(formula, pc.binary_join_element_wise(pa.scalar("'"), texts, pa.scalar("")), texts),
    )


def original(frame: pa.Table) -> pa.Table:
    """Undo `neutral`."""
    return _each(frame, lambda texts, formula: pc.if_else(formula, pc.replace_substring_regex(texts, "^'", ""), texts))


def _each(frame: pa.Table, change: Callable[[pa.ChunkedArray, pa.ChunkedArray], pa.ChunkedArray]) -> pa.Table:
    def changed(texts: pa.ChunkedArray) -> pa.ChunkedArray:
        formula = pc.and_not(pc.match_substring_regex(texts, _FORMULA), pc.match_substring_regex(texts, _NUMBER))
        return change(texts, formula)

    columns = [changed(column) if pa.types.is_string(column.type) else column for column in frame.columns]
    return pa.table(columns, names=changed(pa.array(frame.column_names, pa.string())).to_pylist())
