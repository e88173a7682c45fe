"""Verbs that only look."""

import datetime as dt
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from loopwright.base.errors import (
    LoopNotFound,
    NotExplained,
    NotFound,
    OptionInvalid,
    PackageRefused,
    PredictionNotFound,
    SegmentNotFound,
    UsageError,
    nearest,
)
from loopwright.records.attempts import Attempts
from loopwright.records.evaluation import Leaderboard
from loopwright.records.prediction import FLAGS, Contributions
from loopwright.records.profiles import Profile
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import LoopRecord
from loopwright.records.windows import Alert, Quality, ValueWindow, Window
from loopwright.stores.home import Home
from loopwright.verbs.overview import statuses
from loopwright.verbs.results import (
    DriftReport,
    FileUsed,
    History,
    LoggedPrediction,
    LoopPage,
    LoopStatus,
    PredictionList,
    Standings,
    Trace,
    TracedOutcome,
)

if TYPE_CHECKING:
    from loopwright.records.declarations import Loop
    from loopwright.records.package import Manifest, Output
    from loopwright.records.prediction import Prediction
    from loopwright.stores.packages.probe import Probed


def known_loop(home: Home, name: str) -> "Loop":
    """The loop as the ledger knows it (functions as source text). LoopNotFound with the nearest names, Damaged."""
    from loopwright.records.declarations import recorded_loop

    entry = home.ledger.latest(LoopRecord, loop=name)
    if entry is None:
        raise LoopNotFound(name, nearest(name, home.ledger.loops(LoopRecord)))
    return recorded_loop(entry.record)


def loop_status(home: Home, loop: str) -> LoopStatus:
    """One loop: its six stages, who serves, what happened."""
    if home.ledger.latest(LoopRecord, loop=loop) is None:
        known_loop(home, loop)
    return statuses(home, [loop])[0]


MOST_BOARDS = 50
"""Leaderboards among which the one of the latest full turn is looked for."""


def leaderboard(home: Home, loop: str, *, weights: str = "", segment: str | None = None) -> Standings:
    """The candidates of the latest full turn, measured, weighted by the stakeholders' objectives; who won and who serves; the latest fleet.

    Args:
        loop: name of the loop.
        weights: other weights by objective, as `name=number,name=number`; what is not named keeps its weight.
        segment: of the fleet only this segment.
    """
    from loopwright.develop.leaderboard import parse_weights, reweigh

    declared = known_loop(home, loop)
    boards = home.ledger.find(Leaderboard, loop=loop, limit=MOST_BOARDS)
    if not boards:
        raise NotFound("leaderboard of loop", loop, next_step="make one with `loopwright run LOOP`")
    board = max(boards, key=lambda e: (len(e.record.rows) > 2, e.sequence)).record
    fleet = next((e.record.fleet for e in boards if e.record.fleet is not None), None)
    if segment is not None:
        found = [m for m in fleet.segments if m.segment == segment] if fleet is not None else []
        if fleet is None or not found:
            raise SegmentNotFound(segment, [m.segment for m in fleet.segments] if fleet is not None else [])
        fleet = msgspec.structs.replace(fleet, segments=found)
    board = msgspec.structs.replace(board, fleet=fleet)
    if weights:
        board = reweigh(board, declared.scope.objectives, parse_weights(weights, declared.scope.objectives))
    now = home.ledger.latest(ReleaseState, loop=loop)
    serving = "" if now is None else next((arm.package for arm in now.record.arms if arm.role == "champion"), "")
    return Standings(**{name: getattr(board, name) for name in board.__struct_fields__}, serving=serving)


def history(home: Home, loop: str, *, segment: str | None = None) -> History:
    """Who served when, by whom, why; oldest first.

    Args:
        loop: name of the loop.
        segment: only what changed who answers this segment.
    """
    known_loop(home, loop)
    releases = _releases(home, loop)
    if segment is not None:
        known = dict.fromkeys(name for release in releases for name in release.segments)
        if segment not in known:
            raise SegmentNotFound(segment, known)
        before = [None, *(r.package_of(segment) for r in releases)]
        releases = [r for r, old in zip(releases, before, strict=False) if r.package_of(segment) != old]
    return History(loop=loop, releases=releases, segment=segment)


def _releases(home: Home, loop: str) -> list[ReleaseState]:
    """All that served a loop, oldest first."""
    return [e.record for e in home.ledger.find(ReleaseState, loop=loop, newest=False)]


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


