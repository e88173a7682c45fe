"""Loops at a glance, worst first and a page at a time.

However many loops there are, a page takes the same number of statements of the ledger, and what one loop shows is bounded.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import msgspec

from loopwright.base.errors import Damaged, LedgerUnavailable, UsageError
from loopwright.base.holder import Holder
from loopwright.base.text import count
from loopwright.records.attempts import Attempts
from loopwright.records.conditions import NOTHING_MEASURED, Judged, Standing, counted_from, earned, monitored, worth_of
from loopwright.records.declarations import Value
from loopwright.records.entries import Record
from loopwright.records.evaluation import Leaderboard
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import STAGES, LoopRecord, Stage, Step, Turn
from loopwright.records.windows import Alert, ValueWindow, Window
from loopwright.stores.home import Home
from loopwright.stores.windows import newest_ended
from loopwright.tasks.plausibility import too_good
from loopwright.verbs.results import FleetStatus, LoopStatus, Retraining, Running, StageState, Status

if TYPE_CHECKING:
    from loopwright.stores.ledger import Entry

W = TypeVar("W", Window, ValueWindow)

_Live = tuple[Judged, dt.datetime | None]
"""What is known of a stage while the loop serves, beyond what its turns said, and since when."""

PAGE = 50
"""Loops on a page."""

TURNS = 100
"""Turns of a loop that are looked at; older ones are counted."""


class _TurnState(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = Turn.kind
    state: str


class _AlertState(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = Alert.kind
    severity: str
    state: str


class _WindowState(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = Window.kind
    state: str


def status(home: Home, *, page: int = 1, all: bool = False) -> Status:
    """Every loop and its six stages at a glance, worst first, 50 at a time.

    Args:
        page: which page of the loops.
        all: every loop, however long that takes.
    """
    from loopwright import __version__

    names = worst_first(home)
    pages = 1 if all else max(1, -(-len(names) // PAGE))
    if not 1 <= page <= pages:
        raise UsageError(f"no page {page}: there {'is 1 page' if pages == 1 else f'are {pages} pages'} of {PAGE} loops at most")
    shown = names if all else names[(page - 1) * PAGE : page * PAGE]
    return Status(
        version=__version__,
        home=str(home.path),
        ledger=home.settings.ledger_url.split("://")[0].split("+")[0],
        loops=[s for i in range(0, len(shown), PAGE) for s in statuses(home, shown[i : i + PAGE])],
        server=_server(home),
        total=len(names),
        page=page,
        pages=pages,
        open_alerts=_open(home.ledger.newest(Alert, loops=[""], per="key")),
    )


def statuses(home: Home, loops: Sequence[str]) -> list[LoopStatus]:
    """Loops; those whose records cannot be read keep nobody from seeing the others."""
    try:
        return loops_status(home, loops)
    except LedgerUnavailable:
        raise
    except Exception:  # noqa: BLE001  # whatever is wrong is told of the loop that it is wrong with
        return [_status_or_trouble(home, loop) for loop in loops]


def _status_or_trouble(home: Home, loop: str) -> LoopStatus:
    attempts = Attempts(loop)
    found = attempts.run("status", lambda: loops_status(home, [loop])[0], None)
    if found is not None:
        return found
    state = StageState(stage="scope", state="alert", detail="cannot be read", at=None)
    return LoopStatus(
        name=loop,
        problem="",
        stages=[msgspec.structs.replace(state, stage=stage) for stage in STAGES],
        serving="",
        candidate="",
        since=None,
        packages_served=[],
        turns=0,
        retrainings=[],
        predictions=0,
        last_prediction=None,
        open_alerts=[],
        trouble=attempts.failed,
    )


def _open(alerts: "Sequence[Entry[Alert]]") -> list[Alert]:
    """Those that are open, oldest first; `alerts` newest first."""
    return [entry.record for entry in reversed(alerts) if entry.record.state == "open"]


def worst_first(home: Home) -> list[str]:
    """The names of all loops: those with critical alerts, with other alerts, with a failed turn or drift, to watch, the rest.

    Where a record of these cannot be read, they come by name.
    """
    try:
        return sorted(home.ledger.loops(LoopRecord), key=_rank(home))
    except Damaged:
        return home.ledger.loops(LoopRecord)


def _rank(home: Home) -> Callable[[str], tuple[int, int, int, int, str]]:
    ledger = home.ledger
    critical: dict[str, int] = defaultdict(int)
    alerts: dict[str, int] = defaultdict(int)
    for entry in ledger.newest(_AlertState, per="key"):
        if entry.record.state == "open":
            alerts[entry.loop] += 1
            critical[entry.loop] += entry.record.severity == "critical"
    bad = {e.loop for e in ledger.newest(_TurnState) if e.record.state == "failed"}
    windows = {e.loop: e.record.state for e in ledger.newest(_WindowState)}
    watch = {"drift": -2, "watch": -1, "no data": -1}

    def rank(loop: str) -> tuple[int, int, int, int, str]:
        return -critical[loop], -alerts[loop], -(loop in bad), watch.get(windows.get(loop, ""), 0), loop

    return rank


class _ServedBy(msgspec.Struct):
    """The process that wrote `serve.json`: its number alone may be another one's by now."""

    holder: Holder


