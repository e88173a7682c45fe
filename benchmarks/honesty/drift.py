"""Claims about drift: how many alarms a year without drift gives, and how often one window shows that something broke.

A world has 14 columns of four kinds and a score; weeks differ by shocks, seasons and habits that last. A loop has a history of
26 weeks, whose last fortnight is the reference, and is watched for 52 weeks.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from benchmarks.honesty.claims import Claim, Verdict

from loopwright.base.arrays import Array
from loopwright.develop.reference import histogram
from loopwright.monitor.drift.baseline import DriftBaseline, variations
from loopwright.monitor.drift.measures import cuts_of, measured
from loopwright.monitor.inputs import DriftContext, window
from loopwright.records.declarations import Column, Monitor
from loopwright.records.package import Lineage
from loopwright.records.windows import Window

WORDS = pa.array([f"k{i}" for i in range(1000)])
HISTORY, YEAR, PREVIOUS = 26, 52, 8
WEEK = timedelta(days=7)
START = datetime(2025, 6, 2, tzinfo=UTC)
NUMBERS = [f"number{i}" for i in range(8)]
KINDS = {"few": 4, "many": 40, "very_many": 300}
COLUMNS = {
    **{name: Column("float", nullable=True) for name in NUMBERS},
    **{name: Column("string") for name in KINDS},
    "zeros": Column("float"),
    "count": Column("integer", minimum=0, maximum=40),
    "tail": Column("float"),
}
Rows = dict[str, Any]
Fault = Callable[[Rows, np.random.Generator], Rows]


class World(NamedTuple):
    """How weeks differ: the deviation of a week's shock to numbers and to categories, what lasts to the next week, a season."""

    shock: float = 0.0
    mix: float = 0.0
    lasts: float = 0.0
    season: float = 0.0
    rows: int = 1000


WORLDS = {
    "weeks alike": World(),
    "weekly shocks of .4 deviations": World(shock=0.4, mix=0.3),
    "shocks that last": World(shock=0.4, mix=0.3, lasts=0.7),
    "a season": World(shock=0.1, mix=0.1, season=1.0),
    "few rows": World(shock=0.1, mix=0.1, rows=200),
}


def weeks(world: World, rng: np.random.Generator, count: int) -> list[Rows]:
    """The rows of `count` weeks, one after another."""
    sizes = {"number": len(NUMBERS), **KINDS, "other": 3}
    state = {name: np.zeros(size) for name, size in sizes.items()}
    phase = rng.uniform(0, 2 * np.pi, len(NUMBERS))
    found = []
    for week in range(count):
        for name, before in state.items():
            spread = world.mix if name in KINDS else world.shock
            # Variance stays the same however much of a shock lasts.
            state[name] = world.lasts * before + spread * np.sqrt(1 - world.lasts**2) * rng.normal(size=len(before))
        means = state["number"] + world.season * np.sin(2 * np.pi * week / 52 + phase)
        found.append(_rows(world.rows, state, means, rng))
    return found


def _rows(n: int, state: dict[str, Array], means: Array, rng: np.random.Generator) -> Rows:
    found: Rows = {}
    for name, mean in zip(NUMBERS, means, strict=True):
        found[name] = mean + rng.normal(size=n)
    for name, size in KINDS.items():
        weight = np.exp(state[name] - np.log(np.arange(1, size + 1)))
        found[name] = rng.choice(size, n, p=weight / weight.sum())
    found["zeros"] = np.where(rng.random(n) < 0.9, 0.0, rng.exponential(size=n))
    found["count"] = rng.poisson(np.exp(1 + 0.5 * state["other"][0]), n)
    found["tail"] = rng.standard_t(2, n) + state["other"][1]
    return found


def table(rows: Rows) -> pa.Table:
    """Rows as they are logged."""
    columns = {n: WORDS.take(pa.array(values)) if n in KINDS else pa.array(values) for n, values in rows.items() if n[0] != "_"}
    size = len(rows["zeros"])
    score = 1 / (1 + np.exp(-sum(rows[n] if rows[n].dtype != object else 0 for n in NUMBERS[:3]) + 1))
    return pa.table(
        {
            **columns,
            "_score": score,
            "_flags": pa.array([rows.get("_flag", [])] * size, pa.list_(pa.string())),
            "_package": ["p"] * size,
        }
    )


