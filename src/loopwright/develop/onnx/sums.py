"""Fitted estimators as sums: trees and linear models over columns of one feature each, or the reason why an estimator is not a sum."""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

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
from loopwright.develop.onnx.estimators.arithmetic import columns
from loopwright.develop.onnx.estimators.linear import GENERALISED, LINEAR_CLASSIFIERS, LINEAR_REGRESSORS, logarithmic
from loopwright.develop.onnx.estimators.nested import applied, voting_weights

UNITS = {"LOGISTIC": "log-odds", "SOFTMAX": "margin", "EXP": "logarithm", "SQUARE": "signed square root"}


class PartColumns(NamedTuple):
    """The input columns of a part [N, G]: their computation from the features, and the feature of each."""

    x: Any
    origin: Array
    plain: bool = False  # the features as they are, float32


class Term(NamedTuple):
    """Something that adds: a model of trees or lines over columns, times `scale`, to the outputs from `target` on."""

    seen: PartColumns
    model: "trees.Model | LinearModel"
    scale: float = 1.0
    target: int = 0


class LinearModel(NamedTuple):
    """A linear model: coefficients [K, G] and intercepts [K]."""

    coefficients: Array
    intercept: Array


class Sum(NamedTuple):
    """Terms, number of outputs, link of the sums (see `Explanation.link`), and the unit if it is not one of `UNITS`."""

    terms: list[Term]
    outputs: int
    link: str
    unit: str = ""


@singledispatch
def sum_of(part: Any, seen: PartColumns) -> Sum:
    """A fitted part as a sum. Raises ValueError if it is not one."""
    model = trees.read(part)
    if model is None:
        raise ValueError(f"{type(part).__name__} has no exact explanation: trees and linear models have one")
    return Sum([Term(seen, model)], len(model.base), model.link)


@sum_of.register
def _(part: Several, seen: PartColumns) -> Sum:
    return _stacked([sum_of(each, seen) for each in part.estimators])


@sum_of.register
def _(part: multioutput.MultiOutputRegressor, seen: PartColumns) -> Sum:
    return _stacked([sum_of(each, seen) for each in part.estimators_])


@sum_of.register
def _(part: multiclass.OneVsRestClassifier, seen: PartColumns) -> Sum:
    found = _stacked([sum_of(each, seen) for each in part.estimators_])
    return (
        found
        if found.outputs == 1
        else found._replace(link="", unit=f"{UNITS.get(found.link, 'probability')} of the class alone")
    )


def _stacked(sums: Sequence[Sum]) -> Sum:
    """Sums for one output each."""
    if any(s.outputs != 1 for s in sums) or len({(s.link, s.unit) for s in sums}) != 1:
        raise ValueError("outputs of several kinds have no explanation in common")
    terms = [t._replace(target=k) for k, s in enumerate(sums) for t in s.terms]
    return Sum(terms, len(sums), sums[0].link, sums[0].unit)


@sum_of.register
def _(part: pipeline.Pipeline, seen: PartColumns) -> Sum:
    for _, step in part.steps[:-1]:
        seen = _through(step, seen)
    return sum_of(part.steps[-1][1], seen)


@sum_of.register(model_selection.GridSearchCV)
@sum_of.register(model_selection.RandomizedSearchCV)
def _(part: Any, seen: PartColumns) -> Sum:
    return sum_of(part.best_estimator_, seen)


@sum_of.register(model_selection.FixedThresholdClassifier)
@sum_of.register(model_selection.TunedThresholdClassifierCV)
@sum_of.register(linear_model.RANSACRegressor)
@sum_of.register(semi_supervised.SelfTrainingClassifier)
def _(part: Any, seen: PartColumns) -> Sum:
    return sum_of(part.estimator_, seen)


@sum_of.register
def _(part: calibration.CalibratedClassifierCV, seen: PartColumns) -> Sum:
    if len(part.calibrated_classifiers_) > 1:
        raise ValueError(
            "the mean of several calibrated models has no exact explanation: CalibratedClassifierCV(ensemble=False) has"
        )
    found = sum_of(part.calibrated_classifiers_[0].estimator, seen)
    unit = found.unit or UNITS.get(found.link) or "probability"
    return found._replace(link="", unit=f"{unit} before calibration")


