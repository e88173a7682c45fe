"""Loops at a glance, worst first and a page at a time.

A page takes the same number of ledger statements for any number of loops, and what one loop shows is bounded.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from loopwright.base.errors import LedgerUnavailable
from loopwright.base.text import count
from loopwright.deploy.serving.heartbeat import WorkerState, workers
from loopwright.deploy.strategies import new_package, rules_of
from loopwright.records.attempts import Attempts
from loopwright.records.conditions import (
    NOTHING_MEASURED,
    Condition,
    Judged,
    Standing,
    counted_from,
    earned,
    framed,
    monitored,
    worth_of,
)
from loopwright.records.declarations import Loop, Value, recorded_loop
from loopwright.records.entries import Entry, Problem
from loopwright.records.evaluation import Leaderboard
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import STAGES, LoopRecord, Stage, Step, Turn
from loopwright.records.verdicts import Verdict, silent_since
from loopwright.records.windows import Alert, ValueWindow, Window
from loopwright.stores.home import Home
from loopwright.stores.ledger.store import keys
from loopwright.stores.prediction_log.damage import set_aside
from loopwright.stores.prediction_log.summary import summary
from loopwright.stores.turn_lease import turn_holder
from loopwright.stores.windows import newest_ended
from loopwright.tasks.plausibility import too_good
from loopwright.verbs.known_loop import known_loop

W = TypeVar("W", Window, ValueWindow)

_Live = tuple[Judged, dt.datetime | None]
"""State of a stage while the loop serves, from sources other than its turns, and since when."""

TURNS = 100
"""Turns of a loop that are looked at; older ones are counted."""


class StageState(msgspec.Struct, frozen=True, kw_only=True):
    """Status of one stage: `state` in a word, `detail` in a sentence, `at` the time of its last change."""

    stage: Stage
    state: Condition
    detail: str
    at: datetime | None


class Retraining(msgspec.Struct, frozen=True, kw_only=True):
    """One training turn after the first: its time and cause, whether its winner was released, and why not (`refused`)."""

    turn: str
    at: datetime
    cause: str
    why: str
    package: str
    released: bool
    refused: list[str] = []

    @property
    def result(self) -> str:
        """The result for its winner, in words."""
        return "released" if self.released else f"not released{': ' if self.refused else ''}{'; '.join(self.refused)}"


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet of a loop: the packages that serve by segment of column `by`, and how its newest turn judged it."""

    by: str
    serving: dict[str, str]
    judged: int
    verdict: str


class LoopStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One loop: its six stages, its release, recent events; retrainings of the last hundred turns only."""

    name: str
    problem: str = ""
    stages: list[StageState]
    serving: str = ""
    candidate: str = ""
    since: datetime | None = None
    packages_served: list[str] = []
    turns: int = 0
    retrainings: list[Retraining] = []
    predictions: int = 0
    last_prediction: datetime | None = None
    open_alerts: list[Alert] = []
    fleet: FleetStatus | None = None
    lagging: list[WorkerState] = []
    """Workers on this machine that serve another release than the declared one, or could not switch to it."""
    damaged: list[str] = []
    """Segments of the prediction log that were damaged or missing, and are in quarantine for inspection."""
    errors: list[Problem] = []
    """Records that could not be read; figures from them are 0 or empty, and mean nothing."""


def loop_status(home: Home, loop: str) -> LoopStatus:
    """The status of one loop: its six stages, its release, recent events."""
    if home.ledger.latest(LoopRecord, loop=loop) is None:
        known_loop(home, loop)
    return statuses(home, [loop])[0]


def statuses(home: Home, loops: Sequence[str]) -> list[LoopStatus]:
    """The status of loops; unreadable records of one loop do not affect the others."""
    try:
        return loops_status(home, loops)
    except LedgerUnavailable:
        raise
    except Exception:  # noqa: BLE001  # any error is reported as that loop's
        return [_status_or_trouble(home, loop) for loop in loops]


def _status_or_trouble(home: Home, loop: str) -> LoopStatus:
    attempts = Attempts(loop)
    found = attempts.run("status", lambda: loops_status(home, [loop])[0], None)
    if found is not None:
        return found
    state = StageState(stage="scope", state="alert", detail="cannot be read", at=None)
    stages = [msgspec.structs.replace(state, stage=stage) for stage in STAGES]
    return LoopStatus(name=loop, stages=stages, errors=attempts.failed)


def open_alerts(alerts: Sequence[Entry[Alert]]) -> list[Alert]:
    """Open alerts, oldest first; `alerts` is newest first."""
    return [entry.record for entry in reversed(alerts) if entry.record.state == "open"]


def loops_status(home: Home, loops: Sequence[str]) -> list[LoopStatus]:
    """The status of loops in the ledger, in this order."""
    ledger = home.ledger
    declared = {e.loop: e.record for e in ledger.newest(LoopRecord, loops=loops)}
    turns = _by_loop(ledger.newest(Turn, loops=loops, each=2 * TURNS))
    counted = _by_loop_name(keys(ledger, Turn, loops))
    steps = _by_loop(ledger.newest(Step, loops=loops, each=5 * 2 * len(STAGES)))
    states = {e.loop: e.record for e in ledger.newest(ReleaseState, loops=loops)}
    packages = _by_loop_name(keys(ledger, ReleaseState, loops))
    alerts = _by_loop(ledger.newest(Alert, loops=loops, per="key"))
    windows, values = _ended(home, Window, loops), _ended(home, ValueWindow, loops)
    standings = {e.loop: e for e in ledger.newest(Standing, loops=loops)}
    under_way = [loop for loop, state in states.items() if state.under_way is not None]
    verdicts = {e.loop: e.record for e in ledger.newest(Verdict, loops=under_way)} if under_way else {}
    boards = _by_loop(ledger.newest(Leaderboard, loops=loops, each=3))  # a turn puts one without its fleet first
    return [
        _loop_status(
            home,
            loop,
            _LoopRecords(
                declared=declared[loop],
                turns=_newest_of_each(turns[loop]),
                turn_count=len(counted[loop]),
                steps={e.record.stage: e for e in reversed(steps[loop])},
                serving=states.get(loop),
                silent_since=_silent_since(home, states.get(loop), verdicts.get(loop)),
                packages=packages[loop],
                alerts=open_alerts(alerts[loop]),
                window=windows.get(loop),
                value=values.get(loop),
                standing=standings.get(loop),
                boards=[e.record for e in boards[loop]],
            ),
        )
        for loop in loops
    ]


def _ended(home: Home, kind: type[W], loops: Sequence[str]) -> dict[str, Entry[W]]:
    """The newest ended window of each loop; windows that end in the future were closed while the clock was ahead, which is rare."""
    now = home.clock.now()
    found = {e.loop: e for e in home.ledger.newest(kind, loops=loops)}
    for loop in [loop for loop, entry in found.items() if entry.record.end > now]:
        before = newest_ended(home.ledger, kind, loop, now)
        found.pop(loop)
        if before is not None:
            found[loop] = before
    return found


def _by_loop(entries: Sequence[Entry[Any]]) -> dict[str, list[Entry[Any]]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for entry in entries:
        found[entry.loop].append(entry)
    return found


def _by_loop_name(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for loop, key in pairs:
        found[loop].append(key)
    return found


def _newest_of_each(entries: list[Entry[Turn]]) -> list[Entry[Turn]]:
    """One entry per turn, the newest, oldest turn first; `entries` newest first."""
    newest = list({entry.record.turn: entry for entry in reversed(entries)}.values())
    return sorted(newest, key=lambda entry: entry.sequence)


class _LoopRecords(NamedTuple):
    """The ledger's records of a loop; turns oldest first."""

    declared: LoopRecord
    turns: list[Entry[Turn]]
    turn_count: int
    steps: dict[Stage, Entry[Step]]
    serving: ReleaseState | None
    silent_since: dt.datetime | None
    packages: list[str]
    alerts: list[Alert]
    window: Entry[Window] | None
    value: Entry[ValueWindow] | None
    standing: Entry[Standing] | None
    boards: list[Leaderboard]


