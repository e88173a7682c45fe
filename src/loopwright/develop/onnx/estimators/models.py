"""Linear models, neural networks, kernels, and isolation forests."""

import warnings
from typing import Any

import ndonnx as ndx
import numpy as np
import spox
from sklearn import covariance, discriminant_analysis, dummy, ensemble, linear_model, naive_bayes, neural_network, svm

from loopwright.base.internals import internal
from loopwright.develop.onnx.estimators import trees
from loopwright.develop.onnx.estimators.arithmetic import (
    column,
    constant,
    same,
    shares,
    side_by_side,
    sigmoid,
    single,
    softmax,
    taken,
    times,
    wide,
)
from loopwright.develop.onnx.estimators.dispatch import decision, predict, probabilities
from loopwright.develop.onnx.estimators.ensemble import ensemble as ensembled
from loopwright.develop.onnx.estimators.linear import GENERALISED, LINEAR_CLASSIFIERS, LINEAR_REGRESSORS, logarithmic
from loopwright.develop.onnx.estimators.network import TorchClassifier, TorchRegressor


def _linear(part: Any, x: Any) -> Any:
    coefficients = np.atleast_2d(part.coef_)
    intercept = np.broadcast_to(np.asarray(part.intercept_, dtype=np.float64).ravel(), len(coefficients))
    return times(x, coefficients.T) + constant(intercept)


for _kind in LINEAR_CLASSIFIERS:
    decision.register(_kind, _linear)
for _kind in LINEAR_REGRESSORS:
    predict.register(_kind, _linear)


def _generalised(part: Any, x: Any) -> Any:
    found = _linear(part, x)
    return ndx.exp(found) if logarithmic(part) else found


for _kind in GENERALISED:
    predict.register(_kind, _generalised)


@probabilities.register(linear_model.LogisticRegression)
@probabilities.register(linear_model.LogisticRegressionCV)
@probabilities.register(discriminant_analysis.LinearDiscriminantAnalysis)
def _(part: Any, x: Any) -> Any:
    found = _linear(part, x)
    return sigmoid(found) if len(part.classes_) == 2 else softmax(found)


@probabilities.register(linear_model.SGDClassifier)
def _(part: linear_model.SGDClassifier, x: Any) -> Any:
    found = _linear(part, x)
    odds = sigmoid(found) if part.loss == "log_loss" else (ndx.clip(found, -1.0, 1.0) + 1.0) / 2.0
    return odds if len(part.classes_) == 2 else shares(odds, len(part.classes_))


@probabilities.register(naive_bayes.CategoricalNB)
def _(part: naive_bayes.CategoricalNB, x: Any) -> Any:
    """A code that training did not have adds nothing; scikit-learn itself raises there."""
    counts = np.array([table.shape[1] for table in part.feature_log_prob_])
    code = ndx.trunc(wide(x))
    known = (code >= 0.0) & (code < constant(counts)[None, :])
    place = ndx.astype(ndx.where(known, code, 0.0), ndx.int64) + ndx.asarray((np.cumsum(counts) - counts)[None, :])
    of_class = [
        ndx.sum(
            ndx.where(known, taken(np.concatenate([t[i] for t in part.feature_log_prob_]), place), 0.0), axis=1, keepdims=True
        )
        for i in range(len(part.classes_))
    ]
    odds = softmax(side_by_side(of_class) + constant(part.class_log_prior_)[None, :])
    return column(odds, 1) if len(part.classes_) == 2 else odds


def _network(part: Any, x: Any) -> Any:
    x = wide(x)
    for i, (weights, intercept) in enumerate(zip(part.coefs_, part.intercepts_, strict=True)):
        x = times(x, weights) + constant(intercept)
        kind = part.activation if i < part.n_layers_ - 2 else part.out_activation_
        if kind != "identity":
            x = {"relu": lambda a: ndx.clip(a, min=0.0), "tanh": ndx.tanh, "logistic": sigmoid, "softmax": softmax}[kind](x)
    return x


