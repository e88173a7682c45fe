"""Visits to shops: a small made-up loop with a fleet by shop, whose truth is known (data: `test_fleet.py`)."""

from typing import Any

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from loopwright import (
    Candidate,
    Column,
    Fleet,
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

visits = Table(
    "visits",
    {
        "visit": Column("integer"),
        "at": Column("timestamp"),
        "shop": Column("string", nullable=True),
        "pages": Column("float", minimum=0, maximum=100),
    },
    key=["visit"],
    event_time="at",
)
purchases = Table(
    "purchases",
    {"visit": Column("integer"), "told_at": Column("timestamp"), "bought": Column("boolean")},
    key=["visit"],
    event_time="told_at",
)


def features(f: Any) -> dict[str, Any]:
    """What the models see."""
    return {"pages": f.pages}


def logistic_regression() -> Pipeline:
    """The simplest model."""
    return make_pipeline(StandardScaler(), LogisticRegression())


loop = Loop(
    name="visits",
    scope=Scope(
        problem="Who will buy?",
        objectives=[
            Objective("find buyers", owner="sales", metric="average_precision", at_least=0.1, weight=3),
            Objective("no shop left out", owner="shops", metric="recall_gap:shop", at_most=1.0),
        ],
        heuristic=Heuristic(lambda f: f.pages > 60),
        value=Value(true_positive=2, false_positive=-1),
    ),
    requests=visits,
    outcome=Outcome(purchases, label="bought", wait="2d"),
    features=features,
    candidates=[Candidate("logistic-regression", logistic_regression)],
    slices=[Slice("shop", lambda f: f.shop)],
    split=TimeSplit(validation="14d"),
    release=Release(guards=[Guard("average_precision", tolerance=0.02)]),
    fleet=Fleet(by="shop", minimum_rows=200),
    monitor=Monitor(every="7d", minimum_rows=100),
    retrain=Retrain(every="14d", decay=0.2, cooldown="1d"),
)
