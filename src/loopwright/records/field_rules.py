"""Valid values of each field of a declaration: its type, and all other rules in three tables.

RULES has the range of every number and duration and the form of every text, KEYS the keys of every dictionary, ITEMS the length of
every list.

A field without its row here is a fault of ours: `tests/records/test_field_rules.py` walks every field of every declaration.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec

from loopwright.base.ids import NAME
from loopwright.base.printable import printable
from loopwright.base.tokens import CALLER
from loopwright.records.freeze import Frozen

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def duration(text: str) -> timedelta:
    """Read `90s`, `15m`, `3h`, `7d`, `2w`, `250ms` or a sum such as `1d 12h`; ValueError otherwise."""
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError(f"{text!r} is not a duration: write 90s, 15m, 3h, 7d or 2w")
    try:
        return timedelta(seconds=sum(float(n) * _UNIT[u] for n, u in parts))
    except OverflowError:
        raise ValueError(f"{text!r} is too long a duration") from None


class Number(NamedTuple):
    """A finite number from `least` (or `above` it) to `most` (or `below` it)."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def problem(self, value: float) -> str:
        """Why a number is out of range; NaN always is. Empty when it is not."""
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        if low and high:
            return ""
        return f"{value!r:.40} is not {'above' if self.above else 'at least'} {self.least:,} and {'below' if self.below else 'at most'} {self.most:,}"


class Duration(NamedTuple):
    """A duration from `least` to `most`."""

    least: str
    most: str = "36500d"

    def problem(self, value: str) -> str:
        """Why a text is no duration, or out of range; empty when it is neither."""
        try:
            found = duration(value)
        except ValueError as error:
            return str(error)
        lawful = duration(self.least) <= found <= duration(self.most)
        return "" if lawful else f"{value[:40]!r} is not at least {self.least} and at most {self.most}"


class Text(NamedTuple):
    """A non-blank text of at most `most` characters, without control characters.

    `blank`: it may be empty. `lines`: it may have several lines. `raw`: it is compared with data, so any character that
    UTF-8 can encode is allowed.
    """

    most: int = 200
    blank: bool = False
    lines: bool = False
    raw: bool = False

    def problem(self, value: str) -> str:
        """Why a text cannot be; empty when it can."""
        if not self.blank and not value.strip():
            return "is empty: write a text, or leave it off where it is optional"
        if len(value) > self.most:
            return f"has {len(value):,} characters: at most {self.most:,}"
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"{printable(value)[:40]!r} holds {value[error.start]!a}, half of a character: write it as UTF-8"
        if not self.raw and printable(value, newlines=self.lines) != value:
            return f"{printable(value)[:40]!r} holds characters that cannot be seen: write it without them"
        return ""


class Form(NamedTuple):
    """A text of one form, and how to write it."""

    form: re.Pattern[str]
    advice: str

    def problem(self, value: str) -> str:
        """Why a text is not of the form; empty when it is."""
        return "" if self.form.fullmatch(value) else f"{printable(value)[:80]!r}: {self.advice}"


class Zone(NamedTuple):
    """A time zone of the IANA database."""

    def problem(self, value: str) -> str:
        """Why a text is not a zone, with similar zone names; empty when it is one."""
        try:
            ZoneInfo(value)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            near = get_close_matches(value[:80], sorted(available_timezones()), 3, 0.6)
            advice = f"did you mean {' or '.join(near)}?" if near else "write an IANA name such as Europe/Paris, or UTC"
            return f"{printable(value)[:80]!r} is no zone: {advice}"
        return ""


class Worsens(NamedTuple):
    """The name of a metric that can get worse."""

    blank: bool = False

    def problem(self, value: str) -> str:
        """Why a metric of this name cannot get worse; empty if it can."""
        if value in UNDIRECTED:
            return f"{value!r} has no direction, so no value of it is worse than another: name a metric that should be high, or low"
        return "" if self.blank and not value else Text().problem(value)


UNDIRECTED = ("positive_rate", "mean_error")
"""Metrics without a better direction: an objective can have one as its target, but a change of it is never a regression."""


class Items(NamedTuple):
    """A list of at least `least` elements, all different (`by`: in the value of this field) unless it may `repeat`."""

    least: int = 0
    by: str = ""
    repeat: bool = False
    empty: str = "name at least one"

    def problems(self, field: str, items: Sequence[Any]) -> list[tuple[str, str]]:
        """Problems of a field's list; empty if it is valid."""
        if len(items) < self.least:
            return [(field, f"is empty: {self.empty}")]
        names = [getattr(i, self.by) if self.by else i if isinstance(i, str) else repr(i) for i in items]
        first: dict[str, int] = {}
        twice = [i for i, name in enumerate(names) if first.setdefault(name, i) != i and not self.repeat]
        path = f".{self.by}" if self.by else ""
        return [(f"{field}[{i}]{path}", f"{printable(names[i])[:80]!r} is there twice") for i in twice[:20]]


