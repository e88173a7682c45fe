"""Predictions with their truth: the one join that monitoring, accounting and reports start from."""

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.declarations import Outcome
from loopwright.records.home import Home
from loopwright.records.outcomes import join
from loopwright.records.predictions.read import predictions, stored

EARLY = timedelta(days=1)
"""Outcomes known longer than this before the stretch of time asked for are not read."""


def with_truth(home: Home, loop: str, outcome: Outcome, *, start: datetime, end: datetime, known_at: datetime) -> pa.Table:
    """The predictions of [start, end) with `_truth` (the label, null while unknown) and `_known_at`, as known at `known_at`.

    One row per prediction, the columns of `records.predictions.read.predictions`.
    """
    return join(
        predictions(home, loop, start=start, end=end),
        outcomes_between(home, loop, start - EARLY, known_at),
        outcome,
        known_by=known_at,
    )


def outcomes_between(home: Home, loop: str, since: datetime, until: datetime) -> pa.Table:
    """The outcomes of a loop that became known in [since, until], one row per `_id`."""
    moment = pa.timestamp("us", tz="UTC")
    where = (pc.field("_known_at") >= pa.scalar(since, moment)) & (pc.field("_known_at") <= pa.scalar(until, moment))
    return stored(home, "outcomes", loop, where=where)
