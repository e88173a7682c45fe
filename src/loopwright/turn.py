"""One turn of the loop: the stages in order, each step recorded, resumed after an interruption at the step it was in."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

import msgspec

from loopwright.base import failpoints
from loopwright.base.closure import closure_of
from loopwright.base.errors import LedgerUnavailable, PackageNotFound, PackageRefused, TurnRunning
from loopwright.base.ids import new_id
from loopwright.base.lock import FileLock
from loopwright.base.progress import Progress, Silent
from loopwright.base.supervision import Repeating
from loopwright.base.text import count
from loopwright.business.value import expected, money_over_heuristic
from loopwright.data.examples.build import build
from loopwright.data.examples.context import needs
from loopwright.data.examples.lineage import lineage
from loopwright.data.ingest.ingestion import put_contract
from loopwright.deploy.blocklist import bad_packages
from loopwright.deploy.gate import GateResult, Unreadable, gate, read_serving, sound
from loopwright.deploy.pending import open_pending
from loopwright.deploy.preconditions import Planned, blockers
from loopwright.deploy.releases import release, serving
from loopwright.deploy.strategies import rules_of, strategy_of
from loopwright.develop.fleet import develop_fleet
from loopwright.develop.lineage import used_by
from loopwright.develop.provenance import libraries
from loopwright.develop.train import Work, develop, prepare
from loopwright.monitor.windows import watched_columns
from loopwright.parity import parity_check
from loopwright.records.conditions import framed
from loopwright.records.declarations import Candidate, Fleet, Loop, declaration_digest, duration, model_inputs
from loopwright.records.entries import Entry
from loopwright.records.evaluation import LEAK_SUSPECTED, Leaderboard, SegmentModel
from loopwright.records.examples import Examples
from loopwright.records.package import Lineage
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import CAUSES, STAGES, Cause, LoopRecord, Stage, Step, Turn
from loopwright.scope.declare import declare
from loopwright.stores import openlineage
from loopwright.stores.examples import read_examples
from loopwright.stores.home import Home
from loopwright.stores.outcomes.rescore import SegmentPackages, segment_packages
from loopwright.stores.prediction_log.retention import retained_since
from loopwright.stores.turn_lease import LEASE_SECONDS, lease_name, turn_holder
from loopwright.tasks.plausibility import too_good
from loopwright.tasks.registry import TASKS

MAX_BOARDS = 20
"""Number of the newest leaderboards that are searched for the same inputs."""


class Turning(msgspec.Struct):
    """A running turn: shared state of its steps. `despite` is the reason for overriding the gate ("": not overridden)."""

    home: Home
    loop: Loop
    turn: str
    as_of: datetime
    refit: bool
    release: bool
    fresh: bool
    despite: str
    window: timedelta | None
    progress: Progress
    outputs: dict[str, dict[str, Any]]


def turn(
    home: Home,
    loop: Loop,
    *,
    file: str = "",
    as_of: datetime | None = None,
    until: Stage = "business",
    cause: Cause = "manual",
    why: str = "",
    refit: bool = False,
    release: bool = True,
    despite_guard: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> list[Step]:
    """Run the stages up to `until` on the rows known at `as_of` (now by default) and return their steps.

    An unfinished turn is resumed where it was interrupted (by a trigger only if it has the same cause and was cut off: a
    failed or stopped turn may be old), as long as none of its inputs has changed: the declaration, the code that its
    functions reach, the versions of libraries and, until candidates are trained, the rows of its tables. Otherwise, and with
    `fresh`, a new turn starts. If an earlier turn trained on the same examples with the same code, its packages are reused
    instead of training again, except with `fresh`. `refit` retrains the serving
    candidate with its hyper-parameters (and the heuristic) instead of comparing all candidates again;
    `release=False` stops before the release, `despite_guard` releases also a package that the gate refuses (recorded, with
    `why`) as long as it loads and answers. Raises the errors of the stages, after recording the failure.
    """
    progress = progress or Silent()
    with _alone(home, loop.name):
        state = _begin(
            home,
            loop,
            file=file,
            as_of=as_of,
            cause=cause,
            why=why,
            refit=refit,
            release=release,
            despite=why if despite_guard else "",
            fresh=fresh,
            progress=progress,
        )
        return _run(state, until)


@contextmanager
def _alone(home: Home, loop: str) -> Iterator[None]:
    """Hold the loop's turn lock: one turn at a time in this home, and among all homes that share the ledger.

    Within a home a file lock decides, which the kernel frees when its holder is killed, so that a turn can be resumed at
    once; between homes and machines a lease in the ledger does, renewed while the turn runs.
    """
    name = lease_name(loop)
    owner = f"{socket.gethostname()}:{home.path}"[-500:]

    def running() -> TurnRunning:
        return TurnRunning(loop, str(turn_holder(home.ledger, loop) or "another process"))

    with ExitStack() as held:
        lock = FileLock(home.folder("runs") / f"{loop}.lock")
        held.callback(lock.close)
        try:
            held.enter_context(lock.hold(0))
        except TimeoutError:
            raise running() from None
        if not home.ledger.lock(name, owner, LEASE_SECONDS):
            raise running()
        held.callback(home.ledger.unlock, name, owner)

        def renew() -> None:
            with suppress(LedgerUnavailable):  # the next time, or the lease runs out
                home.ledger.lock(name, owner, LEASE_SECONDS)

        held.callback(Repeating("lease", renew, LEASE_SECONDS / 3).start().stop)
        yield


def _begin(
    home: Home,
    loop: Loop,
    *,
    file: str,
    as_of: datetime | None,
    cause: Cause,
    why: str,
    refit: bool,
    release: bool,
    despite: str,
    fresh: bool,
    progress: Progress,
) -> Turning:
    declaration = declaration_digest(loop)
    latest = home.ledger.latest(LoopRecord, loop=loop.name)
    if latest is None or latest.record.digest != declaration or (file and latest.record.file != file):
        home.ledger.put(loop.record(file), loop=loop.name, key=loop.name)
    before = home.ledger.latest(Turn, loop=loop.name)
    window = duration(loop.retrain.window) if loop.retrain.window else None
    deciding = model_inputs(loop)
    code, used = closure_of(deciding)
    new = Turn(
        turn=new_id(home.clock.now()),
        declaration=declaration,
        model_inputs=declaration_digest(deciding),
        as_of=as_of or home.clock.now(),
        cause="first" if before is None else cause,
        why=why or CAUSES["first" if before is None else cause],
        state="running",
        result="",
        code=code,
        libraries=libraries() | used,
        backdated=as_of is not None and as_of < home.clock.now(),
    )
    if before is not None and as_of is None and before.record.as_of > new.as_of:
        progress.say(
            f"the clock says {new.as_of:%Y-%m-%d %H:%M} UTC, before the last turn ({before.record.as_of:%Y-%m-%d %H:%M}): what became"
            " known since counts as the future. If the clock is wrong, stop this turn and set it"
        )
    if before is not None and as_of is None and not fresh and _unfinished(before.record, cause):
        old, outputs = before.record, _outputs(home, loop, before.record)
        if not (why_not := _changed(home, loop, old, new, outputs)):
            progress.say(f"resuming turn {old.turn[:12]} after {', '.join(outputs) or 'its beginning'}")
            if more := _rows_since(home, loop, outputs):
                progress.say(f"not in turn {old.turn[:12]}: {more}; `loopwright run LOOP --fresh` begins a new turn with them")
            home.ledger.put(msgspec.structs.replace(old, state="running"), loop=loop.name, key=old.turn)
            refit = bool(outputs.get("scope", {}).get("refit", refit))
            return Turning(home, loop, old.turn, old.as_of, refit, release, fresh, despite, window, progress, outputs)
        progress.say(f"a new turn begins instead of resuming turn {old.turn[:12]}: {why_not}")
    home.ledger.put(new, loop=loop.name, key=new.turn)
    return Turning(home, loop, new.turn, new.as_of, refit, release, fresh, despite, window, progress, {})


def _unfinished(old: Turn, cause: Cause) -> bool:
    """Whether a turn may be resumed for this cause; never a backdated one (`--as-of`)."""
    if old.backdated:
        return False
    if cause == "manual":
        return old.state in ("running", "failed", "stopped")
    return cause == old.cause and old.state == "running"


def _outputs(home: Home, loop: Loop, old: Turn) -> dict[str, dict[str, Any]]:
    """The outputs of the completed steps of a turn, by stage."""
    steps = (entry.record for entry in home.ledger.find(Step, loop=loop.name, newest=False))
    return {step.stage: step.output for step in steps if step.turn == old.turn and step.state == "done"}


def _changed(home: Home, loop: Loop, old: Turn, new: Turn, outputs: dict[str, dict[str, Any]]) -> str:
    """The inputs of a turn that have changed since it began; empty without any."""
    if old.declaration != new.declaration:
        return "the loop's declaration has changed"
    if old.code != new.code:
        return "a constant, function or module that the loop's code uses has changed"
    if old.libraries != new.libraries:
        names = sorted({name for name, _ in old.libraries.items() ^ new.libraries.items()})
        versions = (f"{name} {old.libraries.get(name, 'none')} -> {new.libraries.get(name, 'none')}" for name in names)
        return f"library versions have changed ({', '.join(versions)})"
    trained = "develop" in outputs or home.ledger.latest(Leaderboard, loop=loop.name, key=old.turn) is not None
    return "" if trained else _rows_since(home, loop, outputs)


def _rows_since(home: Home, loop: Loop, outputs: dict[str, dict[str, Any]]) -> str:
    """Number of rows added to the loop's tables since the turn's examples were built, in words; empty without any."""
    if "data" not in outputs:
        return ""
    sources = home.ledger.get(outputs["data"]["examples"], Examples).record.sources
    before = {source.table: source.rows for source in sources}
    more = {name: home.lake.count(name) - before.get(name, 0) for name in loop.tables if home.lake.exists(name)}
    return ", ".join(f"table {name} has {count:+,} rows since its examples were built" for name, count in more.items() if count)


def _run(state: Turning, until: Stage) -> list[Step]:
    steps: list[Step] = []
    for stage in STAGES[: STAGES.index(until) + 1]:
        if stage in state.outputs:
            continue
        steps.append(_step(state, stage))
    _finish(state, "done" if until == STAGES[-1] else "stopped")
    return steps


def _finish(state: Turning, outcome: Literal["done", "stopped", "failed"]) -> None:
    entry = state.home.ledger.latest(Turn, loop=state.loop.name, key=state.turn)
    if entry is not None:
        developed, deployed = state.outputs.get("develop", {}), state.outputs.get("deploy", {})
        ended = "serves already" if deployed.get("already") else "released" if deployed.get("released") else "not released"
        done = msgspec.structs.replace(
            entry.record,
            state=outcome,
            result=developed.get("winner", ""),
            ended=ended if deployed else "",
            reasons=deployed.get("reasons", []) if ended == "not released" else [],
            reused=developed.get("reused"),
        )
        state.home.ledger.put(done, loop=state.loop.name, key=state.turn)


def _step(state: Turning, stage: Stage) -> Step:
    """Run one stage, recorded as running, then as done (or failed, and the error goes on)."""
    ledger, clock = state.home.ledger, state.home.clock
    started, tick = clock.now(), clock.monotonic()
    step = Step(
        turn=state.turn, stage=stage, state="running", started=started, seconds=0.0, summary=f"{stage} began", output={}
    )
    ledger.put(step, loop=state.loop.name, key=f"{state.turn}:{stage}")
    try:
        failpoints.hit("turn.step.began")
        summary, output = _with_openlineage(state, stage) if stage in TOLD else RUN[stage](state)
        failpoints.hit("turn.step.ran")
    except BaseException as error:
        failed = msgspec.structs.replace(step, state="failed", seconds=clock.monotonic() - tick, summary=str(error)[:500])
        ledger.put(failed, loop=state.loop.name, key=f"{state.turn}:{stage}")
        _finish(state, "failed")
        raise
    done = msgspec.structs.replace(step, state="done", seconds=clock.monotonic() - tick, summary=summary, output=output)
    ledger.put(done, loop=state.loop.name, key=f"{state.turn}:{stage}")
    state.outputs[stage] = output
    state.progress.say(f"{stage}: {BRIEFLY[stage](state, output) if stage in BRIEFLY else summary}")
    return done


def _scope(state: Turning) -> tuple[str, dict[str, Any]]:
    scope = state.loop.scope
    entry = declare(state.home, state.loop.name, scope)
    return framed(scope).detail, {"scope": entry.id, "refit": state.refit}


def _data(state: Turning) -> tuple[str, dict[str, Any]]:
    loop = state.loop
    for table in loop.tables.values():
        put_contract(state.home, table, loop=loop.name)
    examples = build(
        state.home,
        loop_name=loop.name,
        requests=loop.requests,
        context=loop.context,
        aggregates=loop.aggregates,
        outcome=loop.outcome,
        as_of=state.as_of,
        window=state.window,
        used=partial(used_columns, loop),
    )
    entry = state.home.ledger.put(examples, loop=loop.name, key=examples.digest)
    with state.home.ledger.batch():
        for source in examples.sources:
            version = f"table:{source.table}@{source.version}"
            state.home.ledger.link(version, entry.id, "joined")
            for name, sha256 in source.files.items():
                state.home.ledger.link(f"file:{sha256}:{name}"[:512], version, "ingested")
    # Not "left out": that is these and, once they are split, the examples in neither part (`rows_left_out`).
    reasons = ", ".join(f"{count:,} {why}" for why, count in examples.excluded.items() if count)
    summary = f"{count(examples.rows, 'example')}, {examples.summary}, {examples.first:%Y-%m-%d} to {examples.last:%Y-%m-%d}"
    summary += f"; {count(sum(examples.excluded.values()), 'decision')} without an example ({reasons})" if reasons else ""
    if state.window is not None and examples.last - examples.first > state.window:
        summary += (
            f"; the newest {loop.retrain.window} hold too few, or one label only: reaches back to {examples.first:%Y-%m-%d}"
        )
    if (since := retained_since(state.home, loop.name)) is not None and any(
        s.table.startswith("predictions.") for s in examples.sources
    ):
        summary += f"; predictions of before {since:%Y-%m-%d} are not kept (LOOPWRIGHT_KEEP)"
    return summary, {"examples": entry.id}


def _develop(state: Turning) -> tuple[str, dict[str, Any]]:
    home, loop = state.home, state.loop
    examples = home.ledger.get(state.outputs["data"]["examples"], Examples)
    now = serving(home, loop.name)
    parent = now.champion.package if now else ""
    if (same := _trained_before(state, examples, parent)) is not None:
        earlier, unchanged = same
        state.progress.say(f"{unchanged}, so nothing is trained; `loopwright run LOOP --fresh` trains anew")
        output = {"leaderboard": earlier.id, "winner": earlier.record.winner, "reused": True}
        return f"{unchanged}: {earlier.record.verdict}", output
    candidates, params = _candidates(state, parent)
    work = prepare(
        home,
        loop,
        examples.record,
        context=needs(loop.context, loop.aggregates),
        candidates=candidates,
        parent=parent,
        lineage=_lineage(loop),
        progress=state.progress,
    )
    entry = home.ledger.latest(Leaderboard, loop=loop.name, key=state.turn)
    if entry is None:  # else an interrupted run made it, and only segments are left to do
        found = develop(work, params=params, turn=state.turn)
        with home.ledger.batch():
            entry = home.ledger.put(found, loop=loop.name, key=state.turn)
            _learnt(home, examples.id, entry.id, [row.package for row in found.rows], parent)
        failpoints.hit("package.recorded")
    if loop.fleet is not None and entry.record.fleet is None:
        state.progress.say(_winner(state, {"leaderboard": entry.id}))
        entry = _segments(state, loop.fleet, work, entry.record, examples.id)
    board = entry.record
    summary = board.verdict if board.fleet is None else f"{board.verdict}; {board.fleet.verdict}"
    if work.partition.extended:
        summary += f"; {work.partition.extended}"
    return summary, {"leaderboard": entry.id, "winner": board.winner, "reused": False}


def _trained_before(state: Turning, examples: Entry[Examples], parent: str) -> tuple[Entry[Leaderboard], str] | None:
    """Reuse: the leaderboard of an earlier turn that trained from the same inputs, stored again for this turn, and the unchanged inputs.

    None if there is no such turn. The inputs are examples, declarations that affect the models, code and libraries, and for a refit the
    package that it refits. If a package is gone, or the winner was marked bad, training runs again.
    """
    home, loop = state.home, state.loop
    own = home.ledger.latest(Turn, loop=loop.name, key=state.turn)
    if state.fresh or own is None or home.ledger.latest(Leaderboard, loop=loop.name, key=state.turn) is not None:
        return None
    there, bad = set(home.packages.list()), bad_packages(home, loop.name)
    for entry in home.ledger.find(Leaderboard, loop=loop.name, limit=MAX_BOARDS):
        board = entry.record
        old = home.ledger.latest(Turn, loop=loop.name, key=board.turn)
        scope = home.ledger.latest(Step, loop=loop.name, key=f"{board.turn}:scope")
        if (
            old is None
            or scope is None
            or board.examples != examples.record.digest
            or _inputs(old.record) != _inputs(own.record)
        ):
            continue
        made = {row.package for row in board.rows} | set(board.fleet.serving.values() if board.fleet is not None else ())
        refit = bool(scope.record.output.get("refit"))
        if not made <= there or board.winner in bad or (board.fleet is None) != (loop.fleet is None):
            continue
        if not _readable(home, board):
            continue
        if not (parent in (board.winner, refit and home.packages.manifest(board.winner).parent) if state.refit else not refit):
            continue
        put = home.ledger.put(msgspec.structs.replace(board, turn=state.turn), loop=loop.name, key=state.turn)
        home.ledger.link(examples.id, put.id, "measured on")
        what = "nothing" if old.record.declaration == own.record.declaration else "nothing that decides the models"
        return put, f"{what} changed since the turn of {old.record.as_of:%Y-%m-%d %H:%M}"
    return None


def _readable(home: Home, board: Leaderboard) -> bool:
    """Whether the packages that a leaderboard would release exist and are undamaged."""
    try:
        for digest in {board.winner, *(board.fleet.serving.values() if board.fleet is not None else ())}:
            home.packages.read(digest, keep=())
    except (PackageNotFound, PackageRefused):
        return False
    return True


def _inputs(turn: Turn) -> tuple[Any, ...]:
    """The inputs of a turn's training in addition to its examples."""
    return turn.model_inputs, turn.code, turn.libraries


