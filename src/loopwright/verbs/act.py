"""Verbs that change something."""

import datetime as dt
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import (
    LedgerUnavailable,
    LoopNotFound,
    NotFound,
    PackageNotFound,
    PackageRefused,
    RequestInvalid,
    TableNotFound,
    UsageError,
    nearest,
    nearest_paths,
)
from loopwright.base.ids import new_id
from loopwright.base.moment import moment_option
from loopwright.base.progress import Progress, Silent, under_way
from loopwright.records.attempts import Attempts
from loopwright.records.examples import Examples
from loopwright.records.releases import HEURISTIC
from loopwright.records.turns import STAGES, LoopRecord, Stage, Step, Turn
from loopwright.stores.contracts import contract
from loopwright.stores.home import Home
from loopwright.verbs.look import known_loop
from loopwright.verbs.results import Made, OutcomesReport, Replayed, ReportFile, Switched, Tended, TurnReport, Week

if TYPE_CHECKING:
    from loopwright.records.declarations import Loop
    from loopwright.records.evaluation import Leaderboard
    from loopwright.records.ingestions import Ingested
    from loopwright.records.releases import ReleaseState
    from loopwright.replay import PolicyComparison, ReplayRun
    from loopwright.stores.packages.probe import Probed

CAUSES = ("manual", "schedule", "drift", "decay")
SWITCH_SECONDS = 5.0
MOST_REASON = 1000
"""So many characters has the reason of a change at most: the ledger keeps it for good, and pages and commands show it."""

DEMO_MARK = "demo.json"
DEMO_START, DEMO_END = dt.datetime(2013, 4, 1, tzinfo=dt.UTC), dt.datetime(2014, 1, 1, tzinfo=dt.UTC)


def loop_with_code(home: Home, loop: str) -> "tuple[Loop, str]":
    """The loop with its functions, and its file: from a path, or from the file that the ledger knows for a name."""
    from loopwright.loop import load_loop

    path = Path(loop)
    if path.suffix == ".py" or path.is_dir() or path.name != loop:
        file = path / "loop.py" if path.is_dir() else path
        return load_loop(file), str(file.absolute())
    if not home.exists:  # do not make one in order to look into it
        raise LoopNotFound(loop, _loops_here(path))
    entry = home.ledger.latest(LoopRecord, loop=loop)
    if entry is None:
        raise LoopNotFound(loop, [*nearest(loop, home.ledger.loops(LoopRecord)), *_loops_here(path)])
    if not Path(entry.record.file).is_file():
        raise NotFound(
            "loop file", entry.record.file, next_step=f"loop {loop!r} was declared there; give the path where it is now"
        )
    return load_loop(entry.record.file), entry.record.file


def _loops_here(path: Path) -> list[str]:
    """Loop files and folders of loops whose path comes near to one that is none."""
    return [name for name in nearest_paths(path) if name.endswith(".py") or (Path(name) / "loop.py").is_file()]


def init(
    home: Home,
    directory: Path,
    *,
    from_file: Path | None = None,
    label: str = "",
    time: str = "",
    key: str = "",
    zone: str = "UTC",
    task: str = "",
    name: str = "",
    encoding: str = "",
    sheet: str = "",
    no_header: bool = False,
    names: str = "",
    progress: Progress | None = None,
) -> Made:
    """Begin a new loop in a folder, its contract inferred from a file.

    Args:
        directory: folder to make; it must not hold a loop.py yet.
        from_file: CSV, JSON Lines, Excel, Parquet or Arrow with one row per decision, or a folder or glob of such files.
        label: the column that says how it came out: yes or no, one of several words, or a number.
        time: the column of when the decision was taken (default: a time without gaps, else the moment of ingestion).
        key: the column that identifies a row, or several with commas (default: one whose values are all different).
        zone: the zone of times that have none, e.g. Europe/Paris.
        task: binary, multiclass or regression, where the label could be more than one.
        name: name of the loop (default: the folder's name).
        encoding: encoding of text files, e.g. cp1252, latin-1, utf-16 (default: detected).
        sheet: sheet of an Excel workbook (default: the only one with rows).
        no_header: the first line is a row of data; the columns are called column_1, column_2 ...
        names: names of the columns with commas, where the first line is a row of data.
    """
    from loopwright.data.ingest.opened import Reading
    from loopwright.data.scaffold.init import begin

    found = name or directory.absolute().name
    reading = Reading.of(encoding, sheet, names, no_header=no_header)
    with under_way(progress, f"reading {from_file or directory} and drafting"):
        made = begin(
            directory, name=found, from_file=from_file, label=label, time=time, key=key, zone=zone, task=task, reading=reading
        )
    return Made(**made)


