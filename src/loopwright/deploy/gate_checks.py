"""The checks of the gate over a package's answers, in the order of CHECKS; the rules are described in `deploy.gate`."""

from collections.abc import Callable

import numpy as np

from loopwright.base.text import interval
from loopwright.deploy.guards import Check, GateInputs, declared_guards, guard_checks, paired_difference, settings, surely_worse
from loopwright.records.declarations import Objective
from loopwright.records.evaluation import Estimate
from loopwright.tasks import metrics
from loopwright.tasks.plausibility import perfect_on_few, practically_perfect, too_good


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
        difference = paired_difference(case, case.other, objective.metric)
        if not surely_worse(objective.metric, difference, 0.0):
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
        return evaluation.promised[name]
    measured = evaluation.package_measures | {"value_per_prediction": evaluation.value_per_prediction}
    if (value := measured.get(name)) is not None:
        return Estimate(value, value, value, evaluation.rows)
    if case.own is None or metrics.problem(name, case.slices, case.output):
        return None
    return metrics.intervals([name], case.truth, *case.own, **settings(case))[name]


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
    difference = paired_difference(case, case.other, name)
    holds = difference.low <= -least if metrics.metric(name).higher else difference.high >= least
    if holds and case.scope.value.is_set:
        holds = not paired_difference(case, case.other, "value_per_prediction").low > 0
    detail = f"{name} {interval(difference, sign=True)} against the model that serves, on {case.rows:,} rows; it beat the rule by {least:.3f}"
    return [Check(name="rule", passed=not holds, detail=detail + (", which these rows do not exclude" if holds else ""))]


def _advantage(case: GateInputs) -> tuple[str, float] | None:
    """The metric of the first guard, and by how much the serving model was better than the rule in it; None where it was not."""
    guards = declared_guards(case.scope, case.release)
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


CHECKS: tuple[Callable[[GateInputs], list[Check]], ...] = (_answers, _plausible, _targets, guard_checks, _back_to_rule)
"""What is checked once the probe has passed."""