@sum_of.register
def _(part: compose.TransformedTargetRegressor, seen: PartColumns) -> Sum:
    found = sum_of(part.regressor_, seen)
    return found._replace(link="", unit="number as the target was transformed")


@sum_of.register(ensemble.VotingClassifier)
@sum_of.register(ensemble.VotingRegressor)
def _(part: Any, seen: PartColumns) -> Sum:
    weights = voting_weights(part)
    return _mean(
        [sum_of(each, seen) for each in part.estimators_], np.ones(len(part.estimators_)) if weights is None else weights
    )


@sum_of.register(ensemble.BaggingClassifier)
@sum_of.register(ensemble.BaggingRegressor)
def _(part: Any, seen: PartColumns) -> Sum:
    whole = np.arange(part.n_features_in_)
    found = [
        sum_of(each, seen if np.array_equal(which, whole) else _columns(seen, which))
        for each, which in zip(part.estimators_, part.estimators_features_, strict=True)
    ]
    return _mean(found, np.ones(len(found)))


def _mean(sums: Sequence[Sum], weights: Any) -> Sum:
    """The mean of sums, where the answers themselves add up."""
    if any(s.link != "NONE" or s.unit for s in sums):
        raise ValueError("a mean of models that do not add up in the answer itself has no exact explanation")
    shares = np.asarray(weights, dtype=np.float64) / float(np.sum(weights))
    terms = [t._replace(scale=t.scale * float(share)) for s, share in zip(sums, shares, strict=True) for t in s.terms]
    return Sum(terms, sums[0].outputs, "NONE")


@sum_of.register
def _(part: ensemble.IsolationForest, seen: PartColumns) -> Sum:
    return Sum([Term(seen, trees.of_isolation(part))], 1, "", "binary logarithm of the strangeness")


def _line(part: Any, seen: PartColumns) -> Sum:
    return _lines(part, seen, "NONE")


def _generalised(part: Any, seen: PartColumns) -> Sum:
    return _lines(part, seen, "EXP" if logarithmic(part) else "NONE")


def _margins(part: Any, seen: PartColumns) -> Sum:
    whole = isinstance(
        part,
        linear_model.LogisticRegression | linear_model.LogisticRegressionCV | discriminant_analysis.LinearDiscriminantAnalysis,
    )
    if whole or (isinstance(part, linear_model.SGDClassifier) and part.loss == "log_loss" and len(part.classes_) == 2):
        return _lines(part, seen, "LOGISTIC" if len(part.classes_) == 2 else "SOFTMAX")
    return _lines(part, seen, "")._replace(unit="margin")


for _function, _kinds in ((_line, LINEAR_REGRESSORS), (_generalised, GENERALISED), (_margins, LINEAR_CLASSIFIERS)):
    for _kind in _kinds:
        sum_of.register(_kind, _function)


def _lines(part: Any, seen: PartColumns, link: str) -> Sum:
    coefficients = np.atleast_2d(np.asarray(part.coef_, dtype=np.float64))
    intercept = np.broadcast_to(np.asarray(part.intercept_, dtype=np.float64).ravel(), len(coefficients))
    return Sum([Term(seen, LinearModel(coefficients, intercept))], len(coefficients), link)


# --- transformers of single columns --------------------------------------------------------------------------------


def _through(step: Any, seen: PartColumns) -> PartColumns:
    """The columns after a step of a pipeline."""
    if step is None or isinstance(step, str):
        return seen
    return PartColumns(applied(step, seen.x), seen.origin[_origin(step)])


def _columns(seen: PartColumns, which: Array) -> PartColumns:
    return PartColumns(columns(seen.x, which), seen.origin[np.asarray(which)])


@singledispatch
def _origin(step: Any) -> Array:
    """The source column of each column that a transformer makes. Raises ValueError if it combines several."""
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
