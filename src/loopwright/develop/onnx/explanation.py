"""The explanation of a fitted estimator that a package stores; see `graph.contributions`.

Additive models are explained: trees, linear models, and means of such, after steps that map single columns (scalers,
imputers, encoders, selections). The unit is that in which the model adds: log-odds where it ends in a logistic function,
probabilities for forests, the number itself for most regressions. Models that mix columns or are not additive (components, networks,
kernels, neighbours, stacks) have no exact explanation, and the package says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import ndonnx as ndx
import numpy as np

from loopwright.base.arrays import Array
from loopwright.develop.onnx.estimators import trees
from loopwright.develop.onnx.estimators.arithmetic import wide
from loopwright.develop.onnx.sums import UNITS, LinearModel, PartColumns, Sum, Term, sum_of
from loopwright.develop.output import Goal
from loopwright.graph.contributions import Explainer, Explanation, Linear, Trees, encode, linked, numbers
from loopwright.graph.session import Graph
from loopwright.records.package import Explained

TOLERANCE = 1e-5
_ROWS = 65_536


class Files(NamedTuple):
    """The explanation of a package: its manifest entry and its files."""

    about: Explained
    files: dict[str, bytes] = {}
    importance: dict[str, float] = {}
    """Each feature's share of the mean absolute contribution over the tested answers, the largest first."""


def explanation(
    estimator: Any, goal: Goal, names: Sequence[str], matrix: Array, rows: Array, answers: Mapping[str, Array]
) -> Files:
    """The explanation of an estimator over features `names` [F], fitted on some `rows` (indices) of `matrix` [M, F].

    It is checked against the graph's answers to some rows, not calibrated: `features` [N, F], `score` [N] and perhaps `values` [N, K].
    Contributions to a calibrated score add up to the score before calibration, and their unit says so.
    Never raises: where there is no explanation, the result holds the reason.
    """
    try:
        return _explanation(estimator, goal, names, matrix, rows, answers)
    except Exception as error:  # noqa: BLE001  # an error in the explanation must not lose the package
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Files(Explained(why=f"{kind}{' '.join(str(error).split())}"[:300]))


def _explanation(
    estimator: Any, goal: Goal, names: Sequence[str], matrix: Array, rows: Array, answers: Mapping[str, Array]
) -> Files:
    x = ndx.argument(shape=("N", len(names)), dtype=ndx.float32)
    found = sum_of(estimator, PartColumns(x, np.arange(len(names)), plain=True))
    found, base = _undone(found, goal)
    blocks = list({id(t.seen.x): t.seen for t in found.terms}.values())
    graph = b"" if all(block.plain for block in blocks) else _graph(x, blocks)
    offsets = dict(zip((id(b.x) for b in blocks), np.cumsum([0, *(len(b.origin) for b in blocks)]).tolist(), strict=False))
    features = list(dict.fromkeys(_feature(name) for name in names))
    of = np.array([features.index(_feature(name)) for name in names])
    means = _means(graph, matrix, rows) if any(isinstance(t.model, LinearModel) for t in found.terms) else np.zeros(0)
    parts: list[Trees | Linear] = []
    for term in found.terms:
        offset = offsets[id(term.seen.x)]
        if isinstance(term.model, LinearModel):
            parts.append(_linear(term.model, term, offset, means))
            intercept = term.model.intercept * term.scale
        else:
            parts.append(_packed(term.model, term, offset))
            intercept = term.model.base * term.model.factor * term.scale
        base[term.target : term.target + len(intercept)] += intercept
    place = np.concatenate([of[block.origin] for block in blocks])
    made = Explanation(
        unit=_unit(found, goal), link=found.link, features=features, place=numbers(place), base=base.tolist(), parts=parts
    )
    explainer = Explainer(made)
    moved = explainer.contributions(_matrix(graph, answers["features"]))
    _check(explainer, goal, moved, answers)
    if goal.calibration is not None and goal.calibration.method:
        made = msgspec.structs.replace(made, unit=f"{made.unit} before calibration")
    method = "linear" if all(isinstance(p, Linear) for p in parts) else "TreeSHAP"
    method = method if len({type(p) for p in parts}) == 1 else "TreeSHAP and linear"
    files = {"explanation.msgpack": encode(made)} | ({"explain.onnx": graph} if graph else {})
    return Files(Explained(method=method, unit=made.unit, elements=explainer.elements), files, _importance(features, moved))


