"""A graph: one ONNX model over contract columns, run with ONNX Runtime on one thread; and how rows become its inputs.

How a column enters a graph:

    float, integer, boolean, string    one input `NAME` (float64, int64, bool, string), or when the column is nullable
                                       two, `NAME_values` and `NAME_null` (true = null; the value under a null is ignored)
    timestamp                          one int64 input `NAME`: microseconds since 1970 (UTC), null = the least int64

Only the columns that the graph uses are inputs. Which input is which part of which column, and under which name an
output is known (an output cannot have the name of an input), stands in the model's metadata under `loopwright`; a model
without that entry is read by the naming rule alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime as ort

from loopwright.records.declarations import Column

METADATA = "loopwright"
NAT = -(2**63)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DTYPES: dict[str, Any] = {
    "tensor(double)": np.dtype(np.float64),
    "tensor(float)": np.dtype(np.float32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(object),
}
_EMPTY: dict[Any, Any] = {
    np.dtype(np.float64): 0.0,
    np.dtype(np.float32): 0.0,
    np.dtype(np.int64): 0,
    np.dtype(np.bool_): False,
    np.dtype(object): "",
}

Array = np.ndarray[Any, Any]


class GraphInput(NamedTuple):
    """One input of a graph: which part of which column it carries, and its NumPy dtype."""

    name: str
    column: str
    part: Literal["plain", "values", "null"]
    dtype: "np.dtype[Any]"


class Graph:
    """An ONNX model in memory. Immutable and safe to use from several threads; not across a fork."""

    def __init__(self, data: bytes, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.data = data
        self._session: Any = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        metadata = json.loads(self._session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
        self.inputs = _inputs(self._session.get_inputs(), metadata.get("inputs", {}))
        public = {actual: name for name, actual in metadata.get("outputs", {}).items()}
        self._outputs: dict[str, str] = {public.get(o.name, o.name): o.name for o in self._session.get_outputs()}

    @property
    def columns(self) -> list[str]:
        """The columns the graph uses, in the order of its inputs."""
        return list(dict.fromkeys(i.column for i in self.inputs))

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return list(self._outputs)

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The named outputs (all when None) for a feed by input name. Every array has the same length N in front."""
        names = self.outputs if outputs is None else list(outputs)
        return dict(zip(names, self._session.run([self._outputs[n] for n in names], feed), strict=True))

    def score(self, feed: Mapping[str, Array], options: Any = None) -> Array:
        """The output `score` (float32 [N]) for a feed: the quick way, for the request path. `options` are the runtime's own."""
        return self._session.run([self._outputs["score"]], feed, options)[0]  # type: ignore[no-any-return]  # onnxruntime has no types

    def answers(self, feed: Mapping[str, Array], options: Any = None) -> tuple[Array, Array]:
        """The outputs `score` (float32 [N]) and `values` (float32 [N, K]) for a feed."""
        score, values = self._session.run([self._outputs["score"], self._outputs["values"]], feed, options)
        return score, values

    def problems(self, columns: Mapping[str, Column]) -> list[str]:
        """Where the inputs disagree with the contract `columns`; empty when they agree."""
        found = []
        for i in self.inputs:
            column = columns.get(i.column)
            if column is None:
                found.append(f"input {i.name!r} is of no column of the contract")
            elif i not in column_inputs(i.column, column):
                expected = ", ".join(f"{e.name} ({e.dtype})" for e in column_inputs(i.column, column))
                found.append(
                    f"input {i.name!r} ({i.part}, {i.dtype}) does not fit column {i.column!r}, which enters as {expected}"
                )
        return found


def column_inputs(name: str, column: Column) -> list[GraphInput]:
    """The inputs by which a column enters a graph."""
    if column.type == "timestamp":
        return [GraphInput(name, name, "plain", np.dtype(np.int64))]
    dtype = {"float": np.float64, "integer": np.int64, "boolean": np.bool_, "string": object}[column.type]
    if not column.nullable:
        return [GraphInput(name, name, "plain", np.dtype(dtype))]
    return [
        GraphInput(f"{name}_values", name, "values", np.dtype(dtype)),
        GraphInput(f"{name}_null", name, "null", np.dtype(np.bool_)),
    ]


