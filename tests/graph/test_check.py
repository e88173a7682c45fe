from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from loopwright.base.errors import PackageRefused
from loopwright.graph.check import DEPTH, check_graph


def model(
    nodes: list[Any],
    *,
    initializers: list[Any] | None = None,
    domains: tuple[str, ...] = ("",),
    functions: tuple[Any, ...] = (),
) -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "g", [x], [y], initializers or [])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, 21 if not d else 1) for d in domains], functions=functions
    )


def external(name: str = "w") -> Any:
    tensor = numpy_helper.from_array(np.zeros((1,), dtype=np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    return tensor


def nested(inner: Any, depth: int) -> Any:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    graph = helper.make_graph(inner, "inner", [], [out])
    node = helper.make_node("If", ["c"], ["o"], then_branch=graph, else_branch=graph)
    return node if depth == 0 else nested([node], depth - 1)


IDENTITY = helper.make_node("Identity", ["x"], ["y"])
HOSTILE: dict[str, tuple[Any, str]] = {
    "external initializer": (model([IDENTITY], initializers=[external()]), "outside the graph"),
    "external constant": (model([helper.make_node("Constant", [], ["y"], value=external())]), "outside the graph"),
    "external in a branch": (model([nested([helper.make_node("Constant", [], ["o"], value=external())], 1)]), "outside the graph"),
    "custom operator": (model([helper.make_node("Run", ["x"], ["y"], domain="evil.ops")], domains=("", "evil.ops")), "domain"),
    "custom operator in a branch": (model([nested([helper.make_node("Run", [], ["o"], domain="evil.ops")], 0)]), "domain"),
    "operator of the runtime's own domain": (model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]), "domain"),
    "imported domain": (model([IDENTITY], domains=("", "evil.ops")), "domain"),
    "local function": (
        model([IDENTITY], functions=(helper.make_function("f", "F", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 21)]),)),
        "local functions",
    ),
    "too deep": (model([nested([helper.make_node("Constant", [], ["o"], value_float=1.0)], DEPTH + 1)]), "deep"),
    "weights that are not numbers": (
        model([IDENTITY], initializers=[numpy_helper.from_array(np.full((2, 2), np.nan, dtype=np.float32), "w")]),
        "not numbers",
    ),
    "coefficients that are not numbers": (
        model([helper.make_node("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[float("nan")])]),
        "not numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_graphs_are_refused(name: str) -> None:
    given, why = HOSTILE[name]
    with pytest.raises(PackageRefused, match=why):
        check_graph(given.SerializeToString())


def where(*more: Any) -> Any:
    fill = numpy_helper.from_array(np.array([[10.0, np.nan]], dtype=np.float32), "fill")
    return model([helper.make_node("Where", ["c", "fill", "x"], ["y"]), *more], initializers=[fill])


def test_a_constant_that_says_missing_is_no_weight() -> None:
    check_graph(where().SerializeToString())
    with pytest.raises(PackageRefused, match="'fill' has weights that are not numbers"):
        check_graph(where(helper.make_node("MatMul", ["fill", "y"], ["z"])).SerializeToString())
    with pytest.raises(PackageRefused, match="'fill' has weights that are not numbers"):
        check_graph(where(nested([helper.make_node("Neg", ["fill"], ["o"])], 0)).SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"not a graph", b"\xff" * 4096])
def test_what_is_not_a_graph_is_refused(data: bytes) -> None:
    with pytest.raises(PackageRefused):
        check_graph(data)


def test_an_honest_graph_passes() -> None:
    nan = helper.make_node("Constant", [], ["n"], value=numpy_helper.from_array(np.array([[np.nan]], dtype=np.float32)))
    given = model(
        [nan, IDENTITY],
        initializers=[numpy_helper.from_array(np.ones((2, 2), dtype=np.float32), "w")],
        domains=("", "ai.onnx.ml"),
    )
    assert isinstance(given, onnx.ModelProto)
    check_graph(given.SerializeToString())