class Watched:
    """A loop with a history, and its monitoring."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world, self._rng = world, rng
        self.rows = weeks(world, rng, HISTORY + YEAR)
        history = [table(rows) for rows in self.rows[:HISTORY]]
        last = pa.concat_tables(history[-2:])
        columns = [histogram(n, "request", c, last[n]) for n, c in COLUMNS.items()]
        columns.append(histogram("score", "output", Column("float"), last["_score"]))
        at = np.arange(HISTORY) - HISTORY
        found = {
            h.column: variations([measured(cuts_of(h), t["_score" if h.column == "score" else h.column]) for t in history], at)
            for h in columns
        }
        self._baseline = DriftBaseline(package="p", every="7d", stretches=HISTORY, variation=found)
        training = SimpleNamespace(last=START)
        manifest = SimpleNamespace(key=[], lineage=Lineage(), training=training)
        self._package: Any = SimpleNamespace(
            reference=SimpleNamespace(columns=columns), columns=COLUMNS, manifest=manifest, digest="p"
        )

    def year(self) -> list[Window]:
        """The windows of a year in which nothing breaks."""
        found: list[Window] = []
        for week, rows in enumerate(self.rows[HISTORY:]):
            found.append(self.close(week, rows, found))
        return found

    def close(self, week: int, rows: Rows, before: list[Window]) -> Window:
        """The window of that number."""
        start = START + week * WEEK
        context = DriftContext(self._baseline, before[::-1][:PREVIOUS])
        return window(table(rows), self._package, Monitor(minimum_rows=100), start, start + WEEK, context)


def alarms(world: World, rng: np.random.Generator) -> int:
    """How many windows of a year without drift say `drift`."""
    return sum(w.state == "drift" for w in Watched(world, rng).year())


def _quiet(name: str) -> Claim:
    def trial(rng: np.random.Generator) -> int:
        return alarms(WORLDS[name], rng)

    what = "alarms, on average at most"
    return Claim(f"drift, a year without: {name}", what, trial, 200, nominal=1.0, least=0.0, most=1.0, counts=True)


def _nulls(share: float) -> Fault:
    def fault(rows: Rows, rng: np.random.Generator) -> Rows:
        return {**rows, "number0": np.where(rng.random(len(rows["number0"])) < share, np.nan, rows["number0"])}

    return fault


def _number(change: Callable[[Array], Array]) -> Fault:
    return lambda rows, rng: {**rows, "number0": change(rows["number0"])}


def _kind(name: str, change: Callable[[Array, np.random.Generator], Array]) -> Fault:
    return lambda rows, rng: {**rows, name: change(rows[name], rng)}


def _new(values: Array, rng: np.random.Generator) -> Array:
    return np.where(rng.random(len(values)) < 0.05, 999, values)


def _swapped(values: Array, rng: np.random.Generator) -> Array:
    return np.where(values == 0, 2, np.where(values == 2, 0, values))


def _out_of_range(rows: Rows, rng: np.random.Generator) -> Rows:
    return {**rows, "count": np.where(rng.random(len(rows["count"])) < 0.05, 500, rows["count"])}


FAULTS: dict[str, Fault] = {
    "mean + .3 deviations": _number(lambda v: v + 0.3),
    "scale times 1.5": _number(lambda v: v * 1.5),
    "nulls from 0 to 5 %": _nulls(0.05),
    "a new category in 5 %, of 300": _kind("very_many", _new),
    "two categories swapped, of 40": _kind("many", _swapped),
    "5 % far out of range": _out_of_range,
}
GROSS: dict[str, Fault] = {
    "Fahrenheit as Celsius": _number(lambda v: (v * 8 + 12) * 1.8 / 8 + 2.5),
    "a stuck sensor": _number(lambda v: np.full_like(v, v[0])),
    "30 % nulls": _nulls(0.3),
}


def seen(world: World, fault: Fault, rng: np.random.Generator) -> bool:
    """Whether the first window of a fault says `drift`, and of the column that broke."""
    loop = Watched(world._replace(rows=world.rows), rng)
    broken = fault(loop.rows[HISTORY], rng)
    return loop.close(0, broken, []).state == "drift"


def _sees(name: str, fault: Fault, world: World, of: str) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        return Verdict(True, seen(world, fault, rng))

    return Claim(f"drift, {of}: {name}", "is seen in one window", trial, 100, nominal=0.9, least=0.9)


CLAIMS = [
    *(_quiet(name) for name in WORLDS),
    *(_sees(name, fault, World(rows=5000), "5,000 rows a week, weeks alike") for name, fault in FAULTS.items()),
    *(_sees(name, fault, World(shock=0.4, mix=0.3), "weekly shocks of .4 deviations") for name, fault in GROSS.items()),
]
