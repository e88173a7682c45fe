"""Moments as people write them: "tuesday 09:00", "yesterday 17:30", "14:00", "30 days ago", or ISO 8601. Without a zone they are UTC."""

import re
from datetime import UTC, datetime, time, timedelta

from loopwright.base.errors import OptionInvalid

EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Moments outside of this are mistakes of unit (seconds read as microseconds, say) or of typing: no door takes them."""

WRITTEN = '2013-04-01, 2013-04-01T09:00:00+02:00, "tuesday 09:00", "yesterday" or "30 days ago"'
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_AGO = re.compile(r"(\d{1,6})\s*(w|d|h|m|s|(?:week|day|hour|minute|second)s?)\s+ago", re.IGNORECASE)
_SPOKEN = re.compile(rf"(?:({'|'.join(DAYS)}|today|yesterday)\b)?\s*(?:(\d{{1,2}}):(\d{{2}}))?", re.IGNORECASE)


def moment_option(text: str, now: datetime, option: str, *, ahead: str = "") -> datetime:
    """Parse the text of an option as a moment relative to `now`. Raises OptionInvalid, naming the option and the valid forms.

    `ahead` is the reason why a moment after `now` is refused; empty if it is allowed.
    """
    found = read_moment(text, now)
    if found is None:
        raise OptionInvalid(option.removeprefix("--"), repr(text[:80]), f"is not a time: write {WRITTEN}")
    if not EARLIEST <= found <= LATEST:
        why = f"is not between the years {EARLIEST.year} and {LATEST.year}: write {WRITTEN}"
        raise OptionInvalid(option.removeprefix("--"), repr(text[:80]), why)
    if ahead and found > now:
        why = f"is after now ({now.astimezone(UTC):%Y-%m-%d %H:%M} UTC): {ahead}"
        raise OptionInvalid(option.removeprefix("--"), repr(text[:80]), why)
    return found


def read_moment(text: str, now: datetime) -> datetime | None:
    """Parse `text` as a moment relative to `now`: the latest one in the past that it can mean. None if it is not a moment.

    A day without a time means its beginning; a time without a day is today's, or yesterday's if it is still in the future.
    """
    text = text.strip()
    if ago := _AGO.fullmatch(text):
        try:
            return now - timedelta(**{_UNITS[ago[2][0].lower()]: int(ago[1])})
        except OverflowError:
            return None
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
