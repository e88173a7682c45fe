"""Confidence sequences between two arms: how often they are wrong at any of many looks, and when they tell."""

import math
from typing import Any

import numpy as np
import pytest

from loopwright.records.package import Output
from loopwright.tasks.metrics import Answered
from loopwright.tasks.metrics.estimate import statistics_of
from loopwright.tasks.metrics.resample import Units
from loopwright.tasks.metrics.sequence import (
    MIN_EVENTS,
    MIN_UNITS,
    Share,
    arm_difference,
    halvings_of,
    level_of,
    mixture_deviations,
    share_difference,
    share_end,
    share_of,
    unit_sums,
)
from loopwright.tasks.statistic import mean

ALPHA = 0.05


def rows(rng: np.random.Generator, n: int, rate: float, of_unit: int = 1, loss: float = 0.0) -> tuple[Any, Any, Any]:
    """Truth, score and unit of N rows; units of several rows share a base rate."""
    unit = np.arange(n) // of_unit
    logit = math.log(rate / (1 - rate)) + (rng.normal(size=n)[unit] if of_unit > 1 else 0.0)
    truth = rng.random(n) < 1 / (1 + np.exp(-logit))
    return truth, 1 / (1 + np.exp(-(rng.normal(size=n) + (1.5 - loss) * truth))), unit


def first_certain(
    rng: np.random.Generator, metric: str, looks: list[int], *, rate: float, of_unit: int = 1, loss: float = 0.0
) -> int:
    """The look (rows in each arm) at which a difference is first called certain; 0 where none is."""
    arms = [rows(rng, looks[-1], rate, of_unit, loss if new else 0.0) for new in (False, True)]
    for n in looks:
        sides = []
        for truth, score, unit in arms:
            (one,) = statistics_of([metric], truth[:n], Answered(score[:n], score[:n] >= 0.5, None), Output(), None, None, None)
            sides.append((one, Units(unit[:n], n)))
        (old, old_units), (new, new_units) = sides
        found = arm_difference(new, new_units, old, old_units, alpha=ALPHA, planned=4000)
        if found.low > 0 or found.high < 0:
            return n
    return 0


@pytest.mark.parametrize(("metric", "rate", "of_unit"), [
    ("roc_auc", 0.3, 1), ("log_loss", 0.05, 1), ("average_precision", 0.05, 1), ("recall", 0.3, 1), ("roc_auc", 0.3, 20), ("log_loss", 0.01, 1),
])  # fmt: skip
def test_equal_arms_differ_at_any_of_many_looks_in_less_than_alpha(metric: str, rate: float, of_unit: int) -> None:
    rng = np.random.default_rng(7)
    looks = [*range(100, 1000, 100), *range(1000, 4001, 250)]
    wrong = sum(first_certain(rng, metric, looks, rate=rate, of_unit=of_unit) > 0 for _ in range(60))
    assert wrong <= 6, "5 % of 60, and two standard errors"


def test_worse_arm_is_told_early_and_a_better_interval_needs_more_looks() -> None:
    rng = np.random.default_rng(7)
    when = [first_certain(rng, "roc_auc", [*range(200, 8001, 200)], rate=0.3, loss=0.4) for _ in range(20)]
    assert min(when) > 0
    assert np.median(when) < 4000


def test_nothing_is_told_on_few_units_or_events() -> None:
    rng = np.random.default_rng(7)
    assert first_certain(rng, "roc_auc", [MIN_UNITS - 1], rate=0.5, loss=10.0) == 0
    assert first_certain(rng, "recall", [2000], rate=MIN_EVENTS / 4000, loss=10.0) == 0
    assert first_certain(rng, "roc_auc", [4 * MIN_UNITS], rate=0.5, loss=10.0) > 0


def test_deviations_are_those_of_the_normal_mixture_and_narrowest_near_the_plan() -> None:
    for alpha in (0.05, 0.005):
        by_units = {n: mixture_deviations(n, 1000, alpha) for n in (10, 100, 500, 1000, 2000, 10_000, 10**6)}
        fixed = 1.959964 if alpha == 0.05 else 2.807
        assert min(by_units.values()) > fixed, "looking at any time costs something"
        assert min(by_units, key=lambda n: by_units[n]) in (500, 1000, 2000)


