"""What of a fitted estimator goes into a package to explain its answers; see `graph.contributions`.

Explained is what is a sum: trees, linear models, and means of such, after steps that make each column of one column alone (scalers,
imputers, encoders, selections). An explanation is in the unit in which the model adds: log-odds where it ends in a logistic function,
probabilities for forests, the number itself for most regressions. What mixes columns or adds up nowhere (components, networks, kernels,
neighbours, stacks) has no exact explanation, and the package says so.
"""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import msgspec
import ndonnx as ndx
import numpy as np
from sklearn import (
    calibration,
    compose,
    discriminant_analysis,
    ensemble,
    impute,
    linear_model,
    model_selection,
    multiclass,
    multioutput,
    pipeline,
    preprocessing,
    semi_supervised,
)
from sklearn.feature_selection import SelectorMixin

from loopwright.base.arrays import Array
from loopwright.base.internals import internal
from loopwright.develop.fit import Several
from loopwright.develop.onnx.estimators import trees
from loopwright.develop.onnx.estimators.arithmetic import columns, wide
from loopwright.develop.onnx.estimators.linear import GENERALISED, LINEAR_CLASSIFIERS, LINEAR_REGRESSORS, logarithmic
from loopwright.develop.onnx.estimators.nested import applied, voting_weights
from loopwright.develop.output import Goal
from loopwright.graph.contributions import Explainer, Explanation, Linear, Trees, encode, linked, numbers
from loopwright.graph.session import Graph
from loopwright.records.package import Explained

TOLERANCE = 1e-5
_ROWS = 65_536
_UNITS = {"LOGISTIC": "log-odds", "SOFTMAX": "margin", "EXP": "logarithm", "SQUARE": "signed square root"}


class Files(NamedTuple):
    """What a package says and holds of its explanation."""

    about: Explained
    files: dict[str, bytes] = {}
    importance: dict[str, float] = {}
    """Each feature's share of what moved the answers that it was tried on, the largest first."""


class _PartColumns(NamedTuple):
    """The columns that a part is given [N, G]: how they are computed of the features, and of which feature each is."""

    x: Any
    origin: Array
    plain: bool = False  # the features as they are, float32


class _Term(NamedTuple):
    """Something that adds: a model of trees or lines over columns, times `scale`, to the outputs from `target` on."""

    seen: _PartColumns
    model: "trees.Model | _Lines"
    scale: float = 1.0
    target: int = 0


class _Lines(NamedTuple):
    """A linear model: coefficients [K, G] and intercepts [K]."""

    coefficients: Array
    intercept: Array


class _Sum(NamedTuple):
    """Terms, how many outputs they have, what becomes of the sums (see `Explanation.link`), and the unit where it is none of `_UNITS`."""

    terms: list[_Term]
    outputs: int
    link: str
    unit: str = ""


def explanation(
    estimator: Any, goal: Goal, names: Sequence[str], matrix: Array, rows: Array, answers: Mapping[str, Array]
) -> Files:
    """The explanation of an estimator over features `names` [F], fitted on some `rows` (indices) of `matrix` [M, F].

    It is tried on what the graph answers some rows: `features` [N, F], `score` [N] and perhaps `values` [N, K].
    Never raises: where there is no explanation, the reason stands in its place.
    """
    try:
        return _explanation(estimator, goal, names, matrix, rows, answers)
    except Exception as error:  # noqa: BLE001  # a package is worth having without its explanation, whatever a library raises
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Files(Explained(why=f"{kind}{' '.join(str(error).split())}"[:300]))


