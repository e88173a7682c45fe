"""A turn: its stages in order, each recorded; interrupted anywhere it goes on where it was; the gate has the last word."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cli.test_terminal import text_of
from tests.journeys import synthetic
from tests.journeys.synthetic import FILE, START, WEEK

from loopwright import Guard, Home, Loop, Monitor, Objective, Release, TimeSplit
from loopwright.base import failpoints
from loopwright.base.clock import RealClock, SimulatedClock
from loopwright.base.errors import ExamplesRefused, GateFailed, NotFound, TurnRunning, UsageError
from loopwright.base.ids import scoped_name
from loopwright.deploy import blocklist, releases
from loopwright.deploy.gate import GateResult
from loopwright.deploy.pending import begin_pending
from loopwright.deploy.releases import history, rollback, serving
from loopwright.deploy.strategies import Strategy
from loopwright.loop import load_loop
from loopwright.monitor.alerts import close_alert, raise_alert
from loopwright.records.declarations import Canary
from loopwright.records.evaluation import Leaderboard
from loopwright.records.examples import Examples
from loopwright.records.releases import BadPackage
from loopwright.records.turns import STAGES, LoopRecord, Step, Turn
from loopwright.turn import turn
from loopwright.verbs.release import release
from loopwright.verbs.rollback import rollback as rollback_verb
from loopwright.verbs.run import run
from loopwright.verbs.status import status


@pytest.fixture(scope="module")
def loop() -> Loop:
    return load_loop(FILE)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which everything was ingested and nothing ran, to be copied."""
    folder = tmp_path_factory.mktemp("ingested") / "home"
    synthetic.filled(folder, START, synthetic.world()).close()
    return folder


@pytest.fixture
def home(ingested: Path, tmp_path: Path) -> Iterator[Home]:
    shutil.copytree(ingested, tmp_path / "home")
    with synthetic.opened(tmp_path / "home", START) as opened:
        yield opened


def steps_of(home: Home) -> list[tuple[str, str]]:
    """Stage and state of every record of a step, in order."""
    return [(e.record.stage, e.record.state) for e in home.ledger.find(Step, newest=False)]


def states_of(home: Home) -> list[str]:
    return [e.record.state for e in home.ledger.find(Turn, newest=False)]


def whole(stages: tuple[str, ...] = STAGES) -> list[tuple[str, str]]:
    return [(stage, state) for stage in stages for state in ("running", "done")]


def test_the_stages_run_in_order_and_each_is_recorded(home: Home, loop: Loop) -> None:
    steps = turn(home, loop, file=str(FILE), why="let us begin")
    assert [s.stage for s in steps] == list(STAGES)
    assert steps_of(home) == whole()
    assert states_of(home) == ["running", "done"]
    [(began, over)] = zip(*[iter(home.ledger.find(Turn, newest=False))] * 2, strict=True)
    assert (over.record.cause, over.record.why, over.record.as_of) == ("first", "let us begin", START)
    state = serving(home, loop.name)
    assert state is not None
    assert state.why == "let us begin"
    assert over.record.result == state.champion.package
    assert began.record.turn == over.record.turn == steps[0].turn
    # What each step made stands in the ledger, and what it was made from is linked.
    outputs = {s.stage: s.output for s in steps}
    board = home.ledger.get(outputs["develop"]["leaderboard"], Leaderboard).record
    assert [r.candidate for r in board.rows if r.package == state.champion.package] == [
        home.packages.read(state.champion.package).manifest.candidate
    ]
    sources = {link.source for link in home.ledger.links(state.champion.package, direction="up", depth=8)}
    assert outputs["data"]["examples"] in sources
    assert {s.partition("@")[0] for s in sources if s.startswith("table:")} == {
        "table:orders",
        "table:traffic",
        "table:deliveries",
    }
    assert home.ledger.latest(LoopRecord, loop=loop.name).record.file == str(FILE)  # type: ignore[union-attr]  # it is there


def test_a_turn_stops_where_asked_and_goes_on_from_there(home: Home, loop: Loop) -> None:
    first = turn(home, loop, until="develop")
    assert [s.stage for s in first] == ["scope", "data", "develop"]
    assert serving(home, loop.name) is None
    home.clock.advance(WEEK)  # type: ignore[attr-defined]  # a simulated clock
    rest = turn(home, loop)
    assert [s.stage for s in rest] == ["deploy", "monitor", "business"]
    assert {s.turn for s in first + rest} == {first[0].turn}
    assert states_of(home) == ["running", "stopped", "running", "done"]
    assert home.ledger.find(Turn)[0].record.as_of == START, "a resumed turn learns from what its beginning knew"


