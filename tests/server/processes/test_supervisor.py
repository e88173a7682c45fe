import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from tests.deploy.loops import LOOP, declared, flight, opened, package
from tests.server.running import TOKEN, Client, Server, running
from tests.waiting import PATIENCE_SECONDS, until

from loopwright.base.clock import RealClock
from loopwright.base.errors import AddressRefused
from loopwright.base.settings import Settings
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.server.processes.child import Child
from loopwright.server.processes.crashes import HUNG_SECONDS, Blame
from loopwright.server.processes.supervisor import START_SECONDS, Worker, serve
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import predictions
from loopwright.verbs.rollback import rollback

PREDICT = f"/loops/{LOOP}/predict"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = opened(tmp_path, RealClock())
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    return home


class Load:
    """Clients that predict without pause; remembers every id that was answered and every answer that was no 200."""

    def __init__(self, url: str, clients: int, path: str = PREDICT) -> None:
        self.answers: list[tuple[str, str]] = []
        self.refused: list[int] = []
        self.cut = 0
        self._url, self._path, self._over = url, path, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def _run(self, number: int) -> None:
        client = Client(self._url)
        count = 0
        while not self._over.is_set():
            count += 1
            try:
                reply = client.post(self._path, flight(number * 1_000_000 + count))
            except (OSError, http.client.HTTPException):
                self.cut += 1
                time.sleep(0.01)
                continue
            if reply.status == 200:
                self.answers.append((reply.json["id"], reply.json["package"]))
            else:
                self.refused.append(reply.status)
        client.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def each_answered_id_is_logged_once(home: Home, ids: list[str]) -> None:
    commit(home, LOOP)
    logged = predictions(home, LOOP, columns=["_id"])["_id"].to_pylist()
    assert len(logged) == len(set(logged))
    assert set(ids) <= set(logged)
    assert verify(home) == []
    for table in home.lake.names():
        assert home.lake.verify(table) == []


def test_swaps_and_rollbacks_under_load_fail_no_request(home: Home) -> None:
    first = package(home.packages).digest
    second = package(home.packages, weight=0.06).digest
    releases.release(home, LOOP, first, why="first")
    with running(home, workers=2) as server, Load(server.state.data, 4) as load:
        for i in range(6):
            if i % 2:
                releases.rollback(home, LOOP, why="back")
            else:
                releases.release(home, LOOP, second, why="forth")
            seen = len(load.answers)
            until(lambda seen=seen: len(load.answers) > seen + 50)
        releases.rollback(home, LOOP, to=second[:8], why="last")
        fresh = server.data()
        until(lambda: _all_on(fresh, second))
    assert load.refused == []
    assert load.cut == 0
    assert {p for _, p in load.answers} == {first, second}
    each_answered_id_is_logged_once(home, [id for id, _ in load.answers])


def _all_on(client: Client, digest: str) -> bool:
    return all(client.post(PREDICT, flight()).json["package"] == digest for _ in range(6))


def kill_workers(home: Home, times: int) -> None:
    """SIGKILL a worker under load, again and again."""
    rng = random.Random(1)
    with running(home, workers=2) as server, Load(server.state.data, 3) as load:
        for _ in range(times):
            before = server.state.workers
            os.kill(rng.choice([w for w in before if w]), signal.SIGKILL)
            until(lambda before=before: 0 not in server.state.workers and server.state.workers != before)
            time.sleep(rng.uniform(0.0, 0.3))
        count = len(load.answers)
        until(lambda: len(load.answers) > count + 20)
    assert load.refused == []
    each_answered_id_is_logged_once(home, [id for id, _ in load.answers])


def kill_servers(home: Home, times: int) -> None:
    """SIGKILL a whole server under load, again and again."""
    rng = random.Random(2)
    ids: list[str] = []
    for _ in range(times):
        with running(home, workers=2, check=False) as server, Load(server.state.data, 3) as load:
            until(lambda load=load: len(load.answers) > 20)
            time.sleep(rng.uniform(0.0, 0.3))
            server.stop(signal.SIGKILL)
        ids += [id for id, _ in load.answers]
    each_answered_id_is_logged_once(home, ids)


def test_killed_workers_lose_nothing_that_was_answered(home: Home) -> None:
    kill_workers(home, 3)


def test_killed_servers_lose_nothing_that_was_answered(home: Home) -> None:
    kill_servers(home, 2)


@pytest.mark.slow
def test_twenty_killed_workers(home: Home) -> None:
    kill_workers(home, 20)


@pytest.mark.slow
def test_twenty_killed_servers(home: Home) -> None:
    kill_servers(home, 20)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_and_upkeep_end_with_their_supervisor(home: Home) -> None:
    with running(home, workers=2, tend=True, check=False) as server:
        until((home.path / "tend.log").exists)
        workers = server.state.workers
        children = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _parent(p) == server.process.pid]
        assert set(workers) <= set(children)
        assert len(children) == 4  # two workers, the console, upkeep
        server.process.kill()
        server.process.wait()
        until(lambda: not any(alive(pid) for pid in children))