def _winner(state: Turning, output: dict[str, Any]) -> str:
    """The winner's name and the number of candidates; the full verdict is in the answer."""
    board = state.home.ledger.get(output["leaderboard"], Leaderboard).record
    name = next((row.candidate for row in board.rows if board.winner in (row.package, row.candidate)), board.winner[:12])
    return f"{name} wins, of {count(len(board.rows), 'candidate')}"


def _segments(state: Turning, fleet: Fleet, work: Work, board: Leaderboard, examples: str) -> Entry[Leaderboard]:
    """The models of the segments, each stored as soon as it is made, so that an interrupted turn resumes there."""
    home, loop = state.home, state.loop
    now = serving(home, loop.name)
    parents = now.segments if now is not None and now.fleet == fleet.by else {}

    def keep(model: SegmentModel) -> None:
        with home.ledger.batch():
            entry = home.ledger.put(model, loop=loop.name, key=state.turn)
            if model.package:
                _learnt(home, examples, entry.id, [model.package], parents.get(model.segment, ""))
                home.ledger.link(board.winner, model.package, "fleet of")

    made = [entry.record for entry in home.ledger.find(SegmentModel, loop=loop.name, key=state.turn)]
    there = {"", *home.packages.list()}
    done = {model.segment: model for model in made if model.package in there}
    found = develop_fleet(work, board, fleet, serving=parents, done=done, keep=keep)
    return home.ledger.put(msgspec.structs.replace(board, fleet=found), loop=loop.name, key=state.turn)