def _explanation(
    estimator: Any, goal: Goal, names: Sequence[str], matrix: Array, rows: Array, answers: Mapping[str, Array]
) -> Files:
    x = ndx.argument(shape=("N", len(names)), dtype=ndx.float32)
    found = _sum(estimator, _PartColumns(x, np.arange(len(names)), plain=True))
    found, base = _undone(found, goal)
    blocks = list({id(t.seen.x): t.seen for t in found.terms}.values())
    graph = b"" if all(block.plain for block in blocks) else _graph(x, blocks)
    offsets = dict(zip((id(b.x) for b in blocks), np.cumsum([0, *(len(b.origin) for b in blocks)]).tolist(), strict=False))
    features = list(dict.fromkeys(_feature(name) for name in names))
    of = np.array([features.index(_feature(name)) for name in names])
    means = _means(graph, matrix, rows) if any(isinstance(t.model, _Lines) for t in found.terms) else np.zeros(0)
    parts: list[Trees | Linear] = []
    for term in found.terms:
        offset = offsets[id(term.seen.x)]
        if isinstance(term.model, _Lines):
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
    """The feature that a column of the matrix is of: what `NAME=word` is one of several columns of. No feature has = in its name."""
    return name.split("=", 1)[0]


def _unit(total: _Sum, goal: Goal) -> str:
    return total.unit or _UNITS.get(total.link) or ("probability" if goal.output.shape.is_probability else "number")


def _undone(total: _Sum, goal: Goal) -> tuple[_Sum, Array]:
    """The sum as the goal's outputs need it, and what is added to each: the undoing of a sampling is a constant in log-odds."""
    two = goal.output.shape.has_classes and total.outputs == 1
    if two:  # one of two classes was told: the other is the opposite
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


def _mirrored(model: "trees.Model | _Lines") -> "trees.Model | _Lines":
    if isinstance(model, _Lines):
        return _Lines(
            np.concatenate([-model.coefficients, model.coefficients]), np.concatenate([-model.intercept, model.intercept])
        )
    both = [t._replace(value=np.column_stack([-t.value, t.value])) for t in model.trees]
    return model._replace(trees=both, base=np.concatenate([-model.base, model.base]))


def _graph(x: Any, blocks: Sequence[_PartColumns]) -> bytes:
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
    """Contributions `moved` [N, K, F] and base must give what the graph gives."""
    raw = explainer.base + moved.sum(axis=2)
    if (given := linked(explainer.link, raw)) is None:
        return
    expected = msgspec.structs.replace(goal, factors=[]).answers(given)
    for name, wanted in (("score", expected.score), ("values", expected.values)):
        found = answers.get(name)
        if found is None:
            continue
        apart = np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))
        apart = apart[np.isfinite(found) & (np.abs(wanted) < np.finfo(np.float32).max)]
        if apart.size and not float(apart.max()) <= TOLERANCE:
            raise ValueError(f"contributions and answers differ by up to {float(apart.max()):.2g}")


# --- what adds -----------------------------------------------------------------------------------------------------


@singledispatch
def _sum(part: Any, seen: _PartColumns) -> _Sum:
    """A fitted part as a sum. Raises ValueError where it is none."""
    model = trees.read(part)
    if model is None:
        raise ValueError(f"{type(part).__name__} has no exact explanation: trees and linear models have one")
    return _Sum([_Term(seen, model)], len(model.base), model.link)


@_sum.register
def _(part: Several, seen: _PartColumns) -> _Sum:
    return _stacked([_sum(each, seen) for each in part.estimators])


@_sum.register
def _(part: multioutput.MultiOutputRegressor, seen: _PartColumns) -> _Sum:
    return _stacked([_sum(each, seen) for each in part.estimators_])


@_sum.register
def _(part: multiclass.OneVsRestClassifier, seen: _PartColumns) -> _Sum:
    found = _stacked([_sum(each, seen) for each in part.estimators_])
    return (
        found
        if found.outputs == 1
        else found._replace(link="", unit=f"{_UNITS.get(found.link, 'probability')} of the class alone")
    )


def _stacked(sums: Sequence[_Sum]) -> _Sum:
    """Sums for one output each."""
    if any(s.outputs != 1 for s in sums) or len({(s.link, s.unit) for s in sums}) != 1:
        raise ValueError("outputs of several kinds have no explanation in common")
    terms = [t._replace(target=k) for k, s in enumerate(sums) for t in s.terms]
    return _Sum(terms, len(sums), sums[0].link, sums[0].unit)


@_sum.register
def _(part: pipeline.Pipeline, seen: _PartColumns) -> _Sum:
    for _, step in part.steps[:-1]:
        seen = _through(step, seen)
    return _sum(part.steps[-1][1], seen)


