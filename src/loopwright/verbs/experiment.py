"""The verb `experiment`."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from loopwright.base.errors import OptionInvalid, UsageError
from loopwright.base.text import count, number
from loopwright.deploy.analysis import DayEffect, MetricEffect, analysed, experiment_metrics, units_table
from loopwright.deploy.joined_rows import JoinedRows, joined_rows, unit_sample
from loopwright.deploy.phases import Phase, phases
from loopwright.deploy.power import ErrorOf, Power, foreseen_error, power_of
from loopwright.deploy.strategies import ExperimentGoal, new_package, rules_of
from loopwright.deploy.traffic import arm_rows, shares
from loopwright.records.declarations import Loop, duration
from loopwright.records.releases import ReleaseState
from loopwright.stores.home import Home
from loopwright.tasks import metrics
from loopwright.tasks.metrics.effect import uneven_p
from loopwright.verbs.history import releases_of
from loopwright.verbs.known_loop import known_loop

MAX_ROWS = 2**20
"""With more rows with an outcome, or more to count units of, a sample of the units is analysed."""

UNEVEN_P = 0.001
NOVELTY_P = 0.01
_ENDINGS = (".parquet", ".json")


class ExperimentReport(msgspec.Struct, frozen=True, kw_only=True):
    """A release with two arms as an experiment. `verdict` says it in a sentence.

    `units` answered in each arm, where `due` is the new package's share of them; `uneven_p` below 0.001: the arms are not comparable. `sampled` is the
    share of the units that was analysed. `novelty_p` below 0.01: the effect of the primary metric changes with time.
    """

    loop: str
    verdict: str
    generation: int | None = None
    stage: str = ""
    package: str = ""
    former: str = ""
    start: datetime | None = None
    end: datetime | None = None
    rows: int = 0
    control_rows: int = 0
    units: int = 0
    control_units: int = 0
    due: float = 0.5
    uneven_p: float = 1.0
    sampled: float = 1.0
    effects: list[MetricEffect] = []
    days: list[DayEffect] = []
    novelty_p: float | None = None
    power: Power | None = None
    exported: str = ""


def experiment(
    home: Home,
    loop: str,
    *,
    release: int | None = None,
    plan: bool = False,
    metric: str = "",
    effect: float | None = None,
    export: Path | None = None,
) -> ExperimentReport:
    """Analyse a release with two arms as an experiment: sample ratio, effects with intervals, power, a verdict.

    Args:
        loop: name of the loop.
        release: generation of the release, as `history` shows it; default: the newest with two arms.
        plan: say how many units an experiment needs, before it starts.
        metric: the primary metric; default: that of the plan's `AB`, else the first guard.
        effect: the smallest effect that is worth seeing; default: that of the plan's `AB`.
        export: output file (.parquet or .json): unit, arm, first exposure, and the sum of each metric.
    """
    known = known_loop(home, loop)
    if effect is not None and not effect > 0:
        raise UsageError(f"--effect {effect:g}: must be above 0, in units of the metric")
    if export is not None and export.suffix not in _ENDINGS:
        raise UsageError(f"--export {str(export)!r}: must end in {' or '.join(_ENDINGS)}")
    if metric and (metrics.problem(metric, [], known.outcome) or not metrics.of_rows(metric)):
        names = ", ".join(experiment_metrics(known.scope, known))
        raise OptionInvalid("metric", repr(metric), f"is no metric of rows; of this loop there are {names}")
    states = releases_of(home, loop)
    if plan:
        return _planned(home, known, states, metric, effect)
    phase, ended = _phase(states, loop, release, home.clock.now())
    return _analysed(home, known, phase, ended, metric, effect, export)


def _phase(states: Sequence[ReleaseState], loop: str, generation: int | None, now: datetime) -> tuple[Phase, bool]:
    """The phase of a release that is analysed: that of its experiment, else the first; and whether it has ended."""
    plans: dict[datetime, list[ReleaseState]] = {}
    for state in states:
        if state.begun is not None and state.under_way is not None:
            plans.setdefault(state.begun, []).append(state)
    chosen = [of for of in plans.values() if generation is None or generation in [state.generation for state in of]]
    if not chosen:
        known = ", ".join(str(of[0].generation) for of in plans.values())
        there = f"those of {loop} are {known}" if known else f"{loop} has none: `--plan` says what one needs"
        which = "no release" if generation is None else f"--release {generation}: no release"
        raise UsageError(f"{which} with two arms; {there}")
    last = chosen[-1][-1]
    after = next((s.since for s in states if s.generation > last.generation), None)
    found = phases(chosen[-1], after or now)
    goals = [phase for phase in found if _goal(phase.states[-1]) is not None]
    picked = (goals or found)[0]
    return picked, after is not None or picked is not found[-1]


def _goal(state: ReleaseState) -> ExperimentGoal | None:
    return rules_of(state.plan[state.stage]).goal(state.plan[state.stage])


def _effect(effect: float | None, goal: ExperimentGoal | None, metric: str) -> float | None:
    """The smallest effect worth seeing: as told, else that of the goal if it is in this metric."""
    return effect if effect is not None else goal.minimum_effect if goal is not None and goal.metric == metric else None


def _names(loop: Loop, metric: str, goal: ExperimentGoal | None) -> list[str]:
    """The metrics, the primary one first."""
    names = experiment_metrics(loop.scope, loop, metric or (goal.metric if goal is not None else ""))
    if not names:
        raise UsageError(f"{loop.name} has no guard, objective or money on rows: `--metric METRIC` names one")
    return names


def _planned(home: Home, loop: Loop, states: Sequence[ReleaseState], metric: str, effect: float | None) -> ExperimentReport:
    """What an experiment needs that has not begun."""
    if not states:
        raise UsageError(f"nothing serves {loop.name} yet: there is nothing to compare with")
    declared = (rules_of(stage).goal(stage) for stage in loop.release.plan)
    goal = next((one for one in declared if one is not None), None)
    name = _names(loop, metric, goal)[0]
    effect = _effect(effect, goal, name)
    package = home.packages.read(states[-1].champion.package)
    power = power_of(name, foreseen_error(home, loop, package, name, home.clock.now(), 0.5), effect)
    if power.units is not None:
        days = f", {power.days:.0f} days at today's traffic" if power.days is not None else ""
        text = f"{name} by {number(power.effect)}: {power.units:,} units in each arm with an outcome{days}; {power.units_always or 0:,} where one looks at any time"
    elif effect is not None:
        text = f"{name}: the error is not known yet, so nothing can be foreseen"
    else:
        text = f"{name}: `--effect` says which difference is worth seeing"
    return ExperimentReport(loop=loop.name, verdict=f"An effect in {text}.", former=package.digest, power=power)


def _analysed(
    home: Home, loop: Loop, phase: Phase, ended: bool, metric: str, effect: float | None, export: Path | None
) -> ExperimentReport:
    state, now = phase.states[-1], home.clock.now()
    goal = _goal(state)
    names = _names(loop, metric, goal)
    counted = arm_rows(home, loop.name, phase, now - duration(loop.outcome.wait))
    sums = next(iter(shares(home, loop.name, phase, unit_sample(loop, state, counted.most("rows"), MAX_ROWS), 0.0).values()))
    units = int(sums[1].units), int(sums[0].units)
    p = uneven_p(*units, phase.due)
    joined = joined_rows(home, loop, phase, counted, now, most=MAX_ROWS)
    stage = state.plan[state.stage]
    report = ExperimentReport(
        loop=loop.name,
        verdict="Nothing can be said yet: no outcome is in.",
        generation=phase.states[0].generation,
        stage=rules_of(stage).words(stage),
        package=new_package(state),
        former=state.former.package if state.former is not None else "",
        start=phase.start,
        end=phase.ends[-1] if ended else None,
        rows=counted.new.rows,
        control_rows=counted.old.rows,
        units=units[0],
        control_units=units[1],
        due=phase.due,
        uneven_p=p,
    )
    if joined is None:
        return report
    sample = unit_sample(loop, state, 0, MAX_ROWS)._replace(halvings=joined.halvings)
    found = analysed(home, loop, joined, names, phase.start, sample)
    first = next((one for one in found.effects if one.primary), None)
    power = _power(first, _effect(effect, goal, names[0]), phase) if first is not None else None
    exported = _export(export, loop, joined, [one.metric for one in found.effects if not one.slice], phase) if export else ""
    report = msgspec.structs.replace(
        report, effects=found.effects, days=found.days, novelty_p=found.novelty_p, power=power, sampled=0.5**joined.halvings,
        exported=exported,
    )  # fmt: skip
    return msgspec.structs.replace(report, verdict=_verdict(report, first))


def _power(first: MetricEffect, effect: float | None, phase: Phase) -> Power | None:
    """The power of the experiment as it is."""
    if first.error is None or not first.error:
        return None
    days = max((phase.ends[-1] - phase.start).total_seconds() / 86_400, 1e-9)
    units = min(first.units, first.control_units)
    return power_of(first.metric, ErrorOf(first.error, units, units / days, "the experiment itself"), effect)


def _export(path: Path, loop: Loop, joined: JoinedRows, names: Sequence[str], phase: Phase) -> str:
    """Write one row per unit."""
    table = units_table(loop, joined, names, phase.pair)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.write_bytes(msgspec.json.encode(table.to_pylist()))
    return str(path)


def _verdict(report: ExperimentReport, first: MetricEffect | None) -> str:
    """The experiment in a sentence."""
    if report.uneven_p < UNEVEN_P:
        due = report.due * (report.units + report.control_units)
        return (
            f"Do not decide on this: {report.units:,} units had the new package where {due:,.0f} of both arms were due, which is no chance "
            "(sample ratio mismatch), so the arms are not comparable. Look for rows that one arm loses (`loopwright verify`)."
        )
    if first is None or first.low is None:
        return "Nothing can be said yet: too few units, or too few events among them, have an outcome."
    between = (
        f"{first.metric} {number(first.effect, sign=True)} [{number(first.low, sign=True)}, {number(first.high, sign=True)}]"
    )
    on = f"on {count(first.units, 'unit')} beside {first.control_units:,}"
    head = {
        "better": f"The new package is better: {between} {on}",
        "worse": f"The new package is worse: {between} {on}",
    }.get(first.answer, f"No effect can be told: {between} {on}")
    others = [one for one in report.effects if not one.primary and one.answer in ("better", "worse")]
    worse, better = ([one.name for one in others if one.answer == which] for which in ("worse", "better"))
    tail = f"; worse in {', '.join(worse[:3])}" if worse else "; nothing else is surely worse"
    tail += f"; better in {', '.join(better[:3])}" if better else ""
    if report.novelty_p is not None and report.novelty_p < NOVELTY_P:
        tail += "; the effect changes with time, so wait until the days agree"
    if first.answer == "cannot tell" and report.power is not None and report.power.units is not None:
        tail += f". {report.power.units:,} units in each arm would tell an effect of {number(report.power.effect)}"
    return f"{head}{tail}."
