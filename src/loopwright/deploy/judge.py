"""The judge of releases: compares the arms of a stage on the rows that both answered at the same time, and answers on, back or hold.

It reads the log, the outcomes and the packages, and changes nothing; `deploy.controller` acts on its verdicts.

Layers, quickest first: *system* (answers by the fall-back, slow answers), *behaviour* (flagged rows), *quality* (the guards of the loop, overall and by slice,
and its money, on the decisions whose wait for an outcome is over). The first two may only stop a release, or hold it while the estimate is worse than the tolerance.

A guard is `worse` where the new package is surely worse than the old one and not surely within the tolerance, `within` where it surely
is, else `cannot tell`, which holds the stage. "Surely" is by confidence sequences (`tasks.metrics.sequence`), so looking often costs nothing.
The chance `Release.alpha` that an equal package is sent back is shared by Bonferroni: equally over the phases of a plan (its canaries; its
full stage), then over the guards, and the part of a guard's slices over their values.

Of more than `MAX_COMPARED` rows with an outcome (`MAX_COUNTED` rows for the first two layers) a sample of the units is judged, chosen by a
keyed hash, at a level of its own (`tasks.metrics.sequence.level_of`); the verdict says which share (`sampled`). Only committed rows count.

A tolerance is for a stage in which half of the units have the new package. A smaller share may tolerate more in proportion, as it does
less harm: at 5 % of the units ten times as much.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.text import count, duration_text, number
from loopwright.deploy.experiment import GoalState, goal_state, rows_needed
from loopwright.deploy.guards import declared_guards
from loopwright.deploy.joined_rows import JoinedRows, joined_rows, unit_sample
from loopwright.deploy.phases import Phase, phases
from loopwright.deploy.strategies import new_package, rules_of
from loopwright.deploy.traffic import Sides, arm_rows, hits_sql, shares, shown_by
from loopwright.records.declarations import Guard, Loop, duration
from loopwright.records.releases import ReleaseState
from loopwright.records.verdicts import GuardFinding, GuardVerdict, Layer, Verdict
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import Known
from loopwright.tasks import metrics
from loopwright.tasks.metrics import sequence
from loopwright.tasks.metrics.estimate import statistics_of, unit_codes
from loopwright.tasks.metrics.resample import Units
from loopwright.tasks.metrics.sequence import ArmDifference

DEGRADED_TOLERANCE, SLOW_TOLERANCE, FLAGGED_TOLERANCE = 0.005, 0.01, 0.05
"""How much larger the share of rows may be that the fall-back answered, that took too long, that are flagged."""

DEFAULT_TOLERANCE = 0.05
"""Tolerance of a guard without one, as a share of the old package's number."""

SLOW_SHARE = 0.1
"""A row is slow beyond the scope's latency objective; without one, beyond this share of the deadline."""

UNEVEN_ALPHA = 0.001
"""The chance that arms are called uneven that are not, in a whole phase. Uneven arms are never a pass."""

MAX_SHOWN = 20

MAX_COUNTED, MAX_COMPARED = 2**21, 2**19
"""With more rows, and with more rows with an outcome, a sample of the units is looked at."""

_HALF = 0.5


_QUICK: dict[str, tuple[Layer, float]] = {
    "degraded_share": ("system", DEGRADED_TOLERANCE),
    "slow_share": ("system", SLOW_TOLERANCE),
    "flagged_share": ("behaviour", FLAGGED_TOLERANCE),
}


class _Compared(NamedTuple):
    """What is compared: a metric, on the part of the traffic where slice `part[0]` is `part[1]`; its share of the false alarms."""

    layer: Layer
    metric: str
    tolerance: float | None
    alpha: float
    stops_only: bool = False
    part: tuple[str, str] = ("", "")


def judge(home: Home, loop: Loop, states: Sequence[ReleaseState], at: datetime) -> Verdict:
    """The verdict at moment `at` on the current stage of a plan; `states` are those of the loop, oldest first, the last one under way."""
    begun = home.clock.monotonic()
    return msgspec.structs.replace(_Judge(home, loop, states, at).verdict(), seconds=home.clock.monotonic() - begun)


