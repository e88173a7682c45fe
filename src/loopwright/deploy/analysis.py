"""The analysis of a release with two arms as an experiment, from the log alone: the sample ratio first, then the effect on every metric.

Effects have two intervals: one for a fixed end (`tasks.metrics.effect`), and a confidence sequence that holds however often one looks
(`tasks.metrics.sequence`). P values of all metrics and slices but the primary one are Holm's.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base.arrays import Array
from loopwright.deploy.guards import declared_guards
from loopwright.deploy.joined_rows import JoinedRows, answered
from loopwright.records.declarations import Loop, Scope
from loopwright.records.field_rules import UNDIRECTED
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import Known, with_truth
from loopwright.stores.prediction_log.scan import LogPart, UnitSample
from loopwright.tasks import metrics
from loopwright.tasks.label import unit_array
from loopwright.tasks.metrics import sequence
from loopwright.tasks.metrics.effect import ArmUnits, adjusted, arm_units, fixed_effect, holm_adjusted
from loopwright.tasks.metrics.estimate import statistics_of, unit_codes
from loopwright.tasks.metrics.resample import Units
from loopwright.tasks.statistic import Statistic

ALPHA = 0.05
BEFORE = timedelta(days=28)
"""So long before the release a unit's own rows are its covariate."""

_MONEY = "value_per_prediction"

EffectAnswer = Literal["better", "worse", "cannot tell", "too few to tell"]


class MetricEffect(msgspec.Struct, frozen=True, kw_only=True):
    """New less old in one metric, of all traffic or of a part of it; numbers are None where too few units or events tell.

    `low` and `high` are a 95 % interval for a fixed end, `always_low` and `always_high` one that holds at all looks together. `p_adjusted` is Holm's
    over all metrics and slices, that of the primary metric is its own. `cuped`, with its interval, has what the units did before the release
    taken off, which saves the share `variance_saved` of the variance.
    """

    metric: str
    higher_is_better: bool
    rows: int
    control_rows: int
    units: int
    control_units: int
    answer: EffectAnswer = "too few to tell"
    primary: bool = False
    slice: str = ""
    value: str = ""
    new: float | None = None
    old: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    p: float = 1.0
    p_adjusted: float = 1.0
    always_low: float | None = None
    always_high: float | None = None
    cuped: float | None = None
    cuped_low: float | None = None
    cuped_high: float | None = None
    variance_saved: float = 0.0

    @property
    def name(self) -> str:
        """The metric, with the part of the traffic that it is about."""
        return f"{self.metric} on {self.slice} {self.value}" if self.slice else self.metric


class DayEffect(msgspec.Struct, frozen=True, kw_only=True):
    """The effect on one day (UTC)."""

    day: str
    metric: str
    effect: float
    low: float
    high: float
    rows: int
    control_rows: int


class Analysed(NamedTuple):
    """Effects, primary metric first; those of its days; p of equal effects in both halves of the time (None: too few)."""

    effects: list[MetricEffect]
    days: list[DayEffect]
    novelty_p: float | None


class _Measured(NamedTuple):
    """The metrics of one arm on some rows: their statistics, and the unit of each row, a number from 0 (None: each row is one)."""

    statistics: list[Statistic]
    code: Array | None
    units: Array
    rows: int

    @property
    def unit_count(self) -> int:
        """Number of units."""
        return len(self.units)

    def arm(self, i: int, covariates: dict[int, Array] | None = None) -> ArmUnits:
        """One metric by unit."""
        before = None if not covariates or i not in covariates else covariates[i][self.units]
        return arm_units(self.statistics[i], self.code, before)


def experiment_metrics(scope: Scope, loop: Loop, primary: str = "") -> list[str]:
    """The metrics of an experiment: the primary one, guards, objectives that are of rows, money."""
    of_rows = [o.metric for o in scope.objectives if metrics.of_rows(o.metric) and o.metric not in UNDIRECTED]
    money = [_MONEY] if scope.value.is_set else []
    every = [primary, *(guard.metric for guard in declared_guards(scope, loop.release)), *of_rows, *money]
    return [name for name in dict.fromkeys(every) if name and ":" not in name]