probabilities.register(neural_network.MLPClassifier, _network)
predict.register(neural_network.MLPRegressor, _network)


def _kernel(part: Any, x: Any) -> Any:
    """Libsvm's machines: the weighted kernel of the support vectors."""
    kind = part.kernel
    if kind not in ("rbf", "poly", "sigmoid", "linear"):
        raise ValueError(f"the kernel of {type(part).__name__} is Python code: take rbf, poly, sigmoid or linear")
    x, vectors, gamma = wide(x), np.asarray(part.support_vectors_, dtype=np.float64), float(internal(part, "_gamma"))
    near = times(x, vectors.T)
    if kind == "rbf":
        squares = ndx.sum(x * x, axis=1, keepdims=True) + constant((vectors**2).sum(axis=1))
        near = ndx.exp((squares - near * 2.0) * -gamma)
    elif kind == "poly":
        near = (near * gamma + float(part.coef0)) ** float(part.degree)
    elif kind == "sigmoid":
        near = ndx.tanh(near * gamma + float(part.coef0))
    return times(near, part.dual_coef_.T) + constant(part.intercept_)


predict.register(svm.SVR, _kernel)
predict.register(svm.NuSVR, _kernel)
decision.register(svm.OneClassSVM, _kernel)


@decision.register(svm.SVC)
@decision.register(svm.NuSVC)
def _(part: Any, x: Any) -> Any:
    if len(part.classes_) > 2:
        raise ValueError(
            f"{type(part).__name__} with several classes cannot be converted to ONNX: wrap it in a OneVsRestClassifier"
        )
    return _kernel(part, x)


@probabilities.register(svm.SVC)
@probabilities.register(svm.NuSVC)
def _(part: Any, _x: Any) -> Any:
    raise ValueError(f"{type(part).__name__}(probability=True) is not exact: put it in a CalibratedClassifierCV")


@decision.register(linear_model.SGDOneClassSVM)
def _(part: linear_model.SGDOneClassSVM, x: Any) -> Any:
    return times(x, np.reshape(part.coef_, (-1, 1))) - float(np.ravel(part.offset_)[0])


@decision.register(covariance.EllipticEnvelope)
def _(part: covariance.EllipticEnvelope, x: Any) -> Any:
    away = wide(x) - constant(part.location_)
    far = ndx.sum(times(away, part.get_precision()) * away, axis=1, keepdims=True)
    return -far - float(part.offset_)


@probabilities.register(dummy.DummyClassifier)
def _(part: dummy.DummyClassifier, x: Any) -> Any:
    if part.strategy in ("stratified", "uniform"):
        raise ValueError(f"DummyClassifier(strategy={part.strategy!r}) answers at random: use prior or most_frequent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = part.predict_proba(np.zeros((1, 1)))[0]
    return same(wide(x), row[1:] if len(row) == 2 else row)


@predict.register(dummy.DummyRegressor)
def _(part: dummy.DummyRegressor, x: Any) -> Any:
    return same(wide(x), np.ravel(part.constant_))


def _module(part: Any, x: Any) -> Any:
    given = single(x) if part.single_ else wide(x)
    return wide(ndx.asarray(next(iter(spox.inline(part.to_onnx())(x=given.unwrap_spox()).values()))))


@probabilities.register(TorchClassifier)
def _(part: TorchClassifier, x: Any) -> Any:
    odds = softmax(_module(part, x))
    return column(odds, 1) if len(part.classes_) == 2 else odds


@predict.register(TorchRegressor)
def _(part: TorchRegressor, x: Any) -> Any:
    return _module(part, x) * constant(part.scale_) + constant(part.mean_)


@decision.register(ensemble.IsolationForest)
def _(part: ensemble.IsolationForest, x: Any) -> Any:
    model = trees.of_isolation(part)
    depth = ensembled(model.trees, single(x), model.base, exact=True)
    return -ndx.exp(depth * (np.log(2.0) * model.factor)) - float(part.offset_)
