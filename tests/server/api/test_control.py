import asyncio
import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
from tests.deploy.loops import LOOP, opened, package
from tests.server.running import TOKEN, Client, Reply, Server
from tests.waiting import PATIENCE_SECONDS

from loopwright.base.errors import LedgerUnavailable, UsageError
from loopwright.base.settings import Settings
from loopwright.deploy import releases
from loopwright.records.evaluation import Leaderboard
from loopwright.records.releases import ReleaseState
from loopwright.server.api import control as door
from loopwright.server.api.access import Access
from loopwright.server.api.control import control, control_routes
from loopwright.stores.home import Home
from loopwright.verbs import VERBS, Verb
from loopwright.verbs.rollback import rollback


@pytest.fixture
def control_client(server: Server) -> Iterator[Client]:
    client = server.control()
    yield client
    client.close()


def test_the_table_of_verbs_is_the_api(control_client: Client) -> None:
    listed = {(v["verb"], v["method"]) for v in control_client.get("/api").json}
    assert listed == {(v.name, "POST" if v.changes else "GET") for v in VERBS if "http" in v.doors}
    for route in control_routes():
        other = "GET" if route.method == "POST" else "POST"
        assert control_client.ask(other, route.path, None if other == "GET" else {}).status == 405


def test_looking(control_client: Client, server: Server) -> None:
    status = control_client.get("/api/status")
    assert status.status == 200
    assert status.json["loops"][0]["name"] == LOOP
    history = control_client.get(f"/api/history?loop={LOOP}").json
    assert [r["action"] for r in history["releases"]][:1] == ["release"]
    missing = control_client.get("/api/history?loop=nobody")
    assert (missing.status, missing.json["error"]["code"]) == (404, "loop_not_found")
    answer = server.data().post(
        f"/loops/{LOOP}/predict", {"flight": "UA1", "origin": "JFK", "delay": 1, "hour": 3, "tail": None, "night": False}
    )
    trace = control_client.get(f"/api/trace?id={answer.json['id']}")
    assert trace.json["score"] == answer.json["score"]


def test_changing(control_client: Client, server: Server) -> None:
    home = server.home
    first = releases.serving(home, LOOP)
    assert first is not None
    other = package(home.packages, weight=0.08)
    releases.release(home, LOOP, other.digest, why="to be rolled back")
    reply = control_client.post("/api/rollback", {"loop": LOOP, "why": "over HTTP"})
    assert reply.status == 200
    assert reply.json["arms"][0]["package"] == first.champion.package
    now = releases.serving(home, LOOP)
    assert now is not None
    assert (now.action, now.why) == ("rollback", "over HTTP")


def test_heuristic_is_released_over_http_with_a_reason_that_history_keeps(control_client: Client, server: Server) -> None:
    home = server.home
    rule = package(home.packages, weight=0.13, phase=1, candidate="heuristic")
    row = {"rank": 1, "candidate": "heuristic", "phase": 1, "package": rule.digest, "measures": {}}
    row |= {"intervals": {}, "met": {}, "score": 0.5}
    board = {"turn": "t", "as_of": home.clock.now(), "examples": "", "rows": [row], "comparisons": [], "weights": {}}
    home.ledger.put(msgspec.convert({**board, "verdict": "", "winner": rule.digest}, Leaderboard), loop=LOOP, key="t")
    assert control_client.post("/api/release", {"loop": LOOP, "package": "heuristic"}).status == 400, "no reason"
    reply = control_client.post("/api/release", {"loop": LOOP, "package": "heuristic", "why": "it loses money"})
    assert (reply.status, reply.json["arms"][0]["package"]) == (200, rule.digest)
    last = control_client.get(f"/api/history?loop={LOOP}").json["releases"][-1]
    assert (last["why"], last["by"], last["arguments"]["package"]) == ("it loses money", reply.json["by"], "heuristic")


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (f"/api/predictions?loop={LOOP}&since=tomorrow", None, "`since`"),
        (f"/api/predictions?loop={LOOP}&since=2024-02-01&until=2024-01-01", None, "must be before `until` 2024-01-01"),
        (f"/api/predictions?loop={LOOP}&key=delay=3", None, "`key`"),
        ("/api/release", {"loop": LOOP, "package": "abcd", "despite_guard": True}, "`despite_guard` needs `why` REASON"),
        ("/api/rollback", {"loop": LOOP, "to": "2099-01-01"}, "`to`"),
    ],
)
def test_error_names_arguments_and_not_options_of_a_command(
    control_client: Client, path: str, body: dict[str, Any] | None, named: str
) -> None:
    reply = control_client.get(path) if body is None else control_client.post(path, body)
    error = reply.json["error"]
    said = " ".join(
        [error["message"], *(field["reason"] for field in error["fields"]), *(f"`{f['field']}`" for f in error["fields"])]
    )
    assert 400 <= reply.status < 500
    assert named in said
    assert "--" not in said


