"""Sources of rows: files, data frames, SQL queries and Delta tables, each a stream of Arrow batches and a digest of its content.

CSV (also .gz, and .zip with one CSV in it), JSON Lines (also .gz), Parquet, Arrow IPC, and whatever speaks the Arrow PyCapsule
interface: pyarrow, pandas, polars, DuckDB (https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html).
CSV and JSON Lines are read as text, so that nothing is guessed: the contract says what a column is.
"""

import csv
import glob
import gzip
import hashlib
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from loopwright.data.contract import BAD_SCHEMA
from loopwright.data.lazy import open_lazy
from loopwright.data.opened import BATCH_BYTES, BATCH_ROWS, Batch, Digest, Opened, sliced
from loopwright.data.values import is_list, is_text
from loopwright.records.errors import IngestRefused, first_line

LARGEST = 8 << 30
"""Bytes that a compressed file may unpack to; more is refused before it fills the disk."""

CSV_BLOCK = 4 << 20
"""Arrow reads up to 32 blocks ahead; a row is at most as long as one."""

LONGEST_LINE = 16 << 20
MOST_COLUMNS = 10_000
"""Of a CSV's header, or of JSON objects together; such a file is no table with a row per decision."""

MOST_CELLS = 20_000_000
"""Of JSON objects that are made columns at a time, where each may have other names."""

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".zip", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".parquet", ".arrow", ".feather")  # fmt: skip
"""What is taken out of a folder; a file that is named is looked at whatever it is called."""

_JSON = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")


def open_source(source: Any, name: str | None = None) -> Opened:
    """Open `source`: a path, a pyarrow table, a data frame with `__arrow_c_stream__`, or what is opened already.

    Raises IngestRefused when it cannot be read: no such file, wrong kind, truncated, damaged; also while its batches are read.
    """
    if isinstance(source, Opened):
        return source
    if isinstance(source, (str, Path)):
        return _file(Path(source), name or Path(source).name)
    shown = name or f"a {type(source).__name__}"
    if isinstance(source, pa_dataset.Dataset | pa_dataset.Scanner) or hasattr(source, "collect_batches"):
        return open_lazy(source, shown)
    if not hasattr(source, "__arrow_c_stream__"):
        what = "a data frame that speaks Arrow (pyarrow, pandas, polars), a polars LazyFrame, nor a pyarrow dataset"
        raise IngestRefused(shown, f"it is neither a path, {what}")
    frame = pa.table(source).combine_chunks()
    digest = Digest()
    rows = sum(len(table) for table in digest.passing([frame]))
    return Opened(shown, digest.hexdigest(), lambda: sliced(iter([frame]), lambda done: done / max(rows, 1)))


def expand(source: str | Path) -> list[Path]:
    """The files that a path, a folder or a glob stands for, in order of their names; hidden files are left out.

    Raises IngestRefused when there is none.
    """
    path = Path(source)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES) and _shown(p, path)]
        why = f"no file in this folder ends in one of {', '.join(SUFFIXES)}"
    elif not path.exists() and glob.has_magic(str(source)):
        found = [Path(p) for p in glob.glob(str(source), recursive=True) if Path(p).is_file()]  # noqa: PTH207 - Path.glob takes no absolute pattern
        why = "no file is called like this"
    else:
        found, why = [path] if path.is_file() else [], "there is no such file"
    if not found:
        raise IngestRefused(path.name or str(source), why)
    return sorted(found)


def _shown(file: Path, folder: Path) -> bool:
    """Neither hidden nor a writer's own notes (`_SUCCESS`, `_delta_log`)."""
    return not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


# --- files -----------------------------------------------------------------------------------------------------------


def _file(path: Path, name: str) -> Opened:
    with _refusing(name, "it cannot be read"):
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            raise IngestRefused(name, "it is no file that can be read to its end")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            start = file.read(65536)
    read, loose = _reader(path, name, start)
    told = _partition(path)
    if told:
        sha256 = hashlib.sha256(msgspec.json.encode([sha256, told])).hexdigest()

    def batches() -> Iterator[Batch]:
        yield from (_with_told(batch, told) for batch in read())
        after = path.stat()
        if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
            raise IngestRefused(name, "it changed while it was read; ingest it again")

    return Opened(name, sha256, batches, loose, tuple(told))


