"""OpenLineage: every event that is sent is read strictly (tests/openlineage.py); whatever cannot be sent stops nobody."""

import json
import logging
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests import openlineage as reader
from tests.journeys import synthetic
from tests.journeys.synthetic import FILE, START

from loopwright import Column, Home, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.ids import new_id
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.loop import load_loop
from loopwright.records.package import Segment
from loopwright.stores import openlineage
from loopwright.stores.openlineage import OpenLineage, part_of
from loopwright.turn import turn
from loopwright.verbs.doctor import doctor

NOW = datetime(2024, 5, 1, 9, tzinfo=UTC)
THINGS = Table(
    "things",
    {"id": Column("integer"), "at": Column("timestamp"), "size": Column("float", minimum=0, description="metres")},
    key=["id"],
    event_time="at",
    description="What there is.",
)


def clock() -> SimulatedClock:
    return SimulatedClock(NOW)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A world ingested and one turn, told to a file."""
    folder = tmp_path_factory.mktemp("told")
    events = folder / "lineage" / "events.jsonl"
    with synthetic.filled(folder / "home", START, synthetic.world(), openlineage=str(events)) as home:
        steps = {s.stage: s for s in turn(home, load_loop(FILE))}
        assert (home.openlineage.sent, home.openlineage.unsent) == (10, 0)
        manifests = {home.packages.manifest(d).candidate: (d, home.packages.manifest(d)) for d in home.packages.list()}
        return {"events": reader.events(events), "steps": steps, "manifests": manifests, "lake": home.settings.lake_root}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["eventType"], "BEGIN"),
        (["eventTime"], "2024-05-01 09:00"),
        (["run", "runId"], "17"),
        (["run", "facets", "parent", "job"], {"name": "late"}),
        (["job", "name"], None),
        (["job", "facets", "jobType", "_schemaURL"], "https://openlineage.io/"),
        (["outputs", 0, "facets", "schema", "fields", 0, "kind"], "float"),
        (["outputs", 0, "facets", "columnLineage", "fields", "jam"], {"inputFields": [{"field": "jam"}]}),
        (["outputs", 0, "outputFacets", "outputStatistics", "rowCount"], "many"),
        (["inputs", 0, "facets", "version", "datasetVersion"], 3),
        (["inputs", 0, "facets", "unheard_of"], {}),
    ],
)
def test_the_reader_finds_what_the_specification_forbids(told: dict[str, Any], place: list[Any], value: Any) -> None:
    event = json.loads(json.dumps(of_job(told, "late.data")[1]))
    reader.check(event)
    inside = event
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = value
    with pytest.raises((AssertionError, KeyError, ValueError)):
        reader.check(event)


def of_job(told: dict[str, Any], job: str) -> list[dict[str, Any]]:
    return [e for e in told["events"] if e["job"]["name"] == job]


def test_each_job_begins_and_is_complete_under_one_run(told: dict[str, Any]) -> None:
    jobs = ["ingest.orders", "ingest.traffic", "ingest.deliveries", "late.data", "late.develop"]
    assert list(dict.fromkeys(e["job"]["name"] for e in told["events"])) == jobs
    for job in jobs:
        began, ended = of_job(told, job)
        assert (began["eventType"], ended["eventType"]) == ("START", "COMPLETE")
        assert began["run"]["runId"] == ended["run"]["runId"]
        assert began["eventTime"] <= ended["eventTime"]
    assert len({e["run"]["runId"] for e in told["events"]}) == len(jobs)


def test_the_steps_are_parts_of_their_turn(told: dict[str, Any]) -> None:
    for stage in ("data", "develop"):
        facets = of_job(told, f"late.{stage}")[1]["run"]["facets"]
        turn_id = told["steps"][stage].turn
        assert facets["parent"]["run"]["runId"] == openlineage.run_id(turn_id)
        assert facets["parent"]["job"]["name"] == "late"
        assert facets["nominalTime"]["nominalStartTime"] == START.isoformat()


def test_what_one_makes_the_next_reads(told: dict[str, Any]) -> None:
    def names(datasets: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
        return {(d["namespace"], d["name"]): d["facets"]["version"]["datasetVersion"] for d in datasets}

    ingested = {
        k: v for t in ("orders", "traffic", "deliveries") for k, v in names(of_job(told, f"ingest.{t}")[1]["outputs"]).items()
    }
    data, develop = of_job(told, "late.data")[1], of_job(told, "late.develop")[1]
    assert names(data["inputs"]) == ingested
    assert {Path(name).name: int(v) for (_, name), v in ingested.items()} == told["manifests"]["lightgbm"][1].training.sources
    assert names(develop["inputs"]) == names(data["outputs"])
    assert names(develop["outputs"]) == {
        ("loopwright", f"late.package.{candidate}"): digest for candidate, (digest, _) in told["manifests"].items()
    }


def test_columns_lead_back_to_tables_and_features_to_columns(told: dict[str, Any]) -> None:
    lake = Path(told["lake"])
    [examples] = of_job(told, "late.data")[1]["outputs"]
    fields = examples["facets"]["columnLineage"]["fields"]
    assert set(fields) == {f["name"] for f in examples["facets"]["schema"]["fields"]}

    def origins(name: str, type: str) -> set[tuple[str, str]]:
        found = [f for f in fields[name]["inputFields"] if f["transformations"][0]["type"] == type]
        assert {f["namespace"] for f in found} <= {"file"}
        return {(str(Path(f["name"]).relative_to(lake)), f["field"]) for f in found}

    assert origins("distance", "DIRECT") == {("orders", "distance")}
    assert origins("jam", "DIRECT") == {("traffic", "jam")}
    assert origins("jam", "INDIRECT") >= {("traffic", "shop"), ("orders", "shop"), ("traffic", "told_at"), ("orders", "at")}
    assert origins("_label", "DIRECT") == {("deliveries", "minutes")}
    packages = {p["name"]: p["facets"]["columnLineage"]["fields"] for p in of_job(told, "late.develop")[1]["outputs"]}
    features = {n: [f["field"] for f in o["inputFields"]] for n, o in packages["late.package.lightgbm"].items()}
    assert features == {"distance": ["distance"], "weight": ["weight"], "jam": ["jam"], "shop": ["shop"]}
    assert packages["late.package.heuristic"] == {}


def test_the_package_of_a_segment_has_a_name_of_its_own(told: dict[str, Any]) -> None:
    digest, manifest = told["manifests"]["lightgbm"]
    of_west = msgspec.structs.replace(manifest, segment=Segment(column="shop", value="west"))
    assert openlineage.package("late", digest, manifest)["name"] == "late.package.lightgbm"
    assert openlineage.package("late", digest, of_west)["name"] == "late.package.lightgbm.west"


def test_an_ingestion_says_what_was_read_how_good_it_was_and_what_landed(tmp_path: Path) -> None:
    file, events = tmp_path / "things.csv", tmp_path / "events.jsonl"
    file.write_text("id,at,size\n1,2024-01-01T00:00:00Z,5\n2,2024-01-01T00:00:00Z,-1\n3,yesterday,2\n")
    with Home(Settings(home=tmp_path / "home", openlineage=str(events)), clock()) as home:
        done = ingest(home, THINGS, file)
        ingest(home, THINGS, file)
        table = Path(home.settings.lake_root) / "things"
    ended = [e for e in reader.events(events) if e["eventType"] == "COMPLETE"]
    [read], [made] = ended[0]["inputs"], ended[0]["outputs"]
    assert (read["namespace"], read["name"]) == ("file", str(file))
    assert read["facets"]["version"]["datasetVersion"] == done.digest
    assert read["inputFacets"]["dataQualityMetrics"]["rowCount"] == 3
    verdicts = {(a["column"], a["success"]) for a in read["inputFacets"]["dataQualityAssertions"]["assertions"]}
    assert verdicts == {("id", True), ("at", False), ("size", False)}
    assert (made["namespace"], made["name"]) == ("file", str(table))
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == 1
    assert made["facets"]["schema"]["fields"][2] == {"name": "size", "type": "float", "description": "metres"}
    assert made["facets"]["columnLineage"]["fields"]["size"]["inputFields"][0]["field"] == "size"
    assert ended[1]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 0, "the same again adds nothing"
    assert ended[0]["job"]["facets"]["documentation"]["description"] == "What there is."


def test_a_failure_and_an_interruption_are_told_and_go_on(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    with Home(Settings(home=tmp_path / "home", openlineage=str(events)), clock()) as home:
        with pytest.raises(Exception, match="no such"):
            ingest(home, THINGS, tmp_path / "no such.csv")
        with pytest.raises(KeyboardInterrupt), home.openlineage.run("a", kind="STEP"):
            raise KeyboardInterrupt
    found = reader.events(events)
    assert [e["eventType"] for e in found] == ["START", "FAIL", "START", "ABORT"]
    assert "no such.csv" in found[1]["run"]["facets"]["errorMessage"]["message"]


def test_a_step_that_fails_is_told(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    home = synthetic.opened(tmp_path / "home", START, openlineage=str(events))
    with home, pytest.raises(Exception, match="no rows yet"):
        turn(home, load_loop(FILE))
    assert [(e["job"]["name"], e["eventType"]) for e in reader.events(events)] == [
        ("late.data", "START"),
        ("late.data", "FAIL"),
    ]


class Receiver(BaseHTTPRequestHandler):
    """Takes events and answers 201."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))  # type: ignore[attr-defined]  # ours
        self.send_response(201)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got = []  # type: ignore[attr-defined]  # ours
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_events_are_posted_where_the_specification_says_or_where_the_url_says(receiver: ThreadingHTTPServer) -> None:
    at = f"http://127.0.0.1:{receiver.server_address[1]}"
    for url in (at, f"{at}/", f"{at}/elsewhere?key=1"):
        sender = OpenLineage(url, clock())
        with sender.run("a", kind="STEP"):
            pass
        assert (sender.sent, sender.unsent) == (2, 0)
    got = receiver.got  # type: ignore[attr-defined]  # ours
    assert [path for path, _, _ in got] == ["/api/v1/lineage"] * 4 + ["/elsewhere?key=1"] * 2
    for _, type, event in got:
        assert type == "application/json"
        reader.check(event)