class _Judge:
    def __init__(self, home: Home, loop: Loop, states: Sequence[ReleaseState], at: datetime) -> None:
        self.home, self.loop, self.at = home, loop, at
        self.state = states[-1]
        self.stage = self.state.plan[self.state.stage]
        self.rules = rules_of(self.stage)
        assert self.state.begun is not None
        assert self.state.former is not None
        self.begun, self.former = self.state.begun, self.state.former
        mine = [s for s in states if s.begun == self.begun and s.under_way is not None]
        self.phases = phases([s for s in mine if s.shadow is None], at)
        kinds = {rules_of(stage).new_arm for stage in self.state.plan}
        self.alpha = 2 * loop.release.alpha / len(kinds)  # of a two-sided sequence one side sends back
        self.planned = 4.0 * max([rules_of(stage).rows(stage) for stage in self.state.plan] + [250])
        self.unit = loop.unit or ""
        self.goal = self.rules.goal(self.stage)
        self.goal_difference: ArmDifference | None = None
        self.goal_alpha = self.alpha / self._guards
        self.ids: list[str] = []
        self.uneven, self.sampled = "", 1.0

    def verdict(self) -> Verdict:
        """See `judge`."""
        waits = duration(self.loop.outcome.wait)
        counted = [arm_rows(self.home, self.loop.name, phase, self.at - waits) for phase in self.phases]
        rows = counted[-1].old.in_stage, counted[-1].new.in_stage
        findings = self._technical(counted[-1])
        quality, outcomes = self._quality(self.phases[-1], counted[-1])
        findings += quality
        for earlier, of_earlier in zip(self.phases[:-1], counted, strict=False):  # its outcomes are still arriving
            findings += [f for f in self._quality(earlier, of_earlier)[0] if f.verdict == "worse"]
        worse = [f for f in findings if f.verdict == "worse"]
        missing = self._missing(rows, findings)
        goal = self._goal(min(outcomes))
        if goal is not None and not (goal.reached or goal.ended):
            missing.append(goal.text)
        unknown = [f for f in findings if f.layer == "quality" and f.verdict == "cannot tell" and not f.stops_only]
        awaited = bool(unknown) and waits > self.rules.lasts(self.stage)
        if not self.rules.must_show:
            due = self.phases[-1].states[0].since + waits
            if len(self.phases) > 1 and self.at < due:
                missing.append(f"outcomes of the stages before, complete on {due:%Y-%m-%d %H:%M} UTC")
        ended = goal is not None and goal.ended
        answer: Literal["on", "back", "hold"] = "back" if worse else "hold" if missing else "back" if ended else "on"
        return Verdict(
            loop=self.loop.name,
            generation=self.state.generation,
            stage=self.state.stage,
            at=self.at,
            answer=answer,
            why=self._why(answer, worse, missing, findings, awaited, goal.text if goal is not None else ""),
            package=new_package(self.state),
            former=self.former.package,
            rows=rows[1],
            control_rows=rows[0],
            with_outcome=outcomes[1],
            control_with_outcome=outcomes[0],
            provisional=awaited,
            sampled=self.sampled,
            missing=missing if answer == "hold" else [],
            findings=findings,
            shown_by=self.ids[:MAX_SHOWN] if worse else [],
        )

    def _why(
        self,
        answer: str,
        worse: Sequence[GuardFinding],
        missing: Sequence[str],
        findings: Sequence[GuardFinding],
        awaited: bool,
        goal: str,
    ) -> str:
        said = self.rules.words(self.stage)
        if goal and answer != "hold" and not worse:
            return f"{said}: {goal}"
        if answer == "back":
            return f"{said}: {'; '.join(map(finding_text, worse[:3]))}{_most_on(worse[0], findings)}"
        if answer == "hold":
            return f"{said}: waits for {'; '.join(missing)}"
        shown = count(sum(f.verdict == "within" for f in findings), "guard")
        return f"{said}: {shown} within tolerance" + ("; outcomes are not in yet (provisional)" if awaited else "")

    def _missing(self, rows: tuple[int, int], findings: Sequence[GuardFinding]) -> list[str]:
        """What the stage still waits for."""
        found, lasts = [self.uneven] if self.uneven else [], self.rules.lasts(self.stage)
        if self.at < self.state.since + lasts:
            found.append(f"its time, {duration_text(lasts)}, over on {self.state.since + lasts:%Y-%m-%d %H:%M} UTC")
        least = self.rules.rows(self.stage)
        if min(rows) < least:
            found.append(f"{min(rows):,} of {least:,} rows in each arm")
        if self.rules.must_show:
            early = duration(self.loop.outcome.wait) > lasts
            unsure = [f for f in findings if f.verdict == "cannot tell" and not f.stops_only]
            found += [_needs(f) for f in unsure if not (f.layer == "quality" and early)]
        return found

    def _goal(self, rows: int) -> GoalState | None:
        """The state of the stage's goal, with so many rows with an outcome in each arm; None where it has none."""
        if self.goal is None:
            return None
        promised = self.home.packages.read(self.former.package).evaluation.metrics.get(self.goal.metric)
        return goal_state(self.goal, self.goal_difference, rows, promised, self.goal_alpha, self.planned)

    def _technical(self, counted: Sides) -> list[GuardFinding]:
        """The findings of the quick layers in the current phase."""
        phase, slow = self.phases[-1], slow_us(self.loop)
        sample = unit_sample(self.loop, self.state, counted.most("rows"), MAX_COUNTED)
        alpha = sequence.level_of(self.alpha / self._guards, sample.halvings)
        found = []
        for name, (old, new) in shares(self.home, self.loop.name, phase, sample, slow).items():
            layer, tolerance = _QUICK[name]
            difference = sequence.share_difference(sequence.share_of(new), sequence.share_of(old), alpha=alpha)
            poor = difference.value > tolerance * self._scale
            wanted = _Compared(layer, name, tolerance, alpha, stops_only=not poor)
            finding = self._finding(wanted, difference, (int(old.rows), int(new.rows)))
            if finding.verdict == "worse":
                self.ids += shown_by(self.home, self.loop.name, phase, hits_sql(slow)[name], MAX_SHOWN)
            found.append(finding)
            self.uneven = self._uneven(int(old.units), int(new.units), sequence.level_of(UNEVEN_ALPHA, sample.halvings))
        return found

    def _uneven(self, old: int, new: int, alpha: float) -> str:
        """Why the numbers of units in both arms cannot be chance (sample ratio mismatch; Fabijan et al. 2019, KDD), empty where they can."""
        due, of_new = self.phases[-1].due, sequence.Share(new, old + new)
        if not (old + new and 0 < due < 1):
            return ""
        low, high = (sequence.share_end(of_new, alpha, upper=upper) for upper in (False, True))
        if low <= due <= high:
            return ""
        return (
            f"equal treatment: {new:,} units had the new package beside {old:,}, where {due * (old + new):,.0f} were due; "
            "rows of one arm get lost or come again (`loopwright verify`)"
        )

    @property
    def _scale(self) -> float:
        """How many times its tolerance a guard may use in this stage."""
        share = next(arm.share for arm in self.state.arms if arm.name == self.rules.new_arm)
        return max(1.0, _HALF / share)

    @property
    def _quality_guards(self) -> list[tuple[Guard, bool]]:
        """The guards of quality, each with whether it only stops."""
        guards = [(guard, False) for guard in declared_guards(self.loop.scope, self.loop.release)]
        money = "value_per_prediction"
        if self.loop.scope.value.is_set and money not in [guard.metric for guard, _ in guards]:
            guards.append((Guard(money), True))
        if self.goal is not None and self.goal.metric not in [guard.metric for guard, _ in guards]:
            guards.append((Guard(self.goal.metric, tolerance=0.0), True))
        return guards

    @property
    def _guards(self) -> int:
        """Number of guards that share the chance of a false alarm; the slices of one count as one."""
        return 3 + sum(1 + bool(guard.slices) for guard, _ in self._quality_guards)

    def _quality(self, phase: Phase, counted: Sides) -> tuple[list[GuardFinding], tuple[int, int]]:
        """The findings about quality in a phase, and the numbers of rows with an outcome of the control and of the new arm."""
        guards = self._quality_guards
        if not guards:
            return [], (0, 0)
        unknown = [self._unknown(guard, stops_only) for guard, stops_only in guards]
        if self.at < phase.start + duration(self.loop.outcome.wait):
            return unknown, (0, 0)
        sliced = any(guard.slices for guard, _ in guards)
        found = joined_rows(self.home, self.loop, phase, counted, self.at, most=MAX_COMPARED, sliced=sliced)
        if found is None:
            return unknown, (0, 0)
        self.sampled = min(self.sampled, 0.5**found.halvings)
        alpha = sequence.level_of(self.alpha / self._guards, found.halvings)
        parts = found.parts
        wanted: dict[tuple[str, str], list[_Compared]] = {part: [] for part in parts}
        for guard, stops_only in guards:
            if metrics.problem(guard.metric, list(found.slices), found.known.output) or ":" in guard.metric:
                continue  # a gap between slices is no mean over rows: its slices are compared
            one = _Compared("quality", guard.metric, guard.tolerance, alpha, stops_only)
            wanted["", ""].append(one)
            mine = [part for part in wanted if part[0] and part[0] in guard.slices]
            for part in mine:
                wanted[part].append(one._replace(alpha=alpha / len(mine), stops_only=True, part=part))
        findings = [f for part, compared in wanted.items() if compared for f in self._compared(compared, found, parts[part])]
        order = [guard.metric for guard, _ in guards]
        counts = [int((found.side == which).sum()) for which in (0, 1)]
        return sorted(findings, key=lambda f: order.index(f.metric)), (counts[0], counts[1])

    def _compared(self, wanted: Sequence[_Compared], joined: JoinedRows, mask: Array) -> list[GuardFinding]:
        """Metrics on the rows of `mask`, each arm by itself."""
        sides, labelled = [], joined.known
        for which in (0, 1):
            mine = np.flatnonzero(mask & (joined.side == which))
            groups = None if labelled.groups is None else labelled.groups[mine]
            units = None if joined.units is None else joined.units[mine]
            answers, value = labelled.given.at(mine), self.loop.scope.value
            names = [one.metric for one in wanted]
            measured = statistics_of(names, labelled.truth[mine], answers, labelled.output, groups, value, None)
            sides.append((measured, Units(unit_codes(units, groups), len(mine))))
        (old, old_units), (new, new_units) = sides
        findings = []
        for one, of_old, of_new in zip(wanted, old, new, strict=True):
            difference = sequence.arm_difference(of_new, new_units, of_old, old_units, alpha=one.alpha, planned=self.planned)
            if self.goal is not None and one.metric == self.goal.metric and one.part == ("", ""):
                self.goal_difference = difference
                self.goal_alpha = one.alpha
            if one.tolerance is None:
                one = one._replace(tolerance=DEFAULT_TOLERANCE * abs(of_old.value))
            findings.append(self._finding(one, difference, (old_units.rows, new_units.rows)))
            if findings[-1].verdict == "worse":
                places = np.flatnonzero(mask & (joined.side == 1))
                self.ids += joined.logged["_id"].take(_most_wrong(labelled, places)[:MAX_SHOWN]).to_pylist()
        return findings

    def _finding(self, wanted: _Compared, difference: ArmDifference, rows: tuple[int, int]) -> GuardFinding:
        """What a difference says; `rows` are those of the control and of the new arm."""
        higher = metrics.metric(wanted.metric).higher if wanted.layer == "quality" else False
        tolerance = (wanted.tolerance or 0.0) * self._scale
        answer = answer_of(difference, tolerance, higher=higher)
        unsure = answer == "cannot tell"
        return GuardFinding(
            layer=wanted.layer,
            metric=wanted.metric,
            higher_is_better=higher,
            tolerance=tolerance,
            verdict=answer,
            rows=rows[1],
            control_rows=rows[0],
            slice=wanted.part[0],
            value=wanted.part[1],
            new=_finite(difference.new),
            old=_finite(difference.old),
            low=_finite(difference.low),
            high=_finite(difference.high),
            rows_needed=rows_needed(difference, tolerance, min(rows), wanted.alpha, self.planned) if unsure else None,
            stops_only=wanted.stops_only,
        )

    def _unknown(self, guard: Guard, stops_only: bool) -> GuardFinding:
        nothing = ArmDifference(math.nan, math.nan, -math.inf, math.inf, math.inf)
        return self._finding(_Compared("quality", guard.metric, guard.tolerance, self.alpha, stops_only), nothing, (0, 0))


