"""A model as items over columns, blocks of columns and constants: the input that `blocks` reorders.

Nodes that only move columns (concatenation, selection, transposition) are removed, and so are common subexpressions.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

# fmt: off
_ELEMENTWISE = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "Cast", "Ceil", "Cos", "Cosh", "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual",
    "IsInf", "IsNaN", "LabelEncoder", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
    "Reciprocal", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Sub", "Tan", "Tanh", "Where", "Xor",
))
# fmt: on
"""Element-wise operators, independent of the shape."""

_COMMUTES = frozenset({"Add", "Mul", "And", "Or", "Equal"})
ROWS = "N"


class GraphColumn(msgspec.Struct, eq=False):
    """One value per row: its places in blocks [N, K], its name as a tensor [N] by itself, a text's place in a tensor [N, K]."""

    index: int
    maker: int
    places: list[tuple[str, int]] = []
    flat: str = ""
    origin: tuple[str, int] = ("", 0)


class Block(msgspec.Struct, eq=False):
    """A matrix [N, K] as its columns; `rows` is the name of its first dimension."""

    columns: list[GraphColumn]
    rows: str


Value = TensorProto | GraphColumn | Block | str
"""A constant, a column [N], a block [N, K], or any other tensor by its name ("" = not given)."""


class Item(msgspec.Struct, eq=False):
    """A node to be put: in a lane (`result` is its column) with others of the same `kind`, or as it is."""

    node: NodeProto
    operands: list[Value]
    needs: list[int]
    kind: tuple[Any, ...] = ()
    result: GraphColumn | None = None
    captured: list[tuple[str, Value]] = []


