"""`loopwright.Client` against a real server: what it asks, what it sends again, and what it does not load."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.deploy.loops import EVER, LOOP, NOW_US, flight, opened, package
from tests.server.running import TOKEN, Server, running
from tests.waiting import PATIENCE_SECONDS, until

from loopwright import Client
from loopwright.base.clock import RealClock
from loopwright.base.errors import RequestRefused, Unavailable, UsageError
from loopwright.base.ids import trace_id_of
from loopwright.deploy import releases
from loopwright.stores.home import Home
from loopwright.stores.online.steps import Fed, pack
from loopwright.stores.prediction_log.read import predictions


def served_home(folder: Path, **release: str) -> Home:
    home = opened(folder, RealClock())
    releases.release(home, LOOP, package(home.packages, release=release).digest, why="first")
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
    with pytest.raises(UsageError, match="cannot be written as JSON: a object is not a JSON value"):
        client.predict(LOOP, flight(tail=object()))


def test_decimals_are_sent_as_numbers(client: Client) -> None:
    assert client.predict(LOOP, flight(delay=Decimal("12.50"))).score == client.predict(LOOP, flight(delay=12.5)).score
    with pytest.raises(UsageError, match="NaN is not a JSON value"):
        client.predict(LOOP, flight(delay=Decimal("NaN")))


def test_client_of_the_control_port_is_told_which_port_is_the_right_one(server: Server) -> None:
    with Client(server.state.control, token=TOKEN, attempts=1) as client, pytest.raises(RequestRefused) as refused:
        client.predict(LOOP, flight())
    assert refused.value.status == 404
    assert "this is the control port: predictions and outcomes go to " in str(refused.value)


def test_pandas_values_are_sent_as_what_they_mean(client: Client) -> None:
    at = pd.Timestamp("2024-05-01T09:00Z")
    assert client.predict(LOOP, flight(pushed_back_at=at)).score == client.predict(LOOP, flight()).score
    with pytest.raises(RequestRefused, match=r"pushed_back_at: must be .*not null"):
        client.predict(LOOP, flight(pushed_back_at=pd.NaT))
    frame = pd.DataFrame([flight(), flight()])
    for rows in (frame, frame.iloc[0]):
        with pytest.raises(UsageError, match=r"is not a JSON value: send its to_dict\(\), of a DataFrame to_dict\('records'\)"):
            client.predict(LOOP, rows)
    assert len(client.predict(LOOP, frame.to_dict("records"))) == 2


@pytest.mark.parametrize("value", [float("inf"), -np.float64("inf"), np.float32("inf"), b"text", [1.0, float("inf")]])
def test_values_that_json_would_change_are_refused_before_they_are_sent(client: Client, value: object) -> None:
    for rows in (flight(delay=value), [flight(), flight(delay=value)]):
        with pytest.raises(UsageError, match=r"cannot be written as JSON: .*(inf|b'text').* is not a JSON value"):
            client.predict(LOOP, rows)


def test_the_same_id_gets_the_same_answer_and_another_request_is_refused(client: Client) -> None:
    first, again = (client.predict(LOOP, flight(), id="order-17") for _ in range(2))
    assert first.id == again.id == trace_id_of("order-17")
    with pytest.raises(RequestRefused) as refused:
        client.predict(LOOP, flight(delay=99.0), id="order-17")
    assert (refused.value.status, refused.value.code) == (409, "request_conflict")


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
    assert (unknown.value.status, unknown.value.code) == (404, "loop_not_found")


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
        with pytest.raises(RequestRefused, match=r"401 \(unknown\): no answer of loopwright; .* begins 'who\?'"):
            client.predict("churn", {"x": 1})


@contextmanager
def raw(serve: Callable[[socket.socket, int, bytes], None]) -> Iterator[str]:
    """A server of bytes: `serve` gets each connection with its number from 0 and its first request."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def one(connection: socket.socket, number: int) -> None:
            with connection, suppress(OSError):
                serve(connection, number, connection.recv(65536))

        def accept() -> None:
            number = 0
            while True:
                connection, _ = listening.accept()
                if ended.is_set():  # the connection that ends the wait
                    connection.close()
                    return
                threading.Thread(target=one, args=(connection, number), daemon=True).start()
                number += 1

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join()


