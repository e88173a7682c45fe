"""`loopwright.Client` against a real server: what it asks, what it sends again, and what it does not load."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.deploy.loops import EVER, LOOP, NOW_US, flight, opened, package
from tests.server.running import TOKEN, Server, running
from tests.waiting import PATIENCE_SECONDS, until

from loopwright import Client
from loopwright.deploy import controller
from loopwright.records.clock import RealClock
from loopwright.records.errors import RequestRefused, Unavailable, UsageError
from loopwright.records.home import Home
from loopwright.records.ids import trace_id_of
from loopwright.records.online.steps import Fed, pack
from loopwright.records.predictions.read import predictions


def served_home(folder: Path, **release: str) -> Home:
    home = opened(folder, RealClock())
    controller.release(home, LOOP, package(home.packages, release=release).digest, why="first")
    home.online.write("weather", [("JFK", pack([EVER[0]], [[NOW_US, 20.0, None]]))], Fed(1, *EVER))
    return home


def client_of(server: Server, **options: Any) -> Client:
    return Client(server.state.data, token=TOKEN, timeout=PATIENCE_SECONDS, **({"attempts": 100} | options))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(served_home(tmp_path_factory.mktemp("home"))) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with client_of(server) as client:
        yield client


def test_one_row_gets_one_answer_and_a_list_a_list(client: Client) -> None:
    one = client.predict(LOOP, flight())
    many = client.predict(LOOP, [flight(i, delay=delay) for i, delay in enumerate((-40.0, 40.0, 80.0))])
    assert (one.label, one.arm, len(one.id), len(one.package)) == (True, "champion", 32, 64)
    assert [a.label for a in many] == [False, True, True]
    assert len({a.id for a in many}) == 3


def test_values_may_be_datetimes_and_numpy_scalars(client: Client) -> None:
    given = flight(
        pushed_back_at=datetime(2024, 5, 1, 9, tzinfo=UTC), delay=np.float64(12.5), hour=np.int64(9), night=np.bool_(False)
    )
    assert client.predict(LOOP, given).score == client.predict(LOOP, flight()).score
    with pytest.raises(UsageError, match="cannot be written as JSON: a object has no form"):
        client.predict(LOOP, flight(tail=object()))


def test_the_same_id_gets_the_same_answer_and_another_request_is_refused(client: Client) -> None:
    first, again = (client.predict(LOOP, flight(), id="order-17") for _ in range(2))
    assert first.id == again.id == trace_id_of("order-17")
    with pytest.raises(RequestRefused) as refused:
        client.predict(LOOP, flight(delay=99.0), id="order-17")
    assert (refused.value.status, refused.value.code) == (409, "id_taken")


def test_outcome_is_matched_by_prediction_or_by_key(client: Client) -> None:
    answer = client.predict(LOOP, flight(7))
    landed = {"landed_at": datetime(2024, 5, 1, 12, tzinfo=UTC), "arr_delay": 31.0}
    by_id, again = (client.outcome(LOOP, landed, prediction=answer.id) for _ in range(2))
    assert (by_id.prediction, by_id.unit, again.id) == (answer.id, "", by_id.id)
    assert client.outcome(LOOP, landed, prediction="order-17").prediction == trace_id_of("order-17")
    assert client.outcome(LOOP, {**landed, "flight": "UA7"}).unit == "UA7"


def test_what_the_server_refuses_is_told_and_not_sent_again(client: Client) -> None:
    with pytest.raises(RequestRefused) as invalid:
        client.predict(LOOP, flight(delay="late") | {"extra": 1})
    assert (invalid.value.status, [p.field for p in invalid.value.problems]) == (422, ["delay", "extra"])
    with pytest.raises(RequestRefused, match="does not explain"):
        client.explain(LOOP, flight())
    with pytest.raises(RequestRefused) as unknown:
        client.predict("no-such-loop", flight())
    assert (unknown.value.status, unknown.value.code) == (404, "not_found")


def test_ready_says_whether_loops_can_be_asked(client: Client) -> None:
    assert client.ready()
    assert client.ready(LOOP)
    assert not client.ready("no-such-loop")


def test_threads_share_a_client(client: Client) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(client.predict(LOOP, flight()).id for _ in range(20))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 80


def test_worker_that_is_killed_costs_no_answer_and_doubles_none(tmp_path: Path) -> None:
    home = served_home(tmp_path / "home")
    asked: list[str] = []
    with running(home, check=False) as server, client_of(server) as client:
        for number in range(60):
            if number in (15, 35):
                worker = server.state.workers[0]
                os.kill(worker, signal.SIGKILL)
            asked.append(client.predict(LOOP, flight(number), id=f"order-{number}").id)
    assert asked == [trace_id_of(f"order-{number}") for number in range(60)]
    assert sorted(predictions(home, LOOP)["_id"].to_pylist()) == sorted(asked)


def test_log_that_cannot_be_written_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """503 of the real server: it refuses what it cannot log, and the disk is full twice."""
    home = served_home(tmp_path / "home", on_unloggable="refuse")
    points = "log.append.before=ENOSPC@1;log.create=ENOSPC@2"
    with running(home, LOOPWRIGHT_FAILPOINTS=points) as server:
        with client_of(server, attempts=1) as hasty, pytest.raises(Unavailable, match=r"503 \(log_unavailable\)"):
            hasty.predict(LOOP, flight(), id="order-1")
        with client_of(server) as client:
            assert client.predict(LOOP, flight(), id="order-1").id == trace_id_of("order-1")
    until(lambda: predictions(home, LOOP).num_rows == 1)


@contextmanager
def scripted(*replies: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server in between (a proxy, say) that answers as it is told, and the headers of what it was asked."""
    seen: list[dict[str, str]] = []
    left = list(replies)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append({name.lower(): value for name, value in self.headers.items()})
            status, headers, body = left.pop(0)
            if status == 0:  # the connection breaks
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/behind/a/proxy/", seen
        finally:
            server.shutdown()
            thread.join()


