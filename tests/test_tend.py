"""Upkeep: a round does all that is due and no more, one process does it, and a reason to retrain is acted upon."""

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests import openlineage
from tests.console.browser import served
from tests.deploy import loops as small
from tests.journeys import synthetic
from tests.journeys.synthetic import DRIFT, FILE, START, WEEK, WORTH, World
from tests.receiver import receiving
from tests.waiting import until

from loopwright import Budget, Home
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import Damaged, PackageNotFound, PredictionNotFound, UsageError
from loopwright.base.holder import Holder, encode_holder, this_process
from loopwright.base.ids import new_id, scoped_name
from loopwright.cli.answer import is_yes
from loopwright.cli.terminal import show
from loopwright.console.app import routes
from loopwright.console.pages import Verbs
from loopwright.data.examples.context import needs
from loopwright.data.ingest.ingestion import ingest
from loopwright.data.ingest.profile import profiled
from loopwright.deploy import blocklist
from loopwright.deploy.releases import history, release, serving
from loopwright.loop import load_loop
from loopwright.monitor import alerts
from loopwright.monitor.alerts import open_alerts
from loopwright.records.declarations import duration
from loopwright.records.evaluation import Estimate, moved
from loopwright.records.turns import LoopRecord, Turn
from loopwright.records.windows import Alert, Quality, Trigger, ValueWindow, Window
from loopwright.replay import Traffic, between
from loopwright.retraining import RETRY_AFTER, Due, Retrainer, limit_s
from loopwright.server.api.metrics import Metrics
from loopwright.stores.prediction_log.damage import noted
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.prediction_log.retention import Retained
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.upkeep_state import read_upkeep_state
from loopwright.tend import DAMAGED, FAILING, JUMPED, LOSING, UNTOLD, Upkeep, loops, needed, tend, upkeep
from loopwright.turn import turn
from loopwright.verbs.check import check
from loopwright.verbs.leaderboard import leaderboard
from loopwright.verbs.loop_page import loop_page as loop_page_verb
from loopwright.verbs.loop_status import loop_status, loops_status
from loopwright.verbs.run import run
from loopwright.verbs.status import status
from loopwright.verbs.tend import tend as tend_verb
from loopwright.verbs.trace import trace

LOOP = load_loop(FILE)
NOW = DRIFT + WEEK


@pytest.fixture(scope="module")
def world() -> World:
    return synthetic.world()


