"""A fleet behind one address: routing, going back over HTTP while asked, the Open Inference Protocol."""

from pathlib import Path

from tests.deploy.loops import LOOP, opened, package
from tests.server.running import Client, running
from tests.waiting import until

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.deploy.serving.segment_router import MISSING
from loopwright.records.package import Segment
from loopwright.stores.prediction_log.read import find

TAILS = [f"N{i}" for i in range(120)]


def ask(client: Client, tails: list[str | None]) -> list[dict[str, object]]:
    rows = [
        {"flight": f"UA{i}", "origin": "JFK", "delay": 1, "hour": 3, "tail": t, "night": False} for i, t in enumerate(tails)
    ]
    reply = client.post(f"/loops/{LOOP}/predict", rows)
    assert reply.status == 200, reply.body
    return list(reply.json)


def settled(client: Client, tails: list[str | None]) -> list[dict[str, object]]:
    """The answers once every package has been loaded."""
    answers: list[dict[str, object]] = []

    def loaded() -> bool:
        answers[:] = ask(client, tails)
        return not any(MISSING in str(a["flags"]) for a in answers)

    until(loaded)
    return answers


def test_a_hundred_segments_behind_one_address(tmp_path: Path) -> None:
    home = opened(tmp_path, RealClock())
    own = package(home.packages)
    made = [
        package(home.packages, weight=0.06 + i % 5 / 100, segment=Segment(column="tail", value=t)) for i, t in enumerate(TAILS)
    ]
    segments = {t: p.digest for t, p in zip(TAILS, made, strict=True)}
    releases.release(home, LOOP, own.digest, fleet="tail", segments=segments, why="a fleet")
    with running(home) as server:
        client, control = server.data(), server.control()
        everybody: list[str | None] = [*TAILS, None, "never seen"]
        first = ask(client, everybody)
        assert {a["package"] for a in first if MISSING in str(a["flags"])} <= {own.digest}
        answers = settled(client, everybody)
        assert [a["package"] for a in answers] == [*segments.values(), own.digest, own.digest]
        assert [a.get("segment") for a in answers] == [*TAILS, None, None]
        assert "segment" not in answers[-1]
        kept = find(home, str(answers[7]["id"]))
        assert kept is not None
        assert (kept[1].segment, kept[1].package) == ("N7", segments["N7"])

        reply = control.post("/api/rollback", {"loop": LOOP, "segment": "N7", "why": "over HTTP"})
        assert reply.status == 200, reply.body
        until(lambda: ask(client, ["N7"])[0]["package"] == own.digest)
        assert [a["package"] for a in settled(client, ["N6", "N7", "N8"])] == [segments["N6"], own.digest, segments["N8"]]
        assert control.get(f"/api/history?loop={LOOP}&segment=N7").json["segment"] == "N7"

        columns = {"flight": ["UA1", "UA2"], "origin": ["JFK"] * 2, "tail": ["N1", "N7"]}
        inputs = [{"name": n, "datatype": "BYTES", "shape": [2], "data": v} for n, v in columns.items()]
        inputs += [
            {"name": "delay", "datatype": "FP64", "shape": [2], "data": [1.0, 1.0]},
            {"name": "hour", "datatype": "INT64", "shape": [2], "data": [3, 3]},
            {"name": "night", "datatype": "BOOL", "shape": [2], "data": [False, False]},
        ]
        inferred = client.post(f"/v2/models/{LOOP}/infer", {"inputs": inputs, "outputs": [{"name": "package"}]})
        assert inferred.status == 200, inferred.body
        assert inferred.json["outputs"][0]["data"] == [segments["N1"], own.digest]
