"""Claims about the scan for leaks: how often honest columns are called a leak, and how often a leak is named.

Each world is one data set with a binary label; what is scanned are features that are its columns.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from benchmarks.honesty.claims import Claim, Verdict
from scipy.special import ndtri

from loopwright.base.arrays import Array
from loopwright.develop.features import TracedFeatures, trace
from loopwright.develop.leakage import leaks, scan
from loopwright.graph.columns import arrow_schema
from loopwright.records.declarations import Column

Rng = np.random.Generator
Columns = dict[str, Any]
World = Callable[[Rng, int], tuple[Array, Columns]]

ROWS = 3000
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1e6)
HOUR = 3_600_000_000


@cache
def _traced(names: tuple[str, ...], texts: frozenset[str]) -> TracedFeatures:
    columns = {name: Column("string" if name in texts else "float", nullable=True) for name in names}
    return trace(lambda f: {name: f[name] for name in names}, columns)


def named(label: Array, columns: Columns) -> set[str]:
    """The features that are called a leak of the label, rows an hour apart."""
    texts = frozenset(name for name, values in columns.items() if values.dtype.kind in "UO")
    traced = _traced(tuple(columns), texts)
    values = {n: v if n in texts else pa.array(v.astype(np.float64), from_pandas=True) for n, v in columns.items()}
    table = pa.table(values, schema=arrow_schema(traced.columns))
    at = pa.array(START + HOUR * np.arange(len(label)), pa.timestamp("us", "UTC"))
    unit = pa.array([f"{i}" for i in range(len(label))])
    more = {
        "_decided_at": at,
        "_known_at": at,
        "_label": pa.array(label),
        "_unit": unit,
        "_prediction": pa.nulls(len(label), pa.string()),
    }
    for name, array in more.items():
        table = table.append_column(name, array)
    return {s.feature for s in leaks(scan(traced, table, task="binary", key=[]).suspects)}


def _normal(rng: Rng, label: Array, area: float) -> Array:
    """A number with this area under the ROC curve."""
    return np.asarray(rng.normal(size=len(label)) + np.sqrt(2) * ndtri(area) * label)


def _labels(rng: Rng, n: int, least: float = 0.1) -> Array:
    return np.asarray(rng.random(n) < rng.uniform(least, 0.5))


def strong(area: float) -> World:
    """Numbers, a flag, steps and a number in half of the rows, each with this area."""

    def drawn(rng: Rng, n: int) -> tuple[Array, Columns]:
        label, there = _labels(rng, n), rng.random(n) < 0.5
        x = _normal(rng, label, area)
        return label, {
            "number": x,
            "skewed": np.exp(_normal(rng, label, area)),
            "flag": (rng.random(n) < np.where(label, area, 1 - area)).astype(float),
            "steps": np.round(_normal(rng, label, area)),
            "above_zero": np.maximum(_normal(rng, label, area), 0),
            "at_times": np.where(there, _normal(rng, label, area), np.nan),
            "word": np.where(rng.random(n) < 2 * area - 1, np.where(label, "late", "early"), rng.choice(["late", "early"], n)),
        }

    return drawn


def _customers(rng: Rng, n: int) -> tuple[Array, Array, Array]:
    """Customers of 8 rows on average with rates of their own: the customer and label of each row, and the rates."""
    rate = rng.beta(1, 2, n // 8)
    code = rng.integers(0, n // 8, n)
    return code, rng.random(n) < rate[code], rate


def past_rates(rng: Rng, n: int) -> tuple[Array, Columns]:
    """The rate of each customer, exactly and by 20 rows before; and the mean of its rows so far."""
    code, label, rate = _customers(rng, n)
    before = rng.binomial(20, rate) / 20
    order = np.argsort(code, kind="stable")
    start = np.searchsorted(code[order], code[order])
    total = np.cumsum(label[order]) - label[order]
    so_far = np.empty(n)
    so_far[order] = (total - total[start] + 0.3) / (np.arange(n) - start + 1)
    customer = np.array([f"c{c}" for c in code], dtype=object)
    return label, {"customer": customer, "rate": rate[code], "rate_before": before[code], "rate_so_far": so_far}


def encoded(weight: float, *, own: bool = True) -> World:
    """Mean label of each customer over these very rows, shrunk by `weight` rows; perhaps without the row's own label."""

    def drawn(rng: Rng, n: int) -> tuple[Array, Columns]:
        code, label, _ = _customers(rng, n)
        total, rows = np.bincount(code, label)[code], np.bincount(code)[code].astype(float)
        if not own:
            total, rows = total - label, np.maximum(rows - 1, 0.5)
        customer = np.array([f"c{c}" for c in code], dtype=object)
        return label, {"customer": customer, "leak": (total + weight * label.mean()) / (rows + weight), "x": rng.normal(size=n)}

    return drawn


