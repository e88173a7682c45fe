"""How values are written as text, in a terminal and in a notebook: times, numbers, intervals, lists, what is absent."""

import math
from datetime import datetime
from typing import Any

import msgspec

from loopwright.base.printable import printable
from loopwright.records.evaluation import Estimate

NEVER = "–"


def word(value: Any) -> str:
    """A value in words, as `plain` writes it."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return NEVER
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, Estimate):
        return interval(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {word(v)}" for k, v in value.items()) or NEVER
    if isinstance(value, list | tuple | set):
        return ", ".join(word(v) for v in value) or NEVER
    if isinstance(value, msgspec.Struct):
        return ", ".join(f"{n} {word(getattr(value, n))}" for n in value.__struct_fields__)
    return printable(str(value), newlines=True)


def number(value: float) -> str:
    """A number with as many digits as matter: 1,234,567; 12.3; 0.0123."""
    if math.isnan(value):
        return NEVER
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 or value == int(value) else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def count(number_of: int, thing: str) -> str:
    """How many of a thing: `1 row`, `3 rows`."""
    return f"{number_of:,} {thing}" if number_of == 1 else f"{number_of:,} {thing}s"


def interval(estimate: Estimate) -> str:
    """A value with its 95 % interval."""
    if math.isnan(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def short(digest: str) -> str:
    """The first twelve digits of a digest: enough to name it in any command."""
    return digest[:12] or NEVER
