"""Features: a user's function over contract columns, traced once with ndonnx into ONNX.

The function gets one argument whose attributes are the columns (Array API arrays of length N) and returns a dictionary
of feature name -> array. Numbers and booleans enter the matrix as float32 (null becomes NaN). Strings are categories:
their vocabulary is learned on the training rows, and they enter as one column of codes (`ordinal`) or one column per
category (`onehot`). The matrix that models are fitted on is computed by the very graph that serves.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

import msgspec
import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import onnx
import spox

from loopwright.base.errors import DeclarationInvalid
from loopwright.develop.onnx.blocks import side_by_side
from loopwright.develop.onnx.entries import EncodedInput, settle
from loopwright.develop.onnx.estimators.arithmetic import interpolated
from loopwright.develop.output import Goal
from loopwright.develop.tracing import call
from loopwright.graph.calibration import calibrated
from loopwright.graph.session import METADATA, Graph, column_parts
from loopwright.records.declarations import Column, Slice
from loopwright.records.package import Output

WORDS = 255
"""The most categories a string feature keeps; rarer ones become `(other)`."""

NULL, OTHER, MISSING = "(null)", "(other)", "missing"

_NULL_WORD = "\ufdd0null"
"""Key of null in look-ups of codes: no text contains this character, which Unicode reserves as a noncharacter."""

Encoding = Literal["ordinal", "onehot"]

_DTYPES: dict[str, tuple[Any, Any]] = {
    "float": (ndx.float64, ndx.nfloat64),
    "integer": (ndx.int64, ndx.nint64),
    "boolean": (ndx.bool, ndx.nbool),
    "string": (ndx.utf8, ndx.nutf8),
    "array": (ndx.float32, ndx.nfloat32),
}

_KINDS = {"float": "f", "integer": "i", "timestamp": "i", "boolean": "b", "string": "O"}

BLOCKS = {"f": "floats", "i": "integers", "b": "booleans", "O": "strings"}
"""Kind of NumPy dtype -> name of the input that holds the columns of that kind; see `graph.session`."""


class Vocabulary(msgspec.Struct, frozen=True):
    """Categories of one string feature; whether training rows were null, or of a rarer category.

    They are the categories that the contract declares, in its order, or those found on the training rows, sorted.
    """

    words: list[str]
    null: bool
    other: bool

    @staticmethod
    def learn(values: Iterable[str], null: Any | None, declared: Sequence[str] = ()) -> "Vocabulary":
        """From the training rows: `values` string [N] and the mask of nulls [N] or None; `declared` are a contract's categories."""
        counts = Counter(v for i, v in enumerate(values) if null is None or not null[i])
        words = sorted(word for word, _ in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))[:WORDS])
        if 0 < len(declared) <= WORDS:
            words = list(dict.fromkeys(declared))
        return Vocabulary(words, bool(null is not None and null.any()), not counts.keys() <= set(words))

    def names(self, feature: str, encoding: Encoding) -> list[str]:
        """The matrix columns of the feature."""
        if encoding == "ordinal":
            return [feature]
        extra = [*([OTHER] if self.other else []), *([NULL] if self.null else [])]
        return [f"{feature}={word}" for word in [*self.words, *extra]]


