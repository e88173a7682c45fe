"""Sources of rows: files, data frames, SQL queries and Delta tables, each a stream of Arrow batches and a digest of its content.

CSV (also .gz, and .zip with one CSV in it), JSON Lines (also .gz), Excel, Parquet, Arrow IPC, and objects with the Arrow PyCapsule
interface: pyarrow, pandas, polars, DuckDB (https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html).
CSV and JSON Lines are read as text, so that no type is guessed: the contract declares the types.
"""

import glob
import hashlib
import json
import re
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.base.errors import FileMissing, IngestRefused, first_line
from loopwright.data.ingest.csv_text import bad_lines, csv_batches
from loopwright.data.ingest.encoding import TextFile, detect, lines, refusing
from loopwright.data.ingest.header import check_columns
from loopwright.data.ingest.lazy import is_dataset, open_lazy
from loopwright.data.ingest.source_reader import BATCH_BYTES, BATCH_ROWS, Batch, Batches, Digest, OpenSource, Reading, sliced
from loopwright.data.ingest.spreadsheet import is_workbook, workbook_batches
from loopwright.data.ingest.values import is_list, is_text

AS_DETECTED = Reading()
LONGEST_LINE = 16 << 20
MAX_CELLS = 20_000_000
"""Limit for JSON objects with different keys, which become columns together."""

_KEYS = re.compile(rb'"\s*:')

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".zip", ".xlsx", ".xlsm", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".parquet", ".arrow", ".feather")  # fmt: skip
"""Suffixes of the files taken from a folder; a file named directly may have any suffix."""

_JSON = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")


def open_source(source: Any, name: str | None = None, reading: Reading = AS_DETECTED) -> OpenSource:
    """Open `source`: a path, a pyarrow table, a data frame with `__arrow_c_stream__`, or an opened source.

    `reading` overrides the detection of how to read a file. Raises FileMissing when there is no such file,
    IngestRefused when it cannot be read: wrong kind, truncated, damaged; also while its batches are read.
    """
    if isinstance(source, OpenSource):
        return source
    if isinstance(source, (str, Path)):
        return _file(Path(source), name or Path(source).name, reading)
    shown = name or f"a {type(source).__name__}"
    if is_dataset(source, "Dataset", "Scanner") or hasattr(source, "collect_batches"):
        return open_lazy(source, shown)
    if not hasattr(source, "__arrow_c_stream__"):
        what = "a data frame that speaks Arrow (pyarrow, pandas, polars), a polars LazyFrame, nor a pyarrow dataset"
        raise IngestRefused(shown, f"it is neither a path, {what}")
    frame = pa.table(source).combine_chunks()
    digest = Digest()
    rows = sum(len(table) for table in digest.passing([frame]))
    return OpenSource(shown, digest.hexdigest(), lambda: sliced(iter([frame]), lambda done: done / max(rows, 1)))


def expand(source: str | Path) -> list[Path]:
    """The files of a path, a folder or a glob, ordered by name; hidden files are left out.

    Raises FileMissing without any file.
    """
    path = Path(source)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES) and _shown(p, path)]
        why = f"no file in this folder ends in one of {', '.join(SUFFIXES)}"
    elif not path.exists() and glob.has_magic(str(source)):
        found = [Path(p) for p in glob.glob(str(source), recursive=True) if Path(p).is_file()]  # noqa: PTH207 - Path.glob takes no absolute pattern
        why = "no file is called like this"
    elif path.exists():  # a pipe or a device is refused where it is opened
        found, why = [path], ""
    else:
        found, why = [], ""
    if not found:
        raise FileMissing(path, why=why)
    return sorted(found)


def _shown(file: Path, folder: Path) -> bool:
    """Whether a file is neither hidden nor a marker of a writer (`_SUCCESS`, `_delta_log`)."""
    return not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


# --- files -----------------------------------------------------------------------------------------------------------


def _file(path: Path, name: str, reading: Reading) -> OpenSource:
    with refusing(name, "it cannot be read"):
        try:
            before = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise FileMissing(path) from None
        if not stat.S_ISREG(before.st_mode):
            raise IngestRefused(name, "it is no file that can be read to its end")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            start = file.read(8)
    read = _reader(path, name, start, reading)
    told = _partition(path)
    # How a file is read changes the rows that its bytes hold: options of the user are part of the digest.
    said = [v for v in (read.said, reading.sheet, reading.no_header, *reading.names) if v]
    if told or said:
        sha256 = hashlib.sha256(msgspec.json.encode([sha256, told, *said] if said else [sha256, told])).hexdigest()

    def batches() -> Batches:
        with closing(read.batches()) as rows:
            for batch in rows:
                yield _with_constants(batch, told)
        after = path.stat()
        if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
            raise IngestRefused(name, "it changed while it was read; ingest it again")

    return OpenSource(name, sha256, batches, read.loose, tuple(told), read.encoding)


def _partition(path: Path) -> dict[str, str | None]:
    """Values that a file's folders define for all of its rows, in the naming of Hive and Spark: `month=1`."""
    pairs = (part.partition("=") for part in path.absolute().parent.parts if re.fullmatch(r"[A-Za-z_]\w*=.+", part))
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, _, value in pairs}


