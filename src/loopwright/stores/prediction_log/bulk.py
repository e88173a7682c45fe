"""Batch predictions of a file: its job in the ledger, and the answers that its rows already have in the log."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.entries import Record
from loopwright.records.prediction import Prediction
from loopwright.sql.engine import sql_engine
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import FIXED, rows, to_prediction
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.segment import table_name


class Predicted(Record, frozen=True, kw_only=True):
    """One file predicted for a loop, under the key of the job (`bulk.job_key`). `begun` is part of the ids of its rows.

    Of `rows`, `logged` are new in the log, `repeated` were answered before, `refused` broke the contract (by reason in `reasons`) and
    `unlogged` were answered while the log could not be written, if the loop is declared to serve anyway. `flags` counts rows by
    flag, `ignored` are columns of the file that the contract does not have, `first_refused` is the first row that was refused.
    The file was read as `encoding`, where it is text and not UTF-8.
    """

    kind: ClassVar[str] = "predicted"
    loop: str
    file: str
    digest: str
    begun: datetime
    package: str
    out: str = ""
    rows: int = 0
    logged: int = 0
    repeated: int = 0
    refused: int = 0
    unlogged: int = 0
    reasons: dict[str, int] = {}
    flags: dict[str, int] = {}
    ignored: list[str] = []
    first_refused: int = 0
    encoding: str = ""

    @property
    def ok(self) -> bool:
        """Whether every row was answered and logged."""
        return not self.refused and not self.unlogged


class Before(NamedTuple):
    """Earlier state of a row of a file: the first row of the file with the same id, and the answer in the log, if any."""

    first: int
    answer: Prediction | None


class EarlierRows:
    """Walks along the rows of a file that were answered before, or repeat an id, in order of the rows."""

    def __init__(self, rows: Iterator[tuple[int, Before]]) -> None:
        self._found, self._next = rows, deque[tuple[int, Before]]()

    def upto(self, row: int) -> dict[int, Before]:
        """Read the next answers, up to a row; for an answer that was logged twice, the first."""
        taken: dict[int, Before] = {}
        while True:
            if not self._next and (found := next(self._found, None)) is not None:
                self._next.append(found)
            if not self._next or self._next[0][0] > row:
                return taken
            number, before = self._next.popleft()
            taken.setdefault(number, before)


@contextmanager
def earlier(home: Home, loop: str, ids: Iterator[Any], request: list[str], since: datetime | None) -> Iterator[EarlierRows]:
    """Find the rows of a file (`ids`: tables of `_row`, `_id`) that have an answer in the log made after `since`.

    The log is moved to Delta first. Rows and answers are joined in the SQL engine, in bounded memory.
    """
    commit(home, loop)
    name, fixed = table_name("predictions", loop), FIXED["predictions"]
    log: Any = fixed.empty_table()
    if home.lake.exists(name):
        dataset = home.lake.dataset(name)
        columns = [c for c in [*fixed.names, "_values", *request] if c in dataset.schema.names]
        late = None if since is None else pc.field("_at") >= pa.scalar(since, pa.timestamp("us", "UTC"))
        log = dataset.scanner(columns=columns, filter=late)
    with sql_engine(home, ordered=False) as database:
        database.execute("CREATE TABLE wanted (_row BIGINT, _id VARCHAR)")
        for some in ids:  # not as one stream: the engine would wrap errors of reading the file in its own
            database.register("rows", some)
            database.execute("INSERT INTO wanted SELECT _row, _id FROM rows")
        database.register("log", log)
        found = database.sql(
            "WITH w AS (SELECT _row, _id, min(_row) OVER (PARTITION BY _id) AS _first FROM wanted) "
            "SELECT w._row, w._first, l.* FROM w LEFT JOIN log l ON l._id = w._id "
            "WHERE l._id IS NOT NULL OR w._first <> w._row ORDER BY w._row, l._at"
        )

        def walk() -> Iterator[tuple[int, Before]]:
            for batch in found.to_arrow_reader(10_000):
                for row in rows(pa.Table.from_batches([batch])):
                    sent = [c for c in request if c in row]
                    answer = None if row["_id"] is None else to_prediction(row, sent, ())
                    yield row["_row"], Before(row["_first"], answer)

        yield EarlierRows(walk())
