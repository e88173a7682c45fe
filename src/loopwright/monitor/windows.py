"""Close every monitoring window that is due, judge it, and decide whether to retrain and to alert.

In the order of `watch`: windows due are measured (inputs, then quality of the predictions whose wait for an outcome is over),
windows are measured again when it is over for all of them and where outcomes are corrected soon after, a reason to retrain is looked for, alerts are raised and closed.
Everything that is found about one window is written in one transaction, so that each window is closed exactly once
however often a process dies on the way; a reason to retrain that was not acted upon is given again.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base import failpoints
from loopwright.base.clock import microseconds
from loopwright.base.errors import NotFound, PackageRefused
from loopwright.base.text import count, interval, number, spaced
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph
from loopwright.monitor import alerts
from loopwright.monitor.decay import Decay, decay_level
from loopwright.monitor.drift.baseline import derived_features, drift_baseline
from loopwright.monitor.drift.impact import Impact
from loopwright.monitor.fleet import Fleets
from loopwright.monitor.inputs import DriftContext, packages_of, rows_by_arm, watched_columns, window
from loopwright.monitor.quality import quality
from loopwright.records.attempts import Attempts
from loopwright.records.declarations import Monitor, Outcome, Retrain, duration
from loopwright.records.entries import Entry
from loopwright.records.releases import CHAMPION, ReleaseState
from loopwright.records.turns import Turn
from loopwright.records.windows import Alert, DecayCheck, Quality, Trigger, Window
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import with_truth, without_absent
from loopwright.stores.packages.probe import Probed, open_probed
from loopwright.stores.prediction_log.read import first_at, predictions
from loopwright.stores.windows import newest_ended
from loopwright.tasks import metrics

__all__ = ["Watched", "watch", "watched_columns"]

MAX_WINDOWS = 1000
"""So many windows are closed in one call at most; the next call goes on."""

MAX_HISTORY = 60
"""So many earlier windows show how much windows differ from each other."""

AT_ONCE_ROWS = 300_000
"""So many predictions of earlier windows are read together with those of the new one; more are read window by window."""

PREVIOUS = 8
"""So many windows back a column may last have been as usual."""

EARLY = "early-windows"
"""Key of the alert that windows were closed while the clock was ahead."""

DEGRADED_SHARE = 0.01
"""A larger share of answers by the fall-back raises an alert."""

Array = np.ndarray[Any, Any]


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What a watch found: windows newly closed, quality newly measured or revised, the reason to retrain if there is one."""

    windows: list[Window]
    qualities: list[Quality]
    trigger: Trigger | None
    alerts: list[Alert]


def watch(
    home: Home,
    *,
    loop_name: str,
    monitor: Monitor,
    retrain: Retrain,
    outcome: Outcome,
    until: datetime,
    attempts: Attempts | None = None,
    unit: str = "",
) -> Watched:
    """Close every window of the loop that is over at `until`, revise earlier ones, and decide whether to retrain.

    Windows follow each other from the first release (or the first prediction, where that is earlier) in steps of
    `monitor.every`; a stretch without predictions is a window too, in state `no data`, and one window however long it
    was: what comes late to a silence of years does not close hundreds. Each is stored under its start (ISO 8601). A
    window's quality is provisional until `outcome.wait` after its end, and is revised for one more window where outcomes are corrected.
    """
    steps = attempts or Attempts(loop_name, strict=True)
    retrain = msgspec.structs.replace(retrain, decay_metric=retrain.decay_metric or metrics.decay(outcome.task))
    steps.run("look for windows closed too early", lambda: _tell_early(home, loop_name, until), None)
    due = steps.run("find windows due", lambda: list(_due(home, loop_name, monitor, until)), list[tuple[datetime, datetime]]())
    watcher = _Watcher(home, loop_name, monitor, retrain, outcome, until, unit)
    found: list[_ClosedWindow] = []
    steps.run("close windows", lambda: watcher.close_all(due, found), None)
    closed = [each.quality for each in found]
    revised = steps.run("revise windows", lambda: watcher.revise(skip={q.start for q in closed}), list[Quality]())
    trigger = steps.run("look for a reason to retrain", watcher.trigger, None)
    steps.run("send alerts", lambda: alerts.send(home, loop_name), list[Alert]())
    return Watched(
        windows=[each.window for each in found],
        qualities=sorted([*closed, *revised], key=lambda q: q.start),
        trigger=trigger,
        alerts=[alert for each in found for alert in each.alerts],
    )


