import math
from contextlib import closing
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from tests.deploy.loops import NOW, NOW_US, REQUESTS, Weather, flight, golden, model_graph, package
from tests.redis import RedisServer

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import PackageRefused, Unavailable
from loopwright.base.ids import is_trace_id, time_of
from loopwright.data.examples.build import unit_sql
from loopwright.data.ingest.values import read
from loopwright.deploy.serving.deadlines import Overruns
from loopwright.deploy.serving.decode import Decoder
from loopwright.deploy.serving.heartbeat import Heartbeat
from loopwright.deploy.serving.predictor import MAX_FAILURES, Predictor
from loopwright.deploy.serving.suspects import STRIKES, Suspects
from loopwright.records.declarations import Column, Table
from loopwright.records.package import Golden
from loopwright.records.prediction import unit_text
from loopwright.stores.online import open_online
from loopwright.stores.online.embedded import Embedded
from loopwright.stores.online.steps import FRESH_SECONDS, Fed, pack
from loopwright.stores.outcomes.contract import OutcomeContract
from loopwright.stores.packages.store import Packages

HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return Packages(tmp_path_factory.mktemp("packages"))


def ready(packages: Packages, store: Any = None, overruns: Overruns | None = None, **changes: Any) -> Predictor:
    return Predictor(package(packages, **changes), store or Weather(), SimulatedClock(NOW), overruns)


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    return flight(number, pushed_back_at=NOW_US) | changes


def expected(delay: float, wind: float = 20.0, weight: float = 0.05) -> float:
    return 1 / (1 + math.exp(-(weight * (delay + wind) - 1)))


def test_one_row_is_answered_with_all_that_the_log_needs(packages: Packages) -> None:
    predictor = ready(packages)
    (answer,) = predictor.answer([row()])
    assert is_trace_id(answer.id)
    assert time_of(answer.id) == NOW
    assert answer.at == NOW_US
    assert answer.package == predictor.package.digest
    assert (answer.arm, answer.probability) == ("champion", 1.0)
    assert answer.request == row()
    assert answer.context == {"wind": 20.0, "gust": None}
    assert answer.context_age_s == 0
    assert answer.score == pytest.approx(expected(12.5), abs=1e-6)
    assert answer.label is (answer.score >= 0.5)
    assert answer.flags == []
    assert answer.unit == "UA1"
    assert 0 < answer.latency_us < 1e6


def test_many_rows_get_the_answers_they_get_alone(packages: Packages) -> None:
    rng = np.random.default_rng(7)
    rows = [
        row(i, delay=float(d), origin=str(o), hour=int(h))
        for i, (d, o, h) in enumerate(
            zip(rng.uniform(-200, 1600, 300), rng.choice(["EWR", "JFK", "XXX"], 300), rng.integers(-2, 26, 300), strict=True)
        )
    ]
    predictor = ready(packages)
    together = predictor.answer([dict(r) for r in rows], ids=[f"{i:032x}" for i in range(1, 301)], at_us=list(range(300)))
    alone = [predictor.answer([dict(r)], ids=[f"{i:032x}"], at_us=i - 1)[0] for i, r in enumerate(rows, 1)]
    for a, b in zip(together, alone, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-6)
        assert (a.id, a.at, a.flags, a.context, a.unit) == (b.id, b.at, b.flags, b.context, b.unit)


def test_numbers_that_mean_missing_are_null_in_requests_as_in_sources(packages: Packages) -> None:
    request = dict(package(packages).manifest.request)
    request["hour"] = msgspec.structs.replace(request["hour"], nullable=True, missing=["?", "-999"], minimum=0)
    [answer, other] = ready(packages, request=request).answer([row(1, hour=-999), row(2, hour=-998)])
    assert (answer.request["hour"], answer.flags) == (None, [])
    assert (other.request["hour"], other.flags) == (-998, ["out_of_range:hour"])


def test_texts_that_mean_missing_are_null_in_requests_as_in_sources(packages: Packages) -> None:
    """And no category that training never saw."""
    request = dict(package(packages).manifest.request)
    column = request["tail"] = msgspec.structs.replace(request["tail"], missing=[" ", "?"], categories=["N1"])
    texts = [" ", "?", "N1", "N2", None]
    answers = ready(packages, request=request).answer([row(i, tail=text) for i, text in enumerate(texts)])
    assert [a.request["tail"] for a in answers] == [None, None, "N1", "N2", None]
    assert [a.flags for a in answers] == [[], [], [], ["new_category:tail"], []]
    for values in (pa.array(texts), pa.array([t and t.encode() for t in texts], pa.binary())):
        assert read(column, pa.chunked_array([values])).values.to_pylist() == [a.request["tail"] for a in answers]


