"""The quarantine of a table, `quarantine.TABLE`: rows that break the contract, with the reasons and where they came from."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from loopwright.data.ingest.contract import BAD_SCHEMA
from loopwright.data.ingest.source_reader import OpenSource
from loopwright.stores.home import Home
from loopwright.stores.lake.tables import Stream

QUARANTINE = "quarantine."
QUARANTINE_SCHEMA = pa.schema([("_source", pa.string()), ("_digest", pa.string()), *BAD_SCHEMA])
_IN_MEMORY = 64 << 20


class QuarantineWriter:
    """Bad rows put aside until the good ones are in: in memory, and on disk once they are many."""

    def __init__(self, home: Home) -> None:
        self._folder = home.path
        self._parts: list[pa.Table] = []
        self._file: Any = None
        self.count = 0

    def add(self, opened: OpenSource, *parts: pa.Table) -> None:
        """Put rows (BAD_SCHEMA) of one batch aside, in order of their numbers."""
        bad = pa.concat_tables([p for p in parts if len(p)] or [BAD_SCHEMA.empty_table()]).sort_by("_row")
        if not len(bad):
            return
        self._parts.append(
            pa.table([[opened.name] * len(bad), [opened.digest] * len(bad), *bad.columns], schema=QUARANTINE_SCHEMA)
        )
        self.count += len(bad)
        if sum(p.nbytes for p in self._parts) > _IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - `close` closes it
        with pa.ipc.new_stream(pa.PythonFile(self._file, mode="w"), QUARANTINE_SCHEMA) as stream:
            for part in self._parts:
                stream.write_table(part)
        self._parts.clear()

    def into(self, home: Home, table: str, application: str) -> None:
        """Write the rows to the quarantine of a table, once per `application`, and discard them here."""
        if self.count:
            stream = Stream(QUARANTINE_SCHEMA, self._rows)
            home.lake.append_once(QUARANTINE + table, stream, application=application, sequence=1)
        self.close()

    def _rows(self) -> Iterator[pa.Table]:
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)
            end = self._file.tell()
            self._file.seek(0)
            while self._file.tell() < end:
                for batch in pa.ipc.open_stream(pa.PythonFile(self._file, mode="r")):
                    yield pa.Table.from_batches([batch])
        yield from self._parts

    def close(self) -> None:
        """Discard the collected rows."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._parts, self.count = [], 0
