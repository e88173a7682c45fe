import sys
import zipfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from loopwright.base.errors import ExtraMissing, IngestRefused
from loopwright.data.ingest.source import expand, open_source
from loopwright.data.ingest.source_reader import Reading
from loopwright.data.scaffold.infer import inferred

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


def with_part(path: Path, part: str, content: bytes) -> Path:
    """The same workbook with another content of one part."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (parts | {part: content}).items():
            archive.writestr(name, data)
    return path


SPREADSHEET = b'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def of_sheet(path: Path, rows: bytes) -> Path:
    sheet = b"<worksheet %b><sheetData>%b</sheetData></worksheet>" % (SPREADSHEET, rows)
    return with_part(workbook(path, Data=ROWS), "xl/worksheets/sheet1.xml", sheet)


@pytest.mark.parametrize("runs", [1, 20_000], ids=["one text", "rich text"])
@pytest.mark.parametrize("shared", [False, True], ids=["inline", "shared"])
def test_workbook_with_a_huge_cell_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, runs: int
) -> None:
    monkeypatch.setattr("openpyxl.load_workbook", lambda *_, **__: pytest.fail("openpyxl holds a whole cell"))
    text = b"".join([b"<r><t>" + b"x" * ((4 << 20) // runs) + b"</t></r>"] * runs)
    if shared:
        path = workbook(tmp_path / "a.xlsx", Data=ROWS)
        with_part(path, "xl/sharedStrings.xml", b"<sst %b><si>%b</si></sst>" % (SPREADSHEET, text))
    else:
        path = of_sheet(tmp_path / "a.xlsx", b'<row r="1"><c t="inlineStr"><is>%b</is></c></row>' % text)
    with pytest.raises(IngestRefused, match=r"a cell of it has more than 1 MiB .*; shorten it, or save the sheet as CSV"):
        open_source(path).whole()


def test_workbook_whose_texts_do_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = b"<sst %b><si><t>a</t></si></sst>" % SPREADSHEET
    path = with_part(workbook(tmp_path / "a.xlsx", Data=ROWS), "xl/sharedStrings.xml", texts)
    assert len(open_source(path).whole().frame) == 3
    monkeypatch.setattr("loopwright.data.ingest.spreadsheet.MAX_SHARED", 50)
    with pytest.raises(IngestRefused, match="the texts of its cells unpack to 0 MiB, more than 0; split it, or save it as CSV"):
        open_source(path).whole()


@pytest.mark.parametrize("bound", ["_CELLS", "_CHARACTERS"])
def test_wide_or_long_rows_of_a_workbook_come_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    rows = [["id", "text"], *([i, "x" * 100] for i in range(500))]
    source = open_source(workbook(tmp_path / "a.xlsx", Data=rows))
    whole = source.whole()
    monkeypatch.setattr(f"loopwright.data.ingest.spreadsheet.{bound}", 100)
    batches = list(source.batches())
    assert len(batches) >= 10
    assert source.whole().frame.equals(whole.frame)
    assert source.whole().rows.tolist() == whole.rows.tolist()


@pytest.mark.slow
def test_workbook_of_a_million_cells_is_read(tmp_path: Path) -> None:
    row = b"".join(b'<c t="inlineStr"><is><t>some text %d</t></is></c><c><v>%d.5</v></c>' % (i, i) for i in range(5))
    header = b"".join(b'<c t="inlineStr"><is><t>c%d</t></is></c>' % i for i in range(10))
    sheet = b"<row>%b</row>" % header + (b"<row>%b</row>" % row) * 100_000
    assert sum(len(b.frame) for b in open_source(of_sheet(tmp_path / "a.xlsx", sheet)).batches()) == 100_000
