"""The controller of releases: acts on the judge's verdicts. It takes a plan to its next stage, or back to the old package.

Each act is one change of the release state at the generation that was judged, so a change by a person, or by another
process that judges as well, is never overridden. A controller that dies on the way is repeated by the next round.
"""

from datetime import datetime, timedelta

import msgspec

from loopwright.base import failpoints
from loopwright.deploy.blocklist import BlockedPackage, bad_packages, keep
from loopwright.deploy.judge import judge
from loopwright.deploy.release_commit import Change, commit_release
from loopwright.deploy.releases import history, present_generation, refuse_bad, rollback, serving
from loopwright.deploy.shadow_judge import judge_shadow
from loopwright.deploy.strategies import new_package, stage_arms, stage_shadow
from loopwright.records.declarations import Loop
from loopwright.records.entries import Entry
from loopwright.records.releases import Arm, BadPackage, ReleaseState
from loopwright.records.verdicts import BUSY_SHARE, MAX_PAUSE, Verdict
from loopwright.stores.home import Home

BY = "loopwright"

MIN_PAUSE, LOOKS = timedelta(seconds=5), 60
"""A stage is judged about so many times while its age doubles; at most every 5 seconds, at least every 5 minutes (`MAX_PAUSE`)."""


def progress(home: Home, loop: Loop, at: datetime) -> Verdict | None:
    """Judge the stage of the loop's release at moment `at`, and act on it; None where no plan is under way, or it was judged just now."""
    state = serving(home, loop.name)
    if state is None or state.under_way is None:
        return None
    last = newest_verdict(home, state)
    if last is not None and last.answer == "hold":
        pause = max(min(max((at - state.since) / LOOKS, MIN_PAUSE), MAX_PAUSE), timedelta(seconds=last.seconds / BUSY_SHARE))
        if at - last.at < pause:
            return None
    judged = judge_shadow if state.shadow is not None else judge
    verdict = judged(home, loop, [entry.record for entry in history(home, loop.name)], at)
    home.ledger.put(verdict, loop=loop.name, key=state.champion.package)
    failpoints.hit("release.judged")
    if verdict.answer == "back":
        if verdict.worse:
            _block(home, verdict)
        failpoints.hit("release.blocked")
        rollback(home, loop.name, why=verdict.why, by=BY, expected=state.generation, request=f"{state.request}-back")
    elif verdict.answer == "on":
        advance(home, state, why=verdict.why, by=BY)
    return verdict


def newest_verdict(home: Home, state: ReleaseState) -> Verdict | None:
    """The newest verdict on the current stage of a plan."""
    entry = home.ledger.latest(Verdict, loop=state.loop)
    return entry.record if entry is not None and entry.record.generation == state.generation else None


def advance(home: Home, state: ReleaseState, *, why: str, by: str) -> Entry[ReleaseState]:
    """Begin the next stage of a release's plan; after the last one its package serves alone.

    Raises ReleaseConflict when the release is no longer at this state, and PackageRefused when its package was marked bad meanwhile.
    """
    states = [entry.record for entry in history(home, state.loop)]
    new, stage = Arm(package=new_package(state)), state.stage + 1
    refuse_bad([new.package], bad_packages(home, state.loop))
    arms = stage_arms(state.plan[stage], new, state.former) if state.former and stage < len(state.plan) else [new]
    after = msgspec.structs.replace(
        state,
        arms=arms,
        shadow=stage_shadow(state.plan[stage], new) if stage < len(state.plan) else None,
        stage=stage,
        generation=present_generation(state.loop, states, state.generation) + 1,
        action="advance",
        since=home.clock.now(),
        by=by,
        why=why,
        request=f"{state.request}-{stage}",
        arguments={},
        despite=[],
    )
    return commit_release(home, Change(after, states))


def _block(home: Home, verdict: Verdict) -> None:
    """Mark the package as judged worse: no turn and no person releases it again without `--force`."""
    if verdict.package in bad_packages(home, verdict.loop):
        return
    bad = BadPackage(loop=verdict.loop, package=verdict.package, cause="judged", detail=verdict.why, since=verdict.at)
    home.ledger.put(bad, loop=verdict.loop, key=verdict.package)
    keep(home, BlockedPackage(package=bad, withdrawn=True, settled=True))