@pytest.mark.parametrize("header", ["idempotency_key", "x_request_id"])
def test_idempotency_key_sent_again_changes_nothing_and_gives_the_same_answer(
    control_client: Client, server: Server, header: str
) -> None:
    home = server.home
    for weight in (0.08, 0.09):
        releases.release(home, LOOP, package(home.packages, weight=weight).digest, why="to be rolled back")
    first = control_client.post("/api/rollback", {"loop": LOOP}, **{header: f"key-of-{header}"})
    generation = first.json["generation"]
    again = control_client.post("/api/rollback", {"loop": LOOP}, **{header: f'"key-of-{header}"'})
    assert (first.status, again.status) == (200, 200)
    assert {**again.json, "workers": []} == {**first.json, "workers": []}
    assert rollback(home, LOOP, request_id=f"key-of-{header}").generation == generation, "from another process"
    other = control_client.post("/api/rollback", {"loop": LOOP, "to": "yesterday"}, **{header: f"key-of-{header}"})
    assert (other.status, other.json["error"]["code"]) == (409, "request_conflict")
    assert control_client.post("/api/rollback", {"loop": LOOP}, **{header: "no key"}).status == 400
    assert control_client.post("/api/rollback", {"loop": LOOP}, **{header: "k" * 129}).status == 400
    now = releases.serving(home, LOOP)
    assert now is not None
    assert now.generation == generation


def test_history_names_who_changed_something_over_http(control_client: Client, server: Server) -> None:
    releases.release(server.home, LOOP, package(server.home.packages, weight=0.11).digest, why="to be rolled back")
    reply = control_client.post("/api/rollback", {"loop": LOOP}, x_loopwright_actor="bob")
    assert reply.json["by"] == "bob, as claimed, from 127.0.0.1"
    assert control_client.get(f"/api/history?loop={LOOP}").json["releases"][-1]["by"] == reply.json["by"]
    assert server.home.ledger.find(ReleaseState, loop=LOOP)[0].by == reply.json["by"], "in the ledger's own row, too"
    assert control_client.post("/api/rollback", {"loop": LOOP}, x_loopwright_actor="a, by token,").status == 400


def test_a_verb_that_could_change_something_twice_gets_no_http_door() -> None:
    def toggle(home: Home, loop: str) -> None:
        """Toggle."""

    with pytest.raises(UsageError, match="would do it twice"):
        door.parameters(Verb(name="toggle", stage="deploy", function=toggle, help="", example="", changes=True))


@pytest.mark.parametrize("verb", [v for v in VERBS if "http" in v.doors], ids=lambda v: v.name)
def test_no_verb_lets_a_client_name_a_location_or_change_something_twice(verb: Verb) -> None:
    assert "home" not in door.parameters(verb)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 422, "loop"),
        ({"loop": 7}, 422, "loop"),
        ({"loop": LOOP, "nonsense": 1}, 422, "nonsense"),
        (b"[]", 422, "object"),
        (b'{"loop":"a","loop":"b"}', 400, "twice"),
        (b"{" * 10_000, 400, ""),
        (b" " * 70_000, 413, ""),
        ({"loop": "nobody"}, 404, "nobody"),
        ({"loop": "../../etc"}, 400, "not valid"),
    ],
)
def test_bad_arguments(control_client: Client, body: object, status: int, word: str) -> None:
    reply = control_client.post("/api/rollback", body)
    assert reply.status == status
    assert word in reply.body.decode()


