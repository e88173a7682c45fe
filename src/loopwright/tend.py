"""Upkeep: what runs on a schedule. Seal and commit the logs, feed context, close monitoring windows, account, retrain.

A scheduler never imports the user's code: what it needs of a loop stands in the ledger as JSON and in the package as
ONNX. Retraining, which does need the code, runs as a child process: `loopwright run FILE`.
"""

import os
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from loopwright.business.value import account
from loopwright.data.context import feed
from loopwright.data.steps import Joined, joined
from loopwright.deploy import bad
from loopwright.deploy.controller import serving
from loopwright.deploy.events import Events
from loopwright.loop import Loop
from loopwright.monitor.alerts import close_alert, open_alerts, raise_alert, send
from loopwright.monitor.watch import Watched, watch
from loopwright.records import openlineage
from loopwright.records.declarations import duration
from loopwright.records.errors import LoopwrightError
from loopwright.records.home import Home
from loopwright.records.ids import new_id
from loopwright.records.ledger import Problem
from loopwright.records.predictions.commit import Committed, commit
from loopwright.records.predictions.damage import note, set_aside
from loopwright.records.predictions.retention import retain
from loopwright.records.turns import LoopRecord
from loopwright.records.windows import Alert, Quality, ValueWindow, Window

LEASE_SECONDS = 60.0
RETRY_AFTER = timedelta(minutes=15)
FAILED = "retraining"
"""Key of the alert that a retraining failed."""
DAMAGED = "damaged-log"
"""Key of the alert that segments of the prediction log are damaged or missing."""
UNTOLD = "events"
"""Key of the alert that predictions cannot be told as events."""


class Upkeep(msgspec.Struct, frozen=True, kw_only=True):
    """What one round of upkeep did for one loop."""

    committed: Committed
    watched: Watched
    values: list[ValueWindow]
    events: int = 0


def upkeep(home: Home, loop: Loop, *, until: datetime) -> Upkeep:
    """Commit the loop's logs, close the windows due at `until`, and account for each window that closed or was revised.

    What an upkeep that died left half done is done by the next one.
    """
    committed = commit(home, loop.name)
    _tell_damage(home, loop.name, committed.problems)
    if committed.predictions:
        _tell(home, loop, committed.predictions)
    watched = watch(home, loop_name=loop.name, monitor=loop.monitor, retrain=loop.retrain, outcome=loop.outcome, until=until)
    _close_bad(home, loop.name)
    values = []
    for quality in _unaccounted(home, loop, until, {q.start for q in watched.qualities}):
        value = account(
            home,
            loop_name=loop.name,
            scope=loop.scope,
            outcome=loop.outcome,
            start=quality.start,
            end=quality.end,
            known_at=until,
        )
        if value is not None:
            home.ledger.put(value, loop=loop.name, key=quality.start.isoformat())
            values.append(value)
    _retain(home, loop, until, busy=bool(committed.predictions or committed.outcomes))
    return Upkeep(committed=committed, watched=watched, values=values)


def _retain(home: Home, loop: Loop, until: datetime, *, busy: bool) -> None:
    """Keep the loop's tables small, and what they hold as long as the settings say.

    Rows stay that a window not yet closed, or one that outcomes may still revise, is measured on; and those that the loop says
    it is trained on (`Retrain(window=...)`).
    """
    before = None
    last = home.ledger.latest(Window, loop=loop.name)
    if home.settings.keep and last is not None:
        keep = max(duration(home.settings.keep), duration(loop.retrain.window) if loop.retrain.window else timedelta(0))
        settled = last.record.end - duration(loop.outcome.wait) - 2 * duration(loop.monitor.every)
        before = min(until - keep, settled)
    retain(home, loop.name, before=before, most_files=home.settings.most_files, busy=busy)


