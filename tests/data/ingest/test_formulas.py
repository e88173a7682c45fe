"""Formulas in cells of bad rows: shown by spreadsheets, never run, and back as they were."""

import csv
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from loopwright import Column, Home, Table
from loopwright.base.settings import Settings
from loopwright.data.ingest.formulas import neutral, original
from loopwright.data.ingest.ingestion import ingest
from loopwright.data.ingest.quarantine import mend, quarantined

FORMULAS = ["=HYPERLINK('http://x','y')", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''@x", "-", "+ 1"]  # fmt: skip
HARMLESS = ["", "a=1", "'tis", "''", "-5", "+1.5e-3", "'-5", "-.5", " =1", None, "2024-01-01"]


def test_formulas_are_neutral_and_come_back_and_all_else_stays() -> None:
    frame = pa.table({"=v": pa.array([*FORMULAS, *HARMLESS], pa.string()), "n": pa.array(range(len(FORMULAS) + len(HARMLESS)))})
    shown = neutral(frame)
    assert shown.column_names == ["'=v", "n"]
    assert shown["'=v"].to_pylist() == [*("'" + text for text in FORMULAS), *HARMLESS]
    assert original(shown).equals(frame)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_exported_formulas_are_no_formulas_in_csv_and_mended_rows_have_their_own_text(tmp_path: Path, suffix: str) -> None:
    columns = {"id": Column("string"), "at": Column("timestamp"), "note": Column("string")}
    table = Table("orders", columns, key=["id"], event_time="at")
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    with Home(Settings(home=tmp_path / "home")) as home:
        keys = [*FORMULAS, "-5", "'-5"]
        bad = pa.table(
            {"id": keys, "at": pa.array([moment] * len(keys), pa.timestamp("us", "UTC")), "note": [None] * len(keys)}
        )
        assert (
            ingest(home, table, bad.set_column(2, "note", pa.array([None] * len(keys), pa.string())), name="=cmd.csv").good == 0
        )
        file = tmp_path / f"bad{suffix}"
        quarantined(home, "orders", export=file)
        if suffix == ".csv":
            with file.open(newline="", encoding="utf-8") as text:
                cells = [cell for row in csv.reader(text) for cell in row]
            assert {"'=cmd.csv", "'" + FORMULAS[0], "-5"} <= set(cells)
            assert [c for c in cells if c[:1] in "=+-@\t\r\n" and c not in ("", "-5")] == []
        wider = Table("orders", {**columns, "note": Column("string", nullable=True)}, key=["id"], event_time="at")
        assert mend(home, wider, file).good == len(keys)
        assert sorted(home.lake.read("orders")["id"].to_pylist()) == sorted(keys)
