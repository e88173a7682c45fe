"""Which arm answers a unit."""

import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from math import sqrt

import pytest

from loopwright.records.releases import Arm, ReleaseState

UNITS = [f"customer-{i}" for i in range(20_000)]
HALVES = {"champion": 0.5, "canary": 0.5}


def state(shares: dict[str, float], salt: str = "5a17") -> ReleaseState:
    arms = [Arm(package=name[0] * 64, name=name, share=share) for name, share in shares.items()]
    return ReleaseState(
        loop="late", generation=1, arms=arms, strategy="tests", action="release", since=datetime(2024, 5, 1, tzinfo=UTC), by="ann",
        why="", salt=salt,
    )  # fmt: skip


def assigned(release: ReleaseState) -> list[str]:
    return [release.arm_for(unit).name for unit in UNITS]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.99, 0.01), (0.9, 0.05, 0.05), (0.2, 0.2, 0.2, 0.4)])
def test_arms_get_their_share_of_the_units(shares: tuple[float, ...]) -> None:
    names = ["champion", "canary", "control", "other"][: len(shares)]
    found = assigned(state(dict(zip(names, shares, strict=True))))
    for name, share in zip(names, shares, strict=True):
        off = found.count(name) / len(UNITS) - share
        assert abs(off) < 5 * sqrt(share * (1 - share) / len(UNITS)), (name, off)


def test_arm_that_grows_keeps_its_units() -> None:
    before: dict[str, set[str]] = {}
    for canary in (0.01, 0.05, 0.2, 0.5, 0.9):
        arms = assigned(state({"canary": canary, "champion": 1 - canary - 0.05, "control": 0.05}))
        after = {name: {unit for unit, arm in zip(UNITS, arms, strict=True) if arm == name} for name in ("canary", "control")}
        assert after["canary"] > before.get("canary", set())
        assert after["control"] == before.get("control", after["control"]), "an arm that stays keeps its own"
        before = after


def test_arms_at_both_ends_grow_together_and_keep_their_units() -> None:
    steps = [assigned(state({"canary": share, "champion": 1 - 2 * share, "control": share})) for share in (0.05, 0.1, 0.3)]
    for earlier, later in pairwise(steps):
        assert all(old in (new, "champion") for old, new in zip(earlier, later, strict=True))


def test_assignments_of_different_salts_are_independent() -> None:
    first, second = assigned(state(HALVES, "one")), assigned(state(HALVES, "two"))
    both = sum(a == b == "canary" for a, b in zip(first, second, strict=True)) / len(UNITS)
    assert abs(both - 0.25) < 5 * sqrt(0.25 * 0.75 / len(UNITS))
    assert assigned(state(HALVES, "one")) == first


def test_assignment_is_the_same_in_every_process_and_version() -> None:
    """These are frozen: with others, every unit of a release under way would change its arm."""
    release = state(HALVES)
    found = [release.arm_for(unit).name for unit in ("1", "2", "3", "UA1|2024", "\u00e9", "")]
    assert found == ["champion", "canary", "champion", "champion", "champion", "champion"]
    code = (
        "from tests.records.test_releases import HALVES, state; "
        "print([state(HALVES).arm_for(u).name for u in ('1', '2', '3', 'UA1|2024', '\u00e9', '')])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(found)


def test_shares_that_miss_one_by_rounding_lose_no_unit() -> None:
    tenths = state({f"arm{i}": 0.1 for i in range(9)} | {"champion": 0.1 - 1e-10})
    assert len(assigned(tenths)) == len(UNITS)
