"""Fitting an estimator, and the search over its hyper-parameters (Optuna's tree-structured Parzen estimator, Bergstra et al. 2011)."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from loopwright.develop.split import tail_split
from loopwright.records import metrics
from loopwright.records.declarations import Candidate, Value
from loopwright.records.errors import DeclarationInvalid, LoopwrightError
from loopwright.records.graph import Array
from loopwright.records.progress import Progress


def make(candidate: Candidate, trial: Any, seed: int) -> Any:
    """The unfitted estimator of a candidate; every `random_state` left open is set to `seed`. Raises DeclarationInvalid."""
    if not callable(candidate.estimator):
        raise DeclarationInvalid(
            f"candidate {candidate.name}", [("estimator", "only its source text is here: give the loop file")]
        )
    try:
        estimator = candidate.estimator(trial) if takes_trial(candidate) else candidate.estimator()
    except (LoopwrightError, optuna.TrialPruned):
        raise
    except Exception as error:  # the user's code raises what it likes
        raise DeclarationInvalid(f"candidate {candidate.name}", [("estimator", f"{type(error).__name__}: {error}")]) from error
    if hasattr(estimator, "get_params"):
        open_seeds = {k: seed for k, v in estimator.get_params(deep=True).items() if k.endswith("random_state") and v is None}
        estimator.set_params(**open_seeds)
    return estimator


def takes_trial(candidate: Candidate) -> bool:
    """Whether the estimator function wants an Optuna trial."""
    return bool(inspect.signature(candidate.estimator).parameters)


def first_trial(candidate: Candidate, seed: int) -> Any:
    """An estimator as the first trial of a search would be: for looking at its parts, not for fitting."""
    return make(candidate, _study("maximize", seed).ask() if takes_trial(candidate) else None, seed)


def fit(candidate: Candidate, estimator: Any, matrix: Array, truth: Array) -> tuple[Any, list[str]]:
    """Fit on a matrix (float32 [N, F]) and truth (bool [N]); the estimator, and what the library warned of.

    Raises DeclarationInvalid when the estimator cannot be fitted on these features.
    """
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            estimator.fit(matrix, truth.astype("int64"))
    except Exception as error:  # libraries raise many kinds
        hint = (
            " (fill nulls with nde.fill_null in `features`, or put a SimpleImputer in the pipeline)"
            if "NaN" in str(error)
            else ""
        )
        why = f"cannot be fitted: {type(error).__name__}: {str(error).splitlines()[0][:300]}{hint}"
        raise DeclarationInvalid(f"candidate {candidate.name}", [("estimator", why)]) from error
    return estimator, list(dict.fromkeys(str(w.message).splitlines()[0] for w in warned))


def predict(estimator: Any, matrix: Array) -> Array:
    """The estimator's own probability of true, float64 [N]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores: Array = estimator.predict_proba(matrix)[:, 1].astype("float64")
        return scores


def search(
    candidate: Candidate,
    matrix: Array,
    truth: Array,
    rows: Array,
    *,
    metric: str,
    value: Value,
    seed: int,
    seconds: float | None,
    progress: Progress,
) -> dict[str, Any]:
    """The best hyper-parameters of a candidate, by `metric` on the newest fifth of the training rows, fitted on the rest.

    `rows` are the training rows' indices in order of time. At most `candidate.trials` trials, at most `seconds`.
    """
    older, newer = tail_split(rows)
    study = _study("maximize" if metrics.metric(metric).higher else "minimize", seed)
    total = max(1, candidate.trials)

    def objective(trial: Any) -> float:
        estimator, _ = fit(candidate, make(candidate, trial, seed), matrix[older], truth[older])
        score = predict(estimator, matrix[newer])
        progress.advance(f"{candidate.name} search", trial.number + 1, total)
        return metrics.compute(metric, truth[newer], score, score >= value.threshold(), value=value)

    study.optimize(objective, n_trials=total, timeout=seconds)
    return dict(study.best_params)


def fixed(candidate: Candidate, params: Mapping[str, Any]) -> Any:
    """A trial that answers with given hyper-parameters."""
    return optuna.trial.FixedTrial(dict(params))


def _study(direction: str, seed: int) -> Any:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed))  # type: ignore[arg-type]  # a literal to the stubs
    finally:
        if verbosity > optuna.logging.WARNING:
            optuna.logging.set_verbosity(verbosity)
