"""Columns that feed nothing: callers may leave them out, what they send is logged, and the loop learns on from both kinds of rows.

The tables have a column `id` of their own, so that the prediction's id goes elsewhere in an outcome.
"""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import ndonnx.extensions as nde
import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from loopwright import (
    Candidate,
    Column,
    Context,
    Heuristic,
    Home,
    Loop,
    Objective,
    Outcome,
    Scope,
    Slice,
    StratifiedSplit,
    Table,
)
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import DeclarationInvalid, LoopwrightError, RequestInvalid
from loopwright.base.settings import Settings
from loopwright.bulk import predict
from loopwright.data.ingest.ingestion import ingest, put_contract
from loopwright.deploy.releases import release, serving
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.graph.columns import arrow_schema
from loopwright.records.evaluation import Leaderboard
from loopwright.records.examples import Examples
from loopwright.server.api import oip, openapi, repository
from loopwright.stores.prediction_log.read import find
from loopwright.tend import refresh
from loopwright.turn import turn
from loopwright.verbs.trace import trace

BEGIN = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
ROWS = 400
NOW = BEGIN + dt.timedelta(hours=ROWS + 24)
USED = ["id", "amount", "region", "level", "shop"]
UNUSED = ["decided_by", "note", "refunded_at", "weight"]

orders = Table(
    "orders",
    {
        "id": Column("string"),
        "at": Column("timestamp"),
        "amount": Column("float", minimum=0, maximum=1000),
        "region": Column("string", categories=["east", "west"]),
        "level": Column("integer", minimum=0, maximum=9),
        "shop": Column("integer"),
        "decided_by": Column("string", categories=["ann", "bob"]),
        "note": Column("string"),
        "refunded_at": Column("timestamp"),
        "weight": Column("float", minimum=0, maximum=50),
    },
    key=["id"],
    event_time="at",
)
shops = Table("shops", {"shop": Column("integer"), "seen_at": Column("timestamp"), "jam": Column("float")}, ["shop"], "seen_at")
complaints = Table(
    "complaints",
    {"id": Column("string"), "known": Column("timestamp"), "came": Column("string", categories=["yes", "no"])},
    key=["id"],
    event_time="known",
)


def features(f: Any) -> dict[str, Any]:
    return {"amount": f.amount, "level": f.level}


def declared(**changes: Any) -> Loop:
    given: dict[str, Any] = {
        "name": "complaints",
        "scope": Scope(
            problem="who complains",
            objectives=[Objective("find", "us", "average_precision", at_least=0.1)],
            heuristic=Heuristic(lambda f: f.amount > 500),
        ),
        "requests": orders,
        "context": [Context(shops, {"shop": "shop"}, ["jam"])],
        "outcome": Outcome(complaints, "came = 'yes'", wait="1d"),
        "features": features,
        "slices": [Slice("region", lambda f: f.region)],
        "candidates": [Candidate("plain", lambda: LogisticRegression(max_iter=200))],
        "split": StratifiedSplit(validation=0.3),
    }
    return Loop(**{**given, **changes})


def row(number: int) -> dict[str, Any]:
    """One order, with all that its table asks for."""
    rng = np.random.default_rng(number)
    at = BEGIN + dt.timedelta(hours=number)
    return {
        "id": f"o{number}",
        "at": at,
        "amount": round(float(rng.uniform(0, 1000)), 3),
        "region": str(rng.choice(["east", "west"])),
        "level": int(rng.integers(0, 10)),
        "shop": number % 3,
        "decided_by": str(rng.choice(["ann", "bob"])),
        "note": f"note {number}",
        "refunded_at": at + dt.timedelta(days=9),
        "weight": 10.0,
    }


