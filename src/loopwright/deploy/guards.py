"""Guards: a package is compared with what serves, and with the best package of the last year, on the same rows.

Every comparison is a non-inferiority test (Piaggio et al. 2012, JAMA 308:2594) of the paired difference with the guard's
tolerance as its margin, and has one of four answers:

    better       the 95 % interval lies above zero
    within       the interval lies above minus the margin
    worse        the whole interval lies below minus the margin, after Holm's correction (1979) over all comparisons of this gate:
                 guards, slices and anchor together refuse an equal package in at most 2.5 %
    cannot tell  anything else. The check names the smallest loss that it would have called worse in 80 % of cases

A package that is worse is refused. Of one that cannot be told, `Release.cannot_tell` decides: `release` puts it into service unless
the estimate itself is worse than the margin, `hold` keeps what serves.

The anchor is the last package that was better than the anchor before it, for at most a year. It stops a chain of retrainings, each
worse by too little to be seen, from losing more than the margin together.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.text import interval
from loopwright.records.declarations import Guard, Release, Scope
from loopwright.records.evaluation import Z_95, Estimate, Leaderboard, standard_error
from loopwright.records.field_rules import UNDIRECTED
from loopwright.records.package import Output
from loopwright.stores.packages.probe import Probed
from loopwright.stores.packages.store import Package
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered
from loopwright.tasks.metrics.effect import holm_adjusted

SEED = 20_130_401
MIN_ROWS = 100
MIN_TOLERANCE = 0.01
ANCHOR_AGE = timedelta(days=365)
AGAINST_ANCHOR = " against the best of the last year"
"""The end of the name of a check against the anchor."""
POWER_Z = NormalDist().inv_cdf(0.8)

Verdict = Literal["", "better", "within", "worse", "cannot tell"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one check: whether it passed, the finding, and a guard's `verdict`."""

    name: str
    passed: bool
    detail: str
    verdict: Verdict = ""


class Anchor(NamedTuple):
    """The best package of the last year, and when it became that."""

    package: Package
    since: datetime


class GateInputs(msgspec.Struct, frozen=True, kw_only=True):
    """Input of the checks. `truth`, `own`, `other`, `groups`, `units` and `slices` are over the same N rows; empty without rows.

    `output` is what both packages predict: the classes of either. `failed` says why the package did not answer those rows.
    """

    package: Probed
    serving: Probed | None
    scope: Scope
    release: Release
    rows: int
    truth: Array
    output: Output
    note: str
    own: Answered | None = None
    other: Answered | None = None
    groups: Array | None = None
    units: Array | None = None
    slices: dict[str, Array] = {}
    failed: str = ""
    anchor: Anchor | None = None
    anchor_answers: Answered | None = None
    """The best package of the last year where that is not the one that serves, and its answers."""
    board: Leaderboard | None = None
    """The leaderboard that the serving package won its place on, with the rule beside it."""


class GuardComparison(NamedTuple):
    """A paired difference in one metric, package minus `against`, on `rows` rows; `sign` is -1 for a metric where less is better."""

    name: str
    against: str
    rows: int
    difference: Estimate
    margin: float
    sign: int
    whole: bool
    """Whether it is over all rows rather than over a slice."""

    @property
    def better_by(self) -> float:
        """The estimate, positive where the package is better."""
        return self.sign * self.difference.value

    @property
    def lowest(self) -> float:
        """The lower end of the interval of `better_by`."""
        return self.difference.low if self.sign > 0 else -self.difference.high

    @property
    def error_above(self) -> float:
        """The standard error of the upper half of the interval, which decides whether it is worse."""
        high = self.difference.high if self.sign > 0 else -self.difference.low
        return (high - self.better_by) / Z_95

    @property
    def worse_p(self) -> float:
        """One-sided p of "not worse by more than the margin"; 1 where nothing was measured."""
        above = self.better_by + self.margin
        if self.difference.too_few or not np.isfinite(above) or above >= 0:
            return 1.0
        return NormalDist().cdf(above / self.error_above) if self.error_above > 0 else 0.0

    @property
    def smallest_seen(self) -> float:
        """The loss that would have been called worse in 80 % of cases."""
        return self.margin + (Z_95 + POWER_Z) * standard_error(self.difference)


def guard_checks(case: GateInputs) -> list[Check]:
    """One check for each guard, for each value of its slices, and for the anchor."""
    if case.serving is None and not case.note:
        return []
    if case.other is None:
        detail = case.note or "not compared: too few rows with a known outcome"
        return [Check(name="guards", passed=True, detail=detail, verdict="cannot tell")]
    missing = [
        Check(name=f"guard {guard.metric} on {name}", passed=False, detail="the package has no such slice")
        for guard in declared_guards(case.scope, case.release)
        for name in guard.slices
        if name not in case.slices
    ]
    compared = [c for guard in declared_guards(case.scope, case.release) for c in _comparisons(case, guard)]
    return [*(_check(case, c, verdict) for c, verdict in zip(compared, verdicts(compared), strict=True)), *missing]


def verdicts(compared: Sequence[GuardComparison]) -> list[Verdict]:
    """The answer of each comparison; they share one chance of 2.5 % to call a package worse that is not."""
    refused = holm([c.worse_p for c in compared], level=0.025)
    return [_verdict(c, worse) for c, worse in zip(compared, refused, strict=True)]


def doubtful(c: GuardComparison, verdict: Verdict, cannot_tell: str) -> bool:
    """Whether a comparison that cannot tell refuses the package, by `Release.cannot_tell`. A slice alone never does."""
    poor = c.better_by < -c.margin and not c.difference.too_few
    return verdict == "cannot tell" and c.whole and (cannot_tell == "hold" or poor)


