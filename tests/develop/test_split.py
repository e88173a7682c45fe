from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest
from tests.develop.flights import table

from loopwright.develop.split import tail_split, time_split
from loopwright.records.declarations import TimeSplit
from loopwright.records.errors import ExamplesRefused

DAY = 86_400_000_000


def test_the_newest_validate_and_the_embargo_is_left_out() -> None:
    decided = np.arange(100) * DAY
    truth = np.arange(100) % 3 == 0
    training, validation = time_split(decided, truth, TimeSplit(validation="30d", embargo="5d"))
    assert decided[validation].min() == 70 * DAY
    assert decided[training].max() == 64 * DAY
    assert len(training) == 65
    assert len(validation) == 30


def test_no_training_row_is_younger_than_a_validation_row() -> None:
    made = table(2000)
    decided = np.array([int(m.timestamp() * 1e6) for m in made.column("_decided_at").to_pylist()])
    training, validation = time_split(decided, made.column("_label").to_numpy(), TimeSplit())
    assert decided[training].max() <= decided[validation].min()
    assert len(training) + len(validation) == 2000


@pytest.mark.parametrize(
    ("days", "positive", "why"),
    [
        (0, lambda i: i % 2 == 1, "no examples"),
        (10, lambda i: i % 2 == 1, "training part has 0"),
        (100, lambda i: i < 50, "validation part has 14 examples, 0"),
    ],
)
def test_too_little_is_refused_with_the_numbers(days: int, positive: Callable[[int], bool], why: str) -> None:
    index = np.arange(days)
    truth = np.array([positive(int(i)) for i in index]).astype(np.bool_)
    with pytest.raises(ExamplesRefused, match=why):
        time_split(index * DAY + int(datetime(2013, 1, 1, tzinfo=UTC).timestamp() * 1e6), truth, TimeSplit())


def test_tail_is_the_newest_fifth() -> None:
    older, newer = tail_split(np.arange(100))
    assert older.tolist() == list(range(80))
    assert newer.tolist() == list(range(80, 100))
