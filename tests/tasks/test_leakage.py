"""What columns tell of a label, alone, by a value and together: leaks of many kinds, and honest data that must be left alone.

Honest worlds draw their columns (normal, lognormal, counts, words, rare words, flags, missing at a rate that depends on the value)
and their effects at random, from weak to strong enough for an area of 0.97.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loopwright.base.arrays import Array
from loopwright.records.declarations import Task
from loopwright.tasks.leakage import ScanData, by_group, of_columns, targets, together, too_few, values_of

Columns = dict[str, Any]
Rng = np.random.Generator


def look(label: Any, columns: Columns, task: Task) -> dict[str, str]:
    """Column -> kind of suspect, or `together` and the columns."""
    n = len(label)
    told = ScanData(
        targets(pa.chunked_array([pa.array(label)]), task), np.random.default_rng(1).random(n) < 0.5, np.arange(n), task
    )
    arrow = {name: pa.chunked_array([v if isinstance(v, pa.Array) else pa.array(v)]) for name, v in columns.items()}
    found = {s.feature: s.kind for s in of_columns(arrow, told)}
    parts = {n: part for n, c in arrow.items() if n not in found and (part := values_of(c)) is not None}
    found |= {name: "together" for names, _, _ in together(parts, told) for name in names}
    rest = {name: part for name, part in parts.items() if name not in found}
    everything = {name: part for name, c in arrow.items() if (part := values_of(c)) is not None}
    return found | {name: kind for name, kind, _ in by_group(rest, everything, told)}


def column(kind: int, rng: Rng, n: int, effect: float) -> tuple[Any, Array]:
    """An honest column, and what it adds to the log odds."""
    x, weight = rng.normal(size=n), rng.normal() * effect
    if kind == 0:
        return x, weight * x
    if kind == 1:
        return np.exp(x), weight * x
    if kind == 2:
        size = int(rng.integers(2, 12))
        code = rng.choice(size, n, p=rng.dirichlet(np.ones(size)))
        return pa.array([f"w{c}" for c in code]), (rng.normal(size=size) * effect)[code]
    if kind == 3:
        flag = rng.random(n) < rng.uniform(0.05, 0.5)
        return flag, weight * flag
    if kind == 4:
        count = rng.poisson(rng.uniform(0.3, 4), n)
        return count, weight / 2 * count
    if kind == 5:
        hidden = rng.random(n) < 1 / (1 + np.exp(1 - x))
        return pa.array(x, mask=hidden), weight * x + rng.normal() * hidden
    code = rng.integers(0, n // 8, n)
    return pa.array([f"zip{c}" for c in code]), (rng.normal(size=n // 8) * effect / 2)[code]


def honest(rng: Rng, n: int) -> tuple[Columns, Array]:
    """Columns, and the log odds that they make."""
    effect, odds, columns = rng.uniform(0.3, 3), np.zeros(n), {}
    for i in range(int(rng.integers(4, 10))):
        columns[f"c{i}"], more = column(int(rng.integers(0, 7)), rng, n, effect)
        odds = odds + more
    return columns, odds


def label_of(odds: Array, task: Task, rng: Rng) -> Any:
    if task == "regression":
        return odds + rng.normal(size=len(odds)) * max(odds.std() * 0.3, 0.3)
    sure = odds + rng.logistic(size=len(odds))
    if task == "binary":
        return sure > np.quantile(sure, 1 - rng.uniform(0.01, 0.6))
    return np.digitize(sure, np.quantile(odds, [0.3, 0.7])).astype(str).tolist()


def test_honest_data_are_left_alone() -> None:
    rng, named = np.random.default_rng(7), []
    tasks: list[Task] = ["binary", "binary", "binary", "regression", "multiclass"]
    for i in range(60):
        columns, odds = honest(rng, (500, 2000, 4000)[i % 3])
        named += list(look(label_of(odds, tasks[i % 5], rng), columns, tasks[i % 5]).items())
    assert named == []


def test_honest_data_with_other_seeds_are_nearly_left_alone() -> None:
    """A thousand columns that no threshold was chosen on: at most two are named."""
    rng, named, columns_seen = np.random.default_rng(20261130), [], 0
    tasks: list[Task] = ["binary", "binary", "multiclass"]
    for i in range(160):
        columns, odds = honest(rng, (500, 2000, 4000)[i % 3])
        columns_seen += len(columns)
        named += list(look(label_of(odds, tasks[i % 3], rng), columns, tasks[i % 3]).items())
    assert columns_seen > 1000
    assert len(named) <= 2, named


def cut(z: Array, rng: Rng) -> Columns:
    """One signal [N] as people record it: rounded, counted, capped, in steps."""
    noisy, quantiles = z + rng.normal(0, 0.2, len(z)), np.quantile(z, np.arange(0.1, 1, 0.1))
    return {
        "rounded": np.round(z * 2).astype(np.int64),
        "count": rng.poisson(np.exp(0.8 * z)),
        "larger count": rng.poisson(np.exp(1 + 0.8 * z)),
        "count below zero": -rng.poisson(np.exp(0.5 - 0.8 * z)),
        "of ten": rng.binomial(10, 1 / (1 + np.exp(-1.2 * z))),
        "at least": np.maximum(z, quantiles[2]),
        "at most": np.minimum(z, quantiles[7]),
        "between": np.clip(z, quantiles[1], quantiles[7]),
        "above zero": np.round(np.maximum(noisy, 0) * 100, 1),
        "fifths": np.digitize(z, quantiles[1::2]),
        "tenths": np.digitize(noisy, quantiles),
        "stars": np.clip(np.round(3 + z), 1, 5).astype(np.int64),
    }


def test_end_of_the_scale_of_a_strong_honest_column_is_left_alone() -> None:
    """240 columns, each of them the only signal of its label: at most two are named."""
    named: list[Any] = []
    for seed in range(20):
        rng = np.random.default_rng([77, seed])
        z = rng.normal(size=(2000, 5000, 8000)[seed % 3])
        sure = rng.uniform(2.5, 5) * z + rng.logistic(size=len(z))
        label = sure > np.quantile(sure, 1 - rng.uniform(0.05, 0.5))
        named += [found for found in look(label, cut(z, rng), "binary").items() if found[1] == "decides"]
    assert len(named) <= 2, named


MARKS: dict[str, Callable[[Rng, Array, Array, Array], Array]] = {
    "an amount where yes": lambda rng, y, some, z: np.where(y, np.round(rng.lognormal(3, 1, len(y)) + 1, 2), 0.0),
    "an amount where yes, not in all": lambda rng, y, some, z: np.where(y & some, np.round(rng.lognormal(3, 1, len(y)) + 1), 0),
    "less than zero where no": lambda rng, y, some, z: np.where(y, rng.poisson(5, len(y)), -1),
    "the largest code where yes": lambda rng, y, some, z: np.where(y & some, 9, rng.integers(1, 9, len(y))),
    "the least code where no": lambda rng, y, some, z: np.where(~y & some, 0, rng.integers(1, 9, len(y))),
    "zero where yes, in an honest column": lambda rng, y, some, z: np.where(y & some, 0.0, np.round(np.exp(1 + z / 2), 1)),
    "zero where no, in an honest count": lambda rng, y, some, z: np.where(~y & some, 0, rng.poisson(np.exp(1 + z / 2)) + 1),
    "a value amid an honest count": lambda rng, y, some, z: np.where(y & some, 5, rng.poisson(np.exp(1 + z / 2)) * 2),
}


@pytest.mark.parametrize("kind", MARKS)
def test_mark_of_the_outcome_at_the_end_of_a_scale_is_named(kind: str) -> None:
    for seed in range(6):
        rng = np.random.default_rng([5, seed])
        z = rng.normal(size=4000)
        sure = rng.uniform(0, 2) * z + rng.logistic(size=len(z))
        label = sure > np.quantile(sure, 1 - rng.uniform(0.05, 0.5))
        column = MARKS[kind](rng, label, rng.random(len(z)) < 0.7, z)
        assert look(label, {"mark": column}, "binary").keys() == {"mark"}, seed


N = 3000


def _words(rng: Rng, y: Array, size: int) -> tuple[Array, pa.Array]:
    """A label that each of many words has for itself, and the words."""
    code = rng.integers(0, size, len(y))
    return y[:size][code], pa.array([f"case{c}" for c in code])


def _larger(rng: Rng, y: Array, odds: Array) -> tuple[Any, Columns]:
    a, b = rng.lognormal(size=N), rng.lognormal(size=N)
    return a > b, {"paid": a, "due": b}


def _group_mean(rng: Rng, y: Array) -> Array:
    code = rng.integers(0, N, N)
    return np.asarray((np.bincount(code, y) / np.maximum(np.bincount(code), 1))[code])


def _words_decide(rng: Rng, y: Array, odds: Array) -> tuple[Any, Columns]:
    label, words = _words(rng, y, N // 12)
    return label, {"case": words}


def _encoded(rng: Rng, y: Array, weight: float, *, own: bool = True) -> Columns:
    """Mean label of customers, which differ, with `weight` rows of the mean of all; perhaps without the row's own label."""
    code = np.argsort(np.argsort(y + rng.normal(0, 2 * y.std(), len(y)))) // 8
    code = rng.permutation(code.max() + 1)[code]
    total, rows = np.bincount(code, y)[code], np.bincount(code)[code]
    if not own:
        total, rows = total - y, rows - 1
    return {"customer": pa.array([f"c{c}" for c in code]), "rate": (total + weight * y.mean()) / (rows + weight)}