def reply(body: bytes, *, length: int | None = None, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("start", [b"", reply(b"", length=1 << 20)], ids=["head", "body"])
def test_timeout_is_the_deadline_against_a_server_that_drips(start: bytes) -> None:
    """Each byte comes long before the timeout; all of them would take far longer than the test may."""
    dripped: list[int] = []

    def drip(connection: socket.socket, *_: object) -> None:
        connection.sendall(start)
        for number in range(100_000):
            connection.sendall(b"H" if number else b" ")
            dripped.append(number)
            threading.Event().wait(0.02)

    with raw(drip) as url, Client(url, timeout=0.5) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"deadline|timed out"):
            client.predict("churn", {"x": 1})
        assert not client.ready()
    assert time.monotonic() - began < PATIENCE_SECONDS  # of 2,000 seconds
    assert dripped


@pytest.mark.parametrize(
    "broken",
    [
        reply(ANSWER[:20], length=len(ANSWER)),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + ANSWER[:20],  # nothing says how long it is
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n14\r\n" + ANSWER[:20] + b"\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"",
        b"SSH-2.0\r\n",
    ],
)
def test_answer_that_is_cut_off_is_asked_for_again(broken: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwright.client.sleep", lambda _: None)
    seen: list[int] = []

    def serve(connection: socket.socket, number: int, _: bytes) -> None:
        seen.append(number)
        connection.sendall(reply(ANSWER) if number else broken)

    with raw(serve) as url, Client(url, timeout=PATIENCE_SECONDS) as client:
        assert client.predict("churn", {"x": 1}).score == 0.5
    assert seen[:2] == [0, 1]


def test_page_of_a_proxy_is_named_with_its_status_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwright.client.sleep", lambda _: None)
    page = b"<html>\n<title>Bad\r\ngateway</title>" + b"x" * 10_000
    html = {"content-type": "text/html"}
    start = r"\(text/html\) begins '<html> <title>Bad gateway</title>x+'$"
    expected = (
        (RequestRefused, "200 .*" + start),
        (Unavailable, "502 .*" + start),
        (RequestRefused, "307 .*redirects to 'http://b/'"),
    )
    replies = ((200, html, page), (502, html, page), (307, {"location": "http://b/"}, b""))
    with scripted(*replies) as (url, _), Client(url, attempts=1) as client:
        for error, message in expected:
            with pytest.raises(error, match=message):
                client.predict("churn", {"x": 1})


def test_answer_larger_than_can_be_held_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwright.client.MAX_REPLY_BYTES", 1 << 20)
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (2 << 20)
    for sent in (endless, reply(b"", length=1 << 40)):
        with (
            raw(lambda connection, *_, sent=sent: connection.sendall(sent)) as url,
            Client(url) as client,
            pytest.raises(RequestRefused, match="more than 1 MiB: ask for fewer rows"),
        ):
            client.predict("churn", {"x": 1})


def echo(connection: socket.socket, asked: bytes) -> None:
    """Answer each request with its own id, or as ready; a request may come in several pieces."""
    while True:
        head, end, body = asked.partition(b"\r\n\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])}
        length = int(fields.get(b"content-length", b"0"))
        if end and len(body) >= length:
            connection.sendall(reply(ANSWER.replace(b"1" * 32, fields.get(b"x-request-id", b""))))
            asked = body[length:]
        elif more := connection.recv(65536):
            asked += more
        else:
            return


def test_threads_with_shared_and_closed_clients_get_their_own_answers() -> None:
    wrong: list[str] = []

    def ask(client: Client, name: str) -> None:
        for number in range(20):
            answered = client.predict("churn", {"x": 1}, id=f"{name}-{number}").id
            wrong.extend([answered] * (answered != f"{name}-{number}"))
            if number == 10:
                client.close()

    with (
        raw(lambda connection, _, asked: echo(connection, asked)) as url,
        Client(url, timeout=PATIENCE_SECONDS) as shared,
        Client(url, timeout=PATIENCE_SECONDS) as other,
    ):
        threads = [threading.Thread(target=ask, args=(other if i < 2 else shared, f"t{i}")) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_threads_that_come_and_go_leave_no_connections_open() -> None:
    seen = set[int]()

    def serve(connection: socket.socket, number: int, asked: bytes) -> None:
        seen.add(number)
        echo(connection, asked)

    with raw(serve) as url, Client(url, timeout=PATIENCE_SECONDS) as client:
        for _ in range(20):
            thread = threading.Thread(target=client.predict, args=("churn", {"x": 1}))
            thread.start()
            thread.join()
    assert seen == {0}


def test_forked_child_asks_over_a_connection_of_its_own(server: Server) -> None:
    code = (
        "import os, sys, json\n"
        "from loopwright import Client\n"
        "url, token, loop, row, seconds = json.loads(sys.argv[1])\n"
        "client = Client(url, token=token, timeout=seconds, attempts=100)\n"
        "def ask(name):\n"
        "    ids = [f'{name:02}{i:02}' + 'ab' * 14 for i in range(20)]\n"
        "    return [client.predict(loop, row, id=id).id for id in ids] == ids\n"
        "ask(1)\n"
        "children = []\n"
        "for name in (2, 3, 4):\n"
        "    if not (child := os.fork()):\n"
        "        os._exit(0 if ask(name) else 1)\n"
        "    children.append(child)\n"
        "print(ask(5), [os.waitpid(child, 0)[1] for child in children])\n"
    )
    given = json.dumps([server.state.data, TOKEN, LOOP, flight(), PATIENCE_SECONDS])
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True [0, 0, 0]\n", "")


WRONG_CLIENTS: list[dict[str, Any]] = [
    *({"url": url} for url in ("ftp://x", "http://u:p@x", "http://@x", "127.0.0.1:8321", "", "http://", "//host", "http://h:0", None, b"http://h")),
    *({"url": url} for url in ("http://h:65536", "http://h:-1", "http://h:x", "http://[::1", "http://a..b", "http://h h", "http://h?q=1", "http://h#f")),
    *({"url": url} for url in ("http://" + "a" * 64, "http://h\x00", "http://\u2100/")),
    *({"timeout": timeout} for timeout in (0, -1, float("nan"), float("inf"), 1e300, 10**5000, "3", None, True)),
    *({"attempts": attempts} for attempts in (0, -1, 1.5, "3", True)),
    *({"token": token} for token in ("a\r\nX: y", "\u00e9", 7, b"t")),
    *({"headers": headers} for headers in ({"X": "a\nb"}, {"X\r\nY": "a"}, {"": "a"}, {"X": 1}, {1: "a"}, {"X": "\u20ac"}, {"x-request-id": "1"})),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_CLIENTS)
def test_argument_of_a_client_that_cannot_be_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))}"):
        Client(**wrong)


