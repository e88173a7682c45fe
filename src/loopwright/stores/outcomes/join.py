"""Outcomes: the truth about predictions, as it arrived; joined by prediction id, else by unit.

An outcome may come twice, contradict an earlier one, come before its prediction or long after it, or never: each of these
is a state that is counted (`states`), not an error. All that arrived is kept with its provenance; where outcomes of one
prediction contradict each other the one that became known last is the truth (rule `last`), then the one received last.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import DeclarationInvalid
from loopwright.graph.columns import as_declared
from loopwright.records.declarations import Outcome, duration
from loopwright.records.prediction import OutcomeRow, OutcomeStates, Prediction
from loopwright.sql.engine import SqlError, quoted, sql_engine
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import rows, to_outcome
from loopwright.stores.prediction_log.read import first_of_each, predictions, stored
from loopwright.tasks.label import label_sql, label_type

_TIME = pa.timestamp("us", tz="UTC")


def outcomes(home: Home, loop: str, *, since: datetime | None = None, known_by: datetime | None = None) -> pa.Table:
    """The outcomes of a loop that became known in [since, known_by] (None: at any time), repetitions left out, contradictions kept.

    `_id, _prediction, _unit, _known_at, _received_at, _provenance`, then the columns of the outcome table. Timestamps are
    UTC with microseconds. Empty, with the fixed columns, when none ever came.
    """
    where = pc.scalar(True) if since is None else pc.field("_known_at") >= pa.scalar(since, _TIME)
    where = where if known_by is None else where & (pc.field("_known_at") <= pa.scalar(known_by, _TIME))
    return unrepeated(stored(home, "outcomes", loop, where=where, repeated=True))


def unrepeated(table: pa.Table) -> pa.Table:
    """Outcomes without those that repeat the one known before them of the same prediction or unit.

    An outcome that returns after a contradicting one is no repetition: it is the newest truth.
    """
    if pc.count_distinct(table["_id"]).as_py() == table.num_rows:
        return table
    table = table.sort_by([("_known_at", "ascending"), ("_received_at", "ascending")])
    before: dict[tuple[str, str], str] = {}
    new = []
    for i, (prediction, unit, id) in enumerate(
        zip(*(table[n].to_pylist() for n in ("_prediction", "_unit", "_id")), strict=True)
    ):
        if before.get((prediction, unit)) != id:
            new.append(i)
        before[prediction, unit] = id
    return table.take(pa.array(new, pa.int64()))


def join(home: Home, predictions: pa.Table, outcomes: pa.Table, outcome: Outcome, *, known_by: datetime) -> pa.Table:
    """`predictions` [N rows, same order] with `_truth` (the label, null while pending) and `_known_at` (when it became known).

    `predictions` needs `_id` and `_unit`; `outcomes` is as `outcomes` returns it; only what was known at `known_by` counts.
    An outcome with a prediction id belongs to that prediction, one without to every prediction of its unit. The label's type is
    that of the task (see `tasks.label`). Raises DeclarationInvalid when it cannot be evaluated.
    """
    known, type = outcomes.filter(pc.field("_known_at") <= pa.scalar(known_by, _TIME)), label_type(outcome)
    if not known.num_rows:
        nulls = pa.nulls(predictions.num_rows, type), pa.nulls(predictions.num_rows, _TIME)
        return predictions.append_column("_truth", nulls[0]).append_column("_known_at", nulls[1])
    best = pa.table(
        {
            "prediction": known["_prediction"],
            "unit": known["_unit"],
            "known_at": known["_known_at"].cast(pa.int64()),
            "received_at": known["_received_at"].cast(pa.int64()),
            "id": known["_id"],
            "truth": _truth(home, known, outcome),
        }
    )
    asked = pa.table(
        {"id": predictions["_id"], "unit": predictions["_unit"], "row": pa.array(range(predictions.num_rows), pa.int64())}
    )
    with _database(home, asked=asked, best=best) as database:
        found = database.sql(_JOIN).to_arrow_table()
    return predictions.append_column("_truth", found["truth"].cast(type)).append_column(
        "_known_at", found["known_at"].cast(_TIME)
    )


_JOIN = """
    WITH by_id AS (
        SELECT prediction, arg_max({'truth': truth, 'known_at': known_at}, (known_at, received_at, id)) AS newest
        FROM best WHERE truth IS NOT NULL AND prediction <> '' GROUP BY prediction
    ), by_unit AS (
        SELECT unit, arg_max({'truth': truth, 'known_at': known_at}, (known_at, received_at, id)) AS newest
        FROM best WHERE truth IS NOT NULL AND prediction = '' AND unit <> '' GROUP BY unit
    )
    SELECT coalesce(by_id.newest, by_unit.newest).truth AS truth, coalesce(by_id.newest, by_unit.newest).known_at AS known_at
    FROM asked LEFT JOIN by_id ON asked.id = by_id.prediction LEFT JOIN by_unit ON asked.unit = by_unit.unit
    ORDER BY asked.row