ANSWER = json.dumps(
    {"id": "1" * 32, "score": 0.5, "label": True, "package": "a", "arm": "champion", "flags": [], "new": 1}
).encode()


def test_every_attempt_has_the_same_id_and_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("loopwright.client.sleep", waited.append)
    replies = [(0, {}, b""), (503, {"retry-after": "3"}, b"{}"), (502, {}, b"<html>"), (429, {}, b""), (200, {}, ANSWER)]
    with (
        scripted(*replies) as (url, seen),
        Client(url, token="secret", headers={"X-Tenant": "a"}, timeout=PATIENCE_SECONDS) as client,
    ):
        assert client.predict("churn", {"x": 1}).score == 0.5
    assert len({headers["x-request-id"] for headers in seen}) == 1
    assert {(h["authorization"], h["x-tenant"], h["content-type"]) for h in seen} == {
        ("Bearer secret", "a", "application/json")
    }
    assert waited[1] == 3.0  # as Retry-After says
    assert [0.025 <= waited[0] <= 0.05, 0.1 <= waited[2] <= 0.2, 0.2 <= waited[3] <= 0.4] == [True] * 3


def test_attempts_and_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwright.client.sleep", lambda _: None)
    with scripted(*[(503, {}, b"")] * 3) as (url, seen), Client(url, attempts=3) as client:
        with pytest.raises(Unavailable, match=r"no answer from 127\.0\.0\.1"):
            client.predict("churn", {"x": 1})
        assert len(seen) == 3
    with scripted((503, {"retry-after": "3600"}, b"")) as (url, seen), Client(url, timeout=30) as client:
        with pytest.raises(Unavailable):  # it would come too late, so nobody waits for it
            client.predict("churn", {"x": 1})
        assert len(seen) == 1
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with (
            Client(f"http://127.0.0.1:{nobody.getsockname()[1]}") as client,
            pytest.raises(Unavailable, match="ConnectionRefused"),
        ):
            client.predict("churn", {"x": 1})


def test_answer_of_somebody_else_is_named() -> None:
    with scripted((200, {}, b"<html>hello"), (401, {}, b"who?")) as (url, _), Client(url) as client:
        with pytest.raises(RequestRefused, match="no answer of loopwright"):
            client.predict("churn", {"x": 1})
        with pytest.raises(RequestRefused, match=r"401 \(unknown\): who\?"):
            client.predict("churn", {"x": 1})


@pytest.mark.parametrize(
    "wrong", [{"url": "ftp://x"}, {"url": "http://u:p@x"}, {"timeout": 0}, {"attempts": 0}, {"timeout": float("nan")}]
)
def test_client_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Client(**wrong)


def test_client_loads_neither_numpy_nor_an_engine() -> None:
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['onnxruntime'] = None; before = set(sys.modules)\n"
        "from loopwright import Client\n"
        "Client('http://127.0.0.1:1')\n"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert (set(done.stdout.split()) - {"typing_extensions"}, done.stderr) == ({"loopwright", "msgspec"}, "")
