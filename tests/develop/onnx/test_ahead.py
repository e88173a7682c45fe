"""Optimised when built: fewer nodes, the same answers, nothing but standard operators."""

import ndonnx as ndx
import numpy as np
import onnx
import pytest

from loopwright.develop.onnx.ahead import optimised
from loopwright.graph.check import check_graph
from loopwright.graph.session import Graph


def wasteful(width: int = 3) -> onnx.ModelProto:
    """A model that multiplies by one, subtracts zero, casts there and back, and computes with constants."""
    operators = [
        onnx.helper.make_node("Abs", ["matrix"], ["m"]),
        onnx.helper.make_node("Mul", ["m", "one"], ["a"]),
        onnx.helper.make_node("Sub", ["a", "zero"], ["b"]),
        onnx.helper.make_node("Cast", ["b"], ["c"], to=onnx.TensorProto.DOUBLE),
        onnx.helper.make_node("Exp", ["two"], ["d"]),
        onnx.helper.make_node("Mul", ["c", "d"], ["e"]),
        onnx.helper.make_node("Identity", ["e"], ["raw"]),
    ]
    kinds = {"one": (np.float32, 1.0), "zero": (np.float32, 0.0), "two": (np.float64, 2.0)}
    constants = [onnx.numpy_helper.from_array(np.array(n, dtype=kind), name) for name, (kind, n) in kinds.items()]
    given = onnx.helper.make_tensor_value_info("matrix", onnx.TensorProto.FLOAT, ["N", width])
    raw = onnx.helper.make_tensor_value_info("raw", onnx.TensorProto.DOUBLE, ["N", width])
    graph = onnx.helper.make_graph(operators, "wasteful", [given], [raw], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def test_what_can_be_known_beforehand_is_gone_and_the_answers_stay() -> None:
    model = wasteful()
    found = optimised(model)
    assert sorted(node.op_type for node in found.graph.node) == ["Abs", "Cast", "Mul"]
    check_graph(found.SerializeToString())
    onnx.checker.check_model(found)
    matrix = np.array([[1.5, np.nan, -0.0], [np.inf, 1e-40, 3e38]], dtype=np.float32)
    answers = [Graph(m.SerializeToString()).run({"matrix": matrix})["raw"] for m in (model, found)]
    np.testing.assert_array_equal(answers[0], answers[1])


def test_the_same_model_gives_the_same_bytes() -> None:
    assert optimised(wasteful()).SerializeToString() == optimised(wasteful()).SerializeToString()


def test_what_has_nothing_to_be_optimised_is_left_as_it_is() -> None:
    x = ndx.argument(shape=("N", 2), dtype=ndx.float32)
    for y in (x * 2, ndx.sin(ndx.exp(ndx.abs(ndx.tanh(ndx.cos(x * 3)))))):
        model = ndx.build({"matrix": x}, {"raw": y})
        count = sum(node.op_type not in ("Identity", "Constant") for node in model.graph.node)
        assert sum(node.op_type not in ("Identity", "Constant") for node in optimised(model).graph.node) == count


def test_a_model_that_the_runtime_refuses_is_refused() -> None:
    model = wasteful()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(Exception, match="NoSuchOperator"):
        optimised(model)
