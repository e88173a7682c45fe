"""Trees to ONNX, exactly: those of scikit-learn, LightGBM and XGBoost, read from the fitted estimator itself.

Thresholds of scikit-learn and LightGBM are float64. Where the matrix is float32, a row goes left when x <= t; that is the same as
x <= t', with t' the largest float32 that is <= t (rounding to nearest instead sends rows down the wrong branch). Where it is
float64 (after a scaler), the ensemble's thresholds are too.

ONNX gives the sum of the leaves in float32. That is enough for a probability at the end of a graph. Where more is needed each
leaf is split in two: a multiple of a power of two so large that float32 adds them without error, and the small rest. The two sums
together are right to 40 bits. XGBoost itself adds in float32, one tree after the other from its base score on, and so does the
runtime on one thread: with the base score as the first tree the sums are the same to the last bit.

Every tree says in each node which way a NaN goes. LightGBM takes it for 0 where training had none.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import ndonnx as ndx
import numpy as np
import spox.opset.ai.onnx.ml.v3 as ml
from lightgbm import LGBMModel
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.ensemble._forest import ForestClassifier, ForestRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from loopwright.records.graph import Array

ZERO = 1e-35
"""LightGBM takes numbers up to this (float32) for zero."""

_CATEGORICAL, _DEFAULT_LEFT = 1, 2

_LINKS = {
    "LOGISTIC": ["binary", "multiclassova", "cross_entropy", "binary:logistic", "reg:logistic"],
    "SOFTMAX": ["multiclass", "multi:softprob"],
    "EXP": ["poisson", "gamma", "tweedie", "count:poisson", "reg:gamma", "reg:tweedie"],
}
_NO_FORM = (
    "cross_entropy_lambda",
    "custom",
    "binary:hinge",
    "binary:logitraw",
    "multi:softmax",
    "survival:cox",
    "survival:aft",
)


class Tree(NamedTuple):
    """Nodes [n]: `left` is -1 in a leaf, `value` [n, K] counts in leaves only and is added to output `target` and the next ones.

    `equal` says which nodes test x == threshold instead; `None` is none.
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    missing_left: Array
    value: Array
    target: int = 0
    equal: Array | None = None


def ensemble(trees: Sequence[Tree], matrix: Any, base: Array, less: str = "LEQ", *, exact: bool) -> Any:
    """`base` [K] plus the sum of trees, over an ndonnx matrix [N, F], as an array [N, K].

    `less` is the comparison that goes left, LEQ or LT. `exact` gives float64, right to 40 bits; otherwise it is float32.
    """
    outputs, wide = len(base), matrix.dtype == ndx.float64
    step = _step(trees) if exact else 0.0
    nodes = _attributes([_in_two(tree, step, outputs) for tree in trees] if exact else trees, less)
    numbers: dict[str, Any] = {name: nodes.pop(name) for name in ("nodes_values", "target_weights")}
    if wide:
        numbers = {f"{name}_as_tensor": values for name, values in numbers.items()}
    else:
        numbers["nodes_values"] = floor_float32(numbers["nodes_values"]) if less == "LEQ" else numbers["nodes_values"]
        numbers = {name: values.tolist() for name, values in numbers.items()}
    if not exact:
        numbers["base_values_as_tensor" if wide else "base_values"] = base if wide else base.tolist()
    result = ndx.asarray(
        ml.tree_ensemble_regressor(
            matrix.unwrap_spox(),
            n_targets=2 * outputs if exact else outputs,
            **numbers,
            **{name: values.tolist() for name, values in nodes.items()},
        )
    )
    if not exact:
        return result
    result = ndx.astype(result, ndx.float64)
    return result[:, :outputs] + result[:, outputs:] + ndx.asarray(base[None, :])


def _step(trees: Sequence[Tree]) -> float:
    """The power of two of which float32 adds multiples without error, whichever leaves of the trees are added."""
    most = sum(float(np.abs(t.value[t.left < 0]).max()) for t in trees)
    if not np.isfinite(most):
        raise ValueError("a leaf is not a number")
    return float(2.0 ** (np.ceil(np.log2(most)) - 22)) if most > 0 else 1.0


def _in_two(tree: Tree, step: float, outputs: int) -> Tree:
    """A tree whose leaves hold multiples of `step` and, `outputs` further, the small rests."""
    large = np.round(tree.value / step) * step
    value = np.zeros((len(tree.left), 2 * outputs))
    value[:, tree.target : tree.target + tree.value.shape[1]] = large
    value[:, outputs + tree.target : outputs + tree.target + tree.value.shape[1]] = tree.value - large
    return tree._replace(value=value, target=0)