def truth(order: dict[str, Any]) -> str:
    """Mostly by amount and level; one in 25 the other way round, since a perfect model is not released by itself."""
    complains = order["amount"] + 30 * order["level"] > 600
    return "yes" if complains != ((order["at"].toordinal() * 24 + order["at"].hour) % 25 == 0) else "no"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a loop that serves."""
    folder = tmp_path_factory.mktemp("columns")
    with Home(Settings(home=folder / "home", by="tests"), SimulatedClock(NOW)) as opened:
        rows = [row(i) for i in range(ROWS)]
        told = [{"id": r["id"], "known": r["at"] + dt.timedelta(hours=2), "came": truth(r)} for r in rows]
        seen = [{"shop": s, "seen_at": BEGIN - dt.timedelta(days=1), "jam": float(s)} for s in range(3)]
        for table, found in ((orders, rows), (complaints, told), (shops, seen)):
            done = ingest(opened, table, pa.Table.from_pylist(found, schema=arrow_schema(table.columns)))
            assert not done.quarantined, done.reasons
        turn(opened, declared())
        refresh(opened, {"shops"})
        yield opened


@pytest.fixture(scope="module")
def engine(home: Home) -> Iterator[ServingEngine]:
    made = ServingEngine(Registry(home.path, home.packages, home.online, home.clock))
    made.registry.refresh()
    yield made
    made.close()


def plain(order: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The columns of an order as a client would send them."""
    return {n: order[n].isoformat() if isinstance(order[n], dt.datetime) else order[n] for n in names}


def answered(engine: ServingEngine, *rows: dict[str, Any]) -> list[Any]:
    [found] = engine.answer(
        "complaints", [PredictionRequest(engine.registry.service("complaints").decode(json.dumps(rows).encode()).rows)]
    )
    assert not isinstance(found, LoopwrightError)
    return found


def test_requests_may_leave_out_what_nothing_uses(engine: ServingEngine) -> None:
    manifest = engine.registry.service("complaints").predictor.package.manifest
    assert manifest.may_lack == {"at", *UNUSED}
    order = row(ROWS + 1)
    lean, full, some = answered(engine, *(plain(order, [*USED, *more]) for more in ([], UNUSED, ["note", "weight"])))
    assert lean.score == full.score == some.score
    assert not lean.flags
    assert set(lean.request) == {"at", *USED}
    assert full.request["note"] == some.request["note"] == order["note"]
    for name in USED:
        with pytest.raises(RequestInvalid) as refused:
            answered(engine, plain(order, [n for n in USED if n != name]))
        assert [(p.field, p.reason.partition(";")[0]) for p in refused.value.problems] == [(f"[0].{name}", "is missing")]


def test_what_is_sent_without_need_is_checked_flagged_and_logged(home: Home, engine: ServingEngine) -> None:
    order = row(ROWS + 2) | {"weight": 70.0, "decided_by": "eve"}
    [answer] = answered(engine, plain(order, [*USED, "weight", "decided_by"]))
    assert set(answer.flags) == {"out_of_range:weight", "new_category:decided_by"}
    [whole] = answered(engine, plain(order, [*USED, *UNUSED]))
    assert set(whole.flags) == set(answer.flags)
    with pytest.raises(RequestInvalid):
        answered(engine, plain(order, USED) | {"weight": "heavy"})
    with pytest.raises(RequestInvalid):
        answered(engine, plain(order, USED) | {"wieght": 1.0})
    found = find(home, answer.id)
    assert found is not None
    assert {n: found[1].request[n] for n in ("weight", "decided_by")} == {"weight": 70.0, "decided_by": "eve"}


def test_a_key_twice_is_refused_whatever_is_left_out(engine: ServingEngine) -> None:
    decode = engine.registry.service("complaints").decode
    for names in (USED, [*USED, "note"], [*USED, *UNUSED]):
        body = json.dumps(plain(row(1), names))
        assert decode(body.encode()).single
        assert decode(body.replace("note 1", '\\"1\\"').encode()).single
        for double in ('"amount": 1', '"region": "west"', '"note": "x", "note": "x"'):
            with pytest.raises(LoopwrightError, match="twice"):
                decode(f"{body[:-1]}, {double}}}".encode())