@pytest.mark.parametrize(
    "query",
    [
        *(f"limit={limit}" for limit in ("-1", "0", "1000000000", "x", "1.5", "")),
        "offset=-1",
        "since=soon",
        "until=-1",
        "before=-1",
    ],
)
def test_parameter_of_a_query_that_cannot_be_is_422_and_named(control_client: Client, query: str) -> None:
    reply = control_client.get(f"/api/predictions?loop={LOOP}&{query}")
    fields = [field["field"] for field in json.loads(reply.body)["error"]["fields"]]
    assert (reply.status, fields) == (422, [query.partition("=")[0]])


def test_changes_from_other_sites_are_refused(control_client: Client) -> None:
    for headers in ({"origin": "https://evil.example"}, {"sec_fetch_site": "cross-site"}, {"origin": "null"}):
        assert control_client.post("/api/rollback", {"loop": LOOP}, **headers).status == 403
    assert control_client.post("/api/rollback", {"loop": LOOP}, authorization="Bearer wrong").status == 401
    assert (
        control_client.post("/api/rollback", b"loop=late-arrival", content_type="application/x-www-form-urlencoded").status
        == 400
    )
    assert control_client.get("/api/status", host="evil.example").status == 421


def test_the_console_is_there(control_client: Client) -> None:
    page = control_client.get("/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert control_client.get(f"/loops/{LOOP}").status == 200
    assert control_client.get("/nothing").status == 404
    assert control_client.get("/livez").status == 200


def test_more_pages_at_once_than_can_be_made_are_refused_and_changes_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty clients: as many threads as there are slots, 503 with Retry-After for those beyond the queue."""
    monkeypatch.setattr(door, "SLOTS", {"read": (2, 5, 60.0), "verify": (1, 0, 0.0), "change": (1, 0, 0.0)})
    go, running = Event(), []

    def look(home: Home) -> str:
        """Look."""
        running.append(1)
        assert go.wait(60)
        return "seen"

    def change(home: Home, request_id: str = "") -> str:
        """Change."""
        return request_id

    verbs = [
        Verb(name="look", stage="data", function=look, help="", example="", changes=False),
        Verb(name="change", stage="data", function=change, help="", example="", changes=True),
    ]

    async def ask_all(home: Home) -> None:
        app = control(home, Access(msgspec.structs.replace(home.settings, token=TOKEN), always=True), verbs)
        tasks = [asyncio.ensure_future(called(app, "GET", "/api/look")) for _ in range(60)]
        async with asyncio.timeout(60):
            while sum(task.done() for task in tasks) < 53:
                await asyncio.sleep(0.005)
        assert len(running) <= 2
        page = await called(app, "GET", "/")
        assert (page.status, page.headers["retry-after"]) == (503, "2")
        assert b"2 others are being answered" in page.body
        changed = await called(app, "POST", "/api/change", b"{}", idempotency_key="k1")
        assert (changed.status, changed.json) == (200, "k1")
        go.set()
        replies = await asyncio.gather(*tasks)
        refused = [r for r in replies if r.status == 503]
        assert (len(refused), len(running)) == (53, 7)
        assert all(r.headers["retry-after"] for r in refused)

    with opened(tmp_path) as home:
        asyncio.run(ask_all(home))


@pytest.mark.parametrize("path", [f"/loops/{LOOP}/predict", "/v2/models/x/infer"])
def test_control_port_without_a_token_names_the_data_port_for_a_prediction(tmp_path: Path, path: str) -> None:
    with opened(tmp_path) as home:
        home.settings = msgspec.structs.replace(home.settings, port=8123)
        app = control(home, Access(home.settings, always=True))
        reply = asyncio.run(called(app, "POST", path, b"{}"))
        change = asyncio.run(called(app, "POST", "/api/rollback", b"{}"))
    assert (reply.status, "this is the control port: predictions and outcomes go to port 8123" in reply.body.decode()) == (
        404,
        True,
    )
    assert change.status == 403


async def called(app: Any, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
    """One request to an application, without a server."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    named = {"host": "localhost", "authorization": f"Bearer {TOKEN}", "content-type": "application/json", **headers}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(n.replace("_", "-").encode(), v.encode()) for n, v in named.items()], "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], found, b"".join(message["body"] for message in sent[1:]))