def test_what_is_outside_the_contract_is_served_and_flagged(packages: Packages) -> None:
    predictor = ready(packages)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"delay": 1440.5}, "out_of_range:delay"),
        ({"hour": -1}, "out_of_range:hour"),
        ({"origin": "XXX"}, "new_category:origin"),
    ]
    for change, flag in cases:
        (answer,) = predictor.answer([row(**change)])
        assert flag in answer.flags
        assert 0 <= answer.score <= 1
    edges: list[dict[str, Any]] = [{"delay": -120.0}, {"delay": 1440.0}, {"hour": 0}, {"hour": 23}]
    for edge in edges:
        assert predictor.answer([row(**edge)])[0].flags == []


def test_a_category_that_training_never_saw_is_flagged(packages: Packages) -> None:
    predictor = ready(packages, vocabulary={"tail": ["N1", "N2"]})
    assert predictor.answer([row(tail="N1")])[0].flags == []
    assert predictor.answer([row(tail=None)])[0].flags == []
    assert predictor.answer([row(tail="N9")])[0].flags == ["new_category:tail"]


def test_context_has_an_age_and_grows_stale(packages: Packages) -> None:
    predictor = ready(packages)
    (fresh,) = predictor.answer([row(pushed_back_at=NOW_US + HOUR_US)])
    assert (fresh.context_age_s, fresh.flags) == (3600, [])
    (edge,) = predictor.answer([row(pushed_back_at=NOW_US + 3 * HOUR_US)])
    assert edge.context["wind"] == 20.0
    (stale,) = predictor.answer([row(pushed_back_at=NOW_US + 3 * HOUR_US + 1)])
    assert stale.context == {"wind": None, "gust": None}
    assert (stale.context_age_s, stale.flags) == (None, ["stale_context:weather"])
    assert stale.score == pytest.approx(expected(12.5, wind=8.0), abs=1e-6)
    (missing,) = predictor.answer([row(origin="XXX")])
    assert missing.flags == ["new_category:origin", "missing_context:weather"]


def test_context_from_the_store_that_serves(packages: Packages, tmp_path: Path) -> None:
    store = Embedded(tmp_path / "steps.db")
    predictor = ready(packages, store)
    assert predictor.answer([row()])[0].flags == ["missing_context:weather"]
    observed = pack([NOW_US - HOUR_US, NOW_US + 1], [[NOW_US - HOUR_US, 30.0, 41.0], [NOW_US, 0.0, 0.0]])
    store.write("weather", [("JFK", observed)], Fed(1, NOW_US - HOUR_US, NOW_US))
    (answer,) = predictor.answer([row()])
    assert answer.context == {"wind": 30.0, "gust": 41.0}
    assert answer.context_age_s == 3600
    store.close()


def test_a_redis_that_goes_down_is_missing_context_and_prediction_goes_on(
    packages: Packages, redis_server: RedisServer, tmp_path: Path
) -> None:
    with closing(open_online(redis_server.empty(), tmp_path)) as store:
        store.write("weather", [("JFK", pack([NOW_US], [[NOW_US, 30.0, 41.0]]))], Fed(1, NOW_US, NOW_US))
        predictor = ready(packages, store)
        store._now = lambda: 0.0  # type: ignore[attr-defined]  # what is looked up now is fresh until FRESH_SECONDS
        assert predictor.answer([row()])[0].context == {"wind": 30.0, "gust": 41.0}
        store._now = lambda: FRESH_SECONDS  # type: ignore[attr-defined]
        redis_server.stop()
        try:
            (answer,) = predictor.answer([row()])
            assert (answer.context, answer.flags) == ({"wind": None, "gust": None}, ["missing_context:weather"])
            assert answer.score == pytest.approx(expected(12.5, wind=8.0), abs=1e-6)
        finally:
            redis_server.start()


def test_a_store_that_is_damaged_is_missing_context(packages: Packages, tmp_path: Path) -> None:
    (tmp_path / "steps.db").write_bytes(b"not a database" * 1000)
    (answer,) = ready(packages, Embedded(tmp_path / "steps.db")).answer([row()])
    assert answer.flags == ["missing_context:weather"]


def test_an_event_time_left_out_is_the_moment_of_the_decision(packages: Packages) -> None:
    given = row()
    del given["pushed_back_at"]
    (answer,) = ready(packages).answer([given], at_us=NOW_US + 5)
    assert answer.request["pushed_back_at"] == NOW_US + 5


def test_what_no_source_has_is_not_asked_of_a_request_either(packages: Packages) -> None:
    made = {
        "flight": Column("string", filled="row_id"),
        "pushed_back_at": Column("timestamp", filled="ingested_at"),
        "seen_at": Column("timestamp", filled="ingested_at"),
    }
    predictor = ready(packages, request={**REQUESTS.columns, **made})
    manifest = predictor.package.manifest
    assert manifest.may_lack == set(made)
    (given,) = Decoder(manifest.request, optional=manifest.may_lack)(
        msgspec.json.encode({name: value for name, value in flight().items() if name not in made})
    ).rows
    (answer,) = predictor.answer([given], at_us=NOW_US + 5)
    assert answer.unit == answer.request["flight"] == answer.id
    assert answer.request["pushed_back_at"] == answer.request["seen_at"] == NOW_US + 5