class TracedFeatures:
    """Features as ndonnx arrays over the columns, ready to be built into graphs."""

    def __init__(self, columns: Mapping[str, Column], arguments: dict[str, Any], features: dict[str, Any]) -> None:
        self.columns, self.arguments = dict(columns), arguments
        self.given, self.order = dict(features), list(features)
        self.categories = {name: array for name, array in features.items() if _is_string(array)}
        with _quiet():
            numbers = {name: _number(array) for name, array in features.items() if name not in self.categories}
            self.widths = self._widths({name: array for name, array in numbers.items() if array.ndim > 1})
            self.numbers = {
                name: ndx.reshape(array, (-1, self.widths[name])) if name in self.widths else array
                for name, array in numbers.items()
            }
        """As float32: [N], or [N, K] of a feature that has more than one value per row (K in `widths`), in row-major order."""

    @cached_property
    def used(self) -> list[str]:  # cached, since it builds the graph
        """The columns the features really use, in the order of the contract."""
        used = set(Graph(self.raw()).columns)
        return [name for name in self.columns if name in used]

    def _widths(self, arrays: Mapping[str, Any]) -> dict[str, int]:
        """Number of values per row of arrays [N, ...]: from their shape, or by running them if that is unknown."""
        found = {n: math.prod(a.shape[1:]) for n, a in arrays.items() if all(isinstance(k, int) for k in a.shape[1:])}
        unknown = {n: a for n, a in arrays.items() if n not in found}
        if unknown:
            graph = Graph(build(self.columns, self.arguments, unknown))
            found |= {n: math.prod(a.shape[1:]) for n, a in graph.run(graph.empty_feed(2)).items()}
        return found

    def vocabulary(self, name: str, values: Iterable[str], null: Any | None) -> Vocabulary:
        """The vocabulary of a string feature, from the training rows as `raw` gives them; a column with categories brings its own."""
        column = next((c for c, array in self.arguments.items() if array is self.given[name]), "")
        return Vocabulary.learn(values, null, (self.columns[column].categories or []) if column else [])

    def raw(self) -> bytes:
        """A graph with `numbers` (float32 [N, F]), and per string feature `value.NAME` (string [N]) and `null.NAME` (bool [N])."""
        outputs: dict[str, Any] = {}
        with _quiet():
            if self.numbers:
                outputs["numbers"] = _side_by_side(list(self.numbers.values()))
            for name, array in self.categories.items():
                outputs[f"value.{name}"] = nde.fill_null(array, "") if _nullable(array) else array
                if _nullable(array):
                    outputs[f"null.{name}"] = _mask(array)
        return build(self.columns, self.arguments, outputs)

    def names(self, vocabulary: Mapping[str, Vocabulary], encoding: Encoding) -> list[str]:
        """The matrix columns, in order: a feature with several values per row has one for each, `NAME.0` and so on."""
        return [
            c
            for name in self.order
            for c in (
                vocabulary[name].names(name, encoding)
                if name in self.categories
                else [f"{name}.{i}" for i in range(self.widths[name])]
                if name in self.widths
                else [name]
            )
        ]

    def matrix(self, vocabulary: Mapping[str, Vocabulary], encoding: Encoding) -> Any:
        """The matrix as an ndonnx array, float32 [N, number of names]."""
        with _quiet():
            parts = [
                _codes(self.categories[name], vocabulary[name], encoding) if name in self.categories else self.numbers[name]
                for name in self.order
            ]
            return _side_by_side(parts)

    def matrix_graph(self, vocabulary: Mapping[str, Vocabulary], encoding: Encoding) -> bytes:
        """The graph that computes the matrix a model is fitted on: output `features` (float32 [N, F])."""
        return build(self.columns, self.arguments, {"features": self.matrix(vocabulary, encoding)})

    def model_graph(
        self, vocabulary: Mapping[str, Vocabulary], encoding: Encoding, estimator: onnx.ModelProto, goal: Goal
    ) -> bytes:
        """Features and estimator in one graph: outputs `score` (float32 [N]), `values` (float32 [N, K], if any) and `features` (float32 [N, F]).

        `estimator` takes `matrix` (float32 [N, F]) and gives `raw`, the raw numbers [N, K] of `goal`.
        """
        with _quiet():
            matrix = self.matrix(vocabulary, encoding)
            outputs = _answers(ndx.asarray(spox.inline(estimator)(matrix=matrix.unwrap_spox())["raw"]), goal)
            return build(self.columns, self.arguments, {**outputs, "features": matrix})


def _answers(raw: Any, goal: Goal) -> dict[str, Any]:
    """`goal.answers`, in the graph."""
    if goal.factors:
        raw, alone = ndx.astype(raw, ndx.float64), not goal.output.shape.has_classes
        raw = ndx.concat([1.0 - raw, raw], axis=1) if alone else raw
        raw = raw * ndx.asarray(np.array(goal.factors, dtype=np.float64))
        raw = (raw / ndx.sum(raw, axis=1, keepdims=True))[:, 1 if alone else 0 :]
    if goal.quantiles:
        raw = ndx.sort(raw, axis=1)
    score = ndx.max(raw, axis=1) if goal.column is None else raw[:, goal.column]
    if goal.calibration is not None:
        score = calibrated(goal.calibration, ndx.astype(score, ndx.float64), ndx, interpolated)
    values = {"values": ndx.astype(raw, ndx.float32)} if goal.output.names else {}
    return {"score": ndx.astype(score, ndx.float32), **values}


