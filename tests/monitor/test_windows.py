import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.traffic import LOOP, OUTCOME, START, WAIT, WEEK, World, lineage_without, package, rows, truths

from loopwright.base.settings import Settings
from loopwright.monitor.windows import Watched, watch
from loopwright.records.declarations import Monitor, Outcome, Retrain
from loopwright.records.turns import Turn
from loopwright.records.windows import Alert, Quality, Trigger, Window
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.windows import newest_ended

NEVER = Retrain(decay=0.04, cooldown="0s", every=None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def look(
    world: World,
    retrain: Retrain = NEVER,
    *,
    home: Home | None = None,
    monitor: Monitor | None = None,
    outcome: Outcome = OUTCOME,
) -> Watched:
    home = home or world.home
    return watch(
        home,
        loop_name=LOOP,
        monitor=monitor or Monitor(),
        retrain=retrain,
        outcome=outcome,
        until=world.clock.now(),
    )


def finish_turn(world: World, state: str = "done") -> None:
    at = world.clock.now()
    turn = Turn(turn="t", declaration="", as_of=at, cause="drift", why="", state=state, result="")  # type: ignore[arg-type]
    world.home.ledger.put(turn, loop=LOOP, key="t")


def test_each_window_is_closed_once_whoever_asks_and_how_often(world: World, tmp_path: Path) -> None:
    assert look(world).windows == []
    world.week(0)
    first = look(world)
    assert [(w.start, w.end, w.rows, w.state) for w in first.windows] == [(START, START + WEEK, 1000, "ok")]
    assert [(q.with_outcome, q.mature_at) for q in first.qualities] == [(1000, None)]
    assert look(world).windows == []
    world.clock.advance(timedelta(days=6))
    assert look(world).windows == []
    with Home(Settings(home=tmp_path), world.clock) as restarted:
        assert look(world, home=restarted).windows == []
    assert len(world.home.ledger.find(Window, loop=LOOP)) == 1


def test_a_watch_that_comes_late_closes_every_window_it_missed_and_a_silent_one_is_no_data(world: World) -> None:
    world.week(0)
    world.week(2)
    world.clock.advance(timedelta(days=1))
    found = look(world)
    assert [w.state for w in found.windows] == ["ok", "no data", "ok"]
    assert [w.rows for w in found.windows] == [1000, 0, 1000]
    history = [(e.record.key, e.record.state) for e in world.home.ledger.find(Alert, loop=LOOP, newest=False)]
    assert history[0] == ("no-data", "open")
    assert ("no-data", "closed") in history


def test_a_silence_of_years_is_one_window_and_the_next_traffic_keeps_the_grid(world: World) -> None:
    world.week(0)
    world.week(600)
    world.clock.advance(timedelta(days=1))
    found = look(world)
    assert [(w.start, w.end) for w in found.windows] == [
        (START, START + WEEK),
        (START + WEEK, START + 600 * WEEK),
        (START + 600 * WEEK, START + 601 * WEEK),
    ]
    assert [(w.rows, w.state) for w in found.windows] == [(1000, "ok"), (0, "no data"), (1000, "ok")]
    world.clock.advance(3 * WEEK)
    assert [(w.start, w.end, w.state) for w in look(world).windows] == [(START + 601 * WEEK, START + 604 * WEEK, "no data")]
    told = [e.record for e in world.home.ledger.find(Alert, loop=LOOP) if e.record.key == "no-data"]
    assert {a.repeats for a in told} == {0}, "one silence is told once"


def test_a_loop_that_serves_and_is_never_asked_is_no_data(world: World) -> None:
    world.clock.advance(WEEK)
    found = look(world)
    assert [w.state for w in found.windows] == ["no data"]
    assert [q.state for q in found.qualities] == ["no data"]
    assert found.trigger is None
    assert [a.key for a in found.alerts] == ["no-data"]


def test_nothing_served_and_nothing_asked_has_no_windows(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.clock.advance(WEEK)
    found = watch(world.home, loop_name="other", monitor=Monitor(), retrain=NEVER, outcome=OUTCOME, until=world.clock.now())
    assert found == Watched(windows=[], qualities=[], trigger=None, alerts=[])


def base_rate(quality: Quality) -> float:
    """The share of positives: true positives, by precision and by recall."""
    measured = {name: quality.metrics[name].value for name in ("precision", "positive_rate", "recall")}
    return measured["precision"] * measured["positive_rate"] / measured["recall"]


def test_window_is_provisional_until_the_wait_is_over_and_nothing_is_judged_by_it(world: World) -> None:
    """Of those known soonest all are late: the window was measured on them, and decayed. Then it is measured once, on all."""
    outcome = msgspec.structs.replace(OUTCOME, wait="14d")
    given = rows(1000, START)
    world.predict(given)
    delays = truths(given)
    late = [d > 15 for d in delays]
    world.tell([r for r, x in zip(given, late, strict=True) if x], [d for d in delays if d > 15], after=timedelta(hours=1))
    world.clock.advance_to(START + WEEK)
    found = look(world, outcome=outcome)
    assert [(q.with_outcome, q.state, q.mature_at, q.metrics) for q in found.qualities] == [
        (0, "no data", START + 3 * WEEK, {})
    ]
    assert found.qualities[0].state_text == "provisional (until 2024-03-25)"
    world.clock.advance(timedelta(days=6))
    on_time = [r for r, x in zip(given, late, strict=True) if not x]
    world.tell(on_time, [d for d in delays if d <= 15], after=timedelta(days=13))
    world.clock.advance_to(START + 3 * WEEK - timedelta(seconds=1))
    assert not [q for q in look(world, outcome=outcome).qualities if q.rows]
    world.clock.advance(timedelta(seconds=1))
    [measured] = [q for q in look(world, outcome=outcome).qualities if q.rows]
    assert (measured.with_outcome, measured.state, measured.mature_at) == (1000, "ok", None)
    assert base_rate(measured) == pytest.approx(sum(late) / 1000)
    assert world.home.ledger.find(Trigger, loop=LOOP) == []
    assert world.home.ledger.find(Alert, loop=LOOP, key="decay") == []
    stored = world.home.ledger.find(Quality, loop=LOOP, key=START.isoformat(), newest=False)
    assert [e.record.with_outcome for e in stored] == [0, 1000]


def test_absent_outcome_is_the_declared_label_when_the_wait_is_over(world: World) -> None:
    given = rows(1000, START)
    world.predict(given)
    late = [(r, d) for r, d in zip(given, truths(given), strict=True) if d > 15]
    world.tell([r for r, _ in late], [d for _, d in late])
    world.clock.advance_to(START + WEEK + WAIT)
    [found] = look(world, outcome=msgspec.structs.replace(OUTCOME, absent="false")).qualities
    assert (found.with_outcome, found.state) == (1000, "ok")
    assert base_rate(found) == pytest.approx(len(late) / 1000)


def test_a_corrected_outcome_revises_quality_until_the_next_window_and_the_old_record_stays(world: World) -> None:
    given = rows(1000, START)
    logged = world.predict(given)
    world.tell(given, truths(given))
    world.clock.advance_to(START + WEEK + WAIT)
    before = look(world).qualities[0]
    world.clock.advance(timedelta(hours=1))
    world.correct(logged[:300], 999.0)
    world.clock.advance(timedelta(days=6))
    after = look(world).qualities[0]
    assert after.start == before.start
    assert base_rate(after) > base_rate(before) + 0.1
    assert look(world).qualities == []
    world.correct(logged[300:600], 999.0)
    world.clock.advance(WEEK)
    assert START not in {q.start for q in look(world).qualities}
    stored = world.home.ledger.find(Quality, loop=LOOP, key=START.isoformat(), newest=False)
    assert [e.record.known_at for e in stored] == [before.known_at, after.known_at]


def test_quality_is_that_of_the_logged_answers_by_slice(world: World) -> None:
    world.week(0)
    found = look(world).qualities[0]
    assert set(found.slices) == {"origin", "night"}
    assert set(found.slices["origin"]) == {"EWR", "JFK", "LGA"}
    promised = world.package.evaluation.metrics["average_precision"]
    assert found.metrics["average_precision"].value == pytest.approx(promised.value, abs=0.06)
    assert found.state == "ok"


def test_each_arm_has_a_window_against_its_own_package_and_an_experiment_is_no_drift(world: World) -> None:
    other = package(world.home, weight=0.01, as_of=START)
    given = rows(2000, START)
    for arm, made, mine in (("champion", world.package, given[::3]), ("challenger", other, given[1::3] + given[2::3])):
        world.predict_as(mine, arm, made)
    world.tell(given, truths(given))
    world.clock.advance_to(START + WEEK)
    found = look(world)
    [window], [quality] = found.windows, found.qualities
    assert (window.rows, window.state, window.reference) == (2000, "ok", world.package.digest), (
        "most rows are of the challenger"
    )
    assert {name: (w.rows, w.state, w.reference) for name, w in window.arms.items()} == {
        "champion": (667, "ok", world.package.digest),
        "challenger": (1333, "ok", other.digest),
    }
    score = {name: next(c for c in w.columns if c.column == "score") for name, w in {**window.arms, "whole": window}.items()}
    assert score["whole"] == score["champion"]
    assert quality.by_arm == {
        "champion": quality.by_package[world.package.digest],
        "challenger": quality.by_package[other.digest],
    }
    [stored] = world.home.ledger.find(Window, loop=LOOP)
    assert stored.record == window


def test_decay_triggers_and_is_told_with_its_evidence(world: World) -> None:
    world.week(0)
    assert look(world).trigger is None
    world.week(1, noise=60.0)
    found = look(world)
    assert found.trigger is not None
    assert found.trigger.cause == "decay"
    assert "roc auc" in found.trigger.reason
    assert found.trigger.evidence == [(START + WEEK).isoformat()]
    assert "decay" in [a.key for a in found.alerts]


def test_drift_triggers_from_so_many_columns_on(world: World) -> None:
    world.week(0, shift=25.0)
    assert look(world, Retrain(drift=3, cooldown="0s")).trigger is None
    found = look(world, Retrain(drift=2, cooldown="0s")).trigger
    assert found is not None
    assert found.cause == "drift"
    assert "delay" in found.reason


def test_drift_waits_for_outcomes_that_are_newer_than_the_training(world: World) -> None:
    outcome = msgspec.structs.replace(OUTCOME, wait="10d")
    world.week(0, shift=25.0)
    found = look(world, Retrain(drift=1, cooldown="0s"), outcome=outcome)
    assert found.windows[0].state == "drift"
    assert found.trigger is None, "no decision after the training has its outcome: the same rows would be trained on again"
    world.week(1, shift=25.0)
    trigger = look(world, Retrain(drift=1, cooldown="0s"), outcome=outcome).trigger
    assert trigger is not None
    assert "the wait is over for 590 decisions after the last training, none of that window" in trigger.reason


def test_absence_is_no_label_once_outcomes_stop_to_arrive(world: World) -> None:
    outcome = msgspec.structs.replace(OUTCOME, absent="false")
    for number in range(3):
        given = rows(1000, START + number * WEEK)
        world.predict(given)
        late = [(r, d) for r, d in zip(given, truths(given), strict=True) if d > 15 and number < 2]
        world.tell([r for r, _ in late], [d for _, d in late])
        world.clock.advance_to(START + (number + 1) * WEEK + WAIT)
        measured = look(world, outcome=outcome).qualities
        assert [(q.state, q.with_outcome) for q in measured] == [("ok", 1000) if number < 2 else ("no data", 0)]
    world.week(3)
    look(world, outcome=outcome)
    assert "no-outcomes" in {e.record.key for e in world.home.ledger.find(Alert, loop=LOOP)}
    assert world.home.ledger.find(Alert, loop=LOOP, key="decay") == []


def test_drift_of_unused_columns_triggers_no_retraining_and_no_alert(world: World) -> None:
    world.release(package(world.home, lineage=lineage_without("origin")))
    world.predict([{**r, "origin": "EWR"} for r in rows(1000, START)])
    world.clock.advance(WEEK)
    found = look(world, Retrain(drift=1, cooldown="0s"))
    assert found.windows[0].noted == ["origin"]
    assert found.trigger is None
    assert "drift" not in [a.key for a in found.alerts]


def test_a_schedule_triggers_when_its_time_is_over(world: World) -> None:
    world.week(0)
    assert look(world, Retrain(every="8d", cooldown="0s")).trigger is None
    world.week(1)
    found = look(world, Retrain(every="8d", cooldown="0s")).trigger
    assert found is not None
    assert found.cause == "schedule"


def test_schedule_triggers_where_windows_have_too_few_rows_to_judge_drift(world: World) -> None:
    for number in range(2):
        world.week(number, 336)
    found = look(world, Retrain(every="8d", cooldown="0s"))
    assert [w.state_text for w in found.windows] == ["too few (336 of 500)"] * 2
    assert found.trigger is not None
    assert found.trigger.cause == "schedule"


def test_a_schedule_rests_while_nobody_asks(world: World) -> None:
    world.week(0)
    world.clock.advance(50 * WEEK)
    assert look(world, Retrain(every="8d", cooldown="0s")).trigger is None
    world.week(51)
    assert look(world, Retrain(every="8d", cooldown="0s")).trigger is not None


def test_the_cooldown_holds_every_trigger_back(world: World) -> None:
    world.week(0, shift=25.0)
    assert look(world, Retrain(drift=1, every="1d", cooldown="8d")).trigger is None
    world.clock.advance(timedelta(days=1))
    assert look(world, Retrain(drift=1, every="1d", cooldown="8d")).trigger is not None


def test_a_trigger_is_given_again_until_a_turn_is_over_and_stored_once(world: World) -> None:
    world.week(0, shift=25.0)
    retrain = Retrain(drift=1, cooldown="0s")
    first = look(world, retrain).trigger
    assert first is not None
    assert look(world, retrain).trigger == first
    finish_turn(world, "running")  # interrupted: it is still to be done
    assert look(world, retrain).trigger == first
    assert len(world.home.ledger.find(Trigger, loop=LOOP)) == 1
    finish_turn(world, "failed")
    assert look(world, retrain).trigger is None
    world.week(1, shift=25.0)
    assert look(world, retrain).trigger is not None


def test_a_window_that_an_older_package_answered_says_nothing_about_the_one_that_serves(world: World) -> None:
    world.week(0, shift=25.0, noise=60.0)
    world.release(package(world.home, weight=0.2, as_of=world.clock.now(), shift=25.0))
    found = look(world, Retrain(drift=1, decay=0.01, cooldown="0s"))
    assert found.windows[0].state == "drift"
    assert found.trigger is None


def test_alerts_repeat_while_they_last_and_close_when_it_is_over(world: World) -> None:
    for number in range(2):
        world.week(number, shift=25.0)
        look(world)
    drift = [e.record for e in world.home.ledger.find(Alert, loop=LOOP, key="drift") if e.record.sent]
    assert drift[0].repeats == 1
    world.week(2)
    look(world)
    latest = world.home.ledger.latest(Alert, loop=LOOP, key="drift")
    assert latest is not None
    assert latest.record.state == "closed"


def test_degraded_answers_and_missing_outcomes_are_alerts(world: World) -> None:
    given = rows(1000, START)
    world.predict(given[:900])
    world.predict(given[900:], flags=["degraded"])
    world.clock.advance_to(START + WEEK)
    assert [a.key for a in look(world).alerts] == ["degraded"]
    keys: list[str] = []
    for number in (1, 2):
        world.predict(rows(1000, START + number * WEEK))
        world.clock.advance(WEEK)
        keys += [a.key for a in look(world).alerts]
    assert keys == ["no-outcomes"]


def test_windows_follow_a_clock_not_the_calendar_week(world: World) -> None:
    start = START + timedelta(hours=1, minutes=17)
    world.predict(rows(300, start, span=timedelta(hours=1)))
    world.clock.advance_to(start + timedelta(hours=1))
    found = look(world, monitor=Monitor(every="15m", minimum_rows=10))
    assert found.windows[0].start == START  # the release was before the first prediction
    assert [w.rows for w in found.windows] == [0, 65, 75, 75, 75]
    assert found.windows[0].end == START + timedelta(hours=1, minutes=15)  # the silence before it is one window


def test_a_damaged_package_does_not_stop_the_watch(world: World) -> None:
    world.week(0)
    (world.home.packages.folder / world.package.digest / "model.onnx").write_bytes(b"x")
    found = look(world, Retrain(drift=1, cooldown="0s"))
    assert [w.state for w in found.windows] == ["no data"]
    assert found.windows[0].rows == 1000
    assert found.trigger is None


@pytest.mark.parametrize("point", ["window.computed", "window.closed", "alert.decided", "alert.sent"])
def test_a_watch_that_dies_anywhere_is_made_good_by_the_next(world: World, tmp_path: Path, point: str) -> None:
    world.week(0, shift=25.0)
    world.home.close()
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(tmp_path), world.clock.now().isoformat()],
        env={**os.environ, "LOOPWRIGHT_FAILPOINTS": f"{point}=kill"},
        timeout=600,
    )
    assert died.returncode == -signal.SIGKILL
    with Home(Settings(home=tmp_path), world.clock) as home:
        retrain = Retrain(drift=1, cooldown="0s")
        assert look(world, retrain, home=home).trigger is not None
        assert look(world, retrain, home=home).windows == []
        assert [e.record.rows for e in home.ledger.find(Window, loop=LOOP)] == [1000]
        assert len(home.ledger.find(Quality, loop=LOOP)) == 1
        assert len(home.ledger.find(Trigger, loop=LOOP)) == 1
        alerts = [e.record for e in home.ledger.find(Alert, loop=LOOP, key="drift", newest=False)]
        assert [(a.state, a.repeats, a.sent) for a in alerts] == [("open", 0, False), ("open", 0, True)]
        assert home.ledger.verify() == []