def _learnt(home: Home, examples: str, entry: str, packages: list[str], parent: str) -> None:
    """Link packages to the examples they learnt from and to the package they follow."""
    with home.ledger.batch():
        home.ledger.link(examples, entry, "measured on")
        for package in packages:
            home.ledger.link(examples, package, "trained on")
            if parent:
                home.ledger.link(parent, package, "parent")


def _candidates(state: Turning, parent: str) -> tuple[list[Candidate], dict[str, dict[str, Any]] | None]:
    """All candidates, or for a refit the serving one with the hyper-parameters it was found with."""
    if not state.refit or not parent:
        return state.loop.candidates, None
    package = read_serving(state.home, parent)
    if isinstance(package, Unreadable):
        state.progress.say(f"all candidates are compared instead of a refit: {package.why}")
        return state.loop.candidates, None
    manifest = package.manifest
    incumbent = [c for c in state.loop.candidates if c.name == manifest.candidate]
    return (incumbent, {manifest.candidate: manifest.params}) if incumbent else (state.loop.candidates, None)


def _deploy(state: Turning) -> tuple[str, dict[str, Any]]:
    home, loop = state.home, state.loop
    winner = home.packages.read(state.outputs["develop"]["winner"])
    now = serving(home, loop.name)
    fleet = home.ledger.get(state.outputs["develop"]["leaderboard"], Leaderboard).record.fleet
    leaks = too_good(winner.evaluation, winner.manifest.output.task)
    segments = fleet.serving if fleet is not None else {}
    if now is not None and now.champion.package == winner.digest and now.segments == segments:
        return f"package {winner.digest[:12]} serves already", {"released": True, "reasons": [], "already": True}
    own, unsound = sound(home, {segment: home.packages.read(digest) for segment, digest in segments.items()})
    for segment, why in unsound.items():
        state.progress.say(f"segment {segment}: its package is not released: {why}")
    champion = read_serving(home, now.champion.package) if now else None
    examples = home.ledger.get(state.outputs["data"]["examples"], Examples)
    result = gate(
        home,
        winner,
        scope=loop.scope,
        release=loop.release,
        serving=champion,
        examples=read_examples(home, examples.record.digest),
        segments=SegmentPackages(fleet.by, own) if fleet is not None and own else None,
        serving_segments=segment_packages(home, now),
        more=partial(parity_check, home, loop),
    )
    entry = home.ledger.put(result, loop=loop.name, key=winner.digest, links=[(winner.digest, "checked")])
    overridden = state.release and bool(state.despite) and result.may_be_overridden
    if (withheld := _withheld(state, winner.digest, now, result, overridden=overridden)) is not None:
        return withheld
    turn_entry = home.ledger.latest(Turn, loop=loop.name, key=state.turn)
    why = state.despite or (turn_entry.record.why if turn_entry else "")
    uncompared = f"cannot be compared: {champion.why}" if isinstance(champion, Unreadable) else ""
    why = f"{why} ({uncompared})" if uncompared else why
    despite = [check.name for check in result.failed]
    beside = {segment: package.digest for segment, package in own.items()}
    released = release(
        home,
        loop.name,
        winner.digest,
        strategy=strategy_of(loop),
        fleet=fleet.by if fleet else "",
        segments=beside,
        why=why,
        expected=now.generation if now is not None else 0,  # the gate took a while
        despite=despite,
    )
    home.ledger.link(entry.id, released.id, "allowed")
    fleet_text = f", and {count(len(beside), 'package')} of segments by {fleet.by}" if fleet is not None and beside else ""
    judged = f"passed {count(len(result.checks), 'check')}" if not despite else f"was refused ({', '.join(despite)})"
    stage = released.record.under_way
    begins = "serves" if stage is None else f"begins to serve: {rules_of(stage).words(stage)}"
    judged += f", {uncompared}," if uncompared else ""
    judged += f" ({'; '.join(result.unsure)})" if result.unsure else ""
    return (
        f"package {winner.digest[:12]} ({winner.manifest.candidate}) {judged} and {begins}{fleet_text}"
        + (f"; {LEAK_SUSPECTED}: {'; '.join(leaks)}" if leaks else ""),
        {"released": True, "reasons": [uncompared] if uncompared else [], "release": released.id},
    )


