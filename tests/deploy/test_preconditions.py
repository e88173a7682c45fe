"""What keeps a release from beginning, releases that wait, and the people who approve them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.deploy.loops import LOOP, declared, opened, package

from loopwright.base import failpoints
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import DeclarationInvalid, NotFound, PackageNotFound, Refused, ReleaseBlocked, UsageError
from loopwright.deploy import releases
from loopwright.deploy.pending import begin_pending, person
from loopwright.deploy.preconditions import tier_misses, waiting
from loopwright.judging import judge_release
from loopwright.monitor.alerts import close_alert, open_alerts, raise_alert
from loopwright.records.declarations import Canary, Full, Guard, Loop, Release, Scope
from loopwright.stores.home import Home
from loopwright.verbs.approve import approve
from loopwright.verbs.cases import cases
from loopwright.verbs.reject import reject
from loopwright.verbs.release import release

FRIDAY = datetime(2024, 5, 3, 17, 0, tzinfo=UTC)
WEEKEND = ["fri 16:00/mon 08:00"]


class Waits:
    """A loop in which one package serves, and another is to be released on a Friday afternoon."""

    def __init__(self, folder: Path, *, scope: dict[str, Any] | None = None, serves: bool = True, **deploy: Any) -> None:
        self.clock = SimulatedClock(FRIDAY)
        self.home = opened(folder, self.clock)
        changed = msgspec.structs.replace(declared().scope, **(scope or {}))
        self.loop: Loop = msgspec.structs.replace(declared(), scope=changed, release=Release(**deploy))
        self.home.ledger.put(self.loop.record("loop.py"), loop=LOOP, key=LOOP)
        self.old, self.new = (package(self.home.packages, weight=w).digest for w in (0.05, 0.06))
        if serves:
            releases.release(self.home, LOOP, self.old, why="first")
            self.clock.advance(timedelta(minutes=1))

    @property
    def serving(self) -> str:
        state = releases.serving(self.home, LOOP)
        return state.champion.package if state is not None else ""

    def as_person(self, name: str) -> Home:
        return self.home.acting_as(name)

    def tend(self) -> None:
        judge_release(self.home, self.loop, self.clock.now())


def refused(waits: Waits, **options: Any) -> str:
    with pytest.raises(ReleaseBlocked) as error:
        release(waits.home, LOOP, waits.new, **options)
    return str(error.value)


def test_freeze_refuses_a_release_until_it_ends_and_never_a_way_back(tmp_path: Path) -> None:
    waits = Waits(tmp_path, freeze=WEEKEND)
    assert "nothing is released until Mon 2024-05-06 08:00 UTC" in refused(waits)
    waits.clock.advance_to(datetime(2024, 5, 6, 8, 0, tzinfo=UTC))
    assert release(waits.home, LOOP, waits.new).champion.package == waits.new
    waits.clock.advance_to(FRIDAY + timedelta(days=7))
    assert releases.rollback(waits.home, LOOP, why="in the freeze").record.champion.package != waits.new


def test_forced_release_needs_a_reason_says_what_stood_against_it_and_tells_everybody(tmp_path: Path) -> None:
    waits = Waits(tmp_path, freeze=WEEKEND)
    with pytest.raises(UsageError, match="--why REASON"):
        release(waits.home, LOOP, waits.new, force=True)
    made = release(waits.home, LOOP, waits.new, force=True, why="the old one is down")
    assert (made.champion.package, made.despite) == (waits.new, ["freeze"])
    assert "despite freeze" in made.why
    [alert] = open_alerts(waits.home, LOOP)
    assert "the old one is down" in alert.detail
    waits.clock.advance_to(datetime(2024, 5, 6, 9, 0, tzinfo=UTC))
    release(waits.home, LOOP, package(waits.home.packages, weight=0.07).digest, why="next")
    from loopwright.tend import _close_stale

    _close_stale(waits.home, LOOP)
    assert open_alerts(waits.home, LOOP) == []


def test_alert_about_what_would_keep_a_release_from_being_watched_holds_it_others_do_not(tmp_path: Path) -> None:
    waits = Waits(tmp_path)
    raise_alert(
        waits.home, LOOP, "damaged-log", severity="critical", title="The log is damaged", detail="x", holds_releases=True
    )
    assert "an alert is open: The log is damaged" in refused(waits)
    close_alert(waits.home, LOOP, "damaged-log", detail="mended")
    raise_alert(
        waits.home, LOOP, "losing-money", severity="critical", title="The loop loses money", detail="a better one is the cure"
    )
    assert release(waits.home, LOOP, waits.new).champion.package == waits.new


def test_alert_of_the_whole_installation_holds_every_loop(tmp_path: Path) -> None:
    waits = Waits(tmp_path)
    raise_alert(waits.home, "", "clock", severity="critical", title="The clock jumped", detail="x", holds_releases=True)
    assert "The clock jumped" in refused(waits)


def test_plan_without_live_traffic_is_refused_once_there_was_time_for_some(tmp_path: Path) -> None:
    waits = Waits(tmp_path, plan=[Canary(share=0.1), Full()])
    waits.clock.advance(timedelta(days=30))
    assert "no prediction was logged since" in refused(waits)
    assert release(waits.home, LOOP, waits.new, strategy="direct").champion.package == waits.new
    young = Waits(tmp_path / "young", plan=[Canary(share=0.1), Full()])
    assert release(young.home, LOOP, young.new).under_way is not None


@pytest.mark.parametrize(("tier", "missing"), [(3, 0), (2, 2), (1, 4)])
def test_tier_says_what_it_requires(tmp_path: Path, tier: int, missing: int) -> None:
    waits = Waits(tmp_path, scope={"tier": tier})
    assert len(tier_misses(waits.loop)) == missing
    if missing:
        assert f"tier {tier} requires" in refused(waits)


def test_loop_of_the_first_tier_that_declares_all_waits_for_its_approval_only(tmp_path: Path) -> None:
    guards = [Guard("average_precision", slices=["origin_slice"])]
    waits = Waits(tmp_path, scope={"tier": 1, "approvers": ["anna"]}, guards=guards, strategy="canary")
    assert tier_misses(waits.loop) == []
    assert "tier" not in refused(waits)


def test_release_waits_for_its_approvals_and_begins_with_the_last_one(tmp_path: Path) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna", "bo", "tests"], "approvals": 2})
    assert "waits for 2 approvals of anna, bo" in refused(waits, why="better at night")
    [case] = cases(waits.home).cases
    assert (case.package, case.state, case.made_by, case.candidate) == (waits.new, "waiting", "tests", "by-hand")
    assert "probe" in [check.name for check in case.checks]
    waits.tend()
    [alert] = open_alerts(waits.home, LOOP)
    assert "waits for an approval" in alert.title
    first = approve(waits.as_person("anna"), LOOP, why="seen")
    assert (first.state, waits.serving) == ("waiting", waits.old)
    again = approve(waits.as_person("anna"), LOOP, waits.new[:12], why="seen twice")
    assert again.state == "waiting", "one person is one approval"
    last = approve(waits.as_person("bo, by token, from 10.0.0.7"), LOOP, why="looks right")
    assert (last.state, waits.serving) == ("released", waits.new)
    state = releases.serving(waits.home, LOOP)
    assert state is not None
    assert "better at night" in state.why
    assert "approved by anna: seen twice; approved by bo: looks right" in state.why
    waits.tend()
    assert open_alerts(waits.home, LOOP) == []
    assert cases(waits.home, LOOP).cases == []


@pytest.mark.parametrize(
    ("who", "why_not"),
    [
        ("tests", "somebody else must decide"),
        ("carla", "carla approves nothing here: the approvers of late-arrival are anna, bo, tests"),
        ("anna, as claimed, from 10.0.0.7", "needs a token"),
        ("unnamed caller from 10.0.0.7", "approves nothing here"),
    ],
)
def test_nobody_else_approves(tmp_path: Path, who: str, why_not: str) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna", "bo", "tests"]})
    refused(waits)
    with pytest.raises(Refused, match=why_not):
        approve(waits.as_person(who), LOOP, why="I say so")
    waits.tend()
    assert waits.serving == waits.old


def test_rejected_release_never_begins_and_another_may_be_asked_for(tmp_path: Path) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna", "bo"]})
    refused(waits)
    assert reject(waits.as_person("anna"), LOOP, why="not before the audit").state == "rejected"
    waits.tend()
    assert waits.serving == waits.old
    with pytest.raises(NotFound, match="waiting release"):
        approve(waits.as_person("bo"), LOOP, why="but I want it")
    refused(waits)
    assert [case.approvals for case in cases(waits.home).cases] == [[]], "what was said about the earlier one does not count"
    assert approve(waits.as_person("bo"), LOOP, why="after the audit").state == "released"


def test_approved_release_waits_for_the_end_of_the_freeze_and_upkeep_begins_it(tmp_path: Path) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna"]}, freeze=WEEKEND)
    refused(waits)
    case = approve(waits.as_person("anna"), LOOP, why="right")
    assert [blocker.name for blocker in case.waits_for] == ["freeze"]
    waits.tend()
    assert waits.serving == waits.old
    waits.clock.advance_to(datetime(2024, 5, 6, 8, 0, tzinfo=UTC))
    waits.tend()
    assert waits.serving == waits.new


def test_another_release_supersedes_the_one_that_waits(tmp_path: Path) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna"]})
    refused(waits)
    third = package(waits.home.packages, weight=0.07).digest
    waits.clock.advance(timedelta(minutes=1))
    release(waits.home, LOOP, third, force=True, why="urgent")
    assert cases(waits.home).cases == []
    waits.tend()
    assert waiting(waits.home, LOOP) is None
    with pytest.raises(NotFound):
        approve(waits.as_person("anna"), LOOP, why="too late")
    assert waits.serving == third


def test_newer_package_takes_the_place_of_the_one_that_waits(tmp_path: Path) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna"]})
    refused(waits)
    waits.new, first = package(waits.home.packages, weight=0.07).digest, waits.new
    refused(waits)
    with pytest.raises(PackageNotFound):
        approve(waits.as_person("anna"), LOOP, first, why="the first one")
    assert approve(waits.as_person("anna"), LOOP, waits.new, why="the newer one").state == "released"


def test_release_that_waits_expires_and_is_told(tmp_path: Path) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna"]})
    refused(waits)
    waits.tend()
    waits.clock.advance(timedelta(days=15))
    waits.tend()
    assert waiting(waits.home, LOOP) is None
    [alert] = open_alerts(waits.home, LOOP)
    assert "does not begin" in alert.title
    assert waits.serving == waits.old


def test_package_marked_bad_meanwhile_is_not_released(tmp_path: Path) -> None:
    from loopwright.deploy.blocklist import mark
    from loopwright.records.releases import BadPackage

    waits = Waits(tmp_path, scope={"approvers": ["anna"]})
    refused(waits)
    mark(waits.home, BadPackage(loop=LOOP, package=waits.new, cause="crash", detail="killed workers", since=waits.clock.now()))
    case = approve(waits.as_person("anna"), LOOP, why="right")
    assert case.state == "refused"
    assert "marked bad" in case.detail
    assert waits.serving == waits.old


def test_approval_repeated_with_its_key_changes_nothing(tmp_path: Path) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna"]})
    refused(waits)
    first = approve(waits.as_person("anna"), LOOP, why="right", request_id="k1")
    again = approve(waits.as_person("anna"), LOOP, why="right", request_id="k1")
    assert (first.state, again.state) == ("released", "released")
    assert len(releases.history(waits.home, LOOP)) == 2


def test_release_begun_by_a_process_that_died_is_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(tmp_path, scope={"approvers": ["anna"]})
    refused(waits)

    def dies(name: str) -> None:
        if name == "release.copied":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", dies)
        with pytest.raises(KeyboardInterrupt):
            approve(waits.as_person("anna"), LOOP, why="right")
    assert waits.serving == waits.new
    assert waiting(waits.home, LOOP) is not None
    waits.tend()
    found = begin_pending(waits.home, waits.loop)
    assert found is not None
    assert found.state == "released"
    assert len(releases.history(waits.home, LOOP)) == 2


def test_first_release_of_a_loop_needs_its_approval_too(tmp_path: Path) -> None:
    waits = Waits(tmp_path, serves=False, scope={"approvers": ["anna"]})
    refused(waits)
    assert waits.serving == ""
    approve(waits.as_person("anna"), LOOP, why="right")
    assert waits.serving == waits.new


def test_more_approvals_than_approvers_are_refused_where_they_are_declared() -> None:
    scope = declared().scope
    with pytest.raises(DeclarationInvalid, match="2 are wanted of 1"):
        Scope(problem="p", objectives=scope.objectives, heuristic=scope.heuristic, approvers=["anna"], approvals=2)


def test_person_is_the_bare_name_that_somebody_proved() -> None:
    assert person("anna") == "anna"
    assert person("anna, by token, from 10.0.0.7") == "anna"
    assert person("anna, as claimed, from 10.0.0.7") == ""