class GraphReader:
    """A model as items over columns, blocks and constants; nodes that only move columns are gone."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Sequence[str]]) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.types = {v.name: v.type.tensor_type for v in [*inferred.input, *inferred.value_info, *inferred.output]}
        self.inputs = {block: list(names) for block, names in inputs.items()}
        self.values: dict[str, Value] = {t.name: t for t in model.graph.initializer}
        self.items: list[Item] = []
        self.columns = 0
        self.widths: dict[str, int] = {}
        self._makers: dict[str, int] = {}
        self._same: dict[Any, GraphColumn] = {}
        for block, names in self.inputs.items():
            text = self.type_of(names[0]) == TensorProto.STRING
            self.widths[block] = len(names)
            for place, name in enumerate(names):
                self.values[name] = self._column(-1, **_stands(block, place, text=text))
        for node in model.graph.node:
            self._read(node)
        self.outputs = [(o, self._value(o.name)) for o in model.graph.output]
        self._drop_unused()

    def type_of(self, name: str) -> int:
        """Element type of a tensor, 0 where unknown."""
        return int(self.types[name].elem_type) if name in self.types else 0

    def _shape(self, name: str) -> list[str | int] | None:
        kind = self.types.get(name)
        if kind is None or not kind.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]

    def _column(self, maker: int, **where: Any) -> GraphColumn:
        self.columns += 1
        return GraphColumn(self.columns, maker, **where)

    def _value(self, name: str) -> Value:
        return self.values.get(name, name)

    def _read(self, node: NodeProto) -> None:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            self.values[node.output[0]] = node.attribute[0].t
            return
        operands = [self._value(name) for name in node.input]
        moved = self._moved(node, operands) if len(node.output) == 1 else None
        if moved is not None:
            self.values[node.output[0]] = moved
        elif self._in_lane(node, operands):
            self._put_in_lane(node, operands)
        else:
            self._put_as_is(node, operands)

    def _moved(self, node: NodeProto, operands: list[Value]) -> Value | None:
        """The result of a node that only moves columns, None for other nodes."""
        first = operands[0] if operands else ""
        if node.op_type == "Identity":
            return first
        if node.op_type == "Cast" and self.type_of(node.input[0]) == _attribute(node, "to", 0):
            return first
        if node.op_type == "Unsqueeze" and isinstance(first, GraphColumn) and _ints(operands[1]) in ([1], [-1]):
            shape = self._shape(node.output[0])
            return Block([first], str(shape[0])) if shape and shape[0] else None
        if node.op_type == "Concat" and _attribute(node, "axis", 0) in (1, -1):
            blocks = [o for o in operands if isinstance(o, Block)]
            if len(blocks) == len(operands) and len({b.rows for b in blocks}) == 1:
                return Block([c for b in blocks for c in b.columns], blocks[0].rows)
        if node.op_type == "Transpose" and isinstance(first, str):
            return self._laid_and_turned(first)
        if not isinstance(first, Block):
            return None
        if node.op_type == "Squeeze" and len(first.columns) == 1 and _ints(operands[1]) in ([1], [-1]):
            return first.columns[0]
        if node.op_type == "Slice" and len(operands) >= 4 and _ints(operands[3]) in ([1], [-1]):
            start, end, step = _ints(operands[1]), _ints(operands[2]), _ints(operands[4]) if len(operands) > 4 else [1]
            if start is not None and end is not None and step is not None:
                return Block(first.columns[slice(start[0], end[0], step[0])], first.rows)
        return None

    def _laid_and_turned(self, name: str) -> Block | None:
        """The block whose transpose is K columns concatenated and reshaped to [K, N]."""
        shaped = self.items[self._makers[name]] if name in self._makers else None
        if shaped is None or shaped.node.op_type != "Reshape" or not isinstance(shaped.operands[0], str):
            return None
        laid = self.items[self._makers[shaped.operands[0]]] if shaped.operands[0] in self._makers else None
        if laid is None or laid.node.op_type != "Concat":
            return None
        columns = [o for o in laid.operands if isinstance(o, GraphColumn)]
        of_rows = all(self._shape(tensor) == [ROWS] for tensor in laid.node.input)
        fits = of_rows and len(columns) == len(laid.operands) and _ints(shaped.operands[1]) == [len(columns), -1]
        return Block(columns, ROWS) if fits else None

    def _in_lane(self, node: NodeProto, operands: list[Value]) -> bool:
        if node.op_type not in _ELEMENTWISE or self._shape(node.output[0]) != [ROWS] or not node.input[0]:
            return False
        if TensorProto.STRING in (self.type_of(name) for name in [*node.input, *node.output]):
            return False  # the runtime takes strings out of blocks wrongly (Gather of more than one string per index)
        single = [o for o in operands if isinstance(o, TensorProto) and list(o.dims) in ([], [1])]
        columns = [o for o in operands if isinstance(o, GraphColumn)]
        return bool(columns) and len(single) + len(columns) == len(operands)

    def _put_in_lane(self, node: NodeProto, operands: list[Value]) -> None:
        if node.op_type in _COMMUTES and isinstance(operands[0], TensorProto):
            operands.reverse()
        attributes = b"".join(a.SerializeToString(deterministic=True) for a in sorted(node.attribute, key=attrgetter("name")))
        types = tuple(self.type_of(name) for name in node.input)
        types = tuple(sorted(types)) if node.op_type in _COMMUTES else types
        constants = tuple(isinstance(o, TensorProto) for o in operands)
        kind = (node.domain, node.op_type, attributes, types, constants)
        same = (kind, tuple(o.index if isinstance(o, GraphColumn) else content_of(o) for o in operands))
        found = self._same.get(same)
        if found is None:
            found = self._same[same] = self._column(len(self.items))
            self.items.append(Item(node, operands, self._needs(operands), kind, found))
        self.values[node.output[0]] = found

    def _put_as_is(self, node: NodeProto, operands: list[Value]) -> None:
        here = len(self.items)
        captured = [(name, self._value(name)) for name in dict.fromkeys(captured_by(node))]
        needs = self._needs([*operands, *(value for _, value in captured)])
        self.items.append(Item(node, operands, needs, captured=captured))
        for name in node.output:
            self._makers[name] = here
            shape = self._shape(name)
            if shape == [ROWS]:
                self.values[name] = self._column(here, flat=name)
            elif shape and len(shape) == 2 and isinstance(shape[0], str) and isinstance(shape[1], int) and shape[0]:
                text = self.type_of(name) == TensorProto.STRING
                columns = [self._column(here, **_stands(name, place, text=text)) for place in range(shape[1])]
                self.values[name] = Block(columns, shape[0])
                self.widths[name] = shape[1]

    def _needs(self, operands: Sequence[Value]) -> list[int]:
        found: dict[int, None] = {}
        for o in operands:
            columns = [o] if isinstance(o, GraphColumn) else o.columns if isinstance(o, Block) else []
            found.update(dict.fromkeys(c.maker for c in columns if c.maker >= 0))
            if isinstance(o, str) and o in self._makers:
                found[self._makers[o]] = None
        return list(found)

    def _drop_unused(self) -> None:
        wanted = set(self._needs([value for _, value in self.outputs]))
        for i in reversed(range(len(self.items))):
            if i in wanted:
                wanted.update(self.items[i].needs)
        self.wanted = sorted(wanted)


def _stands(block: str, place: int, *, text: bool) -> dict[str, Any]:
    return {"origin": (block, place)} if text else {"places": [(block, place)]}


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _ints(value: Value) -> list[int] | None:
    return numpy_helper.to_array(value).ravel().tolist() if isinstance(value, TensorProto) else None


def content_of(value: Any) -> bytes:
    """A constant without its name."""
    if not isinstance(value, TensorProto):
        return b""
    plain = TensorProto()
    plain.CopyFrom(value)
    plain.ClearField("name")
    plain.ClearField("doc_string")
    return bytes(plain.SerializeToString(deterministic=True))


def captured_by(node: NodeProto) -> Iterator[str]:
    """Names from outside that the subgraphs of a node use."""
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            own = {t.name for t in graph.initializer} | {i.name for i in graph.input}
            for inner in graph.node:
                yield from (name for name in [*inner.input, *captured_by(inner)] if name and name not in own)
                own.update(inner.output)
            yield from (o.name for o in graph.output if o.name not in own)
