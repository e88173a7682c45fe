"""The claims of benchmarks/honesty in small: fixed seeds, few trials. `make honesty` measures all of them in full."""

import re
from pathlib import Path

import numpy as np
import pytest
from benchmarks.honesty.__main__ import FILES, chosen, claims, merged, row, written
from benchmarks.honesty.calibration import BOOSTED, DEAR, attained
from benchmarks.honesty.choices import found_better, segments
from benchmarks.honesty.claims import Claim, Measured, Verdict, measure
from benchmarks.honesty.worlds import binary
from statsmodels.stats.proportion import proportion_confint

from loopwright.develop.fleet import choose
from loopwright.records.package import Output
from loopwright.tasks import metrics

TRIALS = 80
SMALL = [
    "binary, 1,000 rows, 2 % positive: recall",
    "binary, 1,000 rows, 2 % positive: average_precision",
    "binary, 25 customers of 20 to 100 rows: accuracy",
    "five classes, 60 customers: macro_f1",
    "numbers, lognormal errors (1), 300 rows: mae",
    "numbers, lognormal errors (1), 300 rows: rmse",
    "ranking, 40 customers of 2 to 10 groups: ndcg:10",
    "three quantiles, 400 rows: pinball",
    "calibrated model, 1,000 rows",
    "calibration error, small, 1,000 rows",
    "recall gap, 30 equal groups of 60",
    "recall gap, 10 groups of 150 from .6 to .9",
    "bias of 0.1 deviations, 200 rows",
    "ladder, 10 challengers equal to the heuristic: average_precision",
    "ladder, 9 equal challengers over a poor heuristic",
    "promise of the best of 5 equal candidates",
    "expected gain of the 20 largest of 200 segments",
    "decay, unchanged model, validation of 300 rows, a window of 500: roc_auc",
    "decay, unchanged model, validation of 300 rows, a window of 500: brier",
    "decay, signal of 50% in the ninth window, validation of 2,000, windows of 2,000",
    "release, equal package, units of 20 rows",
    "release, worse by the tolerance, 30 % positive",
    "total of 2 weeks, weekly shocks",
    "total of 8 weeks, weekly shocks",
    "scores, right, 500 rows",
    "scores, twice too sure, 1,000 rows",
]
SLOWER = [
    "drift, a year without: weekly shocks of .4 deviations",
    "drift, a year without: a season",
    "drift, 5,000 rows a week, weeks alike: mean + .3 deviations",
    "drift, 5,000 rows a week, weeks alike: a new category in 5 %, of 300",
    "drift, weekly shocks of .4 deviations: Fahrenheit as Celsius",
]
LEAKS = [claim.name for claim in claims("leakage")]
BY_NAME = {claim.name: claim for claim in claims()}


@pytest.mark.parametrize("name", SMALL)
def test_claim_holds(name: str) -> None:
    found = measure(BY_NAME[name], TRIALS)
    assert found.honest, f"{name}: {found.right:.1%} ± {found.error:.1%}, definite in {found.definite:.0%}"


def test_stationary_years_with_weekly_shocks_hardly_decay() -> None:
    """52 windows of 500 rows, a promise of 300: without an error of the promise 17 % of all windows were decayed."""
    for shock, most in ((0.0, 1), (0.15, 2)):
        lives = [
            BY_NAME[
                f"decay, stationary year, {'shocks of 0.15' if shock else 'no shocks'}, validation of 300, windows of 500: drop"
            ]
        ]
        lives.append(BY_NAME[lives[0].name.replace("drop", "harm")])
        for claim in lives:
            wrong = round(10 * (1 - measure(claim, 10).right))
            assert wrong <= most, claim.name


@pytest.mark.parametrize("name", SLOWER)
def test_claim_about_drift_holds(name: str) -> None:
    found = measure(BY_NAME[name], 4)
    assert found.honest, f"{name}: {found.right:.1%} ± {found.error:.1%}"


@pytest.mark.parametrize("name", LEAKS)
def test_claim_about_leaks_holds(name: str) -> None:
    found = measure(BY_NAME[name], 8)
    assert found.right >= (1 if "honest" in name else 0.75), name


def test_measure_refuses_a_claim_that_does_not_hold() -> None:
    wrong = Claim("seven of ten", "always", lambda rng: Verdict(True, rng.random() < 0.7))
    assert not measure(wrong, 200).honest
    silent = Claim("never told", "always", lambda rng: Verdict(False, False), definite=0.5)
    assert not measure(silent, 50).honest, "who says nothing is not honest where something was promised"


