"""Fitting an estimator, and the search over its hyper-parameters (Optuna's tree-structured Parzen estimator, Bergstra et al. 2011).

Requirements of each task on an estimator, and the truth that it is fitted on (as in the examples):

    binary      a classifier; bool [N]
    multiclass  a classifier; string [N], each one of `Output.classes`
    regression  a regressor; float64 [N], or [N, K] in the order of `Output.names`: an estimator that cannot predict several
                numbers is fitted once for each. With quantiles, once for each quantile, by the estimator's own parameter
    ranking     a ranker (its rows are sorted by group) or a regressor of the relevance; float64 [N]
    anomaly     an outlier detector; no truth
"""

import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import msgspec
import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid, LoopwrightError, first_line, message_of
from loopwright.base.progress import Progress
from loopwright.develop.output import Answers, Goal
from loopwright.records.declarations import Candidate
from loopwright.tasks.registry import TASKS

# How to set the quantile of an estimator: class name -> fixed parameters, and the parameter that takes the quantile.
QUANTILE: dict[str, tuple[dict[str, Any], str]] = {
    "LGBMRegressor": ({"objective": "quantile"}, "alpha"),
    "XGBRegressor": ({"objective": "reg:quantileerror"}, "quantile_alpha"),
    "GradientBoostingRegressor": ({"loss": "quantile"}, "alpha"),
    "HistGradientBoostingRegressor": ({"loss": "quantile"}, "quantile"),
    "QuantileRegressor": ({}, "quantile"),
}


class TrainingData(msgspec.Struct, frozen=True):
    """Input of fitting: `matrix` float32 [N, F], `truth` (see above), `group` of any type [N], `weight` float64 [N]."""

    matrix: Array
    truth: Array
    group: Array | None = None
    weight: Array | None = None

    def at(self, rows: Array) -> "TrainingData":
        """The data of some rows, by their indices."""
        group, weight = (None if a is None else a[rows] for a in (self.group, self.weight))
        return TrainingData(self.matrix[rows], self.truth[rows], group, weight)


class Several(msgspec.Struct, frozen=True):
    """Estimators fitted on the same rows, each giving one number: a column per estimator."""

    estimators: list[Any]