def _in_a_shop(rng: Rng, y: Array, odds: Array) -> tuple[Any, Columns]:
    shop = rng.integers(0, 3, N)
    fee = np.where(shop == 0, np.where(y, -3.0, 3.0), 0.0) + rng.normal(size=N)
    return y, {"fee": fee, "shop": pa.array([f"s{s}" for s in shop])}


def _xor(rng: Rng, y: Array, odds: Array) -> tuple[Any, Columns]:
    one, two = rng.random(N) < 0.5, rng.random(N) < 0.4
    return one ^ two, {"one": one, "two": pa.array(np.where(two, "p", "q"))}


def _parts_of(combine: Callable[[Array, Array], Array]) -> Callable[[Rng, Array, Array], tuple[Any, Columns]]:
    def made(rng: Rng, y: Array, odds: Array) -> tuple[Any, Columns]:
        one, two = rng.gamma(2, 5, N), rng.gamma(3, 4, N)
        return combine(one, two), {"one": one, "two": two}

    return made


def _classes(rng: Rng, y: Array, odds: Array) -> tuple[Any, Columns]:
    label = rng.choice(["x", "y", "z"], N)
    return label.tolist(), {"code": pa.array([{"x": "K1", "y": "K2", "z": "K3"}[word] for word in label])}


