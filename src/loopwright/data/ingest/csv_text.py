r"""CSV as Arrow batches of text: delimiter, header and quoting detected over the whole file, so that no value is changed silently.

Arrow reads text after a closing quote (`"a"b`, and `"a \"b\""` where quotes are escaped by backslashes) as if the quotes were
not there. Files with such a place are read by Python's strict reader first, to find how quotes are escaped and which rows break.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from loopwright.base.errors import IngestRefused
from loopwright.data.ingest.contract import BAD_SCHEMA
from loopwright.data.ingest.encoding import TextFile, lines, refusing
from loopwright.data.ingest.header import check_columns, column_names
from loopwright.data.ingest.source_reader import BATCH_BYTES, Batch, Batches, Reading

CSV_BLOCK = 4 << 20
"""Arrow reads up to 32 blocks ahead; a row is at most as long as one."""

MAX_MALFORMED = 100_000
_DELIMITERS = ",;\t|"
_SAMPLE = 1 << 18
_ODD_QUOTE = re.compile(rb'"[^,;\t|\r\n"](?<=[^,;\t|\r\n"]"[^,;\t|\r\n"])')
"""A quote with other text on both sides; the literal comes first, which makes the search ten times as fast."""


class Layout(NamedTuple):
    """Layout of a CSV: `first` is the number of its first line as Arrow counts rows, `malformed` the rows with broken quotes."""

    names: list[str]
    header: bool
    delimiter: str
    escape: str | None = None
    malformed: dict[int, str] = {}

    @property
    def rows_before(self) -> int:
        """Records before the first row of data."""
        return int(self.header)


def csv_batches(text: TextFile, reading: Reading) -> Batches:
    """The rows of a CSV, numbered from 1. Raises IngestRefused where it cannot be cut into rows."""
    with refusing(text.name, f"it is not readable as CSV in {text.encoding.upper()}"):
        try:
            layout = _layout(text, reading)
            yield from _rows(text, layout)
        except csv.Error as error:
            raise IngestRefused(text.name, f"it is not readable as CSV ({error})") from error
        except pa.ArrowInvalid as error:
            if line := "straddling" in str(error) and _longest_row(text):
                why = f"the row that begins on line {line} is longer than {CSV_BLOCK >> 20} MiB: close its quotes"
                raise IngestRefused(text.name, why) from error
            raise


# --- layout ----------------------------------------------------------------------------------------------------------


def _layout(text: TextFile, reading: Reading) -> Layout:
    with text.open() as data:
        start = data.read(_SAMPLE).decode("utf-8-sig", errors="ignore")
    delimiter, rows = _cut(start, whole=len(start) < _SAMPLE // 4)
    first = _first(text, delimiter)
    names, header = column_names(first, rows[1:], reading, text.name)
    layout = Layout(names, header, delimiter)
    return _quoted(text, layout, len(first)) if _has_odd_quotes(text) else layout


def _cut(start: str, *, whole: bool) -> tuple[str, list[list[str]]]:
    """The delimiter by which most of the first rows have as many fields as the header, and these rows."""

    def rows(delimiter: str) -> list[list[str]]:
        found: list[list[str]] = []
        with suppress(csv.Error):  # a field of more than 128 KiB
            found.extend(islice((row for row in csv.reader(io.StringIO(start, newline=""), delimiter=delimiter) if row), 201))
        found = found or [start.partition("\n")[0].split(delimiter)]
        return found if whole or len(found) > 200 or len(found) < 2 else found[:-1]

    def score(rows: list[list[str]]) -> tuple[float, int, float]:
        width = len(rows[0])
        share = sum(len(row) == width for row in rows) / len(rows)
        return (share if width > 1 else 0.0), width, share

    cut = {delimiter: rows(delimiter) for delimiter in _DELIMITERS}
    best = max(cut, key=lambda d: score(cut[d]))
    return best, cut[best]


def _first(text: TextFile, delimiter: str) -> list[str]:
    """The fields of the first line, which may hold line breaks in quotes."""
    with text.open() as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as decoded:
        start = decoded.readline(1 << 20)
        try:
            first = next(csv.reader([start] if start.count('"') % 2 == 0 else _lines(start, decoded), delimiter=delimiter))
        except csv.Error as error:
            why = f"its header on line 1 cannot be cut into columns ({error}): close its quotes"
            raise IngestRefused(text.name, why) from error
    check_columns(len(first), text.name)
    return first


def _lines(start: str, text: Any) -> Iterator[str]:
    yield start
    while line := text.readline(1 << 20):
        yield line


def _has_odd_quotes(text: TextFile) -> bool:
    """Whether a quote is not at the start or end of a field, or is never closed. Raises IngestRefused for a NUL byte."""
    found, quotes, breaks, tail = False, 0, 0, b""
    with text.open() as data:
        while chunk := data.read(1 << 20):
            if (at := chunk.find(b"\0")) >= 0:
                line = breaks + chunk.count(b"\n", 0, at) + 1
                raise IngestRefused(
                    text.name, f"it has a NUL byte on line {line}: it is damaged, or not a text file: export it again"
                )
            breaks += chunk.count(b"\n")
            if b'"' in chunk:
                quotes += chunk.count(b'"')
                found = found or b'\\"' in tail + chunk or bool(_ODD_QUOTE.search(tail + chunk))
            tail = chunk[-2:]
    return found or quotes % 2 == 1


class _Strict(NamedTuple):
    """Findings of a strict reader: the line with quotes that never close (0: none), malformed records, ragged ones."""

    opened: int
    malformed: dict[int, str]
    ragged: int

    @property
    def faults(self) -> tuple[bool, int, int]:
        return self.opened > 0, len(self.malformed), self.ragged


def _quoted(text: TextFile, layout: Layout, width: int) -> Layout:
    """The layout with the way quotes are escaped, and the rows that are malformed either way."""
    escape, found = None, _strict(text, layout.delimiter, width, None)
    if found.opened or found.malformed:
        other = _strict(text, layout.delimiter, width, "\\")
        escape, found = ("\\", other) if other.faults < found.faults else (None, found)
    if found.opened:
        why = f"quotes that open in the row on line {found.opened} are never closed: it is damaged or cut off"
        raise IngestRefused(text.name, why)
    if len(found.malformed) >= MAX_MALFORMED:
        raise IngestRefused(text.name, f"in {MAX_MALFORMED:,} rows text follows a closing quote: write quotes in quotes twice")
    return layout._replace(escape=escape, malformed=found.malformed)


def _strict(text: TextFile, delimiter: str, width: int, escape: str | None) -> _Strict:
    malformed: dict[int, str] = {}
    ragged, number, last, ended = 0, -1, "", False
    limit = csv.field_size_limit(CSV_BLOCK)

    def each(decoded: Any) -> Iterator[str]:
        nonlocal last, ended
        while line := decoded.readline(CSV_BLOCK):
            if len(line) == CSV_BLOCK:
                raise csv.Error("line over the limit")
            last = line
            yield line
        ended = True

    try:
        with text.open() as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as decoded:
            reader = csv.reader(each(decoded), delimiter=delimiter, escapechar=escape, strict=True)
            while len(malformed) < MAX_MALFORMED:
                number, began = number + 1, reader.line_num + 1
                try:
                    ragged += len(next(reader)) not in (0, width)
                except StopIteration:
                    break
                except csv.Error as error:
                    if ended:
                        return _Strict(began, malformed, ragged)
                    if "limit" in str(error):  # Arrow refuses the row, with its line
                        break
                    malformed[number] = last
    finally:
        csv.field_size_limit(limit)
    return _Strict(0, malformed, ragged)


def _longest_row(text: TextFile) -> int:
    """The first line of a CSV whose row is longer than a block; 0 if there is none.

    A line break ends a row where the quotes so far are even.
    """
    line, row, length, odd = 1, 1, 0, False
    with text.open() as data:
        read = lines(data)
        while part := read.readline(1 << 16):
            length += len(part)
            odd ^= part.count(b'"') % 2 == 1
            if length > CSV_BLOCK:
                return row
            line += part.endswith(b"\n")
            if part.endswith(b"\n") and not odd:
                row, length = line, 0
    return 0


# --- rows ------------------------------------------------------------------------------------------------------------


def _rows(text: TextFile, layout: Layout) -> Batches:
    ragged: list[tuple[int, str, str]] = []
    before = layout.rows_before
    malformed = {n + 1 - before: raw for n, raw in layout.malformed.items()}

    def note(row: Any) -> str:
        why = f"{row.actual_columns} fields where the header has {row.expected_columns}"
        ragged.append((int(row.number) - before, why, row.text))
        return "skip"

    if layout.header and _is_only_header(text):
        yield Batch(_empty(layout), np.arange(0), bad_lines([]), 1.0)
        return
    # The reader reads ahead on a thread of its own, so it is closed before its file is.
    with text.open_for_arrow() as data, _csv_reader(data, layout, note) as reader:
        size, number, told, batches = text.path.stat().st_size, 1, 0, 0
        for part in _gathered(reader):
            frame = part.rename_columns(layout.names)
            # The rows that Arrow skipped up to the end of this part are noted by now.
            rows = _numbers(number, len(frame), {n for n, *_ in ragged})
            number = int(rows[-1]) + 1 if len(rows) else number
            broken, told = [r for r in ragged[told:] if r[2].strip()], len(ragged)
            batches += 1
            batch = Batch(frame, rows, bad_lines(broken), min(data.tell() / max(size, 1), 1.0))
            yield _without_malformed(_without_blank(batch), malformed)
        if not batches or len(ragged) > told:
            yield Batch(_empty(layout), np.arange(0), bad_lines([r for r in ragged[told:] if r[2].strip()]), 1.0)


def _is_only_header(text: TextFile) -> bool:
    """Whether the file is one line without a line break at its end, which Arrow takes for no file at all."""
    with text.open() as data:
        start = data.read(CSV_BLOCK)
        return not re.search(rb"[\r\n]", start) and not data.read(1)


def _empty(layout: Layout) -> pa.Table:
    return pa.schema([(n, pa.string()) for n in layout.names]).empty_table()


def _csv_reader(data: Any, layout: Layout, note: Callable[[Any], str]) -> Any:
    names = layout.names
    return pa_csv.open_csv(
        data,
        # One thread, or Arrow does not number the rows that it hands to the handler.
        read_options=pa_csv.ReadOptions(
            use_threads=False, block_size=min(CSV_BLOCK, BATCH_BYTES), column_names=None if layout.header else names
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=layout.delimiter,
            escape_char=layout.escape or False,
            newlines_in_values=True,
            ignore_empty_lines=False,
            invalid_row_handler=note,
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys((n.split("#")[0] for n in names), pa.string()) | dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def _gathered(reader: Any) -> Iterator[pa.Table]:
    """Coalesce a reader's small batches into larger ones."""
    parts: list[pa.RecordBatch] = []
    for part in reader:
        parts.append(part)
        if sum(p.nbytes for p in parts) >= BATCH_BYTES // 2:
            yield pa.Table.from_batches(parts).combine_chunks()
            parts = []
    if parts:
        yield pa.Table.from_batches(parts).combine_chunks()


