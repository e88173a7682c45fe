"""Effects of experiments: equal to the formulas of the papers and to statsmodels, and covering the truth as often as they say."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from loopwright.tasks.metrics.effect import (
    adjusted,
    arm_units,
    fixed_effect,
    holm_adjusted,
    smallest_effect,
    uneven_p,
    units_needed,
)
from loopwright.tasks.metrics.resample import Units
from loopwright.tasks.metrics.sequence import arm_difference
from loopwright.tasks.statistic import mean, ratio

Drawn = tuple[Any, Any]


def test_effect_of_a_mean_is_welchs_interval() -> None:
    rng = np.random.default_rng(1)
    new, old = rng.normal(1, 2, 300), rng.normal(0.5, 1, 200)
    found = fixed_effect(arm_units(mean(new), None), arm_units(mean(old), None))
    welch = CompareMeans(DescrStatsW(new), DescrStatsW(old))
    assert (found.low, found.high) == pytest.approx(welch.tconfint_diff(usevar="unequal"), rel=1e-6)
    assert found.p == pytest.approx(welch.ttest_ind(usevar="unequal")[1], rel=1e-6)


def test_effect_of_a_ratio_is_the_delta_method_of_clusters() -> None:
    rng = np.random.default_rng(2)
    arms, variances = [], []
    for _ in range(2):
        rows = rng.integers(1, 9, 400)
        code = np.repeat(np.arange(400), rows)
        values = rng.normal(size=400)[code] + rng.normal(size=len(code))
        arms.append(arm_units(mean(values), code))
        sums = np.bincount(code, weights=values)
        s, n = sums.mean(), rows.mean()  # Deng, Knoblich & Lu 2018, section 3.1
        c = np.cov(sums, rows)
        variances.append((c[0, 0] / n**2 - 2 * s / n**3 * c[0, 1] + s**2 / n**4 * c[1, 1]) / 400)
    assert fixed_effect(*arms).error == pytest.approx(math.sqrt(sum(variances)), rel=1e-9)


def test_covariate_takes_off_what_it_explains_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    x = [rng.normal(size=2000) for _ in range(2)]
    y = [0.8 * one + 0.6 * rng.normal(size=2000) for one in x]
    new, old, saved = adjusted(*(arm_units(mean(b), None, a) for a, b in zip(x, y, strict=True)))
    assert saved == pytest.approx(0.64, abs=0.03)
    slope = sum(np.cov(a, b)[0, 1] for a, b in zip(x, y, strict=True)) / sum(a.var(ddof=1) for a in x)
    expected = (y[0].mean() - y[1].mean()) - slope * (x[0].mean() - x[1].mean())
    assert fixed_effect(new, old).value == pytest.approx(expected)
    unlike = [arm_units(mean(b), None, rng.normal(size=2000)) for b in y]
    assert adjusted(*unlike)[2] == pytest.approx(0, abs=0.01)


def _plain(rng: np.random.Generator, effect: float) -> Drawn:
    return mean(rng.normal(effect, 1, 300)), None


def _skewed(rng: np.random.Generator, effect: float) -> Drawn:
    return mean(rng.exponential(1, 400) + effect), None


def _ratio(rng: np.random.Generator, effect: float) -> Drawn:
    shown = rng.poisson(5, 400) + 1
    clicks = rng.binomial(shown, np.clip(rng.beta(2, 6, 400) + effect, 0, 1))
    return ratio(clicks, shown), None


def _clustered(rng: np.random.Generator, effect: float) -> Drawn:
    code = np.repeat(np.arange(300), rng.integers(1, 12, 300))
    return mean(rng.normal(size=300)[code] + rng.normal(size=len(code)) + effect), code


@pytest.mark.parametrize("draw", [_plain, _skewed, _ratio, _clustered])
def test_interval_covers_the_effect_in_95_percent(draw: Callable[..., Drawn]) -> None:
    rng, covered, trials = np.random.default_rng(11), 0, 1500
    for _ in range(trials):
        found = fixed_effect(*(arm_units(*draw(rng, effect)) for effect in (0.1, 0.0)))
        covered += found.low <= 0.1 <= found.high
    assert covered / trials == pytest.approx(0.95, abs=0.0169), "three standard errors"


def test_adjusted_interval_covers_the_effect_and_is_shorter() -> None:
    rng, covered, shorter, trials = np.random.default_rng(12), 0, 0, 1000
    for _ in range(trials):
        arms = []
        for effect in (0.1, 0.0):
            before = rng.normal(size=300)
            arms.append(arm_units(mean(0.7 * before + 0.7 * rng.normal(size=300) + effect), None, before))
        new, old, _ = adjusted(*arms)
        found, plain = fixed_effect(new, old), fixed_effect(*arms)
        covered += found.low <= 0.1 <= found.high
        shorter += found.error < plain.error
    assert covered / trials == pytest.approx(0.95, abs=0.0207)
    assert shorter == trials


def test_peeking_breaks_the_fixed_interval_and_not_the_sequence() -> None:
    rng, fixed, always, trials = np.random.default_rng(13), 0, 0, 200
    looks = range(100, 2001, 100)
    for _ in range(trials):
        new, old = rng.normal(size=2000), rng.normal(size=2000)
        effects = [fixed_effect(arm_units(mean(new[:n]), None), arm_units(mean(old[:n]), None)) for n in looks]
        fixed += any(not one.low <= 0 <= one.high for one in effects)
        runs = [
            arm_difference(mean(new[:n]), Units(None, n), mean(old[:n]), Units(None, n), alpha=0.05, planned=2000)
            for n in looks
        ]
        always += any(not one.low <= 0 <= one.high for one in runs)
    assert fixed > 0.15 * trials
    assert always <= 0.05 * trials


def test_p_values_of_several_metrics_are_those_of_statsmodels() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.5, 0.04]
    assert holm_adjusted(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_uneven_arms_are_found_as_by_chi_squared() -> None:
    assert uneven_p(505_000, 495_000, 0.5) < 1e-20
    assert uneven_p(500_500, 499_500, 0.5) > 0.05
    assert uneven_p(520, 480, 0.5) == pytest.approx(stats.chisquare([520, 480]).pvalue)
    assert uneven_p(60, 940, 0.05) == pytest.approx(stats.chisquare([60, 940], [50, 950]).pvalue)


def test_units_that_an_effect_needs_are_those_of_statsmodels() -> None:
    needed = units_needed(math.sqrt(2 / 500), 500, 0.1)
    assert needed == pytest.approx(TTestIndPower().solve_power(0.1, alpha=0.05, power=0.8), rel=0.005)
    assert needed is not None
    assert smallest_effect(math.sqrt(2 / 500), 500, needed) == pytest.approx(0.1, rel=0.001)
    assert units_needed(0.0, 500, 0.1) is None


def test_few_units_tell_nothing() -> None:
    few = arm_units(mean(np.arange(50.0)), None)
    assert math.isnan(fixed_effect(few, few).low)
    assert fixed_effect(few, few).p == 1
