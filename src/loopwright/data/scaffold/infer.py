"""Propose a contract from files.

A proposal describes the files, a little wider: it is a draft for a person to correct, not a statistic. Times without a
zone are read as local times of one zone, UTC by default.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import ColumnUnknown, IngestRefused, UsageError, first_line
from loopwright.base.text import count
from loopwright.data.ingest.source import AS_DETECTED, expand, open_source
from loopwright.data.ingest.source_reader import OpenSource, Reading
from loopwright.data.ingest.values import Read, is_list, is_text, read, unusable
from loopwright.data.scaffold.decimals import NUMBERS, decimal_comma, numbers
from loopwright.data.scaffold.identifiers import is_id
from loopwright.data.scaffold.names import clean, clean_names
from loopwright.records.declarations import Column, Table
from loopwright.records.ingestions import DOUBT

FEW = 20
"""A string column with at most this many values, each seen twenty times on average, gets categories."""

MAX_ROWS = 500_000
"""Maximum number of rows that are examined; of a longer source the first ones, and then no range or category is closed."""

ODD = 0.05
"""A column may hold this share of values that are not of its type; their rows go to quarantine."""

ODD_WORDS = 3
FEW_NOTES = 3
"""Up to this many notes that differ only in their column are listed separately; more are folded into one."""

OFTEN_MISSING, FAR = 3, 0.5
"""Minimum count of a sentinel for a missing value, and its minimum distance from all other values, as a share of their span."""

PANEL = 4
"""A table is a panel (readings of entities) if it has a row for at least every fourth pair of entity and moment."""

ROW_ID, INGESTED_AT = "row_id", "ingested_at"
_DAYS = ("%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m/%d/%y", "%d/%m/%y", "%d %b %Y", "%b %d, %Y", "%d-%b-%Y", "%d %B %Y", "%B %d, %Y")  # fmt: skip
_HOURS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", " %H:%M:%S.%f")
_COUNTED = {"unix": (1e8, 4.2e9), "unix_ms": (1e11, 4.2e12)}
_QUOTED_OR_NUMBER = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d[\d,.]*")
_UNNAMED = re.compile(r"(Unnamed: ?\d+)?")
_SENTINEL = re.compile(r"-?9{2,}|-[12]00|-1000|-32768")
"""Sentinels that people write for a missing number: 99, -999, -200 ..."""


class Inferred(NamedTuple):
    """A proposed contract, the rows [N] in its types, and notes for the user on the assumptions.

    `written`: column -> the name it has in the source. `spread`: whether the rows are spread over time, so that the newest
    can validate.
    """

    table: Table
    frame: pa.Table
    notes: list[str]
    written: dict[str, str]
    spread: bool


def inferred(
    source: Any, name: str, *, time: str = "", key: str = "", zone: str = "UTC", reading: Reading = AS_DETECTED
) -> Inferred:
    """Propose the contract of a table called `name` from a source (see `open_source`), a folder or a glob, with its rows and notes.

    `time` and `key` name the event time and the key (several with commas) where they cannot be guessed. The default event time
    is the first timestamp without nulls, else the moment of ingestion; the default key is a column of unique values,
    else the event time, else the source and the row number. `zone` is that of times
    without one. Raises UsageError when there is no such column, IngestRefused when the source cannot be read.
    A key that repeats is completed by the event time, or replaced by `row_id`.
    """
    notes = Notes()
    paths = expand(source) if isinstance(source, (str, Path)) else [source]
    sources = [open_source(p, reading=reading) for p in paths]
    if encodings := sorted({s.encoding for s in sources if s.encoding}):
        notes.append(f"read as {', '.join(encodings)}" + DOUBT * ("cp1252" in encodings))
    frame, whole, optional = _looked_at(sources, notes)
    frame, left = _without_index(frame, notes)
    comma = decimal_comma(frame)
    names = clean_names(frame.column_names, notes)
    written = dict(zip(names, frame.column_names, strict=True))
    columns: dict[str, Column] = {}
    values: dict[str, pa.ChunkedArray] = {}
    meant = {n for n, w in written.items() if {n, w} & {time, clean(time), key, *key.split(",")}}
    for column in names:
        try:
            explicit = column in (time, clean(time))
            guess, found = _guess(column, frame[written[column]], zone, notes, explicit=explicit, comma=comma)
            if column not in meant:
                guess, found = _without_sentinels(column, guess, found, notes)
        except IngestRefused as error:
            notes.append(error.why)
            left.append(written.pop(column))
            continue
        closed = _closed(guess, found, whole=whole)
        columns[column] = msgspec.structs.replace(
            closed,
            source=None if written[column] == column else written[column],
            optional=written[column] in optional,
            nullable=closed.nullable or written[column] in optional,
        )
        values[column] = found
    event_time = _event_time(columns, values, time, notes)
    keys = _key(columns, values, key, event_time, notes)
    for n in {event_time, *keys}:
        # Numeric identifiers go on counting: a range of those seen would refuse later rows.
        columns[n] = msgspec.structs.replace(
            columns[n], nullable=False, optional=False, minimum=None, maximum=None, categories=None
        )
    spread = event_time in values and _spread(values[event_time])
    if event_time in values and not spread:
        notes.append("the rows are not spread over time, so a random part of them validates")
    table = Table(name=name, columns=columns, key=keys, event_time=event_time, ignore=left)
    return Inferred(table, pa.table(values), notes.folded(), written, spread)


class Notes(list[str]):
    """Notes for the user. Notes about columns (`column 'x' ...`) that differ in little else are folded into one."""

    def folded(self) -> list[str]:
        """All notes in order; more than FEW_NOTES alike become one that lists the other columns."""
        kinds: dict[str, list[str]] = {}
        for note in self:
            kinds.setdefault(_QUOTED_OR_NUMBER.sub("", note) if note.startswith("column ") else note, []).append(note)
        return [line for alike in kinds.values() for line in (alike if len(alike) <= FEW_NOTES else [_fold(alike)])]


def _fold(notes: list[str]) -> str:
    others = [found[0] for note in notes[1:] if (found := _QUOTED_OR_NUMBER.search(note))]
    more = f" and {len(others) - FEW_NOTES:,} more" if len(others) > FEW_NOTES else ""
    return f"{notes[0]} (also {count(len(others), 'more column')}: {', '.join(others[:FEW_NOTES])}{more})"


def _looked_at(sources: Sequence[OpenSource], notes: list[str]) -> tuple[pa.Table, bool, set[str]]:
    """The first rows of the sources, whether these are all, and the columns that not every source has."""
    frames, broken, all_read = [], list[str](), True
    for opened in sources:
        batch = opened.whole(max(MAX_ROWS // len(sources), 1000))
        broken += batch.broken["_reason"].to_pylist()
        frames.append(batch.frame.slice(0, max(MAX_ROWS // len(sources), 1000)))
        all_read = all_read and batch.done >= 1 and len(frames[-1]) == len(batch.frame)
    names = list(dict.fromkeys(n for f in frames for n in f.column_names))
    optional = {n for n in names if not all(n in f.column_names for f in frames if len(f) or f.num_columns)}
    frame = _stacked(sources, frames)
    same = [n for n in {n for s in sources for n in s.offered} if n in frame.column_names and len(pc.unique(frame[n])) < 2]
    frame = frame.drop_columns(same)  # folders with one value say nothing about the rows
    if not len(frame) or not names:
        unread = f", of {len(broken):,} none can be read: {broken[0]}" if broken else ""
        raise IngestRefused(sources[0].name, f"it has no rows to infer a contract from{unread}")
    if len(sources) > 1:
        notes.append(f"read {count(len(sources), 'file')}, {count(len(frame), 'row')}")
    notes += [f"column {n!r} is not in every file: null where it is not" for n in names if n in optional]
    if broken:
        notes.append(f"{count(len(broken), 'row')} left out: {broken[0]}")
    if not all_read:
        notes.append(f"only the first {len(frame):,} rows were looked at: ranges and categories are left open")
    return frame, all_read, optional


def _stacked(sources: Sequence[OpenSource], frames: list[pa.Table]) -> pa.Table:
    if len(frames) == 1:
        return frames[0]
    try:
        return pa.concat_tables(frames, promote_options="permissive")
    except pa.ArrowException as error:
        raise IngestRefused(sources[0].name, f"column types differ between its files ({first_line(error)})") from error


# --- types -----------------------------------------------------------------------------------------------------------


def _guess(
    name: str, values: pa.ChunkedArray, zone: str, notes: list[str], *, explicit: bool, comma: bool
) -> tuple[Column, pa.ChunkedArray]:
    """The narrowest column that holds the values, and the values in its type.

    `explicit`: the user named it as the time; `comma`: the file has decimal commas.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if is_text(values.type):
        column = _from_text(name, values.cast(pa.string()), zone, notes, explicit=explicit, comma=comma)
    else:
        column = _from_type(name, values, zone, notes, explicit=explicit)
    column = msgspec.structs.replace(column, nullable=True)
    if why := unusable(column, values.type):
        raise IngestRefused(name, f"column {name!r} {why}: left out")
    found = read(column, values)
    for rule, rows in found.faults.items():
        notes.append(f"column {name!r}: {int(rows.sum()):,} values are {rule}; their rows go to quarantine")
    return column, found.values