@pytest.fixture(scope="module")
def lived(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which a package has answered for four weeks, the last of them drifted, and nobody has tended."""
    folder = tmp_path_factory.mktemp("lived")
    shutil.copy(FILE, folder / "loop.py")
    with synthetic.filled(folder / "home", START, synthetic.known(LOOP, world, NOW)) as home:
        turn(home, LOOP, file=str(folder / "loop.py"))
        traffic = Traffic(home, LOOP, between(home, LOOP.requests, "at", START, NOW), START, NOW)
        for week in range(4):
            traffic.answer(START + week * WEEK, START + (week + 1) * WEEK)
        traffic.close()
    return folder


@pytest.fixture
def home(lived: Path, tmp_path: Path) -> Iterator[Home]:
    shutil.copytree(lived / "home", tmp_path / "home")
    with synthetic.opened(tmp_path / "home", NOW) as opened:
        yield opened


def test_predictions_are_told_as_events_and_an_alert_says_while_they_are_not(lived: Path, tmp_path: Path) -> None:
    shutil.copytree(lived / "home", tmp_path / "home")
    with receiving() as receiver, synthetic.opened(tmp_path / "home", NOW, events=receiver.url) as home:
        receiver.status = 500
        done = tend(home, owner="a", retrain=False)
        assert not done.held_by
        assert done.loops["late"].events == 0
        [alert] = [e.record for e in home.ledger.find(Alert, key=UNTOLD)][:1]
        assert (alert.state, "answered 500" in alert.detail) == ("open", True)
        receiver.status = 200
        receiver.posted.clear()
        again = tend(home, owner="a", retrain=False)
        assert again.loops["late"].events == done.loops["late"].committed.predictions > 0
        told = [event["id"] for post in receiver.posted for event in json.loads(post.body)]
        assert sorted(told) == sorted(predictions(home, "late")["_id"].to_pylist())
        closed = home.ledger.latest(Alert, loop="late", key=UNTOLD)
        assert closed is not None
        assert closed.record.state == "closed"


def test_a_round_commits_closes_and_accounts_and_the_next_finds_nothing_to_do(home: Home, world: World) -> None:
    asked = [o for o in world.orders if START <= o["at"] < NOW]
    came = [d for d in world.deliveries if START - dt.timedelta(minutes=30) <= d["came_at"] < NOW - dt.timedelta(minutes=30)]
    done = tend(home, owner="a", retrain=False)
    assert not done.held_by
    found = done.loops["late"]
    assert found.committed.predictions == len(asked) == home.lake.count("predictions.late")
    assert abs(found.committed.outcomes - len(came)) <= 3, "those that became known just before the start may be counted"
    assert found.committed.problems == []
    assert [w.start for w in found.watched.windows] == [START + i * WEEK for i in range(4)]
    assert [w.rows for w in found.watched.windows] == [
        sum(START + i * WEEK <= o["at"] < START + (i + 1) * WEEK for o in asked) for i in range(4)
    ]
    truth, money = synthetic.truth_of(world, NOW), [0.0] * 4
    for a in predictions(home, "late").to_pylist():
        if a["order"] in truth and a["_at"] <= NOW - duration(LOOP.outcome.wait):
            late = truth[a["order"]]
            money[(a["_at"] - START) // WEEK] += WORTH[a["_label"], late] - WORTH[False, late]
    assert [v.over_no_model.value for v in found.values] == pytest.approx(money)
    assert found.watched.trigger is not None
    assert found.watched.trigger.cause == "drift"
    assert len(home.ledger.find(Turn)) == 2, "asked not to retrain: the first turn's two records and no more"
    counts = [len(home.ledger.find(kind)) for kind in (Window, Quality, ValueWindow, Trigger)]
    told = read_upkeep_state(home.folder("run"))
    assert told is not None
    assert (told.loops["late"].windows, told.loops["late"].window_end) == (4, (START + 4 * WEEK).timestamp())
    assert told.loops["late"].state == found.watched.windows[-1].state
    assert told.loops["late"].drifted == len(found.watched.windows[-1].drifted)
    assert sum(told.loops["late"].alerts.values()) == len(open_alerts(home, "late"))
    again = tend(home, owner="a", retrain=False)
    told = read_upkeep_state(home.folder("run"))
    assert told is not None
    assert told.loops["late"].windows == 4
    assert (again.loops["late"].committed.predictions, again.loops["late"].watched.windows, again.loops["late"].values) == (
        0,
        [],
        [],
    )
    assert again.loops["late"].watched.trigger == found.watched.trigger, "given again until somebody acts upon it"
    assert [len(home.ledger.find(kind)) for kind in (Window, Quality, ValueWindow, Trigger)] == counts == [4, 4, 4, 1]
    [need] = needs(LOOP.context, LOOP.aggregates)
    [west] = home.online.get_many(need.store, ["west"])
    assert west is not None, "context is fed for those who serve"


def test_openlineage_is_told_which_packages_answered(lived: Path, tmp_path: Path) -> None:
    shutil.copytree(lived / "home", tmp_path / "home")
    events = tmp_path / "events.jsonl"
    with synthetic.opened(tmp_path / "home", NOW, openlineage=str(events)) as home:
        for _ in range(2):
            done = tend(home, owner="a", retrain=False)
            assert not done.held_by
        state = serving(home, "late")
        assert state is not None
    began, ended = openlineage.events(events)
    assert (began["eventType"], ended["eventType"], ended["job"]["name"]) == ("START", "COMPLETE", "late.serve")
    [read], [made] = ended["inputs"], ended["outputs"]
    assert read["facets"]["version"]["datasetVersion"] == state.champion.package
    assert Path(made["name"]).name == "predictions.late"
    assert made["outputFacets"]["outputStatistics"]["rowCount"] > 0


def test_one_process_tends(home: Home) -> None:
    with synthetic.opened(home.path, NOW) as other:
        assert not tend(home, owner="a", retrain=False).held_by
        assert tend(other, owner="b").held_by
        assert not tend(home, owner="a", retrain=False).held_by, "the holder goes on"
        home.ledger.unlock("tend", "a")
        assert not tend(other, owner="b", retrain=False).held_by
        assert tend(home, owner="a").held_by


def test_home_with_the_ledger_and_without_the_lake_says_so_and_closes_no_window(
    home: Home, world: World, tmp_path: Path
) -> None:
    home.ledger.unlock("tend", "a")
    with synthetic.opened(tmp_path / "other", NOW, ledger=home.settings.ledger_url) as other:
        done = tend(other, owner="b")
        assert done.loops["late"].watched.windows == []
        assert "table 'orders' is missing in the lake" in done.failed[0].what
        assert other.ledger.latest(Window, loop="late") is None
        assert FAILING in {a.key for a in open_alerts(other, "late")}
        table = synthetic.tables(LOOP, synthetic.known(LOOP, world, NOW))["orders"]
        with pytest.raises(Damaged, match="LOOPWRIGHT_LAKE"):
            ingest(other, LOOP.tables["orders"], table)
        with pytest.raises(Damaged, match="LOOPWRIGHT_LAKE"):
            profiled(other, "orders")
        with pytest.raises(Damaged, match="LOOPWRIGHT_LAKE"):
            turn(other, LOOP, file=str(FILE), until="data")
        [item] = [i for i in check(other, str(FILE)).items if i.name == "table orders"]
        assert (item.ok, "LOOPWRIGHT_LAKE" in item.detail) == (False, True)
        state = serving(other, "late")
        assert state is not None
        with pytest.raises(PackageNotFound, match="copy its folder there"):
            release(other, "late", state.champion.package, why="x")
        assert not list(other.path.glob("lake/*")), "nothing was begun in the other lake"
        other.ledger.unlock("tend", "b")
    tend(home, owner="a", retrain=False)
    assert FAILING not in {a.key for a in open_alerts(home, "late")}


def test_a_scheduler_knows_the_loop_without_its_code(home: Home, lived: Path) -> None:
    [(loop, file)] = loops(home)
    assert (loop.name, file) == ("late", str(lived / "loop.py"))
    assert (loop.monitor, loop.retrain, loop.outcome, loop.context) == (
        LOOP.monitor,
        LOOP.retrain,
        LOOP.outcome,
        LOOP.context,
    )
    assert isinstance(loop.features, str)


def test_a_trigger_retrains_and_releases_in_a_child_process(home: Home) -> None:
    before = serving(home, "late")
    assert before is not None
    done = tend(home, owner="a")
    assert not done.held_by
    [log] = home.folder("runs").glob("*.log")
    story = log.read_text()
    after = serving(home, "late")
    assert after is not None
    assert after.champion.package != before.champion.package, story
    assert (after.by, after.generation) == ("tend", before.generation + 1)
    assert after.why == done.loops["late"].watched.trigger.reason  # type: ignore[union-attr]  # it is there
    newest = home.ledger.find(Turn)[0].record
    assert (newest.cause, newest.state, newest.result) == ("drift", "done", after.champion.package)
    old, new = (home.packages.read(s.champion.package).manifest for s in (before, after))
    assert (new.candidate, new.params, new.parent) == (old.candidate, old.params, before.champion.package)
    assert new.training.last > DRIFT, "it learned from what was served since"
    assert "deploy: package" in story
    assert [e.record.action for e in history(home, "late")] == ["release", "release"]
    assert tend(home, owner="a").loops["late"].watched.trigger is None, "acted upon"
    assert home.ledger.verify() == []


def test_serving_package_that_is_gone_is_replaced_by_the_retraining_of_upkeep(home: Home) -> None:
    before = serving(home, "late")
    assert before is not None
    shutil.rmtree(home.packages.folder / before.champion.package)
    needed(home, LOOP)
    due = Due(str(FILE), Trigger(cause="schedule", reason="every week"), 600)
    Retrainer(home).run("late", due, 60, lambda: None)
    after = serving(home, "late")
    assert after is not None
    assert after.champion.package != before.champion.package
    assert "every week (cannot be compared: the package that serves is gone)" in after.why


def test_a_retraining_that_fails_raises_an_alert_and_is_not_tried_every_round(home: Home, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "loop.py").write_text("raise RuntimeError('the library is not installed')\n")
    home.ledger.put(LOOP.record(str(broken / "loop.py")), loop="late", key="late")
    before = serving(home, "late")
    tend(home, owner="a")
    alert = home.ledger.latest(Alert, loop="late", key="retraining")
    assert alert is not None
    assert (alert.record.title, alert.record.state) == ("Retraining failed", "open")
    assert "the library is not installed" in alert.record.detail
    tend(home, owner="a")
    assert len(list(home.folder("runs").glob("*.log"))) == 1
    shutil.rmtree(broken)
    home.clock.advance(RETRY_AFTER)  # type: ignore[attr-defined]  # a simulated clock
    tend(home, owner="a")
    again = home.ledger.latest(Alert, loop="late", key="retraining")
    assert again is not None
    assert "No such file" in again.record.detail
    assert serving(home, "late") == before


def test_retraining_waits_for_another_turn_of_the_loop_without_an_alert(home: Home) -> None:
    assert home.ledger.lock(scoped_name("turn", "late"), "a turn by hand", 60)
    done = tend(home, owner="a")
    assert done.loops["late"].watched.trigger is not None
    assert home.ledger.latest(Alert, loop="late", key="retraining") is None
    assert list(home.folder("runs").glob("*.log")) == [], "no process was started"


def hanging(folder: Path) -> str:
    """A loop file whose import takes for ever."""
    folder.mkdir()
    (folder / "loop.py").write_text("import time\ntime.sleep(3600)\n")
    return str(folder / "loop.py")


def test_rounds_of_upkeep_go_on_for_every_loop_while_one_is_retrained(home: Home, tmp_path: Path) -> None:
    home.ledger.put(LOOP.record(hanging(tmp_path / "hangs")), loop="late", key="late")
    retrainer = Retrainer(home)
    first = tend(home, owner="a", retrainer=retrainer)
    assert first.loops["late"].watched.trigger is not None
    assert retrainer.pid
    try:
        alerts.decide(home, "late", "mine", severity="warning", title="t", detail="d")
        again = tend(home, owner="a", retrainer=retrainer)
        assert list(again.loops) == ["late"]
        assert again.failed == []
        assert len(list(home.folder("runs").glob("*.log"))) == 1, "one retraining at a time"
    finally:
        os.kill(retrainer.pid, signal.SIGKILL)
    until(retrainer.conclude)
    assert "exit -9" in {a.key: a.detail for a in open_alerts(home, "late")}["retraining"]


def test_retraining_beyond_its_limit_is_ended_and_the_next_loop_has_its_turn(home: Home, tmp_path: Path) -> None:
    trigger = Trigger(cause="drift", reason="it drifted")
    due = {name: Due(hanging(tmp_path / name), trigger, 2) for name in ("early", "late")}
    retrainer = Retrainer(home)
    assert retrainer.begin(due)
    assert not retrainer.begin(due), "one at a time"
    until(retrainer.conclude)
    [alert] = open_alerts(home, "early")
    assert "it took longer than 0:00:02" in alert.detail
    home.clock.advance(RETRY_AFTER)  # type: ignore[attr-defined]  # a simulated clock
    assert retrainer.begin(due)
    until(retrainer.conclude)
    assert [a.key for a in open_alerts(home, "late")] == ["retraining"]


def test_limit_of_a_retraining_is_the_budget_and_an_hour_for_the_rest() -> None:
    budget = Budget(train_minutes=10)
    scope = msgspec.structs.replace(LOOP.scope, budget=budget)
    assert limit_s(msgspec.structs.replace(LOOP, scope=scope)) == 70 * 60
    unlimited = msgspec.structs.replace(LOOP.scope, budget=Budget())
    assert limit_s(msgspec.structs.replace(LOOP, scope=unlimited)) == 24 * 3600


def test_folder_with_the_loops_name_does_not_replace_the_loop(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "late" / "loop.py"
    other.parent.mkdir()
    other.write_text(FILE.read_text().replace('name="late",', 'name="punctual",'))
    shutil.copy(FILE, tmp_path / "loop.py")
    home.ledger.put(LOOP.record(str(tmp_path / "loop.py")), loop="late", key="late")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="declares loop 'punctual', not 'late'"):
        run(home, "late")
    before = serving(home, "late")
    tend(home, owner="a")
    assert home.ledger.loops(LoopRecord) == ["late"]
    assert serving(home, "late") != before, "it was retrained by its own file"
    other.unlink()
    assert run(home, "late", until="scope").loop == "late", "a folder without a loop file is none of it"


def test_loop_renamed_in_its_file_is_not_replaced_by_the_other_loop_when_upkeep_retrains(home: Home, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed" / "loop.py"
    renamed.parent.mkdir()
    renamed.write_text(FILE.read_text().replace('name="late",', 'name="punctual",'))
    home.ledger.put(LOOP.record(str(renamed)), loop="late", key="late")
    tend(home, owner="a")
    assert home.ledger.loops(LoopRecord) == ["late"]
    [alert] = [a for a in open_alerts(home, "late") if a.key == "retraining"]
    assert "declares loop 'punctual', not 'late'" in alert.detail
    with pytest.raises(UsageError, match="declares loop 'punctual', not 'late'"):
        run(home, "late")


def test_alert_of_a_failed_retraining_closes_when_a_turn_by_hand_completes(home: Home) -> None:
    alerts.raise_alert(home, "late", "retraining", severity="critical", title="Retraining failed", detail="exit 2")
    tend(home, owner="a", retrain=False)
    assert "retraining" in {a.key for a in open_alerts(home, "late")}
    turn(home, LOOP, file=str(FILE))
    tend(home, owner="a", retrain=False)
    closed = home.ledger.latest(Alert, loop="late", key="retraining")
    assert closed is not None
    assert (closed.record.state, closed.record.detail) == ("closed", "a turn was completed since")


def test_the_alert_about_a_bad_package_is_closed_by_the_next_release(home: Home) -> None:
    loop, first = LOOP.name, serving(home, LOOP.name)
    assert first is not None
    good = first.champion.package
    key = f"{blocklist.ALERT}:{good[:12]}"
    alerts.decide(home, loop, key, severity="critical", title="bad", detail="three deaths")

    def state() -> str:
        tend(home, owner="a", retrain=False)
        return {e.key: e.record.state for e in home.ledger.find(Alert, loop=loop, newest=False)}[key]

    home.clock.advance(dt.timedelta(minutes=1))  # type: ignore[attr-defined]  # simulated
    assert state() == "open"
    release(home, loop, good, why="it was the disk")
    assert state() == "closed"


@pytest.mark.parametrize("kind", [f"{blocklist.DAMAGED_ALERT}:{{}}", f"{blocklist.QUERY_ALERT}:{{}}:3131313131313131"])
def test_alerts_of_a_server_close_when_it_stops_and_when_the_package_serves_no_longer(tmp_path: Path, kind: str) -> None:
    with small.opened(tmp_path) as home:
        package = small.package(home.packages).digest
        release(home, small.LOOP, package, why="first")
        alive = this_process("server", 0.0)
        died = msgspec.structs.replace(alive, started=alive.started - 1)  # the number of the process is another one's by now

        def is_open(holder: Holder) -> bool:
            key = kind.format(package[:12])
            alerts.decide(home, small.LOOP, key, severity="critical", title="t", detail="d", holder=encode_holder(holder))
            tend(home, owner="a", retrain=False)
            return key in [alert.key for alert in open_alerts(home, small.LOOP)]

        assert is_open(alive)
        assert not is_open(died)
        assert is_open(alive), "it may come again"
        assert is_open(Holder(owner="server", host="elsewhere", boot="another")), "nothing is known of other machines"
        release(home, small.LOOP, small.package(home.packages, weight=0.06).digest, why="next")
        assert not is_open(alive)


def test_damage_of_the_log_is_told_once_until_somebody_has_looked(home: Home) -> None:
    folder = log_folder(home.path, LOOP.name) / "predictions"
    damaged = min(folder.glob("*.sealed"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)

    def told() -> list[Alert]:
        return [e.record for e in home.ledger.find(Alert, loop=LOOP.name, key=DAMAGED, newest=False) if e.record.sent]

    for _ in range(3):
        assert not tend(home, owner="a", retrain=False).held_by
    [alert] = told()
    assert (alert.severity, alert.state) == ("critical", "open")
    assert damaged.name in alert.detail
    assert loop_status(home, LOOP.name).damaged == [f"predictions/{damaged.name}.damaged"]
    assert noted(home.path) == {LOOP.name: 1}
    shutil.rmtree(folder / "quarantine")
    tend(home, owner="a", retrain=False)
    assert [a.state for a in told()] == ["open", "closed"]
    assert loop_status(home, LOOP.name).damaged == []
    assert noted(home.path) == {}


def test_what_is_old_goes_and_what_windows_and_training_need_stays(home: Home) -> None:
    def rows() -> int:
        return len(predictions(home, LOOP.name))

    tend(home, owner="a", retrain=False)
    had = rows()
    short = Home(msgspec.structs.replace(home.settings, keep="1d"), home.clock)
    tend(short, owner="a", retrain=False)
    [window] = home.ledger.find(Window, loop=LOOP.name, limit=1)
    needed = window.record.end - duration(LOOP.outcome.wait) - 2 * duration(LOOP.monitor.every)
    first = min(predictions(home, LOOP.name, columns=["_at"])["_at"].to_pylist())
    assert needed <= first < needed + dt.timedelta(hours=2)
    assert 0 < rows() < had
    [done] = [e.record for e in home.ledger.find(Retained, key=f"predictions.{LOOP.name}")]
    assert (done.before, done.deleted) == (needed, had - rows())
    old = new_id(needed - dt.timedelta(days=1))
    with pytest.raises(PredictionNotFound, match="are not kept"):
        trace(home, old)
    again = tend(short, owner="a", retrain=False)
    assert again.loops[LOOP.name].watched.qualities == [], "no window is measured again for the rows that went"


def poison(home: Home, name: str) -> None:
    """A loop declared as `late` is, whose logged predictions have times that are no times."""
    record = LOOP.record("")
    home.ledger.put(msgspec.structs.replace(record, declaration={**record.declaration, "name": name}), loop=name, key=name)
    home.lake.write(f"predictions.{name}", pa.table({"_id": [new_id(START)], "_at": ["not a time"]}))


def test_poisoned_loops_stop_no_other_loop_and_are_alerted_once(home: Home) -> None:
    record = LOOP.record("")
    home.ledger.put(msgspec.structs.replace(record, declaration={"name": "a-broken"}), loop="a-broken", key="a-broken")
    poison(home, "b-poisoned")
    for _ in range(2):
        done = tend(home, owner="a", retrain=False)
        assert {problem.where.split(":")[0] for problem in done.failed} == {"a-broken", "b-poisoned"}
        assert done.loops["late"].failed == []
    assert len(home.ledger.find(Window, loop="late")) == 4
    assert done.loops["late"].watched.trigger is not None
    for name, step in (("a-broken", "read declaration"), ("b-poisoned", "find windows due")):
        [entry] = [e for e in home.ledger.find(Alert, loop=name, key=FAILING) if e.record.sent]
        assert (entry.record.state, entry.record.repeats, step in entry.record.title) == ("open", 0, True)
    asked = tend_verb(home, once=True, no_retrain=True)
    assert (asked.leader, asked.ok, is_yes(asked)) == (False, False, False), "another process tends: nothing was done"
    home.ledger.unlock("tend", "a")
    asked = tend_verb(home, once=True, no_retrain=True)
    assert (asked.leader, asked.ok, is_yes(asked)) == (True, False, False), "steps failed"
    shutil.rmtree(home.path / "lake" / "predictions.b-poisoned")
    tend(home, owner="a", retrain=False)
    healed = home.ledger.latest(Alert, loop="b-poisoned", key=FAILING)
    assert healed is not None
    assert healed.record.state == "closed"


def test_a_step_that_fails_stops_no_other_step_of_the_loop(home: Home) -> None:
    home.lake.write("outcomes.late", pa.table({"_id": [new_id(START)], "_known_at": ["not a time"]}))
    done = tend(home, owner="a", retrain=False)
    assert {problem.where for problem in done.failed} >= {"late: commit logs", "late: close windows"}
    assert home.lake.exists("predictions.late"), "predictions are committed where outcomes cannot be"
    [need] = needs(LOOP.context, LOOP.aggregates)
    assert home.online.get_many(need.store, ["west"]) != [None]


class SetClock(SimulatedClock):
    """A simulated machine whose time of day somebody sets; its uptime is not touched by that."""

    ahead = dt.timedelta(0)

    def now(self) -> dt.datetime:
        return super().now() + self.ahead


def test_upkeep_waits_while_the_clock_is_in_another_year_and_goes_on_when_it_is_back(lived: Path, tmp_path: Path) -> None:
    shutil.copytree(lived / "home", tmp_path / "home")
    clock = SetClock(NOW - WEEK)
    with synthetic.opened(tmp_path / "home", clock) as home:
        assert len(tend(home, owner="a", retrain=False).loops["late"].watched.windows) == 3
        clock.ahead = dt.timedelta(days=400)
        for _ in range(2):
            done = tend(home, owner="a", retrain=False)
            assert ([p.where for p in done.failed], done.loops) == (["clock"], {})
            clock.advance(dt.timedelta(seconds=7))
        [alert, *_] = home.ledger.find(Alert, loop="", key=JUMPED)
        assert (alert.record.state, alert.record.sent, alert.record.repeats) == ("open", True, 0)
        clock.ahead = dt.timedelta(0)
        clock.advance_to(NOW)
        done = tend(home, owner="a", retrain=False)
        assert ([w.end for w in done.loops["late"].watched.windows], done.failed) == ([NOW], [])
        closed = home.ledger.latest(Alert, loop="", key=JUMPED)
        assert closed is not None
        assert closed.record.state == "closed"


def test_status_shows_every_loop_where_one_cannot_be_read(home: Home) -> None:
    poison(home, "b-poisoned")
    record = LOOP.record("")
    home.ledger.put(msgspec.structs.replace(record, declaration={"name": "a-broken"}), loop="a-broken", key="a-broken")
    state = serving(home, "late")
    assert state is not None
    found = status(home)
    assert {loop.name: bool(loop.errors) for loop in found.loops} == {"a-broken": True, "b-poisoned": True, "late": False}
    shutil.rmtree(home.path / "packages" / state.champion.package)
    [late] = [loop for loop in status(home).loops if loop.name == "late"]
    assert (late.serving, late.candidate, late.predictions > 0, is_yes(found)) == (state.champion.package, "", True, False)
    [deploy] = [stage for stage in late.stages if stage.stage == "deploy"]
    assert (deploy.state, "no package" in deploy.detail) == ("alert", True)
    asked = predictions(home, "late", columns=["_id"])["_id"][0].as_py()
    traced = trace(home, asked)
    assert (traced.id, traced.package, traced.features, "no package" in traced.package_error) == (asked, late.serving, {}, True)
    assert "order" in traced.request
    show(traced)
    with served([*routes(home)]) as address:
        pages = [
            urllib.request.urlopen(f"{address}{path}").read().decode() for path in ("/", "/loops/late", f"/predictions/{asked}")
        ]
    assert all(name in pages[0] for name in ("a-broken", "b-poisoned", "late"))
    assert "no package" in pages[1]
    assert "no package" in pages[2]
    assert "◐ outcome not known without the package" in pages[2]


def test_loop_whose_declaration_is_lawful_no_longer_is_shown_with_the_reason_and_stops_no_other(home: Home) -> None:
    """A window of no length was taken by earlier versions, and ended upkeep of all loops in a division by zero."""
    record = LOOP.record("old/loop.py")
    older = {**record.declaration, "name": "older", "monitor": {**record.declaration["monitor"], "every": "0d"}}
    home.ledger.put(msgspec.structs.replace(record, name="older", declaration=older), loop="older", key="older")
    found = {loop.name: loop for loop in status(home).loops}
    [scope] = [stage for stage in found["older"].stages if stage.stage == "scope"]
    for said in ("every: '0d' is not at least 1m", "loopwright run old/loop.py"):
        assert said in scope.detail
    assert (scope.state, found["late"].errors) == ("alert", [])
    done = tend(home, owner="a", retrain=False)
    assert {problem.where for problem in done.failed} == {"older: read declaration"}
    assert done.loops["late"].watched.windows
    assert loop_page_verb(home, "older").status.errors
    with pytest.raises(Damaged, match="every: '0d'"):
        leaderboard(home, "older")
    with served([*routes(home)]) as address:
        for path in ("/", "/index.json", "/loops/late", "/loops/older", "/loops/older.json"):
            with urllib.request.urlopen(address + path) as page:
                assert page.status == 200


def test_upkeep_of_one_loop_that_raises_anywhere_stops_no_other(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(home, "b-poisoned")

    def fails(_home: Home, loop: Any, **more: Any) -> Upkeep:
        if loop.name == "b-poisoned":
            raise ZeroDivisionError("of a part that is in no step")
        return upkeep(_home, loop, **more)

    monkeypatch.setattr("loopwright.tend.upkeep", fails)
    done = tend(home, owner="a", retrain=False)
    assert [problem.what for problem in done.failed] == ["ZeroDivisionError: of a part that is in no step"]
    assert done.loops["late"].watched.windows


def accounted(home: Home, loop: str, week: int, low: float, high: float) -> None:
    """An account of a week: what its model was worth over the heuristic, and a thousand more over no model."""
    over, start = Estimate((low + high) / 2, low, high, 500), small.NOW - (5 - week) * WEEK
    value = ValueWindow(
        start=start,
        end=start + WEEK,
        known_at=start + WEEK,
        currency="USD",
        predictions=600,
        with_outcome=500,
        model=over,
        heuristic=over,
        no_model=0.0,
        over_no_model=moved(over, 1000),
        over_heuristic=over,
        cost=0.0,
        counts={},
    )
    home.ledger.put(value, loop=loop, key=start.isoformat())


def shown(home: Home) -> dict[str, str]:
    """The states of monitor and business: the same in status, the console's page, its JSON, and the metrics."""
    told = {s.stage: s.state for s in loops_status(home, [small.LOOP])[0].stages if s.stage in ("monitor", "business")}
    page = Verbs(home).loop(small.LOOP)
    assert {s.stage: s.state for s in page.status.stages if s.stage in told} == told
    metrics = Metrics(upkeep=home.folder("run")).text().decode()
    for stage, state in told.items():
        assert f'loopwright_stage_state{{loop="{small.LOOP}",stage="{stage}",state="{state}"}} 1.0' in metrics
    return {str(stage): str(state) for stage, state in told.items()}


def test_a_loop_that_loses_money_over_the_horizon_is_not_ok_although_its_last_week_was(tmp_path: Path) -> None:
    with small.opened(tmp_path) as home:
        package = small.package(home.packages).digest
        release(home, small.LOOP, package, why="first")
        tend(home, owner="a", retrain=False)
        assert shown(home) == {"monitor": "no data", "business": "no data"}, "nothing measured is not ok"
        for week, (low, high) in enumerate([(5000, 6000), (-300, -200), (-300, -200), (-300, -200), (-90, 20)]):
            accounted(home, small.LOOP, week, low, high)
        home.clock.advance_to(small.NOW + dt.timedelta(minutes=1))  # type: ignore[attr-defined]  # a simulated clock
        release(home, small.LOOP, small.package(home.packages, weight=0.06).digest, why="again")
        tend(home, owner="a", retrain=False)
        assert shown(home)["business"] == "alert"
        detail = loops_status(home, [small.LOOP])[0].stages[-1].detail
        assert "4 weeks to 2024-05-01" in detail, "the good week lies before the horizon of 28 days"
        assert "-785 USD" in detail
        assert [(a.key, a.severity) for a in open_alerts(home, small.LOOP)] == [(LOSING, "critical")]
        rule = small.package(home.packages, phase=1, candidate="heuristic", weight=0.07).digest
        home.clock.advance_to(small.NOW + dt.timedelta(minutes=2))  # type: ignore[attr-defined]  # a simulated clock
        release(home, small.LOOP, rule, why="it loses money")
        tend(home, owner="a", retrain=False)
        assert open_alerts(home, small.LOOP) == [], "what the model lost is not put down to the rule"
        assert shown(home) == {"monitor": "no data", "business": "no data"}


def test_round_that_hangs_ends_the_process_and_says_where_it_stood(tmp_path: Path) -> None:
    code = """
import time
from pathlib import Path
from loopwright.base.settings import Settings
from loopwright.stores.home import Home
from loopwright.verbs import tend

def hangs(*_, **__):
    time.sleep(60)

tend.tend_once, tend.ROUND_SECONDS = hangs, 0.2
tend.tend(Home(Settings(home=Path("home"))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "in hangs" in done.stderr
