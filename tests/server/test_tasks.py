"""What clients of every task are told: over HTTP, over the Open Inference Protocol, in the description of the contracts."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.journeys.tasks import CASES, START, fill
from tests.server.running import Client, Server, running

from loopwright import Home
from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.deploy.releases import serving
from loopwright.stores.prediction_log.read import find
from loopwright.turn import turn

WINE = {"id": "w1", "colour": 1.5, "alcohol": 1.0, "flavanoids": 1.2, "proline": 1.4}
ASKED: dict[str, dict[str, Any]] = {
    "wine": WINE,
    "diabetes": {"id": "d1", "bmi": 1.0, "pressure": 0.5, "s5": 0.2},
    "repairs": {"id": "r1", "size": 2.0, "age": 0.1},
    "parcels": {"id": "p1", "volume": 2.0, "distance": 3.0},
    "offers": {"id": "o1", "price": 0.3, "stars": 3, "search": "s1"},
    "machines": {"id": "m1", "heat": 6.0, "hum": 0.0},
}
VALUES = {"wine": ["barbera", "barolo", "grignolino"], "repairs": ["q0.1", "q0.5", "q0.9"], "parcels": ["cost", "weight"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with a loop of every task in service."""
    with Home(Settings(home=tmp_path_factory.mktemp("home"), by="tests"), SimulatedClock(START)) as home:
        for make in CASES.values():
            case = make()
            fill(home, case)
            turn(home, case.loop, as_of=START)
            assert serving(home, case.loop.name) is not None
        with running(home) as server:
            yield server


@pytest.mark.parametrize("loop", ASKED)
def test_an_answer_is_in_the_words_of_the_task(client: Client, server: Server, loop: str) -> None:
    reply = client.post(f"/loops/{loop}/predict", ASKED[loop])
    assert reply.status == 200, reply.body
    answer = reply.json
    assert answer["flags"] == []
    names = VALUES.get(loop, [])
    assert list(answer.get("values", {})) == names
    assert ("values" in answer) == bool(names)
    kinds: dict[str, Any] = {"wine": "barolo", "machines": True}
    assert answer["label"] == kinds.get(loop)
    if loop == "wine":
        assert sum(answer["values"].values()) == pytest.approx(1)
        assert answer["score"] == answer["values"]["barolo"] == max(answer["values"].values())
    elif loop == "repairs":
        assert answer["score"] == answer["values"]["q0.5"]
        assert list(answer["values"].values()) == sorted(answer["values"].values())
        assert 5 < answer["score"] < 13
    elif loop == "parcels":
        assert answer["score"] == answer["values"]["cost"] == pytest.approx(11, abs=1)
        assert answer["values"]["weight"] == pytest.approx(4, abs=1)
    elif loop == "diabetes":
        assert 100 < answer["score"] < 350
    found = find(server.home, answer["id"])
    assert found is not None
    assert (found[1].label, found[1].score) == (answer["label"], answer["score"])
    assert found[1].values == (list(answer["values"].values()) if names else None)


UNITS = {
    "wine": "margin",
    "diabetes": "number",
    "repairs": "number",
    "parcels": "number",
    "offers": "number",
    "machines": "binary logarithm of the strangeness",
}


@pytest.mark.parametrize("loop", ASKED)
def test_an_answer_is_explained(client: Client, server: Server, loop: str) -> None:
    """What the features contributed, with the base, is what was answered; the log knows the answer as any other."""
    asked = [ASKED[loop], {**ASKED[loop], "id": "x2"}]
    reply = client.post(f"/loops/{loop}/predict?explain=true", asked)
    assert reply.status == 200, reply.body
    plain = client.post(f"/loops/{loop}/predict", ASKED[loop]).json
    for answer in reply.json:
        assert answer["score"] == pytest.approx(plain["score"], rel=1e-6)
        assert (answer["unit"], "why" in answer) == (UNITS[loop], False)
        assert list(answer["contributions"]) == server.home.packages.manifest(answer["package"]).features
        raw = answer["base"] + sum(answer["contributions"].values())
        if UNITS[loop] == "number":
            assert raw == pytest.approx(answer["score"], rel=1e-5)
        assert answer.get("of") == {"wine": "barolo", "repairs": "q0.5", "parcels": "cost"}.get(loop)
        found = find(server.home, answer["id"])
        assert found is not None
        assert found[1].score == answer["score"]


