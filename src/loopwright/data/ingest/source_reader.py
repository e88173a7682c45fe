"""A source that is open: its name, the digest of its content, and its rows as a stream of Arrow batches."""

import hashlib
import io
import shlex
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loopwright.base.errors import IngestRefused, first_line
from loopwright.data.ingest.contract import BAD_SCHEMA
from loopwright.data.ingest.plain import plain
from loopwright.records.declarations import Table

BATCH_BYTES = 32 << 20
BATCH_ROWS = 500_000
"""Approximate limits of a source's rows in memory, in bytes and rows."""


class Batch(NamedTuple):
    """Some rows of a source: `frame` [N] and their numbers in the source `rows` [N], from 1.

    `broken` has the rows that could not be cut into columns, as BAD_SCHEMA; `done` is the share of the source read with it.
    """

    frame: pa.Table
    rows: npt.NDArray[np.int64]
    broken: pa.Table
    done: float


Batches = Generator[Batch, None, None]
"""The rows of a source. Close it where it is not read to its end: an open reader reads ahead."""


class FileOptions(TypedDict, total=False):
    """The options of a command that reads files.

    Args:
        encoding: encoding of text files, e.g. cp1252, latin-1, utf-16 (default: detected).
        sheet: sheet of an Excel workbook (default: the only one with rows).
        no_header: the first line is a row of data; the columns become column_1, column_2 ...
        names: comma-separated column names, if the first line is a row of data.
    """

    encoding: str
    sheet: str
    no_header: bool
    names: str


class Reading(NamedTuple):
    """Options of how to read a file; empty ones are detected.

    `names`: the columns of a file without a header; `no_header`: number the columns.
    """

    encoding: str = ""
    sheet: str = ""
    no_header: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, **options: Unpack[FileOptions]) -> "Reading":
        """From the options of a command."""
        names = options.get("names", "")
        parts = tuple(n.strip() for n in names.split(",")) if names else ()
        return cls(options.get("encoding", ""), options.get("sheet", ""), options.get("no_header", False), parts)

    def options(self) -> str:
        """These options as text of a command line."""
        said = {k.replace("_", "-"): v for k, v in self._asdict().items() if v}
        return "".join(
            f" --{k}" if v is True else f" --{k} {shlex.quote(v if isinstance(v, str) else ','.join(v))}"
            for k, v in said.items()
        )

    def only(self, name: str, kind: str, *allowed: str) -> None:
        """Raise IngestRefused for an option that a kind of file does not have."""
        for option, value in self._asdict().items():
            if value and option not in allowed:
                raise IngestRefused(name, f"--{option.replace('_', '-')} says nothing about {kind}: leave it off")


class OpenSource(NamedTuple):
    """A source: its name, the SHA-256 of its content, and its rows from the beginning each time `batches` is called.

    There is at least one batch. `loose`: a row may lack a column (JSON Lines); it is null there. `offered`: columns that only
    the names of its folders define (`month=1/part.parquet`), for contracts with these columns. `encoding`: of text that is not UTF-8.
    """

    name: str
    digest: str
    batches: Callable[[], Batches]
    loose: bool = False
    offered: tuple[str, ...] = ()
    encoding: str = ""

    def narrowed(self, table: Table) -> "OpenSource":
        """The same without the offered columns that a table does not name."""
        taken = {*table.columns, *(c.source for c in table.columns.values())}
        unasked = [n for n in self.offered if n not in taken]

        def batches() -> Batches:
            with closing(self.batches()) as read:
                for batch in read:
                    dropped = [n for n in unasked if n in batch.frame.column_names]
                    yield batch._replace(frame=batch.frame.drop_columns(dropped))

        return self._replace(batches=batches) if unasked else self

    def whole(self, most: int | None = None) -> Batch:
        """All rows (at least the first `most`) as one batch."""
        parts: list[Batch] = []
        done = 0.0
        with closing(self.batches()) as batches:
            while done < 1 and (most is None or sum(len(p.frame) for p in parts) < most):
                batch = next(batches, None)
                parts += [batch] if batch else []
                done = 1.0 if batch is None else 0.0
        frames = [p.frame for p in parts]
        return Batch(
            frames[0] if len(frames) == 1 else _joined(self.name, frames),
            np.concatenate([p.rows for p in parts]),
            pa.concat_tables([p.broken for p in parts]),
            done or min(parts[-1].done, 0.99),
        )


def _joined(name: str, frames: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(frames, promote_options="permissive")
    except pa.ArrowException as error:
        raise IngestRefused(name, f"its columns change between two parts ({first_line(error)})") from error


def sliced(tables: Iterator[pa.Table], done: Callable[[int], float], schema: pa.Schema | None = None) -> Batches:
    """Tables as batches of bounded size, numbered on."""
    count = 0
    for table in map(plain, tables):
        step = max(1024, min(BATCH_ROWS, BATCH_BYTES * len(table) // max(table.nbytes, 1)))
        step = len(table) if step * 4 > len(table) * 3 else step
        for at in range(0, len(table), max(step, 1)):
            part = table.slice(at, step)
            rows = np.arange(count + 1, count + len(part) + 1, dtype=np.int64)
            count += len(part)
            yield Batch(part, rows, BAD_SCHEMA.empty_table(), min(done(count), 1.0))
        schema = table.schema
    if not count and schema is not None:
        yield Batch(plain(schema.empty_table()), np.arange(0), BAD_SCHEMA.empty_table(), 1.0)


class Hasher(io.RawIOBase):
    """A file that computes the digest of the bytes written to it, and stores nothing."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Take the bytes in."""
        self.sha256.update(data)
        return len(data)


class Digest:
    """The SHA-256 of tables as an Arrow stream, taken while they pass."""

    def __init__(self) -> None:
        self._hasher = Hasher()
        self._stream: Any = None

    def passing(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The same tables."""
        for table in tables:
            if self._stream is None:
                self._stream = pa.ipc.new_stream(pa.PythonFile(self._hasher, mode="w"), table.schema.remove_metadata())
            self._stream.write_table(table.replace_schema_metadata(None))
            yield table

    def hexdigest(self) -> str:
        """The digest, when all have passed."""
        if self._stream is not None:
            self._stream.close()
        return self._hasher.sha256.hexdigest()
