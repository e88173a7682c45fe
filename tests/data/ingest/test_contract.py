import json
import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright import Column, Table
from loopwright.base.errors import IngestRefused
from loopwright.data.ingest.contract import Conformed, RowOrigin, SeenKeys, conform
from loopwright.data.ingest.values import MISSING_TEXT

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
TABLE = Table(
    "things",
    {
        "id": Column("string"),
        "at": Column("timestamp"),
        "size": Column("float", nullable=True, minimum=0, maximum=10),
        "count": Column("integer"),
        "kind": Column("string", nullable=True, categories=["a", "b"]),
        "open": Column("boolean", nullable=True),
    },
    key=["id"],
    event_time="at",
)


def row(**changed: Any) -> dict[str, Any]:
    return {"id": "x", "at": NOON, "size": 1.5, "count": 3, "kind": "a", "open": True} | changed


def text(**changed: Any) -> dict[str, Any]:
    return {"id": "x", "at": "2024-01-01T12:00:00Z", "size": "1.5", "count": "3", "kind": "a", "open": "true"} | changed


def applied(*rows: dict[str, Any]) -> Conformed:
    return conform(TABLE, pa.Table.from_pylist(list(rows)))


def reasons(*rows: dict[str, Any]) -> list[str]:
    return applied(*rows).bad["_reason"].to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types


def test_good_rows_come_out_in_the_contract_s_types_from_typed_columns_and_from_text_alike() -> None:
    typed, read = applied(row()), applied(text())
    assert typed.good.equals(read.good)
    assert typed.good.schema.names == list(TABLE.columns)
    assert [str(t) for t in typed.good.schema.types] == ["string", "timestamp[us, tz=UTC]", "double", "int64", "string", "bool"]
    assert len(typed.bad) == 0
    assert typed.counts == {}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"size": "abc"}, "size: 'abc' is not a number"),
        ({"size": "0x10"}, "size: '0x10' is not a number"),
        ({"size": "1_0"}, "size: '1_0' is not a number"),
        ({"size": "-1"}, "size: '-1' is below 0"),
        ({"size": "11"}, "size: '11' is above 10"),
        ({"size": "1e999"}, "size: '1e999' is infinite; size: '1e999' is above 10"),
        ({"count": "1.5"}, "count: '1.5' is not a whole number of 64 bits"),
        ({"count": "0x10"}, "count: '0x10' is not a whole number of 64 bits"),
        ({"count": "9223372036854775808"}, "count: '9223372036854775808' is not a whole number of 64 bits"),
        ({"count": "9" * 5000}, f"count: '{'9' * 80}' is not a whole number of 64 bits"),
        ({"count": None}, "count: missing"),
        ({"count": "NA"}, "count: missing"),
        ({"kind": "c"}, "kind: 'c' is not one of a, b"),
        ({"open": "maybe"}, "open: 'maybe' is not true or false"),
        ({"id": ""}, "id: an empty key"),
        ({"id": None}, "id: missing"),
        ({"at": "2024-01-01T12:00:00"}, "at: '2024-01-01T12:00:00' is not a time with a zone (ISO 8601, e.g. 2013-01-31T05:15:00Z, or declare zone= for the column)"),
        ({"at": "2024-13-01T12:00:00Z"}, "at: '2024-13-01T12:00:00Z' is not a time with a zone (ISO 8601, e.g. 2013-01-31T05:15:00Z, or declare zone= for the column)"),
        ({"at": "1800-01-01T00:00:00Z"}, "at: '1800-01-01T00:00:00Z' is not between the years 1900 and 2200"),
        ({"size": "x", "count": "y"}, "size: 'x' is not a number; count: 'y' is not a whole number of 64 bits"),
    ],
)  # fmt: skip
def test_a_bad_row_is_told_every_reason_and_spares_its_neighbours(changed: dict[str, Any], reason: str) -> None:
    found = applied(text(id="before"), text(**changed), text(id="after"))
    assert found.bad["_reason"].to_pylist() == [reason]
    assert found.bad["_row"].to_pylist() == [2]
    assert found.good["id"].to_pylist() == ["before", "after"]
    assert sum(found.counts.values()) == reason.count(";") + 1
    kept = json.loads(found.bad["_raw"][0].as_py())
    assert kept == text(**changed)


def test_missing_values_are_null_where_the_contract_allows_it() -> None:
    for missing in ("", "NA", "NaN", "null", None):
        good = applied(text(size=missing, open=missing)).good
        assert (good["size"].to_pylist(), good["open"].to_pylist()) == ([None], [None])
    assert applied(row(size=float("nan"))).good["size"].to_pylist() == [None]
    assert applied(text(kind="")).good.num_rows == 0, "an empty string is text, and not one of the categories"


