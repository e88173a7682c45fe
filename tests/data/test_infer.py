import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright import Column, Home
from loopwright.data.contract import conform
from loopwright.data.examples import build
from loopwright.data.infer import begin, infer, inferred
from loopwright.data.ingest import ingest
from loopwright.develop.check import check
from loopwright.loop import Loop, load_loop
from loopwright.records.clock import SimulatedClock
from loopwright.records.errors import IngestRefused, NameInvalid, UsageError
from loopwright.records.settings import Settings

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


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(START + timedelta(days=400))) as opened:
        yield opened


def begun(home: Home, folder: Path, file: Path, **given: str) -> tuple[Loop, dict[str, list[str]]]:
    made = begin(home, folder, from_file=file, name="churn", **given)
    return load_loop(folder), made


def checked(loop: Loop) -> list[tuple[str, str]]:
    """What `loopwright check` finds wrong."""
    found = check(
        columns=loop.columns,
        features=loop.features,
        heuristic=loop.scope.heuristic,
        outcome=loop.outcome,
        slices=loop.slices,
        candidates=loop.candidates,
        objectives=loop.scope.objectives,
    )
    return [(name, detail) for name, ok, detail in found.items if not ok]


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
    assert conform(found.table, found.frame).counts == {}, "the rows it was inferred from keep it"


def test_a_key_that_repeats_is_completed_and_none_is_made_up(file: Path) -> None:
    found = inferred(file, "customers", key="Customer ID")
    assert found.table.key == ["Customer_ID", "signed_up"]
    frame = pa.table({"at": pa.array([START, START]), "size": [1.5, 2.5]})
    found = inferred(frame, "sizes")
    assert (found.table.key, found.frame["row_id"].to_pylist()) == (["row_id"], [1, 2])
    assert found.table.columns["row_id"] == Column("integer"), "row numbers go on counting: no range of those seen"
    assert any("row_id" in note for note in found.notes)


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
    table = infer(frame, "frame")
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
        ({"time": "absent"}, "no column 'absent'"),
        ({"time": "visits"}, "'visits' is not a time"),
        ({"key": "absent"}, "no column 'absent'"),
    ],
)
def test_columns_that_are_not_there_are_named(file: Path, given: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        infer(file, "customers", **given)


def test_a_file_without_a_time_or_without_rows_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name one with --time"):
        infer(pa.table({"a": [1, 2]}), "t")
    with pytest.raises(IngestRefused, match="no rows"):
        infer(pa.table({"a": pa.array([], pa.int64())}), "t")


def test_a_begun_loop_passes_the_check_and_has_examples(home: Home, file: Path, tmp_path: Path) -> None:
    loop, made = begun(home, tmp_path / "churn", file, label="Churned?", time="signed up", key="Customer ID")
    assert checked(loop) == []
    assert loop.outcome.label == "Churned"
    assert "f.spend_USD" in loop.record("").declaration["scope"]["heuristic"]["rule"], "the column that tells is found"
    for table, path in zip(("churn-requests", "churn-outcomes"), made["files"][1:], strict=True):
        assert ingest(home, loop.tables[table], path).quarantined == 0
    examples = build(
        home, loop_name=loop.name, requests=loop.requests, context=[], outcome=loop.outcome, as_of=home.clock.now()
    )
    assert examples.rows == 600
    assert examples.positives == sum(r["Churned?"] == "yes" for r in customers())
    assert any("--loop" in step for step in made["next_steps"])


@pytest.mark.parametrize(
    ("values", "sql", "positives"),
    [
        ([True, False, None], "won", 1),
        ([0, 1, 1], "won = 1", 2),
        ([1.5, 2.5, 9.0], "won > 2.5", 1),
        (["good", "bad", "bad"], "won = 'good'", 1),
        (["it's", "so", "so"], "won = 'it''s'", 1),
    ],
)
def test_labels_of_every_kind(home: Home, tmp_path: Path, values: list[Any], sql: str, positives: int) -> None:
    rows = {"id": list(range(30)), "at": [START + timedelta(hours=i) for i in range(30)], "x": [float(i) for i in range(30)]}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({**rows, "won": values * 10}), path)
    loop, made = begun(home, tmp_path / "loop", path, label="won")
    assert loop.outcome.label == sql
    for table, part in zip(("churn-requests", "churn-outcomes"), made["files"][1:], strict=True):
        ingest(home, loop.tables[table], part)
    examples = build(
        home, loop_name=loop.name, requests=loop.requests, context=[], outcome=loop.outcome, as_of=home.clock.now()
    )
    assert examples.positives == positives * 10
    assert examples.rows == 10 * sum(v is not None for v in values)
    assert checked(loop) == []


@pytest.mark.parametrize("name", ["order", "End", "group"])
def test_a_label_named_like_a_word_of_sql_is_quoted(home: Home, tmp_path: Path, name: str) -> None:
    rows = {"id": [1, 2, 3], "at": [START, START + timedelta(hours=1), START + timedelta(hours=2)], "x": [1.0, 2.0, 3.0]}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({**rows, name: [True, False, True]}), path)
    loop, made = begun(home, tmp_path / "loop", path, label=name)
    assert loop.outcome.label == f'"{name}"'
    for table, part in zip(("churn-requests", "churn-outcomes"), made["files"][1:], strict=True):
        ingest(home, loop.tables[table], part)
    assert (
        build(home, loop_name="churn", requests=loop.requests, context=[], outcome=loop.outcome, as_of=home.clock.now()).rows
        == 3
    )


@pytest.mark.parametrize("label", ["note", "signed up", "Customer ID", "absent", "2nd"])
def test_what_cannot_be_a_label_is_refused_before_anything_is_written(
    home: Home, file: Path, tmp_path: Path, label: str
) -> None:
    with pytest.raises(UsageError):
        begun(home, tmp_path / "loop", file, label=label, key="Customer ID")
    assert not (tmp_path / "loop").exists()


def test_without_a_label_or_a_file_the_draft_still_passes_the_check(home: Home, file: Path, tmp_path: Path) -> None:
    loop, made = begun(home, tmp_path / "unlabelled", file)
    assert checked(loop) == []
    assert any("say in" in step for step in made["next_steps"])
    begin(home, tmp_path / "blank", name="blank")
    blank = load_loop(tmp_path / "blank")
    assert checked(blank) == []
    assert "TODO" in (tmp_path / "blank" / "loop.py").read_text(encoding="utf-8")


def test_a_loop_that_is_there_is_not_written_over(home: Home, tmp_path: Path) -> None:
    begin(home, tmp_path / "blank", name="blank")
    before = (tmp_path / "blank" / "loop.py").read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        begin(home, tmp_path / "blank", name="other")
    assert (tmp_path / "blank" / "loop.py").read_bytes() == before
    with pytest.raises(NameInvalid):
        begin(home, tmp_path / "new", name="No Good")
