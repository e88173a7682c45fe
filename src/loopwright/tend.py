"""Upkeep: scheduled work. Seal and commit the logs, feed context, close monitoring windows, account, retrain.

A scheduler never imports the user's code: it uses the loop's declaration in the ledger (JSON) and the package
(ONNX). Retraining, which does need the code, runs as a child process: `loopwright run FILE`.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from loopwright.base.errors import Damaged, LedgerUnavailable, PackageNotFound, PackageRefused
from loopwright.base.holder import decode_holder
from loopwright.base.jumps import jump
from loopwright.business.value import account
from loopwright.data.examples.asof import Joined, joined
from loopwright.data.examples.context import feed
from loopwright.deploy import blocklist
from loopwright.deploy.releases import rule_since, serving
from loopwright.deploy.serving.cloudevents import Events
from loopwright.judging import SILENT, judge_release, loops_to_judge, watch_judge
from loopwright.monitor.alerts import close_alert, open_alerts, raise_alert, send
from loopwright.monitor.windows import Watched, watch
from loopwright.records.attempts import Attempts
from loopwright.records.conditions import Standing, earned, monitored, worth_of
from loopwright.records.declarations import Loop, Value, duration, recorded_loop
from loopwright.records.entries import Problem
from loopwright.records.turns import LoopRecord, Turn
from loopwright.records.verdicts import Verdict
from loopwright.records.windows import Alert, Quality, ValueWindow, Window
from loopwright.retraining import FAILED, Due, Retrainer, limit_s
from loopwright.stores import openlineage
from loopwright.stores.home import Home
from loopwright.stores.ingestions import require_rows
from loopwright.stores.prediction_log.commit import Committed, commit
from loopwright.stores.prediction_log.damage import note, set_aside
from loopwright.stores.prediction_log.retention import retain
from loopwright.stores.upkeep_state import (
    LEASE_SECONDS,
    MAX_LOOPS,
    LoopState,
    UpkeepState,
    read_upkeep_state,
    write_upkeep_state,
)
from loopwright.stores.windows import newest_ended

LOG = logging.getLogger("loopwright.upkeep")

DAMAGED = "damaged-log"
"""Key of the alert that segments of the prediction log are damaged or missing."""
FAILING = "upkeep"
"""Key of the alert on failed steps of upkeep; without a loop if they belong to none."""
JUMPED = "clock"
"""Key of the alert on a jump of the wall clock; without a loop."""
LOSING = "losing-money"
"""Key of the alert that a loop is surely worth less than its heuristic, or than doing nothing."""
MAX_ACCOUNTS = 1000
"""Maximum number of windows that are summed up."""
UNTOLD = "events"
"""Key of the alert on predictions that cannot be sent as events."""


class Upkeep(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one round of upkeep for one loop, with its `value` table; `failed` are the steps that raised."""

    committed: Committed = Committed(predictions=0, outcomes=0, problems=[])
    watched: Watched = Watched(windows=[], qualities=[], trigger=None, alerts=[])
    values: list[ValueWindow] = []
    value: Value = Value()
    events: int = 0
    verdict: Verdict | None = None
    failed: list[Problem] = []


