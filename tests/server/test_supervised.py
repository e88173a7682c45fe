"""An error in the threads, tasks and processes of a running server: they go on, are counted and told, and the process is unready meanwhile."""

import re
from pathlib import Path

import pytest
from tests.deploy.loops import LOOP, flight, opened, package
from tests.server.running import Client, running, until

from loopwright.base.clock import RealClock
from loopwright.cli.answer import is_yes
from loopwright.deploy import releases
from loopwright.stores.home import Home
from loopwright.verbs.rollback import rollback

PREDICT = f"/loops/{LOOP}/predict"
THREADS = {
    ("worker-0", "follow"), ("worker-0", "logs"), ("worker-0", "metrics"), ("worker-0", "overruns"), ("worker-0", "link"),
    ("supervisor", "follow-ledger"), ("supervisor", "withdraw"), ("supervisor", "watch"), ("console", "link"), ("upkeep", "link"),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = opened(tmp_path, RealClock())
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    return home


def failures(client: Client) -> set[tuple[str, str]]:
    """Process and thread of each error, as Prometheus sees them."""
    text = client.get("/metrics").body.decode()
    return set(re.findall(r'^loopwright_thread_failures_total\{process="(.+?)",thread="(.+?)"\} [1-9]', text, re.MULTILINE))


def test_every_thread_that_fails_goes_on_and_is_counted_and_told(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    points = ";".join(f"thread.{thread}=EIO@1" for thread in sorted({thread for _, thread in THREADS}))
    with running(home, tend=True, LOOPWRIGHT_FAILPOINTS=points) as server:
        client = server.data()
        client.post(PREDICT, flight())
        until(lambda: failures(client) >= THREADS, 60)
        second = package(home.packages, weight=0.06).digest
        releases.release(home, LOOP, second, why="second")
        until(lambda: client.post(PREDICT, flight()).json["package"] == second, 60)
        until(lambda: client.get("/readyz").status == 200, 60)
        until(lambda: server.control().get("/readyz").status == 200, 60)
    said = capfd.readouterr().err
    for process, thread in THREADS - {("upkeep", "link")}:  # that one writes into its own file
        name = "" if process == "supervisor" else f" {process}"
        assert f"ERROR loopwright{name}: {thread} failed and is begun again: OSError: [Errno 5]" in said
    assert "ERROR loopwright upkeep: link failed" in (home.path / "tend.log").read_text()


def test_while_nobody_follows_the_worker_lives_and_is_not_ready(home: Home) -> None:
    with running(home, LOOPWRIGHT_FAILPOINTS="thread.follow=EMFILE") as server:
        client = server.data()
        until(lambda: client.get("/readyz").status == 503, 60)
        assert client.get("/readyz").json["down"] == ["follow"]
        assert client.get("/v2/health/ready").status == 503
        assert client.get("/livez").status == 200
        assert client.post(PREDICT, flight()).status == 200
        control = server.control()
        assert (control.get("/readyz").status, control.get("/readyz").json["down"]) == (503, {"worker-0": ["follow"]})
        assert control.get("/livez").status == 200
        first = package(home.packages).digest
        releases.release(home, LOOP, package(home.packages, weight=0.06).digest, why="second")
        back = rollback(home, LOOP)
        assert back.champion.package == first
        assert [w.state for w in back.workers] == ["lags"]
        assert not is_yes(back)  # a non-zero exit
    back = rollback(home, LOOP, to=package(home.packages, weight=0.06).digest[:8])
    assert (back.workers, is_yes(back)) == ([], True)
