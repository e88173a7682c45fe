"""A package as one self-contained ONNX graph that any ONNX server can run, including loopwright's processing around the model.

Inputs, one per column of the contract, by name, [N] (an array [N, ...]):

    float       float64; null = NaN
    integer     int64, boolean bool, string string, array float32; a nullable one also has `NAME_null`, bool [N]: true for null,
                and then the value under `NAME` is ignored
    timestamp   int64, microseconds since 1970 (UTC); null = the least int64

Context and aggregates, which loopwright looks up while serving, are inputs as well: the caller looks them up. Columns that
the model does not use are not inputs. Outputs, each [N]:

    score               float32, as loopwright answers it
    label               bool (score >= threshold) of binary and anomaly models, the class (string) of multiclass models
    probability_CLASS   float32, of multiclass models
    value_NAME          float32, of several targets or quantiles

An output with the name of an input gets the suffix `_output`. Not included: the heuristic that answers when a model fails, the
flags, the log.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from loopwright.base.arrays import Array
from loopwright.base.clock import microseconds
from loopwright.base.errors import ExportRefused, UsageError
from loopwright.deploy.older_trees import older
from loopwright.graph.session import METADATA, NAT, Graph, GraphInput
from loopwright.records.declarations import Column
from loopwright.records.package import Manifest, tolerance
from loopwright.stores.packages.probe import Probed

OPSET, OLDEST = 21, 13
"""The operator sets that an export may be of; IsNaN, Where and Unsqueeze are as they are used here since the oldest."""

_INNER = "package_"
_TYPES: dict[str, tuple[int, Any, Any]] = {
    "float": (TensorProto.DOUBLE, np.float64, float("nan")),
    "integer": (TensorProto.INT64, np.int64, 0),
    "boolean": (TensorProto.BOOL, np.bool_, False),
    "string": (TensorProto.STRING, object, ""),
    "timestamp": (TensorProto.INT64, np.int64, NAT),
    "array": (TensorProto.FLOAT, np.float32, 0.0),
}
"""Column type -> type in the graph, NumPy's type, and the placeholder for a null."""

