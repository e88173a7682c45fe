"""Local time, categories and null in a graph, against zoneinfo and Python."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import ndonnx as ndx
import numpy as np
import pytest

from loopwright import features as features_module
from loopwright.base.errors import DeclarationInvalid
from loopwright.develop.features import trace, trace_slices
from loopwright.features import _changes, category, is_null, local_time, seconds_between
from loopwright.graph.session import NAT, Graph, feed_rows
from loopwright.records.declarations import Column, Slice

COLUMNS = {"at": Column("timestamp", nullable=True), "then": Column("timestamp", nullable=True)}
PARTS = ("year", "month", "day", "hour", "minute", "second", "weekday", "day_of_year", "minute_of_day", "days")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parts(zone: str, moments: Sequence[int | None]) -> list[list[float]]:
    """What the graph says of each moment, by the parts above."""

    def features(f: Any) -> dict[str, Any]:
        local = local_time(f.at, zone)
        return {part: getattr(local, part) for part in PARTS}

    graph = Graph(trace(features, COLUMNS).raw())
    return graph.run(feed_rows(graph, COLUMNS, [{"at": m} for m in moments]))["numbers"].tolist()  # type: ignore[no-any-return]


def expected(zone: str, moment: int) -> list[float]:
    t = (EPOCH + timedelta(microseconds=moment)).astimezone(ZoneInfo(zone))
    days = t.date().toordinal() - 719_163
    found = (t.year, t.month, t.day, t.hour, t.minute, t.second, t.weekday(), t.timetuple().tm_yday, t.hour * 60 + t.minute)
    return [float(v) for v in (*found, days)]


@pytest.mark.parametrize(
    "zone",
    ["UTC", "America/New_York", "Europe/London", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca", "Pacific/Apia"],
)
def test_local_time_is_that_of_zoneinfo(zone: str) -> None:
    rng = np.random.default_rng(0)
    last = int((datetime(2100, 12, 31, tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))
    moments = rng.integers(0, last, 1500).tolist()
    changes = _changes(ZoneInfo(zone))
    moments += [c + d for c in changes for d in (-1, 0, 1, -3_600_000_000, 3_600_000_000)]  # both sides of every change
    moments += [0, 951_782_400_000_000, 4_107_542_399_999_999]  # 29 February 2000, the end of February 2100
    assert parts(zone, moments) == [expected(zone, m) for m in moments]
    assert bool(changes) == (zone != "UTC")


@pytest.mark.parametrize(("zone", "most"), [("UTC", 1), ("Etc/GMT+5", 1), ("Europe/London", 60_000)])
def test_offsets_of_a_zone_are_asked_for_once_a_day_and_not_where_they_never_change(
    zone: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """131 years have 47,847 days, and a change is halved down to its second in 17 steps."""
    calls, offset = count(), features_module._offset
    monkeypatch.setattr(features_module, "_offset", lambda tz, moment: offset(tz, moment) if next(calls) >= 0 else 0)
    _changes(ZoneInfo(zone))
    assert next(calls) <= most


def test_moments_before_1970_are_told_in_utc() -> None:
    moments = [-1, -86_400_000_000, -2_208_988_800_000_001, -62_135_596_800_000_000]
    assert parts("UTC", moments) == [expected("UTC", m) for m in moments]


def test_outside_1970_to_2100_the_first_and_the_last_offset_count() -> None:
    """New York in July: on summer time in fact, and told in winter time, which it had at both ends."""
    moments = [datetime(year, 7, 1, 12, tzinfo=UTC) for year in (1950, 2000, 2105)]
    found = parts("America/New_York", [(m - EPOCH) // timedelta(microseconds=1) for m in moments])
    assert [(row[PARTS.index("year")], row[PARTS.index("hour")]) for row in found] == [(1950, 7), (2000, 8), (2105, 7)]


def test_a_null_moment_has_null_parts() -> None:
    found = parts("Europe/Paris", [None, NAT, 0])
    assert np.isnan(found[0]).all()
    assert np.isnan(found[1]).all()
    assert found[2] == expected("Europe/Paris", 0)
    data = trace_slices([Slice("early", lambda f: local_time(f.at, "Asia/Tokyo").hour < 12)], COLUMNS)
    assert data is not None
    graph = Graph(data)
    rows: list[dict[str, Any]] = [{"at": None}, {"at": 0}, {"at": 4 * 3_600_000_000}]
    assert graph.run(feed_rows(graph, COLUMNS, rows))["early"].tolist() == ["missing", "yes", "no"]


def test_seconds_between_moments() -> None:
    graph = Graph(trace(lambda f: {"s": seconds_between(f.at, f.then)}, COLUMNS).raw())
    rows: list[dict[str, Any]] = [
        {"at": 0, "then": 1_500_000},
        {"at": 1_500_000, "then": 0},
        {"at": None, "then": 0},
        {"at": 0, "then": None},
    ]
    found = graph.run(feed_rows(graph, COLUMNS, rows))["numbers"][:, 0]
    assert found[:2].tolist() == [1.5, -1.5]
    assert np.isnan(found[2:]).all()


def test_what_has_no_local_time_says_so() -> None:
    with pytest.raises(DeclarationInvalid, match="takes a timestamp column"):
        trace(lambda f: {"h": local_time(f.x, "UTC").hour}, {"x": Column("float")})
    with pytest.raises(DeclarationInvalid, match="No time zone found"):
        trace(lambda f: {"h": local_time(f.at, "Europe/Pariss").hour}, COLUMNS)
    with pytest.raises(ZoneInfoNotFoundError):
        local_time(ndx.argument(shape=("N",), dtype=ndx.DateTime64DType("us")), "Mars/Olympus")


def test_codes_become_categories() -> None:
    columns = {"code": Column("integer"), "maybe": Column("integer", nullable=True), "flag": Column("boolean", nullable=True)}
    traced = trace(lambda f: {n: category(getattr(f, n)) for n in columns}, columns)
    graph = Graph(traced.raw())
    rows: list[dict[str, Any]] = [{"code": 0, "maybe": None, "flag": None}, {"code": -7, "maybe": 2**62, "flag": True}]
    rows.append({"code": 10, "maybe": 0, "flag": False})
    found = graph.run(feed_rows(graph, columns, rows))
    assert found["value.code"].tolist() == ["0", "-7", "10"]
    assert found["value.maybe"].tolist()[1:] == [str(2**62), "0"]
    assert found["null.maybe"].tolist() == found["null.flag"].tolist() == [True, False, False]
    assert found["value.flag"].tolist()[1:] == ["true", "false"]
    with pytest.raises(DeclarationInvalid, match="integers or booleans"):
        trace(lambda f: {"a": category(f.x)}, {"x": Column("float")})


def test_null_is_not_zero_nor_empty_nor_nan() -> None:
    columns = {
        "x": Column("float", nullable=True), "i": Column("integer", nullable=True), "b": Column("boolean", nullable=True),
        "s": Column("string", nullable=True), "at": Column("timestamp", nullable=True), "never": Column("float"),
    }  # fmt: skip
    graph = Graph(trace(lambda f: {name: is_null(f[name]) for name in columns}, columns).raw())
    zero: dict[str, Any] = {"x": 0.0, "i": 0, "b": False, "s": "", "at": 0, "never": 0.0}
    rows = [zero, {**zero, "x": float("nan"), "never": float("nan")}, dict.fromkeys(zero) | {"never": 1.0}]
    assert graph.run(feed_rows(graph, columns, rows))["numbers"].tolist() == [[0] * 6, [0] * 6, [1, 1, 1, 1, 1, 0]]
