"""The verb `history`."""

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from loopwright.base.errors import NotFound, PackageRefused, SegmentNotFound
from loopwright.records.releases import ReleaseState
from loopwright.records.verdicts import Verdict
from loopwright.stores.home import Home
from loopwright.verbs.known_loop import known_loop


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The releases of a loop, oldest first; with `segment` only those that changed its package. `candidates` are by package digest.

    `verdict` is the newest one on a stage.
    """

    loop: str
    releases: list[ReleaseState]
    segment: str | None = None
    candidates: dict[str, str] = {}
    verdict: Verdict | None = None


def history(home: Home, loop: str, *, segment: str | None = None) -> History:
    """List the releases of a loop, oldest first: package, share, time, person, reason; and the newest verdict on a stage of one.

    Args:
        loop: name of the loop.
        segment: show only the releases that changed this segment's package.
    """
    known_loop(home, loop)
    releases = releases_of(home, loop)
    if segment is not None:
        known = dict.fromkeys(name for release in releases for name in release.segments)
        if segment not in known:
            raise SegmentNotFound(segment, known)
        before = [None, *(r.package_of(segment) for r in releases)]
        releases = [r for r, old in zip(releases, before, strict=False) if r.package_of(segment) != old]
    candidates = {}
    for digest in dict.fromkeys(arm.package for release in releases for arm in release.arms):
        with suppress(NotFound, PackageRefused):
            candidates[digest] = home.packages.manifest(digest).candidate
    verdict = verdict_of(home, releases) if segment is None else None
    return History(loop=loop, releases=releases, segment=segment, candidates=candidates, verdict=verdict)


def releases_of(home: Home, loop: str) -> list[ReleaseState]:
    """All releases of a loop, oldest first."""
    return [e.record for e in home.ledger.find(ReleaseState, loop=loop, newest=False)]


def verdict_of(home: Home, releases: Sequence[ReleaseState]) -> Verdict | None:
    """The newest verdict on a stage of the newest release, or the one that ended it; None once something else was released.

    `releases` are those of one loop, oldest first.
    """
    entry = home.ledger.latest(Verdict, loop=releases[-1].loop) if releases else None
    return entry.record if entry is not None and entry.record.generation >= releases[-1].generation - 1 else None
