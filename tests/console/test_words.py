import math
from datetime import UTC, datetime

import pytest

from loopwright.console.words import cell, count, interval, moment, number, share, short, signed, words
from loopwright.records.evaluation import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567.0, "1,234,567"),
        (12.34, "12.3"),
        (0.0123, "0.012"),
        (3.0, "3"),
        (-2.5, "−2.500"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_signs_shares_times_and_intervals() -> None:
    assert (signed(5), signed(-5), signed(0)) == ("+5", "−5", "0")
    assert (count(1, "loop"), count(2, "loop")) == ("1 loop", "2 loops")
    assert (share(0.5), share(0.0123), share(None), share(0.0)) == ("50%", "1.2%", "–", "0%")
    assert moment(datetime(2013, 4, 1, 9, 5, tzinfo=UTC)) == "2013-04-01 09:05"
    assert moment(None) == "–"
    assert interval(Estimate(0.5, 0.4, 0.6, 10)) == "[0.400, 0.600]"
    assert interval(Estimate(0.5, math.nan, math.nan, 10)) == ""
    assert words("recall_gap:carrier") == "recall gap: carrier"
    assert short("") == "–"


def test_cells() -> None:
    assert [cell(v) for v in (None, math.nan, True, 1545, 7.24490001, "UA")] == [
        "missing",
        "missing",
        "yes",
        "1545",
        "7.2449",
        "UA",
    ]