def _withheld(
    state: Turning, digest: str, now: ReleaseState | None, result: GateResult, *, overridden: bool
) -> tuple[str, dict[str, Any]] | None:
    """Why the package is not released, in words and as the stage's output; None if it is."""
    home, name, package = state.home, state.loop.name, f"package {digest[:12]}"
    command, passed = f"`loopwright release {name} {digest[:12]}`", f"passed {count(len(result.checks), 'check')}"
    output: dict[str, Any] = {"released": False, "reasons": []}
    if not result.passed and not overridden:
        output |= {"reasons": result.reasons, "next_step": result.next_step.replace("LOOP", name)}
        return f"{package} was not released: {'; '.join(result.reasons)}", output
    if not state.release:
        return f"{package} {passed}; not released, as asked", output
    replaced = now if not state.despite else None
    if replaced is not None and replaced.keeps_rule:
        reason = f"{replaced.by} put the heuristic into service ({replaced.why}); {command} replaces it"
        return f"{package} {passed} and was not released: {reason}", output | {"reasons": [reason]}
    if replaced is not None and replaced.action == "rollback" and state.outputs["develop"].get("reused"):
        reason = (
            f"{replaced.by} rolled back to what serves ({replaced.why}), and nothing was trained since; {command} replaces it"
        )
        return f"{package} was not released: {reason}", output | {"reasons": [reason]}
    turn_entry = home.ledger.latest(Turn, loop=name, key=state.turn)
    if replaced is not None and turn_entry is not None and turn_entry.record.backdated:
        output["next_step"] = f"{command} puts it into service"
        return f"{package} {passed}; a turn of --as-of replaces nothing that serves", output
    if not (held := blockers(planned := Planned(home, state.loop, digest, strategy_of(state.loop), now, automatic=True))):
        return None
    cause, why = (turn_entry.record.cause, turn_entry.record.why) if turn_entry is not None else ("manual", "")
    open_pending(planned, state.despite or why, held, by_hand=cause in ("first", "manual"), despite=overridden)
    output |= {"reasons": (reasons := [blocker.detail for blocker in held]), "next_step": "upkeep begins it once it may"}
    return f"{package} {passed} and waits: {'; '.join(reasons)}", output