def ingest(
    home: Home,
    table: str,
    files: list[str] | None = None,
    *,
    loop: str = "",
    query: str = "",
    from_url: str = "",
    watermark: str = "",
    mend: bool = False,
    encoding: str = "",
    sheet: str = "",
    no_header: bool = False,
    names: str = "",
    progress: Progress | None = None,
) -> "list[Ingested]":
    """Bring rows into a table, through its contract: good rows land, bad rows go to quarantine with the reason.

    Args:
        table: name of a declared table.
        files: CSV, JSON Lines, Excel, Parquet or Arrow files, folders or globs of them, or Delta tables (folder or URL).
        loop: path of the loop file that declares the table; not needed once the ledger knows the contract.
        query: an SQL query instead of files; in it `:watermark` stands for the highest value ingested before.
        from_url: the database that is asked, e.g. postgresql://user@host/shop or sqlite:///shop.db.
        watermark: a column that grows; only rows above the highest value ingested before come in.
        mend: bring in rows of the quarantine, out of a file that `quarantine --export` made; without files, as they are.
        encoding: encoding of text files, e.g. cp1252, latin-1, utf-16 (default: detected).
        sheet: sheet of an Excel workbook (default: the only one with rows).
        no_header: the first line is a row of data; the columns are called column_1, column_2 ...
        names: names of the columns with commas, where the first line is a row of data.
    """
    from loopwright.data.ingest.ingestion import put_contract
    from loopwright.data.ingest.load import bring, bring_mended, bring_query
    from loopwright.data.ingest.opened import Reading
    from loopwright.data.ingest.profile import keep_profile
    from loopwright.tend import refresh

    if bool(query) != bool(from_url) or (query and (files or mend)):
        raise UsageError("give files, or --query together with --from-url")
    if not (files or query or mend):
        raise UsageError(f"table {table!r}: name at least one file")
    reading = Reading.of(encoding, sheet, names, no_header=no_header)
    if query and reading.options():
        raise UsageError(f"{reading.options().split()[0]} is about a file, and --query asks a database: leave it off")
    if loop:
        declared, _ = loop_with_code(home, loop)
        if table not in declared.tables:
            raise TableNotFound(table, sorted(declared.tables))
        put_contract(home, declared.tables[table])
    found = contract(home, table)
    if query:
        results = [bring_query(home, found, from_url, query, watermark=watermark, progress=progress)]
    elif mend:
        results = bring_mended(home, found, files or [], reading)
    else:
        results = bring(home, found, files or [], watermark=watermark, reading=reading, progress=progress)
    refresh(home, {table})
    if sum(r.good for r in results if not r.already):
        # What came in is in, whether it can be described or not.
        Attempts(table).run("profile", lambda: keep_profile(home, table), None)
    return results