def _from_type(name: str, values: pa.ChunkedArray, zone: str, notes: list[str], *, explicit: bool) -> Column:
    type = values.type
    if pa.types.is_date(type) or (pa.types.is_timestamp(type) and type.tz is None):
        notes.append(f"column {name!r} has no time zone: taken as {zone}")
        return Column("timestamp", zone=zone)
    if pa.types.is_timestamp(type):
        return Column("timestamp")
    if explicit and (counted := _counted(values)):
        return Column("timestamp", format=counted)
    if pa.types.is_boolean(type):
        return Column("boolean")
    if pa.types.is_integer(type) and not pa.types.is_uint64(type):
        return Column("integer")
    if pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type):
        return Column("float")
    if is_list(type):
        return Column("array", shape=_shape(name, values))
    return Column("string")


def _shape(name: str, values: pa.ChunkedArray) -> list[int]:
    """The shape of the first array; IngestRefused without any."""
    first = next((v for v in values.to_pylist() if v), None)
    shape = []
    while isinstance(first, list) and first:
        shape.append(len(first))
        first = first[0]
    if not shape or not isinstance(first, (int, float)):
        raise IngestRefused(name, f"column {name!r} holds lists that are no arrays of numbers: left out")
    return shape


def _counted(values: pa.ChunkedArray) -> str:
    """Which count since 1970 numbers are, if any."""
    seen = pc.min_max(read(Column("float"), values).values).as_py()
    low, high = seen["min"] or 0, seen["max"] or 0
    return next((f for f, (least, most) in _COUNTED.items() if least <= low <= high <= most), "")


