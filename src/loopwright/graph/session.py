"""A graph: one ONNX model over contract columns, run with ONNX Runtime on one thread; and the encoding of rows as its inputs.

Input encoding. Columns of one type share an input, because the runtime takes half a microsecond per
input, however wide:

    floats      float64 [N, K]    the values of float columns, and of integer and boolean ones that are only used as numbers
    integers    int64 [N, K]      of integer columns, and of timestamps: microseconds since 1970 (UTC), null = the least int64
    booleans    bool [N, K]       of boolean columns, and the null mask of a nullable column, where it is used
    strings     string [N, K]     of string columns
    NAME        float32 [N, ...]  an array column, in its own shape

Only columns that the graph uses are inputs; a null is replaced by the graph's fill value, and a column may occur
several times with different fill values. The mapping of inputs and positions to parts of columns, their fill values, and
the names of outputs (an output cannot have the name of an input), are in the model's metadata under `loopwright`:

    {"columns": [NAME, ...], "inputs": {"floats": [[NAME, "plain"], [NAME, "values", 10.0], [NAME, "number"], ...]}, "outputs": {}}

"NaN" is written for NaN. Without a fill value, the value under a null is ignored. A model without that entry has one input [N] per
column by name, or two, `NAME_values` and `NAME_null`, for a nullable one.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.clock import microseconds
from loopwright.base.errors import LibraryChanged
from loopwright.base.internals import internal
from loopwright.records.declarations import Column

METADATA = "loopwright"
LEAN_BYTES = 8 * 2**20
"""Larger models are not loaded twice for the sake of memory: there are few of them, and it takes long."""

NAT = -(2**63)
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
_COLUMN_DTYPES: dict[str, Any] = {
    "float": np.float64,
    "integer": np.int64,
    "boolean": np.bool_,
    "string": object,
    "timestamp": np.int64,
    "array": np.float32,
}

Part = Literal["plain", "values", "null", "number"]


class ColumnPart(NamedTuple):
    """The part of a column that enters a graph; `name` is unique.

    Its values (`plain` where it cannot be null, `number` where float64 is made of integers or booleans), or whether it is null.
    """

    name: str
    part: Part
    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]


class GraphInput(NamedTuple):
    """One input of a graph: the parts of columns that it holds in order, its NumPy dtype, its shape without N.

    `nulls` has for each part its fill value for null, None where that does not matter.
    """

    name: str
    parts: tuple[tuple[str, Part], ...]
    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]
    nulls: tuple[Any, ...]


class Graph:
    """An ONNX model in memory. Immutable and safe to use from several threads; not across a fork.

    `lean` is for models that are held by the thousand: a third of the memory, for twice the time to load.
    """

    def __init__(self, data: bytes, *, threads: int = 1, lean: bool = False) -> None:
        session: Any = _lean_session(data, threads) if lean else None
        if session is None:
            session = _session(data, threads)
        self._call: Callable[..., list[Array]] = _unchecked(session).run
        self._cold = True
        metadata = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
        self.inputs = _inputs(session.get_inputs(), metadata.get("inputs", {}))
        rank = {name: i for i, name in enumerate(metadata.get("columns", []))}
        named = dict.fromkeys(column for i in self.inputs for column, _ in i.parts)
        self.columns = sorted(named, key=lambda name: rank.get(name, len(rank)))
        """The columns the graph uses, in the order of the contract."""
        public = {actual: name for name, actual in metadata.get("outputs", {}).items()}
        self._outputs: dict[str, str] = {public.get(o.name, o.name): o.name for o in session.get_outputs()}

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return list(self._outputs)

    def _run(self, names: list[str], feed: Mapping[str, Array], options: Any = None) -> list[Array]:
        if len(feed) != len(self.inputs):  # the runtime refuses an unknown input, but not a missing one
            raise ValueError(f"the graph takes {', '.join(i.name for i in self.inputs)}, not {', '.join(feed)}")
        if self._cold and all(map(len, feed.values())):
            # The runtime keeps a plan of memory by the sizes of the first run, and mistakes other numbers of rows for it where the
            # count of inputs is even (its key is their exclusive or): let it be the plan for one row, which is a quarter quicker by it.
            self._cold = False
            self._call(names, {name: array[:1] for name, array in feed.items()}, options)
        return self._call(names, feed, options)

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str] | None = None, options: Any = None) -> dict[str, Array]:
        """The named outputs (all when None) for a feed by input name. Every array has the same length N in front.

        `options` are the runtime's own.
        """
        names = self.outputs if outputs is None else list(outputs)
        return dict(zip(names, self._run([self._outputs[n] for n in names], feed, options), strict=True))

    def score(self, feed: Mapping[str, Array], options: Any = None) -> Array:
        """The output `score` (float32 [N]) for a feed: the quick way, for the request path. `options` are the runtime's own."""
        return self._run([self._outputs["score"]], feed, options)[0]

    def answers(self, feed: Mapping[str, Array], options: Any = None) -> tuple[Array, Array]:
        """The outputs `score` (float32 [N]) and `values` (float32 [N, K]) for a feed."""
        score, values = self._run([self._outputs["score"], self._outputs["values"]], feed, options)
        return score, values

    def problems(self, columns: Mapping[str, Column]) -> list[str]:
        """Differences between the inputs and the contract `columns`; empty without any."""
        found = []
        for i in self.inputs:
            for name, part in i.parts:
                column = columns.get(name)
                if column is None:
                    found.append(f"input {i.name!r} is of {name!r}, which is no column of the contract")
                    continue
                expected = column_parts(name, column)
                if part == "number" and column.type in ("integer", "boolean"):
                    expected = [ColumnPart(name, "number", np.dtype(np.float64), ())]
                shape = i.shape if column.type == "array" and part != "null" else ()
                if not any(e.part == part and e.dtype == i.dtype and e.shape == shape for e in expected):
                    enters = ", ".join(f"{e.part} ({e.dtype})" for e in expected)
                    found.append(f"input {i.name!r} ({part}, {i.dtype}) does not fit column {name!r}, which enters as {enters}")
        return found

    def empty_feed(self, rows: int) -> dict[str, Array]:
        """A feed of `rows` rows of zeros, empty texts and false."""
        return {i.name: np.full((rows, *i.shape), _EMPTY[i.dtype], dtype=i.dtype) for i in self.inputs}