@pytest.mark.parametrize("written", ["TRUE", "True", "yes", "1", "no", "False", "0"])
def test_booleans_are_read_in_the_usual_spellings(written: str) -> None:
    assert applied(text(open=written)).good["open"].to_pylist() == [written.lower() in ("true", "yes", "1")]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2024-01-01T13:30:00+01:30", NOON),
        ("2024-01-01 12:00:00+00:00", NOON),
        ("2024-01-01T12:00:00.123456789Z", NOON.replace(microsecond=123456)),
        ("2024-01-01T12:00Z", NOON),
    ],
)
def test_times_are_read_with_any_zone(written: str, read: datetime) -> None:
    assert applied(text(at=written)).good["at"].to_pylist() == [read]


def test_whole_floats_are_integers_as_data_frames_with_gaps_write_them() -> None:
    frame = pa.Table.from_pylist([row(id="a"), row(id="b"), row(id="c"), row(id="d")])
    frame = frame.set_column(3, "count", pa.array([3.0, 2.5, float("nan"), 1e300]))
    found = conform(TABLE, frame)
    assert found.good["count"].to_pylist() == [3]
    assert [r.split(": ", 1)[1] for r in found.bad["_reason"].to_pylist()] == [
        "'2.5' is not a whole number of 64 bits",
        "missing",
        "'1e+300' is not a whole number of 64 bits",
    ]


def test_unsigned_integers_beyond_64_bits_signed_are_bad_rows() -> None:
    frame = pa.Table.from_pylist([row(id="a"), row(id="b")]).set_column(3, "count", pa.array([1, 2**64 - 1], pa.uint64()))
    assert conform(TABLE, frame).good["count"].to_pylist() == [1]


def test_the_same_key_and_times_twice_is_kept_once() -> None:
    found = applied(
        text(id="a"), text(id="b"), text(id="a", size="2"), text(id="a", at="2024-01-01T13:00:00Z"), text(id="a", count="x")
    )
    assert found.good["size"].to_pylist() == [1.5, 1.5, 1.5]
    assert found.bad["_row"].to_pylist() == [3, 5]
    assert found.bad["_reason"][0].as_py() == "key: the same key and times as an earlier row"


def test_a_bad_row_does_not_make_a_good_one_a_repetition() -> None:
    found = applied(text(id="a", count="x"), text(id="a"))
    assert (found.good["id"].to_pylist(), found.bad["_row"].to_pylist()) == (["a"], [1])


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (pa.Table.from_pylist([row()]).drop_columns(["size"]), "column 'size' is missing"),
        (pa.Table.from_pylist([row(colour="red")]), "column 'colour' is not in the contract"),
        (pa.Table.from_pylist([row(count=NOON)]), "column 'count' is timestamp"),
        (pa.Table.from_pylist([row(id=7)]), "column 'id' is int64 where the contract says string"),
        (pa.Table.from_pylist([row(at=datetime(2024, 1, 1))]), "column 'at' has no time zone"),  # noqa: DTZ001 - the point of it
        (pa.Table.from_pylist([row(size=[1.0])]), "column 'size' is list"),
    ],
)
def test_another_schema_refuses_the_whole_source_and_names_the_difference(frame: pa.Table, why: str) -> None:
    with pytest.raises(IngestRefused, match="was not ingested") as refused:
        conform(TABLE, frame, origin=RowOrigin("things.csv"))
    assert why in refused.value.why
    assert refused.value.source == "things.csv"


def test_every_difference_of_the_schema_is_named_at_once() -> None:
    with pytest.raises(IngestRefused) as refused:
        conform(TABLE, pa.table({"id": [1], "size": ["x"], "extra": [1]}))
    for name in (
        "'at' is missing",
        "'count' is missing",
        "'kind' is missing",
        "'open' is missing",
        "'extra' is not in the contract",
    ):
        assert name in refused.value.why


def test_columns_come_from_the_sources_own_header_and_others_are_ignored_when_declared() -> None:
    table = Table(
        "t",
        {
            "id": Column("string", source="Id #"),
            "at": Column("timestamp", filled="ingested_at"),
            "row": Column("string", filled="row_id"),
            "size": Column("float", nullable=True, optional=True, source="Size (cm)"),
        },
        key=["row"],
        event_time="at",
        ignore=["note"],
    )
    origin = RowOrigin("s", "d" * 64, NOON)
    found = conform(table, pa.table({"Id #": ["a", None], "note": [1, 2], "Size (cm)": ["1.5", "x"]}), origin=origin)
    assert found.good.to_pylist() == [{"id": "a", "at": NOON, "row": "dddddddddddd-1", "size": 1.5}]
    assert found.bad["_raw"].to_pylist() == ['{"Id #":null,"Size (cm)":"x"}']
    assert found.bad["_reason"].to_pylist() == ["id: missing; size: 'x' is not a number"]
    bare = conform(table, pa.table({"id": ["a"]}), origin=origin)
    assert (bare.good["size"].to_pylist(), bare.absent) == ([None], ["size"]), "its name here will do as well"
    for frame, why in [({"size": [1.0]}, "'Id #' is missing"), ({"Id #": ["a"], "more": [1]}, "'more' is not in the contract")]:
        with pytest.raises(IngestRefused) as refused:
            conform(table, pa.table(frame), origin=origin)
        assert why in refused.value.why
    everything = msgspec.structs.replace(table, ignore=["*"])
    assert len(conform(everything, pa.table({"Id #": ["a"], "more": [1]}), origin=origin).good) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "1:a", "a1", ""]), st.integers(0, 2)), max_size=40), st.integers(1, 7))