class Told:
    """Keeps what is said of progress."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, what: str, done: float, total: float) -> None: ...


STRENGTH = 1.0


def strong(f: Any) -> Any:
    return {"weight": f.weight * STRENGTH}


@pytest.mark.parametrize("until", ["scope", "data", "develop"])
def test_a_turn_whose_code_changed_begins_anew(home: Home, loop: Loop, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: Loop = msgspec.structs.replace(
        loop, features=strong, candidates=[c for c in loop.candidates if c.name == "lightgbm"]
    )
    first = turn(home, changed, until=until)
    monkeypatch.setitem(globals(), "STRENGTH", 1e-9)
    told = Told()
    rest = turn(home, changed, until="develop" if until == "develop" else "data", progress=told)
    assert [s.stage for s in rest] == list(STAGES[: 3 if until == "develop" else 2])
    assert {s.turn for s in first}.isdisjoint({s.turn for s in rest})
    assert any("instead of resuming" in line and "a constant, function or module" in line for line in told.lines)
    again = turn(home, changed, until="develop", progress=told)
    assert {s.turn for s in again} <= {rest[0].turn}, "what did not change since is resumed"


def test_a_turn_begun_with_other_library_versions_begins_anew(home: Home, loop: Loop) -> None:
    first = turn(home, loop, until="data")
    old = home.ledger.latest(Turn, loop=loop.name)
    assert old is not None
    assert {"python", "numpy", "onnxruntime", "duckdb"} <= old.record.libraries.keys()
    other = {**old.record.libraries, "numpy": "0.1", "gone": "3"}
    home.ledger.put(msgspec.structs.replace(old.record, libraries=other), loop=loop.name, key=old.record.turn)
    told = Told()
    rest = turn(home, loop, until="data", progress=told)
    assert [s.stage for s in rest] == ["scope", "data"]
    assert rest[0].turn != first[0].turn
    assert any("(gone 3 -> none, numpy 0.1 -> " in line for line in told.lines)


def test_a_turn_stopped_before_training_begins_anew_with_rows_ingested_since(home: Home, loop: Loop) -> None:
    first = turn(home, loop, until="data")
    newest = home.lake.read(loop.requests.name).slice(0, 3)
    home.lake.write(loop.requests.name, newest)
    told = Told()
    rest = turn(home, loop, until="data", progress=told)
    assert [s.stage for s in rest] == ["scope", "data"]
    assert rest[0].turn != first[0].turn
    assert any(f"table {loop.requests.name} has +3 rows since its examples were built" in line for line in told.lines)
    assert turn(home, loop, until="data") == [], "no rows came since"


def test_a_trained_turn_is_resumed_and_says_which_rows_are_not_in_it_and_fresh_begins_anew(home: Home, loop: Loop) -> None:
    first = turn(home, loop, until="develop")
    home.lake.write(loop.requests.name, home.lake.read(loop.requests.name).slice(0, 3))
    told = Told()
    assert turn(home, loop, until="develop", progress=told) == []
    assert [f"{loop.requests.name} has +3 rows" in line and "--fresh" in line for line in told.lines] == [False, True]
    rest = turn(home, loop, until="data", fresh=True)
    assert [s.stage for s in rest] == ["scope", "data"]
    assert rest[0].turn != first[0].turn


def test_nothing_is_put_into_service_when_asked_not_to(home: Home, loop: Loop) -> None:
    deployed = turn(home, loop, release=False)[3]
    assert (deployed.stage, deployed.output) == ("deploy", {"released": False, "reasons": []})
    assert serving(home, loop.name) is None


@pytest.mark.parametrize("stage", ["develop", "deploy"])
def test_a_failure_is_recorded_and_the_turn_resumes_at_its_step(home: Home, loop: Loop, stage: str) -> None:
    points = {"develop": "turn.step.ran=EIO@3", "deploy": "turn.step.began=EIO@4"}
    failpoints.arm(points[stage])
    try:
        with pytest.raises(OSError, match="Input/output error"):
            turn(home, loop)
    finally:
        failpoints.arm("")
    done = STAGES[: STAGES.index(stage)]
    assert steps_of(home) == [*whole(done), (stage, "running"), (stage, "failed")]
    assert states_of(home) == ["running", "failed"]
    assert serving(home, loop.name) is None
    rest = turn(home, loop)
    assert [s.stage for s in rest] == list(STAGES[len(done) :])
    assert states_of(home) == ["running", "failed", "running", "done"]
    assert len({e.record.turn for e in home.ledger.find(Turn)}) == 1
    assert len(home.ledger.find(Examples)) == 1
    assert len(history(home, loop.name)) == 1


def test_what_a_stage_refuses_is_recorded(tmp_path: Path, loop: Loop) -> None:
    with synthetic.opened(tmp_path / "home", START) as home:
        with pytest.raises(ExamplesRefused):
            turn(home, loop)
        assert steps_of(home) == [*whole(("scope",)), ("data", "running"), ("data", "failed")]
        assert "loopwright ingest orders" in home.ledger.find(Step)[0].record.summary
        assert states_of(home) == ["running", "failed"]


CHILD = """
import sys
from pathlib import Path
from tests.journeys import synthetic
from loopwright.loop import load_loop
from loopwright.turn import turn
turn(synthetic.opened(Path(sys.argv[1]), synthetic.START), load_loop(synthetic.FILE), file=str(synthetic.FILE))
"""


@pytest.mark.parametrize(
    ("stage", "environment"),
    [
        ("develop", {"DIE_IN_TRAINING": "1"}),
        ("develop", {"LOOPWRIGHT_FAILPOINTS": "turn.step.ran=kill@3"}),
        ("deploy", {"LOOPWRIGHT_FAILPOINTS": "turn.step.ran=kill@4"}),
    ],
    ids=["in training", "trained, not recorded", "released, not recorded"],
)
def test_a_killed_turn_resumes_at_once_at_the_step_it_was_in(
    home: Home, loop: Loop, stage: str, environment: dict[str, str]
) -> None:
    home.ledger.count()
    root = Path(__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(home.path)],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}", **environment},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    done = STAGES[: STAGES.index(stage)]
    assert steps_of(home) == [*whole(done), (stage, "running")]
    assert states_of(home) == ["running"]
    released = [e.id for e in history(home, loop.name)]
    rest = turn(home, loop, file=str(FILE))
    assert [s.stage for s in rest] == list(STAGES[len(done) :])
    assert steps_of(home) == [*whole(done), (stage, "running"), *whole(STAGES[len(done) :])]
    assert len({e.record.turn for e in home.ledger.find(Turn)}) == 1
    assert len(home.ledger.find(Examples)) == 1, "the examples were not built again"
    entries = [e.id for e in history(home, loop.name)]
    assert len(entries) == 1, "released once, however often it was tried"
    assert released in ([], entries)
    assert home.ledger.verify() == []
    assert home.packages.verify() == []


def test_a_trigger_does_not_go_on_with_what_was_left_lying_for_another_reason(home: Home, loop: Loop) -> None:
    turn(home, loop)
    turn(home, loop, until="data")
    home.clock.advance(WEEK)  # type: ignore[attr-defined]  # a simulated clock
    steps = turn(home, loop, cause="schedule", why="time is up", refit=True)
    assert [s.stage for s in steps] == list(STAGES)
    newest = home.ledger.find(Turn)[0].record
    assert (newest.cause, newest.as_of) == ("schedule", START + WEEK)


def test_of_two_turns_at_once_one_is_told(home: Home, loop: Loop) -> None:
    gate = threading.Barrier(2)
    told: list[BaseException] = []

    def go() -> None:
        gate.wait()
        try:
            turn(home, loop)
        except TurnRunning as error:
            told.append(error)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    assert "another turn of loop 'late' is running (" in str(told[0])
    assert steps_of(home) == whole()


def test_a_turn_elsewhere_on_the_same_ledger_is_told_until_its_lease_runs_out(home: Home, loop: Loop) -> None:
    assert home.ledger.lock(scoped_name("turn", loop.name), "another machine", 60)
    with pytest.raises(TurnRunning, match="another turn of loop 'late' is running"):
        turn(home, loop)
    assert steps_of(home) == []
    home.ledger.unlock(scoped_name("turn", loop.name), "another machine")
    assert turn(home, loop, until="scope")
    assert home.ledger.lock(scoped_name("turn", loop.name), "another machine", 60), "given back at the end"


def test_moved_loop_file_is_where_the_loop_is_found_from_then_on(home: Home, loop: Loop) -> None:
    for file in ("/before/loop.py", "/after/loop.py", ""):
        turn(home, loop, file=file, until="scope")
    assert [e.record.file for e in home.ledger.find(LoopRecord, newest=False)] == ["/before/loop.py", "/after/loop.py"]


def test_a_refit_keeps_the_candidate_and_its_hyper_parameters(home: Home, loop: Loop) -> None:
    loop = msgspec.structs.replace(loop, split=TimeSplit(validation="4d"))  # enough rows to tell trees from the rule
    trees = msgspec.structs.replace(loop, candidates=[c for c in loop.candidates if c.name == "lightgbm"])
    turn(home, trees)
    before = home.packages.read(serving(home, loop.name).champion.package)  # type: ignore[union-attr]  # it serves
    assert before.manifest.candidate == "lightgbm"
    assert before.manifest.params
    home.clock.advance(WEEK)  # type: ignore[attr-defined]  # a simulated clock
    steps = turn(home, loop, refit=True, cause="schedule")
    board = home.ledger.get(steps[2].output["leaderboard"], Leaderboard).record
    assert {r.candidate for r in board.rows} == {"heuristic", "lightgbm"}
    [after] = [home.packages.read(r.package) for r in board.rows if r.candidate == "lightgbm"]
    assert after.digest != before.digest
    assert after.manifest.params == before.manifest.params
    assert after.manifest.parent == before.digest
    assert after.manifest.training.as_of == START + WEEK
    assert before.digest in {link.source for link in home.ledger.links(after.digest, direction="up", depth=1)}


def test_what_the_gate_refuses_leaves_the_old_package_serving(home: Home, loop: Loop) -> None:
    turn(home, loop)
    before = serving(home, loop.name)
    assert before is not None
    # From now on features without worth: a model that is surely worse than the one that serves.
    blind: Any = msgspec.structs.replace(
        loop,
        features=lambda f: {"order": f.order % 2},
        scope=msgspec.structs.replace(
            loop.scope, heuristic=msgspec.structs.replace(loop.scope.heuristic, rule=lambda f: f.weight > 39)
        ),
        release=Release(guards=[Guard("average_precision", tolerance=0.05)]),
    )
    home.clock.advance(WEEK)  # type: ignore[attr-defined]  # a simulated clock
    steps = turn(home, blind)
    deployed = steps[3].output
    assert deployed["released"] is False
    assert any("average_precision" in reason for reason in deployed["reasons"])
    assert serving(home, loop.name) == before
    assert home.ledger.find(GateResult)[0].record.passed is False
    assert states_of(home)[-1] == "done", "a refusal is a result, not a failure"


def test_a_turn_dates_itself_by_the_clock_it_is_given(home: Home, loop: Loop) -> None:
    assert isinstance(home.clock, SimulatedClock)
    turn(home, loop, as_of=START - WEEK)
    record = home.ledger.find(Turn)[0]
    assert (record.at, record.record.as_of) == (START, START - WEEK)
    examples = home.ledger.find(Examples)[0].record
    assert examples.as_of == START - WEEK
    assert examples.last < START - WEEK
    assert RealClock().now() > record.at


def test_turn_with_a_clock_behind_the_last_turn_says_so(home: Home, loop: Loop) -> None:
    turn(home, loop, until="scope")
    said = Told()
    with Home(home.settings, SimulatedClock(START - WEEK)) as behind:
        turn(behind, loop, until="scope", fresh=True, progress=said)
    assert any("before the last turn" in text for text in said.lines)
    turn(home, loop, until="scope", fresh=True, progress=(quiet := Told()))
    assert not any("before the last turn" in text for text in quiet.lines)


def test_turn_with_nothing_changed_trains_nothing_and_releases_nothing(home: Home, loop: Loop) -> None:
    turn(home, loop)
    before, packages = serving(home, loop.name), home.packages.list()
    home.clock.advance(dt.timedelta(seconds=1))  # type: ignore[attr-defined]  # a simulated clock
    told = Told()
    steps = {s.stage: s for s in turn(home, loop, progress=told)}
    assert steps["develop"].summary.startswith("nothing changed since the turn of")
    assert steps["deploy"].summary.endswith("serves already")
    assert any("--fresh` trains anew" in line for line in told.lines)
    assert (serving(home, loop.name), home.packages.list()) == (before, packages)
    assert len(history(home, loop.name)) == 1
    assert status(home).loops[0].retrainings == [], "it trained nothing"
    # A refit of what serves has the same inputs; so has a second one.
    refit = turn(home, loop, refit=True, cause="schedule")
    assert refit[2].summary.startswith("nothing changed")
    board = home.ledger.latest(Leaderboard, loop=loop.name)
    assert board is not None
    assert (board.record.turn, home.packages.list()) == (refit[0].turn, packages)
    assert turn(home, loop)[2].summary.startswith("nothing changed"), "a refit hides no full turn"


def test_status_says_of_each_turn_whether_it_released(home: Home, loop: Loop) -> None:
    turn(home, loop)
    for no_release in (False, True):
        home.clock.advance(dt.timedelta(seconds=1))  # type: ignore[attr-defined]  # a simulated clock
        turn(home, loop, fresh=True, release=not no_release)
    rollback(home, loop.name, why="back")
    assert [r.released for r in status(home).loops[0].retrainings] == [True, False]


def test_turn_trains_anew_with_fresh_and_with_anything_that_changed(
    home: Home, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: Loop = msgspec.structs.replace(
        loop, features=strong, candidates=[c for c in loop.candidates if c.name == "lightgbm"]
    )
    turn(home, changed)

    def trains(loop: Loop, **given: Any) -> bool:
        before = set(home.packages.list())
        turn(home, loop, until="develop", **given)
        return set(home.packages.list()) > before

    assert not trains(changed)
    assert trains(changed, fresh=True)
    assert trains(changed, as_of=START - WEEK), "other examples"
    assert not trains(changed, as_of=START - WEEK)
    monkeypatch.setitem(globals(), "STRENGTH", 0.5)
    assert trains(changed), "other code"
    assert trains(msgspec.structs.replace(changed, seed=1)), "another declaration"
    monkeypatch.setattr("loopwright.turn.libraries", lambda: {"numpy": "0.1"})
    assert trains(changed), "other libraries"


def declared_otherwise(loop: Loop) -> Loop:
    """The same loop in other words, watched otherwise: nothing of it decides the models."""
    scope = msgspec.structs.replace(
        loop.scope,
        problem="Which deliveries come late?",
        horizon="14d",
        objectives=[msgspec.structs.replace(o, owner="someone else") for o in loop.scope.objectives],
        budget=msgspec.structs.replace(loop.scope.budget, usd_per_month=1.0, usd_per_hour=2.0),
    )
    changed: Loop = msgspec.structs.replace(
        loop,
        scope=scope,
        requests=msgspec.structs.replace(loop.requests, description="orders of all shops", ignore=["*"]),
        monitor=Monitor(every="1d", false_alarms_per_year=0.5),
        retrain=msgspec.structs.replace(loop.retrain, every="3d", drift=1),  # another window is other examples
    )
    return changed


def test_turn_trains_nothing_when_only_what_decides_no_model_changed(home: Home, loop: Loop) -> None:
    simple: Loop = msgspec.structs.replace(loop, candidates=loop.candidates[:1])
    changed = declared_otherwise(simple)
    first, packages = turn(home, simple), set(home.packages.list())
    told = Told()
    steps = {s.stage: s for s in turn(home, changed, progress=told)}
    assert steps["develop"].summary.startswith("nothing that decides the models changed since the turn of")
    assert any("so nothing is trained" in line for line in told.lines)
    assert steps["develop"].output["reused"]
    assert set(home.packages.list()) == packages
    newest = home.ledger.latest(LoopRecord, loop=loop.name)
    assert newest is not None
    assert newest.record.declaration["monitor"]["every"] == "1d", "upkeep goes by the new declaration"
    # Trained all the same, the models are the same bytes.
    anew = turn(home, changed, fresh=True, until="develop")
    boards = [home.ledger.get(s[2].output["leaderboard"], Leaderboard).record for s in (first, anew)]
    for old, new in zip(*(sorted(b.rows, key=lambda r: r.candidate) for b in boards), strict=True):
        assert old.package != new.package
        one, other = (home.packages.read(row.package) for row in (old, new))
        assert {n: one.files[n] for n in one.files if n.endswith(".onnx")} == {
            n: other.files[n] for n in other.files if n.endswith(".onnx")
        }
        assert one.manifest.threshold == other.manifest.threshold
        assert repr(one.evaluation.metrics) == repr(other.evaluation.metrics), "NaN included"


def test_status_counts_the_turns_that_trained_and_says_why_the_newest_was_refused(home: Home, loop: Loop) -> None:
    strict: Loop = msgspec.structs.replace(
        loop,
        candidates=loop.candidates[:1],
        scope=msgspec.structs.replace(loop.scope, objectives=[Objective("be right", "sales", "roc_auc", at_least=0.999)]),
    )
    clock: Any = home.clock

    def retrainings() -> list[tuple[bool, bool]]:
        clock.advance(dt.timedelta(seconds=1))
        return [(r.released, bool(r.refused)) for r in status(home).loops[0].retrainings]

    def business() -> str:
        return next(s.detail for s in status(home).loops[0].stages if s.stage == "business")

    first = turn(home, loop)[2].output["winner"]
    assert f"nothing measured yet; package {first[:12]} expects" in business()
    assert "serve" not in business()
    refused = turn(home, strict)[2].output["winner"]
    assert f"nothing measured yet; package {refused[:12]} expects" in business()
    assert business().endswith("over the heuristic, and does not serve")
    assert retrainings() == [(False, True)]
    assert not turn(home, strict)[3].output["released"]
    assert retrainings() == [(False, True)], "refused again, but trained nothing"
    newest = status(home).loops[0].retrainings[-1]
    assert newest.result.startswith("not released: target be right")
    assert "the newest training was refused: target be right" in text_of(status(home))
    turn(home, strict, fresh=True, release=False)
    assert retrainings()[1:] == [(False, True)]
    turn(home, loop, fresh=True)
    assert retrainings()[2:] == [(True, False)]
    assert "the newest training was refused" not in text_of(status(home))


def test_winner_that_is_bad_or_gone_is_trained_again(home: Home, loop: Loop) -> None:
    simple: Loop = msgspec.structs.replace(loop, candidates=loop.candidates[:1])
    winner = turn(home, simple, until="develop")[2].output["winner"]
    shutil.rmtree(home.packages.folder / winner)
    again = turn(home, simple, until="develop", fresh=False, as_of=START)
    assert not again[2].summary.startswith("nothing changed")
    assert (home.packages.folder / again[2].output["winner"]).is_dir()
    blocklist.mark(
        home, BadPackage(loop=loop.name, package=again[2].output["winner"], cause="crash", detail="killed", since=START)
    )
    third = turn(home, simple, until="develop", as_of=START)
    assert third[2].output["winner"] != again[2].output["winner"]


def test_plain_turn_does_not_resume_one_as_of_an_earlier_moment(home: Home, loop: Loop) -> None:
    early = turn(home, loop, as_of=START - WEEK, until="data")
    rest = turn(home, loop, until="data")
    assert rest[0].turn != early[0].turn
    latest = home.ledger.latest(Turn, loop=loop.name)
    assert latest is not None
    assert (latest.record.as_of, latest.record.backdated) == (START, False)


def test_turn_releases_nothing_beside_a_plan_that_is_under_way(home: Home, loop: Loop) -> None:
    turn(home, loop, file=str(FILE))
    model = serving(home, loop.name)
    assert model is not None
    release(home, loop.name, "heuristic", why="for now")
    plan = Strategy("plan", "", [Canary(share=0.5)])
    before = releases.release(home, loop.name, model.champion.package, strategy=plan, why="is it better?").record
    home.clock.advance(WEEK)  # type: ignore[attr-defined]  # a simulated clock
    steps = {s.stage: s for s in turn(home, loop, cause="drift", why="wind drifted", refit=True)}
    assert steps["deploy"].output["released"] is False
    assert "another release is under way (canary 50% of " in steps["deploy"].summary
    now = serving(home, loop.name)
    assert now is not None
    assert now == before
    pending = begin_pending(home, loop)
    assert pending is not None
    assert (pending.state, [b.name for b in pending.waits_for]) == ("waiting", ["under way"])
    releases.rollback(home, loop.name, why="not good")
    begun = begin_pending(home, loop)
    assert begun is not None
    assert begun.state == "released"
    assert "wind drifted" in releases.history(home, loop.name)[-1].record.why


def test_release_heuristic_serves_the_rule_and_no_turn_replaces_it(home: Home, loop: Loop) -> None:
    turn(home, loop, file=str(FILE))
    model = serving(home, loop.name)
    assert model is not None
    with pytest.raises(UsageError, match="--why"):
        release(home, loop.name, "heuristic")
    raise_alert(home, loop.name, "damaged-log", severity="critical", title="Damaged", detail="x", holds_releases=True)
    state = release(home, loop.name, "heuristic", why="it loses money", request_id="once")
    assert (state.generation, state.by, state.why) == (model.generation + 1, home.by, "it loses money")
    close_alert(home, loop.name, "damaged-log", detail="mended")
    assert home.packages.manifest(state.champion.package).phase == 1
    assert not state.champion.heuristic, "the rule is a package of its own: its answers are not degraded"
    gate = home.ledger.latest(GateResult, loop=loop.name, key=state.champion.package)
    assert gate is not None
    assert "probe" in [check.name for check in gate.record.checks if check.passed]
    assert release(home, loop.name, "heuristic", why="it loses money", request_id="once").generation == state.generation
    assert release(home, loop.name, "heuristic", why="again").generation == state.generation, "it serves already"
    home.clock.advance(WEEK)  # type: ignore[attr-defined]  # a simulated clock
    steps = {s.stage: s for s in turn(home, loop, cause="drift", why="wind drifted", refit=True)}
    assert steps["deploy"].output["released"] is False
    assert "put the heuristic into service (it loses money)" in steps["deploy"].summary
    now = serving(home, loop.name)
    assert now is not None
    assert now.arms == state.arms
    winner = steps["develop"].output["winner"]
    assert home.packages.manifest(winner).phase > 1, "what would replace it is made all the same, for a person to release"
    assert release(home, loop.name, winner[:12], why="it earns again").champion.package == winner


def test_turn_that_trains_nothing_does_not_undo_a_rollback(home: Home, loop: Loop) -> None:
    first = turn(home, loop, file=str(FILE))[2].output["winner"]
    second = turn(home, loop, fresh=True)[2].output["winner"]
    state = serving(home, loop.name)
    assert state is not None
    assert state.champion.package == second != first
    assert rollback_verb(home, loop.name, why="the first was better").champion.package == first
    again = turn(home, loop)
    assert again[2].output["reused"]
    assert again[3].output["released"] is False
    assert (
        f"rolled back to what serves (the first was better), and nothing was trained since; `loopwright release {loop.name}"
        in again[3].summary
    )
    state = serving(home, loop.name)
    assert state is not None
    assert state.champion.package == first
    assert turn(home, loop, fresh=True)[3].output["released"] is True, "what is trained anew is released"


def test_force_puts_the_heuristic_into_service_by_its_digest(home: Home, loop: Loop) -> None:
    scope = msgspec.structs.replace(loop.scope, objectives=[Objective("be right", "sales", "roc_auc", at_least=0.999)])
    simple: Loop = msgspec.structs.replace(loop, candidates=loop.candidates[:1], scope=scope)
    output = turn(home, simple, file=str(FILE), until="develop")[2].output
    board = home.ledger.get(output["leaderboard"], Leaderboard).record
    rule = next(row.package for row in board.rows if row.phase == 1)
    with pytest.raises(GateFailed, match="target be right"):
        release(home, loop.name, rule, why="by hand")
    with pytest.raises(UsageError, match="--why"):
        release(home, loop.name, rule, force=True)
    assert release(home, loop.name, rule, why="the model loses money", force=True).champion.package == rule


def test_release_without_a_package_takes_no_winner_of_as_of(home: Home, loop: Loop) -> None:
    past = (START - WEEK).isoformat()
    run(home, str(FILE), until="develop", as_of="7 days ago")
    with pytest.raises(NotFound, match="released by its package's name"):
        release(home, "late")
    newest = run(home, str(FILE), until="develop").winner
    early = run(home, str(FILE), until="develop", as_of=past).winner
    assert early != newest
    assert release(home, "late").champion.package == newest
    state = serving(home, loop.name)
    assert state is not None
    assert state.champion.package == newest


def test_backdated_turn_replaces_nothing_that_serves_unless_the_guard_is_overridden(home: Home, loop: Loop) -> None:
    past = (START - WEEK).isoformat()
    first = run(home, str(FILE), as_of=past)
    assert first.released, "nothing served before"
    home.clock.advance(WEEK)  # type: ignore[attr-defined]  # a simulated clock
    before = serving(home, loop.name)
    early = run(home, str(FILE), as_of=(START - WEEK / 2).isoformat())
    assert (early.released, early.reasons) == (False, [])
    assert early.next_step == f"`loopwright release late {early.winner[:12]}` puts it into service"
    assert serving(home, loop.name) == before
    asked = run(home, str(FILE), as_of=(START - WEEK / 2).isoformat(), despite_guard=True, why="on purpose")
    assert asked.released
    state = serving(home, loop.name)
    assert state is not None
    assert (state.champion.package, state.why) == (asked.winner, "on purpose")


def test_turn_that_changes_nothing_in_service_says_so(home: Home) -> None:
    first, second = (run(home, str(FILE)) for _ in range(2))
    assert (first.released, first.serves_already) == (True, False)
    assert second.serves_already
    assert second.released, "what won serves"


def test_run_says_which_rows_were_left_out_and_why(home: Home) -> None:
    data = run(home, str(FILE), until="data")
    examples = home.ledger.find(Examples)[0].record
    assert data.rows_left_out == {why: count for why, count in examples.excluded.items() if count}
    assert {"outcome pending", "outcome never came"} <= data.rows_left_out.keys()
    done = run(home, str(FILE))
    split = home.packages.manifest(done.winner).split
    assert split is not None
    assert split.left_out
    assert done.rows_left_out == {**data.rows_left_out, **split.left_out}
    assert done.left_out == {}, "of candidates"
    shown = " ".join(text_of(done).split())
    said = "; ".join(f"{count:,} {why}" for why, count in done.rows_left_out.items())
    assert f"rows left out: {sum(done.rows_left_out.values()):,} ({said})" in shown
    [summary] = [text for stage, text, _ in data.steps if stage == "data"]
    assert f"; {sum(examples.excluded.values()):,} decisions without an example (" in summary
    assert shown.count("left out") == 1, "one number, which counts both"
    later = run(home, str(FILE), until="data")
    assert (later.turn != done.turn, later.verdict, later.winner) == (True, "", ""), "nothing of an earlier turn"


def break_package(home: Home, package: str, how: str) -> None:
    """Delete a package, or damage its model."""
    folder = home.packages.folder / package
    if how == "gone":
        shutil.rmtree(folder)
    else:
        (folder / "model.onnx").write_bytes(b"garbage")


@pytest.mark.parametrize("how", ["gone", "damaged"])
@pytest.mark.parametrize("more", [{}, {"fresh": True}, {"refit": True, "cause": "drift", "why": "wind drifted"}])
def test_serving_package_that_cannot_be_read_is_replaced_by_the_next_turn(home: Home, how: str, more: dict[str, Any]) -> None:
    before = run(home, str(FILE)).winner
    break_package(home, before, how)
    held = run(home, str(FILE), no_release=True, **more)
    assert (held.released, held.winner != before) == (False, True), held
    done = run(home, str(FILE), **more)
    assert done.released, done
    state = serving(home, "late")
    assert state is not None
    assert state.champion.package == done.winner != before
    assert f"cannot be compared: the package that serves is {how}" in state.why
    assert f"the package that serves is {how}" in str(done.reasons)
    gate = home.ledger.latest(GateResult, loop="late", key=done.winner)
    assert gate is not None
    assert (gate.record.passed, gate.record.serving) == (True, before)


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_serving_package_that_cannot_be_read_is_replaced_by_hand(home: Home, how: str) -> None:
    before = run(home, str(FILE)).winner
    board = home.ledger.latest(Leaderboard, loop="late")
    assert board is not None
    other = next(row.package for row in board.record.rows if row.phase > 1 and row.package != before)
    break_package(home, before, how)
    state = release(home, "late", "heuristic", why="what served cannot be read")
    assert home.packages.manifest(state.champion.package).phase == 1
    break_package(home, state.champion.package, how)
    assert release(home, "late", other, why="nor can the rule").champion.package == other
