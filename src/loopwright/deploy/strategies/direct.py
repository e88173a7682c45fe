"""`direct`: the new package answers every unit at once."""

from loopwright.deploy.strategies.strategy import Strategy
from loopwright.records.releases import Arm


def _replace(new: Arm, _present: list[Arm]) -> list[Arm]:
    return [new]


DIRECT = Strategy("direct", "replaces what serves at once", _replace)
