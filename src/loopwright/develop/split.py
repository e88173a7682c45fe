"""Splits by time: a model is judged on decisions younger than any it was fitted on."""

from datetime import UTC, datetime, timedelta

import numpy as np

from loopwright.records.declarations import TimeSplit, duration
from loopwright.records.errors import ExamplesRefused
from loopwright.records.graph import Array

LEAST_ROWS = 20


def time_split(decided: Array, truth: Array, split: TimeSplit) -> tuple[Array, Array]:
    """Indices of training and validation rows.

    `decided` int64 [N] is when each decision was taken (microseconds), `truth` bool [N]. Decisions in the newest
    `validation` of time validate; those older by at least `embargo` train; what lies between is left out.
    Raises ExamplesRefused when a part is too small or has only one kind of outcome.
    """
    if not len(decided):
        raise ExamplesRefused("there are no examples: ingest requests and outcomes first")
    border = int(decided.max()) - _microseconds(duration(split.validation))
    training = np.flatnonzero(decided <= border - _microseconds(duration(split.embargo)))
    validation = np.flatnonzero(decided > border)
    for name, rows in (("training", training), ("validation", validation)):
        positives = int(truth[rows].sum())
        if len(rows) < LEAST_ROWS or positives in (0, len(rows)):
            raise ExamplesRefused(
                f"the {name} part has {len(rows)} examples, {positives} of them positive: at least {LEAST_ROWS} with both outcomes are "
                f"needed (examples from {_moment(decided.min())} to {_moment(decided.max())}, the newest {split.validation} validate)"
            )
    return training, validation


def tail_split(rows: Array, share: float = 0.2) -> tuple[Array, Array]:
    """Rows (indices in order of time) without their newest `share`, and that share: for the search over hyper-parameters."""
    cut = max(1, int(len(rows) * (1 - share)))
    return rows[:cut], rows[cut:]


def _microseconds(length: timedelta) -> int:
    return length // timedelta(microseconds=1)


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(int(microseconds) / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