def measured(loop: Loop, names: Sequence[str], known: Known, units: Array, rows: Array) -> _Measured:
    """Metrics of some rows (their places); `units` [N] are numbers."""
    groups = None if known.groups is None else known.groups[rows]
    found = statistics_of(names, known.truth[rows], known.given.at(rows), known.output, groups, loop.scope.value, None)
    mine = unit_codes(units[rows], groups)
    assert mine is not None
    of, code = np.unique(mine, return_inverse=True)
    return _Measured(found, code if len(of) < len(rows) else None, of, len(rows))


def analysed(home: Home, loop: Loop, joined: JoinedRows, names: Sequence[str], start: datetime, sample: UnitSample) -> Analysed:
    """The effects on the rows of an experiment that began at `start`. The first of `names` is the primary metric."""
    names = [name for name in names if not metrics.problem(name, list(joined.slices), joined.known.output)]
    units, before = _covariates(home, loop, joined, names, start, sample)
    planned = 4000.0
    found: list[MetricEffect] = []
    for part, mask in joined.parts.items():
        pair = _pair(loop, names, joined, units, mask)
        if pair is not None:
            found += [_effect(names, i, part, *pair, before if part == ("", "") else {}, planned) for i in range(len(names))]
    others = [i for i, one in enumerate(found) if not one.primary and one.low is not None]
    corrected = dict(zip(others, holm_adjusted([found[i].p for i in others]), strict=True))
    effects = [_answered(one, corrected.get(i, one.p)) for i, one in enumerate(found)]
    return Analysed(effects, *_over_time(loop, names[:1], joined, units))


def _effect(
    names: Sequence[str],
    i: int,
    part: tuple[str, str],
    new: _Measured,
    old: _Measured,
    before: dict[int, Array],
    planned: float,
) -> MetricEffect:
    of_new, of_old = new.arm(i, before), old.arm(i, before)
    fixed = fixed_effect(of_new, of_old)
    always = sequence.arm_difference(
        new.statistics[i], Units(new.code, new.rows), old.statistics[i], Units(old.code, old.rows), alpha=ALPHA, planned=planned
    )
    *arms, saved = adjusted(of_new, of_old)
    cuped = fixed_effect(*arms)
    known, is_cuped = math.isfinite(fixed.low), saved > 0 and math.isfinite(cuped.low)
    return MetricEffect(
        metric=names[i],
        higher_is_better=metrics.metric(names[i]).higher,
        rows=new.rows,
        control_rows=old.rows,
        units=new.unit_count,
        control_units=old.unit_count,
        primary=i == 0 and part == ("", ""),
        slice=part[0],
        value=part[1],
        new=_finite(of_new.value),
        old=_finite(of_old.value),
        effect=_finite(fixed.value),
        low=_finite(fixed.low),
        high=_finite(fixed.high),
        error=_finite(fixed.error),
        p=fixed.p if known else 1.0,
        always_low=_finite(always.low),
        always_high=_finite(always.high),
        cuped=cuped.value if is_cuped else None,
        cuped_low=cuped.low if is_cuped else None,
        cuped_high=cuped.high if is_cuped else None,
        variance_saved=saved if is_cuped else 0.0,
    )


def _answered(effect: MetricEffect, p: float) -> MetricEffect:
    if effect.effect is None or effect.low is None:
        return effect
    better = (effect.effect > 0) == effect.higher_is_better
    answer: EffectAnswer = "cannot tell" if p > ALPHA else "better" if better else "worse"
    return msgspec.structs.replace(effect, p_adjusted=p, answer=answer)


