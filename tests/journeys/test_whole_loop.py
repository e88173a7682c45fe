"""The whole loop through its verbs, from declaration to report, on a ledger in SQLite and one in PostgreSQL."""

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.journeys import synthetic
from tests.journeys.synthetic import DRIFT, END, FILE, START, WEEK, World

from loopwright import Home
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import UsageError
from loopwright.deploy.serving.predictor import Predictor
from loopwright.loop import load_loop
from loopwright.replay import replay
from loopwright.stores.packages.probe import open_probed
from loopwright.verbs import lineage
from loopwright.verbs.check import check
from loopwright.verbs.drift import drift as drift_verb
from loopwright.verbs.history import history
from loopwright.verbs.ingest import ingest
from loopwright.verbs.init import init
from loopwright.verbs.leaderboard import leaderboard
from loopwright.verbs.lineage import Node
from loopwright.verbs.loop_page import loop_page
from loopwright.verbs.outcomes import outcomes
from loopwright.verbs.release import release
from loopwright.verbs.replay import replay as replay_verb
from loopwright.verbs.replay import summarise
from loopwright.verbs.report import report as report_verb
from loopwright.verbs.rollback import rollback
from loopwright.verbs.run import run
from loopwright.verbs.status import status as status_verb
from loopwright.verbs.tend import tend
from loopwright.verbs.trace import trace
from loopwright.verbs.verify import verify

