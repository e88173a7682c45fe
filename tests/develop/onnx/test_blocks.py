import json
from collections.abc import Callable
from typing import Any

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.develop.flights import COLUMNS, features, table

from loopwright.base.arrays import Array
from loopwright.develop.features import Vocabulary, build, trace
from loopwright.develop.onnx.blocks import side_by_side
from loopwright.graph.columns import arrow_arrays, arrow_feed
from loopwright.graph.session import Graph, feed_arrays
from loopwright.records.declarations import Column

MANY = {
    "a": Column("float"),
    "b": Column("float", nullable=True),
    "c": Column("float", nullable=True),
    "d": Column("float"),
    "i": Column("integer"),
    "j": Column("integer", nullable=True),
    "k": Column("integer"),
    "p": Column("boolean"),
    "q": Column("boolean", nullable=True),
    "s": Column("string"),
    "t": Column("string", nullable=True),
}


def both(columns: dict[str, Column], arguments: dict[str, Any], outputs: dict[str, Any]) -> tuple[Graph, Graph]:
    """The graph with columns side by side, and the one that ndonnx writes."""
    return Graph(build(columns, arguments, outputs)), Graph(ndx.build(arguments, outputs, drop_unused=True).SerializeToString())


def same(columns: dict[str, Column], blocks: Graph, plain: Graph, arrays: dict[str, tuple[Array, Array | None]]) -> None:
    found, expected = blocks.run(feed_arrays(blocks, arrays)), plain.run(feed_arrays(plain, arrays))
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        if array.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(found[name]), np.signbit(array), err_msg=name)


def values(rng: np.random.Generator, rows: int) -> dict[str, tuple[Array, Array | None]]:
    """Random columns with the numbers that go wrong: NaN, infinities, -0.0, denormals, huge integers; the count is a multiple of
    what the runtime works on at once, so that its sines and logarithms are the same for every place (see docs/guides/features.md)."""
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 5e-324, -1.0, 1e300])
    made: dict[str, tuple[Array, Array | None]] = {}
    for name, column in MANY.items():
        if column.type == "float":
            array = np.where(rng.random(rows) < 0.3, rng.choice(odd, rows), rng.normal(0, 50, rows))
        elif column.type == "integer":
            array = np.where(rng.random(rows) < 0.1, 2**62, rng.integers(-9, 9, rows))
        elif column.type == "boolean":
            array = rng.random(rows) < 0.5
        else:
            array = rng.choice(np.array(["", "UA", "\u00e9\u00df", "x" * 40], dtype=object), rows)
        made[name] = (array, rng.random(rows) < 0.3 if column.nullable else None)
    return made


STEPS: list[Callable[[Any, Any, Any, float], Any]] = [
    lambda o, _p, _c, n: o * n,
    lambda o, p, _c, _n: o + p,
    lambda o, p, _c, _n: ndx.maximum(o, p),
    lambda o, _p, _c, n: ndx.clip(o, -n, n),
    lambda o, _p, _c, _n: ndx.log1p(ndx.abs(o)),
    lambda o, p, c, _n: ndx.where(c, o, p),
    lambda o, _p, _c, n: n - o,
    lambda o, p, _c, _n: ndx.where(ndx.isnan(o), p, o / 3.0),
]


def program(rng: np.random.Generator, f: dict[str, Any]) -> dict[str, Any]:
    """Random outputs over the columns: chains that look alike, share parts and differ in depth."""
    pool = [f["a"], nde.fill_null(f["b"], 1.5), nde.fill_null(f["c"], -2.0), f["d"], ndx.astype(f["i"], ndx.float64)]
    pool.append(ndx.astype(nde.fill_null(f["j"], 7), ndx.float64))
    flags = [f["p"], nde.fill_null(f["q"], False), nde.get_mask(f["b"]), f["k"] > 3]
    for _ in range(rng.integers(5, 40)):
        one, other = (pool[i] for i in rng.integers(0, len(pool), 2))
        flag = flags[rng.integers(len(flags))]
        number = float(rng.choice([0.5, 2.0, 60.0]))
        what = rng.integers(9)
        if what == 8:
            flags.append((one > other) | (flag & ~flags[0]))
            continue
        pool.append(STEPS[what](one, other, flag, number))
    chosen = [pool[i] for i in rng.integers(0, len(pool), 6)]
    codes = [
        nde.static_map(f["s"], {"UA": 1, "": 2}, default=0),
        nde.static_map(nde.fill_null(f["t"], ""), {"UA": 1}, default=0),
    ]
    singles = [ndx.expand_dims(ndx.astype(o, ndx.float32), axis=1) for o in [*chosen, *codes]]
    return {
        "matrix": ndx.concat(singles, axis=1),
        "alone": chosen[0] * 2,
        "again": chosen[0] * 2,
        "flag": flags[-1],
        "given": -f["d"],
        "code": nde.static_map(f["s"], {"UA": 1, "": 2}, default=0),
        "text": nde.fill_null(f["t"], "none"),
        "named": nde.static_map(f["s"], {"UA": "United"}, default="other"),
        "mean": chosen[1] - ndx.mean(f["d"]),
    }


