"""OpenLineage events of ingestions: the source, the checks of the contract, and the resulting table version."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from loopwright.records.declarations import Table
from loopwright.stores import openlineage
from loopwright.stores.home import Home

F = TypeVar("F", bound=Callable[..., Any])


def emitting(ingest: F) -> F:
    """Decorate `data.ingest.ingestion.ingest` to emit its start and its end."""

    @wraps(ingest)
    def telling(home: Home, table: Table, source: Any, **named: Any) -> Any:
        with home.openlineage.run(f"ingest.{table.name}", kind="INGESTION", about=table.description) as run:
            done = ingest(home, table, source, **named)
            if run.wanted:
                path = Path(source) if isinstance(source, (str, Path)) and Path(source).exists() else None
                _tell(run, home.settings.lake_root, table, path, done)
        return done

    return cast("F", telling)


def _tell(run: openlineage.JobRun, lake: str, table: Table, path: Path | None, done: Any) -> None:
    read = openlineage.source(done.source, done.digest, path)
    made = openlineage.copied(
        openlineage.table(lake, table.name, done.version, table.columns), read, _source_columns(table, done)
    )
    run.inputs.append({**read, "inputFacets": openlineage.judged(done.rows, done.reasons, table.columns)})
    run.outputs.append(openlineage.written(made, 0 if done.already else done.good))


def _source_columns(table: Table, done: Any) -> Mapping[str, str]:
    """The columns that the source had, with their names there."""
    had = {name: column for name, column in table.columns.items() if name not in done.absent and column.filled is None}
    return {name: column.source or name for name, column in had.items()}
