"""Excel workbooks (.xlsx, .xlsm) as batches of text: one sheet, its dates as ISO 8601. Needs the extra `excel`."""

import datetime as dt
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopwright.base.errors import ExtraMissing, IngestRefused
from loopwright.data.ingest.csv_text import bad_lines
from loopwright.data.ingest.encoding import refusing
from loopwright.data.ingest.header import check_columns, column_names
from loopwright.data.ingest.source_reader import BATCH_BYTES, Batch, Batches, Reading

MAX_UNPACKED = 2 << 30
"""Bytes that a workbook may unpack to."""
MAX_SHARED = 256 << 20
"""Bytes that the texts of its cells may unpack to: openpyxl holds them in memory."""
MAX_CELL = 1 << 20
"""Bytes of XML that a cell may have; Excel itself holds up to 32,767 characters."""

_ROWS, _CELLS, _CHARACTERS = 20_000, 2_000_000, BATCH_BYTES
"""Limits of a batch: rows, and cells or characters where rows are wide or long."""

_TEXT = re.compile(rb"<(\w+:)?t[ />]")
_CELL_END = re.compile(rb"</(\w+:)?(c|si|comment|threadedComment|p)>")


def is_workbook(path: Path) -> bool:
    """Whether a zip archive is an Excel workbook."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return False


def workbook_batches(path: Path, name: str, reading: Reading) -> Batches:
    """The rows of one sheet, numbered from 1 after the row with the names. Raises IngestRefused, ExtraMissing."""
    with refusing(name, "it is a damaged Excel workbook"), _opened(path, name) as book:
        sheet = _sheet(book, reading.sheet, name)
        total = sheet.max_row or 0
        sheet.reset_dimensions()  # the dimensions that other writers store may be wrong
        rows = enumerate(([_text(value) for value in row] for row in sheet.iter_rows(values_only=True)), 1)
        start = list(islice(((number, row) for number, row in rows if any(row)), 201))
        if not start:
            raise IngestRefused(name, f"sheet {sheet.title!r} is empty")
        first = [v or "" for v in start[0][1]]
        while first and not first[-1]:
            first.pop()
        check_columns(len(first), name)
        names, header = column_names(first, [[v or "" for v in row[: len(first)]] for _, row in start[1:]], reading, name)
        before = start[0][0] - (not header)
        yield from _batches(names, chain(start[int(header) :], rows), before, total)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    try:
        import openpyxl  # here: an extra, which only workbooks need
    except ImportError as error:
        raise ExtraMissing("excel", f"{name} is an Excel workbook: reading it") from error
    _check_size(path, name)
    with path.open("rb") as file:  # of a path, openpyxl looks at the suffix
        try:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        except (
            KeyError,
            ValueError,
            TypeError,
            SyntaxError,
        ) as error:  # errors of openpyxl and its XML reader for odd content
            raise IngestRefused(name, f"it is a damaged Excel workbook ({error})") from error
        try:
            yield book
        finally:
            book.close()


def _check_size(path: Path, name: str) -> None:
    """Refuse files that would not fit into memory, before openpyxl reads them: its parser holds a whole cell, of any size."""
    with zipfile.ZipFile(path) as archive:
        if sum(i.file_size for i in archive.infolist()) > MAX_UNPACKED:
            raise IngestRefused(name, f"it unpacks to more than {MAX_UNPACKED >> 30} GiB; split it, or save it as CSV")
        for part in archive.infolist():
            if part.filename.lower().endswith("sharedstrings.xml") and part.file_size > MAX_SHARED:
                why = f"the texts of its cells unpack to {part.file_size >> 20} MiB, more than {MAX_SHARED >> 20}"
                raise IngestRefused(name, f"{why}; split it, or save it as CSV")
            if part.file_size < MAX_CELL or not part.filename.lower().endswith(".xml"):
                continue
            with archive.open(part) as content:
                while len(window := content.read(MAX_CELL)) == MAX_CELL:
                    if b"<" not in window or (_TEXT.search(window) and not _CELL_END.search(window)):
                        why = f"a cell of it has more than {MAX_CELL >> 20} MiB (Excel holds up to 32,767 characters)"
                        raise IngestRefused(name, f"{why}; shorten it, or save the sheet as CSV")


def _sheet(book: Any, wanted: str, name: str) -> Any:
    """The sheet that a person names, or the only visible one with rows. Raises IngestRefused naming the sheets."""
    if wanted:
        found = [s for s in book.worksheets if s.title == wanted]
        titles = ", ".join(repr(s.title) for s in book.worksheets)
    else:
        found = [s for s in book.worksheets if s.sheet_state == "visible" and _has_rows(s)]
        titles = ", ".join(repr(s.title) for s in found)
    if len(found) != 1:
        what = (
            f"it has no sheet {wanted!r}" if wanted else f"{len(found)} of its sheets have rows" if found else "it has no rows"
        )
        raise IngestRefused(name, f"{what}: say --sheet with one of {titles}" if titles else what)
    return found[0]


def _has_rows(sheet: Any) -> bool:
    return any(value is not None for row in sheet.iter_rows(max_row=100, values_only=True) for value in row)


def _text(value: Any) -> str | None:
    """A cell as CSV would hold it; errors such as #N/A stay as they are."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return value.isoformat() if isinstance(value, dt.datetime | dt.date | dt.time) else str(value)


def _batches(names: list[str], rows: Iterator[tuple[int, list[str | None]]], before: int, total: int) -> Batches:
    """Rows in batches; `before` is the number of the last row of the sheet that is no data."""
    width, batches = len(names), 0
    while (part := _part(rows)) or not batches:
        wide = [(n - before, row) for n, row in part if any(row[width:])]
        good = [
            (n - before, [*row[:width], *[None] * (width - len(row))]) for n, row in part if any(row) and not any(row[width:])
        ]
        bad = [(n, f"{len(row)} fields where the header has {width}", ",".join(v or "" for v in row)) for n, row in wide]
        columns = [pa.array([row[i] for _, row in good], pa.string()) for i in range(width)]
        batches += 1
        done = min(part[-1][0] / total, 0.99) if part and total else 0.99
        yield Batch(pa.table(columns, names=names), np.array([n for n, _ in good], dtype=np.int64), bad_lines(bad), done)


def _part(rows: Iterator[tuple[int, list[str | None]]]) -> list[tuple[int, list[str | None]]]:
    """The next rows, as many as a batch may have."""
    part, cells, characters = [], 0, 0
    for number, row in rows:
        part.append((number, row))
        cells, characters = cells + len(row), characters + sum(map(len, filter(None, row)))
        if len(part) >= _ROWS or cells >= _CELLS or characters >= _CHARACTERS:
            break
    return part
