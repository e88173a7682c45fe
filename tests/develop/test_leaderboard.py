import math
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from loopwright.base.errors import DeclarationInvalid
from loopwright.develop.leaderboard import (
    climb,
    desirability,
    parse_weights,
    pays,
    primary_metric,
    rank,
    reweigh,
    shrink,
    verdict,
)
from loopwright.records.declarations import Objective
from loopwright.records.evaluation import Comparison, Estimate, Evaluation, Leaderboard, LeaderboardRow
from loopwright.records.package import Output
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered

CATCH = Objective("catch", "operations", "average_precision", at_least=0.8, weight=3)
FAST = Objective("fast", "product", "latency_p99_ms", at_most=5)
MONEY = Objective("money", "finance", "value_per_prediction", at_least=2)
CALM = Objective("calm", "product", "log_loss", at_most=0)
OBJECTIVES = [CATCH, FAST]


def row(name: str, phase: int, precision: float, milliseconds: float) -> LeaderboardRow:
    measures = {"average_precision": precision, "latency_p99_ms": milliseconds, "latency_p50_us": milliseconds * 500}
    return LeaderboardRow(
        rank=0, candidate=name, phase=phase, package=name * 3, measures=measures, intervals={}, met={}, score=0
    )


def compared(
    challenger: str, incumbent: str, value: float, spread: float, latency: float = 0.0, metric: str = "average_precision"
) -> Comparison:
    return Comparison(
        challenger=challenger,
        incumbent=incumbent,
        metric=metric,
        difference=Estimate(value, value - spread, value + spread, 1000),
        latency_difference_us=latency,
    )


ROWS = [row("rule", 1, 0.6, 0.01), row("simple", 2, 0.85, 0.1), row("boosted", 3, 0.88, 0.2), row("deep", 4, 0.885, 0.3)]
COMPARISONS = [
    compared("simple", "rule", 0.25, 0.01, 40),
    compared("boosted", "rule", 0.28, 0.01, 90),
    compared("boosted", "simple", 0.03, 0.01, 50),
    compared("deep", "rule", 0.281, 0.01, 100),
    compared("deep", "simple", 0.031, 0.01, 60),
    compared("deep", "boosted", 0.001, 0.004, 20),
]


@pytest.mark.parametrize("objective", [CATCH, FAST, MONEY, CALM])
def test_desirability_is_half_at_the_target_and_monotone(objective: Objective) -> None:
    target = objective.at_least if objective.at_least is not None else objective.at_most or 0.0
    better = 1 if objective.at_least is not None else -1
    values = np.linspace(target - 0.8, target + 0.2, 41) if objective is CATCH else np.linspace(target - 9, target + 9, 181)
    found = np.array([desirability(objective, v) for v in values])
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) * better >= -1e-12).all()
    if target:
        assert desirability(objective, target) == pytest.approx(0.5)
    assert desirability(objective, math.nan) == 0


def test_the_best_possible_is_one() -> None:
    assert desirability(CATCH, 1.0) == 1
    assert desirability(FAST, 0.0) == 1


def test_ten_microseconds_more_hardly_matter_against_five_milliseconds() -> None:
    assert 0 < desirability(FAST, 0.05) - desirability(FAST, 0.06) < 0.002


def test_rank_orders_by_weighted_score() -> None:
    weights = {"catch": 3.0, "fast": 1.0}
    ranked = rank(ROWS, OBJECTIVES, weights)
    assert [r.candidate for r in ranked] == ["deep", "boosted", "simple", "rule"]
    assert [r.rank for r in ranked] == [1, 2, 3, 4]
    best = ranked[0]
    assert best.score == pytest.approx((3 * (0.5 + 0.5 * 0.085 / 0.2) + (1 - 0.5 * 0.3 / 5)) / 4)
    assert best.met == {"catch": True, "fast": True}
    assert ranked[-1].met == {"catch": False, "fast": True}
    assert [r.candidate for r in rank(ROWS, OBJECTIVES, {"catch": 0.0, "fast": 1.0})] == ["rule", "simple", "boosted", "deep"]