def _from_text(name: str, values: pa.ChunkedArray, zone: str, notes: list[str], *, explicit: bool, comma: bool) -> Column:
    blank = pc.unique(values.filter(pc.match_substring_regex(values, r"^\s+$"))).to_pylist()
    if blank:
        values = read(Column("string", missing=blank), values).values
    if explicit:
        counted = _counted(values) if not read(Column("float"), values).faults else ""
        tried = [Column("timestamp", format=counted)] if counted else _times(values, zone)
    else:
        zero = pc.any(pc.match_substring_regex(values, r"^-?0[0-9]")).as_py()  # a code, not a number: 007
        plain, local = ([], []) if zero else numbers(comma=comma)
        tried = [*plain, Column("boolean"), *_times(values, zone), *local]
    best = _best(values, tried) or Column("string")
    best = msgspec.structs.replace(best, missing=[*best.missing, *sorted(blank)])
    if best.zone and not (best.format or "").endswith("UTC"):
        notes.append(f"column {name!r} has no time zone: taken as {zone}")
    if best.format in _twins():
        both = {
            c.format for c in tried if c.format in (best.format, _twins()[best.format]) and not _unreadable(read(c, values))
        }
        if len(both) > 1:
            notes.append(
                f"column {name!r} could be {best.format} or {_twins()[best.format]}: taken as the first, correct it if not"
            )
    if best.missing:
        notes.append(f"column {name!r}: {', '.join(map(repr, best.missing))} is read as missing")
    return best