def slow_us(loop: Loop) -> float:
    """The latency beyond which a row is slow, microseconds."""
    wanted = [o.at_most for o in loop.scope.objectives if o.metric.startswith("latency_p") and o.at_most is not None]
    return 1000 * (max(wanted) if wanted else loop.release.deadline_ms * SLOW_SHARE)


def answer_of(difference: ArmDifference, tolerance: float, *, higher: bool) -> GuardVerdict:
    """What a confidence sequence says about a metric of which more is better (`higher`), or less."""
    low, high = (difference.low, difference.high) if higher else (-difference.high, -difference.low)
    return "within" if low > -tolerance else "worse" if high < 0 else "cannot tell"


def finding_text(finding: GuardFinding) -> str:
    """A finding in words."""
    if finding.new is None or finding.old is None:
        return f"{finding.name}: nothing measured yet"
    between = ""
    if finding.low is not None and finding.high is not None:
        between = f" [{number(finding.low, sign=True)}, {number(finding.high, sign=True)}]"
    return (
        f"{finding.name} {number(finding.new)} beside {number(finding.old)} of the old package: {number(finding.new - finding.old, sign=True)}"
        f"{between} on {count(finding.rows, 'row')} (tolerance {number(finding.tolerance)}): {finding.verdict}"
    )


