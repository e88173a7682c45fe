"""The types of release strategies and of the stages that they are made of."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from loopwright.records.declarations.stages import PlanStage
from loopwright.records.releases import Arm


class Strategy(NamedTuple):
    """A name for a plan that suits most loops; without stages the new package replaces the old one at once.

    `unit` is the request column by whose value the units are divided; the key where it is empty.
    """

    name: str
    summary: str
    plan: Sequence[Any] = ()
    unit: str = ""


class ExperimentGoal(NamedTuple):
    """The metric in which the new package must be surely better, and the smallest effect that is worth seeing."""

    metric: str
    minimum_effect: float


class StageRules(NamedTuple):
    """What a kind of stage (`declaration`) does.

    `arms(stage, new, old)` divides the units between the two packages, each an arm that has all of them before. The judge compares the
    rows of arm `new_arm` with those of `old_arm(arms)`, for as long as `lasts`, and over at least so many rows in each.
    `must_show`: the stage ends only when every guard is surely within its tolerance; else when its time is over and nothing is worse.
    With a `shadow` that arm answers logged requests again; `paired`: both arms answered the same rows. With a `goal` it ends when that is surely reached, or enough rows show that it is not.
    """

    declaration: type[PlanStage]
    arms: Callable[[Any, Arm, Arm], list[Arm]]
    new_arm: str
    old_arm: Callable[[Sequence[str]], str]
    lasts: Callable[[Any], timedelta]
    rows: Callable[[Any], int]
    must_show: bool
    words: Callable[[Any], str]
    goal: Callable[[Any], ExperimentGoal | None] = lambda _: None
    shadow: Callable[[Any, Arm], Arm | None] = lambda _stage, _new: None
    paired: bool = False
