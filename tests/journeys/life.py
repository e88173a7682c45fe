"""The lives that the walk over all fail points lives: each is a function to be begun again after whatever ended it.

A life tells its history as it goes, one line a fact, written when a client would have been told; `check_*` looks at what is there
after a restart. Run in processes of their own, forked from one that has imported everything.
"""

import itertools
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from tests.deploy import loops
from tests.deploy.bodies import text
from tests.journeys import synthetic
from tests.journeys.test_fleet import FILE as VISITS
from tests.journeys.test_fleet import START as FIRST_VISITS

from loopwright.base import failpoints
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import LogUnavailable, LoopwrightError
from loopwright.base.settings import Settings
from loopwright.deploy import blocklist, releases
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.loop import load_loop
from loopwright.monitor import alerts
from loopwright.monitor.windows import watch
from loopwright.records.declarations import Monitor, Retrain
from loopwright.records.evaluation import Leaderboard
from loopwright.records.releases import BadPackage
from loopwright.records.turns import Step
from loopwright.records.windows import Alert, Window
from loopwright.server.processes.crashes import record_bad, withdraw_bad
from loopwright.stores.home import Home
from loopwright.stores.outcomes.join import outcomes
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.turn import turn

Tell = Callable[[str, str], None]
LOOP = loops.LOOP
WEEK = timedelta(days=7)
WEIGHTS = (0.05, 0.06, 0.07)
for weight in WEIGHTS:  # traced once, before the forks: the same package is the same digest in each of them
    loops.model_graph(weight)
loops.heuristic_graph()
loops.slices_graph()
MUST_LAST = {"durability": "disk", "on_unloggable": "refuse"}


# --- serving, logging, upkeep ----------------------------------------------------------------------------------------


def serve(folder: Path, tell: Tell) -> None:
    """Two packages made and released, requests answered from the disk, outcomes, a bad package, rollback, commit, upkeep."""
    with loops.opened(folder) as home:
        packages = [loops.package(home.packages, weight=w, release=MUST_LAST).digest for w in WEIGHTS]
        release_files.follow(home)
        engine = ServingEngine(Registry(home.path, home.packages, loops.Weather(), home.clock))
        for number, package in enumerate(packages[:2]):
            if package not in [e.record.champion.package for e in releases.history(home, LOOP)]:
                releases.release(home, LOOP, package, why=f"release {number}")
            tell("released", package)
            engine.registry.refresh()
            if home.ledger.find(Window, loop=LOOP, limit=1):
                continue  # the clock stands still, and that time is over
            _ask(engine, tell, 10 * number)
            for key in [key for key in engine._writers if key[0] == LOOP]:
                engine._writers[key].seal()
        engine.close()
        commit(home, LOOP)
        _release_badly(home, packages, tell)
        watched = watch(
            home,
            loop_name=LOOP,
            monitor=Monitor(),
            retrain=Retrain(),
            outcome=loops.declared().outcome,
            until=loops.NOW + 2 * WEEK,
        )
        tell("watched", str(len(watched.windows)))
        for alert in alerts.send(home, LOOP):
            tell("sent", alert.key)


def _ask(engine: ServingEngine, tell: Tell, first: int) -> None:
    """Requests as the server answers them: logged, synced, then sent."""
    for number in range(first, first + 6):
        rows = [loops.flight(number * 10 + i) for i in range(number % 3 + 1)]
        try:
            [found] = engine.answer(LOOP, [PredictionRequest(engine.registry.service(LOOP).decode(text(rows)).rows)])
            wait = engine.synced(LOOP)
            assert wait is not None
            wait()
            if isinstance(found, LoopwrightError):
                continue
            for answer in found:
                tell("answered", answer.id)
            failpoints.hit("log.answered")
            accepted = engine.accept(LOOP, text({"flight": f"UA{number * 10}", "arr_delay": 20.0}), "http")
            wait = engine.synced(LOOP)
            assert wait is not None
            wait()
            tell("outcome", accepted[0].row.id)
        except (LogUnavailable, OSError):
            continue


def _release_badly(home: Home, packages: list[str], tell: Tell) -> None:
    """The third package is released, marked bad and withdrawn while the ledger is down; then the ledger is back."""
    if packages[2] not in [e.record.champion.package for e in releases.history(home, LOOP)]:
        releases.release(home, LOOP, packages[2], why="will be bad")
        tell("released", packages[2])
    if not blocklist.marks(home):
        release_files.path_of(home, LOOP).unlink(missing_ok=True)
    release_files.follow(home)
    down = Home(msgspec.structs.replace(home.settings, ledger="sqlite:////proc/no/such/ledger.db"), home.clock)
    if not blocklist.marks(home):
        blocklist.mark(down, BadPackage(loop=LOOP, package=packages[2], cause="crash", detail="killed", since=home.clock.now()))
    withdraw_bad(down)
    release_files.follow(home)
    record_bad(home)
    alerts.raise_alert(home, LOOP, "life", severity="info", title="A life", detail="was lived")


