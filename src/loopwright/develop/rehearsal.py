"""The rehearsal of a candidate: a copy is fitted on a few hundred training rows, converted, and compared row by row.

`check` and `run` both use it, so a candidate that passes one passes the other. A candidate that fails is left out and named; the
others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from sklearn.base import clone

from loopwright.base.arrays import Array, spread_rows
from loopwright.base.errors import (
    CandidatesFailed,
    ConversionRefused,
    Damaged,
    DeclarationInvalid,
    LoopwrightError,
    Unavailable,
    message_of,
)
from loopwright.develop.fit import TrainingData, first_trial, fit, predict
from loopwright.develop.onnx.convert import convert, refuse_inconvertible
from loopwright.develop.onnx.parity import accepted, answers, apart, difference, load, tolerance
from loopwright.develop.output import Goal
from loopwright.develop.sampling import refuse_weights_of_its_own
from loopwright.records.declarations import Candidate, Outcome
from loopwright.tasks.registry import TASKS

REHEARSAL = 300
"""Rows of a rehearsal."""

T = TypeVar("T")


class CannotFit(DeclarationInvalid):
    """A candidate that cannot be fitted on the rows of a rehearsal, or cannot predict them."""


def rehearsed(
    candidates: Sequence[Candidate], training_data: Callable[[Candidate], TrainingData], goal: Goal, *, seed: int, weighed: bool
) -> dict[str, LoopwrightError]:
    """The failed candidates by name, each with its error. `weighed`: labels are weighed in fitting."""

    def judge(candidate: Candidate) -> None:
        estimator = first_trial(candidate, seed)
        refuse_weights_of_its_own(candidate.name, estimator, weighed=weighed)
        refuse_inconvertible(candidate.name, estimator, goal)
        rehearse(candidate, estimator, training_data(candidate), goal)

    tried = {c.name: attempt(c.name, partial(judge, c))[1] for c in candidates}
    return {name: error for name, error in tried.items() if error is not None}


def attempt(candidate: str, call: Callable[[], T]) -> tuple[T | None, LoopwrightError | None]:
    """The result of `call`, or the error that leaves a candidate out, of any kind.

    A fault of the installation (disk, ledger, damaged bytes) is no fault of the candidate and passes through.
    """
    try:
        return call(), None
    except (Unavailable, Damaged, OSError, KeyboardInterrupt):
        raise
    except LoopwrightError as error:
        return None, error
    except BaseException as error:  # noqa: BLE001  # libraries raise many kinds, and a user's estimator even SystemExit
        return None, ConversionRefused(candidate, f"{type(error).__name__}: {' '.join(message_of(error).split())[:400]}")


def reason(error: LoopwrightError) -> str:
    """Why a candidate is left out, in one line."""
    if isinstance(error, ConversionRefused):
        return error.why
    if isinstance(error, DeclarationInvalid):
        return "; ".join(p.reason for p in error.problems)
    return " ".join(str(error).split())


def refuse_none_left(failed: dict[str, LoopwrightError]) -> None:
    """Raise the error of the only candidate, or CandidatesFailed naming all of them."""
    if len(failed) == 1:
        raise next(iter(failed.values()))
    raise CandidatesFailed({name: reason(error) for name, error in failed.items()})


def rehearse(candidate: Candidate, estimator: Any, training_data: TrainingData, goal: Goal) -> None:
    """Fit a copy on a few hundred rows (on all rows where so few are not enough), convert it and compare.

    Compared are these rows, and copies of them with missing values, zeros, and numbers that training did not have. Raises
    DeclarationInvalid when it cannot be fitted, ConversionRefused when the graph cannot be built, fails or disagrees.
    """
    few = training_data.at(_spread(training_data, goal))
    fitted = _fitted(candidate, estimator, training_data, few, goal)
    model = convert(candidate.name, fitted, few.matrix.shape[1], goal, exact=True)
    graph = load(candidate.name, model.SerializeToString())
    bound, _ = tolerance(fitted, goal)
    for matrix in _matrices(few.matrix):
        found = goal.answers(answers(candidate.name, graph, {"matrix": matrix})["raw"])
        for rows, expected in accepted(fitted, matrix, np.arange(len(matrix)), goal):
            worst = float(difference(found.at(rows), expected, goal).max(initial=0.0))
            if not worst <= bound:
                raise ConversionRefused(candidate.name, apart(worst, len(rows), bound, "rows of a rehearsal"))


def _fitted(candidate: Candidate, estimator: Any, training_data: TrainingData, few: TrainingData, goal: Goal) -> Any:
    """A copy fitted on few rows, or on all if it needs more of them (as many neighbours)."""
    failed: Exception = ValueError()
    for part in (few, training_data)[: 1 + (len(few.matrix) < len(training_data.matrix))]:
        try:
            fitted, _ = fit(candidate, clone(estimator), part, goal)
            predict(fitted, few.matrix, goal)
        except (DeclarationInvalid, ValueError) as error:
            failed = error
        else:
            return fitted
    why = reason(failed) if isinstance(failed, DeclarationInvalid) else f"cannot predict: {message_of(failed)}"
    raise CannotFit(f"candidate {candidate.name}", [("estimator", why)]) from failed


def _matrices(matrix: Array) -> Iterator[Array]:
    """The rows of a rehearsal, and variants that serving may meet."""
    rng = np.random.default_rng(0)
    yield matrix
    for strange in (np.nan, 0.0, 1.0):
        changed = matrix.copy()
        hit = rng.random(matrix.shape) < (1.1 if strange == 0.0 else 0.2)
        changed[hit] = changed[hit] + strange if strange == 1.0 else strange
        yield changed


def made_up(outcome: Outcome, columns: int) -> TrainingData:
    """Training data for a rehearsal where there is no data yet: numbers that any objective of the task takes."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(REHEARSAL, columns)).astype(np.float32)
    part = np.digitize(matrix[:, 0] + rng.normal(size=REHEARSAL), [-0.5, 0.5])
    targets = np.exp(rng.normal(size=(REHEARSAL, len(outcome.labels))))
    return TrainingData(matrix, TASKS[outcome.task].made_up(part, targets), group=np.arange(REHEARSAL) // 10)


def _spread(training_data: TrainingData, goal: Goal) -> Array:
    """Indices of rows from everywhere, with some of each class, and of each column the least, the largest and a missing value."""
    matrix, count = training_data.matrix, len(training_data.matrix)
    rows = spread_rows(count, REHEARSAL)
    missing = ~np.isfinite(matrix)
    ends = [missing.argmax(axis=0), *(f(np.where(missing, 0.0, matrix), axis=0) for f in (np.argmin, np.argmax))]
    if goal.output.shape.is_probability:
        ends += [np.flatnonzero(training_data.truth == c)[:20] for c in np.unique(training_data.truth)]
    return np.unique(np.concatenate([rows, *ends]))