class Rule(Protocol):
    """Rule of one value."""

    def problem(self, value: Any, /) -> str:
        """Why a value cannot be; empty when it can."""
        ...


_ANY = Number(-(10**15), 10**15)
_FINITE = Number(-sys.float_info.max, sys.float_info.max)
_MONEY = Number(-(10**12), 10**12)
_POSITIVE = Number(0, 10**15, above=True)
_SPLIT_SHARE = Number(0, 0.9, above=True)
_INSIDE = Number(0, 1, above=True, below=True)
_ROWS = Number(1, 1_000_000_000)
_DELAY, _LENGTH = Duration("0s"), Duration("1s")
_TEXT, _PROSE, _SQL, _RAW = (
    Text(),
    Text(5_000, blank=True, lines=True),
    Text(20_000, blank=True, lines=True),
    Text(10_000, blank=True, raw=True),
)
_NAME = Form(NAME, "use 1 to 64 of a-z 0-9 . _ - beginning with a letter or digit")
_COLUMN = Form(
    re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}"), "a column name is letters, digits and _, not beginning with a digit or with _"
)

RULES: dict[str, Rule] = {
    "Objective.name": _TEXT,
    "Objective.owner": _TEXT,
    "Objective.metric": _TEXT,
    "Objective.at_least": _ANY,
    "Objective.at_most": _ANY,
    "Objective.weight": Number(0, 10**6),
    "Budget.train_minutes": Number(0, 10**6, above=True),
    "Budget.usd_per_month": Number(0, 10**12),
    "Budget.usd_per_hour": Number(0, 10**6),
    "Value.currency": Text(20),
    "Value.true_positive": _MONEY,
    "Value.false_positive": _MONEY,
    "Value.true_negative": _MONEY,
    "Value.false_negative": _MONEY,
    "Value.correct": _MONEY,
    "Value.wrong": _MONEY,
    "Value.under": _MONEY,
    "Value.over": _MONEY,
    "Heuristic.name": _NAME,
    "Scope.problem": Text(5_000, lines=True),
    "Scope.horizon": _LENGTH,
    "Scope.approvers": Form(CALLER, "a name is 1 to 64 letters, digits and . _ @ + -, as in LOOPWRIGHT_BY or of a token"),
    "Scope.approvals": Number(1, 20),
    "Column.minimum": _FINITE,
    "Column.maximum": _FINITE,
    "Column.categories": _RAW,
    "Column.tags": _TEXT,
    "Column.description": _PROSE,
    "Column.zone": Zone(),
    "Column.shape": Number(1, 2**24),
    "Column.source": _RAW,
    "Column.format": _TEXT,
    "Column.missing": _RAW,
    "Table.name": _NAME,
    "Table.key": _TEXT,
    "Table.event_time": _TEXT,
    "Table.known_time": _TEXT,
    "Table.description": _PROSE,
    "Table.ignore": _RAW,
    "Table.known_after": _DELAY,
    "Context.by": _TEXT,
    "Context.columns": _TEXT,
    "Context.max_age": _LENGTH,
    "Context.lag": _DELAY,
    "Aggregate.name": _COLUMN,
    "Aggregate.by": _TEXT,
    "Aggregate.of": _SQL,
    "Aggregate.description": _PROSE,
    "Aggregate.window": _LENGTH,
    "Aggregate.lag": _DELAY,
    "Outcome.label": Text(20_000, lines=True),
    "Outcome.group": _TEXT,
    "Outcome.wait": _DELAY,
    "Outcome.absent": _TEXT,
    "Outcome.quantiles": _INSIDE,
    "Outcome.alert_share": _INSIDE,
    "Slice.name": _NAME,
    "TimeSplit.validation": _LENGTH,
    "TimeSplit.embargo": _DELAY,
    "GroupSplit.column": _TEXT,
    "GroupSplit.validation": _SPLIT_SHARE,
    "StratifiedSplit.column": _TEXT,
    "StratifiedSplit.validation": _SPLIT_SHARE,
    "Sampling.keep": Number(0, 1, above=True),
    "Sampling.weights": Number(0, 10**6, above=True),
    "Fleet.by": _TEXT,
    "Fleet.minimum_rows": _ROWS,
    "Fleet.most": Number(1, 10**6),
    "Candidate.name": _NAME,
    "Candidate.trials": Number(0, 10_000),
    "Guard.metric": Worsens(),
    "Guard.slices": _TEXT,
    "Guard.tolerance": Number(0, 10**15),
    "AB.metric": Worsens(),
    "AB.minimum_effect": _POSITIVE,
    "AB.share": Number(0, 0.5, above=True),
    "AB.time": Duration("1s"),
    "Shadow.share": Number(0, 1, above=True),
    "Shadow.time": Duration("1s"),
    "Shadow.rows": _ROWS,
    "Shadow.flips": Number(0, 1, above=True),
    "Canary.share": Number(0, 0.5, above=True),
    "Canary.time": Duration("1s"),
    "Canary.rows": _ROWS,
    "Full.watch": Duration("1s"),
    "Full.hold_back": Number(0, 0.2),
    "Release.alpha": Number(0, 0.5, above=True),
    "Release.deadline_ms": Number(1, 600_000),
    "Release.freeze": Frozen(),
    "Release.zone": Zone(),
    "Monitor.every": Duration("1m"),
    "Monitor.psi": _POSITIVE,
    "Monitor.false_alarms_per_year": _POSITIVE,
    "Monitor.jensen_shannon": _POSITIVE,
    "Monitor.minimum_rows": _ROWS,
    "Retrain.every": Duration("1m"),
    "Retrain.drift": Number(1, 10**6),
    "Retrain.decay": _POSITIVE,
    "Retrain.decay_metric": Worsens(blank=True),
    "Retrain.cooldown": _DELAY,
    "Retrain.window": _LENGTH,
    "Loop.name": _NAME,
    "Loop.unit": _TEXT,
    "Loop.seed": Number(0, 2**32 - 1),
}
"""Rules of all fields with a number, a duration or a text, also within a list or a dictionary."""

