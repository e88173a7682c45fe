"""Every encoding of values that data frames and files bring is read as the values that it stands for."""

import decimal
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from loopwright.base.errors import IngestRefused
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.data.ingest.plain import plain
from loopwright.records.declarations import Column, Table
from loopwright.stores.home import Home

IDS = [uuid.UUID(int=5), uuid.UUID(int=6)]
BIG = 2**53 + 1
KEYS = ["a", "b", "c"]


def table(column: Column) -> Table:
    return Table(
        "things", {"id": Column("string"), "at": Column("timestamp", zone="UTC"), "v": column}, key=["id"], event_time="at"
    )


def landed(home: Home, column: Column, frame: Any) -> list[Any]:
    done = ingest(home, table(column), frame)
    rows = home.lake.read("things").sort_by("id") if done.good else None
    return rows["v"].to_pylist() if rows is not None else []


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(Settings(home=tmp_path / "home"))


def of(values: Any) -> pa.Table:
    return pa.table({"id": KEYS, "at": pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 3), "v": values})


def of_polars(type: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": KEYS, "at": [datetime(2024, 1, 1, tzinfo=UTC)] * 3, "v": ["x", None, "y"]}, schema_overrides={"v": type}
    )


@pytest.mark.parametrize("type", [pl.Categorical, pl.Enum(["y", "x"]), pl.String], ids=str)
@pytest.mark.parametrize("write", [None, "write_ipc", "write_ipc_stream", "write_parquet", "lazy"])
def test_polars_categoricals_and_enums_are_text_from_frames_and_their_files(
    home: Home, tmp_path: Path, type: Any, write: str | None
) -> None:
    frame: Any = of_polars(type)
    if write == "lazy":
        frame = frame.lazy()
    elif write:
        path = tmp_path / ("things.parquet" if "parquet" in write else "things.arrow")
        getattr(frame, write)(path)
        frame = path
    assert landed(home, Column("string", nullable=True), frame) == ["x", None, "y"]


def encoded(values: pa.Array, index: Any = None) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0, 1, None], index or pa.int8()), values)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("string", encoded(pa.array(["x", "y"], pa.string_view()), pa.uint32()), ["x", "y", None]),
        ("string", encoded(pa.array(["x", "y"], pa.large_string()), pa.uint64()), ["x", "y", None]),
        ("integer", encoded(pa.array([BIG, -BIG])), [BIG, -BIG, None]),
        ("float", encoded(pa.array([0.5, 1.5])), [0.5, 1.5, None]),
        ("boolean", encoded(pa.array([True, False])), [True, False, None]),
        ("string", pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["x", None])), ["x", "x", None]),
        ("string", pa.array(["x", "y", None], pa.string_view()), ["x", "y", None]),
        ("string", pa.array([b"x", b"y", None], pa.binary_view()), ["x", "y", None]),
        ("string", pa.array([b"x", b"y", None], pa.binary(1)), ["x", "y", None]),
        ("string", pa.array([*(i.bytes for i in IDS), None], pa.uuid()), [*map(str, IDS), None]),
        ("string", pa.array(['{"a":1}', "2", None], pa.json_()), ['{"a":1}', "2", None]),
        ("boolean", pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8())), [True, False, None]),
        ("integer", pa.array([BIG, 1, None], pa.uint64()), [BIG, 1, None]),
        ("integer", pa.array([decimal.Decimal(BIG), decimal.Decimal(1), None], pa.decimal256(50, 2)), [BIG, 1, None]),
        ("float", pa.array([decimal.Decimal("1.25"), decimal.Decimal(1), None], pa.decimal128(9, 2)), [1.25, 1.0, None]),
        ("float", pa.array([np.float16(1.5), np.float16(2), None], pa.float16()), [1.5, 2.0, None]),
        ("array", pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_view(pa.float32())), [[1.0, 2.0], [3.0, 4.0], None]),
        ("array", pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.large_list_view(pa.float64())), [[1.0, 2.0], [3.0, 4.0], None]),
        (
            "array",
            pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2], [3, 4], None], pa.list_(pa.float32(), 2))
            ),
            [[1.0, 2.0], [3.0, 4.0], None],
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_encodings_of_arrow_are_the_values_that_they_stand_for(home: Home, kind: Any, values: Any, expected: list[Any]) -> None:
    column = Column(kind, nullable=True, shape=[2] if kind == "array" else None)
    assert landed(home, column, of(values)) == expected
    plain(of(values)).validate(full=True)


def test_categoricals_of_pandas_are_their_values(home: Home) -> None:
    frame = pd.DataFrame({"id": KEYS, "at": [pd.Timestamp("2024-01-01")] * 3, "v": pd.Categorical(["x", None, "y"])})
    assert landed(home, Column("string", nullable=True), frame) == ["x", None, "y"]


def test_an_extension_type_that_nobody_knows_is_refused_by_name(home: Home) -> None:
    frame = pd.DataFrame(
        {"id": KEYS, "at": [pd.Timestamp("2024-01-01")] * 3, "v": pd.period_range("2024", periods=3, freq="M")}
    )
    for column in (Column("string"), Column("integer")):
        with pytest.raises(IngestRefused, match=r"column 'v' is extension<pandas.period"):
            ingest(home, table(column), frame)


@pytest.mark.parametrize(
    "type",
    [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("ms", "UTC"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.date64()],
    ids=str,
)  # fmt: skip
def test_times_of_any_unit_are_moments_or_out_of_range_and_never_wrap(home: Home, type: Any) -> None:
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[getattr(type, "unit", "ms")]
    numbers = [ticks * 86_400, 2**62, -(2**62)] if ticks < 10**9 else [ticks * 86_400, 2**63 - 1, -(2**63) + 1]
    done = ingest(home, table(Column("timestamp", zone="UTC")), of(pa.array(numbers, pa.int64()).cast(type)))
    landed = home.lake.read("things")["v"].to_pylist()
    assert landed[0] == datetime(1970, 1, 2, tzinfo=UTC)
    assert all(moment.year in (1970, 2262) for moment in landed)
    assert done.good + done.quarantined == 3
    assert done.quarantined >= (2 if ticks < 10**9 else 1)
    assert set(done.reasons) == {"v: not between the years 1900 and 2200"}
