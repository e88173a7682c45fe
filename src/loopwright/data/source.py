"""Open a file or a data frame as an Arrow table, with the digest of its content.

CSV (also .csv.gz, and .zip with one CSV in it), Parquet, and whatever speaks the Arrow PyCapsule interface: pyarrow,
pandas, polars, DuckDB (https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html).
"""

import csv
import gzip
import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from loopwright.data.contract import BAD_SCHEMA
from loopwright.records.errors import IngestRefused
from loopwright.records.ids import digest

LARGEST = 8 << 30
"""Bytes that a compressed file may unpack to; more is refused before it fills the memory."""


class Opened(NamedTuple):
    """A source: its `frame` [N], the SHA-256 of its content, its name, and the rows that could not be cut into columns.

    Columns of a CSV are all text, so that nothing is guessed. `rows` [N] are the numbers of the rows in the source,
    from 1; `broken` has BAD_SCHEMA.
    """

    frame: pa.Table
    digest: str
    name: str
    rows: npt.NDArray[np.int64]
    broken: pa.Table


def open_source(source: Any, name: str | None = None) -> Opened:
    """Open `source`: a path, a pyarrow table, or a data frame with `__arrow_c_stream__`.

    Raises IngestRefused when it cannot be read: no such file, wrong kind, truncated, damaged.
    """
    if isinstance(source, (str, Path)):
        return _file(Path(source), name or Path(source).name)
    shown = name or f"a {type(source).__name__}"
    if not hasattr(source, "__arrow_c_stream__"):
        raise IngestRefused(shown, "it is neither a path nor a data frame that speaks Arrow (pyarrow, pandas, polars)")
    frame = pa.table(source).combine_chunks()
    hasher = _Hasher()
    with pa.ipc.new_stream(pa.PythonFile(hasher, mode="w"), frame.schema.remove_metadata()) as stream:
        stream.write_table(frame.replace_schema_metadata(None))
    return Opened(frame, hasher.sha256.hexdigest(), shown, _numbers(len(frame)), BAD_SCHEMA.empty_table())


class _Hasher(io.RawIOBase):
    """A file that remembers only the digest of what was written to it."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return len(data)


def _numbers(count: int) -> npt.NDArray[np.int64]:
    return np.arange(1, count + 1, dtype=np.int64)


def _file(path: Path, name: str) -> Opened:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IngestRefused(name, f"it cannot be read ({error.strerror})") from error
    sha256 = digest(data)
    if data[:4] == b"PAR1":
        try:
            frame = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise IngestRefused(name, f"it begins like Parquet but is damaged or cut off ({_first_line(error)})") from error
        return Opened(frame, sha256, name, _numbers(len(frame)), BAD_SCHEMA.empty_table())
    if path.suffix == ".parquet":
        raise IngestRefused(name, "it is called .parquet but is not Parquet (its first bytes are not PAR1)")
    return _csv(_unpacked(data, name), sha256, name)


def _unpacked(data: bytes, name: str) -> bytes:
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                return _bounded(packed.read(LARGEST + 1), name)
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                inside = [i for i in archive.infolist() if i.filename.lower().endswith(".csv")]
                if len(inside) != 1:
                    raise IngestRefused(name, f"it holds {len(inside)} CSV files; give it one")
                with archive.open(inside[0]) as packed:
                    return _bounded(packed.read(LARGEST + 1), name)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise IngestRefused(name, f"it is damaged or cut off ({_first_line(error)})") from error
    return data


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > LARGEST:
        raise IngestRefused(name, f"it unpacks to more than {LARGEST >> 30} GiB; split it")
    return data


def _csv(data: bytes, sha256: str, name: str) -> Opened:
    if not data.strip():
        raise IngestRefused(name, "it is empty")
    if b"\0" in data[:65536]:
        raise IngestRefused(name, "it is neither Parquet nor text")
    header = data.split(b"\n", 1)[0]
    delimiter = max(",;\t", key=lambda d: header.count(d.encode()))
    ragged: list[tuple[int, int, int, str]] = []

    def note(row: Any) -> str:
        ragged.append((int(row.number), row.expected_columns, row.actual_columns, row.text))
        return "skip"

    try:
        names = next(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter))
        frame = pa_csv.read_csv(
            pa.BufferReader(data),
            # One thread, or Arrow does not number the rows that it hands to the handler.
            read_options=pa_csv.ReadOptions(use_threads=False),
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=note
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise IngestRefused(name, f"it is not readable as CSV in UTF-8 ({_first_line(error)})") from error
    rows = _kept(len(frame), [n for n, *_ in ragged])
    blank = np.logical_and.reduce([pc.is_null(c).to_numpy() for c in frame.columns])
    if blank.any():
        frame, rows = frame.filter(pa.array(~blank)), rows[~blank]
    return Opened(frame, sha256, name, rows, _broken(ragged))


def _kept(count: int, skipped: list[int]) -> npt.NDArray[np.int64]:
    """Numbers [count] of the rows that were kept; Arrow counts the header as row 1."""
    gone = np.array(skipped, dtype=np.int64) - 1
    return np.setdiff1d(np.arange(1, count + len(gone) + 1, dtype=np.int64), gone)


def _broken(ragged: list[tuple[int, int, int, str]]) -> pa.Table:
    lines = [
        (n - 1, f"{found} fields where the header has {wanted}", text) for n, wanted, found, text in ragged if text.strip()
    ]
    return pa.table([list(column) for column in zip(*lines, strict=True)] if lines else [[], [], []], schema=BAD_SCHEMA)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