def _with_constants(batch: Batch, constants: dict[str, str | None]) -> Batch:
    frame = batch.frame
    for name, value in constants.items():
        if name not in frame.column_names:
            frame = frame.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(frame)))
    return batch._replace(frame=frame)


class _FileReader(NamedTuple):
    """How a file is read: its rows, whether these may lack columns, its encoding if it is not UTF-8, and the one that the user set."""

    batches: Callable[[], Batches]
    loose: bool = False
    encoding: str = ""
    said: str = ""


def _reader(path: Path, name: str, start: bytes, reading: Reading) -> _FileReader:
    """The reader of a file, by its first bytes."""
    if start[:4] == b"PAR1":
        reading.only(name, "a Parquet file")
        return _FileReader(lambda: _parquet(path, name))
    if path.suffix == ".parquet":
        raise IngestRefused(name, "it is called .parquet but is not Parquet (its first bytes are not PAR1)")
    if start[:6] == b"ARROW1" or (path.suffix in (".arrow", ".arrows") and start[:4] == b"\xff\xff\xff\xff"):
        reading.only(name, "an Arrow file")
        return _FileReader(lambda: _arrow(path, name, stream=start[:6] != b"ARROW1"))
    if path.suffix in (".arrow", ".feather"):
        raise IngestRefused(name, f"it is called {path.suffix} but is not Arrow (its first bytes are not ARROW1)")
    if start[:4] == b"PK\x03\x04" and is_workbook(path):
        reading.only(name, "an Excel workbook", "sheet", "no_header", "names")
        return _FileReader(lambda: workbook_batches(path, name, reading))
    text = detect(path, name, reading.encoding)
    with refusing(name, f"it is not readable as {text.encoding.upper()}"), text.open() as data:
        begins = data.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    said = text.encoding if reading.encoding and text.encoding != _detected(path, name) else ""
    encoding = "" if text.encoding == "utf-8" else text.encoding
    if path.name.lower().endswith(_JSON) or begins[:2] in (b'{"', b"{ "):
        reading.only(name, "JSON Lines", "encoding")
        return _FileReader(lambda: _json_lines(text), True, encoding, said)
    reading.only(name, "CSV", "encoding", "no_header", "names")
    return _FileReader(lambda: csv_batches(text, reading), False, encoding, said)


def _detected(path: Path, name: str) -> str:
    try:
        return detect(path, name).encoding
    except IngestRefused:
        return ""


def _parquet(path: Path, name: str) -> Batches:
    with (
        refusing(name, "it begins like Parquet but is damaged or cut off"),
        pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file,
    ):
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        rows = max(1024, min(BATCH_ROWS, BATCH_BYTES * meta.num_rows // max(size, 1)))
        parts = (pa.Table.from_batches([b]) for b in file.iter_batches(batch_size=rows))
        yield from sliced(parts, lambda done: done / max(meta.num_rows, 1), file.schema_arrow)


def _arrow(path: Path, name: str, *, stream: bool) -> Batches:
    with refusing(name, "it begins like Arrow but is damaged or cut off"), pa.memory_map(str(path)) as file:
        size = file.size()
        opened = pa.ipc.open_stream(file) if stream else pa.ipc.open_file(file)
        count = 0 if stream else opened.num_record_batches
        parts = iter(opened) if stream else (opened.get_batch(i) for i in range(count))
        tables = (pa.Table.from_batches([b]) for b in parts)
        yield from sliced(tables, lambda _: file.tell() / max(size, 1), opened.schema)


# --- JSON Lines ------------------------------------------------------------------------------------------------------


def _json_lines(text: TextFile) -> Batches:
    size = text.path.stat().st_size
    with refusing(text.name, "it is damaged or cut off"), text.open() as data:
        read = lines(data)
        number, batches = 0, 0
        decoder = msgspec.json.Decoder(dict[str, Any])
        while True:
            found: list[dict[str, Any]] = []
            rows: list[int] = []
            bad: list[tuple[int, str, str]] = []
            taken, names = 0, set[str]()
            most = BATCH_ROWS // 5
            while taken < BATCH_BYTES and len(found) < most and (line := read.readline(LONGEST_LINE)):
                number += 1
                taken += len(line)
                if len(line) == LONGEST_LINE:
                    why = f"line {number} is longer than {LONGEST_LINE >> 20} MiB; write one object a line"
                    raise IngestRefused(text.name, why)
                if not line.strip():
                    continue
                try:
                    found.append(_once(decoder, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line))
                    rows.append(number)
                    names.update(found[-1])
                    most = min(most, MAX_CELLS // max(len(names), 1))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    bad.append((number, f"no JSON object: {first_line(error)}", line.decode(errors="replace").strip()))
            if not taken and batches:
                return
            check_columns(len(names), text.name)
            batches += 1
            done = min(data.tell() / max(size, 1), 1.0)
            yield Batch(texts(found), np.array(rows, dtype=np.int64), bad_lines(bad), done)


def _once(decoder: msgspec.json.Decoder[dict[str, Any]], line: bytes) -> dict[str, Any]:
    """A JSON object in which no key comes twice, at any depth. Raises DecodeError."""
    row = decoder.decode(line)
    if len(_KEYS.findall(line)) > len(row):  # a key twice, an object inside, or a text that looks like a key
        json.loads(line, object_pairs_hook=_unequal)
    return row


def _unequal(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise msgspec.DecodeError(f"key {twice!r} comes twice")


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
