"""Outcomes: the truth about predictions, as it arrived; joined by prediction id, else by unit (see `stores.outcomes.match`).

An outcome may come twice, contradict an earlier one, come before its prediction or long after it, or never: each of these
is a state that is counted (`states`), not an error. All that arrived is kept with its provenance.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.clock import microseconds, moment_at
from loopwright.base.errors import DeclarationInvalid, NotFound, PackageRefused
from loopwright.graph.columns import as_declared
from loopwright.records.declarations import Outcome, duration
from loopwright.records.prediction import OutcomeRow, OutcomeStates, Prediction
from loopwright.sql.engine import quoted, sql_engine, sql_error
from loopwright.stores.home import Home
from loopwright.stores.outcomes.contract import CONTENT, UNSTATED
from loopwright.stores.outcomes.match import match
from loopwright.stores.prediction_log.arrow import rows, to_outcome
from loopwright.stores.prediction_log.read import KIND, first_of_each, predictions, stored
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
    """Drop outcomes that repeat the previous one of the same prediction or unit.

    Of two that differ in a stated `known_at` only, the later corrects the earlier. An outcome that returns after a contradicting one
    is no repetition: it is the newest truth.
    """
    content = pc.utf8_slice_codeunits(table["_id"], 0, CONTENT)
    if pc.count_distinct(content).as_py() == table.num_rows:
        return table
    table = table.sort_by([("_received_at", "ascending"), ("_known_at", "ascending")])
    newest: dict[tuple[str, str], int] = {}
    rows: dict[int, int] = {}
    ids = table["_id"].to_pylist()
    for i, whose in enumerate(zip(*(table[n].to_pylist() for n in ("_prediction", "_unit")), strict=True)):
        first = newest.get(whose)
        if first is None or ids[first][:CONTENT] != ids[i][:CONTENT]:
            newest[whose] = rows[i] = i
        elif ids[rows[first]] != ids[i] and not ids[i].endswith(UNSTATED):
            rows[first] = i
    return table.take(pa.array(rows.values(), pa.int64()))


def decided(home: Home, predictions: pa.Table, event_time: str = "") -> pa.Table:
    """`predictions` [N] with `_decided`, when each decision was taken, and `_event`, the event time of its request (null if unknown).

    A row of a file is decided at its event time, a request when it is answered. `event_time` is the request column that says it; without
    it, that of the packages that answered.
    """
    names = {event_time} if event_time else event_times(home, predictions)
    times = [predictions[n].cast(_TIME) for n in sorted(names) if n in predictions.column_names and _is_time(predictions[n])]
    event = pc.coalesce(*times) if times else pa.nulls(predictions.num_rows, _TIME)
    at = predictions["_at"]
    if "_of_file" in predictions.column_names:
        at = pc.if_else(pc.fill_null(pc.and_(predictions["_of_file"], pc.less(event, at)), False), event, at)
    return predictions.append_column("_decided", at).append_column("_event", event)


def _is_time(values: pa.ChunkedArray) -> bool:
    """Whether a column holds moments; of packages that are gone it is logged as whole numbers."""
    return bool(pa.types.is_timestamp(values.type) or pa.types.is_integer(values.type))


def event_times(home: Home, predictions: pa.Table) -> set[str]:
    """The request columns that date the decisions, of the packages that answered; packages that are gone are left out."""
    names = set()
    for package in pc.unique(predictions["_package"]).to_pylist() if "_package" in predictions.column_names else []:
        with suppress(NotFound, PackageRefused):
            names.add(home.packages.manifest(package).event_time)
    return names


def join(
    home: Home,
    predictions: pa.Table,
    outcomes: pa.Table,
    outcome: Outcome,
    *,
    known_by: datetime,
    others: Callable[[], pa.Table] | None = None,
) -> pa.Table:
    """`predictions` [N rows, same order] with `_truth` (the label, null while pending), `_known_at` (when it became known) and `_stated`.

    `_stated`: whether an outcome arrived; else the label, if there is one, is that of its absence.
    `predictions` needs `_id`, `_unit` and `_at`, or `_decided` and `_event` (see `decided`); `outcomes` is as `outcomes` returns it; only what was
    known at `known_by` counts. `others` reads what else was decided about the units (`_unit`, `_decided`, `_event`): it is called where a
    unit has several outcomes. The label's type is that of the task (see `tasks.label`). Raises DeclarationInvalid when it cannot be
    evaluated.
    """
    known = outcomes.filter(pc.field("_known_at") <= pa.scalar(known_by, _TIME))
    asked = predictions if "_decided" in predictions.column_names else decided(home, predictions)
    matched = _matched(home, asked, known, outcome, known_by, others)
    joined = predictions.append_column("_truth", matched["truth"]).append_column("_known_at", matched["known"])
    return joined.append_column("_stated", pc.is_valid(matched["place"]))


def _matched(
    home: Home,
    predictions: pa.Table,
    known: pa.Table,
    outcome: Outcome,
    as_of: datetime,
    others: Callable[[], pa.Table] | None = None,
) -> pa.Table:
    """`truth`, `known` and `place` (in `known`) of each of the predictions [N], nulls where nothing is known."""
    type, count = label_type(outcome), predictions.num_rows
    if not count or (not known.num_rows and outcome.absent is None):
        return pa.table({"truth": pa.nulls(count, type), "known": pa.nulls(count, _TIME), "place": pa.nulls(count, pa.int64())})
    asked = pa.table(
        {
            "row": pa.array(range(count), pa.int64()),
            "id": predictions["_id"],
            "unit": predictions["_unit"],
            "us": predictions["_decided"].cast(pa.int64()),
            "event": predictions["_event"].cast(pa.int64()),
        }
    )
    event = outcome.table.event_time
    dated = event in known.column_names and _is_time(known[event])
    statement = pa.table(
        {
            "place": pa.array(range(known.num_rows), pa.int64()),
            "prediction": known["_prediction"],
            "unit": known["_unit"],
            "event": known[event].cast(_TIME).cast(pa.int64()) if dated else pa.nulls(known.num_rows, pa.int64()),
            "known": known["_known_at"].cast(_TIME).cast(pa.int64()),
            "received": known["_received_at"].cast(_TIME).cast(pa.int64()),
            "id": known["_id"],
            "truth": _truth(home, known, outcome),
        }
    )
    moments = asked.select(["unit", "us", "event"])
    of_units = statement.filter(pc.field("prediction") == "")
    if others is not None and of_units.num_rows and _needs_others(of_units, moments):
        more = others()
        times = [more[n].cast(pa.int64()) for n in ("_decided", "_event")]
        moments = pa.concat_tables([moments, pa.table([more["_unit"], *times], names=moments.column_names)])
    with _database(home, decided=asked, moment=moments, statement=statement) as database:
        match(database, outcome, as_of)
        found = database.sql("SELECT truth, known, place FROM matched ORDER BY row").to_arrow_table()
    return pa.table({"truth": found["truth"].cast(type), "known": found["known"].cast(_TIME), "place": found["place"]})


def _needs_others(of_units: pa.Table, moments: pa.Table) -> bool:
    """Whether decisions other than `moments` can matter: a unit has several outcomes, or one at the very moment of a decision."""
    several = pc.count_distinct(of_units["unit"]).as_py() < of_units.num_rows
    return bool(several or pc.any(pc.is_in(of_units["known"], value_set=moments["us"])).as_py())


class Statement(NamedTuple):
    """An outcome as it arrived, the label that it gives (None: it takes back what stood), and whether it is the one that counts."""

    truth: Any
    row: OutcomeRow
    counts: bool


def history(home: Home, loop: str, prediction: Prediction, outcome: Outcome) -> list[Statement]:
    """List the outcomes of a prediction in the order received: those that name it, and those of its unit within the wait.

    One that says it becomes known later than now does not count yet.
    """
    whose = (pc.field("_prediction") == prediction.id) | (
        (pc.field("_prediction") == "") & (pc.field("_unit") == prediction.unit)
    )
    every = stored(home, "outcomes", loop, where=whose, repeated=True)
    moments = decided(home, stored(home, KIND, loop, where=pc.field("_unit") == prediction.unit))
    mine = moments.filter(pc.field("_id") == prediction.id)
    if not mine.num_rows:
        return []
    numbered = every.append_column("__row", pa.array(range(every.num_rows), pa.int64()))
    now = home.clock.now()
    different = unrepeated(numbered.filter(pc.field("_known_at") <= pa.scalar(now, _TIME)))
    matched = _matched(home, mine, different, outcome, now, lambda: moments)
    place = matched["place"][0].as_py()
    counted = None if place is None else different["__row"][place].as_py()
    start, wait = mine["_decided"][0].as_py(), duration(outcome.wait)
    found = []
    for i, (truth, row) in enumerate(zip(_truth(home, every, outcome).to_pylist(), map(to_outcome, rows(every)), strict=True)):
        if i == counted or row.prediction or start <= moment_at(row.known_at) <= start + wait:
            found.append(Statement(truth, row, i == counted))
    if place is None and (truth := matched["truth"][0].as_py()) is not None:
        over, why = microseconds(start + wait), f"no outcome within {outcome.wait}"
        row = OutcomeRow(id="", prediction=prediction.id, unit="", values={}, known_at=over, received_at=over, provenance=why)
        found.append(Statement(truth, row, True))
    return sorted(found, key=lambda s: s.row.received_at)


def states(home: Home, loop: str, outcome: Outcome, now: datetime, event_time: str = "") -> OutcomeStates:
    """Count the states of a loop's predictions and outcomes at `now`. Raises as `join`.

    `event_time` is the request column that dates the rows of files.
    """
    asked = predictions(home, loop, columns=["_id", "_at", "_unit", "_of_file", event_time])
    asked = decided(home, asked, event_time)
    delivered = stored(home, "outcomes", loop, repeated=True)
    different = first_of_each(delivered).num_rows
    known = first_of_each(delivered.filter(pc.field("_known_at") <= pa.scalar(now, _TIME)))
    joined = join(home, asked, known, outcome, known_by=now)
    open_ = joined.filter(pc.is_null(joined["_truth"]))
    overdue = pc.sum(pc.less(open_["_decided"], pa.scalar(now - duration(outcome.wait), _TIME))).as_py() or 0
    matched = early = contradicting = 0
    if known.num_rows:
        with _database(home, asked=asked, known=known) as database:
            [(matched, early)] = database.sql(_MATCHED).fetchall()
            contradicting = _contradicting(database, known)
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
        contradicting=contradicting,
    )


_MATCHED = """
    WITH by_unit AS (SELECT _unit, min(_decided) AS _decided FROM asked GROUP BY _unit),
    matched AS (
        SELECT known._known_at, CASE WHEN _prediction <> '' THEN asked._decided ELSE by_unit._decided END AS _decided
        FROM known LEFT JOIN asked ON known._prediction = asked._id LEFT JOIN by_unit ON known._unit = by_unit._unit
    )
    SELECT count(_decided), count(*) FILTER (_known_at < _decided) FROM matched
"""


def _contradicting(database: Any, known: pa.Table) -> int:
    values = [name for name in known.column_names if not name.startswith("_")]
    if not values:
        return 0
    row = ", ".join(f"{quoted(name)} := {quoted(name)}" for name in values)
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
        except sql_error() as error:
            raise DeclarationInvalid("Outcome", [("label", f"{outcome.label!r} cannot be evaluated: {error}")]) from error
    return found["truth"].cast(type)


@contextmanager
def _database(home: Home, **tables: pa.Table) -> Iterator[Any]:
    """A database that sees `tables` and nothing else."""
    with sql_engine(home) as database:
        for name, table in tables.items():
            database.register(name, table)
        yield database
