import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loopwright.base.errors import DeclarationInvalid
from loopwright.base.progress import Silent
from loopwright.develop.fit import TrainingData, first_trial, fit, fixed, make, predict, search
from loopwright.develop.output import Answers, Goal
from loopwright.records.declarations import Candidate
from loopwright.tasks import metrics

Array = np.ndarray[Any, Any]


def tree(trial: Any) -> lgb.LGBMClassifier:
    return lgb.LGBMClassifier(
        n_estimators=trial.suggest_int("n_estimators", 1, 40),
        num_leaves=trial.suggest_int("num_leaves", 2, 15),
        verbose=-1,
        n_jobs=1,
    )


SEARCHED = Candidate("tree", tree, phase=3, trials=6)


def data() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(1500, 4)).astype(np.float32)
    return matrix, matrix[:, 0] * matrix[:, 1] + rng.normal(size=1500) * 0.3 > 0


class Steps(Silent):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.done: list[tuple[str, float, float]] = []

    def advance(self, what: str, done: float, total: float) -> None:
        self.done.append((what, done, total))


def found(seed: int, steps: Steps | None = None) -> dict[str, Any]:
    return searched(*data(), seed, steps or Steps())


def searched(matrix: Array, truth: Array, seed: int, steps: Silent) -> dict[str, Any]:
    def judge(rows: Array, answers: Answers) -> float:
        return metrics.compute("average_precision", truth[rows], answers.score, answers.score >= 0.5)

    return search(
        SEARCHED,
        TrainingData(matrix, truth),
        np.arange(960),
        np.arange(960, 1200),
        judge=judge,
        higher=True,
        goal=Goal(),
        seed=seed,
        seconds=None,
        progress=steps,
    )


def test_the_search_is_repeatable_and_told_step_by_step() -> None:
    steps = Steps()
    first = found(3, steps)
    assert first == found(3)
    assert set(first) == {"n_estimators", "num_leaves"}
    assert steps.done == [("tree search", i, 6) for i in range(1, 7)]


def test_the_search_finds_better_than_the_worst() -> None:
    """What wins the search on the newest fifth is at least as good there as the smallest tree allowed."""
    matrix, truth = data()
    scores = {}
    for name, params in (("found", found(0)), ("smallest", {"n_estimators": 1, "num_leaves": 2})):
        estimator, _ = fit(
            SEARCHED, make(SEARCHED, fixed(SEARCHED, params), 0), TrainingData(matrix[:960], truth[:960]), Goal()
        )
        scores[name] = np.mean((predict(estimator, matrix[960:1200], Goal()).score >= 0.5) == truth[960:1200])
    assert scores["found"] > scores["smallest"] + 0.1


def test_the_search_never_sees_validation_rows() -> None:
    matrix, truth = data()
    spoiled = matrix.copy()
    spoiled[1200:] = np.inf  # would fail, or change the result, if it were read
    assert searched(spoiled, truth, 0, Silent()) == searched(matrix, truth, 0, Silent())


def test_open_seeds_are_set_and_given_ones_kept() -> None:
    made = make(Candidate("forest", RandomForestClassifier), None, 7)
    assert made.random_state == 7
    kept = make(Candidate("forest", lambda: make_pipeline(StandardScaler(), MLPClassifier(random_state=3))), None, 7)
    assert kept.named_steps["mlpclassifier"].random_state == 3


def test_a_missing_value_is_explained() -> None:
    matrix, truth = data()
    matrix[0, 0] = np.nan
    with pytest.raises(DeclarationInvalid, match=r"contains NaN.*nde\.fill_null"):
        fit(Candidate("lr", LogisticRegression), LogisticRegression(), TrainingData(matrix, truth), Goal())


def test_what_the_library_warns_of_is_told_not_raised() -> None:
    matrix, truth = data()
    _, warned = fit(
        Candidate("mlp", MLPClassifier), MLPClassifier((4,), max_iter=1, random_state=0), TrainingData(matrix, truth), Goal()
    )
    assert len(warned) == 1
    assert "converged" in warned[0]


def test_code_that_fails_is_named() -> None:
    def broken() -> Any:
        raise RuntimeError("no licence")

    with pytest.raises(DeclarationInvalid, match="RuntimeError: no licence"):
        make(Candidate("broken", broken), None, 0)
    with pytest.raises(DeclarationInvalid, match="name the path of the loop file"):
        make(Candidate("text", "lambda: LogisticRegression()"), None, 0)


@pytest.mark.parametrize(
    ("given", "trial"),
    [
        (tree, True),
        (Ridge, False),
        (lgb.LGBMClassifier, False),
        (partial(Ridge, alpha=2.0), False),
        (lambda depth=3: lgb.LGBMClassifier(max_depth=depth), False),
    ],
)
def test_only_a_function_that_must_be_given_something_is_searched(given: Any, trial: bool) -> None:
    candidate = Candidate("c", given)
    assert candidate.takes_trial is trial
    assert type(first_trial(candidate, 0)) in (Ridge, lgb.LGBMClassifier)
    assert not trial or Candidate("c", given, trials=3).trials == 3
    assert first_trial(Candidate("c", Ridge), 0).alpha == 1.0


def test_a_first_trial_shows_the_parts() -> None:
    assert isinstance(first_trial(SEARCHED, 0), lgb.LGBMClassifier)


def test_optuna_that_needs_redis_is_loaded_with_it(tmp_path: Path) -> None:
    """redis is hidden from Optuna to save time: no reason to fail should a later Optuna need it."""
    (tmp_path / "redis.py").write_text("READ = True\n")
    (tmp_path / "optuna.py").write_text("import redis\nclass trial:\n    FixedTrial = dict\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from loopwright.develop.fit import fixed; "
        "print(fixed(None, {'C': 1.0}), sys.modules['redis'].READ)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "{'C': 1.0} True\n"), done.stderr[-2000:]
