"""A small loop for tests of deploying and serving: its tables, a store of context, and packages built by hand."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
from tests.admitted import unprobed

from loopwright.base.clock import Clock, SimulatedClock
from loopwright.base.settings import Settings
from loopwright.graph.session import Feeder, Graph
from loopwright.records.declarations import (
    Candidate,
    Column,
    Context,
    Heuristic,
    Loop,
    Objective,
    Outcome,
    Scope,
    Table,
    Value,
)
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.package import ContextNeed, Conversion, Golden, Manifest, Reference, Training
from loopwright.stores.home import Home
from loopwright.stores.online.steps import Fed, Steps, pack
from loopwright.stores.packages.probe import Probed
from loopwright.stores.packages.store import Packages, encode_json

LOOP = "late-arrival"
NOW = datetime(2024, 5, 1, 9, 0, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000

REQUESTS = Table(
    "departures",
    {
        "flight": Column("string"),
        "pushed_back_at": Column("timestamp"),
        "origin": Column("string", categories=["EWR", "JFK", "LGA"]),
        "delay": Column("float", minimum=-120, maximum=1440),
        "hour": Column("integer", minimum=0, maximum=23),
        "tail": Column("string", nullable=True),
        "night": Column("boolean"),
    },
    key=["flight"],
    event_time="pushed_back_at",
)
WEATHER = ContextNeed(
    table="weather",
    by={"origin": "origin"},
    columns={"wind": Column("float", nullable=True), "gust": Column("float", nullable=True)},
    values=["wind", "gust"],
    max_age_s=3 * 3600.0,
)
WEATHER_TABLE = Table(
    "weather",
    {"origin": Column("string"), "observed_at": Column("timestamp"), **WEATHER.columns},
    key=["origin"],
    event_time="observed_at",
)
LANDINGS = Table(
    "landings",
    {"flight": Column("string"), "landed_at": Column("timestamp"), "arr_delay": Column("float", minimum=-180, maximum=1440)},
    key=["flight"],
    event_time="landed_at",
)
COLUMNS = {**REQUESTS.columns, **WEATHER.columns}


EVER = (-(2**62), 2**62)
"""From the first moment to the last."""


class Weather:
    """A store of context with one observation for each airport, made at `at`."""

    def __init__(self, at: datetime = NOW, **wind: float) -> None:
        us = int(at.timestamp()) * 1_000_000
        self.rows = {
            o: Steps(pack([EVER[0]], [[us, w, None]])) for o, w in (wind or {"EWR": 10.0, "JFK": 20.0, "LGA": 5.0}).items()
        }

    def fed(self, store: str, /) -> Fed | None:
        """See `deploy.serving.context.ContextStore`."""
        return Fed(1, *EVER) if store == "weather" else None

    def get_many(self, store: str, keys: list[str], /) -> list[Steps | None]:
        """See `deploy.serving.context.ContextStore`."""
        return [self.rows.get(key) for key in keys]


def flight(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A lawful request, as a client sends it."""
    return {
        "flight": f"UA{number}",
        "pushed_back_at": "2024-05-01T09:00:00Z",
        "origin": "JFK",
        "delay": 12.5,
        "hour": 9,
        "tail": None,
        "night": False,
    } | changes


def _arguments() -> dict[str, Any]:
    types: dict[str, Any] = {"float": ndx.float64, "integer": ndx.int64, "boolean": ndx.bool, "string": ndx.utf8}
    nullable: dict[str, Any] = {"float": ndx.nfloat64, "string": ndx.nutf8}
    return {
        name: ndx.argument(
            shape=("N",),
            dtype=ndx.DateTime64DType("us") if c.type == "timestamp" else nullable[c.type] if c.nullable else types[c.type],
        )
        for name, c in COLUMNS.items()
    }


