"""What serving finds is what training had: the same steps, fed into a table and looked up at the moment of decision."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests.data.examples.test_asof import AGGREGATES, CONTEXTS, LANDED, SKY, STARTS, found, history
from tests.data.history import CONTEXT, LOOP, MINUTE, START, WEATHER, Row, fill, home, random_history, us

from loopwright import Column, Context, Home, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.data.examples.asof import joined
from loopwright.data.examples.build import build
from loopwright.data.examples.context import SLACK, feed, needs
from loopwright.data.ingest.ingestion import ingest
from loopwright.deploy.serving.context import Contexts
from loopwright.graph.columns import arrow_schema
from loopwright.records.package import ContextNeed
from loopwright.stores.examples import read_examples
from loopwright.stores.packages.store import decode_json, encode_json

DAY = timedelta(days=1)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path / "home") as found:
        yield found


def served(opened: Home, asked: list[Row], needed: Any = None) -> tuple[list[Row], list[list[str]]]:
    """What decisions are joined with through the online path, and their flags."""
    flags: list[list[str]] = [[] for _ in asked]
    wanted = needs(CONTEXTS, AGGREGATES) if needed is None else needed
    wanted = decode_json(encode_json(wanted), list[ContextNeed])  # as a package's manifest keeps them: keys of objects sorted
    rows, _ = Contexts(wanted, "_us", opened.online).find(asked, flags)
    return rows, flags


def bring(opened: Home, table: Table, rows: list[Row]) -> None:
    """Ingest rows; one that is alike in key and moments to one before it comes in a later source."""
    sources: list[list[Row]] = []
    seen: Counter[Any] = Counter()
    for row in rows:
        alike = tuple(row[n] for n in (*table.key, table.event_time, table.known))
        sources += [[]] if seen[alike] == len(sources) else []
        sources[seen[alike]].append(row)
        seen[alike] += 1
    for i, source in enumerate(sources):
        done = ingest(opened, table, pa.Table.from_pylist(source, schema=arrow_schema(table.columns)))
        assert done.quarantined == 0, done.reasons
        assert done.repeated == len(source) or not i


def plain(rows: list[Row]) -> list[Row]:
    """Timestamps as microseconds, as they are served."""
    return [{n: us(v) if isinstance(v, datetime) else v for n, v in row.items()} for row in rows]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_serving_finds_to_the_bit_what_training_had(online_url: str, tmp_path: Path, seed: int) -> None:
    landed, sky, asked = history(seed, STARTS[seed])
    settings = Settings(home=tmp_path / "home", by="tests", online=online_url)
    with Home(settings, SimulatedClock(STARTS[seed] + DAY)) as opened:
        bring(opened, LANDED, landed)
        bring(opened, SKY, sky)
        feed(opened, joined(CONTEXTS, AGGREGATES))
        rows, flags = served(opened, asked)
        assert rows == plain(found(opened, landed, sky, asked))
        assert any("stale_context:sky" in f for f in flags)
        assert any("missing_context:sky" in f for f in flags)
        assert not any("missing_context:landed" in f or "late_context:sky" in f for f in flags)


@pytest.mark.parametrize("seed", [3, 4])
def test_fed_as_rows_come_in_it_serves_at_each_moment_what_training_will_have(tmp_path: Path, seed: int) -> None:
    """Rows are ingested when they become known and fed with each of them; whoever decides then finds what training joins later."""
    landed, sky, asked = history(seed, STARTS[0], rows=60, decisions=120)
    wanted = plain(found(home(tmp_path / "offline"), landed, sky, asked))
    events = sorted(
        [(max(us(r["told"] + 2 * MINUTE), us(STARTS[0])), LANDED, r) for r in landed]
        + [(max(us(r["told"] + MINUTE), us(STARTS[0])), SKY, r) for r in sky],
        key=lambda e: e[0],
    )
    clock = SimulatedClock(STARTS[0])
    order = sorted(range(len(asked)), key=lambda i: asked[i]["_us"])
    with Home(Settings(home=tmp_path / "home", by="tests"), clock) as opened:
        done = 0
        for begin in range(0, len(order), 12):
            some = order[begin : begin + 12]
            now = min(asked[i]["_us"] for i in some)
            for table in (LANDED, SKY):  # late by less than any lag but the shortest, which is none
                bring(opened, table, [r for at, t, r in events[done:] if t is table and at <= asked[some[-1]]["_us"]])
            done += sum(at <= asked[some[-1]]["_us"] for at, _, _ in events[done:])
            clock.advance_to(STARTS[0] + timedelta(microseconds=max(now, asked[some[-1]]["_us"]) - us(STARTS[0])))
            feed(opened, joined(CONTEXTS, AGGREGATES))
            rows, flags = served(opened, [asked[i] for i in some])
            for i, row, flag in zip(some, rows, flags, strict=True):
                if "missing_context:landed" not in flag and opened.lake.exists("landed") and opened.lake.exists("sky"):
                    assert row == wanted[i], asked[i]
                    assert not any(f.startswith("late") for f in flag)


def test_a_store_that_was_not_fed_in_time_is_late_and_one_that_never_was_is_missing(opened: Home) -> None:
    landed, sky, _ = history(1, STARTS[0])
    at = STARTS[0] + 300 * MINUTE
    asked: list[Row] = [{"airline": "AA", "other": "AA", "door": 1, "_us": us(at) + off} for off in (0, 60_000_000, 60_000_001)]
    [context], [n, *_] = needs(CONTEXTS[1:]), needs([], AGGREGATES)
    rows, flags = served(opened, asked[:1], [context, n])
    assert flags == [["missing_context:sky", "missing_context:landed"]]
    assert set(rows[0].values()) == {None}, "not even a count, which would say that there is nothing"
    bring(opened, LANDED, landed)
    bring(opened, SKY, sky)
    feed(opened, joined(CONTEXTS, AGGREGATES), until=at)
    _, flags = served(opened, asked, [context, n])
    assert flags[:2] == [[], []], "lag is a minute"
    assert flags[2] == ["late_context:sky", "late_context:landed"]
    feed(opened, joined(CONTEXTS, AGGREGATES), until=at + MINUTE)
    _, flags = served(opened, asked, [context, n])
    assert flags == [[], [], []]


def test_what_lies_before_the_stretch_that_is_kept_is_missing_not_wrong(opened: Home) -> None:
    landed, sky, asked = history(2, STARTS[0])
    bring(opened, LANDED, landed)
    bring(opened, SKY, sky)
    opened.clock.advance_to(STARTS[0] + 100 * DAY)  # type: ignore[attr-defined]  # a simulated clock
    feed(opened, joined(CONTEXTS, AGGREGATES))
    fed = opened.online.fed(needs([], AGGREGATES)[0].store)
    assert fed is not None
    newest = max(r["told"] for r in landed) + 3 * MINUTE
    assert fed.since == us(newest - SLACK), "a table that stands still keeps its last day"
    rows, flags = served(opened, [asked[0] | {"_us": fed.since - 1}])
    assert "missing_context:landed" in flags[0]
    assert rows[0]["n"] is None
    rows, flags = served(opened, asked)
    assert rows == plain(found(opened, landed, sky, asked))


def test_only_the_present_and_what_is_to_come_is_kept(opened: Home) -> None:
    rows = [
        {"site": "A", "seen_at": START + i * DAY, "told_at": START + i * DAY, "wind": float(i), "calm": None}
        for i in range(300)
    ]
    bring(opened, WEATHER, rows)
    opened.clock.advance_to(START + 250 * DAY)  # type: ignore[attr-defined]  # a simulated clock
    assert feed(opened, joined(CONTEXT, [])) == 1
    [steps] = opened.online.get_many(needs(CONTEXT)[0].store, ["A"])
    assert steps is not None
    assert len(steps._moments) == 1 + 51, "in force when the stretch began, those since, and those ingested ahead"
    assert feed(opened, joined(CONTEXT, [])) == 0, "nothing new"


def test_two_contexts_of_one_table_are_two_stores_and_timestamps_are_microseconds(opened: Home) -> None:
    fill(opened, random_history(0))
    both = [CONTEXT[0], Context(WEATHER, by={"site": "place"}, columns={"seen": "seen_at"}, lag="3m")]
    feed(opened, joined(both, []), until=START + 3 * DAY)
    rows, _ = served(opened, [{"place": "A", "_us": us(START + 2 * DAY)}], needs(both))
    newest = max(r["seen_at"] for r in random_history(0).weather if r["site"] == "A")
    assert rows == [{"wind": None, "calm": None, "seen": us(newest)}], "wind is too old, the other has no max_age"


def test_a_table_without_rows_is_skipped(opened: Home) -> None:
    assert feed(opened, joined(CONTEXTS, AGGREGATES)) == 0


def test_needs_name_nullable_columns_what_an_empty_window_is_and_the_key_in_one_order() -> None:
    [need] = needs(CONTEXT)
    assert (need.table, need.by, need.max_age_s, need.lag_s, need.empty) == ("weather", {"site": "place"}, 5400.0, 180.0, {})
    assert need.columns == {"wind": Column("float", nullable=True), "calm": Column("boolean", nullable=True)}
    wide = Table(
        "t", {"b": Column("string"), "a": Column("string"), "at": Column("timestamp")}, key=["b", "a"], event_time="at"
    )
    [need] = needs([Context(wide, by={"b": "x", "a": "y"}, columns=["at"])])
    assert list(need.by) == ["a", "b"]
    assert need.max_age_s is None
    assert needs([]) == []
    empty = {name: value for need in needs([], AGGREGATES) for name, value in need.empty.items()}
    assert empty == {
        "n": 0, "total": 0.0, "mean": None, "late": None, "low": None, "high": None, "kinds": 0, "numbers": 0
    }  # fmt: skip


def test_examples_have_aggregates_too(opened: Home) -> None:
    from tests.data.history import ASKED, OUTCOME

    from loopwright import Aggregate

    made = random_history(5)
    fill(opened, made)
    seen = [
        Aggregate(name="seen", table=WEATHER, by={"site": "place"}, function="count", window="4h"),
        Aggregate(name="blown", table=WEATHER, by={"site": "place"}, function="mean", of="wind", window="4h"),
    ]
    examples = build(
        opened, loop_name=LOOP, requests=ASKED, context=CONTEXT, aggregates=seen, outcome=OUTCOME, as_of=START + 3 * DAY
    )
    assert list(examples.context) == ["wind", "calm", "seen", "blown"]
    for row in read_examples(opened, examples.digest).to_pylist():
        known = [
            r
            for r in made.weather
            if r["site"] == row["place"] and r["told_at"] + 6 * MINUTE <= row["at"] and r["seen_at"] <= row["at"]
        ]
        newest = {r["seen_at"]: r for r in sorted(known, key=lambda r: r["told_at"])}
        inside = [r for at, r in newest.items() if at > row["at"] - timedelta(hours=4)]
        winds = [r["wind"] for r in inside if r["wind"] is not None]
        assert (row["seen"], row["blown"]) == (len(inside), pytest.approx(sum(winds) / len(winds)) if winds else None)


def test_keys_of_several_columns_are_in_alphabetical_order(opened: Home) -> None:
    table = msgspec.structs.replace(
        WEATHER, name="pairs", columns={**WEATHER.columns, "a_floor": Column("integer")}, key=["site", "a_floor"]
    )
    bring(opened, table, [{"site": "A", "a_floor": 3, "seen_at": START, "told_at": START, "wind": 2.0, "calm": None}])
    pairs = [Context(table, by={"site": "place", "a_floor": "floor"}, columns=["wind"])]
    feed(opened, joined(pairs, []))
    assert opened.online.get_many(needs(pairs)[0].store, ["3|A"]) != [None]
    rows, _ = served(opened, [{"place": "A", "floor": 3, "_us": us(START + DAY)}], needs(pairs))
    assert rows == [{"wind": 2.0}]