@pytest.mark.parametrize("seed", range(25))
def test_columns_side_by_side_change_no_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arguments = {name: ndx.argument(shape=("N",), dtype=_dtype(column)) for name, column in MANY.items()}
    with np.errstate(all="ignore"):
        blocks, plain = both(MANY, arguments, program(rng, arguments))
    assert len(blocks.inputs) <= 4 < len(plain.inputs)
    for rows in (64, 0):
        same(MANY, blocks, plain, values(rng, rows))


def _dtype(column: Column) -> Any:
    kinds = {"float": (ndx.float64, ndx.nfloat64), "integer": (ndx.int64, ndx.nint64)}
    return {**kinds, "boolean": (ndx.bool, ndx.nbool), "string": (ndx.utf8, ndx.nutf8)}[column.type][column.nullable]


def test_a_graph_of_features_has_few_inputs() -> None:
    traced = trace(features, COLUMNS)
    vocabulary = {"carrier": Vocabulary(["AA", "EV"], False, True), "gate": Vocabulary(["G1"], True, True)}
    matrix = traced.matrix(vocabulary, "ordinal")
    blocks, plain = both(COLUMNS, traced.arguments, {"features": matrix})
    same(COLUMNS, blocks, plain, arrow_arrays(COLUMNS, table(128)))
    assert [len(g.inputs) for g in (blocks, plain)] == [3, 9]
    assert blocks.columns == ["at", "delay", "distance", "hub", "carrier", "gate", "wind"]


def test_what_is_alike_becomes_one_node() -> None:
    columns = {f"x{i}": Column("float", nullable=True) for i in range(12)}
    arguments = {name: ndx.argument(shape=("N",), dtype=ndx.nfloat64) for name in columns}
    filled = [ndx.log1p(nde.fill_null(x, float(i)) * 2) for i, x in enumerate(arguments.values())]
    outputs = {"features": ndx.concat([ndx.expand_dims(ndx.astype(x, ndx.float32), axis=1) for x in filled], axis=1)}
    blocks, plain = both(columns, arguments, outputs)
    made = build(columns, arguments, outputs), ndx.build(arguments, outputs, drop_unused=True).SerializeToString()
    counted = [sum(n.op_type != "Constant" for n in onnx.load_model_from_string(data).graph.node) for data in made]
    assert counted[0] <= 18, counted
    assert counted[1] > 150
    rng = np.random.default_rng(0)
    same(columns, blocks, plain, {name: (rng.normal(5, 9, 32), rng.random(32) < 0.3) for name in columns})


def operators(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


def test_bounds_of_several_columns_are_one_node_each() -> None:
    columns = {"a": Column("float"), "b": Column("float"), "c": Column("float")}
    arguments = {name: ndx.argument(shape=("N",), dtype=ndx.float64) for name in columns}
    x, y, z = arguments.values()
    outputs = {
        "one": ndx.clip(x, -1.0, 2.5),
        "other": ndx.clip(y, -1.0, 2.5) + ndx.clip(z, 0.0, 1.0),
        "low": ndx.maximum(z, 0.5),
    }
    blocks, plain = both(columns, arguments, outputs)
    found = operators(build(columns, arguments, outputs))
    assert (found.count("Min"), found.count("Max")) == (1, 1)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 5e-324, -1.0, 2.5, 1e300, np.nextafter(2.5, 3)])
    for rows in (10, 1, 0):
        same(columns, blocks, plain, {name: (np.roll(odd, i)[:rows], None) for i, name in enumerate(columns)})