def _monitor(state: Turning) -> tuple[str, dict[str, Any]]:
    now = serving(state.home, state.loop.name)
    if now is None:
        return "nothing serves, so there is nothing to watch", {}
    package = read_serving(state.home, now.champion.package)
    if isinstance(package, Unreadable):
        return f"nothing can be watched: {package.why}", {}
    columns = watched_columns(package)
    policy = state.loop.monitor
    return (
        f"watches {count(len(columns), 'column')} and the score every {policy.every} (false alarms of drift a year: at most {policy.false_alarms_per_year:g})",
        {"columns": columns},
    )


def _business(state: Turning) -> tuple[str, dict[str, Any]]:
    board = state.home.ledger.get(state.outputs["develop"]["leaderboard"], Leaderboard).record
    model, heuristic = expected(board)
    over = money_over_heuristic(board)
    if not state.loop.scope.value.is_set:
        return "no value table is declared, so nobody knows what it is worth", {}
    currency = state.loop.scope.value.currency
    worth, than = TASKS[state.loop.outcome.task].money_words
    return (
        f"package {board.winner[:12]} {worth} {model:+.2f} {currency} a prediction{than}, {over or f'{model - heuristic:+.2f}'} over the heuristic",
        {"expected": model, "heuristic": heuristic, "package": board.winner},
    )


