import math
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from fairlearn.metrics import MetricFrame
from sklearn.calibration import calibration_curve

from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import Value
from loopwright.records.evaluation import Estimate
from loopwright.tasks import metrics
from loopwright.tasks.binary import statistics
from loopwright.tasks.task import RowData

Array = np.ndarray[Any, Any]


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
def test_influence_is_what_a_row_adds(name: str) -> None:
    truth, score, label = rows(n=300)
    (found,) = statistics([name], RowData(truth, metrics.Answered(score, label)))
    assert found.influence.sum() == pytest.approx(0, abs=1e-9)
    left = np.flatnonzero(~np.eye(300, dtype=bool)).reshape(300, -1) % 300
    less = [found.value - metrics.compute(name, truth[i], score[i], label[i]) for i in left]
    assert np.abs(less - found.influence).max() < 0.06 * np.abs(found.influence).max()


def test_calibration_error_is_the_binned_definition_less_what_chance_adds() -> None:
    truth, score, label = rows(n=5000, ties=False)
    rate, mean = calibration_curve(truth, score, n_bins=10)
    counts = np.histogram(score, bins=np.linspace(0, 1, 11))[0]
    expected = np.sum(np.abs(rate - mean) * counts[counts > 0]) / len(score)
    (found,) = statistics(["calibration_error"], RowData(truth, metrics.Answered(score, label)))
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert 0.9 * expected < metrics.compute("calibration_error", truth, score, label) < expected
    perfect = np.random.default_rng(0).random(5000) < score
    (raw,) = statistics(["calibration_error"], RowData(perfect, metrics.Answered(score, label)))
    assert metrics.compute("calibration_error", perfect, score, label) < raw.value / 2


def test_value_is_money_over_labelling_nothing() -> None:
    value = Value(true_positive=120, false_positive=-15, false_negative=-60)
    truth = np.array([True, True, False, False])
    label = np.array([True, False, True, False])
    found = metrics.compute("value_per_prediction", truth, label.astype(float), label, value=value)
    assert found == pytest.approx((120 - 60 - 15 + 0) / 4 - (-60 * 2) / 4)


def _gap(groups: dict[str, tuple[int, float]]) -> tuple[float, Estimate]:
    """Raw gap, and estimate, of groups of so many positives of which a share is recalled."""
    of = np.repeat(np.array(list(groups), dtype=object), [n for n, _ in groups.values()])
    label = np.concatenate([np.arange(n) < n * share for n, share in groups.values()])
    truth, given = np.ones(len(of), dtype=bool), metrics.Answered(label.astype(float), label)
    (raw,) = statistics(["recall_gap:of"], RowData(truth, given, slices={"of": of}))
    return raw.value, metrics.intervals(["recall_gap:of"], truth, *given, seed=1, slices={"of": of})["recall_gap:of"]


def test_gap_is_largest_minus_smallest_less_what_chance_adds() -> None:
    raw, found = _gap({"a": (100, 0.9), "b": (100, 0.6)})
    assert raw == pytest.approx(0.3)
    assert 0.15 < found.low < 0.29 < found.value < 0.3 < found.high < 0.45


def test_gap_counts_a_small_group_as_far_as_its_rows_tell() -> None:
    raw, found = _gap({"a": (1000, 0.86), "b": (1000, 0.84), "c": (10, 0.0)})
    assert raw == pytest.approx(0.86)
    assert found.low > 0.5, "ten rows that were all missed are no chance"
    raw, found = _gap({"a": (1000, 0.86), "b": (1000, 0.84), "c": (3, 2 / 3)})
    assert raw == pytest.approx(0.86 - 2 / 3)
    assert found.low == 0, "one miss of three may be"


def test_groups_that_are_all_alike_have_no_gap() -> None:
    raw, found = _gap({"a": (50, 1.0), "b": (40, 1.0), "c": (7, 1.0)})
    assert raw == found.value == found.low == 0
    assert (
        metrics.compute(
            "recall_gap:of",
            np.ones(4, dtype=bool),
            np.ones(4),
            np.ones(4, dtype=bool),
            slices={"of": np.array(["a", "a", "b", "b"])},
        )
        == 0
    )


def test_raw_gap_is_that_of_fairlearn() -> None:
    truth, score, label = rows(2000)
    of = np.array(["a", "b", "c", "d"], dtype=object)[np.random.default_rng(0).integers(0, 4, 2000)]
    frame = MetricFrame(
        metrics={"r": sk.recall_score, "p": sk.precision_score}, y_true=truth, y_pred=label, sensitive_features=of
    )
    names = ["recall_gap:of", "precision_gap:of"]
    found = statistics(names, RowData(truth, metrics.Answered(score, label), slices={"of": of}))
    assert [one.value for one in found] == pytest.approx(frame.difference(method="between_groups").to_list())


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
