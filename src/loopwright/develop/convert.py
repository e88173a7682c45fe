"""From a fitted estimator to ONNX, exactly; and what cannot become ONNX, refused before any time is spent on fitting it.

The functions for each kind of part are in `parts`, those for trees in `trees`. What only a conversion itself can tell is found by a
rehearsal: a copy is fitted on a few hundred of the training rows, converted and compared.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import ndonnx as ndx
import numpy as np
import onnx
from sklearn.base import clone, is_classifier, is_clusterer, is_outlier_detector
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from loopwright.develop import parts
from loopwright.develop.agreement import apart, difference, load, tolerance
from loopwright.develop.ahead import optimised
from loopwright.develop.ensemble import older
from loopwright.develop.fit import Lessons, Several, at_quantile, fit, last, predict
from loopwright.develop.goal import Goal
from loopwright.records.declarations import Candidate, Outcome
from loopwright.records.errors import ConversionRefused, DeclarationInvalid
from loopwright.records.graph import Array, Graph

REHEARSAL = 300
"""Rows of a rehearsal."""

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
        ours = kind.__module__.split(".")[0] in _LIBRARIES and parts.known(kind)
        if not ours and not parts.converts(kind):
            raise ConversionRefused(candidate, f"part {name!r} ({kind.__name__}) has no converter to ONNX")


def _unsuited(estimator: Any, goal: Goal) -> str:
    task = goal.output.task
    if task in ("binary", "multiclass"):
        if hasattr(estimator, "predict_proba") or isinstance(last(estimator), StackingClassifier):  # it knows only when fitted
            return ""
        return "has no predict_proba: a score between 0 and 1 is needed (put a classifier in a CalibratedClassifierCV)"
    if task == "anomaly":
        suits = is_outlier_detector(estimator) and hasattr(estimator, "decision_function")
        return "" if suits else "is no outlier detector: anomaly wants decision_function, of IsolationForest for instance"
    other = is_classifier(estimator) or is_outlier_detector(estimator) or is_clusterer(estimator)
    if other or not (hasattr(estimator, "predict") or isinstance(last(estimator), StackingRegressor)):
        return f"is no regressor: {task} predicts numbers"
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


def rehearse(candidate: Candidate, estimator: Any, lessons: Lessons, goal: Goal) -> None:
    """Fit a copy on a few hundred rows, convert it and compare, also where values are missing.

    What cannot be fitted on so few rows is left to the real fit. Raises ConversionRefused.
    """
    few = lessons.at(_spread(lessons, goal))
    try:
        fitted, _ = fit(candidate, clone(estimator), few, goal)
    except DeclarationInvalid:
        return
    try:
        predict(fitted, few.matrix, goal)
    except ValueError:  # so many neighbours there are not
        return
    holes = few.matrix.copy()
    holes[np.random.default_rng(0).random(holes.shape) < 0.2] = np.nan
    model = convert(candidate.name, fitted, few.matrix.shape[1], goal, exact=True)
    graph = load(candidate.name, model.SerializeToString())
    for matrix in (few.matrix, holes):
        try:
            expected = predict(fitted, matrix, goal)
        except ValueError:  # it takes no missing values
            continue
        worst = float(difference(goal.answers(_run(candidate.name, graph, matrix)), expected, goal).max())
        bound, _ = tolerance(fitted, goal)
        if not worst <= bound:
            raise ConversionRefused(candidate.name, apart(worst, len(matrix), bound, "rows of a rehearsal"))


def made_up(outcome: Outcome, columns: int) -> Lessons:
    """Lessons for a rehearsal where there is no data yet: numbers that any objective of the task takes."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(REHEARSAL, columns)).astype(np.float32)
    part = np.digitize(matrix[:, 0] + rng.normal(size=REHEARSAL), [-0.5, 0.5])
    targets = np.exp(rng.normal(size=(REHEARSAL, len(outcome.labels))))
    truth: dict[str, Array] = {
        "binary": part == 1,
        "multiclass": np.array(["a", "b", "c"])[part],
        "ranking": part.astype(np.float64),
        "anomaly": np.zeros(REHEARSAL, dtype=np.bool_),
        "regression": targets if len(outcome.labels) > 1 else targets[:, 0],
    }
    return Lessons(matrix, truth[outcome.task], group=np.arange(REHEARSAL) // 10)


def _run(candidate: str, graph: Graph, matrix: Array) -> Array:
    try:
        return graph.run({"matrix": matrix})["raw"]
    except Exception as error:  # the runtime raises many kinds
        raise ConversionRefused(candidate, f"the graph fails: {type(error).__name__}: {str(error)[:300]}") from error


def _spread(lessons: Lessons, goal: Goal) -> Array:
    """Indices of rows from everywhere, with some of each class."""
    count = len(lessons.matrix)
    rows = np.unique(np.linspace(0, count - 1, min(REHEARSAL, count)).astype(np.int64))
    if goal.output.task not in ("binary", "multiclass"):
        return rows
    each = [np.flatnonzero(lessons.truth == c)[:20] for c in np.unique(lessons.truth)]
    return np.unique(np.concatenate([rows, *each]))


def convert(candidate: str, estimator: Any, width: int, goal: Goal, *, exact: bool = False) -> onnx.ModelProto:
    """A fitted estimator over a matrix of `width` columns as ONNX: input `matrix` float32 [N, width], output `raw` [N, K] as `goal` says.

    Trees that give probabilities are summed in float32, unless `exact`. Raises ConversionRefused.
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
        raise ConversionRefused(candidate, f"{kind}{' '.join(str(error).split())[:400]}") from error


def _built(estimator: Any, width: int, goal: Goal, *, exact: bool) -> onnx.ModelProto:
    matrix = ndx.argument(shape=("N", width), dtype=ndx.float32)
    model: onnx.ModelProto = ndx.build({"matrix": matrix}, {"raw": _raw(estimator, matrix, goal, exact=exact)})
    return model


def _raw(estimator: Any, x: Any, goal: Goal, *, exact: bool) -> Any:
    if isinstance(estimator, Several):
        return ndx.concat([ndx.astype(parts.predict(e, x), ndx.float64) for e in estimator.estimators], axis=1)
    if goal.output.task == "anomaly":
        return -parts.decision(estimator, x)
    if goal.output.task not in ("binary", "multiclass"):
        return parts.predict(estimator, x)
    wanted = len(goal.output.classes) if goal.output.task == "multiclass" else 2
    if len(estimator.classes_) != wanted:
        raise ValueError(f"the training rows have {len(estimator.classes_)} of {wanted} classes")
    while isinstance(estimator, Pipeline):
        estimator, x = estimator.steps[-1][1], parts.before(estimator, x)
    found = None if exact else parts.quick(estimator, x)
    return parts.probabilities(estimator, x) if found is None else found