def _loop_status(home: Home, loop: str, known: _LoopRecords) -> LoopStatus:
    serving, steps, turns = known.serving, known.steps, known.turns
    attempts = Attempts(loop)
    declared = attempts.run("declaration", lambda: recorded_loop(known.declared), None)
    nothing: tuple[int, dt.datetime | None] = (0, None)
    count, last = attempts.run("predictions", lambda: summary(home, loop), nothing)
    running = next((e for e in reversed(turns) if e.record.state == "running"), None)
    alive = running is not None and attempts.run("turn", lambda: turn_holder(home.ledger, loop), None) is not None
    package = serving.champion.package if serving else ""
    made = attempts.run("package", lambda: _made(home, package) if package else None, None)
    alone = serving is not None and serving.champion.heuristic
    rule = counted_from(serving) if serving is not None and (alone or (made is not None and made.phase == 1)) else None
    live = _framed(declared, steps.get("scope"))
    if serving or "deploy" in steps:
        live["deploy"] = _deploy(serving, steps.get("deploy"), count, last, known.silent_since)
    leaks = made.leaks if made is not None else []
    if "develop" in steps and (leaks or (known.boards and known.boards[0].leak_suspected)):
        serves = f"; package {package[:12]}, which serves, is too good to be true: {'; '.join(leaks)}" if leaks else ""
        live["develop"] = Judged("watch", steps["develop"].record.summary + serves), steps["develop"].at
    if serving or known.window or known.alerts or "monitor" in steps:
        live["monitor"] = _monitor(known.window, known.standing, len(known.alerts))
    if serving or known.value or "business" in steps:
        live["business"] = _business(known.declared, known.value, known.standing, rule, _plan(steps.get("business"), package))
    stages = [_stage(stage, steps.get(stage), live.get(stage), running, alive=alive) for stage in STAGES]
    return LoopStatus(
        name=loop,
        problem=known.declared.declaration["scope"]["problem"],
        stages=[_troubled(stage, attempts) for stage in stages],
        serving=package,
        candidate=(made.candidate if made is not None else "") + (", its heuristic alone" if alone else ""),
        since=serving.since if serving else None,
        packages_served=known.packages,
        turns=known.turn_count,
        retrainings=_retrainings(turns, set(known.packages)),
        predictions=count,
        last_prediction=last,
        open_alerts=known.alerts,
        fleet=_fleet(known.boards, serving),
        damaged=set_aside(home.path, loop),
        lagging=[w for w in workers(home.path, serving) if w.state in ("lags", "refuses", "down")] if serving else [],
        errors=attempts.failed,
    )


class _ServingPackage(NamedTuple):
    """The package that serves: `leaks` say why it is too good to be true."""

    candidate: str
    phase: int
    leaks: list[str]


def _made(home: Home, digest: str) -> _ServingPackage:
    package = home.packages.partly(digest, "evaluation.json")
    manifest = package.manifest
    return _ServingPackage(manifest.candidate, manifest.phase, too_good(package.evaluation, manifest.output.task))


def _troubled(stage: StageState, attempts: Attempts) -> StageState:
    """A stage is in alert if its data cannot be read: the declaration (scope), the package or the predictions (deploy)."""
    steps = zip(attempts.steps, attempts.failed, strict=True)
    trouble = [p.what for step, p in steps if stage.stage == ("scope" if step == "declaration" else "deploy")]
    return msgspec.structs.replace(stage, state="alert", detail="; ".join(trouble)) if trouble else stage


def _fleet(boards: list[Leaderboard], serving: ReleaseState | None) -> FleetStatus | None:
    """The fleet of a loop; None if it never had one."""
    board = next((board.fleet for board in boards if board.fleet is not None), None)
    segments = serving.segments if serving is not None else {}
    if board is None and not segments:
        return None
    return FleetStatus(
        by=serving.fleet if serving is not None and segments else board.by if board is not None else "",
        serving=segments,
        judged=sum(1 for m in board.segments if m.package) if board is not None else 0,
        verdict=board.verdict if board is not None else "",
    )


def _retrainings(turns: list[Entry[Turn]], released: set[str]) -> list[Retraining]:
    """The turns that trained. A winner that serves already was released by its turn, which was interrupted before it could say so."""
    return [
        Retraining(
            turn=e.record.turn,
            at=e.at,
            cause=e.record.cause,
            why=e.record.why,
            package=e.record.result,
            released=e.record.ended in ("released", "serves already") or (not e.record.ended and e.record.result in released),
            refused=e.record.reasons,
        )
        for e in turns
        if e.record.cause != "first" and e.record.state == "done" and not _reused(e.record)
    ]