def _server(home: Home) -> Running | None:
    """The server over this home, as it says in `serve.json`, unless it has gone without taking that away."""
    try:
        said = (home.path / "serve.json").read_bytes()
        found, by = msgspec.json.decode(said, type=Running), msgspec.json.decode(said, type=_ServedBy)
    except (OSError, msgspec.DecodeError):
        return None
    if not by.holder.boot:  # the system tells no more than the process
        return found if Path(f"/proc/{found.pid}").exists() else None
    return found if by.holder.here and not by.holder.dead else None


def loops_status(home: Home, loops: Sequence[str]) -> list[LoopStatus]:
    """Loops that the ledger knows, each with its six stages, who serves, what happened; in that order."""
    from loopwright.stores.ledger.store import keys

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
    boards = _by_loop(ledger.newest(Leaderboard, loops=loops, each=3))  # a turn puts one without its fleet first
    return [
        _loop_status(
            home,
            loop,
            declared[loop],
            turns=_newest_of_each(turns[loop]),
            turn_count=len(counted[loop]),
            steps={e.record.stage: e for e in reversed(steps[loop])},
            serving=states.get(loop),
            packages=packages[loop],
            alerts=_open(alerts[loop]),
            window=windows.get(loop),
            value=values.get(loop),
            standing=standings.get(loop),
            boards=[e.record for e in boards[loop]],
        )
        for loop in loops
    ]


def _ended(home: Home, kind: type[W], loops: Sequence[str]) -> "dict[str, Entry[W]]":
    """The newest window of each loop that has ended; one that has not was closed while the clock was ahead, which is rare."""
    now = home.clock.now()
    found = {e.loop: e for e in home.ledger.newest(kind, loops=loops)}
    for loop in [loop for loop, entry in found.items() if entry.record.end > now]:
        before = newest_ended(home.ledger, kind, loop, now)
        found.pop(loop)
        if before is not None:
            found[loop] = before
    return found


def _by_loop(entries: "Sequence[Entry[Any]]") -> "dict[str, list[Entry[Any]]]":
    found: dict[str, list[Any]] = defaultdict(list)
    for entry in entries:
        found[entry.loop].append(entry)
    return found