def test_measure_gives_the_mean_of_a_number() -> None:
    counted = Claim("alarms", "at most one a year", lambda rng: int(rng.poisson(3)), least=0.0, most=1.0, counts=True)
    found = measure(counted, 200)
    assert found.right == pytest.approx(3, abs=0.4)
    assert found.error == pytest.approx(3**0.5 / 200**0.5, rel=0.2)
    assert not found.honest
    assert measure(counted._replace(most=3.0), 200).honest


def test_section_keeps_the_rows_that_are_not_measured_again() -> None:
    first, second = claims()[:2]
    old = {c.name: row(Measured(c, 0.95, 0.01, 1.0, 400)) for c in (first, second)}
    again = written(merged(old | {"a claim that is gone": old[first.name]}))
    assert again == old
    text = merged(again | {first.name: row(Measured(first, 0.5, 0.01, 1.0, 400))})
    assert f"2 of {len(claims())} claims were measured by simulation, 1 not met" in text
    assert written(text)[second.name] == old[second.name]


def test_claims_are_chosen_by_file_or_by_a_part_of_their_name() -> None:
    assert chosen([]) == claims()
    assert chosen(["totals"]) == claims("totals")
    assert {c.name for c in chosen(["totals", "scores, right"])} > {c.name for c in claims("totals")}


def test_every_file_of_claims_is_in_the_table_and_no_name_twice() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "honesty"
    assert {p.stem for p in folder.glob("*.py") if re.search(r"^CLAIMS\b", p.read_text(), re.MULTILINE)} == set(FILES)
    assert len(BY_NAME) == len(claims())


def test_rows_of_a_customer_are_not_independent() -> None:
    world, hit = binary(0.2, 0.3), {True: 0, False: 0}
    many = world.draw(np.random.default_rng(0), 5000)
    true = metrics.compute("positive_rate", many.truth, *many.given)
    for seed in range(TRIALS):
        rows = world.draw(np.random.default_rng([seed, 1]), 60)
        for of_units in hit:
            units = rows.units if of_units else None
            found = metrics.intervals(["positive_rate"], rows.truth, *rows.given, seed=0, units=units)["positive_rate"]
            hit[of_units] += found.low <= true <= found.high
    assert hit[True] >= 0.85 * TRIALS
    assert hit[False] <= 0.75 * TRIALS


def test_calibration_earns_what_overconfident_trees_lose() -> None:
    lost, earned = [], []
    for seed in range(4):
        lost.append(attained(np.random.default_rng(seed), BOOSTED, 400, DEAR, plain=True)[0])
        earned.append(attained(np.random.default_rng(seed), BOOSTED, 400, DEAR)[0])
    assert max(lost) < -0.03, "acting where a value table forbids it"
    assert min(earned) >= -0.002


@pytest.mark.parametrize("metric", ["average_precision", "recall"])
def test_equal_segments_of_a_fleet_rarely_get_a_model(metric: str) -> None:
    fooled = sum(bool(choose(segments(np.random.default_rng(seed), 100, 100, 0, metric))) for seed in range(12))
    assert fooled <= 3, "at most 5 % of fleets"


def test_better_candidate_is_found_among_others_nearly_as_often_as_alone() -> None:
    alone, among = (sum(found_better(np.random.default_rng(seed), others) for seed in range(40)) for others in (0, 9))
    assert alone >= 30
    assert among >= 0.75 * alone


def test_share_has_the_interval_of_wilson() -> None:
    label = np.arange(12) < 9
    found = metrics.intervals(["recall"], np.ones(12, dtype=bool), label.astype(float), label, seed=0)["recall"]
    assert (found.low, found.high) == pytest.approx(proportion_confint(9, 12, method="wilson"))
    assert not found.too_few


@pytest.mark.parametrize("name", ["recall", "average_precision", "roc_auc"])
def test_fewer_than_ten_positives_are_too_few_to_tell(name: str) -> None:
    rng = np.random.default_rng(0)
    for positives, few in ((9, True), (10, False)):
        truth = np.arange(500) < positives
        score = np.clip(0.5 * truth + rng.random(500), 0, 1)
        assert metrics.intervals([name], truth, score, score > 0.5, seed=0)[name].too_few is few


def test_errors_of_which_one_outweighs_the_others_are_too_few_to_tell() -> None:
    said, truth = np.ones(200), np.zeros(200)
    assert not metrics.intervals(["mae"], truth, said, output=Output(task="regression"), seed=0)["mae"].too_few
    said[0] = 1e6
    assert metrics.intervals(["mae"], truth, said, output=Output(task="regression"), seed=0)["mae"].too_few


def test_units_beyond_a_thousand_are_drawn_in_bags_that_keep_variance_and_skewness() -> None:
    values = np.random.default_rng(0).exponential(1, 50_000)
    found = metrics.total(values)
    half = 1.96 * values.std() * 50_000**0.5
    assert (found.low, found.high) == pytest.approx((values.sum() - half, values.sum() + half), abs=0.15 * half)
