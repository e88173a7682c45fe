"""Lazy sources, which compute their rows on request: polars LazyFrames, and pyarrow datasets and scanners.

They are read twice, once for the digest and once for the rows, and never held as a whole.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from loopwright.base.errors import IngestRefused, first_line
from loopwright.data.ingest.plain import plain
from loopwright.data.ingest.source_reader import Batches, Digest, OpenSource, sliced

_ROWS = 65_536
"""Rows of a part: always the same, because the digest depends on it."""


def is_dataset(source: Any, *kinds: str) -> bool:
    """Whether `source` is one of pyarrow.dataset's classes. Checks only loaded modules: importing that one loads pandas."""
    module = sys.modules.get("pyarrow.dataset")
    return module is not None and isinstance(source, tuple(getattr(module, kind) for kind in kinds))


def open_lazy(source: Any, name: str) -> OpenSource:
    """Open a polars LazyFrame, or a pyarrow dataset or scanner.

    Raises IngestRefused where it cannot be read, also while its batches are read, and at their end where they differ from the first reading.
    """
    if is_dataset(source, "Dataset"):
        _refuse_wrapping(source, name)
    first = Digest()
    count = sum(len(table) for table in first.passing(_tables(source, name)))
    digest = first.hexdigest()

    def batches() -> Batches:
        again = Digest()
        yield from sliced(again.passing(_tables(source, name)), lambda done: done / max(count, 1))
        if again.hexdigest() != digest:
            raise IngestRefused(name, "its second reading gave other rows, or another order: sort it, or write it to a file")

    return OpenSource(name, digest, batches)


def _tables(source: Any, name: str) -> Iterator[pa.Table]:
    """The rows in parts of _ROWS rows; one empty part without rows."""
    try:
        waiting = [_bare(_empty(source))]
        for part in _parts(source):
            waiting.append(_bare(pa.Table.from_batches([part]) if isinstance(part, pa.RecordBatch) else pa.table(part)))
            while sum(len(table) for table in waiting) >= _ROWS:
                whole = pa.concat_tables(waiting).combine_chunks()
                yield _compact(whole.slice(0, _ROWS))
                waiting = [whole.slice(_ROWS)]
        yield _compact(pa.concat_tables(waiting))
    except IngestRefused:
        raise
    except Exception as error:  # each library of frames raises kinds of its own
        raise IngestRefused(name, f"it cannot be read ({first_line(error)})") from error


def _bare(table: pa.Table) -> pa.Table:
    """Plain types without metadata: numbers of Parquet's fields are in it, and the digest must not depend on the kind of file."""
    table = plain(table)
    return pa.table(table.columns, schema=pa.schema([field.remove_metadata() for field in table.schema]))


def _compact(table: pa.Table) -> pa.Table:
    """Copy the rows into buffers of exactly their size: otherwise bytes behind the slice are written and digested too."""
    return table.combine_chunks().take(pa.array(range(len(table)), pa.int64()))


def _parts(source: Any) -> Iterator[Any]:
    if is_dataset(source, "Dataset"):
        yield from source.to_batches(batch_size=_ROWS)
    elif is_dataset(source, "Scanner"):
        yield from source.to_batches()
    else:
        yield from source.collect_batches(chunk_size=_ROWS)


def _empty(source: Any) -> pa.Table:
    """No rows, with the columns that the source has."""
    if is_dataset(source, "Dataset"):
        return source.schema.empty_table()
    if is_dataset(source, "Scanner"):
        return source.projected_schema.empty_table()
    return pa.table(source.head(0).collect())


def _refuse_wrapping(dataset: Any, name: str) -> None:
    """Refuse Parquet times of 96 bits (Spark's) read as nanoseconds: those after 2262 come out as other moments."""
    for fragment in dataset.get_fragments():
        options = getattr(getattr(fragment, "format", None), "read_options", None)
        if getattr(options, "coerce_int96_timestamp_unit", None) != "ns":
            continue
        columns = fragment.metadata.schema
        if any(columns.column(i).physical_type == "INT96" for i in range(len(columns))):
            how = 'ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(coerce_int96_timestamp_unit="us"))'
            raise IngestRefused(
                name, f"its INT96 times are read as nanoseconds, which end in 2262: give its path, or format={how}"
            )
