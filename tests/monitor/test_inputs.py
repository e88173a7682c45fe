from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from tests.traffic import LOOP, START, WEEK, World, lineage_without, package, rows

from loopwright.monitor.inputs import main_package, skipped, watched_columns, window
from loopwright.records.declarations import Monitor
from loopwright.stores.prediction_log.read import predictions


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def logged(world: World) -> pa.Table:
    return predictions(world.home, LOOP, start=START, end=START + WEEK)


def test_columns_that_only_name_things_or_tell_the_time_are_not_watched_and_say_why(world: World) -> None:
    assert watched_columns(world.package) == ["origin", "delay", "hour", "wind"]
    reasons = skipped(world.package)
    assert set(reasons) == {"flight", "at"}
    assert "too many values" in reasons["flight"]


def test_an_undisturbed_week_is_ok_and_every_share_is_right(world: World) -> None:
    given = rows(1000, START)
    world.predict(given[:600])
    world.predict(given[600:750], flags=["out_of_range:delay"])
    world.predict(given[750:], flags=["new_category:origin", "degraded"])
    found = window(logged(world), world.package, Monitor(), START, START + WEEK)
    columns = {c.column: c for c in found.columns}
    assert (found.state, found.drifted, found.rows) == ("ok", [], 1000)
    assert found.reference == world.package.digest
    assert found.packages == {world.package.digest: 1000}
    assert found.degraded == 0.25
    assert found.flags == {"degraded": 250, "new_category:origin": 250, "out_of_range:delay": 150}
    assert columns["delay"].out_of_range == 0.15
    assert columns["origin"].new_category == 0.25
    assert columns["wind"].missing == pytest.approx(0.1)
    assert columns["wind"].missing_reference == pytest.approx(0.1)
    assert columns["delay"].mean == pytest.approx(sum(r["delay"] for r in given) / 1000)
    assert columns["origin"].mean is None
    assert columns["score"].role == "output"
    assert columns["wind"].role == "context"


def test_a_shift_of_one_input_shows_in_that_input_and_in_the_score(world: World) -> None:
    world.predict(rows(1000, START, shift=20.0))
    found = window(logged(world), world.package, Monitor(), START, START + WEEK)
    assert found.state == "drift"
    assert set(found.drifted) == {"delay", "score"}
    assert {c.column: c.state for c in found.columns}["hour"] == "ok"


def test_a_column_that_stops_coming_drifts(world: World) -> None:
    world.predict([{**r, "wind": None} for r in rows(1000, START)])
    found = window(logged(world), world.package, Monitor(), START, START + WEEK)
    wind = next(c for c in found.columns if c.column == "wind")
    assert (wind.state, wind.missing, wind.mean) == ("drift", 1.0, None)


def test_drift_of_an_unused_column_is_noted_and_changes_no_state(world: World) -> None:
    world.release(package(world.home, lineage=lineage_without("origin")))
    world.predict([{**r, "origin": "EWR"} for r in rows(1000, START)])
    found = window(logged(world), world.package, Monitor(), START, START + WEEK)
    origin = next(c for c in found.columns if c.column == "origin")
    assert (origin.state, origin.used) == ("drift", False)
    assert (found.state, found.drifted, found.noted) == ("ok", [], ["origin"])
    assert watched_columns(world.package) == ["delay", "hour", "wind"]


def test_drift_of_a_used_column_counts(world: World) -> None:
    world.release(package(world.home, lineage=lineage_without("wind")))
    world.predict([{**r, "origin": "EWR"} for r in rows(1000, START)])
    found = window(logged(world), world.package, Monitor(), START, START + WEEK)
    assert (found.state, found.drifted, found.noted) == ("drift", ["origin"], [])


def test_a_package_without_features_is_judged_by_the_columns_of_its_rule(world: World) -> None:
    rule = msgspec.structs.replace(lineage_without(), features={}, heuristic=["delay"])
    world.release(package(world.home, lineage=rule))
    assert watched_columns(world.package) == ["delay"]


def test_no_rows_and_too_few_rows_are_no_data_and_never_ok(world: World) -> None:
    empty = window(logged(world), None, Monitor(), START, START + WEEK)
    assert (empty.state, empty.rows, empty.columns) == ("no data", 0, [])
    world.predict(rows(100, START, shift=50.0))
    few = window(logged(world), world.package, Monitor(minimum_rows=101), START, START + WEEK)
    assert (few.state, few.state_text) == ("no data", "too few (100 of 101)")
    assert empty.state_text == "no data"
    assert {c.state for c in few.columns} == {"no data"}
    assert few.drifted == []
    assert window(logged(world), world.package, Monitor(minimum_rows=100), START, START + WEEK).state == "drift"


def test_the_reference_is_of_the_package_that_answered_most(world: World) -> None:
    first, given = world.package, rows(900, START)
    world.predict(given[:300])
    world.release(package(world.home, weight=0.2))
    world.predict(given[300:])
    assert main_package(logged(world)) == world.package.digest != first.digest
    assert window(logged(world), world.package, Monitor(), START, START + WEEK).packages == {
        world.package.digest: 600,
        first.digest: 300,
    }


def test_a_window_survives_the_ledger_as_it_was(world: World) -> None:
    world.predict(rows(600, START))
    found = window(logged(world), world.package, Monitor(), START, START + WEEK)
    entry = world.home.ledger.put(found, loop=LOOP)
    assert msgspec.json.encode(world.home.ledger.get(entry.id, type(found)).record) == msgspec.json.encode(found)
