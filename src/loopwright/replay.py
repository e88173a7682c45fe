"""The loop against history: real requests and outcomes on a simulated clock, through the same functions the server uses.

Each request is answered at its own moment with the context known then; each outcome arrives when it became known; each
monitoring window closes when it is over; a trigger retrains, gates and releases by itself. Nothing sees the future:
whatever a step reads, it reads as of the simulated clock.
"""

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.clock import SimulatedClock, microseconds
from loopwright.base.errors import ExamplesRefused, GateFailed, UsageError
from loopwright.base.ids import digest, new_ids
from loopwright.base.progress import Progress, Silent
from loopwright.base.settings import Settings
from loopwright.base.text import count
from loopwright.data.examples import asof
from loopwright.data.examples.context import feed
from loopwright.data.ingest.ingestion import put_contract
from loopwright.deploy.releases import serving
from loopwright.deploy.serving.arms import Arms
from loopwright.deploy.serving.package_cache import RULE, PackageCache, key_of
from loopwright.deploy.serving.predictor import Predictor
from loopwright.deploy.serving.segment_router import SegmentRouter
from loopwright.deploy.serving.shadow import Repeater
from loopwright.deploy.strategies import rules_of
from loopwright.judging import judge_release
from loopwright.records.declarations import Loop, Retrain, Table, Value, duration
from loopwright.records.evaluation import Estimate, added
from loopwright.records.ingestions import Ingested
from loopwright.records.prediction import OutcomeRow, unit_text
from loopwright.records.releases import ReleaseState
from loopwright.records.windows import Quality, Window
from loopwright.stores.contracts import Contract
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import Known, known, with_truth
from loopwright.stores.outcomes.rescore import routed, score, segment_packages
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered
from loopwright.tend import Upkeep, upkeep
from loopwright.turn import turn

Policy = Literal["declared", "never", "weekly", "monthly", "drift"]
POLICIES: dict[str, Retrain | None] = {
    "declared": None,
    "never": Retrain(),
    "weekly": Retrain(every="7d", cooldown="0s"),
    "monthly": Retrain(every="30d", cooldown="0s"),
    "drift": Retrain(drift=1),
}


BATCH = 1000
"""Number of requests answered in one graph run."""

STEPS = 4
"""A stage of a release is judged so many times while it lasts."""


class Lap(msgspec.Struct, kw_only=True):
    """Results of one monitoring window of a replay."""

    start: datetime
    end: datetime
    rows: int
    window: Window | None
    quality: Quality | None
    package: str
    event: str


class ReplayRun(msgspec.Struct, kw_only=True):
    """A whole replay: its laps, and its first release."""

    laps: list[Lap]
    first: ReleaseState
    metric: str
    seconds: float


class PolicyComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The replay's predictions with a known outcome: the lap of each [N], its truth, and the answer of each policy."""

    lap: np.ndarray
    known: Known
    given: dict[str, Answered]


def workspace(home: Home, loop: Loop, start: datetime, folder: Path) -> Home:
    """A home of its own for one replay, on a simulated clock, with the loop's declared tables as they are in `home`."""
    scratch = Home(Settings(home=folder, by=home.by), SimulatedClock(start))
    for name, table in loop.tables.items():
        scratch.lake.write(name, home.lake.read(name), mode="overwrite")
        if (contract := home.ledger.latest(Contract, key=name)) is not None:
            scratch.ledger.put(contract.record, key=name)
        put_contract(scratch, table)  # columns declared since the last turn are null, as `run` makes them
        for entry in home.ledger.find(Ingested, key=name, newest=False):
            scratch.ledger.put(entry.record, key=name)
    return scratch


def check_policy(policy: str) -> None:
    """Raise UsageError for an unknown policy."""
    if policy not in POLICIES:
        raise UsageError(f"no policy {policy[:80]!r}: one of {', '.join(POLICIES)}")