def _importance(features: Sequence[str], moved: Array) -> dict[str, float]:
    """Shares of the mean absolute contributions [N, K, F]."""
    sizes = np.abs(moved).mean(axis=(0, 1))
    shares = sizes / (sizes.sum() or 1.0)
    return {features[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}


def _feature(name: str) -> str:
    """The feature of a column of the matrix: one-hot columns are `NAME=word`. No feature has = in its name."""
    return name.split("=", 1)[0]


def _unit(total: Sum, goal: Goal) -> str:
    return total.unit or UNITS.get(total.link) or ("probability" if goal.output.shape.is_probability else "number")


def _undone(total: Sum, goal: Goal) -> tuple[Sum, Array]:
    """The sum as the goal's outputs need it, and the offset of each: the correction of sampling is a constant in log-odds."""
    two = goal.output.shape.has_classes and total.outputs == 1
    if two:  # with two classes one is given: the other is the opposite
        total = total._replace(terms=[t._replace(model=_mirrored(t.model)) for t in total.terms], outputs=2)
    base = np.zeros(total.outputs)
    if two and total.link == "NONE":
        base[0] = 1.0
    if not goal.factors:
        return total, base
    logs = np.log(goal.factors)
    if total.link == "LOGISTIC":
        more = logs[1] - logs[0]
        return total, base + (np.array([-more, more]) if two else more)
    if total.link == "SOFTMAX":
        return total, base + logs
    unit = f"{_unit(total, goal)} before sampling is undone"
    return total._replace(link="", unit=unit), base


def _mirrored(model: "trees.Model | LinearModel") -> "trees.Model | LinearModel":
    if isinstance(model, LinearModel):
        return LinearModel(
            np.concatenate([-model.coefficients, model.coefficients]), np.concatenate([-model.intercept, model.intercept])
        )
    both = [t._replace(value=np.column_stack([-t.value, t.value])) for t in model.trees]
    return model._replace(trees=both, base=np.concatenate([-model.base, model.base]))


def _graph(x: Any, blocks: Sequence[PartColumns]) -> bytes:
    parts = [wide(block.x) for block in blocks]
    model = ndx.build({"features": x}, {"matrix": ndx.concat(parts, axis=1) if len(parts) > 1 else parts[0]})
    return bytes(model.SerializeToString(deterministic=True))


def _matrix(graph: bytes, features: Array) -> Array:
    return Graph(graph).run({"features": features})["matrix"] if graph else features


def _means(graph: bytes, matrix: Array, rows: Array) -> Array:
    """The mean of each explained column over the training rows."""
    model = Graph(graph) if graph else None
    sums = [
        (model.run({"features": part})["matrix"] if model is not None else part.astype(np.float64)).sum(axis=0)
        for part in (matrix[rows[i : i + _ROWS]] for i in range(0, len(rows), _ROWS))
    ]
    means = np.sum(sums, axis=0) / len(rows)
    if not np.isfinite(means).all():
        raise ValueError("the training rows have values without a number: fill them, and a linear model can be explained")
    return np.asarray(means)


def _check(explainer: Explainer, goal: Goal, moved: Array, answers: Mapping[str, Array]) -> None:
    """Raise ValueError unless contributions `moved` [N, K, F] and base add up to the graph's answers."""
    raw = explainer.base + moved.sum(axis=2)
    if (given := linked(explainer.link, raw)) is None:
        return
    expected = goal.plain.answers(given)
    for name, wanted in (("score", expected.score), ("values", expected.values)):
        found = answers.get(name)
        if found is None:
            continue
        apart = np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))
        apart = apart[np.isfinite(found) & (np.abs(wanted) < np.finfo(np.float32).max)]
        if apart.size and not float(apart.max()) <= TOLERANCE:
            raise ValueError(f"contributions and answers differ by up to {float(apart.max()):.2g}")


