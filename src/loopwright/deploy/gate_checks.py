"""The checks of the gate over a package's answers, in the order of CHECKS; the rules are described in `deploy.gate`."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.text import interval
from loopwright.records.declarations import Guard, Objective, Scope
from loopwright.records.evaluation import Z_95, Estimate, Leaderboard
from loopwright.records.field_rules import UNDIRECTED
from loopwright.records.package import Output
from loopwright.stores.packages.probe import Probed
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered
from loopwright.tasks.plausibility import perfect_on_few, practically_perfect, too_good

SEED = 20_130_401
MIN_ROWS = 100
MIN_TOLERANCE = 0.01


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check: whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


class GateInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks look at. `truth`, `own`, `other`, `groups`, `units` and `slices` are over the same N rows; empty without rows.

    `output` is what both packages predict: the classes of either. `failed` says why the package did not answer those rows.
    """

    package: Probed
    serving: Probed | None
    scope: Scope
    guards: Sequence[Guard]
    rows: int
    truth: Array
    own: Answered | None
    other: Answered | None
    groups: Array | None
    units: Array | None
    output: Output
    slices: dict[str, Array]
    note: str
    failed: str = ""
    board: Leaderboard | None = None
    """The leaderboard that the serving package won its place on, with the rule beside it."""


def _answers(case: GateInputs) -> list[Check]:
    return [Check(name="answers", passed=False, detail=case.failed)] if case.failed else []


def _plausible(case: GateInputs) -> list[Check]:
    judged = case.package.evaluation, case.package.manifest.output.task
    why, few = practically_perfect(*judged), perfect_on_few(*judged)
    if not why:
        return [Check(name="plausible", passed=True, detail=few)] if few else []
    if case.serving is not None and practically_perfect(case.serving.evaluation, case.serving.manifest.output.task):
        return [Check(name="plausible", passed=True, detail=f"{why}; that of what serves is as well")]
    named = "; ".join(f"{s.what} {s.why}" for s in case.package.evaluation.suspects if s.used)
    where = named or "a column that is known only after the decision"
    return [Check(name="plausible", passed=False, detail=f"{why}. Look for a leak: {where}")]


def _targets(case: GateInputs) -> list[Check]:
    if case.package.manifest.segment is not None:
        return []
    return [_target(case, objective) for objective in case.scope.objectives]


def _target(case: GateInputs, objective: Objective) -> Check:
    name = f"target {objective.name}"
    measured = _measure(case, objective.metric)
    if measured is None or np.isnan(measured.value):
        return Check(name=name, passed=False, detail=f"{objective.metric} was not measured")
    wanted = f"at least {objective.at_least:g}" if objective.at_least is not None else f"at most {objective.at_most:g}"
    detail = f"{objective.metric} {interval(measured)}, wanted {wanted}"
    best = measured.high if objective.at_least is not None else measured.low
    if measured.too_few or objective.met(measured.value if np.isnan(best) else best):
        return Check(name=name, passed=True, detail=detail)
    if case.other is not None and metrics.of_rows(objective.metric):
        difference = _difference(case, objective.metric, np.ones(case.rows, dtype=np.bool_))
        if not _surely_worse(objective.metric, difference, 0.0):
            return Check(
                name=name,
                passed=True,
                detail=f"{detail}: missed, but what serves does no better (difference {interval(difference)})",
            )
    return Check(name=name, passed=False, detail=f"{detail}: surely missed")


def _measure(case: GateInputs, name: str) -> Estimate | None:
    """A measure of the package: from its own evaluation, else from the rows at hand."""
    evaluation = case.package.evaluation
    if name in evaluation.metrics:
        return evaluation.metrics[name]
    measured = evaluation.package_measures | {"value_per_prediction": evaluation.value_per_prediction}
    if (value := measured.get(name)) is not None:
        return Estimate(value, value, value, evaluation.rows)
    if case.own is None or metrics.problem(name, case.slices, case.output):
        return None
    return metrics.intervals([name], case.truth, *case.own, **_settings(case))[name]


def _guards(case: GateInputs) -> list[Check]:
    if case.serving is None and not case.note:
        return []
    if case.other is None:
        return [Check(name="guards", passed=True, detail=case.note or "not compared: too few rows with a known outcome")]
    checks = []
    for guard in _declared_guards(case):
        checks.append(_guard(case, guard, "", np.ones(case.rows, dtype=np.bool_)))
        for slice_name in guard.slices:
            values = case.slices.get(slice_name)
            if values is None:
                checks.append(
                    Check(name=f"guard {guard.metric} on {slice_name}", passed=False, detail="the package has no such slice")
                )
                continue
            for value in sorted(set(values.tolist())):
                mask = values == value
                if mask.sum() >= MIN_ROWS:
                    checks.append(_guard(case, guard, f" on {slice_name}={value}", mask))
    return checks


def _declared_guards(case: GateInputs) -> list[Guard]:
    """The guards of the loop, else one of its heaviest objective that is a metric of rows."""
    of_rows = [o for o in case.scope.objectives if metrics.of_rows(o.metric) and o.metric not in UNDIRECTED]
    return list(case.guards) or ([Guard(max(of_rows, key=lambda o: o.weight).metric)] if of_rows else [])


