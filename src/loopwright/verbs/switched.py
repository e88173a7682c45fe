"""The answer of `release` and `rollback`: the release in service, and whether the workers follow."""

import time

from loopwright.base.errors import RequestInvalid, UsageError
from loopwright.deploy.releases import next_back
from loopwright.deploy.serving.heartbeat import WorkerState, workers
from loopwright.deploy.serving.release_files import path_of, read_intact
from loopwright.records.releases import ReleaseState
from loopwright.stores.home import Home

SWITCH_SECONDS = 5.0

MAX_REASON = 1000
"""Maximum length of a change's reason: the ledger stores it for good, and pages and commands show it."""


class Switched(ReleaseState, frozen=True, kw_only=True):
    """The release state after a release or rollback, and the state of the workers on this machine (none: no server runs).

    `returns_to` is the package that `rollback` without `--to` would go to next: after a rollback the one that it replaced
    ("": none, or only those of segments changed).
    """

    workers: list[WorkerState] = []
    returns_to: str = ""

    @property
    def ok(self) -> bool:
        """Whether the workers on this machine follow: False if there are some and none of them has switched in time."""
        return not self.workers or any(worker.state in ("serves", "idle") for worker in self.workers)


def check_reason(why: str, *, despite_guard: bool = False) -> None:
    """Raise RequestInvalid for a reason that is too long, UsageError for a missing one if the gate is overridden."""
    if len(why) > MAX_REASON:
        raise RequestInvalid([("why", f"has {len(why):,} characters; at most {MAX_REASON:,}: say it in a sentence")])
    if despite_guard and not why.strip():
        raise UsageError("--despite-guard needs --why REASON: the release says for good why the gate was overridden")


def switched(home: Home, state: ReleaseState) -> Switched:
    """The release state and the workers' states, once they have switched, or after a timeout.

    Without workers if a later change exists (the answer to a repeated request).
    """
    until = home.clock.monotonic() + SWITCH_SECONDS
    copy = read_intact(path_of(home, state.loop))
    found = [] if copy is not None and copy.state.generation > state.generation else workers(home.path, state)
    while any(w.state in ("lags", "down") for w in found) and home.clock.monotonic() < until:
        time.sleep(0.02)
        found = workers(home.path, state)
    facts = {name: getattr(state, name) for name in state.__struct_fields__}
    return Switched(**facts, workers=found, returns_to=next_back(home, state))
