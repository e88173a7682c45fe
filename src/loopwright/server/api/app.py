"""The data plane: predictions, outcomes, Open Inference Protocol, health, metrics, contracts.

Handlers are plain functions from a whole request to its answer (`server.http.request`); predictions wait in `server.api.batches`.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import astuple

from loopwright.base import failpoints
from loopwright.base.clock import Clock
from loopwright.base.errors import LoopwrightError, NotSupported, Overloaded, RequestTooLarge
from loopwright.base.ids import new_id
from loopwright.base.log_lines import LOG
from loopwright.base.supervision import down
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.explanations import most_rows, refuse
from loopwright.deploy.serving.registry import InService
from loopwright.records.answer import Answer, ExplainedAnswer
from loopwright.records.prediction import Prediction
from loopwright.render.http_errors import DOOR, describe, describe_status, status_of
from loopwright.server.api import oip, openapi, repository
from loopwright.server.api.access import Access
from loopwright.server.api.batches import Batches, Found
from loopwright.server.api.metrics import CONTENT_TYPE, Metrics
from loopwright.server.api.request_ids import ask, client_id, deadline, explains, request_id
from loopwright.server.api.routes import DATA_ROUTES, Match, Route, Routes
from loopwright.server.api.spans import RequestTiming, Spans, traceresponse
from loopwright.server.http.request import JSON, Headers, Reply, Request, refusal
from loopwright.server.http.wire import is_plain

INLINE_BYTES = 64 * 1024
"""A larger body is decoded, answered and encoded in a thread, so that the others are answered meanwhile."""


_BODY_IGNORED = ("index", "load")
_PROTOCOLS = (b"/v1/", b"/v2")
"""Paths whose errors have the form of the inference protocols."""

_MODEL = next(route for route in DATA_ROUTES if route.handler == "model")

_encode = msgspec.json.Encoder().encode


class PredictionCall:
    """A prediction request in the queue: its rows, and the function that makes its response from the predictions."""

    __slots__ = ("_make", "_plane", "ask", "queued", "request")

    def __init__(
        self, plane: "DataPlane", request: Request, ask: PredictionRequest, make: Callable[[list[Prediction]], Reply]
    ) -> None:
        self._plane, self.request, self.ask, self._make = plane, request, ask, make
        self.queued = time.perf_counter() if plane.spans is not None else 0.0

    @property
    def gone(self) -> bool:
        """See `batches.PendingRequest`."""
        return self.request.gone

    @property
    def headers(self) -> Headers:
        """See `spans.Waiting`."""
        return self.request.headers

    @property
    def traced(self) -> RequestTiming:
        """See `spans.Waiting`."""
        request, route = self.request, self.request.route
        return RequestTiming(route.handler, request.loop, request.headers, request.started, self.queued, _about(route, 200))

    def reply(self, answers: Found) -> Reply:
        """The answer, of the predictions or of an error."""
        try:
            if isinstance(answers, Exception):
                raise answers
            reply = self._make(answers)
            if b"traceparent" not in self.request.headers:
                return reply
            return reply._replace(extra=(*reply.extra, *traceresponse(self._plane.spans, self.request.headers, answers[0].id)))
        except Exception as error:  # noqa: BLE001  # the client gets an answer after any error
            return self._plane.failed(self.request, error)

    def send(self, reply: Reply) -> None:
        """Send it and count it."""
        self.request.answer(reply)
        self._plane.sent(self.request, reply)


class DataPlane:
    """The application of the data plane. `ready` is true once the loops have been loaded; `close` waits for work in threads."""

    def __init__(
        self, engine: ServingEngine, access: Access, metrics: Metrics, clock: Clock, *, version: str, spans: Spans | None = None
    ) -> None:
        self.ready = False
        self._engine, self._registry = engine, engine.registry
        self._access, self._metrics, self._clock, self._version = access, metrics, clock, version
        self.batches, self.spans = Batches(engine, metrics), spans
        self.batches.traced = spans.answered if spans is not None else None
        self._routes = Routes(DATA_ROUTES)
        self._handlers: dict[str, Callable[[Request], Reply | None]] = {
            "predict": self._predict,
            "outcomes": self._outcomes,
            "infer": self._infer,
            "model": self._model,
            "model_ready": self._model_ready,
            "config": self._config,
            "stats": self._stats,
            "all_stats": self._all_stats,
            "index": self._index,
            "load": self._load,
            "predict_instances": self._predict_instances,
            "models": self._models,
            "alive": self._alive,
            "live": self._live,
            "ready": self._ready,
            "server": self._server,
            "metrics": self._metrics_text,
            "openapi": self._openapi,
        }

    def close(self) -> None:
        """Wait for answers in threads."""
        self.batches.close()

    # --- the interface for the server ----------------------------------------------------------------------------

    def begin(self, request: Request) -> Reply | None:
        """Refuse a request without its body if possible: unknown path or method, no permission, not JSON."""
        found = self._routes.find(request.method, request.path)
        if not isinstance(found, Match):
            return self._refused(404, request) if found is None else self._other_method(found, request)
        request.route, request.loop, request.version = found
        status = self._access.refuse(found.route.permission, request.headers, request.address)
        if not status and found.route.method == "POST" and not self._is_readable(request):
            status = 415
        return self._refused(status, request) if status else None

    def is_health(self, request: Request) -> bool:
        """Whether a request asks for liveness or readiness."""
        return request.route is not None and request.route.permission == "public"

    def handle(self, request: Request) -> Reply | None:
        """The answer, or None if it follows later."""
        try:
            if request.loop and not self._registry.ready(request.loop):
                self.batches.loading.when_ready(request.loop, lambda error: self._late(request, error))
                return None
            return self._handlers[request.route.handler](request)
        except Exception as error:  # noqa: BLE001  # after any error the client gets an answer and the server lives
            return self.failed(request, error)

    def _late(self, request: Request, error: Exception | None) -> None:
        """Answer a request that waited for its loop to be loaded."""
        try:
            reply = self.failed(request, error) if error is not None else self._handlers[request.route.handler](request)
        except Exception as raised:  # noqa: BLE001  # as in `handle`
            reply = self.failed(request, raised)
        if reply is not None:
            request.answer(reply)

    def failed(self, request: Request, error: Exception) -> Reply:
        """The answer to a request that failed."""
        id = self._id_of(request.headers)
        if not isinstance(error, LoopwrightError):
            LOG.error("request %s failed", id, exc_info=error)
            return self._refused(500, request, id)
        status = status_of(error)
        self._count(request, error.code, status, id)
        described = describe(error, id)
        if request.path.startswith(_PROTOCOLS):
            described = oip.error(described)
        extra: tuple[tuple[bytes, bytes], ...] = ((b"retry-after", b"1"),) if status == 503 else ()
        return Reply(status, _encode(described), id=id, extra=extra)

    def sent(self, request: Request, reply: Reply) -> None:
        """An answer to a prediction request has been sent."""
        if reply.status == 200:
            self._metrics.answered(request.loop, time.perf_counter() - request.started)
            failpoints.hit("log.answered")

    @staticmethod
    def _is_readable(request: Request) -> bool:
        headers = request.headers
        if b"transfer-encoding" in headers and not is_plain(headers[b"transfer-encoding"]):
            return False
        if request.route.handler in _BODY_IGNORED:
            return True
        if request.route.handler == "infer" and oip.is_readable(headers):
            return headers.get(b"content-encoding", b"identity").lower() == b"identity"
        return _is_json(headers)

    def _refused(self, status: int, request: Request, id: str = "") -> Reply:
        reply = refusal(status, id or self._id_of(request.headers))
        self._count(request, DOOR[status][0], status, reply.id)
        if request.path.startswith(_PROTOCOLS):
            reply = reply._replace(body=_encode(oip.error(describe_status(status, reply.id))))
        if status == 401:
            return reply._replace(extra=((b"www-authenticate", b'Bearer realm="loopwright"'),))
        if status == 429:
            return reply._replace(extra=((b"retry-after", b"1"),))
        return reply

    def _other_method(self, allowed: frozenset[str], request: Request) -> Reply:
        reply = self._refused(405, request)
        return reply._replace(extra=((b"allow", ", ".join(sorted(allowed)).encode()),))

    def _count(self, request: Request, code: str, status: int, id: str) -> None:
        self._metrics.failed(request.loop if self._registry.knows(request.loop) else "", code)
        if self.spans is not None and request.route is not None:
            route = request.route
            self.spans.failed(route.handler, request.loop, id, request.headers, request.started, _about(route, status))

    def _id_of(self, headers: Headers) -> str:
        """The client's id, else a fresh one: it links an error's answer to this server's own log."""
        return request_id(headers) or new_id(self._clock.now())

    # --- handlers ------------------------------------------------------------------------------------------------

    def _predict(self, request: Request) -> Reply | None:
        if request.query and explains(request.query):
            return self._enqueue(request, self._explained, aside=True)
        return self._enqueue(request, self._decoded)

    def _infer(self, request: Request) -> Reply | None:
        if request.query and explains(request.query):
            return self._enqueue(request, lambda asked: self._tensors(asked, explain=True), aside=True)
        return self._enqueue(request, self._tensors)

    def _enqueue(self, request: Request, decode: Callable[[Request], PredictionCall], *, aside: bool = False) -> Reply | None:
        """Let a request wait for its batch; a large one, and one to be explained, is decoded, answered and encoded in a thread."""
        if not aside and len(request.body) <= INLINE_BYTES:
            if self.batches.full:
                raise Overloaded("the server is overloaded: too many rows wait; try again")
            self.batches.put(request.loop, decode(request))
            return None

        def work() -> Reply:
            asked = decode(request)
            return asked.reply(self.batches.answer(request.loop, [asked])[0])

        def done(reply: Reply) -> None:
            request.answer(reply)
            self.sent(request, reply)

        self.batches.aside(work, done, lambda error: self.failed(request, error))
        return None

    def _decoded(self, request: Request) -> PredictionCall:
        rows, single = self._registry.service(request.loop).decode(request.body)
        return self._rows(request, rows, single, lambda answers: [self._seen(a) for a in answers])

    def _explained(self, request: Request) -> PredictionCall:
        service = self._registry.service(request.loop)
        rows, single = service.decode(request.body)
        _check_explained(service, len(rows))

        def seen(answers: list[Prediction]) -> list[Answer]:
            reasons = self._registry.explanations(answers)
            return [ExplainedAnswer(*astuple(self._seen(a)), *astuple(r)) for a, r in zip(answers, reasons, strict=True)]

        return self._rows(request, rows, single, seen)

    def _rows(
        self, request: Request, rows: list[dict[str, Any]], single: bool, seen: Callable[[list[Prediction]], list[Answer]]
    ) -> PredictionCall:
        id = client_id(request.headers)

        def reply(answers: list[Prediction]) -> Reply:
            if single:
                return Reply(200, _encode(seen(answers)[0]), id=answers[0].id)
            return Reply(200, _encode(seen(answers)), id=id.id if id else "")

        return PredictionCall(self, request, ask(rows, id, self._until(request)), reply)

    def _until(self, request: Request) -> float:
        return deadline(request.headers, request.started, self._registry.service(request.loop).predictor.deadline)

    def _seen(self, a: Prediction) -> Answer:
        values = None if a.values is None else dict(zip(self._registry.names(a.package), a.values, strict=True))
        return Answer(a.id, a.score, a.label, a.package, a.arm, a.flags, a.segment, values)

    def _tensors(self, request: Request, *, explain: bool = False) -> PredictionCall:
        service = self._model_of(request)
        output, body = service.predictor.package.manifest.output, request.body
        length = oip.header_length(request.headers.get(oip.HEADER_LENGTH), body)
        tensors = oip.Tensors(body, service.decode.columns, oip.outputs(output), length)
        rows = service.decode.check(tensors.rows)
        if explain:
            _check_explained(service, len(rows))

        def reply(answers: list[Prediction]) -> Reply:
            found = oip.response(request.loop, tensors.id, answers, tensors.outputs, output, self._registry.names)
            binary = tensors.binary
            if explain:
                found["outputs"] += oip.explained(self._registry.explanations(answers))
                binary = binary.union(oip.EXPLAINED) if binary else binary
            encoded, head = oip.encode(found, binary)
            if head is None:
                return Reply(200, encoded)
            return Reply(200, encoded, oip.BINARY, extra=((oip.HEADER_LENGTH, str(head).encode()),))

        return PredictionCall(self, request, ask(rows, client_id(request.headers), self._until(request)), reply)

    def _outcomes(self, request: Request) -> Reply | None:
        if len(request.body) <= INLINE_BYTES and not self._registry.service(request.loop).durable:
            return self._accepted(request)

        self.batches.aside(lambda: self._accepted(request), request.answer, lambda error: self.failed(request, error))
        return None

    def _accepted(self, request: Request) -> Reply:
        accepted = self._engine.accept(request.loop, request.body, "http")
        if (sync := self._engine.synced(request.loop)) is not None:
            sync()
        self._metrics.accepted(request.loop, len(accepted))
        seen = [{"id": a.row.id, "prediction": a.row.prediction, "unit": a.row.unit, "flags": a.flags} for a in accepted]
        return Reply(202, _encode({"accepted": len(seen), "outcomes": seen}))

    def _model(self, request: Request) -> Reply:
        predictor = self._model_of(request).predictor
        return Reply(200, _encode(oip.metadata(request.loop, predictor.digest, predictor.package.manifest)))

    def _model_of(self, request: Request) -> InService:
        """The service of the loop in the path. Raises LoopNotFound, and NotFound if the path names another version of it."""
        service = self._registry.service(request.loop)
        if request.version:
            oip.check_version(request.loop, request.version, service.predictor.digest)
        return service

    def _model_ready(self, request: Request) -> Reply:
        self._model_of(request)
        return Reply(200, _encode({"name": request.loop, "ready": True}))

    def _predict_instances(self, request: Request) -> Reply | None:
        def decoded(request: Request) -> PredictionCall:
            rows = self._registry.service(request.loop).decode.check(repository.instances(request.body))
            given = client_id(request.headers)

            def reply(answers: list[Prediction]) -> Reply:
                return Reply(200, _encode({"predictions": [self._seen(a) for a in answers]}), id=given.id if given else "")

            return PredictionCall(self, request, ask(rows, given, self._until(request)), reply)

        return self._enqueue(request, decoded)

    def _models(self, _: Request) -> Reply:
        return Reply(200, _encode({"models": list(self._registry.loops)}))

    def _config(self, request: Request) -> Reply:
        predictor = self._model_of(request).predictor
        return Reply(200, _encode(repository.config(request.loop, predictor.digest, predictor.package.manifest)))

    def _index(self, request: Request) -> Reply:
        registry, ready = self._registry, repository.only_ready(bytes(request.body))
        return Reply(200, _encode(repository.index(registry.loops, registry.unready, registry.loaded, ready=ready)))

    def _load(self, _: Request) -> Reply:
        raise NotSupported(repository.NOT_LOADED)

    def _all_stats(self, request: Request) -> Reply | None:
        """Statistics of all loops, unless a loop has the name `stats`: then the path is that of its metadata."""
        if not self._registry.knows("stats"):
            self._stats(request)
            return None
        request.route, request.loop = _MODEL, "stats"
        return self.handle(request)

    def _stats(self, request: Request) -> None:
        """Statistics of the loop in the path, or of those in memory."""
        services = [self._model_of(request)] if request.loop else self._registry.loaded
        self._metrics.flush()

        def work() -> Reply:
            return Reply(200, _encode({"model_stats": repository.model_statistics(services, self._metrics.statistics())}))

        self.batches.aside(work, request.answer, lambda error: self.failed(request, error))

    def _alive(self, _: Request) -> Reply:
        return Reply(200, b'{"status":"alive"}')

    def _live(self, _: Request) -> Reply:
        return Reply(200, b'{"live":true}')

    def _ready(self, _: Request) -> Reply:
        unready = self._registry.unready
        ready = self.serves
        return Reply(
            200 if ready else 503, _encode({"ready": ready, "loops": self._registry.loops, "unready": unready, "down": down()})
        )

    @property
    def serves(self) -> bool:
        """Whether every loop that is to be served can be, and every thread that is needed for it runs."""
        return self.ready and not self._registry.unready and not down()

    def _server(self, _: Request) -> Reply:
        return Reply(200, _encode({"name": "loopwright", "version": self._version, "extensions": oip.EXTENSIONS}))

    def _metrics_text(self, request: Request) -> None:
        self._metrics.flush()

        def work() -> Reply:
            self._metrics.damaged(self._engine.damaged())
            return Reply(200, self._metrics.written(), CONTENT_TYPE.encode())

        self.batches.aside(work, request.answer, lambda error: self.failed(request, error))

    def _openapi(self, _: Request) -> Reply:
        return Reply(200, _encode(openapi.describe(self._version, self._registry.loaded)))


def _about(route: Route, status: int) -> dict[str, str | int]:
    """HTTP attributes of a request's span (https://opentelemetry.io/docs/specs/semconv/http/http-spans/)."""
    return {"http.request.method": route.method, "http.route": route.path, "http.response.status_code": status}


def _check_explained(service: InService, rows: int) -> None:
    """Raise NotExplained, or RequestTooLarge for more rows than are explained at once."""
    manifest = service.predictor.package.manifest
    refuse(service.predictor.digest, manifest)
    if rows > (most := most_rows(manifest)):
        raise RequestTooLarge("rows to be explained", most)


def _is_json(headers: Headers) -> bool:
    """Whether a body is plain JSON by its headers."""
    given = headers.get(b"content-type", b"")
    if given != JSON:
        media, _, parameters = given.lower().partition(b";")
        if media.strip() != JSON or (b"charset" in parameters and b"utf-8" not in parameters):
            return False
    return b"content-encoding" not in headers or headers[b"content-encoding"].lower() == b"identity"
