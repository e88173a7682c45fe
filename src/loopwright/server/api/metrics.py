"""Prometheus metrics of the data plane; summed over all workers when `PROMETHEUS_MULTIPROC_DIR` is set before the import.

Labels are bounded: loops in service, packages released, kinds of flag, codes of the error table. Counts per
request are summed in memory and flushed once a second, so a killed worker loses the last second's counts.
"""

import os
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from loopwright.base import log_lines
from loopwright.base.errors import LibraryChanged, LogUnavailable, Overloaded, RequestInvalid, RequestMalformed, Unavailable
from loopwright.base.internals import internal
from loopwright.base.supervision import state, states
from loopwright.deploy.serving.package_cache import Load
from loopwright.records.prediction import Prediction
from loopwright.records.releases import Arm
from loopwright.render.http_errors import DOOR
from loopwright.server.api.metrics_files import install, write_all
from loopwright.server.api.repository import Statistics
from loopwright.stores.upkeep_state import LoopState, read_upkeep_state

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_LOAD_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
MAX_LOOPS = 256
"""Maximum number of loops counted by name: each takes 20 KB, and a share of the time to write them out."""

OTHERS = "(others)"
_EARLY_CODES = [e.code for e in (RequestInvalid, RequestMalformed, Overloaded, Unavailable, LogUnavailable)] + [DOOR[500][0]]
"""Codes of errors whose series exist for each loop from the start."""

_SEVERITIES = ("info", "warning", "critical")
_DRIFT_STATES, _QUALITY_STATES = ("ok", "watch", "drift", "no data"), ("ok", "decayed", "no data")
_STAGE_STATES = ("ok", "no data", "watch", "alert")


class Failures(Collector):
    """Failures of this server's threads, tasks and processes, and the parts that are down."""

    def __init__(self, worker: str, folder: Path | None) -> None:
        self._worker, self._folder = worker, folder

    def collect(self) -> Iterator[Metric]:
        """The counts of all processes; this process's own are current."""
        processes = {} if self._folder is None else states(self._folder)
        processes[self._worker] = state()
        failures = CounterMetricFamily(
            "loopwright_thread_failures", "Errors that ended a thread, task or process", labels=["process", "thread"]
        )
        down = GaugeMetricFamily(
            "loopwright_threads_down", "Needed threads, tasks and processes that are down", labels=["process"]
        )
        for process, each in processes.items():
            for thread, count in each.failures.items():
                failures.add_metric([process, thread], count)
            down.add_metric([process], len(each.down))
        yield failures
        yield down


class UpkeepMetrics(Collector):
    """Results of the last round of upkeep (`stores.upkeep_state`); empty before the first round has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """Gauges of the last round."""
        told = read_upkeep_state(self._folder)
        yield GaugeMetricFamily(
            "loopwright_upkeep_last_round_timestamp_seconds",
            "When the last round of upkeep ended (0: none yet)",
            value=told.at if told is not None else 0.0,
        )
        if told is None:
            return
        each = {"": LoopState(alerts=told.alerts, failed=told.failed), **told.loops}
        alerts = GaugeMetricFamily("loopwright_alerts_open", "Open alerts", labels=["loop", "severity"])
        failed = GaugeMetricFamily("loopwright_upkeep_failed_steps", "Steps that failed in the last round", labels=["loop"])
        for loop, told_of in each.items():
            failed.add_metric([loop], told_of.failed)
            for severity in _SEVERITIES:
                alerts.add_metric([loop, severity], told_of.alerts.get(severity, 0))
        yield from (alerts, failed)
        yield from self._windows(told.loops)

    @staticmethod
    def _windows(loops: Mapping[str, LoopState]) -> Iterator[Metric]:
        closed = CounterMetricFamily("loopwright_windows_closed", "Monitoring windows closed", labels=["loop"])
        end = GaugeMetricFamily(
            "loopwright_window_end_timestamp_seconds", "End of the newest window (0: none)", labels=["loop"]
        )
        drifted = GaugeMetricFamily("loopwright_drifted_columns", "Columns that drifted in the newest window", labels=["loop"])
        drift = GaugeMetricFamily("loopwright_drift_state", "1 for the state of the newest window", labels=["loop", "state"])
        quality = GaugeMetricFamily("loopwright_quality_state", "1 for the newest state of quality", labels=["loop", "state"])
        stages = GaugeMetricFamily(
            "loopwright_stage_state", "1 for the state of a stage, as `status` shows it", labels=["loop", "stage", "state"]
        )
        for loop, newest in loops.items():
            for stage, state_of in newest.stages.items():
                for name in _STAGE_STATES:
                    stages.add_metric([loop, stage, name], name == state_of)
            closed.add_metric([loop], newest.windows)
            end.add_metric([loop], newest.window_end)
            drifted.add_metric([loop], newest.drifted)
            for name in _DRIFT_STATES:
                drift.add_metric([loop, name], name == newest.state)
            for name in _QUALITY_STATES:
                quality.add_metric([loop, name], name == newest.quality)
        yield from (closed, end, drifted, drift, quality, stages)


class Current:
    """The registry without packages that are no longer in service, so that joins match only current ones."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        for metric in self._registry.collect():
            if metric.name == "loopwright_serving_info":
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


