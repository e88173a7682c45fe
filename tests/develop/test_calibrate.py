"""Calibrated scores and the threshold: against optimisers and the true probabilities of made-up worlds."""

from pathlib import Path
from typing import Any

import lightgbm as lgb
import ndonnx as ndx
import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
from scipy import optimize, special
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.develop.flights import COLUMNS, table
from tests.develop.test_train import Story, home_in, run

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid
from loopwright.develop.calibrate import _METHODS, NEVER, Unseen, choose, unseen
from loopwright.develop.fit import TrainingData
from loopwright.develop.onnx.estimators.arithmetic import interpolated
from loopwright.develop.output import Goal
from loopwright.graph.calibration import TIE_BREAK, calibrated
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph
from loopwright.records.declarations import Candidate, GroupSplit, Sampling, StratifiedSplit, TimeSplit, Value
from loopwright.stores.packages.store import Package
from loopwright.tasks.split import divide, folds

VALUE = Value(true_positive=10, false_positive=-10)


def world(rows: int, seed: int, slope: float = 1.0, shift: float = 0.0) -> Unseen:
    """Scores of rows whose true log odds are `slope` times those of the score, plus `shift`."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 2, rows)
    return Unseen(special.expit(odds), rng.random(rows) < special.expit(slope * odds + shift), np.arange(rows))


def overfitted() -> lgb.LGBMClassifier:
    return lgb.LGBMClassifier(n_estimators=150, num_leaves=31, verbose=-1, n_jobs=1, deterministic=True, force_row_wise=True)


OVERFITTED = Candidate("overfitted", overfitted, phase=3, encoding="ordinal")
LINEAR = Candidate("linear", lambda: make_pipeline(StandardScaler(), LogisticRegression()))


def package_of(home: Any, board: Any, candidate: str) -> Package:
    return home.packages.read(next(row.package for row in board.rows if row.candidate == candidate))  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["sigmoid", "beta"])
def test_parameters_are_those_of_least_loss_on_platts_labels(method: str) -> None:
    rows = world(500, 0, 0.4, -0.5)
    positives, negatives = rows.truth.sum(), (~rows.truth).sum()
    label = np.where(rows.truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(c: Array) -> float:
        a, b, level = c if method == "beta" else (c[0], c[0], c[1])
        odds = a * np.log(rows.score) - b * np.log(1 - rows.score) + level
        return float(np.mean(np.logaddexp(0, odds) - label * odds))

    best = optimize.minimize(
        loss, np.zeros(3 if method == "beta" else 2), bounds=[(0, None)] * (2 if method == "beta" else 1) + [(None, None)]
    )
    made = _METHODS[method](rows)
    assert made is not None
    a, b, level = made.coefficients
    assert min(a, b) >= 0
    assert loss(np.array([a, b, level] if method == "beta" else [a, level])) <= best.fun + 1e-9


def test_beta_leaves_out_a_side_that_would_fall() -> None:
    rng = np.random.default_rng(1)
    score = rng.random(2000)
    truth = rng.random(2000) < special.expit(2 * np.log(score) + 0.3 * np.log(1 - score) + 1)
    made = _METHODS["beta"](Unseen(score, truth, np.arange(2000)))
    assert made is not None
    assert made.coefficients[1] == 0 < made.coefficients[0]
    falling = Unseen(score, rng.random(2000) < 1 - score, np.arange(2000))
    assert _METHODS["beta"](falling) is None
    assert _METHODS["sigmoid"](falling) is None


@pytest.mark.parametrize("method", list(_METHODS))
def test_graph_and_numpy_calibrate_alike_and_keep_the_order(method: str) -> None:
    rows = world(4000, 2, 0.3, 0.5)
    made = _METHODS[method](rows)
    assert made is not None
    score = np.sort(np.concatenate([rows.score, [0.0, 1e-9, 1.0]]))
    given = ndx.argument(shape=("N",), dtype=ndx.float64)
    graph = ndx.build({"score": given}, {"made": calibrated(made, given, ndx, interpolated)})
    (answered,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"score": score})
    expected = calibrated(made, score)
    assert answered == pytest.approx(expected, abs=1e-12)
    inside = (score > 1e-5) & (score < 1 - 1e-5)
    assert (np.diff(answered[inside]) > 0).all()
    assert (answered > 0).all()
    assert (answered < 1).all()
    if method == "isotonic":
        line = IsotonicRegression(out_of_bounds="clip").fit(rows.score, rows.truth).predict(rows.score)
        assert calibrated(made, rows.score) == pytest.approx((1 - TIE_BREAK) * line + TIE_BREAK * rows.score)


def test_overconfident_scores_are_calibrated_and_the_simplest_method_that_does_it_is_taken() -> None:
    made = choose(world(3000, 3, 0.4, -0.3), VALUE, 0.5, seed=0)
    assert made.method == "sigmoid"
    assert made.coefficients[0] == pytest.approx(0.4, abs=0.06)
    assert made.log_loss["sigmoid"] < made.log_loss[""]
    assert "log loss" in made.words
    assert made.threshold == 0.5
    rng = np.random.default_rng(0)
    score = rng.random(20_000)
    steps = Unseen(score, rng.random(20_000) < np.where(score > 0.5, 0.6, np.where(score > 0.2, 0.1, 0.3)), np.arange(20_000))
    assert choose(steps, VALUE, 0.5, seed=0).method == "isotonic", "neither a sigmoid nor a beta line has steps"


def test_scores_that_are_probabilities_stay_as_they_are() -> None:
    made = [choose(world(1000, seed), VALUE, 0.5, seed=seed) for seed in range(60)]
    assert sum(bool(one.method) for one in made) <= 6
    assert all("no calibration surely lowers" in one.words for one in made if not one.method)
    assert sum(one.threshold == 0.5 for one in made) >= 54


def test_too_few_rows_of_a_label_calibrate_nothing_and_say_so() -> None:
    rows = world(60, 0, 0.2, -3)
    made = choose(rows, VALUE, 0.5, seed=0)
    assert not made.method
    assert f"too few to tell: {int(rows.truth.sum())} of the rarer label among 60" in made.why
    assert made.log_loss == {}


def test_no_score_is_acted_on_where_acting_loses() -> None:
    rng = np.random.default_rng(0)
    score = rng.beta(1, 3, 2000)  # tells nothing
    noise = Unseen(score, rng.random(2000) < 0.05, np.arange(2000))
    made = choose(noise, Value(true_positive=10, false_positive=-5), 1 / 3, seed=0)
    assert not (calibrated(made, score) >= made.threshold).any()
    few = Unseen(score[:200], np.arange(200) < 10, np.arange(200))
    made = choose(few, Value(true_positive=10, false_positive=-5), 1 / 3, seed=0)
    assert made.threshold == NEVER
    assert "no score is acted on (by the money of those rows, which acting loses)" in made.words


def test_rows_of_one_customer_are_one_fact() -> None:
    made = []
    for seed in range(20):
        many = Unseen(*(np.repeat(part, 40) for part in world(50, seed)))
        made.append([bool(choose(rows, VALUE, 0.5, seed=0).method) for rows in (many, many._replace(units=np.arange(2000)))])
    of_units, of_rows = np.sum(made, axis=0)
    assert of_units <= 4
    assert of_rows >= 12, "as if they were rows of their own"
    few = Unseen(*(np.repeat(part, 100) for part in world(20, 0, 0.2)))
    assert "too few to tell: 20 units" in choose(few, VALUE, 0.5, seed=0).why


def test_value_table_sets_the_threshold_of_each_kind_of_table() -> None:
    assert Value(true_positive=2, false_positive=3).threshold() == 0, "acting pays on both"
    assert Value(true_positive=4).threshold() == 0, "acting costs nothing"
    assert Value(true_positive=3, false_positive=-1).threshold() == 0.25


@pytest.mark.parametrize("split", [TimeSplit(validation="14d"), GroupSplit("carrier", validation=0.3), StratifiedSplit()])
def test_folds_score_rows_that_are_not_fitted_on_and_by_time_are_younger(split: Any) -> None:
    rows = table(1500)
    training, validation, _ = divide(rows, split, seed=3)
    pairs = folds(rows, training, split, seed=3)
    judged = np.concatenate([scored for _, scored in pairs])
    assert len(pairs) == (2 if isinstance(split, GroupSplit) else 3), "of four carriers none is in one fold"
    assert len(judged) == len(set(judged.tolist()))
    assert set(judged.tolist()) <= set(training.tolist())
    assert not set(judged.tolist()) & set(validation.tolist())
    decided = rows.column("_decided_at").cast(pa.int64()).to_numpy()
    known = rows.column("_known_at").cast(pa.int64()).to_numpy()
    carrier = np.array(rows.column("carrier").to_pylist())
    for fitted, scored in pairs:
        assert not set(fitted.tolist()) & set(scored.tolist())
        if isinstance(split, TimeSplit):
            assert known[fitted].max() < decided[scored].min()
            assert len(judged) == pytest.approx(len(training) / 2, abs=2)
        else:
            assert len(judged) == len(training)
        if isinstance(split, GroupSplit):
            assert not set(carrier[fitted]) & set(carrier[scored])


def test_candidate_is_calibrated_in_its_graph_on_training_rows_alone(tmp_path: Path) -> None:
    rows = table(3000)
    home, story = home_in(tmp_path / "home"), Story()
    board = run(home, rows, candidates=[LINEAR, OVERFITTED], progress=story)
    made = package_of(home, board, "overfitted")
    calibration = made.manifest.calibration
    assert calibration is not None
    assert calibration.method in ("sigmoid", "beta")
    assert made.manifest.threshold == calibration.threshold
    error = made.evaluation.metrics["calibration_error"]
    assert error.value < 0.05
    assert any("overfitted: scores are calibrated by" in line for line in story.lines)
    assert "Scores are calibrated by" in made.card
    assert "| scores | mean score | share positive | rows |" in made.card
    detail = next(row.detail for row in board.rows if row.candidate == "overfitted")
    assert detail is not None
    assert detail.calibration == calibration
    assert detail.reliability == made.evaluation.reliability
    assert sum(b.share.n for b in detail.reliability) == made.evaluation.rows

    linear = package_of(home, board, "linear").manifest.calibration
    assert linear is not None
    assert not linear.method, "a logistic model of a logistic world is right as it is"
    assert package_of(home, board, "heuristic").manifest.calibration is None

    graph = Graph(made.files["model.onnx"])
    given = graph.run(arrow_feed(graph, COLUMNS, rows))
    matrix = given["features"][: made.manifest.training.rows]
    fitted = overfitted().set_params(random_state=0).fit(matrix, rows.column("_label").to_numpy()[: len(matrix)])
    goal = Goal(calibration=calibration)
    assert given["score"] == pytest.approx(goal.answers(fitted.predict_proba(given["features"])[:, 1:]).score, abs=1e-5)

    flipped = rows.column("_label").to_numpy().copy()
    late = rows.column("_decided_at").to_pylist()
    border = made.manifest.split
    assert border is not None
    assert border.boundary is not None
    flipped[np.array([moment > border.boundary for moment in late])] ^= True
    changed = rows.set_column(rows.column_names.index("_label"), "_label", pa.array(flipped))
    other = home_in(tmp_path / "other")
    again = package_of(other, run(other, changed, candidates=[OVERFITTED]), "overfitted").manifest.calibration
    assert again is not None
    assert (again.coefficients, again.threshold, again.why) == (
        calibration.coefficients,
        calibration.threshold,
        calibration.why,
    )


def test_calibrated_answers_are_explained_before_calibration(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    board = run(home, table(3000), candidates=[OVERFITTED])
    explained = package_of(home, board, "overfitted").manifest.explained
    assert explained is not None
    assert (explained.method, explained.unit) == ("TreeSHAP", "log-odds before calibration")


def test_estimator_that_calibrates_itself_is_left_alone(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    own = Candidate("own", lambda: CalibratedClassifierCV(overfitted(), cv=2), phase=3, encoding="ordinal")
    calibration = package_of(home, run(home, table(800), candidates=[own]), "own").manifest.calibration
    assert calibration is not None
    assert not calibration.method
    assert "CalibratedClassifierCV" in calibration.words


def test_sampling_is_undone_before_scores_are_calibrated(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    board = run(home, table(4000), candidates=[OVERFITTED], sampling=Sampling(keep={"false": 0.5}))
    made = package_of(home, board, "overfitted")
    assert made.manifest.calibration is not None
    assert made.manifest.calibration.method
    assert made.evaluation.metrics["calibration_error"].value < 0.05


class NoNumberOnFewRows(LogisticRegression):  # type: ignore[misc]  # scikit-learn has no types
    """As an estimator that divides by a variance of 0 in a small fold."""

    def predict_proba(self, X: Array) -> Array:  # noqa: N803  # scikit-learn's name
        found = super().predict_proba(X)
        return np.where(np.arange(len(X))[:, None] == 0, np.nan, found)


def test_fold_whose_scores_are_no_numbers_calibrates_nothing_and_is_named() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(200, 2)).astype(np.float32)
    training_data = TrainingData(matrix, matrix[:, 0] > 0)
    halves = [(np.arange(100), np.arange(100, 200))]
    candidate = Candidate("odd", lambda: NoNumberOnFewRows())  # noqa: PLW0108  # a candidate is a function
    with pytest.raises(DeclarationInvalid, match="1 of 100 rows give no number"):
        unseen(candidate, NoNumberOnFewRows(), training_data, halves, Goal())