def run(
    home: Home,
    loop: str,
    *,
    until: str = "business",
    as_of: str = "",
    refit: bool = False,
    cause: str = "manual",
    why: str = "",
    no_release: bool = False,
    despite_guard: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> TurnReport:
    """One turn of the loop, resumed where it was interrupted.

    A new turn begins where what the interrupted one depends on has changed: its declaration, the code that it uses, library
    versions or, until its candidates are trained, the rows of its tables. Where an earlier turn trained on the same examples by the
    same code, nothing is trained: its packages stand.

    Args:
        loop: path of a loop file, or a name the ledger knows.
        until: the last stage to run: scope, data, develop, deploy, monitor or business.
        as_of: learn only from what was known then (ISO 8601, "tuesday 09:00" or "30 days ago"; default: now).
        refit: retrain the serving candidate with its hyper-parameters instead of comparing all candidates.
        cause: why it runs: manual, schedule, drift or decay.
        why: the reason in a sentence, for the audit trail.
        no_release: stop before anything is put into service; a turn of `--as-of` replaces nothing that serves by itself either.
        despite_guard: release the winner also where it misses a target, is worse than what serves, or is too good to be true;
            needs a reason (why).
        fresh: begin a new turn and train, even where one was interrupted or nothing changed.
    """
    from loopwright.records.evaluation import Leaderboard
    from loopwright.turn import turn

    if until not in STAGES:
        raise UsageError(f"no stage {until!r}: one of {', '.join(STAGES)}")
    if cause not in CAUSES:
        raise UsageError(f"no cause {cause!r}: one of {', '.join(CAUSES)}")
    check_reason(why, despite_guard=despite_guard)
    ahead = "nothing can be known of it yet; leave the option off to learn from all that is known"
    moment = moment_option(as_of, home.clock.now(), "--as-of", ahead=ahead) if as_of else None
    declared, file = loop_with_code(home, loop)
    stage: Stage = until
    steps = turn(
        home,
        declared,
        file=file,
        as_of=moment,
        until=stage,
        cause=cause,  # type: ignore[arg-type]  # narrowed above
        why=why,
        refit=refit,
        release=not no_release,
        despite_guard=despite_guard,
        fresh=fresh,
        progress=progress,
    )
    entry = home.ledger.latest(Turn, loop=declared.name)
    this = steps[-1].turn if steps else entry.record.turn if entry is not None else ""
    board = home.ledger.latest(Leaderboard, loop=declared.name, key=this)
    verdict = board.record.verdict if board else ""
    if board and board.record.fleet is not None:
        verdict = f"{verdict}; {board.record.fleet.verdict}"
    deployed = next((s for s in steps if s.stage == "deploy"), None)
    return TurnReport(
        loop=declared.name,
        turn=this,
        state="done" if until == STAGES[-1] else f"stopped after {until}",
        steps=[(s.stage, s.summary, s.seconds) for s in steps],
        verdict=verdict,
        winner=board.record.winner if board else "",
        released=bool(deployed and deployed.output.get("released")),
        serves_already=bool(deployed and deployed.output.get("already")),
        reasons=list(deployed.output.get("reasons", [])) if deployed else [],
        left_out=board.record.left_out if board else {},
        rows_left_out=_rows_left_out(home, declared.name, this, board.record.winner if board else ""),
        next_step=str(deployed.output.get("next_step", "")) if deployed else "",
    )


def _rows_left_out(home: Home, loop: str, turn: str, winner: str) -> dict[str, int]:
    """The decisions that are no examples of a turn, and the examples in neither part of its split, by reason."""
    step = home.ledger.latest(Step, loop=loop, key=f"{turn}:data")
    if step is None or step.record.state != "done":
        return {}
    reasons = dict(home.ledger.get(step.record.output["examples"], Examples).record.excluded)
    with suppress(PackageNotFound, PackageRefused):
        split = home.packages.manifest(winner).split if winner else None
        reasons |= split.left_out if split is not None else {}
    return {why: count for why, count in reasons.items() if count}


def release(
    home: Home,
    loop: str,
    package: str = "",
    *,
    strategy: str = "direct",
    why: str = "",
    force: bool = False,
    despite_guard: bool = False,
    request_id: str = "",
) -> Switched:
    """Put a package into service, after the same checks that a turn makes; one that serves already goes on.

    `heuristic` in place of a package serves the loop's rule, whatever its metrics and guards say; turns make and judge models then, and release none.

    Waits, at most five seconds, until every worker of the servers that run here has switched, and says how each stands.

    The winner of a turn brings the packages of segments that were judged beside it; the package of a segment replaces that one only.

    Args:
        loop: name of the loop.
        package: the package, or the beginning of its digest, or `heuristic` (default: the winner of the latest turn without `--as-of`).
        strategy: how; `direct` replaces what serves at once.
        why: the reason in a sentence, for the audit trail.
        force: also a package that was marked bad (the other checks are made all the same), or the heuristic's despite its guards.
        despite_guard: also a package that misses a target, is worse than what serves, or is too good to be true; needs a reason
            (why), and the release names the checks that it failed. A package that does not load or answer is refused all the same.
        request_id: an idempotency key: the same request again gives the same answer and changes nothing.
    """
    from loopwright.deploy.change import answered, unchanged
    from loopwright.deploy.gate import check_release, sound
    from loopwright.deploy.releases import arguments, serving
    from loopwright.deploy.releases import release as put_into_service
    from loopwright.records.evaluation import Leaderboard
    from loopwright.stores.outcomes.rescore import SegmentPackages

    if strategy != "direct":
        raise UsageError(f"no strategy {strategy!r}: this version knows `direct`")
    check_reason(why, despite_guard=despite_guard)
    declared = known_loop(home, loop)
    rule = package == HEURISTIC
    asked = arguments("release", package=package, strategy=strategy, force=force, despite_guard=despite_guard or None)
    before = answered(home, loop, request_id, asked)
    if before is not None:
        return _switched(home, before)
    digest = _heuristic(home, loop) if rule else home.packages.resolve(package) if package else _newest_board(home, loop).winner
    chosen = home.packages.read(digest)
    exempt = rule or (force and chosen.manifest.is_rule)
    if exempt and not why.strip():
        raise UsageError("a reason is needed to serve the heuristic in place of a model: give --why")
    segment = chosen.manifest.segment
    now = serving(home, loop)
    serves = now is not None and now.package_of(segment.value if segment is not None else None) == chosen.digest
    if now is not None and serves and not (rule and (now.segments or not now.keeps_rule)):
        unchanged(home, now, request_id, asked)
        return _switched(home, now)
    fixed: dict[str, Any] = {
        "why": why or "by hand",
        "force": force,
        "expected": now.generation if now is not None else 0,  # the checks take a while
        "request": request_id,
        "asked": asked,
    }
    boards = [e.record for e in home.ledger.find(Leaderboard, loop=loop) if e.record.winner == chosen.digest]
    fleet = next((b.fleet for b in boards if b.fleet is not None and b.fleet.serving), None)
    own: dict[str, Probed] = {}
    beside = None
    if fleet is not None and not rule:
        own, _ = sound(home, {name: home.packages.read(digest) for name, digest in fleet.serving.items()})
        beside = SegmentPackages(fleet.by, own)
        fixed |= {"fleet": fleet.by, "segments": {name: package.digest for name, package in own.items()}}
    result = check_release(home, chosen, loop=loop, scope=declared.scope, beside=beside, despite_guard=despite_guard or exempt)
    fixed["despite"] = [check.name for check in result.failed] if despite_guard else []
    return _switched(home, put_into_service(home, loop, chosen.digest, **fixed).record)


def check_reason(why: str, *, despite_guard: bool = False) -> None:
    """Raise RequestInvalid for a reason that is too long, UsageError for none where the gate is overridden."""
    if len(why) > MOST_REASON:
        raise RequestInvalid([("why", f"has {len(why):,} characters; at most {MOST_REASON:,}: say it in a sentence")])
    if despite_guard and not why.strip():
        raise UsageError("--despite-guard needs --why REASON: the release says for good why the gate was overridden")


def _heuristic(home: Home, loop: str) -> str:
    """The package of the heuristic alone, as the newest turn made it."""
    found = next((row.package for row in _newest_board(home, loop).rows if row.phase == 1), "")
    if not found:
        raise NotFound("heuristic's package of loop", loop, next_step=f"`loopwright run {loop} --until develop` makes it")
    return found


def _newest_board(home: Home, loop: str) -> "Leaderboard":
    """The leaderboard of the newest turn that learnt from all that is known, and not from what was known at an earlier moment."""
    from loopwright.records.evaluation import Leaderboard

    for entry in home.ledger.find(Leaderboard, loop=loop):
        turn = home.ledger.latest(Turn, loop=loop, key=entry.record.turn)
        if turn is None or not turn.record.backdated:
            return entry.record
    raise NotFound(
        "leaderboard of loop",
        loop,
        next_step="make one with `loopwright run LOOP`; one of `--as-of` is released by its package's name",
    )


def _switched(home: Home, state: "ReleaseState") -> Switched:
    """The state, and how the workers here stand to it once they have switched, or after a while.

    Where another change came after it (the answer to a request that is repeated) none is waited for or told of.
    """
    from loopwright.deploy.releases import next_back
    from loopwright.deploy.serving.heartbeat import workers
    from loopwright.deploy.serving.release_files import path_of, read_intact

    until = home.clock.monotonic() + SWITCH_SECONDS
    copy = read_intact(path_of(home, state.loop))
    found = [] if copy is not None and copy.state.generation > state.generation else workers(home.path, state)
    while any(w.state in ("lags", "down") for w in found) and home.clock.monotonic() < until:
        time.sleep(0.02)
        found = workers(home.path, state)
    facts = {name: getattr(state, name) for name in state.__struct_fields__}
    return Switched(**facts, workers=found, returns_to=next_back(home, state))


def rollback(
    home: Home,
    loop: str,
    *,
    to: str = "",
    segment: str | None = None,
    why: str = "",
    force: bool = False,
    request_id: str = "",
) -> Switched:
    """Go back to the package that served before, at a time, or by name; with it to the packages of segments beside it.

    "Before" is before what serves now: after a rollback that is the package which it replaced, so a second one without `--to` returns
    to it. The answer says so; `--to` names where to go further back.

    Waits for the workers here as `release` does.

    Args:
        loop: name of the loop.
        to: a package (beginning of its digest) or a time (ISO 8601, or "tuesday 09:00"); default: the one before.
        segment: only this segment goes back; `--to global` lets the loop's own package answer it.
        why: the reason in a sentence, for the audit trail.
        force: also to a package that was marked bad.
        request_id: an idempotency key: the same request again gives the same answer and changes nothing.
    """
    from loopwright.deploy.releases import rollback as go_back

    check_reason(why)
    try:
        entry = go_back(home, loop, segment=segment, to=to or None, why=why or "by hand", force=force, request=request_id)
        return _switched(home, entry.record)
    except NotFound:
        with suppress(LedgerUnavailable):  # going back works without the ledger; only the nearest names are missed
            known_loop(home, loop)
        raise


def tend(
    home: Home, *, once: bool = False, every: float = 10.0, no_retrain: bool = False, progress: Progress | None = None
) -> Tended:
    """Upkeep: seal logs, join outcomes, watch, account, retrain. Runs until stopped; one process tends, others wait.

    Args:
        once: one round, then end.
        every: seconds between rounds.
        no_retrain: record triggers, but do not act on them.
    """
    from loopwright.base.heap import give_back
    from loopwright.tend import tend as tend_once

    if not 0 < every <= threading.TIMEOUT_MAX:
        raise UsageError(f"--every {every:g}: must be seconds above 0")
    owner = new_id(home.clock.now())
    try:
        while True:
            done = tend_once(home, owner=owner, retrain=not no_retrain)
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
            give_back()  # what a round took at its height is not held until the next one
            time.sleep(every)
    finally:  # who waits need not wait for the lease to run out
        with suppress(LedgerUnavailable):
            home.ledger.unlock("tend", owner)


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
        loop: path of a loop file, or a name the ledger knows.
        start: first moment to replay (ISO 8601, or "30 days ago"); the first turn trains on what was known then.
        end: the moment to stop before.
        policy: declared, never, weekly, monthly or drift.
        keep: folder to keep the replay's home in (default: it is removed at the end).
    """
    from loopwright import replay as room

    room.check_policy(policy)
    now, ahead = home.clock.now(), "a replay goes over what has happened"
    begin, stop = (moment_option(text, now, f"--{name}", ahead=ahead) for name, text in (("start", start), ("end", end)))
    if stop <= begin:
        raise UsageError(f"--end {end} must be after --start {start}")
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UsageError(f"--keep {keep}: the folder holds something already; a replay needs a home of its own")
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


def summarise(home: Home, declared: "Loop", run: "ReplayRun", policy: str) -> Replayed:
    """The timeline of a replay and what it came to, beside "never retrained" and "heuristic only"."""
    from loopwright import replay as room

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
        value=room.total(money["served"]),
        value_never=room.total(money["never"]),
        value_heuristic=room.total(money["heuristic"]),
        over_never=room.total(money["served"] - money["never"]),
        over_heuristic=room.total(money["served"] - money["heuristic"]),
        seconds=run.seconds,
        valued=value.given,
    )


def _week(room: Any, compared: "PolicyComparison", run: "ReplayRun", money: dict[str, Any], index: int) -> Week:
    from loopwright.records.evaluation import Estimate

    lap, mask = run.laps[index], compared.lap == index
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
    return Week(
        start=lap.start,
        end=lap.end,
        rows=lap.rows,
        state=lap.window.state if lap.window else "open",
        drifted=lap.window.drifted if lap.window else [],
        psi=max((c.beyond for c in lap.window.columns if c.used), default=0.0) if lap.window else float("nan"),
        metric=lap.quality.metrics.get(run.metric, nothing) if lap.quality else nothing,
        metric_never=room.metric_of(compared, run.metric, "never", index),
        metric_heuristic=room.metric_of(compared, run.metric, "heuristic", index),
        package=lap.package,
        value=float(money["served"][mask].sum()),
        value_never=float(money["never"][mask].sum()),
        value_heuristic=float(money["heuristic"][mask].sum()),
        event=lap.event,
    )


def outcomes(
    home: Home,
    loop: str,
    file: Path | None = None,
    *,
    encoding: str = "",
    sheet: str = "",
    no_header: bool = False,
    names: str = "",
) -> OutcomesReport:
    """Bring outcomes in from a file, and say how the truth stands.

    Args:
        loop: name of the loop.
        file: CSV, Excel or Parquet with the outcome table's columns (its key, or a column `id`, `prediction` or `prediction_id` with
            prediction ids; the first of them that the table does not have itself).
        encoding: encoding of text files, e.g. cp1252, latin-1, utf-16 (default: detected).
        sheet: sheet of an Excel workbook (default: the only one with rows).
        no_header: the first line is a row of data; the columns are called column_1, column_2 ...
        names: names of the columns with commas, where the first line is a row of data.
    """
    from loopwright.data.ingest.opened import Reading
    from loopwright.data.ingest.outcomes import Delivered, accept
    from loopwright.records.declarations import duration
    from loopwright.stores.outcomes.table import states

    declared = known_loop(home, loop)
    reading = Reading.of(encoding, sheet, names, no_header=no_header)
    if file is None and reading.options():
        raise UsageError(f"{reading.options().split()[0]} needs a file: name it after the loop")
    logged = accept(home, loop, declared.outcome.table, declared.requests.key, file, reading) if file else Delivered(0, 0)
    counts = states(home, loop, duration(declared.outcome.wait), home.clock.now(), declared.requests.event_time)
    return OutcomesReport(loop=loop, **logged._asdict(), **msgspec.structs.asdict(counts))


def report(home: Home, loop: str, *, out: Path | None = None) -> ReportFile:
    """Promised, delivered, doubts, next step: for a manager, in Markdown and HTML with charts.

    Args:
        loop: name of the loop.
        out: folder to write to (default: reports/ in home).
    """
    from loopwright.business.report import report as build
    from loopwright.render.report import html, markdown

    declared = known_loop(home, loop)
    built = build(home, loop_name=loop, scope=declared.scope, outcome=declared.outcome, monitor=declared.monitor)
    folder = out or home.folder("reports")
    folder.mkdir(parents=True, exist_ok=True)
    text, page = markdown(built), html(built)
    files = folder / f"{loop}.md", folder / f"{loop}.html"
    files[0].write_text(text, encoding="utf-8")
    files[1].write_text(page, encoding="utf-8")
    return ReportFile(loop=loop, markdown=text, markdown_file=str(files[0]), html_file=str(files[1]))


def example(name: str) -> Path:
    """The folder of an example: beside the package when installed, in the repository when worked on."""
    here = Path(__file__).parents[1]
    for folder in (here / "examples" / name, here.parents[1] / "examples" / name):
        if (folder / "loop.py").is_file():
            return folder
    raise NotFound("example", name, next_step="reinstall loopwright, or clone its repository")


def demo(home: Home, *, end: str = "", progress: Progress | None = None) -> Replayed:
    """The whole loop on a year of New York flights: train on January to March, live through April to December.

    Args:
        end: stop the year early (ISO 8601 date), for a quick look.
    """
    from loopwright import replay as room
    from loopwright.data.ingest.ingestion import ingest as ingest_file
    from loopwright.data.ingest.ingestion import put_contract
    from loopwright.loop import load_loop

    progress = progress or Silent()
    stop = moment_option(end, home.clock.now(), "--end") if end else DEMO_END
    if not DEMO_START < stop <= DEMO_END:
        raise UsageError(
            f"--end {end} must be after {DEMO_START:%Y-%m-%d}, when the demo goes live, and at most {DEMO_END:%Y-%m-%d}, when its data end"
        )
    _clear_demo(home)
    folder = example("flights")
    declared = load_loop(folder)
    simulated = Home(home.settings, SimulatedClock(DEMO_START))
    try:
        progress.say("scope: " + declared.scope.problem)
        files = _prepare(folder)(home.folder("demo"))
        for i, (table, file) in enumerate(files.items()):
            put_contract(simulated, declared.tables[table])
            done = ingest_file(simulated, declared.tables[table], file)
            progress.say(f"data: {done.good:,} rows into {table}, {done.quarantined:,} in quarantine")
            progress.advance("ingest", i + 1, len(files))
        run = room.replay(simulated, declared, file=str(folder / "loop.py"), start=DEMO_START, end=stop, progress=progress)
        return summarise(simulated, declared, run, "declared")
    finally:
        simulated.close()


def _prepare(folder: Path) -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("loopwright_example_prepare", folder / "prepare.py")
    if spec is None or spec.loader is None:
        raise NotFound("file", str(folder / "prepare.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare


def _clear_demo(home: Home) -> None:
    """Begin the demo in an empty home: an earlier demo is removed, anything else is left alone."""
    mark = home.path / DEMO_MARK
    if home.path.exists() and any(home.path.iterdir()):
        if not mark.is_file():
            raise UsageError(f"home {home.path} holds other work; give the demo a home of its own: loopwright --home DIR demo")
        home.close()
        shutil.rmtree(home.path)
    home.make()
    mark.write_bytes(msgspec.json.encode({"note": "made by `loopwright demo`, which removes this folder when run again"}))
