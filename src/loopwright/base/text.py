"""Formatting of numbers, intervals, money, shares, moments, durations and counts: in messages, pages, reports and cards."""

import math
from datetime import datetime, timedelta
from typing import Protocol

ABSENT = "–"
"""Placeholder for a missing value."""

_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"))


class Interval(Protocol):
    """A value with its 95 % interval (NaN if there is none): an Estimate."""

    @property
    def value(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float: ...  # noqa: D102
    @property
    def high(self) -> float: ...  # noqa: D102
    @property
    def too_few(self) -> bool: ...  # noqa: D102


def number(value: float | None, *, sign: bool = False) -> str:
    """A number with its significant digits: 1,234,567; 12.3; 0.012; 0.00012. `sign` puts + before positive ones."""
    if value is None or math.isnan(value):
        return ABSENT
    size, plus = abs(value), "+" if sign and value > 0 else ""
    if math.isinf(value):
        return plus + ("∞" if value > 0 else "-∞")
    if size >= 1000 or value == int(value):
        return f"{plus}{value + 0.0:,.0f}"
    return plus + (f"{value:.1f}" if size >= 10 else f"{value:.3f}" if size >= 0.0005 else f"{value:.2g}")


def bounds(estimate: Interval) -> str:
    """The 95 % interval alone: `[0.850, 0.872]`; empty where there is none."""
    absent = math.isnan(estimate.low) or math.isnan(estimate.high)
    return "" if absent else f"[{number(estimate.low)}, {number(estimate.high)}]"


def interval(estimate: Interval | None, *, sign: bool = False) -> str:
    """A value with its 95 % interval: `0.861 [0.850, 0.872]`; without one where it has no width."""
    if estimate is None:
        return ABSENT
    exact = estimate.low == estimate.high
    return (
        number(estimate.value, sign=sign) + ("" if exact or not bounds(estimate) else f" {bounds(estimate)}") + _few(estimate)
    )


def money(estimate: Interval, currency: str = "", *, sign: bool = False) -> str:
    """Money with its 95 % interval: `+1,234 USD [980, 1,488]`; cents where it is less than 100."""
    ends = f"{amount(estimate.low, of=estimate)}, {amount(estimate.high, of=estimate)}"
    unit = f" {currency}" if currency else ""
    return (
        f"{amount(estimate.value, sign=sign, of=estimate)}{unit}"
        + ("" if math.isnan(estimate.low) else f" [{ends}]")
        + _few(estimate)
    )


def _few(estimate: Interval) -> str:
    return " (too few to tell)" if estimate.too_few else ""


def amount(value: float, *, sign: bool = False, of: Interval | None = None) -> str:
    """An amount of money: to the cent below 100, else to the unit; `of` is the total that it is shown with."""
    ends = [value] if of is None else [end for end in (of.value, of.low, of.high) if not math.isnan(end)]
    digits = 0 if max(map(abs, ends), default=0.0) >= 100 else 2
    return ABSENT if math.isnan(value) else f"{value + 0.0:{'+' if sign else ''},.{digits}f}"


def share(value: float | None) -> str:
    """A share as per cent: `1.2%`, `50%`."""
    return ABSENT if value is None or math.isnan(value) else f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def count(number_of: int, thing: str, things: str = "") -> str:
    """A count with its noun: `1 row`, `3 rows`."""
    return f"{number_of:,} {thing if number_of == 1 else things or f'{thing}s'}"


def moment(value: datetime | None) -> str:
    """A moment in UTC to the minute."""
    return ABSENT if value is None else f"{value:%Y-%m-%d %H:%M}"


def day(value: datetime | None) -> str:
    """A day in UTC."""
    return ABSENT if value is None else f"{value:%Y-%m-%d}"


def duration_text(span: timedelta) -> str:
    """A length of time in its largest unit: `3 days`, `5 hours`, `12 minutes`."""
    seconds = span.total_seconds()
    return next((count(int(seconds // size), unit) for size, unit in _UNITS if seconds >= size), "less than a minute")


def short(digest: str) -> str:
    """The first twelve digits of a digest: enough to name it in any command."""
    return digest[:12] or ABSENT


def spaced(name: str) -> str:
    """A metric or flag in words; a column or slice behind its colon keeps its name: `out_of_range:net_km` is `out of range: net_km`."""
    kind, colon, of = name.partition(":")
    return kind.replace("_", " ") + (f": {of}" if colon else "")
