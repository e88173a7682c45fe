"""Rows out of an SQL database by URL, streamed. The only door to databases that are not the ledger.

The result is buffered on disk while its digest is computed: the database connection is closed early, and the same result again adds
nothing.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import sqlalchemy as sa

from loopwright.base.errors import IngestRefused, first_line
from loopwright.data.ingest.source import as_text
from loopwright.data.ingest.source_reader import Batches, Hasher, OpenSource, sliced

_ROWS = 20_000
WATERMARK = "watermark"


@contextmanager
def open_query(url: str, query: str, folder: Path, *, watermark: Any = None, name: str = "") -> Iterator[OpenSource]:
    """Run `query` on the database at `url` (as SQLAlchemy writes it: `postgresql://...`, `sqlite:///file.db`) and open the answer.

    In the query `:watermark` stands for `watermark`. The result is in an unnamed file in `folder` while the context is open. Raises IngestRefused
    when the database cannot be reached or refuses the query; the URL's password is never shown.
    """
    shown = name or "a query"
    try:
        engine = sa.create_engine(_with_driver(url))
    except (sa.exc.ArgumentError, ImportError, ValueError) as error:
        raise IngestRefused(
            shown,
            f"--from-url is not a database URL such as postgresql://user@host/shop or sqlite:///shop.db: {_without_secrets(error, url)}",
        ) from error
    _refuse_missing(engine.url, shown)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        aside = _Answer(file)
        _ask(engine, url, query, watermark, aside, shown)
        yield OpenSource(shown, aside.hasher.sha256.hexdigest(), aside.batches)


def _ask(engine: sa.Engine, url: str, query: str, watermark: Any, aside: "_Answer", shown: str) -> None:
    try:
        with engine.connect() as connection:
            given = {WATERMARK: watermark} if f":{WATERMARK}" in query else {}
            answer = connection.execution_options(stream_results=True, max_row_buffer=_ROWS).execute(sa.text(query), given)
            names = list(answer.keys())
            if repeated := sorted({n for n in names if names.count(n) > 1}):
                raise IngestRefused(shown, f"it selects several columns called {', '.join(repeated)}: name each with AS")
            for rows in answer.partitions(_ROWS):
                aside.add(pa.table({n: _column([row[i] for row in rows]) for i, n in enumerate(names)}))
            if not aside.count:
                aside.add(pa.table({n: pa.nulls(0) for n in names}))
    except (sa.exc.SQLAlchemyError, pa.ArrowException) as error:
        raise IngestRefused(shown, f"the database says: {_without_secrets(error, url)}") from error
    finally:
        engine.dispose()


def _refuse_missing(url: sa.URL, shown: str) -> None:
    """SQLite would begin a new, empty database where the file is not there. Raises IngestRefused."""
    file = url.database or ""
    if (
        url.get_backend_name() == "sqlite"
        and file not in ("", ":memory:")
        and not file.startswith("file:")
        and not Path(file).exists()
    ):
        raise IngestRefused(shown, f"there is no file {file}")


def _with_driver(url: str) -> sa.URL:
    found = sa.make_url(url)
    return found.set(drivername="postgresql+psycopg") if found.drivername in ("postgresql", "postgres") else found


def _without_secrets(error: BaseException, url: str) -> str:
    """The error's message without the passwords in the URL."""
    said = first_line(getattr(error, "orig", None) or error)
    try:
        found = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return "it cannot be read" if url else "it is empty"
    secrets = [found.password, *(v for k, v in found.query.items() if "pass" in k.lower() or "key" in k.lower())]
    for secret in (s for s in secrets if s):
        said = said.replace(str(secret), "***")
    return said


def _column(values: list[Any]) -> pa.Array:
    """Values [N] of one type as Arrow infers it, exact decimals as decimals; mixed types as text."""
    if any(isinstance(v, memoryview) for v in values):
        values = [bytes(v) if isinstance(v, memoryview) else v for v in values]
    if any(isinstance(v, UUID) for v in values):
        values = [str(v) if isinstance(v, UUID) else v for v in values]
    if any(isinstance(v, datetime) and v.tzinfo for v in values):
        values = [v.astimezone(UTC) if isinstance(v, datetime) and v.tzinfo else v for v in values]
    if any(isinstance(v, Decimal) and not v.is_finite() for v in values):
        values = [float(v) if isinstance(v, Decimal) else v for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return as_text([v if v is None or isinstance(v, (int, float, bool, str)) else str(v) for v in values])


class _Answer:
    """Batches put aside in a file, each with a schema of its own, as a database may give a column two types."""

    def __init__(self, file: Any) -> None:
        self._file, self.count, self._total = file, 0, 0
        self.hasher = Hasher()

    def add(self, part: pa.Table) -> None:
        for target in (pa.PythonFile(self._file, mode="w"), pa.PythonFile(self.hasher, mode="w")):
            with pa.ipc.new_stream(target, part.schema) as stream:
                stream.write_table(part)
        self.count += 1
        self._total += len(part)

    def batches(self) -> Batches:
        self._file.seek(0)
        parts = (pa.ipc.open_stream(pa.PythonFile(self._file, mode="r")).read_all() for _ in range(self.count))
        yield from sliced(parts, lambda done: done / max(self._total, 1))