def _attributes(trees: Sequence[Tree], less: str) -> dict[str, Array]:
    """The attributes of the operator; trees follow one another, and so do the nodes of a tree."""
    parts: dict[str, list[Array]] = {}

    def add(**arrays: Array) -> None:
        for name, array in arrays.items():
            parts.setdefault(name, []).append(np.asarray(array))

    for number, tree in enumerate(trees):
        size, leaf = len(tree.left), tree.left < 0
        mode = np.where(leaf, "LEAF", f"BRANCH_{less}")
        if tree.equal is not None:
            mode = np.where(tree.equal & ~leaf, "BRANCH_EQ", mode)
        add(
            nodes_treeids=np.full(size, number),
            nodes_nodeids=np.arange(size),
            nodes_featureids=np.where(leaf, 0, tree.feature),
            nodes_modes=mode,
            nodes_values=np.where(leaf, 0.0, tree.threshold),
            nodes_truenodeids=np.where(leaf, 0, tree.left),
            nodes_falsenodeids=np.where(leaf, 0, tree.right),
            nodes_missing_value_tracks_true=np.where(leaf, False, tree.missing_left).astype(np.int64),
        )
        leaves, width = np.flatnonzero(leaf), tree.value.shape[1]
        add(
            target_treeids=np.full(len(leaves) * width, number),
            target_nodeids=np.repeat(leaves, width),
            target_ids=np.tile(np.arange(tree.target, tree.target + width), len(leaves)),
            target_weights=tree.value[leaves].ravel(),
        )
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def floor_float32(values: Array) -> Array:
    """The largest float32 <= each value, as float64."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
        return np.where(near.astype(np.float64) > values, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float64)


class Model(NamedTuple):
    """A model of trees: what is added to their sum [K], and what becomes of the sum.

    The sum is multiplied by `factor`; `link` is NONE, LOGISTIC, SOFTMAX, EXP or SQUARE. `less` is the comparison that goes left.
    `single`: the library itself makes its matrix float32; `in_turn`: it adds in float32, tree by tree. `categorical` are columns of categories, whose numbers it cuts off
    behind the point.
    """

    trees: list[Tree]
    base: Array
    link: str = "NONE"
    less: str = "LEQ"
    factor: float = 1.0
    single: bool = False
    in_turn: bool = False
    categorical: tuple[int, ...] = ()


_FORESTS = (DecisionTreeClassifier, DecisionTreeRegressor, ForestClassifier, ForestRegressor)
_GRADIENT = (GradientBoostingClassifier, GradientBoostingRegressor)
_HISTOGRAM = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)


def reads(kind: type) -> bool:
    """Whether estimators of a kind are models of trees."""
    return issubclass(kind, (*_FORESTS, *_GRADIENT, *_HISTOGRAM, LGBMModel)) or kind.__module__.split(".")[0] == "xgboost"


def read(part: Any) -> Model | None:
    """A fitted part as a model of trees, where it is one. Raises ValueError for what has no exact form."""
    if not reads(type(part)):
        return None
    if isinstance(part, LGBMModel):
        return of_lightgbm(part)
    if isinstance(part, _GRADIENT):
        return of_gradient(part)
    if isinstance(part, _HISTOGRAM):
        return of_histograms(part)
    return of_forest(part) if isinstance(part, _FORESTS) else of_xgboost(part)


# --- scikit-learn --------------------------------------------------------------------------------------------------


def of_sklearn(estimator: Any, values: Array, target: int = 0, features: Array | None = None) -> Tree:
    """A fitted tree of scikit-learn with `values` [n, K] in its nodes; `features` are the columns it was given."""
    tree = estimator.tree_
    feature = tree.feature if features is None else np.asarray(features)[np.maximum(tree.feature, 0)]
    return Tree(
        feature, tree.threshold, tree.children_left, tree.children_right, tree.missing_go_to_left.astype(bool), values, target
    )


def of_histogram(predictor: Any, target: int = 0) -> Tree:
    """A tree of scikit-learn's histogram boosting."""
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    left = np.where(leaf, -1, nodes["left"].astype(np.int64))
    return Tree(
        nodes["feature_idx"].astype(np.int64),
        nodes["num_threshold"],
        left,
        nodes["right"].astype(np.int64),
        nodes["missing_go_to_left"].astype(bool),
        nodes["value"][:, None],
        target,
    )