NAMES: dict[int, str] = {
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT: "float32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}
"""Name of each ONNX type."""

_EMPTY: dict[str, Any] = {"f": 0.0, "i": 0, "b": False, "O": ""}


class Port(NamedTuple):
    """An input or output of an exported graph: its name, ONNX type, shape without N, and for an input its column (`mask`: whether it is null)."""

    name: str
    type: int
    shape: tuple[int, ...]
    column: str = ""
    mask: bool = False


class Exported(NamedTuple):
    """A package as one graph: the serialised model, its inputs and its outputs."""

    model: bytes
    inputs: list[Port]
    outputs: list[Port]


def export(package: Probed, *, opset: int = OPSET) -> Exported:
    """The package as one graph of that operator set, verified with the package's golden requests.

    Raises UsageError for an operator set that is not supported, and ExportRefused where an operator of the model does not exist
    in it, or answers differ.
    """
    if not OLDEST <= opset <= OPSET:
        raise UsageError(f"--opset {opset}: must be from {OLDEST} to {OPSET}")
    graph, manifest = package.graph("model.onnx"), package.manifest
    model = package.model("model.onnx")
    public = {name: name for name in graph.outputs} | _metadata(model).get("outputs", {})
    writer = _ExportWriter(package.columns, [name for name in package.columns if name in graph.columns])
    inner = onnx.compose.add_prefix(model, _INNER).graph
    if opset < OPSET and older(inner):
        raise ExportRefused(package.digest, "its trees need ONNX Runtime 1.21 or newer: remove --opset")
    packed = [writer.packed(i) for i in graph.inputs]
    renamed = dict(zip((_INNER + i.name for i in graph.inputs), packed, strict=True))
    writer.nodes += [helper.make_node("Identity", [ours], [theirs]) for theirs, ours in renamed.items()]
    writer.nodes += _plain(inner.node)
    writer.constants += inner.initializer
    outputs = writer.outputs(manifest, _INNER + public["score"], _INNER + public.get("values", "values"))
    made = helper.make_graph(
        writer.nodes,
        manifest.loop,
        [_info(port) for port in writer.inputs],
        [_info(port) for port in outputs],
        writer.constants,
        sparse_initializer=inner.sparse_initializer,
    )
    ml = {node.domain: 2 for node in writer.nodes if node.domain}  # of texts that mean missing; a model's own is newer
    whole = _at(package.digest, made, ml | {o.domain: o.version for o in model.opset_import}, opset)
    helper.set_model_props(whole, _notes(package.digest, manifest))
    exported = Exported(whole.SerializeToString(), writer.inputs, outputs)
    _check(package, exported)
    return exported


def feed(exported: Exported, columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The inputs of an exported graph for rows of Python values, like `graph.session.Feeder`: None, or a missing key, is null."""
    return {port.name: _fed(port, columns[port.column], [row.get(port.column) for row in rows]) for port in exported.inputs}


def _fed(port: Port, column: Column, values: list[Any]) -> Array:
    if port.mask:
        return np.array([v is None for v in values], dtype=np.bool_)
    _, dtype, null = _TYPES[column.type]
    if column.type == "array":
        empty = np.zeros(port.shape, dtype=np.float32)
        stacked = [empty if v is None else np.asarray(v, dtype=np.float32).reshape(port.shape) for v in values]
        return np.array(stacked, dtype=np.float32).reshape(len(values), *port.shape)
    if column.type == "timestamp":
        values = [v if v is None else microseconds(v) for v in values]
    return np.array([null if v is None else v for v in values], dtype=dtype)


class _ExportWriter:
    """Writes the nodes between the named inputs and the package's graph, and behind it."""

    def __init__(self, columns: Mapping[str, Column], used: Sequence[str]) -> None:
        self._columns = columns
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Port] = []
        self._masks: dict[str, str] = {}
        self._count = 0
        for name in used:
            self._enter(name, columns[name])

    def _enter(self, name: str, column: Column) -> None:
        shape = tuple(column.shape or ())
        self.inputs.append(Port(name, _TYPES[column.type][0], shape, name))
        if not column.nullable or column.type == "timestamp":
            return
        self._masks[name] = self.node("IsNaN", name) if column.type == "float" else self._mask(name)
        for value in column.missing_values:
            if isinstance(value, str):  # older operator sets have no Equal of texts
                keys = {"keys_strings": [value], "values_int64s": [1], "default_int64": 0}
                same = self.node("Cast", self.node("LabelEncoder", name, domain="ai.onnx.ml", **keys), to=TensorProto.BOOL)
            else:
                same = self.node("Equal", name, self.constant(np.array(value, _TYPES[column.type][1])))
            self._masks[name] = self.node("Or", self._masks[name], same)

    def _mask(self, name: str) -> str:
        """An input with the null mask of a column without NaN."""
        mask = f"{name}_null"
        while mask in self._columns:
            mask += "_"
        self.inputs.append(Port(mask, TensorProto.BOOL, (), name, mask=True))
        return mask

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """One more node; the name of its output."""
        self._count += 1
        made = f"export_{self._count}"
        self.nodes.append(helper.make_node(op, list(inputs), [made], **attributes))
        return made

    def constant(self, value: Any) -> str:
        """One more constant; its name."""
        self._count += 1
        made = f"export_{self._count}"
        if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
            self.constants.append(numpy_helper.from_array(value.astype(object), made))
        else:
            self.constants.append(numpy_helper.from_array(np.asarray(value), made))
        return made

    def packed(self, i: GraphInput) -> str:
        """An input of the package's own graph."""
        parts = [self._part(column, part, i.dtype, null) for (column, part), null in zip(i.parts, i.nulls, strict=True)]
        if len(parts) == 1 and (i.shape == () or self._columns[i.parts[0][0]].type == "array"):
            return parts[0]
        one = self.constant(np.array([1], dtype=np.int64))
        return self.node("Concat", *(self.node("Unsqueeze", part, one) for part in parts), axis=1)

    def _part(self, name: str, part: str, dtype: Any, null: Any) -> str:
        column, mask = self._columns[name], self._masks.get(name)
        if part == "null":
            return mask if mask is not None else self.node("Equal", name, self.constant(np.int64(NAT)))
        value = name
        if part == "number":
            value = self.node("Cast", name, to=TensorProto.DOUBLE)
        if mask is None:
            return value
        if column.type == "array":
            return self._array(column, mask, value)
        null = _EMPTY[dtype.kind] if null is None else null
        if dtype.kind == "b":  # the runtime has no Where of booleans
            return self.node("Or", value, mask) if null else self.node("And", value, self.node("Not", mask))
        stands_in = np.array(null, dtype=object) if dtype.kind == "O" else np.array(null, dtype=dtype)
        return self.node("Where", mask, self.constant(stands_in), value)

    def _array(self, column: Column, mask: str, value: str) -> str:
        axes = self.constant(np.arange(1, 1 + len(column.shape or []), dtype=np.int64))
        return self.node("Where", self.node("Unsqueeze", mask, axes), self.constant(np.float32(0)), value)

    def outputs(self, manifest: Manifest, score: str, values: str) -> list[Port]:
        """The outputs, depending on the package's task."""
        output = manifest.output
        made = [self._out("score", score, TensorProto.FLOAT)]
        if output.shape.has_border:  # compared as float64, as while serving
            wide, threshold = self.node("Cast", score, to=TensorProto.DOUBLE), self.constant(np.float64(manifest.threshold))
            made.append(self._out("label", self.node("GreaterOrEqual", wide, threshold), TensorProto.BOOL))
        if output.shape.has_classes:
            classes = self.constant(np.array(output.classes, dtype=object))
            chosen = self.node("Gather", classes, self.node("ArgMax", values, axis=1, keepdims=0))
            made.append(self._out("label", chosen, TensorProto.STRING))
        prefix = "probability_" if output.shape.has_classes else "value_"
        for k, name in enumerate(output.names):
            one = self.node("Gather", values, self.constant(np.int64(k)), axis=1)
            made.append(self._out(prefix + name, one, TensorProto.FLOAT))
        return made

    def _out(self, name: str, value: str, type: int) -> Port:
        while name in {port.name for port in self.inputs}:
            name += "_output"
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        return Port(name, type, ())


def _plain(nodes: Any) -> list[Any]:
    """Nodes without attributes that only float8 needs, and older operator sets lack."""
    for node in nodes:
        for attribute in list(node.attribute):
            if node.op_type in ("Cast", "CastLike") and attribute.name == "saturate":
                node.attribute.remove(attribute)
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _plain(graph.node)
    return list(nodes)


def _info(port: Port) -> Any:
    return helper.make_tensor_value_info(port.name, port.type, ["N", *port.shape])


def _metadata(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next((p.value for p in model.metadata_props if p.key == METADATA), "{}"))
    return found


def _notes(digest: str, manifest: Manifest) -> dict[str, str]:
    """Metadata of the graph."""
    return {
        "package": digest,
        "loop": manifest.loop,
        "task": manifest.output.task,
        "threshold": repr(manifest.threshold),
        "classes": json.dumps(manifest.output.classes),
    }


def _at(digest: str, graph: Any, opsets: Mapping[str, int], opset: int) -> Any:
    """A model of that operator set. Where all operators are unchanged only the version is lowered; else the model is converted."""
    given, ml = max(opsets.get("", 0), opsets.get("ai.onnx", 0), opset), opsets.get("ai.onnx.ml", 0)
    problem = ""
    for trees in [*(version for version in (3, 4) if opset < OPSET and ml > version), ml]:
        for convert in (False, True):
            try:
                made = _converted(_model(graph, given, trees), opset) if convert else _model(graph, opset, trees)
                onnx.checker.check_model(made, full_check=True)
            except Exception as error:  # noqa: BLE001  # the checker and the converter raise many kinds
                problem = str(error).strip().splitlines()[0][:300]
            else:
                return made
    raise ExportRefused(digest, f"it cannot be converted to operator set {opset}: {problem}")


def _model(graph: Any, opset: int, ml: int) -> Any:
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid("ai.onnx.ml", ml)] if ml else [])]
    version = helper.find_min_ir_version_for(opsets)
    return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="loopwright")


def _converted(model: Any, opset: int) -> Any:
    made: Any = onnx.version_converter.convert_version(model, opset)
    made.ir_version = helper.find_min_ir_version_for(made.opset_import)
    return made


def _check(package: Probed, exported: Exported) -> None:
    """Raise ExportRefused unless the graph gives the package's golden answers."""
    golden, output = package.reference.golden, package.manifest.output
    try:
        graph = Graph(exported.model)
        found = graph.run(feed(exported, package.columns, [{**g.request, **g.context} for g in golden]))
    except Exception as error:  # the runtime raises many kinds
        raise ExportRefused(package.digest, f"the exported graph cannot be run: {error}"[:400]) from error
    for i, (g, score) in enumerate(zip(golden, found[exported.outputs[0].name].tolist(), strict=True)):
        if not abs(g.score - score) <= tolerance(output, g.score):
            raise ExportRefused(package.digest, f"the exported graph gives {score!r} for golden request {i}, not {g.score!r}")
