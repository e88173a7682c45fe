"""The example that `serve` and the OpenAPI document show is a sensible request: of the rows that the package was judged on."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from tests.deploy.loops import LOOP, NOW, NOW_US, REQUESTS, Weather, package

from loopwright.base.clock import SimulatedClock
from loopwright.deploy.example import example_request
from loopwright.deploy.serving.predictor import Predictor
from loopwright.develop.reference import histogram
from loopwright.records.declarations import Column
from loopwright.records.package import Golden, Lineage, Origin, Reference
from loopwright.stores.packages.store import Packages

ROWS = 400
SEEN: dict[str, list[Any]] = {
    "flight": [f"UA{i}" for i in range(ROWS)],
    "origin": ["JFK"] * 300 + ["EWR"] * 100,
    "delay": np.random.default_rng(7).gamma(2.0, 3.0, ROWS).tolist(),
    "hour": [7] * 100 + [8] * 120 + [9] * 180,
    "tail": [f"N{i}" for i in range(ROWS)],
    "night": [False] * 390 + [True] * 10,
}


def reference(columns: dict[str, Column], *, golden: tuple[Golden, ...] = (), **more: list[Any]) -> Reference:
    seen = {name: pa.chunked_array([values]) for name, values in (SEEN | more).items()}
    return Reference(columns=[histogram(n, "request", columns[n], v) for n, v in seen.items()], golden=[*golden])


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    return Packages(tmp_path)


def test_example_has_the_median_and_the_commonest_value_of_each_column(packages: Packages) -> None:
    """The middles of the ranges, 660 minutes of delay at 12 o'clock, are like no row."""
    made = package(packages)
    found = example_request(made.manifest, reference(REQUESTS.columns), NOW)
    assert found.keys() == REQUESTS.columns.keys() - {"pushed_back_at"}
    low, high = np.quantile(SEEN["delay"], [0.4, 0.6])
    assert low <= found["delay"] <= high
    assert (found["origin"], found["hour"], found["night"]) == ("JFK", 8, False)
    [answer] = Predictor(made, Weather(), SimulatedClock(NOW)).answer([dict(found)])
    assert (answer.flags, found["tail"]) == ([], "text")


def test_example_makes_up_names_and_personal_data(packages: Packages) -> None:
    columns = REQUESTS.columns | {"hour": Column("integer", minimum=0, maximum=23, tags=["pii"])}
    seen = reference(columns, flight=["UA1"] * ROWS)
    used = Lineage(features={"x": ["delay"]}, columns=dict.fromkeys(columns, Origin()))
    found = example_request(msgspec.structs.replace(package(packages, request=columns).manifest, lineage=used), seen, NOW)
    assert (found["flight"], found["hour"]) == ("text", 12)


def test_example_of_a_later_time_is_as_far_ahead_as_it_was(packages: Packages) -> None:
    columns = REQUESTS.columns | {"planned_at": Column("timestamp")}
    hours = [1, 2, 2, 3, 9]
    golden = tuple(
        Golden(request={"pushed_back_at": NOW_US + i, "planned_at": NOW_US + i + h * 3_600_000_000}, context={}, score=0.0)
        for i, h in enumerate(hours)
    )
    now = datetime(2031, 1, 1, tzinfo=UTC)
    made = msgspec.structs.replace(package(packages).manifest, request=columns)
    found = example_request(made, reference(columns, golden=golden), now)
    assert datetime.fromisoformat(found["planned_at"]) == now + timedelta(hours=2)
    assert made.loop == LOOP
