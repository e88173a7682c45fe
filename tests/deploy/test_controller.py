"""A plan of a release from its first stage to its end, on traffic with a known truth: on, back, hold, and what a person may do meanwhile."""

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.deploy.loops import LOOP, declared, model_graph, package
from tests.deploy.rollouts import PLAN, Rollout

from loopwright import judging
from loopwright.base import failpoints
from loopwright.base.errors import DeclarationInvalid, PackageRefused, ReleaseBlocked, ReleaseConflict
from loopwright.deploy import judge, releases
from loopwright.deploy.blocklist import bad_packages
from loopwright.deploy.controller import advance
from loopwright.records.attempts import Attempts
from loopwright.records.declarations import AB, Canary, Fleet, Full, Guard, Objective, Release
from loopwright.records.declarations.stages import AnyStage
from loopwright.records.package import Segment
from loopwright.records.releases import Arm
from loopwright.records.verdicts import Verdict
from loopwright.records.windows import Alert
from loopwright.tend import upkeep
from loopwright.verbs.history import history
from loopwright.verbs.loop_status import loop_status
from loopwright.verbs.release import release

GUARDED = Release(guards=[Guard("average_precision", tolerance=0.05, slices=["origin_slice"])], plan=PLAN)
EQUAL = {"weight": 0.0501}
WORSE = {"weight": 0.0}
WORSE_AT_JFK = {"model": model_graph(fails="jfk")}
FAILING = {"model": model_graph(fails="error")}


