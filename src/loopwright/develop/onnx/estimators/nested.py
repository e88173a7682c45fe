"""Estimators that hold others: pipelines, columns, votes, stacks, calibrations, bags, chains."""

from typing import Any

import ndonnx as ndx
import numpy as np
from sklearn import (
    calibration,
    compose,
    ensemble,
    isotonic,
    linear_model,
    model_selection,
    multiclass,
    multioutput,
    pipeline,
    preprocessing,
    semi_supervised,
)
from sklearn.base import is_classifier

from loopwright.base.internals import internal
from loopwright.develop.onnx.estimators.arithmetic import (
    column,
    columns,
    constant,
    interpolated,
    mean,
    one_hot,
    rows,
    shares,
    side_by_side,
    sigmoid,
    softmax,
    taken,
    wide,
)
from loopwright.develop.onnx.estimators.dispatch import FUNCTIONS, choice, decision, predict, probabilities, transform
from loopwright.develop.onnx.estimators.transformers import scaling


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
    """The input of the last step of a pipeline."""
    for _, step in part.steps[:-1]:
        x = applied(step, x)
    return x


@transform.register(pipeline.Pipeline)
def _(part: pipeline.Pipeline, x: Any) -> Any:
    return applied(part.steps[-1][1], before(part, x))


for _function in (probabilities, decision, predict):
    _function.register(pipeline.Pipeline, lambda part, x, function=_function: function(part.steps[-1][1], before(part, x)))


def applied(step: Any, x: Any) -> Any:
    """Apply a step of a pipeline to x; `passthrough` and None return it unchanged."""
    return x if step is None or isinstance(step, str) else transform(step, x)


@transform.register(compose.ColumnTransformer)
def _(part: compose.ColumnTransformer, x: Any) -> Any:
    weights = part.transformer_weights or {}
    blocks = []
    for name, step, _ in part.transformers_:
        which = internal(part, "_transformer_to_input_indices")[name]
        if len(which) and not (isinstance(step, str) and step == "drop"):
            block = applied(step, columns(x, which))
            blocks.append(wide(block) * weights[name] if name in weights else block)
    return side_by_side(blocks)


@transform.register(pipeline.FeatureUnion)
def _(part: pipeline.FeatureUnion, x: Any) -> Any:
    weights = part.transformer_weights or {}
    blocks = [(name, applied(step, x)) for name, step in part.transformer_list if step != "drop"]
    return side_by_side([wide(block) * weights[name] if name in weights else block for name, block in blocks])


def voting_weights(part: Any) -> list[float] | None:
    """The weights of the estimators of a vote that are not dropped; None if all weights are equal."""
    if part.weights is None:
        return None
    return [float(weight) for (_, each), weight in zip(part.estimators, part.weights, strict=True) if each != "drop"]


@probabilities.register(ensemble.VotingClassifier)
def _(part: ensemble.VotingClassifier, x: Any) -> Any:
    return mean([probabilities(e, x) for e in part.estimators_], voting_weights(part))


@predict.register(ensemble.VotingRegressor)
def _(part: ensemble.VotingRegressor, x: Any) -> Any:
    return mean([predict(e, x) for e in part.estimators_], voting_weights(part))


def _stacked(part: Any, x: Any) -> Any:
    functions = {"predict_proba": probabilities, "decision_function": decision}
    found = []
    for estimator, method in zip(part.estimators_, part.stack_method_, strict=True):
        if method == "predict" and is_classifier(estimator):
            found.append(rows(ndx.astype(choice(estimator, x), ndx.float64)))
        else:
            found.append(functions.get(method, predict)(estimator, x))
    return side_by_side([*found, x] if part.passthrough else found)


@probabilities.register(ensemble.StackingClassifier)
def _(part: ensemble.StackingClassifier, x: Any) -> Any:
    return probabilities(part.final_estimator_, _stacked(part, x))


@predict.register(ensemble.StackingRegressor)
def _(part: ensemble.StackingRegressor, x: Any) -> Any:
    return predict(part.final_estimator_, _stacked(part, x))


@probabilities.register(calibration.CalibratedClassifierCV)
def _(part: calibration.CalibratedClassifierCV, x: Any) -> Any:
    return mean([_calibrated(each, x) for each in part.calibrated_classifiers_])


def _calibrated(part: Any, x: Any) -> Any:
    inner, classes = part.estimator, len(part.classes)
    if list(inner.classes_) != list(part.classes):
        raise ValueError("a fold of the calibration lacks a class: take fewer folds (cv)")
    by_decision = hasattr(inner, "decision_function")
    found = wide(decision(inner, x) if by_decision else probabilities(inner, x))
    if part.method == "temperature":
        return _tempered(part.calibrators[0].beta_, found, classes, by_decision)
    given = [found] if classes == 2 else [column(found, i) for i in range(classes)]
    odds = [_calibrator(c, p) for c, p in zip(part.calibrators, given, strict=True)]
    return odds[0] if classes == 2 else shares(side_by_side(odds), classes)


