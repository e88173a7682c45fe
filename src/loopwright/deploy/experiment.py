"""The decision of an experiment: whether its goal is surely reached, whether enough rows say that it is not, or how many are missing."""

import math
from typing import NamedTuple

from loopwright.base.text import number
from loopwright.deploy.strategies import ExperimentGoal
from loopwright.records.evaluation import Estimate, standard_error
from loopwright.tasks import metrics
from loopwright.tasks.metrics import sequence
from loopwright.tasks.metrics.sequence import ArmDifference

_POWER_Z = 0.84  # one-sided, 80 %
_MAX_FACTOR = 2.0**20


class GoalState(NamedTuple):
    """`reached`: the new package is surely better. `ended`: so many rows would have shown the smallest effect. `text` says it, or what is missing."""

    reached: bool
    ended: bool
    text: str


def rows_needed(difference: ArmDifference, tolerance: float, rows: int, alpha: float, planned: float) -> int | None:
    """Rows in each arm that tell a difference of `tolerance` from none in 80 % of cases; None where that cannot be foreseen.

    `difference` has its standard error on `rows` rows in each arm.
    """
    if not rows or not math.isfinite(difference.error) or not difference.error or tolerance <= 0:
        return None
    factor = 1.0 if rows < sequence.MIN_UNITS else sequence.MIN_UNITS / rows
    while factor < _MAX_FACTOR:
        deviations = sequence.mixture_deviations(2 * rows * factor, planned, alpha) + _POWER_Z
        if deviations * difference.error / math.sqrt(factor) <= tolerance:
            break
        factor *= 1.1
    return max(math.ceil(rows * factor), sequence.MIN_UNITS)


def goal_state(
    goal: ExperimentGoal, difference: ArmDifference | None, rows: int, promised: Estimate | None, alpha: float, planned: float
) -> GoalState:
    """The state of a goal. `difference` is on at least `rows` rows with an outcome in each arm, None without any.

    Before there are any, the rows that are needed are foreseen from the evaluation of the old package (`promised`).
    """
    if difference is None or not rows or not difference.known:
        error = standard_error(promised) * math.sqrt(2) if promised is not None and math.isfinite(promised.low) else math.inf
        foreseen = ArmDifference(math.nan, math.nan, -math.inf, math.inf, error)
        needed = rows_needed(foreseen, goal.minimum_effect, promised.n if promised is not None else 0, alpha, planned)
        about = f"about {needed:,}" if needed is not None else f"at least {sequence.MIN_UNITS}"
        return GoalState(False, False, f"{goal.metric}: {about} rows with an outcome in each arm ({rows:,} now)")
    higher = metrics.metric(goal.metric).higher
    low, high = (difference.low, difference.high) if higher else (-difference.high, -difference.low)
    effect = f"{goal.metric} {number(difference.value, sign=True)} [{number(difference.low)}, {number(difference.high)}]"
    if low > 0:
        return GoalState(True, False, f"{effect}: surely better")
    needed = rows_needed(difference, goal.minimum_effect, rows, alpha, planned)
    if high < goal.minimum_effect or (needed is not None and rows >= needed):
        return GoalState(
            False,
            True,
            f"{effect} on {rows:,} rows in each arm: no effect of {number(goal.minimum_effect)} was seen, the old package stays",
        )
    return GoalState(
        False, False, f"{effect}: about {needed or 0:,} rows with an outcome in each arm would tell ({rows:,} now)"
    )
