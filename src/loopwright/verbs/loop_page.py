"""The data of the console's page about one loop."""

from typing import Any

import msgspec

from loopwright.records.attempts import Attempts
from loopwright.records.evaluation import Leaderboard
from loopwright.records.profiles import Profile
from loopwright.records.releases import ReleaseState
from loopwright.records.verdicts import Verdict
from loopwright.records.windows import Alert, Quality, ValueWindow, Window
from loopwright.stores.home import Home
from loopwright.verbs.cases import Case, cases
from loopwright.verbs.drift import revisions
from loopwright.verbs.history import verdict_of
from loopwright.verbs.known_loop import known_loop
from loopwright.verbs.leaderboard import leaderboard
from loopwright.verbs.loop_status import LoopStatus, loop_status

MAX_WINDOWS, MAX_RELEASES, MAX_ALERTS = 200, 200, 200
"""Maximum number of items on a loop's page, the newest."""


class LoopPage(msgspec.Struct, frozen=True, kw_only=True):
    """All that a page about one loop shows."""

    status: LoopStatus
    objectives: list[dict[str, Any]]
    leaderboard: Leaderboard | None
    releases: list[ReleaseState]
    windows: list[Window]
    quality: list[Quality]
    values: list[ValueWindow]
    alerts: list[Alert]
    valued: bool = True
    """Whether a value table is declared; else the money of `values` means nothing."""
    profiles: list[Profile] = []
    verdict: Verdict | None = None
    """The newest verdict on a stage of a release."""
    case: Case | None = None
    """The release that waits."""


def loop_page(home: Home, loop: str) -> LoopPage:
    """All data of a loop's page; if its declaration cannot be read, the data that does not need it."""
    status, ledger = loop_status(home, loop), home.ledger
    declared = Attempts(loop).run("declaration", lambda: known_loop(home, loop), None)
    alerts = [e.record for e in ledger.newest(Alert, loops=[loop], per="key", limit=MAX_ALERTS)]
    releases = ledger.find(ReleaseState, loop=loop, limit=MAX_RELEASES)
    return LoopPage(
        case=next(iter(cases(home, loop).cases), None) if declared is not None else None,
        verdict=verdict_of(home, [e.record for e in reversed(releases)]),
        status=status,
        objectives=[msgspec.to_builtins(o) for o in declared.scope.objectives] if declared is not None else [],
        leaderboard=leaderboard(home, loop) if declared is not None and ledger.latest(Leaderboard, loop=loop) else None,
        releases=[e.record for e in reversed(releases)],
        windows=revisions(home, Window, loop, MAX_WINDOWS),
        quality=revisions(home, Quality, loop, MAX_WINDOWS),
        values=revisions(home, ValueWindow, loop, MAX_WINDOWS),
        alerts=sorted(alerts, key=lambda a: a.state, reverse=True),
        valued=declared is not None and declared.scope.value.is_set,
        profiles=[
            e.record for name in (declared.tables if declared is not None else ()) if (e := ledger.latest(Profile, key=name))
        ],
    )
