"""Columns side by side: many operations on single columns become few operations on blocks of them.

On one row the runtime spends its time on taking over inputs and starting nodes, not on arithmetic (measured: 0.5 µs an
input, 0.2 µs a node, whatever their width). So columns of one type enter as one matrix [N, K], and element-wise nodes that
do the same to different columns, and do not wait for each other, become one node over a block [N, K] of columns. It is what
compilers call superword parallelism (Larsen and Amarasinghe 2000, Exploiting superword level parallelism with multimedia
instruction sets), with the bookkeeping of which column stands where: taking columns out of blocks (Gather, or one Split where
several are taken) and laying blocks side by side (Concat) are nodes as well, so a group is only formed where it costs less
than its parts alone.

Texts stay alone. No value changes: the same operations run on the same numbers in the same types.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

# fmt: off
_ELEMENTWISE = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "Cast", "Ceil", "Cos", "Cosh", "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual",
    "IsInf", "IsNaN", "LabelEncoder", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
    "Reciprocal", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Sub", "Tan", "Tanh", "Where", "Xor",
))
# fmt: on
"""Operators that do to each element what they do to a single one, whatever the shape."""

_COMMUTES = frozenset({"Add", "Mul", "And", "Or", "Equal"})
_ROWS = "N"
_TABLE = 2**14
"""The most numbers in a table of codes."""
_NODE_COST = {"Where": 3.5, "Concat": 2.0}


class _Column(msgspec.Struct, eq=False):
    """One value per row: its places in blocks [N, K], its name as a tensor [N] by itself, a text's place in a tensor [N, K]."""

    index: int
    maker: int
    places: list[tuple[str, int]] = []
    flat: str = ""
    origin: tuple[str, int] = ("", 0)


class _Block(msgspec.Struct, eq=False):
    """A matrix [N, K] as its columns; `rows` is the name of its first dimension."""

    columns: list[_Column]
    rows: str


_Value = TensorProto | _Column | _Block | str
"""A constant, a column [N], a block [N, K], or any other tensor by its name ("" = not given)."""


class _Item(msgspec.Struct, eq=False):
    """A node to be put: in a lane (`result` is its column) with others of the same `kind`, or as it is."""

    node: NodeProto
    operands: list[_Value]
    needs: list[int]
    kind: tuple[Any, ...] = ()
    result: _Column | None = None
    captured: list[tuple[str, _Value]] = []


def side_by_side(model: onnx.ModelProto, inputs: Mapping[str, Sequence[str]]) -> onnx.ModelProto:
    """The same model with columns side by side. `inputs` maps each new input [N, K] to the inputs [N] that become its columns."""
    reader = _GraphReader(model, inputs)
    return _BlockWriter(reader).write(model)


