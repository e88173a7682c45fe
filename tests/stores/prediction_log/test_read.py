from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from tests.stores.prediction_log.samples import START, prediction

from loopwright.base.ids import new_id
from loopwright.base.settings import Settings
from loopwright.records.declarations import Column
from loopwright.records.package import ContextNeed, Conversion, Manifest, Training
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import contract_of, to_table
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.read import find, first_at, loops, predictions
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.summary import summary
from loopwright.stores.prediction_log.writer import LogWriter

REQUEST = {
    "carrier": Column("string"),
    "flight": Column("integer"),
    "delay": Column("float"),
    "night": Column("boolean"),
    "note": Column("string", nullable=True),
    "planned": Column("timestamp"),
}
WIND = ContextNeed(table="weather", by={"origin": "origin"}, columns={"wind": Column("float", nullable=True)}, max_age_s=None)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home")) as opened:
        yield opened


def package(home: Home, request: dict[str, Column], **changes: Any) -> str:
    """A package whose graph does nothing: only its manifest matters here."""
    names = ["x", "score"]
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"])] for n in names)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["score"])], "g", inputs, outputs)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(data))
    manifest = Manifest(
        format=1,
        loop="loop",
        candidate="c",
        phase=2,
        created_at=START,
        by="test",
        declaration="",
        request=request,
        key=["carrier", "flight"],
        event_time="planned",
        context=[WIND],
        features=[],
        vocabulary={},
        slices=[],
        threshold=0.5,
        params={},
        seed=0,
        training=Training(examples="", rows=1, as_of=START, first=START, last=START, sources={}, seconds=0.0),
        conversion=Conversion(rows=1, max_difference=0.0),
        commit="",
        environment={},
        parent="",
        release={},
        files={},
    )
    files = {"model.onnx": data, "heuristic.onnx": data, "evaluation.json": b"{}", "reference.json": b"{}"}
    return home.packages.write(msgspec.structs.replace(manifest, **changes), files).digest


def row(number: int, package: str, **changes: Any) -> Prediction:
    sample = prediction(number, package=package)
    return msgspec.structs.replace(sample, request={**sample.request, "planned": sample.at + 60_000_000, **changes})


def log(home: Home, rows: list[Prediction], *, loop: str = "loop") -> None:
    with LogWriter(log_folder(home.path, loop), "predictions") as writer:
        writer.append(rows)


def by_id(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda r: str(r["_id"]))


def test_a_loop_that_never_predicted_has_an_empty_table(home: Home) -> None:
    table = predictions(home, "loop")
    assert table.num_rows == 0
    assert table.column_names[:3] == ["_id", "_at", "_package"]
    assert predictions(home, "loop", columns=["_id", "nothing"]).column_names == ["_id"]
    assert first_at(home, "loop") is None
    assert summary(home, "loop") == (0, None)
    assert loops(home) == []
    assert find(home, "0" * 31 + "1") is None
    assert find(home, "../\ud800") is None


def test_columns_are_typed_by_the_contract_and_the_same_before_and_after_a_commit(home: Home) -> None:
    digest = package(home, REQUEST)
    rows = [row(i, digest) for i in range(5)]
    log(home, rows)
    before = predictions(home, "loop")
    types = {f.name: f.type for f in before.schema}
    assert [types[n] for n in ("carrier", "flight", "delay", "night", "wind")] == [
        pa.string(),
        pa.int64(),
        pa.float64(),
        pa.bool_(),
        pa.float64(),
    ]
    assert types["note"] == pa.string()
    assert types["planned"] == pa.timestamp("us", tz="UTC")
    assert commit(home, "loop").problems == []
    after = predictions(home, "loop")
    assert by_id(before) == by_id(after)
    assert {f.name: f.type for f in after.schema} == types
    assert by_id(after)[1]["planned"] == START + timedelta(seconds=61)


def test_summary_of_a_log_without_delta_counts_each_id_once(home: Home) -> None:
    digest = package(home, REQUEST)
    rows = [row(i, digest) for i in range(4)]
    log(home, rows)
    log(home, rows[3:])
    before = summary(home, "loop")
    assert before == (4, START + timedelta(seconds=3))
    commit(home, "loop")
    assert summary(home, "loop") == before


def test_rows_in_delta_and_in_segments_are_read_as_one(home: Home) -> None:
    digest = package(home, REQUEST)
    log(home, [row(i, digest) for i in range(3)])
    commit(home, "loop")
    log(home, [row(i, digest) for i in range(3, 5)])
    with LogWriter(log_folder(home.path, "loop"), "predictions") as alive:
        alive.append([row(5, digest)])
        assert predictions(home, "loop").num_rows == 6
        assert predictions(home, "loop", uncommitted=False).num_rows == 3
        assert summary(home, "loop") == (6, START + timedelta(seconds=5))
        assert first_at(home, "loop") == START


def test_a_window_begins_with_its_start_and_ends_before_its_end(home: Home) -> None:
    digest = package(home, REQUEST)
    log(home, [row(i, digest) for i in range(10)])
    for _ in range(2):
        window = predictions(
            home, "loop", start=START + timedelta(seconds=2), end=START + timedelta(seconds=5), columns=["flight", "_at"]
        )
        assert sorted(window["flight"].to_pylist()) == [2, 3, 4]
        assert window.column_names == ["flight", "_at"]
        assert predictions(home, "loop", end=START).num_rows == 0
        commit(home, "loop")