def test_a_key_that_comes_again_in_a_later_part_is_found(keys: list[tuple[str, int]], step: int) -> None:
    table = Table(
        "t",
        {"a": Column("string", nullable=True), "k": Column("string"), "n": Column("integer"), "at": Column("timestamp")},
        key=["k", "n"],
        event_time="at",
    )
    frame = pa.table(
        {"a": ["x"] * len(keys), "k": [k or "-" for k, _ in keys], "n": pa.array([n for _, n in keys], pa.int64())}
    )
    frame = frame.append_column("at", pa.array([NOON] * len(keys), pa.timestamp("us", tz="UTC")))
    seen, parts = SeenKeys(), []
    for at in range(0, len(frame), step):
        part = frame.slice(at, step)
        rows = np.arange(at + 1, at + len(part) + 1)
        parts += conform(table, part, rows=rows, seen=seen).bad["_row"].to_pylist()
    assert sorted(parts) == sorted(conform(table, frame).bad["_row"].to_pylist())


def test_no_rows_are_no_problem() -> None:
    found = applied(row())
    empty = conform(TABLE, found.good.slice(0, 0))
    assert (len(empty.good), len(empty.bad)) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.text(max_size=3),
                "at": st.sampled_from(["2024-01-01T12:00:00Z", "2024-01-02T12:00:00+02:00", "yesterday", "", "2024-01-01"]),
                "size": st.one_of(st.floats().map(str), st.text(max_size=4)),
                "count": st.one_of(st.integers(-(2**70), 2**70).map(str), st.text(max_size=4)),
                "kind": st.sampled_from(["a", "b", "c", None]),
                "open": st.sampled_from(["true", "FALSE", "1", "", "ja"]),
            }
        ),
        max_size=20,
    )
)
def test_every_row_is_good_or_bad_and_the_good_ones_keep_the_contract(rows: list[dict[str, Any]]) -> None:
    schema = pa.schema(dict.fromkeys(TABLE.columns, pa.string()))
    found = conform(TABLE, pa.Table.from_pylist(rows, schema=schema))
    assert len(found.good) + len(found.bad) == len(rows)
    assert all(r for r in found.bad["_reason"].to_pylist())
    for good in found.good.to_pylist():
        assert good["size"] is None or 0 <= good["size"] <= 10
        assert good["kind"] in (None, "a", "b")
        assert good["count"] is not None
        assert good["id"]
        assert EARLY <= good["at"] <= LATE
    numbers = set(found.bad["_row"].to_pylist())
    sources = [source for i, source in enumerate(rows) if i + 1 not in numbers]
    for source, size, count in zip(sources, found.good["size"].to_pylist(), found.good["count"].to_pylist(), strict=True):
        missing = source["size"] in MISSING_TEXT or math.isnan(float(source["size"]))
        assert size == (None if missing else float(source["size"]))
        assert count == int(source["count"])


EARLY, LATE = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "limits", [{"minimum": 0}, {"maximum": 2.0**53}, {"minimum": -0.5, "maximum": float(2**63)}, {"minimum": -1e300}]
)
def test_integers_beyond_2_to_the_53_are_held_against_the_range_exactly(limits: dict[str, Any]) -> None:
    table = Table(
        "things",
        {"id": Column("string"), "at": Column("timestamp"), "n": Column("integer", **limits)},
        key=["id"],
        event_time="at",
    )
    numbers = [2**53 + 1, 2**53, -1, 0, 2**63 - 1, -(2**63)]
    frame = pa.table({"id": list("abcdef"), "at": [datetime(2024, 1, 1, tzinfo=UTC)] * 6, "n": pa.array(numbers, pa.int64())})
    for source in (frame, frame.set_column(2, "n", frame["n"].cast(pa.string()))):
        found = conform(table, source)
        inside = [n for n in numbers if limits.get("minimum", n) <= n <= limits.get("maximum", n)]
        assert found.good["n"].to_pylist() == inside
        assert len(found.bad) == len(numbers) - len(inside)