def test_namespace_of_jobs_is_that_of_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "events"
    sender = OpenLineage(str(file), clock(), namespace="team-a")
    with sender.run("a", kind="STEP", facets={"parent": part_of("0" * 32, "late")}) as run:
        run.outputs = [{"namespace": "loopwright", "name": "x"}, {"namespace": "file", "name": "y"}]
    complete = json.loads(file.read_text().splitlines()[-1])
    reader.check(complete)
    assert complete["job"]["namespace"] == complete["run"]["facets"]["parent"]["job"]["namespace"] == "team-a"
    assert [o["namespace"] for o in complete["outputs"]] == ["team-a", "file"]


def test_a_receiver_that_is_down_is_said_once_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, receiver: ThreadingHTTPServer
) -> None:
    receiver.shutdown()
    receiver.server_close()
    url = f"http://127.0.0.1:{receiver.server_address[1]}"
    frame = pa.table({"id": [1], "at": ["2024-01-01T00:00:00Z"], "size": [2.0]})
    with (
        Home(Settings(home=tmp_path, openlineage=url), clock()) as home,
        caplog.at_level(logging.WARNING, "loopwright.openlineage"),
    ):
        assert ingest(home, THINGS, frame).good == 1
        assert ingest(home, THINGS, frame.slice(0, 1), name="again").already
        assert (home.openlineage.sent, home.openlineage.unsent) == (0, 4)
    assert len(caplog.records) == 1
    assert "could not be sent (not sent so far: 1)" in caplog.text


