"""How columns enter a graph: what is said of nulls and integers when rows enter changes no feature."""

import json
import operator
from collections.abc import Callable
from typing import Any

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import onnx
import pyarrow as pa
import pytest

from loopwright.base.arrays import Array
from loopwright.develop.features import trace
from loopwright.features import is_null
from loopwright.graph.columns import arrow_feed, arrow_schema
from loopwright.graph.session import METADATA, Feeder, Graph, feed_rows
from loopwright.records.declarations import Column

COLUMNS = {
    "x": Column("float", nullable=True),
    "y": Column("float"),
    "i": Column("integer", nullable=True),
    "k": Column("integer"),
    "b": Column("boolean", nullable=True),
    "p": Column("boolean"),
    "s": Column("string", nullable=True),
}
ROWS: list[dict[str, Any]] = [
    {"x": 1.5, "y": 2.0, "i": 3, "k": 5, "b": True, "p": False, "s": "a"},
    {"x": None, "y": -1.0, "i": None, "k": 2**62, "b": None, "p": True, "s": None},
    {"x": float("nan"), "y": 0.0, "i": -7, "k": -4, "b": False, "p": True, "s": ""},
]


def traced(features: Callable[[Any], dict[str, Any]]) -> tuple[Graph, dict[str, list[list[Any]]], set[str]]:
    """The graph of raw features, its inputs as the metadata tells them, and its operators."""
    data = trace(features, COLUMNS).raw()
    model = onnx.load_from_string(data)
    [metadata] = [json.loads(p.value) for p in model.metadata_props if p.key == METADATA]
    return Graph(data), metadata["inputs"], {node.op_type for node in model.graph.node}


def numbers(graph: Graph) -> Array:
    """The features of the rows, the same from rows, lists and a table."""
    found = graph.run(feed_rows(graph, COLUMNS, ROWS))["numbers"]
    lists = Feeder(graph, COLUMNS).lists({name: [row[name] for row in ROWS] for name in COLUMNS})
    table = pa.Table.from_pylist(ROWS, schema=arrow_schema(COLUMNS))
    for feed in (lists, arrow_feed(graph, COLUMNS, table)):
        np.testing.assert_array_equal(graph.run(feed)["numbers"], found)
    alone = np.concatenate([graph.run(feed_rows(graph, COLUMNS, [row]))["numbers"] for row in ROWS])
    np.testing.assert_array_equal(alone, found)
    return found


def test_a_filled_null_enters_as_what_it_is_filled_with() -> None:
    graph, inputs, operators = traced(lambda f: {"ten": nde.fill_null(f.x, 10.0), "minus": nde.fill_null(f.x, -1.0) * 2})
    assert inputs == {"floats": [["x", "values", 10.0], ["x", "values", -1.0]]}
    assert "Where" not in operators
    np.testing.assert_array_equal(numbers(graph), [[1.5, 3], [10, -2], [np.nan, np.nan]])


def test_a_null_that_becomes_a_feature_enters_as_nan_through_what_does_not_hide_it() -> None:
    graph, inputs, operators = traced(lambda f: {"x": f.x, "more": ndx.log(f.x + f.y), "filled": nde.fill_null(f.x, 0.0)})
    assert inputs == {"floats": [["x", "values", "NaN"], ["x", "values", 0.0], ["y", "plain"]]}
    assert "Where" not in operators
    np.testing.assert_allclose(numbers(graph), [[1.5, np.log(3.5), 1.5], [np.nan, np.nan, 0], [np.nan, np.nan, np.nan]])


def test_where_nan_would_be_hidden_the_null_is_asked_for() -> None:
    graph, inputs, _ = traced(lambda f: {"large": f.x > 1.0, "null": is_null(f.x)})
    assert inputs["booleans"] == [["x", "null"]]
    np.testing.assert_array_equal(numbers(graph), [[1, 0], [np.nan, 1], [0, 0]])


def test_integers_and_booleans_of_which_numbers_are_made_stand_beside_the_floats() -> None:
    graph, inputs, _ = traced(
        lambda f: {"i": f.i, "seven": nde.fill_null(f.i, 7), "k": f.k, "big": f.k >= 5, "b": f.b, "p": f.p, "y": f.y}
    )
    assert list(inputs) == ["floats"]
    assert {tuple(entry[:2]) for entry in inputs["floats"]} == {
        *((name, "number") for name in ("i", "k", "b", "p")),
        ("y", "plain"),
    }
    nan = np.nan
    expected = [[3, 3, 5, 1, 1, 0, 2], [nan, 7, 2**62, 1, nan, 1, -1], [-7, -7, -4, 0, 0, 1, 0]]
    np.testing.assert_array_equal(numbers(graph), expected)


def test_integers_that_are_reckoned_with_stay_integers() -> None:
    graph, inputs, _ = traced(lambda f: {"odd": f.k % 2, "far": f.k == 2**62, "not": ~f.p})
    assert inputs == {"integers": [["k", "plain"]], "booleans": [["p", "plain"]]}
    np.testing.assert_array_equal(numbers(graph), [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


def test_a_contract_of_another_type_is_named() -> None:
    graph, _, _ = traced(lambda f: {"k": f.k, "i": f.i, "x": nde.fill_null(f.x, 1.0)})
    assert graph.problems(COLUMNS) == []
    for name, column in {"k": Column("float"), "i": Column("string"), "x": Column("float")}.items():
        assert f"'{name}'" in "; ".join(graph.problems({**COLUMNS, name: column}))


def test_a_null_of_another_type_in_the_metadata_is_refused() -> None:
    model = onnx.load_from_string(trace(lambda f: {"x": nde.fill_null(f.x, 10.0)}, COLUMNS).raw())
    model.metadata_props[0].value = model.metadata_props[0].value.replace("10.0", '"ten"')
    with pytest.raises(ValueError, match="ten"):
        Graph(model.SerializeToString())


WIDE = [0, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1, -(2**53), -(2**53) - 1, -(2**63)]


@pytest.mark.parametrize("limit", [2**53 - 1, 2**53, 2**53 + 1, -(2**53), -(2**53) - 1, 2**63 - 1])
@pytest.mark.parametrize("nullable", [False, True], ids=["plain", "nullable"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a remainder"])
def test_integers_beyond_2_to_the_53_are_compared_exactly(limit: int, nullable: bool, beside: bool) -> None:
    columns = {"id": Column("integer", nullable=nullable), "other": Column("integer", nullable=nullable)}
    compared = {
        "eq": operator.eq,
        "ne": operator.ne,
        "lt": operator.lt,
        "le": operator.le,
        "gt": operator.gt,
        "ge": operator.ge,
    }

    def features(f: Any) -> dict[str, Any]:
        found = {name: compare(f.id, limit) for name, compare in compared.items()} | {"same": f.id == f.other}
        return found | ({"m": f.id % 2} if beside else {})

    table = pa.table(
        {"id": pa.array(WIDE, pa.int64()), "other": pa.array([v + (1 if v < 0 else -1) for v in WIDE], pa.int64())}
    )
    graph = Graph(trace(features, columns).raw())
    numbers = graph.run(arrow_feed(graph, columns, table), ["numbers"])["numbers"]
    for i, (name, compare) in enumerate(compared.items()):
        assert numbers[:, i].tolist() == [float(compare(v, limit)) for v in WIDE], name
    assert not numbers[:, len(compared)].any()
