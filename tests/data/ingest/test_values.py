"""One column of a source in the type of its contract; times against Python's own zoneinfo."""

import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from loopwright import Column
from loopwright.data.ingest.values import Read, read, unusable

NEW_YORK = "America/New_York"
SKIPPED = f"a time that {NEW_YORK} skips (the clocks go forward)"
TWICE = f"a time that {NEW_YORK} has twice, as -04:00 and as -05:00: write which"


def found(column: Column, values: list[Any], type: Any = None) -> Read:
    return read(column, pa.chunked_array([pa.array(values, type)]))


def faults(column: Column, values: list[Any]) -> dict[str, list[int]]:
    return {rule: rows.nonzero()[0].tolist() for rule, rows in found(column, values).faults.items()}


def test_local_times_are_those_of_the_zone_and_what_is_no_moment_is_told() -> None:
    local = Column("timestamp", zone=NEW_YORK)
    written = ["2013-03-10 02:30", "2013-11-03 01:30", "2013-11-03T01:30:00-05:00", "2013-07-01", "soon", None, "NA"]
    result = found(local, written)
    assert result.values.to_pylist() == [
        None,
        None,
        datetime(2013, 11, 3, 6, 30, tzinfo=UTC),
        datetime(2013, 7, 1, 4, tzinfo=UTC),
        None,
        None,
        None,
    ]
    assert faults(local, written) == {"not a time (ISO 8601, e.g. 2013-01-31 05:15)": [4], SKIPPED: [0], TWICE: [1]}
    assert faults(Column("timestamp"), ["2013-07-01 00:00"]) == {
        "not a time with a zone (ISO 8601, e.g. 2013-01-31T05:15:00Z, or declare zone= for the column)": [0]
    }
    unreadable = ["2013-13-01T00:00Z", "2013-07-01", "2013-13-01"]  # whose zone is declared already
    assert faults(local, unreadable) == {"not a time (ISO 8601, e.g. 2013-01-31 05:15)": [0, 2]}


@pytest.mark.parametrize(
    "zone", [NEW_YORK, "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Sao_Paulo", "UTC"]
)
def test_local_times_agree_with_the_standard_library_over_every_change_of_clocks(zone: str) -> None:
    draw, there = random.Random(zone), ZoneInfo(zone)
    times = [datetime(1975, 1, 1) + timedelta(minutes=draw.randrange(60 * 24 * 365 * 60)) for _ in range(300)]  # noqa: DTZ001 - local
    for year in (2000, 2007, 2013, 2018):  # every quarter of an hour around the changes of a year
        hours = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(8760)]
        offsets = [h.astimezone(there).utcoffset() for h in hours]
        for at in [h for h, a, b in zip(hours, offsets, offsets[1:], strict=False) if a != b]:
            base = at.astimezone(there).replace(tzinfo=None)
            times += [base + timedelta(minutes=15 * i) for i in range(-12, 13)]
    result = found(Column("timestamp", zone=zone), times, pa.timestamp("us"))
    for time, moment in zip(times, result.values.to_pylist(), strict=True):
        first, second = (time.replace(tzinfo=there, fold=fold) for fold in (0, 1))
        real = first.astimezone(UTC).astimezone(there).replace(tzinfo=None) == time
        once = first.utcoffset() == second.utcoffset()
        assert moment == (first.astimezone(UTC) if real and once else None), time


