"""A small loop of every task but the binary one, over the same invented time stamps, and its tables."""

import datetime as dt
from collections.abc import Callable
from typing import Any, NamedTuple

import ndonnx as ndx
import numpy as np
import pyarrow as pa
from lightgbm import LGBMRanker, LGBMRegressor
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import HistGradientBoostingRegressor, IsolationForest
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBRegressor

from loopwright import (
    Candidate,
    Column,
    Heuristic,
    Home,
    Loop,
    Monitor,
    Objective,
    Outcome,
    Retrain,
    Scope,
    Slice,
    Table,
    TimeSplit,
    Value,
)
from loopwright.data.ingest.ingestion import ingest
from loopwright.graph.columns import arrow_schema

BEGIN = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
START, END = BEGIN + dt.timedelta(days=42), BEGIN + dt.timedelta(days=56)
"""Six weeks of history, then two weeks live."""

ROWS = 1600
HOUR = dt.timedelta(hours=1)


class Case(NamedTuple):
    """A loop, and the columns of its requests and outcomes [ROWS], apart from keys and times."""

    loop: Loop
    asked: dict[str, Any]
    landed: dict[str, Any]


def _loop(
    name: str,
    asked: dict[str, Any],
    landed: dict[str, Any],
    outcome: dict[str, Any],
    *,
    rule: Callable[[Any], Any],
    objectives: list[Objective],
    candidates: list[Candidate],
    value: Value = Value(),  # noqa: B008  # a frozen value
    left_out: tuple[str, ...] = (),
) -> Case:
    def columns(values: dict[str, Any]) -> dict[str, Column]:
        kinds = {"f": "float", "i": "integer", "b": "boolean"}
        return {n: Column(kinds.get(np.asarray(v).dtype.kind, "string")) for n, v in values.items()}  # type: ignore[arg-type]  # one of them

    requests = Table(
        f"{name}-asked", {"id": Column("string"), "at": Column("timestamp"), **columns(asked)}, key=["id"], event_time="at"
    )
    outcomes = Table(
        f"{name}-landed",
        {"id": Column("string"), "known": Column("timestamp"), **columns(landed)},
        key=["id"],
        event_time="known",
    )
    used = [n for n in asked if n not in left_out]

    def features(f: Any) -> dict[str, Any]:
        return {n: f[n] for n in used}

    first = used[0]
    loop = Loop(
        name=name,
        scope=Scope(problem=f"Try {name}.", objectives=objectives, heuristic=Heuristic(rule), value=value),
        requests=requests,
        outcome=Outcome(outcomes, wait="3d", **outcome),
        features=features,
        candidates=candidates,
        slices=[Slice("side", lambda f: f[first] > 0)],
        split=TimeSplit(validation="10d"),
        monitor=Monitor(every="7d", minimum_rows=50),
        retrain=Retrain(every="7d", cooldown="6d"),
    )
    return Case(loop, asked, landed)


def _linear() -> Any:
    return make_pipeline(StandardScaler(), LinearRegression())


def _quantiles() -> Any:
    return LGBMRegressor(n_estimators=30, min_child_samples=20, n_jobs=1, verbose=-1, deterministic=True, force_row_wise=True)


def multiclass() -> Case:
    """The wines of scikit-learn, each tasted many times with some noise."""
    rng = np.random.default_rng(0)
    data = load_wine()
    pick = rng.integers(0, len(data.data), ROWS)
    matrix = ((data.data - data.data.mean(axis=0)) / data.data.std(axis=0))[pick] + rng.normal(0, 0.6, (ROWS, 13))
    names = np.array(["barolo", "grignolino", "barbera"], dtype=object)
    return _loop(
        "wine",
        {"colour": matrix[:, 9], "alcohol": matrix[:, 0], "flavanoids": matrix[:, 6], "proline": matrix[:, 12]},
        {"kind": names[data.target[pick]]},
        {"label": "kind", "task": "multiclass"},
        rule=lambda f: ndx.where(f.flavanoids > 0.6, ndx.asarray("barolo"), ndx.asarray("grignolino")),
        objectives=[
            Objective("name the wine", owner="cellar", metric="macro_f1", at_least=0.7, weight=2),
            Objective("never miss a barolo", owner="guests", metric="recall:barolo", at_least=0.6),
        ],
        candidates=[Candidate("logistic", lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)))],
        value=Value(correct=1, wrong=-2),
    )


