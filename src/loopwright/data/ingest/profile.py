"""Profile a table: two scans by DuckDB, the first for counts, extremes and quantiles, the second for histograms and common values.

After an ingestion the profile is made again once a quarter of the rows are new, so that it never costs more than a share of
ingesting them, however large the table is.
"""

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec

from loopwright.records.declarations import Column, Table
from loopwright.records.profiles import ColumnProfile, DayCount, Profile, Value
from loopwright.sql.engine import quoted, sql_engine
from loopwright.stores.contracts import contract
from loopwright.stores.home import Home
from loopwright.stores.ingestions import require_rows

BINS = 12
DAYS = 60
TOP = 5
MAX_COLUMNS = 500
NEW_SHARE = 0.25
"""Share of new rows from which a table is profiled again."""

_QUANTILES = "[0.05, 0.25, 0.5, 0.75, 0.95]"
_LONGEST_TEXT = 80


def profiled(home: Home, table: str) -> Profile:
    """The profile of a table as it is now: the recorded one if nothing came in since, else a new one.

    Raises TableNotFound for a table without a contract.
    """
    declared = contract(home, table)
    require_rows(home, table)
    if not home.lake.exists(table):
        return Profile(table=table, version=0, at=home.clock.now(), rows=0)
    newest = home.ledger.latest(Profile, key=table)
    version = home.lake.version(table)
    return newest.record if newest and newest.record.version == version else profile(home, declared, version)


def keep_profile(home: Home, table: str) -> None:
    """Profile a table that has just grown and record it, unless the recorded profile covers most of its rows."""
    newest = home.ledger.latest(Profile, key=table)
    if not home.lake.exists(table) or (newest and newest.record.rows > (1 - NEW_SHARE) * home.lake.count(table)):
        return
    found = profile(home, contract(home, table), home.lake.version(table))
    home.ledger.put(found, key=table)


def profile(home: Home, table: Table, version: int) -> Profile:
    """Profile one version of a table."""
    columns = dict(list(table.columns.items())[:MAX_COLUMNS])
    with sql_engine(home, ordered=False) as database:
        database.register("rows", home.lake.dataset(table.name, version))
        first = _row(database, ["count(*)", *(part for n, c in columns.items() for part in _extremes(n, c))])
        rows, values = int(first[0]), iter(first[1:])
        found = {n: _column(n, c, rows, [next(values) for _ in _extremes(n, c)]) for n, c in columns.items()}
        if not rows:
            return Profile(table=table.name, version=version, at=home.clock.now(), rows=0, columns=list(found.values()))
        oldest, newest = (_moment(v) for v in (found[table.event_time].minimum, found[table.event_time].maximum))
        second = iter(
            _row(database, [_days(table.event_time, newest), *(_shape(columns[n].type, p) for n, p in found.items())])
        )
        days = _counted_days(next(second), newest)
        return Profile(
            table=table.name,
            version=version,
            at=home.clock.now(),
            rows=rows,
            oldest=oldest,
            newest=newest,
            columns=[_shaped(p, next(second)) for p in found.values()],
            days=days,
            left_out=len(table.columns) - len(columns),
        )


def _row(database: Any, parts: Sequence[str]) -> tuple[Any, ...]:
    found: tuple[Any, ...] = database.execute(f"SELECT {', '.join(parts)} FROM rows").fetchone()  # noqa: S608 - columns, quoted
    return found


def _number(name: str, type: str) -> str:
    """A column as a number that is finite: times in microseconds."""
    if type == "timestamp":
        return f"epoch_us({quoted(name)})"
    return f"CASE WHEN isfinite({quoted(name)}) THEN {quoted(name)} END" if type == "float" else quoted(name)


def _extremes(name: str, column: Column) -> list[str]:
    """SQL of the first scan of a column: counts, extremes, quantiles."""
    asked = [f"count({quoted(name)})"]
    if column.type == "array":
        return asked
    asked.append(f"approx_count_distinct({quoted(name)})")
    if column.type in ("float", "integer", "timestamp"):
        number = _number(name, column.type)
        asked += [f"min({number})", f"max({number})", f"avg({number})", f"approx_quantile({number}, {_QUANTILES})"]
    else:
        asked += [f"min({quoted(name)})", f"max({quoted(name)})"]
    if column.type in ("string", "boolean"):
        asked.append(f"approx_top_k({quoted(name)}, {TOP})")
    return asked


