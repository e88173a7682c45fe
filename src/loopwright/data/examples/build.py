"""Build examples as of a moment: the request, the context known then, and the outcomes known by then.

Where a decision was served, its request and context are taken from the prediction log as they were; where not (history
from before the loop, or traffic that something else answered), they are joined by DuckDB's ASOF join to what serving would
have known at the decision (`data.examples.asof`). Nothing that became known after `as_of` is read.

A request is decided when it is answered, whatever time it says: its caller may have put into it what was known until then. A row of a
file that was predicted is decided at its event time, like the rows of a file that was ingested. Only outcomes that became known after the
decision are learnt from.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loopwright.base.clock import microseconds, moment_at
from loopwright.base.errors import DeclarationInvalid, ExamplesRefused, PackageNotFound, PackageRefused, first_line
from loopwright.base.files import move_file
from loopwright.base.ids import new_id
from loopwright.data.examples import asof
from loopwright.data.examples.context import SLACK
from loopwright.data.examples.labels import describe
from loopwright.data.ingest.ingestion import files
from loopwright.graph.columns import ARROW_TYPES, as_declared
from loopwright.records.declarations import Aggregate, Column, Context, Outcome, Table, duration
from loopwright.records.examples import Examples, OutcomeDelay, Source
from loopwright.sql.engine import quoted, sql_engine, sql_error, text
from loopwright.stores.examples import FIXED
from loopwright.stores.home import Home
from loopwright.stores.ingestions import require_rows
from loopwright.stores.outcomes.join import outcomes
from loopwright.stores.outcomes.match import match
from loopwright.stores.prediction_log.read import predictions
from loopwright.tasks.label import label_sql, label_type
from loopwright.tasks.registry import TASKS

_MOMENT = pa.timestamp("us", tz="UTC")
_ROWS = 65_536
_SQL_TYPES = {
    "float": "DOUBLE",
    "integer": "BIGINT",
    "boolean": "BOOLEAN",
    "string": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
    "array": "FLOAT[]",
}
WINDOW_ROWS, WINDOW_OF_LABEL = 100, 20
"""A window reaches back to so many examples, and so many of each of two labels, or a tenth of those if that is fewer."""

MAX_CURVES = 20
"""Delay curves are kept of so many labels at most."""

SELDOM = 0.001
"""Where chance leaves outcomes away for so long less often, they have stopped to arrive."""

_STRETCH = 4_000_000
"""Decisions joined at a time: memory depends on this, not on how many there are."""


class _Read(NamedTuple):
    """A lake table as of one version."""

    table: str
    version: int
    data: Any


def build(
    home: Home,
    *,
    loop_name: str,
    requests: Table,
    context: list[Context],
    outcome: Outcome,
    as_of: datetime,
    aggregates: Sequence[Aggregate] = (),
    window: timedelta | None = None,
    used: Callable[[], Collection[str]] | None = None,
) -> Examples:
    """Build the examples of a loop from the rows known at `as_of`, and write them to `home/examples/<digest>.parquet`.

    One row per decision before `as_of` whose outcome was known; with `window` only the last stretch of that length, up to
    the newest such decision. Decisions without an outcome are left out and counted by reason. Context and aggregates are those of the moment of decision, of what was known `lag` before
    it. `used` gives the request columns that must be there (all without it): requests need not send the others, which may be
    null whatever the contract says. The same tables and log give the same digest.

    Raises ExamplesRefused when a table has no rows yet, no outcome is known, or all outcomes are alike; DeclarationInvalid
    when the label, or what is aggregated, is no SQL expression over the table's columns.
    """
    asked = _read(home, requests)
    joined = asof.joined(context, list(aggregates))
    told = [_read(home, j.table) for j in joined]
    landed = _read(home, outcome.table) if home.lake.exists(outcome.table.name) else None
    columns = _columns(requests, context, aggregates)
    log = predictions(home, loop_name, end=as_of, columns=["_id", "_at", "_unit", "_package", "_of_file", *columns])
    reported = outcomes(home, loop_name, known_by=as_of)
    if landed is None and not len(reported) and not TASKS[outcome.task].learns_unjudged:
        raise ExamplesRefused(f"no outcome is known: `loopwright ingest {outcome.table.name} FILE`, or post outcomes")
    with sql_engine(home, ordered=False) as database:
        _decisions(database, asked, log, requests, columns, as_of=as_of, used=used)
        _judge(database, landed.data if landed else None, reported, outcome, requests, as_of=as_of)
        usable = _usable(outcome)
        _keep(database, window, usable)
        excluded = _excluded(database, usable, outcome, as_of=as_of)
        joins = [(j, read.data) for j, read in zip(joined, told, strict=True)]
        rows = _joined(
            database,
            joins,
            columns,
            _lacking(home, log, columns.keys() - requests.columns.keys()),
            known_by=microseconds(as_of),
        )
        found = _write(home, database, rows, columns, outcome, excluded)
    sources = [_source(home, read) for read in {r.table: r for r in [asked, *told, *([landed] if landed else [])]}.values()]
    if len(log):
        name = f"predictions.{loop_name}"
        version = home.lake.version(name) if home.lake.exists(name) else 0
        sources.append(Source(table=name, version=version, rows=len(log), files={}))
    return Examples(
        **found,
        as_of=as_of,
        sources=sources,
        excluded=excluded,
        request=requests.columns,
        context={n: c for n, c in columns.items() if n not in requests.columns},
    )


def _columns(requests: Table, context: Sequence[Context], aggregates: Sequence[Aggregate]) -> dict[str, Column]:
    added = {
        n: msgspec.structs.replace(c.table.columns[column], nullable=True) for c in context for n, column in c.wanted.items()
    }
    return {**requests.columns, **added, **{a.name: a.column for a in aggregates}}


def _source(home: Home, read: _Read) -> Source:
    return Source(
        table=read.table, version=read.version, rows=read.data.count_rows(), files=files(home, read.table, read.version)
    )


def _read(home: Home, table: Table) -> _Read:
    require_rows(home, table.name)
    if not home.lake.exists(table.name):
        raise ExamplesRefused(f"table {table.name!r} has no rows yet: `loopwright ingest {table.name} FILE`")
    version = home.lake.version(table.name)
    data = home.lake.dataset(table.name, version, order=asof.ORDER)
    absent = [pa.field(n, ARROW_TYPES[c.type]) for n, c in table.columns.items() if n not in data.schema.names]
    if absent:  # declared since: null in the rows there are, as it is once the contract is stored
        data = data.replace_schema(pa.schema([*data.schema, *absent]))
    return _Read(table.name, version, data)


def _text(name: str, column: Column) -> str:
    """A key value as the text that Python's `str` gives it, timestamps as microseconds."""
    sql = quoted(name)
    if column.type == "boolean":
        return f"CASE WHEN {sql} THEN 'True' ELSE 'False' END"
    return f"CAST({f'epoch_us({sql})' if column.type == 'timestamp' else sql} AS VARCHAR)"