DYING = """
import sys
from datetime import datetime
from pathlib import Path
from loopwright.monitor.windows import watch
from loopwright.base.clock import SimulatedClock
from loopwright.records.declarations import Monitor, Outcome, Retrain, Table, Column
from loopwright.stores.home import Home
from loopwright.base.settings import Settings
now = datetime.fromisoformat(sys.argv[2])
columns = {"flight": Column("string"), "landed_at": Column("timestamp"), "arr_delay": Column("float")}
outcome = Outcome(Table("landings", columns, ["flight"], "landed_at"), "arr_delay > 15", "3h")
home = Home(Settings(home=Path(sys.argv[1])), SimulatedClock(now))
watch(home, loop_name="late", monitor=Monitor(), retrain=Retrain(drift=1, cooldown="0s"), outcome=outcome, until=now)
"""


def test_integers_beyond_the_precision_of_a_float_close_windows_and_read_back_exactly(world: World) -> None:
    extreme = [2**53 + 1, 2**63 - 1, -(2**63), 1_300_000_000_000_000_001]
    given = [r | {"hour": extreme[i % len(extreme)]} for i, r in enumerate(rows(1000, START))]
    world.predict(given)
    logged = predictions(world.home, LOOP, columns=["hour"])["hour"].to_pylist()
    assert sorted(logged) == sorted(r["hour"] for r in given)
    world.clock.advance_to(START + WEEK)
    [window] = look(world).windows
    hour = next(c for c in window.columns if c.column == "hour")
    assert (window.rows, hour.state, hour.impact) == (1000, "drift", 0.0)
    assert (window.state, window.noted) == ("ok", ["hour"]), "its graph does not take the hour"


