"""What the data plane counts, for Prometheus; over all workers when `PROMETHEUS_MULTIPROC_DIR` is set before this is imported.

Labels are bounded: loops in service, packages released, kinds of flag, codes of the error table.
"""

import os
from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from loopwright.records.predictions.record import Prediction

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 10_000)


class Metrics:
    """The metrics of one worker."""

    def __init__(self) -> None:
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._registry = CollectorRegistry()
        if self._shared:
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]  # the library types only part of itself
        own = None if self._shared else self._registry
        loop = ["loop"]
        self._predictions = Counter("loopwright_predictions", "Predictions answered", [*loop, "arm"], registry=own)
        self._degraded = Counter(
            "loopwright_degraded", "Predictions answered by the heuristic because the model failed", loop, registry=own
        )
        self._flags = Counter("loopwright_flags", "Predictions flagged, by kind of flag", [*loop, "flag"], registry=own)
        self._outcomes = Counter("loopwright_outcomes", "Outcomes accepted", loop, registry=own)
        self._errors = Counter(
            "loopwright_request_errors", "Requests refused or failed, by code", [*loop, "code"], registry=own
        )
        self._unlogged = Counter("loopwright_unlogged", "Predictions that could not be logged", loop, registry=own)
        self._refused = Counter(
            "loopwright_packages_refused", "Packages that were to serve and could not be loaded", loop, registry=own
        )
        self._swaps = Counter("loopwright_swaps", "Packages put into service by a worker", loop, registry=own)
        self._seconds = Histogram(
            "loopwright_request_seconds",
            "Time of a prediction request, decoding to answer",
            loop,
            buckets=_SECONDS,
            registry=own,
        )
        self._batch = Histogram("loopwright_batch_rows", "Rows in one graph run", loop, buckets=_ROWS, registry=own)
        self._serving = Gauge(
            "loopwright_serving_info",
            "1 for the package in service",
            [*loop, "package"],
            registry=own,
            multiprocess_mode="mostrecent",
        )
        self._packages: dict[str, str] = {}

    def ran(self, loop: str, answers: Sequence[Prediction]) -> None:
        """One graph run."""
        self._batch.labels(loop).observe(len(answers))
        for arm, count in Tally(a.arm for a in answers).items():
            self._predictions.labels(loop, arm).inc(count)
        flags = Tally(flag.partition(":")[0] for a in answers for flag in a.flags)
        for flag, count in flags.items():
            self._flags.labels(loop, flag).inc(count)
        if degraded := flags.get("degraded"):
            self._degraded.labels(loop).inc(degraded)

    def answered(self, loop: str, seconds: float) -> None:
        """One prediction request."""
        self._seconds.labels(loop).observe(seconds)

    def accepted(self, loop: str, count: int) -> None:
        """Outcomes that were accepted."""
        self._outcomes.labels(loop).inc(count)

    def failed(self, loop: str, code: str) -> None:
        """A request that was refused or failed; `loop` is "" unless it is in service."""
        self._errors.labels(loop, code).inc()

    def swapped(self, loop: str, package: str) -> None:
        """A package was put into service."""
        before = self._packages.get(loop)
        if before == package:
            return
        if before is not None:
            self._serving.labels(loop, before[:12]).set(0)
        self._packages[loop] = package
        self._serving.labels(loop, package[:12]).set(1)
        self._swaps.labels(loop).inc()

    def refused(self, loop: str, _why: str) -> None:
        """A package could not be loaded."""
        self._refused.labels(loop).inc()

    def unlogged(self, loop: str, count: int) -> None:
        """Rows could not be logged."""
        self._unlogged.labels(loop).inc(count)

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)
