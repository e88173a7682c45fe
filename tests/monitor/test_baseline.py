from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from tests.admitted import unprobed
from tests.traffic import COLUMNS, LOOP, OUTCOME, START, WEEK, Row, World, examples_file, rows

from loopwright.graph.columns import ARROW_TYPES
from loopwright.monitor.drift.baseline import DriftBaseline, drift_baseline, measures_of
from loopwright.monitor.windows import watch
from loopwright.records.declarations import Monitor, Retrain

MONITOR = Monitor(minimum_rows=100)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def seasons(week: int) -> float:
    """The wind of a week: weeks differ, as weather does."""
    return [0.0, 9.0, -4.0, 12.0, 3.0, -6.0, 7.0, 1.0][week % 8]


def windy(given: list[Row], week: int) -> list[Row]:
    return [{**r, "wind": None if r["wind"] is None else r["wind"] + seasons(week)} for r in given]


def history(world: World, weeks: int = 8) -> None:
    """The examples file of the package: `weeks` before START, each with a wind of its own."""
    given = [r for w in range(weeks) for r in windy(rows(400, START - (weeks - w) * WEEK, seed=5), w)]
    columns = {
        name: pa.array([r[name] for r in given], pa.int64() if c.type == "timestamp" else ARROW_TYPES[c.type])
        for name, c in COLUMNS.items()
    }
    columns["at"] = columns["at"].cast(ARROW_TYPES["timestamp"])
    digest = examples_file(world.home, pa.table({**columns, "_decided_at": columns["at"]}))
    manifest = world.package.manifest
    trained = msgspec.structs.replace(manifest, training=msgspec.structs.replace(manifest.training, examples=digest), files={})
    written = world.home.packages.write(trained, world.home.packages.read(world.package.digest).files)
    world.release(unprobed(world.home.packages, written))


def states(world: World, week: int, given: list[Row]) -> dict[str, str]:
    world.predict(given)
    world.clock.advance_to(START + (week + 1) * WEEK)
    found = watch(world.home, loop_name=LOOP, monitor=MONITOR, retrain=Retrain(), outcome=OUTCOME, until=world.clock.now())
    return {c.column: c.state for c in found.windows[-1].columns}


def test_what_moved_just_as_much_in_training_is_no_drift_and_what_moves_more_is(world: World) -> None:
    history(world)
    assert states(world, 0, windy(rows(800, START), 1))["wind"] == "ok"
    assert states(world, 1, windy(rows(800, START + WEEK), 6))["wind"] == "ok"
    far = [{**r, "wind": None if r["wind"] is None else r["wind"] + 70} for r in rows(800, START + 2 * WEEK)]
    assert states(world, 2, far)["wind"] == "drift"
    assert states(world, 3, rows(800, START + 3 * WEEK, shift=25.0))["delay"] == "drift"


def test_without_a_history_every_movement_counts(world: World) -> None:
    assert drift_baseline(world.home, LOOP, world.package, MONITOR).variation == {}
    assert states(world, 0, windy(rows(800, START), 3))["wind"] == "drift"


def test_it_is_measured_once_and_kept(world: World) -> None:
    history(world)
    found = drift_baseline(world.home, LOOP, world.package, MONITOR)
    wind, delay = found.variation["wind"]["mean"], found.variation["delay"]["mean"]
    assert wind.variance > 100 * wind.sampling, "weeks differ"
    assert delay.variance < 4 * delay.sampling, "rows alone differ"
    assert set(found.variation) == {"flight", "origin", "delay", "hour", "wind", "score"}
    assert set(found.variation["origin"]) == {
        *(f"category:{c}" for c in ("", "EWR", "JFK", "LGA")),
        "unnamed",
        "newcomer",
        "nulls",
        "out_of_range",
        "new_category",
    }
    for path in world.home.folder("examples").iterdir():
        path.unlink()
    assert drift_baseline(world.home, LOOP, world.package, MONITOR) == found
    assert [e.record.stretches for e in world.home.ledger.find(DriftBaseline, loop=LOOP)] == [7]


def test_damaged_history_counts_for_nothing(world: World) -> None:
    history(world)
    [path] = world.home.folder("examples").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert drift_baseline(world.home, LOOP, world.package, MONITOR).variation == {}


def test_a_short_history_says_nothing(world: World) -> None:
    history(world, weeks=3)
    assert drift_baseline(world.home, LOOP, world.package, MONITOR).variation == {}
    assert "wind" in drift_baseline(world.home, LOOP, world.package, Monitor(every="2d", minimum_rows=50)).variation


def test_a_history_without_the_columns_that_the_model_needs_has_no_usual_score(world: World) -> None:
    one = pa.table({"hour": pa.array(np.arange(600) % 24)})
    found, features = measures_of(world.package, [one] * 4, np.arange(4))
    assert (set(found), features) == ({"hour"}, {})


def test_very_short_windows_are_measured_on_a_bounded_number_of_stretches(world: World) -> None:
    history(world)
    short = Monitor(every="6h", minimum_rows=1)
    assert drift_baseline(world.home, LOOP, world.package, short).variation
    entry = world.home.ledger.latest(DriftBaseline, loop=LOOP)
    assert entry is not None
    assert entry.record.stretches == 104
    assert timedelta(hours=6) * 104 < 8 * WEEK


def test_a_history_with_a_gap_between_all_weeks_is_read_back(world: World) -> None:
    """No week has a neighbour, so there is no step to judge; JSON has no infinity."""
    alone = [
        {c: pa.array([r[c] for r in rows(300, START - 9 * WEEK * i, seed=i)]) for c in ("delay", "hour")} for i in range(5)
    ]
    found, _ = measures_of(world.package, [pa.table(each) for each in alone], np.arange(5) * 9)
    record = DriftBaseline(package="p", every="7d", stretches=5, variation=found)
    entry = world.home.ledger.put(record, loop=LOOP, key="gaps")
    assert world.home.ledger.get(entry.id, DriftBaseline).record == record
    assert {v.steps for each in found.values() for v in each.values()} == {0}
