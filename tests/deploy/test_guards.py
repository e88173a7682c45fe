"""The guards' answers, by simulation with fixed seeds: how often an equal package is refused, and what a chain of losses costs."""

import numpy as np
import pytest
from benchmarks.honesty.guards import AP, comparison, last_released
from statsmodels.stats.multitest import multipletests

from loopwright.deploy.guards import GuardComparison, doubtful, holm, verdicts
from loopwright.records.evaluation import Estimate


def compared(difference: Estimate, margin: float, *, whole: bool = True, sign: int = 1) -> GuardComparison:
    return GuardComparison("guard", "what serves", difference.n, difference, margin, sign, whole)


@pytest.mark.parametrize(
    ("estimate", "margin", "verdict"),
    [
        (Estimate(0.05, 0.01, 0.09, 500), 0.02, "better"),
        (Estimate(0.0, -0.015, 0.015, 500), 0.02, "within"),
        (Estimate(0.0, -0.06, 0.06, 500), 0.02, "cannot tell"),
        (Estimate(-0.1, -0.14, -0.06, 500), 0.02, "worse"),
        (Estimate(-0.1, -0.14, -0.06, 500), 0.2, "within"),
        (Estimate(float("nan"), float("nan"), float("nan"), 4), 0.02, "cannot tell"),
        (Estimate(-0.5, -0.6, -0.4, 500, too_few=True), 0.02, "cannot tell"),
        (Estimate(0.0, 0.0, 0.0, 500), 0.0, "within"),
        (Estimate(-0.1, -0.1, -0.1, 500), 0.0, "worse"),
    ],
)
def test_guard_has_four_answers(estimate: Estimate, margin: float, verdict: str) -> None:
    flipped = Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.n, estimate.too_few)
    assert verdicts([compared(estimate, margin)]) == [verdict]
    assert verdicts([compared(flipped, margin, sign=-1)]) == [verdict], "of a metric where less is better"


def test_rows_that_cannot_tell_release_by_the_estimate_or_hold() -> None:
    unsure, poor = (compared(Estimate(value, value - 0.06, value + 0.06, 500), 0.02) for value in (-0.01, -0.03))
    assert [doubtful(c, "cannot tell", "release") for c in (unsure, poor)] == [False, True]
    assert [doubtful(c, "cannot tell", "hold") for c in (unsure, poor)] == [True, True]
    few = compared(Estimate(-0.5, -0.6, -0.4, 4, too_few=True), 0.02)
    assert [doubtful(few, "cannot tell", policy) for policy in ("release", "hold")] == [False, True]
    assert not doubtful(poor._replace(whole=False), "cannot tell", "hold"), "a slice alone refuses only what is worse"


def test_smallest_loss_that_is_seen_is_called_worse_in_four_of_five() -> None:
    rng, margin, error = np.random.default_rng(1), 0.02, 0.013
    loss = compared(Estimate(0, -1.96 * error, 1.96 * error, 500), margin).smallest_seen
    drawn = -loss + error * rng.normal(size=2000)
    worse = [verdicts([compared(Estimate(d, d - 1.96 * error, d + 1.96 * error, 500), margin)]) == ["worse"] for d in drawn]
    assert np.mean(worse) == pytest.approx(0.8, abs=0.03)


def test_holm_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = rng.random(12) ** 3
        assert holm(p.tolist(), 0.05) == multipletests(p, 0.05, method="holm")[0].tolist()


def test_equal_package_is_called_worse_by_forty_slices_in_at_most_one_case_of_forty() -> None:
    rng, refused = np.random.default_rng(3), 0
    for _ in range(400):
        estimates = rng.normal(size=40)
        refused += "worse" in verdicts([compared(Estimate(d, d - 1.96, d + 1.96, 150), 0.0, whole=False) for d in estimates])
    assert refused <= 400 * 0.025 + 2 * np.sqrt(400 * 0.025 * 0.975), "63 % with each slice judged by itself"


@pytest.mark.parametrize("metric", [AP, "recall"])
def test_equal_package_is_called_worse_as_rarely_as_nominal(metric: str) -> None:
    """The paired bootstrap that the comparisons rest on, without margin: 2.5 % at most, and two standard errors."""
    rng = np.random.default_rng(5)
    worse = [verdicts([comparison(rng, 300, 0.6, 0.6, metric)._replace(margin=0.0)]) == ["worse"] for _ in range(80)]
    assert np.mean(worse) <= 0.025 + 2 * np.sqrt(0.025 * 0.975 / 80)


def test_chain_of_small_losses_is_stopped_by_the_anchor() -> None:
    """Twelve retrainings, each 1.5 % worse; before, all were released and 17 % were lost."""
    released = [last_released(np.random.default_rng([4, seed]), 1000) for seed in range(4)]
    assert np.mean(released) < 8, released