"""


def of_prediction(home: Home, loop: str, prediction: Prediction, outcome: Outcome) -> tuple[Any, OutcomeRow] | None:
    """The truth about one prediction (its label) and the outcome that says so; None while it is pending."""
    whose = (pc.field("_prediction") == prediction.id) | (pc.field("_unit") == prediction.unit)
    table = unrepeated(stored(home, "outcomes", loop, where=whose, repeated=True))
    own = pc.field("_prediction") == prediction.id
    for where in (own, pc.field("_prediction") == ""):
        found = table.filter(where)
        truth = _truth(home, found, outcome)
        found = found.append_column("__truth", truth).filter(pc.is_valid(truth))
        if found.num_rows:
            newest = found.sort_by([(name, "descending") for name in ("_known_at", "_received_at", "_id")]).slice(0, 1)
            return newest["__truth"][0].as_py(), to_outcome(rows(newest)[0])
    return None


def states(home: Home, loop: str, outcome: Outcome, now: datetime, event_time: str = "") -> OutcomeStates:
    """Count the states of a loop's predictions and outcomes at `now`. Raises as `join`.

    `event_time` is the request column that dates the rows of files.
    """
    asked = predictions(home, loop, columns=["_id", "_at", "_unit", "_of_file", event_time])
    if "_of_file" in asked.column_names and event_time in asked.column_names:
        event = asked[event_time].cast(_TIME)
        earlier = pc.fill_null(pc.and_(asked["_of_file"], pc.less(event, asked["_at"])), False)
        asked = asked.append_column("_decided", pc.if_else(earlier, event, asked["_at"]))
    else:
        asked = asked.append_column("_decided", asked["_at"])
    delivered = stored(home, "outcomes", loop, repeated=True)
    different = first_of_each(delivered).num_rows
    known = first_of_each(delivered.filter(pc.field("_known_at") <= pa.scalar(now, _TIME)))
    joined = join(home, asked, known, outcome, known_by=now)
    open_ = joined.filter(pc.is_null(joined["_truth"]))
    overdue = pc.sum(pc.less(open_["_at"], pa.scalar(now - duration(outcome.wait), _TIME))).as_py() or 0
    with _database(home, asked=asked, known=known) as database:
        [(matched, early)] = database.sql(_MATCHED).fetchall()
    return OutcomeStates(
        joined=joined.num_rows - open_.num_rows,
        pending=open_.num_rows - overdue,
        overdue=overdue,
        outcomes=delivered.num_rows,
        matched=matched - early,
        known_before_decision=early,
        unmatched=known.num_rows - matched,
        known_later=different - known.num_rows,
        repeated=delivered.num_rows - different,
        contradicting=_contradicting(home, known),
    )


_MATCHED = """
    WITH by_unit AS (SELECT _unit, min(_decided) AS _decided FROM asked GROUP BY _unit),
    matched AS (
        SELECT known._known_at, CASE WHEN _prediction <> '' THEN asked._decided ELSE by_unit._decided END AS _decided
        FROM known LEFT JOIN asked ON known._prediction = asked._id LEFT JOIN by_unit ON known._unit = by_unit._unit
    )
    SELECT count(_decided), count(*) FILTER (_known_at < _decided) FROM matched
"""


def _contradicting(home: Home, known: pa.Table) -> int:
    values = [name for name in known.column_names if not name.startswith("_")]
    if not known.num_rows or not values:
        return 0
    row = ", ".join(f"{quoted(name)} := {quoted(name)}" for name in values)
    with _database(home, known=known) as database:
        [(count,)] = database.sql(
            f"""
            SELECT count(*) FROM (
                SELECT 1 FROM known GROUP BY _prediction, CASE WHEN _prediction = '' THEN _unit END
                HAVING count(DISTINCT struct_pack({row})) > 1
            )
            """  # noqa: S608 - column names of the contract, quoted
        ).fetchall()
    return int(count)


def _truth(home: Home, known: pa.Table, outcome: Outcome) -> Any:
    """The label [N] of each outcome, null where the expression gives null: the SQL, the types and the zone that examples have."""
    type = label_type(outcome)
    if not known.num_rows:
        return pa.array([], type)
    numbered = as_declared(known, outcome.table.columns).append_column("__row", pa.array(range(known.num_rows), pa.int64()))
    with _database(home, known=numbered) as database:
        try:
            found = database.sql(
                f"SELECT {label_sql(outcome)} AS truth FROM known ORDER BY __row"  # noqa: S608 - the loop's own expression, in a database that can reach no file
            ).to_arrow_table()
        except SqlError as error:
            raise DeclarationInvalid("Outcome", [("label", f"{outcome.label!r} cannot be evaluated: {error}")]) from error
    return found["truth"].cast(type)


@contextmanager
def _database(home: Home, **tables: pa.Table) -> Iterator[Any]:
    """A database that sees `tables` and nothing else."""
    with sql_engine(home) as database:
        for name, table in tables.items():
            database.register(name, table)
        yield database