def _with_openlineage(state: Turning, stage: Stage) -> tuple[str, dict[str, Any]]:
    """Run a stage that reads and writes data, and emit its OpenLineage events."""
    home, loop = state.home, state.loop
    facets = {
        "parent": openlineage.part_of(state.turn, loop.name),
        "nominalTime": openlineage.facet("nominalTime", nominalStartTime=state.as_of.isoformat()),
    }
    with home.openlineage.run(f"{loop.name}.{stage}", kind="STEP", about=loop.scope.problem, facets=facets) as run:
        summary, output = RUN[stage](state)
        if run.wanted:
            TOLD[stage](state, output, run)
    return summary, output


def _tell_data(state: Turning, output: dict[str, Any], run: openlineage.JobRun) -> None:
    home, loop = state.home, state.loop
    made = home.ledger.get(output["examples"], Examples).record
    for source in made.sources:
        declared = loop.tables.get(source.table)
        read = openlineage.table(home.settings.lake_root, source.table, source.version, declared.columns if declared else None)
        run.inputs.append({**read, "inputFacets": openlineage.judged(source.rows, {}, [])})
    whole = openlineage.examples(loop.name, made)
    whole["facets"]["columnLineage"] = openlineage.origins(_lineage(loop), home.settings.lake_root)
    run.outputs.append(openlineage.written(whole, made.rows))


