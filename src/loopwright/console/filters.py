"""Template filters: formatting of values, and selection of what is shown."""

from collections.abc import Callable
from typing import Any

from loopwright.base.text import bounds, count, day, duration_text, moment, number, share, short, spaced
from loopwright.records.evaluation import FleetBoard, SegmentModel
from loopwright.records.windows import Quality, ValueWindow, Window, edge
from loopwright.render.words import cell, limit


def ends(window: Window | Quality | ValueWindow) -> str:
    """The end of a window: the day, or the minute if it is shorter than a day."""
    return edge(window.end, window.end - window.start)


def signed(value: float) -> str:
    """A number with its sign; zero has none."""
    return number(value, sign=True)


MAX_SEGMENTS = 50
"""Maximum number of a fleet's segments on a page."""


def segments(fleet: FleetBoard) -> list[SegmentModel]:
    """The segments to show: those with a package of their own that serves, then the largest."""
    return sorted(fleet.segments, key=lambda m: (m.segment not in fleet.serving, -m.rows))[:MAX_SEGMENTS]


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "signed": signed,
    "count": count,
    "interval": bounds,
    "moment": moment,
    "day": day,
    "ends": ends,
    "share": share,
    "words": spaced,
    "short": short,
    "cell": cell,
    "segments": segments,
    "limit": limit,
    "span": duration_text,
}
"""Filters by the name that templates use."""
