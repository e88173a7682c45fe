"""The loop against history: it never sees the future, policies do what they say, and the totals are the plain sums."""

import datetime as dt
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from tests.journeys import synthetic
from tests.journeys.synthetic import DRIFT, END, FILE, START, WEEK, WORTH, World

from loopwright import Home
from loopwright.base.clock import RealClock
from loopwright.base.errors import DeclarationInvalid, ExamplesRefused, GateFailed, UsageError
from loopwright.loop import load_loop
from loopwright.records.declarations import Canary, Full, Guard, Release
from loopwright.records.declarations.stages import AnyStage
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import Turn
from loopwright.records.verdicts import Verdict
from loopwright.records.windows import Alert, Quality, Trigger, Window
from loopwright.replay import ReplayRun, compare, edges, replay, workspace
from loopwright.verbs.replay import Replayed, summarise

Rows = list[dict[str, Any]]
LOOP = load_loop(FILE)
WAIT = dt.timedelta(days=2)


class Played(NamedTuple):
    """A replay that is over."""

    home: Home
    run: ReplayRun
    summary: Replayed

    @property
    def answers(self) -> Rows:
        """What was answered, in order of time."""
        rows: Rows = self.home.lake.read("predictions.late").sort_by("_id").to_pylist()
        return rows


@pytest.fixture(scope="module")
def world() -> World:
    return synthetic.world()


