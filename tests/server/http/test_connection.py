import asyncio
import contextlib
import gc
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import uvloop
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, flight
from tests.server.running import Client
from tests.waiting import PATIENCE_SECONDS, until

from loopwright.base.ids import is_trace_id
from loopwright.server.http import connection
from loopwright.server.http.admission import Admission
from loopwright.server.http.request import Reply, Request, refusal

BODY = text(flight())
HEAD = f"POST /loops/{LOOP}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def send(client: Client, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts on a fresh connection, say that there is nothing more, and read until it is closed."""
    with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
        found = b""
        with contextlib.suppress(OSError):  # it was refused, and closed
            for part in parts:
                raw.sendall(part)
                time.sleep(pause)
            raw.shutdown(socket.SHUT_WR)
        try:
            while part := raw.recv(65536):
                found += part
        except ConnectionError:
            pass
        return found


@pytest.mark.parametrize("size", [17 * 1024, 200 * 1024])
def test_large_headers_are_431(client: Client, size: int) -> None:
    answer = send(client, HEAD + b"X-Large: " + b"x" * size + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431")
    assert b'"code":"headers_too_large"' in answer


def test_repeated_headers_are_counted(client: Client) -> None:
    repeated = b"X-Again: " + b"y" * 100 + b"\r\n"
    whole = REQUEST.replace(b"Content-Type", repeated * 200 + b"Content-Type")
    assert send(client, whole).startswith(b"HTTP/1.1 431")
    assert b"HTTP/1.1 431" in send(client, REQUEST + whole)


def test_headers_that_never_end_are_431(client: Client) -> None:
    assert send(client, HEAD, *[b"X-%d: y\r\n" % i for i in range(2500)]).startswith(b"HTTP/1.1 431")
    assert send(client, HEAD + b"X-Large: ", *[b"x" * 1000] * 40).startswith(b"HTTP/1.1 431")


def test_a_long_url_is_431(client: Client) -> None:
    assert send(client, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 431")


def test_headers_within_the_limit_pass(client: Client) -> None:
    large = HEAD + b"X-Large: " + b"x" * 14_000 + b"\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    assert send(client, large + BODY).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: [::1]evil.test\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_400_and_closed(client: Client, rubbish: bytes) -> None:
    answer = send(client, rubbish)
    assert answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert client.get("/livez").status == 200


def test_requests_in_pieces_and_in_a_row(client: Client) -> None:
    pieces = [REQUEST[i : i + 37] for i in range(0, len(REQUEST), 37)]
    assert send(client, *pieces, pause=0.002).count(b"HTTP/1.1 200") == 1
    assert send(client, REQUEST * 5).count(b"HTTP/1.1 200") == 5


def test_a_websocket_is_not_spoken(client: Client) -> None:
    upgrade = (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    )
    assert not send(client, upgrade).startswith(b"HTTP/1.1 101")


def test_a_client_that_goes_away_while_sending_harms_nobody(client: Client) -> None:
    for _ in range(20):
        with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
            raw.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
    assert client.get("/livez").status == 200


def head_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[0]


def test_head_has_the_length_and_no_body(client: Client) -> None:
    answer = send(client, b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"content-length: 13" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_client_that_asks_may_send(client: Client) -> None:
    with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
        raw.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert raw.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(BODY)
        assert raw.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_client_that_asks_is_refused_before_it_sends(client: Client) -> None:
    with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
        raw.sendall(HEAD.replace(b"json", b"xml") + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert raw.recv(4096).startswith(b"HTTP/1.1 415")


def test_chunks(client: Client) -> None:
    chunks = (
        b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:8], BODY[8:])) + b"0\r\nX-Trailer: y\r\n\r\n"
    )
    whole = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    assert send(client, whole + REQUEST).count(b"HTTP/1.1 200") == 2
    assert send(client, *[whole[i : i + 1] for i in range(len(whole))]).count(b"HTTP/1.1 200") == 1


def test_a_body_compressed_on_its_way_is_415(client: Client) -> None:
    answer = send(client, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert answer.startswith(b"HTTP/1.1 415")


@pytest.mark.parametrize("codings", [(b"gzip", b"chunked"), (b"chunked", b"chunked"), (b"identity", b"chunked")])
def test_body_with_two_transfer_encodings_is_refused(client: Client, codings: tuple[bytes, bytes]) -> None:
    lines = b"".join(b"Transfer-Encoding: %b\r\n" % coding for coding in codings)
    answer = send(client, HEAD + lines + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert answer.startswith((b"HTTP/1.1 415", b"HTTP/1.1 400"))


def test_what_is_refused_before_it_is_a_request_has_an_id(client: Client) -> None:
    answer = send(client, b"no HTTP\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    id = json.loads(body)["error"]["id"]
    assert is_trace_id(id)
    assert b"x-request-id: " + id.encode() in head


def test_chunks_of_nothing_and_endless_trailers_are_cut_off(client: Client) -> None:
    begun = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b"HTTP/1.1 400" in send(client, begun, *[b"1;" + b"x" * 20_000 + b"\r\n \r\n"] * 10)
    assert b"HTTP/1.1 400" in send(client, begun + b"0\r\n", *[b"X-%d: y\r\n" % i * 100 for i in range(200)])


def test_what_trails_a_body_changes_no_header(client: Client) -> None:
    trailer = b"2\r\n{}\r\n0\r\nX-Request-Id: mine\r\n\r\n"
    answer = send(client, HEAD + b"Transfer-Encoding: chunked\r\nX-Request-Id: yours\r\n\r\n" + trailer)
    assert answer.startswith(b"HTTP/1.1 422")
    assert b"x-request-id: yours" in answer


def test_two_hosts_are_400(client: Client) -> None:
    assert send(client, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_url_with_its_host(client: Client) -> None:
    get = b"GET http://localhost/livez?x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert send(client, get).startswith(b"HTTP/1.1 200")
    assert send(client, get.replace(b"http://localhost/livez?x=1", b"*")).startswith(b"HTTP/1.1 4")


def test_connections_stay_or_go_as_asked(client: Client) -> None:
    assert b"connection: close" in head_of(send(client, REQUEST.replace(b"Content-Type", b"Connection: close\r\nContent-Type")))
    assert b"connection: close" in head_of(send(client, REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0")))
    kept = REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Content-Type", b"Connection: keep-alive\r\nContent-Type")
    assert send(client, kept * 3).count(b"connection: keep-alive") in (
        2,
        3,
    )  # the last one may hear in time that the client sends no more


def test_a_client_that_has_said_all_it_has_to_say_is_answered(client: Client) -> None:
    with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
        raw.sendall(REQUEST * 3)
        raw.shutdown(socket.SHUT_WR)
        found = b""
        while part := raw.recv(65536):
            found += part
    assert found.count(b"HTTP/1.1 200") == 3


def test_requests_in_a_row_are_answered_in_order(client: Client) -> None:
    alive = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    nothing = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"
    found = send(client, (REQUEST + alive + nothing) * 40)
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"200", b"404"] * 40
    assert found.count(b'{"live":true}') == 40


def test_what_follows_a_refusal_is_not_read(client: Client) -> None:
    found = send(client, REQUEST + b"rubbish\r\n\r\n" + REQUEST)
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"400"]


# --- the server itself, with an application that answers as it is told ---------------------------------------------------


class Slow:
    """Answers requests for /later when told, all others at once with `body`."""

    def __init__(self, body: bytes = b"{}") -> None:
        self.body = body
        self.later: list[Request] = []
        self.taken = 0

    def begin(self, _request: Request) -> Reply | None:
        return None

    def handle(self, request: Request) -> Reply | None:
        if request.path != b"/later":
            return Reply(200, self.body)
        self.later.append(request)
        self.taken += 1
        return None

    def failed(self, _request: Request, _error: Exception) -> Reply:
        return refusal(503)

    def is_health(self, request: Request) -> bool:
        return request.path == b"/health"

    def answer(self) -> None:
        for request in self.later:
            request.answer(Reply(200, b"late"))
        self.later.clear()


class Running:
    """A server in a thread."""

    def __init__(self, app: Slow, admission: Admission | None = None) -> None:
        self.server = connection.Server(app, admission=admission)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve(self.listening, self._ready.set)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    def call(self, what: Callable[[], None]) -> None:
        """Call something in the loop's thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(what)

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS, (source, 0))

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def server(app: Slow, places: int = 0) -> Iterator[Running]:
    running = Running(app, Admission(places, 0.5 if places > 3 else 1) if places else None)
    try:
        yield running
    finally:
        running.stop()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def rest(raw: socket.socket) -> bytes:
    """Everything until the other side ends."""
    found = b""
    while part := raw.recv(2**20):
        found += part
    return found


def test_answers_that_come_later_keep_their_order() -> None:
    app = Slow()
    with server(app) as running, running.connect() as raw:
        raw.sendall(get("/later") + get("/") + get("/later"))
        until(lambda: len(app.later) == 1)
        raw.setblocking(False)
        with pytest.raises(BlockingIOError):
            raw.recv(1)
        raw.settimeout(PATIENCE_SECONDS)
        running.call(app.answer)
        until(lambda: app.taken == 2 and len(app.later) == 1)
        running.call(app.answer)
        raw.shutdown(socket.SHUT_WR)
        found = rest(raw)
        assert [body[:4] for body in found.split(b"\r\n\r\n")[1:]] == [b"late", b"{}HT", b"late"]


def test_an_answer_to_a_client_that_has_gone_harms_nobody() -> None:
    app = Slow()
    with server(app) as running:
        raw = running.connect()
        raw.sendall(b"POST /later HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345")
        until(lambda: len(app.later) == 1)
        assert running.server.held == 5
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raw.close()
        until(lambda: not running.server.connections)
        assert running.server.held == 0
        assert app.later[0].gone
        running.call(app.answer)
        with running.connect() as another:
            another.sendall(get("/"))
            assert another.recv(4096).startswith(b"HTTP/1.1 200")


def test_nothing_is_left_of_a_connection_that_ended() -> None:
    with server(Slow()) as running:
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                with running.connect() as raw:
                    raw.sendall(get("/"))
                    assert raw.recv(4096).startswith(b"HTTP/1.1 200")
            until(lambda: not running.server.connections)
            left = [o for o in gc.get_objects() if type(o) is connection.Connection]
            assert len(left) <= 1, "reference counts alone let go of it"
        finally:
            gc.enable()


def test_bodies_are_counted_and_let_go() -> None:
    app = Slow()
    with server(app) as running, running.connect() as raw, running.connect() as partial:
        partial.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + b"x" * 1000)
        for _ in range(3):
            raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
            assert raw.recv(4096).startswith(b"HTTP/1.1 200")
        until(lambda: running.server.held == 1000)
        partial.close()
        until(lambda: running.server.held == 0)


def test_more_bytes_than_can_be_held_are_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_HELD_BYTES", 5000)
    with server(Slow()) as running, running.connect() as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + b"x" * 6000)
        assert raw.recv(4096).startswith(b"HTTP/1.1 503")
        assert running.server.held == 0


def test_longest_idle_connection_is_closed_for_a_new_one() -> None:
    with server(Slow(), places=3) as running, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(running.connect()) for _ in range(3)]
        for raw in connections:
            raw.sendall(get("/"))
            assert raw.recv(4096).startswith(b"HTTP/1.1 200")
        connections[0].sendall(get("/"))
        assert connections[0].recv(4096).startswith(b"HTTP/1.1 200")
        new = stack.enter_context(running.connect())
        new.sendall(get("/"))
        assert new.recv(4096).startswith(b"HTTP/1.1 200")
        assert rest(connections[1]) == b""
        for raw in (connections[0], connections[2], new):
            raw.sendall(get("/"))
            assert raw.recv(4096).startswith(b"HTTP/1.1 200")


def test_half_sent_requests_make_room_and_idle_ones_go_first() -> None:
    with server(Slow(), places=2) as running, running.connect() as half, running.connect() as idle:
        half.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1")
        idle.sendall(get("/"))
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        with running.connect() as second:
            second.sendall(b"GET / HT")
            assert rest(idle) == b""
            until(lambda: running.server.held == 1)
            with running.connect() as third:
                third.sendall(get("/"))
                assert third.recv(4096).startswith(b"HTTP/1.1 200")
                assert rest(half).startswith(b"HTTP/1.1 503")


def test_health_is_answered_where_every_connection_is_busy() -> None:
    app = Slow()
    with server(app, places=2) as running, running.connect() as one, running.connect() as two:
        for raw in (one, two):
            raw.sendall(get("/later"))
        until(lambda: len(app.later) == 2)
        with running.connect() as third, running.connect() as health:
            third.sendall(get("/"))
            assert rest(third).startswith(b"HTTP/1.1 503")
            health.sendall(get("/health"))
            assert rest(health).startswith(b"HTTP/1.1 200")
        running.call(app.answer)
        for raw in (one, two):
            assert raw.recv(4096).startswith(b"HTTP/1.1 200")
        with running.connect() as again:
            again.sendall(get("/"))
            assert again.recv(4096).startswith(b"HTTP/1.1 200")
    assert running.server.admission.count == 0


def test_address_with_its_share_takes_no_place_from_others() -> None:
    with server(Slow(), places=8) as running, contextlib.ExitStack() as stack:
        many = [stack.enter_context(running.connect("127.0.0.2")) for _ in range(40)]
        until(lambda: running.server.admission.evicted == 36)
        other = stack.enter_context(running.connect("127.0.0.1"))
        other.sendall(get("/"))
        assert other.recv(4096).startswith(b"HTTP/1.1 200")
        assert running.server.admission.count == 5
        many[-1].sendall(get("/"))
        assert many[-1].recv(4096).startswith(b"HTTP/1.1 200")
        assert rest(many[0]) == b""


def test_body_in_tiny_chunks_takes_no_more_memory_than_in_one_piece() -> None:
    app = Slow()
    with server(app) as running, running.connect() as raw:
        raw.sendall(b"POST /later HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        gc.collect()
        tracemalloc.start()
        try:
            raw.sendall(b"10\r\n0123456789abcdef\r\n" * 120_000)
            until(lambda: running.server.held == 16 * 120_000)
            size = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert size < 2 * 16 * 120_000
        raw.sendall(b"0\r\n\r\n")
        until(lambda: len(app.later) == 1)
        assert app.later[0].body == b"0123456789abcdef" * 120_000
        running.call(app.answer)
        assert raw.recv(4096).startswith(b"HTTP/1.1 200")


def test_body_that_is_mostly_chunk_headers_is_cut_off() -> None:
    with server(Slow()) as running, running.connect() as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            raw.sendall(b"1\r\nx\r\n" * 200_000)
        with contextlib.suppress(ConnectionResetError):
            assert rest(raw).startswith(b"HTTP/1.1 400")
        until(lambda: running.server.held == 0)


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.3"])
@pytest.mark.parametrize("pieces", [1, 20])
def test_upgrade_is_ignored_and_the_body_read(upgrade: str, pieces: int) -> None:
    head = (
        f"POST /later HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 5\r\n"
        f"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: {upgrade}\r\n\r\n"
    ).encode()
    sent = head + b"12345" + get("/") + head + b"67890" + get("/")
    app = Slow()
    with server(app) as running, running.connect() as raw:
        step = len(sent) // pieces
        for i in range(0, len(sent), step):
            raw.sendall(sent[i : i + step])
            time.sleep(0.001)
        found = b""
        for body in (b"12345", b"67890"):
            until(lambda: len(app.later) == 1)
            assert app.later[0].body == body
            running.call(app.answer)
            while not found.endswith(b"{}"):
                found += raw.recv(4096)
            assert found.count(b"HTTP/1.1 200") == 2
            found = b""


def test_who_reads_slowly_gets_it_all_and_holds_up_nobody() -> None:
    app = Slow(b"x" * 4_000_000)
    with server(app) as running, running.connect() as slow, running.connect() as quick:
        slow.sendall(get("/") * 5)
        until(lambda: any(c._paused for c in list(running.server.connections)))
        quick.sendall(get("/later"))
        until(lambda: len(app.later) == 1)
        running.call(app.answer)
        assert quick.recv(4096).startswith(b"HTTP/1.1 200")
        slow.shutdown(socket.SHUT_WR)
        assert len(rest(slow)) > 20_000_000


@pytest.mark.parametrize(
    ("limit", "sent", "status"),
    [
        ("ARRIVAL_SECONDS", b"GET / HT", b"HTTP/1.1 408"),
        ("ARRIVAL_SECONDS", b"", b"HTTP/1.1 408"),
        ("ARRIVAL_SECONDS", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1", b"HTTP/1.1 408"),
        ("IDLE_SECONDS", get("/"), b"HTTP/1.1 200"),
        ("ARRIVAL_SECONDS", get("/") + b"GET /", b"HTTP/1.1 200 OK"),
    ],
)
def test_who_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes, status: bytes) -> None:
    monkeypatch.setattr(connection, limit, 0.5)
    with server(Slow()) as running, running.connect() as raw:
        raw.sendall(sent)
        assert rest(raw).startswith(status)
        raw.close()
        until(lambda: not running.server.connections)


def test_who_never_reads_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ARRIVAL_SECONDS", 0.5)
    with server(Slow(b"x" * 8_000_000)) as running, running.connect() as raw:
        raw.sendall(get("/"))
        until(lambda: len(running.server.connections) == 1)
        until(lambda: not running.server.connections)


def test_who_is_refused_and_sends_on_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DISCARD_BYTES", 100_000)
    with server(Slow()) as running, running.connect() as raw:
        raw.sendall(b"rubbish\r\n\r\n")
        with pytest.raises(OSError):  # noqa: PT011  # a reset or a broken pipe, as it happens
            raw.sendall(b"x" * 50_000_000)
        until(lambda: not running.server.connections)


def test_a_server_that_stops_answers_what_it_has_taken() -> None:
    app = Slow()
    running = Running(app)
    idle, busy, arriving = running.connect(), running.connect(), running.connect()
    with idle, busy, arriving:
        idle.sendall(get("/"))
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        busy.sendall(get("/later"))
        arriving.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12")
        until(lambda: len(app.later) == 1 and running.server.held == 2)
        running.server.should_exit = True
        assert idle.recv(4096) == b""
        with pytest.raises(OSError):  # noqa: PT011  # nobody accepts any more
            running.connect()
        arriving.sendall(b"34")
        running.call(app.answer)
        for raw in (busy, arriving):
            answer = rest(raw)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
    running.stop()


def test_a_server_that_stops_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GRACE_SECONDS", 0.3)
    app = Slow()
    running = Running(app)
    with running.connect() as raw:
        raw.sendall(get("/later"))
        until(lambda: len(app.later) == 1)
        running.stop()
