"""Feature contributions of an answer: exact Shapley values of trees and of linear models. The file format and the arithmetic.

The contributions of a row and the base add up to the model's raw score, in the unit that the explanation names.

Trees   Path-dependent TreeSHAP (Lundberg et al. 2020, From local explanations to global understanding with explainable AI for trees):
        where a feature is unknown, a row goes both ways, by the shares in which training rows did. As in GPUTreeShap (Mitchell, Frank &
        Holmes 2022) a leaf is the set of conditions of its path, one per feature: an interval, or a set of categories. A feature that the
        row satisfies counts 1, one that it does not satisfy 0, an unknown one the share z of training rows that took that branch.
        A leaf's game is a product, so by Owen's multilinear extension (1972) the Shapley value of feature i is

            v (o_i - z_i) * integral from 0 to 1 of the product over j != i of (z_j (1 - t) + o_j t) dt

        a polynomial in t, which Gauss-Legendre quadrature integrates exactly with half as many points as the path has features.
Linear  coefficient * (x - mean of the training rows): Shapley values where features are drawn independently of each other
        (Strumbelj & Kononenko 2014; shap's LinearExplainer).

The file `explanation.msgpack` holds an `Explanation`. Nodes of all trees follow one another level by level, so that the n-th inner
node has its children, the left one first, at `roots + 2 n`: no pointer can be invalid.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loopwright.base.arrays import Array
from loopwright.graph.calibration import calibrated
from loopwright.graph.session import Feeder, Graph
from loopwright.records.declarations import Column
from loopwright.records.package import Calibration

FILES = ("explanation.msgpack", "explain.onnx")
TOLERANCE = 1e-4
_ROUNDED = 2.0**-20
"""What float32 below 1, and undoing sampling after it, change at most."""

MAX_ELEMENTS = 2_000_000
"""Maximum number of conditions along the paths of all leaves: each takes some fifty bytes in memory."""

_CHUNK = 1 << 17
"""Size of a chunk of numbers: it fits into the processor's cache."""

_KINDS = {"<f8": 8, "<f4": 4, "<i4": 4, "<u2": 2, "|u1": 1}
_LEAST = -np.finfo(np.float64).max


class PackedArray(msgspec.Struct, frozen=True, array_like=True):
    """An array [n] as bytes, in the narrowest of a few kinds that holds it exactly."""

    kind: str
    data: bytes

    def array(self) -> Array:
        """The numbers. Raises ValueError where there cannot be any."""
        if self.kind not in _KINDS:
            raise ValueError(f"numbers of kind {self.kind[:20]!r}")
        return np.frombuffer(self.data, dtype=self.kind)


def numbers(array: Array) -> PackedArray:
    """An array as `PackedArray`."""
    flat = np.ravel(array)
    kinds = ("|u1", "<u2", "<i4") if flat.dtype.kind in "iub" else ("<f4", "<f8")
    for kind in kinds:
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = flat.astype(kind)
        if kind == kinds[-1] or np.array_equal(narrow, flat, equal_nan=narrow.dtype.kind == "f"):
            return PackedArray(kind, narrow.tobytes())
    raise AssertionError("the last kind is taken as it is")


class Trees(msgspec.Struct, frozen=True, kw_only=True, tag="trees"):
    """Trees, level by level. For each node whether it is a leaf (bits) and its cover: the number of training rows that reached it.

    For each inner node its column, its threshold (left is x <= threshold) and whether NaN goes left (bits). Where `by_set` (bits) is
    set, the threshold is an index into `sets`: members of that set, after truncation to an integer, go left, all else goes right.
    For each leaf `width` values, for the output `target` of its tree and the following ones. `single`: columns are rounded to float32.
    """

    nodes: int
    roots: int
    leaf: bytes
    cover: PackedArray
    column: PackedArray
    threshold: PackedArray
    missing_left: bytes
    value: PackedArray
    width: int
    target: PackedArray
    by_set: bytes = b""
    sets: list[list[int]] = []
    single: bool = False


