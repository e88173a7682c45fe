"""Trees of scikit-learn, LightGBM and XGBoost, read from the fitted estimator itself; `ensemble` writes them as ONNX.

Each node of a tree defines the branch of a NaN. LightGBM treats it as 0 where training had none.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from loopwright.base.arrays import Array
from loopwright.base.internals import internal

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

    `equal` marks nodes that test x == threshold; `None`: no node does. `cover` [n] counts training rows that reached a node (by weight, where
    the library counts so); nodes that only make one node's set of categories a chain follow behind it.
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    missing_left: Array
    value: Array
    target: int = 0
    equal: Array | None = None
    cover: Array | None = None


def floor_float32(values: Array) -> Array:
    """The largest float32 <= each value, as float64."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
        return np.where(near.astype(np.float64) > values, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float64)


class Model(NamedTuple):
    """A tree ensemble: the base added to the sum of the trees [K], and the link applied to the sum.

    The sum is multiplied by `factor`; `link` is NONE, LOGISTIC, SOFTMAX, EXP or SQUARE. `less` is the comparison that goes left.
    `single`: the library uses a float32 matrix; `in_turn`: it adds in float32, tree by tree. `categorical`: columns of categories, which it
    truncates to integers.
    """

    trees: list[Tree]
    base: Array
    link: str = "NONE"
    less: str = "LEQ"
    factor: float = 1.0
    single: bool = False
    in_turn: bool = False
    categorical: tuple[int, ...] = ()


_FORESTS = (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
)
_GRADIENT = (GradientBoostingClassifier, GradientBoostingRegressor)
_HISTOGRAM = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)


def reads(kind: type) -> bool:
    """Whether estimators of a kind are models of trees."""
    return (
        issubclass(kind, (*_FORESTS, *_GRADIENT, *_HISTOGRAM))
        or _of_lightgbm(kind)
        or kind.__module__.split(".")[0] == "xgboost"
    )


def _of_lightgbm(kind: type) -> bool:
    """Whether a kind is an estimator of LightGBM, or derived from one. Checks only loaded modules."""
    lightgbm = sys.modules.get("lightgbm")
    return lightgbm is not None and issubclass(kind, lightgbm.LGBMModel)


def read(part: Any) -> Model | None:
    """A fitted part as a model of trees, if it is one. Raises ValueError if it has no exact form."""
    if not reads(type(part)):
        return None
    if _of_lightgbm(type(part)):
        return of_lightgbm(part)
    if isinstance(part, _GRADIENT):
        return of_gradient(part)
    if isinstance(part, _HISTOGRAM):
        return of_histograms(part)
    return of_forest(part) if isinstance(part, _FORESTS) else of_xgboost(part)


# --- scikit-learn --------------------------------------------------------------------------------------------------


def of_sklearn(estimator: Any, values: Array, target: int = 0, features: Array | None = None) -> Tree:
    """A fitted scikit-learn tree with `values` [n, K] in its nodes; `features` are its input columns."""
    tree = estimator.tree_
    feature = tree.feature if features is None else np.asarray(features)[np.maximum(tree.feature, 0)]
    return Tree(
        feature,
        tree.threshold,
        tree.children_left,
        tree.children_right,
        tree.missing_go_to_left.astype(bool),
        values,
        target,
        cover=tree.weighted_n_node_samples,
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
        cover=nodes["count"],
    )


def of_forest(part: Any) -> Model:
    """A tree of scikit-learn, or the mean of many: the probability of the second of two classes, of each of more, or numbers."""
    each, classes = list(getattr(part, "estimators_", [part])), len(getattr(part, "classes_", []))
    values = [t.tree_.value[:, 0, 1 if classes == 2 else 0 :] if classes else t.tree_.value[:, :, 0] for t in each]
    made = [of_sklearn(t, value) for t, value in zip(each, values, strict=True)]
    return Model(made, np.zeros(values[0].shape[1]), factor=1 / len(each), single=True)


def of_isolation(part: Any) -> Model:
    """An isolation forest as the binary logarithm of the anomaly score: the negative mean path, as a share of the usual one."""
    found = [one.tree_ for one in part.estimators_]
    values = [(t.compute_node_depths() + path_length(t.n_node_samples) - 1.0)[:, None] for t in found]
    parts = zip(part.estimators_, values, part.estimators_features_, strict=True)
    usual = float(path_length(np.array([part.max_samples_]))[0]) * len(part.estimators_)
    return Model(
        [of_sklearn(one, value, features=which) for one, value, which in parts], np.zeros(1), factor=-1 / usual, single=True
    )


def path_length(rows: Array) -> Array:
    """The mean path length of a tree that isolates one of this many rows (Liu, Ting & Zhou 2008, Isolation forest, equation 1)."""
    more = np.maximum(rows.astype(np.float64), 3.0)
    length = 2.0 * (np.log(more - 1.0) + np.euler_gamma) - 2.0 * (more - 1.0) / more
    return np.where(rows > 2, length, np.where(rows == 2, 1.0, 0.0))


def of_gradient(part: Any) -> Model:
    """The model of scikit-learn's gradient boosting. Raises ValueError if it has no exact form."""
    if not isinstance(part.init_, str | DummyClassifier | DummyRegressor):
        raise ValueError("an estimator as `init` cannot be converted to ONNX: remove `init`")  # noqa: TRY004  # its value, not its type
    made = [
        of_sklearn(one, one.tree_.value[:, :1, 0] * part.learning_rate, k)
        for stage in part.estimators_
        for k, one in enumerate(stage)
    ]
    base = np.ravel(internal(part, "_raw_predict_init")(np.zeros((1, part.n_features_in_), dtype=np.float32)))
    link = "NONE" if not hasattr(part, "classes_") else "LOGISTIC" if len(base) == 1 else "SOFTMAX"
    return Model(made, base, link, factor=2.0 if part.loss == "exponential" else 1.0, single=True)