def _close_bad(home: Home, loop: str) -> None:
    """Close the alerts about bad packages once somebody, or a turn, has released since."""
    raised = {a.key for a in open_alerts(home, loop) if a.key.startswith(bad.ALERT)}
    now = serving(home, loop) if raised else None
    if now is None or now.action != "release":
        return
    decided = {e.key: e.at for e in home.ledger.find(Alert, loop=loop, newest=False) if e.key in raised and not e.record.sent}
    for key, at in decided.items():
        if now.since >= at:
            close_alert(home, loop, key, detail=f"package {now.arms[0].package[:12]} was released since")
            send(home, loop)


def _tell(home: Home, loop: Loop, rows: int) -> None:
    """Tell OpenLineage which packages answered what is in the lake now."""
    with home.openlineage.run(f"{loop.name}.serve", kind="SERVING", about=loop.scope.problem) as run:
        state = serving(home, loop.name) if run.wanted else None
        if state is not None:
            run.inputs += [openlineage.package(loop.name, d, home.packages.manifest(d)) for d in state.packages]
            name = f"predictions.{loop.name}"
            made = openlineage.table(home.settings.lake_root, name, home.lake.version(name), loop.columns)
            run.outputs.append(openlineage.written(made, rows))


def _tell_damage(home: Home, loop: str, problems: list[Problem]) -> None:
    """Alert on what a commit met, and on what lies in quarantine, until it is removed; the same again is not told again."""
    aside = set_aside(home.path, loop)
    found = [f"{Path(p.where).name}: {p.what}" for p in problems] or [f"{name} was set aside" for name in aside]
    before = home.ledger.latest(Alert, loop=loop, key=DAMAGED)
    is_open = before is not None and before.record.state == "open"
    if problems or (aside and not is_open):
        detail = (
            f"{'; '.join(found)[:1500]}. Look into quarantine/ of the log, with `loopwright verify`, then remove what is there"
        )
        title = "The prediction log is damaged" if aside else "The prediction log needs a look"
        if before is None or not is_open or before.record.detail != detail:
            raise_alert(home, loop, DAMAGED, severity="critical", title=title, detail=detail)
    elif is_open and not aside:
        close_alert(home, loop, DAMAGED, detail="nothing is in quarantine any more")
        send(home, loop)


def _unaccounted(home: Home, loop: Loop, until: datetime, fresh: set[datetime]) -> list[Quality]:
    """Windows whose quality is newer than their account, oldest first.

    Looked at are those measured just now (`fresh`: their starts), and those before as far back as outcomes can still come.
    """
    since = until - duration(loop.outcome.wait) - 2 * duration(loop.monitor.every)
    accounted = {e.key: e.sequence for e in home.ledger.find(ValueWindow, loop=loop.name, newest=False)}
    newest = {e.key: e for e in home.ledger.find(Quality, loop=loop.name, newest=False)}
    due = [
        e.record
        for key, e in newest.items()
        if e.record.rows and (e.record.start in fresh or e.record.end >= since) and accounted.get(key, 0) < e.sequence
    ]
    return sorted(due, key=lambda quality: quality.start)


def loops(home: Home) -> list[tuple[Loop, str]]:
    """Every loop the ledger knows, newest declaration, with its file; functions are source text and cannot be called."""
    newest = {e.loop: e.record for e in home.ledger.find(LoopRecord, newest=False)}
    return [(msgspec.convert(record.declaration, Loop), record.file) for _, record in sorted(newest.items())]


def needed(home: Home, loop: Loop) -> list[Joined]:
    """What requests are joined with by the loop as it is declared now, and by the declarations of the packages that serve."""
    now = serving(home, loop.name)
    served = {home.packages.manifest(arm.package).declaration for arm in now.arms} if now is not None else set()
    before = [
        msgspec.convert(e.record.declaration, Loop)
        for e in home.ledger.find(LoopRecord, loop=loop.name, newest=False)
        if e.record.digest in served
    ]
    return [j for each in [loop, *before] for j in joined(each.context, each.aggregates)]


