import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from tests.deploy.bodies import BAD, text
from tests.deploy.loops import LOOP, flight, opened, package
from tests.server.running import Client, Server, running
from tests.waiting import PATIENCE_SECONDS, until

from loopwright.base.clock import RealClock
from loopwright.base.ids import is_trace_id
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.server.api.routes import DATA_ROUTES
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.read import find, predictions

PREDICT = f"/loops/{LOOP}/predict"
OUTCOMES = f"/loops/{LOOP}/outcomes"
INFER = f"/v2/models/{LOOP}/infer"


def test_one_prediction(client: Client, server: Server) -> None:
    reply = client.post(PREDICT, flight())
    assert reply.status == 200
    answer = reply.json
    assert set(answer) == {"id", "score", "label", "package", "arm", "flags"}
    assert is_trace_id(answer["id"])
    assert reply.headers["x-request-id"] == answer["id"]
    assert (answer["arm"], answer["flags"]) == ("champion", [])
    found = find(server.home, answer["id"])
    assert found is not None
    assert found[0] == LOOP
    assert (found[1].score, found[1].context) == (answer["score"], {"wind": 20.0, "gust": None})


def test_a_package_from_before_says_that_it_explains_nothing(client: Client) -> None:
    reply = client.post(f"{PREDICT}?explain=true", flight())
    assert (reply.status, reply.json["error"]["code"]) == (422, "not_explained")
    assert "made before answers were explained" in reply.json["error"]["message"]
    told = client.get("/openapi.json").json["paths"][PREDICT]["post"]
    assert "made before answers were explained" in told["description"]
    assert client.post(f"{PREDICT}?explain=false", flight()).status == 200


def test_a_list_is_answered_in_order(client: Client) -> None:
    rows = [flight(i, delay=float(i)) for i in range(1000)]
    answers = client.post(PREDICT, rows).json
    assert len(answers) == 1000
    scores = [a["score"] for a in answers]
    assert scores == sorted(scores)
    assert len({a["id"] for a in answers}) == 1000
    assert client.post(PREDICT, rows[7]).json["score"] == pytest.approx(scores[7], abs=1e-6)


def test_strange_values_are_served_and_flagged(client: Client) -> None:
    answer = client.post(PREDICT, flight(delay=5000, origin="XXX", hour=-3)).json
    assert set(answer["flags"]) == {"out_of_range:delay", "out_of_range:hour", "new_category:origin", "missing_context:weather"}


@pytest.mark.parametrize("bad", BAD, ids=lambda b: b.name)
def test_bad_bodies_get_4xx_that_names_what_is_wrong(client: Client, bad: Any) -> None:
    reply = client.post(PREDICT, bad.body)
    assert reply.status == bad.status
    error = reply.json["error"]
    assert set(error) == {"code", "message", "fields", "id"}
    named = error["message"] + json.dumps(error["fields"], ensure_ascii=False)
    assert all(word in named for word in bad.words), named
    assert error["id"]
    assert "Traceback" not in named
    if reply.status == 422:
        assert 1 <= len(error["fields"]) <= 20


def test_after_all_that_the_server_lives(client: Client, server: Server) -> None:
    assert len(BAD) >= 100
    for bad in BAD[:20]:
        client.post(PREDICT, bad.body)
    assert client.post(PREDICT, flight()).status == 200
    assert server.process.poll() is None


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "application/json; charset=latin-1", ""]
)
def test_what_is_not_json_by_its_type_is_415(client: Client, media: str) -> None:
    assert client.post(PREDICT, flight(), content_type=media).status == 415


def test_json_by_its_type(client: Client) -> None:
    assert client.post(PREDICT, flight(), content_type="Application/JSON; charset=UTF-8").status == 200


def test_compressed_bodies_are_415(client: Client) -> None:
    import gzip

    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        assert client.post(PREDICT, bomb, content_encoding=encoding).status == 415
    assert client.post(PREDICT, bomb).status == 400


def test_a_body_over_the_limit_is_413(client: Client) -> None:
    huge = b" " * (10 * 2**20) + text(flight())
    reply = client.post(PREDICT, huge)
    assert (reply.status, reply.json["error"]["code"]) == (413, "request_too_large")
    assert client.post(PREDICT, b" " * (9 * 2**20) + text(flight())).status == 200


