from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests.data.history import ASKED, CONTEXT, LOOP, MINUTE, OUTCOME, START, WEATHER, context_at, fill, home, random_history, us

from loopwright import Column, Context, Home, Table
from loopwright.data.context import feed, needs, rows_by_known
from loopwright.data.examples import build, load
from loopwright.data.ingest import ingest
from loopwright.records.columns import arrow_schema

DAY = timedelta(days=1)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path / "home") as found:
        yield found


def values(opened: Home, place: str) -> dict[str, Any] | None:
    row = opened.online.get("weather", place)
    return None if row is None else row.values


def test_needs_name_nullable_columns_and_the_key_in_one_order() -> None:
    [need] = needs(CONTEXT)
    assert (need.table, need.by, need.max_age_s) == ("weather", {"site": "place"}, 5400.0)
    assert need.columns == {"wind": Column("float", nullable=True), "calm": Column("boolean", nullable=True)}
    wide = Table(
        "t", {"b": Column("string"), "a": Column("string"), "at": Column("timestamp")}, key=["b", "a"], event_time="at"
    )
    [need] = needs([Context(wide, by={"b": "x", "a": "y"}, columns=["at"])])
    assert list(need.by) == ["a", "b"]
    assert need.max_age_s is None
    assert needs([]) == []


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_serving_finds_the_context_that_training_had(opened: Home, seed: int) -> None:
    history = random_history(seed)
    fill(opened, history)
    as_of = START + 3 * DAY
    examples = build(opened, loop_name=LOOP, requests=ASKED, context=CONTEXT, outcome=OUTCOME, as_of=as_of)
    fed = None
    limit = needs(CONTEXT)[0].max_age_s or 0
    for row in load(opened, examples).to_pylist():
        feed(opened, CONTEXT, known_from=fed, known_to=row["_decided_at"])
        fed = row["_decided_at"]
        found = opened.online.get("weather", row["place"])
        fresh = found is not None and (us(row["_decided_at"]) - found.event_at) / 1e6 <= limit
        seen = found.values if found is not None and fresh else {"wind": None, "calm": None}
        assert (row["wind"], row["calm"]) == (seen["wind"], seen["calm"])


@pytest.mark.parametrize("seed", [4, 5])
def test_feeding_all_at_once_by_steps_or_tick_by_tick_ends_the_same(opened: Home, tmp_path: Path, seed: int) -> None:
    history = random_history(seed)
    until = START + 20 * 60 * MINUTE
    fill(opened, history)
    count = feed(opened, CONTEXT, known_from=None, known_to=until)
    assert count == len({r["site"] for r in history.weather if r["told_at"] + 5 * MINUTE <= until})
    with home(tmp_path / "steps") as steps, home(tmp_path / "ticks") as ticks:
        fill(steps, history)
        fill(ticks, history)
        edge = START - DAY
        while edge < until:
            feed(steps, CONTEXT, known_from=edge, known_to=min(edge + 77 * MINUTE, until))
            edge += 77 * MINUTE
        times = []
        for known, table, rows in rows_by_known(ticks, CONTEXT, until=until):
            ticks.online.put(table, rows)
            times.append(known)
            assert {r[1] for r in rows} == {known}
        assert times == sorted(set(times))
        for place in ("A", "B", "nowhere"):
            best = context_at(history, place, until)
            wanted = None if best is None else {"wind": best["wind"], "calm": best["calm"]}
            assert values(opened, place) == values(steps, place) == values(ticks, place) == wanted


def test_a_step_is_open_at_its_beginning_and_closed_at_its_end(opened: Home) -> None:
    row = {"site": "A", "seen_at": START, "told_at": START, "wind": 1.0, "calm": None}
    fill(opened, random_history(0)._replace(weather=[row]))
    known = START + 5 * MINUTE
    assert feed(opened, CONTEXT, known_from=START, known_to=known - timedelta(microseconds=1)) == 0
    assert feed(opened, CONTEXT, known_from=known - timedelta(microseconds=1), known_to=known) == 1
    assert feed(opened, CONTEXT, known_from=known, known_to=known + DAY) == 0
    found = opened.online.get("weather", "A")
    assert found is not None
    assert (found.known_at, found.event_at, found.values) == (us(known), us(START), {"wind": 1.0, "calm": None})


def test_two_contexts_of_one_table_share_its_rows_and_timestamps_are_microseconds(opened: Home) -> None:
    fill(opened, random_history(0))
    both = [CONTEXT[0], Context(WEATHER, by={"site": "place"}, columns=["seen_at"])]
    feed(opened, both, known_from=None, known_to=START + 3 * DAY)
    row = opened.online.get("weather", "A")
    assert row is not None
    assert set(row.values) == {"wind", "calm", "seen_at"}
    assert row.values["seen_at"] == row.event_at


def test_a_table_without_rows_is_skipped(opened: Home) -> None:
    assert feed(opened, CONTEXT, known_from=None, known_to=START) == 0
    assert list(rows_by_known(opened, CONTEXT)) == []


def test_keys_of_several_columns_are_joined_in_alphabetical_order(opened: Home) -> None:
    table = msgspec.structs.replace(
        WEATHER, name="pairs", columns={**WEATHER.columns, "a_floor": Column("integer")}, key=["site", "a_floor"]
    )
    rows = [{"site": "A", "a_floor": 3, "seen_at": START, "told_at": START, "wind": 2.0, "calm": None}]
    ingest(opened, table, pa.Table.from_pylist(rows, schema=arrow_schema(table.columns)))
    feed(
        opened,
        [Context(table, by={"site": "place", "a_floor": "floor"}, columns=["wind"])],
        known_from=None,
        known_to=START + DAY,
    )
    row = opened.online.get("pairs", "3|A")
    assert row is not None
    assert row.values == {"wind": 2.0}
