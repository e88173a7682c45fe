"""The parts of a fitted estimator as ONNX: one small function for each kind, over an ndonnx matrix [N, F].

    transform      the columns a transformer makes, float64 [N, G]
    probabilities  of a classifier: of its second class [N, 1] where it has two, else of each [N, K]
    decision       `decision_function`: [N, 1], or [N, K] of several classes
    predict        the numbers of a regressor [N, K]

The matrix is float32 as the features give it; whatever is computed of it is float64, as scikit-learn is fitted here (see `fit`).
Nested estimators call the function of what they hold. A part without a function of its own goes through skl2onnx, alone. What
cannot be said in ONNX raises ValueError.
"""

import warnings
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import ndonnx as ndx
import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import spox
import spox.opset.ai.onnx.v21 as _operators
from skl2onnx import convert_sklearn
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn import (
    calibration,
    compose,
    covariance,
    decomposition,
    discriminant_analysis,
    dummy,
    ensemble,
    impute,
    isotonic,
    linear_model,
    model_selection,
    multiclass,
    multioutput,
    neural_network,
    pipeline,
    preprocessing,
    semi_supervised,
    svm,
)
from sklearn.base import is_classifier
from sklearn.ensemble._iforest import _average_path_length
from sklearn.feature_selection import SelectorMixin
from sklearn.linear_model import _base as linear_base

from loopwright.develop import trees
from loopwright.develop.network import TorchClassifier, TorchRegressor
from loopwright.records.graph import Array

OPSETS = {"": 21, "ai.onnx.ml": 3}

op: Any = _operators  # its operators are not marked as exported, so types would be refused


@singledispatch
def transform(part: Any, x: Any) -> Any:
    """See above."""
    if isinstance(part, SelectorMixin):
        return _columns(x, part.get_support(indices=True))
    return _foreign(part, x)


@singledispatch
def probabilities(part: Any, x: Any) -> Any:
    """See above."""
    if (model := trees.read(part)) is not None:
        return _linked(model, _summed(model, x))
    found = _foreign(part, x)
    return found[:, 1:2] if len(part.classes_) == 2 else found


@singledispatch
def decision(part: Any, x: Any) -> Any:
    """See above."""
    if (model := trees.read(part)) is not None:
        return _summed(model, x)
    return _rows(_foreign(part, x))


@singledispatch
def predict(part: Any, x: Any) -> Any:
    """See above."""
    if (model := trees.read(part)) is not None:
        return _linked(model, _summed(model, x))
    return _rows(_foreign(part, x))


FUNCTIONS = (transform, probabilities, decision, predict)


def known(kind: type) -> bool:
    """Whether there is a function for a kind of part, of its own or of skl2onnx."""
    if trees.reads(kind):
        return True
    own = any(function.dispatch(kind) is not function.dispatch(object) for function in FUNCTIONS)
    return own or issubclass(kind, SelectorMixin) or kind in sklearn_operator_name_map


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _wide(x: Any) -> Any:
    return x if x.dtype == ndx.float64 else ndx.astype(x, ndx.float64)


def _float32(x: Any) -> Any:
    return x if x.dtype == ndx.float32 else ndx.astype(x, ndx.float32)


def _constant(values: Any) -> Any:
    return ndx.asarray(np.array(values, dtype=np.float64))


def _columns(x: Any, which: Any) -> Any:
    return ndx.asarray(op.gather(x.unwrap_spox(), op.const(np.asarray(which, dtype=np.int64)), axis=1))


def _taken(values: Array, which: Any) -> Any:
    """The values at places that are an array of any shape."""
    return ndx.asarray(op.gather(op.const(np.asarray(values, dtype=np.float64)), which.unwrap_spox()))


def _times(x: Any, matrix: Array) -> Any:
    return ndx.asarray(op.matmul(_wide(x).unwrap_spox(), op.const(np.ascontiguousarray(matrix, dtype=np.float64))))