def refresh(home: Home, tables: set[str]) -> None:
    """Feed what serving needs of tables that have just changed, for every loop; upkeep does it again if it fails."""
    for loop, _ in loops(home):
        with suppress(LoopwrightError):
            feed(home, [j for j in needed(home, loop) if j.table.name in tables])


def tend(home: Home, *, owner: str, retrain: bool = True) -> dict[str, Upkeep] | None:
    """One round of upkeep over all loops; None when another process holds the lease (`owner` tells them apart)."""
    if not home.ledger.lock("tend", owner, LEASE_SECONDS):
        return None
    done: dict[str, Upkeep] = {}
    now = home.clock.now()
    home.packages.sweep()
    events = Events(home)
    for loop, file in loops(home):
        home.ledger.lock("tend", owner, LEASE_SECONDS)
        try:
            feed(home, needed(home, loop))
            events.begin(loop.name)
            result = upkeep(home, loop, until=now)
            result = msgspec.structs.replace(result, events=_tell_events(home, loop.name, events))
        except LoopwrightError as error:
            problem = Problem(where=f"upkeep of {loop.name}", what=str(error))
            result = Upkeep(
                committed=Committed(predictions=0, outcomes=0, problems=[problem]),
                watched=Watched(windows=[], qualities=[], trigger=None, alerts=[]),
                values=[],
            )
        done[loop.name] = result
        trigger = result.watched.trigger
        if retrain and trigger is not None and file:
            _retrain(home, loop.name, file, trigger.cause, trigger.reason, owner)
    with suppress(OSError):  # a figure for the metrics; the alerts say it too
        note(home.path, {loop: count for loop in done if (count := len(set_aside(home.path, loop)))})
    return done


def _tell_events(home: Home, loop: str, events: Events) -> int:
    """Tell a loop's predictions as events, and raise or close the alert that they cannot be; how many were told."""
    told = events.tell(loop)
    if told is None:
        return 0
    entry = home.ledger.latest(Alert, loop=loop, key=UNTOLD)
    alarmed = entry is not None and entry.record.state == "open"
    if told.trouble and not alarmed:
        raise_alert(home, loop, UNTOLD, severity="warning", title="Predictions are not told as events", detail=told.trouble)
    elif alarmed and not told.trouble and close_alert(home, loop, UNTOLD, detail="they are told again") is not None:
        send(home, loop)
    return told.events


def _retrain(home: Home, loop: str, file: str, cause: str, why: str, owner: str) -> None:
    """Retrain in a child process, which may import the user's code; the lease is renewed while it runs.

    One that fails raises an alert, and is tried again after `RETRY_AFTER` if the reason is still there.
    """
    failed = home.ledger.latest(Alert, loop=loop, key=FAILED)
    if failed is not None and failed.record.state == "open" and home.clock.now() - failed.at < RETRY_AFTER:
        return
    environment = {**os.environ, **home.settings.environment(), "LOOPWRIGHT_BY": "tend"}
    command = [sys.executable, "-m", "loopwright", "run", file, "--refit", "--cause", cause, "--why", why]
    log = home.folder("runs") / f"{new_id(home.clock.now())}.log"
    with log.open("wb") as output:
        try:
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=Path(file).parent, env=environment)
        except OSError as error:  # the loop's folder is gone, or no process can be started
            raise_alert(home, loop, FAILED, severity="critical", title="Retraining failed", detail=str(error))
            return
        while True:
            try:
                child.wait(timeout=LEASE_SECONDS / 3)
                break
            except subprocess.TimeoutExpired:
                home.ledger.lock("tend", owner, LEASE_SECONDS)
    if child.returncode:
        detail = f"exit {child.returncode}: {log.read_text(errors='replace')[-1000:].strip()}"
        raise_alert(home, loop, FAILED, severity="critical", title="Retraining failed", detail=detail)
    elif close_alert(home, loop, FAILED, detail="a retraining went through") is not None:
        send(home, loop)
