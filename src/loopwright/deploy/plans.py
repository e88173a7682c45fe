"""Plans of releases: how one begins."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from loopwright.base.errors import PackageRefused
from loopwright.base.ids import new_id
from loopwright.deploy.serving.segment_router import check_contract
from loopwright.deploy.strategies import AT_ONCE, Strategy, first_arms, stage_shadow
from loopwright.records.declarations.stages import AnyStage
from loopwright.records.releases import CHAMPION, Arm, ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package


class ReleaseTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A planned release: the arms, the strategy that made them, its plan and salt, the fleet's column, the segment packages."""

    arms: list[Arm]
    strategy: str = AT_ONCE.name
    salt: str = ""
    unit: str = ""
    plan: list[AnyStage] = []
    stage: int = 0
    begun: datetime | None = None
    former: Arm | None = None
    shadow: Arm | None = None
    fleet: str = ""
    segments: dict[str, str] = {}


def begin(
    home: Home,
    strategy: Strategy,
    made: Package,
    states: Sequence[ReleaseState],
    fleet: str,
    segments: dict[str, str],
) -> ReleaseTarget:
    """The arms at the start of a strategy. Raises PackageRefused where the package cannot serve together with the others."""
    new, old = Arm(package=made.digest), None
    if states and strategy.plan and states[-1].champion.package != new.package:
        old = msgspec.structs.replace(states[-1].champion, name=CHAMPION, share=1.0)
    if old is not None and (segments or states[-1].segments):
        why = f"a release of a fleet's packages is not divided: `--strategy {AT_ONCE.name}` releases them at once"
        raise PackageRefused(made.digest, why)
    arms = first_arms(strategy.plan, new, old)
    if old is None:
        return ReleaseTarget(arms=arms, strategy=strategy.name, fleet=fleet, segments=segments)
    champion = home.packages.read(old.package)
    try:
        check_contract(made, champion)
    except PackageRefused as error:
        why = f"{error.why}, so both cannot answer the same requests; `--strategy {AT_ONCE.name}` replaces it at once"
        raise PackageRefused(made.digest, why) from error
    now = home.clock.now()
    return ReleaseTarget(
        arms=arms,
        strategy=strategy.name,
        salt=new_id(now),
        unit=strategy.unit,
        plan=list(strategy.plan),
        begun=now,
        former=old,
        shadow=stage_shadow(strategy.plan[0], new),
        fleet=fleet,
        segments=segments,
    )