def test_times_may_be_datetimes(packages: Packages) -> None:
    (answer,) = ready(packages).answer([row(pushed_back_at=NOW + timedelta(seconds=1))])
    assert answer.request["pushed_back_at"] == NOW_US + 1_000_000


@pytest.mark.parametrize("fails", ["nan", "error"])
def test_where_the_model_fails_the_heuristic_answers(packages: Packages, fails: str) -> None:
    predictor = ready(packages, model=model_graph(fails=fails))
    answers = predictor.answer([row(i, delay=d) for i, d in enumerate([5.0, 90.0, 10.0, 200.0, 30.0])])
    assert [a.score == 1.0 and a.label for a in answers] == [False, True, False, True, False]
    assert [a.flags for a in answers] == [[], ["degraded"], [], ["degraded"], []]
    assert answers[4].score == pytest.approx(expected(30.0), abs=1e-6)


class Counted:
    """The model of a predictor, which counts how often it is asked."""

    def __init__(self, predictor: Predictor) -> None:
        self.runs, self._model = 0, predictor._model
        predictor._model = self  # type: ignore[assignment]  # it is called alike

    def __call__(self, *arguments: Any) -> Any:
        assert self._model is not None
        self.runs += 1
        return self._model(*arguments)


def test_a_model_that_always_fails_costs_a_bounded_number_of_runs(packages: Packages) -> None:
    predictor = ready(packages, model=model_graph(fails="error"))
    model = Counted(predictor)
    answers = predictor.answer([row(i, delay=100.0) for i in range(5000)], seconds=math.inf)
    assert all(a.flags == ["degraded"] for a in answers)
    assert 1 < model.runs <= 2 * MAX_FAILURES


def test_when_the_heuristic_fails_as_well_there_is_no_answer(packages: Packages) -> None:
    made = package(packages, model=model_graph(fails="nan"))
    broken = type(made)(made.digest, made.manifest, {**made.files, "heuristic.onnx": made.files["model.onnx"]})
    predictor = Predictor(broken, Weather(), SimulatedClock(NOW))
    assert predictor.answer([row()])[0].flags == []
    with pytest.raises(Unavailable):
        predictor.answer([row(delay=100.0)])


