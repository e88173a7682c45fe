"""The lake: Delta tables in a local folder or on object storage. Only this folder knows Delta.

Delta Lake (Armbrust et al. 2020, doi:10.14778/3415478.3415560) keeps a table as Parquet files and a log of numbered
commits. Every version stays readable: logs do not expire and no file is deleted. Exactly-once appends rest on Delta's
application transactions: a commit carries (application, sequence), and of two commits that carry the same one, one fails.

The commits of a local lake are sealed: on the disk, with the SHA-256 of every file (see `stores.lake.seal`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler

from loopwright.base.errors import (
    Damaged,
    LoopwrightError,
    NotFound,
    TableNotFound,
    Unavailable,
    UsageError,
    first_line,
    nearest,
)
from loopwright.base.ids import NAME, check_name
from loopwright.records.entries import Problem
from loopwright.stores.lake import seal
from loopwright.stores.lake.columns import TIMESTAMP, arrow_dataset, fitted_rows, plain_type, stored_type, table_schema

_CONFIGURATION = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
_ATTEMPTS = 20
_NOTE = "loopwright"


class Stream(NamedTuple):
    """Rows that are made while they are written: their schema, and how to make them, from the beginning each time."""

    schema: pa.Schema
    batches: Callable[[], Iterator[pa.Table]]

    def begun(self) -> "Stream":
        """The same stream with its first rows made, so that an early failure creates no table."""
        rest = self.batches()
        first = list(islice(rest, 1))
        return Stream(self.schema, lambda: chain(first, rest))


class Lake:
    """Tables by name under `root`, a folder or a URL (`s3://bucket/path`; credentials as delta-rs reads them).

    A table's name is a valid name, or two of them joined by a dot (`predictions.LOOP`). Columns are read as float64,
    int64, bool, string, list<string> or timestamp[us, UTC], whatever string type was written. Every method
    raises TableNotFound (with similar names) for a missing table, Damaged for one that cannot be read,
    and Unavailable when the storage does not answer.
    """

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/") if "://" in root else str(Path(root).absolute())
        self._folder = None if "://" in root else Path(self._root)

    # --- writing -------------------------------------------------------------------------------------------------

    def write(self, name: str, table: pa.Table, *, mode: Literal["append", "overwrite"] = "append") -> int:
        """Write rows and return the version that has them. New columns are added; old rows have null there.

        Raises Refused when a column has another type than in the table (nothing is cast) or cannot be stored.
        """
        with self._errors(name):
            for _ in range(_ATTEMPTS):
                delta = self._open_or_make(name, table.schema)
                try:
                    return self._commit(name, delta, table, mode, None)
                except CommitFailedError:
                    continue
        raise Unavailable(f"table {name}: too many concurrent writers; try again")

    def append_once(
        self, name: str, table: pa.Table | Stream, *, application: str, sequence: int, note: str = ""
    ) -> int | None:
        """Append rows unless `sequence` of `application` (or a later one) is committed already; then returns None, and writes nothing.

        Rows and sequence are one commit, so after interruptions and retries, also concurrent ones, the rows
        are stored once. `note` is stored with the commit, see `notes`. Returns the version that has them. Raises Refused as
        `write` does, and the errors of the stream; then nothing was written.
        """
        with self._errors(name):
            for _ in range(_ATTEMPTS):
                rows = table.begun() if isinstance(table, Stream) else table
                delta = self._open_or_make(name, table.schema)
                last = delta.transaction_version(application)
                if last is not None and last >= sequence:
                    return None
                try:
                    return self._commit(name, delta, rows, "append", Transaction(application, sequence), note)
                except CommitFailedError:
                    continue
        raise Unavailable(f"table {name}: too many concurrent writers; try again")

    def add_columns(self, name: str, schema: pa.Schema) -> int:
        """Add columns, null in every row there is; returns the version that has them."""
        with self._errors(name):
            delta = self._table(name)
            new = [f for f in schema if f.name not in table_schema(delta).names]
            if new:
                delta.alter.add_columns(DeltaSchema.from_arrow(pa.schema(new)).fields)
                self._seal(name, delta.version())
            return delta.version()

    def notes(self, name: str) -> list[tuple[int, str]]:
        """The notes of the appends to a table: (version, note), oldest first."""
        with self._errors(name):
            commits = self._table(name).history() if self.exists(name) else []
            return [(c["version"], c[_NOTE]) for c in reversed(commits) if c.get(_NOTE)]

    def compact(self, name: str) -> int:
        """Put many small files together in few; returns by how many they became fewer (0 also if a writer came between)."""
        with self._errors(name):
            delta = self._table(name)
            try:
                metrics = delta.optimize.compact()
            except CommitFailedError:
                return 0
            self._seal(name, delta.version())
            return int(metrics["numFilesRemoved"]) - int(metrics["numFilesAdded"])

    def delete_before(self, name: str, column: str, moment: datetime) -> int:
        """Delete rows whose `column` (a timestamp) is before `moment`; returns their number (0 also after a concurrent write)."""
        if not self.dataset(name).count_rows(filter=pc.field(column) < pa.scalar(moment, TIMESTAMP)):
            return 0
        with self._errors(name):
            delta = self._table(name)
            text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            try:
                metrics = delta.delete(f"{column} < arrow_cast('{text}', 'Timestamp(Microsecond, Some(\"UTC\"))')")
            except CommitFailedError:
                return 0
            self._seal(name, delta.version())
            return int(metrics["num_deleted_rows"] or 0)

    def vacuum(self, name: str, *, older: timedelta) -> int:
        """Remove the files that no version needs that was the newest within `older` ago; how many. Versions before are gone."""
        with self._errors(name):
            delta, hours = self._table(name), int(older.total_seconds() // 3600)
            files = delta.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=False)
            if not files:
                return 0
            if self._folder is not None:
                seal.forget(self._folder / name, {unquote(file) for file in files})
            files = delta.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False)
            self._seal(name, self._table(name).version())
            return len(files)

    def settle(self, name: str) -> None:
        """Sync the whole table to the disk, including commits of a process that died before its own sync."""
        with self._errors(name):
            if self.exists(name):
                self._seal(name, self._table(name).version())

    # --- reading -------------------------------------------------------------------------------------------------

    def last_sequence(self, name: str, application: str) -> int | None:
        """The last sequence of `application` in the table; None if there is none, or no table yet."""
        with self._errors(name):
            return self._table(name).transaction_version(application) if self.exists(name) else None

    def read(
        self, name: str, *, columns: Sequence[str] | None = None, version: int | None = None, filters: Any = None
    ) -> pa.Table:
        """Rows of a table (at a version), in no particular order.

        `filters` is a pyarrow expression or a list in pyarrow's notation (`[("a", ">", 3)]`); files and row groups that
        cannot match are not read. A comparison never finds NaN. Raises UsageError for a column that is not there.
        """
        if isinstance(filters, list):
            filters = pq.filters_to_expression(filters)
        dataset = self.dataset(name, version)
        if missing := set(columns or ()) - set(dataset.schema.names):
            raise UsageError(
                f"table {name} has no column {', '.join(sorted(missing))}: it has {', '.join(dataset.schema.names)}"
            )
        with self._errors(name):
            try:
                table = dataset.to_table(columns=None if columns is None else list(columns), filter=filters)
            except OSError as error:
                if version is not None and self._folder is not None and seal.forgotten(self._folder / name):
                    newest = f"upkeep has removed the files of versions gone by (docs/guides/predictions.md); the newest is {self.version(name)}"
                    raise NotFound(f"version of table {name}", str(version), next_step=newest) from error
                raise Damaged(f"table {name} cannot be read: {error}") from error
            plain = pa.schema([pa.field(f.name, plain_type(f.type)) for f in table.schema])
            return table if table.schema.equals(plain) else table.cast(plain)

    def dataset(self, name: str, version: int | None = None, *, order: str = "") -> Any:
        """A pyarrow dataset of a table (at a version), e.g. for DuckDB, which pushes columns and filters down into it.

        `order` names a column to add: the place of a row's file among all files, in the order in which they were written.
        """
        with self._errors(name):
            delta = self._table(name, version)
            whole = delta.to_pyarrow_dataset(filesystem=self._files(name))
            if not order:
                return whole
            written = {unquote(f["path"]): f["modification_time"] for f in pa.table(delta.get_add_actions()).to_pylist()}
            files = sorted(whole.get_fragments(), key=lambda f: (written[unquote(f.path)], f.path))
            placed = [
                whole.format.make_fragment(f.path, f.filesystem, f.partition_expression & (pc.field(order) == pa.scalar(i)))
                for i, f in enumerate(files)
            ]
            schema = whole.schema.append(pa.field(order, pa.int64()))
            return arrow_dataset().FileSystemDataset(placed, schema, whole.format, whole.filesystem)

    def added(self, name: str, version: int) -> Any:
        """A dataset of the rows that the commit `version` appended to a table; None if it only moved or removed rows. Raises NotFound."""
        with self._errors(name):
            newest, delta = self._table(name), self._table(name, version)
            told = newest.history(newest.version() - version + 1)  # delta-rs numbers it rightly only at the newest version
            if next((e.get("operation") for e in told if e["version"] == version), "") != "WRITE":
                return None
            whole = delta.to_pyarrow_dataset(filesystem=self._files(name))
            before: set[str] = set()
            if version:
                delta.load_as_version(version - 1)
                before = {f.path for f in delta.to_pyarrow_dataset(filesystem=self._files(name)).get_fragments()}
            fragments = sorted((f for f in whole.get_fragments() if f.path not in before), key=lambda f: f.path)
            return arrow_dataset().FileSystemDataset(fragments, whole.schema, whole.format, whole.filesystem)

    def _files(self, name: str) -> Any:
        """Arrow's own file system for a local table; None leaves the choice to delta-rs.

        Its file system is in Python, and Arrow's threads may still be closing its files while the interpreter ends,
        which aborts the process after its work is done.
        """
        if self._folder is None:
            return None
        return pyarrow.fs.SubTreeFileSystem(str(self._folder / name), pyarrow.fs.LocalFileSystem())

    def exists(self, name: str) -> bool:
        """Whether there is such a table."""
        with self._errors(name):
            there = DeltaTable.is_deltatable(self._uri(name))
            if there and self._folder is not None and not seal.sealed(self._folder / name, 0):
                seal.take_back(self._folder / name)
                there = DeltaTable.is_deltatable(self._uri(name))
            return bool(there)

    def version(self, name: str) -> int:
        """The newest version of a table."""
        with self._errors(name):
            return self._table(name).version()

    def count(self, name: str) -> int:
        """Rows of a table's newest version, from the log alone: no data file is read."""
        with self._errors(name):
            return int(self._table(name).count())

    def extent(self, name: str, column: str) -> tuple[int, Any, Any]:
        """Rows of a table's newest version, and the lowest and highest value of a column: from the log alone, no data file is read.

        Times are cut to milliseconds there.
        """
        with self._errors(name):
            actions = pa.table(self._table(name).get_add_actions(flatten=True))
            ends = [
                of(actions[stat]).as_py() if (stat := f"{word}.{column}") in actions.column_names else None
                for word, of in (("min", pc.min), ("max", pc.max))
            ]
            return pc.sum(actions["num_records"]).as_py() or 0, ends[0], ends[1]

    def schema(self, name: str) -> pa.Schema:
        """A table's columns and their types."""
        with self._errors(name):
            return table_schema(self._table(name))

    def names(self) -> list[str]:
        """The tables there are, sorted."""
        if self._folder is not None:
            return sorted(log.parent.name for log in self._folder.glob("*/_delta_log") if _lawful(log.parent.name))
        with self._errors("*"):
            try:
                files = pyarrow.fs.PyFileSystem(DeltaStorageHandler(self._root))
            except TableNotFoundError:
                return []
            folders = files.get_file_info(pyarrow.fs.FileSelector("", allow_not_found=True))
            names = [info.base_name for info in folders if info.type == pyarrow.fs.FileType.Directory]
            return sorted(name for name in names if _lawful(name) and self.exists(name))

    def files(self, name: str, version: int | None = None) -> list[str]:
        """Paths or URLs of the Parquet files that make up a table (at a version), sorted."""
        with self._errors(name):
            return sorted(self._table(name, version).file_uris())

    def verify(self, name: str) -> list[Problem]:
        """Check a table's files: the log without a gap, every file there, of the right size and SHA-256, and readable."""
        where = f"table {name}"
        try:
            delta = DeltaTable(self._uri(name))  # as it is: nothing is taken back
        except TableNotFoundError:
            raise TableNotFound(name, nearest(name, self.names()), is_empty=True) from None
        except (Damaged, DeltaError, OSError, ValueError) as error:
            return [Problem(where=where, what=f"the log cannot be read: {first_line(error)}"), *self._checked(name, where)]
        problems = self._checked(name, where)
        told = {problem.where for problem in problems}
        actions = pa.table(delta.get_add_actions(flatten=True)).select(["path", "size_bytes", "num_records"]).to_pylist()
        for action in actions:
            path = unquote(action["path"])
            if f"{where} {path}" not in told and (
                what := self._unreadable(name, path, action["size_bytes"], action["num_records"])
            ):
                problems.append(Problem(where=f"{where} {path}", what=what))
        return problems

    # --- inside --------------------------------------------------------------------------------------------------

    def _uri(self, name: str) -> str:
        if not _lawful(name):
            check_name(name, "table name")
        return f"{self._root}/{name}"

    def _table(self, name: str, version: int | None = None) -> DeltaTable:
        try:
            delta = self._newest(name)
        except TableNotFoundError:
            raise TableNotFound(name, nearest(name, self.names()), is_empty=True) from None
        if version is not None and version != delta.version():
            if not 0 <= version < delta.version():
                raise NotFound(f"version of table {name}", str(version), next_step=f"the newest is {delta.version()}")
            delta.load_as_version(version)
        return delta

    def _newest(self, name: str) -> DeltaTable:
        """A table at its newest version; of a local one, torn commits are rolled back first and complete ones are sealed."""
        uri = self._uri(name)
        if self._folder is None:
            return DeltaTable(uri)
        try:
            delta = DeltaTable(uri)
        except TableNotFoundError:
            raise
        except DeltaError:
            if not seal.take_back(self._folder / name):
                raise
            return DeltaTable(uri)
        if seal.lost(self._folder / name, delta.version() + 1):
            raise Damaged(f"table {name}: commit {delta.version() + 1} is missing from its log: restore it from a backup")
        if not seal.sealed(self._folder / name, delta.version()):
            if seal.take_back(self._folder / name):
                return DeltaTable(uri)
            with suppress(OSError):  # a read-only user can still read
                seal.seal(self._folder / name, delta.version())
        return delta

    def _open_or_make(self, name: str, schema: pa.Schema) -> DeltaTable:
        uri = self._uri(name)
        if not self.exists(name):
            if self._folder is not None:
                Path(uri).mkdir(parents=True, exist_ok=True)
            kept = pa.schema([pa.field(f.name, stored_type(name, f)) for f in schema])
            once = CommitProperties(max_commit_retries=0)  # a retry would make the table a second time, over the first
            try:
                return DeltaTable.create(uri, schema=kept, configuration=_CONFIGURATION, commit_properties=once)
            except (CommitFailedError, DeltaError):
                if not self.exists(name):
                    raise
        return self._newest(name)

    def _commit(
        self,
        name: str,
        delta: DeltaTable,
        table: pa.Table | Stream,
        mode: Literal["append", "overwrite"],
        transaction: Transaction | None,
        note: str = "",
    ) -> int:
        about = ({_NOTE: note} if note else {}) | ({seal.TRANSACTION: transaction.app_id} if transaction else {})
        properties = CommitProperties(app_transactions=[transaction] if transaction else None, custom_metadata=about or None)
        if isinstance(table, Stream):
            _write_stream(name, delta, table, properties)
        elif mode == "overwrite":
            fit = table.cast(pa.schema([pa.field(f.name, stored_type(name, f)) for f in table.schema]))
            write_deltalake(delta, fit, mode="overwrite", schema_mode="overwrite", commit_properties=properties)
        else:
            fit = fitted_rows(name, table, table_schema(delta))
            write_deltalake(delta, fit, mode="append", schema_mode="merge", commit_properties=properties)
        version = delta.version()
        self._seal(name, version)
        return version

    def _checked(self, name: str, where: str) -> list[Problem]:
        return seal.check(self._folder / name, where) if self._folder is not None else []

    def _seal(self, name: str, version: int) -> None:
        if self._folder is not None:
            seal.seal(self._folder / name, version)

    def _unreadable(self, name: str, path: str, size: int, rows: int | None) -> str | None:
        try:
            files, at = pyarrow.fs.PyFileSystem(DeltaStorageHandler(self._uri(name))), path
            info = files.get_file_info(at)
            if info.type != pyarrow.fs.FileType.File:
                return "missing"
            if info.size != size:
                return f"has {info.size} bytes instead of {size}"
            with files.open_input_file(at) as file:
                found = sum(batch.num_rows for batch in pq.ParquetFile(file).iter_batches())
        except (OSError, pa.ArrowException, ValueError) as error:
            return f"cannot be read: {first_line(error)}"
        return f"has {found} rows instead of {rows}" if rows is not None and found != rows else None

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Translate errors of the storage libraries into loopwright's."""
        try:
            yield
        except LoopwrightError:
            raise
        except OSError as error:
            raise Unavailable(f"the lake does not answer: {first_line(error)}") from error
        except (DeltaError, pa.ArrowException) as error:
            what = "cannot be read" if self._folder is not None else "cannot be read or reached"
            raise Damaged(f"table {name} {what}: {first_line(error)}") from error