def test_windows_closed_while_the_clock_was_ahead_are_closed_again_in_time(world: World) -> None:
    world.week(0)
    world.clock.advance(timedelta(days=1))
    ahead = world.clock.now() + timedelta(days=400)
    given = {"loop_name": LOOP, "monitor": Monitor(), "retrain": NEVER, "outcome": OUTCOME}
    first = watch(world.home, until=ahead, **given)  # type: ignore[arg-type]  # one dictionary for both calls
    assert first.windows[-1].end > world.clock.now()
    standing = newest_ended(world.home.ledger, Window, LOOP, world.clock.now())
    assert standing is not None
    assert standing.record.rows == 1000, "what lies ahead does not count"
    early = look(world)
    assert early.windows == []
    told = world.home.ledger.find(Alert, loop=LOOP, key="early-windows")
    assert look(world).windows == []
    assert world.home.ledger.find(Alert, loop=LOOP, key="early-windows") == told, "told once"
    world.week(1)
    again = look(world)
    assert [(w.start, w.rows) for w in again.windows] == [(START + WEEK, 1000)]
    [newest, *_] = world.home.ledger.find(Alert, loop=LOOP, key="early-windows")
    assert newest.record.state == "closed"
    world.week(2)
    assert [(w.start, w.rows) for w in look(world).windows] == [(START + 2 * WEEK, 1000)]