def test_a_body_over_the_limit_is_refused_by_its_length_alone(client: Client) -> None:
    with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
        raw.sendall(head.encode() + b"[")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_over_the_limit_is_cut_off(client: Client) -> None:
    with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
        raw.sendall(
            f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
        for _ in range(11):
            raw.sendall(chunk)
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "..",
        "%2e%2e",
        "late-arrival%00",
        "late-arrival/..",
        "Late-Arrival",
        "late_arrivаl",
        "x" * 10_000,
        "late%2darrival",
        ".x",
        "-x",
    ],
)
def test_names_that_are_no_loop(client: Client, server: Server, name: str) -> None:
    before = sorted(p.name for p in server.home.path.iterdir())
    path = f"/loops/{name}/predict".encode()
    with socket.create_connection((client.host, client.port), PATIENCE_SECONDS) as raw:
        raw.sendall(
            b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        )
        status = raw.recv(4096).split(b" ")[1]
    assert status in (b"400", b"404"), status
    assert sorted(p.name for p in server.home.path.iterdir()) == before
    assert client.post(f"/loops/{LOOP}/predict", flight()).status == 200


def test_methods(client: Client) -> None:
    reply = client.get(PREDICT)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert client.ask("DELETE", PREDICT).status == 405
    assert client.ask("PUT", "/livez", b"{}").status == 405
    assert client.ask("HEAD", "/livez").status == 200
    assert client.ask("POST", "/", {}).status == 405
    assert client.get("/loops").status == 404


def test_ids_of_requests(client: Client) -> None:
    given = "4bf92f3577b34da6a3ce929d0e0e4736"
    first = client.post(PREDICT, flight(1), traceparent=f"00-{given}-00f067aa0ba902b7-01").json
    assert first["id"] == given
    assert client.post(PREDICT, flight(1), traceparent=f"00-{given}-00f067aa0ba902b7-01").json == first
    another = client.post(PREDICT, flight(2), traceparent=f"00-{given}-00f067aa0ba902b7-01")
    assert another.status == 200
    assert another.json["id"] != given
    assert client.post(PREDICT, flight(1), traceparent="00-" + "0" * 32 + "-00f067aa0ba902b7-01").json["id"] != "0" * 32

    uuid = "01890A5D-AC96-774B-BCCE-B302099A8057"
    assert client.post(PREDICT, flight(3), x_request_id=uuid).json["id"] == uuid.replace("-", "").lower()
    words = client.post(PREDICT, flight(4), x_request_id="order 17".replace(" ", "#"))
    assert is_trace_id(words.json["id"])
    assert client.post(PREDICT, flight(4), x_request_id="order#17").json == words.json
    conflict = client.post(PREDICT, flight(5), x_request_id="order#17")
    assert (conflict.status, conflict.json["error"]["code"]) == (409, "request_conflict")
    assert conflict.json["error"]["id"] == "order#17"
    assert client.post(PREDICT, flight(4), x_request_id="x" * 129).status == 400


def test_a_client_says_how_long_it_waits(client: Client) -> None:
    assert client.post(PREDICT, flight(), x_timeout_ms="0").json["flags"] == ["degraded"]
    assert client.post(PREDICT, flight(), x_timeout_ms="59000").json["flags"] == []
    assert client.post(PREDICT, [flight(i) for i in range(500)], x_timeout_ms="0").json[7]["flags"] == ["degraded"]
    for wrong in ("-1", "1.5", "soon", "1" * 10, ""):
        reply = client.post(PREDICT, flight(), x_timeout_ms=wrong)
        assert (reply.status, reply.json["error"]["code"]) == (400, "request_malformed")


def test_a_repeated_list_is_logged_once(client: Client, server: Server) -> None:
    rows = [flight(i, flight=f"again-{i}") for i in range(3)]
    first = client.post(PREDICT, rows, x_request_id="again-and-again")
    again = client.post(PREDICT, rows, x_request_id="again-and-again")
    assert first.json == again.json
    assert client.post(PREDICT, rows[:2], x_request_id="again-and-again").status == 409
    assert client.post(PREDICT, [rows[0], flight(7)], x_request_id="again-and-again").status == 409
    units = predictions(server.home, LOOP, columns=["_id", "_unit"])["_unit"].to_pylist()
    assert sorted(u for u in units if u.startswith("again")) == ["again-0", "again-1", "again-2"]


