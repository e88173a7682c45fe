"""Confusion and the trade of thresholds, counted by hand and against scikit-learn."""

import itertools

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from statsmodels.stats.proportion import proportion_confint

from loopwright.records.declarations import Value
from loopwright.records.package import Output
from loopwright.tasks.metrics import Answered, answered, confusion, reliability, trade

RNG = np.random.default_rng(7)
TRUTH = RNG.random(500) < 0.3
SCORE = np.clip(0.3 * TRUTH + RNG.random(500) * 0.7, 0, 1)
VALUE = Value(true_positive=10, false_positive=-4, false_negative=-2)


def test_confusion_of_yes_and_no_counts_as_scikit_learn_does() -> None:
    found = confusion(Output(), TRUTH, answered(Output(), SCORE, None, 0.5))
    assert found is not None
    assert (found.labels, found.counts) == (["no", "yes"], confusion_matrix(TRUTH, SCORE >= 0.5).tolist())


def test_confusion_of_classes_has_also_those_that_training_never_saw() -> None:
    output = Output(task="multiclass", classes=["a", "b"], names=["a", "b"])
    given = Answered(np.ones(4), np.array(["a", "b", "b", "a"], dtype=object), np.zeros((4, 2)))
    found = confusion(output, np.array(["a", "b", "a", "z"], dtype=object), given)
    assert found is not None
    assert (found.labels, found.counts) == (["a", "b", "z"], [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_tasks_without_labels_have_neither() -> None:
    given, output = Answered(SCORE), Output(task="regression")
    assert confusion(output, SCORE, given) is None
    assert trade(output, SCORE, given, 0.0, VALUE) == []


def test_more_labels_than_anybody_reads_are_left_out() -> None:
    names = np.array([f"c{i}" for i in range(60)], dtype=object)
    assert confusion(Output(task="multiclass", classes=list(names)), names, Answered(np.ones(60), names)) is None


def test_trade_has_the_threshold_in_use_and_money_over_no_model() -> None:
    points = trade(Output(), TRUTH, answered(Output(), SCORE, None, 0.5), 0.5, VALUE)
    assert [p.threshold for p in points] == sorted({p.threshold for p in points})
    assert len(points) >= 15
    (used,) = (p for p in points if p.used)
    said = SCORE >= 0.5
    assert used.precision == pytest.approx(precision_score(TRUTH, said))
    assert used.recall == pytest.approx(recall_score(TRUTH, said))
    earned = np.where(said, np.where(TRUTH, 12, -4), 0)  # over nobody acting, which costs 2 where the truth is positive
    assert used.value == pytest.approx(earned.mean())
    assert [p.rate for p in points] == sorted((p.rate for p in points), reverse=True)


def test_trade_without_money_or_without_positives_says_so() -> None:
    points = trade(Output(), np.zeros(500, dtype=bool), answered(Output(), SCORE, None, 2.0), 2.0, Value())
    assert {p.value for p in points} == {None}
    assert {p.recall for p in points} == {None}
    assert points[-1].precision is None  # at 2.0 nobody is answered yes
    assert trade(Output(), TRUTH[:0], answered(Output(), SCORE[:0], None, 0.5), 0.5, VALUE) == []


def test_reliability_curve_is_that_of_equal_bins_with_wilsons_intervals() -> None:
    curve = reliability(Output(), TRUTH, Answered(SCORE))
    share, mean = calibration_curve(TRUTH, SCORE, n_bins=10, strategy="quantile")
    assert [b.share.value for b in curve] == pytest.approx(share, abs=0.03)
    assert [b.score for b in curve] == pytest.approx(mean, abs=0.01)
    assert sum(b.share.n for b in curve) == 500
    for b in curve:
        inside = (b.low <= SCORE) & (b.high >= SCORE)
        assert (b.share.low, b.share.high) == pytest.approx(
            proportion_confint(TRUTH[inside].sum(), inside.sum(), method="wilson")
        )
    assert all(one.high < other.low for one, other in itertools.pairwise(curve))


def test_reliability_curve_has_fewer_bins_of_few_rows_and_wider_ones_of_customers() -> None:
    assert len(reliability(Output(), TRUTH[:120], Answered(SCORE[:120]))) == 2
    assert len(reliability(Output(), np.arange(500) < 30, Answered(SCORE))) == 3
    rule = reliability(Output(), TRUTH, Answered((SCORE > 0.5).astype(float)))
    assert [b.score for b in rule] == [0.0, 1.0]
    customers = np.arange(500) // 25
    narrow, wide = (reliability(Output(), np.repeat(TRUTH[:20], 25), Answered(SCORE), units=u) for u in (None, customers))
    assert all(w.share.high - w.share.low > n.share.high - n.share.low for n, w in zip(narrow, wide, strict=True))
    assert reliability(Output(task="anomaly"), TRUTH, Answered(SCORE)) == []
