"""Input encoding of graphs: nulls are filled before the graph runs; integers are fed as float64 where that is exact enough.

A nullable column is traced as two inputs, its values and a null mask, and `fill_null` as a choice between them. On
one row a choice costs as much as three other nodes and an input as much as two. But the fill value can be applied to the input:
`fill_null(x, 50.0)` is x with 50 where it is null. So each such choice becomes an input of its own, which `graph.session` fills (the
same code offline and online); a number that is used as a feature directly enters as NaN where it is null, and operations that
propagate NaN need no choice either. Integers and booleans that are only used as numbers, or are compared with a constant
below 2^53, enter as float64 with the floats: one input less. Integers beyond 2^53 are thereby rounded twice on the way to float32.

Other values do not change; a real NaN is not a null and stays NaN.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from loopwright.develop.onnx.items import captured_by
from loopwright.graph.session import Part
from loopwright.records.declarations import Column

_KEEP_NAN = frozenset(("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Exp", "Log", "Sin", "Cos", "Tan", "Floor", "Ceil"))
_COMPARE = frozenset(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"))
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_EXACT = 2**53


class EncodedInput(NamedTuple):
    """The part of a column that input `name` of a graph holds, and its fill value for null (None where it does not matter)."""

    name: str
    column: str
    part: Part
    null: Any = None

    @property
    def metadata(self) -> list[Any]:
        """Its form in the metadata."""
        if self.null is None:
            return [self.column, self.part]
        return [self.column, self.part, "NaN" if self.null != self.null else self.null]  # NaN is not itself


def settle(model: onnx.ModelProto, entries: list[EncodedInput], columns: Mapping[str, Column]) -> list[EncodedInput]:
    """Choose the input encoding of `model`, whose inputs are `entries`; returns the new inputs, in the order of the columns."""
    settler = _Settler(model, entries, columns)
    settler.fill()
    settler.carry()
    settler.numbers()
    return settler.used_inputs()


class _Settler:
    """The model, the users of each value in it, and the entries by name."""

    def __init__(self, model: onnx.ModelProto, entries: list[EncodedInput], columns: Mapping[str, Column]) -> None:
        self._model, self._columns = model, columns
        self._entries = {e.name: e for e in entries}
        self._scalar = {e.name for e in entries if columns[e.column].type not in ("array", "timestamp")}
        self._given = {i.name: i for i in model.graph.input}
        self._constants = {t.name: t for t in model.graph.initializer}
        self._constants |= {
            n.output[0]: n.attribute[0].t
            for n in model.graph.node
            if n.op_type == "Constant" and n.attribute[0].name == "value"
        }
        self._makers: dict[str, NodeProto] = {}
        self._users: dict[str, list[NodeProto]] = {}
        self._captured = {name for n in model.graph.node for name in captured_by(n)}
        self._versions: dict[tuple[str, str, int], str] = {}
        self._drop()

    # --- nulls ---------------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """`Where(null, constant, values)`, with casts between, becomes an input of its own."""
        put: list[NodeProto] = []
        for node in self._model.graph.node:
            null = self._entries.get(node.input[0]) if node.op_type == "Where" else None
            constant = self._constant(node.input[1]) if null is not None and null.part == "null" else None
            if null is None or constant is None or null.name not in self._scalar:
                continue
            source, casts = self._behind_casts(node.input[2])
            values = self._entries.get(source)
            if (
                values is None
                or values.column != null.column
                or values.part != "values"
                or not self._fits(source, casts, constant)
            ):
                continue
            filled = self._version(values, constant, number=bool(casts) and self._type(source) not in _FLOATS)
            for cast in reversed(casts):
                put.append(helper.make_node("Cast", [filled], [f"{filled}|{len(put)}"], to=self._to(cast)))
                filled = put[-1].output[0]
            node.CopyFrom(helper.make_node("Identity", [filled], list(node.output)))
        rest = list(self._model.graph.node)
        del self._model.graph.node[:]
        self._model.graph.node.extend([*put, *rest])
        self._drop()

    def carry(self) -> None:
        """Replace `Where(null, NaN, x)` by x where x derives from a column whose nulls enter as NaN, by operations that propagate NaN."""
        found: set[str] = set()
        for node in self._model.graph.node:
            constant = self._constant(node.input[1]) if node.op_type == "Where" else None
            if constant is None or not isinstance(constant, float) or constant == constant:
                continue
            nulls = [self._entries.get(name) for name in self._alternatives(node.input[0])]
            names = [self._values_of(e) for e in nulls]
            if not all(name and self._carries(node.input[2], name) for name in names):
                continue
            found.update(names)
            node.CopyFrom(helper.make_node("Identity", [node.input[2]], list(node.output)))
        self._drop()
        for name in found:
            self._entries[name] = self._entries[name]._replace(null=float("nan"))
            if self._type(name) not in _FLOATS:
                self._retype(name)
            if (same := self._versions.get((name, "nan", self._type(name)))) is not None:
                for node in self._users[name]:
                    node.input[:] = [same if given == name else given for given in node.input]

    def _values_of(self, null: EncodedInput | None) -> str:
        """The values of the column of a mask, where they can be NaN."""
        if null is None or null.part != "null" or null.name not in self._scalar:
            return ""
        name = next(
            (e.name for e in self._entries.values() if e.column == null.column and e.part == "values" and e.null is None), ""
        )
        return name if name and (self._type(name) in _FLOATS or self._is_number(name)) else ""

    def _alternatives(self, name: str) -> list[str]:
        node = self._makers.get(name)
        if node is not None and node.op_type in ("Or", "Identity"):
            return [found for part in node.input for found in self._alternatives(part)]
        return [name]

    def _carries(self, tensor: str, source: str) -> bool:
        if tensor == source:
            return True
        node = self._makers.get(tensor)
        if node is None or (node.op_type == "Cast" and self._to(node) not in _FLOATS):
            return False
        return node.op_type in (*_KEEP_NAN, "Cast", "Identity") and any(self._carries(i, source) for i in node.input)

    def _fits(self, source: str, casts: list[NodeProto], constant: Any) -> bool:
        """Whether the constant, put where the column enters, is the same behind the casts."""
        if not casts:
            return True
        if any(self._to(c) not in _FLOATS for c in casts) or self._type(source) == TensorProto.STRING:
            return False
        narrow = np.float32 if any(self._to(c) == TensorProto.FLOAT for c in casts) else np.float64
        return bool(constant != constant or float(narrow(constant)) == constant)

    # --- numbers -------------------------------------------------------------------------------------------------------

    def numbers(self) -> None:
        """Integers and booleans of which only numbers are made become float64."""
        for name, entry in list(self._entries.items()):
            if entry.part in ("plain", "values") and self._is_number(name) and name in self._users:
                self._retype(name)

    def _is_number(self, name: str) -> bool:
        if self._columns[self._entries[name].column].type not in ("integer", "boolean") or name in self._captured:
            return False
        null = self._entries[name].null
        if name in {o.name for o in self._model.graph.output} or (null is not None and abs(null) > _EXACT):
            return False
        return all(self._makes_number(node, name) for node in self._users.get(name, []))

    def _makes_number(self, node: NodeProto, name: str) -> bool:
        if node.op_type == "Cast":
            return self._to(node) in _FLOATS
        if node.op_type not in _COMPARE or self._type(name) != TensorProto.INT64:
            return False
        constants = [self._constants[i] for i in node.input if i in self._constants]
        # Comparisons with integers below 2^53 stay exact: a larger integer stays larger when it is rounded to float64.
        return len(constants) == 1 and all(abs(v) < _EXACT for v in numpy_helper.to_array(constants[0]).ravel().tolist())

    def _retype(self, name: str) -> None:
        self._given[name].type.tensor_type.elem_type = TensorProto.DOUBLE
        entry = self._entries[name]
        self._entries[name] = entry._replace(part="number", null=None if entry.null is None else float(entry.null))
        for node in self._users.get(name, []):
            for i, given in enumerate(node.input):
                if given in self._constants and node.op_type in _COMPARE:
                    wide = numpy_helper.from_array(
                        numpy_helper.to_array(self._constants[given]).astype(np.float64), f"{given}.float64"
                    )
                    node.input[i] = wide.name
                    if wide.name not in self._constants:
                        self._constants[wide.name] = wide
                        self._model.graph.initializer.append(wide)

    # --- the graph -----------------------------------------------------------------------------------------------------

    def _drop(self) -> None:
        """Remove nodes that no output needs, and index the users of each value."""
        needed = {o.name for o in self._model.graph.output}
        same: dict[str, str] = {}
        for node in self._model.graph.node:
            node.input[:] = [same.get(name, name) for name in node.input]
            if node.op_type == "Identity" and node.output[0] not in needed | self._captured:
                same[node.output[0]] = node.input[0]
        kept = []
        for node in reversed(self._model.graph.node):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update([*node.input, *captured_by(node)])
        del self._model.graph.node[:]
        self._model.graph.node.extend(reversed(kept))
        self._makers, self._users = {}, {}
        for node in self._model.graph.node:
            self._makers.update(dict.fromkeys(node.output, node))
            for name in dict.fromkeys(node.input):
                self._users.setdefault(name, []).append(node)

    def used_inputs(self) -> list[EncodedInput]:
        """The entries that are used, in the order of the columns; the others are no inputs any more."""
        used = {name for n in self._model.graph.node for name in [*n.input, *captured_by(n)]} | {
            o.name for o in self._model.graph.output
        }
        rank = {name: i for i, name in enumerate(self._columns)}
        found = sorted((e for e in self._entries.values() if e.name in used), key=lambda e: rank[e.column])
        del self._model.graph.input[:]
        self._model.graph.input.extend([self._given[e.name] for e in found])
        return found

    def _version(self, values: EncodedInput, constant: Any, *, number: bool) -> str:
        kind = TensorProto.DOUBLE if number else self._type(values.name)
        name = self._versions.setdefault((values.name, repr(constant), kind), f"{values.name}|{constant!r}|{kind}")
        if name not in self._entries:
            self._entries[name] = EncodedInput(name, values.column, "number" if number else "values", constant)
            self._scalar.add(name)
            self._given[name] = onnx.ValueInfoProto()
            self._given[name].CopyFrom(self._given[values.name])
            self._given[name].name = name
            self._given[name].type.tensor_type.elem_type = kind
        return name

    def _type(self, name: str) -> int:
        return int(self._given[name].type.tensor_type.elem_type)

    @staticmethod
    def _to(node: NodeProto) -> int:
        return next((int(a.i) for a in node.attribute if a.name == "to"), 0)

    def _constant(self, name: str) -> Any:
        tensor = self._constants.get(name)
        if tensor is None or list(tensor.dims) not in ([], [1]):
            return None
        found = numpy_helper.to_array(tensor).ravel()[0]
        if isinstance(found, bytes):
            return found.decode()
        return found.item() if isinstance(found, np.generic) else found

    def _behind_casts(self, name: str) -> tuple[str, list[NodeProto]]:
        casts = []
        while (node := self._makers.get(name)) is not None and node.op_type in ("Cast", "Identity"):
            casts += [node] if node.op_type == "Cast" else []
            name = node.input[0]
        return name, casts