def trace(features: Callable[[Any], Any], columns: Mapping[str, Column]) -> TracedFeatures:
    """Trace a features function over contract columns.

    Raises DeclarationInvalid naming the line of the user's code, or every invalid feature, and what to write instead.
    """
    arguments = _arguments(columns)
    found = call("features", features, arguments, _retired(columns))
    if not isinstance(found, Mapping) or not found:
        raise DeclarationInvalid(
            "features", [("features", "must return a dictionary of feature name to array, with at least one feature")]
        )
    problems = [
        (f"features[{str(name)[:80]!r}]", why) for name, array in found.items() if (why := _feature_problem(name, array))
    ]
    if problems:
        raise DeclarationInvalid("features", problems)
    traced = TracedFeatures(columns, arguments, dict(found))
    numbers = [name for name in traced.numbers for _ in range(traced.widths.get(name, 1))]
    _try("features", columns, traced.raw, {"numbers": numbers})
    return traced


def trace_rule(
    rule: Callable[[Any], Any],
    columns: Mapping[str, Column],
    output: Output = Output(),  # noqa: B008  # a frozen value
    middle: Sequence[float] = (0.0,),
) -> bytes:
    """The graph of a heuristic, with the outputs `score` and `values` of a model of that `output`; it always answers.

    binary           a condition (1 or 0) or a number, clipped to [0, 1]; null and NaN count as 0
    multiclass       a string; null, and one that is not a class, count as all classes alike
    regression       a number, for every target or quantile, or a dictionary of them; null and NaN count as `middle`, one each
    ranking, anomaly a condition or a number; null and NaN count as 0

    Raises DeclarationInvalid.
    """
    arguments = _arguments(columns)
    found = call("heuristic", rule, arguments, _retired(columns))
    parts = dict(found) if isinstance(found, Mapping) else {"": found}
    names, shape = [] if output.shape.has_classes else output.names, output.shape
    if isinstance(found, Mapping) and sorted(map(str, parts)) != sorted(names):
        raise DeclarationInvalid(
            "heuristic", [("rule", f"a dictionary must name {', '.join(names) or 'nothing: give one array'}")]
        )
    texts, shares = shape.has_classes, shape.is_probability
    wanted = "a string, one of the classes" if texts else "a condition or a number between 0 and 1" if shares else "a number"
    for name, array in parts.items():
        why = _array_problem(array)
        if not why and (_is_string(array) != texts or _is_time(array)):
            why = f"must be {wanted}, not {array.dtype}"
        if why:
            raise DeclarationInvalid("heuristic", [(f"rule[{name!r}]" if name else "rule", why)])
    with _quiet():
        if texts:
            outputs = _rule_classes(found, output.classes or [""])
        else:
            given = [parts.get(name, parts.get("")) for name in names] or [found]
            numbers = [_filled(a, m) for a, m in zip(given, [*middle, *[0.0] * len(given)], strict=False)]
            best = int(np.argmin([abs(q - 0.5) for q in output.quantiles])) if output.quantiles else 0
            score = ndx.clip(numbers[0], *shape.clip) if shape.clip and found.dtype != ndx.bool else numbers[best]
            outputs = {"score": ndx.astype(score, ndx.float32)} | ({"values": _side_by_side(numbers)} if names else {})
    return _try("heuristic", columns, lambda: build(columns, arguments, outputs))


def _filled(array: Any, middle: float) -> Any:
    number = _number(array)
    if array.dtype == ndx.bool:
        return number
    return ndx.where(ndx.isnan(number), ndx.asarray(middle, dtype=ndx.float32), number)


