"""Exact conversion of fitted estimators to ONNX; unsupported estimators are refused before any time is spent on fitting.

The functions for each kind of estimator are in `estimators`. `rehearsal` finds the faults that only a
real conversion shows.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import ndonnx as ndx
import onnx
from sklearn.base import clone, is_classifier, is_clusterer, is_outlier_detector
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from loopwright.base.errors import ConversionRefused, DeclarationInvalid, message_of
from loopwright.develop.fit import Several, at_quantile, last
from loopwright.develop.onnx import estimators
from loopwright.develop.onnx.ahead import optimised
from loopwright.develop.onnx.estimators.ensemble import older
from loopwright.develop.output import Goal
from loopwright.tasks.registry import TASKS

_LIBRARIES = ("sklearn", "lightgbm", "xgboost", "loopwright")


def refuse_inconvertible(candidate: str, estimator: Any, goal: Goal) -> None:
    """Refuse an unfitted estimator that does not suit the goal, or of which a part cannot become a graph.

    Raises ConversionRefused naming the part.
    """
    if not hasattr(estimator, "fit"):
        raise ConversionRefused(
            candidate, f"the estimator function returned {type(estimator).__name__}, which cannot be fitted"
        )
    if why := _unsuited(estimator, goal):
        raise ConversionRefused(candidate, f"{type(last(estimator)).__name__} {why}")
    for name, part in _parts(estimator):
        if isinstance(part, FunctionTransformer) and part.func is not None:
            raise ConversionRefused(
                candidate, f"part {name!r} is Python code (FunctionTransformer): write it in `features` instead"
            )
        kind = type(part)
        ours = kind.__module__.split(".")[0] in _LIBRARIES and estimators.known(kind)
        if not ours and not estimators.converts(kind):
            raise ConversionRefused(candidate, f"part {name!r} ({kind.__name__}) has no converter to ONNX")


def _unsuited(estimator: Any, goal: Goal) -> str:
    wanted = TASKS[goal.output.task].estimator
    if wanted == "classifier":
        if hasattr(estimator, "predict_proba") or isinstance(last(estimator), StackingClassifier):  # it knows only when fitted
            return ""
        return "has no predict_proba: a score between 0 and 1 is needed (put a classifier in a CalibratedClassifierCV)"
    if wanted == "detector":
        suits = is_outlier_detector(estimator) and hasattr(estimator, "decision_function")
        return (
            ""
            if suits
            else "is no outlier detector: {goal.output.task} wants decision_function, of IsolationForest for instance"
        )
    other = is_classifier(estimator) or is_outlier_detector(estimator) or is_clusterer(estimator)
    if other or not (hasattr(estimator, "predict") or isinstance(last(estimator), StackingRegressor)):
        return f"is no regressor: {goal.output.task} predicts numbers"
    if goal.quantiles:
        try:
            at_quantile(clone(estimator), goal.quantiles[0])
        except DeclarationInvalid as error:
            return str(error)
    return ""


def _parts(estimator: Any) -> Iterator[tuple[str, Any]]:
    """An unfitted estimator and every estimator inside it, by their parameter names."""
    yield "estimator", estimator
    for name, part in estimator.get_params(deep=True).items():
        if hasattr(part, "fit") and not isinstance(part, type):
            yield name, part


def convert(candidate: str, estimator: Any, width: int, goal: Goal, *, exact: bool = False) -> onnx.ModelProto:
    """Convert a fitted estimator over `width` columns to ONNX: input `matrix` float32 [N, width], output `raw` [N, K] as `goal` defines.

    Sums of trees that give probabilities are float32, unless `exact`. Raises ConversionRefused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = _built(estimator, width, goal, exact=exact)
            except onnx.checker.ValidationError:  # both operators for trees in one graph
                with older():
                    model = _built(estimator, width, goal, exact=exact)
            return optimised(model)
    except Exception as error:  # the libraries raise many kinds
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConversionRefused(candidate, f"{kind}{' '.join(message_of(error).split())[:400]}") from error


def _built(estimator: Any, width: int, goal: Goal, *, exact: bool) -> onnx.ModelProto:
    matrix = ndx.argument(shape=("N", width), dtype=ndx.float32)
    model: onnx.ModelProto = ndx.build({"matrix": matrix}, {"raw": _raw(estimator, matrix, goal, exact=exact)})
    return model


def _raw(estimator: Any, x: Any, goal: Goal, *, exact: bool) -> Any:
    if isinstance(estimator, Several):
        return ndx.concat([ndx.astype(estimators.predict(e, x), ndx.float64) for e in estimator.estimators], axis=1)
    if TASKS[goal.output.task].estimator == "detector":
        return -estimators.decision(estimator, x)
    if not goal.output.shape.is_probability:
        return estimators.predict(estimator, x)
    wanted = len(goal.output.classes) if goal.output.shape.has_classes else 2
    if len(estimator.classes_) != wanted:
        raise ValueError(f"the training rows have {len(estimator.classes_)} of {wanted} classes")
    while isinstance(estimator, Pipeline):
        estimator, x = estimator.steps[-1][1], estimators.before(estimator, x)
    found = None if exact else estimators.quick(estimator, x)
    found = estimators.probabilities(estimator, x) if found is None else found
    two_named = wanted == 2 and bool(goal.output.classes)  # of two classes a part gives the second alone
    return ndx.concat([1.0 - found, found], axis=1) if two_named else found
