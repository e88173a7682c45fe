"""A fleet through its life: trained, killed and resumed, served on one path, watched, retrained, rolled back, replayed."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.deploy.bodies import text

from loopwright import Home, Loop
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import DeclarationInvalid
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.deploy import releases
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.graph.columns import arrow_schema
from loopwright.loop import load_loop
from loopwright.records.evaluation import Leaderboard, SegmentModel
from loopwright.records.windows import Quality, Window
from loopwright.replay import compare, replay, workspace
from loopwright.stores.outcomes.rescore import score
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.read import predictions
from loopwright.turn import turn
from loopwright.verbs.history import history
from loopwright.verbs.leaderboard import leaderboard
from loopwright.verbs.loop_status import loop_status
from loopwright.verbs.release import release
from loopwright.verbs.rollback import rollback
from loopwright.verbs.trace import trace

FILE = Path(__file__).parent / "visits" / "loop.py"
BEGIN = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
START = BEGIN + dt.timedelta(weeks=6)
END = START + dt.timedelta(weeks=4)
SHOPS = ["Änne's", "b/../b", "cellar", "dock", "east", "few"]
OTHERWISE = SHOPS[:2]
"""Here those buy who look at few pages."""

PER_WEEK = 700


def world(seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Ten weeks of visits, and what came of them a day later."""
    rng = np.random.default_rng(seed)
    n = 10 * PER_WEEK
    at = np.sort(rng.integers(0, int((END - BEGIN).total_seconds()), n))
    place = rng.choice(len(SHOPS) + 1, n, p=[0.2, 0.2, 0.2, 0.18, 0.18, 0.02, 0.02])
    shop = [SHOPS[i] if i < len(SHOPS) else None for i in place]
    pages = rng.uniform(0, 100, n)
    odd = np.isin(place, [0, 1])
    bought = rng.random(n) < 1 / (1 + np.exp(-0.08 * np.where(odd, 50 - pages, pages - 50)))
    moments = [BEGIN + dt.timedelta(seconds=int(s)) for s in at]
    loop = load_loop(FILE)
    visits = {"visit": range(n), "at": moments, "shop": shop, "pages": pages}
    told = [m + dt.timedelta(days=1) for m in moments]
    return (
        pa.table(visits, schema=arrow_schema(loop.tables["visits"].columns)),
        pa.table({"visit": range(n), "told_at": told, "bought": bought}, schema=arrow_schema(loop.tables["purchases"].columns)),
    )


@pytest.fixture(scope="module")
def loop() -> Loop:
    return load_loop(FILE)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> Path:
    folder = tmp_path_factory.mktemp("visits") / "home"
    with Home(Settings(home=folder, by="tests"), SimulatedClock(START)) as home:
        for table, rows in zip(("visits", "purchases"), world(), strict=True):
            ingest(home, loop.tables[table], rows)
    return folder


@pytest.fixture(scope="module")
def turned(ingested: Path, tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> Path:
    """A home after the first turn, to be copied."""
    folder = tmp_path_factory.mktemp("turned") / "home"
    shutil.copytree(ingested, folder)
    with Home(Settings(home=folder, by="tests"), SimulatedClock(START)) as home:
        turn(home, loop, file=str(FILE), as_of=START)
    return folder


@pytest.fixture
def home(turned: Path, tmp_path: Path) -> Iterator[Home]:
    shutil.copytree(turned, tmp_path / "home")
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(START)) as opened:
        yield opened


def visit(number: int, shop: str | None, pages: float) -> dict[str, Any]:
    return {"visit": number, "shop": shop, "pages": pages}


def test_one_turn_releases_the_fleet_and_one_request_reaches_all_of_it(
    home: Home, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopwright.deploy.serving.registry.LOAD_SECONDS", 60.0)
    state = releases.serving(home, loop.name)
    assert state is not None
    assert (sorted(state.segments), state.fleet) == (sorted(OTHERWISE), "shop")
    board = leaderboard(home, loop.name)
    assert board.fleet is not None
    assert {m.segment for m in board.fleet.segments} == set(SHOPS[:5]), "few and null are the global model's"
    engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock))
    engine.registry.refresh()
    rows = [visit(i, shop, pages) for i, (shop, pages) in enumerate((s, p) for s in [*SHOPS, None, "new"] for p in (5.0, 95.0))]
    (answers,) = engine.answer(loop.name, [PredictionRequest(engine.registry.service(loop.name).decode(text(rows)).rows)])
    assert isinstance(answers, list)
    for row, answer in zip(rows, answers, strict=True):
        odd = row["shop"] in OTHERWISE
        assert answer.package == state.package_of(row["shop"])
        assert answer.segment == (row["shop"] if odd else None)
        assert answer.label == (row["pages"] < 50) or not odd
    engine.close()
    shown = trace(home, answers[0].id)
    assert (shown.package, shown.release) == (state.segments[SHOPS[0]], state)
    status = loop_status(home, loop.name)
    assert status.fleet is not None
    assert (status.fleet.by, status.fleet.serving, status.fleet.judged) == ("shop", state.segments, 5)


