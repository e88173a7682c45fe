"""Decay: the difference with a promise that has an error of its own, and harm over all windows since the release."""

import math
from datetime import timedelta

import numpy as np
import pytest
from scipy import stats

from loopwright.monitor.decay import Decay, decay_check, decay_level
from loopwright.records.evaluation import Z_95, Estimate
from loopwright.records.windows import DecayCheck

AUC = Decay("roc_auc", 0.05)


def exact(value: float, n: int = 10**6) -> Estimate:
    return Estimate(value, value, value, n)


def around(value: float, error: float) -> Estimate:
    return Estimate(value, value - Z_95 * error, value + Z_95 * error, 500)


def life(values: list[float], decay: Decay = AUC, promised: float = 0.80, error: float = 0.001) -> list[DecayCheck]:
    checks: list[DecayCheck] = []
    for value in values:
        checks.append(decay_check(around(value, error), exact(promised), decay, checks, checks))
    return checks


def test_promise_of_few_rows_makes_a_difference_unsure() -> None:
    now = Estimate(0.70, 0.67, 0.73, 2000)
    assert decay_check(now, exact(0.80), AUC).cause == "drop"
    unsure = decay_check(now, Estimate(0.80, 0.70, 0.87, 300), AUC)
    assert not unsure.cause
    assert unsure.drop == pytest.approx(0.125)
    assert unsure.p > 0.025


def test_p_is_that_of_the_difference_on_the_log_odds() -> None:
    def odds(share: float) -> float:
        return math.log(share / (1 - share))

    now, promised = Estimate(0.70, 0.65, 0.745, 500), Estimate(0.78, 0.74, 0.815, 900)
    halves = odds(0.745) - odds(0.70), odds(0.78) - odds(0.74)
    shock = 0.5 * 0.05 * 0.78 / (0.78 * 0.22)
    error = math.hypot(*(half / Z_95 for half in halves), math.sqrt(2) * shock)
    assert decay_check(now, promised, AUC).p == pytest.approx(stats.norm.sf((odds(0.78) - odds(0.70)) / error))


def test_decay_is_a_share_of_the_promise_whatever_the_unit() -> None:
    mae, share = Decay("mae", 0.05), Decay("average_precision", 0.05)
    assert not decay_check(Estimate(31.0, 30.9, 31.1, 5000), exact(30.0), mae).cause  # 1 of 30 is 3 %
    assert decay_check(Estimate(32.6, 32.1, 33.1, 5000), exact(30.0), mae).cause
    assert decay_check(Estimate(0.27, 0.26, 0.28, 5000), exact(0.30), share).cause  # 0.03 of 0.30 is 10 %
    assert not decay_check(Estimate(0.77, 0.76, 0.78, 5000), exact(0.80), share).cause


def test_for_a_metric_where_less_is_better_decay_is_a_rise() -> None:
    up = Estimate(0.30, 0.28, 0.32, 500)
    assert decay_check(up, exact(0.20), Decay("brier", 0.05)).cause == "drop"
    assert not decay_check(up, exact(0.40), Decay("brier", 0.05)).cause
    assert not decay_check(up, exact(0.29), Decay("brier", 0.005)).cause


@pytest.mark.parametrize(
    ("metric", "now", "promised"),
    [("recall_gap:side", Estimate(0.2, 0.1, 0.3, 500), Estimate(0.0, 0.0, 0.05, 500)), ("recall", exact(0.9), exact(1.0)),
     ("r2", Estimate(-0.2, -0.3, -0.1, 500), Estimate(0.5, 0.4, 0.6, 500))],
)  # fmt: skip
def test_value_at_the_end_of_its_scale_is_compared_as_it_is(metric: str, now: Estimate, promised: Estimate) -> None:
    assert decay_check(now, promised, Decay(metric, 0.05)).cause == "drop"
    assert not decay_check(promised, now, Decay(metric, 0.05)).cause


def test_windows_of_a_year_share_a_tenth_of_an_alarm() -> None:
    for every in (timedelta(days=1), timedelta(days=7), timedelta(hours=1)):
        assert decay_level(every) * (timedelta(days=365) / every) == pytest.approx(0.1)
    assert decay_level(timedelta(days=365)) == 0.025
    assert decay_level(timedelta(days=7), 2.0) == pytest.approx(2 * decay_level(timedelta(days=7)))


