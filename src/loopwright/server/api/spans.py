"""Spans of requests, sent to an OpenTelemetry collector as OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/).

The caller decides on sampling (the flag in `traceparent`); without a flag the trace id does, as in OpenTelemetry's
TraceIdRatioBased, so that all services agree. A sampled request adds a tuple to a bounded queue; one thread makes
messages of them and sends them. While a collector is down spans are lost, and counted; nothing else fails.

The libraries of the extra `otel` are loaded by that thread when there is something to send.
"""

import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from loopwright.base.clock import Clock, microseconds
from loopwright.base.errors import AddressRefused
from loopwright.base.ids import is_trace_id, sampling_bound, span_id
from loopwright.base.outbound_http import Receiver, post
from loopwright.base.supervision import Repeating
from loopwright.records.prediction import Prediction

MAX_WAITING = 2048
MAX_AT_ONCE = 512
SEND_BYTES = 4 * 2**20
PAUSE_SECONDS = 1.0
CLOSE_SECONDS = 2.0

_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_GRPC_ERRORS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Statuses that are a server's error (https://opentelemetry.io/docs/specs/semconv/rpc/grpc/)."""

_STATE = re.compile(rb"[\x20-\x7e]{1,512}")


class Parent(NamedTuple):
    """The caller's context in `traceparent` (https://www.w3.org/TR/trace-context/): trace, the caller's span, and the sampled flag."""

    trace: str
    span: str
    sampled: bool


class Stage(NamedTuple):
    """A part of a request: when it began and ended, by `time.perf_counter`."""

    name: str
    start: float
    end: float


class RequestTiming(NamedTuple):
    """Timing of a queued request: when it arrived (`started`) and was queued, with the transport's span attributes."""

    operation: str
    loop: str
    headers: Mapping[bytes, bytes]
    started: float
    queued: float
    attributes: Mapping[str, str | int]


class QueuedSpan(Protocol):
    """A request of the queue."""

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """Its headers."""
        ...

    @property
    def traced(self) -> RequestTiming:
        """Timing and attributes of the request's span."""
        ...


class SampledRequest(NamedTuple):
    """A sampled request: its operation, such as `predict`, its loop, transport attributes, and its answers."""

    operation: str
    loop: str
    id: str
    headers: Mapping[bytes, bytes]
    answers: Sequence[Prediction]
    stages: Sequence[Stage]
    attributes: Mapping[str, str | int]
    failed: bool


def parent(headers: Mapping[bytes, bytes]) -> Parent | None:
    """The caller's context, if the request has a valid one."""
    given = headers.get(b"traceparent")
    found = _PARENT.fullmatch(given) if given is not None else None
    if found is None:
        return None
    return Parent(found[1].decode(), found[2].decode(), bool(int(found[3], 16) & 1))


class Spans:
    """Sends spans `to` a collector: of sampled requests and a `share` of the others. `count` gets "sent" or "lost" and a count."""

    def __init__(
        self,
        to: str | Receiver,
        share: float,
        clock: Clock,
        version: str,
        count: Callable[[str, int], None],
        about: Mapping[str, str] | None = None,
    ) -> None:
        to = Receiver(to) if isinstance(to, str) else to
        self._to = to if urlsplit(to.url).path.strip("/") else to._replace(url=f"{to.url.rstrip('/')}/v1/traces")
        self._bound = sampling_bound(share)
        self._clock, self._version, self._count, self._about = clock, version, count, about or {}
        self._waiting: deque[tuple[int, float, SampledRequest]] = deque()
        self._sending = Repeating("spans", self._send_waiting, PAUSE_SECONDS, needed=False, at_last=True)
        self._starting = threading.Lock()

    def wants(self, id: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the request with this trace id is sampled."""
        if b"traceparent" in headers:
            caller = parent(headers)
            if caller is not None:
                return caller.sampled
        return id[16:] < self._bound

    def answered(self, waiting: "QueuedSpan", answers: list[Prediction] | Exception, begun: float, done: float) -> None:
        """Record the span of an answered queued request (see `Batches.traced`). `failed` records failed requests."""
        if isinstance(answers, Exception) or not self.wants(answers[0].id, waiting.headers):
            return
        operation, loop, headers, start, queued, attributes = waiting.traced
        now = time.perf_counter()
        stages = [
            Stage("decode", start, queued),
            Stage("wait", queued, max(queued, begun)),
            Stage("answer", max(queued, begun), done),
            Stage("encode", done, now),
        ]
        self.tell(SampledRequest(operation, loop, answers[0].id, headers, answers, stages, attributes, False))

    def failed(
        self, operation: str, loop: str, id: str, headers: Mapping[bytes, bytes], started: float, about: Mapping[str, str | int]
    ) -> None:
        """Record the span of a refused or failed request; `about` are the transport's attributes, `id` the id in its answer."""
        if not is_trace_id(id):
            id = 2 * span_id(id)
        if self.wants(id, headers):
            now = time.perf_counter()
            failed = (
                int(about.get("http.response.status_code", 0)) >= 500 or about.get("rpc.response.status_code") in _GRPC_ERRORS
            )
            self.tell(SampledRequest(operation, loop, id, headers, (), [Stage("decode", started or now, now)], about, failed))

    def tell(self, sampled: SampledRequest) -> None:
        """Take the spans of a request that has just been answered; never waits."""
        if len(self._waiting) >= MAX_WAITING:
            self._count("lost", 1)
            return
        self._waiting.append((microseconds(self._clock.now()), sampled.stages[-1].end if sampled.stages else 0.0, sampled))
        if not self._sending.started:
            with self._starting:
                if not self._sending.started:
                    self._sending.start()

    def close(self) -> None:
        """Send the queued spans, within a bounded time."""
        self._sending.stop(CLOSE_SECONDS)

    def _send_waiting(self) -> None:
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_AT_ONCE))]
            if not self._send(some) and self._sending.over.is_set():
                return

    def _send(self, some: Sequence[tuple[int, float, SampledRequest]]) -> bool:
        try:
            post(self._to, request(some, self._version, self._about), limit=SEND_BYTES, media="application/x-protobuf")
        except (AddressRefused, OSError):
            self._count("lost", len(some))
            return False
        self._count("sent", len(some))
        return True