def replay(
    home: Home,
    loop: Loop,
    *,
    file: str = "",
    start: datetime,
    end: datetime,
    policy: str = "declared",
    progress: Progress | None = None,
) -> ReplayRun:
    """Replay [start, end) in `home`, whose clock must be a SimulatedClock set to `start` or earlier.

    The first turn trains on what was known at `start`. Raises UsageError for an unknown policy or an empty interval.
    """
    check_policy(policy)
    if not isinstance(home.clock, SimulatedClock):
        raise UsageError("a replay needs a home on a simulated clock")
    progress = progress or Silent()
    clock, tick = home.clock, home.clock.monotonic()
    loop = msgspec.structs.replace(loop, retrain=_retrain(loop, policy))
    requests = between(home, loop.requests, loop.requests.event_time, start, end)
    if not requests.num_rows:
        raise UsageError(f"table {loop.requests.name!r} has no rows from {start:%Y-%m-%d} to {end:%Y-%m-%d}: nothing to replay")
    clock.advance_to(start)
    progress.say(f"first turn, on what was known on {start:%Y-%m-%d}")
    turn(home, loop, file=file, as_of=start, why="first turn", progress=progress)
    first = serving(home, loop.name)
    if first is None:
        raise GateFailed("", ["the first turn released nothing, so there is nothing to replay"])
    traffic = Traffic(home, loop, requests, start, end)
    laps = []
    for begin, stop in pairwise(edges(start, end, duration(loop.monitor.every))):
        rows = _serve(home, loop, clock, traffic, begin, stop, progress)
        now = serving(home, loop.name)
        kept = upkeep(home, loop, until=stop)
        lap = Lap(
            start=begin,
            end=stop,
            rows=rows,
            window=kept.watched.windows[-1] if kept.watched.windows else None,
            quality=next((q for q in kept.watched.qualities if q.start == begin), None),
            package=now.champion.package if now else "",
            event="",
        )
        lap.event = _respond(home, loop, file, kept, stop < end, progress)
        laps.append(lap)
        progress.say(_line(lap, loop, kept))
        progress.advance("replay", (stop - start).total_seconds(), (end - start).total_seconds())
    traffic.close()
    for lap in laps:  # outcomes that came late revised it; policies are compared on the same outcomes
        revised = home.ledger.latest(Quality, loop=loop.name, key=lap.start.isoformat())
        lap.quality = revised.record if revised is not None else lap.quality
    return ReplayRun(laps=laps, first=first, metric=_metric(loop), seconds=clock.monotonic() - tick)


def _serve(
    home: Home, loop: Loop, clock: SimulatedClock, traffic: "Traffic", begin: datetime, stop: datetime, progress: Progress
) -> int:
    """Answer [begin, stop); while a release is under way in steps, judging it after each. Returns the number of rows."""
    rows, at = 0, begin
    while at < stop:
        now = serving(home, loop.name)
        stage = now.under_way if now is not None else None
        until = stop
        if now is not None and stage is not None:  # a stage that is held is judged ever more seldom
            until = min(stop, at + max(rules_of(stage).lasts(stage) / STEPS, (at - now.since) / STEPS, timedelta(minutes=1)))
        rows += traffic.answer(at, until)
        clock.advance_to(until)
        if stage is not None and until < stop:
            commit(home, loop.name)
            verdict = judge_release(home, loop, until)
            if verdict is not None and verdict.answer != "hold":
                progress.say(f"{until:%d %b %H:%M}: release {verdict.answer}: {verdict.why}")
        at = until
    return rows


def _metric(loop: Loop) -> str:
    """The metric of quality."""
    return loop.retrain.decay_metric or metrics.primary(loop.outcome.task)


def _retrain(loop: Loop, policy: str) -> Retrain:
    """The retraining rule of a policy; history length and quality metric are as declared."""
    when = POLICIES[policy]
    if when is None:
        return loop.retrain
    return msgspec.structs.replace(when, window=loop.retrain.window, decay_metric=loop.retrain.decay_metric)


def _respond(home: Home, loop: Loop, file: str, upkeep: Upkeep, more: bool, progress: Progress) -> str:
    """Retrain if a trigger fired; returns the result in a few words."""
    trigger = upkeep.watched.trigger
    if trigger is None or not more:
        return ""
    progress.say(f"retraining ({trigger.cause}): {trigger.reason}")
    try:
        steps = turn(
            home,
            loop,
            file=file,
            as_of=home.clock.now(),
            cause=trigger.cause,
            why=trigger.reason,
            refit=True,
            progress=progress,
        )
    except ExamplesRefused as error:
        return f"retraining refused: {error}"
    deployed = next(s for s in steps if s.stage == "deploy")
    return f"retrained ({trigger.cause}), " + (
        "released" if deployed.output.get("released") else "not released: the gate said no"
    )