def test_windows_that_differ_week_by_week_make_a_drop_unsure() -> None:
    """The same drop counts where windows were steady, and not where they have always moved about that much."""
    rng = np.random.default_rng(0)
    last, weekly = [0.73], AUC._replace(level=decay_level(timedelta(days=7)))
    steady = life([*(0.80 + rng.normal(0, 0.002, 20)).tolist(), *last], weekly)
    shaken = life([*(0.80 + rng.normal(0, 0.03, 20)).tolist(), *last], weekly)
    assert steady[-1].cause == "drop"
    assert shaken[-1].cause == ""
    assert shaken[-1].spread == pytest.approx(0.03 / 0.80, rel=0.4)
    assert not any(check.cause for check in shaken)


def test_lasting_decay_hides_no_later_window() -> None:
    checks = life([0.80] * 10 + [0.70] * 10)
    assert [check.cause for check in checks] == [""] * 10 + ["drop"] * 10


def bayes_factor(drops: list[float], mean: float) -> float:
    """Of the mean being `mean`, against a standard normal effect: the marginal likelihoods, integrated numerically."""
    off = np.array(drops) - mean
    n = len(off)
    deviation = np.exp(np.linspace(-14, 6, 4001))
    effect = np.linspace(-8, 8, 801)
    weight = stats.norm.pdf(effect)
    null = np.exp(-n * np.log(deviation) - (off**2).sum() / (2 * deviation**2))
    squares = (off**2).sum() / deviation[:, None] ** 2 - 2 * effect * off.sum() / deviation[:, None] + n * effect**2
    other = (np.exp(-n * np.log(deviation)[:, None] - squares / 2) * weight).sum(axis=1) * (effect[1] - effect[0])
    return float(other.sum() / null.sum())


def test_limits_of_harm_are_those_of_the_anytime_valid_t_test() -> None:
    drops = [0.02, -0.01, 0.03, 0.05, 0.01, 0.04, 0.0, 0.02]
    harm = life([0.80 * (1 - drop) for drop in drops])[-1].since_release
    assert harm.windows == 8
    assert harm.mean == pytest.approx(float(np.mean(drops)))
    assert harm.low is not None
    assert harm.high is not None
    for limit in (harm.low, harm.high):
        assert bayes_factor(drops, limit) == pytest.approx(20, rel=0.02)
    assert life([0.8, 0.79])[-1].since_release.low is None, "two windows tell nothing of how much windows differ"


def test_limits_of_harm_hold_at_all_times_at_once() -> None:
    missed = 0
    for seed in range(200):
        values = 0.80 * (1 - np.random.default_rng(seed).normal(0.01, 0.02, 60))
        limits = [check.since_release for check in life(values.tolist(), Decay("roc_auc", 9.0))]
        missed += any(h.low is not None and h.high is not None and not h.low <= 0.01 <= h.high for h in limits)
    assert missed <= 0.05 * 200 + 2 * math.sqrt(0.05 * 0.95 * 200)


def test_slow_harm_is_found_that_no_single_window_shows() -> None:
    weekly = AUC._replace(level=decay_level(timedelta(days=7)))
    values = 0.80 - 0.06 + np.random.default_rng(0).normal(0, 0.05, 52)
    checks = life(values.tolist(), weekly, error=0.05)
    first = next(i for i, check in enumerate(checks) if check.cause)
    assert checks[first].cause == "harm"
    assert first > 3
    assert checks[-1].since_release.low is not None
    assert checks[-1].since_release.low > 0
    unsure = decay_check(around(0.745, 0.025), around(0.80, 0.03), weekly, checks, checks)
    assert unsure.since_release.windows == 1, "another promise is another package, which begins anew"


def test_harm_below_the_declared_share_is_no_decay() -> None:
    checks = life((0.80 - 0.02 + np.random.default_rng(0).normal(0, 0.005, 52)).tolist())
    assert checks[-1].since_release.low is not None
    assert checks[-1].since_release.low > 0
    assert not any(check.cause for check in checks)
