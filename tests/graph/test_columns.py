from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loopwright.graph.columns import ARROW_TYPES, arrow_array, arrow_arrays, arrow_schema, numbers
from loopwright.graph.session import NAT
from loopwright.records.declarations import Column, ColumnType

VALUES: dict[ColumnType, tuple[list[Any], list[Any]]] = {
    "float": ([1.5, None, float("inf")], [1.5, 0.0, float("inf")]),
    "integer": ([2**62, None, -1], [2**62, 0, -1]),
    "boolean": ([True, None, False], [True, False, False]),
    "string": (["a", None, "\u2205"], ["a", "", "\u2205"]),
    "timestamp": ([1_000_001, None, -5], [1_000_001, NAT, -5]),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("chunks", [1, 3])
def test_values_and_nulls_come_apart(kind: ColumnType, chunks: int) -> None:
    given, expected = VALUES[kind]
    parts = [given] if chunks == 1 else [[v] for v in given]
    values, null = arrow_array("x", Column(kind, nullable=True), pa.chunked_array(parts, type=ARROW_TYPES[kind]))
    assert values.tolist() == expected
    assert null is not None
    assert null.tolist() == [False, True, False]
    whole, none = arrow_array("x", Column(kind), pa.chunked_array([[given[0], given[2]]], type=ARROW_TYPES[kind]))
    assert whole.tolist() == [expected[0], expected[2]]
    assert none is None


@pytest.mark.parametrize("kind", VALUES)
def test_nulls_against_the_contract_are_refused(kind: ColumnType) -> None:
    with pytest.raises(ValueError, match="'x' has 1 nulls"):
        arrow_array("x", Column(kind), pa.chunked_array([[None]], type=ARROW_TYPES[kind]))


def test_near_types_are_cast_and_others_refused() -> None:
    small = pa.chunked_array([pa.array([1, 2], type=pa.int16())])
    assert arrow_array("x", Column("integer"), small)[0].dtype == np.int64
    assert arrow_array("x", Column("float"), small)[0].tolist() == [1.0, 2.0]
    large = pa.chunked_array([pa.array(["a", "b"]).cast(pa.large_string()).dictionary_encode()])
    assert arrow_array("x", Column("string"), large)[0].tolist() == ["a", "b"]
    nanoseconds = pa.chunked_array([pa.array([3_000], type=pa.timestamp("ns", tz="UTC"))])
    assert arrow_array("x", Column("timestamp"), nanoseconds)[0].tolist() == [3]
    with pytest.raises(pa.ArrowInvalid):
        arrow_array("x", Column("float"), pa.chunked_array([["fast"]]))


def test_only_columns_that_are_there_are_taken() -> None:
    columns = {"a": Column("float"), "b": Column("string", nullable=True)}
    assert list(arrow_arrays(columns, pa.table({"a": [1.0], "c": [2]}))) == ["a"]
    assert arrow_schema(columns) == pa.schema([pa.field("a", pa.float64(), nullable=False), pa.field("b", pa.string())])


def test_arrays_are_flat_lists_in_arrow_and_have_their_shape_in_a_graph() -> None:
    column = Column("array", shape=[2, 2], nullable=True)
    chunked = pa.chunked_array([[[1.0, 2, 3, 4], None], [[5.0, 6, 7, 8]]], pa.list_(pa.float32())).slice(1)
    values, null = arrow_array("v", column, chunked)
    assert values.dtype == np.float32
    assert values.tolist() == [[[0, 0], [0, 0]], [[5, 6], [7, 8]]]
    assert null is not None
    assert null.tolist() == [True, False]
    fixed = pa.chunked_array([pa.array([[1.5, 2, 3, 4]], pa.list_(pa.float64(), 4))])
    assert arrow_array("v", column, fixed)[0].tolist() == [[[1.5, 2], [3, 4]]]
    assert arrow_array("v", column, chunked.slice(0, 0))[0].shape == (0, 2, 2)
    with pytest.raises(ValueError, match="arrays of other than 4 numbers"):
        arrow_array("v", column, pa.chunked_array([[[1.0]]], pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="1 nulls"):
        arrow_array("v", Column("array", shape=[2, 2]), chunked)


def test_the_numbers_of_a_column_are_its_own_or_the_means_of_its_arrays() -> None:
    assert numbers(pa.chunked_array([[1, None, 3]])).tolist() == [1.0, 3.0]
    arrays = pa.chunked_array([[[1.0, 2.0], None, [float("nan"), 1.0]]], pa.list_(pa.float32()))
    np.testing.assert_array_equal(numbers(arrays), [1.5, float("nan")])
    assert numbers(arrays.slice(0, 0)).tolist() == []