def drifting(rng: Rng, n: int) -> tuple[Array, Columns]:
    """A label that becomes more frequent; a season, a counter of rows and the month as columns."""
    label = rng.random(n) < np.linspace(0.1, 0.5, n)
    season = np.sin(np.arange(n) / 500) + rng.normal(0, 0.3, n)
    return label, {"season": season, "counter": np.arange(n), "month": np.arange(n) // 720, "x": _normal(rng, label, 0.9)}


def shops(rng: Rng, n: int) -> tuple[Array, Columns]:
    """Shops in which a number predicts the label more or less well, up to an area of .95."""
    shop, label = rng.integers(0, 5, n), _labels(rng, n, 0.3)
    area = np.linspace(0.55, 0.95, 5)[shop]
    return label, {
        "shop": np.array([f"s{s}" for s in shop], dtype=object),
        "x": rng.normal(size=n) + np.sqrt(2) * ndtri(area) * label,
    }


def _with(make: Callable[[Rng, Array], Array]) -> World:
    """A leak beside honest columns; labels are frequent enough for parts of the rows to be judged."""

    def drawn(rng: Rng, n: int) -> tuple[Array, Columns]:
        label = _labels(rng, n, 0.3)
        return label, {"leak": make(rng, label), "x": _normal(rng, label, 0.85), "word": rng.choice(["a", "b", "c"], n)}

    return drawn


def _follows(rng: Rng, label: Array) -> Array:
    return np.where(label, 4.0, -4.0) + rng.normal(size=len(label))


def in_a_shop(rng: Rng, n: int) -> tuple[Array, Columns]:
    """One shop of five fills a number in afterwards."""
    label, columns = shops(rng, n)
    shop = columns["shop"] == "s4"
    return label, {"shop": columns["shop"], "leak": np.where(shop, _follows(rng, label), rng.normal(size=n))}


HONEST: dict[str, World] = {
    "columns of area .90": strong(0.9),
    "columns of area .95": strong(0.95),
    "rates of customers from the past": past_rates,
    "a label that drifts": drifting,
    "five shops that differ": shops,
}
LEAKS: dict[str, World] = {
    "a copy with 2 % errors": _with(lambda rng, y: (y ^ (rng.random(len(y)) < 0.02)).astype(float)),
    "a copy with 3 % errors": _with(lambda rng, y: (y ^ (rng.random(len(y)) < 0.03)).astype(float)),
    "a number that follows in a third, 0 elsewhere": _with(
        lambda rng, y: np.where(rng.random(len(y)) < 0.35, _follows(rng, y), 0.0)
    ),
    "a number that follows in the older half": _with(
        lambda rng, y: np.where(np.arange(len(y)) < len(y) / 2, _follows(rng, y), rng.normal(size=len(y)))
    ),
    "a number that follows in one shop of five": in_a_shop,
    "a target encoding": encoded(0),
    "a target encoding, shrunk by 5 rows": encoded(5),
    "a target encoding without the own row": encoded(0, own=False),
}


def _clean(name: str, world: World) -> Claim:
    def trial(rng: Rng) -> Verdict:
        return Verdict(True, not named(*world(rng, ROWS)))

    return Claim(f"leaks, honest data, {ROWS:,} rows: {name}", "nothing is called a leak", trial, 300, nominal=0.99, least=0.99)


def _found(name: str, world: World) -> Claim:
    def trial(rng: Rng) -> Verdict:
        return Verdict(True, named(*world(rng, ROWS)) == {"leak"})

    return Claim(f"leaks, {ROWS:,} rows: {name}", "it is named, and nothing else", trial, 100, nominal=0.9, least=0.9)


CLAIMS = [*(_clean(*each) for each in HONEST.items()), *(_found(*each) for each in LEAKS.items())]