@pytest.mark.parametrize(
    "target", ["http://example.com/", "https://10.0.0.1/api", "https://user:secret@localhost/", "/proc/no/file"]
)
def test_what_may_not_be_called_or_written_is_counted_and_the_doctor_says_so(tmp_path: Path, target: str) -> None:
    with Home(Settings(home=tmp_path, openlineage=target), clock()) as home:
        with home.openlineage.run("a", kind="STEP"):
            pass
        assert (home.openlineage.sent, home.openlineage.unsent) == (0, 2)
        [item] = [i for i in doctor(home).items if i.name == "openlineage"]
        assert not item.ok
        assert "secret" not in str(doctor(home))


def test_nobody_listens_by_default(tmp_path: Path) -> None:
    with Home(Settings(home=tmp_path), clock()) as home:
        with home.openlineage.run("a", kind="STEP") as run:
            assert not run.wanted
        assert (home.openlineage.sent, home.openlineage.unsent) == (0, 0)
        assert not [i for i in doctor(home).items if i.name == "openlineage"]


def test_events_of_many_writers_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"

    def write(name: str) -> None:
        sender = OpenLineage(str(file), clock())
        for _ in range(50):
            with sender.run(name * 1000, kind="STEP"):
                pass

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reader.events(file)) == 4 * 50 * 2


def test_the_id_of_a_run_is_a_uuid_that_sorts_by_time() -> None:
    id = new_id(NOW)
    made = uuid.UUID(openlineage.run_id(id))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.hex[:12] == id[:12]
    assert openlineage.run_id(id) == str(made)
    assert len({openlineage.run_id(new_id(NOW)) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("lake", "named"),
    [
        ("/data/lake", ("file", "/data/lake/t")),
        ("s3://bucket/some/prefix/", ("s3://bucket", "some/prefix/t")),
        ("s3://bucket", ("s3://bucket", "t")),
        ("abfss://key@store/x", ("abfss://store", "x/t")),
    ],
)
def test_tables_are_named_by_where_they_are(lake: str, named: tuple[str, str]) -> None:
    assert openlineage.table_name(lake, "t") == named