def unit_sql(table: Table, key: list[str]) -> str:
    """SQL for the unit of a row (see `records.prediction.unit_text`)."""
    texts = [_text(k, table.columns[k]) for k in key]
    return texts[0] if len(key) == 1 else " || '|' || ".join(rf"replace(replace({t}, '\', '\\'), '|', '\|')" for t in texts)


def repeated_units(home: Home, requests: Table, outcome: Outcome) -> str:
    """What it means that several decisions have the same key, and the choice there is; "" where none have."""
    if requests.event_time in requests.key or not home.lake.exists(requests.name):
        return ""
    with sql_engine(home, ordered=False) as database:
        database.register("asked", home.lake.dataset(requests.name))
        key, event = ", ".join(map(quoted, requests.key)), quoted(requests.event_time)
        [(units, rows)] = database.execute(
            f"SELECT count(*), coalesce(sum(n), 0) FROM (SELECT count(DISTINCT {event}) AS n FROM asked GROUP BY {key}) WHERE n > 1"  # noqa: S608 - names of declared columns, quoted
        ).fetchall()
    if not units:
        return ""
    first = f"each takes the first outcome of its key that becomes known after it, within {outcome.wait}"
    other = f"If that is not its own: name the prediction's id in the outcome, give it the request's {requests.event_time} as {outcome.table.event_time}"
    return f"{units:,} keys repeat, in {rows:,} decisions: {first}. {other}, or add {requests.event_time} to both keys"