LOOP = load_loop(FILE)
WRITTEN = dt.datetime(2024, 4, 20, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def world() -> World:
    return synthetic.world()


@pytest.fixture
def home(ledger_url: str, tmp_path: Path) -> Iterator[Home]:
    with synthetic.opened(tmp_path / "home", START, ledger=ledger_url) as opened:
        yield opened


def kinds(node: Node) -> set[str]:
    """The kinds of everything in a tree."""
    return {node.kind} | {k for child in node.children for k in kinds(child)}


def test_from_declaration_to_report(home: Home, world: World, tmp_path: Path) -> None:
    # data: what is wrong is said before anything runs; files come in through their contracts, once.
    checked = check(home, str(FILE))
    assert checked.ok, checked.items
    assert any("loopwright ingest orders" in item.detail for item in checked.items)
    for table, file in synthetic.write(LOOP, world, tmp_path / "files").items():
        [done] = ingest(home, table, [str(file)], loop=str(FILE))
        assert (done.good, done.quarantined) == (len(getattr(world, table)), 0)
        [again] = ingest(home, table, [str(file)])
        assert again.already
    # develop: as far as the leaderboard, then the rest of the same turn.
    first = run(home, str(FILE), until="develop", why="the first one")
    assert (first.state, first.released, [s for s, _, _ in first.steps]) == (
        "stopped after develop",
        False,
        ["scope", "data", "develop"],
    )
    board = leaderboard(home, "late")
    assert {r.candidate for r in board.rows} == {"heuristic", "logistic-regression", "lightgbm"}
    rest = run(home, "late")
    assert (rest.turn, rest.released, rest.winner) == (first.turn, True, board.winner)
    assert home.packages.read(board.winner).manifest.training.last < START
    # live: eight weeks, and the drift in their midst.
    played = replay(home, LOOP, file=str(FILE), start=START, end=END)
    summary = summarise(home, LOOP, played, "declared")
    assert summary.retrainings >= 1
    assert summary.predictions == sum(START <= o["at"] < END for o in world.orders)
    status = status_verb(home)
    [late] = status.loops
    assert [s.state for s in late.stages if s.state in ("running", "not yet")] == []
    assert late.predictions == summary.predictions
    assert late.serving == history(home, "late").releases[-1].champion.package
    assert [r.cause for r in late.retrainings if r.released].count("drift") >= 1
    assert status.ledger == ("postgresql" if home.settings.ledger.startswith("postgresql") else "sqlite")
    _one_prediction(home, world)
    _the_reports(home, tmp_path, summary.retrainings)
    _back_in_time(home)
    verified = verify(home)
    assert verified.problems == []
    assert verified.checked["ledger entries"] == home.ledger.count() > 50
    _another_machine(home, tmp_path)


def _one_prediction(home: Home, world: World) -> None:
    """Any answer can be taken back to its files and forward to its money."""
    truth = synthetic.truth_of(world, END)
    answers = home.lake.read("predictions.late").sort_by("_id").to_pylist()
    order_of = {o["order"]: o for o in world.orders}
    for answer in [next(a for a in answers if a["order"] in truth), answers[len(answers) // 2], answers[-1]]:
        told = trace(home, answer["_id"])
        order = order_of[answer["order"]]
        assert (told.at, told.request["order"], told.request["at"]) == (order["at"], order["order"], order["at"])
        assert (told.package, told.score, told.label) == (answer["_package"], answer["_score"], answer["_label"])
        assert told.context["jam"] == synthetic.context_of(world, order["shop"], order["at"])
        assert told.features["distance"] == pytest.approx(order["distance"], rel=1e-6)
        assert told.trained_until is not None
        assert told.trained_until <= told.at
        assert told.release is not None
        assert told.release.champion.package == told.package
        assert {f.file for f in told.files} >= {"orders.parquet", "deliveries.parquet", "traffic.parquet"}
        if order["order"] in truth:
            assert told.outcome is not None
            assert told.outcome.truth is truth[order["order"]]
            paid = {"true positive": 10, "false positive": -2, "true negative": 0, "false negative": -6}
            assert told.outcome.value == paid[told.outcome.kind]
        else:
            assert told.outcome is None
        assert {"prediction", "package", "examples", "table", "file"} <= kinds(lineage.lineage(home, answer["_id"]))


def _the_reports(home: Home, tmp_path: Path, retrainings: int) -> None:
    drift = drift_verb(home, "late")
    assert [w.start for w in drift.windows] == [START + i * WEEK for i in range(8)]
    assert {"distance", "score"} <= set(next(w for w in drift.windows if w.start == DRIFT).drifted)
    stand = outcomes(home, "late")
    assert stand.joined + stand.pending + stand.overdue == home.lake.count("predictions.late")
    assert stand.overdue > 0
    report = report_verb(home, "late", out=tmp_path / "reports")
    assert "EUR" in report.markdown
    assert Path(report.html_file).read_text().lstrip().lower().startswith("<!doctype html>")
    page = loop_page(home, "late")
    assert len(page.values) == 8
    assert len(page.releases) >= 1 + min(retrainings, 1)
    assert msgspec.json.decode(msgspec.json.encode(page, enc_hook=str))["status"]["name"] == "late"


def _back_in_time(home: Home) -> None:
    """Rolling back to a time puts the package that served then into service again."""
    before = history(home, "late").releases
    served = [r for r in before if r.since <= DRIFT - WEEK][-1].champion.package
    assert served != before[-1].champion.package
    state = rollback(home, "late", to=(DRIFT - WEEK).isoformat(), why="it was better then")
    assert state.champion.package == served
    assert (state.action, state.why, state.generation) == ("rollback", "it was better then", before[-1].generation + 1)
    *earlier, last = history(home, "late").releases
    assert earlier == before
    assert msgspec.structs.asdict(last).items() <= msgspec.structs.asdict(state).items()
    forth = rollback(home, "late", to=before[-1].champion.package[:8])
    assert forth.champion.package == before[-1].champion.package
    assert release(home, "late", forth.champion.package[:8]) == forth, "what serves already goes on, unchecked"


def _another_machine(home: Home, tmp_path: Path) -> None:
    """The home copied elsewhere, lake and all: it answers, and upkeep goes on where it was."""
    shutil.copytree(home.path, tmp_path / "moved")
    settings = msgspec.structs.replace(home.settings, home=tmp_path / "moved")
    with Home(settings, SimulatedClock(END + WEEK)) as moved:
        before = len(drift_verb(moved, "late").windows)
        tended = tend(moved, once=True, no_retrain=True)
        assert (tended.leader, tended.problems, tended.committed) == (True, [], {"late": 0})
        assert tended.windows == {"late": 1}
        windows = drift_verb(moved, "late").windows
        assert (len(windows), windows[-1].state) == (before + 1, "no data")
        [late] = status_verb(moved).loops
        assert any(a.key == "no-data" for a in late.open_alerts)
        row: dict[str, Any] = {"order": 10**6, "at": END, "shop": "east", "distance": 5.0, "weight": None}
        [answer] = Predictor(open_probed(moved.packages, late.serving), moved.online, moved.clock).answer([row])
        assert 0 <= answer.score <= 1
        assert "degraded" not in answer.flags
        assert verify(moved).problems == []


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_new_loop_from_a_file_runs(home: Home, world: World, tmp_path: Path) -> None:
    """`init` from one file, then the steps that it names, without a line written by hand."""
    truth = synthetic.truth_of(world, END)
    lines = ["order,asked,shop,distance,late"]
    lines += [
        f"{o['order']},{o['at'].isoformat()},{o['shop']},{o['distance']:.3f},{str(truth[o['order']]).lower()}"
        for o in world.orders
        if o["order"] in truth and o["at"] < DRIFT
    ]
    (tmp_path / "past.csv").write_text("\n".join(lines))
    home.clock.advance(WRITTEN - START)  # type: ignore[attr-defined]  # a simulated clock
    past = tmp_path / "past.csv"
    init(home, tmp_path / "quick", from_file=past, label="late", time="asked", key="order", name="quick")
    loop = load_loop(tmp_path / "quick")
    for table in loop.tables:
        [done] = ingest(home, table, [str(past)], loop=str(tmp_path / "quick"))
        assert done.quarantined == 0
    report = run(home, str(tmp_path / "quick"))
    assert (report.state, report.released) == ("done", True), report.reasons
    assert [s.name for s in status_verb(home).loops] == ["quick"]
    played = replay_verb(home, "quick", start="2024-02-12", end="2024-02-26", keep=tmp_path / "kept")
    assert played.predictions == sum(" 2024-02-12" <= f" {line.split(',')[1]}" < " 2024-02-26" for line in lines[1:])
    assert status_verb(home).loops[0].predictions == 0, "a replay touches nothing that serves"
    with Home(msgspec.structs.replace(home.settings, home=tmp_path / "kept", ledger="")) as kept:
        assert status_verb(kept).loops[0].predictions == played.predictions
    with pytest.raises(UsageError, match="is not empty"):
        replay_verb(home, "quick", start="2024-02-12", end="2024-02-26", keep=tmp_path / "kept")
