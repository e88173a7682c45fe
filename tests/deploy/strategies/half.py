"""A strategy for tests: the champion goes on for half of the units, the new package answers the other half."""

import msgspec
import pytest

from loopwright.deploy.strategies import STRATEGIES, Strategy
from loopwright.records.releases import CHAMPION, Arm


def _halves(new: Arm, present: list[Arm]) -> list[Arm]:
    old = next((arm for arm in present if arm.name == CHAMPION), None)
    if old is None:
        return [new]
    return [msgspec.structs.replace(old, share=0.5), msgspec.structs.replace(new, share=0.5, name="challenger")]


HALF = Strategy("half", "half of the units", _halves)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it into the table for one test."""
    monkeypatch.setitem(STRATEGIES, HALF.name, HALF)