def regression() -> Case:
    """The patients of scikit-learn's diabetes data, each seen several times."""
    rng = np.random.default_rng(1)
    data = load_diabetes()
    pick = rng.integers(0, len(data.data), ROWS)
    matrix = data.data[pick] * 20 + rng.normal(0, 0.1, (ROWS, 10))
    asked = {name: matrix[:, i] for i, name in enumerate(["bmi", "pressure", "s5"], start=2)}
    asked["s5"] = matrix[:, 8]
    return _loop(
        "diabetes",
        asked,
        {"progression": data.target[pick] + rng.normal(0, 5, ROWS)},
        {"label": "progression", "task": "regression"},
        rule=lambda f: 150 + 40 * f.bmi,
        objectives=[
            Objective("close", owner="ward", metric="mae", at_most=60, weight=2),
            Objective("not off on the whole", owner="ward", metric="bias", at_most=15),
        ],
        candidates=[Candidate("linear", _linear)],
        value=Value(correct=50, under=-1, over=-0.5),
    )


def quantiles() -> Case:
    """Hours of a repair, the wider spread the bigger it is."""
    rng = np.random.default_rng(2)
    size, age = rng.uniform(0, 4, ROWS), rng.normal(0, 1, ROWS)
    hours = 5 + 2 * size + age + rng.normal(0, 0.5 + size, ROWS)
    return _loop(
        "repairs",
        {"size": size, "age": age},
        {"hours": hours},
        {"label": "hours", "task": "regression", "quantiles": [0.1, 0.5, 0.9]},
        rule=lambda f: 5 + 2 * f.size,
        objectives=[
            Objective("honest range", owner="garage", metric="coverage:0.1-0.9", at_least=0.6),
            Objective("sharp", owner="garage", metric="pinball", at_most=2, weight=2),
        ],
        candidates=[Candidate("trees", _quantiles, phase=3, encoding="ordinal")],
    )


def several() -> Case:
    """Two numbers at once: the cost and the weight of a parcel."""
    rng = np.random.default_rng(3)
    volume, distance = rng.gamma(3, 1, ROWS), rng.gamma(2, 2, ROWS)
    return _loop(
        "parcels",
        {"volume": volume, "distance": distance},
        {"cost": 3 + volume + 2 * distance + rng.normal(0, 0.3, ROWS), "weight": 2 * volume + rng.normal(0, 0.2, ROWS)},
        {"label": {"cost": "cost", "weight": "weight"}, "task": "regression"},
        rule=lambda f: {"cost": 3 + 2 * f.distance, "weight": 2 * f.volume},
        objectives=[
            Objective("right cost", owner="sales", metric="mae:cost", at_most=1, weight=2),
            Objective("right weight", owner="vans", metric="mae:weight", at_most=1),
        ],
        candidates=[Candidate("linear", _linear)],
    )