def _partition(path: Path) -> dict[str, str | None]:
    """What the folders of a file tell of all of its rows, as Hive and Spark name them: `month=1`."""
    pairs = (part.partition("=") for part in path.absolute().parent.parts if re.fullmatch(r"[A-Za-z_]\w*=.+", part))
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, _, value in pairs}


def _with_told(batch: Batch, told: dict[str, str | None]) -> Batch:
    frame = batch.frame
    for name, value in told.items():
        if name not in frame.column_names:
            frame = frame.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(frame)))
    return batch._replace(frame=frame)


def _reader(path: Path, name: str, start: bytes) -> tuple[Callable[[], Iterator[Batch]], bool]:
    """How to read a file, by its first bytes, and whether its rows may lack columns."""
    if start[:4] == b"PAR1":
        return lambda: _parquet(path, name), False
    if path.suffix == ".parquet":
        raise IngestRefused(name, "it is called .parquet but is not Parquet (its first bytes are not PAR1)")
    if start[:6] == b"ARROW1" or (path.suffix in (".arrow", ".arrows") and start[:4] == b"\xff\xff\xff\xff"):
        return lambda: _arrow(path, name, stream=start[:6] != b"ARROW1"), False
    if path.suffix in (".arrow", ".feather"):
        raise IngestRefused(name, f"it is called {path.suffix} but is not Arrow (its first bytes are not ARROW1)")
    with _refusing(name, "it is damaged or cut off"), _unpacked(path, name) as text:
        start = text.read(65536)
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        raise IngestRefused(name, "it is empty")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise IngestRefused(name, "it is UTF-16; save it as UTF-8")
    if b"\0" in start:
        raise IngestRefused(name, "it is neither Parquet nor text")
    if path.name.lower().endswith(_JSON) or start.lstrip(b"\xef\xbb\xbf \t\r\n")[:2] in (b'{"', b"{ "):
        if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            raise IngestRefused(name, "it is one JSON array; write JSON Lines, one object a line")
        return lambda: _json_lines(path, name), True
    return lambda: _csv(path, name), False


@contextmanager
def _refusing(name: str, what: str) -> Iterator[None]:
    """Say in one line what a library found wrong with a source."""
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, pa.ArrowException,
            UnicodeDecodeError, csv.Error) as error:  # fmt: skip
        why = error.strerror if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) else None
        raise IngestRefused(name, f"{what} ({why or first_line(error)})") from error


