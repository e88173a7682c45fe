"""Late arrivals: which flights out of New York will land more than 15 minutes late, told at push-back.

The data are real (every departure of 2013); `prepare.py` writes the files. README.md walks through this file.
"""

from typing import Any

import lightgbm as lgb
import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from loopwright import (
    Aggregate,
    Budget,
    Canary,
    Candidate,
    Column,
    Context,
    Full,
    Guard,
    Heuristic,
    Loop,
    Monitor,
    Objective,
    Outcome,
    Release,
    Retrain,
    Scope,
    Shadow,
    Slice,
    Table,
    TimeSplit,
    Value,
)

AIRPORTS = ["EWR", "JFK", "LGA"]
CARRIER_GROUPS = {
    "AA": "network", "AS": "network", "DL": "network", "HA": "network", "UA": "network", "US": "network",
    "B6": "low-cost", "F9": "low-cost", "FL": "low-cost", "VX": "low-cost", "WN": "low-cost",
    "9E": "regional", "EV": "regional", "MQ": "regional", "OO": "regional", "YV": "regional",
}  # fmt: skip

departures = Table(
    name="departures",
    description="One row per flight that pushed back: what operations knows at that moment.",
    columns={
        "flight_id": Column("string", description="carrier, flight number, origin and date"),
        "pushed_back_at": Column("timestamp", description="scheduled departure plus departure delay"),
        "scheduled_at": Column("timestamp", description="scheduled departure"),
        "carrier": Column("string", description="IATA code"),
        "origin": Column("string", categories=AIRPORTS),
        "dest": Column("string", description="IATA code of the destination"),
        "tail_number": Column("string", nullable=True),
        "distance": Column("float", minimum=50, maximum=6000, description="miles"),
        "scheduled_minutes": Column("integer", minimum=15, maximum=900, description="scheduled gate to gate"),
        "hour": Column("integer", minimum=0, maximum=23, description="scheduled local hour"),
        "weekday": Column("integer", minimum=0, maximum=6, description="local, Monday is 0"),
        "dep_delay": Column("float", minimum=-120, maximum=1440, description="minutes, negative is early"),
    },
    key=["flight_id"],
    event_time="pushed_back_at",
)

weather = Table(
    name="weather",
    description="Hourly observations at the three airports.",
    columns={
        "origin": Column("string", categories=AIRPORTS),
        "observed_at": Column("timestamp"),
        "temperature": Column("float", nullable=True, minimum=-30, maximum=120, description="degrees Fahrenheit"),
        "humidity": Column("float", nullable=True, minimum=0, maximum=100, description="percent"),
        "wind_direction": Column("float", nullable=True, minimum=0, maximum=360, description="degrees"),
        "wind_speed": Column("float", nullable=True, minimum=0, maximum=150, description="miles per hour"),
        "wind_gust": Column("float", nullable=True, minimum=0, maximum=200, description="miles per hour; null when calm"),
        "precipitation": Column("float", nullable=True, minimum=0, maximum=10, description="inches"),
        "pressure": Column("float", nullable=True, minimum=900, maximum=1100, description="millibars"),
        "visibility": Column("float", nullable=True, minimum=0, maximum=10, description="miles"),
    },
    key=["origin"],
    event_time="observed_at",
    known_after="20m",  # an observation is published 20 minutes after its hour
)

landings = Table(
    name="landings",
    description="One row per flight that reached its destination; cancelled and diverted flights never get one.",
    columns={
        "flight_id": Column("string"),
        "landed_at": Column("timestamp", description="at the gate"),
        "carrier": Column("string", description="IATA code"),
        "origin": Column("string", categories=AIRPORTS),
        "arr_delay": Column("float", minimum=-180, maximum=1440, description="minutes, negative is early"),
        "air_time": Column("float", nullable=True, minimum=5, maximum=1000, description="minutes"),
    },
    key=["flight_id"],
    event_time="landed_at",
)


def features(f: Any) -> dict[str, ndx.Array]:
    """Array API code, traced once into ONNX: the same bytes compute it in training and while serving."""
    delay = ndx.clip(f.dep_delay, -30.0, 300.0)
    minutes = ndx.astype(f.scheduled_minutes, ndx.float64)
    angle = ndx.astype(f.hour, ndx.float32) * (2 * np.pi / 24)  # float32: the runtime has no float64 sine
    wind = nde.fill_null(f.wind_speed, 10.0)
    bearing = ndx.astype(nde.fill_null(f.wind_direction, 0.0), ndx.float32) * (np.pi / 180)
    return {
        "dep_delay": delay,
        "dep_delay_per_hour": 60 * delay / minutes,
        "log_distance": ndx.log1p(f.distance),
        "scheduled_minutes": minutes,
        "padding": minutes - f.distance / 7.8,  # minutes beyond flying straight at 470 miles per hour
        "hour_sin": ndx.sin(angle),
        "hour_cos": ndx.cos(angle),
        "weekend": f.weekday >= 5,
        "temperature": nde.fill_null(f.temperature, 50.0),
        "humidity": nde.fill_null(f.humidity, 60.0),
        "wind_speed": wind,
        "wind_gust": ndx.maximum(nde.fill_null(f.wind_gust, 0.0), wind),
        "wind_north": wind * ndx.cos(bearing),
        "wind_east": wind * ndx.sin(bearing),
        "precipitation": ndx.log1p(100 * nde.fill_null(f.precipitation, 0.0)),
        "pressure": nde.fill_null(f.pressure, 1018.0),
        "visibility": nde.fill_null(f.visibility, 10.0),
        "carrier_delay": nde.fill_null(f.carrier_delay, 0.0),
        "origin_late": nde.fill_null(f.origin_late, 0.2),
        "carrier": f.carrier,
        "origin": f.origin,
    }


