"""The type of a release strategy."""

from collections.abc import Callable
from typing import NamedTuple

from loopwright.records.releases import Arm


class Strategy(NamedTuple):
    """`first_arms(new, present)`: the arms from the moment of a release, where `new` is the package as sole champion.

    The champion of `present` stays among them while the new package is compared with it.
    """

    name: str
    summary: str
    first_arms: Callable[[Arm, list[Arm]], list[Arm]]