# --- additive models -----------------------------------------------------------------------------------------------


def _linear(model: LinearModel, term: Term, offset: int, means: Array) -> Linear:
    coefficients = model.coefficients * term.scale
    place = offset + np.arange(coefficients.shape[1])
    target = term.target + np.arange(len(coefficients))
    return Linear(coefficients=numbers(coefficients), column=numbers(place), mean=numbers(means[place]), target=numbers(target))


def _packed(model: trees.Model, term: Term, offset: int) -> Trees:
    """A model of trees level by level, its numbers scaled and its thresholds for x <= threshold."""
    plain = [_unchained(tree) for tree in model.trees]
    counts = [len(tree.left) for tree, _ in plain]
    start = np.cumsum([0, *counts])
    joined = {
        name: np.concatenate([getattr(tree, name) for tree, _ in plain])
        for name in ("feature", "threshold", "left", "right", "missing_left", "value", "cover")
    }
    more = np.repeat(start[:-1], counts)
    leaf = joined["left"] < 0
    order = _levels(np.where(leaf, -1, joined["left"] + more), np.where(leaf, -1, joined["right"] + more), start[:-1])
    inner, leaves = order[~leaf[order]], order[leaf[order]]
    sets = [words for _, chains in plain for words in chains.values()]
    by_set = np.concatenate([np.isin(np.arange(len(tree.left)), list(chains)) for tree, chains in plain])
    threshold = joined["threshold"]
    if model.less == "LT":
        threshold = np.nextafter(threshold.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
    elif model.single or term.seen.plain:
        threshold = trees.floor_float32(threshold)
    threshold = threshold.copy()
    threshold[by_set] = np.arange(len(sets))
    return Trees(
        nodes=len(order),
        roots=len(plain),
        leaf=_bits(leaf[order]),
        cover=numbers(np.asarray(joined["cover"][order], dtype=np.float64)),
        column=numbers(joined["feature"][inner] + offset),
        threshold=numbers(threshold[inner]),
        missing_left=_bits(joined["missing_left"][inner]),
        value=numbers(joined["value"][leaves].astype(np.float64) * (model.factor * term.scale)),
        width=joined["value"].shape[1],
        target=numbers(np.array([tree.target + term.target for tree, _ in plain])),
        by_set=_bits(by_set[inner]) if sets else b"",
        sets=sets,
        single=model.single,
    )


def _levels(left: Array, right: Array, roots: Array) -> Array:
    """The nodes level by level, the children of each in the order of their parents."""
    level, found = roots, [roots]
    while len(level):
        level = level[left[level] >= 0]
        level = np.column_stack([left[level], right[level]]).ravel()
        found.append(level)
    return np.concatenate(found)


def _bits(flags: Array) -> bytes:
    return bytes(np.packbits(flags.astype(np.bool_)).tobytes())


def _unchained(tree: trees.Tree) -> tuple[trees.Tree, dict[int, list[int]]]:
    """A tree without the nodes that only make a set of categories a chain; and the sets, by node."""
    if tree.cover is None:
        raise ValueError("trees that do not tell how many rows went where have no exact explanation")
    own = len(tree.cover)
    if tree.equal is None:
        return tree, {}
    right, sets = tree.right[:own].copy(), {}
    for node in np.flatnonzero(tree.equal[:own] & (tree.left[:own] >= 0)).tolist():
        words, following = [tree.threshold[node]], int(tree.right[node])
        while following >= own:
            words.append(tree.threshold[following])
            following = int(tree.right[following])
        right[node], sets[node] = following, [int(w) for w in words if w == w]
    names = ("feature", "threshold", "left", "missing_left", "value")
    return tree._replace(right=right, equal=None, **{name: getattr(tree, name)[:own] for name in names}), sets