def test_a_verb_that_takes_a_path_gets_no_http_door() -> None:
    def fetch(home: Home, file: Path) -> None:
        """Fetch."""

    with pytest.raises(UsageError, match="never names a location"):
        door.parameters(Verb(name="fetch", stage="data", function=fetch, help="", example="", changes=False))


def test_what_goes_wrong_inside_stays_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(home: Home) -> None:
        """Break."""
        raise RuntimeError(f"secret of {home.path}")

    home = opened(tmp_path)
    app = control(
        home,
        Access(home.settings, always=True),
        [Verb(name="broken", stage="data", function=broken, help="", example="", changes=False)],
    )
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/api/broken", "raw_path": b"/api/broken", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 500
    body = sent[1]["body"]
    assert isinstance(body, bytes)
    assert msgspec.json.decode(body)["error"]["code"] == "internal"
    assert b"secret" not in body
    assert "secret" in capsys.readouterr().err


def exchanged(client: Client, sent: bytes) -> bytes:
    """Everything that the server answers on a fresh connection until it closes it."""
    with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
        raw.sendall(sent)
        found = b""
        while part := raw.recv(65536):
            found += part
        return found


GET = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
POST = GET.replace(b"GET /api/status", b"POST /api/rollback") + b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (GET + b"Connection: close\r\n\r\n", 200),
        (GET.replace(b"localhost", b"[::1]evil.test") + b"\r\n", 400),
        (GET.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n", 400),
        (GET + b"Host: localhost\r\n\r\n", 400),
        (GET + b"X-Again: 0123456789012345678901234567890\r\n" * 500 + b"\r\n", 431),
        (POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 415),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    ],
)
def test_heads_are_judged_as_on_the_data_plane(control_client: Client, sent: bytes, status: int) -> None:
    assert exchanged(control_client, sent).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_upgrade_is_ignored_and_the_arguments_read(control_client: Client, upgrade: str) -> None:
    body = b'{"loop": "nobody", "why": "over an upgrade"}'
    head = POST + f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMA\r\n".encode()
    sent = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = exchanged(control_client, sent + GET + b"Connection: close\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"404", b"200"]
    assert b"nobody" in answer


def test_client_that_leaves_amid_its_arguments_is_no_error_of_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/rollback",
        "raw_path": b"/api/rollback",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", b"Bearer " + TOKEN.encode()),
            (b"content-type", b"application/json"),
        ],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with Home(Settings(home=tmp_path, token=TOKEN)) as home:
        asyncio.run(control(home, Access(home.settings, always=True))(scope, receive, send))
    assert sent[0]["status"] == 400
    assert "Traceback" not in capsys.readouterr().err


def test_change_while_another_program_locks_the_ledger_is_503_to_be_sent_again(control_client: Client, server: Server) -> None:
    first = releases.serving(server.home, LOOP)
    other = package(server.home.packages, weight=0.09)
    server.home.close()
    asked = {"loop": LOOP, "package": other.digest, "why": "better", "force": True, "despite_guard": True, "request_id": "k"}
    with closing(sqlite3.connect(server.home.path / "ledger.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        reply = control_client.post("/api/release", asked)
        assert (reply.status, reply.json["error"]["code"], reply.headers["retry-after"]) == (503, "ledger_unavailable", "1")
        holder.execute("ROLLBACK")
    assert releases.serving(server.home, LOOP) == first
    assert control_client.post("/api/release", asked).status == 200


def test_writer_waits_for_the_ledger_as_long_as_its_home_says(tmp_path: Path) -> None:
    with Home(Settings(home=tmp_path), ledger_patience=0.05) as home:
        home.ledger.link("a", "b", "used")
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            with pytest.raises(LedgerUnavailable):
                home.ledger.link("a", "c", "used")


@pytest.mark.parametrize("verb", ["release", "rollback"])
def test_reason_that_is_too_long_is_422_and_names_its_field(control_client: Client, verb: str) -> None:
    reply = control_client.post(f"/api/{verb}", {"loop": LOOP, "why": "x" * 1001})
    assert (reply.status, [f["field"] for f in reply.json["error"]["fields"]]) == (422, ["why"])