def test_upkeep_that_ends_in_order_lets_the_next_one_begin_at_once(home: Home) -> None:
    with running(home, tend=True, check=False) as server:
        until(lambda: not home.ledger.lock("tend", "next", 0.001))
        server.process.terminate()
        assert server.process.wait(PATIENCE_SECONDS) == 0
    assert home.ledger.lock("tend", "next", 1)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_ending_in_order_finishes_what_was_begun_and_seals_the_log(home: Home) -> None:
    with running(home) as server:
        client = server.data()
        client.post(PREDICT, flight(1))
        address = (client.host, client.port)
        with (
            socket.create_connection(address, PATIENCE_SECONDS) as raw,
            socket.create_connection(address, PATIENCE_SECONDS) as idle,
        ):
            body = b"[" + b" " * 1000
            raw.sendall(
                f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1002\r\n\r\n".encode()
                + body
            )
            for _ in range(10):  # each answer is a round of the worker's event loop, which has read what came before it
                client.get("/livez")
            server.process.terminate()
            assert idle.recv(1) == b""  # it is stopping
            raw.sendall(b"]")
            assert raw.recv(4096).startswith(b"HTTP/1.1 422")
        assert server.process.wait(PATIENCE_SECONDS) == 0
    assert not list((home.path / "log").rglob("*.open"))
    assert not (home.path / "serve.json").exists()
    assert list((home.path / "metrics").iterdir()) == []


def test_server_is_unready_and_answers_on_before_it_ends(home: Home) -> None:
    with running(home, check=False, LOOPWRIGHT_DRAIN_SECONDS="600") as server:
        client = server.data()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status == 503, 60)
        assert client.get("/livez").status == 200
        assert server.data().post(PREDICT, flight()).status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_server_told_to_stop_as_soon_as_it_is_ready_ends_in_order(home: Home) -> None:
    with running(home):
        pass  # `running` asks for exit code 0
    assert not (home.path / "serve.json").exists()


def test_prediction_and_rollback_go_on_without_the_ledger(home: Home) -> None:
    first = package(home.packages).digest
    second = package(home.packages, weight=0.06).digest
    releases.release(home, LOOP, first, why="first")
    releases.release(home, LOOP, second, why="second")
    with running(home) as server:
        client = server.data()
        assert client.post(PREDICT, flight()).json["package"] == second
        with ledger_away(home):
            assert client.post(PREDICT, flight()).status == 200
            down = Home(Settings(home=home.path, ledger="sqlite:////proc/no/such/ledger.db", by="ann"), home.clock)
            rollback(down, LOOP, why="the ledger is down")
            until(lambda: client.post(PREDICT, flight()).json["package"] == first)
        until(lambda: (s := release_files.read(release_files.path_of(home, LOOP))) is not None and not s.unrecorded)
        assert client.post(PREDICT, flight()).json["package"] == first
    fresh = Home(home.settings, home.clock)
    state = releases.serving(fresh, LOOP)
    assert state is not None
    assert (state.action, state.by, state.champion.package) == ("rollback", "ann", first)
    fresh.close()