def upkeep(home: Home, loop: Loop, *, until: datetime, attempts: Attempts | None = None, judged: bool = True) -> Upkeep:
    """Commit the loop's logs, close the windows due at `until`, and account for each window that closed or was revised.

    Without `judged` its release is not: it is known that none is under way.

    The next upkeep completes what an interrupted one left. A failed step is recorded in `attempts` and does not stop
    the next; without `attempts` it raises.
    """
    steps = attempts or Attempts(loop.name, strict=True)
    committed = steps.run("commit logs", lambda: commit(home, loop.name), Committed(predictions=0, outcomes=0, problems=[]))
    steps.run("report damage", lambda: _tell_damage(home, loop.name, committed.problems), None)
    if committed.predictions:
        steps.run("send lineage", lambda: _tell(home, loop, committed.predictions), None)
    verdict = steps.run("judge release", lambda: judge_release(home, loop, until) if judged else None, None)
    if judged:
        steps.run("watch the judge", lambda: watch_judge(home, loop.name, until), None)
    watched = watch(
        home,
        loop_name=loop.name,
        monitor=loop.monitor,
        retrain=loop.retrain,
        outcome=loop.outcome,
        until=until,
        attempts=steps,
        unit=loop.unit or "",
    )
    steps.run("close alerts", lambda: _close_stale(home, loop.name), None)
    values = steps.run(
        "account", lambda: _account(home, loop, until, {q.start for q in watched.qualities}), list[ValueWindow]()
    )
    fresh = bool(values or watched.qualities)
    steps.run("judge", lambda: _judge(home, loop, until, watched.qualities, fresh=fresh), None)
    busy = bool(committed.predictions or committed.outcomes)
    steps.run("delete old rows", lambda: _retain(home, loop, until, busy=busy), None)
    return Upkeep(committed=committed, watched=watched, values=values, value=loop.scope.value, verdict=verdict)


def _account(home: Home, loop: Loop, until: datetime, fresh: set[datetime]) -> list[ValueWindow]:
    """Account for each window whose quality is newer than its account."""
    values = []
    for quality in _unaccounted(home, loop, until, fresh):
        value = account(
            home,
            loop_name=loop.name,
            scope=loop.scope,
            outcome=loop.outcome,
            start=quality.start,
            end=quality.end,
            known_at=until,
            unit=loop.unit or "",
        )
        if value is not None:
            home.ledger.put(value, loop=loop.name, key=quality.start.isoformat())
            values.append(value)
    return values


def _judge(home: Home, loop: Loop, until: datetime, measured: Sequence[Quality], *, fresh: bool) -> None:
    """Store the loop's standing: its newest quality that could be judged, and its money over the horizon; alert on a loss.

    Unchanged where nothing was measured (not `fresh`) and no release was made since.
    """
    entry, now = home.ledger.latest(Standing, loop=loop.name), serving(home, loop.name)
    if entry is not None and not fresh and (now is None or now.since <= entry.record.until):
        return
    before = entry.record if entry is not None else Standing(until=until)
    judged = [q for q in measured if q.state != "no data" and q.start >= (before.quality_start or q.start)]
    if judged:
        newest = max(judged, key=lambda q: q.start)
        before = msgspec.structs.replace(before, quality=newest.state, quality_start=newest.start, quality_end=newest.end)
        before = msgspec.structs.replace(before, since_release=newest.decay and newest.decay.since_release)
    since = rule_since(home, loop.name)
    worth = worth_of(_within(home, loop, until, since))
    home.ledger.put(msgspec.structs.replace(before, until=until, worth=worth), loop=loop.name, key=loop.name)
    found = earned(worth, loop.scope.value, since)
    alert = home.ledger.latest(Alert, loop=loop.name, key=LOSING)
    is_open = alert is not None and alert.record.state == "open"
    if found.state == "alert" and not is_open:
        detail = f"{found.detail}. `loopwright release {loop.name} heuristic --why ...` serves the heuristic"
        raise_alert(home, loop.name, LOSING, severity="critical", title="The loop loses money", detail=detail)
    elif is_open and found.state != "alert":
        close_alert(home, loop.name, LOSING, detail=found.detail)
        send(home, loop.name)


def _within(home: Home, loop: Loop, until: datetime, since: datetime | None) -> list[ValueWindow]:
    """The accounts, oldest first, of windows whose wait is over, within the horizon before the newest one, begun after `since`."""
    horizon, every = duration(loop.scope.horizon), duration(loop.monitor.every)
    most = min(MAX_ACCOUNTS, int((horizon + duration(loop.outcome.wait)) / every) + 2)
    found = [e.record for e in home.ledger.newest(ValueWindow, loops=[loop.name], per="key", limit=most)]
    ended = sorted(
        (v for v in found if v.end <= until and v.mature_at is None and v.start >= (since or v.start)), key=lambda v: v.start
    )
    return [v for v in ended if v.end > ended[-1].end - horizon or v is ended[-1]]