def _twins() -> dict[str, str]:
    """Formats that read the same text differently: month first, day first; thousands, decimals."""
    pairs = [(d.replace("%d", "%~").replace("%m", "%d").replace("%~", "%m"), d) for d in _DAYS]
    return {d + h: twin + h for twin, d in pairs if twin in _DAYS and twin != d for h in _HOURS} | {NUMBERS[0]: NUMBERS[1]}


def _times(values: pa.ChunkedArray, zone: str) -> list[Column]:
    """The times that a few of the values could be: ISO 8601, and the usual ways of writing a day and an hour."""
    iso = [Column("timestamp"), Column("timestamp", zone=zone)]
    some = [v for v in values.drop_null().slice(0, 2000).to_pylist() if re.search(r"\d", v) and len(v) >= 6][:9]
    if not some or not any(re.search(r"[/.:\- ]", v) for v in some):
        return iso if some else []
    formats = [d + h for d in _DAYS for h in _HOURS] + [f"%Y-%m-%d{h} UTC" for h in _HOURS]
    likely = [f for f in formats if sum(_reads(v, f) for v in some) > len(some) / 2]
    return iso + [Column("timestamp", zone="UTC" if f.endswith("UTC") else zone, format=f) for f in likely]


def _reads(text: str, form: str) -> bool:
    try:
        datetime.strptime(text.strip(), form)  # noqa: DTZ007 - only whether it parses matters
    except ValueError:
        return False
    return True


def _unreadable(read: Read) -> int:
    """Number of values that are not of the type; skipped and ambiguous local times count as valid."""
    return sum(int(rows.sum()) for rule, rows in read.faults.items() if rule.startswith(("not a", "no time", "not true")))


def _best(values: pa.ChunkedArray, tried: list[Column]) -> Column | None:
    """The first that holds all values, else the first that holds all but a few, or all but a few words for missing."""
    there = len(values) - values.null_count
    near: Column | None = None
    for column in tried:
        found = read(column, values)
        count = len(found.values) - found.values.null_count
        if not count:
            continue
        odd = _unreadable(found)
        if not odd:
            return column
        if near is None and column.type != "boolean":
            words = pc.unique(values.filter(pa.array(found.unreadable))).to_pylist() if odd <= there // 2 else []
            if words and len(words) <= ODD_WORDS and not any(re.search(r"\d", w) for w in words):
                near = msgspec.structs.replace(column, missing=sorted(words))
            elif odd <= ODD * there:
                near = column
    return near


def _without_index(frame: pa.Table, notes: list[str]) -> tuple[pa.Table, list[str]]:
    """The frame without the number of the row that pandas and R write before it, and the names of such columns."""
    left = [n for n in dict.fromkeys(frame.column_names) if _UNNAMED.fullmatch(n) and _counts_rows(frame[n])]
    notes += [f"column {n!r} only counts the rows of its file (the index of a data frame): left out" for n in left]
    return frame.drop_columns(left), left


def _counts_rows(values: pa.ChunkedArray) -> bool:
    """Whether values count 0, 1, 2 ... or 1, 2, 3 ..., over again in each file."""
    able = not pa.types.is_nested(values.type) and not unusable(Column("integer"), values.type)
    found = read(Column("integer"), values) if able else None
    if found is None or found.faults or found.values.null_count or len(values) < 2:
        return False
    numbers = found.values.to_numpy()
    return bool(numbers[0] in (0, 1) and ((np.diff(numbers) == 1) | (numbers[1:] == numbers[0])).all())


