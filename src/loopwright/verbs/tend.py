"""The verb `tend`."""

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import msgspec

from loopwright.base.errors import LedgerUnavailable, UsageError
from loopwright.base.heap import give_back
from loopwright.base.ids import new_id
from loopwright.base.progress import Progress
from loopwright.records.entries import Problem
from loopwright.retraining import Retrainer
from loopwright.stores.home import Home
from loopwright.tend import tend as tend_once

ROUND_SECONDS = 3600.0
"""A round that takes longer hangs: the process says where it stands, and ends; the server starts another one. Retrainings run beside rounds."""


class Tended(msgspec.Struct, frozen=True, kw_only=True):
    """One round of upkeep: counts for each loop; `events` are predictions that were sent to a receiver.

    `problems` are damage that was met, `failed` the steps that raised. Where another process tends (`held_by`) nothing was done.
    """

    leader: bool
    committed: dict[str, int]
    outcomes: dict[str, int]
    windows: dict[str, int]
    triggers: dict[str, str]
    problems: list[Problem]
    events: dict[str, int] = {}
    failed: list[Problem] = []
    held_by: str = ""

    @property
    def ok(self) -> bool:
        """Whether the round was done, and every step of it went through."""
        return self.leader and not self.failed


def tend(
    home: Home, *, once: bool = False, every: float = 10.0, no_retrain: bool = False, progress: Progress | None = None
) -> Tended:
    """Run upkeep: commit logs, join outcomes, monitor, compute value, retrain. Runs until stopped; one process tends, others wait.

    Args:
        once: run one round and exit.
        every: seconds between rounds.
        no_retrain: record triggers, but do not act on them.
    """
    if not 0 < every <= threading.TIMEOUT_MAX:
        raise UsageError(f"--every {every:g}: must be seconds above 0")
    owner, retrainer = new_id(home.clock.now()), None if once else Retrainer(home)
    try:
        while True:
            with _bounded() if not once else nullcontext():
                done = tend_once(home, owner=owner, retrain=not no_retrain, retrainer=retrainer)
            result = Tended(
                leader=not done.held_by,
                held_by=done.held_by,
                committed={name: u.committed.predictions for name, u in done.loops.items()},
                outcomes={name: u.committed.outcomes for name, u in done.loops.items()},
                windows={name: len(u.watched.windows) for name, u in done.loops.items()},
                triggers={name: u.watched.trigger.reason for name, u in done.loops.items() if u.watched.trigger},
                problems=[p for u in done.loops.values() for p in u.committed.problems],
                events={name: u.events for name, u in done.loops.items() if u.events},
                failed=done.failed,
            )
            if progress and (any([*result.committed.values(), *result.windows.values()]) or result.problems or result.failed):
                progress.say(
                    f"committed {result.committed}, closed {result.windows} windows"
                    + (f", told {result.events} as events" if result.events else "")
                    + "".join(f"; {p.where}: {p.what}" for p in [*result.problems, *result.failed])
                )
            if once:
                return result
            give_back()  # release the peak memory of a round
            time.sleep(every)
    finally:  # a waiting process need not wait for the lease to expire
        with suppress(LedgerUnavailable):
            home.ledger.unlock("tend", owner)


@contextmanager
def _bounded() -> Iterator[None]:
    """End this process with exit code 1, and the stacks of its threads on standard error, if the block does not end in `ROUND_SECONDS`."""
    faulthandler.dump_traceback_later(ROUND_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