def is_better(checks: Sequence[Check]) -> bool:
    """Whether the package is better by its first guard: than the anchor, else than what serves."""
    judged = [check for check in checks if check.verdict]
    return next((c for c in judged if c.name.endswith(AGAINST_ANCHOR)), judged[0]).verdict == "better" if judged else False


def _comparisons(case: GateInputs, guard: Guard) -> list[GuardComparison]:
    assert case.other is not None
    every = np.ones(case.rows, dtype=np.bool_)
    made = [_compared(case, guard, case.other, "", every)]
    if case.anchor_answers is not None:
        made.append(_compared(case, guard, case.anchor_answers, AGAINST_ANCHOR, every))
    for name in guard.slices:
        values = case.slices.get(name, np.array([]))
        masks = {value: values == value for value in sorted(set(values.tolist()))}
        made += [
            _compared(case, guard, case.other, f" on {name}={value}", mask)
            for value, mask in masks.items()
            if mask.sum() >= MIN_ROWS
        ]
    return made


def _compared(case: GateInputs, guard: Guard, other: Answered, where: str, mask: Array) -> GuardComparison:
    margin = _noise(case, other, guard.metric, mask) if guard.tolerance is None else guard.tolerance
    return GuardComparison(
        name=f"guard {guard.metric}{where}",
        against="what serves" if other is case.other else case.anchor.package.digest[:12] if case.anchor else "",
        rows=int(mask.sum()),
        difference=paired_difference(case, other, guard.metric, mask),
        margin=margin,
        sign=1 if metrics.metric(guard.metric).higher else -1,
        whole=bool(mask.all()),
    )


def _check(case: GateInputs, c: GuardComparison, verdict: Verdict) -> Check:
    held = doubtful(c, verdict, case.release.cannot_tell)
    detail = (
        f"{interval(c.difference, sign=True)} against {c.against}, on {c.rows:,} rows (tolerance {c.margin:.3g}): {verdict}"
    )
    if np.isfinite(c.smallest_seen) and (c.whole or verdict == "cannot tell"):
        detail += f"; so many rows see a loss of {c.smallest_seen:.2g} or more"
    if held:
        strict = case.release.cannot_tell == "hold"
        why = '`cannot_tell="hold"` refuses it' if strict else "the estimate is worse than the tolerance"
        detail += f"; {why}: judge it on more rows (a longer `validation`), or declare a larger `tolerance`"
    refused = held or verdict == "worse"
    if refused and case.serving is not None and (gone := features_gone(case.package, case.serving)):
        detail = (
            f"cannot compare: the set of features changed (without {', '.join(gone[:10])}{' and more' if gone[10:] else ''}), and "
            f"what they told is missed whether or not it was known at the decision; {detail}"
        )
    return Check(name=c.name, passed=not refused, detail=f"{detail}; {case.note}" if case.note else detail, verdict=verdict)


def _verdict(c: GuardComparison, worse: bool) -> Verdict:
    if worse:
        return "worse"
    if c.difference.too_few:
        return "cannot tell"
    if c.lowest > 0:
        return "better"
    return "within" if c.lowest >= -c.margin else "cannot tell"


def holm(p: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects at family-wise `level` (Holm 1979)."""
    return [each <= level for each in holm_adjusted(p)]


def declared_guards(scope: Scope, release: Release) -> list[Guard]:
    """The guards of the loop, else one of its heaviest objective that is a metric of rows."""
    of_rows = [o for o in scope.objectives if metrics.of_rows(o.metric) and o.metric not in UNDIRECTED]
    return list(release.guards) or ([Guard(max(of_rows, key=lambda o: o.weight).metric)] if of_rows else [])


def features_gone(package: Package, other: Package) -> list[str]:
    """The features of another model that the package does not have, nor their columns by another name.

    A rule has no features: of what it lacks only suspects of a leak are named.
    """
    mine, before = package.manifest.lineage, other.manifest.lineage.features
    if not mine.features:
        doubted = {column for suspect in other.evaluation.suspects for column in suspect.columns}
        before = {name: columns for name, columns in before.items() if doubted & set(columns)}
    return [
        name
        for name, columns in before.items()
        if name not in mine.features and not (columns and all(mine.reaches_model(column) for column in columns))
    ]


def settings(case: GateInputs, mask: Array | slice = slice(None)) -> dict[str, Any]:
    """How a metric is measured on some of the rows."""
    groups, units = (None if part is None else part[mask] for part in (case.groups, case.units))
    slices = {name: values[mask] for name, values in case.slices.items()}
    return {"output": case.output, "groups": groups, "units": units, "seed": SEED, "value": case.scope.value, "slices": slices}


def paired_difference(case: GateInputs, other: Answered, name: str, mask: Array | None = None) -> Estimate:
    """Package minus `other` on the rows of `mask` (None: on all)."""
    assert case.own is not None
    mask = np.ones(case.rows, dtype=np.bool_) if mask is None else mask
    return metrics.differences([name], case.truth[mask], case.own.at(mask), other.at(mask), **settings(case, mask))[name]


def _noise(case: GateInputs, other: Answered, name: str, mask: Array) -> float:
    """One standard error of the metric of `other` on these rows, at least 1 % of the metric."""
    found = metrics.intervals([name], case.truth[mask], *other.at(mask), **settings(case, mask))[name]
    return float(np.nan_to_num(max(standard_error(found), MIN_TOLERANCE * abs(found.value))))


def surely_worse(name: str, difference: Estimate, tolerance: float) -> bool:
    """Whether the whole 95 % interval of a difference in metric `name` is worse than `tolerance`."""
    if difference.too_few:
        return False
    return difference.high < -tolerance if metrics.metric(name).higher else difference.low > tolerance
