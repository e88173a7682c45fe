"""Times in which nothing is released."""

from datetime import UTC, datetime

import pytest

from loopwright.records.freeze import Frozen, frozen_until

WEEKEND = "fri 16:00/mon 08:00"


@pytest.mark.parametrize(
    ("freeze", "at", "end"),
    [
        ([WEEKEND], "2026-12-04T15:59", None),
        ([WEEKEND], "2026-12-04T16:00", "2026-12-07T08:00"),
        ([WEEKEND], "2026-12-06T23:00", "2026-12-07T08:00"),
        ([WEEKEND], "2026-12-07T08:00", None),
        (["wed 12:00/wed 13:00"], "2026-12-02T12:30", "2026-12-02T13:00"),
        (["2026-12-20/2027-01-04"], "2026-12-19T23:59", None),
        (["2026-12-20/2027-01-04"], "2026-12-20T00:00", "2027-01-05T00:00"),
        (["2026-12-20/2027-01-04"], "2027-01-04T23:59", "2027-01-05T00:00"),
        (["2026-12-20T18:00/2026-12-21T06:00"], "2026-12-20T17:59", None),
        (["2026-12-20T18:00/2026-12-21T06:00"], "2026-12-21T05:59", "2026-12-21T06:00"),
        ([WEEKEND, "2026-12-07T08:00/2026-12-07T20:00"], "2026-12-05T00:00", "2026-12-07T20:00"),
        ([], "2026-12-05T00:00", None),
    ],
)
def test_freeze_has_a_beginning_and_an_end(freeze: list[str], at: str, end: str | None) -> None:
    found = frozen_until(freeze, "UTC", datetime.fromisoformat(at).replace(tzinfo=UTC))
    assert (found.replace(tzinfo=None).isoformat(timespec="minutes") if found is not None else None) == end


def test_freeze_is_in_the_declared_zone() -> None:
    at = datetime(2026, 12, 4, 15, 30, tzinfo=UTC)  # 16:30 in Berlin
    assert frozen_until([WEEKEND], "UTC", at) is None
    found = frozen_until([WEEKEND], "Europe/Berlin", at)
    assert found is not None
    assert found.astimezone(UTC) == datetime(2026, 12, 7, 7, 0, tzinfo=UTC)


def test_freeze_over_the_change_of_the_clock_ends_by_the_wall_clock() -> None:
    at = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)  # summer time begins on the 29th
    found = frozen_until([WEEKEND], "Europe/Berlin", at)
    assert found is not None
    assert found.astimezone(UTC) == datetime(2026, 3, 30, 6, 0, tzinfo=UTC)


def test_freezes_that_leave_no_time_have_an_end_all_the_same() -> None:
    always = ["mon 00:00/fri 00:00", "fri 00:00/mon 00:00"]
    found = frozen_until(always, "UTC", datetime(2026, 12, 4, tzinfo=UTC))
    assert found is not None
    assert found.year in (2027, 2028)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "friday",
        "fri 16:00",
        "fri 16:00/fri 16:00",
        "fri 25:00/mon 08:00",
        "2026-12-20",
        "2026-12-20/2026-12-19",
        "2026-13-01/2026-13-02",
    ],
)
def test_other_texts_are_refused_with_what_to_write(text: str) -> None:
    assert "fri 16:00/mon 08:00" in Frozen().problem(text)
    assert Frozen().problem(WEEKEND) == ""