class Linear(msgspec.Struct, frozen=True, kw_only=True, tag="linear"):
    """A linear model: coefficients [K, columns] for outputs `target` [K], the columns and their means over the training rows."""

    coefficients: PackedArray
    column: PackedArray
    mean: PackedArray
    target: PackedArray


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The explanation of a package. `place` maps each column of the matrix to the one of `features` that it is part of.

    `base` [K] is added to the bases of the parts; `link` is applied to the sums of the K outputs: NONE, LOGISTIC, SOFTMAX, EXP,
    SQUARE, or "" for an unknown last step.
    """

    unit: str
    link: str
    features: list[str]
    place: PackedArray
    base: list[float]
    parts: list[Trees | Linear]


class _Group(NamedTuple):
    """Leaves whose paths have conditions on m features: elements from `start` to `stop`, [m, L] in rows of leaves; q points of quadrature."""

    start: int
    stop: int
    share: Array  # [m, L]
    odds: Array  # [q, 1, 1, 1]: (1 - t) / t at each point
    weights: Array  # [q, 1, 1]: those of the points, times t ** (m - 1), by which odds and not shares are multiplied
    value: Array  # [width, 1, L]


class Explainer:
    """A loaded explanation: `base` [K], and the contributions of rows. Raises ValueError for an invalid one."""

    def __init__(self, explanation: Explanation) -> None:
        self.unit, self.link, self.features = explanation.unit, explanation.link, explanation.features
        place = explanation.place.array().astype(np.intp)
        outputs = len(explanation.base)
        if not outputs or (len(place) and not 0 <= int(place.min()) <= int(place.max()) < len(self.features)):
            raise ValueError("columns of features that are not there")
        self._width = len(place)
        self._parts: list[_Ensemble | _Terms] = [
            _Ensemble(part, place, len(self.features), outputs)
            if isinstance(part, Trees)
            else _Terms(part, place, len(self.features), outputs)
            for part in explanation.parts
        ]
        self.base: Array = np.array(explanation.base, dtype=np.float64) + sum(part.base for part in self._parts)

    @property
    def elements(self) -> int:
        """Number of conditions of trees that one row is tested against."""
        return sum(part.elements for part in self._parts)

    def contributions(self, matrix: Array) -> Array:
        """Contributions of each feature to each output, float64 [N, K, F], for the estimator's input matrix [N, columns]."""
        matrix = np.asarray(matrix, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != self._width:
            raise ValueError(f"a matrix of the shape {matrix.shape}, not [N, {self._width}]")
        found = np.zeros((len(matrix), len(self.base), len(self.features)))
        for part in self._parts:
            part.add(matrix, found)
        return found


class _Terms:
    """A linear part, ready."""

    elements = 0

    def __init__(self, part: Linear, place: Array, features: int, outputs: int) -> None:
        self._target, self._column = _indices(part.target, outputs), _indices(part.column, len(place))
        self._mean = part.mean.array().astype(np.float64)
        self._coefficients = part.coefficients.array().astype(np.float64).reshape(len(self._target), len(self._column))
        self._gather = np.zeros((len(self._column), features))
        self._gather[np.arange(len(self._column)), place[self._column]] = 1.0
        self.base = np.zeros(outputs)
        np.add.at(self.base, self._target, self._coefficients @ self._mean)

    def add(self, matrix: Array, total: Array) -> None:
        """Add the contributions of this part."""
        away = matrix[:, self._column] - self._mean
        for target, coefficients in zip(self._target, self._coefficients, strict=True):
            total[:, target] += (away * coefficients) @ self._gather


class _Paths(NamedTuple):
    """Conditions of the paths to the leaves, one element for each leaf and column: [E], ordered by leaf, then column."""

    leaf: Array
    column: Array
    share: Array
    above: Array
    up_to: Array
    missing: Array
    table: Array  # int, the row of `tables`, -1 for an interval
    tables: Array  # bool [T, words + 1]: the last column is of all other values


class _Ensemble:
    """Trees, ready: their leaves in groups of as many features along the path."""

    def __init__(self, part: Trees, place: Array, features: int, outputs: int) -> None:
        forest = _Forest(part, len(place))
        paths, root = forest.paths()
        self._single, self._words = part.single, forest.words
        value = part.value.array().astype(np.float64).reshape(-1, part.width)
        target = _indices(part.target, outputs - part.width + 1)[root]
        if len(value) != len(root):
            raise ValueError("as many values as leaves are needed")
        asked = np.bincount(paths.leaf, minlength=len(root))
        first = np.concatenate([[0], np.cumsum(asked)])
        mass = np.ones(len(root))
        np.multiply.at(mass, paths.leaf, paths.share)
        self.base = np.zeros(outputs)
        for k in range(part.width):
            np.add.at(self.base, target + k, value[:, k] * mass)
        if len(paths.leaf) > MAX_ELEMENTS:
            raise ValueError("the trees are too large to be explained")
        order, self._groups = [], []
        start = 0
        for m in np.unique(asked[asked > 0]).tolist():
            points, weights = _quadrature(m)
            some = max(1, _CHUNK // (m * len(points)))
            alike = np.flatnonzero(asked == m)
            for leaves in (alike[i : i + some] for i in range(0, len(alike), some)):
                elements = first[leaves] + np.arange(m)[:, None]
                self._groups.append(
                    _Group(
                        start,
                        start + elements.size,
                        paths.share[elements],
                        ((1 - points) / points)[:, None, None, None],
                        (weights * points ** (m - 1))[:, None, None],
                        value[leaves].T[:, None, :],
                    )
                )
                start += elements.size
                order.append(elements.ravel())
        at = np.concatenate([np.zeros(0, dtype=np.intp), *order])
        self._column, self._above, self._up_to, self._missing = (
            a[at] for a in (paths.column, paths.above, paths.up_to, paths.missing)
        )
        self._features, self._outputs, self._span = features, outputs, part.width
        self.elements = len(at)
        self._slot = target[paths.leaf[at]] * features + place[self._column]
        self._by_table = np.flatnonzero(paths.table[at] >= 0)
        self._tables = paths.tables[paths.table[at][self._by_table]]

    def add(self, matrix: Array, total: Array) -> None:
        """Add the contributions of this part, in chunks of rows that fit into the processor's cache."""
        matrix = matrix.astype(np.float32).astype(np.float64) if self._single else matrix
        size = max(1, _CHUNK // max(len(self._column), 1))
        for start in range(0, len(matrix), size):
            self._add(matrix[start : start + size], total[start : start + size])

    def _add(self, matrix: Array, total: Array) -> None:
        rows, cells = len(matrix), self._outputs * self._features
        satisfied = self._satisfied(matrix)
        flat = np.arange(0, rows * cells, cells)[:, None] + self._slot
        moved = np.empty((self._span, *satisfied.shape))
        for group in self._groups:
            met = satisfied[:, group.start : group.stop].reshape(rows, *group.share.shape)
            factors = group.share * group.odds + met
            product = np.multiply.reduce(factors, axis=2) * group.weights
            each = (product[:, :, None] / factors).sum(axis=0) * (met - group.share)
            for k, value in enumerate(group.value):
                np.multiply(each, value, out=moved[k, :, group.start : group.stop].reshape(each.shape))
        for k in range(self._span):
            sums = np.bincount((flat + k * self._features).ravel(), moved[k].ravel(), minlength=rows * cells)
            total += sums[: rows * cells].reshape(total.shape)

    def _satisfied(self, matrix: Array) -> Array:
        """Which elements each row satisfies, as 0 and 1, float64 [N, E]."""
        x = np.maximum(matrix, _LEAST)[:, self._column]
        met = (x > self._above) & (x <= self._up_to)
        if np.isnan(matrix).any():
            met |= np.isnan(x) & self._missing
        if len(self._by_table):
            given = x[:, self._by_table]
            with np.errstate(invalid="ignore"):
                cut = np.trunc(given)
            word = np.minimum(np.searchsorted(self._words, cut), len(self._words) - 1)
            known = self._words[word] == cut
            word = np.where(known, word, len(self._words))
            met[:, self._by_table] = self._tables[np.arange(len(self._by_table)), word]
        found: Array = met.astype(np.float64)
        return found


class _Forest:
    """Nodes by their places, checked: every index is within its bounds. Raises ValueError."""

    def __init__(self, part: Trees, columns: int) -> None:
        nodes, self.roots = part.nodes, part.roots
        self.leaf = _bits(part.leaf, nodes)
        inner = np.flatnonzero(~self.leaf)
        child = self.roots + 2 * np.arange(len(inner))
        if nodes != self.roots + 2 * len(inner) or (child <= inner).any() or self.roots < 1:
            raise ValueError("the nodes make no trees")
        self.parent, self.left = np.full(nodes, -1), np.zeros(nodes, dtype=np.bool_)
        self.parent[child] = self.parent[child + 1] = inner
        self.left[child] = True
        self.number = np.zeros(nodes, dtype=np.intp)  # of inner nodes
        self.number[inner] = np.arange(len(inner))
        cover = part.cover.array().astype(np.float64)
        self.column = _indices(part.column, columns)
        self.threshold = part.threshold.array().astype(np.float64)
        if not len(cover) == nodes or not len(self.column) == len(self.threshold) == len(inner):
            raise ValueError("a number is needed for each node")
        self.missing = _bits(part.missing_left, len(inner))
        above = cover[np.maximum(self.parent, 0)]
        self.share = np.where(above > 0, cover / np.where(above > 0, above, 1.0), 0.5)
        self.share = np.clip(self.share, 1e-30, 1.0)  # a share of nothing would be divided by
        self.by_set = _bits(part.by_set, len(inner)) if part.by_set else np.zeros(len(inner), dtype=np.bool_)
        self.words = np.unique(np.array([w for words in part.sets for w in words], dtype=np.float64))
        if not len(self.words):
            self.words = np.zeros(1)
        self.sets = np.zeros((len(part.sets) or 1, len(self.words) + 1), dtype=np.bool_)
        for row, words in zip(self.sets, part.sets, strict=False):
            row[np.searchsorted(self.words, np.array(words, dtype=np.float64))] = True
        chosen = self.threshold[self.by_set]
        if chosen.size and not (np.isin(chosen, np.arange(len(part.sets)))).all():
            raise ValueError("a set that is not there")

    def paths(self) -> tuple[_Paths, Array]:
        """Conditions of the paths of all leaves; and the tree of each leaf [L]. All leaves climb in parallel, level by level."""
        leaves = np.flatnonzero(self.leaf)
        here, of = leaves.copy(), np.arange(len(leaves))
        root = leaves.copy()
        steps: list[tuple[Array, Array]] = []
        elements = 0
        while len(here):
            going = self.parent[here] >= 0
            root[of[~going]] = here[~going]
            here, of = here[going], of[going]
            elements += len(here)
            if elements > 3 * MAX_ELEMENTS:  # a path may test a feature more than once
                raise ValueError("the trees are too large to be explained")
            steps.append((of, here))
            here = self.parent[here]
        of, at = (np.concatenate([step[i] for step in steps]) for i in (0, 1))
        number = self.number[self.parent[at]]
        order = np.lexsort((self.column[number], of))
        of, at, number = of[order], at[order], number[order]
        column, left = self.column[number], self.left[at]
        starts = np.flatnonzero(np.concatenate([[True], (of[1:] != of[:-1]) | (column[1:] != column[:-1])])) if len(of) else of
        by_set, threshold = self.by_set[number], self.threshold[number]
        up_to = np.where(left & ~by_set, threshold, np.inf)
        above = np.where(~left & ~by_set, threshold, -np.inf)
        missing = np.where(by_set, ~left, self.missing[number] == left)
        return (
            _Paths(
                of[starts],
                column[starts],
                _each(np.multiply, self.share[at], starts),
                _each(np.maximum, above, starts),
                _each(np.minimum, up_to, starts),
                _each(np.logical_and, missing, starts),
                *self._tables(left, by_set, threshold, starts),
            ),
            root,
        )

    def _tables(self, left: Array, by_set: Array, threshold: Array, starts: Array) -> tuple[Array, Array]:
        """For each condition its row in a table of the categories that it accepts, -1 for an interval; and the table."""
        element = np.repeat(np.arange(len(starts)), np.diff([*starts.tolist(), len(left)]))
        asked = np.flatnonzero(by_set)
        table = np.full(len(starts), -1)
        which, begins = np.unique(element[asked], return_index=True)
        table[which] = np.arange(len(which))
        if len(asked) * self.sets.shape[1] > 32 * MAX_ELEMENTS:
            raise ValueError("the categories are too many to be explained")
        through = self.sets[threshold[asked].astype(np.intp)] == left[asked][:, None]
        return table, np.logical_and.reduceat(through, begins, axis=0) if len(asked) else through


def _each(function: Any, values: Array, starts: Array) -> Array:
    """A function over runs of values."""
    found: Array = function.reduceat(values, starts) if len(starts) else values
    return found


def _bits(data: bytes, count: int) -> Array:
    if not 0 <= count <= 8 * len(data):
        raise ValueError("bits are missing")
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count).astype(np.bool_)


def _indices(packed: PackedArray, below: int) -> Array:
    """Numbers as indices. Raises ValueError for one out of bounds."""
    places = packed.array()
    if places.dtype.kind == "f" or (len(places) and not 0 <= int(places.min()) <= int(places.max()) < below):
        raise ValueError("a place that is not there")
    return places.astype(np.intp)


@lru_cache(maxsize=64)
def _quadrature(features: int) -> tuple[Array, Array]:
    """Points and weights on [0, 1] that are exact for polynomials of degree `features - 1` (Gauss-Legendre)."""
    points, weights = np.polynomial.legendre.leggauss((features + 1) // 2)
    return (points + 1) / 2, weights / 2


def linked(link: str, raw: Array) -> Array | None:
    """Apply the link to raw sums [N, K]: the model's numbers, or None for an unknown link."""
    if link == "SOFTMAX":
        odds = np.exp(raw - raw.max(axis=1, keepdims=True))
        shares: Array = odds / odds.sum(axis=1, keepdims=True)
        return shares
    if link == "SQUARE":
        return np.asarray(np.sign(raw) * raw * raw)
    with np.errstate(over="ignore"):
        if link == "LOGISTIC":
            return np.asarray(1 / (1 + np.exp(-raw)))
        if link == "EXP":
            return np.asarray(np.exp(raw))
    return raw if link == "NONE" else None


encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Explanation)


def decode(data: bytes) -> Explainer:
    """An explanation from its file, ready. Raises ValueError."""
    return Explainer(_decoder.decode(data))


class Reasons:
    """Explains answers of a package: `graph` is its model, `explanation` the bytes of `explanation.msgpack`, `before` its explain.onnx.

    Safe to use from several threads. Raises ValueError, or the runtime's errors, where the files do not fit together.
    """

    def __init__(self, graph: Graph, columns: Mapping[str, Column], explanation: bytes, before: Graph | None) -> None:
        self._graph, self._before, self._feed = graph, before, Feeder(graph, columns)
        self.explainer = decode(explanation)
        if self._before is not None and [i.name for i in self._before.inputs] != ["features"]:
            raise ValueError("explain.onnx must have one input, `features`")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Array:
        """The contributions of features to each output, [N, K, F]."""
        matrix = self._graph.run(self._feed(rows), ["features"])["features"]
        if self._before is not None:
            matrix = self._before.run({"features": matrix}, ["matrix"])["matrix"]
        return self.explainer.contributions(matrix)

    def problem(self, rows: Sequence[Mapping[str, Any]], answers: Array, calibration: Calibration | None = None) -> str:
        """Why contributions and base do not add up to the graph's `answers` [N, K]; empty if they do, or if it cannot be checked.

        They add up to scores before `calibration`, which the graph rounds to float32: what that may change is not held against them.
        """
        contributions = self(rows)
        raw = self.explainer.base + contributions.sum(axis=2)
        if not np.isfinite(contributions).all() or not np.isfinite(raw).all():
            return "its explanation is not a number"
        given = linked(self.explainer.link, raw)
        if given is None:
            return ""
        if given.shape != answers.shape:
            return f"its explanation is of {given.shape[1]} outputs, not {answers.shape[1]}"
        given, answers = np.sort(given, axis=1), np.sort(answers, axis=1)  # as quantiles are
        low, high = given, given
        if calibration is not None:
            low, high = (calibrated(calibration, np.clip(given + by, 0.0, 1.0)) for by in (-_ROUNDED, _ROUNDED))
        apart = float((np.maximum(low - answers, answers - high) / np.maximum(1.0, np.abs(answers))).max(initial=0.0))
        return "" if apart <= TOLERANCE else f"its explanation is off by up to {apart:.2g}"