def test_a_tie_goes_to_the_simpler() -> None:
    twins = [row("complex", 4, 0.85, 0.1), row("simple", 2, 0.85, 0.1)]
    assert [r.candidate for r in rank(twins, OBJECTIVES, {})] == ["simple", "complex"]


def test_the_ladder_is_climbed_only_on_evidence() -> None:
    rows = rank(ROWS, OBJECTIVES, {})
    winner, steps = climb(rows, COMPARISONS)
    assert winner.candidate == "boosted"  # though "deep" has the higher score: its interval includes zero
    assert [(s.challenger, s.incumbent) for s in steps] == [("simple", "rule"), ("boosted", "simple"), ("deep", "boosted")]
    said = verdict(rows, COMPARISONS, {"odd": "no converter"})
    assert "boosted beats simple by 0.030 [0.020, 0.040] average precision and costs 50 µs more" in said
    assert "deep does not pay (+0.001 [-0.003, 0.005] average precision against boosted)" in said
    assert "odd is left out (no converter)" in said
    assert said.endswith("boosted wins")


def test_a_rung_that_does_not_pay_is_stepped_over() -> None:
    comparisons = [
        compared("simple", "rule", 0.001, 0.01),
        compared("boosted", "rule", 0.28, 0.01),
        compared("deep", "boosted", -0.1, 0.01),
    ]
    winner, steps = climb(rank(ROWS, OBJECTIVES, {}), comparisons)
    assert winner.candidate == "boosted"
    assert [s.incumbent for s in steps] == ["rule", "rule", "boosted"]


def test_the_heuristic_may_win() -> None:
    rows = rank(ROWS[:2], OBJECTIVES, {})
    comparisons = [compared("simple", "rule", -0.01, 0.005)]
    assert climb(rows, comparisons)[0].candidate == "rule"
    assert verdict(rows, comparisons).endswith("rule wins, short of: catch")


def with_money(comparison: Comparison, low: float, high: float) -> Comparison:
    return msgspec.structs.replace(comparison, money=Estimate((low + high) / 2, low, high, 1000))


def test_a_rung_that_surely_loses_money_does_not_pay() -> None:
    ranked = rank(ROWS[:2], OBJECTIVES, {"catch": 3, "fast": 1})
    lossy = [with_money(COMPARISONS[0], -0.2, -0.04)]
    assert climb(ranked, lossy)[0].candidate == "rule"
    assert verdict(ranked, lossy).startswith(
        "simple does not pay: it beats rule by 0.250 [0.240, 0.260] average precision, but makes less money than rule "
        "(-0.12 [-0.20, -0.04] a prediction); rule wins"
    )
    assert climb(ranked, [with_money(COMPARISONS[0], -0.2, 0.04)])[0].candidate == "simple", "not surely less"


def test_a_rung_that_earns_less_than_the_heuristic_does_not_pay_although_it_earns_more_than_the_rung_below() -> None:
    ranked = rank(ROWS[:3], OBJECTIVES, {"catch": 3, "fast": 1})
    found = [
        with_money(COMPARISONS[0], -0.5, 0.1),
        with_money(COMPARISONS[1], -0.3, -0.1),
        with_money(COMPARISONS[2], 0.01, 0.02),
    ]
    assert climb(ranked, found)[0].candidate == "simple"
    assert "boosted does not pay" in verdict(ranked, found)
    assert "makes less money than rule" in verdict(ranked, found)


def test_paying_follows_the_direction_of_the_metric() -> None:
    assert pays(compared("a", "b", -0.1, 0.05, metric="log_loss"))
    assert not pays(compared("a", "b", 0.1, 0.05, metric="log_loss"))
    assert not pays(compared("a", "b", math.nan, math.nan))


def test_primary_metric_is_that_of_the_weightiest_objective_of_rows() -> None:
    assert primary_metric([FAST, CATCH]) == "average_precision"
    gap = Objective("fair", "partners", "recall_gap:carrier", at_most=0.1, weight=9)
    assert primary_metric([gap, MONEY, FAST]) == "value_per_prediction"
    assert primary_metric([FAST]) == "average_precision"


