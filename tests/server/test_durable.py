"""A loop with durability `disk` behind a real server: the answer leaves after the sync, and where there is none, as the loop says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.loops import LOOP, flight, opened, package
from tests.server.running import running
from tests.waiting import until

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.read import predictions

PREDICT = f"/loops/{LOOP}/predict"


def durable(folder: Path, **release: str) -> Home:
    home = opened(folder, RealClock())
    releases.release(home, LOOP, package(home.packages, release={"durability": "disk", **release}).digest, why="must last")
    return home


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_answer_is_sent_after_the_write_and_the_sync(tmp_path: Path) -> None:
    home = durable(tmp_path / "home")
    calls = tmp_path / "calls"
    with running(home) as server:
        client = server.data()
        assert client.post(PREDICT, flight()).status == 200
        command = [
            "strace",
            "-f",
            "-qq",
            "-s",
            "4000",
            "-e",
            "trace=write,writev,sendto,sendmsg,fdatasync,fsync",
            "-o",
            str(calls),
        ]
        tracer = subprocess.Popen([*command, "-p", str(server.state.workers[0])], stderr=subprocess.PIPE)
        try:
            ids: list[str] = []

            def traced() -> bool:
                ids.append(client.post(PREDICT, flight(len(ids))).json["id"])
                return tracer.poll() is not None or (
                    calls.exists() and len(ids) >= 20 and ids[-5] in calls.read_text(errors="replace")
                )

            until(traced)
        finally:
            tracer.terminate()
            _, told = tracer.communicate()
    if not calls.exists() or "attach" in told.decode():
        pytest.skip(f"strace may not attach here: {told.decode()[:200]}")
    lines = calls.read_text(errors="replace").splitlines()
    seen = 0
    for id in ids:
        places = [i for i, line in enumerate(lines) if id in line]
        if len(places) < 2:  # answered before the tracer was there, or after
            continue
        written, sent = places[0], places[-1]
        assert "HTTP/1.1 200" in lines[sent]
        assert "HTTP/1.1" not in lines[written]
        done = [i for i, line in enumerate(lines) if re.search(r"fdatasync(\(\d+\)| resumed>\)?).*= 0", line)]
        assert any(written < i < sent for i in done), lines[written : sent + 1]
        seen += 1
    assert seen >= 5


@pytest.mark.parametrize(("says", "status"), [pytest.param("serve", 200, marks=pytest.mark.slow), ("refuse", 503)])
@pytest.mark.parametrize(
    "failure",
    ["log.sync=EIO@2", *(pytest.param(f, marks=pytest.mark.slow) for f in ("log.append.write=ENOSPC@2", "log.created=EIO@1"))],
)
def test_what_cannot_be_made_durable_is_served_or_refused_and_counted(
    tmp_path: Path, says: str, status: int, failure: str
) -> None:
    home = durable(tmp_path / "home", on_unloggable=says)
    with running(home, LOOPWRIGHT_FAILPOINTS=failure) as server:
        client = server.data()
        answers = [client.post(PREDICT, flight(number)) for number in range(6)]
        fails = int(failure[-1]) - 1
        assert [a.status for a in answers] == [200] * fails + [status] + [200] * (5 - fails)
        assert re.search(r'loopwright_unlogged_total\{loop="late-arrival"\} 1\.0', client.get("/metrics").body.decode())
    logged = set(predictions(home, LOOP, columns=["_id"])["_id"].to_pylist())
    assert {a.json["id"] for i, a in enumerate(answers) if i != fails} <= logged
    assert commit(home, LOOP, final=True).problems == []


FULL = """
import subprocess, sys
from pathlib import Path
from tests.deploy.loops import LOOP, Weather, flight, opened, package
from tests.deploy.bodies import text
from loopwright.deploy import releases
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.base.errors import LogUnavailable
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import predictions

home = opened(Path(sys.argv[1]))
(home.path / "log").mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(home.path / "log")], check=True)
print("mounted")
release = {"durability": "disk", "on_unloggable": "refuse"}
releases.release(home, LOOP, package(home.packages, release=release).digest, why="the disk is small")
engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock))
engine.registry.refresh()
answered = []

def ask(number):
    [found] = engine.answer(LOOP, [PredictionRequest(engine.registry.service(LOOP).decode(text([flight(number), flight(number + 1)])).rows)])
    engine.synced(LOOP)()
    if isinstance(found, LogUnavailable):
        return False
    answered.extend(a.id for a in found)
    return True

before = sum(ask(i) for i in range(50))
ballast = home.path / "log" / "ballast"
with ballast.open("wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
full = [ask(i) for i in range(60)]
assert not all(full) and not full[-1], full
ballast.unlink(missing_ok=True)
after = [ask(i) for i in range(50)]
assert all(after), after
engine.close()
assert before == 50
done = commit(home, LOOP, final=True)
assert done.problems == [], done.problems
assert verify(home) == []
there = predictions(home, LOOP, columns=["_id"])["_id"].to_pylist()
assert set(answered) <= set(there) and len(there) == len(set(there))
print("told", full.count(False))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_full_disk_is_met_and_once_there_is_room_logging_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", sys.executable, "-c", FULL, str(tmp_path / "home")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=600,
    )
    if "mounted" not in done.stdout:
        pytest.skip(f"no file system of one's own may be mounted here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
