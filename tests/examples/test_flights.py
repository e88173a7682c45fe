"""The flights example on the real data: the times it derives are possible, its tables keep their contracts, its loop checks."""

import importlib.util
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lightgbm as lgb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from loopwright import Aggregate, Home, Loop
from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.data.examples.asof import joined
from loopwright.data.examples.build import build
from loopwright.data.examples.context import feed, needs
from loopwright.data.ingest.ingestion import ingest
from loopwright.deploy.serving.context import Contexts
from loopwright.develop.check import check
from loopwright.develop.features import trace
from loopwright.develop.onnx.explanation import explanation
from loopwright.develop.output import Goal
from loopwright.graph.columns import arrow_feed
from loopwright.graph.contributions import decode
from loopwright.graph.session import Graph, feed_rows
from loopwright.loop import load_loop
from loopwright.records.package import ContextNeed
from loopwright.stores.examples import read_examples
from loopwright.stores.packages.store import decode_json, encode_json

FOLDER = Path(__file__).parents[2] / "examples" / "flights"
APRIL = datetime(2013, 4, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def loop() -> Loop:
    return load_loop(FOLDER)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    spec = importlib.util.spec_from_file_location("flights_prepare", FOLDER / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Path] = module.prepare(tmp_path_factory.mktemp("flights"))
    return found


@pytest.fixture(scope="module")
def home(loop: Loop, tables: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with Home(Settings(home=tmp_path_factory.mktemp("home"), by="tests"), SimulatedClock(APRIL)) as opened:
        for name, path in tables.items():
            ingest(opened, loop.tables[name], path)
        yield opened


def minutes(later: Any, earlier: Any) -> Any:
    return pc.divide(pc.subtract(later.cast(pa.int64()), earlier.cast(pa.int64())), 60_000_000)


def test_every_flight_takes_longer_than_it_flew_across_zones_and_the_change_of_clocks(tables: dict[str, Path]) -> None:
    departures, landings = pq.read_table(tables["departures"]), pq.read_table(tables["landings"])
    flown = departures.join(landings, "flight_id", join_type="inner")
    assert (departures.num_rows, landings.num_rows, flown.num_rows) == (328_521, 327_346, 327_346)
    ground = pc.subtract(minutes(flown["landed_at"], flown["pushed_back_at"]).cast(pa.float64()), flown["air_time"])
    assert pc.min(ground).as_py() >= 5, "taxiing out and in takes minutes"
    assert pc.max(ground).as_py() <= 240
    # 3 November, when New York set its clocks back: flights that arrived after midnight were once an hour short.
    night = flown.filter(pc.equal(flown["flight_id"], "UA.371.EWR.2013-11-03"))
    assert night["scheduled_minutes"].to_pylist() == [184]


def test_a_known_flight(tables: dict[str, Path]) -> None:
    wanted = pc.field("flight_id") == "UA.1545.EWR.2013-01-01"
    [departure] = pq.read_table(tables["departures"], filters=wanted).to_pylist()
    [landing] = pq.read_table(tables["landings"], filters=wanted).to_pylist()
    assert departure["pushed_back_at"] == datetime(2013, 1, 1, 10, 17, tzinfo=UTC)  # 5:17 in New York
    assert landing["landed_at"] == datetime(2013, 1, 1, 14, 30, tzinfo=UTC)  # 8:30 in Houston
    assert (departure["hour"], departure["weekday"], departure["dep_delay"], landing["arr_delay"]) == (5, 1, 2.0, 11.0)


def test_the_contracts_hold_but_for_the_gale_of_a_thousand_miles_per_hour(home: Home) -> None:
    assert not home.lake.exists("quarantine.departures")
    assert not home.lake.exists("quarantine.landings")
    [bad] = home.lake.read("quarantine.weather").to_pylist()
    assert bad["_reason"] == "wind_speed: '1048.36058' is above 150"


def test_the_examples_of_the_first_quarter(home: Home, loop: Loop) -> None:
    examples = build(
        home,
        loop_name=loop.name,
        requests=loop.requests,
        context=loop.context,
        aggregates=loop.aggregates,
        outcome=loop.outcome,
        as_of=APRIL,
    )
    assert (examples.rows, examples.positives) == (71_347, 16_907)
    assert set(examples.excluded) == {"outcome pending", "outcome never came"}
    assert sum(examples.excluded.values()) == 78_035 - 71_347, "the newest week still waits"
    rows = read_examples(home, examples.digest)
    assert pc.max(rows["_known_at"]).as_py() <= APRIL
    assert pc.all(pc.equal(rows["_label"], pc.greater(_delays(home, rows), 15))).as_py()
    # In flight at the change of the quarter: pushed back before it, landed after it, so not yet an example.
    known = set(rows["flight_id"].to_pylist())
    late = home.lake.read("landings", filters=pc.field("landed_at") > pa.scalar(APRIL, pa.timestamp("us", "UTC")))
    assert known.isdisjoint(late["flight_id"].to_pylist())


def _delays(home: Home, rows: pa.Table) -> Any:
    landings = home.lake.read("landings", columns=["flight_id", "arr_delay"])
    at = pc.index_in(rows["flight_id"], value_set=landings["flight_id"].combine_chunks())
    return landings["arr_delay"].take(at)


def test_the_weather_of_an_example_was_known_at_push_back(home: Home, loop: Loop) -> None:
    examples = build(
        home,
        loop_name=loop.name,
        requests=loop.requests,
        context=loop.context,
        aggregates=loop.aggregates,
        outcome=loop.outcome,
        as_of=APRIL,
    )
    weather = home.lake.read("weather").to_pylist()
    for row in read_examples(home, examples.digest).to_pylist()[:: 77_606 // 40]:
        known = [
            w
            for w in weather
            if w["origin"] == row["origin"] and w["observed_at"] + timedelta(minutes=21) <= row["_decided_at"]
        ]
        last = max(known, key=lambda w: w["observed_at"], default=None)
        fresh = last is not None and row["_decided_at"] - last["observed_at"] <= timedelta(hours=3)
        assert row["temperature"] == (last["temperature"] if last and fresh else None)


def test_a_month_served_has_every_value_and_every_feature_that_training_has(loop: Loop, home: Home) -> None:
    """The online path, fed once and asked at each push-back of February, against the offline join, to the bit."""
    february, march = datetime(2013, 2, 1, tzinfo=UTC), datetime(2013, 3, 1, tzinfo=UTC)
    count = Aggregate(name="landed_6h", table=loop.aggregates[0].table, by={"origin": "origin"}, function="count", window="6h")
    loop = msgspec.structs.replace(loop, aggregates=[*loop.aggregates, count])
    examples = build(
        home, loop_name=loop.name, requests=loop.requests, context=loop.context, aggregates=loop.aggregates,
        outcome=loop.outcome, as_of=march + timedelta(days=7),
    )  # fmt: skip
    offline = read_examples(home, examples.digest)
    inside = pc.and_(
        pc.greater_equal(offline["_decided_at"], pa.scalar(february)), pc.less(offline["_decided_at"], pa.scalar(march))
    )
    offline = offline.filter(inside)
    feed(home, joined(loop.context, loop.aggregates), since=february, until=march)
    asked = offline.select(list(loop.requests.columns))
    for name in ("pushed_back_at", "scheduled_at"):
        asked = asked.set_column(asked.schema.get_field_index(name), name, asked[name].cast(pa.int64()))
    manifest = decode_json(encode_json(needs(loop.context, loop.aggregates)), list[ContextNeed])  # as a package keeps them
    contexts = Contexts(manifest, "pushed_back_at", home.online)
    served, flags = [], []
    for batch in asked.to_batches(max_chunksize=997):
        rows, marks = batch.to_pylist(), [[] for _ in range(batch.num_rows)]  # type: ignore[var-annotated]  # flags
        served += [{**row, **context} for row, context in zip(rows, contexts.find(rows, marks)[0], strict=True)]
        flags += marks
    assert len(served) == 23_631
    assert {f for marks in flags for f in marks} <= {"stale_context:weather"}
    for name in loop.context_columns:
        assert [row[name] for row in served] == offline[name].to_pylist(), name
        assert offline[name].null_count < len(offline) / 2 or name == "wind_gust"
    assert pc.count_distinct(offline["carrier_delay"]).as_py() > 10_000
    traced = trace(loop.features, loop.columns)
    graph = Graph(traced.raw())
    wanted = graph.run(arrow_feed(graph, loop.columns, offline))
    found = graph.run(feed_rows(graph, loop.columns, served))
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_the_trees_of_the_flights_are_explained_as_lightgbm_explains_them(home: Home, loop: Loop) -> None:
    """LightGBM of the example's size on its own features, by LightGBM's own TreeSHAP, which shap asks as well."""
    examples = build(
        home, loop_name=loop.name, requests=loop.requests, context=loop.context, aggregates=loop.aggregates,
        outcome=loop.outcome, as_of=APRIL,
    )  # fmt: skip
    rows = read_examples(home, examples.digest)
    traced = trace(loop.features, loop.columns)
    raw = Graph(traced.raw())
    found = raw.run(arrow_feed(raw, loop.columns, rows))
    words = {name: traced.vocabulary(name, found[f"value.{name}"], found.get(f"null.{name}")) for name in traced.categories}
    names = traced.names(words, "ordinal")
    graph = Graph(traced.matrix_graph(words, "ordinal"))
    matrix = graph.run(arrow_feed(graph, loop.columns, rows))["features"]
    late = rows["_label"].to_numpy()
    model = lgb.LGBMClassifier(n_estimators=100, num_leaves=31, random_state=0, n_jobs=1, verbose=-1).fit(matrix, late)
    some = matrix[:: len(matrix) // 300]
    answers = {"features": some, "score": np.asarray(model.predict_proba(some))[:, 1]}
    files = explanation(model, Goal(), names, matrix, np.arange(len(matrix)), answers)
    explainer = decode(files.files["explanation.msgpack"])
    moved = explainer.contributions(some)[:, 0]
    assert explainer.features == names
    assert np.abs(explainer.base + moved.sum(axis=1) - np.asarray(model.predict_proba(some, raw_score=True))).max() < 1e-9
    own = np.asarray(model.booster_.predict(some, pred_contrib=True))
    assert np.abs(moved - own[:, :-1]).max() < 1e-6 * np.abs(own).max()
    assert names[int(np.abs(moved).mean(axis=0).argmax())] == "dep_delay"


def test_the_loop_passes_the_check(loop: Loop) -> None:
    found = check(
        columns=loop.columns,
        features=loop.features,
        heuristic=loop.scope.heuristic,
        outcome=loop.outcome,
        slices=loop.slices,
        candidates=loop.candidates,
        objectives=loop.scope.objectives,
    )
    assert [(name, detail) for name, ok, detail in found.items if not ok] == []
    assert len(found.features) == 21
    assert [c.phase for c in loop.candidates] == [2, 3, 4]