def ranking() -> Case:
    """Offers within searches: which is clicked (1) or booked (2)."""
    rng = np.random.default_rng(4)
    search = np.repeat(np.arange(ROWS // 8), 8)
    price, stars = rng.normal(0, 1, ROWS), rng.integers(1, 6, ROWS)
    liking = -price + 1.0 * stars + rng.normal(0, 0.7, ROWS)
    place = np.argsort(np.argsort(-liking.reshape(-1, 8), axis=1), axis=1).ravel()
    return _loop(
        "offers",
        {"price": price, "stars": stars, "search": np.array([f"s{s}" for s in search], dtype=object)},
        {"interest": np.where(place == 0, 2, np.where(place == 1, 1, 0))},
        {"label": "interest", "task": "ranking", "group": "search"},
        rule=lambda f: -f.price,
        objectives=[Objective("best first", owner="guests", metric="ndcg:5", at_least=0.6)],
        candidates=[
            Candidate(
                "ranker",
                lambda: LGBMRanker(
                    n_estimators=30, min_child_samples=5, n_jobs=1, verbose=-1, deterministic=True, force_row_wise=True
                ),
                phase=3,
                encoding="ordinal",
            )
        ],
        left_out=("search",),
    )


def anomaly() -> Case:
    """Machines that mostly run alike; somebody looked at some of them."""
    rng = np.random.default_rng(5)
    strange = rng.random(ROWS) < 0.1
    hot = rng.random(ROWS) < 0.5
    heat = rng.normal(0, 1, ROWS) + np.where(strange & hot, rng.choice([-5, 5], ROWS), 0)
    hum = rng.normal(0, 1, ROWS) + np.where(strange & ~hot, rng.choice([-5, 5], ROWS), 0)
    return _loop(
        "machines",
        {"heat": heat, "hum": hum},
        {"fault": strange},
        {"label": "fault", "task": "anomaly", "alert_share": 0.1},
        rule=lambda f: ndx.abs(f.heat),
        objectives=[Objective("find faults", owner="plant", metric="average_precision", at_least=0.5)],
        candidates=[Candidate("forest", lambda: IsolationForest(n_estimators=40, n_jobs=1))],
        value=Value(true_positive=100, false_positive=-5, false_negative=-50),
    )


def binary() -> Case:
    """Boxes that break on the way: heavy ones, and those that are dropped."""
    rng = np.random.default_rng(7)
    weight, drops = rng.normal(0, 1, ROWS), rng.normal(0, 1, ROWS)
    broken = 1.5 * weight + 1.5 * drops - 1 + rng.logistic(0, 1, ROWS) > 0
    return _loop(
        "boxes",
        {"weight": weight, "drops": drops},
        {"broken": broken},
        {"label": "broken"},
        rule=lambda f: f.weight > 0.5,
        objectives=[Objective("find the broken", owner="store", metric="average_precision", at_least=0.6)],
        candidates=[Candidate("logistic", lambda: make_pipeline(StandardScaler(), LogisticRegression()))],
        value=Value(true_positive=10, false_positive=-2),
    )


def count() -> Case:
    """Calls in an hour at a desk: a Poisson number whose rate is a product."""
    rng = np.random.default_rng(8)
    load, sale = rng.normal(0, 1, ROWS), (rng.random(ROWS) < 0.3).astype(np.float64)
    calls = rng.poisson(np.exp(0.8 + 0.5 * load + 0.9 * sale))
    return _loop(
        "calls",
        {"load": load, "sale": sale},
        {"calls": calls},
        {"label": "calls", "task": "count"},
        rule=lambda f: 2 + f.load,
        objectives=[
            Objective("enough at the desk", owner="desk", metric="poisson_deviance", at_most=1.4, weight=2),
            Objective("right on the whole", owner="desk", metric="mae", at_most=2),
        ],
        candidates=[
            Candidate("poisson", lambda: make_pipeline(StandardScaler(), PoissonRegressor(alpha=0.0))),
            Candidate("histogram", lambda: HistGradientBoostingRegressor(loss="poisson", max_iter=30, random_state=0), phase=3),
            Candidate("lightgbm", lambda: _quantiles().set_params(objective="poisson"), phase=3, encoding="ordinal"),
            Candidate("xgboost", lambda: XGBRegressor(objective="count:poisson", n_estimators=30, n_jobs=1), phase=3),
        ],
        value=Value(correct=3, under=-1, over=-0.5),
    )


CASES: dict[str, Callable[[], Case]] = {
    "multiclass": multiclass,
    "regression": regression,
    "quantiles": quantiles,
    "several": several,
    "ranking": ranking,
    "anomaly": anomaly,
}
CONFORMANCE: dict[str, Callable[[], Case]] = {**CASES, "binary": binary, "count": count}
"""A case of every task and more: what `tests/tasks/test_conformance.py` walks through every stage."""


def fill(home: Home, case: Case, *, outcomes: bool = True) -> None:
    """Ingest what happened: one decision every 50 minutes, its outcome five hours later; of anomalies one in five is never heard of."""
    at = [BEGIN + i * (END - BEGIN) / ROWS for i in range(ROWS)]
    ids = [f"r{i:05d}" for i in range(ROWS)]
    asked = pa.table({"id": ids, "at": at, **case.asked}, schema=arrow_schema(case.loop.requests.columns))
    landed = pa.table(
        {"id": ids, "known": [t + 5 * HOUR for t in at], **case.landed}, schema=arrow_schema(case.loop.outcome.table.columns)
    )
    if case.loop.outcome.task == "anomaly":
        landed = landed.filter(pa.array(np.random.default_rng(6).random(ROWS) < 0.8))
    for table, rows in ((case.loop.requests, asked), (case.loop.outcome.table, landed)):
        if outcomes or table is case.loop.requests:
            assert ingest(home, table, rows).quarantined == 0
