"""A shadow on a real server: its own process answers logged requests again, comes and goes with the release, and may die at any time."""

import os
import signal
from pathlib import Path
from typing import Any

from tests.deploy.loops import LOOP, flight, opened, package
from tests.server.running import Client, running
from tests.waiting import until

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.deploy.serving.heartbeat import workers
from loopwright.deploy.strategies import Strategy
from loopwright.records.declarations import Canary, Shadow
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import predictions, stored
from loopwright.verbs.trace import trace

PLAN = Strategy("plan", "", [Shadow(time="1h", rows=50), Canary(share=0.5)])


def shadow_processes() -> list[int]:
    """Processes of shadows under this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            parent = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if b"loopwright.server.processes.shadow" in words and _ours(parent):
            found.append(int(path.parent.name))
    return found


def _ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            return False
    return False


def asked(client: Client, first: int, count: int) -> list[dict[str, Any]]:
    reply = client.post(f"/loops/{LOOP}/predict", [flight(n, delay=float(n % 60)) for n in range(first, first + count)])
    assert reply.status == 200, reply.body
    return reply.json  # type: ignore[no-any-return]


def shadowed(home: Home, ids: set[str]) -> bool:
    return ids <= set(stored(home, "shadows", LOOP)["_id"].to_pylist())


def test_shadow_answers_what_clients_asked_through_restarts_commits_and_death(tmp_path: Path) -> None:
    with opened(tmp_path, RealClock()) as home:
        old, new = package(home.packages).digest, package(home.packages, weight=0.06).digest
        releases.release(home, LOOP, old, why="first")
        with running(home, workers=2) as server:
            client = server.data()
            before = {answer["id"] for answer in asked(client, 0, 20)}
            assert shadow_processes() == []
            state = releases.release(home, LOOP, new, strategy=PLAN, why="is it better?").record
            until(lambda: [w.state for w in workers(home.path, state)] == ["serves", "serves"])
            answers = asked(client, 100, 300)
            assert {(a["package"], a["arm"]) for a in answers} == {(old, "champion")}
            ids = {answer["id"] for answer in answers}
            until(lambda: shadowed(home, ids), 30)
            commit(home, LOOP)
            [pid] = shadow_processes()
            os.kill(pid, signal.SIGKILL)
            while_dead = asked(client, 1000, 20)
            assert len(while_dead) == 20, "a shadow that died keeps no client waiting"
            until(lambda: bool(shadow_processes()) and shadow_processes() != [pid], 30)

            def answers_again() -> bool:
                return shadowed(home, {answer["id"] for answer in asked(client, 2000, 5)})

            until(answers_again, 30)
            text = server.data().get("/metrics").body.decode()
            assert f'loopwright_shadow_rows_total{{loop="{LOOP}",result="answered"}}' in text
            releases.rollback(home, LOOP, why="enough")
            until(lambda: shadow_processes() == [], 30)
            asked(client, 5000, 20)
        commit(home, LOOP, final=True)
        assert verify(home) == []
        rows, shadows = predictions(home, LOOP), stored(home, "shadows", LOOP)
        assert set(rows["_arm"].to_pylist()) == {"champion"}
        assert set(shadows["_id"].to_pylist()) <= set(rows["_id"].to_pylist())
        assert not before & set(shadows["_id"].to_pylist())
        assert shadows.num_rows == len(set(shadows["_id"].to_pylist()))
        told = trace(home, min(ids))
        assert told.shadow is not None
        assert told.shadow.package == new