def _reused(turn: Turn) -> bool:
    """Whether a turn trained nothing. Turns of earlier versions record it only as the state of their winner."""
    return turn.ended == "serves already" if turn.reused is None else turn.reused


def _stage(
    stage: Stage, step: Entry[Step] | None, live: _Live | None, running: Entry[Turn] | None, *, alive: bool
) -> StageState:
    if step is not None and step.record.state == "running" and running is not None and running.record.turn == step.record.turn:
        detail = (
            step.record.summary if alive else f"{step.record.summary}, and its process has ended: `loopwright run` resumes it"
        )
        return StageState(stage=stage, state="running" if alive else "watch", detail=detail, at=step.at)
    if step is not None and step.record.state == "failed":
        return StageState(stage=stage, state="alert", detail=step.record.summary, at=step.at)
    if live is not None:
        (state, detail), at = live
        return StageState(stage=stage, state=state, detail=detail, at=at or (step.at if step is not None else None))
    if step is None:
        return StageState(stage=stage, state="not yet", detail="no turn has reached this stage", at=None)
    return StageState(stage=stage, state="ok", detail=step.record.summary, at=step.at)


def _silent_since(home: Home, state: ReleaseState | None, verdict: Verdict | None) -> dt.datetime | None:
    mine = verdict is not None and state is not None and verdict.generation == state.generation
    return silent_since(state, verdict if mine else None, home.clock.now()) if state is not None else None


def _deploy(
    serving: ReleaseState | None,
    step: Entry[Step] | None,
    predictions: int,
    last: dt.datetime | None,
    silent: dt.datetime | None = None,
) -> _Live:
    refused = step is not None and bool(step.record.output.get("reasons")) and not step.record.output.get("released")
    if serving is None:
        return Judged("watch" if refused else "not yet", step.record.summary if step is not None else "nothing serves"), None
    detail = f"package {serving.champion.package[:12]} serves since {serving.since:%Y-%m-%d %H:%M} UTC; {count(predictions, 'prediction')}"
    if (stage := serving.under_way) is not None:
        new = "" if new_package(serving) == serving.champion.package else f" of {new_package(serving)[:12]}"
        detail += f"; release under way: {rules_of(stage).words(stage)}{new}, stage {serving.stage + 1} of {len(serving.plan)}"
    if silent is not None:
        return Judged(
            "alert", f"{detail}; no verdict since {silent:%Y-%m-%d %H:%M} UTC, so it holds: `loopwright tend` judges it"
        ), silent
    if step is not None and refused and step.at > serving.since:
        return Judged("watch", f"{detail}; {step.record.summary}"), step.at
    return Judged("ok", detail), last or serving.since


def _framed(loop: Loop | None, step: Entry[Step] | None) -> dict[Stage, _Live]:
    return {} if loop is None or step is None else {"scope": (framed(loop.scope), step.at)}


def _monitor(window: Entry[Window] | None, standing: Entry[Standing] | None, alerts: int) -> _Live:
    judged = monitored(window.record if window else None, standing.record if standing else None, alerts)
    return judged, window.at if window else None


def _plan(step: Entry[Step] | None, serving: str) -> str:
    """The newest turn's expectation of its winner, and whether the winner does not serve (earlier versions do not name the package)."""
    if step is None:
        return ""
    return step.record.summary + ("" if step.record.output.get("package", serving) == serving else ", and does not serve")


def _business(
    declared: LoopRecord,
    value: Entry[ValueWindow] | None,
    standing: Entry[Standing] | None,
    rule: dt.datetime | None,
    plan: str,
) -> _Live:
    """By the money over the horizon; by the newest account alone where upkeep has not added it up yet (a home of before)."""
    newest = value.record if value else None
    worth = standing.record.worth if standing else None
    if newest is not None and (worth is None or worth.end > newest.end):
        worth = worth_of([newest])
    worth_at = value.at if value else None
    judged = earned(worth, msgspec.convert(declared.declaration["scope"].get("value", {}), Value), rule)
    if judged.detail == NOTHING_MEASURED and plan:
        judged = Judged(judged.state, f"{judged.detail}; {plan}")
    return judged, worth_at