def _line(lap: Lap, loop: Loop, upkeep: Upkeep) -> str:
    """One line of progress; money where a value table is declared."""
    metric = _metric(loop)
    parts = [f"{lap.start:%d %b} - {lap.end:%d %b}", f"{count(lap.rows, 'prediction')}"]
    if lap.window is not None:
        parts.append(lap.window.state + (f" ({', '.join(lap.window.drifted)})" if lap.window.drifted else ""))
    mature = lap.quality is not None and lap.quality.mature_at is None
    if lap.quality is not None and not mature:
        parts.append(f"quality {lap.quality.state_text}")
    elif lap.quality is not None and metric in lap.quality.metrics:
        parts.append(f"{metric} {lap.quality.metrics[metric].value:.3f} on {count(lap.quality.with_outcome, 'outcome')}")
    value = next((v for v in upkeep.values if v.start == lap.start), None)
    if value is not None and mature and loop.scope.value.is_set:
        parts.append(f"{value.over_no_model.value:+,.0f} {value.currency}")
    return " | ".join(parts + ([lap.event] if lap.event else []))


def edges(start: datetime, end: datetime, step: timedelta) -> list[datetime]:
    """Window edges from `start` in steps, the last one cut at `end`."""
    found = [start]
    while found[-1] + step < end:
        found.append(found[-1] + step)
    return [*found, end]


def between(home: Home, table: Table, column: str, start: datetime, end: datetime) -> pa.Table:
    """Rows of a lake table whose `column` is in [start, end), sorted by it, timestamps as microseconds (int64)."""
    data = home.lake.read(table.name, columns=list(table.columns))
    inside = pc.and_(pc.greater_equal(data[column], pa.scalar(start)), pc.less(data[column], pa.scalar(end)))
    data = data.filter(inside).sort_by(column)
    for name, declared in table.columns.items():
        if declared.type == "timestamp":
            index = data.schema.get_field_index(name)
            data = data.set_column(index, name, data[name].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()))
    return data


class Traffic:
    """Requests, context and outcomes of the past, handed to the same predictor and logs that the server uses.

    The online table is fed once with all rows: a look-up finds the step in force at its moment.
    """

    def __init__(self, home: Home, loop: Loop, requests: pa.Table, start: datetime, end: datetime) -> None:
        self.home, self.loop = home, loop
        self.requests = requests
        self.times = requests[loop.requests.event_time].to_numpy()
        self.outcomes = between(home, loop.outcome.table, loop.outcome.table.known, start, end + duration(loop.outcome.wait))
        self.known = self.outcomes[loop.outcome.table.known].to_numpy() + _microseconds(
            duration(loop.outcome.table.known_after)
        )
        feed(home, asof.joined(loop.context, loop.aggregates), since=start, until=end)
        self.predictions = LogWriter(log_folder(home.path, loop.name), "predictions")
        self.truths = LogWriter(log_folder(home.path, loop.name), "outcomes")
        self.shadows = LogWriter(log_folder(home.path, loop.name), "shadows")
        self.repeater: Repeater | None = None
        self.serving: ReleaseState | None = None
        self.segments: SegmentRouter | None = None
        self.package_cache = PackageCache(self._predictor)

    def answer(self, begin: datetime, stop: datetime) -> int:
        """Answer every request of [begin, stop), each with the context known at its moment, and log the outcomes that came."""
        segments = self._segments()
        low, high = (int(np.searchsorted(self.times, microseconds(t))) for t in (begin, stop))
        for first in range(low, high, BATCH):
            last = min(first + BATCH, high)
            at = self.times[first:last].tolist()
            rows = self.requests.slice(first, last - first).to_pylist()
            answers = segments.answer(rows, ids=[self._id(t) for t in at], at_us=at)
            self.predictions.append(answers)
            if self.repeater is not None and (due := self.repeater.due(answers)):
                self.shadows.append(self.repeater.answer(due))
        self.predictions.seal()
        self.shadows.seal()
        self._truth(microseconds(begin), microseconds(stop))
        return high - low

    def _id(self, at: int) -> str:
        return new_ids(datetime.fromtimestamp(at / 1e6, tz=self.home.clock.now().tzinfo), 1)[0]

    def _segments(self) -> SegmentRouter:
        """The packages in service, loaded; kept until the release changes."""
        now = serving(self.home, self.loop.name)
        if now is None:
            raise GateFailed("", ["nothing serves"])
        if self.segments is None or self.serving != now:
            arms, before = Arms(now, self.package_cache, self.package_cache.load), self.segments
            self.segments = SegmentRouter(now, arms, self.package_cache, self.home.clock, lambda _why: None, before)
            if self.serving is not None:
                self.package_cache.drop({*map(key_of, self.serving.arms), *self.serving.packages} - {*arms.keys, *now.packages})
            shadow = now.shadow
            self.repeater = Repeater(now, shadow, self._predictor(key_of(shadow))) if shadow is not None else None
        self.serving = now
        return self.segments

    def _predictor(self, key: str) -> Predictor:
        package = open_probed(self.home.packages, key.removesuffix(RULE))
        return Predictor(package, self.home.online, self.home.clock, model=not key.endswith(RULE))

    def _truth(self, begin: int, stop: int) -> None:
        table = self.loop.outcome.table
        low, high = (int(np.searchsorted(self.known, t)) for t in (begin, stop))
        rows = self.outcomes.slice(low, high - low).to_pylist()
        for at in range(0, len(rows), 1000):
            self.truths.append(
                [
                    self._outcome(row, int(known), table)
                    for row, known in zip(rows[at : at + 1000], self.known[low + at :], strict=False)
                ]
            )
        self.truths.seal()

    def _outcome(self, row: dict[str, Any], known: int, table: Table) -> OutcomeRow:
        unit = unit_text([row[k] for k in self.loop.requests.key])
        values = {name: row[name] for name in table.columns if name not in table.key}
        id = digest(msgspec.json.encode([unit, values, known]))[:32]
        return OutcomeRow(
            id=id, prediction="", unit=unit, values=values, known_at=known, received_at=known, provenance=f"table {table.name}"
        )

    def close(self) -> None:
        """Seal the open segments."""
        self.predictions.close()
        self.shadows.close()
        self.truths.close()


