"""`AB`: a planned experiment between the new package and the old one."""

import msgspec

from loopwright.base.text import number, share
from loopwright.deploy.strategies.strategy import ExperimentGoal, StageRules
from loopwright.records.declarations import AB, duration
from loopwright.records.releases import CHAMPION, Arm

TREATMENT = "treatment"


def _arms(stage: AB, new: Arm, old: Arm) -> list[Arm]:
    """The treatment is at the end where a canary was, so that no unit loses the new package."""
    control = msgspec.structs.replace(old, name=CHAMPION, share=1 - stage.share)
    return [control, msgspec.structs.replace(new, name=TREATMENT, share=stage.share)]


EXPERIMENT = StageRules(
    declaration=AB,
    arms=_arms,
    new_arm=TREATMENT,
    old_arm=lambda _: CHAMPION,
    lasts=lambda stage: duration(stage.time),
    rows=lambda _: 0,
    must_show=False,
    words=lambda stage: f"A/B {share(stage.share)}, {stage.metric} by {number(stage.minimum_effect)} or more",
    goal=lambda stage: ExperimentGoal(stage.metric, stage.minimum_effect),
)
