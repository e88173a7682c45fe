import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from loopwright.data.infer import inferred
from loopwright.data.opened import Reading
from loopwright.data.source import expand, open_source
from loopwright.records.errors import ExtraMissing, IngestRefused

# ruff: noqa: DTZ001 - cells of a workbook have no zone

ROWS: list[list[Any]] = [
    ["id", "at", "amount", "paid", "note"],
    [1, datetime(2024, 3, 1, 10, 30), 12.5, True, "ä"],
    [2, datetime(2024, 3, 2), 7.0, False, None],
    [None] * 5,
    [4, datetime(2024, 3, 4), 1e-7, None, "#N/A"],
]


def workbook(path: Path, **sheets: Any) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_workbook_is_text_in_every_column_with_its_rows_numbered(tmp_path: Path) -> None:
    path = workbook(tmp_path / "sales.csv", Data=ROWS)  # whatever it is called
    whole = open_source(path).whole()
    assert whole.frame.to_pydict() == {
        "id": ["1", "2", "4"],
        "at": ["2024-03-01T10:30:00", "2024-03-02T00:00:00", "2024-03-04T00:00:00"],
        "amount": ["12.5", "7", "1e-07"],
        "paid": ["true", "false", None],
        "note": ["ä", None, "#N/A"],
    }
    assert whole.rows.tolist() == [1, 2, 4]


def test_workbook_gives_a_contract_with_times(tmp_path: Path) -> None:
    rows = [ROWS[0], *([i, datetime(2024, 3, 1) + timedelta(hours=i), i / 2, i % 2 == 0, "x"] for i in range(100))]
    found = inferred(workbook(tmp_path / "sales.xlsx", Data=rows), "sales")
    assert {n: c.type for n, c in found.table.columns.items()} == {
        "id": "integer", "at": "timestamp", "amount": "float", "paid": "boolean", "note": "string",
    }  # fmt: skip


def test_sheet_is_chosen_where_several_have_rows(tmp_path: Path) -> None:
    path = workbook(tmp_path / "sales.xlsx", Cover=[], January=ROWS, February=[["id"], [9]])
    with pytest.raises(IngestRefused, match="2 of its sheets have rows: say --sheet with one of 'January', 'February'"):
        open_source(path).whole()
    assert open_source(path, reading=Reading(sheet="February")).whole().frame.to_pydict() == {"id": ["9"]}
    with pytest.raises(IngestRefused, match="it has no sheet 'March': say --sheet with one of 'Cover', 'January', 'February'"):
        open_source(path, reading=Reading(sheet="March")).whole()
    digests = {open_source(path, reading=Reading(sheet=s)).digest for s in ("January", "February")}
    assert len(digests) == 2


def test_workbook_rows_that_are_too_wide_are_bad_and_leading_blank_rows_no_header(tmp_path: Path) -> None:
    rows = [[None], [], ["id", "x"], [1, 2], [3, 4, 5], [None, 6]]
    whole = open_source(workbook(tmp_path / "t.xlsx", T=rows)).whole()
    assert whole.frame.to_pydict() == {"id": ["1", None], "x": ["2", "6"]}
    assert (whole.rows.tolist(), whole.broken["_row"].to_pylist()) == ([1, 3], [2])


def test_workbook_without_a_header(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", T=[[i, i / 3] for i in range(1, 30)])
    with pytest.raises(IngestRefused, match="looks like a row"):
        open_source(path).whole()
    whole = open_source(path, reading=Reading(names=("n", "x"))).whole()
    assert (whole.frame["n"].to_pylist()[:2], whole.rows.tolist()) == (["1", "2"], list(range(1, 30)))


def test_workbook_without_the_extra_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "sales.xlsx", Data=ROWS)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ExtraMissing, match=r"sales.xlsx is an Excel workbook.*pip install 'loopwright\[excel\]'"):
        open_source(path).whole()


def test_damaged_workbook_is_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "sales.xlsx", Data=ROWS)
    data = bytearray(path.read_bytes())
    data[400:900] = b"x" * 500
    path.write_bytes(bytes(data))
    with pytest.raises(IngestRefused, match="damaged"):
        open_source(path).whole()


def test_folder_of_workbooks_is_a_source(tmp_path: Path) -> None:
    path = workbook(tmp_path / "sales.xlsx", Data=ROWS)
    assert expand(tmp_path) == [path]