def of_forest(part: Any) -> Model:
    """A tree of scikit-learn, or the mean of many: the probability of the second of two classes, of each of more, or numbers."""
    each, classes = list(getattr(part, "estimators_", [part])), len(getattr(part, "classes_", []))
    values = [t.tree_.value[:, 0, 1 if classes == 2 else 0 :] if classes else t.tree_.value[:, :, 0] for t in each]
    made = [of_sklearn(t, value) for t, value in zip(each, values, strict=True)]
    return Model(made, np.zeros(values[0].shape[1]), factor=1 / len(each), single=True)


def of_gradient(part: Any) -> Model:
    """The model of scikit-learn's gradient boosting. Raises ValueError for what has no exact form."""
    if not isinstance(part.init_, str | DummyClassifier | DummyRegressor):
        raise ValueError("an estimator as init has no form of its own: leave init alone")  # noqa: TRY004  # its value, not its type
    made = [
        of_sklearn(one, one.tree_.value[:, :1, 0] * part.learning_rate, k)
        for stage in part.estimators_
        for k, one in enumerate(stage)
    ]
    base = np.ravel(part._raw_predict_init(np.zeros((1, part.n_features_in_), dtype=np.float32)))
    link = "NONE" if not hasattr(part, "classes_") else "LOGISTIC" if len(base) == 1 else "SOFTMAX"
    return Model(made, base, link, factor=2.0 if part.loss == "exponential" else 1.0, single=True)


def of_histograms(part: Any) -> Model:
    """The model of scikit-learn's histogram boosting. Raises ValueError for what has no exact form."""
    if part.is_categorical_ is not None and np.any(part.is_categorical_):
        raise ValueError("categorical_features has no form of its own: leave it off, or take LightGBM")
    made = [of_histogram(one, k) for stage in part._predictors for k, one in enumerate(stage)]
    base = np.ravel(part._baseline_prediction).astype(np.float64)
    if not hasattr(part, "classes_"):
        return Model(made, base, "EXP" if part.loss in ("poisson", "gamma") else "NONE")
    return Model(made, base, "LOGISTIC" if len(base) == 1 else "SOFTMAX")


# --- LightGBM ------------------------------------------------------------------------------------------------------


def of_lightgbm(estimator: Any) -> Model:
    """The model of a fitted LightGBM estimator, read from its text form. Raises ValueError for what has no exact form."""
    head, *parts = estimator.booster_.model_to_string().split("\nTree=")
    about = _pairs(head.split("\n"))
    outputs = int(about["num_tree_per_iteration"])
    trees, categorical = [], set()
    for number, part in enumerate(parts):
        tree, cats = _lightgbm_tree(_pairs(part.split("\n\n")[0].split("\n")), number % outputs)
        trees.append(tree)
        categorical |= cats
    if "average_output" in head.split("\n"):
        trees = [tree._replace(value=tree.value * (outputs / len(trees))) for tree in trees]
    objective, *options = about.get("objective", "custom").split()
    link = "SQUARE" if "sqrt" in options else _link(objective)
    factor = float(dict(o.split(":") for o in options if ":" in o).get("sigmoid", 1.0)) if link == "LOGISTIC" else 1.0
    return Model(trees, np.zeros(outputs), link, factor=factor, categorical=tuple(sorted(categorical)))


def _link(objective: str) -> str:
    if objective in _NO_FORM:
        raise ValueError(f"objective {objective} has no form of its own")
    return next((link for link, objectives in _LINKS.items() if objective in objectives), "NONE")


def _pairs(lines: Iterable[str]) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def _lightgbm_tree(tree: dict[str, str], target: int) -> tuple[Tree, set[int]]:
    def numbers(name: str, kind: type) -> Array:
        return np.array(tree.get(name, "").split(), dtype=kind)

    if tree.get("is_linear", "0") != "0":
        raise ValueError("linear trees have no form in ONNX: leave linear_tree off")
    inner = int(tree["num_leaves"]) - 1
    leaf_value = numbers("leaf_value", float)

    def child(name: str) -> Array:
        to = numbers(name, int)
        return np.concatenate([np.where(to < 0, inner + ~to, to), np.full(inner + 1, -1)])

    decision, threshold = numbers("decision_type", int), numbers("threshold", float)
    if ((decision >> 2) & 3 == 1).any():
        raise ValueError("zero_as_missing has no form in ONNX: leave it off")
    as_zero = (decision >> 2) & 3 == 0
    missing = np.where(as_zero, threshold >= 0, (decision & _DEFAULT_LEFT) != 0)
    threshold = np.where(threshold == -float(np.float32(ZERO)), np.nextafter(threshold, -np.inf), threshold)
    leaves = np.zeros(inner + 1)
    made = Tree(
        np.concatenate([numbers("split_feature", int), leaves.astype(int)]),
        np.concatenate([threshold, leaves]),
        child("left_child"),
        child("right_child"),
        np.concatenate([missing, leaves.astype(bool)]),
        np.concatenate([np.zeros(inner), leaf_value])[:, None],
        target,
    )
    by_category = np.flatnonzero(decision & _CATEGORICAL)
    if not len(by_category):
        return made, set()
    bounds, bits = numbers("cat_boundaries", int), numbers("cat_threshold", int)
    members = {
        int(node): [
            32 * word + bit
            for word, value in enumerate(bits[bounds[int(threshold[node])] : bounds[int(threshold[node]) + 1]])
            for bit in range(32)
            if value >> bit & 1
        ]
        for node in by_category
    }
    return _chained(made, members), {int(f) for f in made.feature[by_category]}


