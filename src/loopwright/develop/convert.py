"""From a fitted estimator to ONNX, exactly.

Tree thresholds are float64 and ONNX tree ensembles float32. A float32 feature x goes left when x <= t; that is the same as
x <= t', with t' the largest float32 that is <= t. Rounding to nearest instead sends rows down the wrong branch. So
every threshold is set to t' before the converter sees it, and the estimator's answers stay what they were.

LightGBM decides by itself where a NaN goes in a feature that had none in training (as if it were 0), and the converter
says otherwise; such nodes are rewritten to say so in their own words (missing type NaN, default left where 0 <= t').
"""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import lightgbm as lgb
import numpy as np
import onnx
from skl2onnx import convert_sklearn, update_registered_converter
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common import tree_ensemble
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
from sklearn.base import BaseEstimator
from sklearn.ensemble import StackingClassifier
from sklearn.preprocessing import FunctionTransformer

from loopwright.records.errors import ConversionRefused
from loopwright.records.graph import Array

OPSETS = {"": 21, "ai.onnx.ml": 3}
TOLERANCE = 1e-6

_CATEGORICAL, _DEFAULT_LEFT, _MISSING_NAN = 1, 2, 2 << 2


def refuse_inconvertible(candidate: str, estimator: Any) -> None:
    """Refuse an unfitted estimator that cannot become a graph: before any time is spent on fitting it.

    Raises ConversionRefused naming the part.
    """
    register()
    if not hasattr(estimator, "fit"):
        raise ConversionRefused(
            candidate, f"the estimator function returned {type(estimator).__name__}, which cannot be fitted"
        )
    if not hasattr(estimator, "predict_proba") and not isinstance(estimator, StackingClassifier):  # it knows only when fitted
        raise ConversionRefused(
            candidate, f"{type(estimator).__name__} has no predict_proba: a score between 0 and 1 is needed"
        )
    for name, part in _parts(estimator):
        if isinstance(part, FunctionTransformer) and part.func is not None:
            raise ConversionRefused(
                candidate, f"part {name!r} is Python code (FunctionTransformer): write it in `features` instead"
            )
        if type(part) not in sklearn_operator_name_map:
            raise ConversionRefused(candidate, f"part {name!r} ({type(part).__name__}) has no converter to ONNX")


def convert(candidate: str, estimator: Any, width: int, *, double: bool = False) -> onnx.ModelProto:
    """A fitted binary classifier over a matrix of `width` columns as ONNX; its last output is the probabilities [N, 2].

    Thresholds are made exact on a copy. `double` takes the matrix as float64 and computes in it.
    Raises ConversionRefused.
    """
    register()
    kind = DoubleTensorType if double else FloatTensorType
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = exact_thresholds(estimator)
            model: onnx.ModelProto = convert_sklearn(
                exact, initial_types=[("matrix", kind([None, width]))], options={"zipmap": False}, target_opset=OPSETS
            )
    except Exception as error:  # converters raise many kinds
        raise ConversionRefused(candidate, f"{type(error).__name__}: {str(error)[:400]}") from error
    _mend_missing(model, exact)
    shape = model.graph.output[-1].type.tensor_type.shape.dim
    if len(shape) != 2:
        raise ConversionRefused(candidate, f"the last output of {type(estimator).__name__} is not a matrix of probabilities")
    return model


def exact_thresholds(estimator: Any) -> Any:
    """A copy of a fitted estimator with every tree threshold set to the largest float32 <= it; it predicts the same for float32 rows."""
    exact = copy.deepcopy(estimator)
    for part in _fitted(exact, set()):
        if isinstance(part, lgb.LGBMModel) and part.__sklearn_is_fitted__():
            part._Booster = exact_booster(part.booster_)
        elif hasattr(part, "tree_"):
            part.tree_.threshold[:] = floor_float32(part.tree_.threshold)
        elif hasattr(part, "_predictors"):
            for trees in part._predictors:
                for tree in trees:
                    tree.nodes["num_threshold"] = floor_float32(tree.nodes["num_threshold"])
    return exact


def exact_booster(booster: Any) -> Any:
    """A LightGBM booster with thresholds made exact and the way of a NaN said in each node; it predicts the same for float32 rows."""
    lines = []
    kinds: list[int] = []
    for line in booster.model_to_string(num_iteration=-1).split("\n"):
        name = line.partition("=")[0]
        if name == "tree_sizes":  # would no longer be true, and is optional
            continue
        if name in ("threshold", "decision_type"):
            lines.append(line)  # put right below, when both are known
            kinds.append(len(lines) - 1)
            if len(kinds) == 2:
                _mend(lines, *kinds)
                kinds = []
            continue
        if name == "Tree":
            kinds = []
        lines.append(line)
    return lgb.Booster(model_str="\n".join(lines))