def test_outcomes(client: Client) -> None:
    answer = client.post(PREDICT, flight(50)).json
    reply = client.post(OUTCOMES, {"id": answer["id"], "arr_delay": 31.0})
    assert (reply.status, reply.json["accepted"]) == (202, 1)
    again = client.post(OUTCOMES, {"id": answer["id"], "arr_delay": 31.0})
    assert again.json["outcomes"] == reply.json["outcomes"]
    unknown = client.post(
        OUTCOMES,
        [
            {"id": "f" * 32, "arr_delay": 1.0},
            {"flight": "UA-never", "arr_delay": 1.0, "landed_at": "2024-05-01T10:00:00+02:00"},
        ],
    )
    assert (unknown.status, unknown.json["accepted"]) == (202, 2)
    future = client.post(OUTCOMES, {"flight": "UA50", "arr_delay": 1.0, "landed_at": "2099-01-01T00:00:00Z"})
    assert future.json["outcomes"][0]["flags"] == ["future"]
    assert client.post(OUTCOMES, {"flight": "UA50", "arr_delay": 1.0, "landed_at": "2024-05-01T10:00:00"}).status == 422
    assert client.post(OUTCOMES, {"arr_delay": 1.0}).status == 422
    assert client.post(OUTCOMES, b"{").status == 400
    assert client.post("/loops/nobody/outcomes", {"arr_delay": 1.0}).status == 404


def tensors(**changes: Any) -> dict[str, Any]:
    kinds = {"flight": "BYTES", "origin": "BYTES", "delay": "FP64", "hour": "INT64", "tail": "BYTES", "night": "BOOL"}
    row = flight()
    inputs = [{"name": n, "datatype": t, "shape": [2], "data": [row[n], row[n]]} for n, t in kinds.items()]
    for i in inputs:
        i.update(changes.get(str(i["name"]), {}))
    return {"id": "q1", "inputs": inputs}


def test_open_inference_protocol(client: Client) -> None:
    metadata = client.get(f"/v2/models/{LOOP}").json
    assert {(i["name"], i["datatype"]) for i in metadata["inputs"]} >= {
        ("delay", "FP64"),
        ("pushed_back_at", "BYTES"),
        ("night", "BOOL"),
    }
    told = {i["name"]: i.get("parameters") for i in metadata["inputs"]}
    assert (told["pushed_back_at"], told["tail"], told["delay"]) == ({"optional": True}, {"nullable": True}, None)
    reply = client.post(INFER, tensors())
    assert reply.status == 200
    found = {o["name"]: o for o in reply.json["outputs"]}
    assert (reply.json["model_name"], reply.json["id"], found["score"]["shape"]) == (LOOP, "q1", [2])
    assert reply.json["model_version"] == metadata["versions"][0]
    only = client.post(INFER, {**tensors(), "outputs": [{"name": "label"}]}).json["outputs"]
    assert [o["name"] for o in only] == ["label"]
    nested = client.post(INFER, tensors(delay={"shape": [2, 1], "data": [[12.5], [12.5]]}))
    assert nested.json["outputs"][0]["data"] == found["score"]["data"]
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{LOOP}/ready"):
        assert client.get(path).status == 200
    assert client.get("/v2/models/nobody/ready").status == 404


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"delay": {"datatype": "BYTES"}}, "inputs[2].datatype"),
        ({"delay": {"shape": [3]}}, "inputs[2].shape"),
        ({"delay": {"shape": [1, 2]}}, "inputs[2].shape"),
        ({"delay": {"shape": "2"}}, "inputs[2].shape"),
        ({"delay": {"shape": [2], "data": "xx"}}, "inputs[2].data"),
        ({"delay": {"data": [1.0, "x"]}}, "[1].delay"),
        ({"delay": {"shape": [1], "data": [1.0]}}, "different lengths"),
        ({"delay": {"name": "hour"}}, "twice"),
        ({"delay": {"name": "nothing"}}, "not in the contract"),
        ({"delay": {"name": None}}, "inputs[2].name"),
        ({"flight": {"data": [None, "x"]}}, "[0].flight"),
    ],
)
def test_bad_tensors_are_named(client: Client, changes: Any, word: str) -> None:
    reply = client.post(INFER, tensors(**changes))
    assert reply.status == 422
    assert isinstance(reply.json["error"], str)
    assert word in reply.json["error"]


def test_bad_inference_requests(client: Client) -> None:
    assert client.post(INFER, b"[]").status == 422
    assert client.post(INFER, {"inputs": []}).status == 422
    assert client.post(INFER, {**tensors(), "id": 7}).status == 422
    assert client.post(INFER, {**tensors(), "outputs": [{"name": "secret"}]}).status == 422
    assert client.post(INFER, b'{"id":"a","id":"b"}').status == 400
    assert client.post(INFER, tensors(), inference_header_content_length="10").status == 400
    assert client.post("/v2/models/nobody/infer", tensors()).status == 404


def _arrays_without_items(schema: Any, at: str = "") -> list[str]:
    """Where an array does not say what is in it: generated clients leave such a field out."""
    if isinstance(schema, list):
        return [found for i, each in enumerate(schema) for found in _arrays_without_items(each, f"{at}/{i}")]
    if not isinstance(schema, dict):
        return []
    here = [at] if schema.get("type") == "array" and "items" not in schema else []
    return here + [found for name, each in schema.items() for found in _arrays_without_items(each, f"{at}/{name}")]