def _column(name: str, column: Column, rows: int, profile: list[Any]) -> ColumnProfile:
    """A column after the first scan; `top` has no counts yet."""
    there, rest = int(profile[0]), profile[1:]
    if not rest or not there:
        return ColumnProfile(name=name, type=column.type, nulls=rows - there)
    distinct, low, high, *rest = rest
    numeric = column.type in ("float", "integer", "timestamp")
    mean, quantiles = rest[:2] if numeric else (None, None)
    top = rest[-1] if column.type in ("string", "boolean") else None
    return ColumnProfile(
        name=name,
        type=column.type,
        nulls=rows - there,
        distinct=min(int(distinct), there),
        minimum=_value(low, column.type),
        maximum=_value(high, column.type),
        mean=None if mean is None or column.type == "timestamp" else float(mean),
        quantiles=[_value(v, column.type) for v in quantiles or []],
        top=[(v, 0) for v in top or []],
    )


def _value(value: Any, type: str) -> Value:
    if value is None or isinstance(value, bool):
        return value
    if type == "timestamp":
        return datetime.fromtimestamp(int(value) / 1e6, UTC).isoformat()
    if isinstance(value, str):
        return value[:_LONGEST_TEXT]
    return int(value) if type == "integer" else float(value)


def _moment(value: Value) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else None


def _shape(type: str, profile: ColumnProfile) -> str:
    """SQL of the second scan of a column: a histogram of equal bins over its range, and the counts of its most frequent values."""
    histogram, top = "NULL", "NULL"
    low, high = _bounds(profile)
    if high > low:
        number = f"CAST({_number(profile.name, type)} AS DOUBLE)"
        part = f"least({BINS - 1}, CAST(floor(({number} - {low!r}) / {(high - low) / BINS!r}) AS INTEGER))"
        histogram = f"histogram(CASE WHEN {number} IS NOT NULL THEN {part} END)"
    if profile.top:
        values = ", ".join(_literal(v) for v, _ in profile.top)
        top = f"histogram(CASE WHEN {quoted(profile.name)} IN ({values}) THEN {quoted(profile.name)} END)"
    return f"{{'histogram': {histogram}, 'top': {top}}}"


def _bounds(profile: ColumnProfile) -> tuple[float, float]:
    """The range of a column as numbers; empty if it has none."""
    if profile.type == "timestamp":
        since, until = _moment(profile.minimum), _moment(profile.maximum)
        return (since.timestamp() * 1e6, until.timestamp() * 1e6) if since and until else (0.0, 0.0)
    if (
        profile.type in ("float", "integer")
        and isinstance(profile.minimum, int | float)
        and isinstance(profile.maximum, int | float)
    ):
        low, high = float(profile.minimum), float(profile.maximum)
        return (low, high) if math.isfinite(high - low) else (0.0, 0.0)
    return 0.0, 0.0


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).upper()


def _shaped(profile: ColumnProfile, second: dict[str, Any]) -> ColumnProfile:
    counts, top = second["histogram"] or {}, {v: n for v, n in (second["top"] or {}).items() if n > 1}
    return msgspec.structs.replace(
        profile,
        histogram=[int(counts.get(i, 0)) for i in range(BINS)] if counts else [],
        top=sorted(((_value(v, profile.type), int(n)) for v, n in top.items()), key=lambda pair: (-pair[1], str(pair[0]))),
    )


def _days(event_time: str, newest: datetime | None) -> str:
    if newest is None:
        return "NULL"
    since = (newest - timedelta(days=DAYS - 1)).date()
    day = f"CAST({quoted(event_time)} AS DATE)"
    return f"histogram(CASE WHEN {day} >= DATE '{since}' THEN {day} END)"


def _counted_days(profile: dict[date, int] | None, newest: datetime | None) -> list[DayCount]:
    if not profile or newest is None:
        return []
    last = newest.date()
    first = min(profile)
    return [DayCount(d, int(profile.get(d, 0))) for d in (first + timedelta(days=i) for i in range((last - first).days + 1))]