def _revisions(home: Home, kind: type[Any], loop: str, limit: int | None = None) -> list[Any]:
    newest = home.ledger.newest(kind, loops=[loop], per="key", limit=limit)
    now = home.clock.now()  # what ends later was closed while the clock was ahead
    return sorted((e.record for e in newest if e.record.end <= now), key=lambda r: r.start)


MOST_WINDOWS, MOST_RELEASES, MOST_ALERTS = 200, 200, 200
"""What a page about one loop shows at most, the newest."""


def loop_page(home: Home, loop: str) -> LoopPage:
    """All that a page about one loop shows; of one whose declaration cannot be read what there is without it."""
    status, ledger = loop_status(home, loop), home.ledger
    declared = Attempts(loop).run("declaration", lambda: known_loop(home, loop), None)
    alerts = [e.record for e in ledger.newest(Alert, loops=[loop], per="key", limit=MOST_ALERTS)]
    releases = ledger.find(ReleaseState, loop=loop, limit=MOST_RELEASES)
    return LoopPage(
        status=status,
        objectives=[msgspec.to_builtins(o) for o in declared.scope.objectives] if declared is not None else [],
        leaderboard=leaderboard(home, loop) if declared is not None and ledger.latest(Leaderboard, loop=loop) else None,
        releases=[e.record for e in reversed(releases)],
        windows=_revisions(home, Window, loop, MOST_WINDOWS),
        quality=_revisions(home, Quality, loop, MOST_WINDOWS),
        values=_revisions(home, ValueWindow, loop, MOST_WINDOWS),
        alerts=sorted(alerts, key=lambda a: a.state, reverse=True),
        valued=declared is not None and declared.scope.value.given,
        profiles=[
            e.record for name in (declared.tables if declared is not None else ()) if (e := ledger.latest(Profile, key=name))
        ],
    )


MOST_LISTED = 1000
_PLACE = re.compile(r"(\d{1,17})-([0-9a-f]{32})")


def predictions(
    home: Home,
    loop: str,
    *,
    key: str = "",
    since: str = "",
    until: str = "",
    flag: str = "",
    package: str = "",
    limit: int = 50,
    before: str = "",
) -> PredictionList:
    """The logged predictions of a loop, newest first, by key, time, flag and package.

    Args:
        loop: name of the loop.
        key: only of this key, as it was sent (the values of a key of several columns joined by "|").
        since: only from this moment on (ISO 8601, or "tuesday 09:00").
        until: only before this moment.
        flag: only with this flag, or one of its kind (`out_of_range` for every column).
        package: only of this package (beginning of its digest).
        limit: how many at most, up to 1000.
        before: where the next ones begin, as the answer before said.
    """
    from loopwright.base.moment import moment_option
    from loopwright.stores.prediction_log.search import PredictionFilter, search

    declared = known_loop(home, loop)
    if not 1 <= limit <= MOST_LISTED:
        raise OptionInvalid("limit", limit, f"must be 1 to {MOST_LISTED:,}")
    now = home.clock.now()
    begin = moment_option(since, now, "--since", ahead="nothing is predicted since then") if since else None
    end = moment_option(until, now, "--until") if until else None
    if begin is not None and end is not None and begin >= end:
        raise OptionInvalid("since", since, f"must be before --until {until}")
    place = _PLACE.fullmatch(before)
    if before and place is None:
        raise OptionInvalid("before", before, "must be what `before` of an answer says")
    after = None if place is None else (_moment(int(place[1])), place[2])
    found = search(home, loop, PredictionFilter(key, begin, end, flag, package, after), limit + 1)
    if not found:  # what is not in the log may be there none the less
        _check_key(declared, key)
        _check_flag(declared, flag)
        if package and not any(digest.startswith(package) for state in _releases(home, loop) for digest in state.packages):
            home.packages.resolve(package)
    rows = [
        LoggedPrediction(**{n: r[f"_{n}"] for n in LoggedPrediction.__struct_fields__} | {"at": _moment(r["_at"])})
        for r in found[:limit]
    ]
    last = found[limit - 1] if len(found) > limit else None
    query = {"key": key, "since": since, "until": until, "flag": flag, "package": package}
    return PredictionList(
        loop=loop,
        query={name: value for name, value in query.items() if value},
        rows=rows,
        before="" if last is None else f"{last['_at']}-{last['_id']}",
    )