def _decisions(
    database: Any,
    decisions: _Read,
    log: pa.Table,
    requests: Table,
    columns: Mapping[str, Column],
    *,
    as_of: datetime,
    used: Callable[[], Collection[str]] | None,
) -> None:
    """Table `decision`: the decisions before `as_of`, from the log where they were served, else from the requests table.

    `_as_served`: joined with what was logged. Rows of files (not `_live`) are there as often as they were predicted: `_judge` takes one for a
    unit and an event time; those of the past are joined anew, since the online table has no context of before `SLACK` (see `data.examples.context`).
    """
    earlier = decisions.data.filter(pc.field(requests.event_time) < pa.scalar(as_of, _MOMENT))
    if not len(log) and decisions.data.count_rows() and not earlier.count_rows():
        why = f"every row of {requests.name!r} is from after {as_of:%Y-%m-%d %H:%M} UTC"
        raise ExamplesRefused(f"{why}: look at the times of column {requests.event_time!r} and at its zone")
    database.register("asked", earlier)
    log = as_declared(log, columns)
    database.register("logged", log)
    request = ", ".join(quoted(n) for n in requests.columns)
    added = {n: c for n, c in columns.items() if n not in requests.columns}
    given = "".join(f", {quoted(n)}" for n in added)
    absent = "".join(f", NULL::{_SQL_TYPES[c.type]} AS {quoted(n)}" for n, c in added.items())
    needed = [n for n, c in requests.columns.items() if not c.nullable]
    if used is not None and any(log[n].null_count for n in needed):
        there = used()
        needed = [n for n in needed if n in there]
    complete = " AND ".join(f"{quoted(n)} IS NOT NULL" for n in needed)
    event, unit = f"epoch_us({quoted(requests.event_time)})", unit_sql(requests, requests.key)
    # One ingestion has no key and event time twice; of several ingestions the last says what a decision was asked with.
    newest = (
        f"QUALIFY row_number() OVER (PARTITION BY {unit}, {event} ORDER BY {asof.ORDER} DESC) = 1"
        if decisions.version > 1
        else ""
    )
    us, unfiled, live = "epoch_us(_at)", "", "true"
    if "_of_file" in log.column_names and pc.any(log["_of_file"]).as_py():
        live = "NOT coalesce(_of_file, false)"
        us = f"CASE WHEN {live} THEN epoch_us(_at) ELSE least({event}, epoch_us(_at)) END"
        unfiled = f"AND {unit} || '|' || {event} NOT IN (SELECT concat(_unit, '|', {event}) FROM logged WHERE NOT ({live}))"  # noqa: S608 - as below
    since = f"{us} >= epoch_us(_at) - {SLACK // asof.MICROSECOND}"
    database.execute(
        f"""
        CREATE TEMP TABLE decision AS
        SELECT {request}{given}, {us} AS _us, _unit, _id AS _prediction, _package, {complete} AS _complete, {since} AS _as_served,
               {event} AS _event, epoch_us(_at) AS _answered, {live} AS _live
        FROM logged
        UNION ALL
        SELECT {request}{absent}, {event} AS _us, {unit} AS _unit, NULL::VARCHAR AS _prediction, NULL::VARCHAR AS _package,
               true AS _complete, false AS _as_served, {event}, 0, true
        FROM asked
        WHERE ({event} < (SELECT coalesce(min(epoch_us(_at)), {2**63 - 1}) FROM logged WHERE {live})
               OR {unit} NOT IN (SELECT _unit FROM logged WHERE {live})) {unfiled} {newest}
        """  # noqa: S608 - names of declared columns, quoted
    )


