"""A stage in which the new package answers logged requests again: row by row beside the old one, apart from what clients got."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.deploy.loops import LOOP, NOW, model_graph, package
from tests.deploy.rollouts import Rollout
from tests.deploy.test_controller import EQUAL, FAILING, WORSE, WORSE_AT_JFK

from loopwright.deploy import releases
from loopwright.deploy.blocklist import bad_packages
from loopwright.records.declarations import Canary, Guard, Release, Shadow
from loopwright.records.declarations.stages import AnyStage
from loopwright.records.releases import Arm
from loopwright.stores.outcomes.labelled import with_truth
from loopwright.stores.prediction_log.read import predictions, stored, summary
from loopwright.verbs.trace import trace

GUARDS = [Guard("average_precision", tolerance=0.05, slices=["origin_slice"])]


def rollout(folder: Path, new: Any, **changes: Any) -> Rollout:
    plan: list[AnyStage] = [Shadow(time="1h", rows=500, **changes), Canary(share=0.5, time="1h", rows=200)]
    return Rollout(folder, new, plan=plan, release=Release(guards=GUARDS, plan=plan))


def test_equal_package_goes_on_to_the_canary_and_no_client_has_seen_it(tmp_path: Path) -> None:
    found = rollout(tmp_path, EQUAL, flips=0.05)
    with found.home as home:
        assert (found.state.arms, found.state.shadow) == ([Arm(package=found.old)], Arm(package=found.new, name="shadow"))
        first = found.serve(500)
        assert first is not None
        assert (first.answer, first.rows, first.left_out) == ("hold", 500, 0)
        while found.state.stage == 0:
            verdict = found.serve(500)
        assert verdict is not None
        assert verdict.answer == "on"
        assert found.state.shadow is None
        assert [arm.name for arm in found.state.arms] == ["champion", "canary"]
        assert {(answer.package, answer.arm) for _, answer in found.answers} == {(found.old, "champion")}
        assert verdict.flips is not None
        assert verdict.score_difference is not None
        assert verdict.flips < 0.05
        _check_logs(found, home)


def _check_logs(found: Rollout, home: Any) -> None:
    """Nothing that reads predictions counts a shadow; every shadow has the id of its prediction, and `trace` shows it."""
    logged, shadows = predictions(home, LOOP), stored(home, "shadows", LOOP)
    assert set(logged["_arm"].to_pylist()) == {"champion"}
    assert (logged.num_rows, summary(home, LOOP)[0]) == (len(found.answers), len(found.answers))
    assert set(shadows["_id"].to_pylist()) == set(logged["_id"].to_pylist())
    assert set(shadows["_package"].to_pylist()) == {found.new}
    assert with_truth(
        home, LOOP, found.loop.outcome, start=NOW, end=found.clock.now(), known_at=found.clock.now()
    ).num_rows == len(found.answers)
    told = trace(home, found.answers[0][1].id)
    assert told.shadow is not None
    assert (told.package, told.shadow.package) == (found.old, found.new)
    assert abs(told.score - told.shadow.score) < 0.05


def test_package_that_flips_more_than_declared_is_sent_back_before_any_outcome(tmp_path: Path) -> None:
    found = rollout(tmp_path, {"weight": -0.05}, flips=0.05)
    with found.home:
        verdict = found.serve(300, timedelta(minutes=10))
        assert verdict is not None
        assert (verdict.answer, verdict.worse[0].name) == ("back", "flips")
        assert len(verdict.shown_by) == 20
        assert (found.state.arms, found.state.shadow) == ([Arm(package=found.old)], None)
        assert list(bad_packages(found.home, LOOP)) == [found.new]
        told = trace(found.home, verdict.shown_by[0])
        assert told.shadow is not None
        assert told.label != told.shadow.label


def test_flips_on_one_slice_are_found_there(tmp_path: Path) -> None:
    found = rollout(tmp_path, WORSE_AT_JFK, flips=0.6)
    with found.home:
        verdict = found.serve(300, timedelta(minutes=10))
        assert verdict is not None
        named = {f.value: f.new for f in verdict.findings if f.metric == "flips" and f.slice == "origin_slice"}
        assert named["JFK"] is not None
        assert named["other"] is not None
        assert named["JFK"] > 0.2
        assert named["other"] == 0


def test_package_that_is_worse_on_the_same_rows_is_sent_back_with_few_of_them(tmp_path: Path) -> None:
    found = rollout(tmp_path, WORSE)
    with found.home:
        found.serve(400)
        verdict = found.serve(400)
        assert verdict is not None
        assert (verdict.answer, verdict.worse[0].layer) == ("back", "quality")
        assert verdict.with_outcome < 800


def test_failing_package_is_sent_back_and_no_client_was_answered_by_a_fall_back(tmp_path: Path) -> None:
    found = rollout(tmp_path, FAILING)
    with found.home:
        verdict = found.serve(3000, timedelta(minutes=10))
        assert verdict is not None
        assert [f.metric for f in verdict.worse] == ["degraded_share"]
        assert not any("degraded" in answer.flags for _, answer in found.answers)


def test_what_was_left_out_is_counted_and_is_no_row_of_both(tmp_path: Path) -> None:
    found = rollout(tmp_path, EQUAL)
    with found.home:
        found.leaves_out = lambda answer: answer.unit.endswith(("1", "2", "3"))
        verdict = [found.serve(400, timedelta(minutes=15)) for _ in range(3)][-1]
        assert verdict is not None
        left = sum(answer.unit.endswith(("1", "2", "3")) for _, answer in found.answers)
        assert (verdict.left_out, verdict.rows) == (left, 1200 - left)
        assert f"{left:,} rows were left out under load" in verdict.why


def test_share_of_the_keys_is_sticky_and_the_rest_is_not_left_out(tmp_path: Path) -> None:
    found = rollout(tmp_path, EQUAL, share=0.25)
    with found.home as home:
        verdict = found.serve(1000)
        assert verdict is not None
        assert verdict.left_out == 0
        assert 200 < verdict.rows < 300
        assert set(stored(home, "shadows", LOOP)["_probability"].to_pylist()) == {0.25}


def test_no_traffic_is_no_pass(tmp_path: Path) -> None:
    found = rollout(tmp_path, EQUAL, flips=0.05)
    with found.home:
        found.clock.advance(timedelta(days=2))
        verdict = found.judge()
        assert verdict is not None
        assert (verdict.answer, verdict.rows) == ("hold", 0)


@pytest.mark.parametrize("ends", ["rollback", "release of the old one", "release of another"])
def test_person_ends_it(tmp_path: Path, ends: str) -> None:
    found = rollout(tmp_path, EQUAL)
    with found.home as home:
        found.serve(300, timedelta(minutes=10))
        wanted = found.old
        if ends == "rollback":
            releases.rollback(home, LOOP, why="no")
        else:
            wanted = package(home.packages, model=model_graph(weight=0.08)).digest if "another" in ends else found.old
            releases.release(home, LOOP, wanted, why="no")
        assert (found.state.arms, found.state.shadow, found.state.under_way) == ([Arm(package=wanted)], None, None)
        assert found.judge() is None


def test_shadow_is_in_the_record_of_the_release(tmp_path: Path) -> None:
    found = rollout(tmp_path, EQUAL)
    with found.home:
        again = msgspec.json.decode(msgspec.json.encode(found.state), type=type(found.state))
        assert again == found.state