class _GraphReader:
    """A model as items over columns, blocks and constants; nodes that only move columns are gone."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Sequence[str]]) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.types = {v.name: v.type.tensor_type for v in [*inferred.input, *inferred.value_info, *inferred.output]}
        self.inputs = {block: list(names) for block, names in inputs.items()}
        self.values: dict[str, _Value] = {t.name: t for t in model.graph.initializer}
        self.items: list[_Item] = []
        self.columns = 0
        self.widths: dict[str, int] = {}
        self._makers: dict[str, int] = {}
        self._same: dict[Any, _Column] = {}
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

    def _column(self, maker: int, **where: Any) -> _Column:
        self.columns += 1
        return _Column(self.columns, maker, **where)

    def _value(self, name: str) -> _Value:
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

    def _moved(self, node: NodeProto, operands: list[_Value]) -> _Value | None:
        """The result of a node that computes nothing, None when it is another."""
        first = operands[0] if operands else ""
        if node.op_type == "Identity":
            return first
        if node.op_type == "Cast" and self.type_of(node.input[0]) == _attribute(node, "to", 0):
            return first
        if node.op_type == "Unsqueeze" and isinstance(first, _Column) and _ints(operands[1]) in ([1], [-1]):
            shape = self._shape(node.output[0])
            return _Block([first], str(shape[0])) if shape and shape[0] else None
        if node.op_type == "Concat" and _attribute(node, "axis", 0) in (1, -1):
            blocks = [o for o in operands if isinstance(o, _Block)]
            if len(blocks) == len(operands) and len({b.rows for b in blocks}) == 1:
                return _Block([c for b in blocks for c in b.columns], blocks[0].rows)
        if node.op_type == "Transpose" and isinstance(first, str):
            return self._laid_and_turned(first)
        if not isinstance(first, _Block):
            return None
        if node.op_type == "Squeeze" and len(first.columns) == 1 and _ints(operands[1]) in ([1], [-1]):
            return first.columns[0]
        if node.op_type == "Slice" and len(operands) >= 4 and _ints(operands[3]) in ([1], [-1]):
            start, end, step = _ints(operands[1]), _ints(operands[2]), _ints(operands[4]) if len(operands) > 4 else [1]
            if start is not None and end is not None and step is not None:
                return _Block(first.columns[slice(start[0], end[0], step[0])], first.rows)
        return None

    def _laid_and_turned(self, name: str) -> _Block | None:
        """The block whose transpose is K columns laid end to end and reshaped to [K, N]."""
        shaped = self.items[self._makers[name]] if name in self._makers else None
        if shaped is None or shaped.node.op_type != "Reshape" or not isinstance(shaped.operands[0], str):
            return None
        laid = self.items[self._makers[shaped.operands[0]]] if shaped.operands[0] in self._makers else None
        if laid is None or laid.node.op_type != "Concat":
            return None
        columns = [o for o in laid.operands if isinstance(o, _Column)]
        of_rows = all(self._shape(tensor) == [_ROWS] for tensor in laid.node.input)
        fits = of_rows and len(columns) == len(laid.operands) and _ints(shaped.operands[1]) == [len(columns), -1]
        return _Block(self._cast_together(columns), _ROWS) if fits else None

    def _cast_together(self, columns: list[_Column]) -> list[_Column]:
        """Where most columns of a matrix are cast to float32 last, let all be: what is float32 goes there and back, and stays what it is."""
        makers = [self.items[c.maker] if c.maker >= 0 and self.items[c.maker].result is c else None for c in columns]
        ways = [
            (self.type_of(m.node.input[0]), self.type_of(m.node.output[0])) if m and m.node.op_type == "Cast" else None
            for m in makers
        ]
        late = [way == (TensorProto.DOUBLE, TensorProto.FLOAT) for way in ways]
        if None in makers or not len(columns) / 2 < sum(late) < len(columns):
            return columns
        found = []
        for column, maker, way, done in zip(columns, makers, ways, late, strict=True):
            if not done and maker is not None:
                source, given = (maker.operands[0], maker.node.input[0]) if way else (column, maker.node.output[0])
                column = self._cast(self._cast(source, given, TensorProto.DOUBLE), f"{given}.double", TensorProto.FLOAT)
            found.append(column)
        return found

    def _cast(self, value: _Value, tensor: str, to: int) -> _Column:
        name = f"{tensor}.{'double' if to == TensorProto.DOUBLE else 'float'}"
        self.types[name] = helper.make_tensor_type_proto(to, [_ROWS]).tensor_type
        self._put_in_lane(helper.make_node("Cast", [tensor], [name], to=to, saturate=1), [value])
        found = self.values[name]
        assert isinstance(found, _Column)
        return found

    def _in_lane(self, node: NodeProto, operands: list[_Value]) -> bool:
        if node.op_type not in _ELEMENTWISE or self._shape(node.output[0]) != [_ROWS] or not node.input[0]:
            return False
        if TensorProto.STRING in (self.type_of(name) for name in [*node.input, *node.output]):
            return False  # the runtime takes strings out of blocks wrongly (Gather of more than one string per index)
        single = [o for o in operands if isinstance(o, TensorProto) and list(o.dims) in ([], [1])]
        columns = [o for o in operands if isinstance(o, _Column)]
        return bool(columns) and len(single) + len(columns) == len(operands)

    def _put_in_lane(self, node: NodeProto, operands: list[_Value]) -> None:
        if node.op_type in _COMMUTES and isinstance(operands[0], TensorProto):
            operands.reverse()
        node, operands = self._simpler(node, operands)
        attributes = b"".join(a.SerializeToString(deterministic=True) for a in sorted(node.attribute, key=attrgetter("name")))
        types = tuple(self.type_of(name) for name in node.input) if node.op_type != "IsInf" else (self.type_of(node.input[0]),)
        types = tuple(sorted(types)) if node.op_type in _COMMUTES else types
        constants = tuple(isinstance(o, TensorProto) and (node.op_type != "Clip" or _content(o)) for o in operands)
        kind = (node.domain, node.op_type, attributes, types, constants)
        same = (kind, tuple(o.index if isinstance(o, _Column) else _content(o) for o in operands))
        found = self._same.get(same)
        if found is None:
            found = self._same[same] = self._column(len(self.items))
            self.items.append(_Item(node, operands, self._needs(operands), kind, found))
        self.values[node.output[0]] = found

    def _simpler(self, node: NodeProto, operands: list[_Value]) -> tuple[NodeProto, list[_Value]]:
        """`isinf(x) & (x > 0)`, which every log1p asks, is one node, and so is the smaller of one bound and the larger of another."""
        if node.op_type == "Min":
            return self._clipped(node, operands)
        if node.op_type != "And" or not all(isinstance(o, _Column) and o.maker >= 0 for o in operands):
            return node, operands
        made = {(m := self.items[o.maker]).node.op_type: m for o in operands if isinstance(o, _Column)}
        infinite, above = made.get("IsInf"), made.get("Greater")
        if infinite is None or above is None or infinite.operands[0] is not above.operands[0]:
            return node, operands
        if not isinstance(above.operands[1], TensorProto) or numpy_helper.to_array(above.operands[1]).item() != 0:
            return node, operands
        if not _attribute(infinite.node, "detect_positive", 1):
            return node, operands
        return helper.make_node("IsInf", [infinite.node.input[0]], [node.output[0]], detect_negative=0), infinite.operands[:1]

    def _clipped(self, node: NodeProto, operands: list[_Value]) -> tuple[NodeProto, list[_Value]]:
        column, high = operands if len(operands) == 2 else ("", "")
        if not isinstance(column, _Column) or column.maker < 0 or not isinstance(high, TensorProto):
            return node, operands
        above = self.items[column.maker]
        if above.node.op_type != "Max" or len(above.operands) != 2 or not isinstance(above.operands[1], TensorProto):
            return node, operands
        least, most = (numpy_helper.to_array(t).reshape(()) for t in (above.operands[1], high))
        if least.dtype.kind != "f" or not least <= most:
            return node, operands
        clip = helper.make_node("Clip", [above.node.input[0], node.input[1], node.input[1]], [node.output[0]])
        return clip, [above.operands[0], numpy_helper.from_array(least), numpy_helper.from_array(most)]

    def _put_as_is(self, node: NodeProto, operands: list[_Value]) -> None:
        here = len(self.items)
        captured = [(name, self._value(name)) for name in dict.fromkeys(captured_by(node))]
        needs = self._needs([*operands, *(value for _, value in captured)])
        self.items.append(_Item(node, operands, needs, captured=captured))
        for name in node.output:
            self._makers[name] = here
            shape = self._shape(name)
            if shape == [_ROWS]:
                self.values[name] = self._column(here, flat=name)
            elif shape and len(shape) == 2 and isinstance(shape[0], str) and isinstance(shape[1], int) and shape[0]:
                text = self.type_of(name) == TensorProto.STRING
                columns = [self._column(here, **_stands(name, place, text=text)) for place in range(shape[1])]
                self.values[name] = _Block(columns, shape[0])
                self.widths[name] = shape[1]

    def _needs(self, operands: Sequence[_Value]) -> list[int]:
        found: dict[int, None] = {}
        for o in operands:
            columns = [o] if isinstance(o, _Column) else o.columns if isinstance(o, _Block) else []
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


class _BlockWriter:
    """Puts the items in an order in which alike ones come together, and writes nodes over blocks."""

    def __init__(self, reader: _GraphReader) -> None:
        self._reader, self._items = reader, reader.items
        self._nodes: list[NodeProto] = []
        self._constants: dict[bytes, TensorProto] = {}
        self._width = dict(reader.widths)
        self._packed: dict[tuple[int, ...], str] = {}
        self._joined: dict[tuple[str, ...], str] = {}
        self._named: set[str] = set()
        self._alike: dict[tuple[int, int], int] = {}
        self._users: dict[int, list[_Item]] = {}
        wanted = [o for i in reader.wanted for o in reader.items[i].operands] + [o for _, o in reader.outputs]
        self._matrices = [o for o in wanted if isinstance(o, _Block)]
        for i in reader.wanted:
            item = reader.items[i]
            for index in {o.index: None for o in item.operands if isinstance(o, _Column) and item.result is not None}:
                self._users.setdefault(index, []).append(item)

    def write(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The new model."""
        for members in self._in_order():
            if members[0].result is None:
                self._put_node(members[0])
            else:
                self._put_lanes(members)
        outputs = [self._output(info.name, value) for info, value in self._reader.outputs]
        packed = {name for names in self._reader.inputs.values() for name in names}
        inputs = [
            helper.make_tensor_value_info(block, self._reader.type_of(names[0]), [_ROWS, len(names)])
            for block, names in self._reader.inputs.items()
        ] + [i for i in model.graph.input if i.name not in packed]
        self._rename(dict(outputs))
        used = {name for node in self._nodes for name in [*node.input, *captured_by(node)]}
        graph = helper.make_graph(
            self._nodes,
            "graph",
            [i for i in inputs if i.name in used],
            [info for info, _ in self._reader.outputs],
            [t for t in self._constants.values() if t.name in used],
        )
        return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)

    # --- the order ---------------------------------------------------------------------------------------------------

    def _in_order(self) -> Iterator[list[_Item]]:
        """Groups of items, each after what it needs; a group is one item, or lanes of one kind that do not need each other.

        A kind is put when no more of it can come. When every kind still waits for more, one that nothing else can help goes
        first (or the one least behind), and of it those that more of the kind wait for.
        """
        wanted = self._reader.wanted
        above: dict[int, int] = {}
        for i in wanted:
            above[i] = 0
            for need in self._items[i].needs:
                above[i] |= above[need] | 1 << need
        waiting = {i: set(self._items[i].needs) for i in wanted}
        users: dict[int, list[int]] = {i: [] for i in wanted}
        for i in wanted:
            for need in waiting[i]:
                users[need].append(i)
        kinds: dict[Any, dict[int, None]] = {}
        for i in wanted:
            kinds.setdefault(self._kind(i), {})[i] = None
        while kinds:
            kind, group = self._next(kinds, waiting, above)
            yield [self._items[i] for i in group]
            for i in group:
                del kinds[kind][i]
                for user in users[i]:
                    waiting[user].discard(i)
            if not kinds[kind]:
                del kinds[kind]

    def _kind(self, i: int) -> Any:
        item = self._items[i]
        return item.kind if item.result is not None else i

    def _next(
        self, kinds: Mapping[Any, Mapping[int, None]], waiting: Mapping[int, set[int]], above: Mapping[int, int]
    ) -> tuple[Any, list[int]]:
        able = {kind: ready for kind, members in kinds.items() if (ready := [i for i in members if not waiting[i]])}
        all_ready = sum(1 << i for ready in able.values() for i in ready)
        ranked: list[tuple[bool, int, int, Any]] = []
        for kind, ready in able.items():
            late = [i for i in kinds[kind] if waiting[i]]
            if not late:
                return kind, ready
            behind = 0
            for i in late:
                behind |= above[i]
            own = sum(1 << i for i in ready)
            ranked.append((bool(behind & all_ready & ~own), len(late), len(ranked), kind))
        _, _, _, kind = min(ranked, key=itemgetter(slice(0, 3)))
        first = [i for i in able[kind] if any(above[j] >> i & 1 for j in kinds[kind])]
        return kind, [i for i in able[kind] if i in first or any(self._goes_with(i, j) for j in first)] or able[kind]

    def _goes_with(self, one: int, other: int) -> bool:
        """Whether more than one thing is done to both of two items' results."""
        a, b = self._items[one].result, self._items[other].result
        return a is not None and b is not None and self._follow(a.index, b.index) > 1

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _put_node(self, item: _Item) -> None:
        if item.node.op_type == "LabelEncoder" and self._put_codes(item):
            return
        node = NodeProto()
        node.CopyFrom(item.node)
        del node.input[:]
        node.input.extend([self._tensor(o) for o in item.operands])
        for name, value in item.captured:
            tensor = self._tensor(value)
            if tensor != name and name not in self._named:
                self._put("Identity", [tensor], result=name)
            self._named.add(name)
        self._nodes.append(node)

    def _put_codes(self, item: _Item) -> bool:
        """Codes of a text that enters with others: looked up as a matrix [N, 1], rather than made a tensor [N] between."""
        found = self._coded(item)
        if found is None:
            return False
        text, codes = found
        block, place = text.origin
        if codes.places or self._put_table(block):
            return True
        one = block if self._reader.widths[block] == 1 else self._gather(block, [place])
        codes.flat = ""
        self._register(self._put("LabelEncoder", [one], domain=item.node.domain, attributes=item.node.attribute), [codes])
        return True

    def _coded(self, item: _Item) -> tuple[_Column, _Column] | None:
        """The text in a block and its codes, where an item looks up numbers for such a text."""
        if item.node.op_type != "LabelEncoder" or self._reader.type_of(item.node.output[0]) == TensorProto.STRING:
            return None
        text, codes = item.operands[0], self._reader.values[item.node.output[0]]
        if not isinstance(text, _Column) or text.flat or not text.origin[0] or not isinstance(codes, _Column):
            return None
        return text, codes

    def _put_table(self, block: str) -> bool:
        """Codes of all texts of a block at once: the place of each in the list of all words, and in a table its code at that place."""
        codes: dict[int, tuple[_Column, dict[bytes, Any], Any]] = {}
        for item in (self._items[i] for i in self._reader.wanted):
            found = self._coded(item)
            if found is not None and found[0].origin[0] == block:
                coding = _coding(item.node)
                if coding is None or found[0].origin[1] in codes:
                    return False
                codes[found[0].origin[1]] = (found[1], *coding)
        columns = [codes[place] for place in sorted(codes)]
        words = list(dict.fromkeys(word for _, known, _ in columns for word in known))
        alike = len({default.dtype for *_, default in columns}) == 1
        if not (1 < len(columns) == self._reader.widths[block] and alike and 0 < len(words) * len(columns) <= _TABLE):
            return False
        kinds: dict[str, Any] = {"keys_strings": words, "values_int64s": range(len(words)), "default_int64": len(words)}
        at = self._put("LabelEncoder", [block], domain="ai.onnx.ml", **kinds)
        rows = [[known.get(word, default) for _, known, default in columns] for word in words]
        rows.append([default for *_, default in columns])
        table = numpy_helper.from_array(np.array(rows, dtype=columns[0][2].dtype))
        for column, *_ in columns:
            column.flat = ""
        self._register(self._put("GatherElements", [self._constant(table), at], axis=0), [column for column, *_ in columns])
        return True

    def _put_lanes(self, members: list[_Item]) -> None:
        for part in self._parts(members):
            ordered, _ = self._arrange(part)
            node, results = ordered[0].node, [m.result for m in ordered if m.result is not None]
            wide = self._wide(ordered)
            operands = [
                self._operand([m.operands[p] for m in ordered])
                if wide is None or isinstance(o, TensorProto)
                else self._join(wide)
                for p, o in enumerate(ordered[0].operands)
            ]
            name = self._put(node.op_type, operands, domain=node.domain, attributes=node.attribute)
            if wide is None:
                self._register(name, results)
                continue
            start = dict(zip(wide, accumulate([0, *(self._width[b] for b in wide)]), strict=False))
            self._width[name] = sum(self._width[b] for b in wide)
            for m, result in zip(ordered, results, strict=True):
                column = next(o for o in m.operands if isinstance(o, _Column))
                block, place = next((b, p) for b, p in column.places if b in start)
                result.places = [*result.places, (name, start[block] + place)]

    def _wide(self, members: list[_Item]) -> list[str] | None:
        """Whole blocks to cast, rather than take the members' columns out of them: where few columns are cast in vain."""
        columns = [o for o in members[0].operands if isinstance(o, _Column)]
        if len(columns) != 1 or members[0].node.op_type != "Cast":
            return None
        homes = self._homes([o for m in members for o in m.operands if isinstance(o, _Column)])
        blocks = list(dict.fromkeys(homes))
        if not all(blocks) or sum(self._width[b] for b in blocks) > 1.5 * len(members):
            return None
        return blocks

    def _homes(self, columns: Sequence[_Column]) -> list[str]:
        """For each column the block to take it from: the one with the largest share of these columns; "" for a column in none."""
        shared = Counter(block for c in dict.fromkeys(columns) for block, _ in c.places)
        return [
            max((b for b, _ in c.places), key=lambda b: (shared[b] / self._width[b], shared[b], b), default="") for c in columns
        ]

    def _join(self, blocks: list[str]) -> str:
        """The name of whole blocks laid side by side."""
        if len(blocks) == 1:
            return blocks[0]
        key = tuple(blocks)
        if key not in self._joined:
            self._joined[key] = self._put("Concat", blocks, axis=1)
        return self._joined[key]

    def _parts(self, members: list[_Item]) -> list[list[_Item]]:
        """One group, groups by where the operands stand, or each alone: whichever costs least."""
        lanes = [p for p, o in enumerate(members[0].operands) if isinstance(o, _Column)]
        homes = [self._homes([o for m in members if isinstance(o := m.operands[p], _Column)]) for p in lanes]
        by_place: dict[Any, list[_Item]] = {}
        for m, at in zip(members, zip(*homes, strict=True), strict=True):
            by_place.setdefault(at, []).append(m)
        ways = [[members], list(by_place.values()), [[m] for m in members]]
        return min(ways, key=lambda way: sum(self._arrange(part)[1] - self._saved(part) for part in way))

    def _saved(self, members: list[_Item]) -> float:
        """Nodes that need not be put later because these members stand in one block: what all of them do next."""
        firsts = [m.result.index for m in members if m.result is not None]
        return 0.5 * (len(firsts) - 1) * min((self._follow(firsts[0], other) for other in firsts[1:]), default=0)

    def _follow(self, one: int, other: int) -> int:
        """How many nodes of the same kinds follow two columns."""
        if (one, other) not in self._alike:
            theirs: dict[Any, _Item] = {user.kind: user for user in self._users.get(other, [])}
            pairs = [(user, theirs[user.kind]) for user in self._users.get(one, []) if user.kind in theirs]
            self._alike[one, other] = sum(
                1 + self._follow(a.result.index, b.result.index)
                for a, b in pairs
                if a is not b and a.result is not None and b.result is not None
            )
        return self._alike[one, other]

    def _arrange(self, members: list[_Item]) -> tuple[list[_Item], float]:
        """The order of the members in which the operands are nearest to blocks that exist, and the cost."""
        orders = [members]
        for p, operand in enumerate(members[0].operands):
            if isinstance(operand, _Column) and len(members) > 1:
                orders.append(sorted(members, key=lambda m, p=p: _place(m.operands[p])))  # type: ignore[misc]  # mypy has no types for such lambdas
        costs = [self._cost(order) for order in orders]
        if self._wide(members) is None and (asked := self._matrix_order(members)) is not None:
            orders.append(asked)
            costs.append(self._cost(asked) - 1.0)  # of these columns nobody will have to make a matrix
        best = min(range(len(orders)), key=costs.__getitem__)
        return orders[best], costs[best]

    def _matrix_order(self, members: list[_Item]) -> list[_Item] | None:
        """The members in the order of a matrix that is made of their results and nothing else, where there is one."""
        by_result = {m.result.index: m for m in members if m.result is not None}
        for matrix in self._matrices:
            if len(matrix.columns) == len(members) and by_result.keys() == {c.index for c in matrix.columns}:
                return [by_result[c.index] for c in matrix.columns]
        return None

    def _cost(self, members: list[_Item]) -> float:
        cost = _NODE_COST.get(members[0].node.op_type, 1.0)
        if (wide := self._wide(members)) is not None:
            return cost + (_NODE_COST["Concat"] if len(wide) > 1 and tuple(wide) not in self._joined else 0.0)
        for p, operand in enumerate(members[0].operands):
            if isinstance(operand, _Column):
                cost += self._plan(_lanes([m.operands[p] for m in members]))[0]
        return cost

    def _operand(self, values: list[_Value]) -> str:
        if not isinstance(values[0], TensorProto):
            return self._pack(_lanes(values))
        constants = [v for v in values if isinstance(v, TensorProto)]
        if len({_content(c) for c in constants}) == 1:
            return self._constant(constants[0])
        joined = np.array([numpy_helper.to_array(c).item() for c in constants], dtype=numpy_helper.to_array(constants[0]).dtype)
        return self._constant(numpy_helper.from_array(joined[None, :]))

    def _tensor(self, value: _Value) -> str:
        """The name of a tensor that holds a value in the shape it had in the model that was read."""
        if isinstance(value, TensorProto):
            return self._constant(value)
        if isinstance(value, str):
            return value
        return self._matrix(value.columns) if isinstance(value, _Block) else self._flat(value)

    def _flat(self, column: _Column) -> str:
        """The name of a column as a tensor [N]."""
        if not column.flat:
            block, place = column.places[-1] if column.places else column.origin
            column.flat = self._gather(block, place)
        return column.flat

    def _matrix(self, columns: list[_Column]) -> str:
        """The name of a matrix [N, K] of columns; texts are taken as they stand."""
        parts = []
        for tensor, part in groupby(columns, key=lambda c: "" if c.places or c.flat else c.origin[0]):
            run = list(part)
            places = [c.origin[1] for c in run]
            if not tensor:
                parts.append(self._pack(run))
            else:
                whole = places == list(range(self._reader.widths[tensor]))
                parts.append(tensor if whole else self._gather(tensor, places))
        return parts[0] if len(parts) == 1 else self._put("Concat", parts, axis=1)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _plan(self, columns: list[_Column]) -> tuple[float, Any]:
        """What it costs to make a block of exactly these columns, and how: the steps of `_pack`."""
        key = tuple(c.index for c in columns)
        if key in self._packed:
            return 0.0, ("there", self._packed[key])
        if len(columns) == 1 and not columns[0].places:
            return 1.0, ("flat", columns[0])
        homes = self._homes(columns)
        blocks = list(dict.fromkeys(homes))
        if len(blocks) == 1 and blocks[0]:
            places = [dict(c.places)[blocks[0]] for c in columns]
            whole = places == list(range(self._width[blocks[0]]))
            return (0.0, ("there", blocks[0])) if whole else (1.0, ("take", (blocks, places)))
        runs = [[c for _, c in run] for _, run in groupby(zip(homes, columns, strict=True), key=itemgetter(0))]
        runs = [part for run in runs for part in ([run] if run[0].places else [[c] for c in run])]
        apart = _NODE_COST["Concat"] + sum(self._plan(run)[0] for run in runs)
        if all(blocks) and sum(self._width[b] for b in blocks) <= 2 * len(columns) + 6:
            joined = (_NODE_COST["Concat"] if tuple(blocks) not in self._joined else 0.0) + 1.0
            if joined < apart:
                start = dict(zip(blocks, accumulate([0, *(self._width[b] for b in blocks)]), strict=False))
                places = [start[h] + dict(c.places)[h] for h, c in zip(homes, columns, strict=True)]
                return joined, ("take", (blocks, places))
        return apart, ("join", runs)

    def _pack(self, columns: list[_Column]) -> str:
        """The name of a block of exactly these columns, put where it is not there."""
        _, (way, what) = self._plan(columns)
        if way == "there":
            return str(what)
        if way == "flat":
            last = self._constant(numpy_helper.from_array(np.array([1])))
            return self._register(self._put("Unsqueeze", [self._flat(what), last]), columns)
        if way == "take":
            blocks, places = what
            return self._register(self._gather(self._join(blocks), places), columns)
        return self._register(self._put("Concat", [self._pack(run) for run in what], axis=1), columns)

    def _gather(self, block: str, places: list[int] | int) -> str:
        return self._put("Gather", [block, self._constant(numpy_helper.from_array(np.array(places)))], axis=1)

    def _register(self, block: str, columns: list[_Column]) -> str:
        self._width[block] = len(columns)
        self._packed[tuple(c.index for c in columns)] = block
        for place, column in enumerate(columns):
            column.places = [*column.places, (block, place)]
        return block

    def _put(
        self, op: str, inputs: list[str], *, domain: str = "", attributes: Sequence[Any] = (), result: str = "", **more: Any
    ) -> str:
        name = result or f"block.{len(self._nodes)}"
        node = helper.make_node(op, inputs, [name], domain=domain, **more)
        node.attribute.extend(attributes)
        self._nodes.append(node)
        return name

    def _constant(self, tensor: TensorProto) -> str:
        key = _content(tensor)
        if key not in self._constants:
            kept = TensorProto()
            kept.CopyFrom(tensor)
            kept.name = f"constant.{len(self._constants)}"
            self._constants[key] = kept
        return self._constants[key].name

    def _output(self, name: str, value: _Value) -> tuple[str, str]:
        """The tensor that becomes an output, by the name it has now and the one it gets."""
        tensor = self._tensor(value)
        made = any(tensor in node.output for node in self._nodes)
        taken = tensor in {o.name for o, _ in self._reader.outputs} and tensor != name
        if made and not taken and tensor not in self._named:
            self._named.add(tensor)
            return tensor, name
        return self._put("Identity", [tensor]), name

    def _rename(self, names: Mapping[str, str]) -> None:
        for node in self._nodes:
            for side in (node.input, node.output):
                for i, name in enumerate(side):
                    side[i] = names.get(name, name)