class _Bounded(io.BufferedIOBase):
    """What a compressed file unpacks to, at most LARGEST bytes of it."""

    def __init__(self, packed: Any, file: Any, name: str) -> None:
        self._packed, self._file, self._name, self._count = packed, file, name, 0

    def position(self) -> int:
        """How far the packed file was read, in bytes."""
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._packed.read(size)
        self._count += len(data)
        if self._count > LARGEST:
            raise IngestRefused(self._name, f"it unpacks to more than {LARGEST >> 30} GiB; split it")
        return data  # type: ignore[no-any-return]  # gzip and zipfile files are alike but share no type

    read1 = read

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _unpacked(path: Path, name: str) -> Iterator[Any]:
    """The bytes of a text file, unpacked as they are read."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as packed:
                yield _Bounded(packed, file, name)
        elif start == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                inside = [i for i in archive.infolist() if i.filename.lower().endswith(".csv")]
                if len(inside) != 1:
                    raise IngestRefused(name, f"it holds {len(inside)} CSV files; give it one")
                with archive.open(inside[0]) as packed:
                    yield _Bounded(packed, file, name)
        else:
            yield file


def _parquet(path: Path, name: str) -> Iterator[Batch]:
    with (
        _refusing(name, "it begins like Parquet but is damaged or cut off"),
        pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file,
    ):
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        rows = max(1024, min(BATCH_ROWS, BATCH_BYTES * meta.num_rows // max(size, 1)))
        parts = (pa.Table.from_batches([b]) for b in file.iter_batches(batch_size=rows))
        yield from sliced(parts, lambda done: done / max(meta.num_rows, 1), file.schema_arrow)


def _arrow(path: Path, name: str, *, stream: bool) -> Iterator[Batch]:
    with _refusing(name, "it begins like Arrow but is damaged or cut off"), pa.memory_map(str(path)) as file:
        size = file.size()
        opened = pa.ipc.open_stream(file) if stream else pa.ipc.open_file(file)
        count = 0 if stream else opened.num_record_batches
        parts = iter(opened) if stream else (opened.get_batch(i) for i in range(count))
        tables = (pa.Table.from_batches([b]) for b in parts)
        yield from sliced(tables, lambda _: file.tell() / max(size, 1), opened.schema)


# --- CSV -------------------------------------------------------------------------------------------------------------


def _csv(path: Path, name: str) -> Iterator[Batch]:
    with _refusing(name, "it is not readable as CSV in UTF-8"):
        names, delimiter = _header(path, name)
        try:
            yield from _csv_rows(path, name, names, delimiter)
        except pa.ArrowInvalid as error:
            if line := "straddling" in str(error) and _longest_row(path, name):
                why = f"the row that begins on line {line} is longer than {CSV_BLOCK >> 20} MiB: close its quotes"
                raise IngestRefused(name, why) from error
            raise


def _longest_row(path: Path, name: str) -> int:
    """The line of a CSV on which the first row begins that is longer than a block; 0 where there is none.

    A line break ends a row where the quotes so far are even.
    """
    line, row, length, odd = 1, 1, 0, False
    with _unpacked(path, name) as data:
        lines = io.BufferedReader(data, 1 << 20) if isinstance(data, _Bounded) else data
        while part := lines.readline(1 << 16):
            length += len(part)
            odd ^= part.count(b'"') % 2 == 1
            if length > CSV_BLOCK:
                return row
            line += part.endswith(b"\n")
            if part.endswith(b"\n") and not odd:
                row, length = line, 0
    return 0


def _header(path: Path, name: str) -> tuple[list[str], str]:
    """The columns of a CSV and its delimiter. A name that comes again gets the number of its column: `x`, `x#3`."""
    with _unpacked(path, name) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as text:
        start = text.readline(1 << 20)
        delimiter = max(",;\t|", key=start.count)
        try:
            names = next(csv.reader([start] if start.count('"') % 2 == 0 else _lines(start, text), delimiter=delimiter))
        except csv.Error as error:
            raise IngestRefused(name, f"its header on line 1 cannot be cut into columns ({error}): close its quotes") from error
    _check_columns(len(names), name)
    return [n if n not in names[:i] else f"{n}#{i + 1}" for i, n in enumerate(names)], delimiter


def _check_columns(count: int, name: str) -> None:
    if count > MOST_COLUMNS:
        raise IngestRefused(name, f"it has more than {MOST_COLUMNS:,} columns")


def _lines(start: str, text: Any) -> Iterator[str]:
    yield start
    while line := text.readline(1 << 20):
        yield line


def _csv_rows(path: Path, name: str, names: list[str], delimiter: str) -> Iterator[Batch]:
    ragged: list[tuple[int, int, int, str]] = []

    def note(row: Any) -> str:
        ragged.append((int(row.number), row.expected_columns, row.actual_columns, row.text))
        return "skip"

    # The reader reads ahead on a thread of its own, so it is closed before its file is.
    with _unpacked(path, name) as data, _csv_reader(data, names, delimiter, note) as reader:
        size, number, told, batches = path.stat().st_size, 1, 0, 0
        for part in _gathered(reader):
            frame = part.rename_columns(names)
            # Arrow counts the header as row 1. The rows it skipped up to the end of this part are noted by now.
            rows = _numbers(number, len(frame), {n - 1 for n, *_ in ragged})
            number = int(rows[-1]) + 1 if len(rows) else number
            broken, told = _broken(ragged[told:]), len(ragged)
            batches += 1
            yield _without_blank(Batch(frame, rows, broken, _share(data, size)))
        if not batches or len(ragged) > told:
            empty = pa.schema([(n, pa.string()) for n in names]).empty_table()
            yield Batch(empty, np.arange(0), _broken(ragged[told:]), 1.0)


def _csv_reader(data: Any, names: list[str], delimiter: str, note: Callable[[Any], str]) -> Any:
    return pa_csv.open_csv(
        pa.PythonFile(data, mode="r"),
        # One thread, or Arrow does not number the rows that it hands to the handler.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=min(CSV_BLOCK, BATCH_BYTES)),
        parse_options=pa_csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=note
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys((n.split("#")[0] for n in names), pa.string()) | dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def _gathered(reader: Any) -> Iterator[pa.Table]:
    """What a reader gives in small parts, in larger ones."""
    parts: list[pa.RecordBatch] = []
    for part in reader:
        parts.append(part)
        if sum(p.nbytes for p in parts) >= BATCH_BYTES // 2:
            yield pa.Table.from_batches(parts).combine_chunks()
            parts = []
    if parts:
        yield pa.Table.from_batches(parts).combine_chunks()


def _share(data: Any, size: int) -> float:
    position = data.position() if isinstance(data, _Bounded) else data.tell()
    return float(min(position / max(size, 1), 1.0))


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


def _broken(ragged: list[tuple[int, int, int, str]]) -> pa.Table:
    lines = [
        (n - 1, f"{found} fields where the header has {wanted}", text) for n, wanted, found, text in ragged if text.strip()
    ]
    return _bad_lines(lines)


def _bad_lines(lines: list[tuple[int, str, str]]) -> pa.Table:
    return pa.table([list(column) for column in zip(*lines, strict=True)] if lines else [[], [], []], schema=BAD_SCHEMA)


# --- JSON Lines ------------------------------------------------------------------------------------------------------


def _json_lines(path: Path, name: str) -> Iterator[Batch]:
    size = path.stat().st_size
    with _refusing(name, "it is damaged or cut off"), _unpacked(path, name) as data:
        lines = io.BufferedReader(data, 1 << 20) if isinstance(data, _Bounded) else data
        number, batches = 0, 0
        decoder = msgspec.json.Decoder(dict[str, Any])
        while True:
            found: list[dict[str, Any]] = []
            rows: list[int] = []
            bad: list[tuple[int, str, str]] = []
            taken, names = 0, set[str]()
            most = BATCH_ROWS // 5
            while taken < BATCH_BYTES and len(found) < most and (line := lines.readline(LONGEST_LINE)):
                number += 1
                taken += len(line)
                if len(line) == LONGEST_LINE:
                    raise IngestRefused(name, f"line {number} is longer than {LONGEST_LINE >> 20} MiB; write one object a line")
                if not line.strip():
                    continue
                try:
                    found.append(decoder.decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line))
                    rows.append(number)
                    names.update(found[-1])
                    most = min(most, MOST_CELLS // max(len(names), 1))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    bad.append((number, f"no JSON object: {first_line(error)}", line.decode(errors="replace").strip()))
            if not taken and batches:
                return
            _check_columns(len(names), name)
            batches += 1
            yield Batch(texts(found), np.array(rows, dtype=np.int64), _bad_lines(bad), _share(data, size))


def texts(rows: list[dict[str, Any]]) -> pa.Table:
    """JSON objects [N] as columns of text (null where absent or null); a column of lists stays one where Arrow can hold it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: as_text([row.get(name) for row in rows]) for name in names})


def as_text(values: list[Any]) -> pa.Array:
    """Plain values [N] as text: numbers as JSON writes them."""
    try:
        found = pa.array(values)
    except (pa.ArrowException, OverflowError):
        found = None
    if found is not None:
        if is_text(found.type) or pa.types.is_null(found.type) or is_list(found.type):
            return found
        if pa.types.is_integer(found.type) or pa.types.is_boolean(found.type):
            return found.cast(pa.string())
    encode = msgspec.json.Encoder(enc_hook=str).encode
    return pa.array([v if v is None or isinstance(v, str) else encode(v).decode() for v in values], pa.string())