def _most_on(finding: GuardFinding, findings: Sequence[GuardFinding]) -> str:
    """The part of the traffic in which the new package lost most of a metric, certain or not; empty where none was looked at."""
    if finding.slice:
        return ""
    parts = [(f, (f.new - f.old) * (1 if f.higher_is_better else -1)) for f in findings if f.slice and f.metric == finding.metric
             and f.new is not None and f.old is not None]  # fmt: skip
    if not parts or (least := min(parts, key=lambda part: part[1]))[1] >= 0:
        return ""
    part = least[0]
    return (
        f"; most of it on {part.slice} {part.value}: {number(part.new)} beside {number(part.old)} on {count(part.rows, 'row')}"
    )


def _needs(finding: GuardFinding) -> str:
    if finding.rows_needed is None:
        return f"{finding.name}: more rows"
    outcome = " with an outcome" if finding.layer == "quality" else ""
    least = min(finding.rows, finding.control_rows)
    return f"{finding.name}: about {finding.rows_needed:,} rows{outcome} in each arm would tell ({least:,} now)"


def _most_wrong(labelled: Known, rows: Array) -> Array:
    """Of `rows` the most wrong answers first."""
    truth, score, label = labelled.truth[rows], labelled.given.score[rows], labelled.given.label
    if truth.dtype.kind in "bif" and truth.ndim == 1:
        return rows[np.argsort(-np.abs(truth.astype(np.float64) - score), kind="stable")]
    wrong = truth != label[rows] if label is not None else np.zeros(len(rows), np.bool_)
    return rows[np.argsort(~wrong, kind="stable")]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
