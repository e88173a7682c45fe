"""What was served against what training finds: the context of logged requests, joined again as of the moment of each.

Both are computed by the same SQL (`data.examples.asof`), so they differ only where serving did not have what it should have had: rows of a
table that arrived later than their known time says, a feed that stood still, an online table that lost something. A model that is trained
on the one and served with the other is worse than its evaluation says (training-serving skew; Sculley et al. 2015, Hidden technical debt in
machine learning systems).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import PackageNotFound, PackageRefused
from loopwright.data.examples import asof
from loopwright.graph.columns import as_declared
from loopwright.records.declarations import Loop
from loopwright.sql.engine import quoted, sql_engine
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.read import predictions

MAX_ROWS = 10_000
"""Of so many of the newest requests the context is joined again."""

RELATIVE = 1e-9
"""Numbers that differ by no more than this share are alike: sums may be added in another order."""


class Twice(NamedTuple):
    """The same N requests with their context as it was served and as training joins it; `differs` says of each context column where [N].

    It is null for a request that a package answered which did not have the column. `not_compared` says why a column is left out.
    """

    served: pa.Table
    joined: pa.Table
    differs: Mapping[str, pa.BooleanArray]
    tables: Mapping[str, str]
    not_compared: Mapping[str, str]


def served_and_joined(home: Home, loop: Loop, *, start: datetime, end: datetime) -> Twice:
    """The newest requests answered from `start` to `end`, with both contexts. Rows of files are left out: they are joined, not served."""
    joins = asof.joined(loop.context, list(loop.aggregates))
    wanted = list(loop.columns)
    log = predictions(home, loop.name, start=start, end=end, columns=["_id", "_at", "_package", "_of_file", *wanted])
    if "_of_file" in log.column_names:
        log = log.filter(pc.invert(pc.fill_null(log["_of_file"], False)))
    log = log.take(pc.sort_indices(log, [("_at", "descending")]).slice(0, MAX_ROWS))
    absent = {name: "no request was served with it yet" for name in loop.context_columns if name not in log.column_names}
    log = as_declared(log, loop.columns)
    columns, differs, tables = {name: log[name] for name in wanted}, dict[str, Any](), dict[str, str]()
    if log.num_rows:
        with sql_engine(home, ordered=False) as database:
            database.register("logged", log.append_column("_row", pa.array(range(log.num_rows))))
            us = [int(pc.min(log["_at"].cast(pa.int64())).as_py()), int(pc.max(log["_at"].cast(pa.int64())).as_py())]
            database.execute("CREATE TEMP TABLE asked AS SELECT *, epoch_us(_at) AS _us FROM logged")
            for joined in joins:
                table = joined.table.name
                if not home.lake.exists(table):
                    absent |= dict.fromkeys(joined.need.columns, f"table {table} has no rows")
                    continue
                for name, again, differ in _again(home, database, joined, us):
                    served = _served(home, log["_package"], name)
                    columns[name], tables[name] = again, table
                    differs[name] = pc.if_else(served, differ, pa.scalar(None, pa.bool_()))
    compared = {name: differ for name, differ in differs.items() if name not in absent}
    return Twice(log, pa.table({**columns}), compared, tables, absent)


def _served(home: Home, packages: Any, column: str) -> Any:
    """Whether each request was answered by a package that has the column [N]; of one that is gone nobody knows."""
    had = []
    for package in pc.unique(packages).to_pylist():
        with suppress(PackageNotFound, PackageRefused):
            if any(column in need.columns for need in home.packages.manifest(package).context):
                had.append(package)
    return pc.is_in(packages, pa.array(had, pa.string())).combine_chunks()


def _again(home: Home, database: Any, joined: asof.Joined, us: Sequence[int]) -> list[tuple[str, Any, Any]]:
    """Each column of a join as training finds it, and where that is not what was served, in the order of the log."""
    data = home.lake.dataset(joined.table.name, home.lake.version(joined.table.name), order=asof.ORDER)
    asof.create(database, "steps", joined, data, since=us[0], known_by=us[1])
    found = asof.values("steps", joined)
    taken = ", ".join(f"{sql} AS again_{i}, d.{quoted(n)} AS served_{i}" for i, (n, sql) in enumerate(found.items()))
    alike = [_alike(f"again_{i}", f"served_{i}", number=joined.need.columns[n].type == "float") for i, n in enumerate(found)]
    differ = ", ".join(f"NOT ({sql}) AS differs_{i}" for i, sql in enumerate(alike))
    rows = database.sql(
        f"SELECT *, {differ} FROM (SELECT d._row, {taken} FROM {asof.asof('asked', [('steps', joined)])}) ORDER BY _row"  # noqa: S608 - names of ours, and declared columns, quoted
    ).to_arrow_table()
    database.execute("DROP TABLE steps")
    return [(n, rows[f"again_{i}"], rows[f"differs_{i}"].combine_chunks()) for i, n in enumerate(found)]


def _alike(one: str, other: str, *, number: bool) -> str:
    """SQL for whether two values are the same, nulls alike; numbers within RELATIVE."""
    same = f"{one} IS NOT DISTINCT FROM {other}"
    if not number:
        return same
    return f"({same} OR coalesce(abs({one} - {other}) <= {RELATIVE} * greatest(abs({one}), abs({other})), false))"