def test_contracts_are_described(client: Client) -> None:
    document = client.get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert described == {(route.method, route.path.replace("{loop}", LOOP)) for route in DATA_ROUTES}
    Draft202012Validator.check_schema({"$defs": document["components"]["schemas"]})
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    assert document["servers"][0]["url"] == "/"
    assert _arrays_without_items(document) == []
    schema = document["components"]["schemas"][f"{LOOP}.request"]
    assert schema["properties"]["tail"]["type"] == ["string", "null"]
    assert "pushed_back_at" not in schema["required"]


def test_metrics(client: Client) -> None:
    client.post(PREDICT, flight(delay=9999.0))
    client.post(PREDICT, b"{")
    found = client.get("/metrics").body.decode()
    samples = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in found.splitlines() if line[0] != "#"}
    assert samples[f'loopwright_predictions_total{{arm="champion",loop="{LOOP}"}}'] > 0
    assert samples[f'loopwright_flags_total{{arm="champion",flag="out_of_range",loop="{LOOP}"}}'] > 0
    assert samples[f'loopwright_request_errors_total{{code="request_malformed",loop="{LOOP}"}}'] > 0
    assert sum(name.startswith("loopwright_serving_info") for name in samples) == 1


def test_many_clients_at_once_get_their_own_answers(server: Server) -> None:
    def run(start: int) -> list[tuple[float, float]]:
        client = server.data()
        pairs = [(float(i), client.post(PREDICT, flight(i, delay=float(i))).json["score"]) for i in range(start, start + 60)]
        client.close()
        return pairs

    with ThreadPoolExecutor(8) as pool:
        pairs = [pair for found in pool.map(run, range(0, 480, 60)) for pair in found]
    assert len(pairs) == 480
    scores = [score for _, score in sorted(pairs)]
    assert scores == sorted(scores)


def test_hosts_that_are_not_ours_are_refused(client: Client) -> None:
    assert client.get("/livez", host="evil.example").status == 200
    assert client.get("/metrics", host="evil.example").status == 421
    assert client.post(PREDICT, flight(), host="evil.example:80").status == 421
    for host in ("localhost", "127.0.0.1:1", "[::1]:80"):
        assert client.get("/livez", host=host).status == 200


def test_a_loop_that_cannot_be_served_is_not_ready_and_the_others_are(tmp_path: Path) -> None:
    home = opened(tmp_path, RealClock())
    good = package(home.packages)
    bad = package(home.packages, weight=0.07, loop="another-loop")
    releases.release(home, LOOP, good.digest, why="first")
    releases.release(home, "another-loop", bad.digest, why="first")
    model = home.path / "packages" / bad.digest / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    with running(home) as server:
        client = server.data()
        for path in (f"/loops/{LOOP}/ready", f"/v2/models/{LOOP}/ready"):
            reply = client.get(path)
            assert (reply.status, reply.json) == (200, {"name": LOOP, "ready": True})
        for path in ("/loops/another-loop/ready", "/v2/models/another-loop/ready"):
            assert client.get(path).status == 503
            assert client.ask("HEAD", path).status == 503
        for path in ("/readyz", "/v2/health/ready"):
            reply = client.get(path)
            assert (reply.status, reply.json["ready"], reply.json["unready"]) == (503, False, ["another-loop"])
        assert client.get("/livez").status == 200
        assert client.get("/loops/nobody/ready").status == 404
        assert client.post(PREDICT, flight()).status == 200
        model.write_bytes(whole)
        until(lambda: client.get("/readyz").status == 200)
        assert client.get("/loops/another-loop/ready").status == 200
        model.write_bytes(whole[:-1])
        third = package(home.packages, weight=0.08, loop="another-loop")
        (home.path / "packages" / third.digest / "model.onnx").write_bytes(b"")
        release_files.write(release_files.path_of(home, "another-loop"), _named(home, third.digest))
        until(lambda: b"loopwright_packages_refused_total" in client.get("/metrics").body)
        assert client.get("/readyz").status == 200  # the one before goes on


def _named(home: Home, digest: str) -> release_files.ReleaseFile:
    copy = release_files.read(release_files.path_of(home, "another-loop"))
    assert copy is not None
    arms = [msgspec.structs.replace(copy.state.champion, package=digest)]
    return msgspec.structs.replace(copy, state=msgspec.structs.replace(copy.state, arms=arms, generation=9))