@_sum.register(model_selection.GridSearchCV)
@_sum.register(model_selection.RandomizedSearchCV)
def _(part: Any, seen: _PartColumns) -> _Sum:
    return _sum(part.best_estimator_, seen)


@_sum.register(model_selection.FixedThresholdClassifier)
@_sum.register(model_selection.TunedThresholdClassifierCV)
@_sum.register(linear_model.RANSACRegressor)
@_sum.register(semi_supervised.SelfTrainingClassifier)
def _(part: Any, seen: _PartColumns) -> _Sum:
    return _sum(part.estimator_, seen)


@_sum.register
def _(part: calibration.CalibratedClassifierCV, seen: _PartColumns) -> _Sum:
    if len(part.calibrated_classifiers_) > 1:
        raise ValueError(
            "the mean of several calibrated models has no exact explanation: CalibratedClassifierCV(ensemble=False) has"
        )
    found = _sum(part.calibrated_classifiers_[0].estimator, seen)
    unit = found.unit or _UNITS.get(found.link) or "probability"
    return found._replace(link="", unit=f"{unit} before calibration")


@_sum.register
def _(part: compose.TransformedTargetRegressor, seen: _PartColumns) -> _Sum:
    found = _sum(part.regressor_, seen)
    return found._replace(link="", unit="number as the target was transformed")


@_sum.register(ensemble.VotingClassifier)
@_sum.register(ensemble.VotingRegressor)
def _(part: Any, seen: _PartColumns) -> _Sum:
    weights = voting_weights(part)
    return _mean(
        [_sum(each, seen) for each in part.estimators_], np.ones(len(part.estimators_)) if weights is None else weights
    )


@_sum.register(ensemble.BaggingClassifier)
@_sum.register(ensemble.BaggingRegressor)
def _(part: Any, seen: _PartColumns) -> _Sum:
    whole = np.arange(part.n_features_in_)
    found = [
        _sum(each, seen if np.array_equal(which, whole) else _columns(seen, which))
        for each, which in zip(part.estimators_, part.estimators_features_, strict=True)
    ]
    return _mean(found, np.ones(len(found)))


def _mean(sums: Sequence[_Sum], weights: Any) -> _Sum:
    """The mean of sums, where the answers themselves add up."""
    if any(s.link != "NONE" or s.unit for s in sums):
        raise ValueError("a mean of models that do not add up in the answer itself has no exact explanation")
    shares = np.asarray(weights, dtype=np.float64) / float(np.sum(weights))
    terms = [t._replace(scale=t.scale * float(share)) for s, share in zip(sums, shares, strict=True) for t in s.terms]
    return _Sum(terms, sums[0].outputs, "NONE")


@_sum.register
def _(part: ensemble.IsolationForest, seen: _PartColumns) -> _Sum:
    return _Sum([_Term(seen, trees.of_isolation(part))], 1, "", "binary logarithm of the strangeness")


def _line(part: Any, seen: _PartColumns) -> _Sum:
    return _lines(part, seen, "NONE")


def _generalised(part: Any, seen: _PartColumns) -> _Sum:
    return _lines(part, seen, "EXP" if logarithmic(part) else "NONE")


def _margins(part: Any, seen: _PartColumns) -> _Sum:
    whole = isinstance(
        part,
        linear_model.LogisticRegression | linear_model.LogisticRegressionCV | discriminant_analysis.LinearDiscriminantAnalysis,
    )
    if whole or (isinstance(part, linear_model.SGDClassifier) and part.loss == "log_loss" and len(part.classes_) == 2):
        return _lines(part, seen, "LOGISTIC" if len(part.classes_) == 2 else "SOFTMAX")
    return _lines(part, seen, "")._replace(unit="margin")


for _function, _kinds in ((_line, LINEAR_REGRESSORS), (_generalised, GENERALISED), (_margins, LINEAR_CLASSIFIERS)):
    for _kind in _kinds:
        _sum.register(_kind, _function)


def _lines(part: Any, seen: _PartColumns, link: str) -> _Sum:
    coefficients = np.atleast_2d(np.asarray(part.coef_, dtype=np.float64))
    intercept = np.broadcast_to(np.asarray(part.intercept_, dtype=np.float64).ravel(), len(coefficients))
    return _Sum([_Term(seen, _Lines(coefficients, intercept))], len(coefficients), link)


