"""Arrow columns to the inputs of a graph: the offline twin of `graph.Feeder`, used wherever a whole table is scored."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.arrays import Array
from loopwright.graph.session import NAT, Graph, feed_arrays
from loopwright.records.declarations import Column

ARROW_TYPES: dict[str, Any] = {
    "float": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "array": pa.list_(pa.float32()),
}
"""Column type -> Arrow type, as tables, examples and logs hold it."""

_EMPTY: dict[str, Any] = {"float": 0.0, "integer": 0, "boolean": False, "string": ""}


def arrow_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """The Arrow schema of contract columns."""
    return pa.schema([pa.field(name, ARROW_TYPES[c.type], nullable=c.nullable) for name, c in columns.items()])


def as_declared(table: pa.Table, columns: Mapping[str, Column]) -> pa.Table:
    """A table in the types of the contract as it is now; null where a column was not logged or does not fit."""
    for name, column in columns.items():
        wanted = ARROW_TYPES[column.type]
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), wanted))
        elif not table[name].type.equals(wanted):
            try:
                values = table[name].cast(wanted)
            except pa.ArrowException:
                values = pa.nulls(len(table), wanted)
            table = table.set_column(table.column_names.index(name), name, values)
    return table


def arrow_arrays(columns: Mapping[str, Column], table: pa.Table) -> dict[str, tuple[Array, Array | None]]:
    """Each column of `columns` that `table` has, as (values [N], mask of nulls [N] or None); see `graph.feed_arrays`.

    Raises ValueError when a column that cannot be null has nulls. NaN stays NaN: only null is null.
    """
    return {
        name: arrow_array(name, column, table.column(name)) for name, column in columns.items() if name in table.column_names
    }


def arrow_array(name: str, column: Column, values: pa.ChunkedArray) -> tuple[Array, Array | None]:
    """One Arrow column as (values [N], mask of nulls [N] or None); timestamps as int64 microseconds, null = NAT.

    An array column (flat lists in row-major order) gives values float32 [N, *shape]. Raises ValueError for nulls or lengths that
    the contract does not allow.
    """
    if not values.type.equals(ARROW_TYPES[column.type]):
        values = values.cast(ARROW_TYPES[column.type])
    null = None
    if values.null_count:
        if not column.nullable:
            raise ValueError(f"column {name!r} has {values.null_count} nulls, and the contract does not allow it")
        null = values.is_null().to_numpy()
    if column.type == "timestamp":
        numbers = values.cast(pa.int64())
        return (pc.fill_null(numbers, NAT) if null is not None else numbers).to_numpy(), null
    if column.type == "array":
        return _stacked(name, column.shape or [], values, null), null
    if null is not None:
        values = pc.fill_null(values, _EMPTY[column.type])
    if column.type == "string":
        return _strings(values), null
    return values.to_numpy(), null


def _stacked(name: str, shape: list[int], values: pa.ChunkedArray, null: Array | None) -> Array:
    there, length = values.drop_null(), math.prod(shape)
    if not pc.all(pc.equal(pc.list_value_length(there), length)).as_py() and len(there):
        raise ValueError(f"column {name!r} has arrays of other than {length} numbers, and the contract says {shape}")
    flat: Array = pc.list_flatten(there).to_numpy().reshape(len(there), *shape)
    if null is None:
        return flat
    stacked = np.zeros((len(values), *shape), dtype=np.float32)
    stacked[~null] = flat
    return stacked


def numbers(values: pa.ChunkedArray) -> Array:
    """The numbers of a column as float64, nulls left out; of an array column the mean of each array.

    For bins and means only: an integer beyond 2**53 becomes the nearest float64, on both sides of every comparison.
    """
    there = values.drop_null()
    if not pa.types.is_list(values.type):
        found: Array = there.cast(pa.float64(), safe=False).to_numpy()
        return found
    lengths, flat = pc.list_value_length(there).to_numpy(), pc.list_flatten(there).to_numpy()
    means: Array = np.bincount(np.repeat(np.arange(len(there)), lengths), flat, len(there)) / np.maximum(lengths, 1)
    return means


def value_counts(values: pa.ChunkedArray | pa.Array) -> dict[Any, int]:
    """Rows of each value, null among them."""
    counted = pc.value_counts(values)
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def _strings(values: pa.ChunkedArray) -> Array:
    # Few distinct values are the rule: decode each once and gather (a quarter of the time of decoding every row).
    encoded = values.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks() if encoded.num_chunks != 1 else encoded.chunk(0)
    words = np.array(encoded.dictionary.to_pylist(), dtype=object)
    return words[encoded.indices.to_numpy(zero_copy_only=False)] if len(words) else np.array([], dtype=object)


def arrow_feed(graph: Graph, columns: Mapping[str, Column], table: pa.Table) -> dict[str, Array]:
    """The feed of a graph for every row of an Arrow table that has the columns the graph uses.

    Raises KeyError for a column that the table or the contract lacks, ValueError for a null that is not allowed.
    """
    used = {name: columns[name] for name in graph.columns}
    for name in used:
        if name not in table.column_names:
            raise KeyError(f"column {name!r} is not in the table")
    return feed_arrays(graph, arrow_arrays(used, table))


def segment_texts(values: pa.ChunkedArray | pa.Array) -> list[str | None]:
    """The segment of each row [N], named by `str` as in serving; None for null."""
    return [None if value is None else str(value) for value in values.to_pylist()]
