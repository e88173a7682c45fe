import math
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.calibration import calibration_curve

from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import Value
from loopwright.tasks import metrics
from loopwright.tasks.binary import YesNo
from loopwright.tasks.task import RowData

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(3)


def rows(n: int = 2000, ties: bool = True, seed: int = 0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    score = rng.beta(1, 3, n)
    truth = rng.random(n) < np.clip(score * 1.2, 0, 1)
    if ties:
        score = np.round(score, 2)
    return truth, score, score >= 0.3


ORACLES: dict[str, Any] = {
    "average_precision": lambda t, s, y: sk.average_precision_score(t, s),
    "roc_auc": lambda t, s, y: sk.roc_auc_score(t, s),
    "log_loss": lambda t, s, y: sk.log_loss(t, np.clip(s, 2.3e-16, 1 - 2.3e-16)),
    "brier": lambda t, s, y: sk.brier_score_loss(t, s),
    "accuracy": lambda t, s, y: sk.accuracy_score(t, y),
    "precision": lambda t, s, y: sk.precision_score(t, y),
    "recall": lambda t, s, y: sk.recall_score(t, y),
    "f1": lambda t, s, y: sk.f1_score(t, y),
    "positive_rate": lambda t, s, y: y.mean(),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("ties", [True, False])
def test_equals_scikit_learn(name: str, ties: bool) -> None:
    for seed in range(5):
        truth, score, label = rows(ties=ties, seed=seed, n=300 + 57 * seed)
        assert metrics.compute(name, truth, score, label) == pytest.approx(ORACLES[name](truth, score, label), abs=1e-9)


@pytest.mark.parametrize("name", ["average_precision", "roc_auc", "log_loss", "precision", "f1"])
def test_weights_are_those_of_scikit_learn(name: str) -> None:
    truth, score, label = rows(n=400)
    weight = np.bincount(RNG.integers(0, 400, 400), minlength=400).astype(float)
    repeated = np.repeat(np.arange(400), weight.astype(int))
    prepared = YesNo([name], RowData(truth, metrics.Answered(score, label)))
    expected = ORACLES[name](truth[repeated], score[repeated], label[repeated])
    assert prepared.values(weight[None, :])[0, 0] == pytest.approx(expected, abs=1e-9)


def test_calibration_error_equals_the_binned_definition() -> None:
    truth, score, label = rows(n=5000, ties=False)
    rate, mean = calibration_curve(truth, score, n_bins=10)
    counts = np.histogram(score, bins=np.linspace(0, 1, 11))[0]
    expected = np.sum(np.abs(rate - mean) * counts[counts > 0]) / len(score)
    assert metrics.compute("calibration_error", truth, score, label) == pytest.approx(expected, abs=1e-9)


def test_value_is_money_over_labelling_nothing() -> None:
    value = Value(true_positive=120, false_positive=-15, false_negative=-60)
    truth = np.array([True, True, False, False])
    label = np.array([True, False, True, False])
    found = metrics.compute("value_per_prediction", truth, label.astype(float), label, value=value)
    assert found == pytest.approx((120 - 60 - 15 + 0) / 4 - (-60 * 2) / 4)


def test_gap_is_largest_minus_smallest_and_ignores_handfuls() -> None:
    truth = np.ones(205, dtype=bool)
    of = np.array(["a"] * 100 + ["b"] * 100 + ["c"] * 5, dtype=object)
    label = np.concatenate([np.arange(100) < 90, np.arange(100) < 60, np.zeros(5, dtype=bool)])
    found = metrics.compute("recall_gap:of", truth, label.astype(float), label, slices={"of": of})
    assert found == pytest.approx(0.3)
    estimate = metrics.intervals(["recall_gap:of"], truth, label.astype(float), label, seed=1, slices={"of": of})[
        "recall_gap:of"
    ]
    assert 0.15 < estimate.low < 0.3 < estimate.high < 0.45


@pytest.mark.parametrize("name", ["average_precision", "roc_auc", "recall", "f1"])
def test_undefined_is_nan_not_zero(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none = np.zeros(10, dtype=bool)
        assert math.isnan(metrics.compute(name, none, np.linspace(0, 1, 10), none))
        estimate = metrics.intervals([name], none, np.linspace(0, 1, 10), none, seed=0)[name]
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.low)


def test_no_rows_is_nan_with_n_zero() -> None:
    empty = np.array([], dtype=bool)
    estimate = metrics.intervals(["roc_auc"], empty, empty.astype(float), empty, seed=0)["roc_auc"]
    assert estimate.n == 0
    assert math.isnan(estimate.value)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    names = ["average_precision", "accuracy", "brier"]
    big = rows(n=400_000, ties=False, seed=99)
    target = {name: metrics.compute(name, *big) for name in names}
    covered = dict.fromkeys(names, 0)
    for seed in range(120):
        found = metrics.intervals(names, *rows(n=600, ties=False, seed=seed), seed=seed)
        for name in names:
            covered[name] += found[name].low <= target[name] <= found[name].high
    for name in names:  # 95 % nominal; 120 trials: a binomial standard error of 2 %
        assert 0.88 <= covered[name] / 120 <= 1.0, (name, covered[name])


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b, c = (metrics.intervals(["roc_auc"], *rows(), seed=seed)["roc_auc"] for seed in (7, 7, 8))
    assert a == b
    assert a != c


def test_paired_difference_is_narrower_than_the_intervals() -> None:
    truth, score, label = rows(ties=False)
    worse = np.clip(score + np.random.default_rng(1).normal(0, 0.05, len(score)), 0, 1)
    found = metrics.differences(["average_precision"], truth, (score, label), (worse, label), seed=0)["average_precision"]
    single = metrics.intervals(["average_precision"], truth, score, label, seed=0)["average_precision"]
    assert found.value == pytest.approx(
        sk.average_precision_score(truth, score) - sk.average_precision_score(truth, worse), abs=1e-9
    )
    assert found.high - found.low < (single.high - single.low) / 2
    same = metrics.differences(["average_precision"], truth, (score, label), (score, label), seed=0)["average_precision"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_an_unknown_name_says_which_are_known() -> None:
    truth, score, label = rows(n=10)
    for name in ("accuracy_gap:x", "acuracy", "latency_p99_ms"):
        with pytest.raises(DeclarationInvalid):
            metrics.compute(name, truth, score, label)
    assert "average_precision" in metrics.problem("acuracy", [])
    assert "no slice 'x'" in metrics.problem("recall_gap:x", ["y"])
    assert metrics.problem("recall_gap:y", ["y"]) == metrics.problem("latency_p99_ms", []) == ""