def _calibrator(part: Any, x: Any) -> Any:
    if isinstance(part, isotonic.IsotonicRegression):
        inside = ndx.clip(ndx.reshape(x, (-1,)), float(part.X_min_), float(part.X_max_))
        return rows(interpolated(inside, part.X_thresholds_, part.y_thresholds_))
    return sigmoid(-(x * float(part.a_) + float(part.b_)))


def _tempered(beta: float, scores: Any, classes: int, by_decision: bool) -> Any:
    if classes == 2 and by_decision:
        return sigmoid(scores * float(2 * beta))
    if by_decision:
        return softmax(scores * float(beta))
    both = ndx.concat([1.0 - scores, scores], axis=1) if classes == 2 else scores
    odds = softmax(ndx.log(both + 1e-12) * float(beta))
    return column(odds, 1) if classes == 2 else odds


@probabilities.register(ensemble.BaggingClassifier)
def _(part: ensemble.BaggingClassifier, x: Any) -> Any:
    found = []
    for estimator, which in zip(part.estimators_, part.estimators_features_, strict=True):
        if len(estimator.classes_) != part.n_classes_:
            raise ValueError("a bag lacks a class: take larger bags (max_samples)")
        given = columns(x, which)
        if hasattr(estimator, "predict_proba"):
            found.append(probabilities(estimator, given))
        else:
            votes = one_hot(choice(estimator, given), part.n_classes_)
            found.append(column(votes, 1) if part.n_classes_ == 2 else votes)
    return mean(found)


@predict.register(ensemble.BaggingRegressor)
def _(part: ensemble.BaggingRegressor, x: Any) -> Any:
    pairs = zip(part.estimators_, part.estimators_features_, strict=True)
    return mean([predict(estimator, columns(x, which)) for estimator, which in pairs])


@decision.register(ensemble.AdaBoostClassifier)
def _(part: ensemble.AdaBoostClassifier, x: Any) -> Any:
    classes, total = part.n_classes_, constant(0.0)
    for estimator, weight in zip(part.estimators_, part.estimator_weights_, strict=False):  # fewer when it stopped early
        against = float(weight / (classes - 1))
        total = total + one_hot(choice(estimator, x), classes) * (float(weight) + against) - against
    found = total / float(part.estimator_weights_.sum())
    return found if classes > 2 else column(found, 1) - column(found, 0)


@probabilities.register(ensemble.AdaBoostClassifier)
def _(part: ensemble.AdaBoostClassifier, x: Any) -> Any:
    found = decision(part, x)
    return sigmoid(found) if part.n_classes_ == 2 else softmax(found / float(part.n_classes_ - 1))


@predict.register(ensemble.AdaBoostRegressor)
def _(part: ensemble.AdaBoostRegressor, x: Any) -> Any:
    found = side_by_side([predict(e, x) for e in part.estimators_])
    order = ndx.argsort(found, axis=1)
    weight = ndx.cumulative_sum(taken(part.estimator_weights_, order), axis=1)
    enough = weight >= weight[:, -1:] * 0.5
    middle = ndx.expand_dims(ndx.argmax(ndx.astype(enough, ndx.int64), axis=1), axis=1)
    return ndx.take_along_axis(found, ndx.take_along_axis(order, middle, axis=1), axis=1)


@probabilities.register(multiclass.OneVsRestClassifier)
def _(part: multiclass.OneVsRestClassifier, x: Any) -> Any:
    found = side_by_side([probabilities(e, x) for e in part.estimators_])
    if len(part.estimators_) == 1:
        return found
    total = ndx.sum(found, axis=1, keepdims=True)
    return found / ndx.where(total == 0, 1.0, total)


@predict.register(multioutput.MultiOutputRegressor)
def _(part: multioutput.MultiOutputRegressor, x: Any) -> Any:
    return side_by_side([predict(e, x) for e in part.estimators_])


@predict.register(multioutput.RegressorChain)
def _(part: multioutput.RegressorChain, x: Any) -> Any:
    found: list[Any] = []
    for estimator in part.estimators_:
        found.append(predict(estimator, side_by_side([x, *found])))
    return side_by_side([found[i] for i in np.argsort(part.order_)])


@predict.register(compose.TransformedTargetRegressor)
def _(part: compose.TransformedTargetRegressor, x: Any) -> Any:
    return _back(part.transformer_, wide(predict(part.regressor_, x)))


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
        scale, middle = scaling(part)
        return y * constant(1.0 if scale is None else scale) + constant(0.0 if middle is None else middle)
    if isinstance(part, preprocessing.MinMaxScaler):
        return (y - constant(part.min_)) / constant(part.scale_)
    raise ValueError(
        f"the inverse of {type(part).__name__} cannot be converted to ONNX: use a scaler, or func and inverse_func"
    )
