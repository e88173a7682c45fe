"""Examples for the tests of develop: made-up flights with known causes, as an examples file holds them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loopwright.base.ids import digest
from loopwright.develop.train import Work, prepare
from loopwright.graph.columns import arrow_schema
from loopwright.records.declarations import (
    Candidate,
    Column,
    Context,
    Heuristic,
    Loop,
    Objective,
    Outcome,
    Scope,
    Slice,
    Table,
    Value,
)
from loopwright.records.examples import Examples, Source
from loopwright.records.package import ContextNeed
from loopwright.stores.home import Home

START = datetime(2013, 1, 1, tzinfo=UTC)
REQUEST = {
    "flight": Column("string"),
    "at": Column("timestamp"),
    "delay": Column("float"),
    "distance": Column("integer"),
    "hub": Column("boolean"),
    "carrier": Column("string"),
    "gate": Column("string", nullable=True),
    "score": Column("float", nullable=True),
}
CONTEXT = {"wind": Column("float", nullable=True)}
COLUMNS = {**REQUEST, **CONTEXT}
NEED = [ContextNeed(table="weather", by={"hub": "hub"}, columns=CONTEXT, max_age_s=3600.0)]


OUTCOME = Outcome(
    Table(
        "landings",
        columns={"flight": Column("string"), "landed_at": Column("timestamp"), "delay": Column("float")},
        key=["flight"],
        event_time="landed_at",
    ),
    "delay > 15",
)


def features(f: Any) -> dict[str, Any]:
    """Numbers, a boolean, nullable and plain categories."""
    return {
        "delay": ndx.clip(f.delay, -30.0, 300.0),
        "log_distance": ndx.log1p(ndx.astype(f.distance, ndx.float64)),
        "hub": f.hub,
        "wind": nde.fill_null(f.wind, 8.0),
        "hour": (ndx.astype(f.at, ndx.int64) // 3_600_000_000) % 24,
        "carrier": f.carrier,
        "gate": f.gate,
    }


SLICES = [Slice("carrier", lambda f: f.carrier), Slice("hub", lambda f: f.hub), Slice("gate", lambda f: f.gate)]
SCOPE = Scope(
    problem="Which flights will be late?",
    objectives=[
        Objective("catch late flights", owner="operations", metric="average_precision", at_least=0.5, weight=3),
        Objective("answer at once", owner="product", metric="latency_p99_ms", at_most=50),
        Objective("no carrier left out", owner="partners", metric="recall_gap:carrier", at_most=0.5),
    ],
    heuristic=Heuristic(lambda f: f.delay > 20),
    value=Value(true_positive=100, false_positive=-20, false_negative=-50),
)


WEATHER = Table(
    "weather",
    columns={"hub": Column("boolean"), "measured_at": Column("timestamp"), **CONTEXT},
    key=["hub"],
    event_time="measured_at",
)
LOOP = Loop(
    name="late-arrival",
    scope=SCOPE,
    requests=Table("departures", columns=REQUEST, key=["flight"], event_time="at"),
    outcome=OUTCOME,
    context=[Context(WEATHER, by={"hub": "hub"}, columns=["wind"], max_age="1h")],
    features=features,
    candidates=[Candidate("linear", lambda: make_pipeline(StandardScaler(), LogisticRegression()))],
    slices=SLICES,
)


def table(n: int = 3000, seed: int = 0) -> pa.Table:
    """`n` examples over 60 days: late when delay, wind and the carrier say so."""
    rng = np.random.default_rng(seed)
    moment = np.sort(rng.integers(0, 60 * 86_400_000_000, n))
    delay, wind = rng.exponential(20, n) - 8, rng.gamma(3, 3, n)
    carrier = rng.choice(["UA", "AA", "B6", "EV"], n, p=[0.4, 0.3, 0.2, 0.1])
    logit = 0.09 * delay + 0.25 * np.maximum(wind - 10, 0) + 1.5 * (carrier == "EV") - 2.2
    columns = {
        "flight": [f"F{i}" for i in range(n)],
        "at": [START + timedelta(microseconds=int(m)) for m in moment],
        "delay": delay,
        "distance": rng.integers(100, 3000, n),
        "hub": rng.random(n) < 0.5,
        "carrier": carrier,
        "gate": [None if g == 0 else f"G{g}" for g in rng.integers(0, 4, n)],
        "score": [None] * n,
        "wind": [None if missing else w for w, missing in zip(wind, rng.random(n) < 0.1, strict=True)],
    }
    made = pa.table(columns, schema=arrow_schema(COLUMNS))
    stamp = pa.timestamp("us", tz="UTC")
    return (
        made.append_column("_decided_at", made.column("at"))
        .append_column("_known_at", pa.array([START + timedelta(microseconds=int(m), hours=3) for m in moment], type=stamp))
        .append_column("_label", pa.array(rng.random(n) < 1 / (1 + np.exp(-logit))))
        .append_column("_unit", made.column("flight"))
        .append_column("_prediction", pa.nulls(n, type=pa.string()))
    )


def prepared(home: Home, examples: Examples, *, context: list[ContextNeed] = NEED, **changes: Any) -> Work:
    """`LOOP` with changes, up to fitting; `window`, `parent` and `progress` go to `prepare`."""
    extra = {name: changes.pop(name) for name in ("window", "parent", "progress") if name in changes}
    return prepare(home, msgspec.structs.replace(LOOP, **changes), examples, context=context, **extra)


def store(home: Home, rows: pa.Table) -> Examples:
    """Write an examples file into `home`, as stage data does."""
    path: Path = home.folder("examples") / "new.parquet"
    pq.write_table(rows, path)
    name = digest(path.read_bytes())
    path.rename(path.with_name(f"{name}.parquet"))
    decided = rows.column("_decided_at").to_pylist()
    return Examples(
        digest=name,
        rows=len(rows),
        positives=sum(rows.column("_label").to_pylist()),
        as_of=START + timedelta(days=61),
        first=min(decided),
        last=max(decided),
        sources=[Source(table="departures", version=3, rows=len(rows), files={})],
        excluded={},
        request=REQUEST,
        context=CONTEXT,
    )