@pytest.mark.parametrize(
    ("named", "call"),
    [
        *(
            ("id", lambda c, id=id: c.predict("churn", {}, id=id))
            for id in ("a\r\nX: y", "a b", "\u00e9", "a" * 129, 7, None, b"a")
        ),
        *(
            ("timeout", lambda c, timeout=timeout: c.predict("churn", {}, timeout=timeout))
            for timeout in (0, -1, float("nan"), float("inf"), "3")
        ),
        ("prediction", lambda c: c.outcome("churn", {}, prediction=7)),
        ("loop", lambda c: c.predict(7, {})),
        ("loop", lambda c: c.ready(7)),
        ("the request", lambda c: c.predict("churn", CYCLE)),
    ],
)
def test_argument_of_a_call_that_cannot_be_is_named(named: str, call: Callable[[Client], object]) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(UsageError, match=f"^{named}"):
        call(client)


CYCLE: dict[str, Any] = {}
CYCLE["x"] = CYCLE


def test_client_loads_neither_numpy_nor_an_engine() -> None:
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['onnxruntime'] = None; before = set(sys.modules)\n"
        "from loopwright import Client\n"
        "Client('http://127.0.0.1:1')\n"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert (set(done.stdout.split()) - {"typing_extensions"}, done.stderr) == ({"loopwright", "msgspec"}, "")
