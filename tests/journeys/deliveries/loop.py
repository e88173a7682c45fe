"""Late deliveries: a small made-up loop whose truth is known, for tests of the loop as a whole (data: `synthetic.py`)."""

import os
import signal
from typing import Any

import lightgbm as lgb
import ndonnx.extensions as nde
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from loopwright import (
    Candidate,
    Column,
    Context,
    Guard,
    Heuristic,
    Loop,
    Monitor,
    Objective,
    Outcome,
    Release,
    Retrain,
    Scope,
    Slice,
    Table,
    TimeSplit,
    Value,
)

SHOPS = ["east", "north", "west"]

orders = Table(
    "orders",
    {
        "order": Column("integer"),
        "at": Column("timestamp"),
        "shop": Column("string", categories=SHOPS),
        "distance": Column("float", minimum=0, maximum=60),
        "weight": Column("float", nullable=True, minimum=0, maximum=40),
    },
    key=["order"],
    event_time="at",
)
traffic = Table(
    "traffic",
    {
        "shop": Column("string", categories=SHOPS),
        "seen_at": Column("timestamp"),
        "told_at": Column("timestamp"),
        "jam": Column("float", nullable=True, minimum=0, maximum=10),
    },
    key=["shop"],
    event_time="seen_at",
    known_time="told_at",
    known_after="5m",
)
deliveries = Table(
    "deliveries",
    {"order": Column("integer"), "came_at": Column("timestamp"), "minutes": Column("float", minimum=0, maximum=1000)},
    key=["order"],
    event_time="came_at",
    known_after="30m",
)


def features(f: Any) -> dict[str, Any]:
    """What the models see."""
    return {
        "distance": f.distance,
        "weight": nde.fill_null(f.weight, 10.0),
        "jam": nde.fill_null(f.jam, 3.0),
        "shop": f.shop,
    }


def logistic_regression() -> Pipeline:
    """The simplest model; a test may have the process killed in the middle of training."""
    if os.environ.get("DIE_IN_TRAINING"):
        os.kill(os.getpid(), signal.SIGKILL)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))


def lightgbm(trial: Any) -> lgb.LGBMClassifier:
    """Small boosted trees."""
    return lgb.LGBMClassifier(
        n_estimators=40,
        num_leaves=trial.suggest_int("num_leaves", 5, 15),
        learning_rate=0.08,
        min_child_samples=30,
        random_state=0,
        n_jobs=1,
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
    )


loop = Loop(
    name="late",
    scope=Scope(
        problem="Which deliveries will be late?",
        objectives=[
            Objective("find the late ones", owner="drivers", metric="average_precision", at_least=0.3, weight=2),
            Objective("worth the effort", owner="shops", metric="value_per_prediction", at_least=0.5),
        ],
        heuristic=Heuristic(lambda f: f.distance > 15),
        value=Value(currency="EUR", true_positive=10, false_positive=-2, false_negative=-6),
    ),
    requests=orders,
    context=[Context(traffic, by={"shop": "shop"}, columns=["jam"], max_age="6h")],
    outcome=Outcome(deliveries, label="minutes > 60", wait="2d"),
    features=features,
    slices=[Slice("shop", lambda f: f.shop)],
    candidates=[
        Candidate("logistic-regression", logistic_regression, phase=2),
        Candidate("lightgbm", lightgbm, phase=3, encoding="ordinal", trials=2),
    ],
    split=TimeSplit(validation="2d"),
    release=Release(guards=[Guard("average_precision", tolerance=0.1)]),
    monitor=Monitor(every="7d", minimum_rows=100),
    retrain=Retrain(drift=2, cooldown="10d", window="8d"),
)
