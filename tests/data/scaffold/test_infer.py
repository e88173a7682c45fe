import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright import Column
from loopwright.base.errors import IngestRefused, UsageError
from loopwright.data.ingest.contract import RowOrigin, conform
from loopwright.data.ingest.source import open_source
from loopwright.data.scaffold.infer import inferred

START = datetime(2024, 1, 1, tzinfo=UTC)


def customers(count: int = 600) -> list[dict[str, Any]]:
    """Customers who leave when they spend little; the columns have the names and gaps that people's files have."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        spend = float(rng.exponential(50))
        rows.append(
            {
                "Customer ID": f"C{i % 200}",
                "signed up": (START + timedelta(hours=i)).strftime("%Y-%m-%d %H:%M:%S"),
                "spend (USD)": "" if rng.random() < 0.1 else f"{spend:.2f}",
                "visits": str(rng.poisson(3)),
                "plan": str(rng.choice(["basic", 'the "big" one'])),
                "vip": str(bool(rng.random() < 0.3)).lower(),
                "order": "" if rng.random() < 0.2 else str(rng.choice(["x", "y"])),
                "2nd": "1",
                "note": f"note {i}",
                "Churned?": "yes" if spend + rng.normal(0, 10) < 30 else "no",
            }
        )
    return rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "customers.csv"
    rows = customers()
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_types_gaps_ranges_and_categories_are_proposed(file: Path) -> None:
    found = inferred(file, "customers")
    types = {name: column.type for name, column in found.table.columns.items()}
    assert types == {
        "Customer_ID": "string",
        "signed_up": "timestamp",
        "spend_USD": "float",
        "visits": "integer",
        "plan": "string",
        "vip": "boolean",
        "order": "string",
        "c_2nd": "integer",
        "note": "string",
        "Churned": "boolean",
    }
    columns = found.table.columns
    assert {name for name, column in columns.items() if column.nullable} == {"spend_USD", "order"}
    assert columns["plan"].categories == ["basic", 'the "big" one']
    assert columns["note"].categories is None
    assert (columns["spend_USD"].minimum, columns["visits"].minimum) == (0, 0)
    assert columns["visits"].maximum in (20, 50)
    assert found.table.event_time == "signed_up"
    assert found.table.key == ["note"]
    assert "column 'signed_up' has no time zone: taken as UTC" in found.notes
    assert (columns["Customer_ID"].source, columns["plan"].source) == ("Customer ID", None)
    assert columns["signed_up"].zone == "UTC"
    whole = open_source(file).whole()
    assert conform(found.table, whole.frame, rows=whole.rows).counts == {}, "the very file it was inferred from keeps it"


def test_a_key_that_repeats_is_completed_and_none_is_made_up(file: Path) -> None:
    found = inferred(file, "customers", key="Customer ID")
    assert found.table.key == ["Customer_ID", "signed_up"]
    frame = pa.table({"at": pa.array([START, START]), "size": [1.5, 2.5]})
    found = inferred(frame, "sizes")
    assert found.table.key == ["row_id"]
    assert found.table.columns["row_id"] == Column("string", filled="row_id")
    opened = open_source(frame)
    rows = conform(found.table, frame, origin=RowOrigin("sizes", opened.digest)).good
    assert rows["row_id"].to_pylist() == [f"{opened.digest[:12]}-1", f"{opened.digest[:12]}-2"], (
        "the same whichever table it is"
    )
    assert any("row_id" in note for note in found.notes)


def test_key_is_the_time_where_nothing_else_tells_rows_apart() -> None:
    at = [START + timedelta(hours=i) for i in range(48)]
    found = inferred(pa.table({"at": at, "temperature": [i % 7 / 2 for i in range(48)]}), "hours")
    assert found.table.key == ["at"]
    assert any("'at': no two rows happened at one moment" in note for note in found.notes)
    twice = inferred(pa.table({"at": at[:24] * 2, "temperature": [i % 7 / 2 for i in range(48)]}), "hours")
    assert twice.table.key == ["row_id"]
    named = inferred(pa.table({"at": at, "station": [f"s{i}" for i in range(48)]}), "hours")
    assert named.table.key == ["station"]


def test_typed_frames_keep_their_types() -> None:
    frame = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.int32()),
            "day": pa.array([START.date()] * 3),
            "kind": pa.array(["a", "b", None]).dictionary_encode(),
            "ratio": pa.array([-1.5, float("nan"), 3.0]),
            "nothing": pa.nulls(3),
        }
    )
    table = inferred(frame, "frame").table
    assert {n: c.type for n, c in table.columns.items()} == {
        "id": "integer",
        "day": "timestamp",
        "kind": "string",
        "ratio": "float",
        "nothing": "string",
    }
    assert table.columns["ratio"] == Column("float", nullable=True, minimum=-5, maximum=10)
    assert (table.key, table.event_time) == (["id"], "day")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"time": "absent"}, "'absent': there is no such column"),
        ({"time": "visits"}, "'visits' is not a time"),
        ({"key": "absent"}, "'absent': there is no such column"),
    ],
)
def test_columns_that_are_not_there_are_named(file: Path, given: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        inferred(file, "customers", **given)


def test_without_a_time_it_is_the_moment_of_ingestion_and_gaps_are_asked_about() -> None:
    found = inferred(pa.table({"a": [1, 2], "b": [0.5, 0.7]}), "t")
    assert found.table.columns[found.table.event_time] == Column("timestamp", filled="ingested_at")
    assert not found.spread
    gappy = pa.table({"a": [1, 2], "at": pa.array([START, None])})
    with pytest.raises(UsageError, match=r"these are times: at \(1 missing\). Name one with --time"):
        inferred(gappy, "t")
    assert inferred(gappy, "t", time="ingested_at").table.columns["ingested_at"] == Column("timestamp", filled="ingested_at")
    with pytest.raises(IngestRefused, match="no rows"):
        inferred(pa.table({"a": pa.array([], pa.int64())}), "t")


@pytest.mark.parametrize(
    ("values", "column"),
    [
        (["31.12.2023 10:00", "01.02.2024 11:30"], Column("timestamp", zone="UTC", format="%d.%m.%Y %H:%M")),
        (["12/31/2023", "02/01/2024"], Column("timestamp", zone="UTC", format="%m/%d/%Y")),
        (["31/12/2023", "01/02/2024"], Column("timestamp", zone="UTC", format="%d/%m/%Y")),
        (["2023-12-31", "2024-02-01"], Column("timestamp", zone="UTC")),
        (["2023-12-31T10:00:00+01:00", "2024-02-01T00:00:00Z"], Column("timestamp")),
        (["12/31/2023 05:00:00 PM", "02/01/2024 12:30:00 AM"], Column("timestamp", zone="UTC", format="%m/%d/%Y %I:%M:%S %p")),
        (
            ["2023-12-31 10:00:00 UTC", "2024-02-01 00:30:00 UTC"],
            Column("timestamp", zone="UTC", format="%Y-%m-%d %H:%M:%S UTC"),
        ),
        (["1,200", "3,400,000"], Column("integer", format="1,234.5", minimum=0, maximum=10_000_000)),
        (["1,5", "1.200,25"], Column("float", format="1.234,5", minimum=0, maximum=5000)),
        (["0,539", "1,200"], Column("float", format="1.234,5", minimum=0, maximum=5)),
        (["1", "?", "2", "?", "3"], Column("integer", missing=["?"], nullable=True, minimum=0, maximum=10)),
        (["01234", "98765"], Column("string")),
        (["true", "no"], Column("boolean")),
        (["1", "1e3"], Column("float", minimum=0, maximum=2000)),
        (["", ""], Column("string", nullable=True)),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_text_is_what_all_of_it_can_be(values: list[str], column: Column) -> None:
    frame = pa.table({"x": [v or None for v in values], "at": pa.array([START] * len(values)), "id": list(range(len(values)))})
    found = inferred(frame, "t", time="at")
    assert found.table.columns["x"] == column
    assert conform(found.table, frame).counts == {}


def test_a_number_that_could_be_thousands_or_decimals_is_noted() -> None:
    frame = pa.table({"x": ["1,200", "3,400"], "y": ["1,200", "3,400,000"], "id": [1, 2]})
    notes = [note for note in inferred(frame, "t").notes if "could be" in note]
    assert notes == ["column 'x' could be 1,234.5 or 1.234,5: taken as the first, correct it if not"]


def test_decimal_commas_of_one_column_decide_for_the_file() -> None:
    """1,234 and 1.234 alone could be either; 0,5 and 12.345,67 beside them could not."""
    frame = pa.table(
        {"proof": ["0,5", "12.345,67"], "x": ["1,234", "5,678"], "y": ["1.234", "5.678"], "n": ["1", "2"], "id": ["a", "b"]}
    )
    found = inferred(frame, "t")
    assert found.frame.select(["proof", "x", "y", "n"]).to_pydict() == {
        "proof": [0.5, 12345.67],
        "x": [1.234, 5.678],
        "y": [1234, 5678],
        "n": [1, 2],
    }
    assert not [note for note in found.notes if "could be" in note]
    alone = inferred(frame.drop_columns(["proof"]), "t")
    assert (alone.frame["x"].to_pylist(), alone.frame["y"].to_pylist()) == ([1234, 5678], [1.234, 5.678])


def test_blank_text_is_missing_and_no_category() -> None:
    plan = (["basic", "plus", " ", "  "] * 30)[:100]
    spent = [" " if i % 9 == 0 else "\t" if i % 9 == 1 else f"{i}.5" for i in range(100)]
    frame = pa.table({"id": [f"c{i}" for i in range(100)], "plan": plan, "spent": spent, "note": [" "] * 100})
    found = inferred(frame, "plans")
    columns = found.table.columns
    assert columns["plan"] == Column("string", nullable=True, categories=["basic", "plus"], missing=[" ", "  "])
    assert (columns["spent"].type, columns["spent"].missing, columns["spent"].nullable) == ("float", ["\t", " "], True)
    assert (columns["note"].missing, columns["note"].categories) == ([" "], None)
    assert found.frame["plan"].null_count == 50
    assert conform(found.table, frame).good["plan"].null_count == 50, "ingestion reads it alike"
    assert "column 'plan': ' ', '  ' is read as missing" in found.notes


def test_a_few_values_of_another_type_go_to_quarantine_and_many_make_it_text() -> None:
    ids, at = list(range(100)), pa.array([START] * 100)
    few = ["x1", "y2", "z3", "a4"]
    found = inferred(pa.table({"id": ids, "at": at, "n": [*few, *map(str, range(96))]}), "t")
    assert found.table.columns["n"].type == "integer"
    assert "column 'n': 4 values are not a whole number of 64 bits; their rows go to quarantine" in found.notes
    many = [f"w{i}" for i in range(10)]
    assert (
        inferred(pa.table({"id": ids, "at": at, "n": [*many, *map(str, range(90))]}), "t").table.columns["n"].type == "string"
    )


def test_both_readings_of_a_day_are_told() -> None:
    found = inferred(pa.table({"id": [1, 2], "day": ["01/02/2024", "03/04/2024"]}), "t", time="day")
    assert found.table.columns["day"].format == "%m/%d/%Y"
    assert any("%m/%d/%Y or %d/%m/%Y" in note for note in found.notes)


def test_numbers_are_times_when_a_person_says_so() -> None:
    frame = pa.table({"id": [1, 2], "ts": [1_700_000_000, 1_700_000_060], "ms": [1_700_000_000_000, 1_700_000_060_000]})
    assert inferred(frame, "t", time="ts").table.columns["ts"] == Column("timestamp", format="unix")
    assert inferred(frame, "t", time="ms").table.columns["ms"] == Column("timestamp", format="unix_ms")
    assert (
        inferred(pa.table({"id": ["1", "2"], "ts": ["1700000000", "1700000060"]}), "t", time="ts").table.columns["ts"].format
        == "unix"
    )


def test_files_of_a_folder_make_one_contract(tmp_path: Path) -> None:
    at = pa.array([START, START + timedelta(days=1)])
    pq.write_table(pa.table({"id": [1, 2], "at": at, "n": pa.array([1, 2], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [3, 4], "at": at, "n": [0.5, None], "new": ["x", "y"]}), tmp_path / "b.parquet")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    columns = inferred(tmp_path, "t").table.columns
    assert (columns["n"].type, columns["new"].optional, columns["new"].nullable) == ("float", True, True)
    assert inferred(tmp_path / "*.parquet", "t").table.columns == columns


def test_names_can_be_written_in_python_and_told_apart_by_a_database() -> None:
    frame = pa.table([[1, 2], [3, 4], [5, 6], [START, START], [1, 3]], names=["A", "a", "class", "at", ""])
    found = inferred(frame, "t", key="A,at")
    assert list(found.table.columns) == ["A", "a_2", "class_", "at", "column_5"]
    assert found.table.key == ["A", "at"]
    assert [found.table.columns[n].source for n in ("a_2", "class_", "column_5")] == ["a", "class", ""]


def test_what_no_contract_holds_is_left_out_and_arrays_are_held() -> None:
    frame = pa.table({"id": [1, 2], "at": [START, START], "s": [{"a": 1}, {"a": 2}], "v": [[1.0, 2.0], None], "w": [["x"], []]})
    found = inferred(frame, "t")
    assert found.table.columns["v"] == Column("array", shape=[2], nullable=True)
    assert sorted(found.table.ignore) == ["s", "w"]
    assert conform(found.table, frame).good["v"].to_pylist() == [[1.0, 2.0], None]


def seen(**columns: Any) -> Any:
    """What is inferred of columns of the same length, beside a key and a time."""
    count = len(next(iter(columns.values())))
    at = [START + timedelta(hours=i) for i in range(count)]
    return inferred(pa.table({"id": [f"r{i}" for i in range(count)], "at": at, **columns}), "t", time="at", key="id")


RNG = np.random.default_rng(1)
SOME = RNG.random(400) < 0.2


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        (np.where(SOME, -200, np.round(RNG.uniform(0.1, 11.9, 400), 1)), ["-200"]),
        (np.where(SOME, -200, RNG.integers(2, 1479, 400)), ["-200"]),  # far below zero, where nothing else is
        (np.where(SOME, -999, RNG.integers(-20, 40, 400)), ["-999"]),
        (np.where(SOME, 9999, RNG.integers(0, 500, 400)), ["9999"]),
        (np.where(SOME, 99, np.where(RNG.random(400) < 0.1, -99, RNG.integers(1, 6, 400))), ["-99", "99"]),
        (np.where(SOME, 99, RNG.integers(0, 100, 400)), []),  # one of many scores
        (np.where(np.arange(400) < 2, -999, RNG.integers(0, 40, 400)), []),  # twice only
        (np.where(SOME, -1, RNG.integers(0, 2, 400)), []),
        (np.where(SOME, -200, RNG.integers(-190, 0, 400)), []),
        (np.where(SOME, 500, RNG.integers(0, 40, 400)), []),  # no number that people write for none
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_numbers_that_stand_for_a_missing_value_are_proposed_as_missing(values: Any, missing: list[str], as_text: bool) -> None:
    column = pa.array(values)
    found = seen(x=column.cast(pa.string()) if as_text else column)
    declared = found.table.columns["x"]
    assert sorted(declared.missing) == missing
    assert any("read as missing" in note for note in found.notes) == bool(missing)
    assert found.frame["x"].null_count == sum(int((values == float(m)).sum()) for m in missing)
    if missing:
        assert declared.nullable
        assert (declared.minimum or 0) > -200 < 9999 > (declared.maximum or 0)
        assert conform(found.table, found.frame).counts == {}


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
@pytest.mark.parametrize(("index", "left"), [([0, 1, 2, 0, 1], True), ([1, 2, 3, 4, 5], True), ([4, 8, 15, 16, 23], False)])
def test_index_of_a_data_frame_is_left_out_and_never_a_key(name: str, index: list[int], left: bool) -> None:
    at = [START + timedelta(hours=i) for i in range(5)]
    frame = pa.table([index, at, [0.5] * 5], names=[name, "at", "x"])
    found = inferred(frame, "t")
    assert (name in found.table.ignore) == left
    assert (found.table.key == ["at"]) == left
    assert conform(found.table, frame, origin=RowOrigin("t", open_source(frame).digest)).counts == {}


def test_whole_numbers_beyond_those_that_a_float_holds_exactly_make_a_contract() -> None:
    big = [2**53 + 1 + 10**9 * i for i in range(50)]
    found = seen(x=big, y=[str(v) for v in big])
    assert [found.table.columns[n].type for n in ("x", "y")] == ["integer", "integer"]
    assert found.frame["x"].to_pylist() == found.frame["y"].to_pylist() == big


@pytest.mark.parametrize(("scale", "unit"), [(1, "seconds"), (1000, "milliseconds")])
def test_count_since_1970_is_named_where_no_column_is_a_time(scale: int, unit: str) -> None:
    counted = [(int(START.timestamp()) + 3600 * i) * scale for i in range(50)]
    found = inferred(pa.table({"sold": counted, "x": [0.5] * 50}), "t")
    assert f"column 'sold' could count {unit} since 1970: say --time sold if so" in found.notes
    assert inferred(pa.table({"sold": counted, "x": [0.5] * 50}), "t", time="sold").table.event_time == "sold"


def test_notes_alike_of_hundreds_of_columns_are_one_note() -> None:
    few = seen(**{f"a {i}": [1.5, 2.5] for i in range(3)}).notes
    many = seen(**{f"a {i}": [1.5, 2.5] for i in range(600)}).notes
    assert sum("is called" in note for note in few) == 3
    [note] = [note for note in many if "is called" in note]
    assert note.startswith("column 'a 0' is called 'a_0' here")
    assert note.endswith("(also 599 more columns: 'a 1', 'a 2', 'a 3' and 596 more)")


def test_a_range_that_no_float_holds_stays_open() -> None:
    columns = seen(x=[1.5, 1e308], y=[-1.7e308, 2.0]).table.columns
    assert (columns["x"].minimum, columns["x"].maximum) == (0, None)
    assert (columns["y"].minimum, columns["y"].maximum) == (None, 5)