def test_find_gives_back_the_prediction_itself_wherever_it_is(home: Home) -> None:
    digest = package(home, REQUEST)
    rows = [row(i, digest, note="x" if i else None) for i in range(4)]
    log(home, rows, loop="one")
    log(home, [row(9, digest)], loop="two")
    for _ in range(2):
        assert [find(home, r.id) for r in rows] == [("one", r) for r in rows]
        assert find(home, rows[0].id, "two") is None
        assert find(home, rows[0].id, "one") == ("one", rows[0])
        assert loops(home) == ["one", "two"]
        commit(home, "one")
        commit(home, "two")


def test_the_schema_grows_with_a_new_package(home: Home) -> None:
    old = package(home, REQUEST)
    log(home, [row(0, old)])
    commit(home, "loop")
    new = package(home, {**REQUEST, "seats": Column("integer", nullable=True)})
    log(home, [row(1, new, seats=180), row(2, new, seats=None)])
    done = commit(home, "loop")
    assert done.problems == []
    assert [r["seats"] for r in by_id(predictions(home, "loop"))] == [None, 180, None]
    found = find(home, by_id(predictions(home, "loop"))[0]["_id"])
    assert found is not None
    assert "seats" not in found[1].request


def test_a_value_that_does_not_fit_is_kept_as_text_and_told(home: Home) -> None:
    old = package(home, REQUEST)
    log(home, [row(0, old)])
    commit(home, "loop")
    new = package(home, {**REQUEST, "delay": Column("string")})
    log(home, [row(1, new, delay="long"), row(2, new, delay="short")])
    done = commit(home, "loop")
    assert done.predictions == 2
    assert "column 'delay' does not fit" in done.problems[0].what
    rows = by_id(predictions(home, "loop"))
    assert [(r["delay"], r["delay__text"]) for r in rows] == [(0.0, None), (None, '"long"'), (None, '"short"')]


def test_without_its_package_a_prediction_is_typed_by_its_values(home: Home) -> None:
    log(home, [prediction(1, request={"a": 1, "b": 0.5, "c": True, "d": "x", "e": None, "f": [1, 2]})])
    assert commit(home, "loop").predictions == 1
    schema = home.lake.schema("predictions.loop")
    assert [schema.field(n).type for n in "abcd"] == [pa.int64(), pa.float64(), pa.bool_(), pa.string()]
    assert "e" not in schema.names
    [only] = predictions(home, "loop").to_pylist()
    assert only["f__text"] == "[1,2]"
    found = find(home, only["_id"])
    assert found is not None
    assert found[1].request["a"] == 1


@pytest.mark.parametrize(
    ("type", "values", "stored"),
    [
        ("integer", [1, 2.0, None], [1, 2, None]),
        ("integer", [1, 2.5], None),
        ("integer", [True, 1], None),
        ("float", [1, 2.5, float("inf")], [1.0, 2.5, float("inf")]),
        ("float", [True], None),
        ("boolean", [True, None], [True, None]),
        ("string", ["a", "é"], ["a", "é"]),
        ("string", [1], None),
        ("timestamp", [0, "1970-01-01T01:00:00+01:00", datetime(1970, 1, 1, tzinfo=UTC), None], [0, 0, 0, None]),
        ("timestamp", ["1970-01-01T00:00:00"], None),
        ("timestamp", [1.5], None),
        ("timestamp", [True], None),
        ("timestamp", [-1, 253_402_300_799_000_000], [-1, 253_402_300_799_000_000]),
    ],
)
def test_values_become_columns_exactly_or_not_at_all(type: Any, values: list[Any], stored: list[Any] | None) -> None:
    records = [prediction(i, request={"x": value}) for i, value in enumerate(values)]
    table, misfits = to_table("predictions", records, {"x": Column(type, nullable=True)})
    if stored is None:
        assert len(misfits) == 1
        assert "x__text" in table.column_names
        assert "x" not in table.column_names
        return
    found = table["x"].cast(pa.int64()) if type == "timestamp" else table["x"]
    assert found.to_pylist() == stored
    assert misfits == []


def test_the_contract_of_predictions_is_that_of_all_their_packages(home: Home) -> None:
    digests = [package(home, {"carrier": Column("string")}), package(home, {"seats": Column("integer")}), "cd" * 32]
    records = [prediction(i, package=digest) for i, digest in enumerate(digests)]
    assert list(contract_of(home, "predictions", "loop", records)) == ["carrier", "wind", "seats"]


def test_count_and_ends_of_a_log_are_told_without_reading_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console and upkeep read each id and moment again at every look, and grew with the rows of the home."""
    with Home(Settings(home=tmp_path)) as home:
        at = [START + timedelta(minutes=i) for i in range(3)]
        rows = {"_id": [new_id(moment) for moment in at], "_at": pa.array(at, pa.timestamp("us", "UTC"))}
        home.lake.write("predictions.loop", pa.table(rows))
        for file in home.lake.files("predictions.loop"):
            Path(file.removeprefix("file://")).write_bytes(b"no rows can be read")
        assert summary(home, "loop") == (3, at[-1])
        assert first_at(home, "loop") == START