def _without_sentinels(name: str, column: Column, values: pa.ChunkedArray, notes: list[str]) -> tuple[Column, pa.ChunkedArray]:
    """Name the column's sentinels for missing values, and return the values [N] without them.

    A sentinel is written as people write them (-999, 9999, -200), is frequent, is the minimum or the maximum, and is the only
    value below zero or far from the others.
    """
    if column.type not in ("float", "integer"):
        return column, values
    numbers = values.cast(pa.float64(), safe=False).to_numpy()
    distinct, counts = np.unique(numbers[np.isfinite(numbers)], return_counts=True)
    found: dict[str, int] = {}
    for _ in range(ODD_WORDS):
        for place, rest in ((0, distinct[1:]), (-1, distinct[:-1])):
            if len(rest) < 2 or not _SENTINEL.fullmatch(f"{distinct[place]:.0f}") or counts[place] < OFTEN_MISSING:
                continue
            gap = float(np.abs(rest - distinct[place]).min())
            if gap > FAR * float(rest[-1] - rest[0]) or (distinct[place] < 0 <= rest[0] and gap > -distinct[place] / 2):
                found[f"{distinct[place]:.0f}"] = int(counts[place])
                distinct, counts = rest, counts[1:] if place == 0 else counts[:-1]
                break
    if not found:
        return column, values
    said = ", ".join(f"{word} ({count(rows, 'row')})" for word, rows in found.items())
    notes.append(f"column {name!r}: {said} is read as missing: far from all other values (correct `missing` if it is a value)")
    column = msgspec.structs.replace(column, missing=[*column.missing, *found], nullable=True)
    return column, read(column, values).values


