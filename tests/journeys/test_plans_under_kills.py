"""Plans one after another on a real server with a PostgreSQL ledger, while workers are killed, the ledger is restarted and the judge is stopped."""

import os
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.deploy.loops import LOOP, declared, flight, opened, package
from tests.postgres import Postgres
from tests.server.running import Server, running
from tests.waiting import until

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.deploy.serving.heartbeat import workers
from loopwright.deploy.strategies import Strategy
from loopwright.records.declarations import Canary, Full, Loop, Value
from loopwright.records.releases import ReleaseState
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.read import predictions

pytestmark = pytest.mark.slow

PLANS = int(os.environ.get("TESTS_PLANS", "5"))
"""`TESTS_PLANS=50` runs fifty, which takes about a quarter of an hour."""

PLAN = Strategy("plan", "", [Canary(share=0.3, time="2s", rows=30), Full(watch="2s", hold_back=0.1)])
ROWS, CLIENTS, PAUSE_SECONDS = 8, 2, 1.5


def quiet() -> Loop:
    """The small loop without what waits for outcomes: its one objective is the latency."""
    loop = declared()
    objectives = [o for o in loop.scope.objectives if o.metric.startswith("latency")]
    scope = msgspec.structs.replace(loop.scope, objectives=objectives, value=Value())
    return msgspec.structs.replace(loop, scope=scope, outcome=msgspec.structs.replace(loop.outcome, wait="1s"))


class Traffic:
    """Clients that ask until they are stopped; `answers` by id, and the requests that failed with when and why."""

    def __init__(self, server: Server) -> None:
        self._server, self._stop = server, threading.Event()
        self.answers: dict[str, tuple[str, dict[str, Any]]] = {}
        self.failed: list[tuple[float, str]] = []
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        client, count = self._server.data(), 0
        while not self._stop.wait(0.01):
            rows = [flight(number * 10**7 + count + i) for i in range(ROWS)]
            count += ROWS // 2  # half of the units come again
            try:
                reply = client.post(f"/loops/{LOOP}/predict", rows)
            except OSError as error:
                self.failed.append((time.monotonic(), repr(error)))
                continue
            if reply.status != 200:
                self.failed.append((time.monotonic(), f"{reply.status} {reply.body[:200]!r}"))
                continue
            self.answers.update({a["id"]: (row["flight"], a) for row, a in zip(rows, reply.json, strict=True)})

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


class Trouble:
    """Something breaks every now and then; `kills` are the moments at which a worker was killed."""

    def __init__(self, server: Server, postgres: Postgres) -> None:
        self._server, self._postgres, self._stop = server, postgres, threading.Event()
        self._rng = np.random.default_rng(0)
        self.kills: list[float] = []
        self.done: dict[str, int] = defaultdict(int)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        acts = [self._kill_a_worker, self._restart_the_ledger, self._stop_the_judge]
        while not self._stop.wait(PAUSE_SECONDS):
            act = acts[int(self._rng.integers(len(acts)))]
            act()
            self.done[act.__name__] += 1

    def _kill_a_worker(self) -> None:
        alive = [pid for pid in self._server.state.workers if pid]
        if len(alive) == 2:  # the other one answers
            self.kills.append(time.monotonic())
            os.kill(int(self._rng.choice(alive)), signal.SIGKILL)

    def _restart_the_ledger(self) -> None:
        self._postgres.stop()
        time.sleep(0.5)
        self._postgres.start()

    def _stop_the_judge(self) -> None:
        for pid in upkeep_of(self._server.process.pid):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(1.0)
            os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


def upkeep_of(pid: int) -> list[int]:
    """The process of upkeep among a server's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "upkeep" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.fixture
def lived(tmp_path: Path, postgres: Postgres) -> tuple[Traffic, Trouble, list[ReleaseState], Any]:
    """All plans to their end, then a quiet second; the log is committed."""
    with opened(tmp_path, RealClock(), ledger=postgres.empty_database(), workers=2) as home:
        home.ledger.put(quiet().record("loop.py"), loop=LOOP, key=LOOP)
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        with running(home, workers=2, tend=True) as server:
            until(
                lambda: (
                    all(w.state == "serves" for w in workers(home.path, state(home)))
                    and len(workers(home.path, state(home))) == 2
                )
            )
            traffic, trouble = Traffic(server), Trouble(server, postgres)
            try:
                for number in range(PLANS):
                    new = package(home.packages, weight=0.0501 + number * 1e-4).digest
                    until(lambda new=new: released(home, new), 120)
                    until(lambda: state(home).under_way is None, 240)
                    assert state(home).champion.package == new, state(home).why
            finally:
                trouble.stop()
                traffic.stop()
            until(lambda: {w.state for w in workers(home.path, state(home))} == {"serves"}, 60)
        commit(home, LOOP)
        states = [entry.record for entry in releases.history(home, LOOP)]
        log = predictions(home, LOOP, columns=["_id", "_unit", "_arm", "_probability", "_package", "_generation"])
        return traffic, trouble, states, log


def state(home: Any) -> ReleaseState:
    """The release in service, however often the ledger is restarted."""
    while True:
        try:
            found = releases.serving(home, LOOP)
        except Exception:  # noqa: BLE001  # the ledger is away
            time.sleep(0.2)
            continue
        assert found is not None
        return found


def released(home: Any, digest: str) -> bool:
    """Begin a plan, unless it has begun; False while the ledger is away."""
    try:
        releases.release(home, LOOP, digest, strategy=PLAN, why="is it better?", request=f"plan-{digest[:12]}")
    except Exception:  # noqa: BLE001  # as above; the key makes it happen once
        return False
    return True


def test_plans_under_kills_lose_no_row_and_every_unit_keeps_its_arm(
    lived: tuple[Traffic, Trouble, list[ReleaseState], Any],
) -> None:
    traffic, trouble, states, log = lived
    assert set(trouble.done) == {"_kill_a_worker", "_restart_the_ledger", "_stop_the_judge"}, "every kind of trouble happened"
    near = [at for at, _ in traffic.failed if not any(0 <= at - kill < 5 for kill in trouble.kills)]
    assert near == [], f"a request failed and no worker was killed: {traffic.failed}"
    assert [s.action for s in states] == ["release", *["release", "advance", "advance"] * PLANS], (
        "each plan went through its stages once"
    )
    rows = {row["_id"]: row for row in log.to_pylist()}
    assert len(rows) == log.num_rows
    by_generation = {s.generation: s for s in states}
    counts: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for id, (unit, answer) in traffic.answers.items():
        row = rows[id]
        release = by_generation[row["_generation"]]
        arm = release.arm_for(unit) if release.is_divided else release.champion
        logged = row["_unit"], row["_arm"], row["_package"], row["_probability"]
        assert logged == (unit, arm.name, arm.package, pytest.approx(arm.share)), release
        assert (answer["arm"], answer["package"]) == (arm.name, arm.package)
        counts[release.generation][arm.name].add(unit)
    for generation, arms in counts.items():
        units = sum(map(len, arms.values()))
        for arm in by_generation[generation].arms if by_generation[generation].is_divided else ():
            expected, error = arm.share * units, (arm.share * (1 - arm.share) * units) ** 0.5
            assert abs(len(arms[arm.name]) - expected) <= 5 * error + 1, (generation, arm.name)
