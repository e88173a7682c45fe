from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.traffic import LOOP, OUTCOME, SCOPE, START, VALUE, WEEK, World, package, rows, truths

from loopwright.business.costs import compute_cost
from loopwright.business.value import account, expected, money_over_heuristic, value
from loopwright.records.declarations import Outcome, Value
from loopwright.records.evaluation import Estimate, Leaderboard, LeaderboardRow
from loopwright.records.package import Output
from loopwright.records.turns import Step
from loopwright.records.windows import ValueWindow
from loopwright.stores.outcomes.rescore import score
from loopwright.stores.prediction_log.read import predictions
from loopwright.tasks import metrics

SPAN: dict[str, Any] = {"start": START, "end": START + WEEK, "known_at": START + WEEK}


def money(table: Value, truth: Any, label: Any) -> Any:
    """Money of each row of yes and no."""
    return metrics.money(table, Output(), truth, metrics.Answered(label.astype(float), label))[0]


def of(truth: Any, label: Any, heuristic: Any, table: Value = VALUE) -> ValueWindow:
    arrays = [np.array(a, dtype=bool) for a in (truth, label, heuristic)]
    given, rule = (metrics.Answered(a.astype(float), a) for a in arrays[1:])
    return value(arrays[0], given, rule, table, output=Output(), predictions=len(arrays[0]), **SPAN)


def test_each_row_is_paid_by_the_value_table() -> None:
    table = Value(true_positive=4, false_positive=2, true_negative=3, false_negative=1)
    paid = money(table, np.array([True, False, False, True]), np.array([True, True, False, False]))
    assert paid.tolist() == [4, 2, 3, 1]


def test_totals_are_sums_over_the_rows_and_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    truth, label, heuristic = (rng.random(5000) < p for p in (0.3, 0.35, 0.2))
    table = Value(true_positive=120, false_positive=-15, true_negative=2, false_negative=-60)
    found = of(truth, label, heuristic, table)
    model, other, nothing = (money(table, truth, x) for x in (label, heuristic, np.zeros(5000, bool)))
    assert found.model.value == pytest.approx(model.sum())
    assert found.heuristic.value == pytest.approx(other.sum())
    assert found.no_model == pytest.approx(nothing.sum())
    assert found.over_no_model.value == pytest.approx((model - nothing).sum())
    assert found.over_heuristic.value == pytest.approx((model - other).sum())
    assert sum(found.counts.values()) == found.with_outcome == 5000
    assert found.counts["false positive"] == int((label & ~truth).sum())


def test_the_interval_is_that_of_resampling_rows() -> None:
    """The studentised interval against a plain bootstrap over rows, and the normal approximation."""
    rng = np.random.default_rng(1)
    truth = rng.random(3000) < 0.3
    label, heuristic = truth ^ (rng.random(3000) < 0.2), truth ^ (rng.random(3000) < 0.3)
    found = of(truth, label, heuristic).over_heuristic
    per_row = money(VALUE, truth, label) - money(VALUE, truth, heuristic)
    plain = np.array([per_row[rng.integers(0, 3000, 3000)].sum() for _ in range(2000)])
    half = 1.96 * per_row.std() * 3000**0.5
    for low, high in (np.percentile(plain, [2.5, 97.5]), (per_row.sum() - half, per_row.sum() + half)):
        assert found.low == pytest.approx(low, abs=0.1 * half)
        assert found.high == pytest.approx(high, abs=0.1 * half)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    mean = 500 * (0.3 * 0.8 * 180 + 0.7 * 0.2 * -15)
    covered = 0
    for _ in range(200):
        truth = rng.random(500) < 0.3
        label = truth ^ (rng.random(500) < 0.2)
        found = of(truth, label, truth).over_no_model
        covered += found.low <= mean <= found.high
    assert 180 <= covered <= 198


def test_the_same_answers_as_the_heuristic_are_worth_exactly_as_much() -> None:
    same = np.random.default_rng(3).random(400) < 0.4
    found = of(~same, same, same).over_heuristic
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_nothing_known_is_no_money_and_not_an_error() -> None:
    found = of([], [], [])
    assert (found.with_outcome, found.model.value, found.over_no_model.n) == (0, 0, 0)


def test_cost_is_machine_time_at_the_price_of_the_hour() -> None:
    assert compute_cost(1800, 0.10) == pytest.approx(0.05)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def read(world: World, outcome: Outcome = OUTCOME) -> ValueWindow | None:
    return account(world.home, loop_name=LOOP, scope=SCOPE, outcome=outcome, **{**SPAN, "known_at": world.clock.now()})


def test_a_week_is_accounted_from_log_outcomes_and_the_heuristic_graph(world: World) -> None:
    given = world.week(0)
    world.clock.advance(timedelta(hours=4))
    found = read(world)
    assert found is not None
    truth = np.array(truths(given)) > 15
    by_flight = {p["_unit"]: p["_label"] for p in predictions(world.home, LOOP).to_pylist()}
    label = np.array([by_flight[r["flight"]] for r in given])
    rule = np.array([r["delay"] > 15 for r in given])
    assert found.with_outcome == found.predictions == 1000
    assert found.model.value == pytest.approx(money(VALUE, truth, label).sum())
    assert found.heuristic.value == pytest.approx(money(VALUE, truth, rule).sum())
    assert found.over_no_model.value > 0