def check_serve(folder: Path, history: dict[str, list[str]]) -> None:
    """Everything that was told is there, once, and nothing is left over."""
    with loops.opened(folder) as home:
        logs = log_folder(home.path, LOOP)
        assert verify(home) == []
        done = commit(home, LOOP, final=True)
        assert done.problems == []
        there = home.lake.read(f"predictions.{LOOP}", columns=["_id"])["_id"].to_pylist()
        assert len(there) == len(set(there)), "doubles"
        assert set(history["answered"]) <= set(there)
        assert set(predictions(home, LOOP, columns=["_id"])["_id"].to_pylist()) == set(there)
        assert set(history["outcome"]) <= set(outcomes(home, LOOP)["_id"].to_pylist())
        left = [p for kind in ("predictions", "outcomes") for p in (logs / kind).glob("*") if p.name != "quarantine"]
        assert left == []
        assert home.packages.verify() == home.ledger.verify() == home.lake.verify(f"predictions.{LOOP}") == []
        home.packages.sweep()
        assert [p.name for p in (home.path / "packages").iterdir() if p.name.startswith(".") and p.name != ".probed"] == []
        states = [e.record for e in releases.history(home, LOOP)]
        assert [s.generation for s in states] == list(range(1, len(states) + 1))
        released = [s.champion.package for s in states]
        assert set(history["released"]) <= set(released)
        assert set(released) <= set(home.packages.list()), "a row without bytes"
        local = release_files.read(release_files.path_of(home, LOOP))
        assert local is not None
        assert (local.state, local.unrecorded) == (states[-1], False)
        assert states[-1].action == "rollback"
        windows = [e.record for e in home.ledger.find(Window, loop=LOOP, newest=False)]
        assert len({w.start for w in windows}) == len(windows), "a window closed twice"
        assert all(a.end == b.start for a, b in itertools.pairwise(windows)), "a gap between windows"
        assert sum(w.rows for w in windows) == len(there), "counted twice, or not at all"
        newest = {e.key: e.record for e in home.ledger.find(Alert, loop=LOOP, newest=False)}
        assert "life" in newest
        assert all(alert.sent for alert in newest.values())


# --- a turn, of one model and of a fleet -----------------------------------------------------------------------------


def turn_once(folder: Path, tell: Tell) -> None:
    """One turn, resumed where it was."""
    with synthetic.opened(folder, synthetic.START) as home:
        _turn(home, synthetic.FILE, tell)


def turn_fleet(folder: Path, tell: Tell) -> None:
    """One turn of a fleet, resumed where it was."""
    with Home(Settings(home=folder, by="tests"), SimulatedClock(FIRST_VISITS)) as home:
        _turn(home, VISITS, tell, as_of=FIRST_VISITS)


def _turn(home: Home, file: Path, tell: Tell, **given: Any) -> None:
    loop = load_loop(file)
    if not releases.history(home, loop.name) or home.ledger.find(Step)[0].record.state != "done":
        turn(home, loop, file=str(file), **given)
    tell("turned", loop.name)


def check_turn(folder: Path, history: dict[str, list[str]]) -> None:
    """One release, each package in the ledger has its bytes and its lineage, nothing is left over."""
    with Home(Settings(home=folder, by="tests"), SimulatedClock(synthetic.START)) as home:
        [name] = set(history["turned"])
        assert len(releases.history(home, name)) == 1
        [board] = home.ledger.find(Leaderboard, loop=name, limit=1)
        made = [row.package for row in board.record.rows]
        assert set(made) <= set(home.packages.list()), "a row without bytes"
        assert all(home.ledger.links(package) for package in made)
        assert home.packages.verify() == home.ledger.verify() == []
        home.packages.sweep()
        assert [p.name for p in (home.path / "packages").iterdir() if p.name.startswith(".") and p.name != ".probed"] == []


LIVES: dict[str, tuple[Callable[[Path, Tell], None], Callable[[Path, dict[str, list[str]]], None]]] = {
    "serve": (serve, check_serve),
    "turn": (turn_once, check_turn),
    "fleet": (turn_fleet, check_turn),
}


def live(name: str, folder: Path, told: Path, points: str) -> None:
    """Live one life with these fail points, in a process of its own; what ended it goes to `told` with a name of its own."""
    failpoints.arm(points)
    out = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    ended = 0
    try:
        LIVES[name][0](folder, lambda fact, value: _line(out, f"{fact} {value}"))
    except BaseException:  # noqa: BLE001  # an errno ends it, and that is told
        told.with_suffix(".error").write_text(traceback.format_exc())
        ended = 1
    rules = [part.partition("=")[0] for part in points.split(";") if part]
    told.with_suffix(".hits").write_text("\n".join(rule for rule in rules if failpoints.hits(rule)))
    os._exit(ended)


def check(name: str, folder: Path, told: Path) -> None:
    """Look at what is there after a life, in a process of its own."""
    history: dict[str, list[str]] = {fact: [] for fact in ("answered", "outcome", "released", "watched", "sent", "turned")}
    for line in told.read_text().splitlines():
        fact, _, value = line.partition(" ")
        history[fact].append(value)
    try:
        LIVES[name][1](folder, history)
    except BaseException:  # noqa: BLE001  # told to the parent
        told.with_suffix(".error").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _line(fd: int, line: str) -> None:
    os.write(fd, f"{line}\n".encode())
