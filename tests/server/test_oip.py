import json
from typing import Any

import pytest

from loopwright.deploy.decode import Decoder
from loopwright.records.declarations import Column
from loopwright.records.errors import RequestInvalid
from loopwright.records.package import Output
from loopwright.server.oip import Tensors, outputs
from loopwright.server.openapi import column_schema

COLUMNS = {"image": Column("array", shape=[2, 2]), "mood": Column("array", shape=[3], nullable=True), "n": Column("integer")}
KNOWN = outputs(Output())


def read(*tensors: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a request as the server takes them."""
    rows = Tensors(json.dumps({"inputs": tensors}).encode(), COLUMNS, KNOWN).rows
    return Decoder(COLUMNS, optional=["mood", "n"]).check(rows)


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6, 7, 8], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]])
def test_an_array_is_a_tensor_of_its_shape_flat_or_nested(data: list[Any]) -> None:
    image = {"name": "image", "datatype": "FP32", "shape": [2, 2, 2], "data": data}
    mood = {"name": "mood", "datatype": "FP64", "shape": [2, 3], "data": [None, [1, 2, 3]]}
    assert read(image, mood) == [
        {"image": [1.0, 2.0, 3.0, 4.0], "mood": None},
        {"image": [5.0, 6.0, 7.0, 8.0], "mood": [1.0, 2.0, 3.0]},
    ]


@pytest.mark.parametrize(
    ("shape", "data", "why"),
    [
        ([2, 4], [1, 2, 3, 4, 5, 6, 7, 8], r"must be \[N, 2, 2\]"),
        ([2], [1, 2], r"must be \[N, 2, 2\]"),
        ([1, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8], "says 1 values, `data` has 2"),
        ([2, 2, 2], [1, 2, 3, 4, 5, 6, 7], "`data` has 7"),
        ([1, 2, 2], [[[1, 2], [3]]], "ragged lists of 1 and 2"),
        ([1, 2, 2], [[[1, 2], [3, "a"]]], "lists with text in them"),
    ],
)
def test_another_shape_is_named(shape: list[int], data: list[Any], why: str) -> None:
    with pytest.raises(RequestInvalid, match=why):
        read({"name": "image", "datatype": "FP32", "shape": shape, "data": data})


def test_a_column_of_one_value_per_row_has_one_dimension_or_two() -> None:
    image = {"name": "image", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 2, 3, 4]}
    for shape, data in (([1], [7]), ([1, 1], [[7]])):
        assert read(image, {"name": "n", "datatype": "INT64", "shape": shape, "data": data})[0]["n"] == 7
    with pytest.raises(RequestInvalid, match=r"must be \[N\] or \[N, 1\]"):
        read(image, {"name": "n", "datatype": "INT64", "shape": [1, 2], "data": [[7, 8]]})


def test_the_schema_of_an_array_says_its_shape() -> None:
    row = {"type": "array", "items": {"type": "number", "format": "float"}, "minItems": 3, "maxItems": 3}
    assert column_schema(Column("array", shape=[2, 3])) == {"type": "array", "items": row, "minItems": 2, "maxItems": 2}
    assert column_schema(Column("array", shape=[3], nullable=True)) == {**row, "type": ["array", "null"]}