class Metrics:
    """The metrics of one worker, which is named if there are several.

    The first `MAX_LOOPS` loops are counted by name, all further ones together. `folder` is where this server's processes
    report their failures (`base.supervision`).
    """

    def __init__(self, worker: str = "", folder: Path | None = None, upkeep: Path | None = None) -> None:
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if self._shared and worker:  # files by worker instead of process: a restarted worker continues its counts
            install(worker)
        self._registry = CollectorRegistry()
        if self._shared:
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]  # the library types only part of itself
        self._registry.register(Failures(worker, folder))
        if upkeep is not None:
            self._registry.register(UpkeepMetrics(upkeep))
        own, loop = None if self._shared else self._registry, ["loop"]
        self._define_requests(own, loop)
        self._define_packages(own, loop)
        for code in sorted({*_EARLY_CODES, *(code for code, _ in DOOR.values())}):
            self._errors.labels("", code)
        for result in ("sent", "lost"):
            self._traces.labels(result)
        self._held.set(0)
        self._held_bytes.set(0)
        self._named: dict[str, str] = {"": ""}
        self._told_damaged: set[str] = set()
        self._arms: dict[str, list[Arm]] = {}
        self._timed: dict[str, list[float]] = {}
        self._tally: Tally[tuple[Counter, tuple[str, ...]]] = Tally()
        self._lock = Lock()

    def _define_requests(self, own: CollectorRegistry | None, loop: list[str]) -> None:
        """Metrics of requests and answers."""
        counter, histogram = partial(Counter, registry=own), partial(Histogram, registry=own)
        self._predictions = counter("loopwright_predictions", "Predictions answered", [*loop, "arm"])
        self._degraded = counter(
            "loopwright_degraded", "Predictions answered by the heuristic because the model failed", [*loop, "arm"]
        )
        self._flags = counter("loopwright_flags", "Predictions flagged, by kind of flag", [*loop, "arm", "flag"])
        self._outcomes = counter("loopwright_outcomes", "Outcomes accepted", loop)
        self._errors = counter("loopwright_request_errors", "Requests refused or failed, by code", [*loop, "code"])
        self._traces = counter("loopwright_traced_requests", "Requests whose spans were sent or lost", ["result"])
        self._unlogged = counter("loopwright_unlogged", "Predictions that could not be logged", loop)
        self._refused = counter("loopwright_packages_refused", "Packages that were to serve and could not be loaded", loop)
        self._swaps = counter("loopwright_swaps", "Packages put into service by a worker", loop)
        self._seconds = histogram(
            "loopwright_request_seconds", "Time of a prediction request, decoding to answer", loop, buckets=_SECONDS
        )
        self._shadows = counter(
            "loopwright_shadow_rows", "Logged requests that a shadow answered again, or left out under load", [*loop, "result"]
        )
        self._runs = counter("loopwright_runs", "Graph runs; several requests may share one", loop)

    def _define_packages(self, own: CollectorRegistry | None, loop: list[str]) -> None:
        """Metrics of packages, and of the log."""
        recent = partial(Gauge, registry=own, multiprocess_mode="mostrecent")
        together = partial(Gauge, registry=own, multiprocess_mode="livesum")
        arms = [*loop, "arm", "package"]
        self._serving = recent("loopwright_serving_info", "1 for the package of each arm in service", arms)
        self._damaged = recent(
            "loopwright_log_damaged", "Segments of the prediction log in quarantine: damaged, or missing", loop
        )
        self._held = together("loopwright_packages_loaded", "Packages in memory, over all workers")
        self._held_bytes = together("loopwright_packages_bytes", "Memory that packages take, over all workers")
        of, name = "Time to load a package, until it answers", "loopwright_package_load_seconds"
        self._loads = Histogram(name, of, buckets=_LOAD_SECONDS, registry=own)
        of = "Packages that went because others needed the memory"
        self._evictions = Counter("loopwright_packages_evicted", of, registry=own)

    def flush(self) -> None:
        """Publish the counts summed in memory; call it about once a second."""
        with self._lock:
            tally, self._tally = self._tally, Tally()
        for (counter, labels), number in tally.items():
            counter.labels(*labels).inc(number)
        timed, self._timed = self._timed, {}
        for loop, (*counts, seconds) in timed.items():
            _observe(self._seconds.labels(loop), counts, seconds)
        try:
            write_all()
        except OSError as error:
            log_lines.say("metrics", f"metrics are not written, they are counted on in memory: {error.strerror}")

    def _name(self, loop: str) -> str:
        name = self._named.get(loop)
        if name is None:
            if len(self._named) > MAX_LOOPS:
                return OTHERS
            name = self._named[loop] = loop
        return name

    def _add(self, counter: Counter, count: int, *labels: str) -> None:
        with self._lock:
            self._tally[counter, labels] += count

    def ran(self, loop: str, answers: Sequence[Prediction]) -> None:
        """One graph run."""
        loop = self._name(loop)
        arms: dict[str, int] = {}
        flags: dict[tuple[str, str], int] = {}
        for a in answers:
            arms[a.arm] = arms.get(a.arm, 0) + 1
            for flag in a.flags:
                kind = a.arm, flag.partition(":")[0]
                flags[kind] = flags.get(kind, 0) + 1
        with self._lock:
            tally = self._tally
            tally[self._runs, (loop,)] += 1
            for arm, count in arms.items():
                tally[self._predictions, (loop, arm)] += count
            for (arm, flag), count in flags.items():
                tally[self._flags, (loop, arm, flag)] += count
                if flag == "degraded":
                    tally[self._degraded, (loop, arm)] += count

    def answered(self, loop: str, seconds: float) -> None:
        """One prediction request; called in one thread."""
        loop = self._name(loop)
        timed = self._timed.get(loop)
        if timed is None:
            timed = self._timed[loop] = [0.0] * (len(_SECONDS) + 2)
        timed[bisect_left(_SECONDS, seconds)] += 1
        timed[-1] += seconds

    def accepted(self, loop: str, count: int) -> None:
        """Outcomes that were accepted."""
        self._add(self._outcomes, count, self._name(loop))

    def shadowed(self, loop: str, answered: int, dropped: int) -> None:
        """Rows that a shadow answered, and that it left out."""
        for result, count in (("answered", answered), ("dropped", dropped)):
            self._add(self._shadows, count, self._name(loop), result)

    def traced(self, what: str, count: int) -> None:
        """Requests whose spans were sent, or lost."""
        self._add(self._traces, count, what)

    def failed(self, loop: str, code: str) -> None:
        """A request that was refused or failed; `loop` is "" unless it is in service."""
        self._add(self._errors, 1, self._name(loop), code)

    def _begin(self, loop: str) -> None:
        """Let the series of a loop exist before anything is counted in them, so that their first increase is one."""
        for counter in (self._outcomes, self._unlogged, self._refused, self._swaps, self._runs):
            counter.labels(loop)
        self._seconds.labels(loop)
        for code in _EARLY_CODES:
            self._errors.labels(loop, code)

    def swapped(self, loop: str, arms: Sequence[Arm]) -> None:
        """Packages were put into service."""
        if self._name(loop) == OTHERS:
            self._swaps.labels(OTHERS).inc()
            return
        before = self._arms.get(loop)
        if before == list(arms):
            return
        if before is None:
            self._begin(loop)
        for arm in before or []:
            self._serving.labels(loop, arm.name, arm.package[:12]).set(0)
        self._arms[loop] = list(arms)
        for arm in arms:
            for counter in (self._predictions, self._degraded):
                counter.labels(loop, arm.name)
            self._serving.labels(loop, arm.name, arm.package[:12]).set(1)
        self._swaps.labels(loop).inc()

    def refused(self, loop: str, _why: str) -> None:
        """A package could not be loaded."""
        self._refused.labels(self._name(loop)).inc()

    def loaded(self, load: Load) -> None:
        """A package came into memory."""
        self._held.set(load.packages)
        self._held_bytes.set(load.held)
        self._loads.observe(load.seconds)
        if load.evicted:
            self._evictions.inc(load.evicted)

    def unlogged(self, loop: str, count: int) -> None:
        """Rows could not be logged."""
        self._unlogged.labels(self._name(loop)).inc(count)

    def damaged(self, counts: Mapping[str, int]) -> None:
        """Number of quarantined segments of each loop's log; 0 for loops that had some before."""
        for loop in self._told_damaged | counts.keys():
            self._damaged.labels(loop).set(counts.get(loop, 0))
        self._told_damaged |= counts.keys()

    def statistics(self) -> dict[str, Statistics]:
        """Statistics of each loop since the start of the server, over all workers; callable in any thread."""
        found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        fields = {
            "loopwright_request_seconds_count": "requests",
            "loopwright_request_seconds_sum": "seconds",
            "loopwright_predictions_total": "rows",
            "loopwright_runs_total": "runs",
            "loopwright_request_errors_total": "failed",
        }
        for metric in self._registry.collect():
            for sample in metric.samples:
                if sample.name in fields:
                    found[sample.labels["loop"]][fields[sample.name]] += sample.value
        told: dict[str, Statistics] = defaultdict(Statistics)
        for loop, values_ in found.items():
            seconds = values_.pop("seconds", 0.0)
            told[loop] = Statistics(seconds=seconds, **{name: int(value) for name, value in values_.items()})
        return told

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        self.flush()
        return self.written()

    def written(self) -> bytes:
        """The metrics without counts since the last `flush`; callable in any thread."""
        return generate_latest(Current(self._registry))


def _observe(histogram: Any, counts: Sequence[float], seconds: float) -> None:
    """Add many durations at once: how many fell into each bucket, and their sum."""
    try:
        total, buckets = internal(histogram, "_sum"), internal(histogram, "_buckets")
    except LibraryChanged:
        for bound, count in zip((*_SECONDS, 2 * _SECONDS[-1]), counts, strict=True):
            for _ in range(int(count)):
                histogram.observe(bound)
        return
    total.inc(seconds)
    for bucket, count in zip(buckets, counts, strict=True):
        if count:
            bucket.inc(count)
