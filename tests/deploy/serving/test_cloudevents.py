import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from tests.deploy.loops import LOOP, NOW, REQUESTS, Weather, flight, opened, package
from tests.receiver import Receiver, receiving
from tests.waiting import PATIENCE_SECONDS

from loopwright.base import outbound_http as outgoing
from loopwright.base.clock import SimulatedClock
from loopwright.base.ids import span_id
from loopwright.deploy import releases
from loopwright.deploy.serving import cloudevents
from loopwright.deploy.serving.cloudevents import DeliveryRound, EventCursor, Events
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.deploy.serving.release_files import Follower
from loopwright.deploy.strategies import Strategy
from loopwright.records.declarations import Canary, Full
from loopwright.records.releases import ReleaseState
from loopwright.records.verdicts import Verdict
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def home(tmp_path: Path, receiver: Receiver) -> Iterator[Home]:
    with opened(tmp_path / "home", events=receiver.url + "/in") as home:
        tagged = {**REQUESTS.columns, "tail": msgspec.structs.replace(REQUESTS.columns["tail"], tags=["pii"])}
        releases.release(home, LOOP, package(home.packages, request=tagged).digest, why="first")
        Follower(home).follow()
        yield home


def answered(home: Home, count: int, first: int = 0) -> list[str]:
    """Ids of predictions that have been answered and are committed."""
    engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock))
    engine.registry.refresh()
    rows = [flight(first + i, tail="N1", pushed_back_at=None) for i in range(count)]
    [answers] = engine.answer(
        LOOP, [PredictionRequest([{k: v for k, v in row.items() if k != "pushed_back_at"} for row in rows])]
    )
    engine.close()
    assert isinstance(answers, list)
    assert commit(home, LOOP).predictions == count
    return [a.id for a in answers]


def told(receiver: Receiver) -> list[dict[str, Any]]:
    return [event for post in receiver.posted for event in json.loads(post.body)]


def cursor(home: Home) -> EventCursor:
    entry = home.ledger.latest(EventCursor, loop=LOOP)
    assert entry is not None
    return entry.record


def test_predictions_are_told_once_as_lawful_events(home: Home, receiver: Receiver) -> None:
    Events(home).begin(LOOP)
    ids = answered(home, 3)
    assert Events(home).tell(LOOP) == DeliveryRound(events=3)
    assert Events(home).tell(LOOP) == DeliveryRound(events=0)
    [post] = receiver.posted
    assert (post.path, post.headers["content-type"]) == ("/in", "application/cloudevents-batch+json")
    assert [e["id"] for e in told(receiver)] == ids
    for given in told(receiver):
        event = JSONFormat().read(CloudEvent, json.dumps(given))  # refuses what is no CloudEvent
        assert (event.get_type(), event.get_source(), event.get_time()) == (cloudevents.TYPE, f"/loops/{LOOP}", NOW)
        assert event.get_subject() == given["data"]["request"]["flight"]
        assert event.get_extension("traceparent") == f"00-{event.get_id()}-{span_id(event.get_id())}-00"
        assert event.get_dataschema() == f"urn:loopwright:package:{given['data']['package']}"
    data = told(receiver)[0]["data"]
    assert set(data) == {"loop", "package", "arm", "score", "label", "flags", "request"}
    assert data["request"] == {
        "flight": "UA0",
        "pushed_back_at": "2024-05-01T09:00:00Z",
        "origin": "JFK",
        "delay": 12.5,
        "hour": 9,
        "night": False,
    }, "without the tail number, which is tagged pii"


def test_changes_of_releases_are_told_once_in_order_as_lawful_events(home: Home, receiver: Receiver) -> None:
    Events(home).begin(LOOP)
    plan = Strategy("plan", "", [Canary(share=0.1), Full()])
    tagged = {**REQUESTS.columns, "tail": msgspec.structs.replace(REQUESTS.columns["tail"], tags=["pii"])}
    new = package(home.packages, weight=0.06, request=tagged).digest
    state = releases.release(home, LOOP, new, strategy=plan, why="is it better?").record
    said: dict[str, Any] = {"loop": LOOP, "generation": 2, "stage": 0, "at": home.clock.now(), "why": "w", "package": new}
    for answer in ("hold", "back"):
        verdict = Verdict(**said, answer=answer, former=state.champion.package, rows=1, control_rows=1)
        home.ledger.put(verdict, loop=LOOP, key=new)
    receiver.status = 503
    assert "not all events could be told" in sent(home).trouble
    receiver.status = 204
    receiver.posted.clear()
    releases.rollback(home, LOOP, why="worse")
    assert sent(home) == DeliveryRound(events=3)
    assert sent(home) == DeliveryRound(events=0)
    assert [e["type"] for e in told(receiver)] == [
        "loopwright.release.release",
        "loopwright.verdict.back",
        "loopwright.release.rollback",
    ]
    for given in told(receiver):
        event = JSONFormat().read(CloudEvent, json.dumps(given))
        assert event.get_source() == f"/loops/{LOOP}"
        assert given["data"]["loop"] == LOOP
    assert told(receiver)[0]["data"]["arms"][-1] == {"package": new, "share": 0.1, "name": "canary", "heuristic": False}


