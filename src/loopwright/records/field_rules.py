"""What each field of a declaration may hold: its type, and by the table RULES the range of every number and every duration.

A number or a duration without a row here is a fault of ours: `tests/records/test_field_rules.py` walks every field of every declaration.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

import msgspec

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


_ANY = Number(-(10**15), 10**15)
_FINITE = Number(-sys.float_info.max, sys.float_info.max)
_MONEY = Number(-(10**12), 10**12)
_POSITIVE = Number(0, 10**15, above=True)
_SPLIT_SHARE = Number(0, 0.9, above=True)
_INSIDE = Number(0, 1, above=True, below=True)
_ROWS = Number(1, 1_000_000_000)
_DELAY, _LENGTH = Duration("0s"), Duration("1s")

RULES: dict[str, Number | Duration] = {
    "Objective.at_least": _ANY,
    "Objective.at_most": _ANY,
    "Objective.weight": Number(0, 10**6),
    "Budget.train_minutes": Number(0, 10**6, above=True),
    "Budget.usd_per_month": Number(0, 10**12),
    "Budget.usd_per_hour": Number(0, 10**6),
    "Value.true_positive": _MONEY,
    "Value.false_positive": _MONEY,
    "Value.true_negative": _MONEY,
    "Value.false_negative": _MONEY,
    "Value.correct": _MONEY,
    "Value.wrong": _MONEY,
    "Value.under": _MONEY,
    "Value.over": _MONEY,
    "Scope.horizon": _LENGTH,
    "Column.minimum": _FINITE,
    "Column.maximum": _FINITE,
    "Column.shape": Number(1, 2**24),
    "Table.known_after": _DELAY,
    "Context.max_age": _LENGTH,
    "Context.lag": _DELAY,
    "Aggregate.window": _LENGTH,
    "Aggregate.lag": _DELAY,
    "Outcome.wait": _DELAY,
    "Outcome.quantiles": _INSIDE,
    "Outcome.alert_share": _INSIDE,
    "TimeSplit.validation": _LENGTH,
    "TimeSplit.embargo": _DELAY,
    "GroupSplit.validation": _SPLIT_SHARE,
    "StratifiedSplit.validation": _SPLIT_SHARE,
    "Sampling.keep": Number(0, 1, above=True),
    "Sampling.weights": Number(0, 10**6, above=True),
    "Fleet.minimum_rows": _ROWS,
    "Fleet.most": Number(1, 10**6),
    "Candidate.trials": Number(0, 10_000),
    "Guard.tolerance": Number(0, 10**15),
    "Release.deadline_ms": Number(1, 600_000),
    "Monitor.every": Duration("1m"),
    "Monitor.psi": _POSITIVE,
    "Monitor.jensen_shannon": _POSITIVE,
    "Monitor.minimum_rows": _ROWS,
    "Retrain.every": Duration("1m"),
    "Retrain.drift": Number(1, 10**6),
    "Retrain.decay": _POSITIVE,
    "Retrain.cooldown": _DELAY,
    "Retrain.window": _LENGTH,
    "Loop.seed": Number(0, 2**32 - 1),
}
"""The range of every field that holds a number or a duration, also within a list or a dictionary."""


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def type_problems(declaration: msgspec.Struct) -> list[tuple[str, str]]:
    """Fields whose value is not of their type, each with what was expected."""
    found = []
    for field in _fields(type(declaration)):
        value = getattr(declaration, field.name)
        if isinstance(value, set | frozenset):  # it has no order, so it would be another declaration in the next process
            found.append((field.name, "is a set: write a list"))
            continue
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            found.append((field.name, str(error)[:1].lower() + str(error)[1:]))
    return found


def range_problems(declaration: msgspec.Struct) -> list[tuple[str, str]]:
    """Numbers and durations out of range, in fields that are of their types."""
    found = []
    for field in _fields(type(declaration)):
        rule = RULES.get(f"{type(declaration).__name__}.{field.name}")
        for path, value in _values(field.name, getattr(declaration, field.name)):
            if rule is not None and value is not None and (why := rule.problem(value)):
                found.append((path, why))
    return found


def _values(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield f"{path}.{name}", each
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield f"{path}[{i}]", each
    else:
        yield path, value