def _numbers(first: int, count: int, skipped: set[int]) -> npt.NDArray[np.int64]:
    """The next `count` numbers from `first` on that were not skipped."""
    found = np.arange(first, first + count + len(skipped), dtype=np.int64)
    if skipped:
        found = found[~np.isin(found, np.fromiter(skipped, dtype=np.int64))]
    return found[:count]


def _without_blank(batch: Batch) -> Batch:
    blank = np.logical_and.reduce([pc.is_null(c).to_numpy() for c in batch.frame.columns])
    if not blank.any():
        return batch
    return batch._replace(frame=batch.frame.filter(pa.array(~blank)), rows=batch.rows[~blank])


def _without_malformed(batch: Batch, malformed: dict[int, str]) -> Batch:
    """Move the rows with malformed quotes to the batch's broken lines, as they are in the file."""
    here = np.isin(batch.rows, np.fromiter(malformed, dtype=np.int64)) if malformed else np.zeros(len(batch.rows), dtype=bool)
    if not here.any():
        return batch
    why = 'text follows a closing quote: write quotes in quotes twice ("")'
    broken = bad_lines([(int(n), why, malformed[int(n)].strip()) for n in batch.rows[here]])
    return batch._replace(
        frame=batch.frame.filter(pa.array(~here)), rows=batch.rows[~here], broken=pa.concat_tables([batch.broken, broken])
    )


def bad_lines(lines: list[tuple[int, str, str]]) -> pa.Table:
    """Rows that cannot be cut into fields: number, reason and text."""
    return pa.table([list(column) for column in zip(*lines, strict=True)] if lines else [[], [], []], schema=BAD_SCHEMA)