# --- what makes each column of one ---------------------------------------------------------------------------------


def _through(step: Any, seen: _PartColumns) -> _PartColumns:
    """The columns after a step of a pipeline."""
    if step is None or isinstance(step, str):
        return seen
    return _PartColumns(applied(step, seen.x), seen.origin[_origin(step)])


def _columns(seen: _PartColumns, which: Array) -> _PartColumns:
    return _PartColumns(columns(seen.x, which), seen.origin[np.asarray(which)])


@singledispatch
def _origin(step: Any) -> Array:
    """For each column that a transformer makes the one it is made of. Raises ValueError where it is made of several."""
    if isinstance(step, SelectorMixin):
        return np.asarray(step.get_support(indices=True))
    raise ValueError(f"{type(step).__name__} mixes columns, or what it does with them is not known: no exact explanation")


@_origin.register(preprocessing.StandardScaler)
@_origin.register(preprocessing.RobustScaler)
@_origin.register(preprocessing.MaxAbsScaler)
@_origin.register(preprocessing.MinMaxScaler)
@_origin.register(preprocessing.FunctionTransformer)
@_origin.register(preprocessing.Binarizer)
@_origin.register(preprocessing.QuantileTransformer)
@_origin.register(preprocessing.PowerTransformer)
@_origin.register(preprocessing.OrdinalEncoder)
def _(step: Any) -> Array:
    return np.arange(step.n_features_in_)


@_origin.register
def _(step: impute.SimpleImputer) -> Array:
    values = np.asarray(step.statistics_, dtype=np.float64)
    kept = np.arange(len(values)) if step.keep_empty_features else np.flatnonzero(~np.isnan(values))
    return kept if step.indicator_ is None else np.concatenate([kept, step.indicator_.features_])


@_origin.register
def _(step: impute.MissingIndicator) -> Array:
    return np.asarray(step.features_)


@_origin.register
def _(step: preprocessing.OneHotEncoder) -> Array:
    dropped = [
        0 if step.drop_idx_ is None or i is None else 1
        for i in (step.drop_idx_ if step.drop_idx_ is not None else step.categories_)
    ]
    return np.repeat(np.arange(step.n_features_in_), [len(c) - d for c, d in zip(step.categories_, dropped, strict=True)])


@_origin.register
def _(step: preprocessing.KBinsDiscretizer) -> Array:
    return np.repeat(np.arange(step.n_features_in_), step.n_bins_ if "onehot" in step.encode else 1)


@_origin.register
def _(step: pipeline.Pipeline) -> Array:
    found = np.arange(step.n_features_in_)
    for _, each in step.steps:
        found = found if each is None or isinstance(each, str) else found[_origin(each)]
    return found


@_origin.register
def _(step: compose.ColumnTransformer) -> Array:
    found = [np.zeros(0, dtype=np.int64)]
    for name, each, _ in step.transformers_:
        which = np.asarray(internal(step, "_transformer_to_input_indices")[name], dtype=np.int64)
        if len(which) and not (isinstance(each, str) and each == "drop"):
            found.append(which if each is None or isinstance(each, str) else which[_origin(each)])
    return np.concatenate(found)


@_origin.register
def _(step: pipeline.FeatureUnion) -> Array:
    whole = np.arange(step.n_features_in_)
    parts = [each for _, each in step.transformer_list if each != "drop"]
    return np.concatenate([whole if each is None or isinstance(each, str) else _origin(each) for each in parts])


# --- as the file holds it ------------------------------------------------------------------------------------------


def _linear(model: _Lines, term: _Term, offset: int, means: Array) -> Linear:
    coefficients = model.coefficients * term.scale
    place = offset + np.arange(coefficients.shape[1])
    target = term.target + np.arange(len(coefficients))
    return Linear(coefficients=numbers(coefficients), column=numbers(place), mean=numbers(means[place]), target=numbers(target))


def _packed(model: trees.Model, term: _Term, offset: int) -> Trees:
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