def endless(above: float | None = None) -> bytes:
    """A graph that adds one, a thousand million times; with `above` only where a delay is above it, else the score is the delay."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Add", ["v", "one"], ["vo"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.DOUBLE, ["N"]),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("vo", TensorProto.DOUBLE, ["N"]),
        ],
        [helper.make_tensor("one", TensorProto.DOUBLE, [1], [1.0])],
    )
    trips = [
        helper.make_node("ReduceMax", ["delay"], ["longest"], keepdims=0),
        helper.make_node("Greater", ["longest", "above"], ["endless"]),
        helper.make_node("Cast", ["endless"], ["once"], to=TensorProto.INT64),
        helper.make_node("Mul", ["once", "many"], ["trips"]),
    ]
    graph = helper.make_graph(
        [
            *trips,
            helper.make_node("Loop", ["trips", "", "delay"], ["o"], body=body),
            helper.make_node("Cast", ["o"], ["score"], to=TensorProto.FLOAT),
        ],
        "endless",
        [helper.make_tensor_value_info("delay", TensorProto.DOUBLE, ["N"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [
            helper.make_tensor("many", TensorProto.INT64, [], [10**9]),
            helper.make_tensor("above", TensorProto.DOUBLE, [], [-math.inf if above is None else above]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def test_a_run_that_overruns_is_stopped_and_the_model_rests(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwright.deploy.serving.predictor.REST_SECONDS", 600.0)
    answered = [Golden(request={}, context={}, score=0.0)]
    predictor = ready(packages, overruns=Overruns(), model=endless(), golden=answered, release={"deadline_ms": 1000})
    model = Counted(predictor)
    answers = predictor.answer([row(1, delay=90.0), row(2, delay=1.0)])
    assert [(a.score, a.flags) for a in answers] == [(1.0, ["degraded"]), (0.0, ["degraded"])]
    assert predictor.answer([row()])[0].flags == ["degraded"]
    assert model.runs == 1, "it rests"


def test_an_input_that_overruns_twice_is_answered_by_the_heuristic_and_the_model_goes_on(
    packages: Packages, tmp_path: Path
) -> None:
    suspects, heartbeat = Suspects.fresh(tmp_path / "inputs"), Heartbeat.fresh(tmp_path / "worker-0.heartbeat")
    made = package(
        packages, model=endless(60.0), golden=[Golden(request={}, context={}, score=0.0)], release={"deadline_ms": 100}
    )
    predictor = Predictor(made, Weather(), SimulatedClock(NOW), Overruns(), heartbeat=heartbeat)
    well, slow, degraded = row(1, delay=0.5), row(2, delay=90.0), ["degraded"]

    def flags(*rows: dict[str, Any], seconds: float = 0.2) -> list[list[str]]:
        return [a.flags for a in predictor.answer([dict(r) for r in rows], seconds=seconds)]

    for _ in range(3):
        assert flags(well, seconds=60.0) == [[]]
    assert flags(well, slow) == [degraded, degraded]  # nobody knows yet which of the two it is
    assert flags(well, seconds=60.0) == [[]]  # and the model does not rest
    (overrun,) = heartbeat.troubles.take_overruns()
    assert (overrun.package, overrun.answered, len(overrun.inputs)) == (made.digest, 3, 2)
    for input in overrun.inputs:
        suspects.strike(input)
    assert flags(slow, well, seconds=5.0) == [degraded, []]  # each suspect alone
    (overrun,) = heartbeat.troubles.take_overruns()
    assert len(overrun.inputs) == 1
    assert suspects.strike(overrun.inputs[0]) == STRIKES
    for _ in range(3):
        assert flags(slow | {"flight": "UA77"}, well, seconds=60.0) == [["query_of_death", "degraded"], []]
    assert heartbeat.troubles.take_overruns() == []
    assert flags(row(delay=91.0)) == flags(row(delay=92.0)) == [degraded]
    assert flags(well, seconds=60.0) == [degraded]  # two different inputs: the model rests


def test_a_run_that_had_little_time_left_is_stopped_and_not_held_against_the_model(packages: Packages) -> None:
    predictor = ready(packages, overruns=Overruns(), model=endless(), golden=[Golden(request={}, context={}, score=0.0)])
    model = Counted(predictor)
    for _ in range(2):
        assert predictor.answer([row(1, delay=90.0)], seconds=0.05)[0].flags == ["degraded"]
    assert model.runs == 2, "it does not rest"


def test_where_no_time_is_left_the_heuristic_answers(packages: Packages) -> None:
    predictor = ready(packages, overruns=Overruns())
    assert [(a.score, a.flags) for a in predictor.answer([row(delay=90.0)], seconds=0.0)] == [(1.0, ["degraded"])]
    assert predictor.answer([row()])[0].flags == []


def test_golden_answers_are_checked(packages: Packages) -> None:
    ready(packages).check_golden()
    wrong = [Golden(request=g.request, context=g.context, score=g.score + 2e-6) for g in golden(model_graph())]
    with pytest.raises(PackageRefused, match="golden request 0"):
        ready(packages, golden=wrong).check_golden()


def test_graphs_that_do_not_fit_the_contract_are_refused(packages: Packages) -> None:
    made = package(packages)
    request = {n: c for n, c in made.manifest.request.items() if n != "delay"}
    with pytest.raises(PackageRefused, match="delay"):
        ready(packages, request=request)


def test_units_are_the_text_that_examples_outcomes_and_context_use_too() -> None:
    values = ["x", True, 7, 1_700_000_000_000_000]
    assert unit_text(values[:1]) == "x"
    assert unit_text(["a|b\\"]) == "a|b\\", "there is nothing to tell apart"
    assert unit_text(values) == "x|True|7|1700000000000000"
    columns = {"a": Column("string"), "b": Column("boolean"), "c": Column("integer"), "d": Column("timestamp")}
    sql = unit_sql(Table("t", columns, ["a"], "d"), list(columns))
    rows = "SELECT 'x' AS a, true AS b, 7 AS c, make_timestamptz(1700000000000000) AS d"
    assert duckdb.execute(f"SELECT {sql} FROM ({rows})").fetchall() == [(unit_text(values),)]


def test_no_two_keys_have_the_same_unit_wherever_it_is_made() -> None:
    parts = ["".join(p) for n in range(4) for p in product("a|\\", repeat=n)]
    table = Table("t", {"a": Column("string"), "b": Column("string"), "at": Column("timestamp")}, ["a", "b"], "at")
    keys = pa.table({"a": [a for a in parts for _ in parts], "b": parts * len(parts)})
    units = [unit_text(list(key.values())) for key in keys.to_pylist()]
    assert len(set(units)) == len(units) == 40**2
    with duckdb.connect() as database:
        database.register("keys", keys)
        assert [u for (u,) in database.execute(f"SELECT {unit_sql(table, ['a', 'b'])} FROM keys").fetchall()] == units
    contract = OutcomeContract(table)
    assert [contract.row({**key, "at": 1}, received_at=1, provenance="").unit for key in keys.to_pylist()] == units
