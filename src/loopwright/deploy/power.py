"""How many units an experiment needs, and the smallest effect that it would see."""

import math
from datetime import datetime
from typing import NamedTuple

import msgspec
import numpy as np

from loopwright.deploy.analysis import ALPHA, BEFORE, measured
from loopwright.deploy.experiment import rows_needed
from loopwright.deploy.joined_rows import answered
from loopwright.records.declarations import Loop
from loopwright.records.evaluation import standard_error
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import with_truth
from loopwright.stores.packages.store import Package
from loopwright.tasks.metrics.effect import arm_units, smallest_effect, units_needed
from loopwright.tasks.metrics.sequence import MIN_UNITS, ArmDifference

DAYS = (7, 14, 28, 56)


class PowerPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest effect that is seen in 80 % of experiments of so many days."""

    days: int
    units: int
    smallest_effect: float


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """The size of an experiment in one metric, at 95 % and 80 % power, with two arms of the same size.

    `units` is needed in each arm for `effect` with a fixed end, `units_always` when one may look at any time; None where that cannot be foreseen.
    `per_day` is how many new units an arm gets. `source`: what the error was measured on.
    """

    metric: str
    source: str
    effect: float | None = None
    units: int | None = None
    units_always: int | None = None
    per_day: float = 0.0
    days: float | None = None
    curve: list[PowerPoint] = []


class ErrorOf(NamedTuple):
    """The standard error of a difference of two arms with so many units each, measured on `source`; new units of an arm in a day."""

    error: float
    units: int
    per_day: float
    source: str


def power_of(metric: str, of: ErrorOf, effect: float | None) -> Power:
    """The power of an experiment with that error."""
    needed = units_needed(of.error, of.units, effect) if effect else None
    unknown = ArmDifference(math.nan, math.nan, -math.inf, math.inf, of.error)
    always = rows_needed(unknown, effect, of.units, ALPHA, 4000.0) if effect else None
    points = [(days, of.per_day * days) for days in DAYS] if math.isfinite(of.error) and of.error and of.units else []
    curve = [
        PowerPoint(days=days, units=int(units), smallest_effect=smallest_effect(of.error, of.units, units))
        for days, units in points
        if units >= MIN_UNITS
    ]
    days = needed / of.per_day if needed and of.per_day else None
    return Power(
        metric=metric,
        source=of.source,
        effect=effect,
        units=needed,
        units_always=always,
        per_day=of.per_day,
        days=days,
        curve=curve,
    )


def foreseen_error(home: Home, loop: Loop, package: Package, metric: str, at: datetime, share: float) -> ErrorOf:
    """The error of an experiment that has not begun: by the served rows of four weeks with an outcome, else by the package's evaluation."""
    logged = with_truth(home, loop.name, loop.outcome, start=at - BEFORE, end=at, known_at=at)
    known = answered(home, loop, logged)
    per_day = 0.0
    if known is not None and known.rows.any():
        seen = logged["_at"].to_numpy().astype("datetime64[us]")[known.rows]
        found = measured(loop, [metric], known, known.units, np.arange(len(known.truth)))
        per_day = found.unit_count / max(1.0, (seen.max() - seen.min()) / np.timedelta64(1, "D")) * share
        arm = arm_units(found.statistics[0], found.code)
        error = math.sqrt(2 * float(np.square(arm.influence).sum()))
        if found.unit_count >= MIN_UNITS and math.isfinite(arm.value) and error:
            return ErrorOf(
                error, found.unit_count, per_day, f"{found.unit_count:,} units that were served in the last {BEFORE.days} days"
            )
    promised = package.evaluation.metrics.get(metric)
    if promised is None or not math.isfinite(promised.low):
        return ErrorOf(math.inf, 0, per_day, "nothing: no outcomes yet, and not in the package's evaluation")
    error = standard_error(promised) * math.sqrt(2)
    return ErrorOf(error, promised.n, per_day, f"the evaluation of package {package.digest[:12]} on {promised.n:,} rows")