KEYS: dict[str, Rule] = {
    "Table.columns": _COLUMN,
    "Context.by": _TEXT,
    "Context.columns": _COLUMN,
    "Aggregate.by": _TEXT,
    "Outcome.label": _COLUMN,
    "Sampling.keep": _RAW,
    "Sampling.weights": _RAW,
}
"""Rules of the keys of every dictionary."""

ITEMS: dict[str, Items] = {
    "Scope.objectives": Items(1, by="name", empty="at least one objective, or no candidate can be judged"),
    "Scope.approvers": Items(),
    "Column.categories": Items(1, empty="name the words that may come, or leave `categories` off for any word"),
    "Column.tags": Items(),
    "Column.shape": Items(1, repeat=True, empty="write the length of each dimension, all at least 1"),
    "Column.missing": Items(),
    "Table.key": Items(1, empty="name the columns that identify an entity"),
    "Table.ignore": Items(),
    "Context.columns": Items(),
    "Outcome.quantiles": Items(),
    "Guard.slices": Items(),
    "Release.guards": Items(),
    "Release.plan": Items(),
    "Release.freeze": Items(),
    "Loop.candidates": Items(1, by="name", empty="declare at least one, or there is nothing to compare the heuristic with"),
    "Loop.context": Items(),
    "Loop.aggregates": Items(by="name"),
    "Loop.slices": Items(by="name"),
}
"""Rules of every list."""


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def type_problems(declaration: msgspec.Struct) -> list[tuple[str, str]]:
    """Fields whose value has the wrong type, each with the expected one."""
    found = []
    for field in _fields(type(declaration)):
        value = getattr(declaration, field.name)
        if isinstance(value, set | frozenset):  # it has no order, so it would be another declaration in the next process
            found.append((field.name, "is a set: write a list"))
            continue
        try:
            converted = msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            found.append((field.name, str(error)[:1].lower() + str(error)[1:]))
            continue
        # A dictionary would do for msgspec, which makes a declaration of it; here it stays one, without its fields.
        one = isinstance(converted, msgspec.Struct)
        made = [converted] if one else [each for _, each in _values("", converted)]
        for (path, each), as_made in zip([(field.name, value)] if one else _values(field.name, value), made, strict=True):
            if isinstance(as_made, msgspec.Struct) and isinstance(each, Mapping):
                found.append((path, f"is a dictionary: write {type(as_made).__name__}(...)"))
    return found


def range_problems(declaration: msgspec.Struct) -> list[tuple[str, str]]:
    """Numbers, durations, texts and lists that break their rules, in fields that are of their types."""
    found = []
    for field in _fields(type(declaration)):
        name, whole = f"{type(declaration).__name__}.{field.name}", getattr(declaration, field.name)
        if isinstance(whole, Mapping) and (keys := KEYS.get(name)):
            found += [(f"{field.name}.{printable(key)[:80]}", why) for key in whole if (why := keys.problem(key))]
        if isinstance(whole, list) and (items := ITEMS.get(name)):
            found += items.problems(field.name, whole)
        rule = RULES.get(name)
        for path, value in _values(field.name, whole):
            if rule is not None and value is not None and (why := rule.problem(value)):
                found.append((path, why))
    return found


def _values(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield f"{path}.{printable(name)[:80]}", each
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield f"{path}[{i}]", each
    else:
        yield path, value
