"""Ingest several sources (files, folders, globs, Delta tables, a query) into one table, in order."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from loopwright.base.errors import UsageError
from loopwright.base.progress import Progress, Silent
from loopwright.data.ingest import following, outcomes
from loopwright.data.ingest.ingestion import ingest, ingested, reached
from loopwright.data.ingest.quarantine import mend
from loopwright.data.ingest.query import open_query
from loopwright.data.ingest.source import AS_DETECTED, expand, open_source
from loopwright.data.ingest.source_reader import Reading
from loopwright.records.declarations import Table, recorded_loop
from loopwright.records.ingestions import Ingested
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home


def bring(
    home: Home,
    table: Table,
    sources: Sequence[str],
    *,
    watermark: str = "",
    reading: Reading = AS_DETECTED,
    progress: Progress | None = None,
) -> list[Ingested]:
    """Ingest sources in the order given, the files of a folder or glob in order of their names; see `ingest`.

    A folder with a Delta table in it, or a URL, is read on from the version that was read before. Raises FileMissing when
    there is no such file, IngestRefused at the first source that is refused; those before it stay.
    """
    if not sources:
        raise UsageError(f"table {table.name!r}: name at least one file")
    progress = progress or Silent()
    known = ingested(home, table.name)

    def one_file(file: Path, name: str) -> Ingested:
        opened = open_source(file, name, reading)
        return ingest(home, table, opened, watermark=watermark, known=known, progress=progress)

    steps: list[Callable[[], Ingested]] = []
    for source in sources:
        if "://" in source or (Path(source) / "_delta_log").is_dir():
            steps.append(partial(_delta, home, table, source, known, progress))
        else:
            steps += [partial(one_file, file, name) for file, name in _files(source)]
    done: list[Ingested] = []
    for number, step in enumerate(steps, 1):
        done.append(step())
        if len(steps) > 1:
            progress.advance("sources", number, len(steps))
    return done


def _files(source: str) -> list[tuple[Path, str]]:
    """List the files of a source; files of a folder are named relative to it."""
    folder = Path(source)
    return [(f, str(f.relative_to(folder)) if folder.is_dir() else f.name) for f in expand(source)]


def _delta(home: Home, table: Table, uri: str, known: dict[str, Ingested], progress: Progress) -> Ingested:
    since = reached(known, following.identity(uri))
    return ingest(home, table, following.by_version(uri, since), known=known, progress=progress)


def bring_query(
    home: Home, table: Table, url: str, query: str, *, watermark: str = "", progress: Progress | None = None
) -> Ingested:
    """Ingest the result of a query; in it `:watermark` is the value reached so far. See `query.open_query`."""
    low = None
    if watermark and watermark in table.columns:
        low = following.parameter(table.columns[watermark], reached(ingested(home, table.name), f"watermark:{watermark}"))
    elif ":watermark" in query:
        raise UsageError("the query uses :watermark: name its column with --watermark")
    with open_query(url, query, home.path, watermark=low) as opened:
        return ingest(home, table, opened, watermark=watermark, progress=progress)


def bring_mended(home: Home, table: Table, sources: Sequence[str], reading: Reading = AS_DETECTED) -> list[Ingested]:
    """Re-ingest mended rows of the table's quarantine into their destination: the table, or the outcomes of a loop.

    Without sources, retry the quarantined rows as they are. See `quarantine.mend` and `outcomes.mend`.
    """
    records = (e.record for e in home.ledger.newest(LoopRecord, per="loop"))
    loops = [recorded_loop(r) for r in records if r.declaration["outcome"]["table"]["name"] == table.name]
    done: list[Ingested] = []
    files: list[Path | None] = [f for source in sources for f in expand(source)]
    for file in files or [None]:
        of_loops = [outcomes.mend(home, loop, table, file, reading) for loop in loops]
        here = mend(home, table, file, reading)
        done += [r for r in of_loops if r] + ([here] if here.rows or not any(of_loops) else [])
    return done