def _judge(database: Any, table: Any, reported: pa.Table, outcome: Outcome, requests: Table, *, as_of: datetime) -> None:
    """Table `judged`: every decision with `_label` and `_known_us` (when that became known), both null where nothing is known.

    Until the wait for its outcome is over a decision has none: of the newest, those whose label is known sooner would be too many.
    Where outcomes have stopped to arrive that moment is the last at which a wait could be over.

    Which outcome is a decision's `stores.outcomes.match` says, as in monitoring. A row of a file counts once, where no request was answered
    for it: as the prediction that an outcome names, else as the first. Where an outcome names the row of the file and none the request
    of the same unit and event time, the row stands for the decision.
    """
    declared = outcome.table
    database.register("reported", as_declared(reported, declared.columns))
    label, event = label_sql(outcome), f"epoch_us({quoted(declared.event_time)}) AS event"
    known_columns = (
        f"_prediction AS prediction, _unit AS unit, {event}, epoch_us(_known_at) AS known, epoch_us(_received_at) AS received"
    )
    parts = [f"SELECT {known_columns}, _id AS id, {label} AS truth FROM reported"]  # noqa: S608 - the loop's own expression
    if table is not None:
        delay = duration(declared.known_after)
        database.register("landed", table.filter(pc.field(declared.known) <= pa.scalar(as_of - delay, _MOMENT)))
        known = f"epoch_us({quoted(declared.known)}) + {delay // asof.MICROSECOND}"
        unit = unit_sql(declared, requests.key)
        parts.append(f"SELECT '', {unit}, {event}, {known}, {known}, printf('%08d', {asof.ORDER}), {label} FROM landed")  # noqa: S608 - as above
    either = " UNION ALL ".join(parts)
    try:
        database.execute(f"CREATE TEMP TABLE statement AS SELECT row_number() OVER () AS place, * FROM ({either})")  # noqa: S608 - as above
    except sql_error() as error:
        why = f"{outcome.label!r} cannot be evaluated over {', '.join(declared.columns)}: {first_line(error)}"
        raise DeclarationInvalid("Outcome", [("label", why)]) from error
    database.execute(
        """
        CREATE TEMP VIEW decided AS SELECT rowid AS row, _prediction AS id, _unit AS unit, _us AS us, _event AS event FROM decision;
        CREATE TEMP VIEW moment AS SELECT unit, us, event FROM decided
        """
    )
    match(database, outcome, as_of)
    wait, stopped = duration(outcome.wait) // asof.MICROSECOND, _stopped(database, outcome, as_of)
    told = "mature" if stopped is None else f"_us + {wait} <= {stopped}"
    named_first = "named IS NULL, NOT _live, named DESC, _answered, _prediction"
    decision = f"WINDOW same AS (PARTITION BY _unit, _event ORDER BY {named_first})"
    once = f"{decision} QUALIFY row_number() OVER same = 1 OR (_live AND first_value(_live) OVER same)"
    [(files,)] = database.execute("SELECT count(*) FROM decision WHERE NOT _live").fetchall()
    database.execute(
        f"""
        CREATE TEMP TABLE judged AS
        SELECT decision.* EXCLUDE (_event, _answered, _live), CASE WHEN {told} THEN truth END AS _label,
               CASE WHEN {told} THEN known END AS _known_us, early AS _early
        FROM decision JOIN matched ON decision.rowid = matched.row
        {once if files else ""};
        DROP VIEW moment; DROP VIEW decided; DROP TABLE decision; DROP TABLE statement; DROP TABLE matched
        """  # noqa: S608 - text of ours
    )


def _stopped(database: Any, outcome: Outcome, as_of: datetime) -> int | None:
    """When the newest outcome became known, where none arrive any more, so that absence means nothing since; None where they do.

    They have stopped where none came for longer than twice any gap before, in a time for which decisions let expect so many, by the share of
    earlier decisions that had one and its median delay, that none would come by chance (Poisson) in less than one of a thousand.
    """
    if outcome.absent is None:
        return None
    now, wait = microseconds(as_of), duration(outcome.wait) // asof.MICROSECOND
    [(newest, gap)] = database.execute(
        "SELECT max(known), coalesce(max(gap), 0) FROM (SELECT known, known - lag(known) OVER (ORDER BY known) AS gap "
        "FROM (SELECT DISTINCT known FROM statement WHERE truth IS NOT NULL))"
    ).fetchall()
    if newest is None or now - newest <= 2 * gap:
        return None
    [(expected,)] = database.execute(
        f"""
        WITH each AS (SELECT us, known - us AS delay, truth IS NOT NULL AND NOT nothing AS stated FROM decided JOIN matched USING (row)),
        before AS (SELECT avg(stated::INT) AS share FROM each WHERE us + {wait} <= {newest}),
        typical AS (SELECT median(delay) FILTER (stated) AS delay FROM each)
        SELECT coalesce(any_value(share) * count(*) FILTER (us > {newest} - typical.delay AND us <= {now} - typical.delay), 0)
        FROM each, before, typical
        """  # noqa: S608 - whole numbers
    ).fetchall()
    return int(newest) if math.exp(-expected) < SELDOM else None