def _closed(column: Column, values: pa.ChunkedArray, *, whole: bool) -> Column:
    """The range or categories seen, a little wider; open if not all rows were seen."""
    nullable = values.null_count > 0 or not whole
    column = msgspec.structs.replace(column, nullable=nullable)
    if column.type in ("float", "integer") and whole:
        seen = pc.min_max(values.filter(pc.is_finite(values)) if column.type == "float" else values).as_py()
        if seen["min"] is None:
            return column
        low = 0.0 if seen["min"] >= 0 else -_round_up(-2 * seen["min"])
        high = _round_up(2 * seen["max"]) if seen["max"] > 0 else 0.0
        # Twice the largest float overflows: such a side stays open.
        sides = {side: number for side, number in (("minimum", low), ("maximum", high)) if np.isfinite(number)}
        return msgspec.structs.replace(column, **sides)
    if column.type == "string" and whole:
        words = sorted(w for w in pc.unique(values).to_pylist() if w is not None)
        return msgspec.structs.replace(column, categories=words if 0 < len(words) <= min(FEW, len(values) // FEW) else None)
    return column


def _round_up(number: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 ... at or above a positive number."""
    power = 10.0 ** np.floor(np.log10(number))
    return float(next((step * power for step in (1, 2, 5, 10) if step * power >= number), number))


# --- time and key ----------------------------------------------------------------------------------------------------


def _named(columns: dict[str, Column], name: str, option: str) -> str:
    """The column that the user means: by its name here, or by its name in the source. UsageError if there is none."""
    found = next((n for n, c in columns.items() if name in (n, c.source)), clean(name))
    if found not in columns:
        raise ColumnUnknown(option, name, columns)
    return found


def _event_time(columns: dict[str, Column], values: dict[str, pa.ChunkedArray], time: str, notes: list[str]) -> str:
    moments = [n for n, c in columns.items() if c.type == "timestamp"]
    if time == INGESTED_AT and INGESTED_AT not in columns:
        return _ingested_at(columns, notes)
    if time:
        named = _named(columns, time, "--time")
        if named not in moments:
            raise UsageError(
                f"column {time!r} is not a time (ISO 8601, or a usual way of writing a day); "
                f"{f'these are: {moments}' if moments else 'no column is one'}. Write it as 2024-05-01T09:00:00Z, or omit --time"
            )
        if gaps := values[named].null_count:
            notes.append(f"column {named!r} says when a row happened; {gaps:,} rows without it go to quarantine")
        return named
    found = [n for n in moments if not values[n].null_count]
    if found:
        others = f"; it could also be {', '.join(found[1:])}" if found[1:] else ""
        notes.append(f"column {found[0]!r} says when a row happened (say --time if not){others}")
        return found[0]
    if moments:
        gaps = ", ".join(f"{n} ({values[n].null_count:,} missing)" for n in moments)
        raise UsageError(
            f"no column says when every row happened; these are times: {gaps}. Name one with --time (rows without it go to "
            f"quarantine), or take the moment of ingestion with `--time {INGESTED_AT}`"
        )
    if INGESTED_AT in columns:
        raise UsageError(f"no column says when a row happened, and {INGESTED_AT!r} is taken: name one with --time")
    notes += [
        f"column {n!r} could count {'milliseconds' if unit == 'unix_ms' else 'seconds'} since 1970: say --time {n} if so"
        for n, c in columns.items()
        if c.type == "integer" and (unit := _counted(values[n]))
    ]
    return _ingested_at(columns, notes)


def _ingested_at(columns: dict[str, Column], notes: list[str]) -> str:
    """A new column for the event time, where no column has it."""
    notes.append("no column says when a row happened: it is the moment of ingestion, and a random part of the rows validates")
    columns[INGESTED_AT] = Column("timestamp", filled="ingested_at")
    return INGESTED_AT


def _spread(moments: pa.ChunkedArray) -> bool:
    """Whether the newest fifth of the time that the rows span holds a usable part of them."""
    seen = moments.cast(pa.int64()).drop_null().to_numpy()
    boundary = seen.max() - (seen.max() - seen.min()) / 5
    return bool(0.02 <= float((seen > boundary).mean()) <= 0.6)


def _key(
    columns: dict[str, Column], values: dict[str, pa.ChunkedArray], key: str, event_time: str, notes: list[str]
) -> list[str]:
    """The key columns, generated if no column identifies rows."""
    frame = pa.table(values)
    if key:
        parts = [key] if any(key in (n, c.source) for n, c in columns.items()) else [k.strip() for k in key.split(",")]
        keys = [_named(columns, k, "--key") for k in parts]
        tried = [keys, [*keys, event_time]] if event_time in values and event_time not in keys else [keys]
    else:
        able = [n for n, c in columns.items() if c.type in ("string", "integer")]
        ids = [n for n in able if is_id(n)]
        first = [n for n in list(columns)[:1] if n in able]
        texts = [n for n in able if columns[n].type == "string"]
        moments = [event_time] if event_time in values else []  # the time last: two rows of one moment would be the same row
        tried = [[n] for n in dict.fromkeys([*ids, *first, *texts, *moments])]
        tried += [
            [n, event_time] for n in dict.fromkeys([*ids, *first, *texts, *able]) if moments and _is_panel(frame, n, event_time)
        ]
    for names in tried:
        if not any(frame[n].null_count for n in names) and len(frame.group_by(names).aggregate([])) == len(frame):
            if key and names != tried[0]:
                notes.append(f"column {key!r} repeats, so the key is {' and '.join(names)}: outcomes name these, or an id")
            elif not key:
                alone = "no two rows happened at one moment" if names == [event_time] else "its values are all different"
                alone = f"none of them has two rows at one {event_time}" if len(names) > 1 else alone
                hint = _things(frame, able, columns) if names == [event_time] else ""
                notes.append(f"the key is {' and '.join(map(repr, names))}: {alone} (say --key if it is not{hint})")
            return names
    if ROW_ID in columns:
        raise UsageError(f"no column identifies the rows, and a column {ROW_ID!r} exists already: name a key with --key")
    why = f"column {key!r} has gaps or repeats at the same time" if key else "no column tells the rows apart"
    notes.append(f"{why}, so the key is a new column {ROW_ID!r}, made of the file and the number of the row")
    columns[ROW_ID] = Column("string", filled="row_id")
    return [ROW_ID]


def _is_panel(frame: pa.Table, name: str, event_time: str) -> bool:
    """Whether rows are readings of things: each thing has one row at most at a moment, and most things have one at most moments."""
    things, moments = (pc.count_distinct(frame[n]).as_py() for n in (name, event_time))
    return bool(1 < things <= len(frame) / FEW and moments > 1 and things * moments <= PANEL * len(frame))


def _things(frame: pa.Table, able: Sequence[str], columns: dict[str, Column]) -> str:
    """A hint when only moments identify the rows: the first column that could name their entity; "" without one."""
    few = [n for n in able if 1 < pc.count_distinct(frame[n]).as_py() <= len(frame) / FEW and not frame[n].null_count]
    said = [columns[n].source or n for n in few]
    return f": `--key {said[0]}` if each row is of one {said[0]}" if said else ""