def _by_loop_name(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for loop, key in pairs:
        found[loop].append(key)
    return found


def _newest_of_each(entries: "list[Entry[Turn]]") -> "list[Entry[Turn]]":
    """One entry per turn, the newest, oldest turn first; `entries` newest first."""
    newest = list({entry.record.turn: entry for entry in reversed(entries)}.values())
    return sorted(newest, key=lambda entry: entry.sequence)


def _loop_status(
    home: Home,
    loop: str,
    declared: LoopRecord,
    *,
    turns: "list[Entry[Turn]]",
    turn_count: int,
    steps: "dict[Stage, Entry[Step]]",
    serving: ReleaseState | None,
    packages: list[str],
    alerts: list[Alert],
    window: "Entry[Window] | None",
    value: "Entry[ValueWindow] | None",
    standing: "Entry[Standing] | None",
    boards: list[Leaderboard],
) -> LoopStatus:
    from loopwright.deploy.serving.heartbeat import workers
    from loopwright.records.declarations import recorded_loop
    from loopwright.stores.prediction_log.damage import set_aside
    from loopwright.stores.prediction_log.summary import summary

    attempts = Attempts(loop)
    attempts.run("declaration", lambda: recorded_loop(declared), None)
    nothing: tuple[int, dt.datetime | None] = (0, None)
    count, last = attempts.run("predictions", lambda: summary(home, loop), nothing)
    running = next((e for e in reversed(turns) if e.record.state == "running"), None)
    package = serving.champion.package if serving else ""
    made = attempts.run("package", lambda: _made(home, package) if package else None, None)
    alone = serving is not None and serving.champion.role == "heuristic"
    rule = counted_from(serving) if serving is not None and (alone or (made is not None and made.phase == 1)) else None
    live: dict[Stage, _Live] = (
        {"deploy": _deploy(serving, steps.get("deploy"), count, last)} if serving or "deploy" in steps else {}
    )
    leaks = made.leaks if made is not None else []
    if "develop" in steps and (leaks or (boards and boards[0].leak_suspected)):
        serves = f"; package {package[:12]}, which serves, is too good to be true: {'; '.join(leaks)}" if leaks else ""
        live["develop"] = Judged("watch", steps["develop"].record.summary + serves), steps["develop"].at
    if serving or window or alerts or "monitor" in steps:
        live["monitor"] = _monitor(window, standing, len(alerts))
    if serving or value or "business" in steps:
        live["business"] = _business(declared, value, standing, rule, _plan(steps.get("business"), package))
    stages = [_stage(stage, steps.get(stage), live.get(stage), running) for stage in STAGES]
    return LoopStatus(
        name=loop,
        problem=declared.declaration["scope"]["problem"],
        stages=[_troubled(stage, attempts) for stage in stages],
        serving=package,
        candidate=(made.candidate if made is not None else "") + (", its heuristic alone" if alone else ""),
        since=serving.since if serving else None,
        packages_served=packages,
        turns=turn_count,
        retrainings=_retrainings(turns, set(packages)),
        predictions=count,
        last_prediction=last,
        open_alerts=alerts,
        fleet=_fleet(boards, serving),
        damaged=set_aside(home.path, loop),
        lagging=[w for w in workers(home.path, serving) if w.state in ("lags", "refuses", "down")] if serving else [],
        trouble=attempts.failed,
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
    """A stage is not well where what it shows cannot be read: the declaration (scope), the package or the predictions (deploy)."""
    steps = zip(attempts.steps, attempts.failed, strict=True)
    trouble = [p.what for step, p in steps if stage.stage == ("scope" if step == "declaration" else "deploy")]
    return msgspec.structs.replace(stage, state="alert", detail="; ".join(trouble)) if trouble else stage


def _fleet(boards: list[Leaderboard], serving: ReleaseState | None) -> FleetStatus | None:
    """The fleet of a loop; None where it has none and never had."""
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


def _retrainings(turns: "list[Entry[Turn]]", released: set[str]) -> list[Retraining]:
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
    """Whether a turn trained nothing. Those of earlier versions do not say it, but for what their winner was."""
    return turn.ended == "serves already" if turn.reused is None else turn.reused


def _stage(
    stage: Stage,
    step: "Entry[Step] | None",
    live: _Live | None,
    running: "Entry[Turn] | None",
) -> StageState:
    if step is not None and step.record.state == "running" and running is not None and running.record.turn == step.record.turn:
        return StageState(stage=stage, state="running", detail=step.record.summary, at=step.at)
    if step is not None and step.record.state == "failed":
        return StageState(stage=stage, state="alert", detail=step.record.summary, at=step.at)
    if live is not None:
        (state, detail), at = live
        return StageState(stage=stage, state=state, detail=detail, at=at or (step.at if step is not None else None))
    if step is None:
        return StageState(stage=stage, state="not yet", detail="no turn has reached this stage", at=None)
    return StageState(stage=stage, state="ok", detail=step.record.summary, at=step.at)


def _deploy(serving: ReleaseState | None, step: "Entry[Step] | None", predictions: int, last: dt.datetime | None) -> _Live:
    refused = step is not None and bool(step.record.output.get("reasons")) and not step.record.output.get("released")
    if serving is None:
        return Judged("watch" if refused else "not yet", step.record.summary if step is not None else "nothing serves"), None
    detail = f"package {serving.champion.package[:12]} serves since {serving.since:%Y-%m-%d %H:%M} UTC; {count(predictions, 'prediction')}"
    if step is not None and refused and step.at > serving.since:
        return Judged("watch", f"{detail}; {step.record.summary}"), step.at
    return Judged("ok", detail), last or serving.since


def _monitor(window: "Entry[Window] | None", standing: "Entry[Standing] | None", alerts: int) -> _Live:
    judged = monitored(window.record if window else None, standing.record if standing else None, alerts)
    return judged, window.at if window else None


def _plan(step: "Entry[Step] | None", serving: str) -> str:
    """What the newest turn expects of its winner, and whether that serves (earlier versions do not say of which package)."""
    if step is None:
        return ""
    return step.record.summary + ("" if step.record.output.get("package", serving) == serving else ", and does not serve")


def _business(
    declared: LoopRecord,
    value: "Entry[ValueWindow] | None",
    standing: "Entry[Standing] | None",
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