def _retain(home: Home, loop: Loop, until: datetime, *, busy: bool) -> None:
    """Compact the loop's tables, and delete rows older than the retention setting.

    Rows are kept that an open window, or one that outcomes may still revise, is measured on; and those that the loop is
    trained on (`Retrain(window=...)`).
    """
    before = None
    last = newest_ended(home.ledger, Window, loop.name, until)
    if home.settings.keep and last is not None:
        keep = max(duration(home.settings.keep), duration(loop.retrain.window) if loop.retrain.window else timedelta(0))
        settled = last.record.end - duration(loop.outcome.wait) - 2 * duration(loop.monitor.every)
        before = min(until - keep, settled)
    retain(home, loop.name, before=before, max_files=home.settings.max_files, busy=busy)


def _close_stale(home: Home, loop: str) -> None:
    """Close the obsolete alerts.

    Bad package, also one that was sent back: another one was released since. Load failure or query of death: the package no longer serves, or the
    server that reported it has stopped, and lost its state. Failed retraining: a turn was completed since, also one by hand.
    """
    raised = {a.key: a for a in open_alerts(home, loop) if a.key in (FAILED, SILENT) or a.key.startswith(blocklist.ALERTS)}
    if not raised:
        return
    now = serving(home, loop)
    decided = {e.key: e.at for e in home.ledger.find(Alert, loop=loop, newest=False) if e.key in raised and not e.record.sent}
    for key, alert in raised.items():
        kind, package = f"{key}:".split(":")[:2]
        if kind == FAILED:
            turn = home.ledger.latest(Turn, loop=loop)
            done = turn is not None and turn.record.state == "done" and turn.at >= decided[key]
            why = "a turn was completed since" if done else ""
        elif kind == SILENT:
            why = "the plan has ended" if now is None or now.under_way is None else ""
        elif kind in (blocklist.ALERT, blocklist.SENT_BACK_ALERT, blocklist.FORCED_ALERT, blocklist.NOT_BEGUN_ALERT):
            since = now is not None and now.action == "release" and now.since >= decided[key]
            why = f"package {now.champion.package[:12]} was released since" if now is not None and since else ""
        elif now is None or not any(digest.startswith(package) for digest in now.packages):
            why = f"package {package} serves no longer"
        else:
            why = "the server that told of it has stopped" if decode_holder(alert.holder).gone else ""
        if why:
            close_alert(home, loop, key, detail=why)
            send(home, loop)


def _tell(home: Home, loop: Loop, rows: int) -> None:
    """Report to OpenLineage which packages answered the predictions that are now in the lake."""
    with home.openlineage.run(f"{loop.name}.serve", kind="SERVING", about=loop.scope.problem) as run:
        state = serving(home, loop.name) if run.wanted else None
        if state is not None:
            run.inputs += [openlineage.package(loop.name, d, home.packages.manifest(d)) for d in state.packages]
            name = f"predictions.{loop.name}"
            made = openlineage.table(home.settings.lake_root, name, home.lake.version(name), loop.columns)
            run.outputs.append(openlineage.written(made, rows))


def _tell_damage(home: Home, loop: str, problems: list[Problem]) -> None:
    """Alert on damage found by a commit, and on quarantined segments until they are removed; do not repeat an open alert."""
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
            raise_alert(home, loop, DAMAGED, severity="critical", title=title, detail=detail, holds_releases=True)
    elif is_open and not aside:
        close_alert(home, loop, DAMAGED, detail="nothing is in quarantine any more")
        send(home, loop)