def _runtime() -> Any:
    import onnxruntime  # here: commands that only look run no graph

    return onnxruntime


def _options(threads: int) -> Any:
    ort = _runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_reuse = False  # a twentieth less time on one row; on many no more memory, it is freed all the same
    options.enable_cpu_mem_arena = False  # not faster, and each session would keep the memory of its largest batch
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _unchecked(session: Any) -> Any:
    """A session without its checks in Python, which cost a microsecond; the necessary one is in `Graph._run`."""
    try:
        return internal(session, "_sess")
    except LibraryChanged:
        return session


def _session(data: bytes, threads: int) -> Any:
    return _runtime().InferenceSession(data, _options(threads), providers=["CPUExecutionProvider"])


def _lean_session(data: bytes, threads: int) -> Any:
    """The same session through the runtime's own format, already optimised; None where that is not possible.

    A session made from ONNX keeps the parsed model and the optimiser in memory. The detour uses memory only:
    no file on disk could differ from the verified bytes.
    """
    if len(data) > LEAN_BYTES or not hasattr(os, "memfd_create"):
        return None
    ort, descriptor = _runtime(), os.memfd_create("graph", os.MFD_CLOEXEC)
    try:
        options = _options(threads)
        options.optimized_model_filepath = f"/proc/self/fd/{descriptor}"
        options.add_session_config_entry("session.save_model_format", "ORT")
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        options = _options(threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  # any error of the runtime: a fault of the model shows when it is loaded directly
        return None
    finally:
        os.close(descriptor)


def column_parts(name: str, column: Column) -> list[ColumnPart]:
    """The parts by which a column enters a graph."""
    dtype, shape = np.dtype(_COLUMN_DTYPES[column.type]), tuple(column.shape or ())
    if column.type == "timestamp" or not column.nullable:
        return [ColumnPart(name, "plain", dtype, shape)]
    return [ColumnPart(f"{name}_values", "values", dtype, shape), ColumnPart(f"{name}_null", "null", np.dtype(np.bool_), ())]


class Feeder:
    """Rows to a feed, precompiled for one graph and contract: a few microseconds for one row.

    Rows map column to Python value; a timestamp is a zone-aware datetime or int microseconds, an array nested lists (or flat,
    in row-major order). None, or a missing key, is null where the column is nullable; elsewhere it raises ValueError
    (KeyError for a missing key).
    """

    def __init__(self, graph: Graph, columns: Mapping[str, Column]) -> None:
        self._makers = [(i.name, [name for name, _ in i.parts], *_taker(i, columns), _maker(i, columns)) for i in graph.inputs]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
        """The feed for `rows`."""
        feed = {}
        for name, _, get, take, make in self._makers:
            try:
                taken = list(map(get, rows))
            except KeyError:
                taken = list(map(take, rows))
            feed[name] = make(taken)
        return feed

    def lists(self, values: Mapping[str, list[Any]]) -> dict[str, Array]:
        """The feed for columns given as equally long lists of Python values."""
        return {name: make(list(zip(*(values[c] for c in columns), strict=True))) for name, columns, _, _, make in self._makers}


def feed_rows(graph: Graph, columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The feed of a graph for rows of Python values; see Feeder, which is quicker when used again."""
    return Feeder(graph, columns)(rows)


def feed_arrays(graph: Graph, arrays: Mapping[str, tuple[Array, Array | None]]) -> dict[str, Array]:
    """The feed of a graph for whole columns: column -> (values [N] or [N, *shape], mask of nulls [N] or None when there are none)."""
    feed: dict[str, Array] = {}
    for i in graph.inputs:
        found = [_entering(arrays[column], part, null) for (column, part), null in zip(i.parts, i.nulls, strict=True)]
        if len(found) == 1:
            feed[i.name] = np.ascontiguousarray(found[0], dtype=i.dtype).reshape(len(found[0]), *i.shape)
            continue
        feed[i.name] = block = np.empty((len(found[0]), len(found)), dtype=i.dtype)
        for place, values in enumerate(found):
            block[:, place] = values
    return feed


def _entering(column: tuple[Array, Array | None], part: Part, null: Any) -> Array:
    values, mask = column
    if part == "null":
        return np.zeros(len(values), dtype=np.bool_) if mask is None else mask
    return values if mask is None or null is None else np.where(mask, null, values)


def _inputs(tensors: Sequence[Any], known: Mapping[str, Any]) -> tuple[GraphInput, ...]:
    inputs = []
    for i in tensors:
        dtype = _DTYPES.get(i.type, np.dtype(np.void))
        shape = tuple(n for n in i.shape[1:] if isinstance(n, int))
        entries = known.get(i.name, [])
        parts: list[tuple[str, Part]] = [(column, part) for column, part, *_ in entries]
        if not parts and i.name.endswith("_null") and dtype == np.bool_:
            parts = [(i.name.removesuffix("_null"), "null")]
        elif not parts:
            parts = [(i.name.removesuffix("_values"), "values" if i.name.endswith("_values") else "plain")]
        nulls = [_null(entry[2], dtype) if len(entry) > 2 else None for entry in entries]
        inputs.append(GraphInput(i.name, tuple(parts), dtype, shape, tuple(nulls) or (None,)))
    return tuple(inputs)


def _null(value: Any, dtype: "np.dtype[Any]") -> Any:
    """The metadata's value for null, as a Python value of the input's type; raises ValueError if it cannot be one."""
    return str(value) if dtype.kind == "O" else np.array(value).astype(dtype).item()


def _taker(i: GraphInput, columns: Mapping[str, Column]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Functions that extract the columns of an input from a row as a tuple: one for a complete row, and one for rows that lack columns."""
    names = [name for name, _ in i.parts]
    optional = [columns[name].nullable for name in names]
    get = itemgetter(*names) if len(names) > 1 else lambda row: (row[names[0]],)
    return get, lambda row: tuple(row.get(name) if null else row[name] for name, null in zip(names, optional, strict=True))


def _maker(i: GraphInput, columns: Mapping[str, Column]) -> Callable[[list[tuple[Any, ...]]], Array]:
    """A function that makes an input [N, K] of N tuples of K values as rows hold them."""
    dtype, shape, array = i.dtype, i.shape, np.array
    judges = [_judge(name, part, columns[name], dtype, null) for (name, part), null in zip(i.parts, i.nulls, strict=True)]
    scalars = all(columns[name].type != "array" for name, _ in i.parts)
    side_by_side = shape == (len(i.parts),)

    def judged(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple([f(v) for f, v in zip(judges, row, strict=True)])

    def filled(row: tuple[Any, ...]) -> tuple[Any, ...]:
        settled = list(row)
        for _ in range(settled.count(None)):
            place = settled.index(None)
            settled[place] = judges[place](None)
        return tuple(settled)

    def slow(rows: list[tuple[Any, ...]]) -> Array:
        return array([judged(row) for row in rows], dtype).reshape(len(rows), *shape)

    def null(rows: list[tuple[Any, ...]]) -> Array:
        return slow(rows) if True in [None in row for row in rows] else np.zeros((len(rows), *shape), dtype)

    def quick(rows: list[tuple[Any, ...]]) -> Array:
        for k in [k for k, row in enumerate(rows) if None in row]:
            rows[k] = filled(rows[k])
        try:
            made = array(rows, dtype)
        except TypeError:  # a datetime
            return slow(rows)
        return made if side_by_side else made.reshape(len(rows), *shape)

    if scalars and all(part == "null" for _, part in i.parts):
        return null
    return quick if scalars and all(part != "null" for _, part in i.parts) else slow


def _judge(name: str, part: Part, column: Column, dtype: "np.dtype[Any]", null: Any) -> Callable[[Any], Any]:
    """Converts one value of a column to a graph's input."""
    empty: Any = NAT if column.type == "timestamp" else _EMPTY[dtype] if null is None else null
    if column.type == "array" and part != "null":
        empty = np.zeros(column.shape or [], dtype=np.float32)

    def value(v: Any) -> Any:
        if v is None:
            if not column.nullable:
                raise ValueError(f"column {name!r} is null, and the contract does not allow it")
            return empty
        if column.type == "timestamp" and type(v) is not int:
            return microseconds(v)
        return np.asarray(v, dtype=np.float32).reshape(column.shape or []) if column.type == "array" else v

    return (lambda v: v is None) if part == "null" else value
