"""Profile of a table's rows: counts, nulls, distributions, rows per day, freshness."""

from datetime import date, datetime
from typing import ClassVar

import msgspec

from loopwright.records.entries import Record

Value = int | float | str | bool | None


class ColumnProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One column.

    For numbers and times `quantiles` are those of 5, 25, 50, 75 and 95 %, and `histogram` counts rows in equal
    parts between `minimum` and `maximum`. `distinct` and `quantiles` are approximate (HyperLogLog, t-digest); `top` has the
    commonest values that come twice or more, with their rows. Times are ISO 8601.
    """

    name: str
    type: str
    nulls: int
    distinct: int = 0
    minimum: Value = None
    maximum: Value = None
    mean: float | None = None
    quantiles: list[Value] = []
    top: list[tuple[Value, int]] = []
    histogram: list[int] = []


class DayCount(msgspec.Struct, frozen=True):
    """Number of rows with an event time on one day (UTC)."""

    day: date
    rows: int


class Profile(Record, frozen=True, kw_only=True):
    """A table at a version. `days` are the newest days up to that of the newest row, days without rows included.

    `newest` and `oldest` are event times (None without rows), `at` is when the profile was made. `left_out` counts columns
    beyond those that are profiled.
    """

    kind: ClassVar[str] = "profile"
    table: str
    version: int
    at: datetime
    rows: int
    oldest: datetime | None = None
    newest: datetime | None = None
    columns: list[ColumnProfile] = []
    days: list[DayCount] = []
    left_out: int = 0