@pytest.fixture(scope="module")
def played(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Replays by policy and world, each made once."""
    done: dict[str, Played] = {}

    def get(policy: str = "declared", given: World = world, name: str = "true", end: dt.datetime = END) -> Played:
        key = f"{policy} {name}"
        if key not in done:
            home = synthetic.filled(tmp_path_factory.mktemp(policy) / "home", START, given)
            run = replay(home, LOOP, file=str(FILE), start=START, end=end, policy=policy)
            done[key] = Played(home, run, summarise(home, LOOP, run, policy))
        return done[key]

    yield get
    for one in done.values():
        one.home.close()


def test_every_decision_is_answered_once_at_its_moment_with_what_was_known_then(world: World, played: Any) -> None:
    answers = played().answers
    asked = [o for o in world.orders if START <= o["at"] < END]
    assert sorted(a["order"] for a in answers) == [o["order"] for o in asked]
    by_order = {o["order"]: o for o in asked}
    for a in answers:
        order = by_order[a["order"]]
        assert a["_at"] == a["at"] == order["at"]
        assert (a["shop"], a["distance"], a["weight"]) == (order["shop"], order["distance"], order["weight"])
    for a in answers[::5]:
        assert a["jam"] == synthetic.context_of(world, a["shop"], a["_at"]), (a["order"], a["_at"])
    assert any(a["jam"] is None for a in answers), "a gap in the context, or the test shows nothing"


@pytest.mark.slow
def test_replay_drives_the_plan_of_a_retrained_package_on_its_clock(world: World, tmp_path: Path) -> None:
    plan: list[AnyStage] = [
        Canary(share=0.3, time="6h", rows=20), Canary(share=0.5, time="12h", rows=50), Full(watch="1d", hold_back=0.05),
    ]  # fmt: skip
    guards = [Guard("average_precision", tolerance=0.5)]
    loop = msgspec.structs.replace(LOOP, release=Release(plan=plan, guards=guards))
    with synthetic.filled(tmp_path / "home", START, world) as home:
        run = replay(home, loop, file=str(FILE), start=START, end=DRIFT + 3 * WEEK)
        states = [e.record for e in home.ledger.find(ReleaseState, loop=loop.name, newest=False)]
        rows = home.lake.read("predictions.late").sort_by("_at").to_pylist()
        verdicts = [e.record.why for e in home.ledger.find(Verdict, loop=loop.name)]
    assert sum(lap.rows for lap in run.laps) == len(rows)
    assert states[0].plan == [], "nothing served, so there was nothing to compare with"
    planned = [s for s in states if s.plan]
    assert [s.action for s in planned][:1] == ["release"]
    assert "advance" in [s.action for s in planned], verdicts[:1]
    for before, after in pairwise(planned):
        if after.action == "advance":
            assert after.since - before.since >= dt.timedelta(hours=(6, 12, 24)[before.stage])
            assert after.since - before.since < dt.timedelta(days=7), "it is judged while a window is open"
    for row in rows[::7]:
        now = [s for s in states if s.since <= row["_at"]][-1]
        assert (row["_arm"], row["_package"]) in [(a.name, a.package) for a in now.arms], row["_at"]


def test_the_future_changes_nothing_that_was_decided_before_it(world: World, played: Any) -> None:
    moment = DRIFT + 2 * WEEK + dt.timedelta(hours=31)
    fair, foul = played(), played(given=synthetic.poisoned(world, moment), name="poisoned")
    before, after = ([a for a in p.answers if a["_at"] <= moment] for p in (fair, foul))
    told = ("order", "shop", "distance", "weight", "jam", "_score", "_label", "_flags", "_context_age_s", "_unit", "_at")
    assert [{n: a[n] for n in told} for a in before] == [{n: a[n] for n in told} for a in after]
    assert len(before) > 1000

    def decided(p: Played, kind: Any) -> list[Any]:
        return [e.record for e in p.home.ledger.find(kind, newest=False) if e.at <= moment]

    assert [(t.cause, t.as_of, t.why) for t in decided(fair, Turn)] == [(t.cause, t.as_of, t.why) for t in decided(foul, Turn)]
    assert len({t.turn for t in decided(fair, Turn)}) == 2, "the first turn and a retraining lie before the moment"
    assert decided(fair, Trigger) == decided(foul, Trigger)
    measured = [
        [msgspec.structs.replace(w, packages={}, reference="", degraded=0.0) for w in decided(p, Window)] for p in (fair, foul)
    ]
    assert measured[0] == measured[1]
    qualities = [[(q.start, q.with_outcome, q.metrics, q.slices) for q in decided(p, Quality)] for p in (fair, foul)]
    assert repr(qualities[0]) == repr(qualities[1])
    # The poison works: afterwards it is another story.
    later = [[(a["order"], a["_score"]) for a in p.answers if a["_at"] > moment] for p in (fair, foul)]
    assert later[0] != later[1]


def test_a_replay_of_everything_is_a_replay_of_what_was_there_each_day(world: World, played: Any, tmp_path: Path) -> None:
    """Rows that come later need not exist: a home that holds only what was known by then decides the same."""
    stop = DRIFT + WEEK
    with synthetic.filled(tmp_path / "home", START, synthetic.known(LOOP, world, stop)) as home:
        replay(home, LOOP, file=str(FILE), start=START, end=stop)
        short = home.lake.read("predictions.late").sort_by("_id").to_pylist()
    whole = [a for a in played().answers if a["_at"] < stop]
    assert [(a["order"], a["_score"], a["jam"]) for a in short] == [(a["order"], a["_score"], a["jam"]) for a in whole]


def test_the_planted_drift_is_found_and_retraining_pays(played: Any) -> None:
    fair, never = played(), played("never")
    drifted = {lap.start: set(lap.window.drifted) for lap in fair.run.laps}
    assert not any({"distance", "score"} & drifted[start] for start in drifted if start < DRIFT)
    assert {"distance", "score"} <= drifted[DRIFT], "found in its first week"
    [first, *_] = fair.home.ledger.find(Trigger, newest=False)
    assert (first.record.cause, first.at) == ("drift", DRIFT + WEEK)
    [_, retrained, *_] = {e.record.turn: e.record for e in fair.home.ledger.find(Turn, newest=False)}.values()
    assert (retrained.cause, retrained.as_of, retrained.why) == ("drift", DRIFT + WEEK, first.record.reason)
    assert next(lap for lap in fair.run.laps if lap.start == DRIFT).event == "retrained (drift), released"
    assert any(a.record.key == "drift" for a in fair.home.ledger.find(Alert))
    assert fair.summary.over_never.low > 0, "known truth: a model from before the drift is worth less after it"
    *_, last = (w for w in fair.summary.weeks if not w.provisional)
    assert all(w.metric.value != w.metric.value for w in fair.summary.weeks if w.provisional)
    assert last.metric.value > last.metric_never + 0.15
    assert all(w.state == "drift" for w in never.summary.weeks if w.start >= DRIFT), "whom nobody retrains the drift stays"


@pytest.mark.parametrize(("policy", "least", "most"), [("never", 0, 0), ("weekly", 7, 7), ("monthly", 1, 1), ("drift", 1, 6)])
def test_policies_retrain_as_declared(played: Any, policy: str, least: int, most: int) -> None:
    found = played(policy)
    events = [lap.event for lap in found.run.laps if lap.event]
    assert least <= found.summary.retrainings <= most, events
    turns = {e.record.turn: e.record for e in found.home.ledger.find(Turn, newest=False)}.values()
    assert len(turns) == 1 + found.summary.retrainings
    causes = {"never": set(), "weekly": {"schedule"}, "monthly": {"schedule"}, "drift": {"drift"}}[policy]
    assert {t.cause for t in turns} == {"first"} | causes
    released = [e for e in events if e.endswith("released") and "not released" not in e]
    assert len(found.summary.packages) <= 1 + len(released)
    assert {t.state for t in turns} == {"done"}
    if policy == "drift":
        assert all(lap.window is not None and lap.window.state == "drift" for lap in found.run.laps if lap.event)


def test_the_totals_are_the_plain_sums(world: World, played: Any) -> None:
    fair = played()
    truth = synthetic.truth_of(world, END)
    distances = {o["order"]: o["distance"] for o in world.orders}
    model, rule, rows = 0.0, 0.0, 0
    weeks = [0.0] * len(fair.run.laps)
    for a in fair.answers:
        if a["order"] not in truth or a["_at"] > END - WAIT:
            continue
        late = truth[a["order"]]
        rows += 1
        worth = WORTH[a["_label"], late] - WORTH[False, late]
        model += worth
        weeks[(a["_at"] - START) // WEEK] += worth
        rule += WORTH[distances[a["order"]] > 15, late] - WORTH[False, late]
    found = fair.summary
    assert (found.value.n, found.value.value, found.value_heuristic.value) == (rows, pytest.approx(model), pytest.approx(rule))
    assert [w.value for w in found.weeks] == pytest.approx(weeks)
    assert found.over_heuristic.value == pytest.approx(model - rule)
    assert found.predictions == len(fair.answers) == sum(w.rows for w in found.weeks)


def test_totals_count_no_absence_before_its_wait_is_over(world: World, tmp_path: Path) -> None:
    """Events only: no row means `false`, but not for decisions whose event may still come."""
    events = msgspec.structs.replace(LOOP, outcome=msgspec.structs.replace(LOOP.outcome, absent="false"))
    only_late = world._replace(deliveries=[r for r in world.deliveries if r["minutes"] > 60])
    stop = START + WEEK + WAIT
    with synthetic.filled(tmp_path / "home", START, only_late) as home:
        run = replay(home, events, start=START, end=stop, policy="never")
        found = summarise(home, events, run, "never")
        answers = home.lake.read("predictions.late").to_pylist()
    truth = synthetic.truth_of(only_late, stop)
    settled = [(a["_label"], truth.get(a["order"], False)) for a in answers if a["_at"] <= stop - WAIT]
    assert found.value.n == len(settled) < len(answers)
    assert found.value.value == pytest.approx(sum(WORTH[given] - WORTH[False, given[1]] for given in settled))
    first, last = found.weeks
    assert first.value == pytest.approx(found.value.value)
    assert last.value != last.value, "nothing is settled yet: no number, not 0"


def test_beside_it_stands_what_never_retraining_really_comes_to(played: Any) -> None:
    """The column `never` of one replay is the total of another that never retrained, on the same rows."""
    fair, never = played(), played("never")
    assert never.summary.value == never.summary.value_never
    assert fair.summary.value_never == never.summary.value
    assert [w.value_never for w in fair.summary.weeks] == [w.value for w in never.summary.weeks]
    assert compare(never.home, LOOP, never.run).given["served"].score.tolist() == pytest.approx(
        compare(fair.home, LOOP, fair.run).given["never"].score.tolist(), abs=1e-6
    )


def test_a_workspace_touches_nothing_of_the_home_it_came_from(world: World, tmp_path: Path) -> None:
    with synthetic.filled(tmp_path / "home", START, world):
        pass
    with synthetic.opened(tmp_path / "home", START, openlineage=str(tmp_path / "events.jsonl")) as home:
        entries, versions = home.ledger.count(), {n: home.lake.version(n) for n in home.lake.names()}
        with workspace(home, LOOP, START, tmp_path / "other") as scratch:
            replay(scratch, LOOP, start=START, end=START + WEEK, policy="never")
            assert scratch.lake.count("predictions.late") > 200
        assert (home.ledger.count(), {n: home.lake.version(n) for n in home.lake.names()}) == (entries, versions)
        assert not (tmp_path / "events.jsonl").exists(), "a replay tells OpenLineage nothing"


def test_what_cannot_be_replayed_is_said(world: World, tmp_path: Path) -> None:
    with synthetic.opened(tmp_path / "real", RealClock()) as real, pytest.raises(UsageError, match="simulated clock"):
        replay(real, LOOP, start=START, end=END)
    with synthetic.filled(tmp_path / "home", START, world) as home:
        with pytest.raises(UsageError, match="no policy 'yearly'"):
            replay(home, LOOP, start=START, end=END, policy="yearly")
        with pytest.raises(UsageError, match="nothing to replay"):
            replay(home, LOOP, start=END + WEEK, end=END + 2 * WEEK)
        hopeless = msgspec.structs.replace(
            LOOP,
            scope=msgspec.structs.replace(
                LOOP.scope, objectives=[msgspec.structs.replace(LOOP.scope.objectives[0], at_least=0.999)]
            ),
        )
        with pytest.raises(GateFailed, match="released nothing"):
            replay(home, hopeless, start=START, end=START + WEEK)
    with synthetic.filled(tmp_path / "early", synthetic.BEGIN, world) as home, pytest.raises(ExamplesRefused):
        replay(home, LOOP, start=synthetic.BEGIN + dt.timedelta(hours=1), end=START)


def test_edges_cover_the_stretch_without_gap_or_overlap() -> None:
    assert edges(START, START + 2.5 * WEEK, WEEK) == [START, START + WEEK, START + 2 * WEEK, START + 2.5 * WEEK]
    assert edges(START, START + 2 * WEEK, WEEK) == [START, START + WEEK, START + 2 * WEEK]
    assert edges(START, START + WEEK / 2, WEEK) == [START, START + WEEK / 2]


def test_replay_goes_over_rows_that_are_older_than_a_column(world: World, tmp_path: Path) -> None:
    text = FILE.read_text()
    declared = {
        "grown": ('"shop": Column("string", categories=SHOPS),\n        "distance"', '"shop": Column("string"), "colour": Column("string", nullable=True), "distance"'),
        "retyped": ('"distance": Column("float", minimum=0, maximum=60)', '"distance": Column("integer")'),
    }  # fmt: skip
    with synthetic.filled(tmp_path / "home", END, world) as home:
        loops = {}
        for name, (before, after) in declared.items():
            assert before in text
            (tmp_path / f"{name}.py").write_text(
                text.replace(before, after).replace(
                    '"shop": f.shop,', '"shop": f.shop,' + ' "colour": f.colour,' * (name == "grown")
                )
            )
            loops[name] = load_loop(tmp_path / f"{name}.py")
        with workspace(home, loops["grown"], START, tmp_path / "grown") as scratch:
            assert replay(scratch, loops["grown"], start=START, end=START + WEEK).laps[0].rows > 0
            assert scratch.lake.read("orders", columns=["colour"])["colour"].null_count == scratch.lake.count("orders")
        assert "colour" not in home.lake.schema("orders").names, "the home itself is as it was"
        with pytest.raises(DeclarationInvalid, match=r"columns\.distance: float -> integer; a type stays"):
            workspace(home, loops["retyped"], START, tmp_path / "retyped")
