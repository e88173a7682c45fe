"""`shadow`: the new package answers logged requests again, and no client sees it; then by steps, as a canary."""

import msgspec

from loopwright.base.text import share
from loopwright.deploy.strategies.canary import STEPS
from loopwright.deploy.strategies.strategy import StageRules, Strategy
from loopwright.records.declarations import Shadow, duration
from loopwright.records.releases import CHAMPION, Arm

NEW = "shadow"


def _arms(_stage: Shadow, _new: Arm, old: Arm) -> list[Arm]:
    return [msgspec.structs.replace(old, name=CHAMPION, share=1.0)]


SHADOW = StageRules(
    declaration=Shadow,
    arms=_arms,
    new_arm=NEW,
    old_arm=lambda _: CHAMPION,
    lasts=lambda stage: duration(stage.time),
    rows=lambda stage: stage.rows,
    must_show=True,
    words=lambda stage: "shadow" + (f" of {share(stage.share)}" if stage.share < 1 else ""),
    shadow=lambda stage, new: msgspec.structs.replace(new, name=NEW, share=stage.share),
    paired=True,
)

FIRST_UNSEEN = Strategy("shadow", "answers logged requests again beside what serves, then as `canary`", [Shadow(), *STEPS.plan])
