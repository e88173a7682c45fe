"""Sources that grow, read on from where the last ingestion stopped: by a watermark column, or by the versions of a Delta table.

The position that a table has reached is in its `Ingested` records. Each step is exactly-once: its Delta application transaction is
named by its start, so of two concurrent steps from the same start one wins, and a note in that commit has its end.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import IngestRefused, UsageError
from loopwright.base.moment import EARLIEST
from loopwright.data.ingest.source_reader import BATCH_ROWS, Batch, Batches, OpenSource, sliced
from loopwright.data.ingest.values import flags, read
from loopwright.graph.columns import ARROW_TYPES
from loopwright.records.declarations import Column, Table
from loopwright.stores.lake.foreign import foreign

_COMPARED = ("integer", "float", "timestamp", "string")


class Followed(NamedTuple):
    """One step of an incremental source: what it follows, the start position (empty: the beginning) and the end position.

    `upto` returns the rows between `since` and another position, where an interrupted ingestion had stopped.
    """

    follows: str
    since: str
    reached: str
    upto: Callable[[str], OpenSource]


def by_version(uri: str, since: str) -> Followed:
    """The rows that a Delta table (path or URL) gained after its version `since`. Raises as `lake.foreign` does."""
    found = foreign(uri, since=int(since) if since else -1)
    name = f"Delta table {uri.split('?')[0].rstrip('/').rsplit('/', 1)[-1]}"

    def upto(reached: str) -> OpenSource:
        part = foreign(uri, since=int(since) if since else -1, until=int(reached))
        digest = hashlib.sha256(f"{part.id}:{since}:{reached}".encode()).hexdigest()
        return OpenSource(f"{name}@{reached}", digest, lambda: _fragments(part.rows))

    return Followed(f"delta:{found.id}", since, str(found.version), upto)


def identity(uri: str) -> str:
    """The identity under which `by_version` follows a Delta table."""
    return f"delta:{foreign(uri).id}"


def _fragments(dataset: Any) -> Batches:
    total = max(dataset.count_rows(), 1)
    parts = (pa.Table.from_batches([part]) for part in dataset.to_batches(batch_size=BATCH_ROWS))
    return sliced(parts, lambda done: done / total, dataset.schema)


def by_watermark(table: Table, column: str, since: str, opened: OpenSource) -> Followed:
    """The rows of a source whose `column` is above `since`; also unreadable values, which go to quarantine.

    Raises UsageError when the table has no such column, or one without an order.
    """
    declared = table.columns.get(column)
    if declared is None or declared.type not in _COMPARED or declared.filled:
        usable = [n for n, c in table.columns.items() if c.type in _COMPARED and not c.filled]
        raise UsageError(f"{column!r} cannot be a watermark of table {table.name!r}: {', '.join(usable)} can")
    low = scalar(declared, since)
    highest = low
    for batch in opened.batches():
        most = pc.max(_values(column, declared, opened.name, batch))
        if most.is_valid and (highest is None or pc.greater(most, highest).as_py()):
            highest = most
    reached = since if highest is None else text(highest)

    def upto(reached: str) -> OpenSource:
        digest = hashlib.sha256(f"{opened.digest}:{column}:{since}:{reached}".encode()).hexdigest()
        high = scalar(declared, reached)
        return opened._replace(digest=digest, batches=lambda: _between(column, declared, opened, low, high))

    return Followed(f"watermark:{column}", since, reached, upto)


def _between(column: str, declared: Column, opened: OpenSource, low: Any, high: Any) -> Batches:
    for batch in opened.batches():
        values = _values(column, declared, opened.name, batch)
        wanted = pc.is_null(values)
        above = pc.is_valid(values) if low is None else pc.greater(values, low)
        within = above if high is None else pc.and_(above, pc.less_equal(values, high))
        kept = flags(pc.or_kleene(wanted, pc.fill_null(within, False)))
        yield batch._replace(frame=batch.frame.filter(pa.array(kept)), rows=batch.rows[kept])


def _values(name: str, declared: Column, source: str, batch: Batch) -> pa.ChunkedArray:
    written = declared.source if declared.source in batch.frame.column_names else name
    if written not in batch.frame.column_names:
        raise IngestRefused(source, f"it has no column {written!r}, which is the watermark")
    return read(declared, batch.frame[written]).values


def scalar(declared: Column, reached: str) -> Any:
    """A recorded watermark as a value of its column; None from the beginning."""
    if not reached:
        return None
    kind = pa.int64() if declared.type == "timestamp" else ARROW_TYPES[declared.type]
    return pa.scalar(reached).cast(kind).cast(ARROW_TYPES[declared.type])


def text(value: Any) -> str:
    """A value of a watermark as it is recorded: a timestamp in microseconds since 1970."""
    value = value.cast(pa.int64()) if pa.types.is_timestamp(value.type) else value
    return str(value.as_py())


def parameter(declared: Column, reached: str) -> Any:
    """A watermark as a parameter of a query; from the beginning, a value below all others."""
    if reached:
        return scalar(declared, reached).as_py()
    return {"integer": -(2**63), "float": -1.7e308, "timestamp": EARLIEST, "string": ""}[declared.type]