def children(server: Server, module: str) -> list[int]:
    """The processes of a server that run a module."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _parent(process) == server.process.pid:
            with suppress(OSError):
                if module.encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
    return found


def test_prediction_goes_on_while_each_of_the_others_is_down(tmp_path: Path) -> None:
    """Object storage never answers; console, upkeep and ledger go one after the other, under load; no request fails."""
    home = opened(tmp_path, RealClock(), lake="s3://nowhere")
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    storage = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "eu"}
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    environment: dict[str, Any] = storage | keys
    with running(home, tend=True, **environment) as server, Load(server.state.data, 2) as load:
        for module in ("loopwright.server.processes.console", "loopwright.server.processes.upkeep"):
            until(lambda module=module: children(server, module))
            (before,) = children(server, module)
            answered = len(load.answers)
            os.kill(before, signal.SIGKILL)
            until(lambda module=module, before=before: children(server, module) not in ([], [before]))
            until(lambda answered=answered: len(load.answers) > answered + 20)
        until(lambda: server.control().get("/livez").status == 200)
        with ledger_away(home):
            answered = len(load.answers)
            until(lambda: len(load.answers) > answered + 100)
    assert (load.refused, load.cut) == ([], 0)
    with Home(Settings(home=home.path), home.clock) as local:
        each_answered_id_is_logged_once(local, [id for id, _ in load.answers])


class Later(RealClock):
    """A clock whose durations can be moved on."""

    by = 0.0

    def monotonic(self) -> float:
        """See `RealClock`."""
        return super().monotonic() + self.by


def test_a_worker_that_does_not_go_on_is_ended_and_started_again(home: Home) -> None:
    """Its heartbeat is not waited for: the clock of who watches is moved on."""
    clock = Later()
    watching = Home(home.settings, clock)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src"), **home.settings.environment()}
        worker = Worker(watching, listening.fileno(), home.folder("run"), 0, environment, said.append)

        def looked() -> Child:
            worker.look()
            return worker.child

        try:
            until(lambda: looked().ready)
            first = worker.child.pid
            until(lambda: worker.heartbeat.beaten > 0)
            worker.look()
            assert worker.child.pid == first
            clock.by = HUNG_SECONDS + 2
            worker.look()
            until(lambda: worker.child.pid == 0)
            until(lambda: looked().pid not in (0, first))
            assert said == ["a worker did not go on for 15 seconds"]
            clock.by = 0.0  # the next one beats by the same clock again
            until(lambda: looked().ready)
            second, digest = worker.child.pid, package(home.packages).digest
            os.kill(second, signal.SIGKILL)
            until(lambda: looked().pid not in (0, second))
            assert said[1:] == ["a worker was killed by SIGKILL; it is started again"]
            assert worker.blamed == []  # nothing was loaded, nothing asked
            with worker.heartbeat.loading(digest):  # one that hangs before its event loop begins
                clock.by += START_SECONDS + 5
                worker.look()
                until(lambda: worker.child.pid == 0)
                worker.child.keep()
            assert worker.blamed == [Blame(digest, "hang", "a worker did not go on for 60 seconds while loading it")]
        finally:
            worker.child.tell(signal.SIGTERM)
            worker.child.end(10)
            worker.heartbeat.close()


@contextmanager
def ledger_away(home: Home) -> Iterator[None]:
    """A writer that holds the ledger: nobody else gets in. (The file is not moved: a database is no plain file.)"""
    import sqlite3

    home.close()
    holder = sqlite3.connect(home.path / "ledger.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


def test_addresses(home: Home) -> None:
    everywhere = Home(Settings(home=home.path, host="0.0.0.0", port=0, control_port=0), home.clock)
    with pytest.raises(AddressRefused, match="set a token"):
        serve(everywhere)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = Home(Settings(home=home.path, port=taken.getsockname()[1], control_port=0), home.clock)
        with pytest.raises(AddressRefused, match="cannot be bound"):
            serve(busy)


def test_the_token_is_asked_for(tmp_path: Path) -> None:
    home = opened(tmp_path, RealClock(), token="secret-token")
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    with running(home) as server:
        control = server.control()
        assert control.get("/api/status", authorization="").status == 401
        assert control.get("/", authorization="").headers["www-authenticate"].startswith("Basic")
        assert control.get("/api/status", authorization="Bearer wrong").status == 401
        assert control.get("/api/status", authorization="Bearer secret-token").status == 200
        assert control.get("/livez").status == 200
        assert server.data().post(PREDICT, flight()).status == 200


def test_a_server_without_loops_is_ready_and_picks_up_the_first_release(tmp_path: Path) -> None:
    home = opened(tmp_path, RealClock())
    with running(home) as server:
        client = server.data()
        assert client.post(PREDICT, flight()).status == 404
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        until(lambda: client.post(PREDICT, flight()).status == 200)


def test_metrics_are_of_all_workers_and_outlive_them_in_the_same_files(home: Home) -> None:
    with running(home, workers=2) as server:
        for _ in range(30):
            client = server.data()
            client.post(PREDICT, flight())
            client.close()
        until(lambda: answered(server) == 30)
        (folder,) = (home.path / "metrics").iterdir()
        files = sorted(path.name for path in folder.iterdir())
        for _ in range(2):
            before = server.state.workers
            for worker in before:
                os.kill(worker, signal.SIGKILL)
            until(lambda before=before: set(server.state.workers).isdisjoint({*before, 0}))
            until(lambda: server.data().get("/livez").status == 200)
        assert answered(server) == 30
        server.data().post(PREDICT, flight())
        until(lambda: answered(server) == 31)
        assert sorted(path.name for path in folder.iterdir()) == files


def answered(server: Server) -> float:
    text = server.data().get("/metrics").body.decode()
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("loopwright_predictions_total"))


def test_serve_prints_the_console_page_of_a_loop_and_a_request_that_works(home: Home) -> None:
    with running(home) as server:
        assert server.process.stdout is not None
        lines = [server.process.stdout.readline().rstrip() for _ in range(3)]
        assert lines[0] == f"{LOOP}: {server.state.control}/loops/{LOOP}"
        assert server.control().get(f"/loops/{LOOP}").status == 200
        curl = lines[2].strip().replace("curl ", "curl -sSf ", 1)
        environment = {**os.environ, "LOOPWRIGHT_TOKEN": TOKEN}
        done = subprocess.run(["/bin/bash", "-c", curl], env=environment, capture_output=True, timeout=PATIENCE_SECONDS)
        assert done.returncode == 0, (curl, done.stderr)
        assert isinstance(json.loads(done.stdout)["score"], float)


def test_alert_of_upkeep_is_said_on_the_servers_standard_error(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    home.ledger.put(declared().record(str(home.path / "gone.py")), loop=LOOP, key=LOOP)
    folder = home.path / "log" / LOOP / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{'0' * 32}-00000001.sealed").write_bytes(b"damage")
    said = ""

    def alerted() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return f"loopwright: alert: {LOOP}: " in said

    with running(home, tend=True):
        until(alerted)
    assert "(critical)" in said