def _tell_early(home: Home, loop: str, until: datetime) -> None:
    """Alert, once, that windows were closed while the clock was ahead; the next window that is closed closes the alert."""
    last = home.ledger.latest(Window, loop=loop)
    before = home.ledger.latest(Alert, loop=loop, key=EARLY)
    if last is None or last.record.end <= until or (before is not None and before.record.state == "open"):
        return
    detail = f"the newest ends at {last.record.end:%Y-%m-%d %H:%M} UTC, and it is {until:%Y-%m-%d %H:%M}: they are closed again in time"
    alerts.decide(home, loop, EARLY, severity="warning", title="Windows were closed while the clock was ahead", detail=detail)


def _due(home: Home, loop: str, monitor: Monitor, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    step = duration(monitor.every)
    last = newest_ended(home.ledger, Window, loop, until)
    start = last.record.end if last is not None else _anchor(home, loop, step, until)
    if start is None or start + step > until:
        return
    # The usual case is one window, which needs no look at the log.
    moments = _moments(home, loop, start, until) if start + 2 * step <= until else None
    for _ in range(MAX_WINDOWS):
        if start + step > until:
            return
        end = start + step * (1 if moments is None else _silent_steps(moments, start, step, until))
        yield start, end
        start = end


def _moments(home: Home, loop: str, start: datetime, until: datetime) -> Array:
    """When each prediction of [start, until) was made, in microseconds, sorted."""
    at = predictions(home, loop, start=start, end=until, columns=["_at"])["_at"].cast(pa.int64())
    return np.sort(at.to_numpy())


def _silent_steps(moments: Array, start: datetime, step: timedelta, until: datetime) -> int:
    """How many steps the window from `start` takes: as many as are over and without a prediction, but at least one."""
    after = int(np.searchsorted(moments, microseconds(start)))
    stop = until if after == len(moments) else start + timedelta(microseconds=int(moments[after]) - microseconds(start))
    return max(1, (min(stop, until) - start) // step)


def _anchor(home: Home, loop: str, step: timedelta, until: datetime) -> datetime | None:
    """Start of the first window: on the hour, or, for short windows, at a multiple of their length."""
    releases = home.ledger.find(ReleaseState, loop=loop, limit=1, newest=False)
    moments = [m for m in (first_at(home, loop), *(e.record.since for e in releases)) if m is not None and m <= until]
    if not moments:
        return None
    grid = min(step, timedelta(hours=1)).total_seconds()
    moment = min(moments)
    return moment - timedelta(seconds=moment.timestamp() % grid)


class _ClosedWindow(msgspec.Struct, frozen=True):
    """What closing one window gave."""

    window: Window
    quality: Quality
    alerts: list[Alert]


class _Watcher:
    """One call of `watch`: packages are read once, and so is the prediction log where it is not too much at once."""

    def __init__(
        self, home: Home, loop: str, monitor: Monitor, retrain: Retrain, outcome: Outcome, until: datetime, unit: str
    ) -> None:
        self.home, self.loop = home, loop
        self.monitor, self.retrain, self.outcome, self.until, self.unit = monitor, retrain, outcome, until, unit
        self.wait = duration(outcome.wait)
        self._packages: dict[str, Probed | None] = {}
        self._slices: dict[str, Graph] = {}
        self.fleets = Fleets(home, loop)
        self._at_once: tuple[datetime, pa.Table, Array] | None = None

    # --- measuring -----------------------------------------------------------------------------------------------

    def close_all(self, due: list[tuple[datetime, datetime]], closed: list[_ClosedWindow]) -> None:
        """Close the windows one after another, each added to `closed`; those before one that cannot be closed are closed."""
        self._at_once = self._read(due)
        for start, end in due:
            closed.append(self.close(start, end))  # what was closed counts, also where the next one raises

    def close(self, start: datetime, end: datetime) -> _ClosedWindow:
        """Measure the window and store the results in one transaction."""
        joined = self._joined(start, end)
        found = self._window(joined, start, end)
        measured = self._quality(joined, start, end)
        links = [(digest, "answered") for digest in found.packages]
        failpoints.hit("window.computed")
        with self.home.ledger.batch():
            entry = self.home.ledger.put(found, loop=self.loop, key=start.isoformat(), links=links)
            self.home.ledger.put(measured, loop=self.loop, key=start.isoformat(), links=[(entry.id, "measured in")])
            raised = self._alerts(found, measured)
        failpoints.hit("window.closed")
        return _ClosedWindow(found, measured, raised)

    def _window(self, joined: pa.Table, start: datetime, end: datetime) -> Window:
        """The window of the rows, and of each arm where several answered."""
        arms = rows_by_arm(joined)
        champions = arms.get(CHAMPION)
        package = self.fleets.whole(self.package(self.fleets.main(joined if champions is None else champions)))
        context = (
            DriftContext() if package is None else self._context(package, joined if champions is None else champions, start)
        )
        found = window(joined, package, self.monitor, start, end, context, champions)
        return msgspec.structs.replace(found, arms={name: self._window(rows, start, end) for name, rows in arms.items()})

    def _context(self, package: Probed, rows: pa.Table, start: datetime) -> DriftContext:
        """Baseline of the window from `start`."""
        known = drift_baseline(self.home, self.loop, package, self.monitor)
        features = {n: v[0] for n, v in derived_features(package, [rows]).items()} if known.features else {}
        before = self.home.ledger.find(Window, loop=self.loop, limit=PREVIOUS)
        previous = [e.record for e in before if e.record.end <= start]
        if len(self.fleets.together(package.digest)) > 1:  # its history has the answers of one package, not of the fleet
            answers = {h.column for h in package.reference.columns if h.role == "output"}
            known = msgspec.structs.replace(known, variation={n: v for n, v in known.variation.items() if n not in answers})
        return DriftContext(known, previous, features, Impact(package, rows))

    def revise(self, *, skip: set[datetime]) -> list[Quality]:
        """Measure again each provisional window whose wait is over, and each since then for which outcomes came, or changed."""
        revised = []
        for before in self.open_qualities():
            if before.start in skip or not before.rows or (before.mature_at is not None and before.mature_at > self.until):
                continue
            joined = self._joined(before.start, before.end)
            came = pc.sum(pc.is_valid(joined["_truth"])).as_py() or 0
            newest = pc.max(joined["_known_at"].cast(pa.int64())).as_py() if came else None
            same = came == before.with_outcome and (newest is None or newest <= microseconds(before.known_at))
            if same and before.mature_at is None:
                continue
            revised.append(self._quality(joined, before.start, before.end))
            with self.home.ledger.batch():
                self.home.ledger.put(revised[-1], loop=self.loop, key=before.start.isoformat())
                if not any(q.start > before.start and q.mature_at is None for q in self.open_qualities()):
                    self._decay_alert(revised[-1])
        return revised

    def open_qualities(self) -> list[Quality]:
        """The newest quality of each window that is provisional, or has not been for longer than a window takes, oldest first."""
        every = duration(self.monitor.every)
        found = []
        for entry in self.home.ledger.find(Window, loop=self.loop, limit=min(int(self.wait / every) + 3, MAX_WINDOWS)):
            if entry.record.end > self.until:
                continue  # closed while the clock was ahead
            latest = self.home.ledger.latest(Quality, loop=self.loop, key=entry.key)
            if latest is None:
                continue
            if latest.record.mature_at is not None or entry.record.end + self.wait + every >= self.until:
                found.append(latest.record)
        return found[::-1]

    def _read(self, due: list[tuple[datetime, datetime]]) -> tuple[datetime, pa.Table, Array] | None:
        """The log of all windows this call looks at, with their truth, in one go; None where that would be too much."""
        earlier = self.open_qualities()
        if len(due) != 1 or sum(q.rows for q in earlier) > AT_ONCE_ROWS:
            return None
        start = min([due[0][0], *(q.start for q in earlier)])
        joined = with_truth(self.home, self.loop, self.outcome, start=start, end=due[0][1], known_at=self.until)
        return start, joined, joined["_at"].cast(pa.int64()).to_numpy()

    def _joined(self, start: datetime, end: datetime) -> pa.Table:
        """The predictions of [start, end) with their truth as known now."""
        if self._at_once is None or start < self._at_once[0]:
            joined = with_truth(self.home, self.loop, self.outcome, start=start, end=end, known_at=self.until)
        else:
            _, joined, at = self._at_once
            joined = joined.filter(pa.array((at >= microseconds(start)) & (at < microseconds(end))))
        if self.outcome.absent is None:
            return joined
        earlier = [(q.arrived, q.with_outcome) for q in self._earlier(start) if q.arrived is not None and q.with_outcome]
        return without_absent(joined, earlier)

    def _earlier(self, start: datetime) -> list[Quality]:
        """The newest quality of the windows before, oldest first."""
        return [self._judged[earlier] for earlier in sorted(self._judged) if earlier < start][-MAX_HISTORY:]

    def _quality(self, joined: pa.Table, start: datetime, end: datetime) -> Quality:
        packages = {digest: package for digest in packages_of(joined) if (package := self.package(digest)) is not None}
        self._judged[start] = quality(
            joined,
            self._sliced(joined, self.package(self.fleets.main(joined))),
            {digest: self.fleets.evaluation(package) for digest, package in packages.items()},
            start,
            end,
            outcome=self.outcome,
            outputs={digest: package.manifest.output for digest, package in packages.items()},
            known_at=self.until,
            decay=Decay(
                self.retrain.decay_metric,
                self.retrain.decay,
                decay_level(duration(self.monitor.every), self.monitor.false_alarms_per_year),
                self._earlier(start),
            ),
            minimum_rows=self.monitor.minimum_rows,
            unit=self.unit,
        )
        return self._judged[start]

    @cached_property
    def _judged(self) -> dict[datetime, Quality]:
        """The newest quality of the newest windows, by start."""
        newest = self.home.ledger.newest(Quality, loops=[self.loop], per="key", limit=MAX_HISTORY)
        return {entry.record.start: entry.record for entry in newest}

    def _sliced(self, joined: pa.Table, package: Probed | None) -> dict[str, Array]:
        """Slice name -> its value on every row [N], by the package's own slice graph; and the segment, where there is a fleet."""
        if package is None:
            return {}
        found: dict[str, Array] = {}
        if "slices.onnx" in package.files:
            graph = self._slices.setdefault(package.digest, package.graph("slices.onnx"))
            found = graph.run(arrow_feed(graph, package.columns, joined))
        return {**found, **self.fleets.slices(joined, found)}

    def package(self, digest: str) -> Probed | None:
        """A package, read once; None when it is gone, damaged or refused by its probe (`verify` says which)."""
        if digest not in self._packages:
            try:
                self._packages[digest] = open_probed(self.home.packages, digest) if digest else None
            except (NotFound, PackageRefused):
                self._packages[digest] = None
        return self._packages[digest]

    # --- retraining ----------------------------------------------------------------------------------------------

    @cached_property
    def serving(self) -> Probed | None:
        """The package that serves now."""
        release = self.home.ledger.latest(ReleaseState, loop=self.loop)
        return self.package(release.record.champion.package) if release is not None and release.record.arms else None

    def trigger(self) -> Trigger | None:
        """The reason to retrain, if there is one that no turn has acted upon since the newest window was closed.

        It is worked out from what is stored, so that a decision is neither lost nor made twice by a process that dies:
        the same answer comes until a turn is over. Cooldown and schedule count from the training of the package that
        serves, or from the last turn where that is later, so that a turn which released nothing is not repeated at once.
        """
        newest = newest_ended(self.home.ledger, Window, self.loop, self.until)
        if newest is None or self.serving is None:
            return None
        turns = self.home.ledger.find(Turn, loop=self.loop, limit=20)
        turn = next((t for t in turns if t.record.state in ("done", "failed")), None)
        trained = self.serving.manifest.training.as_of
        last = max(trained, turn.record.as_of) if turn is not None else trained
        if last <= self.until < last + duration(self.retrain.cooldown):
            return None
        acted = turn is not None and turn.sequence > newest.sequence
        found = (None if acted else self._decay() or self._drift(newest.record)) or self._schedule(newest.record, last)
        key = newest.key
        if found is not None and all(e.record.cause != found.cause for e in self._stored_triggers(key)):
            self.home.ledger.put(found, loop=self.loop, key=key, links=[(newest.id, "gave reason for")])
        return found

    def _stored_triggers(self, key: str) -> list[Entry[Trigger]]:
        return self.home.ledger.find(Trigger, loop=self.loop, key=key)

    def _decay(self) -> Trigger | None:
        """Decay counts against the package that serves, in the newest window with all outcomes that it answered in."""
        if self.serving is None or self.retrain.decay is None:
            return None
        digest = self.serving.digest
        fleet = self.fleets.together(digest)
        for measured in reversed(self.open_qualities()):
            whole = len(fleet) > 1 and fleet >= set(measured.by_package)  # else another release answered as well
            check = measured.decay if whole else measured.decay_by_package.get(digest)
            if check is None or measured.state == "no data":
                continue
            if not check.cause:
                return None
            return Trigger(cause="decay", reason=_worse(check, measured.start), evidence=[measured.start.isoformat()])
        return None

    def _drift(self, newest: Window) -> Trigger | None:
        """Drift counts against the package that serves: in the newest window, if it answered most of it."""
        if self.retrain.drift is None or newest.state != "drift" or len(newest.drifted) < self.retrain.drift:
            return None
        if self.serving is None or newest.reference != self.serving.digest:
            return None
        since, mature = self._mature_since(self.serving.manifest.training.last), self._mature_since(newest.start)
        if not since:
            return None
        of_drift = f"{count(mature, 'decision')} since its start" if mature else "none of that window"
        return Trigger(
            cause="drift",
            reason=f"{_columns(newest.drifted)} in the window to {newest.end:%Y-%m-%d}: {', '.join(newest.drifted)}; "
            f"the wait is over for {count(since, 'decision')} after the last training, {of_drift}",
            evidence=[newest.start.isoformat()],
        )

    def _mature_since(self, start: datetime) -> int:
        """Number of decisions after `start` whose wait for an outcome is over, so that a model can learn from them."""
        end = self.until - self.wait
        return len(predictions(self.home, self.loop, start=start, end=end, columns=["_at"])) if start < end else 0

    def _schedule(self, newest: Window, last: datetime) -> Trigger | None:
        """The schedule rests while nobody asks: there is nothing new to learn from. Rows too few to judge drift are something."""
        if self.retrain.every is None or not newest.rows or self.until - last < duration(self.retrain.every):
            return None
        return Trigger(cause="schedule", reason=f"{self.retrain.every} have passed since the training of {last:%Y-%m-%d}")

    # --- alerts --------------------------------------------------------------------------------------------------

    def _alerts(self, measured_window: Window, measured: Quality) -> list[Alert]:
        """Raise and close the alerts that one window calls for."""
        day = f"the window from {measured_window.start:%Y-%m-%d %H:%M} to {measured_window.end:%Y-%m-%d %H:%M} UTC"
        columns = {c.column: c for c in measured_window.columns}
        top = ", ".join(columns[name].text for name in measured_window.drifted)
        raised = [
            self._alert("no-data", not measured_window.rows, "critical", "No predictions arrive", f"none in {day}"),
            self._alert(
                "drift", measured_window.state == "drift", "warning", _columns(measured_window.drifted), f"{top}, in {day}"
            )
            if measured_window.state != "no data"
            else None,
            self._alert(
                "degraded",
                measured_window.degraded > DEGRADED_SHARE,
                "critical",
                "The fall-back answers instead of the model",
                f"{measured_window.degraded:.1%} of {count(measured_window.rows, 'prediction')} in {day}",
            ),
            self._decay_alert(measured),
            self._no_outcomes_alert(measured_window),
            self._alert(EARLY, False, "warning", "", ""),
        ]
        return [alert for alert in raised if alert is not None]

    def _alert(self, key: str, on: bool, severity: alerts.Severity, title: str, detail: str) -> Alert | None:
        if on:
            return alerts.decide(self.home, self.loop, key, severity=severity, title=title, detail=detail)
        alerts.close_alert(self.home, self.loop, key, detail="not so in the window after")
        return None

    def _decay_alert(self, measured: Quality) -> Alert | None:
        if measured.state == "no data":
            return None
        detail = _worse(measured.decay, measured.start) if measured.decay is not None else ""
        return self._alert("decay", measured.state == "decayed", "critical", "Quality has decayed", detail)

    def _no_outcomes_alert(self, measured_window: Window) -> Alert | None:
        """Predictions whose wait is over and none of which was ever answered by an outcome."""
        steps = int(self.wait / duration(self.monitor.every)) + 3
        due, measured = None, None
        for entry in self.home.ledger.find(Window, loop=self.loop, limit=steps):
            if entry.record.rows < self.monitor.minimum_rows or entry.record.end + self.wait > measured_window.end:
                continue
            latest = self.home.ledger.latest(Quality, loop=self.loop, key=entry.key)
            if latest is not None and latest.record.mature_at is None:
                due, measured = entry.record, latest.record
                break
        if due is None or measured is None:
            return None
        none = not measured.with_outcome
        detail = f"none for {count(due.rows, 'prediction')} from {due.start:%Y-%m-%d} on, after a wait of {self.outcome.wait}"
        return self._alert("no-outcomes", none, "critical", "No outcomes arrive", detail)


def _worse(check: DecayCheck, start: datetime) -> str:
    """Describe the decay in a sentence."""
    promise = f"it was {number(check.promised.value)} when the package was made"
    if check.cause == "harm":
        harm = check.since_release
        return f"{spaced(check.metric)} is worse than promised by {harm.text} over {count(harm.windows, 'window')} since the release; {promise}"
    return f"{spaced(check.metric)} is {interval(check.now)} in the window from {start:%Y-%m-%d}; {promise}"


def _columns(drifted: list[str]) -> str:
    return f"{count(len(drifted), 'column')} drifted"
