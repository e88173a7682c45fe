"""Vectorisation of feature graphs: many operations on single columns become few operations on blocks of columns.

On one row the runtime spends its time on reading inputs and starting nodes, not on arithmetic (measured: 0.5 µs an
input, 0.2 µs a node, whatever their width). So columns of one type enter as one matrix [N, K], and element-wise nodes that
perform the same operation on different columns, and do not depend on each other, become one node over a block [N, K]. This is
superword-level parallelism of compilers (Larsen and Amarasinghe 2000, Exploiting superword level parallelism with multimedia
instruction sets), with bookkeeping of each column's position: taking columns out of blocks (Gather, or one Split where
several are taken) and concatenating blocks (Concat) are nodes as well, and the cheaper of the two is chosen.

Texts stay separate. No value changes: the same operations run on the same numbers in the same types.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from loopwright.develop.onnx.items import ROWS, Block, GraphColumn, GraphReader, Item, Value, captured_by, content_of

_TABLE = 2**14
"""The most numbers in a table of codes."""
_NODE_COST = {"Where": 3.5, "Concat": 2.0}
"""Relative cost of starting a node of such an operator, where taking columns out of a block costs 1."""


def side_by_side(model: onnx.ModelProto, inputs: Mapping[str, Sequence[str]]) -> onnx.ModelProto:
    """The same model with columns side by side. `inputs` maps each new input [N, K] to the inputs [N] that become its columns."""
    reader = GraphReader(model, inputs)
    return _BlockWriter(reader).write(model)


class _BlockWriter:
    """Puts the items in an order in which alike ones come together, and writes nodes over blocks."""

    def __init__(self, reader: GraphReader) -> None:
        self._reader, self._items = reader, reader.items
        self._nodes: list[NodeProto] = []
        self._constants: dict[bytes, TensorProto] = {}
        self._width = dict(reader.widths)
        self._packed: dict[tuple[int, ...], str] = {}
        self._joined: dict[tuple[str, ...], str] = {}
        self._named: set[str] = set()
        self._alike: dict[tuple[int, int], int] = {}
        self._users: dict[int, list[Item]] = {}
        for item in (self._items[i] for i in reader.wanted):
            for index in {o.index: None for o in item.operands if isinstance(o, GraphColumn) and item.result is not None}:
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
            helper.make_tensor_value_info(block, self._reader.type_of(names[0]), [ROWS, len(names)])
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

    def _in_order(self) -> Iterator[list[Item]]:
        """Groups of items in topological order; a group is one item, or lanes of one kind that do not depend on each other.

        Emits a kind when no more of its items can become ready; when every kind still waits for some, the one that waits for fewest.
        """
        wanted = self._reader.wanted
        waiting = {i: set(self._items[i].needs) for i in wanted}
        users: dict[int, list[int]] = {i: [] for i in wanted}
        kinds: dict[Any, dict[int, None]] = {}
        for i in wanted:
            kinds.setdefault(self._kind(i), {})[i] = None
            for need in waiting[i]:
                users[need].append(i)
        while kinds:
            able = {kind: ready for kind, members in kinds.items() if (ready := [i for i in members if not waiting[i]])}
            kind = min(able, key=lambda kind: len(kinds[kind]) - len(able[kind]))
            yield [self._items[i] for i in able[kind]]
            for i in able[kind]:
                del kinds[kind][i]
                for user in users[i]:
                    waiting[user].discard(i)
            if not kinds[kind]:
                del kinds[kind]

    def _kind(self, i: int) -> Any:
        item = self._items[i]
        return item.kind if item.result is not None else i

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _put_node(self, item: Item) -> None:
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

    def _put_codes(self, item: Item) -> bool:
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

    def _coded(self, item: Item) -> tuple[GraphColumn, GraphColumn] | None:
        """The text in a block and its codes, where an item looks up numbers for such a text."""
        if item.node.op_type != "LabelEncoder" or self._reader.type_of(item.node.output[0]) == TensorProto.STRING:
            return None
        text, codes = item.operands[0], self._reader.values[item.node.output[0]]
        if not isinstance(text, GraphColumn) or text.flat or not text.origin[0] or not isinstance(codes, GraphColumn):
            return None
        return text, codes

    def _put_table(self, block: str) -> bool:
        """Codes of all texts of a block at once: the place of each in the list of all words, and in a table its code at that place."""
        codes: dict[int, tuple[GraphColumn, dict[bytes, Any], Any]] = {}
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

    def _put_lanes(self, members: list[Item]) -> None:
        for part in self._parts(members):
            ordered, _ = self._arrange(part)
            node, results = ordered[0].node, [m.result for m in ordered if m.result is not None]
            operands = [self._operand([m.operands[p] for m in ordered]) for p in range(len(node.input))]
            self._register(self._put(node.op_type, operands, domain=node.domain, attributes=node.attribute), results)

    def _parts(self, members: list[Item]) -> list[list[Item]]:
        """One group, groups by the blocks of the operands, or single nodes: whichever is cheapest."""
        lanes = [p for p, o in enumerate(members[0].operands) if isinstance(o, GraphColumn)]
        homes = [self._homes([o for m in members if isinstance(o := m.operands[p], GraphColumn)]) for p in lanes]
        by_place: dict[Any, list[Item]] = {}
        for m, at in zip(members, zip(*homes, strict=True), strict=True):
            by_place.setdefault(at, []).append(m)
        ways = [[members], list(by_place.values()), [[m] for m in members]]
        return min(ways, key=lambda way: sum(self._arrange(part)[1] - self._saved(part) for part in way))

    def _saved(self, members: list[Item]) -> float:
        """Nodes saved later if these members are in one block: the operations that all of them share next."""
        firsts = [m.result.index for m in members if m.result is not None]
        return 0.5 * (len(firsts) - 1) * min((self._follow(firsts[0], other) for other in firsts[1:]), default=0)

    def _follow(self, one: int, other: int) -> int:
        """Number of nodes of the same kinds that follow two columns."""
        if (one, other) not in self._alike:
            theirs: dict[Any, Item] = {user.kind: user for user in self._users.get(other, [])}
            pairs = [(user, theirs[user.kind]) for user in self._users.get(one, []) if user.kind in theirs]
            self._alike[one, other] = sum(
                1 + self._follow(a.result.index, b.result.index)
                for a, b in pairs
                if a is not b and a.result is not None and b.result is not None
            )
        return self._alike[one, other]

    def _arrange(self, members: list[Item]) -> tuple[list[Item], float]:
        """The order of the members in which the operands are nearest to blocks that exist, and the cost."""
        orders = [members]
        for p, operand in enumerate(members[0].operands):
            if isinstance(operand, GraphColumn) and len(members) > 1:
                orders.append(sorted(members, key=lambda m, p=p: _place(m.operands[p])))  # type: ignore[misc]  # mypy has no types for such lambdas
        costs = [self._cost(order) for order in orders]
        best = min(range(len(orders)), key=costs.__getitem__)
        return orders[best], costs[best]

    def _cost(self, members: list[Item]) -> float:
        lanes = [
            _lanes([m.operands[p] for m in members]) for p, o in enumerate(members[0].operands) if isinstance(o, GraphColumn)
        ]
        return _NODE_COST.get(members[0].node.op_type, 1.0) + sum(self._plan(lane)[0] for lane in lanes)

    def _homes(self, columns: Sequence[GraphColumn]) -> list[str]:
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

    def _operand(self, values: list[Value]) -> str:
        if not isinstance(values[0], TensorProto):
            return self._pack(_lanes(values))
        constants = [v for v in values if isinstance(v, TensorProto)]
        if len({content_of(c) for c in constants}) == 1:
            return self._constant(constants[0])
        joined = np.array([numpy_helper.to_array(c).item() for c in constants], dtype=numpy_helper.to_array(constants[0]).dtype)
        return self._constant(numpy_helper.from_array(joined[None, :]))

    def _tensor(self, value: Value) -> str:
        """The name of a tensor that holds a value in the shape it had in the model that was read."""
        if isinstance(value, TensorProto):
            return self._constant(value)
        if isinstance(value, str):
            return value
        return self._matrix(value.columns) if isinstance(value, Block) else self._flat(value)

    def _flat(self, column: GraphColumn) -> str:
        """The name of a column as a tensor [N]."""
        if not column.flat:
            block, place = column.places[-1] if column.places else column.origin
            column.flat = self._gather(block, place)
        return column.flat

    def _matrix(self, columns: list[GraphColumn]) -> str:
        """The name of a matrix [N, K] of columns; texts are used unchanged."""
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

    def _plan(self, columns: list[GraphColumn]) -> tuple[float, Any]:
        """The cost of a block of exactly these columns, and the steps of `_pack` that make it."""
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

    def _pack(self, columns: list[GraphColumn]) -> str:
        """The name of a block of exactly these columns, added to the graph if it does not exist."""
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

    def _register(self, block: str, columns: list[GraphColumn]) -> str:
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
        key = content_of(tensor)
        if key not in self._constants:
            kept = TensorProto()
            kept.CopyFrom(tensor)
            kept.name = f"constant.{len(self._constants)}"
            self._constants[key] = kept
        return self._constants[key].name

    def _output(self, name: str, value: Value) -> tuple[str, str]:
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
    """The codes of a LabelEncoder's words, and its default, if they are given as tensors."""
    given = {a.name: a for a in node.attribute}
    if not {"keys_tensor", "values_tensor", "default_tensor"} <= given.keys():
        return None
    numbers = numpy_helper.to_array(given["values_tensor"].t)
    return dict(zip(given["keys_tensor"].t.string_data, numbers, strict=True)), numpy_helper.to_array(
        given["default_tensor"].t
    )[0]


def _place(value: Value) -> tuple[str, int]:
    return value.places[0] if isinstance(value, GraphColumn) and value.places else ("", 0)


def _lanes(values: Sequence[Value]) -> list[GraphColumn]:
    """The columns of an operand; one column used by every member is broadcast rather than repeated."""
    columns = [v for v in values if isinstance(v, GraphColumn)]
    return columns[:1] if len({c.index for c in columns}) == 1 else columns
