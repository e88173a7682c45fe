from copy import copy
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from tests.traffic import LOOP, START, WEEK, World, lineage_without, package, rows

from loopwright.monitor.drift.baseline import DriftBaseline
from loopwright.monitor.drift.impact import Impact
from loopwright.monitor.drift.limits import variation_of
from loopwright.monitor.drift.measures import Cuts, share_of
from loopwright.monitor.inputs import DriftContext, main_package, skipped, watched_columns, window
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


def test_every_share_is_right_and_what_the_contract_flags_is_drift(world: World) -> None:
    given = rows(1000, START)
    world.predict(given[:600])
    world.predict(given[600:750], flags=["out_of_range:delay"])
    world.predict(given[750:], flags=["new_category:origin", "degraded"])
    found = window(logged(world), world.package, Monitor(), START, START + WEEK)
    columns = {c.column: c for c in found.columns}
    assert (found.state, found.rows) == ("drift", 1000), "of what the contract flags 15 % are no chance"
    assert set(found.drifted) == {"origin", "delay"}
    assert columns["origin"].text == "origin (share of categories that the contract does not name 25%, usual 0% to 4.1%)"
    assert columns["hour"].state == "ok"
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


def test_drift_that_hardly_moves_an_answer_is_noted(world: World) -> None:
    """The graph takes delay and wind; drawn from the reference, wind changes answers by a fifth of what delay does."""
    world.predict([{**r, "hour": 23, "wind": None} for r in rows(1000, START)])
    impact = Impact(world.package, logged(world))
    found = window(logged(world), world.package, Monitor(), START, START + WEEK, DriftContext(impact=impact))
    columns = {c.column: c for c in found.columns}
    assert (columns["hour"].state, columns["hour"].impact) == ("drift", 0.0)
    assert (columns["wind"].state, columns["wind"].matters) == ("drift", True)
    assert (found.drifted, found.noted) == (["wind"], ["hour"])


def test_impact_of_a_column_is_its_permutation_importance_where_nothing_moved(world: World) -> None:
    world.predict(rows(1000, START))
    found = Impact(world.package, logged(world))
    by_name = {h.column: found(h) for h in world.package.reference.columns}
    assert by_name["hour"] == by_name["origin"] == 0.0
    assert by_name["score"] is None
    delay, wind = by_name["delay"], by_name["wind"]
    assert delay is not None
    assert wind is not None
    assert 0.1 < wind < delay < 1.2


def test_features_that_are_no_columns_are_watched(world: World) -> None:
    usual = [share_of(100, 1000)] * 12
    history = {"low": variation_of(usual, np.arange(12))}
    baseline = DriftBaseline(
        package="",
        every="7d",
        stretches=12,
        variation={"ratio": history},
        features={"ratio": Cuts(low=-1.0, middle=0.0, high=1.0)},
    )
    world.predict(rows(1000, START))
    values = pa.chunked_array([pa.array(np.where(np.arange(1000) < 400, -2.0, 0.5))])
    found = window(
        logged(world), world.package, Monitor(), START, START + WEEK, DriftContext(baseline, features={"ratio": values})
    )
    ratio = next(c for c in found.columns if c.column == "ratio")
    assert (ratio.role, ratio.state, [f.measure for f in ratio.findings]) == ("feature", "drift", ["low"])
    assert "ratio" in found.drifted


def test_a_reference_of_a_few_rows_judges_nothing(world: World) -> None:
    small = copy(world.package)
    columns = [msgspec.structs.replace(h, rows=40) for h in small.reference.columns]
    small.reference = msgspec.structs.replace(small.reference, columns=columns)
    world.predict(rows(1000, START, shift=50.0))
    found = window(logged(world), small, Monitor(), START, START + WEEK)
    assert {c.state for c in found.columns} == {"no data"}
    assert found.drifted == []


def test_impact_of_integers_beyond_the_precision_of_a_float_is_told_without_a_warning(world: World) -> None:
    world.predict(rows(200, START))
    [hour] = [h for h in world.package.reference.columns if h.column == "hour"]
    far = msgspec.structs.replace(hour, edges=[0.0], counts=[100, 100], minimum=-(2.0**63), maximum=2.0**63)
    impact = Impact(world.package, logged(world))
    assert len(impact._drawn(far, world.package.columns["hour"])) == 200
