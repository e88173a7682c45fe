from collections.abc import Callable

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, wasserstein_distance
from tests.traffic import histogram

from loopwright.develop import reference
from loopwright.graph.columns import ARROW_TYPES
from loopwright.monitor.drift.distances import bins, jensen_shannon, psi, reached, wasserstein
from loopwright.monitor.drift.limits import Variation, assumed_share, judged, variation_of
from loopwright.monitor.drift.measures import (
    CLIP,
    MEASURES,
    Cuts,
    MeasureValue,
    cuts_of,
    cuts_of_numbers,
    described,
    measured,
    natural,
    quantiles,
    share_of,
)
from loopwright.records.declarations import Column
from loopwright.records.package import Histogram


def numeric(values: np.ndarray) -> Histogram:
    return histogram("x", "request", values.tolist())


def state(before: Histogram, values: pa.ChunkedArray) -> str:
    counted = bins(before, values)
    far = reached(psi(*counted), jensen_shannon(*counted), psi_at=0.25, jensen_shannon_at=0.1)
    return "drift" if far >= 1 else "watch" if far >= 0.5 else "ok"


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


def test_both_distances_must_reach_their_threshold() -> None:
    assert reached(0.3, 0.05, psi_at=0.25, jensen_shannon_at=0.1) == 0.5
    assert reached(0.1, 0.2, psi_at=0.25, jensen_shannon_at=0.1) == pytest.approx(0.4)
    assert reached(0.25, 0.1, psi_at=0.25, jensen_shannon_at=0.1) == 1


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


def test_wasserstein_distance_agrees_with_scipy_and_does_not_saturate() -> None:
    rng = np.random.default_rng(8)
    sample = rng.normal(size=4000)
    before = reference.histogram("x", "request", Column("float"), chunked(sample))
    cuts = cuts_of(before)
    for shift in (0.0, 0.3, 5.0, 50.0):
        now = rng.normal(shift, size=3000)
        found = wasserstein(before, cuts, chunked(now))
        assert found == pytest.approx(wasserstein_distance(sample, now) / cuts.deviation, rel=0.02, abs=0.03)
    assert wasserstein(histogram("x", "request", ["a"] * 9, categories=True), Cuts(categories=["a"]), chunked(["a"])) is None


def test_quantiles_of_a_histogram_are_near_those_of_its_sample() -> None:
    sample = np.random.default_rng(9).gamma(2.0, size=5000)
    before = reference.histogram("x", "request", Column("float"), chunked(sample))
    at = np.linspace(0.02, 0.95, 40)
    assert np.abs(quantiles(before, at) - np.quantile(sample, at)).max() < 0.15
    assert (cuts_of(before).low, cuts_of(before).high) == pytest.approx(
        (cuts_of_numbers(sample).low, cuts_of_numbers(sample).high), abs=0.1
    )


def test_each_measure_shows_what_it_is_for() -> None:
    """Every measure of the table moves by what it names, and the share it says is the share of rows."""
    numbers = cuts_of_numbers(np.random.default_rng(10).normal(size=5000))
    kinds = Cuts(categories=["a", "b"], named=["a", "b", "c"])
    wide = np.random.default_rng(11).normal(size=1000)

    def share(name: str, cuts: Cuts, values: object, **flags: int) -> float:
        return natural(name, measured(cuts, chunked(values), **flags)[name].value, cuts)

    found = {
        "mean": share("mean", numbers, wide + 3) - share("mean", numbers, wide),
        "low": share("low", numbers, np.where(np.arange(1000) < 400, -9.0, 0.0)),
        "middle": share("middle", numbers, np.where(np.arange(1000) < 400, -9.0, 1.0)),
        "high": share("high", numbers, np.where(np.arange(1000) < 400, 0.0, 9.0)),
        "constant": share("constant", numbers, np.where(np.arange(1000) < 400, 7.0, wide)),
        "category": share("category:a", kinds, ["a"] * 400 + ["b"] * 600),
        "unnamed": share("unnamed", kinds, ["a"] * 600 + ["y"] * 250 + ["z"] * 150),
        "newcomer": share("newcomer", kinds, ["a"] * 500 + ["y"] * 400 + ["z"] * 100),
        "nulls": share("nulls", kinds, ["a"] * 600 + [None] * 400),
        "out_of_range": share("out_of_range", numbers, wide, out_of_range=400),
        "new_category": share("new_category", kinds, ["a"] * 1000, new_category=400),
    }
    assert set(found) == set(MEASURES)
    assert found.pop("mean") == pytest.approx(3, abs=0.1)
    assert found == pytest.approx(dict.fromkeys(found, 0.4), abs=0.01)
    assert share("category:", kinds, ["a"] * 700 + ["c"] * 300) == pytest.approx(0.3, abs=0.01)
    assert measured(numbers, chunked([1e300] * 30))["mean"].value == CLIP
    assert set(measured(numbers, chunked([1.0] * 19 + [None]))) == {"nulls", "out_of_range", "new_category"}
    assert described("nulls", share_of(30, 100).value, 0.0, share_of(0, 1000).value, kinds) == (
        "share of nulls 30%, usual 0% to 0.0%"
    )
    assert described("category:a", 0.5, 0.1, 0.2, kinds).startswith("share of 'a' 23%")
    assert described("category:", 0.5, 0.1, 0.2, kinds).startswith("share of other categories")


