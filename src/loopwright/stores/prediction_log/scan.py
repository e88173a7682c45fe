"""Large logs as streams: SQL over the committed rows of a log without having them in memory, and the rows of a sample of its units."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.sql.engine import quoted, sql_engine, text
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import FIXED
from loopwright.stores.prediction_log.read import KIND, between, first_of_each
from loopwright.stores.prediction_log.segment import table_name

_READ_AHEAD = {"batch_readahead": 4, "fragment_readahead": 2}
"""Enough for two processors; more is only memory."""


class UnitSample(NamedTuple):
    """One of 2^`halvings` units: those whose hash, keyed with `salt`, is small, so that the units of more halvings are among those of fewer.

    A unit is the value of the request column `column`; the key where that is empty.
    """

    column: str
    salt: str
    halvings: int

    @property
    def columns(self) -> list[str]:
        """What must be read to tell the unit of a row."""
        return ["_unit", "_at", *([self.column] if self.column else [])]

    def hash_sql(self, names: Sequence[str]) -> str:
        """The hash of a row's unit, as a number of 64 bits; a row without one is its own. `names` are the columns of the log."""
        salt = text(self.salt)  # hashed once more: the engine combines two hashes by XOR, which would keep or exchange halves
        key = f"hash(hash(_unit, {salt}))"
        if self.column not in names:
            return key
        column = quoted(self.column)
        return f"CASE WHEN {column} IS NULL THEN hash(hash(_unit, _at, {salt})) ELSE hash(hash({column}, {salt})) END"

    def where_sql(self, names: Sequence[str]) -> str:
        """Whether a row is of the sample."""
        return f"({self.hash_sql(names)}) < {2 ** (64 - self.halvings)}" if self.halvings else "true"


class LogPart(NamedTuple):
    """Rows of some arms (None: all), some of their columns (None: all), of a sample of the units, which needs `columns` (None: of all units)."""

    arms: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    sample: UnitSample | None = None


WHOLE = LogPart()
"""The whole log."""


@contextmanager
def committed(
    home: Home, loop: str, *, kind: str = KIND, columns: Sequence[str] | None = None, where: Any = None, **tables: pa.Table
) -> Iterator[tuple[Any, list[str]]]:
    """A database in which the table `log` has the committed rows of a loop's log, and the names of its columns; `log` is read once.

    `columns` picks some (unknown ones are left out), `where` is an Arrow expression. The names are empty, and there is no `log`, where
    nothing was committed.
    """
    name = table_name(kind, loop)
    with sql_engine(home, ordered=False) as database:
        for other, table in tables.items():
            database.register(other, table)
        names: list[str] = []
        if home.lake.exists(name):
            dataset = home.lake.dataset(name)
            names = [n for n in dataset.schema.names if columns is None or n in columns]
            database.register("log", dataset.scanner(columns=names, filter=where, **_READ_AHEAD).to_reader())
        yield database, names


def sampled(
    home: Home,
    loop: str,
    sample: UnitSample,
    *,
    start: datetime,
    end: datetime,
    columns: Sequence[str],
    arms: Sequence[str] | None = None,
) -> pa.Table:
    """The committed predictions of a sample's units; else as `stores.prediction_log.read.predictions`."""
    wanted, where = ["_id", *columns], between(start, end, arms)
    with committed(home, loop, columns=[*wanted, *sample.columns], where=where) as (database, names):
        picked = ", ".join(quoted(name) for name in names if name in wanted)
        found = database.sql(
            f"SELECT {picked} FROM log WHERE {sample.where_sql(names)}"  # noqa: S608 - columns of the log, quoted
        ).to_arrow_table()
    return first_of_each(found)


def outcomes_of(home: Home, loop: str, predictions: pa.Table, *, since: datetime, known_by: datetime) -> pa.Table:
    """The committed outcomes of some predictions (`_id`, `_unit`), repetitions too, that became known in [since, known_by]."""
    where = between(since, None, column="_known_at") & (
        pc.field("_known_at") <= pa.scalar(known_by, pa.timestamp("us", tz="UTC"))
    )
    with committed(home, loop, kind="outcomes", where=where, asked=predictions.select(["_id", "_unit"])) as (database, names):
        if not names:
            return FIXED["outcomes"].empty_table()
        found: pa.Table = database.sql(
            "SELECT * FROM log WHERE _prediction IN (SELECT _id FROM asked) "
            "OR (_prediction = '' AND _unit IN (SELECT _unit FROM asked))"
        ).to_arrow_table()
    return found


def known_outcomes(home: Home, loop: str, *, since: datetime, known_by: datetime) -> int:
    """Number of committed outcomes that became known in [since, known_by]."""
    name, last = table_name("outcomes", loop), pa.scalar(known_by, pa.timestamp("us", tz="UTC"))
    if not home.lake.exists(name):
        return 0
    where = between(since, None, column="_known_at") & (pc.field("_known_at") <= last)
    return int(home.lake.dataset(name).count_rows(filter=where))
