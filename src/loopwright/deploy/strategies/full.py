"""The last stage of a plan: the new package is the champion, a hold-back stays with the old one."""

import msgspec

from loopwright.base.text import share
from loopwright.deploy.strategies.strategy import StageRules
from loopwright.records.declarations import Full, duration
from loopwright.records.releases import CHAMPION, Arm

HOLD_BACK = "hold-back"


def _arms(stage: Full, new: Arm, old: Arm) -> list[Arm]:
    """The hold-back is at the end where the control was, so that no unit loses the new package."""
    kept = [msgspec.structs.replace(old, name=HOLD_BACK, share=stage.hold_back)] if stage.hold_back else []
    return [*kept, msgspec.structs.replace(new, name=CHAMPION, share=1 - stage.hold_back)]


def _words(stage: Full) -> str:
    return "full" + (f", {share(stage.hold_back)} held back" if stage.hold_back else "")


FULL = StageRules(
    declaration=Full,
    arms=_arms,
    new_arm=CHAMPION,
    old_arm=lambda _: HOLD_BACK,
    lasts=lambda stage: duration(stage.watch),
    rows=lambda _: 0,
    must_show=False,
    words=_words,
)
