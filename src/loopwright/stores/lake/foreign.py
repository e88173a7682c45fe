"""Delta tables outside of the lake, which are read and followed as a source."""

from typing import Any, NamedTuple

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from loopwright.base.errors import Damaged, NotFound, Refused, first_line
from loopwright.stores.lake.columns import arrow_dataset


class Foreign(NamedTuple):
    """A Delta table outside of the lake at one version: its own id, that version, and the rows added after an earlier one."""

    id: str
    version: int
    rows: Any


def foreign(uri: str, *, since: int = -1, until: int | None = None) -> Foreign:
    """The rows of a Delta table anywhere (path or URL) that were added after its version `since` (all: -1).

    `until` is the version to read it at (the newest if not given). `rows` is a pyarrow dataset. Raises NotFound when there is no such table, Refused when rows were changed or removed since
    then, or when the table is older than that, Damaged when it cannot be read.
    """
    shown = uri.split("?")[0].rsplit("@", 1)[-1]
    try:
        delta = DeltaTable(uri, version=until)
        identity, version, dataset = (
            str(delta.metadata().id),
            delta.version(),
            delta.to_pyarrow_dataset(
                parquet_read_options=arrow_dataset().ParquetReadOptions(coerce_int96_timestamp_unit="us")
            ),  # Spark's 96 bits: as nanoseconds those after 2262 would be other moments
        )
        if version < since:
            raise Refused(f"the Delta table {shown} is at version {version}; its version {since} was read before")
        return Foreign(identity, version, dataset if since < 0 else _added_since(delta, dataset, since, version, shown))
    except TableNotFoundError:
        raise NotFound("Delta table", shown, next_step="name its folder or URL, the one that holds `_delta_log`") from None
    except (DeltaError, pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"the Delta table {shown} cannot be read: {first_line(error)}") from error


def _added_since(delta: DeltaTable, dataset: Any, since: int, version: int, shown: str) -> Any:
    """The files that commits after `since` added, as a dataset. Compaction moves rows but adds none."""
    operations = {e["version"]: str(e.get("operation", "")) for e in delta.history() if "version" in e}
    fragments = []
    delta.load_as_version(since)
    before = {f.path for f in delta.to_pyarrow_dataset().get_fragments()}
    for number in range(since + 1, version + 1):
        delta.load_as_version(number)
        there = {f.path: f for f in delta.to_pyarrow_dataset().get_fragments()}
        operation = operations.get(number, "")
        if before - set(there) and not operation.startswith("OPTIMIZE"):
            what = f"version {number} ({operation or 'unknown'}) changed or removed rows"
            raise Refused(
                f"the Delta table {shown} cannot be followed: {what}; ingest what it holds now from a copy or a query"
            )
        if not operation.startswith("OPTIMIZE"):
            fragments += [fragment for path, fragment in there.items() if path not in before]
        before = set(there)
    return arrow_dataset().FileSystemDataset(fragments, dataset.schema, dataset.format, dataset.filesystem)
