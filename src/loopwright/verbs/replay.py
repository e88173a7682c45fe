"""The verb `replay`."""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from loopwright import replay as room
from loopwright.base.errors import UsageError
from loopwright.base.ids import new_id
from loopwright.base.moment import moment_option
from loopwright.base.progress import Progress, Silent
from loopwright.records.declarations import Loop
from loopwright.records.evaluation import NOTHING, Estimate
from loopwright.replay import PolicyComparison, ReplayRun
from loopwright.stores.home import Home
from loopwright.verbs.loop_file import loop_with_code


class Week(msgspec.Struct, frozen=True, kw_only=True):
    """One monitoring window of a replay; `moved` is how far the most moved column went, as a multiple of what counts as drift. Values are in the scope's currency, over no model; metrics over known outcomes.

    `metric` is null while the window is `provisional`: until the wait for outcomes is over, those that come late are missing. Values and the
    other metrics count the decisions whose wait was over at the end of the replay; NaN (null in JSON) where there are none.
    """

    start: datetime
    end: datetime
    rows: int
    state: str
    drifted: list[str]
    moved: float
    metric: Estimate
    provisional: bool
    metric_never: float
    metric_heuristic: float
    package: str
    value: float
    value_never: float
    value_heuristic: float
    event: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A replay: the timeline and its totals, compared with "never retrained" and "heuristic only" on the same rows."""

    loop: str
    policy: str
    start: datetime
    end: datetime
    metric: str
    currency: str
    predictions: int
    retrainings: int
    packages: list[str]
    weeks: list[Week]
    value: Estimate
    value_never: Estimate
    value_heuristic: Estimate
    over_never: Estimate
    over_heuristic: Estimate
    seconds: float
    valued: bool = True
    """Whether a value table is declared; else the money means nothing."""


def replay(
    home: Home,
    loop: str,
    *,
    start: str,
    end: str,
    policy: str = "declared",
    keep: Path | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """The loop against history, on a simulated clock, in a home of its own: nothing that serves is touched.

    Args:
        loop: path of a loop file, or the name of a loop in the ledger.
        start: start of the replay (ISO 8601, or "30 days ago"); the first turn trains on what was known then.
        end: end of the replay, exclusive.
        policy: declared, never, weekly, monthly or drift.
        keep: folder in which to keep the replay's home (default: it is deleted).
    """
    room.check_policy(policy)
    now, ahead = home.clock.now(), "a replay goes over what has happened"
    begin, stop = (moment_option(text, now, f"--{name}", ahead=ahead) for name, text in (("start", start), ("end", end)))
    if stop <= begin:
        raise UsageError(f"--end {end} must be after --start {start}")
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UsageError(f"--keep {keep}: the folder is not empty; name a new one for the replay's home")
    declared, file = loop_with_code(home, loop)
    folder = keep or home.folder("replays") / new_id(home.clock.now())
    scratch = room.workspace(home, declared, begin, folder)
    try:
        run = room.replay(scratch, declared, file=file, start=begin, end=stop, policy=policy, progress=progress or Silent())
        return summarise(scratch, declared, run, policy)
    finally:
        scratch.close()
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def summarise(home: Home, declared: Loop, run: ReplayRun, policy: str) -> Replayed:
    """The timeline of a replay and its totals, compared with "never retrained" and "heuristic only"."""
    compared = room.compare(home, declared, run)
    value = declared.scope.value
    money = {policy: room.worth(value, compared, policy) for policy in compared.given}
    weeks = [_week(room, compared, run, money, i) for i in range(len(run.laps))]
    return Replayed(
        loop=declared.name,
        policy=policy,
        start=run.laps[0].start,
        end=run.laps[-1].end,
        metric=run.metric,
        currency=value.currency,
        predictions=sum(lap.rows for lap in run.laps),
        retrainings=sum(lap.event.startswith("retrained") for lap in run.laps),
        packages=list(dict.fromkeys(lap.package for lap in run.laps)),
        weeks=weeks,
        value=room.total(money["served"], compared),
        value_never=room.total(money["never"], compared),
        value_heuristic=room.total(money["heuristic"], compared),
        over_never=room.total(money["served"] - money["never"], compared),
        over_heuristic=room.total(money["served"] - money["heuristic"], compared),
        seconds=run.seconds,
        valued=value.is_set,
    )


def _week(room: Any, compared: PolicyComparison, run: ReplayRun, money: dict[str, Any], index: int) -> Week:
    lap, mask = run.laps[index], compared.lap == index
    worth = {policy: float(rows[mask].sum()) if mask.any() else float("nan") for policy, rows in money.items()}
    provisional = lap.quality is not None and lap.quality.mature_at is not None
    return Week(
        start=lap.start,
        end=lap.end,
        rows=lap.rows,
        state=lap.window.state if lap.window else "open",
        drifted=lap.window.drifted if lap.window else [],
        moved=max((c.moved for c in lap.window.columns if c.matters), default=0.0) if lap.window else float("nan"),
        metric=lap.quality.metrics.get(run.metric, NOTHING) if lap.quality and not provisional else NOTHING,
        provisional=provisional,
        metric_never=room.metric_of(compared, run.metric, "never", index),
        metric_heuristic=room.metric_of(compared, run.metric, "heuristic", index),
        package=lap.package,
        value=worth["served"],
        value_never=worth["never"],
        value_heuristic=worth["heuristic"],
        event=lap.event,
    )