def _unaccounted(home: Home, loop: Loop, until: datetime, fresh: set[datetime]) -> list[Quality]:
    """Windows whose quality was measured after their account, oldest first.

    Considers those just measured (`fresh`: their starts), and earlier ones as far back as outcomes can still arrive.
    """
    since = until - duration(loop.outcome.wait) - 2 * duration(loop.monitor.every)
    accounted = {e.key: e.sequence for e in home.ledger.find(ValueWindow, loop=loop.name, newest=False)}
    newest = {e.key: e for e in home.ledger.find(Quality, loop=loop.name, newest=False)}
    due = [
        e.record
        for key, e in newest.items()
        if (e.record.with_outcome or e.record.mature_at or (e.record.rows and not loop.outcome.absent))
        and e.record.end <= until
        and (e.record.start in fresh or e.record.end >= since)
        and accounted.get(key, 0) < e.sequence
    ]
    return sorted(due, key=lambda quality: quality.start)


def loops(home: Home) -> list[tuple[Loop, str]]:
    """Every loop the ledger knows, newest declaration, with its file; functions are source text and cannot be called."""
    return [
        (recorded_loop(record), record.file) for _, record in sorted(_records(home, Attempts("ledger", strict=True)).items())
    ]


def _records(home: Home, attempts: Attempts) -> dict[str, LoopRecord]:
    """The newest declaration of every loop. An unreadable one is recorded as a failure, and the others are returned."""
    try:
        return {e.loop: e.record for e in home.ledger.find(LoopRecord, newest=False)}
    except Damaged:
        found = {}
        for loop in home.ledger.loops(LoopRecord):
            entry = attempts.run(f"declaration of {loop}", partial(home.ledger.latest, LoopRecord, loop=loop), None)
            if entry is not None:
                found[loop] = entry.record
        return found


def needed(home: Home, loop: Loop) -> list[Joined]:
    """The context needs of a loop: of its current declaration, and of the declarations of the packages that serve."""
    now = serving(home, loop.name)
    served = set()
    for arm in now.arms if now is not None else ():
        with suppress(PackageNotFound, PackageRefused):  # an unreadable package answers no request
            served.add(home.packages.manifest(arm.package).declaration)
    before = [
        recorded_loop(e.record) for e in home.ledger.find(LoopRecord, loop=loop.name, newest=False) if e.record.digest in served
    ]
    return [j for each in [loop, *before] for j in joined(each.context, each.aggregates)]


def refresh(home: Home, tables: set[str]) -> None:
    """Feed context of changed tables to the online store, for every loop; upkeep retries failures, and reports them."""
    attempts = Attempts("feed")
    for name, record in _records(home, attempts).items():
        loop = attempts.run(name, partial(recorded_loop, record), None)
        if loop is not None:
            attempts.run(name, partial(_feed, home, loop, tables), None)