def _tell_develop(state: Turning, output: dict[str, Any], run: openlineage.JobRun) -> None:
    home, loop = state.home, state.loop
    made = home.ledger.get(state.outputs["data"]["examples"], Examples).record
    run.inputs.append({**openlineage.examples(loop.name, made), "inputFacets": openlineage.judged(made.rows, {}, [])})
    board = home.ledger.get(output["leaderboard"], Leaderboard).record
    made_here = [*(row.package for row in board.rows), *(board.fleet.serving.values() if board.fleet is not None else ())]
    run.outputs += [openlineage.package(loop.name, digest, home.packages.manifest(digest)) for digest in made_here]


def used_columns(loop: Loop) -> set[str]:
    """The columns that the loop's declarations name or its code uses."""
    used = used_by(loop.columns, loop.features, loop.scope.heuristic, loop.outcome, loop.slices)
    return {*loop.named_columns, *used}


def _lineage(loop: Loop) -> Lineage:
    return lineage(loop.requests, loop.context, loop.aggregates, loop.outcome)


TOLD: dict[Stage, Callable[[Turning, dict[str, Any], openlineage.JobRun], None]] = {
    "data": _tell_data,
    "develop": _tell_develop,
}
"""The stages that emit OpenLineage events, and their data."""

BRIEFLY: dict[Stage, Callable[[Turning, dict[str, Any]], str]] = {"develop": _winner}
"""Stages whose progress line is shorter than their answer."""

RUN: dict[Stage, Callable[[Turning], tuple[str, dict[str, Any]]]] = {
    "scope": _scope,
    "data": _data,
    "develop": _develop,
    "deploy": _deploy,
    "monitor": _monitor,
    "business": _business,
}
