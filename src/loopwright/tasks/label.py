"""The label of an outcome: from SQL expression to typed value, by task.

    boolean, string or float64, by `TaskShape.label`; for several targets list<float64>, in the order of `Outcome.labels`

A non-finite number, in the expression or as its result, counts as null; with several targets one null makes the label unknown (null).
"""

from typing import Any

import numpy as np
import pyarrow as pa

from loopwright.records.declarations import Outcome
from loopwright.sql.engine import text
from loopwright.sql.expression import row_sql

Array = np.ndarray[Any, Any]
_TYPES = {"boolean": ("BOOLEAN", pa.bool_()), "string": ("VARCHAR", pa.string()), "float": ("DOUBLE", pa.float64())}


def label_type(outcome: Outcome) -> pa.DataType:
    """The Arrow type of a label."""
    return pa.list_(pa.float64()) if len(outcome.labels) > 1 else _TYPES[outcome.shape.label][1]


def label_sql(outcome: Outcome) -> str:
    """DuckDB's SQL for the label of a row of the outcome table; null while it is unknown.

    Raises DeclarationInvalid when it is no expression over one row.
    """
    kind, _ = _TYPES[outcome.shape.label]
    casts = [f"CAST(({row_sql('Outcome', 'label', sql, outcome.table)}) AS {kind})" for sql in outcome.labels.values()]
    if kind != "DOUBLE":
        return casts[0]
    known = " AND ".join(f"isfinite({cast})" for cast in casts)
    whole = casts[0] if len(casts) == 1 else f"[{', '.join(casts)}]"
    return f"CASE WHEN {known} THEN {whole} END"


def absent_sql(outcome: Outcome) -> str:
    """DuckDB's SQL for the label of a decision that has no outcome when its wait is over; NULL where none is declared."""
    kind, _ = _TYPES[outcome.shape.label]
    return "NULL" if outcome.absent is None else f"CAST({text(outcome.absent)} AS {kind})"


def unit_array(table: pa.Table, column: str) -> Array:
    """The unit of each row of examples or of the log [N], as a number: its value of `column`, or its key; a row without one is its own."""
    names = table.column(column) if column in table.column_names else table.column("_unit")
    code = names.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return np.asarray(np.where(np.isnan(code), -1 - np.arange(len(code)), code), dtype=np.int64)


def label_array(labels: pa.ChunkedArray) -> Array:
    """Labels without nulls [N] as metrics and estimators take them: bool, string (objects) or float64 [N], or float64 [N, K]."""
    if pa.types.is_boolean(labels.type):
        return np.asarray(labels.to_numpy(), dtype=np.bool_)
    if pa.types.is_list(labels.type):
        flat = labels.combine_chunks().flatten().to_numpy()
        return np.asarray(flat, dtype=np.float64).reshape(len(labels), -1)
    return np.asarray(labels.to_numpy(), dtype=object if pa.types.is_string(labels.type) else np.float64)
