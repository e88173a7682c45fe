"""Every release strategy and every kind of stage: what its table row must hold."""

from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from tests.deploy.loops import NOW, declared

from loopwright.base.errors import DeclarationInvalid, UsageError
from loopwright.deploy.strategies import (
    AT_ONCE,
    STAGES,
    STRATEGIES,
    StageRules,
    Strategy,
    find_strategy,
    first_arms,
    rules_of,
    stage_arms,
    stage_shadow,
    strategy_of,
)
from loopwright.records.declarations import AB, Canary, Full, Release, Shadow
from loopwright.records.declarations.stages import PlanStage
from loopwright.records.releases import CHAMPION, Arm, ReleaseState

OLD, NEW = Arm(package="a" * 64), Arm(package="b" * 64)
SAMPLES: list[Any] = [
    Shadow(),
    Shadow(share=0.2),
    Canary(share=0.05),
    Canary(share=0.3),
    Canary(share=0.5),
    AB(metric="recall", minimum_effect=0.1),
    Full(),
    Full(hold_back=0.0),
]


def all_arms(stage: Any, old: Arm) -> list[Arm]:
    """The arms that answer clients, and the one that answers logged requests again."""
    shadow = stage_shadow(stage, NEW)
    return [*stage_arms(stage, NEW, old), *([shadow] if shadow is not None else [])]


def arm_of(arms: list[Arm], unit: str) -> Arm:
    state = ReleaseState(
        loop="l", generation=1, arms=arms, strategy="s", action="release", since=NOW, by="me", why="", salt="pepper"
    )
    return state.arm_for(unit)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=list(STRATEGIES))
@pytest.mark.parametrize("old", [OLD, Arm(package="c" * 64, heuristic=True)], ids=["package", "rule"])
def test_strategy_divides_the_units_over_named_arms(strategy: Strategy, old: Arm) -> None:
    assert strategy.summary
    assert first_arms(strategy.plan, NEW, None) == [NEW], "there is nobody else to answer"
    for stage in strategy.plan:
        arms = all_arms(stage, old)
        assert NEW.package in [arm.package for arm in arms]
        assert all(arm.heuristic == (arm.package == old.package and old.heuristic) for arm in arms)
    unseen = bool(strategy.plan) and rules_of(strategy.plan[0]).paired
    assert first_arms(strategy.plan, NEW, old)[-1].package == (old if unseen else NEW).package
    assert Release(plan=list(strategy.plan)).plan == list(strategy.plan), "a plan of its own may be the same"


@pytest.mark.parametrize("stage", SAMPLES, ids=repr)
def test_compared_arms_are_those_of_the_two_packages(stage: PlanStage) -> None:
    rules, arms = rules_of(stage), all_arms(stage, OLD)
    by_name = {arm.name: arm for arm in arms}
    assert by_name[rules.new_arm].package == NEW.package
    old = by_name.get(rules.old_arm([arm.name for arm in arms]))
    assert (old is None) == (stage == Full(hold_back=0.0))
    assert old is None or old.package == OLD.package
    if isinstance(stage, Canary):
        assert old is not None
        assert old.share == by_name[rules.new_arm].share == stage.share, "the control is as large as the canary"
    assert rules.paired == isinstance(stage, Shadow)
    assert rules.words(stage)
    assert rules.lasts(stage).total_seconds() > 0


def test_table_has_every_stage_that_a_release_may_declare() -> None:
    [of_plan] = get_args(get_type_hints(Release)["plan"])
    assert set(STAGES) == set(get_args(of_plan)) == {type(stage) for stage in SAMPLES}
    assert {rules.declaration for rules in STAGES.values()} == set(STAGES)


def test_unit_never_loses_the_new_package_while_a_plan_goes_on() -> None:
    units = [f"customer-{n}" for n in range(3000)]
    before: set[str] = set()
    for stage in SAMPLES:
        arms = stage_arms(stage, NEW, OLD)
        having = {unit for unit in units if arm_of(arms, unit).package == NEW.package}
        assert before <= having
        share = sum(arm.share for arm in arms if arm.package == NEW.package)
        assert len(having) / len(units) == pytest.approx(share, abs=4 * (share * (1 - share) / len(units)) ** 0.5 + 1e-9)
        before = having
    assert before == set(units)


def test_direct_replaces_every_arm_at_once() -> None:
    assert first_arms(AT_ONCE.plan, NEW, OLD) == [NEW]


def test_declaration_offers_the_strategies_of_the_table() -> None:
    assert set(get_args(get_type_hints(Release)["strategy"])) == set(STRATEGIES)
    assert Release().strategy == AT_ONCE.name


def test_declared_plan_is_the_strategy_unless_another_is_named() -> None:
    plan: list[Any] = [Canary(share=0.2), Full()]
    loop = msgspec.structs.replace(declared(), release=Release(plan=plan), unit="origin")
    assert strategy_of(loop)[2:] == (plan, "origin")
    assert strategy_of(loop, "direct") == AT_ONCE._replace(unit="origin")
    assert strategy_of(msgspec.structs.replace(loop, release=Release(strategy="canary"), unit=None)) == STRATEGIES["canary"]


def test_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no strategy 'hope'.*`direct`"):
        find_strategy("hope")


@pytest.mark.parametrize(
    "arms",
    [
        [NEW, OLD],
        [Arm(package="a" * 64, name="canary")],
        [Arm(package="a" * 64, share=0.5), Arm(package="b" * 64, share=0.6, name="canary")],
        [Arm(package="a" * 64, share=1.0), Arm(package="b" * 64, share=0.0, name="canary")],
    ],
)
def test_stage_that_divides_wrongly_is_a_defect(arms: list[Arm], monkeypatch: pytest.MonkeyPatch) -> None:
    broken: StageRules = STAGES[Canary]._replace(arms=lambda _stage, _new, _old: arms)
    table: dict[Any, StageRules] = STAGES
    monkeypatch.setitem(table, Canary, broken)
    with pytest.raises(ValueError, match=CHAMPION if len(arms) > 1 else "canary"):
        stage_arms(Canary(share=0.1), NEW, OLD)


def test_plan_is_refused_where_its_stages_are_out_of_order() -> None:
    wrong: list[list[Any]] = [
        [Canary(share=0.5), Canary(share=0.1)],
        [Full(), Canary(share=0.1)],
        [Canary(share=0.5), Shadow()],
    ]
    for plan in wrong:
        with pytest.raises(DeclarationInvalid, match="plan"):
            Release(plan=plan)
    with pytest.raises(DeclarationInvalid, match="strategy"):
        Release(plan=[Full()], strategy="canary")
    assert msgspec.convert({"plan": [{"stage": "canary", "share": 0.1}]}, Release).plan == [Canary(share=0.1)]
