"""Times in which nothing is released: each week (`fri 16:00/mon 08:00`), or once (`2026-12-20/2027-01-04`, both days included)."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = timedelta(days=7)
_WEEKLY = re.compile(r"(?i)({0}) ([01]\d|2[0-3]):([0-5]\d)/({0}) ([01]\d|2[0-3]):([0-5]\d)".format("|".join(_DAYS)))
_DATED = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d)?/\d{4}-\d\d-\d\d(?:T\d\d:\d\d)?")
_DATE = len("2026-12-20")
_ANY = datetime.fromisoformat("2026-12-20")

WRITTEN = "write `fri 16:00/mon 08:00` for each week, or `2026-12-20/2027-01-04` for once (with a time: 2026-12-20T18:00)"


class Frozen(NamedTuple):
    """A rule of a text: a time in which nothing is released."""

    def problem(self, value: str) -> str:
        """Why a text is no such time; empty when it is one."""
        try:
            _end_of(value, _ANY)
        except ValueError:
            return f"{value[:80]!r} is no span of time: {WRITTEN}"
        return ""


def frozen_until(freeze: Sequence[str], zone: str, at: datetime) -> datetime | None:
    """The end of the freeze that moment `at` lies in, in `zone`; None where it lies in none. Freezes that touch count as one."""
    local, end = at.astimezone(ZoneInfo(zone)), None
    moved = True
    while moved:
        now = end or local
        ends = [found for text in freeze if (found := _end_of(text, now.replace(tzinfo=None))) is not None]
        moved = bool(ends) and (end is None or max(ends) > end.replace(tzinfo=None)) and now < local + 60 * _WEEK
        end = max(ends).replace(tzinfo=local.tzinfo) if moved else end
    return end


def _end_of(text: str, at: datetime) -> datetime | None:
    """The end of a declared freeze that the local time `at` lies in; None where it does not. Raises ValueError for another text."""
    weekly = _WEEKLY.fullmatch(text)
    if weekly is not None:
        day, hour, minute, last_day, last_hour, last_minute = weekly.groups()
        begin, end = _of_week(day, hour, minute), _of_week(last_day, last_hour, last_minute)
        if begin == end:
            raise ValueError(text)
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        now = timedelta(days=at.weekday()) + (at - midnight)
        return at + (end - now) % _WEEK if (now - begin) % _WEEK < (end - begin) % _WEEK else None
    if _DATED.fullmatch(text) is None:
        raise ValueError(text)
    first, _, last = text.partition("/")
    begins, ends = datetime.fromisoformat(first), datetime.fromisoformat(last)
    ends += timedelta(days=1) if len(last) == _DATE else timedelta(0)
    if ends <= begins:
        raise ValueError(text)
    return ends if begins <= at < ends else None


def _of_week(day: str, hour: str, minute: str) -> timedelta:
    return timedelta(days=_DAYS.index(day.lower()), hours=int(hour), minutes=int(minute))