def test_equal_package_goes_through_every_stage_and_serves_alone(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home:
        last = rollout.until_ended(2500)
        assert last.answer == "on"
        assert rollout.state.arms == [Arm(package=rollout.new)]
        told = [
            (s.action, s.stage, [(a.name, a.share) for a in s.arms])
            for s in (e.record for e in releases.history(rollout.home, LOOP))
        ]
        assert told == [
            ("release", 0, [("champion", 1.0)]),
            ("release", 0, [("control", 0.1), ("champion", 0.8), ("canary", 0.1)]),
            ("advance", 1, [("champion", 0.5), ("canary", 0.5)]),
            ("advance", 2, [("hold-back", 0.05), ("champion", 0.95)]),
            ("advance", 3, [("champion", 1.0)]),
        ]
        assert {v.by for v in (e.record for e in releases.history(rollout.home, LOOP))} == {"tests", "loopwright"}
        _check_answers(rollout)
        states = [e.record for e in releases.history(rollout.home, LOOP)]
        for before, after in pairwise(states[1:]):
            stage = before.under_way
            assert stage is not None
            least = timedelta(hours=2 if isinstance(stage, Full) else 1)
            assert after.since - before.since >= least, "no stage is shorter than declared"


def _check_answers(rollout: Rollout) -> None:
    """Every logged row names the arm, package and share of its unit under the release that answered it; no unit loses the new package."""
    states = {e.record.generation: e.record for e in releases.history(rollout.home, LOOP)}
    for generation, answer in rollout.answers:
        arm = states[generation].arm_for(answer.unit)
        assert (answer.arm, answer.package, answer.probability) == (arm.name, arm.package, arm.share)


def test_package_worse_on_one_slice_is_sent_back_by_name_of_the_slice(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, WORSE_AT_JFK, release=GUARDED)
    with rollout.home:
        last = rollout.until_ended(2500)
        assert last.answer == "back"
        assert rollout.state.arms == [Arm(package=rollout.old)]
        assert rollout.state.action == "rollback"
        assert "average_precision" in rollout.state.why
        worse = [f for f in last.findings if f.verdict == "worse"]
        assert "origin_slice JFK" in rollout.state.why
        assert worse
        assert all(f.high is not None and f.high < 0 for f in worse)
        shown = {a.id: a for _, a in rollout.answers if a.id in last.shown_by}
        assert shown, "rows that show it"
        assert {a.package for a in shown.values()} == {rollout.new}
        with pytest.raises(PackageRefused, match=r"marked bad.*average_precision"):
            releases.release(rollout.home, LOOP, rollout.new, why="again")
        releases.release(rollout.home, LOOP, rollout.new, why="all the same", force=True)


def test_failing_package_is_sent_back_before_any_outcome(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, FAILING, release=GUARDED, wait="30d")
    with rollout.home:
        found = upkeep_until_back(rollout, 3000)
        assert [f.metric for f in found if f.verdict == "worse"] == ["degraded_share"]
        alert = rollout.home.ledger.find(Alert, loop=LOOP)[0].record
        assert alert.title.endswith("was sent back")
        assert "degraded_share" in alert.detail
        another = package(rollout.home.packages, weight=0.07).digest
        releases.release(rollout.home, LOOP, another, why="mended")
        upkeep(rollout.home, rollout.loop, until=rollout.clock.now())
        assert rollout.home.ledger.find(Alert, loop=LOOP)[0].record.state == "closed"


def upkeep_until_back(rollout: Rollout, rows: int) -> list:  # type: ignore[type-arg]
    for _ in range(12):
        rollout.judge = lambda: None  # type: ignore[method-assign]  # upkeep judges
        rollout.serve(rows, timedelta(minutes=10))
        verdict = upkeep(rollout.home, rollout.loop, until=rollout.clock.now()).verdict
        if verdict is not None and verdict.answer == "back":
            return verdict.findings
    raise AssertionError("never sent back")


def test_stage_without_outcomes_passes_provisionally_and_they_send_it_back_when_they_are_in(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, WORSE, release=GUARDED, wait="5h")
    with rollout.home:
        last = rollout.until_ended(1500)
        passed = [v for v in rollout.verdicts if v.answer == "on"]
        assert passed
        assert all(v.provisional and "provisional" in v.why for v in passed if v.stage < 2)
        assert last.answer == "back"
        assert last.at >= rollout.verdicts[0].at + timedelta(hours=4)
        assert rollout.state.arms == [Arm(package=rollout.old)]


def test_too_few_rows_hold_the_stage_and_say_how_many_would_tell(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED, plan=[Canary(share=0.5, time="1h", rows=200)])
    with rollout.home:
        for _ in range(5):
            verdict = rollout.serve(150)
        assert verdict is not None
        assert verdict.answer == "hold"
        assert any("average_precision: about" in m and "would tell" in m for m in verdict.missing), verdict.missing
        needed = next(f.rows_needed for f in verdict.findings if f.metric == "average_precision" and not f.slice)
        assert needed is not None
        while rollout.state.under_way is not None and rollout.number < 8 * needed:
            rollout.serve(max(500, needed // 2))
        assert rollout.state.champion.package == rollout.new
        assert rollout.number < 8 * needed, f"{needed} rows in each arm were said to tell"


EXPERIMENT: list[AnyStage] = [AB(metric="roc_auc", minimum_effect=0.05, time="2h"), Full(watch="1h", hold_back=0.0)]


def test_experiment_says_before_it_has_outcomes_how_many_rows_it_needs(tmp_path: Path) -> None:
    goal = AB(metric="average_precision", minimum_effect=0.02, time="2h")
    rollout = Rollout(tmp_path, EQUAL, plan=[goal])
    with rollout.home:
        verdict = rollout.judge()
        assert verdict is not None
        [text] = [m for m in verdict.missing if "average_precision" in m]
        foreseen = int(text.split("about ")[1].split(" rows")[0].replace(",", ""))
        # The evaluation has .05 half a 95 % interval on 1,000 rows: a standard error of .0255, .036 of a difference. 2.8 of them, at a
        # fixed end, are .02 on 25,000 rows; looking at any time costs more.
        assert 25_000 < foreseen < 100_000


def test_experiment_with_a_better_package_goes_on_and_names_the_effect(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, {"weight": 0.05}, old={"weight": 0.0}, plan=EXPERIMENT)
    with rollout.home:
        while rollout.state.stage == 0:
            rollout.serve(400)
        assert rollout.state.action == "advance"
        assert "surely better" in rollout.state.why
        rollout.until_ended(400)
        assert rollout.state.arms == [Arm(package=rollout.new)]


def test_experiment_without_an_effect_leaves_the_old_package_and_marks_nothing_bad(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, plan=EXPERIMENT)
    with rollout.home:
        last = rollout.until_ended(1500)
        assert (last.answer, [f.name for f in last.findings if f.verdict == "worse"]) == ("back", [])
        assert "no effect of 0.050 was seen, the old package stays" in rollout.state.why
        assert rollout.state.arms == [Arm(package=rollout.old)]
        assert bad_packages(rollout.home, LOOP) == {}
        upkeep(rollout.home, rollout.loop, until=rollout.clock.now())
        alert = rollout.home.ledger.find(Alert, loop=LOOP)[0].record
        assert (alert.severity, alert.title) == ("warning", f"Package {rollout.new[:12]} was not shown to be better")


def test_experiment_with_a_worse_package_ends_early(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, WORSE, plan=EXPERIMENT)
    with rollout.home:
        last = rollout.until_ended(400, most=12)
        assert last.answer == "back"
        assert "roc_auc" in [f.metric for f in last.findings if f.verdict == "worse"]
        assert list(bad_packages(rollout.home, LOOP)) == [rollout.new]


def test_full_stage_waits_for_the_outcomes_of_the_stages_before(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED, wait="5h")
    with rollout.home:
        rollout.until_ended(1500)
        states = [e.record for e in releases.history(rollout.home, LOOP)]
        full, end = states[-2:]
        assert full.under_way == PLAN[-1]
        assert end.since - full.since >= timedelta(hours=5), "2 hours are its time, the outcomes of the canaries take 5"


def test_no_traffic_is_no_pass(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home:
        rollout.clock.advance(timedelta(days=3))
        verdict = rollout.judge()
        assert verdict is not None
        assert (verdict.answer, verdict.rows) == ("hold", 0)
        assert "0 of 200 rows in each arm" in verdict.why


@pytest.mark.parametrize(("metric", "change"), [
    ("slow_share", {"latency_us": 80_000.0}), ("flagged_share", {"flags": ["new_category:origin"]}), ("degraded_share", {"flags": ["degraded"]}),
])  # fmt: skip
def test_each_quick_guard_sends_back_what_only_the_canary_does(tmp_path: Path, metric: str, change: dict[str, Any]) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED, wait="30d")
    with rollout.home:
        rollout.alters = lambda answer: msgspec.structs.replace(answer, **change) if answer.arm == "canary" else answer
        last = rollout.until_ended(2500, most=6)
        assert (last.answer, [f.metric for f in last.worse]) == ("back", [metric])
        assert len(last.shown_by) == 20


def test_median_objective_makes_no_row_slow(tmp_path: Path) -> None:
    median = Objective("mostly at once", owner="product", metric="latency_p50_ms", at_most=2)
    scope = msgspec.structs.replace(declared().scope, objectives=[*declared().scope.objectives, median])
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED, scope=scope)
    with rollout.home:
        rollout.alters = lambda answer: msgspec.structs.replace(answer, latency_us=4000.0) if answer.arm == "canary" else answer
        verdict = rollout.serve(2500)
        assert verdict is not None
        assert verdict.worse == []


def test_second_plan_is_refused_while_one_is_under_way_and_direct_ends_it(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home as home:
        another = package(home.packages, weight=0.07).digest
        with pytest.raises(ReleaseBlocked, match=r"another release is under way.*rollback"):
            release(home, LOOP, another)
        rollout.serve(2500)
        assert history(home, LOOP).verdict is not None
        releases.release(home, LOOP, another, why="at once")
        assert rollout.state.arms == [Arm(package=another)]
        assert history(home, LOOP).verdict is not None, "it is the plan that ended just now"
        releases.rollback(home, LOOP, why="back")
        assert history(home, LOOP).verdict is None, "something else was released since"


def test_plan_of_a_fleet_is_refused_where_it_is_declared(tmp_path: Path) -> None:
    with pytest.raises(DeclarationInvalid, match="released at once"):
        msgspec.structs.replace(declared(), release=GUARDED, fleet=Fleet(by="origin")).__post_init__()
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home as home:
        own = package(home.packages, weight=0.08, segment=Segment(column="tail", value="N1")).digest
        releases.rollback(home, LOOP, why="no")
        with pytest.raises(PackageRefused, match="--strategy direct"):
            releases.release(
                home, LOOP, rollout.new, strategy=rollout.plan, fleet="tail", segments={"N1": own}, why="both", force=True
            )


def test_judge_of_a_large_log_leaves_most_of_the_time_to_upkeep(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home as home:
        verdict = rollout.serve(300)
        assert verdict is not None
        home.ledger.put(msgspec.structs.replace(verdict, seconds=60.0), loop=LOOP, key=rollout.old)
        rollout.clock.advance(timedelta(minutes=19))
        assert rollout.judge() is None
        rollout.clock.advance(timedelta(minutes=2))
        assert rollout.judge() is not None


@pytest.mark.parametrize(("new", "answer"), [(EQUAL, "on"), (WORSE, "back")])
def test_judge_of_too_many_rows_looks_at_a_sample_of_the_units_and_says_so(
    tmp_path: Path, new: dict[str, Any], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "MAX_COMPARED", 1000)
    monkeypatch.setattr(judge, "MAX_COUNTED", 1500)
    rollout = Rollout(
        tmp_path, new, release=Release(guards=[Guard("roc_auc", tolerance=0.2)]), plan=[Canary(share=0.5, time="1h", rows=200)]
    )
    with rollout.home:
        last = rollout.until_ended(2000)
        assert last.answer == answer
        assert last.sampled in (0.5, 0.25, 0.125)
        assert 250 < last.with_outcome < 700
        assert last.rows > 900, "rows are counted, not sampled"
        shown = {a.id: a.arm for _, a in rollout.answers if a.id in last.shown_by}
        assert set(shown.values()) == ({"canary"} if answer == "back" else set())


def test_silent_judge_holds_the_stage_raises_an_alert_and_status_says_since_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home as home:
        rollout.serve(300)
        last = rollout.clock.now()
        monkeypatch.setattr(judging, "progress", lambda *_: 1 / 0)

        def told() -> str:
            upkeep(home, rollout.loop, until=rollout.clock.now(), attempts=Attempts(LOOP))
            entry = home.ledger.latest(Alert, loop=LOOP, key=judging.SILENT)
            return "" if entry is None else f"{entry.record.state}: {entry.record.detail}"

        rollout.clock.advance(timedelta(minutes=9))
        assert told() == ""
        rollout.clock.advance(timedelta(minutes=2))
        assert f"open: no verdict since {last:%Y-%m-%d %H:%M} UTC" in told()
        assert rollout.state.stage == 0
        deploy = next(stage for stage in loop_status(home, LOOP).stages if stage.stage == "deploy")
        assert (deploy.state, f"no verdict since {last:%Y-%m-%d %H:%M}" in deploy.detail) == ("alert", True)
        monkeypatch.undo()
        assert told().startswith("closed")
        assert next(stage for stage in loop_status(home, LOOP).stages if stage.stage == "deploy").state == "ok"


def test_upkeep_of_many_loops_looks_for_releases_under_way_once(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home as home:
        first = releases.history(home, LOOP)[0].record
        for i in range(20):
            home.ledger.put(msgspec.structs.replace(first, loop=f"loop-{i}"), loop=f"loop-{i}", key="x")
        assert judging.loops_to_judge(home) == {LOOP}
        releases.rollback(home, LOOP, why="no", by="a person")
        assert judging.loops_to_judge(home) == set()


def test_arms_of_uneven_size_are_never_a_pass(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home:
        rollout.loses = lambda answer: answer.arm == "canary" and answer.unit.endswith(("0", "1", "2"))
        verdict = [rollout.serve(2500) for _ in range(4)][-1]
        assert verdict is not None
        assert verdict.answer == "hold"
        assert "units had the new package beside" in verdict.why
        assert rollout.state.stage == 0


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_rollback_by_hand_works_in_every_stage(tmp_path: Path, stage: int) -> None:
    rollout = Rollout(tmp_path, EQUAL, release=GUARDED)
    with rollout.home:
        while rollout.state.stage < stage:
            rollout.serve(2500)
        back = releases.rollback(rollout.home, LOOP, why="I do not like it").record
        assert back.arms == [Arm(package=rollout.old)]
        assert back.under_way is None
        assert rollout.judge() is None
        assert bad_packages(rollout.home, LOOP) == {}, "a person's rollback is no verdict"


@pytest.mark.parametrize("point", ["release.judged", "release.blocked", "release.intent", "release.recorded"])
def test_controller_that_dies_on_the_way_back_is_repeated(tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = Rollout(tmp_path, WORSE, release=GUARDED)
    with rollout.home:
        real = failpoints.hit

        def dies(name: str) -> None:
            entry = rollout.home.ledger.latest(Verdict, loop=LOOP) if name == point else None
            if entry is not None and entry.record.answer == "back":
                raise OSError(f"died at {name}")
            real(name)

        monkeypatch.setattr(failpoints, "hit", dies)
        with pytest.raises(OSError, match="died at"):
            rollout.until_ended(2500)
        monkeypatch.setattr(failpoints, "hit", real)
        rollout.clock.advance(timedelta(minutes=10))
        upkeep(rollout.home, rollout.loop, until=rollout.clock.now())
        assert rollout.state.arms == [Arm(package=rollout.old)]
        assert list(bad_packages(rollout.home, LOOP)) == [rollout.new]
        assert sum(e.record.action == "rollback" for e in releases.history(rollout.home, LOOP)) == 1
        upkeep(rollout.home, rollout.loop, until=rollout.clock.now())
        raised = [a.record for a in rollout.home.ledger.find(Alert, loop=LOOP) if "sent back" in a.record.title]
        assert {a.title for a in raised} == {f"Package {rollout.new[:12]} was sent back"}
        assert len({a.key for a in raised}) == 1


def test_judge_that_is_late_does_not_undo_what_a_person_did(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, WORSE, release=GUARDED)
    with rollout.home:
        judged = rollout.state
        another = package(rollout.home.packages, weight=0.07).digest
        releases.release(rollout.home, LOOP, another, why="by hand")
        with pytest.raises(ReleaseConflict):
            advance(rollout.home, judged, why="late", by="loopwright")
        assert rollout.state.champion.package == another