def carrier_group(f: Any) -> ndx.Array:
    """Network, low-cost or regional carrier."""
    return nde.static_map(f.carrier, CARRIER_GROUPS, default="other")


def logistic_regression() -> Pipeline:
    """The simplest model that learns."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))


def lightgbm(trial: Any) -> lgb.LGBMClassifier:
    """Boosted trees, searched by Optuna."""
    return lgb.LGBMClassifier(
        n_estimators=trial.suggest_int("n_estimators", 60, 200, step=20),
        num_leaves=trial.suggest_int("num_leaves", 7, 47),
        learning_rate=trial.suggest_float("learning_rate", 0.03, 0.2, log=True),
        min_child_samples=trial.suggest_int("min_child_samples", 20, 200, log=True),
        random_state=0,
        n_jobs=1,  # more threads wait for each other where other work shares the cores
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
    )


def neural_network() -> Pipeline:
    """Two hidden layers."""
    network = MLPClassifier(
        (32, 16), batch_size=512, learning_rate_init=0.003, early_stopping=True, n_iter_no_change=2, tol=1e-3, random_state=0
    )
    return make_pipeline(StandardScaler(), network)


loop = Loop(
    name="late-arrival",
    scope=Scope(
        problem="Tell the operations desk at push-back which flights will land more than 15 minutes late.",
        objectives=[
            Objective("catch late flights", owner="operations", metric="average_precision", at_least=0.80, weight=3),
            Objective("answer at once", owner="product", metric="latency_p99_ms", at_most=5, weight=1),
            Objective("no carrier left out", owner="partners", metric="recall_gap:carrier_group", at_most=0.2, weight=1),
        ],
        budget=Budget(train_minutes=10, usd_per_month=50),
        heuristic=Heuristic(lambda f: f.dep_delay > 15),
        value=Value(currency="USD", true_positive=120, false_positive=-15, false_negative=-60),
    ),
    requests=departures,
    context=[
        Context(
            weather,
            by={"origin": "origin"},
            columns=[
                "temperature",
                "humidity",
                "wind_direction",
                "wind_speed",
                "wind_gust",
                "precipitation",
                "pressure",
                "visibility",
            ],
            max_age="3h",
        )
    ],
    aggregates=[  # of flights that have landed by then: what operations knows of the day so far
        Aggregate(
            name="carrier_delay",
            table=landings,
            by={"carrier": "carrier"},
            function="mean",
            of="arr_delay",
            window="24h",
            description="mean arrival delay of this carrier over the last 24 hours, minutes",
        ),
        Aggregate(
            name="origin_late",
            table=landings,
            by={"origin": "origin"},
            function="share",
            of="arr_delay > 15",
            window="3h",
            description="share of the flights from this airport that landed late, of those that landed in the last 3 hours",
        ),
    ],
    outcome=Outcome(landings, label="arr_delay > 15", wait="7d"),
    features=features,
    slices=[
        Slice("origin", lambda f: f.origin),
        Slice("carrier_group", carrier_group),
        Slice("night", lambda f: (f.hour >= 21) | (f.hour < 6)),
    ],
    candidates=[
        Candidate("logistic-regression", logistic_regression, phase=2),
        Candidate("lightgbm", lightgbm, phase=3, encoding="ordinal", trials=8),
        Candidate("neural-network", neural_network, phase=4),
    ],
    split=TimeSplit(validation="14d"),
    release=Release(
        plan=[
            Shadow(time="1d", rows=500),
            Canary(share=0.1, time="1d", rows=50),
            Canary(share=0.5, time="6d", rows=1000),
            Full(watch="14d", hold_back=0.05),
        ],
        guards=[
            Guard("value_per_prediction"),
            Guard("average_precision", tolerance=0.02),
            Guard("recall", tolerance=0.05, slices=["origin", "carrier_group"]),
        ],
    ),
    monitor=Monitor(every="7d", minimum_rows=500),
    retrain=Retrain(every="90d", drift=5, decay=0.05, cooldown="42d"),
)
