"""Release strategies and the stages that they are made of. One file each, and a row in STRATEGIES or STAGES.

Nothing outside this package compares with the name of a strategy, a stage or an arm: the release record lists the arms, and
the tables say what they are for.
"""

from collections.abc import Sequence
from typing import Any

from loopwright.base.errors import UsageError
from loopwright.deploy.strategies.ab_test import EXPERIMENT
from loopwright.deploy.strategies.canary import CANARY, STEPS
from loopwright.deploy.strategies.direct import DIRECT
from loopwright.deploy.strategies.full import FULL
from loopwright.deploy.strategies.shadow import FIRST_UNSEEN, SHADOW
from loopwright.deploy.strategies.strategy import ExperimentGoal as ExperimentGoal
from loopwright.deploy.strategies.strategy import StageRules as StageRules
from loopwright.deploy.strategies.strategy import Strategy as Strategy
from loopwright.records.declarations import Loop
from loopwright.records.declarations.stages import PlanStage
from loopwright.records.releases import CHAMPION, Arm, ReleaseState

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (DIRECT, STEPS, FIRST_UNSEEN)}

STAGES: dict[type[PlanStage], StageRules] = {rules.declaration: rules for rules in (SHADOW, CANARY, EXPERIMENT, FULL)}

AT_ONCE = DIRECT
"""The strategy of every rollback, and of a release without one."""

PLANNED = "plan"
"""The name of a strategy that a loop declares stage by stage."""


def find_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises UsageError with the known names."""
    found = STRATEGIES.get(name)
    if found is None:
        raise UsageError(f"no strategy {name!r}: this version knows {', '.join(f'`{known}`' for known in STRATEGIES)}")
    return found


def strategy_of(loop: Loop, name: str = "") -> Strategy:
    """The strategy of that name, or the one that a loop declares, dividing the loop's units. Raises UsageError."""
    planned = Strategy(PLANNED, "as declared", loop.release.plan) if loop.release.plan and not name else None
    return (planned or find_strategy(name or loop.release.strategy))._replace(unit=loop.unit or "")


def rules_of(stage: PlanStage) -> StageRules:
    """What a stage does."""
    return STAGES[type(stage)]


def stage_arms(stage: Any, new: Arm, old: Arm) -> list[Arm]:
    """The arms of a stage. Raises ValueError unless one is the champion, names differ, and shares are positive and add up to one."""
    arms = rules_of(stage).arms(stage, new, old)
    names, shares = [arm.name for arm in arms], [arm.share for arm in arms]
    if names.count(CHAMPION) != 1 or len(set(names)) < len(names) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"stage {stage!r} divides the units wrongly: {dict(zip(names, shares, strict=True))}")
    return arms


def stage_shadow(stage: Any, new: Arm) -> Arm | None:
    """The arm that answers logged requests again in a stage; None where there is none."""
    return rules_of(stage).shadow(stage, new)


def first_arms(plan: Sequence[Any], new: Arm, old: Arm | None) -> list[Arm]:
    """The arms with which a release of `new` begins where `old` serves (None at first); all units where there is nothing to compare with."""
    return stage_arms(plan[0], new, old) if plan and old is not None else [new]


def new_package(state: ReleaseState) -> str:
    """The package that the current stage of a plan judges."""
    stage = state.under_way
    if stage is None:
        return state.champion.package
    arms = [*state.arms, *([state.shadow] if state.shadow is not None else [])]
    return next(arm.package for arm in arms if arm.name == rules_of(stage).new_arm)