def of_histograms(part: Any) -> Model:
    """The model of scikit-learn's histogram boosting. Raises ValueError if it has no exact form."""
    if part.is_categorical_ is not None and np.any(part.is_categorical_):
        raise ValueError("categorical_features cannot be converted to ONNX: remove it, or use LightGBM")
    made = [of_histogram(one, k) for stage in internal(part, "_predictors") for k, one in enumerate(stage)]
    base = np.ravel(internal(part, "_baseline_prediction")).astype(np.float64)
    if not hasattr(part, "classes_"):
        return Model(made, base, "EXP" if part.loss in ("poisson", "gamma") else "NONE")
    return Model(made, base, "LOGISTIC" if len(base) == 1 else "SOFTMAX")


# --- LightGBM ------------------------------------------------------------------------------------------------------


def of_lightgbm(estimator: Any) -> Model:
    """The model of a fitted LightGBM estimator, read from its text form. Raises ValueError if it has no exact form."""
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
        raise ValueError(f"objective {objective} cannot be converted to ONNX: use another objective")
    return next((link for link, objectives in _LINKS.items() if objective in objectives), "NONE")


def _pairs(lines: Iterable[str]) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def _lightgbm_tree(tree: dict[str, str], target: int) -> tuple[Tree, set[int]]:
    def numbers(name: str, kind: type) -> Array:
        return np.array(tree.get(name, "").split(), dtype=kind)

    if tree.get("is_linear", "0") != "0":
        raise ValueError("linear trees cannot be converted to ONNX: remove linear_tree")
    inner = int(tree["num_leaves"]) - 1
    leaf_value = numbers("leaf_value", float)

    def child(name: str) -> Array:
        to = numbers(name, int)
        return np.concatenate([np.where(to < 0, inner + ~to, to), np.full(inner + 1, -1)])

    decision, threshold = numbers("decision_type", int), numbers("threshold", float)
    if ((decision >> 2) & 3 == 1).any():
        raise ValueError("zero_as_missing cannot be converted to ONNX: remove it")
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
        cover=np.concatenate([numbers("internal_count", float), numbers("leaf_count", float)]) if inner else np.ones(1),
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
    """Replace each node that tests membership in a set by a chain of nodes that test one value each."""
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
    return Tree(**arrays, target=tree.target, cover=tree.cover)


# --- XGBoost -------------------------------------------------------------------------------------------------------


def of_xgboost(estimator: Any) -> Model:
    """The model of a fitted XGBoost estimator, read from its JSON form. Raises ValueError if it has no exact form."""
    if not np.isnan(estimator.missing):
        raise ValueError(f"missing={estimator.missing} cannot be converted to ONNX: use NaN")
    learner = json.loads(bytes(estimator.get_booster().save_raw("json")))["learner"]
    booster, about = learner["gradient_booster"], learner["learner_model_param"]
    if booster["name"] == "gblinear":
        raise ValueError("booster gblinear cannot be converted to ONNX: use a linear model of scikit-learn")
    model = booster.get("gbtree", booster)["model"]
    link = _link(learner["objective"]["name"])
    targets, end = model["tree_info"], _last_tree(estimator, model)
    weights = model.get("weight_drop") or booster.get("weight_drop") or [1.0] * len(targets)  # in the model since 3.4
    trees = list(_xgboost_trees(model["trees"][:end], targets, weights))
    base = np.array(json.loads(about["base_score"]), dtype=np.float64)
    base = np.log(base / (1 - base)) if link == "LOGISTIC" else np.log(base) if link == "EXP" else base
    outputs = max(int(about["num_class"]), int(about["num_target"]), 1)
    first = [leaf(float(np.float32(b)), k) for k, b in enumerate(np.broadcast_to(base, outputs))]
    return Model([*first, *trees], np.zeros(outputs), link, "LT", single=True, in_turn=True)


def leaf(value: float, target: int) -> Tree:
    """A tree that is but a leaf."""
    no = np.array([-1])
    return Tree(np.array([0]), np.array([0.0]), no, no, np.array([False]), np.array([[value]]), target, cover=np.ones(1))


def _last_tree(estimator: Any, model: dict[str, Any]) -> int | None:
    try:
        best = int(estimator.best_iteration)
    except AttributeError:  # without early stopping there is none
        return None
    return int(model["iteration_indptr"][best + 1])


def _xgboost_trees(trees: Sequence[dict[str, Any]], targets: Sequence[int], weights: Sequence[float]) -> Iterator[Tree]:
    for tree, target, weight in zip(trees, targets, weights, strict=False):  # early stopping leaves some out
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise ValueError("multi-output trees cannot be converted to ONNX: remove multi_strategy")
        if any(tree["split_type"]):
            raise ValueError("categorical splits cannot be converted to ONNX: remove enable_categorical")
        left, conditions = np.array(tree["left_children"]), np.array(tree["split_conditions"], dtype=np.float32)
        yield Tree(
            np.array(tree["split_indices"]),
            conditions.astype(np.float64),
            left,
            np.array(tree["right_children"]),
            np.array(tree["default_left"], dtype=bool),
            conditions.astype(np.float64)[:, None] * weight,
            int(target),
            cover=np.array(tree["sum_hessian"], dtype=np.float32),
        )