def _covariates(
    home: Home, loop: Loop, joined: JoinedRows, names: Sequence[str], start: datetime, sample: UnitSample
) -> tuple[Array, dict[int, Array]]:
    """The unit of each row [N] as a number, and by metric what each unit added to it in the four weeks before [units], if it was there."""
    columns = [name for name in dict.fromkeys(["_unit", loop.unit or "_unit"]) if name in joined.logged.column_names]
    part = LogPart(None, [name for name in joined.logged.column_names if name != "_truth"], sample if sample.halvings else None)
    logged = with_truth(home, loop.name, loop.outcome, start=start - BEFORE, end=start, known_at=home.clock.now(), part=part)
    known = answered(home, loop, logged)
    own = joined.logged.select(columns)
    if known is None or not known.rows.any():
        return _numbered(unit_array(own, loop.unit or "")), {}
    before = logged.filter(pa.array(known.rows)).select(columns)
    codes = _numbered(unit_array(pa.concat_tables([own, before]), loop.unit or ""))
    units, earlier = codes[: own.num_rows], codes[own.num_rows :]
    if not np.isin(earlier, units).any():
        return units, {}
    statistics = statistics_of(names, known.truth, known.given, known.output, known.groups, loop.scope.value, None)
    found = {}
    for i, one in enumerate(statistics):
        if math.isfinite(one.value):
            found[i] = np.bincount(earlier, weights=one.influence * len(earlier), minlength=int(codes.max()) + 1)
    return units, found


def _numbered(units: Array) -> Array:
    return np.asarray(np.unique(units, return_inverse=True)[1])


def _over_time(loop: Loop, names: Sequence[str], joined: JoinedRows, units: Array) -> tuple[list[DayEffect], float | None]:
    """The effects of the days, and p of no difference between the two halves of the time."""
    at = joined.logged["_at"].to_numpy().astype("datetime64[us]")
    days = at.astype("datetime64[D]")
    found = []
    for day in np.unique(days):
        pair = _pair(loop, names, joined, units, days == day)
        if pair is not None and math.isfinite((effect := fixed_effect(*(arm.arm(0) for arm in pair))).low):
            rows, control_rows = (arm.rows for arm in pair)
            ends = {"effect": effect.value, "low": effect.low, "high": effect.high}
            found.append(DayEffect(day=str(day), metric=names[0], rows=rows, control_rows=control_rows, **ends))
    middle = at.min() + (at.max() - at.min()) / 2
    halves = [_pair(loop, names, joined, units, mask) for mask in (at <= middle, at > middle)]
    effects = [fixed_effect(*(arm.arm(0) for arm in pair)) for pair in halves if pair is not None]
    if len(effects) < 2 or not all(math.isfinite(one.low) for one in effects):
        return found, None
    apart = abs(effects[1].value - effects[0].value) / math.hypot(*(one.error for one in effects))
    return found, math.erfc(apart / math.sqrt(2))


def _pair(
    loop: Loop, names: Sequence[str], joined: JoinedRows, units: Array, mask: Array
) -> tuple[_Measured, _Measured] | None:
    """The new arm and the old one on the rows of a mask [N]; None where one has none."""
    new, old = (np.flatnonzero(mask & (joined.side == which)) for which in (1, 0))
    if not len(new) or not len(old):
        return None
    return measured(loop, names, joined.known, units, new), measured(loop, names, joined.known, units, old)


def units_table(loop: Loop, joined: JoinedRows, names: Sequence[str], arms: tuple[str, str]) -> pa.Table:
    """One row per unit with a known outcome, as tools for experiments read it: unit, arm, package, first exposure, rows, and the sum of each metric.

    The sum of a metric by the sum of `rows` is its value in an arm, with its standard error by the delta method.
    """
    logged = joined.logged
    column = loop.unit if loop.unit and loop.unit in logged.column_names else "_unit"
    columns = {
        "unit": logged[column].cast(pa.string()),
        "arm": pa.array(np.array(arms)[joined.side]),
        "package": logged["_package"],
        "first_exposure": logged["_at"],
        "rows": pa.array(np.ones(logged.num_rows, np.int64)),
    }
    for name in names:
        values = np.zeros(logged.num_rows)
        for which in (0, 1):
            rows = np.flatnonzero(joined.side == which)
            groups = None if joined.known.groups is None else joined.known.groups[rows]
            known, money = joined.known, loop.scope.value
            (one,) = statistics_of([name], known.truth[rows], known.given.at(rows), known.output, groups, money, None)
            values[rows] = one.value + one.influence * len(rows)
        columns[name] = pa.array(values)
    sums = [("rows", "sum"), *((name, "sum") for name in names)]
    found = pa.table(columns).group_by(["unit", "arm", "package"]).aggregate([("first_exposure", "min"), *sums])
    return found.rename_columns([name.removesuffix("_min").removesuffix("_sum") for name in found.column_names])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
