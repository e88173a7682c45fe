"""Functions for features that the Array API lacks: local time, categories, null, time between two moments.

Everything here takes columns (or arrays made of them) and becomes part of the graph. Null stays null.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np

__all__ = ["LocalTime", "category", "is_null", "local_time", "seconds_between"]

_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2101, 1, 1, tzinfo=UTC)
_SECOND, _DAY = 1_000_000, 86_400_000_000
_LONGEST = 128 * _DAY


class LocalTime:
    """Local clock and calendar values of N moments: integers [N], null where the moment is null.

    The calendar is the proleptic Gregorian one (Hinnant 2013, chrono-compatible low-level date algorithms).
    """

    def __init__(self, local: Any, null: Any) -> None:
        """`local` are microseconds since 1970 on the local clock, int64 [N]; `null` the mask of nulls, bool [N]."""
        self._local, self._null = local, null
        self._days = local // _DAY

    def _made(self, values: Any) -> Any:
        return nde.make_nullable(values, self._null)

    @property
    def hour(self) -> Any:
        """0 to 23."""
        return self._made((self._local - self._days * _DAY) // (3600 * _SECOND))

    @property
    def minute(self) -> Any:
        """0 to 59."""
        return self._made((self._local - self._days * _DAY) // (60 * _SECOND) % 60)

    @property
    def second(self) -> Any:
        """0 to 59."""
        return self._made((self._local - self._days * _DAY) // _SECOND % 60)

    @property
    def minute_of_day(self) -> Any:
        """0 to 1439: minutes since midnight as the clock on the wall counts them."""
        return self._made((self._local - self._days * _DAY) // (60 * _SECOND))

    @property
    def weekday(self) -> Any:
        """0 is Monday, 6 is Sunday."""
        return self._made((self._days + 3) % 7)

    @property
    def day(self) -> Any:
        """1 to 31."""
        return self._made(self._civil()[2])

    @property
    def month(self) -> Any:
        """1 to 12."""
        return self._made(self._civil()[1])

    @property
    def year(self) -> Any:
        """The year, as 2013."""
        return self._made(self._civil()[0])

    @property
    def day_of_year(self) -> Any:
        """1 to 366."""
        year, _, _ = self._civil()
        before = year - 1
        return self._made(self._days + 719_163 - (365 * before + before // 4 - before // 100 + before // 400))

    @property
    def days(self) -> Any:
        """Days since 1970-01-01 on the local calendar, for differences between dates."""
        return self._made(self._days)

    def _civil(self) -> tuple[Any, Any, Any]:
        shifted = self._days + 719_468
        era = shifted // 146_097
        day = shifted - era * 146_097
        year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
        of_year = day - (365 * year + year // 4 - year // 100)
        month = (5 * of_year + 2) // 153
        early = ndx.astype(month >= 10, ndx.int64)
        return year + era * 400 + early, month + 3 - 12 * early, of_year - (153 * month + 2) // 5 + 1


def local_time(moments: Any, zone: str = "UTC") -> LocalTime:
    """The local time of a timestamp column in an IANA zone: `local_time(f.scheduled_at, "America/New_York").hour`.

    Offsets come from this machine's zone data for 1970 to 2100 and are stored in the graph when it is traced: a package
    keeps the offsets of its training time. Before 1970 the first offset applies, after 2100 the last. Raises
    TypeError for a column that is not a timestamp, ZoneInfoNotFoundError for an unknown zone.
    """
    if not isinstance(getattr(moments, "dtype", None), ndx.DateTime64DType):
        raise TypeError(f"local_time takes a timestamp column, not {getattr(moments, 'dtype', type(moments).__name__)}")
    utc, null = ndx.astype(moments, ndx.int64), ndx.isnan(moments)
    length, edges, before, after = _offsets(zone)
    if len(set(before) | set(after)) == 1:
        return LocalTime(utc + before[0], null)
    place = ndx.clip(utc // length, 0, len(edges) - 1)
    edge, low, high = (ndx.take(ndx.asarray(np.array(a, dtype=np.int64)), place, axis=0) for a in (edges, before, after))
    return LocalTime(utc + ndx.where(utc >= edge, high, low), null)


def seconds_between(earlier: Any, later: Any) -> Any:
    """Seconds from one timestamp column to another (negative where `later` is earlier), float64 [N]; null where either is null."""
    passed = ndx.astype(ndx.astype(later, ndx.int64) - ndx.astype(earlier, ndx.int64), ndx.float64) / _SECOND
    return nde.make_nullable(passed, ndx.isnan(earlier) | ndx.isnan(later))


def is_null(array: Any) -> Any:
    """Whether each row of a column is null, bool [N]: not NaN, not 0, not an empty text. False where a column cannot be null."""
    if isinstance(array.dtype, ndx.DateTime64DType):
        return ndx.isnan(array)
    first: Any = array if array.ndim == 1 else array[(slice(None), *[0] * (array.ndim - 1))]
    if nde.is_nullable_dtype(first.dtype):
        return nde.get_mask(first)
    return (first == first) & (first != first)  # false for each row, also for NaN


def category(array: Any) -> Any:
    """A category of an integer or boolean column: codes that are names, not amounts. Its words are the numbers as text, or `true` and `false`.

    Raises TypeError for another type.
    """
    if array.dtype in (ndx.bool, ndx.nbool):
        plain = nde.fill_null(array, False) if array.dtype == ndx.nbool else array
        words = ndx.where(plain, ndx.asarray("true"), ndx.asarray("false"))
        return nde.make_nullable(words, nde.get_mask(array)) if array.dtype == ndx.nbool else words
    if nde.is_integer_dtype(array.dtype):
        return ndx.astype(array, ndx.utf8)
    if nde.is_nullable_integer_dtype(array.dtype):
        return ndx.astype(array, ndx.nutf8)
    raise TypeError(f"a category is made of integers or booleans, not {array.dtype}: round it, or compare it with edges")


@cache
def _offsets(zone: str) -> tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The zone's offsets as a table over equal stretches of time since 1970, each short enough to hold one change at most.

    Given are the length of a stretch and, for each, the moment the offset changes in it and the offsets before and after, all in
    microseconds.
    """
    tz = ZoneInfo(zone)
    changes = _changes(tz)
    length = _LONGEST
    while any(b // length == a // length for a, b in pairwise(changes)):
        length //= 2
    count = -(-_microseconds(_LAST) // length)
    edges, before, after = [], [], []
    offset, at = _offset(tz, _FIRST), 0
    for stretch in range(count):
        edge = changes[at] if at < len(changes) and changes[at] // length == stretch else None
        before.append(offset)
        if edge is not None:
            offset, at = _offset(tz, _FIRST + timedelta(microseconds=edge)), at + 1
        edges.append(edge if edge is not None else (stretch + 1) * length)
        after.append(offset)
    return length, tuple(edges), tuple(before), tuple(after)


def _changes(tz: ZoneInfo) -> list[int]:
    """Microseconds since 1970 of each change of a zone's offset from 1970 to 2100, found day by day and then by halving."""
    found = list[int]()
    day, offset = _FIRST, _offset(tz, _FIRST)
    while day < _LAST and tz.utcoffset(None) is None:  # a zone whose offset never changes, such as UTC: no moment needed
        low, high, before = day, day + timedelta(days=1), offset
        day, offset = high, _offset(tz, high)
        if offset == before:
            continue
        while high - low > timedelta(seconds=1):
            middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
            low, high = (middle, high) if _offset(tz, middle) == before else (low, middle)
        found.append(_microseconds(high))
    return found


def _offset(tz: ZoneInfo, moment: datetime) -> int:
    return (moment.astimezone(tz).utcoffset() or timedelta()) // timedelta(microseconds=1)


def _microseconds(moment: datetime) -> int:
    return (moment - _FIRST) // timedelta(microseconds=1)