def _microseconds(span: timedelta) -> int:
    return round(span.total_seconds() * 1e6)


def compare(home: Home, loop: Loop, run: ReplayRun) -> PolicyComparison:
    """Compare three policies on the rows whose wait was over at the end: the replayed releases, the first never retrained, the heuristic."""
    start, end = run.laps[0].start, run.laps[-1].end
    joined = with_truth(home, loop.name, loop.outcome, start=start, end=end, known_at=end)
    answered_by = pc.unique(joined["_package"]).to_pylist()
    found = known(
        joined, loop.outcome, {digest: home.packages.read(digest).manifest.output for digest in answered_by}, loop.unit or ""
    )
    rows, first = joined.filter(pa.array(found.rows)), open_probed(home.packages, run.first.champion.package)
    at = rows["_at"].cast(pa.int64()).to_numpy()
    return PolicyComparison(
        lap=np.searchsorted(np.array([microseconds(lap.end) for lap in run.laps]), at, "right"),
        known=found,
        given={
            "served": found.given,
            "never": routed(first, rows, segment_packages(home, run.first), onto=found.output),
            "heuristic": score(first, rows, onto=found.output, heuristic=True),
        },
    )


def worth(value: Value, comparison: PolicyComparison, policy: str) -> np.ndarray:
    """Money of each row [N] of a policy over no model."""
    found = comparison.known
    earned, idle = metrics.money(value, found.output, found.truth, comparison.given[policy])
    return np.asarray(earned - idle, dtype=np.float64)


def total(rows: np.ndarray, comparison: PolicyComparison) -> Estimate:
    """Sum per-row money over the laps, which are the independent units."""
    laps = [comparison.lap == lap for lap in np.unique(comparison.lap)]
    return added([metrics.total(rows[lap], comparison.known.units[lap]) for lap in laps])


def metric_of(comparison: PolicyComparison, name: str, policy: str, lap: int) -> float:
    """A metric of one policy in one lap; NaN where no outcome is known."""
    mask = comparison.lap == lap
    if not mask.any():
        return float("nan")
    found = comparison.known
    groups = None if found.groups is None else found.groups[mask]
    given = comparison.given[policy].at(mask)
    return metrics.compute(name, found.truth[mask], *given, output=found.output, groups=groups)
