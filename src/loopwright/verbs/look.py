"""Verbs that only look."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loopwright.records.attempts import Attempts
from loopwright.records.errors import LoopNotFound, NotExplained, NotFound, PackageRefused, PredictionNotFound
from loopwright.records.evaluation import Leaderboard
from loopwright.records.home import Home
from loopwright.records.predictions.record import Contributions
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import STAGES, LoopRecord, Stage, Step, Turn
from loopwright.records.windows import Alert, Quality, ValueWindow, Window, newest_ended
from loopwright.verbs.results import (
    Condition,
    DriftReport,
    FileUsed,
    FleetStatus,
    History,
    LoopPage,
    LoopStatus,
    Retraining,
    Running,
    StageState,
    Status,
    Trace,
    TracedOutcome,
)

if TYPE_CHECKING:
    from loopwright.loop import Loop
    from loopwright.records.ledger import Entry
    from loopwright.records.package import Manifest, Output
    from loopwright.records.predictions.record import Prediction
    from loopwright.records.probe import Probed


def known_loop(home: Home, name: str) -> "Loop":
    """The loop as the ledger knows it (functions as source text). LoopNotFound with the nearest names."""
    from difflib import get_close_matches

    from loopwright.loop import Loop

    entry = home.ledger.latest(LoopRecord, loop=name)
    if entry is None:
        names = sorted({e.loop for e in home.ledger.find(LoopRecord)})
        raise LoopNotFound(name, get_close_matches(name, names, 3, 0.4) or names[:3])
    return msgspec.convert(entry.record.declaration, Loop)


def status(home: Home) -> Status:
    """Every loop and its six stages at a glance."""
    from loopwright import __version__

    names = sorted({e.loop for e in home.ledger.find(LoopRecord)})
    return Status(
        version=__version__,
        home=str(home.path),
        ledger=home.settings.ledger_url.split("://")[0].split("+")[0],
        loops=[_status_or_trouble(home, name) for name in names],
        server=_server(home),
        open_alerts=_open_alerts(home, ""),
    )


def _status_or_trouble(home: Home, loop: str) -> LoopStatus:
    """One loop; one whose records cannot be read keeps nobody from seeing the others."""
    attempts = Attempts(loop)
    found = attempts.run("status", lambda: loop_status(home, loop), None)
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


def _server(home: Home) -> Running | None:
    """The server over this home, as it says in `serve.json`, unless it has gone without taking that away."""
    try:
        found = msgspec.json.decode((home.path / "serve.json").read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None
    return found if Path(f"/proc/{found.pid}").exists() else None


def loop_status(home: Home, loop: str) -> LoopStatus:
    """One loop: its six stages, who serves, what happened."""
    from loopwright.deploy.vitals import workers
    from loopwright.records.predictions.damage import set_aside
    from loopwright.records.predictions.read import summary

    attempts = Attempts(loop)
    declared = known_loop(home, loop)
    turns = _newest(home.ledger.find(Turn, loop=loop))
    releases = [e.record for e in home.ledger.find(ReleaseState, loop=loop, newest=False)]
    nothing: tuple[int, dt.datetime | None] = (0, None)
    count, last = attempts.run("predictions", lambda: summary(home, loop), nothing)
    alerts = _open_alerts(home, loop)
    serving = releases[-1] if releases else None
    package = serving.arms[0].package if serving else ""
    alone = ", its heuristic alone" if serving and serving.arms[0].role == "heuristic" else ""
    candidate = attempts.run("package", lambda: home.packages.read(package).manifest.candidate + alone if package else "", "")
    stages = _stages(home, loop, turns, serving, alerts, count, last)
    return LoopStatus(
        name=loop,
        problem=declared.scope.problem,
        stages=[_troubled(stage, attempts) for stage in stages],
        serving=package,
        candidate=candidate,
        since=serving.since if serving else None,
        packages_served=list(dict.fromkeys(a.package for r in releases for a in r.arms)),
        turns=len(turns),
        retrainings=_retrainings(turns, releases),
        predictions=count,
        last_prediction=last,
        open_alerts=alerts,
        fleet=_fleet(home, loop, serving),
        damaged=set_aside(home.path, loop),
        lagging=[w for w in workers(home.path, serving) if w.state in ("lags", "refuses")] if serving else [],
        trouble=attempts.failed,
    )


def _troubled(stage: StageState, attempts: Attempts) -> StageState:
    """The stage of serving is not well where its package or its predictions cannot be read."""
    if stage.stage != "deploy" or not attempts.failed:
        return stage
    return msgspec.structs.replace(stage, state="alert", detail="; ".join(p.what for p in attempts.failed))


def _fleet(home: Home, loop: str, serving: ReleaseState | None) -> FleetStatus | None:
    """The fleet of a loop; None where it has none and never had."""
    boards = home.ledger.find(Leaderboard, loop=loop, limit=3)  # a turn puts one without its fleet first
    board = next((e.record.fleet for e in boards if e.record.fleet is not None), None)
    segments = serving.segments if serving is not None else {}
    if board is None and not segments:
        return None
    return FleetStatus(
        by=serving.fleet if serving is not None and segments else board.by if board is not None else "",
        serving=segments,
        judged=sum(1 for m in board.segments if m.package) if board is not None else 0,
        verdict=board.verdict if board is not None else "",
    )


def _newest(entries: "list[Entry[Turn]]") -> "list[Entry[Turn]]":
    """One entry per turn, the newest, oldest turn first."""
    newest: dict[str, Entry[Turn]] = {}
    for entry in sorted(entries, key=lambda e: e.sequence):
        newest.pop(entry.record.turn, None)
        newest[entry.record.turn] = entry
    return list(newest.values())


def _retrainings(turns: "list[Entry[Turn]]", releases: list[ReleaseState]) -> list[Retraining]:
    released = {a.package for r in releases for a in r.arms}
    return [
        Retraining(
            turn=e.record.turn,
            at=e.at,
            cause=e.record.cause,
            why=e.record.why,
            package=e.record.result,
            released=e.record.result in released,
        )
        for e in turns
        if e.record.cause != "first" and e.record.state == "done"
    ]


def _open_alerts(home: Home, loop: str) -> list[Alert]:
    newest: dict[str, Alert] = {}
    for entry in home.ledger.find(Alert, loop=loop, newest=False):
        newest[entry.record.key] = entry.record
    return [a for a in newest.values() if a.state == "open"]


def _stages(
    home: Home,
    loop: str,
    turns: "list[Entry[Turn]]",
    serving: ReleaseState | None,
    alerts: list[Alert],
    predictions: int,
    last: dt.datetime | None,
) -> list[StageState]:
    steps: dict[Stage, Entry[Step]] = {}
    for entry in home.ledger.find(Step, loop=loop, newest=False):
        steps[entry.record.stage] = entry
    live: dict[Stage, StageState] = {}
    if serving is not None:
        detail = f"package {serving.arms[0].package[:12]} serves since {serving.since:%Y-%m-%d %H:%M} UTC; {predictions:,} prediction{'' if predictions == 1 else 's'}"
        live["deploy"] = StageState(stage="deploy", state="ok", detail=detail, at=last or serving.since)
    window = newest_ended(home.ledger, Window, loop, home.clock.now())
    if window is not None:
        record = window.record
        drifted = f", drifted: {', '.join(record.drifted)}" if record.drifted else ""
        state: Condition = (
            "alert" if alerts or record.state == "drift" else "watch" if record.state in ("watch", "no data") else "ok"
        )
        detail = f"week to {record.end:%Y-%m-%d}: {record.state}{drifted}; {len(alerts)} open alerts"
        live["monitor"] = StageState(stage="monitor", state=state, detail=detail, at=window.at)
    value = newest_ended(home.ledger, ValueWindow, loop, home.clock.now())
    if value is not None:
        record_v = value.record
        detail = (
            f"week to {record_v.end:%Y-%m-%d}: {record_v.over_no_model.value:,.0f} {record_v.currency} over no model, "
            f"{record_v.over_heuristic.value:+,.0f} over the heuristic"
            if record_v.valued
            else f"week to {record_v.end:%Y-%m-%d}: {record_v.with_outcome:,} outcomes known; no value table is declared"
        )
        live["business"] = StageState(
            stage="business",
            state="ok" if record_v.over_heuristic.high > 0 or not record_v.valued else "watch",
            detail=detail,
            at=value.at,
        )
    running = next((e for e in reversed(turns) if e.record.state == "running"), None)
    return [_stage(stage, steps.get(stage), live.get(stage), running) for stage in STAGES]


def _stage(stage: Stage, step: "Entry[Step] | None", live: StageState | None, running: "Entry[Turn] | None") -> StageState:
    if step is not None and step.record.state == "running" and running is not None and running.record.turn == step.record.turn:
        return StageState(stage=stage, state="running", detail=step.record.summary, at=step.at)
    if step is not None and step.record.state == "failed":
        return StageState(stage=stage, state="alert", detail=step.record.summary, at=step.at)
    if live is not None:
        return live
    if step is None:
        return StageState(stage=stage, state="not yet", detail="no turn has reached this stage", at=None)
    return StageState(stage=stage, state="ok", detail=step.record.summary, at=step.at)


def leaderboard(home: Home, loop: str, *, weights: str = "", segment: str | None = None) -> Leaderboard:
    """The candidates of the latest full turn, measured, weighted by the stakeholders' objectives; and the latest fleet.

    Args:
        loop: name of the loop.
        weights: other weights by objective, as `name=number,name=number`; what is not named keeps its weight.
        segment: of the fleet only this segment.
    """
    from difflib import get_close_matches

    from loopwright.develop.leaderboard import parse_weights, reweigh

    declared = known_loop(home, loop)
    boards = home.ledger.find(Leaderboard, loop=loop)
    if not boards:
        raise NotFound("leaderboard of loop", loop, next_step="make one with `loopwright run LOOP`")
    board = max(boards, key=lambda e: (len(e.record.rows) > 2, e.sequence)).record
    fleet = next((e.record.fleet for e in boards if e.record.fleet is not None), None)
    if segment is not None:
        found = [m for m in fleet.segments if m.segment == segment] if fleet is not None else []
        if fleet is None or not found:
            near = get_close_matches(segment, [m.segment for m in fleet.segments] if fleet is not None else [], 3, 0.4)
            raise NotFound("segment", segment, near=near, next_step="it has no model of its own: the global one answers it")
        fleet = msgspec.structs.replace(fleet, segments=found)
    board = msgspec.structs.replace(board, fleet=fleet)
    return reweigh(board, declared.scope.objectives, parse_weights(weights, declared.scope.objectives)) if weights else board


def history(home: Home, loop: str, *, segment: str | None = None) -> History:
    """Who served when, by whom, why; oldest first.

    Args:
        loop: name of the loop.
        segment: only what changed who answers this segment.
    """
    known_loop(home, loop)
    releases = [e.record for e in home.ledger.find(ReleaseState, loop=loop, newest=False)]
    if segment is not None:
        before = [None, *(r.package_of(segment) for r in releases)]
        releases = [r for r, old in zip(releases, before, strict=False) if r.package_of(segment) != old]
    return History(loop=loop, releases=releases, segment=segment)


def drift(home: Home, loop: str) -> DriftReport:
    """Monitoring windows and quality over time, oldest first.

    Args:
        loop: name of the loop.
    """
    known_loop(home, loop)
    return DriftReport(loop=loop, windows=_revisions(home, Window, loop), quality=_revisions(home, Quality, loop))


def values(home: Home, loop: str) -> list[ValueWindow]:
    """Value windows over time, oldest first, the newest revision of each."""
    return _revisions(home, ValueWindow, loop)


def _revisions(home: Home, kind: type[Any], loop: str) -> list[Any]:
    newest = {e.key: e.record for e in home.ledger.find(kind, loop=loop, newest=False)}
    now = home.clock.now()  # what ends later was closed while the clock was ahead
    return sorted((r for r in newest.values() if r.end <= now), key=lambda r: r.start)


def loop_page(home: Home, loop: str) -> LoopPage:
    """All that a page about one loop shows."""
    declared = known_loop(home, loop)
    boards = home.ledger.find(Leaderboard, loop=loop)
    alerts = {e.record.key: e.record for e in home.ledger.find(Alert, loop=loop, newest=False)}
    return LoopPage(
        status=loop_status(home, loop),
        objectives=[msgspec.to_builtins(o) for o in declared.scope.objectives],
        leaderboard=leaderboard(home, loop) if boards else None,
        releases=history(home, loop).releases,
        windows=_revisions(home, Window, loop),
        quality=_revisions(home, Quality, loop),
        values=values(home, loop),
        alerts=sorted(alerts.values(), key=lambda a: a.state, reverse=True),
    )


def _deleted(home: Home, id: str) -> str:
    """Why the prediction of an id may be gone, "" where no retention has reached its time."""
    from loopwright.records.ids import time_of
    from loopwright.records.predictions.read import loops
    from loopwright.records.predictions.retention import kept_since

    try:
        at = time_of(id)
    except (ValueError, OverflowError):  # no id, or one that a client made up
        return ""
    limits = [since for loop in loops(home) if (since := kept_since(home, loop)) is not None and at < since]
    return f"predictions of before {max(limits):%Y-%m-%d} are not kept (LOOPWRIGHT_KEEP)" if limits else ""


def trace(home: Home, id: str) -> Trace:
    """One prediction: back to its data, forward to its outcome and value.

    Args:
        id: the 32 hexadecimal digits that came with the answer, or the X-Request-Id that a request for one row was sent with.
    """
    from loopwright.records.ids import trace_id_of
    from loopwright.records.predictions.read import find
    from loopwright.records.probe import open_probed

    found = find(home, trace_id_of(id))
    if found is None:
        raise PredictionNotFound(id, _deleted(home, id))
    loop, prediction = found
    package = open_probed(home.packages, prediction.package)
    manifest = package.manifest
    at = _moment(prediction.at)
    features, heuristic = _recompute(package, prediction)
    rule = manifest.heuristic_threshold
    return Trace(
        id=prediction.id,
        loop=loop,
        at=at,
        request=_readable(prediction.request, manifest.request),
        context=_readable(prediction.context, {n: c for need in manifest.context for n, c in need.columns.items()}),
        context_age_s=prediction.context_age_s,
        features=features,
        score=prediction.score,
        threshold=manifest.threshold if rule is None or "degraded" not in prediction.flags else rule,
        label=prediction.label,
        heuristic=heuristic,
        flags=prediction.flags,
        latency_us=prediction.latency_us,
        arm=prediction.arm,
        package=prediction.package,
        candidate=manifest.candidate,
        commit=manifest.commit,
        trained_until=manifest.training.as_of,
        training_rows=manifest.training.rows,
        files=list(_files(home, manifest)),
        release=_release_of(home, loop, prediction.package, at),
        outcome=_outcome_of(home, loop, prediction, manifest.output),
        task=manifest.output.task,
        values=dict(zip(manifest.output.names, prediction.values or [], strict=False)),
        explained=_explained(package, prediction),
    )


def _moment(microseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(microseconds / 1e6, dt.UTC)


def _readable(values: dict[str, Any], columns: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _moment(value) if value is not None and name in columns and columns[name].type == "timestamp" else value
        for name, value in values.items()
    }


def _recompute(package: "Probed", prediction: "Prediction") -> tuple[dict[str, float | None], float | str]:
    """The features of one logged prediction and the heuristic's score (or class), by the package's own graphs."""
    from loopwright.records.graph import Feeder

    columns = {**package.manifest.request, **{n: c for need in package.manifest.context for n, c in need.columns.items()}}
    row = {**prediction.request, **prediction.context}
    features: dict[str, float | None] = {}
    if package.manifest.features:
        graph = package.graph("model.onnx")
        matrix = graph.run(Feeder(graph, columns)([row]), ["features"])["features"][0]
        features = {n: None if v != v else float(v) for n, v in zip(package.manifest.features, matrix, strict=True)}
    rule, output = package.graph("heuristic.onnx"), package.manifest.output
    feed = Feeder(rule, columns)([row])
    if output.task == "multiclass":
        return features, output.classes[int(rule.answers(feed)[1][0].argmax())]
    return features, float(rule.score(feed)[0])


def _explained(package: "Probed", prediction: "Prediction") -> Contributions:
    """What each feature contributed to a logged prediction, or why that cannot be told."""
    from loopwright.deploy.explain import PackageReasons

    try:
        (found,) = PackageReasons(package, package.graph("model.onnx"))([prediction])
    except (NotExplained, PackageRefused) as error:
        return Contributions(why=error.why)
    return found


def _files(home: Home, manifest: "Manifest") -> Iterator[FileUsed]:
    from loopwright.records.examples import Examples

    for entry in home.ledger.find(Examples, loop=manifest.loop):
        if entry.record.digest == manifest.training.examples:
            for source in entry.record.sources:
                for file, sha256 in source.files.items():
                    yield FileUsed(table=source.table, version=source.version, file=file, sha256=sha256)
            return


def _release_of(home: Home, loop: str, package: str, at: dt.datetime) -> ReleaseState | None:
    """The release under which `package` answered at `at`: the newest one that had begun by then."""
    releases = [e.record for e in home.ledger.find(ReleaseState, loop=loop, newest=False)]
    mine = [r for r in releases if package in r.packages]
    return next((r for r in reversed(mine) if r.since <= at), mine[0] if mine else None)


def _outcome_of(home: Home, loop: str, prediction: "Prediction", output: "Output") -> TracedOutcome | None:
    import numpy as np

    from loopwright.records import metrics
    from loopwright.records.outcomes import of_prediction

    declared = known_loop(home, loop)
    found = of_prediction(home, loop, prediction, declared.outcome)
    if found is None or declared.outcome.task != output.task:
        return None
    truth, row = found
    label, values = prediction.label, prediction.values
    given = metrics.Answered(
        np.array([prediction.score]),
        None if label is None else np.array([label], dtype=object),
        None if values is None else np.array([values]),
    )
    happened = np.array([truth], dtype=object if isinstance(truth, str) else None)
    earned, _ = metrics.money(declared.scope.value, output, happened, given)
    return TracedOutcome(
        truth=dict(zip(declared.outcome.labels, truth, strict=True)) if isinstance(truth, list) else truth,
        known_at=_moment(row.known_at),
        values=_readable(row.values, declared.outcome.table.columns),
        kind=next((kind for kind, hit in metrics.kinds(output, happened, given).items() if hit[0]), ""),
        value=float(earned[0]),
        currency=declared.scope.value.currency,
    )