LEAKS: dict[str, tuple[Task, Callable[[Rng, Array, Array], tuple[Any, Columns]]]] = {
    "a copy": ("binary", lambda rng, y, odds: (y, {"is_late": y})),
    "a copy in other words": (
        "binary",
        lambda rng, y, odds: (y, {"status": pa.array(np.where(y, "refunded", rng.choice(["paid", "open"], N)))}),
    ),
    "a copy, one in two hundred wrong": ("binary", lambda rng, y, odds: (y, {"is_late": y ^ (rng.random(N) < 0.005)})),
    "a number that follows": ("binary", lambda rng, y, odds: (y, {"fee": np.where(y, -50.0, 50.0) + rng.normal(0, 10, N)})),
    "given for some positives only": (
        "binary",
        lambda rng, y, odds: (y, {"claim": pa.array(rng.normal(size=N), mask=~(y & (rng.random(N) < 0.6)))}),
    ),
    "a copy that a third of the rows has": (
        "binary",
        lambda rng, y, odds: (y, {"audit": pa.array(y.astype(float), mask=rng.random(N) < 0.66)}),
    ),
    "one value of several decides": (
        "binary",
        lambda rng, y, odds: (
            y,
            {"state": pa.array(np.where(y & (rng.random(N) < 0.5), "closed", rng.choice(["a", "b"], N)))},
        ),
    ),
    "many words, each with its label": ("binary", _words_decide),
    "the mean of the label over few rows": ("binary", lambda rng, y, odds: (y, {"rate": _group_mean(rng, y)})),
    "the larger of two numbers": ("binary", _larger),
    "two flags, each useless alone": ("binary", _xor),
    "a sum": ("regression", _parts_of(lambda a, b: a + b)),
    "a difference": ("regression", _parts_of(lambda a, b: a - b)),
    "a product": ("regression", _parts_of(lambda a, b: a * b)),
    "a ratio": ("regression", _parts_of(lambda a, b: a / b)),
    "a number with 3 % of noise": ("regression", lambda rng, y, odds: (odds, {"odds": odds * (1 + rng.normal(0, 0.03, N))})),
    "classes by other names": ("multiclass", _classes),
    "a copy, three in a hundred wrong": ("binary", lambda rng, y, odds: (y, {"is_late": y ^ (rng.random(N) < 0.03)})),
    "a number that follows, in a third of the rows, 0 elsewhere": (
        "binary",
        lambda rng, y, odds: (y, {"fee": np.where(rng.random(N) < 0.35, np.where(y, -50.0, 50.0) + rng.normal(0, 10, N), 0.0)}),
    ),
    "a number that follows, in a shop of three": ("binary", _in_a_shop),
    "a number that follows, until it was no longer filled in": (
        "binary",
        lambda rng, y, odds: (y, {"fee": np.where(np.arange(N) < N // 2, y * 4.0, 2.0) + rng.normal(size=N)}),
    ),
    "a target encoding": ("binary", lambda rng, y, odds: (y, _encoded(rng, y, 0.0))),
    "a target encoding, shrunk": ("binary", lambda rng, y, odds: (y, _encoded(rng, y, 3.0))),
    "a target encoding without the own row": ("binary", lambda rng, y, odds: (y, _encoded(rng, y, 0.0, own=False))),
    "a target encoding of numbers": ("regression", lambda rng, y, odds: (odds, _encoded(rng, odds, 1.0))),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_each_kind_of_leak_is_named_and_nothing_else(kind: str) -> None:
    task, leak = LEAKS[kind]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        columns, odds = honest(rng, N)
        sure = odds + rng.logistic(size=N)
        label, leaking = leak(rng, sure > np.quantile(sure, 0.6), odds)
        assert set(look(label, columns | leaking, task)) == set(leaking) - {"customer", "shop"}


def test_too_few_rows_are_said_and_not_called_clean() -> None:
    def few(label: Any, task: Task) -> str:
        return too_few(targets(pa.chunked_array([pa.array(label)]), task))

    assert few([True] * 149 + [False] * 5000, "binary") == "149 rows of the rarer label: 150 or more are needed"
    assert few([True] * 150 + [False] * 5000, "binary") == ""
    assert few([1.0] * 299, "regression") == "299 rows with an outcome: 300 or more are needed"
    assert few(["a"] * 200 + ["b"] * 140, "multiclass") == "140 rows of the rarer label: 150 or more are needed"


@pytest.mark.parametrize(
    ("share", "recall", "wrong"), [(0.11, 0.95, 0.001), (0.03, 0.9, 0.0005), (0.04, 0.6, 0.0002), (0.3, 0.7, 0.005)]
)
def test_flag_set_after_a_rare_label_is_named_although_it_is_incomplete(share: float, recall: float, wrong: float) -> None:
    for seed in range(3):
        rng = np.random.default_rng(100 + seed)
        label = rng.random(20_000) < share
        flag = np.where(label, rng.random(20_000) < recall, rng.random(20_000) < wrong).astype(np.int64)
        for told in (flag, [("set" if f else "not") for f in flag.tolist()], flag.astype(np.float64)):
            assert "refunded" in look(label, {"refunded": told, "x": rng.normal(size=20_000)}, "binary")
