from datetime import UTC, datetime

import pytest

from loopwright.base.errors import UsageError
from loopwright.base.moment import moment_option, read_moment

NOW = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("tuesday 09:00", "2024-04-30T09:00"),
        ("Tuesday", "2024-04-30T00:00"),
        ("wednesday 09:00", "2024-05-01T09:00"),
        ("wednesday 10:00", "2024-04-24T10:00"),
        ("thursday 9:05", "2024-04-25T09:05"),
        ("yesterday 17:30", "2024-04-30T17:30"),
        ("today", "2024-05-01T00:00"),
        ("09:00", "2024-05-01T09:00"),
        ("23:15", "2024-04-30T23:15"),
        ("2024-04-02", "2024-04-02T00:00"),
        ("2024-04-02T10:00:00+02:00", "2024-04-02T08:00"),
        ("30 days ago", "2024-04-01T09:30"),
        ("1 day ago", "2024-04-30T09:30"),
        ("90m ago", "2024-05-01T08:00"),
        ("2 Weeks ago", "2024-04-17T09:30"),
        (" 2024-04-02 10:00 ", "2024-04-02T10:00"),
    ],
)
def test_moments_are_the_latest_that_is_past(text: str, moment: str) -> None:
    assert read_moment(text, NOW) == datetime.fromisoformat(moment).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "25:00", "12:60", "3fa91c", "someday 09:00", "2024-13-01", "tuesdayish", "days ago", "999999 weeks ago"],
)
def test_what_is_no_moment(text: str) -> None:
    assert read_moment(text, NOW) is None


def test_option_that_is_no_moment_is_named_with_what_can_be_written() -> None:
    assert moment_option("30 days ago", NOW, "--as-of") == datetime(2024, 4, 1, 9, 30, tzinfo=UTC)
    with pytest.raises(UsageError, match=r"--as-of 'soon' is not a time: write .*30 days ago"):
        moment_option("soon", NOW, "--as-of")