def sent(home: Home) -> DeliveryRound:
    found = Events(home).tell_releases(LOOP)
    assert found is not None
    return found


def test_what_was_there_before_is_not_told(home: Home, receiver: Receiver) -> None:
    answered(home, 2)
    assert Events(home).tell(LOOP) is None
    Events(home).begin(LOOP)
    later = answered(home, 2, first=10)
    Events(home).tell(LOOP)
    assert [e["id"] for e in told(receiver)] == later


def test_a_receiver_that_is_down_gets_everything_later_and_stops_the_round_for_all(home: Home, receiver: Receiver) -> None:
    Events(home).begin(LOOP)
    ids = answered(home, 3)
    receiver.status = 503
    a_round = Events(home)
    found = a_round.tell(LOOP)
    assert found is not None
    assert (found.events, "answered 503" in found.trouble) == (0, True)
    assert a_round.tell(LOOP) is not None
    assert len(receiver.posted) == 1, "within a round it is not asked again"
    receiver.status = 202
    receiver.posted.clear()
    ids += answered(home, 2, first=3)
    assert Events(home).tell(LOOP) == DeliveryRound(events=5)
    assert [e["id"] for e in told(receiver)] == ids


def test_a_round_that_ends_in_the_middle_goes_on_there(home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloudevents, "BATCH", 4)
    Events(home).begin(LOOP)
    ids = answered(home, 10)
    real, calls = outgoing.post, []

    def once(*args: Any, **more: Any) -> int:
        calls.append(args)
        if len(calls) == 2:
            raise OSError("gone")
        return real(*args, **more)

    monkeypatch.setattr(cloudevents, "post", once)
    first = Events(home).tell(LOOP)
    assert first is not None
    assert first.events == 4
    assert cursor(home).rows == 4
    assert Events(home).tell(LOOP) == DeliveryRound(events=6)
    assert [e["id"] for e in told(receiver)] == ids
    assert cursor(home).rows == 0


def test_a_round_has_an_end(home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    Events(home).begin(LOOP)
    answered(home, 2)
    monkeypatch.setattr(cloudevents, "ROUND_SECONDS", -1.0)
    assert Events(home).tell(LOOP) == DeliveryRound(events=0)
    assert receiver.posted == []
    monkeypatch.setattr(cloudevents, "ROUND_SECONDS", PATIENCE_SECONDS)
    assert Events(home).tell(LOOP) == DeliveryRound(events=2)


def test_time_of_other_upkeep_does_not_count_against_the_round(
    home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(home.clock, "monotonic", lambda: now[0])
    round_ = Events(home)
    round_.begin(LOOP)
    answered(home, 2)
    now[0] += 10 * cloudevents.ROUND_SECONDS  # commits and windows of this loop and of others
    assert round_.tell(LOOP) == DeliveryRound(events=2)


def test_rows_that_are_only_moved_are_not_told_again(home: Home, receiver: Receiver) -> None:
    Events(home).begin(LOOP)
    ids = answered(home, 2) + answered(home, 2, first=2)
    home.lake.compact(f"predictions.{LOOP}")
    ids += answered(home, 1, first=4)
    assert Events(home).tell(LOOP) == DeliveryRound(events=5)
    assert [e["id"] for e in told(receiver)] == ids


def test_a_request_too_large_to_be_forwarded_is_left_out(home: Home) -> None:
    state = releases.serving(home, LOOP)
    assert isinstance(state, ReleaseState)
    manifest = home.packages.manifest(state.champion.package)
    row = {f"_{n}": None for n in ("segment", "values")} | {
        "_id": "4bf92f3577b34da6a3ce929d0e0e4736", "_at": 0, "_package": "3fa9", "_arm": "champion", "_score": 0.5,
        "_label": True, "_flags": [], "_unit": "x", "flight": "x" * cloudevents.EVENT_BYTES,
    }  # fmt: skip
    assert "flight" in cloudevents.event(LOOP, row, manifest)["data"]["request"]
    for share, flags in ((0.0, "00"), (0.6, "00"), (0.7, "01"), (1.0, "01")):  # 0xa3ce... of 2**64 is 0.64
        assert cloudevents.event(LOOP, row, manifest, share)["traceparent"].endswith(f"-{flags}")
    body = Events(home)._event(LOOP, {**row, "_package": state.champion.package})
    assert len(body) < cloudevents.EVENT_BYTES
    assert "request" not in json.loads(body)["data"]


def test_nobody_is_told_where_no_receiver_is_set(tmp_path: Path) -> None:
    with opened(tmp_path / "home", SimulatedClock(NOW + timedelta(hours=1))) as home:
        Events(home).begin(LOOP)
        assert Events(home).tell(LOOP) is None
        assert home.ledger.find(EventCursor) == []