def _coding(node: NodeProto) -> tuple[dict[bytes, Any], Any] | None:
    """The numbers that a LabelEncoder has for words, and the one for any other, where it is given them as tensors."""
    given = {a.name: a for a in node.attribute}
    if not {"keys_tensor", "values_tensor", "default_tensor"} <= given.keys():
        return None
    numbers = numpy_helper.to_array(given["values_tensor"].t)
    return dict(zip(given["keys_tensor"].t.string_data, numbers, strict=True)), numpy_helper.to_array(
        given["default_tensor"].t
    )[0]


def _stands(block: str, place: int, *, text: bool) -> dict[str, Any]:
    return {"origin": (block, place)} if text else {"places": [(block, place)]}


def _lanes(values: Sequence[_Value]) -> list[_Column]:
    """The columns of an operand; one column used by every member is broadcast rather than repeated."""
    columns = [v for v in values if isinstance(v, _Column)]
    return columns[:1] if len({c.index for c in columns}) == 1 else columns


def _place(value: _Value) -> tuple[str, int]:
    return value.places[0] if isinstance(value, _Column) and value.places else ("", 0)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _ints(value: _Value) -> list[int] | None:
    return numpy_helper.to_array(value).ravel().tolist() if isinstance(value, TensorProto) else None


def _content(value: Any) -> bytes:
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