def test_the_descriptions_of_all_protocols_name_what_is_optional(engine: ServingEngine) -> None:
    service = engine.registry.service("complaints")
    manifest = service.predictor.package.manifest
    schema = openapi.describe("1", [service])["components"]["schemas"]["complaints.request"]
    assert sorted(schema["required"]) == sorted(USED)
    assert set(schema["properties"]) == {"at", *USED, *UNUSED}
    assert schema["examples"][0].keys() == set(USED)
    assert not set(UNUSED) & set(schema["required"])
    assert all(name in schema["description"] for name in UNUSED)
    assert not answered(engine, schema["examples"][0])[0].flags
    told = oip.metadata("complaints", "0" * 64, manifest)["inputs"]
    assert [t["name"] for t in told if not t.get("parameters", {}).get("optional")] == schema["required"]
    tensors = repository.config("complaints", "0" * 64, manifest)["input"]
    assert [t["name"] for t in tensors if not t.get("optional")] == schema["required"]


def test_tensors_may_lack_what_nothing_uses(engine: ServingEngine) -> None:
    service = engine.registry.service("complaints")
    order = row(ROWS + 3)
    kinds = {"id": "BYTES", "amount": "FP64", "region": "BYTES", "level": "INT64", "shop": "INT64"}
    inputs = [{"name": n, "datatype": kinds[n], "shape": [1], "data": [order[n]]} for n in USED]
    columns, outputs = service.decode.columns, oip.outputs(service.predictor.package.manifest.output)
    rows = service.decode.check(oip.Tensors(json.dumps({"inputs": inputs}).encode(), columns, outputs).rows)
    assert rows == [{n: order[n] for n in USED}]


def test_a_file_to_be_predicted_may_lack_what_nothing_uses(home: Home, tmp_path: Path) -> None:
    served = [row(ROWS + 60 + i) for i in range(5)]
    lean, full = tmp_path / "lean.csv", tmp_path / "full.csv"
    for path, names in ((lean, USED), (full, [*USED, *UNUSED])):
        path.write_text("\n".join(",".join(map(str, line)) for line in [names, *(plain(o, names).values() for o in served)]))
        assert predict(home, "complaints", path, path.with_suffix(".jsonl")).refused == 0
    answers = [[json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()] for path in (lean, full)]
    assert [a["_score"] for a in answers[0]] == [a["_score"] for a in answers[1]]
    logged = [find(home, found[0]["_id"]) for found in answers]
    assert [found[1].request.get("note") for found in logged if found] == [None, served[0]["note"]]


def test_the_loop_learns_from_rows_that_lack_what_nothing_uses(home: Home, engine: ServingEngine) -> None:
    before = len(home.ledger.find(Examples, loop="complaints"))
    served = [row(ROWS + 10 + i) for i in range(20)]
    lean = answered(engine, *(plain(order, USED) for order in served))
    bodies = [{"prediction": a.id, "came": truth(order)} for a, order in zip(lean, served, strict=True)]
    engine.accept("complaints", json.dumps(bodies).encode(), "http")
    home.clock.advance(dt.timedelta(days=2))  # type: ignore[attr-defined]  # a simulated clock
    turn(home, declared(), fresh=True)
    found = [e.record for e in home.ledger.find(Examples, loop="complaints")]
    assert len(found) > before
    newest = max(found, key=lambda e: e.as_of)
    assert newest.rows >= ROWS + len(served)
    assert "request not fully logged" not in newest.excluded
    # Code that uses what was not sent has no use for such a row, and says so.
    more = declared(features=lambda f: {"amount": f.amount, "weight": f.weight})
    turn(home, more, fresh=True, until="develop")
    needed = max(
        (e.record for e in home.ledger.find(Examples, loop="complaints")),
        key=lambda e: e.excluded.get("request not fully logged", 0),
    )
    assert needed.excluded["request not fully logged"] >= len(served)