def resource(service: str, attributes: str) -> dict[str, str]:
    """Attributes of the resource, as OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say."""
    pairs = [pair.partition("=") for pair in attributes.split(",")]
    about = {name.strip(): unquote(value.strip()) for name, _, value in pairs if name.strip()}
    return about | ({"service.name": service} if service else {})


def request(
    some: Sequence[tuple[int, float, SampledRequest]], version: str, attributes: Mapping[str, str] | None = None
) -> bytes:
    """The message to a collector: the spans of each request (microseconds of its end since 1970, the same by `perf_counter`, request)."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # here: an extra

    message = ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    about = {
        "service.name": "loopwright",
        "service.version": version,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    _attributes(resource_spans.resource.attributes, {**about, **(attributes or {})})
    scope = resource_spans.scope_spans.add()
    scope.scope.name, scope.scope.version = "loopwright", version
    for end_us, end, told in some:
        _spans(scope.spans, told, end_us * 1000 - round(end * 1e9))
    made: bytes = message.SerializeToString()
    return made


def _spans(spans: Any, sampled: SampledRequest, offset: int) -> None:
    """The span of a request and, below it, of each of its stages; `offset` is added to nanoseconds of `perf_counter`."""
    caller = parent(sampled.headers)
    trace = bytes.fromhex(caller.trace if caller is not None else sampled.id)
    own = bytes.fromhex(span_id(sampled.id))
    whole = spans.add(trace_id=trace, span_id=own, name=f"{sampled.operation} {sampled.loop}".strip(), kind=2, flags=0x101)
    if caller is not None:
        whole.parent_span_id, whole.flags = bytes.fromhex(caller.span), 0x301
        if _STATE.fullmatch(sampled.headers.get(b"tracestate", b"")):
            whole.trace_state = sampled.headers[b"tracestate"].decode()
    if sampled.failed:
        whole.status.code = 2
    first = sampled.stages[0].start if sampled.stages else 0.0
    whole.start_time_unix_nano = offset + round(first * 1e9)
    whole.end_time_unix_nano = offset + round((sampled.stages[-1].end if sampled.stages else first) * 1e9)
    _attributes(whole.attributes, {**sampled.attributes, **_about(sampled)})
    for stage in sampled.stages:
        spans.add(
            trace_id=trace,
            span_id=os.urandom(8),
            parent_span_id=own,
            name=stage.name,
            kind=1,
            start_time_unix_nano=offset + round(stage.start * 1e9),
            end_time_unix_nano=offset + round(stage.end * 1e9),
        )


def _about(sampled: SampledRequest) -> dict[str, Any]:
    about: dict[str, Any] = {"loopwright.loop": sampled.loop, "loopwright.rows": len(sampled.answers)}
    if sampled.answers:
        first = sampled.answers[0]
        flags = sorted({flag for a in sampled.answers for flag in a.flags})
        about |= {"loopwright.prediction.id": first.id, "loopwright.package": first.package, "loopwright.arm": first.arm}
        about |= {"loopwright.flags": flags, "loopwright.degraded": "degraded" in flags}
        if first.segment is not None:
            about["loopwright.segment"] = first.segment
    return about


def _attributes(to: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if value == "":
            continue
        into = to.add(key=key).value
        if isinstance(value, list):
            for text in value[:32]:
                into.array_value.values.add(string_value=text[:200])
        elif isinstance(value, bool):
            into.bool_value = value
        elif isinstance(value, int):
            into.int_value = value
        else:
            into.string_value = value[:200]


def traceresponse(spans: Spans | None, headers: Mapping[bytes, bytes], id: str) -> tuple[tuple[bytes, bytes], ...]:
    """The response header for a caller who sent `traceparent`: trace, the server's span, and the sampled flag; else none.

    https://w3c.github.io/trace-context/#traceresponse-header
    """
    caller = parent(headers)
    if caller is None:
        return ()
    sampled = spans is not None and caller.sampled
    return ((b"traceresponse", f"00-{caller.trace}-{span_id(id)}-{sampled:02x}".encode()),)
