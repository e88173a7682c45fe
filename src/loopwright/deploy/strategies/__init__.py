"""Release strategies: how a package replaces the one that serves. One file each, and a row in STRATEGIES.

Nothing outside this package compares with a strategy's name: the release record lists the arms, and the table
says what a strategy does with them.
"""

from loopwright.base.errors import UsageError
from loopwright.deploy.strategies.direct import DIRECT
from loopwright.deploy.strategies.strategy import Strategy as Strategy
from loopwright.records.releases import CHAMPION, Arm

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (DIRECT,)}

AT_ONCE = DIRECT
"""The strategy of every rollback, and of a release without one."""


def find_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises UsageError with the known names."""
    found = STRATEGIES.get(name)
    if found is None:
        raise UsageError(f"no strategy {name!r}: this version knows {', '.join(f'`{known}`' for known in STRATEGIES)}")
    return found


def first_arms(strategy: Strategy, new: Arm, present: list[Arm]) -> list[Arm]:
    """The arms with which a release of `new` begins where `present` serve (none at first).

    Raises ValueError unless one is the champion, names differ, and shares are positive and add up to one.
    """
    arms = strategy.first_arms(new, present)
    names, shares = [arm.name for arm in arms], [arm.share for arm in arms]
    if names.count(CHAMPION) != 1 or len(set(names)) < len(names) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"strategy {strategy.name!r} divides the units wrongly: {dict(zip(names, shares, strict=True))}")
    return arms
