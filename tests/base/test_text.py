import math
from datetime import UTC, datetime, timedelta

import pytest

from loopwright.base.text import amount, bounds, count, duration_text, interval, moment, money, number, share, short, spaced
from loopwright.records.evaluation import Estimate
from loopwright.render.words import cell


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567.0, "1,234,567"),
        (12.34, "12.3"),
        (0.0123, "0.012"),
        (3.0, "3"),
        (-2.5, "-2.500"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (0.00034, "0.00034"),
        (-0.0, "0"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_signs_shares_times_and_intervals() -> None:
    assert [number(v, sign=True) for v in (5, -5, 0)] == ["+5", "-5", "0"]
    assert (count(1, "loop"), count(2, "loop")) == ("1 loop", "2 loops")
    assert (share(0.5), share(0.0123), share(None), share(0.0)) == ("50%", "1.2%", "–", "0%")
    assert moment(datetime(2013, 4, 1, 9, 5, tzinfo=UTC)) == "2013-04-01 09:05"
    assert moment(None) == "–"
    assert bounds(Estimate(0.5, 0.4, 0.6, 10)) == "[0.400, 0.600]"
    assert bounds(Estimate(0.5, math.nan, math.nan, 10)) == ""
    assert interval(Estimate(0.5, 0.4, 0.6, 10), sign=True) == "+0.500 [0.400, 0.600]"
    assert [interval(e) for e in (Estimate(0.5, 0.5, 0.5, 10), Estimate(0.5, math.nan, math.nan, 10), None)] == [
        "0.500",
        "0.500",
        "–",
    ]
    assert spaced("recall_gap:carrier") == "recall gap: carrier"
    assert spaced("out_of_range:net_km") == "out of range: net_km"
    assert short("") == "–"


def test_money_has_cents_below_a_hundred_and_one_precision_for_value_and_interval() -> None:
    assert money(Estimate(1234.5, 980.2, 1488.4, 10), "USD", sign=True) == "+1,234 USD [980, 1,488]"
    assert money(Estimate(-1.25, -2.5, 0.0, 10), "EUR") == "-1.25 EUR [-2.50, 0.00]"
    assert money(Estimate(12.0, math.nan, math.nan, 10)) == "12.00"
    assert [amount(v) for v in (99.5, 1234.5, -0.0, math.nan)] == ["99.50", "1,234", "0.00", "–"]


def test_duration_is_written_in_its_largest_unit() -> None:
    spans = [timedelta(seconds=-3), timedelta(seconds=59), timedelta(minutes=1), timedelta(hours=5), timedelta(days=3, hours=9)]
    assert [duration_text(s) for s in spans] == ["less than a minute", "less than a minute", "1 minute", "5 hours", "3 days"]


def test_cells() -> None:
    assert [cell(v) for v in (None, math.nan, True, 1545, 7.24490001, "UA")] == [
        "missing",
        "missing",
        "yes",
        "1545",
        "7.2449",
        "UA",
    ]