def test_a_matrix_of_numbers_of_two_widths_changes_no_value() -> None:
    columns = {name: Column("float") for name in "abcd"}

    def code(f: Any) -> dict[str, Any]:
        angle = ndx.astype(f.a, ndx.float32)
        return {"a": f.a * 2, "b": ndx.sin(angle), "c": f.b + f.c, "d": f.d > 1.0, "e": f.d, "f": f.c, "g": ndx.cos(angle)}

    traced = trace(code, columns)
    data = traced.matrix_graph({}, "ordinal")
    assert operators(data).count("Cast") <= 3
    plain = Graph(ndx.build(traced.arguments, {"features": traced.matrix({}, "ordinal")}, drop_unused=True).SerializeToString())
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 1e300, 1 + 2**-24, 3.0])
    for rows in (8, 1, 0):
        same(columns, Graph(data), plain, {name: (np.roll(odd, i)[:rows], None) for i, name in enumerate(columns)})


def test_texts_are_looked_up_together() -> None:
    columns = {"s": Column("string"), "t": Column("string")}
    arguments = {name: ndx.argument(shape=("N",), dtype=ndx.utf8) for name in columns}
    one = nde.static_map(arguments["s"], {"a": 1.0, "b": 2.0, "": 3.0}, default=-1.0)
    other = nde.static_map(arguments["t"], {"b": 10.0, "ü": 20.0, "c": 30.0}, default=-2.0)
    outputs = {"matrix": ndx.concat([ndx.expand_dims(x, axis=1) for x in (one, other)], axis=1)}
    blocks, plain = both(columns, arguments, outputs)
    made = onnx.load_from_string(build(columns, arguments, outputs))
    assert [node.op_type for node in made.graph.node][:2] == ["LabelEncoder", "GatherElements"]
    words = np.array(["a", "b", "c", "", "ü", "other"], dtype=object)
    grid = [g.ravel() for g in np.meshgrid(words, words)]
    for rows in (36, 1, 0):
        same(columns, blocks, plain, {"s": (grid[0][:rows], None), "t": (grid[1][:rows], None)})


def test_subgraphs_see_what_they_use_from_outside() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.DOUBLE, ["N"])
        return helper.make_graph([helper.make_node(op, ["twice", "b"], [f"{name}_out"])], name, [], [out])

    a, b = (helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["N"]) for name in "ab")
    out = helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["N"])
    nodes = [
        helper.make_node("Add", ["a", "a"], ["twice"]),
        helper.make_node("ReduceSum", ["a"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["condition"]),
        helper.make_node("If", ["condition"], ["score"], then_branch=branch("then", "Add"), else_branch=branch("else", "Sub")),
    ]
    zero = helper.make_tensor("zero", TensorProto.DOUBLE, [], [0.0])
    graph = helper.make_graph(nodes, "g", [a, b], [out], initializer=[zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made = side_by_side(model, {"floats": ["a", "b"]})
    helper.set_model_props(made, {"loopwright": json.dumps({"inputs": {"floats": [["a", "plain"], ["b", "plain"]]}})})
    run = Graph(made.SerializeToString())
    for x in (np.array([1.0, 2.0]), np.array([-1.0, -2.0])):
        found = run.run(feed_arrays(run, {"a": (x, None), "b": (np.array([10.0, 20.0]), None)}))["score"]
        assert found.tolist() == (2 * x + np.array([10.0, 20.0]) * (1 if x.sum() > 0 else -1)).tolist()


def test_one_row_answers_as_many_do() -> None:
    traced, rows = trace(features, COLUMNS), table(50)
    vocabulary = {"carrier": Vocabulary(["AA", "EV"], False, True), "gate": Vocabulary(["G1"], True, True)}
    graph = Graph(traced.matrix_graph(vocabulary, "onehot"))
    whole = graph.run(arrow_feed(graph, COLUMNS, rows))["features"]
    for i in range(50):
        found = graph.run(arrow_feed(graph, COLUMNS, rows.slice(i, 1)))["features"]
        np.testing.assert_array_max_ulp(found, whole[i : i + 1], maxulp=1)