@pytest.mark.parametrize("loop", ["wine", "diabetes"])
def test_tensors_are_explained(client: Client, loop: str) -> None:
    """Two more outputs, in JSON as they are and as binary tensors, the same numbers as named JSON gets."""
    kinds = {str: "BYTES", float: "FP64", int: "INT64"}
    asked = {**ASKED[loop], "at": "2024-02-12T10:00:00Z"}
    named = client.post(f"/loops/{loop}/predict?explain=true", asked).json
    body = {"inputs": [{"name": n, "datatype": kinds[type(v)], "shape": [2], "data": [v, v]} for n, v in asked.items()]}
    path = f"/v2/models/{loop}/infer"
    assert "contributions" not in [o["name"] for o in client.post(path, body).json["outputs"]]
    told = {o["name"]: o for o in client.post(f"{path}?explain=true", body).json["outputs"]}
    moved = told["contributions"]
    assert json.loads(moved["parameters"]["names"]) == list(named["contributions"])
    assert (moved["parameters"]["unit"], moved["shape"]) == (named["unit"], [2, len(named["contributions"])])
    assert moved["data"] == pytest.approx([*named["contributions"].values()] * 2, rel=1e-9)
    assert told["base"]["data"] == [named["base"]] * 2
    reply = client.post(f"{path}?explain=true", {**body, "outputs": [{"name": "score", "parameters": {"binary_data": True}}]})
    head = int(reply.headers["inference-header-content-length"])
    outputs = json.loads(reply.body[:head])["outputs"]
    assert [o["name"] for o in outputs] == ["score", "contributions", "base"]
    size = sum(o["parameters"]["binary_data_size"] for o in outputs)
    assert len(reply.body) == head + size
    assert np.frombuffer(reply.body[-16:], "<f8").tolist() == [named["base"]] * 2
    assert client.post(f"{path}?explain=perhaps", body).status == 422


def test_explanations_are_asked_for_in_one_way(client: Client) -> None:
    path = "/loops/wine/predict"
    assert "contributions" not in client.post(f"{path}?explain=false", WINE).json
    assert "contributions" in client.post(f"{path}?other=1&explain=true", WINE).json
    for query in ("explain=yes", "explain", "explain=true&explain=true", "explain=TRUE"):
        refused = client.post(f"{path}?{query}", WINE)
        assert refused.status == 422
        assert refused.json["error"]["fields"] == [{"field": "explain", "reason": "must be true or false, once"}]
    for query in ("a=1&" * 200 + "explain=true", "explain=%ff"):
        assert client.post(f"{path}?{query}", WINE).json["error"]["fields"][0]["field"] in ("query", "explain")
    assert client.post(f"{path}?explain=true", {**WINE, "alcohol": "much"}).status == 422
    many = client.post(f"{path}?explain=true", [WINE] * 1001)
    assert (many.status, many.json["error"]["code"]) == (413, "request_too_large")
    assert len(client.post(f"{path}?explain=true", [WINE] * 1000).json) == 1000


@pytest.mark.parametrize("loop", ASKED)
def test_tensors_are_in_the_words_of_the_task(client: Client, loop: str) -> None:
    kinds = {str: "BYTES", float: "FP64", int: "INT64"}
    asked = {**ASKED[loop], "at": "2024-02-12T10:00:00Z"}
    inputs = [{"name": n, "datatype": kinds[type(v)], "shape": [2], "data": [v, v]} for n, v in asked.items()]
    reply = client.post(f"/v2/models/{loop}/infer", {"inputs": inputs})
    assert reply.status == 200, reply.body
    told = {o["name"]: o for o in client.get(f"/v2/models/{loop}").json["outputs"]}
    found = {o["name"]: o for o in reply.json["outputs"]}
    assert {n: o["datatype"] for n, o in found.items()} == {n: o["datatype"] for n, o in told.items()}
    label = {"wine": ("BYTES", ["barolo"] * 2), "machines": ("BOOL", [True] * 2)}.get(loop)
    assert (label is None) == ("label" not in found)
    if label is not None:
        assert (found["label"]["datatype"], found["label"]["data"]) == label
    names = VALUES.get(loop, [])
    assert ("values" in found) == bool(names)
    if names:
        assert found["values"]["shape"] == [2, len(names)]
        assert json.loads(found["values"]["parameters"]["names"]) == names
        assert found["values"]["data"][: len(names)] == found["values"]["data"][len(names) :]
        assert told["values"]["shape"] == [-1, len(names)]


def test_the_contracts_say_what_an_answer_is(client: Client) -> None:
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    answers = {loop: schemas[f"{loop}.answer"]["properties"] for loop in ASKED}
    assert answers["wine"]["label"] == {"type": "string", "enum": VALUES["wine"]}
    assert answers["wine"]["score"]["maximum"] == 1
    assert answers["diabetes"]["label"] == {"type": "null"}
    assert "maximum" not in answers["diabetes"]["score"]
    assert list(answers["repairs"]["values"]["properties"]) == VALUES["repairs"]
    assert "values" not in answers["offers"]
    assert answers["machines"]["label"] == {"type": "boolean"}


def test_the_contracts_say_whether_answers_are_explained(client: Client) -> None:
    told = client.get("/openapi.json").json
    for loop, unit in UNITS.items():
        operation = told["paths"][f"/loops/{loop}/predict"]["post"]
        assert f"in the unit {unit!r}" in operation["description"]
        assert operation["parameters"][-1]["name"] == "explain"
    answer = client.post("/loops/wine/predict?explain=true", WINE).json
    assert answer.keys() <= told["components"]["schemas"]["wine.answer"]["properties"].keys()


def test_outcomes_are_taken_as_the_contract_has_them(client: Client) -> None:
    answer = client.post("/loops/wine/predict", {**WINE, "id": "w2"}).json
    assert client.post("/loops/wine/outcomes", {"id": "w2", "kind": "barbera"}).status == 202
    refused = client.post("/loops/diabetes/outcomes", {"id": "d1", "progression": "high"})
    assert refused.status == 422
    assert answer["label"] == "barolo"