@cache
def model_graph(weight: float = 0.05, *, fails: str = "") -> bytes:
    """A graph with output `score` = sigmoid(weight * (delay + wind) - 1).

    `fails`: "nan", "error", or "kill" (of the process) above an hour's delay, "jfk" scores nothing at that airport.
    """
    f = _arguments()
    wind = nde.fill_null(f["wind"], 8.0)
    z = weight * (f["delay"] + wind) - 1.0
    score = 1 / (1 + ndx.exp(ndx.astype(-z, ndx.float32)))
    if fails == "nan":
        score = ndx.where(f["delay"] > 60, ndx.asarray(np.float32("nan")), score)
    if fails == "jfk":
        score = ndx.where(f["origin"] == "JFK", ndx.asarray(np.float32(0)), score)
    if fails == "kill":  # the processor has no answer to -2**63 / -1, and the runtime does not look
        least = ndx.asarray(np.array(-(2**63), dtype=np.int64))
        divisor = ndx.where(f["delay"] > 60, ndx.asarray(np.int64(-1)), ndx.asarray(np.int64(1)))
        score = score + 0 * ndx.astype(least // divisor, ndx.float32)
    if fails == "error":  # a gather out of its bounds, which the runtime refuses while running
        table = ndx.asarray(np.zeros(24, dtype=np.float32))
        score = score + ndx.take(table, f["hour"] + 1000 * ndx.astype(f["delay"] > 60, ndx.int64))
    return _bytes(f, {"score": score})


@cache
def heuristic_graph() -> bytes:
    """A graph with output `score`: 1 where the delay is above 15 minutes."""
    f = _arguments()
    return _bytes(f, {"score": ndx.astype(f["delay"] > 15, ndx.float32)})


@cache
def slices_graph() -> bytes:
    """A graph with one text output, `origin_slice`."""
    f = _arguments()
    return _bytes(f, {"origin_slice": nde.static_map(f["origin"], {"JFK": "JFK"}, default="other")})


@cache
def hours_graph() -> bytes:
    """A graph with one text output, `hour_slice`, that has a value for each hour."""
    f = _arguments()
    return _bytes(f, {"hour_slice": nde.static_map(f["hour"], {hour: f"{hour:02}" for hour in range(24)}, default="other")})


def _bytes(f: dict[str, Any], outputs: dict[str, Any]) -> bytes:
    data: bytes = ndx.build(f, outputs, drop_unused=True).SerializeToString()
    return data


def golden(model: bytes, count: int = 5) -> list[Golden]:
    """Golden requests with the answers that `model` gives."""
    graph = Graph(model)
    rows = [flight(i, delay=5.0 * i, pushed_back_at=NOW_US) for i in range(count)]
    context = {"wind": 12.0, "gust": None}
    scores = graph.score(Feeder(graph, COLUMNS)([{**r, **context} for r in rows])).tolist()
    return [Golden(request=r, context=context, score=s) for r, s in zip(rows, scores, strict=True)]


PATIENT_MS = 60_000
"""No test of something else is answered by the heuristic because the machine was busy."""


def package(
    packages: Packages, *, weight: float = 0.05, model: bytes | None = None, threshold: float = 0.5, **changes: Any
) -> Probed:
    """A package of the small loop, written into `packages` and marked as probed. Different weights make different packages."""
    graph = model_graph(weight) if model is None else model
    of_slices = changes.pop("of_slices", None) or slices_graph()
    one = Estimate(0.8, 0.75, 0.85, 1000)
    evaluation = Evaluation(
        rows=1000,
        positives=300,
        threshold=threshold,
        metrics={"average_precision": one, "recall": one},
        slices={},
        latency_p50_us=50.0,
        latency_p99_us=90.0,
        size_bytes=len(graph),
        train_seconds=1.0,
        value_per_prediction=1.0,
    )
    manifest = Manifest(
        format=1,
        loop=LOOP,
        candidate="by-hand",
        phase=2,
        created_at=NOW,
        by="tests",
        declaration="0" * 64,
        request=REQUESTS.columns,
        key=REQUESTS.key,
        event_time=REQUESTS.event_time,
        context=[WEATHER],
        features=[],
        vocabulary={},
        slices=changes.pop("slices", ["origin_slice"]),
        threshold=threshold,
        params={"weight": weight},
        seed=0,
        training=Training(examples="0" * 64, rows=1000, as_of=NOW, first=NOW, last=NOW, sources={}, seconds=1.0),
        conversion=Conversion(rows=100, max_difference=0.0),
        commit="",
        environment={},
        parent="",
        release={"on_unloggable": "serve", "deadline_ms": PATIENT_MS} | changes.pop("release", {}),
        files={},
    )
    answers = changes.pop("golden", None) or golden(graph)
    written = packages.write(
        msgspec.structs.replace(manifest, **changes),
        {
            "model.onnx": graph,
            "heuristic.onnx": heuristic_graph(),
            "slices.onnx": of_slices,
            "evaluation.json": encode_json(evaluation),
            "reference.json": encode_json(Reference(columns=[], golden=answers)),
            "card.md": b"# By hand\n",
        },
    )
    return unprobed(packages, written)


def declared() -> Loop:
    """The small loop as a declaration, its code as text."""
    return Loop(
        name=LOOP,
        scope=Scope(
            problem="Which flights land late?",
            objectives=[
                Objective("catch late flights", owner="operations", metric="average_precision", at_least=0.5, weight=2),
                Objective("answer at once", owner="product", metric="latency_p99_ms", at_most=50),
            ],
            heuristic=Heuristic("f.delay > 15"),
            value=Value(true_positive=100, false_positive=-10, false_negative=-50),
        ),
        requests=REQUESTS,
        outcome=Outcome(LANDINGS, label="arr_delay > 15"),
        features="",
        candidates=[Candidate("by-hand", "")],
        context=[Context(WEATHER_TABLE, by=WEATHER.by, columns=list(WEATHER.columns), max_age="3h")],
    )


def opened(folder: Path, clock: Clock | None = None, **settings: Any) -> Home:
    """A home in which the ledger knows the small loop."""
    home = Home(Settings(home=folder, by="tests", port=0, control_port=0, **settings), clock or SimulatedClock(NOW))
    home.ledger.put(declared().record("loop.py"), loop=LOOP, key=LOOP)
    return home