def _check_key(loop: "Loop", key: str) -> None:
    """Raise UsageError for a text that is no key of the loop: a column's name with it, or too few values."""
    columns = loop.requests.key
    if key and key.count("|") + 1 < len(columns):
        raise UsageError(f'--key {key[:80]!r}: write the values of {", ".join(columns)} as they were sent, joined by "|"')
    if name := re.match(r"[A-Za-z_]\w*(?==)", key):
        there = "" if name[0] in loop.requests.columns else f"there is no column {name[0][:80]!r}; "
        raise UsageError(f"--key {key[:80]!r}: {there}write the value of {', '.join(columns)} alone, as it was sent")


def _check_flag(loop: "Loop", flag: str) -> None:
    """Raise UsageError for a flag that no prediction can have, with those that there are."""
    kind, _, name = flag.partition(":")
    if flag and kind not in FLAGS:
        raise UsageError(f"no flag {flag[:80]!r}: one of {', '.join(FLAGS)}")
    names = loop.tables if kind.endswith("_context") else loop.columns
    if name and name not in {*names, *(a.name for a in loop.aggregates)}:
        raise UsageError(f"no flag {flag[:80]!r}: {kind} is of {', '.join(names)}")


def _deleted(home: Home, id: str) -> str:
    """Why the prediction of an id may be gone, "" where no retention has reached its time."""
    from loopwright.base.ids import time_of
    from loopwright.stores.prediction_log.read import loops
    from loopwright.stores.prediction_log.retention import retained_since

    try:
        at = time_of(id)
    except (ValueError, OverflowError):  # no id, or one that a client made up
        return ""
    limits = [since for loop in loops(home) if (since := retained_since(home, loop)) is not None and at < since]
    return f"predictions of before {max(limits):%Y-%m-%d} are not kept (LOOPWRIGHT_KEEP)" if limits else ""


def trace(home: Home, id: str) -> Trace:
    """One prediction: back to its data, forward to its outcome and value.

    Args:
        id: the 32 hexadecimal digits that came with the answer, or the X-Request-Id that a request for one row was sent with.
    """
    from loopwright.base.ids import trace_id_of
    from loopwright.stores.packages.probe import open_probed
    from loopwright.stores.prediction_log.read import find

    found = find(home, trace_id_of(id))
    if found is None:
        raise PredictionNotFound(id, _deleted(home, id))
    loop, prediction = found
    at = _moment(prediction.at)
    try:
        package = open_probed(home.packages, prediction.package)
    except (NotFound, PackageRefused) as error:
        return _trace_without_package(home, loop, prediction, at, str(error))
    manifest = package.manifest
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


def _trace_without_package(home: Home, loop: str, prediction: "Prediction", at: dt.datetime, trouble: str) -> Trace:
    """What the log alone says of a prediction whose package cannot be read."""
    return Trace(
        id=prediction.id,
        loop=loop,
        at=at,
        request=prediction.request,
        context=prediction.context,
        context_age_s=prediction.context_age_s,
        features={},
        score=prediction.score,
        threshold=float("nan"),
        label=prediction.label,
        heuristic=None,
        flags=prediction.flags,
        latency_us=prediction.latency_us,
        arm=prediction.arm,
        package=prediction.package,
        candidate="",
        commit="",
        trained_until=None,
        training_rows=0,
        files=[],
        release=_release_of(home, loop, prediction.package, at),
        outcome=None,
        trouble=trouble,
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
    from loopwright.graph.session import Feeder

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
    from loopwright.deploy.serving.explanations import PackageReasons

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
    releases = _releases(home, loop)
    mine = [r for r in releases if package in r.packages]
    return next((r for r in reversed(mine) if r.since <= at), mine[0] if mine else None)


def _outcome_of(home: Home, loop: str, prediction: "Prediction", output: "Output") -> TracedOutcome | None:
    import numpy as np

    from loopwright.stores.outcomes.table import of_prediction
    from loopwright.tasks import metrics

    declared = Attempts(loop).run("declaration", lambda: known_loop(home, loop), None)
    if declared is None:  # what its outcome is nobody can say; `status` tells why
        return None
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
        value=float(earned[0]) if declared.scope.value.given else None,
        currency=declared.scope.value.currency,
    )