def _mend(lines: list[str], first: int, second: int) -> None:
    at = {lines[i].partition("=")[0]: i for i in (first, second)}
    thresholds = np.array([float(t) for t in lines[at["threshold"]].partition("=")[2].split()])
    decisions = np.array([int(d) for d in lines[at["decision_type"]].partition("=")[2].split()])
    numeric = (decisions & _CATEGORICAL) == 0
    thresholds = np.where(numeric, floor_float32(thresholds), thresholds)
    treats_as_zero = numeric & ((decisions >> 2) & 3 == 0)
    decisions = np.where(treats_as_zero, _MISSING_NAN | np.where(thresholds >= 0, _DEFAULT_LEFT, 0), decisions)
    lines[at["threshold"]] = "threshold=" + " ".join(repr(float(t)) for t in thresholds)
    lines[at["decision_type"]] = "decision_type=" + " ".join(str(int(d)) for d in decisions)


def _mend_missing(model: onnx.ModelProto, estimator: Any) -> None:
    """Say in the ensembles of scikit-learn's own trees which way a NaN goes, which the converter leaves out.

    A tree is recognised by its split features and thresholds.
    """
    ways = {_tree_key(t.feature, t.threshold, t.children_left < 0): t.missing_go_to_left for t in _sklearn_trees(estimator)}
    for node in model.graph.node if ways else ():
        given = {a.name: a for a in node.attribute}
        if not node.op_type.startswith("TreeEnsemble") or "nodes_treeids" not in given:
            continue
        trees = np.array(given["nodes_treeids"].ints)
        features, leaves = (
            np.array(given["nodes_featureids"].ints),
            np.array([m == b"LEAF" for m in given["nodes_modes"].strings]),
        )
        tracks = np.array(given["nodes_missing_value_tracks_true"].ints)
        for tree in np.unique(trees):
            rows = np.flatnonzero(trees == tree)
            rows = rows[np.argsort(np.array(given["nodes_nodeids"].ints)[rows])]
            values = np.array(given["nodes_values"].floats)[rows]
            way = ways.get(_tree_key(features[rows], values, leaves[rows]))
            if way is not None:
                tracks[rows] = np.where(leaves[rows], 0, np.asarray(way, dtype=np.int64))
        del given["nodes_missing_value_tracks_true"].ints[:]
        given["nodes_missing_value_tracks_true"].ints.extend(tracks.tolist())


def _sklearn_trees(estimator: Any) -> Iterator[Any]:
    for part in _fitted(estimator, set()):
        if hasattr(part, "tree_"):
            yield part.tree_


def _tree_key(features: Array, thresholds: Array, leaves: Array) -> bytes:
    return (
        np.where(leaves, -1, features).astype(np.int64).tobytes() + np.where(leaves, 0, thresholds).astype(np.float32).tobytes()
    )


def floor_float32(values: Array) -> Array:
    """The largest float32 <= each value, as float64."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
        return np.where(near.astype(np.float64) > values, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float64)


def register() -> None:
    """Tell skl2onnx about the estimators that are not scikit-learn's own: LightGBM, and XGBoost where it is installed."""
    if lgb.LGBMClassifier in sklearn_operator_name_map:
        return
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

    options = {"nocl": [True, False], "zipmap": [True, False, "columns"], "raw_scores": [True, False]}
    update_registered_converter(
        lgb.LGBMClassifier,
        "LightGbmLGBMClassifier",
        calculate_linear_classifier_output_shapes,
        convert_lightgbm,
        options=options,
    )
    _count_booleans()
    try:
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
        from xgboost import XGBClassifier
    except ImportError:
        return
    update_registered_converter(
        XGBClassifier, "XGBoostXGBClassifier", calculate_linear_classifier_output_shapes, convert_xgboost, options=options
    )


def _count_booleans() -> None:
    # skl2onnx writes the leaves of histogram boosting with the boolean False, where protobuf from version 6 wants a number.
    plain = tree_ensemble.add_node

    def add_node(*args: Any, nodes_missing_value_tracks_true: Any = 0, **more: Any) -> None:
        plain(*args, nodes_missing_value_tracks_true=int(nodes_missing_value_tracks_true), **more)

    tree_ensemble.add_node = add_node


def _parts(estimator: Any) -> Iterator[tuple[str, Any]]:
    """An unfitted estimator and every estimator inside it, by their parameter names."""
    yield "estimator", estimator
    for name, part in estimator.get_params(deep=True).items():
        if hasattr(part, "fit") and not isinstance(part, type):
            yield name, part


def _fitted(part: Any, seen: set[int]) -> Iterator[Any]:
    """Every fitted estimator inside a fitted estimator, also those in lists, dictionaries and arrays of its attributes."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, BaseEstimator) or type(part).__module__.startswith("sklearn.calibration"):
        yield part
        inner: Any = list(vars(part).values())
    elif isinstance(part, list | tuple | set):
        inner = part
    elif isinstance(part, dict):
        inner = part.values()
    elif isinstance(part, np.ndarray) and part.dtype == object:
        inner = part.ravel()
    else:
        return
    for item in inner:
        yield from _fitted(item, seen)
