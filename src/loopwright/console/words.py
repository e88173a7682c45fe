"""How values are written on a page: short, with units, absent values as a dash. Templates use these as filters."""

import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from loopwright.records.evaluation import Estimate, FleetBoard, SegmentModel
from loopwright.records.windows import Quality, ValueWindow, Window, edge
from loopwright.verbs.results import duration_text, said

NEVER = "–"


def number(value: float | None) -> str:
    """As many digits as matter: 1,234,567; 12.3; 0.012; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NEVER
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    text = f"{size:,.0f}" if size >= 1000 or size == int(size) else f"{size:.1f}" if size >= 10 else f"{size:.3f}"
    return "−" + text if value < 0 else text


def signed(value: float) -> str:
    """A number with its sign; nothing before zero."""
    return "+" + number(value) if value > 0 else number(value)


def count(number_of: int, thing: str) -> str:
    """How many of a thing: `1 loop`, `3 loops`."""
    return f"{number_of:,} {thing}" if number_of == 1 else f"{number_of:,} {thing}s"


def interval(value: Estimate) -> str:
    """The 95 % interval alone: `[0.850, 0.872]`, empty when there is none."""
    return "" if math.isnan(value.low) or math.isnan(value.high) else f"[{number(value.low)}, {number(value.high)}]"


def moment(value: datetime | None) -> str:
    """A moment in UTC to the minute."""
    return NEVER if value is None else f"{value:%Y-%m-%d %H:%M}"


def day(value: datetime | None) -> str:
    """A day in UTC."""
    return NEVER if value is None else f"{value:%Y-%m-%d}"


def ends(window: Window | Quality | ValueWindow) -> str:
    """When a window ends: the day, or the minute where it is shorter than a day."""
    return edge(window.end, window.end - window.start)


def share(value: float | None) -> str:
    """A share as per cent."""
    return NEVER if value is None or math.isnan(value) else f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def words(value: str) -> str:
    """A metric's or field's name in words: `average_precision` is `average precision`."""
    return value.replace("_", " ").replace(":", ": ")


def short(digest: str) -> str:
    """The first twelve digits of a digest: enough to name it in any command."""
    return digest[:12] or NEVER


def cell(value: Any) -> str:
    """Any value of a request, context or outcome column."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def limit(value: Any) -> str:
    """An end or the middle of a column's range: a number short, a time to the day, a text cut."""
    if value is None or isinstance(value, bool):
        return NEVER
    if isinstance(value, str):
        return value[:10] if re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.+]+", value) else value[:16]
    return number(value)


MOST_SEGMENTS = 50
"""So many segments of a fleet are on a page at most."""


def segments(fleet: FleetBoard) -> list[SegmentModel]:
    """The segments to show: those with a package of their own that serves, then the largest."""
    return sorted(fleet.segments, key=lambda m: (m.segment not in fleet.serving, -m.rows))[:MOST_SEGMENTS]


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "signed": signed,
    "count": count,
    "interval": interval,
    "moment": moment,
    "day": day,
    "ends": ends,
    "share": share,
    "words": words,
    "short": short,
    "cell": cell,
    "said": said,
    "segments": segments,
    "limit": limit,
    "span": duration_text,
}
"""Filters by the name that templates use."""