@pytest.mark.parametrize(
    ("column", "written", "moment"),
    [
        (Column("timestamp", zone="UTC", format="%d.%m.%Y %H:%M"), "31.12.2023 17:05", datetime(2023, 12, 31, 17, 5, tzinfo=UTC)),
        (Column("timestamp", zone=NEW_YORK, format="%m/%d/%Y %I:%M %p"), "07/01/2013 05:00 PM", datetime(2013, 7, 1, 21, tzinfo=UTC)),
        (Column("timestamp", format="%Y%m%d %H:%M %z"), "20240101 02:00 +0200", datetime(2024, 1, 1, tzinfo=UTC)),
        (Column("timestamp", format="unix"), "1700000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (Column("timestamp", format="unix_ms"), 1_700_000_000_250, datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)),
        (Column("timestamp", zone=NEW_YORK), date(2013, 7, 1), datetime(2013, 7, 1, 4, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_times_are_read_as_the_contract_says_they_are_written(column: Column, written: Any, moment: datetime) -> None:
    assert found(column, [written, None]).values.to_pylist() == [moment, None]
    assert len(faults(column, ["31/31/2023"])) == 1


def test_numbers_of_every_source() -> None:
    assert found(Column("integer"), [Decimal(9007199254740993), Decimal("3.0")]).values.to_pylist() == [9007199254740993, 3]
    assert faults(Column("integer"), [Decimal("2.5"), Decimal("3.0")]) == {"not a whole number of 64 bits": [0]}
    assert found(Column("float", format="1.234,5"), ["1.234,5", "-0,25", "7"]).values.to_pylist() == [1234.5, -0.25, 7.0]
    assert faults(Column("integer", format="1,234.5"), ["1,234", "12,34", "1.5", "12"]) == {
        "not a whole number of 64 bits": [1, 2]
    }
    assert faults(Column("float", format="1,234.5"), ["0,539", "00,123", "0.539", "1,539"]) == {"not a number": [0, 1]}
    assert found(Column("float", missing=["?", "-"]), ["?", "1", "-"]).values.to_pylist() == [None, 1.0, None]


def test_bytes_are_text_where_they_are_utf_8() -> None:
    assert found(Column("string"), [b"a", "ä".encode()]).values.to_pylist() == ["a", "ä"]
    assert faults(Column("string"), [b"a", b"\xff"]) == {"not text in UTF-8": [1]}


@pytest.mark.parametrize(
    ("values", "type"),
    [
        ([[[1, 2], [3, 4]], None, [[1, 2], [3]], [[1, 2], [3, None]], [[1, 2]], [[1, 2], [3, 1e300]]], pa.list_(pa.list_(pa.float64()))),
        (["[[1,2],[3,4]]", None, "[[1,2],[3]]", "[[1,2],[3,null]]", "x", "[[1,2],[3,1e300]]"], pa.string()),
        ([[1, 2, 3, 4], None, [1, 2, 3], [1, 2, 3, float("nan")], [], [1, 2, 3, float("inf")]], pa.large_list(pa.float32())),
    ],
    ids=["nested", "text", "flat"],
)  # fmt: skip
def test_arrays_have_the_shape_of_the_contract(values: list[Any], type: Any) -> None:
    column = Column("array", shape=[2, 2])
    result = found(column, values, type)
    assert result.values.type == pa.list_(pa.float32())
    assert result.values.to_pylist() == [[1.0, 2.0, 3.0, 4.0], *[None] * 5]
    assert {r: m.nonzero()[0].tolist() for r, m in result.faults.items()} == {
        "not an array of shape [2, 2] of numbers": [2, 3, 4, 5]
    }


def test_fixed_size_lists_are_arrays() -> None:
    values = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64(), 2))
    assert read(Column("array", shape=[2]), pa.chunked_array([values])).values.to_pylist() == [[1.0, 2.0], None, [3.0, 4.0]]


@pytest.mark.parametrize(
    ("column", "type", "why"),
    [
        (Column("timestamp"), pa.date32(), "has no time zone"),
        (Column("timestamp", zone="UTC"), pa.int64(), "is int64"),
        (Column("array", shape=[2]), pa.float64(), "is double"),
        (Column("string"), pa.int64(), "is int64"),
        (Column("timestamp", format="unix"), pa.int64(), ""),
        (Column("string"), pa.binary(), ""),
    ],
)
def test_a_type_that_no_value_could_have_is_told(column: Column, type: Any, why: str) -> None:
    assert unusable(column, type).startswith(why)
    assert bool(unusable(column, type)) == bool(why)
