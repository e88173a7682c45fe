"""Deliveries with a known truth: thirteen weeks of decisions, context that comes late or twice, outcomes late or never.

From `DRIFT` on the shops deliver farther away and what makes a delivery late is another thing, so a model trained before
is worse afterwards, and one trained after is better again.
"""

import datetime as dt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright import Home, Loop
from loopwright.base.clock import Clock, SimulatedClock
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.graph.columns import arrow_schema
from loopwright.loop import load_loop

FOLDER = Path(__file__).parent / "deliveries"
FILE = FOLDER / "loop.py"
SHOPS = ["east", "north", "west"]
BEGIN = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
WEEK = dt.timedelta(days=7)
START = BEGIN + 5 * WEEK
"""Here the loop goes live in the tests: five weeks of history."""

DRIFT = START + 3 * WEEK
END = BEGIN + 13 * WEEK
PER_WEEK = 340
WORTH = {(True, True): 10.0, (True, False): -2.0, (False, True): -6.0, (False, False): 0.0}
"""Money by (label, truth), as loop.py declares it."""

Rows = list[dict[str, Any]]


class World(NamedTuple):
    """The three tables as they would be ingested at the end of time."""

    orders: Rows
    traffic: Rows
    deliveries: Rows


def world(seed: int = 0) -> World:
    """Everything that happened, in order of time."""
    rng = np.random.default_rng(seed)
    traffic: Rows = []
    jams: dict[tuple[str, int], float] = {}
    hours = int((END - BEGIN).total_seconds() // 3600)
    for shop in SHOPS:
        for hour in range(hours):
            if rng.random() < 0.1:  # a gap
                continue
            jam = float(np.clip(rng.normal(3 + 2 * np.sin(hour / 24 * 2 * np.pi), 1.5), 0, 10))
            jams[shop, hour] = jam
            seen = BEGIN + dt.timedelta(hours=hour)
            told = seen + dt.timedelta(minutes=int(rng.choice([1, 10, 150], p=[0.6, 0.3, 0.1])))
            first = None if rng.random() < 0.05 else jam
            traffic.append({"shop": shop, "seen_at": seen, "told_at": told, "jam": first})
            if rng.random() < 0.05:  # a correction, hours later
                again = told + dt.timedelta(minutes=int(rng.integers(30, 300)))
                traffic.append({"shop": shop, "seen_at": seen, "told_at": again, "jam": min(jam + 1, 10.0)})
    orders: Rows = []
    deliveries: Rows = []
    count = int((END - BEGIN) / WEEK * PER_WEEK)
    for number, second in enumerate(np.sort(rng.integers(0, hours * 3600, count)).tolist()):
        at = BEGIN + dt.timedelta(seconds=second)
        late = at >= DRIFT
        shop = str(rng.choice(SHOPS))
        distance = float(np.clip(rng.gamma(4, 5.0 if late else 2.5), 0.1, 60))
        weight = float(np.clip(rng.gamma(3, 4), 0, 40))
        jam = jams.get((shop, second // 3600), 3.0)
        push = 0.05 * (distance - 20) - 0.35 * (weight - 9) if late else 0.18 * (distance - 12) + 0.15 * (weight - 14)
        truth = rng.random() < 1 / (1 + np.exp(-(1.2 * push + 0.5 * (jam - 4) + (0.5 if shop == "west" else 0))))
        orders.append(
            {"order": number, "at": at, "shop": shop, "distance": distance, "weight": None if rng.random() < 0.05 else weight}
        )
        if rng.random() < 0.94:  # others are never heard of
            minutes = float(rng.uniform(61, 180) if truth else rng.uniform(10, 60))
            came = at + dt.timedelta(minutes=minutes) + dt.timedelta(hours=float(rng.exponential(10)))
            deliveries.append({"order": number, "came_at": came, "minutes": minutes})
    return World(orders, sorted(traffic, key=lambda r: r["told_at"]), sorted(deliveries, key=lambda r: r["came_at"]))


def poisoned(given: World, moment: dt.datetime) -> World:
    """The same past, another future: every row known after `moment` says something else."""
    known = {"traffic": dt.timedelta(minutes=5), "deliveries": dt.timedelta(minutes=30)}
    return World(
        [r if r["at"] <= moment else r | {"shop": "west", "distance": 59.0, "weight": 39.0} for r in given.orders],
        [r if r["told_at"] + known["traffic"] <= moment else r | {"jam": 9.9} for r in given.traffic],
        [
            r if r["came_at"] + known["deliveries"] <= moment else r | {"minutes": 500.0 if r["minutes"] <= 60 else 1.0}
            for r in given.deliveries
        ],
    )


def known(loop: Loop, given: World, by: dt.datetime) -> World:
    """What was known by a moment, as a live system would have ingested it."""
    return World(
        [r for r in given.orders if r["at"] <= by],
        [r for r in given.traffic if r["told_at"] <= by],
        [r for r in given.deliveries if r["came_at"] <= by],
    )


def tables(loop: Loop, given: World) -> dict[str, pa.Table]:
    """The world as Arrow tables, by name."""
    return {
        name: pa.Table.from_pylist(rows, schema=arrow_schema(loop.tables[name].columns))
        for name, rows in given._asdict().items()
    }


def write(loop: Loop, given: World, folder: Path) -> dict[str, Path]:
    """The world as Parquet files, by table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables(loop, given).items():
        pq.write_table(table, folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in given._fields}


def opened(folder: Path, clock: Clock | dt.datetime, **settings: Any) -> Home:
    """A home in which nothing happened yet."""
    return Home(
        Settings(home=folder, by="tests", **settings), SimulatedClock(clock) if isinstance(clock, dt.datetime) else clock
    )


def filled(folder: Path, clock: Clock | dt.datetime, given: World, **settings: Any) -> Home:
    """A home with a world ingested."""
    home = opened(folder, clock, **settings)
    loop = load_loop(FILE)
    for name, table in tables(loop, given).items():
        done = ingest(home, loop.tables[name], table)
        assert done.quarantined == 0, done.reasons
    return home


def context_of(given: World, shop: str, at: dt.datetime) -> float | None:
    """The jam that counts for a decision, as plainly as possible: of what was known a minute before (the lag) the latest event, told last."""
    heard = [r for r in given.traffic if r["shop"] == shop and r["told_at"] + dt.timedelta(minutes=6) <= at]
    last = max(heard, key=lambda r: (r["seen_at"], r["told_at"]), default=None)
    if last is None or at - last["seen_at"] > dt.timedelta(hours=6):
        return None
    jam: float | None = last["jam"]
    return jam


def truth_of(given: World, by: dt.datetime) -> dict[int, bool]:
    """Order -> whether it was late, of what was known before a moment and within the wait of two days."""
    at = {r["order"]: r["at"] for r in given.orders}
    known = [(r, r["came_at"] + dt.timedelta(minutes=30)) for r in given.deliveries]
    return {r["order"]: r["minutes"] > 60 for r, t in known if t < by and t <= at[r["order"]] + dt.timedelta(days=2)}