def _feed(home: Home, loop: Loop, tables: set[str] | None = None) -> None:
    """Feed the online store with the context of a loop's requests (of these tables only)."""
    feed(home, [j for j in needed(home, loop) if tables is None or j.table.name in tables])


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one round of upkeep: per loop, and the failures (`failed`), loop-independent steps first.

    `held_by` names the process that holds the lease on upkeep, "" if this one did; then nothing was done.
    """

    loops: dict[str, Upkeep] = {}
    failed: list[Problem] = []
    held_by: str = ""


def tend(home: Home, *, owner: str, retrain: bool = True, retrainer: Retrainer | None = None) -> Round:
    """One round of upkeep over all loops, unless another process holds the lease (`owner` distinguishes them).

    With `retrainer` at most one retraining is started, and the next rounds go on while it runs; without one all loops
    that are due are retrained before the round ends.
    A loop, or a step of one, that fails is noted, and alerted once; it does not stop the others.
    """
    before = home.ledger.lease("tend", LEASE_SECONDS)
    if not home.ledger.lock("tend", owner, LEASE_SECONDS):
        return Round(held_by=str(before.holder) if before is not None else "another process")
    whole = Attempts("upkeep")
    if before is not None and before.state == "void":
        LOG.warning("the lease of %s until %s was void: a clock was ahead", before.holder, before.until)
    if why := whole.run("compare clocks", lambda: jump(home.path, home.clock), ""):
        return Round(failed=[*whole.failed, _tell_jump(home, why)])
    _tell_jump(home, "")
    whole.run("remove unfinished packages", home.packages.sweep, 0)
    if retrainer is not None:
        whole.run("end retraining", retrainer.conclude, True)
    return _tend_loops(home, owner, whole, retrain=retrain, retrainer=retrainer)


def _tend_loops(home: Home, owner: str, whole: Attempts, *, retrain: bool, retrainer: Retrainer | None) -> Round:
    """One round over all loops, as long as the lease is held."""
    done: dict[str, Upkeep] = {}
    now, events, records = home.clock.now(), Events(home), _records(home, whole)
    judged = whole.run("find releases under way", lambda: loops_to_judge(home), set(records))
    for name, record in sorted(records.items()):
        if not home.ledger.lock("tend", owner, LEASE_SECONDS):
            whole.failed.append(Problem(where="upkeep", what=f"the lease was lost before loop {name}: another process tends"))
            break
        done[name] = _tend_loop(home, name, record, now, events, judged=name in judged)
    due = whole.run("find retrainings", lambda: _due(records, done) if retrain else {}, dict[str, Due]())
    if retrainer is not None:
        whole.run("retrain", partial(retrainer.begin, due), False)
    _tell_failures(home, "", whole)
    with suppress(OSError):  # a figure for the metrics; the alerts say it too
        note(home.path, {loop: count for loop in done if (count := len(set_aside(home.path, loop)))})
    whole.run("tell state", lambda: _tell_state(home, done, len(whole.failed)), None)
    for name, each in due.items() if retrainer is None else ():
        renewed = partial(home.ledger.lock, "tend", owner, LEASE_SECONDS)
        whole.run(f"retrain {name}", partial(Retrainer(home).run, name, each, LEASE_SECONDS / 3, renewed), None)
    return Round(loops=done, failed=[*whole.failed, *(problem for each in done.values() for problem in each.failed)])


def _due(records: Mapping[str, LoopRecord], done: Mapping[str, Upkeep]) -> dict[str, Due]:
    """The loops that have a reason to retrain, and a file."""
    found = {}
    for name, each in done.items():
        if each.watched.trigger is not None and records[name].file:
            found[name] = Due(records[name].file, each.watched.trigger, limit_s(recorded_loop(records[name])))
    return found


def _tell_state(home: Home, done: Mapping[str, Upkeep], failed: int) -> None:
    """Publish the result of this round to the workers, for the metrics."""
    folder = home.folder("run")
    before = read_upkeep_state(folder)
    told = dict(islice(done.items(), MAX_LOOPS))
    windows = {name: state.windows for name, state in before.loops.items()} if before is not None else {}
    states = {name: _loop_state(home, name, each, windows.get(name, 0)) for name, each in told.items()}
    alerts = _by_severity(home, "")
    at = home.clock.now().timestamp()
    write_upkeep_state(folder, UpkeepState(at=at, loops=states, alerts=alerts, failed=failed))


def _by_severity(home: Home, loop: str) -> dict[str, int]:
    return dict(Counter(str(alert.severity) for alert in open_alerts(home, loop)))


def _loop_state(home: Home, loop: str, done: Upkeep, windows: int) -> LoopState:
    window = home.ledger.latest(Window, loop=loop)
    quality = home.ledger.latest(Quality, loop=loop)
    standing, alerts = home.ledger.latest(Standing, loop=loop), _by_severity(home, loop)
    known = standing.record if standing is not None else None
    judged = {
        "monitor": monitored(window.record if window is not None else None, known, sum(alerts.values())),
        "business": earned(known.worth if known is not None else None, done.value, rule_since(home, loop)),
    }
    return LoopState(
        windows=windows + len(done.watched.windows),
        window_end=window.record.end.timestamp() if window is not None else 0.0,
        state=window.record.state if window is not None else "no data",
        drifted=len(window.record.drifted) if window is not None else 0,
        quality=quality.record.state if quality is not None else "no data",
        alerts=alerts,
        failed=len(done.failed),
        stages={stage: each.state for stage, each in judged.items()} if serving(home, loop) is not None else {},
    )


def _tell_jump(home: Home, why: str) -> Problem:
    """Alert, once, that the clock jumped, and close the alert once it counts again."""
    entry = home.ledger.latest(Alert, loop="", key=JUMPED)
    is_open = entry is not None and entry.record.state == "open"
    if why and not is_open:
        raise_alert(
            home, "", JUMPED, severity="critical", title="The clock jumped; upkeep waits", detail=why, holds_releases=True
        )
    elif is_open and not why:
        close_alert(home, "", JUMPED, detail="the time of day has held")
        send(home, "")
    return Problem(where="clock", what=why)


def _tend_loop(home: Home, name: str, record: LoopRecord, now: datetime, events: Events, *, judged: bool) -> Upkeep:
    """One loop's round: all its steps, also after failures."""
    attempts, result = Attempts(name), Upkeep()
    loop = attempts.run("read declaration", lambda: recorded_loop(record), None)
    if loop is not None and attempts.run("find tables", lambda: _at_hand(home, loop), home.lake.exists(f"predictions.{name}")):
        attempts.run("feed context", lambda: _feed(home, loop), None)
        attempts.run("begin events", lambda: events.begin(name), None)
        result = attempts.run("upkeep", lambda: upkeep(home, loop, until=now, attempts=attempts, judged=judged), result)
        told = attempts.run("send events", lambda: _tell_events(home, name, events), 0)
        result = msgspec.structs.replace(result, events=told)
    _tell_failures(home, name, attempts)
    return msgspec.structs.replace(result, failed=attempts.failed)