def _usable(outcome: Outcome) -> str:
    """SQL for which judged decisions are examples: of anomalies those too whose truth nobody knows, which most are."""
    if TASKS[outcome.task].learns_unjudged:
        return "_complete AND NOT _early AND (_known_us IS NULL OR _known_us >= _us)"
    return "_complete AND _label IS NOT NULL AND _known_us >= _us"


def _keep(database: Any, window: timedelta | None, usable: str) -> None:
    """View `recent`: judged decisions of the last `window` before the newest usable one. View `kept`: the usable of them.

    After a pause, or a stretch with one label only, it reaches back: to WINDOW_ROWS usable decisions, WINDOW_OF_LABEL of each of two.
    """
    recent = "SELECT * FROM judged"
    if window is not None:
        usable_rows = f"SELECT _us, _label FROM judged WHERE {usable}"  # noqa: S608 - columns of ours
        [(newest, enough)] = database.execute(
            f"SELECT coalesce(max(_us), 0), coalesce(min(_us), 0) FROM ({usable_rows} ORDER BY _us DESC LIMIT {WINDOW_ROWS})"  # noqa: S608 - as above
        ).fetchall()
        of_labels = database.execute(
            f"""
            SELECT min(_us) FROM (
                SELECT _us, _label, row_number() OVER (PARTITION BY _label ORDER BY _us DESC) AS _row,
                       count(*) OVER (PARTITION BY _label) AS _count FROM ({usable_rows})
            ) WHERE _row <= greatest(1, least({WINDOW_OF_LABEL}, _count // 10)) GROUP BY _label ORDER BY 1 DESC LIMIT 2
            """  # noqa: S608 - as above
        ).fetchall()
        since = min(newest - window // asof.MICROSECOND, enough, *(first for (first,) in of_labels))
        recent += f" WHERE _us >= {since}"
    database.execute(f"CREATE TEMP VIEW recent AS {recent}")
    database.execute(f"CREATE TEMP VIEW kept AS SELECT * FROM recent WHERE {usable}")  # noqa: S608 - as above


def _excluded(database: Any, usable: str, outcome: Outcome, *, as_of: datetime) -> dict[str, int]:
    """Decisions that are no examples, by reason."""
    never = "outcome never came" if outcome.absent is None else "outcomes stopped to arrive"
    rows = database.execute(
        f"""
        SELECT CASE WHEN NOT _complete THEN 'request not fully logged'
                    WHEN _early THEN 'outcome known before the decision'
                    WHEN _label IS NULL AND _us > {microseconds(as_of - duration(outcome.wait))} THEN 'outcome pending'
                    WHEN _label IS NULL THEN '{never}'
                    ELSE 'outcome known before the decision' END AS reason, count(*)
        FROM recent WHERE NOT ({usable}) GROUP BY reason ORDER BY reason
        """  # noqa: S608 - a whole number
    ).fetchall()
    return {str(reason): int(count) for reason, count in rows}


def _lacking(home: Home, log: pa.Table, columns: Iterable[str]) -> dict[str, list[str]]:
    """Context columns -> the packages in the log that were not served with them yet: those rows are joined now."""
    found: dict[str, list[str]] = {name: [] for name in columns}
    for package in pc.unique(log["_package"]).to_pylist() if len(log) else []:
        with suppress(PackageNotFound, PackageRefused):  # nobody knows any more: what was logged is what was served
            had = {name for need in home.packages.manifest(package).context for name in need.columns}
            for name in found.keys() - had:
                found[name].append(package)
    return found


def _joined(
    database: Any,
    joins: list[tuple[asof.Joined, Any]],
    columns: Mapping[str, Column],
    lacking: Mapping[str, list[str]],
    *,
    known_by: int,
) -> Iterator[pa.RecordBatch]:
    """Yield the kept decisions in order, chunk by chunk; those that were not served are joined with their context.

    Only moments and keys take part in the ASOF joins; their results are laid beside the decisions by position.
    """
    [(rows, first, last)] = database.execute("SELECT count(*), min(_us), max(_us) FROM kept").fetchall()
    cuts = [i / -(-rows // _STRETCH) for i in range(1, -(-rows // _STRETCH))]
    [(inner,)] = database.execute("SELECT quantile_disc(_us, ?::DOUBLE[]) FROM kept", [cuts]).fetchall() if cuts else [([],)]
    for low, high in pairwise(sorted({first, last + 1, *inner})):
        database.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE stretch AS
            SELECT *, row_number() OVER (ORDER BY _us, _unit, _prediction) AS _row FROM kept WHERE _us >= {low} AND _us < {high}
            """  # noqa: S608 - whole numbers
        )
        chosen, beside = [f"d.{quoted(n)}" for n in columns], "(FROM stretch ORDER BY _row) d"
        for i, (joined, data) in enumerate(joins):
            asof.create(database, "steps", joined, data, since=low, known_by=min(high, known_by))
            found = asof.values("steps", joined)
            taken = ", ".join(f"{sql} AS {quoted(n)}" for n, sql in found.items())
            database.execute(
                f"CREATE OR REPLACE TEMP TABLE found_{i} AS SELECT d._row, {taken} FROM {asof.asof('stretch', [('steps', joined)])}"  # noqa: S608 - names of ours, and declared columns, quoted
            )
            database.execute("DROP TABLE steps")
            beside += f" POSITIONAL JOIN (FROM found_{i} ORDER BY _row) f{i}"
            for at, n in enumerate(columns):
                if n in found:
                    packages = ", ".join(text(p) for p in lacking[n])
                    served = f"d._as_served{f' AND d._package NOT IN ({packages})' if packages else ''}"
                    chosen[at] = f"CASE WHEN {served} THEN d.{quoted(n)} ELSE f{i}.{quoted(n)} END AS {quoted(n)}"
        yield from database.sql(
            f"""
            SELECT {", ".join(chosen)}, d._us AS _decided_at, coalesce(d._known_us, d._us) AS _known_at, d._label, d._unit, d._prediction
            FROM {beside}
            """  # noqa: S608 - as above
        ).to_arrow_reader(_ROWS)


def _delays(database: Any, outcome: Outcome) -> list[OutcomeDelay]:
    """The delay curve of each label, of the MAX_CURVES that are most frequent; of numbers one for all."""
    label = "''" if outcome.shape.label == "float" else "CAST(_label AS VARCHAR)"
    found = database.execute(
        f"""
        SELECT {label}, count(*), quantile_cont((_known_us - _us) / 1e6, {[i / 10 for i in range(11)]})
        FROM kept WHERE _label IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {MAX_CURVES}
        """  # noqa: S608 - columns of ours, and numbers
    ).fetchall()
    return [OutcomeDelay(label=name, count=count, seconds=seconds) for name, count, seconds in found]


def _write(
    home: Home,
    database: Any,
    examples: Iterable[pa.RecordBatch],
    columns: Mapping[str, Column],
    outcome: Outcome,
    excluded: Mapping[str, int],
) -> dict[str, Any]:
    """Write the examples in order of decision; return digest, rows, positives, summary, first and last decision."""
    [(rows, first, last)] = database.execute("SELECT count(*), min(_us), max(_us) FROM kept").fetchall()
    labels = describe(database, outcome, rows, excluded)
    schema = pa.schema(
        [
            *(pa.field(n, ARROW_TYPES[c.type]) for n, c in columns.items()),
            *(pa.field(n, FIXED[n]) for n in ("_decided_at", "_known_at")),
            pa.field("_label", label_type(outcome)),
            *(pa.field(n, FIXED[n]) for n in ("_unit", "_prediction")),
        ]
    )
    folder = home.folder("examples")
    unfinished = folder / f".{new_id(home.clock.now())}.unfinished"
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            for batch in examples:
                writer.write_table(pa.Table.from_batches([batch]).cast(schema))
        with unfinished.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
        move_file(unfinished, folder / f"{name}.parquet")
    finally:
        unfinished.unlink(missing_ok=True)
    return {
        "digest": name,
        "rows": rows,
        "positives": labels.positives,
        "summary": labels.words,
        "delays": _delays(database, outcome),
        "first": moment_at(first),
        "last": moment_at(last),
    }
