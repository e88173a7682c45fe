"""Moments as people write them: "tuesday 09:00", "yesterday 17:30", "14:00", or ISO 8601. Without a zone they are UTC."""

import re
from datetime import UTC, datetime, time, timedelta

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_SPOKEN = re.compile(rf"(?:({'|'.join(DAYS)}|today|yesterday)\b)?\s*(?:(\d{{1,2}}):(\d{{2}}))?", re.IGNORECASE)


def read_moment(text: str, now: datetime) -> datetime | None:
    """The moment that `text` means at `now`: the latest such one that is past. None when it means none.

    A day without a time is its beginning; a time without a day is today's, or yesterday's if it is still to come.
    """
    text = text.strip()
    spoken = _SPOKEN.fullmatch(text)
    if text and spoken:
        return _spoken(spoken, now.astimezone(UTC))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _spoken(spoken: re.Match[str], now: datetime) -> datetime | None:
    day, hour, minute = spoken.groups()
    if hour is not None and (int(hour) > 23 or int(minute) > 59):
        return None
    clock = time(int(hour), int(minute)) if hour is not None else time()
    moment = datetime.combine(now.date(), clock, UTC)
    if day is None:
        return moment if moment <= now else moment - timedelta(days=1)
    name = day.lower()
    if name == "today":
        return moment
    if name == "yesterday":
        return moment - timedelta(days=1)
    moment -= timedelta(days=(moment.weekday() - DAYS.index(name)) % 7)
    return moment if moment <= now else moment - timedelta(days=7)
