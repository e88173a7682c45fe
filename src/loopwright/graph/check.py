"""Checks of a graph before it is loaded: ONNX is the input of a memory-unsafe parser, not a safe format.

Refused: files outside the graph (external data, also nested in subgraphs), operators of unknown domains, local
functions, deep nesting, absurd sizes, and weights that are not numbers.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from loopwright.base.errors import PackageRefused

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
GRAPH_BYTES = 64 * 2**20
NODES = 100_000
DEPTH = 8

_NAN_IS_MEANT = frozenset({"Imputer", "Constant", "LabelEncoder"})


def check_graph(data: bytes, *, name: str = "model.onnx") -> None:
    """Refuse an unsafe graph: raises PackageRefused naming the file and the reason."""
    if len(data) > GRAPH_BYTES:
        raise PackageRefused("(graph)", f"{name} has {len(data)} bytes, more than {GRAPH_BYTES}")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises many kinds
        raise PackageRefused("(graph)", f"{name} is not an ONNX model: {type(error).__name__}") from error
    if why := graph_problem(model):
        raise PackageRefused("(graph)", f"{name}: {why}")


def graph_problem(model: Any) -> str:
    """The first reason why a parsed model is unsafe; empty when it is not."""
    if not model.HasField("graph") or not model.graph.output:
        return "has no graph"
    if len(model.functions):
        return "has local functions"
    if model.training_info:
        return "carries training information"
    if strange := sorted({o.domain for o in model.opset_import} - DOMAINS):
        return f"imports operators of domain {strange[0][:80]!r}"
    count, stands_in = 0, _stands_in(model)
    for depth, graph in _graphs(model.graph, 0):
        if depth > DEPTH:
            return f"is nested more than {DEPTH} deep"
        count += len(graph.node)
        if count > NODES:
            return f"has more than {NODES} nodes"
        for tensor in [*graph.initializer, *(t for s in graph.sparse_initializer for t in (s.values, s.indices))]:
            if why := _tensor_problem(tensor, nan_is_meant=tensor.name in stands_in):
                return why
        for node in graph.node:
            if why := _node_problem(node):
                return why
    return ""


def _stands_in(model: Any) -> set[str]:
    """Names of values that are only ever used as replacements (branches of Where): a NaN there means a missing value."""
    branches: set[str] = set()
    computed = {output.name for output in model.graph.output}
    for depth, graph in _graphs(model.graph, 0):
        if depth > DEPTH:
            break
        for node in graph.node:
            chooses = node.op_type == "Where" and not node.domain
            branches.update(node.input[1:] if chooses else ())
            computed.update(node.input[:1] if chooses else node.input)
    return branches - computed


def _graphs(graph: Any, depth: int) -> Iterator[tuple[int, Any]]:
    yield depth, graph
    if depth > DEPTH:
        return
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _graphs(inner, depth + 1)


def _node_problem(node: Any) -> str:
    if node.domain not in DOMAINS:
        return f"has an operator of domain {node.domain[:80]!r}"
    nan_is_meant = node.op_type in _NAN_IS_MEANT
    for attribute in node.attribute:
        sparse = [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []), *attribute.sparse_tensors]
        tensors = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
        for tensor in [*tensors, *(t for s in sparse for t in (s.values, s.indices))]:
            if why := _tensor_problem(tensor, nan_is_meant=nan_is_meant):
                return why
        if attribute.floats and not nan_is_meant and np.isnan(np.fromiter(attribute.floats, dtype=np.float32)).any():
            return f"attribute {attribute.name!r} of {node.op_type} has weights that are not numbers"
    return ""


def _tensor_problem(tensor: Any, *, nan_is_meant: bool = False) -> str:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
        return "reads data from outside the graph"
    if any(d < 0 for d in tensor.dims):
        return f"tensor {tensor.name[:80]!r} has a negative dimension"
    if nan_is_meant or len(tensor.dims) < 2 or tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return ""
    try:
        values = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        return f"tensor {tensor.name[:80]!r} cannot be read: {error}"
    return f"tensor {tensor.name[:80]!r} has weights that are not numbers" if np.isnan(values).any() else ""