def _rule_classes(array: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Score [N] and values [N, K] of a string: 1 for its class, equal values if it is not a class."""
    size = len(classes)
    plain = nde.fill_null(array, "") if _nullable(array) else array
    code = ndx.astype(nde.static_map(plain, {word: i for i, word in enumerate(classes)}, default=size), ndx.int64)
    if _nullable(array):
        code = ndx.where(_mask(array), ndx.asarray(size, dtype=ndx.int64), code)
    alike = ndx.asarray(1 / size, dtype=ndx.float32)
    hit = ndx.expand_dims(code, axis=1) == ndx.asarray(np.arange(size, dtype=np.int64))
    values = ndx.where(ndx.expand_dims(code == size, axis=1), alike, ndx.astype(hit, ndx.float32))
    return {"score": ndx.where(code == size, alike, ndx.asarray(1.0, dtype=ndx.float32)), "values": values}


def trace_slices(slices: Sequence[Slice], columns: Mapping[str, Column]) -> bytes | None:
    """One graph of all slices: a string output [N] per slice, named by the slice; None when there are no slices.

    A condition gives `yes` or `no`; null gives `missing`. Raises DeclarationInvalid.
    """
    arguments = _arguments(columns)
    outputs: dict[str, Any] = {}
    problems = []
    for part in slices:
        found = call(f"slice {part.name}", part.of, arguments, _retired(columns))
        why = _array_problem(found)
        if not why and not (_is_string(found) or found.dtype in (ndx.bool, ndx.nbool)):
            why = f"must be a string or a condition, not {found.dtype}: compare the number, or map it with nde.static_map"
        if why:
            problems.append((f"slices[{part.name!r}]", why))
            continue
        with _quiet():
            outputs[part.name] = _slice(found)
    if problems:
        raise DeclarationInvalid("slices", problems)
    return _try("slices", columns, lambda: build(columns, arguments, outputs)) if outputs else None


def build(columns: Mapping[str, Column], arguments: Mapping[str, Any], outputs: Mapping[str, Any]) -> bytes:
    """An ONNX model of ndonnx arrays as `graph.session` reads it: columns side by side, unused ones dropped, names in the metadata."""
    parts = {part.name: (name, part) for name in arguments for part in column_parts(name, columns[name])}
    actual: dict[str, str] = {}
    for name in outputs:
        actual[name] = _free(name, [*parts, *columns, *BLOCKS.values(), *actual.values()])
    with _quiet():
        model = ndx.build(dict(arguments), {actual[name]: array for name, array in outputs.items()}, drop_unused=True)
    given = {i.name for i in model.graph.input}
    for part in (p for _, p in parts.values() if p.part == "null" and p.name in given):
        _one_null_per_row(model, part.name, columns[parts[part.name][0]].shape or [])
    entries = settle(model, [EncodedInput(n, column, part.part) for n, (column, part) in parts.items() if n in given], columns)
    inputs: dict[str, list[EncodedInput]] = {}
    for entry in entries:
        kind = "f" if entry.part == "number" else "b" if entry.part == "null" else _KINDS.get(columns[entry.column].type, "")
        inputs.setdefault(_free(BLOCKS[kind], columns) if kind else entry.name, []).append(entry)
    model = side_by_side(model, {block: [e.name for e in inputs[block]] for block in inputs if block not in given})
    kept = [i.name for i in model.graph.input]
    names = {
        "columns": list(dict.fromkeys(e.column for e in entries)),
        "inputs": {block: [e.metadata for e in inputs[block]] for block in kept},
        "outputs": {public: name for public, name in actual.items() if public != name},
    }
    onnx.helper.set_model_props(model, {METADATA: json.dumps(names)})
    return bytes(model.SerializeToString(deterministic=True))


def _one_null_per_row(model: onnx.ModelProto, name: str, shape: Sequence[int]) -> None:
    """Let an array column's mask of nulls enter as one per row [N]: the library has one per value [N, *shape]."""
    if not shape:
        return
    entry = next(i for i in model.graph.input if i.name == name)
    del entry.type.tensor_type.shape.dim[1:]
    axes = onnx.numpy_helper.from_array(np.arange(1, len(shape) + 1), f"{name}.axes")
    whole = onnx.numpy_helper.from_array(np.array([1, *shape]), f"{name}.shape")
    for node in model.graph.node:
        for i, given in enumerate(node.input):
            node.input[i] = f"{name}.whole" if given == name else given
    model.graph.initializer.extend([axes, whole])
    model.graph.node.insert(0, onnx.helper.make_node("Expand", [f"{name}.high", whole.name], [f"{name}.whole"]))
    model.graph.node.insert(0, onnx.helper.make_node("Unsqueeze", [name, axes.name], [f"{name}.high"]))


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name = f"out.{name}"
    return name


def _arguments(columns: Mapping[str, Column]) -> dict[str, Any]:
    names: dict[str, str] = {}
    for name, column in columns.items():
        for part in column_parts(name, column):
            if names.setdefault(part.name, name) != name:
                raise DeclarationInvalid(
                    "columns",
                    [(name, f"clashes with column {names[part.name]!r}, which enters a graph as {part.name!r}: rename one")],
                )
    return {name: ndx.argument(shape=("N", *(column.shape or [])), dtype=_dtype(column)) for name, column in columns.items()}


def _retired(columns: Mapping[str, Column]) -> list[str]:
    return [name for name, column in columns.items() if column.retired]


def _dtype(column: Column) -> Any:
    return ndx.DateTime64DType("us") if column.type == "timestamp" else _DTYPES[column.type][column.nullable]


def _array_problem(array: Any, *, values: bool = False) -> str:
    """The problem with an array of one value per row, or with `values` at least one; empty if there is none."""
    if not isinstance(array, ndx.Array):
        return f"must be an array made from the columns, not {type(array).__name__}"
    if array.ndim != 1 and not (values and array.ndim > 1):
        return f"must have one value per row, but has {array.ndim} dimensions" + ("" if array.ndim else ": it uses no column")
    return ""


def _feature_problem(name: Any, array: Any) -> str:
    if not isinstance(name, str) or not name or len(name) > 64 or "=" in name:
        return "a feature's name is 1 to 64 characters without ="
    if why := _array_problem(array, values=not _is_string(array) if isinstance(array, ndx.Array) else False):
        return why
    if _is_time(array):
        return (
            "a moment is not a feature: take a number of it, local_time(column, zone).hour or seconds_between(earlier, later) "
            "(`from loopwright.features import local_time, seconds_between`)"
        )
    return ""


def _is_string(array: Any) -> bool:
    return array.dtype in (ndx.utf8, ndx.nutf8)


def _is_time(array: Any) -> bool:
    return isinstance(array.dtype, ndx.DateTime64DType | ndx.TimeDelta64DType)


def _nullable(array: Any) -> bool:
    return bool(nde.is_nullable_dtype(array.dtype))


def _mask(array: Any) -> Any:
    return nde.get_mask(array)


def _number(array: Any) -> Any:
    """A numeric or boolean array as float32, null as NaN."""
    if not _nullable(array):
        return ndx.astype(array, ndx.float32)
    return ndx.astype(nde.fill_null(ndx.astype(array, ndx.nfloat32), float("nan")), ndx.float32)  # filling makes float64 of it


def _side_by_side(arrays: list[Any]) -> Any:
    """Arrays float32 [N] and [N, K] as one float32 [N, F].

    Runs of [N] are laid end to end and turned, which is far quicker to trace than giving each a second dimension.
    """
    runs = [list(run) for _, run in groupby(arrays, key=lambda array: array.ndim)]
    blocks = [block for run in runs for block in ([_turned(run)] if run[0].ndim == 1 else run)]
    return ndx.concat(blocks, axis=1) if len(blocks) > 1 else blocks[0]


def _turned(arrays: list[Any]) -> Any:
    if len(arrays) == 1:
        return ndx.expand_dims(arrays[0], axis=1)
    return ndx.permute_dims(ndx.reshape(ndx.concat(arrays), (len(arrays), -1)), (1, 0))


def _codes(array: Any, vocabulary: Vocabulary, encoding: Encoding) -> Any:
    """Codes of a string feature, float32 [N] (ordinal) or [N, K] (onehot).

    Word i has code i, any other string has K, null K + 1. Onehot has a column for `(other)` and `(null)` only when the
    training rows had some; otherwise such a row is all zeros, rather than weighted by something never trained.
    """
    size = len(vocabulary.words)
    codes = {word: float(i) for i, word in enumerate(vocabulary.words)} | ({_NULL_WORD: size + 1.0} if _nullable(array) else {})
    plain = nde.fill_null(array, _NULL_WORD) if _nullable(array) else array
    code = nde.static_map(plain, codes, default=float(size)) if codes else ndx.astype(plain == "", ndx.float64) * 0.0
    if encoding == "ordinal":
        return ndx.astype(code, ndx.float32)
    wanted = [*range(size), *([size] if vocabulary.other else []), *([size + 1] if vocabulary.null else [])]
    return ndx.astype(ndx.expand_dims(code, axis=1) == ndx.asarray(np.array(wanted, dtype=np.float64)), ndx.float32)


def _slice(array: Any) -> Any:
    null = _mask(array) if _nullable(array) else None
    if not _is_string(array):
        condition = nde.fill_null(array, False) if null is not None else array
        array = ndx.where(condition, ndx.asarray("yes"), ndx.asarray("no"))
        return ndx.where(null, ndx.asarray(MISSING), array) if null is not None else array
    return nde.fill_null(array, MISSING) if null is not None else array


def _try(what: str, columns: Mapping[str, Column], make: Callable[[], bytes], names: Mapping[str, Sequence[str]] = {}) -> bytes:
    """Build a graph, load it and run it on a few rows, to find unsupported operators and code that mixes rows now.

    `names` lists the column names of outputs [N, F].
    """
    try:
        data = make()
        graph = Graph(data)
        outputs = graph.run(graph.empty_feed(2))
    except DeclarationInvalid:
        raise
    except Exception as error:  # the libraries raise many kinds
        raise DeclarationInvalid(
            what, [(what, f"cannot become a graph that runs: {type(error).__name__}: {str(error)[:400]}")]
        ) from error
    short = [name for name, array in outputs.items() if len(array) != 2]
    if short:
        raise DeclarationInvalid(
            what, [(what, "must have one value per row: an expression depends on no column, or on how many rows there are")]
        )
    why = (
        "depends on the other rows, of which there are none when one request is answered: no mean, sum, sort or the like over the "
        "rows; declare an Aggregate, or write the constants into the loop file"
    )
    if mixed := [(f"{what}[{name!r}]", why) for name in _mixed(graph, names)]:
        raise DeclarationInvalid(what, mixed)
    return data


_PROBES: dict[str, list[Any]] = {"f": [1.7, 0.3, -5.2], "i": [7, 2, 11], "b": [True, False, True], "O": ["b", "", "a"]}
"""By kind of NumPy dtype: three rows in no order, for which a mean, a sort or a running sum over rows gives something else."""


def _mixed(graph: Graph, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Outputs (or columns of them) that are not the same for a row alone as for the row among others, beyond rounding."""
    feed = {
        name: np.stack([_probe(value, empty) for value in _PROBES[empty.dtype.kind]])
        for name, empty in graph.empty_feed(1).items()
    }
    try:
        together = graph.run(feed)
        alone = [graph.run({name: array[i : i + 1] for name, array in feed.items()}) for i in range(3)]
    except Exception:  # noqa: BLE001  # made-up values may not suit it: only real ones must work
        return []
    found: dict[str, None] = {}
    for name, array in together.items():
        one = np.concatenate([outputs[name] for outputs in alone])
        same = array == one if array.dtype.kind not in "fc" else np.isclose(array, one, rtol=1e-4, atol=1e-4, equal_nan=True)
        columns: list[int] = np.flatnonzero(~same.reshape(3, -1).all(axis=0)).tolist()
        found |= dict.fromkeys(names[name][i] if name in names else name.removeprefix("value.") for i in columns)
    return list(found)


def _probe(value: Any, empty: Any) -> Any:
    """One row like `empty[0]`; numbers differ between columns, as equal ones would cancel out in differences."""
    row = np.full(empty.shape[1:], value, dtype=empty.dtype)
    return row if isinstance(value, str | bool) else (row * (1 + 2 * np.arange(row.size).reshape(row.shape))).astype(row.dtype)


class _quiet(warnings.catch_warnings):  # noqa: N801  # used as a function
    """Suppress the libraries' warnings on precision: features are float32 anyway."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