def newest_first(
    lake: Lake, name: str, column: str, *, columns: Sequence[str], where: Any = None
) -> Iterator[tuple[Any, pa.Table]]:
    """The rows that match in parts (row groups), the parts with the highest value of `column` first; with each part that value.

    By the statistics in the log and in the files: parts that cannot match, or that the caller does not request, are not read.
    """
    dataset = lake.dataset(name)
    with lake._errors(name):
        actions = pa.table(lake._table(name).get_add_actions(flatten=True))
        none = [None] * len(actions)
        highest = actions[f"max.{column}"].to_pylist() if f"max.{column}" in actions.column_names else none
        by_path = {unquote(path): most for path, most in zip(actions["path"].to_pylist(), highest, strict=True)}
        files = [(by_path.get(unquote(f.path)), f) for f in dataset.get_fragments(filter=where)]
        files.sort(key=lambda pair: _known_last(pair[0]), reverse=True)
        for most, file in files:
            groups = file.split_by_row_group(where, schema=dataset.schema)
            for group in sorted(groups, key=lambda g: _known_last(_highest(g, column, most)), reverse=True):
                yield most, group.to_table(columns=list(columns), filter=where, schema=dataset.schema)


def _known_last(value: Any) -> tuple[bool, Any]:
    """A sort key that puts files without statistics last."""
    return value is None, 0 if value is None else value


def _highest(group: Any, column: str, otherwise: Any) -> Any:
    """The highest value of a column in a row group, by its statistics."""
    return group.row_groups[0].statistics.get(column, {}).get("max", otherwise)


def _lawful(name: str) -> bool:
    first, dot, rest = name.partition(".")
    return bool(NAME.fullmatch(name) or (dot and NAME.fullmatch(first) and NAME.fullmatch(rest)))


def _write_stream(name: str, delta: DeltaTable, stream: Stream, properties: CommitProperties) -> None:
    """Append rows from a stream. Exceptions of the stream are raised unchanged, not wrapped in Delta's."""
    schema = fitted_rows(name, stream.schema.empty_table(), table_schema(delta)).schema
    raised: list[BaseException] = []

    def made() -> Iterator[pa.RecordBatch]:
        try:
            for part in stream.batches():
                yield from part.cast(schema).combine_chunks().to_batches()
        except BaseException as error:
            raised.append(error)
            raise

    try:
        rows = pa.RecordBatchReader.from_batches(schema, made())
        write_deltalake(delta, rows, mode="append", schema_mode="merge", commit_properties=properties)
    except Exception:
        if raised:
            raise raised[0] from None
        raise