def normals(rng: np.random.Generator, count: int, *, shock: float, rows: int = 1000) -> list[MeasureValue]:
    return [measured(STANDARD, chunked(rng.normal(rng.normal(0, shock), size=rows)))["mean"] for _ in range(count)]


STANDARD = Cuts(low=-1.2816, middle=0.0, high=1.2816)


@pytest.mark.parametrize("shock", [0.0, 0.4])
@pytest.mark.parametrize("windows", [6, 26])
def test_limits_are_exceeded_as_often_as_they_say(shock: float, windows: int) -> None:
    """At 5 % two-sided each, level and step together are exceeded in at most 10 %; the floors are off."""
    rng = np.random.default_rng([12, windows, int(10 * shock)])
    exceeded = 0
    for _ in range(300):
        found = variation_of(normals(rng, windows, shock=shock, rows=100), np.arange(windows))
        [now] = normals(rng, 1, shock=shock, rows=100)
        level = judged("mean", now, msgspec.structs.replace(found, steps=0), STANDARD, 0.05, None, 1.0)
        exceeded += abs(now.value - found.center) > (level.high - level.low) / 2
    assert exceeded <= 0.05 * 300 + 2 * (300 * 0.05 * 0.95) ** 0.5


def test_a_season_is_not_judged_by_its_level_but_a_step_in_it_is() -> None:
    rng = np.random.default_rng(13)
    warm = [measured(STANDARD, chunked(rng.normal(0.15 * w, size=1000)))["mean"] for w in range(20)]
    found = variation_of(warm, np.arange(20))
    assert found.windows < 3
    later = measured(STANDARD, chunked(rng.normal(0.15 * 20, size=1000)))["mean"]
    assert judged("mean", later, found, STANDARD, 1e-3, None, 1.0).moved < 1
    broken = measured(STANDARD, chunked(rng.normal(0.15 * 20 + 3, size=1000)))["mean"]
    verdict = judged("mean", broken, found, STANDARD, 1e-3, None, 1.0)
    assert verdict.moved > 1
    assert verdict.low < found.last < verdict.high < broken.value
    lasting = judged("mean", broken, found, STANDARD, 1e-3, found.last, 4.0)
    assert lasting.moved > 1, "also four windows after it was last as usual"
    assert judged("mean", broken, found, STANDARD, 1e-3, broken.value, 1.0).moved < 1


def test_a_share_without_history_is_taken_to_vary_by_a_little() -> None:
    none = assumed_share(0, 3000)
    assert isinstance(none, Variation)
    cuts = Cuts(categories=[])
    assert judged("nulls", share_of(5, 1000), none, cuts, 2e-4, None, 1.0).moved < 1
    assert judged("nulls", share_of(60, 1000), none, cuts, 2e-4, None, 1.0).moved > 1


def test_a_trifle_is_no_drift_however_many_rows_show_it() -> None:
    found = variation_of([share_of(1000, 100_000)] * 20, np.arange(20))
    cuts = Cuts(categories=[])
    assert judged("nulls", share_of(1500, 100_000), found, cuts, 1e-4, None, 1.0).moved < 1
    assert judged("nulls", share_of(2500, 100_000), found, cuts, 1e-4, None, 1.0).moved > 1


ODD: dict[str, list[float | None]] = {
    "constant": [5.0] * 300,
    "huge": [1e300, -1e300] * 150,
    "near the largest": [1.7e308, -1.7e308] * 150,
    "infinite": [np.inf, -np.inf, 1.0] * 100,
    "smallest": [5e-324, 0.0] * 150,
    "one of many": [1.0, *[None] * 299],
    "none": [None] * 300,
}


@pytest.mark.parametrize("now", ODD)
@pytest.mark.parametrize("before", [n for n in ODD if n not in ("none", "near the largest")])
def test_odd_numbers_are_judged_without_a_warning(before: str, now: str) -> None:
    column = Column("float", nullable=True)
    known = reference.histogram("x", "request", column, pa.chunked_array([pa.array(ODD[before], pa.float64())]))
    cuts, values = cuts_of(known), pa.chunked_array([pa.array(ODD[now], pa.float64())])
    history = [measured(cuts, pa.chunked_array([pa.array(ODD[before], pa.float64())]))] * 6
    distance = wasserstein(known, cuts, values)
    assert distance is None or np.isfinite(distance)
    for name, value in measured(cuts, values).items():
        if name in history[0]:
            found = judged(name, value, variation_of([h[name] for h in history], np.arange(6)), cuts, 1e-4)
            assert np.isfinite(found.moved), name
            assert (found.moved >= 1) <= (before != now), name