def test_a_killed_turn_goes_on_with_the_segments_that_are_left(ingested: Path, tmp_path: Path, loop: Loop) -> None:
    shutil.copytree(ingested, tmp_path / "home")
    environment = {
        **os.environ,
        "LOOPWRIGHT_HOME": str(tmp_path / "home"),
        "LOOPWRIGHT_FAILPOINTS": "turn.segment.kept=kill@3",
    }
    command = [sys.executable, "-m", "loopwright", "run", str(FILE)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Home(Settings(home=tmp_path / "home", by="tests")) as home:
        before = home.ledger.find(SegmentModel, loop=loop.name)
        boards = home.ledger.find(Leaderboard, loop=loop.name)
        assert (len(before), len(boards), boards[0].record.fleet) == (3, 1, None)
    with Home(Settings(home=tmp_path / "home", by="tests")) as home:
        turn(home, loop, file=str(FILE))
        after = home.ledger.find(SegmentModel, loop=loop.name, newest=False)
        assert [e.id for e in after[:3]] == [e.id for e in reversed(before)]
        assert len(after) == 5
        newest, first = home.ledger.find(Leaderboard, loop=loop.name)
        assert newest.record.winner == first.record.winner == boards[0].record.winner, "the global model is not made again"
        state = releases.serving(home, loop.name)
        assert state is not None
        assert sorted(state.segments) == sorted(OTHERWISE)
        own = {e.record.segment: e.record.package for e in after}
        assert state.segments == {s: own[s] for s in OTHERWISE}
        up = home.ledger.links(own[OTHERWISE[0]])
        assert {"trained on", "fleet of"} <= {link.role for link in up}
        assert home.ledger.verify() == []


def test_a_fleet_in_history_is_watched_retrained_and_beats_one_model(home: Home, loop: Loop, tmp_path: Path) -> None:
    scratch = workspace(home, loop, START, tmp_path / "scratch")
    run = replay(scratch, loop, file=str(FILE), start=START, end=END)
    assert [lap.event for lap in run.laps if lap.event] == ["retrained (schedule), released"]
    states = [e.record for e in releases.history(scratch, loop.name)]
    assert [sorted(s.segments) for s in states] == [sorted(OTHERWISE)] * 2
    assert not set(states[0].packages) & set(states[1].packages), "a retraining makes every package anew"
    parents = {s: scratch.packages.manifest(p).parent for s, p in states[1].segments.items()}
    assert parents == states[0].segments
    windows = [e.record for e in scratch.ledger.find(Window, loop=loop.name, newest=False)]
    assert {w.state for w in windows} == {"ok"}, "a fleet does not drift from itself"
    assert {w.reference for w in windows} <= {s.champion.package for s in states}
    qualities = {e.key: e.record for e in scratch.ledger.find(Quality, loop=loop.name, newest=False)}
    mature = [q for q in qualities.values() if q.mature_at is None]
    assert {q.state for q in mature} == {"ok"}
    for quality in mature:
        assert set(SHOPS[:5]) <= set(quality.slices["shop"])
        assert len(quality.by_package) >= 3
    logged = predictions(scratch, loop.name)
    by = dict(
        zip(
            logged["_id"].to_pylist(), zip(logged["shop"].to_pylist(), logged["_segment"].to_pylist(), strict=True), strict=True
        )
    )
    assert {shop for shop, segment in by.values() if segment is not None} == set(OTHERWISE)
    assert all(segment == shop for shop, segment in by.values() if segment is not None)
    compared = compare(scratch, loop, run)
    served, never = compared.given["served"].score, compared.given["never"].score
    assert np.corrcoef(served, never)[0, 1] > 0.99, "the first fleet, never retrained, is a fleet"
    truth = dict(zip(*(world()[1].column(c).to_pylist() for c in ("visit", "bought")), strict=True))
    bought = np.array([truth[number] for number in logged["visit"].to_pylist()])
    alone = score(open_probed(scratch.packages, states[0].champion.package), logged).score
    assert ((logged["_score"].to_numpy() > 0.5) == bought).mean() > ((alone > 0.5) == bought).mean() + 0.1
    scratch.close()


def test_release_and_rollback_by_hand(home: Home, loop: Loop) -> None:
    first = releases.serving(home, loop.name)
    assert first is not None
    segment = OTHERWISE[1]
    gone = rollback(home, loop.name, segment=segment, why="complaints")
    assert sorted(gone.segments) == [OTHERWISE[0]]
    back = release(home, loop.name, first.segments[segment][:12], why="they were wrong")
    assert back.segments == first.segments
    assert release(home, loop.name, first.segments[segment][:12]) == back, "what serves goes on"
    rule = next(r.package for r in leaderboard(home, loop.name).rows if r.phase == 1)
    alone = releases.release(home, loop.name, rule, why="a quiet day").record
    assert alone.segments == {}
    again = release(home, loop.name, first.champion.package[:12], why="the winner brings its fleet")
    assert (again.arms, again.segments) == (first.arms, first.segments)
    mine = history(home, loop.name, segment=segment).releases
    assert [r.package_of(segment) for r in mine] == [
        first.segments[segment],
        first.champion.package,
        first.segments[segment],
        rule,
        first.segments[segment],
    ]
    assert [len(leaderboard(home, loop.name, segment=s).fleet.segments) for s in SHOPS[:5]] == [1] * 5  # type: ignore[union-attr]  # there is one


def test_only_what_names_a_kind_divides_a_fleet(loop: Loop) -> None:
    import msgspec

    from loopwright import Fleet

    for column, why in (("pages", "not of a float"), ("at", "not of a timestamp"), ("nothing", "no request column")):
        with pytest.raises(DeclarationInvalid, match=why):
            msgspec.structs.replace(loop, fleet=Fleet(by=column))
