from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import TableNotFound
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.data.ingest.profile import keep_profile, profiled
from loopwright.records.declarations import Column, Table
from loopwright.records.profiles import ColumnProfile, DayCount, Profile
from loopwright.stores.home import Home

START = datetime(2024, 1, 1, tzinfo=UTC)
THINGS = Table(
    name="things",
    columns={
        "id": Column("integer"),
        "at": Column("timestamp"),
        "size": Column("float", nullable=True),
        "kind": Column("string", nullable=True),
        "odd": Column("boolean", nullable=True),
        "pixels": Column("array", shape=[2], nullable=True),
    },
    key=["id"],
    event_time="at",
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home"), SimulatedClock(START + timedelta(days=30))) as opened:
        yield opened


def rows(count: int, first: int = 0) -> pa.Table:
    numbers = list(range(first, first + count))
    return pa.table(
        {
            "id": numbers,
            "at": pa.array([START + timedelta(hours=i % 240) for i in numbers], pa.timestamp("us", "UTC")),
            "size": [None if i % 4 == 0 else float(i % 100) for i in numbers],
            "kind": [("it's", "b", "b", None)[i % 4] for i in numbers],
            "odd": [i % 2 == 1 for i in numbers],
            "pixels": [[0.0, 1.0]] * count,
        }
    )


def columns(found: Profile) -> dict[str, ColumnProfile]:
    return {c.name: c for c in found.columns}


def test_profile_has_counts_ranges_quantiles_and_common_values(home: Home) -> None:
    ingest(home, THINGS, rows(1000))
    keep_profile(home, "things")
    found = home.ledger.latest(Profile, key="things")
    assert found is not None
    assert (found.record.rows, found.record.version, found.record.at) == (1000, home.lake.version("things"), home.clock.now())
    of = columns(found.record)
    size = of["size"]
    truth = [float(i % 100) for i in range(1000) if i % 4]
    assert (size.nulls, size.minimum, size.maximum) == (250, 1.0, 99.0)
    assert abs(size.distinct - 75) < 6
    assert size.mean == pytest.approx(np.mean(truth))
    assert size.quantiles == pytest.approx(np.quantile(truth, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(), abs=2)
    assert (sum(size.histogram), len(size.histogram)) == (750, 12)
    assert size.histogram == np.histogram(truth, 12)[0].tolist()
    assert of["kind"].top == [("b", 500), ("it's", 250)]
    assert of["kind"].nulls == 250
    assert dict(of["odd"].top) == {False: 500, True: 500}
    assert (of["id"].minimum, of["id"].maximum, of["id"].top) == (0, 999, [])
    assert (of["at"].minimum, of["at"].maximum) == ("2024-01-01T00:00:00+00:00", "2024-01-10T23:00:00+00:00")
    assert (of["pixels"].nulls, of["pixels"].histogram) == (0, [])


def test_profile_counts_rows_a_day_and_days_without_rows(home: Home) -> None:
    quiet = rows(240).filter(pa.compute.not_equal(pa.compute.day(rows(240)["at"]), 4))
    ingest(home, THINGS, quiet)
    found = profiled(home, "things")
    assert found.days[0] == DayCount(date(2024, 1, 1), 24)
    assert [d.rows for d in found.days] == [24, 24, 24, 0, 24, 24, 24, 24, 24, 24]
    assert (found.oldest, found.newest) == (START, START + timedelta(hours=239))


def test_profile_is_made_again_once_a_quarter_of_the_rows_are_new(home: Home) -> None:
    def kept(count: int, first: int) -> int:
        ingest(home, THINGS, rows(count, first))
        keep_profile(home, "things")
        return len(home.ledger.find(Profile, key="things"))

    assert [kept(1000, 0), kept(100, 1000), kept(300, 1100), kept(10, 1400)] == [1, 1, 2, 2]
    assert profiled(home, "things").rows == 1410  # who asks gets the table as it is


def test_profile_of_a_table_without_rows_says_so(home: Home) -> None:
    with pytest.raises(TableNotFound):
        profiled(home, "things")
    ingest(home, THINGS, rows(0))
    found = profiled(home, "things")
    assert (found.rows, found.newest, found.days) == (0, None, [])


def test_profile_survives_infinity_extremes_and_constants(home: Home) -> None:
    odd = rows(5).set_column(2, "size", pa.array([1.7e308, -1.7e308, 0.0, None, 5e-324]))
    ingest(home, THINGS, odd)
    size = columns(profiled(home, "things"))["size"]
    assert (size.minimum, size.maximum, size.histogram) == (-1.7e308, 1.7e308, [])