def make(candidate: Candidate, trial: Any, seed: int) -> Any:
    """The unfitted estimator of a candidate; every `random_state` left open is set to `seed`. Raises DeclarationInvalid."""
    if not callable(candidate.estimator):
        raise DeclarationInvalid(
            f"candidate {candidate.name}",
            [("estimator", "only its source text is stored here: name the path of the loop file")],
        )
    try:
        estimator = candidate.estimator(trial) if candidate.takes_trial else candidate.estimator()
    except (LoopwrightError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user code may raise anything
        if _is_pruned(error):
            raise
        why = f"{type(error).__name__}: {message_of(error)}"
        raise DeclarationInvalid(f"candidate {candidate.name}", [("estimator", why)]) from error
    if hasattr(estimator, "get_params"):
        open_seeds = {k: seed for k, v in estimator.get_params(deep=True).items() if k.endswith("random_state") and v is None}
        estimator.set_params(**open_seeds)
    return estimator


def first_trial(candidate: Candidate, seed: int) -> Any:
    """An estimator as the first trial of a search would be: for looking at its parts, not for fitting."""
    return make(candidate, _study("maximize", seed).ask() if candidate.takes_trial else None, seed)


def fit(candidate: Candidate, estimator: Any, training_data: TrainingData, goal: Goal) -> tuple[Any, list[str]]:
    """Fit on the training data; returns the fitted estimator (or Several), and the warnings of the library.

    Raises DeclarationInvalid when the estimator cannot be fitted on these features, or takes no weights and there are some.
    """
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            fitted = _fit(estimator, training_data, goal)
    except (LoopwrightError, KeyboardInterrupt):
        raise
    except BaseException as error:  # libraries raise many kinds
        hint = (
            " (fill nulls with nde.fill_null in `features`, or put a SimpleImputer in the pipeline)"
            if "NaN" in message_of(error)
            else ""
        )
        why = f"cannot be fitted: {type(error).__name__}: {first_line(error)}{hint}"
        raise DeclarationInvalid(f"candidate {candidate.name}", [("estimator", why)]) from error
    return fitted, list(dict.fromkeys(str(w.message).splitlines()[0] for w in warned))


def _fit(estimator: Any, training_data: TrainingData, goal: Goal) -> Any:
    matrix, truth = as_wanted(estimator, training_data.matrix), training_data.truth
    if goal.output.shape.grouped and training_data.group is not None and takes(estimator, "group"):
        order, sizes = _by_group(training_data.group)
        return estimator.fit(matrix[order], truth[order].astype(np.float64), **last_step(estimator, {"group": sizes}))
    weights = {} if training_data.weight is None else last_step(estimator, {"sample_weight": training_data.weight})
    if TASKS[goal.output.task].estimator == "detector":
        return estimator.fit(matrix, **weights)
    if goal.output.shape.is_probability:
        return estimator.fit(matrix, codes(truth, goal), **weights)
    truth = truth.astype(np.float64)
    if goal.quantiles:
        return Several([at_quantile(clone(estimator), q).fit(matrix, truth, **weights) for q in goal.quantiles])
    if truth.ndim == 2 and not _predicts_several(estimator):
        return Several([clone(estimator).fit(matrix, column, **weights) for column in truth.T])
    return estimator.fit(matrix, truth, **weights)


def _by_group(group: Array) -> tuple[Array, Array]:
    """The order that puts rows of one group side by side, and how many rows each group has."""
    _, code = np.unique(group, return_inverse=True)
    return np.argsort(code, kind="stable"), np.bincount(code)


def codes(truth: Array, goal: Goal) -> Array:
    """The truth of a classification as integers [N]: 0 and 1, or the place among the goal's classes."""
    if not goal.output.shape.has_classes:
        return truth.astype(np.int64)
    return np.searchsorted(np.array(goal.output.classes), truth.astype(str))


def last(estimator: Any) -> Any:
    """The estimator itself, or the last step of a pipeline (of pipelines)."""
    return last(estimator.steps[-1][1]) if isinstance(estimator, Pipeline) else estimator


def last_step(estimator: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `fit` as a pipeline hands them to its last step."""
    if not isinstance(estimator, Pipeline):
        return dict(arguments)
    name, step = estimator.steps[-1]
    return {f"{name}__{key}": value for key, value in last_step(step, arguments).items()}


def takes(estimator: Any, argument: str) -> bool:
    """Whether `fit` of the estimator (of a pipeline's last step) has this argument."""
    return argument in inspect.signature(last(estimator).fit).parameters


def at_quantile(estimator: Any, quantile: float) -> Any:
    """Set the quantile that the estimator predicts, in place. Raises DeclarationInvalid if it cannot predict quantiles."""
    model = last(estimator)
    if type(model).__name__ not in QUANTILE:
        raise DeclarationInvalid(
            "estimator", [(type(model).__name__, f"predicts no quantiles: take one of {', '.join(QUANTILE)}")]
        )
    given, name = QUANTILE[type(model).__name__]
    model.set_params(**given, **{name: quantile})
    return estimator


def _predicts_several(estimator: Any) -> bool:
    ours = type(last(estimator)).__module__.split(".")[0] in ("sklearn", "loopwright")
    return ours and bool(estimator.__sklearn_tags__().target_tags.multi_output)


def predict(estimator: Any, matrix: Array, goal: Goal) -> Answers:
    """The estimator's own answers for a matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return goal.answers(raw(estimator, matrix, goal))


def as_wanted(estimator: Any, matrix: Array) -> Array:
    """The matrix as an estimator computes: float64 for scikit-learn's, float32 for LightGBM, XGBoost and PyTorch by themselves.

    The numbers are the same; scikit-learn's intermediate results are not rounded to float32.
    """
    return matrix.astype(np.float64) if type(estimator).__module__.startswith("sklearn.") else matrix


def raw(estimator: Any, matrix: Array, goal: Goal) -> Array:
    """The raw numbers [N, K] of a fitted estimator, see `goal`."""
    if isinstance(estimator, Several):
        return np.column_stack([e.predict(as_wanted(e, matrix)) for e in estimator.estimators])
    matrix = as_wanted(estimator, matrix)
    if goal.output.shape.is_probability:
        return np.asarray(estimator.predict_proba(matrix))[:, 0 if goal.output.shape.has_classes else 1 :]
    detects = TASKS[goal.output.task].estimator == "detector"
    numbers = -estimator.decision_function(matrix) if detects else estimator.predict(matrix)
    return np.reshape(numbers, (len(matrix), -1))


def search(
    candidate: Candidate,
    training_data: TrainingData,
    fitted: Array,
    judged: Array,
    *,
    judge: Callable[[Array, Answers], float],
    higher: bool,
    goal: Goal,
    seed: int,
    seconds: float | None,
    progress: Progress,
) -> dict[str, Any]:
    """Search the best hyper-parameters of a candidate: fit on some training rows, judge on others (indices of `training_data`).

    `judge` gets the indices and the answers, and `higher` says whether more is better. At most
    `candidate.trials` trials, at most `seconds`.
    """
    study = _study("maximize" if higher else "minimize", seed)
    total = max(1, candidate.trials)

    def objective(trial: Any) -> float:
        estimator, _ = fit(candidate, make(candidate, trial, seed), training_data.at(fitted), goal)
        answers = predict(estimator, training_data.matrix[judged], goal)
        progress.advance(f"{candidate.name} search", trial.number + 1, total)
        return judge(judged, answers)

    study.optimize(objective, n_trials=total, timeout=seconds)
    return dict(study.best_params)


def fixed(candidate: Candidate, params: Mapping[str, Any]) -> Any:
    """A trial that answers with given hyper-parameters."""
    return _optuna().trial.FixedTrial(dict(params))


def _optuna() -> Any:
    """Optuna, loaded for a candidate that is searched; alone, without redis, for a storage of studies that is not used here.

    With OpenTelemetry behind it redis takes as long as Optuna. It is hidden only while no other thread could import it, and an
    Optuna that does not go without is loaded with it.
    """
    if threading.active_count() == 1 and not {"optuna", "redis"} & set(sys.modules):
        sys.modules["redis"] = None  # type: ignore[assignment]  # an import of it fails
        try:
            with suppress(ImportError):
                return import_module("optuna")
        finally:
            sys.modules.pop("redis", None)
    return import_module("optuna")


def _is_pruned(error: BaseException) -> bool:
    optuna = sys.modules.get("optuna")
    return optuna is not None and isinstance(error, optuna.TrialPruned)


def _study(direction: str, seed: int) -> Any:
    optuna = _optuna()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed))
    finally:
        if verbosity > optuna.logging.WARNING:
            optuna.logging.set_verbosity(verbosity)