def test_an_outcome_names_its_prediction_where_the_table_has_an_id_of_its_own(home: Home, engine: ServingEngine) -> None:
    table = openapi.describe("1", [engine.registry.service("complaints")])["components"]["schemas"]["complaints.outcome"]
    assert "prediction" in table["properties"]
    first, second = (row(ROWS + 40), row(ROWS + 41))
    by_id, by_key = answered(engine, plain(first, USED), plain(second, USED))
    outcomes = [{"prediction": by_id.id, "came": "yes"}, {"id": second["id"], "came": "no"}]
    accepted = engine.accept("complaints", json.dumps(outcomes).encode(), "http")
    assert [(a.row.prediction, a.row.unit) for a in accepted] == [(by_id.id, ""), ("", second["id"])]
    for prediction, came in ((by_id, True), (by_key, False)):
        outcome = trace(home, prediction.id).outcome
        assert outcome is not None
        assert outcome.truth is came
    with pytest.raises(RequestInvalid, match="prediction: give the prediction's id, or the key: id"):
        engine.accept("complaints", b'{"came": "yes"}', "http")
    for word in ("SIDEWAYS", "yes "):
        with pytest.raises(RequestInvalid, match="came: must be one of 'yes', 'no'"):
            engine.accept("complaints", json.dumps({"prediction": by_id.id, "came": word}).encode(), "http")


def learnt(home: Home) -> str:
    """The newest package of loop `jammed` that is no rule."""
    board = home.ledger.latest(Leaderboard, loop="jammed").record  # type: ignore[union-attr]  # it ran
    return next(row.package for row in board.rows if row.phase > 1)


def test_a_column_that_a_package_in_service_looks_up_is_not_retired_under_it(home: Home, engine: ServingEngine) -> None:
    using = declared(name="jammed", features=lambda f: {"amount": f.amount, "jam": nde.fill_null(f.jam, 0.0)})
    turn(home, using)
    release(home, "jammed", learnt(home), why="the model, whether or not it beat the rule")
    for columns in (
        {n: c for n, c in shops.columns.items() if n != "jam"},
        shops.columns | {"jam": Column("float", nullable=True, retired=True)},
    ):
        with pytest.raises(
            DeclarationInvalid, match=r"columns\.jam: package [0-9a-f]{12} of loop 'jammed', which is in service, uses it"
        ):
            put_contract(home, msgspec.structs.replace(shops, columns=columns))
    turn(home, declared(name="jammed"), fresh=True)
    release(home, "jammed", learnt(home), why="the model, whether or not it beat the rule")
    now = serving(home, "jammed")
    assert now is not None
    assert not home.packages.manifest(now.champion.package).looked_up("shops")
    put_contract(home, msgspec.structs.replace(shops, columns={n: c for n, c in shops.columns.items() if n != "jam"}))


def test_a_request_column_is_retired_while_callers_go_on_sending_it(home: Home) -> None:
    retired = {**orders.columns, "weight": Column("float", nullable=True, retired=True)}
    loop = declared(name="retiring", requests=msgspec.structs.replace(orders, columns=retired))
    with pytest.raises(DeclarationInvalid, match="loop complaints: declares this table differently"):
        turn(home, loop)
    put_contract(home, loop.requests)  # as `loopwright contract orders --loop FILE` does
    turn(home, loop)
    engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock))
    engine.registry.refresh()
    try:
        order = row(ROWS + 50)
        with_it, without = (
            engine.answer(
                "retiring",
                [PredictionRequest(engine.registry.service("retiring").decode(json.dumps(plain(order, names)).encode()).rows)],
            )[0]
            for names in ([*USED, "weight"], USED)
        )
        assert not isinstance(with_it, LoopwrightError)
        assert not isinstance(without, LoopwrightError)
        assert (with_it[0].score, with_it[0].request["weight"]) == (without[0].score, 10.0)
    finally:
        engine.close()


def test_a_loop_serves_on_with_rows_of_all_columns(home: Home, engine: ServingEngine) -> None:
    now = serving(home, "complaints")
    assert now is not None
    manifest = home.packages.manifest(now.champion.package)
    assert {n for n, c in manifest.request.items() if c.optional} == set(UNUSED)
    assert msgspec.structs.replace(manifest.request["weight"], nullable=False, optional=False) == orders.columns["weight"]
