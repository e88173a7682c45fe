"""Clients of the Open Inference Protocol that are not ours, over HTTP: Triton's, curl, and one written from the specification."""

import json
import shutil
import struct
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tests.deploy.loops import LOOP, flight, opened, package
from tests.server.api.test_oip import KINDS, tensors_of
from tests.server.running import Client, Server, running
from tests.services import needed
from tritonclient.utils import InferenceServerException

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.server.api import repository
from loopwright.stores.prediction_log.read import find

INFER = f"/v2/models/{LOOP}/infer"


@pytest.fixture
def tritons(client: Client) -> Iterator[Any]:
    theirs = triton.InferenceServerClient(f"{client.host}:{client.port}")
    yield theirs
    theirs.close()


def inputs(rows: list[dict[str, Any]], *, binary: bool) -> list[Any]:
    found = []
    for name, datatype, values in tensors_of(rows):
        tensor = triton.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values, binary_data=binary)
        found.append(tensor)
    return found


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [flight(i, delay=float(10 * i), tail=None if i else "N1") for i in range(3)]


@pytest.fixture
def expected(client: Client, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = client.post(f"/loops/{LOOP}/predict", rows).json
    return answers


def test_a_client_of_triton_asks_what_there_is(tritons: Any) -> None:
    assert tritons.is_server_live()
    assert tritons.is_server_ready()
    assert tritons.get_server_metadata()["extensions"][0] == "binary_tensor_data"
    [version] = tritons.get_model_metadata(LOOP)["versions"]
    assert tritons.is_model_ready(LOOP)
    assert tritons.is_model_ready(LOOP, version)
    assert tritons.get_model_metadata(LOOP, version[:8])["versions"] == [version]
    assert not tritons.is_model_ready(LOOP, "0" * 64)
    assert not tritons.is_model_ready("nobody")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("outputs", ["default", "binary", "json", "mixed"])
def test_a_client_of_triton_gets_right_answers(
    tritons: Any, server: Server, rows: list[dict[str, Any]], expected: list[dict[str, Any]], binary_in: bool, outputs: str
) -> None:
    binary = {"default": None, "binary": [True, True, True], "json": [False] * 3, "mixed": [True, False, True]}[outputs]
    names = ("score", "label", "id")
    wanted = binary and [triton.InferRequestedOutput(n, binary_data=b) for n, b in zip(names, binary, strict=True)]
    [version] = tritons.get_model_metadata(LOOP)["versions"]
    for model_version in ("", version):
        answer = tritons.infer(
            LOOP, inputs(rows, binary=binary_in), model_version, outputs=wanted, request_id="7", parameters={"null": "-"}
        )
        assert answer.get_response()["id"] == "7"
        assert answer.get_response()["model_version"] == version
        assert answer.as_numpy("score").tolist() == pytest.approx([a["score"] for a in expected], abs=1e-6)
        assert answer.as_numpy("label").tolist() == [a["label"] for a in expected]
        if wanted is None:
            assert answer.as_numpy("arm").tolist() == [b"champion"] * 3
            assert answer.as_numpy("package").tolist() == [version.encode()] * 3
        found = [id.decode() if isinstance(id, bytes) else id for id in answer.as_numpy("id").tolist()]
        logged = [find(server.home, id) for id in found]
        assert [found and found[1].request["tail"] for found in logged] == ["N1", None, None]


def test_a_client_of_triton_is_told_what_is_wrong(tritons: Any, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(InferenceServerException, match="no version of model"):
        tritons.infer(LOOP, inputs(rows, binary=True), "0" * 64)
    with pytest.raises(InferenceServerException, match=r"\[0\].delay: is missing"):
        tritons.infer(LOOP, [t for t in inputs(rows, binary=True) if t.name() != "delay"])
    with pytest.raises(InferenceServerException, match="send JSON"):
        tritons.infer(LOOP, inputs(rows, binary=True), request_compression_algorithm="gzip")


def test_many_rows_in_binary_are_quick_and_right(tritons: Any, client: Client) -> None:
    rows = [flight(i, delay=float(i % 60), tail="N1") for i in range(10_000)]
    scores = tritons.infer(LOOP, inputs(rows, binary=True), outputs=[triton.InferRequestedOutput("score")]).as_numpy("score")
    few = client.post(f"/loops/{LOOP}/predict", rows[:60]).json
    assert scores[:60].tolist() == pytest.approx([a["score"] for a in few], abs=1e-6)
    assert scores.reshape(-1)[: 60 * 166].reshape(166, 60).std(axis=0).max() < 1e-6


def test_curl(client: Client, rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    curl = needed(shutil.which("curl"), "curl", "curl")
    tensors = [{"name": n, "datatype": t, "shape": [3], "data": [row[n] for row in rows]} for n, t in KINDS.items()]
    command = [curl, "-sS", "-H", "Content-Type: application/json", "-d", "@-", f"http://{client.host}:{client.port}{INFER}"]
    done = subprocess.run(command, input=json.dumps({"inputs": tensors}), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = {o["name"]: o["data"] for o in json.loads(done.stdout)["outputs"]}
    assert found["score"] == pytest.approx([a["score"] for a in expected], abs=1e-6)


def test_a_client_written_from_the_specification(
    client: Client, rows: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    """As KServe's do: metadata first, then each column as its metadata says; once in JSON, once in binary, read by hand."""
    url = f"http://{client.host}:{client.port}"

    def ask(path: str, body: bytes | None = None, **headers: str) -> tuple[dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with urllib.request.urlopen(urllib.request.Request(url + path, body, named), timeout=600) as answer:
            return {k.lower(): v for k, v in answer.headers.items()}, answer.read()

    metadata = json.loads(ask(f"/v2/models/{LOOP}")[1])
    assert json.loads(ask(f"/v2/models/{LOOP}/ready")[1]) == {"name": LOOP, "ready": True}
    tensors, parts = [], []
    for column in metadata["inputs"]:
        values = [row[column["name"]] for row in rows]
        tensors.append({"name": column["name"], "datatype": column["datatype"], "shape": [len(values)], "data": values})
        if column["datatype"] == "BYTES":
            texts = [("-" if v is None else v).encode() for v in values]
            parts.append(b"".join(struct.pack("<I", len(t)) + t for t in texts))
        else:
            parts.append(struct.pack(f"<3{ {'FP64': 'd', 'INT64': 'q', 'BOOL': '?'}[column['datatype']] }", *values))
    _, plain = ask(INFER, json.dumps({"id": "a", "inputs": tensors}).encode(), content_type="application/json")
    found = {o["name"]: o for o in json.loads(plain)["outputs"]}
    assert found["score"]["data"] == pytest.approx([a["score"] for a in expected], abs=1e-6)

    lean = [
        {k: v for k, v in t.items() if k != "data"} | {"parameters": {"binary_data_size": len(p)}}
        for t, p in zip(tensors, parts, strict=True)
    ]
    outputs = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "label"}]
    head = json.dumps({"inputs": lean, "outputs": outputs, "parameters": {"null": "-"}}).encode()
    headers, body = ask(
        INFER,
        b"".join([head, *parts]),
        content_type="application/octet-stream",
        inference_header_content_length=str(len(head)),
    )
    length = int(headers["inference-header-content-length"])
    assert headers["content-type"] == "application/octet-stream"
    told = json.loads(body[:length])["outputs"]
    assert told[0]["parameters"]["binary_data_size"] == len(body) - length == 24
    assert np.frombuffer(body[length:], "<f8").tolist() == pytest.approx(found["score"]["data"], abs=1e-6)
    assert told[1]["data"] == [a["label"] for a in expected]


@pytest.mark.parametrize("site", [{"origin": "https://evil.example"}, {"sec_fetch_site": "cross-site"}])
def test_a_page_of_another_site_is_not_taken_for_such_a_client(client: Client, site: dict[str, str]) -> None:
    body = json.dumps({"inputs": []}).encode()
    assert client.post(INFER, body, content_type="", **site).status == 415
    assert client.post(INFER, body, content_type="text/plain").status == 415


def test_a_client_of_triton_reads_the_repository(tritons: Any, client: Client, rows: list[dict[str, Any]]) -> None:
    [version] = tritons.get_model_metadata(LOOP)["versions"]
    assert tritons.get_model_repository_index() == [{"name": LOOP, "version": version, "state": "READY", "reason": ""}]
    for body, status in (('{"ready": true}', 200), ('{"ready": false}', 200), ("{}", 200), ('{"ready": 1}', 422), ("[]", 422)):
        assert client.post("/v2/repository/index", body.encode()).status == status
    for model_version in ("", version):
        config = tritons.get_model_config(LOOP, model_version)
        assert {t["name"]: t["data_type"] for t in config["input"]}["delay"] == "TYPE_FP64"
        assert {t["name"]: t["data_type"] for t in config["output"]}["label"] == "TYPE_BOOL"
    assert next(t for t in config["input"] if t["name"] == "pushed_back_at")["optional"]
    [before] = tritons.get_inference_statistics(LOOP)["model_stats"]
    client.post(f"/loops/{LOOP}/predict", rows)
    client.post(f"/loops/{LOOP}/predict", b"{")
    [after] = tritons.get_inference_statistics(LOOP, version)["model_stats"]
    assert after["inference_count"] - before["inference_count"] == len(rows)
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert [s["name"] for s in tritons.get_inference_statistics()["model_stats"]] == [LOOP]
    for act in (tritons.load_model, tritons.unload_model):
        with pytest.raises(InferenceServerException, match="loopwright release"):
            act(LOOP)
    assert tritons.is_model_ready(LOOP)


def _plain(values: Any) -> list[Any]:
    return [v.decode() if isinstance(v, bytes) else v for v in values.ravel().tolist()]


def test_what_the_client_of_kserve_sends_is_answered(
    client: Client, rows: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    """`kserve.InferenceRESTClient` (0.15) writes the model into the body, and null for what it leaves open."""
    tensors = [
        {"name": name, "shape": list(values.shape), "datatype": datatype, "data": _plain(values), "parameters": {}}
        for name, datatype, values in tensors_of(rows)
    ]
    body = {
        "id": "q",
        "model_name": LOOP,
        "model_version": None,
        "inputs": tensors,
        "parameters": {"null": "-"},
        "outputs": None,
    }
    answer = client.post(INFER, body)
    assert answer.status == 200, answer.body
    outputs = {o["name"]: o["data"] for o in answer.json["outputs"]}
    assert outputs["score"] == pytest.approx([a["score"] for a in expected], abs=1e-6)
    assert client.get("/v2/").json == client.get("/v2").json


def test_protocol_v1_gets_the_answers_of_predict(
    client: Client, rows: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    assert client.get("/").json == {"status": "alive"}
    assert client.get("/v1/models").json == {"models": [LOOP]}
    assert client.get(f"/v1/models/{LOOP}").json == {"name": LOOP, "ready": True}
    answer = client.post(f"/v1/models/{LOOP}:predict", {"instances": rows, "signature_name": "x"})
    assert [a["score"] for a in answer.json["predictions"]] == pytest.approx([a["score"] for a in expected])
    assert [a["label"] for a in answer.json["predictions"]] == [a["label"] for a in expected]
    invalid: list[Any] = [{}, {"instances": []}, {"instances": 1}, [], {"instances": [{**rows[0], "delay": "late"}]}]
    for bad in invalid:
        refused = client.post(f"/v1/models/{LOOP}:predict", bad)
        assert refused.status == 422
        assert isinstance(refused.json["error"], str)
    assert "delay" in refused.json["error"]
    for path in ("/v1/models/nobody", "/v1/models/nobody:predict"):
        assert client.ask("POST" if ":" in path else "GET", path, {} if ":" in path else None).status == 404


def test_metadata_of_a_loop_named_stats_stands_before_the_statistics_of_all(tmp_path: Path) -> None:
    home = opened(tmp_path, RealClock())
    digest = package(home.packages, loop="stats").digest
    releases.release(home, "stats", digest, why="first")
    with running(home) as server:
        client = server.data()
        assert client.get("/v2/models/stats").json == client.get(f"/v2/models/stats/versions/{digest}").json
        assert client.get("/v2/models/stats").json["name"] == "stats"
        assert [one["name"] for one in client.get("/v2/models/stats/stats").json["model_stats"]] == ["stats"]


def test_repository_index_lists_what_is_ready_where_it_is_asked_for() -> None:
    listed = {ready: [m["name"] for m in repository.index(["a", "b"], ["b"], [], ready=ready)] for ready in (False, True)}
    assert listed == {False: ["a", "b"], True: ["a"]}
    assert [repository.only_ready(body) for body in (b"", b"{}", b'{"ready": true}')] == [False, False, True]