def _at_hand(home: Home, loop: Loop) -> bool:
    """True; raises Damaged where the lake lacks a table that the ledger knows.

    Where it has no predictions either, it is not the lake of this ledger: nothing is committed to it, and no window closed as "no data".
    """
    for table in loop.tables:
        require_rows(home, table)
    return True


def _tell_failures(home: Home, loop: str, attempts: Attempts) -> None:
    """Alert once on the steps that fail, until all go through again. An alert that cannot be raised is in the log."""
    title = f"Upkeep fails: {', '.join(attempts.steps)}"[:200]
    try:
        before = home.ledger.latest(Alert, loop=loop, key=FAILING)
        is_open = before is not None and before.record.state == "open"
        if attempts.failed and (before is None or not is_open or before.record.title != title):
            for error in attempts.errors:
                LOG.error("upkeep of %s failed", loop or "this installation", exc_info=error)
            detail = "; ".join(f"{problem.where}: {problem.what}" for problem in attempts.failed)
            raise_alert(home, loop, FAILING, severity="critical", title=title, detail=detail, holds_releases=True)
        elif is_open and not attempts.failed:
            close_alert(home, loop, FAILING, detail="every step went through")
            send(home, loop)
    except LedgerUnavailable:
        raise
    except Exception:
        LOG.exception("no alert could be raised that upkeep of %s fails", loop or "this installation")


def _tell_events(home: Home, loop: str, events: Events) -> int:
    """Send a loop's predictions as events, and raise or close the alert on failed deliveries; returns the number sent."""
    rounds = [told for told in (events.tell(loop), events.tell_releases(loop)) if told is not None]
    if not rounds:
        return 0
    told = rounds[-1]
    entry = home.ledger.latest(Alert, loop=loop, key=UNTOLD)
    alarmed = entry is not None and entry.record.state == "open"
    if told.trouble and not alarmed:
        raise_alert(home, loop, UNTOLD, severity="warning", title="Predictions are not told as events", detail=told.trouble)
    elif alarmed and not told.trouble and close_alert(home, loop, UNTOLD, detail="they are told again") is not None:
        send(home, loop)
    return sum(each.events for each in rounds)
