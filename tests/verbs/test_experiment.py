"""The verb `experiment` on releases with a known truth: what it says, and that other tools would say the same of its export."""

import json
import math
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.deploy.loops import LOOP
from tests.deploy.rollouts import Rollout

from loopwright.base.errors import UsageError
from loopwright.records.declarations import AB, Full, Guard, Release
from loopwright.records.declarations.stages import AnyStage
from loopwright.verbs import experiment as verb
from loopwright.verbs.experiment import ExperimentReport, experiment

PLAN: list[AnyStage] = [AB(metric="brier", minimum_effect=0.01, time="30d"), Full(watch="1h")]
GUARDED = Release(guards=[Guard("brier", tolerance=0.2, slices=["origin_slice"]), Guard("roc_auc", tolerance=0.2)], plan=PLAN)


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    rollout = Rollout(tmp_path_factory.mktemp("better"), {"weight": 0.05}, old={"weight": 0.0}, plan=PLAN, release=GUARDED)
    rollout.judge = lambda: None  # type: ignore[method-assign]  # the plan stays where it is
    for _ in range(4):
        rollout.serve(500, timedelta(hours=12))
    rollout.serve(10, timedelta(hours=1))
    return rollout


@pytest.fixture(scope="module")
def report(better: Rollout) -> ExperimentReport:
    return experiment(better.home, LOOP)


def test_experiment_names_the_effect_of_a_better_package_in_a_sentence(report: ExperimentReport) -> None:
    assert report.verdict.startswith("The new package is better: brier -0.")
    first = report.effects[0]
    assert (first.metric, first.primary, first.answer) == ("brier", True, "better")
    assert first.high is not None
    assert first.low is not None
    assert first.always_low is not None
    assert first.always_high is not None
    assert first.always_low < first.low < first.high < 0
    assert first.always_high > first.high
    assert {one.metric for one in report.effects if not one.slice} == {
        "brier",
        "roc_auc",
        "average_precision",
        "value_per_prediction",
    }
    assert {one.value for one in report.effects if one.slice} == {"JFK", "other"}


def test_several_metrics_are_corrected_and_the_primary_one_is_not(report: ExperimentReport) -> None:
    assert report.effects[0].p_adjusted == report.effects[0].p
    assert all(one.p_adjusted >= one.p for one in report.effects)
    assert any(one.p_adjusted > one.p for one in report.effects[1:])


def test_effect_of_each_day_and_power_are_there(report: ExperimentReport) -> None:
    assert [day.day for day in report.days] == ["2024-05-01", "2024-05-02", "2024-05-03"]
    assert sum(day.rows + day.control_rows for day in report.days) == pytest.approx(2000, abs=5)
    assert report.novelty_p is not None
    assert report.power is not None
    assert report.power.effect == 0.01
    assert [point.days for point in report.power.curve] == [7, 14, 28, 56]
    assert report.power.curve[0].smallest_effect == pytest.approx(2 * report.power.curve[2].smallest_effect, rel=0.01)


def test_export_gives_other_tools_the_same_effect(better: Rollout, report: ExperimentReport, tmp_path: Path) -> None:
    written = experiment(better.home, LOOP, export=tmp_path / "units.parquet").exported
    table = pq.read_table(written)
    assert table.column_names[:5] == ["unit", "arm", "package", "first_exposure", "rows"]
    frame = table.to_pandas()
    assert frame["unit"].is_unique
    arms = [frame[frame["arm"] == arm] for arm in ("treatment", "champion")]
    means = [arm["brier"].sum() / arm["rows"].sum() for arm in arms]
    first = report.effects[0]
    assert means == pytest.approx([first.new, first.old])
    error = math.sqrt(sum(arm["brier"].var() / len(arm) for arm in arms))
    assert first.error == pytest.approx(error, rel=1e-6)
    experiment(better.home, LOOP, export=tmp_path / "units.json")
    assert len(json.loads((tmp_path / "units.json").read_bytes())) == len(frame)


def test_uneven_arms_are_said_before_any_effect(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, {"weight": 0.05}, old={"weight": 0.0}, plan=PLAN, release=GUARDED)
    rollout.judge = lambda: None  # type: ignore[method-assign]  # the plan stays where it is
    rollout.loses = lambda answer: answer.arm == "treatment" and answer.unit.endswith(("0", "1", "2"))
    with rollout.home as home:
        rollout.serve(2000, timedelta(hours=1))
        rollout.serve(10, timedelta(hours=1))
        assert experiment(home, LOOP).verdict.startswith("Do not decide on this")


def test_past_release_is_found_by_its_generation_and_an_unknown_one_is_refused(better: Rollout) -> None:
    found = experiment(better.home, LOOP, release=2)
    assert found.generation == 2
    with pytest.raises(UsageError, match=r"--release 1: no release with two arms; those of late-arrival are 2"):
        experiment(better.home, LOOP, release=1)


def test_plan_says_how_many_units_an_effect_needs_before_anything_starts(better: Rollout) -> None:
    found = experiment(better.home, LOOP, plan=True, metric="brier", effect=0.02)
    assert found.power is not None
    assert found.power.units is not None
    assert found.power.units_always is not None
    assert found.power.units < found.power.units_always
    assert "units in each arm" in found.verdict
    half = experiment(better.home, LOOP, plan=True, metric="brier", effect=0.01).power
    assert half is not None
    assert half.units == pytest.approx(4 * found.power.units, rel=0.01)


def test_what_units_did_before_makes_intervals_shorter(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, {"weight": 0.0501}, plan=PLAN, release=GUARDED, tails=400, before=4000)
    rollout.judge = lambda: None  # type: ignore[method-assign]  # the plan stays where it is
    with rollout.home as home:
        rollout.serve(4000, timedelta(hours=2))
        rollout.serve(10, timedelta(hours=1))
        found = experiment(home, LOOP)
        first = found.effects[0]
        assert first.units + first.control_units == 400, "several flights of an aircraft are one unit"
        assert first.low is not None
        assert first.high is not None
        assert first.cuped_low is not None
        assert first.cuped_high is not None
        assert first.variance_saved > 0.2
        assert first.cuped_high - first.cuped_low < 0.92 * (first.high - first.low)
        assert first.answer == "cannot tell"
        assert "units in each arm would tell an effect of 0.010" in found.verdict


def test_large_experiment_is_analysed_on_a_sample_of_its_units(better: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "MAX_ROWS", 700)
    found = experiment(better.home, LOOP)
    assert found.sampled in (0.25, 0.125)
    assert found.effects[0].units + found.effects[0].control_units < 700
    assert found.rows > 900


def test_nothing_is_said_without_outcomes(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, {"weight": 0.0501}, plan=PLAN, release=GUARDED)
    with rollout.home as home:
        assert experiment(home, LOOP).verdict == "Nothing can be said yet: no outcome is in."