@pytest.mark.parametrize("of_unit", [1, 10])
@pytest.mark.parametrize("rate", [0.001, 0.02])
def test_share_of_rare_events_is_exact_at_any_look(rate: float, of_unit: int) -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        n = 3000
        unit = np.arange(n) // of_unit
        hits = [np.repeat(rng.random(n // of_unit) < rate, of_unit) for _ in range(2)]  # all rows of a unit, or none
        for look in range(100, n + 1, 100):
            old, new = (share_of(unit_sums(each[:look], unit[:look])) for each in hits)
            found = share_difference(new, old, alpha=ALPHA)
            if found.low > 0 or found.high < 0:
                wrong += 1
                break
    assert wrong <= 200 * ALPHA


def test_share_that_jumps_is_told_in_a_few_rows() -> None:
    assert share_difference(Share(30, 60), Share(0, 60), alpha=0.01).low > 0
    assert not share_difference(Share(1, 60), Share(0, 60), alpha=0.01).low > 0
    assert math.isinf(share_difference(Share(0, 0), Share(1, 60), alpha=0.01).high)


def test_ends_of_a_share_hold_it_and_lie_where_the_mixture_is_as_much_likelier() -> None:
    for hits, of in ((0, 50), (3, 50), (25, 50), (50, 50)):
        low, high = (share_end(Share(hits, of), 0.05, upper=upper) for upper in (False, True))
        assert 0 <= low <= hits / of <= high <= 1
        mixture = math.lgamma(hits + 0.5) + math.lgamma(of - hits + 0.5) - math.lgamma(of + 1) - 2 * math.lgamma(0.5)
        for end in (low, high):
            if 0 < end < 1:
                assert mixture - hits * math.log(end) - (of - hits) * math.log1p(-end) == pytest.approx(
                    math.log(1 / 0.05), abs=1e-6
                )


def test_small_arm_that_is_right_by_chance_does_not_look_sure_of_it() -> None:
    """A hold-back of 120 rows beside 2,400: its own rows alone say an error of nearly 0."""
    rng = np.random.default_rng(1)
    large, small = rng.normal(size=2400), np.linspace(-0.01, 0.01, 120)
    found = arm_difference(mean(large), Units(None, 2400), mean(small), Units(None, 120), alpha=ALPHA, planned=4000)
    assert found.error == pytest.approx(large.std() * math.sqrt(2400 / 2520 * (1 / 2400 + 1 / 120)), rel=0.05)
    even = arm_difference(
        mean(large), Units(None, 2400), mean(rng.normal(size=2400)), Units(None, 2400), alpha=ALPHA, planned=4000
    )
    assert even.error == pytest.approx(math.sqrt(2 / 2400), rel=0.05), "with arms of one size nothing changes"


def test_equal_arms_differ_in_less_than_alpha_while_the_units_are_halved_again_and_again() -> None:
    rng, most, wrong, halved = np.random.default_rng(5), 400, 0, set()
    for _ in range(300):
        arms = [(rng.normal(size=6400), rng.random(6400)) for _ in range(2)]  # values, hashes of the units
        for n in range(200, 6401, 100):
            halvings = halvings_of(n, most)
            halved.add(halvings)
            parts = [values[:n][hashes[:n] < 0.5**halvings] for values, hashes in arms]
            (new, new_units), (old, old_units) = ((mean(part), Units(None, len(part))) for part in parts)
            level = level_of(ALPHA, halvings)
            found = arm_difference(new, new_units, old, old_units, alpha=level, planned=500)
            if found.low > 0 or found.high < 0:
                wrong += 1
                break
    assert halved == {0, 1, 2, 3, 4}
    assert wrong <= 15, "5 % of 300"


def test_levels_of_all_halvings_add_up_to_alpha() -> None:
    assert sum(level_of(ALPHA, halvings) for halvings in range(60)) == pytest.approx(ALPHA)
    assert [halvings_of(rows, 100) for rows in (0, 100, 101, 200, 201)] == [0, 0, 1, 1, 2]


def test_share_of_clustered_rows_is_worth_as_many_rows_as_its_units_tell() -> None:
    rng = np.random.default_rng(2)
    units = np.arange(20_000) // 10
    alike = np.repeat(rng.random(2000) < 0.1, 10)
    found = share_of(unit_sums(alike, units))
    assert found.of == pytest.approx(2000, rel=0.01)
    assert found.value == pytest.approx(alike.mean())
    assert share_of(unit_sums(alike, np.arange(20_000))) == Share(alike.sum(), 20_000)
    single = np.zeros(20_000, np.bool_)
    single[:500] = True
    assert share_of(unit_sums(single, np.where(np.arange(20_000) < 500, 0, 1 + np.arange(20_000)))).hits < 1.1, (
        "one unit, one event"
    )
