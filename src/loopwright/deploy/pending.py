"""Releases that wait: a package passed its checks, and something keeps its release from beginning. Upkeep begins it once nothing does.

The checks run again then, as what serves may have changed. Another release in between supersedes it, and it expires after 14 days.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec

from loopwright.base.errors import GateFailed, NotFound, PackageRefused, ReleaseConflict
from loopwright.base.ids import new_id
from loopwright.deploy.gate import MoreChecks, check_release, sound
from loopwright.deploy.preconditions import Planned, approvals, blockers, waiting
from loopwright.deploy.releases import history, release, serving
from loopwright.deploy.strategies import strategy_of
from loopwright.records.declarations import Loop
from loopwright.records.entries import Entry
from loopwright.records.evaluation import Leaderboard
from loopwright.records.releases import Blocker, PendingRelease, ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.outcomes.rescore import SegmentPackages
from loopwright.stores.packages.store import Package

KEPT = timedelta(days=14)


def open_pending(planned: Planned, why: str, waits_for: list[Blocker], *, by_hand: bool, despite: bool) -> PendingRelease:
    """Let a release wait that may not begin now; one that waited before is superseded."""
    home, loop = planned.home, planned.loop.name
    now = home.clock.now()
    before = waiting(home, loop)
    generation = planned.serving.generation if planned.serving is not None else 0
    if before is not None and (before.package, before.generation) == (planned.package, generation):
        return _put(home, msgspec.structs.replace(before, waits_for=waits_for))
    if before is not None:
        _put(home, msgspec.structs.replace(before, state="superseded", detail=f"package {planned.package[:12]} waits instead"))
    declared = strategy_of(planned.loop).name
    return _put(
        home,
        PendingRelease(
            case=new_id(now),
            loop=loop,
            package=planned.package,
            opened=now,
            expires=now + KEPT,
            why=why,
            by=home.by,
            made_by=person(home.by) if by_hand else "",
            strategy="" if planned.strategy.name == declared else planned.strategy.name,
            generation=generation,
            despite=despite,
            waits_for=waits_for,
        ),
    )


def begin_pending(home: Home, loop: Loop, more: MoreChecks | None = None) -> PendingRelease | None:
    """Begin the release that waits, if nothing keeps it from beginning any more; the newest that waits or waited, None without any.

    Repeated after a crash it does nothing twice.
    """
    entry = home.ledger.latest(PendingRelease, loop=loop.name)
    if entry is None or entry.record.state != "waiting":
        return entry.record if entry is not None else None
    pending = entry.record
    now, states = serving(home, loop.name), [entry.record for entry in history(home, loop.name)]
    request = f"case-{pending.case}"
    if any(state.request == request for state in states):  # begun by a process that died before it could say so
        return _put(home, msgspec.structs.replace(pending, state="released", waits_for=[]))
    other = next((state for state in states if state.action == "release" and state.since > pending.opened), None)
    if other is not None:
        detail = f"{other.by} released {other.champion.package[:12]} meanwhile"
        return _put(home, msgspec.structs.replace(pending, state="superseded", detail=detail))
    if home.clock.now() >= pending.expires:
        return _put(home, msgspec.structs.replace(pending, state="expired", detail=f"waited since {pending.opened:%Y-%m-%d}"))
    strategy = strategy_of(loop, pending.strategy)
    planned = Planned(home, loop, pending.package, strategy, now, automatic=True, pending=pending, more=more)
    rejected = [a for a in approvals(home, pending).values() if a.answer == "reject"]
    if rejected:
        detail = f"{rejected[0].name}: {rejected[0].why}"
        return _put(home, msgspec.structs.replace(pending, state="rejected", detail=detail))
    if held := blockers(planned):
        same = [(b.name, b.detail) for b in held] == [(b.name, b.detail) for b in pending.waits_for]
        return pending if same else _put(home, msgspec.structs.replace(pending, waits_for=held))
    yes = "; ".join(f"approved by {a.name}: {a.why}" for a in approvals(home, pending).values())
    try:
        checked_release(
            planned,
            home.packages.read(pending.package),
            despite_guard=pending.despite,
            why=f"{pending.why} ({yes})" if yes else pending.why,
            by=pending.by,
            request=request,
        )
    except (GateFailed, PackageRefused, NotFound) as error:
        return _put(home, msgspec.structs.replace(pending, state="refused", detail=str(error)[:1000]))
    except ReleaseConflict:  # somebody else was first: the next round sees who
        return pending
    return _put(home, msgspec.structs.replace(pending, state="released", waits_for=[]))


def person(by: str) -> str:
    """The bare name of who makes a change; "" where a caller over HTTP does not prove it by a token."""
    name, _, proof = by.partition(", ")
    return name if not proof or proof.startswith("by token,") else ""


def checked_release(
    planned: Planned,
    chosen: Package,
    *,
    despite_guard: bool,
    despite: Sequence[str] | None = (),
    with_segments: bool = True,
    **fixed: Any,
) -> Entry[ReleaseState]:
    """Run the gate on a package with the segment packages that were evaluated with it, and release it. `fixed`: see `deploy.releases.release`.

    With `despite_guard` the checks that it fails are named in the release, after those of `despite`; with None nothing is. Raises the errors of both.
    """
    home, loop, now = planned.home, planned.loop, planned.serving
    fixed |= {"strategy": planned.strategy, "expected": now.generation if now is not None else 0}  # the checks take a while
    segments = _segment_packages(home, loop.name, chosen.digest) if with_segments else None
    if segments is not None:
        fixed |= {"fleet": segments.column, "segments": {name: package.digest for name, package in segments.packages.items()}}
    result = check_release(
        home, chosen, loop=loop.name, scope=loop.scope, segments=segments, despite_guard=despite_guard, more=planned.more
    )
    named = [] if despite is None else [*despite, *(check.name for check in result.failed)]
    return release(home, loop.name, chosen.digest, despite=named, **fixed)


def _segment_packages(home: Home, loop: str, winner: str) -> SegmentPackages | None:
    """The segment packages that were evaluated with a turn's winner; None without any."""
    boards = [e.record for e in home.ledger.find(Leaderboard, loop=loop) if e.record.winner == winner]
    fleet = next((b.fleet for b in boards if b.fleet is not None and b.fleet.serving), None)
    if fleet is None:
        return None
    own, _ = sound(home, {name: home.packages.read(digest) for name, digest in fleet.serving.items()})
    return SegmentPackages(fleet.by, own)


def _put(home: Home, pending: PendingRelease) -> PendingRelease:
    return home.ledger.put(pending, loop=pending.loop, key=pending.package).record