def _beside(arrays: Sequence[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else ndx.concat([_wide(a) for a in arrays], axis=1)


def _same(x: Any, row: Any) -> Any:
    """A constant row [K] for every row of x."""
    return ndx.where(ndx.isnan(x[:, :1]), _constant(row)[None, :], _constant(row)[None, :])


def _mean(arrays: Sequence[Any], weights: Any = None) -> Any:
    share = np.ones(len(arrays)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = _wide(arrays[0]) * float(share[0])
    for array, weight in zip(arrays[1:], share[1:], strict=True):
        total = total + _wide(array) * float(weight)
    return total / float(share.sum())


def _sigmoid(x: Any) -> Any:
    return ndx.asarray(op.sigmoid(x.unwrap_spox()))


def _softmax(x: Any) -> Any:
    return ndx.asarray(op.softmax(x.unwrap_spox(), axis=1))


def _shares(x: Any, classes: int) -> Any:
    """Rows made to sum to one; uniform where all are zero."""
    total = ndx.sum(x, axis=1, keepdims=True)
    return ndx.where(total == 0, 1 / classes, x / ndx.where(total == 0, 1.0, total))


def _rows(x: Any) -> Any:
    """[N] or [N, K] as [N, K]."""
    return ndx.asarray(op.reshape(x.unwrap_spox(), op.const(np.array([0, -1]))))


def _interpolated(x: Any, xs: Array, ys: Array) -> Any:
    """Straight lines through points with ascending xs, for x [N]; the first and last go on."""
    if len(xs) == 1:
        return ndx.where(ndx.isnan(x), float(ys[0]), float(ys[0]))
    after = ndx.clip(ndx.searchsorted(_constant(xs), x, side="left"), 1, len(xs) - 1)
    slope = np.diff(ys) / np.where(np.diff(xs) == 0, 1.0, np.diff(xs))
    low, start, steep = (_taken(a, after - 1) for a in (xs[:-1], ys[:-1], slope))
    return steep * (x - low) + start


def _column(x: Any, i: int) -> Any:
    return x[:, i : i + 1]


def _choice(part: Any, x: Any) -> Any:
    """The class chosen by a classifier, as its number [N]."""
    odds = hasattr(part, "predict_proba")
    found = probabilities(part, x) if odds else decision(part, x)
    if len(part.classes_) > 2:
        return ndx.argmax(found, axis=1)
    return ndx.astype(found[:, 0] > (0.5 if odds else 0.0), ndx.int64)


def _foreign(part: Any, x: Any) -> Any:
    """A part by skl2onnx: its last output, float64; in float64 where its converter and the runtime can."""
    options = {id(part): {"zipmap": False}} if is_classifier(part) else None
    failed: Exception | None = None
    for kind, given in ((DoubleTensorType, _wide(x)), (FloatTensorType, _float32(x))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model: onnx.ModelProto = convert_sklearn(
                    part,
                    initial_types=[("x", kind([None, part.n_features_in_]))],
                    options=options,
                    target_opset=OPSETS,
                )
            model = onnx.inliner.inline_local_functions(model)
            quiet = ort.SessionOptions()
            quiet.log_severity_level = 4
            ort.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  # converters raise many kinds
            failed = error
            continue
        return _wide(ndx.asarray(spox.inline(model)(x=given.unwrap_spox())[model.graph.output[-1].name]))
    raise ValueError(f"{type(part).__name__}: {type(failed).__name__}: {' '.join(str(failed).split())[:300]}") from failed


# --- estimators that hold others -------------------------------------------------------------------------------------


def _delegate(kind: type, attribute: str) -> None:
    for function in FUNCTIONS:
        function.register(kind, lambda part, x, function=function: function(getattr(part, attribute), x))


for _kind in (model_selection.GridSearchCV, model_selection.RandomizedSearchCV):
    _delegate(_kind, "best_estimator_")
for _kind in (
    model_selection.FixedThresholdClassifier,
    model_selection.TunedThresholdClassifierCV,
    linear_model.RANSACRegressor,
    semi_supervised.SelfTrainingClassifier,
):
    _delegate(_kind, "estimator_")


def before(part: pipeline.Pipeline, x: Any) -> Any:
    """What the last step of a pipeline is given."""
    for _, step in part.steps[:-1]:
        x = _step(step, x)
    return x


@transform.register(pipeline.Pipeline)
def _(part: pipeline.Pipeline, x: Any) -> Any:
    return _step(part.steps[-1][1], before(part, x))


for _function in (probabilities, decision, predict):
    _function.register(pipeline.Pipeline, lambda part, x, function=_function: function(part.steps[-1][1], before(part, x)))


def _step(step: Any, x: Any) -> Any:
    return x if step is None or isinstance(step, str) else transform(step, x)


@transform.register(compose.ColumnTransformer)
def _(part: compose.ColumnTransformer, x: Any) -> Any:
    weights = part.transformer_weights or {}
    blocks = []
    for name, step, _ in part.transformers_:
        which = part._transformer_to_input_indices[name]
        if len(which) and not (isinstance(step, str) and step == "drop"):
            block = _step(step, _columns(x, which))
            blocks.append(_wide(block) * weights[name] if name in weights else block)
    return _beside(blocks)


@transform.register(pipeline.FeatureUnion)
def _(part: pipeline.FeatureUnion, x: Any) -> Any:
    weights = part.transformer_weights or {}
    blocks = [(name, _step(step, x)) for name, step in part.transformer_list if step != "drop"]
    return _beside([_wide(block) * weights[name] if name in weights else block for name, block in blocks])


@probabilities.register(ensemble.VotingClassifier)
def _(part: ensemble.VotingClassifier, x: Any) -> Any:
    return _mean([probabilities(e, x) for e in part.estimators_], part._weights_not_none)


@predict.register(ensemble.VotingRegressor)
def _(part: ensemble.VotingRegressor, x: Any) -> Any:
    return _mean([predict(e, x) for e in part.estimators_], part._weights_not_none)


def _stacked(part: Any, x: Any) -> Any:
    functions = {"predict_proba": probabilities, "decision_function": decision}
    found = []
    for estimator, method in zip(part.estimators_, part.stack_method_, strict=True):
        if method == "predict" and is_classifier(estimator):
            found.append(_rows(ndx.astype(_choice(estimator, x), ndx.float64)))
        else:
            found.append(functions.get(method, predict)(estimator, x))
    return _beside([*found, x] if part.passthrough else found)


@probabilities.register(ensemble.StackingClassifier)
def _(part: ensemble.StackingClassifier, x: Any) -> Any:
    return probabilities(part.final_estimator_, _stacked(part, x))


@predict.register(ensemble.StackingRegressor)
def _(part: ensemble.StackingRegressor, x: Any) -> Any:
    return predict(part.final_estimator_, _stacked(part, x))


@probabilities.register(calibration.CalibratedClassifierCV)
def _(part: calibration.CalibratedClassifierCV, x: Any) -> Any:
    return _mean([_calibrated(each, x) for each in part.calibrated_classifiers_])


def _calibrated(part: Any, x: Any) -> Any:
    inner, classes = part.estimator, len(part.classes)
    if list(inner.classes_) != list(part.classes):
        raise ValueError("a fold of the calibration lacks a class: take fewer folds (cv)")
    by_decision = hasattr(inner, "decision_function")
    found = _wide(decision(inner, x) if by_decision else probabilities(inner, x))
    if part.method == "temperature":
        return _tempered(part.calibrators[0].beta_, found, classes, by_decision)
    given = [found] if classes == 2 else [_column(found, i) for i in range(classes)]
    odds = [_calibrator(c, p) for c, p in zip(part.calibrators, given, strict=True)]
    return odds[0] if classes == 2 else _shares(_beside(odds), classes)


def _calibrator(part: Any, x: Any) -> Any:
    if isinstance(part, isotonic.IsotonicRegression):
        inside = ndx.clip(ndx.reshape(x, (-1,)), float(part.X_min_), float(part.X_max_))
        return _rows(_interpolated(inside, part.X_thresholds_, part.y_thresholds_))
    return _sigmoid(-(x * float(part.a_) + float(part.b_)))


def _tempered(beta: float, found: Any, classes: int, by_decision: bool) -> Any:
    if classes == 2 and by_decision:
        return _sigmoid(found * float(2 * beta))
    if by_decision:
        return _softmax(found * float(beta))
    both = ndx.concat([1.0 - found, found], axis=1) if classes == 2 else found
    odds = _softmax(ndx.log(both + 1e-12) * float(beta))
    return _column(odds, 1) if classes == 2 else odds


@probabilities.register(ensemble.BaggingClassifier)
def _(part: ensemble.BaggingClassifier, x: Any) -> Any:
    found = []
    for estimator, which in zip(part.estimators_, part.estimators_features_, strict=True):
        if len(estimator.classes_) != part.n_classes_:
            raise ValueError("a bag lacks a class: take larger bags (max_samples)")
        given = _columns(x, which)
        if hasattr(estimator, "predict_proba"):
            found.append(probabilities(estimator, given))
        else:
            votes = _one_hot(_choice(estimator, given), part.n_classes_)
            found.append(_column(votes, 1) if part.n_classes_ == 2 else votes)
    return _mean(found)


def _one_hot(choice: Any, classes: int) -> Any:
    return ndx.astype(ndx.expand_dims(choice, axis=1) == ndx.asarray(np.arange(classes)), ndx.float64)


@predict.register(ensemble.BaggingRegressor)
def _(part: ensemble.BaggingRegressor, x: Any) -> Any:
    pairs = zip(part.estimators_, part.estimators_features_, strict=True)
    return _mean([predict(estimator, _columns(x, which)) for estimator, which in pairs])


@decision.register(ensemble.AdaBoostClassifier)
def _(part: ensemble.AdaBoostClassifier, x: Any) -> Any:
    classes, total = part.n_classes_, _constant(0.0)
    for estimator, weight in zip(part.estimators_, part.estimator_weights_, strict=False):  # fewer when it stopped early
        against = float(weight / (classes - 1))
        total = total + _one_hot(_choice(estimator, x), classes) * (float(weight) + against) - against
    found = total / float(part.estimator_weights_.sum())
    return found if classes > 2 else _column(found, 1) - _column(found, 0)


@probabilities.register(ensemble.AdaBoostClassifier)
def _(part: ensemble.AdaBoostClassifier, x: Any) -> Any:
    found = decision(part, x)
    return _sigmoid(found) if part.n_classes_ == 2 else _softmax(found / float(part.n_classes_ - 1))


@predict.register(ensemble.AdaBoostRegressor)
def _(part: ensemble.AdaBoostRegressor, x: Any) -> Any:
    found = _beside([predict(e, x) for e in part.estimators_])
    order = ndx.argsort(found, axis=1)
    weight = ndx.cumulative_sum(_taken(part.estimator_weights_, order), axis=1)
    enough = weight >= weight[:, -1:] * 0.5
    middle = ndx.expand_dims(ndx.argmax(ndx.astype(enough, ndx.int64), axis=1), axis=1)
    return ndx.take_along_axis(found, ndx.take_along_axis(order, middle, axis=1), axis=1)


@probabilities.register(multiclass.OneVsRestClassifier)
def _(part: multiclass.OneVsRestClassifier, x: Any) -> Any:
    found = _beside([probabilities(e, x) for e in part.estimators_])
    if len(part.estimators_) == 1:
        return found
    total = ndx.sum(found, axis=1, keepdims=True)
    return found / ndx.where(total == 0, 1.0, total)


@predict.register(multioutput.MultiOutputRegressor)
def _(part: multioutput.MultiOutputRegressor, x: Any) -> Any:
    return _beside([predict(e, x) for e in part.estimators_])


@predict.register(multioutput.RegressorChain)
def _(part: multioutput.RegressorChain, x: Any) -> Any:
    found: list[Any] = []
    for estimator in part.estimators_:
        found.append(predict(estimator, _beside([x, *found])))
    return _beside([found[i] for i in np.argsort(part.order_)])


@predict.register(compose.TransformedTargetRegressor)
def _(part: compose.TransformedTargetRegressor, x: Any) -> Any:
    return _back(part.transformer_, _wide(predict(part.regressor_, x)))


def _back(part: Any, y: Any) -> Any:
    """A target before it was transformed."""
    if isinstance(part, preprocessing.FunctionTransformer):
        inverse = part.inverse_func
        names = {
            np.expm1: ndx.expm1,
            np.exp: ndx.exp,
            np.square: ndx.square,
            np.sqrt: ndx.sqrt,
            np.log1p: ndx.log1p,
            np.log: ndx.log,
        }
        if inverse is None:
            return y
        if inverse not in names:
            raise ValueError(
                f"inverse_func {inverse} is Python code: take one of {', '.join(f'np.{f.__name__}' for f in names)}"
            )
        return names[inverse](y)
    if isinstance(part, preprocessing.StandardScaler | preprocessing.MaxAbsScaler | preprocessing.RobustScaler):
        scale, middle = _scaling(part)
        return y * _constant(1.0 if scale is None else scale) + _constant(0.0 if middle is None else middle)
    if isinstance(part, preprocessing.MinMaxScaler):
        return (y - _constant(part.min_)) / _constant(part.scale_)
    raise ValueError(f"the inverse of {type(part).__name__} has no form of its own: take a scaler, or func and inverse_func")


# --- transformers ----------------------------------------------------------------------------------------------------


def _scaling(part: Any) -> tuple[Array | None, Array | None]:
    """What a scaler divides by, and subtracts before."""
    if isinstance(part, preprocessing.StandardScaler):
        return (part.scale_ if part.with_std else None), (part.mean_ if part.with_mean else None)
    if isinstance(part, preprocessing.RobustScaler):
        return (part.scale_ if part.with_scaling else None), (part.center_ if part.with_centering else None)
    return part.scale_, None


@transform.register(preprocessing.StandardScaler)
@transform.register(preprocessing.RobustScaler)
@transform.register(preprocessing.MaxAbsScaler)
def _(part: Any, x: Any) -> Any:
    scale, middle = _scaling(part)
    x = _wide(x) if middle is None else _wide(x) - _constant(middle)
    x = x if scale is None else x / _constant(scale)
    return ndx.clip(x, -1.0, 1.0) if getattr(part, "clip", False) else x


@transform.register(preprocessing.MinMaxScaler)
def _(part: preprocessing.MinMaxScaler, x: Any) -> Any:
    x = _wide(x) * _constant(part.scale_) + _constant(part.min_)
    return ndx.clip(x, float(part.feature_range[0]), float(part.feature_range[1])) if part.clip else x


@transform.register(preprocessing.FunctionTransformer)
def _(part: preprocessing.FunctionTransformer, x: Any) -> Any:
    if part.func is not None:
        raise ValueError("a FunctionTransformer is Python code: write it in `features` instead")
    return x


def _is_missing(x: Any, missing: Any) -> Any:
    return ndx.isnan(x) if missing is None or np.isnan(missing) else x == float(missing)


@transform.register(impute.SimpleImputer)
def _(part: impute.SimpleImputer, x: Any) -> Any:
    missing = _is_missing(x, part.missing_values)
    values = np.asarray(part.statistics_, dtype=np.float64)
    kept = np.arange(len(values)) if part.keep_empty_features else np.flatnonzero(~np.isnan(values))
    filled = ndx.where(missing, _constant(np.nan_to_num(values, nan=0.0)), _wide(x))
    blocks = [filled if len(kept) == len(values) else _columns(filled, kept)]
    if part.indicator_ is not None and len(part.indicator_.features_):
        blocks.append(_columns(ndx.astype(missing, ndx.float64), part.indicator_.features_))
    return _beside(blocks)


@transform.register(impute.KNNImputer)
def _(_part: impute.KNNImputer, _x: Any) -> Any:
    raise ValueError("KNNImputer has no form in ONNX that is right for every row: take a SimpleImputer")


@transform.register(impute.MissingIndicator)
def _(part: impute.MissingIndicator, x: Any) -> Any:
    return _columns(ndx.astype(_is_missing(x, part.missing_values), ndx.float64), part.features_)


@transform.register(decomposition.PCA)
@transform.register(decomposition.IncrementalPCA)
def _(part: Any, x: Any) -> Any:
    x = _times(x, part.components_.T) - _constant(part.mean_ @ part.components_.T)
    spread = np.sqrt(part.explained_variance_)
    return x / _constant(np.maximum(spread, np.finfo(spread.dtype).eps)) if part.whiten else x


@transform.register(decomposition.TruncatedSVD)
def _(part: decomposition.TruncatedSVD, x: Any) -> Any:
    return _times(x, part.components_.T)


@transform.register(discriminant_analysis.LinearDiscriminantAnalysis)
def _(part: discriminant_analysis.LinearDiscriminantAnalysis, x: Any) -> Any:
    x = _wide(x) - _constant(part.xbar_) if part.solver == "svd" else x
    return _times(x, part.scalings_[:, : part._max_components])


@transform.register(preprocessing.PolynomialFeatures)
def _(part: preprocessing.PolynomialFeatures, x: Any) -> Any:
    width = part.n_features_in_
    factors = [np.repeat(np.arange(width), powers) for powers in part.powers_]
    most = max(1, *(len(f) for f in factors))
    padded = np.array([[*f, *[width] * (most - len(f))] for f in factors])  # the column behind the last is 1
    x = _beside([x, _same(_wide(x), [1.0])])
    product = _columns(x, padded[:, 0])
    for which in padded.T[1:]:
        product = product * _columns(x, which)
    return product


@transform.register(preprocessing.Binarizer)
def _(part: preprocessing.Binarizer, x: Any) -> Any:
    return ndx.astype(_wide(x) > float(part.threshold), ndx.float64)


@transform.register(preprocessing.KBinsDiscretizer)
def _(part: preprocessing.KBinsDiscretizer, x: Any) -> Any:
    within = [np.asarray(edges)[1:-1] for edges in part.bin_edges_]
    padded = np.full((len(within), max(1, *(len(w) for w in within))), np.nan)
    for row, edges in zip(padded, within, strict=True):
        row[: len(edges)] = edges
    above = ndx.expand_dims(_wide(x), axis=2) >= ndx.asarray(padded[None])
    bins = ndx.astype(ndx.sum(ndx.astype(above, ndx.int64), axis=2), ndx.float64)
    if "onehot" not in part.encode:
        return bins
    counts = [len(w) + 1 for w in within]
    words = np.concatenate([np.arange(count) for count in counts])
    return ndx.astype(_columns(bins, np.repeat(np.arange(len(counts)), counts)) == _constant(words), ndx.float64)


def _categories(part: Any) -> list[Array]:
    if part.min_frequency is not None or part.max_categories is not None:
        raise ValueError(f"{type(part).__name__} with min_frequency or max_categories has no form of its own: leave them off")
    return [np.asarray(words, dtype=np.float64) for words in part.categories_]


def _equals(x: Any, words: Array) -> Any:
    """Which of the words each number is, bool [N, W]; NaN is a word too."""
    same = x == _constant(words)[None, :]
    return same | (ndx.isnan(x) & ndx.asarray(np.isnan(words))[None, :])


@transform.register(preprocessing.OneHotEncoder)
def _(part: preprocessing.OneHotEncoder, x: Any) -> Any:
    drop, words = part.drop_idx_, _categories(part)
    kept = [[j for j in range(len(w)) if drop is None or drop[i] != j] for i, w in enumerate(words)]
    which = np.repeat(np.arange(len(words)), [len(k) for k in kept])
    wanted = np.concatenate([w[k] for w, k in zip(words, kept, strict=True)])
    return ndx.astype(_equals(_columns(_wide(x), which), wanted), ndx.float64)


@transform.register(preprocessing.OrdinalEncoder)
def _(part: preprocessing.OrdinalEncoder, x: Any) -> Any:
    x = _wide(x)
    blocks = []
    for i, words in enumerate(_categories(part)):
        codes = np.where(np.isnan(words), float(part.encoded_missing_value), np.arange(len(words)))
        hit = _equals(_column(x, i), words)
        found = ndx.sum(ndx.where(hit, _constant(codes)[None, :], 0.0), axis=1, keepdims=True)
        if part.unknown_value is not None:
            found = ndx.where(ndx.any(hit, axis=1, keepdims=True), found, float(part.unknown_value))
        blocks.append(found)
    return _beside(blocks)


@transform.register(preprocessing.PowerTransformer)
def _(part: preprocessing.PowerTransformer, x: Any) -> Any:
    x, powers = _wide(x), np.asarray(part.lambdas_)
    x = _to_power(ndx.log(x), powers) if part.method == "box-cox" else _yeo_johnson(x, powers)
    return transform(part._scaler, x) if part.standardize else x


def _yeo_johnson(x: Any, powers: Array) -> Any:
    """Yeo & Johnson 2000, A new family of power transformations."""
    up, down = ndx.log1p(ndx.where(x >= 0, x, 0.0)), ndx.log1p(ndx.where(x >= 0, 0.0, -x))
    return ndx.where(ndx.isnan(x), x, ndx.where(x >= 0, _to_power(up, powers), -_to_power(down, 2 - powers)))


def _to_power(log: Any, powers: Array) -> Any:
    """(exp(power * log) - 1) / power by column, which is log where the power is 0."""
    none = np.abs(powers) < np.spacing(1.0)
    safe = np.where(none, 1.0, powers)
    return ndx.where(ndx.asarray(none[None, :]), log, ndx.expm1(log * _constant(safe)) / _constant(safe))


@transform.register(preprocessing.QuantileTransformer)
def _(part: preprocessing.QuantileTransformer, x: Any) -> Any:
    if part.output_distribution != "uniform":
        raise ValueError("QuantileTransformer to a normal distribution has no form in ONNX: take output_distribution='uniform'")
    x = _wide(x)
    return _beside([_quantiles(_column(x, i), part.quantiles_[:, i], part.references_) for i in range(part.n_features_in_)])


def _quantiles(x: Any, quantiles: Array, references: Array) -> Any:
    low, high = float(quantiles[0]), float(quantiles[-1])
    inside = ndx.clip(x, low, high)
    flat = ndx.reshape(inside, (-1,))
    up = _interpolated(flat, quantiles, references)
    down = -_interpolated(-flat, -quantiles[::-1], -references[::-1])
    middle = _rows((up + down) * 0.5)
    found = ndx.where(x <= low, 0.0, ndx.where(x >= high, 1.0, middle))
    return ndx.where(ndx.isnan(x), x, found)


# --- linear models, neural networks, kernels -------------------------------------------------------------------------


def _linear(part: Any, x: Any) -> Any:
    coefficients = np.atleast_2d(part.coef_)
    intercept = np.broadcast_to(np.asarray(part.intercept_, dtype=np.float64).ravel(), len(coefficients))
    return _times(x, coefficients.T) + _constant(intercept)


decision.register(linear_base.LinearClassifierMixin, _linear)
predict.register(linear_base.LinearModel, _linear)
predict.register(linear_model.SGDRegressor, _linear)
predict.register(svm.LinearSVR, _linear)


@predict.register(linear_model.TweedieRegressor)
@predict.register(linear_model.PoissonRegressor)
@predict.register(linear_model.GammaRegressor)
def _(part: Any, x: Any) -> Any:
    found = _linear(part, x)
    return ndx.exp(found) if "Log" in type(part._base_loss.link).__name__ else found


@probabilities.register(linear_model.LogisticRegression)
@probabilities.register(linear_model.LogisticRegressionCV)
@probabilities.register(discriminant_analysis.LinearDiscriminantAnalysis)
def _(part: Any, x: Any) -> Any:
    found = _linear(part, x)
    return _sigmoid(found) if len(part.classes_) == 2 else _softmax(found)


@probabilities.register(linear_model.SGDClassifier)
def _(part: linear_model.SGDClassifier, x: Any) -> Any:
    found = _linear(part, x)
    odds = _sigmoid(found) if part.loss == "log_loss" else (ndx.clip(found, -1.0, 1.0) + 1.0) / 2.0
    return odds if len(part.classes_) == 2 else _shares(odds, len(part.classes_))


def _network(part: Any, x: Any) -> Any:
    x = _wide(x)
    for i, (weights, intercept) in enumerate(zip(part.coefs_, part.intercepts_, strict=True)):
        x = _times(x, weights) + _constant(intercept)
        kind = part.activation if i < part.n_layers_ - 2 else part.out_activation_
        if kind != "identity":
            x = {"relu": lambda a: ndx.clip(a, min=0.0), "tanh": ndx.tanh, "logistic": _sigmoid, "softmax": _softmax}[kind](x)
    return x


probabilities.register(neural_network.MLPClassifier, _network)
predict.register(neural_network.MLPRegressor, _network)


def _kernel(part: Any, x: Any) -> Any:
    """Libsvm's machines: the weighted kernel of the support vectors."""
    kind = part.kernel
    if kind not in ("rbf", "poly", "sigmoid", "linear"):
        raise ValueError(f"the kernel of {type(part).__name__} is Python code: take rbf, poly, sigmoid or linear")
    x, vectors, gamma = _wide(x), np.asarray(part.support_vectors_, dtype=np.float64), float(part._gamma)
    near = _times(x, vectors.T)
    if kind == "rbf":
        squares = ndx.sum(x * x, axis=1, keepdims=True) + _constant((vectors**2).sum(axis=1))
        near = ndx.exp((squares - near * 2.0) * -gamma)
    elif kind == "poly":
        near = (near * gamma + float(part.coef0)) ** float(part.degree)
    elif kind == "sigmoid":
        near = ndx.tanh(near * gamma + float(part.coef0))
    return _times(near, part.dual_coef_.T) + _constant(part.intercept_)


predict.register(svm.SVR, _kernel)
predict.register(svm.NuSVR, _kernel)
decision.register(svm.OneClassSVM, _kernel)


@decision.register(svm.SVC)
@decision.register(svm.NuSVC)
def _(part: Any, x: Any) -> Any:
    if len(part.classes_) > 2:
        raise ValueError(f"{type(part).__name__} of several classes has no form of its own: put each in a OneVsRestClassifier")
    return _kernel(part, x)


@probabilities.register(svm.SVC)
@probabilities.register(svm.NuSVC)
def _(part: Any, _x: Any) -> Any:
    raise ValueError(f"{type(part).__name__}(probability=True) is not exact: put it in a CalibratedClassifierCV")


@decision.register(linear_model.SGDOneClassSVM)
def _(part: linear_model.SGDOneClassSVM, x: Any) -> Any:
    return _times(x, np.reshape(part.coef_, (-1, 1))) - float(np.ravel(part.offset_)[0])


@decision.register(covariance.EllipticEnvelope)
def _(part: covariance.EllipticEnvelope, x: Any) -> Any:
    away = _wide(x) - _constant(part.location_)
    far = ndx.sum(_times(away, part.get_precision()) * away, axis=1, keepdims=True)
    return -far - float(part.offset_)


@probabilities.register(dummy.DummyClassifier)
def _(part: dummy.DummyClassifier, x: Any) -> Any:
    if part._strategy in ("stratified", "uniform"):
        raise ValueError(f"a DummyClassifier that is {part._strategy} draws lots: take prior or most_frequent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = part.predict_proba(np.zeros((1, 1)))[0]
    return _same(_wide(x), row[1:] if len(row) == 2 else row)


@predict.register(dummy.DummyRegressor)
def _(part: dummy.DummyRegressor, x: Any) -> Any:
    return _same(_wide(x), np.ravel(part.constant_))


def _module(part: Any, x: Any) -> Any:
    given = _float32(x) if part.single_ else _wide(x)
    return _wide(ndx.asarray(next(iter(spox.inline(part.to_onnx())(x=given.unwrap_spox()).values()))))


@probabilities.register(TorchClassifier)
def _(part: TorchClassifier, x: Any) -> Any:
    odds = _softmax(_module(part, x))
    return _column(odds, 1) if len(part.classes_) == 2 else odds


@predict.register(TorchRegressor)
def _(part: TorchRegressor, x: Any) -> Any:
    return _module(part, x) * _constant(part.scale_) + _constant(part.mean_)


# --- trees -----------------------------------------------------------------------------------------------------------


def quick(part: Any, x: Any) -> Any | None:
    """Probabilities that are nothing but trees over the float32 matrix: float32, in one or two nodes. None for all else."""
    model = trees.read(part) if is_classifier(part) and x.dtype == ndx.float32 else None
    if model is None or model.categorical:
        return None
    return _linked(model, trees.ensemble(model.trees, x, model.base, model.less, exact=False))


def _summed(model: trees.Model, x: Any) -> Any:
    x = _float32(x) if model.single else x
    if model.categorical:
        count = max(model.categorical) + 1
        cut = [ndx.trunc(_column(x, i)) if i in model.categorical else _column(x, i) for i in range(count)]
        x = ndx.concat([*cut, x[:, count:]], axis=1)
    return trees.ensemble(model.trees, x, model.base, model.less, exact=not model.in_turn)


def _linked(model: trees.Model, found: Any) -> Any:
    links: dict[str, Any] = {"LOGISTIC": _sigmoid, "SOFTMAX": _softmax, "EXP": ndx.exp, "SQUARE": lambda y: ndx.sign(y) * y * y}
    found = found * model.factor if model.factor != 1.0 else found
    return links[model.link](found) if model.link in links else found


@decision.register(ensemble.IsolationForest)
def _(part: ensemble.IsolationForest, x: Any) -> Any:
    made = [
        trees.of_sklearn(one, (steps + rest - 1.0)[:, None], features=which)
        for one, which, steps, rest in zip(
            part.estimators_,
            part.estimators_features_,
            part._decision_path_lengths,
            part._average_path_length_per_tree,
            strict=True,
        )
    ]
    usual = float(_average_path_length(np.array([part._max_samples]))[0]) * len(part.estimators_)
    depth = trees.ensemble(made, _float32(x), np.zeros(1), exact=True)
    return -ndx.exp(depth * (-np.log(2.0) / usual)) - float(part.offset_)