def test_a_gain_that_one_of_so_many_comparisons_has_by_chance_does_not_pay() -> None:
    step = compared("simple", "rule", 0.25, 0.01)
    assert pays(msgspec.structs.replace(step, adjusted_p=0.049))
    lucky = msgspec.structs.replace(step, adjusted_p=0.2)
    assert not pays(lucky)
    ranked = rank(ROWS[:2], OBJECTIVES, {})
    assert climb(ranked, [lucky])[0].candidate == "rule"
    assert (
        "simple does not pay: it beats rule by 0.250 [0.240, 0.260] average precision, but among so many comparisons one looks like "
        "that by chance in 20%" in verdict(ranked, [lucky])
    )
    unsure = msgspec.structs.replace(compared("simple", "rule", 0.01, 0.02), adjusted_p=0.01)
    assert not pays(unsure), "its own interval has zero"


def test_verdict_names_who_may_be_as_good_and_what_to_expect_of_the_winner() -> None:
    lower = Estimate(0.874, 0.864, 0.884, 1000)
    rows = [
        msgspec.structs.replace(
            r, may_be_best=r.phase > 1, shrunk={"average_precision": lower} if r.candidate == "boosted" else {}
        )
        for r in rank(ROWS, OBJECTIVES, {})
    ]
    said = verdict(rows, COMPARISONS)
    assert "boosted wins; it cannot be told from deep; expect 0.874 average precision of it rather than 0.880" in said
    assert "told from deep and simple" not in said, "simple is beaten"


def test_shrunk_figures_are_those_of_candidates_that_may_be_best() -> None:
    rng = np.random.default_rng(3)
    signal = rng.normal(size=600)
    truth = rng.random(600) < 1 / (1 + np.exp(-2 * signal))
    scores = [1 / (1 + np.exp(-2 * signal - noise * rng.normal(size=600))) for noise in (5.0, 0.8, 0.8, 0.8, 0.8)]
    given = [Answered(score, score > 0.5) for score in scores]
    name = "average_precision"
    side = metrics.contest(name, truth, given, seed=1, output=Output())
    found = [metrics.intervals([name], truth, *each, seed=1) for each in given]
    made = shrink([evaluation(one) for one in found], {name: side})
    assert [one.may_be_best for one in made] == [False, True, True, True, True]
    best = max(made, key=lambda one: one.metrics[name].value)
    assert best.promised[name].value < best.metrics[name].value
    assert best.promised[name].high - best.promised[name].low == pytest.approx(best.metrics[name].high - best.metrics[name].low)
    worst = min(made[1:], key=lambda one: one.metrics[name].value)
    assert worst.promised == worst.metrics


def evaluation(measured: dict[str, Estimate]) -> Evaluation:
    return Evaluation(
        rows=600, positives=300, threshold=0.5, metrics=measured, slices={}, latency_p50_us=1.0, latency_p99_us=1.0, size_bytes=1,
        train_seconds=1.0, value_per_prediction=0.0,
    )  # fmt: skip


def test_other_weights_give_another_order_and_winner() -> None:
    rows = rank(ROWS, OBJECTIVES, {})
    board = Leaderboard(
        turn="t", as_of=datetime(2013, 4, 1, tzinfo=UTC), examples="e", rows=rows, comparisons=COMPARISONS, weights={}, verdict="", winner="",
    )  # fmt: skip
    again = reweigh(board, OBJECTIVES, parse_weights("catch=0, fast=2", OBJECTIVES))
    assert again.weights == {"catch": 0.0, "fast": 2.0}
    assert again.winner == "rulerulerule"
    assert again.rows[0].candidate == "rule"
    assert "the objectives as weighted like it less" in again.verdict


@pytest.mark.parametrize("text", ["speed=3", "catch=much", "catch=-1", "catch=nan", "catch=inf", "catch"])
def test_wrong_weights_are_named(text: str) -> None:
    with pytest.raises(DeclarationInvalid, match=text.partition("=")[0]):
        parse_weights(text, OBJECTIVES)
