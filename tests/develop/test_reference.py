import numpy as np
import pyarrow as pa
import pytest
from tests.develop.flights import COLUMNS, CONTEXT, REQUEST, table

from loopwright.develop.reference import BINS, histogram, histograms, numeric, served_rows
from loopwright.records.declarations import Column
from loopwright.tasks.metrics import Answered


def test_bins_hold_alike_many_rows_and_all_of_them() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    found = numeric("x", "request", values, 10_500)
    assert len(found.counts) == len(found.edges) + 1 == BINS
    assert sum(found.counts) == 10_000
    assert found.missing == 500
    assert max(found.counts) < 1.1 * 10_000 / BINS
    counted = np.bincount(np.searchsorted(found.edges, values, side="right"), minlength=BINS)  # how a reader must count
    assert counted.tolist() == found.counts
    assert found.mean == pytest.approx(values.mean())


@pytest.mark.parametrize("values", [[1.0] * 50, [0.0] * 99 + [7.0], [float("nan")] * 5, [], [float("inf"), 1.0, 2.0]])
def test_odd_columns_still_count_every_row(values: list[float]) -> None:
    found = numeric("x", "request", np.array(values), len(values))
    assert sum(found.counts) + found.missing == len(values)
    assert len(found.counts) == len(found.edges) + 1
    assert all(np.isfinite(found.edges))


def test_categories_keep_the_most_frequent_and_count_the_rest() -> None:
    words = [f"w{i:03d}" for i in range(150) for _ in range(i + 1)]
    found = histogram("w", "request", Column("string", nullable=True), pa.chunked_array([[*words, None, None]]))
    assert len(found.categories) == 100
    assert found.categories == sorted(found.categories)
    assert found.counts[-1] == sum(range(1, 51))
    assert sum(found.counts) == len(words)
    assert found.missing == 2
    hubs = histogram("hub", "request", Column("boolean"), pa.chunked_array([[True, False, True]]))
    assert dict(zip(hubs.categories, hubs.counts, strict=False)) == {"false": 1, "true": 2}
    assert hubs.counts[-1] == 0


def test_every_column_but_moments_has_a_histogram() -> None:
    made = table(500)
    found = histograms(REQUEST, CONTEXT, made, Answered(np.linspace(0, 1, 500)))
    assert [(h.column, h.role) for h in found] == [
        *((name, "request") for name in REQUEST if name != "at"), ("wind", "context"), ("score", "output"),
    ]  # fmt: skip
    assert all(sum(h.counts) + h.missing == h.rows == 500 for h in found)


def test_served_rows_are_python_values() -> None:
    row = served_rows(COLUMNS, table(10), [3])[0]
    assert list(row) == list(COLUMNS)
    assert isinstance(row["at"], int)
    assert isinstance(row["delay"], float)
    assert row["score"] is None