def _chained(tree: Tree, members: dict[int, list[int]]) -> Tree:
    """Each node that asks whether x is one of several becomes a chain of nodes that ask for one each."""
    names = ("feature", "threshold", "left", "right", "missing_left", "value", "equal")
    equal = np.zeros(len(tree.left), dtype=bool)
    nodes: dict[str, list[Any]] = {n: list(equal if n == "equal" else getattr(tree, n)) for n in names}
    for node, words in members.items():
        otherwise = nodes["right"][node]
        nodes["equal"][node], nodes["missing_left"][node] = True, False
        nodes["threshold"][node] = float(words[0]) if words else float("nan")
        at = node
        for word in words[1:]:
            new = len(nodes["left"])
            nodes["right"][at] = new
            for name in names:
                nodes[name].append(nodes[name][node])
            nodes["threshold"][new] = float(word)
            at = new
        nodes["right"][at] = otherwise
    arrays = {name: np.array(values) for name, values in nodes.items()}
    return Tree(**arrays, target=tree.target)


# --- XGBoost -------------------------------------------------------------------------------------------------------


def of_xgboost(estimator: Any) -> Model:
    """The model of a fitted XGBoost estimator, read from its JSON form. Raises ValueError for what has no exact form."""
    if not np.isnan(estimator.missing):
        raise ValueError(f"missing={estimator.missing} has no form in ONNX: leave it NaN")
    learner = json.loads(bytes(estimator.get_booster().save_raw("json")))["learner"]
    booster, about = learner["gradient_booster"], learner["learner_model_param"]
    if booster["name"] == "gblinear":
        raise ValueError("booster gblinear is a linear model: take one of scikit-learn")
    model = booster.get("gbtree", booster)["model"]
    link = _link(learner["objective"]["name"])
    targets, end = model["tree_info"], _last_tree(estimator, model)
    weights = booster.get("weight_drop", [1.0] * len(targets))
    trees = list(_xgboost_trees(model["trees"][:end], targets, weights))
    base = np.array(json.loads(about["base_score"]), dtype=np.float64)
    base = np.log(base / (1 - base)) if link == "LOGISTIC" else np.log(base) if link == "EXP" else base
    outputs = max(int(about["num_class"]), int(about["num_target"]), 1)
    first = [_leaf(float(np.float32(b)), k) for k, b in enumerate(np.broadcast_to(base, outputs))]
    return Model([*first, *trees], np.zeros(outputs), link, "LT", single=True, in_turn=True)


def _leaf(value: float, target: int) -> Tree:
    no = np.array([-1])
    return Tree(np.array([0]), np.array([0.0]), no, no, np.array([False]), np.array([[value]]), target)


def _last_tree(estimator: Any, model: dict[str, Any]) -> int | None:
    try:
        best = int(estimator.best_iteration)
    except AttributeError:  # without early stopping there is none
        return None
    return int(model["iteration_indptr"][best + 1])


def _xgboost_trees(trees: Sequence[dict[str, Any]], targets: Sequence[int], weights: Sequence[float]) -> Iterator[Tree]:
    for tree, target, weight in zip(trees, targets, weights, strict=False):  # early stopping leaves some out
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise ValueError("trees with a vector in each leaf have no form in ONNX: leave multi_strategy alone")
        if any(tree["split_type"]):
            raise ValueError("splits by category have no form in ONNX: leave enable_categorical off")
        left, conditions = np.array(tree["left_children"]), np.array(tree["split_conditions"], dtype=np.float32)
        yield Tree(
            np.array(tree["split_indices"]),
            conditions.astype(np.float64),
            left,
            np.array(tree["right_children"]),
            np.array(tree["default_left"], dtype=bool),
            conditions.astype(np.float64)[:, None] * weight,
            int(target),
        )
