"""The loop that is served beside the peers: will a flight out of New York land more than 15 minutes late? 15 raw columns, no context.

LightGBM with 200 trees of 31 leaves. The order of the features is the order in which the peers' pipeline puts its columns.
"""

from typing import Any

import lightgbm as lgb
import ndonnx as ndx
from benchmarks.serving.columns import CATEGORIES, KEY, MODEL, NUMBERS, STRINGS, VALIDATION

from loopwright import Candidate, Column, Heuristic, Loop, Objective, Outcome, Release, Scope, Table, TimeSplit

departures = Table(
    name="departures",
    columns={
        "pushed_back_at": Column("timestamp"),
        **{name: Column("string", categories=CATEGORIES[name]) for name in STRINGS},
        **{name: Column("float" if kind is float else "integer", minimum=low, maximum=high) for name, (kind, low, high) in NUMBERS.items()},
    },
    key=KEY,
    event_time="pushed_back_at",
)  # fmt: skip

landings = Table(
    name="landings",
    columns={
        **{name: departures.columns[name] for name in KEY},
        "landed_at": Column("timestamp"),
        "arr_delay": Column("float"),
    },
    key=KEY,
    event_time="landed_at",
)


def features(f: Any) -> dict[str, ndx.Array]:
    """The raw columns."""
    return {name: getattr(f, name) for name in [*STRINGS, *NUMBERS]}


def lightgbm() -> lgb.LGBMClassifier:
    """The model that the peers serve, too."""
    return lgb.LGBMClassifier(**MODEL)


loop = Loop(
    name="flight-delay",
    scope=Scope(
        problem="Tell the operations desk at push-back which flights will land more than 15 minutes late.",
        objectives=[Objective("catch late flights", owner="operations", metric="average_precision", at_least=0.5)],
        heuristic=Heuristic(lambda f: f.dep_delay > 15),
    ),
    requests=departures,
    outcome=Outcome(landings, label="arr_delay > 15", wait="2d"),
    features=features,
    candidates=[Candidate("lightgbm", lightgbm, phase=3, encoding="ordinal")],
    split=TimeSplit(validation=VALIDATION),
    release=Release(durability="process"),
)
