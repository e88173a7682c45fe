"""Stage develop: splits, sampling, fleets and candidates."""

import inspect
from typing import Any, Literal

from loopwright.records.declarations.declaration import Declaration, code_problem


class TimeSplit(Declaration, frozen=True, tag_field="by", tag="time"):
    """The newest part of the examples validates, the rest trains.

    A validation part with too few rows, or too few of a label, is extended back until it has enough, at most over half of the examples.
    Training examples whose outcome became known only after the boundary are left out: a model trained at that moment could not
    have learnt from them.

    Attributes:
        validation: Length of the newest part ("14d").
        embargo: Examples whose decision is within this before the boundary are left out of both parts.
        late_outcomes: `train`: train on examples whose outcome came after the boundary for another reason (all of them
            delivered at once).

    Example:
        TimeSplit(validation="28d", embargo="1d")
    """

    validation: str = "14d"
    embargo: str = "0s"
    late_outcomes: Literal["leave out", "train"] = "leave out"


class GroupSplit(Declaration, frozen=True, tag_field="by", tag="group"):
    """Whole groups (equal values of a request column, such as a patient) validate or train, never both.

    A hash of the value and the loop's seed decides.

    Attributes:
        column: Request column whose equal values stay together.
        validation: Share of the groups that validate, above 0 and at most 0.9.

    Example:
        GroupSplit("patient", validation=0.25)
    """

    column: str
    validation: float = 0.2


class StratifiedSplit(Declaration, frozen=True, tag_field="by", tag="stratum"):
    """A random share of every stratum validates: a stratum is a value of the label and, where declared, of a request column.

    Attributes:
        column: Request column that divides the strata further.
        validation: Share of each stratum that validates, above 0 and at most 0.9.

    Example:
        StratifiedSplit("country", validation=0.2)
    """

    column: str | None = None
    validation: float = 0.2


class Sampling(Declaration, frozen=True, kw_only=True):
    """Which examples train, and with which weights. It is undone at serving: probabilities are those of real traffic.

    Attributes:
        keep: Share of the examples kept by label ("false" and "true", or a class), above 0 and at most 1.
        weights: Weight of each label in fitting, above 0.
        balanced: Weigh each label by how rare it is; instead of `weights`.

    Example:
        Sampling(keep={"false": 0.1})
    """

    keep: dict[str, float] = {}
    weights: dict[str, float] = {}
    balanced: bool = False

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        return [("balanced", "either balanced or weights of your own")] if self.balanced and self.weights else []


class Fleet(Declaration, frozen=True, kw_only=True):
    """One declaration, many models: one per value of the request column `by`, where there are enough examples of it.

    A value with too few training examples, an unseen one, or one whose own model is not surely as good as the global model,
    is answered by the global model.

    Attributes:
        by: Request column (string, integer or boolean) whose values are the segments.
        minimum_rows: Minimum number of training examples for a segment's own model.
        most: Maximum number of segment models (for the largest segments).

    Example:
        Fleet(by="store", minimum_rows=500)
    """

    by: str
    minimum_rows: int = 1000
    most: int = 1000


class Candidate(Declaration, frozen=True):
    """One way to solve the problem.

    Attributes:
        name: Name in the leaderboard.
        estimator: A function that returns an unfitted scikit-learn compatible estimator (or pipeline) for a float32 matrix, or
            the class of one. A function that takes a parameter gets an Optuna trial (parameters with a default value and
            those of a class are not asked for).
        phase: Rung of the ladder: 2 simple model, 3 optimised, 4 complex (1 is the heuristic).
        encoding: How string features enter the matrix: `ordinal` (one column of codes, for trees) or `onehot` (one column
            per category).
        trials: Number of trials of the hyper-parameter search, if the function takes a trial.

    Example:
        Candidate("logistic", lambda: LogisticRegression(max_iter=1000), phase=2)
    """

    name: str
    estimator: Any
    phase: Literal[2, 3, 4] = 2
    encoding: Literal["ordinal", "onehot"] = "onehot"
    trials: int = 0

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = code_problem("estimator", self.estimator)
        if self.trials and not found and callable(self.estimator) and not self.takes_trial:
            found.append(("trials", "the estimator function takes no parameter, so there is nothing to search"))
        return found

    @property
    def takes_trial(self) -> bool:
        """Whether `estimator` wants an Optuna trial."""
        if isinstance(self.estimator, type):
            return False
        try:
            parameters = inspect.signature(self.estimator).parameters.values()
        except (ValueError, TypeError):  # a function written in C has no signature; what is no function is named by fitting
            return False
        return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
