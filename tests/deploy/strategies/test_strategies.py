"""Every release strategy: what its table row must hold."""

from typing import get_args, get_type_hints

import pytest

from loopwright.base.errors import UsageError
from loopwright.deploy.strategies import AT_ONCE, STRATEGIES, Strategy, find_strategy, first_arms
from loopwright.records.declarations import Release
from loopwright.records.releases import CHAMPION, Arm

OLD, NEW = Arm(package="a" * 64), Arm(package="b" * 64)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=list(STRATEGIES))
def test_strategy_divides_the_units_over_named_arms(strategy: Strategy) -> None:
    assert strategy.summary
    assert first_arms(strategy, NEW, []) == [NEW], "there is nobody else to answer"
    for arms in (first_arms(strategy, NEW, [OLD]), first_arms(strategy, NEW, [Arm(package="c" * 64, heuristic=True)])):
        assert NEW.package in [arm.package for arm in arms]


def test_direct_replaces_every_arm_at_once() -> None:
    present = [Arm(package="a" * 64, share=0.5), Arm(package="c" * 64, share=0.5, name="challenger")]
    assert first_arms(AT_ONCE, NEW, present) == [NEW]


def test_declaration_offers_the_strategies_of_the_table() -> None:
    assert set(get_args(get_type_hints(Release)["strategy"])) == set(STRATEGIES)
    assert Release().strategy == AT_ONCE.name


def test_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no strategy 'hope'.*`direct`"):
        find_strategy("hope")


@pytest.mark.parametrize(
    "arms",
    [
        [NEW, OLD],
        [Arm(package="a" * 64, name="challenger")],
        [Arm(package="a" * 64, share=0.5), Arm(package="b" * 64, share=0.6, name="challenger")],
        [Arm(package="a" * 64, share=1.0), Arm(package="b" * 64, share=0.0, name="challenger")],
    ],
)
def test_strategy_that_divides_wrongly_is_a_defect(arms: list[Arm]) -> None:
    with pytest.raises(ValueError, match=CHAMPION if len(arms) > 1 else "challenger"):
        first_arms(Strategy("broken", "", lambda _new, _present: arms), NEW, [])
