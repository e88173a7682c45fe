"""`canary`: the new package answers a rising share of the units, beside a control of the same size."""

from collections.abc import Sequence

import msgspec

from loopwright.base.text import share
from loopwright.deploy.strategies.strategy import StageRules, Strategy
from loopwright.records.declarations import Canary, Full, duration
from loopwright.records.releases import CHAMPION, Arm

NEW, CONTROL = "canary", "control"


def _arms(stage: Canary, new: Arm, old: Arm) -> list[Arm]:
    """The control answers as many units as the new package, from the other end, so that both grow without taking units from each other.

    At half of the units the champion itself is the control.
    """
    rest = 1 - 2 * stage.share
    parts = [(old, CONTROL, stage.share), (old, CHAMPION, rest)] if rest > 0 else [(old, CHAMPION, 1 - stage.share)]
    return [msgspec.structs.replace(arm, name=name, share=part) for arm, name, part in [*parts, (new, NEW, stage.share)]]


def _control(arms: Sequence[str]) -> str:
    return CONTROL if CONTROL in arms else CHAMPION


CANARY = StageRules(
    declaration=Canary,
    arms=_arms,
    new_arm=NEW,
    old_arm=_control,
    lasts=lambda stage: duration(stage.time),
    rows=lambda stage: stage.rows,
    must_show=True,
    words=lambda stage: f"canary {share(stage.share)}",
)

STEPS = Strategy(
    "canary",
    "answers 5 %, 25 % and 50 % of the units, then all, each step judged beside a control",
    [Canary(share=0.05), Canary(share=0.25), Canary(share=0.5), Full()],
)