def test_only_rows_whose_outcome_is_known_are_paid(world: World) -> None:
    given = rows(1000, START)
    world.predict(given)
    assert read(world) is not None
    world.tell(given[:400], truths(given)[:400])
    world.clock.advance_to(START + WEEK)
    found = read(world)
    assert found is not None
    assert (found.predictions, found.with_outcome) == (1000, 400)


def test_a_silent_week_has_no_account(world: World) -> None:
    assert read(world) is None


def test_each_package_is_compared_with_its_own_heuristic_and_a_lost_one_is_left_out(world: World) -> None:
    given = rows(600, START)
    first = world.package
    world.predict(given[:200])
    world.release(package(world.home, weight=0.2))
    world.predict(given[200:])
    world.tell(given, truths(given))
    world.clock.advance_to(START + WEEK + WEEK)
    both = read(world)
    (world.home.packages.folder / first.digest / "manifest.json").write_bytes(b"{}")
    one = read(world)
    assert both is not None
    assert one is not None
    assert (both.with_outcome, one.with_outcome, one.predictions) == (600, 400, 600)


def test_the_heuristic_answers_for_every_row(world: World) -> None:
    given = rows(50, START)
    world.predict(given)
    table = predictions(world.home, LOOP)
    label = score(world.package, table, heuristic=True).label
    assert label is not None
    said = dict(zip(table["_unit"].to_pylist(), label.tolist(), strict=True))
    assert said == {r["flight"]: r["delay"] > 15 for r in given}


def test_the_cost_of_a_window_is_its_predictions_and_its_turns(world: World) -> None:
    world.predict(rows(1000, START))
    world.clock.advance(timedelta(days=1))
    step = Step(turn="t", stage="develop", state="done", started=START, seconds=3600.0, summary="", output={})
    world.home.ledger.put(step, loop=LOOP, key="t")
    world.clock.advance(WEEK)
    world.home.ledger.put(step, loop=LOOP, key="u")
    found = read(world)
    assert found is not None
    assert found.cost == pytest.approx(0.10 * (3600 + 1000 * 40e-6) / 3600)


def test_what_a_leaderboard_expects() -> None:
    def row(candidate: str, phase: int, worth: float) -> LeaderboardRow:
        measures = {"value_per_prediction": worth}
        return LeaderboardRow(
            rank=1, candidate=candidate, phase=phase, package=candidate * 2, measures=measures, intervals={}, met={}, score=1.0
        )

    board = Leaderboard(
        turn="t",
        as_of=START,
        examples="",
        rows=[row("trees", 3, 21.0), row("rule", 1, 14.0)],
        comparisons=[],
        weights={},
        verdict="",
        winner="treestrees",
    )
    assert expected(board) == (21.0, 14.0)


def test_numbers_are_paid_by_how_far_they_are_off() -> None:
    """Regression: against a plain bootstrap over rows."""
    rng = np.random.default_rng(5)
    truth, number = rng.normal(50, 10, 2000), Output(task="regression")
    given, rule = (metrics.Answered(truth + rng.normal(0, s, 2000)) for s in (1, 3))
    table = Value(correct=4, under=-2, over=-1)
    found = value(truth, given, rule, table, output=number, predictions=2000, **SPAN)
    per_row = (metrics.money(table, number, truth, g)[0] for g in (given, rule))
    difference = next(per_row) - next(per_row)
    assert found.over_heuristic.value == pytest.approx(difference.sum())
    assert found.over_no_model.value == found.model.value
    assert found.counts == {"under": int((given.score < truth).sum()), "over": int((given.score > truth).sum()), "exact": 0}
    plain = np.array([difference[rng.integers(0, 2000, 2000)].sum() for _ in range(1000)])
    half = 1.96 * difference.std() * 2000**0.5
    assert (found.over_heuristic.low, found.over_heuristic.high) == pytest.approx(
        np.percentile(plain, [2.5, 97.5]), abs=0.15 * half
    )


def test_without_a_value_table_nothing_is_made_over_the_heuristic() -> None:
    """A winner whose figure was drawn to the others' has no money that could be."""
    luck = {"average_precision": Estimate(value=0.8, low=0.7, high=0.9, n=500)}
    rows = [
        LeaderboardRow(
            rank=1,
            candidate=name,
            phase=phase,
            package=name,
            measures={"average_precision": 0.8},
            intervals={},
            met={},
            score=1.0,
            shrunk=luck,
        )
        for name, phase in (("heuristic", 1), ("trees", 3))
    ]
    board = Leaderboard(turn="t", as_of=START, examples="", rows=rows, comparisons=[], weights={}, verdict="", winner="trees")
    assert money_over_heuristic(board) == ""