class Feeder:
    """Rows to a feed, precompiled for one graph and contract: a few microseconds for one row.

    Rows map column to Python value; a timestamp is a zone-aware datetime or int microseconds. None, or a missing key,
    is null where the column is nullable; elsewhere it raises ValueError (KeyError for a missing key).
    """

    def __init__(self, graph: Graph, columns: Mapping[str, Column]) -> None:
        self._makers = [(i.name, i.column, _maker(i, columns[i.column]), _nullable(columns[i.column])) for i in graph.inputs]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
        """The feed for `rows`."""
        if len(rows) == 1:
            row = rows[0]
            return {name: make([row.get(column) if optional else row[column]]) for name, column, make, optional in self._makers}
        return {
            name: make([row.get(column) for row in rows] if optional else [row[column] for row in rows])
            for name, column, make, optional in self._makers
        }

    def lists(self, values: Mapping[str, list[Any]]) -> dict[str, Array]:
        """The feed for columns given as equally long lists of Python values."""
        return {name: make(values[column]) for name, column, make, _ in self._makers}


def feed_rows(graph: Graph, columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The feed of a graph for rows of Python values; see Feeder, which is quicker when used again."""
    return Feeder(graph, columns)(rows)


def feed_arrays(graph: Graph, arrays: Mapping[str, tuple[Array, Array | None]]) -> dict[str, Array]:
    """The feed of a graph for whole columns: column -> (values [N], mask of nulls [N] or None when there are none)."""
    feed: dict[str, Array] = {}
    for i in graph.inputs:
        values, null = arrays[i.column]
        if i.part == "null":
            feed[i.name] = np.zeros(len(values), dtype=np.bool_) if null is None else np.ascontiguousarray(null, dtype=np.bool_)
        else:
            feed[i.name] = np.ascontiguousarray(values, dtype=i.dtype)
    return feed


def microseconds(moment: datetime | int) -> int:
    """Microseconds since 1970 (UTC) of a zone-aware datetime; an int is taken to be that already."""
    if isinstance(moment, int):
        return moment
    if moment.tzinfo is None:
        raise ValueError(f"a moment needs a zone, not {moment!r}")
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _inputs(found: Sequence[Any], known: Mapping[str, Any]) -> tuple[GraphInput, ...]:
    types = {i.name: _DTYPES.get(i.type, np.dtype(np.void)) for i in found}
    if known:
        return tuple(GraphInput(name, known[name][0], known[name][1], dtype) for name, dtype in types.items())
    inputs = []
    for name, dtype in types.items():
        if name.endswith("_null") and dtype == np.bool_:
            inputs.append(GraphInput(name, name.removesuffix("_null"), "null", dtype))
        elif name.endswith("_values"):
            inputs.append(GraphInput(name, name.removesuffix("_values"), "values", dtype))
        else:
            inputs.append(GraphInput(name, name, "plain", dtype))
    return tuple(inputs)


def _nullable(column: Column) -> bool:
    return column.nullable


def _maker(i: GraphInput, column: Column) -> Callable[[list[Any]], Array]:
    dtype, empty = i.dtype, _EMPTY[i.dtype]
    array = np.array

    def refuse(values: list[Any]) -> None:
        if None in values:
            raise ValueError(f"column {i.column!r} is null, and the contract does not allow it")

    def null(values: list[Any]) -> Array:
        return array([v is None for v in values], dtype)

    def filled(values: list[Any]) -> Array:
        return array([empty if v is None else v for v in values], dtype)

    def plain(values: list[Any]) -> Array:
        refuse(values)
        return array(values, dtype)

    def moment(values: list[Any]) -> Array:
        if not column.nullable:
            refuse(values)
        return array([NAT if v is None else v if type(v) is int else microseconds(v) for v in values], dtype)

    if column.type == "timestamp":
        return moment
    return {"null": null, "values": filled, "plain": plain}[i.part]
