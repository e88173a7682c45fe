"""Describe the labels of the examples, and check that a model can learn from them."""

from collections.abc import Mapping
from typing import Any

from loopwright.base.errors import ExamplesRefused
from loopwright.records.declarations import Outcome
from loopwright.sql.engine import quoted
from loopwright.tasks.registry import TASKS
from loopwright.tasks.task import LabelQuery, LabelSummary


def describe(database: Any, outcome: Outcome, rows: int, excluded: Mapping[str, int]) -> LabelSummary:
    """The labels in table `kept` of `rows` rows. Raises ExamplesRefused when there is nothing to learn from."""
    query = LabelQuery(
        lambda sql: list(database.execute(sql).fetchall()), rows, list(outcome.labels), quoted(outcome.group or "")
    )
    found = TASKS[outcome.task].summarise(query)
    if alike := found.problem if rows else "no outcome is known":
        left_out = ", ".join(f"{count:,} x {reason}" for reason, count in excluded.items())
        raise ExamplesRefused(f"there is nothing to learn from: {alike}" + (f" (left out: {left_out})" if left_out else ""))
    return found