def _guard(case: GateInputs, guard: Guard, where: str, mask: Array) -> Check:
    difference = _difference(case, guard.metric, mask)
    tolerance = _noise(case, guard.metric, mask) if guard.tolerance is None else guard.tolerance
    worse = _surely_worse(guard.metric, difference, tolerance)
    detail = f"{interval(difference, sign=True)} against what serves, on {int(mask.sum()):,} rows (tolerance {tolerance:.3g})"
    if worse and (gone := _features_gone(case)):
        detail = (
            f"cannot compare: the set of features changed (without {', '.join(gone[:10])}{' and more' if gone[10:] else ''}), and "
            f"what they told is missed whether or not it was known at the decision; {detail}"
        )
    return Check(
        name=f"guard {guard.metric}{where}", passed=not worse, detail=f"{detail}; {case.note}" if case.note else detail
    )


def _features_gone(case: GateInputs) -> list[str]:
    """The features of the serving model that the package does not have, nor their columns by another name.

    A rule has no features: of what it lacks only suspects of a leak are named.
    """
    if case.serving is None:
        return []
    mine, before = case.package.manifest.lineage, case.serving.manifest.lineage.features
    if not mine.features:
        doubted = {column for suspect in case.serving.evaluation.suspects for column in suspect.columns}
        before = {name: columns for name, columns in before.items() if doubted & set(columns)}
    return [
        name
        for name, columns in before.items()
        if name not in mine.features and not (columns and all(mine.reaches_model(column) for column in columns))
    ]


def _settings(case: GateInputs, mask: Array | slice = slice(None)) -> dict[str, Any]:
    """How a metric is measured on some of the rows."""
    groups, units = (None if part is None else part[mask] for part in (case.groups, case.units))
    slices = {name: values[mask] for name, values in case.slices.items()}
    return {"output": case.output, "groups": groups, "units": units, "seed": SEED, "value": case.scope.value, "slices": slices}


def _difference(case: GateInputs, name: str, mask: Array) -> Estimate:
    """Package minus serving package on the rows of `mask`."""
    assert case.own is not None
    assert case.other is not None
    return metrics.differences([name], case.truth[mask], case.own.at(mask), case.other.at(mask), **_settings(case, mask))[name]


def _noise(case: GateInputs, name: str, mask: Array) -> float:
    """By how much the serving package's own number differs by chance on other rows like these: one standard error, at least 1 %."""
    assert case.other is not None
    found = metrics.intervals([name], case.truth[mask], *case.other.at(mask), **_settings(case, mask))[name]
    return float(np.nan_to_num(max((found.high - found.low) / (2 * Z_95), MIN_TOLERANCE * abs(found.value))))


def _surely_worse(name: str, difference: Estimate, tolerance: float) -> bool:
    if difference.too_few:
        return False
    return difference.high < -tolerance if metrics.metric(name).higher else difference.low > tolerance


def _back_to_rule(case: GateInputs) -> list[Check]:
    """The rule replaces a model only once these rows exclude the advantage over it with which the model went into service."""
    replaces = case.serving is not None and case.package.manifest.is_rule and not case.serving.manifest.is_rule
    advantage = _advantage(case) if replaces else None
    if advantage is None or (case.other is None and case.note):
        return []
    name, least = advantage
    if case.other is None:
        return [
            Check(
                name="rule",
                passed=False,
                detail=f"too few rows to say whether the model that serves, which beat the rule by {least:.3f} ({name}), still does",
            )
        ]
    every = np.ones(case.rows, dtype=np.bool_)
    difference = _difference(case, name, every)
    holds = difference.low <= -least if metrics.metric(name).higher else difference.high >= least
    if holds and case.scope.value.is_set:
        holds = not _difference(case, "value_per_prediction", every).low > 0
    detail = f"{name} {interval(difference, sign=True)} against the model that serves, on {case.rows:,} rows; it beat the rule by {least:.3f}"
    return [Check(name="rule", passed=not holds, detail=detail + (", which these rows do not exclude" if holds else ""))]


def _advantage(case: GateInputs) -> tuple[str, float] | None:
    """The metric of the first guard, and by how much the serving model was better than the rule in it; None where it was not."""
    guards = _declared_guards(case)
    if case.board is None or case.serving is None or not guards:
        return None
    if too_good(case.serving.evaluation, case.output.task):  # its advantage was never true
        return None
    name = guards[0].metric
    of = {row.package: row.measures.get(name) for row in case.board.rows}
    rule = next((row.measures.get(name) for row in case.board.rows if row.phase == 1), None)
    own = of[case.serving.digest]
    if own is None or rule is None:
        return None
    advantage = own - rule if metrics.metric(name).higher else rule - own
    return (name, advantage) if advantage > 0 else None


CHECKS: tuple[Callable[[GateInputs], list[Check]], ...] = (_answers, _plausible, _targets, _guards, _back_to_rule)
"""What is checked once the probe has passed."""
