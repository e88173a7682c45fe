from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from tests.traffic import histogram

from loopwright.develop import reference
from loopwright.graph.columns import ARROW_TYPES
from loopwright.monitor.drift import bins, jensen_shannon, psi, state_of
from loopwright.records.declarations import Column
from loopwright.records.package import Histogram


def numeric(values: np.ndarray) -> Histogram:
    return histogram("x", "request", values.tolist())


def state(before: Histogram, values: pa.ChunkedArray) -> str:
    counted = bins(before, values)
    return state_of(psi(*counted), jensen_shannon(*counted), psi_at=0.25, jensen_shannon_at=0.1)


def chunked(values: object) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


def test_measures_agree_with_scipy_up_to_the_expectation_without_drift() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        before, after = rng.integers(10**5, 10**6, 8), rng.integers(10**5, 10**6, 8)
        p, q = before / before.sum(), after / after.sum()
        assert psi(before, after) == pytest.approx(entropy(p, q) + entropy(q, p), abs=1e-4)
        assert jensen_shannon(before, after) == pytest.approx(jensenshannon(p, q, base=2), abs=1e-3)


def test_same_counts_are_no_drift_and_disjoint_ones_are_as_far_as_can_be() -> None:
    counts = np.array([5000, 3000, 2000])
    assert psi(counts, counts) == 0.0
    assert jensen_shannon(counts, counts) == 0.0
    apart = np.array([0, 10**6]), np.array([10**6, 0])
    assert jensen_shannon(*apart) == pytest.approx(1.0, abs=1e-3)
    assert psi(*apart) > 10


def test_expectation_without_drift_is_taken_off() -> None:
    """Mean PSI and squared distance over many undrifted windows, before the floor at zero, would be zero."""
    rng = np.random.default_rng(2)
    b, n, m = 20, 800, 3000
    found = []
    for _ in range(400):
        before, after = rng.multinomial(m, [1 / b] * b), rng.multinomial(n, [1 / b] * b)
        p, q = (before + 0.5) / (before + 0.5).sum(), (after + 0.5) / (after + 0.5).sum()
        found.append(float(((q - p) * np.log(q / p)).sum()))
    assert np.mean(found) == pytest.approx((b - 1) * (1 / n + 1 / m), rel=0.05)
    assert psi(before, after) == pytest.approx(max(0.0, found[-1] - (b - 1) * (1 / n + 1 / m)))


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tail": lambda rng, n: rng.pareto(1.5, n),
    "mostly zero": lambda rng, n: np.where(rng.random(n) < 0.9, 0.0, rng.random(n)),
    "few integers": lambda rng, n: rng.integers(0, 7, n).astype(float),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [500, 5000])
def test_a_long_year_does_not_cry_wolf(name: str, n: int) -> None:
    draw = DISTRIBUTIONS[name]
    rng = np.random.default_rng([3, n])
    states = []
    for _ in range(8):
        before = numeric(draw(rng, 3000))
        states += [state(before, chunked(draw(rng, n))) for _ in range(40)]
    assert states.count("drift") / len(states) < 0.01
    assert states.count("watch") / len(states) < 0.01


def test_categories_do_not_cry_wolf_even_when_there_are_many_rare_ones() -> None:
    rng = np.random.default_rng(4)
    share = 1 / np.arange(1, 201)
    names = np.array([f"c{i:03}" for i in range(200)])
    share /= share.sum()
    states = []
    for _ in range(5):
        before = histogram("x", "request", rng.choice(names[:50], 3000).tolist(), categories=True)
        states += [state(before, chunked(rng.choice(names[:50], 500).tolist())) for _ in range(20)]
        skewed = histogram("x", "request", rng.choice(names, 3000, p=share).tolist(), categories=True)
        states += [state(skewed, chunked(rng.choice(names, 500, p=share).tolist())) for _ in range(20)]
    assert states.count("drift") == 0


@pytest.mark.parametrize("n", [500, 5000])
def test_a_real_shift_is_found(n: int) -> None:
    """A mean that moves by 0.7 standard deviations (PSI about 0.49) is found in 99 of 100 windows."""
    rng = np.random.default_rng(5)
    before = numeric(rng.normal(size=4000))
    found = [state(before, chunked(rng.normal(0.7, size=n))) for _ in range(100)]
    assert found.count("drift") >= 99
    half = [state(before, chunked(rng.normal(0.42, size=n))) for _ in range(100)]
    assert half.count("watch") >= 60
    assert half.count("drift") < 20


def test_what_goes_missing_or_is_new_counts() -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(size=2000)
    before = numeric(values)
    assert state(before, chunked(values.tolist())) == "ok"
    assert state(before, chunked([None if i % 5 == 0 else v for i, v in enumerate(values.tolist())])) == "drift"
    assert state(before, chunked(np.where(np.arange(2000) % 5 == 0, np.nan, values))) == "drift"
    kinds = histogram("x", "request", ["a", "b"] * 1000, categories=True)
    assert state(kinds, chunked(["a", "b"] * 300)) == "ok"
    assert state(kinds, chunked(["a", "b", "z"] * 300)) == "drift"


def test_bins_hold_their_lower_edge_and_count_every_row() -> None:
    before = Histogram(
        column="x",
        role="request",
        edges=[1.0, 2.0],
        categories=[],
        counts=[10, 20, 30],
        missing=4,
        rows=64,
        mean=1.0,
        minimum=0.0,
        maximum=3.0,
    )
    counted = bins(before, chunked([0, 1, 1, 2, 9, None]))
    assert counted.current.tolist() == [1, 2, 2, 1]
    assert counted.reference.tolist() == [10, 20, 30, 4]


def test_both_measures_must_say_drift() -> None:
    assert state_of(0.3, 0.05, psi_at=0.25, jensen_shannon_at=0.1) == "watch"
    assert state_of(0.3, 0.04, psi_at=0.25, jensen_shannon_at=0.1) == "ok"
    assert state_of(0.1, 0.2, psi_at=0.25, jensen_shannon_at=0.1) == "ok"
    assert state_of(0.25, 0.1, psi_at=0.25, jensen_shannon_at=0.1) == "drift"


def test_the_reference_that_develop_makes_is_counted_the_same_way() -> None:
    rng = np.random.default_rng(7)
    columns = {
        "number": (
            Column("float", nullable=True),
            [None if i % 9 == 0 else float(v) for i, v in enumerate(rng.normal(size=800))],
        ),
        "zeros": (Column("float"), np.where(rng.random(800) < 0.8, 0.0, rng.random(800)).tolist()),
        "integer": (Column("integer"), rng.integers(0, 12, 800).tolist()),
        "constant": (Column("integer"), [7] * 800),
        "flag": (Column("boolean"), (rng.random(800) < 0.3).tolist()),
        "word": (Column("string", nullable=True), [None if i % 7 == 0 else "abc"[i % 3] for i in range(800)]),
    }
    for name, (column, given) in columns.items():
        values = pa.chunked_array([pa.array(given, ARROW_TYPES[column.type])])
        counted = bins(reference.histogram(name, "request", column, values), values)
        assert counted.current.tolist() == counted.reference.tolist(), name
        assert counted.current.sum() == 800


def test_a_number_that_was_always_the_same_and_is_no_more_drifts() -> None:
    constant = reference.histogram("x", "request", Column("integer"), chunked([7] * 800))
    assert state(constant, chunked([7] * 600)) == "ok"
    assert state(constant, chunked([7, 8] * 300)) == "drift"
    assert state(constant, chunked([7, 6] * 300)) == "drift"
