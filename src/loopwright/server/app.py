"""The data plane as a raw ASGI application: predictions, outcomes, Open Inference Protocol, health, metrics, contracts.

Natural batching: a decoded request waits in a list until the event loop comes round, and whatever arrived meanwhile is
answered in one graph run and one write to the log. There is no timer: an idle worker answers at once.
"""

import asyncio
import hashlib
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec

from loopwright.deploy.router import Ask, Router
from loopwright.records import failpoints
from loopwright.records.clock import Clock
from loopwright.records.errors import LoopwrightError, Overloaded, RequestMalformed, RequestTooLarge
from loopwright.records.ids import is_trace_id, new_id
from loopwright.records.predictions.record import Prediction
from loopwright.server import oip, openapi
from loopwright.server.access import Access
from loopwright.server.metrics import CONTENT_TYPE, Metrics
from loopwright.server.routes import DATA_ROUTES, Match, Routes
from loopwright.server.status import CODES, describe, describe_status, status_of

MOST_BYTES = 10 * 2**20
MOST_WAITING_ROWS = 20_000
MOST_WAITING_BYTES = 128 * 2**20
MOST_BATCH_ROWS = 1024
INLINE_ROWS = 256
DISCARD_BYTES = 16 * 2**20
DISCARD_SECONDS = 2.0

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = Mapping[bytes, bytes]

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_JSON = b"application/json"
_encode = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One prediction as the client sees it: `segment` where a segment's own package answered, `values` by name where there are some.

    `label` is null where the task has none.
    """

    id: str
    score: float
    label: bool | str | None
    package: str
    arm: str
    flags: list[str]
    segment: str | None = None
    values: dict[str, float] | None = None


class Reply(NamedTuple):
    """What goes back."""

    status: int
    body: bytes
    media: bytes = _JSON
    id: str = ""
    extra: tuple[tuple[bytes, bytes], ...] = ()


class Id(NamedTuple):
    """The id of a request: a trace id, and whether the client insists on it (X-Request-Id) or merely passes it on (traceparent)."""

    id: str
    exact: bool


class Request(NamedTuple):
    """What a handler gets."""

    loop: str
    headers: Headers
    receive: Receive
    started: float


class Refusal(Exception):
    """Refused at the door with a status of `status.CODES`."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(CODES[status][1])


class Disconnected(Exception):
    """The client went away."""


class DataPlane:
    """The application. `ready` says whether the loops have been loaded; `close` ends its one thread."""

    def __init__(self, router: Router, access: Access, metrics: Metrics, clock: Clock, *, version: str) -> None:
        self.ready = False
        self._router, self._access, self._metrics, self._clock, self._version = router, access, metrics, clock, version
        self._routes = Routes(DATA_ROUTES)
        self._handlers: dict[str, Callable[[Request], Awaitable[Reply]]] = {
            "predict": self._predict,
            "outcomes": self._outcomes,
            "infer": self._infer,
            "model": self._model,
            "model_ready": self._model_ready,
            "live": self._live,
            "ready": self._ready,
            "server": self._server,
            "metrics": self._metrics_text,
            "openapi": self._openapi,
        }
        self._queue: dict[str, list[tuple[Ask, asyncio.Future[list[Prediction]]]]] = {}
        self._scheduled = False
        self._rows = self._bytes = 0
        self._thread = ThreadPoolExecutor(1, "large-requests")

    def close(self) -> None:
        """Wait for large requests that are being answered."""
        self._thread.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        headers: Headers = dict(scope["headers"])
        body = _Body(headers, receive)
        found = self._routes.find(scope["method"], scope["raw_path"])
        oip_path = scope["raw_path"].startswith(b"/v2")
        loop = found.loop if isinstance(found, Match) else ""
        try:
            reply = await self._handle(found, headers, body, started)
        except Disconnected:
            return
        except Exception as error:  # noqa: BLE001  # whatever goes wrong, the client gets an answer and the server lives
            reply = self._failed(error, loop, headers, oip=oip_path)
        await _answer(scope, send, reply, close=await body.leave())
        if reply.status == 200:
            failpoints.hit("log.answered")

    async def _handle(self, found: Any, headers: Headers, body: "_Body", started: float) -> Reply:
        if found is None:
            raise Refusal(404)
        if isinstance(found, frozenset):
            reply = self._refused(405, "", headers)
            return reply._replace(extra=((b"allow", ", ".join(sorted(found)).encode()),))
        if status := self._access.refuse(found.route.permission, headers):
            raise Refusal(status)
        return await self._handlers[found.route.handler](Request(found.loop, headers, body.receive, started))

    def _failed(self, error: Exception, loop: str, headers: Headers, *, oip: bool) -> Reply:
        if isinstance(error, Refusal):
            return self._refused(error.status, loop, headers)
        id = self._id_of(headers)
        if not isinstance(error, LoopwrightError):
            sys.stderr.write(f"loopwright: request {id} failed\n")
            traceback.print_exception(error, file=sys.stderr)
            return self._refused(500, loop, headers, id)
        status, code = status_of(error)
        self._metrics.failed(loop if loop in self._router.loops else "", code)
        described = describe(error, id)
        if oip:  # the protocol wants text under `error`
            inner = described["error"]
            fields = "; ".join(f"{f['field']}: {f['reason']}" for f in inner["fields"])
            described = {**inner, "error": f"{inner['message']}: {fields}" if fields else inner["message"]}
        extra: tuple[tuple[bytes, bytes], ...] = ((b"retry-after", b"1"),) if status == 503 else ()
        return Reply(status, _encode(described), id=id, extra=extra)

    def _refused(self, status: int, loop: str, headers: Headers, id: str = "") -> Reply:
        self._metrics.failed(loop if loop in self._router.loops else "", CODES[status][0])
        id = id or self._id_of(headers)
        extra = ((b"www-authenticate", b'Bearer realm="loopwright"'),) if status == 401 else ()
        return Reply(status, _encode(describe_status(status, id)), id=id, extra=extra)

    def _id_of(self, headers: Headers) -> str:
        """The id the client gave, else a fresh one: what an error's answer and this server's own log have in common."""
        given = headers.get(b"x-request-id", b"")
        return given.decode() if _REQUEST_ID.fullmatch(given) else new_id(self._clock.now())

    # --- handlers ------------------------------------------------------------------------------------------------

    async def _predict(self, request: Request) -> Reply:
        service = self._router.service(request.loop)
        body = await self._body(request)
        try:
            rows, single = service.decode(body)
        finally:
            self._bytes -= len(body)
        asked = _asked_id(request.headers)
        answers = await self._answers(request.loop, rows, asked)
        self._metrics.answered(request.loop, time.perf_counter() - request.started)
        seen = [self._seen(a) for a in answers]
        return Reply(200, _encode(seen[0] if single else seen), id=seen[0].id if single else asked.id if asked else "")

    def _seen(self, a: Prediction) -> Answer:
        values = None if a.values is None else dict(zip(self._router.names(a.package), a.values, strict=True))
        return Answer(a.id, a.score, a.label, a.package, a.arm, a.flags, a.segment, values)

    async def _infer(self, request: Request) -> Reply:
        service = self._router.service(request.loop)
        if b"inference-header-content-length" in request.headers:
            raise RequestMalformed("the binary tensor extension is not supported; send JSON data")
        body = await self._body(request)
        try:
            output = service.predictor.package.manifest.output
            tensors = oip.Tensors(body, service.decode.columns, oip.outputs(output))
            rows = service.decode.check(tensors.rows)
        finally:
            self._bytes -= len(body)
        answers = await self._answers(request.loop, rows, _asked_id(request.headers))
        self._metrics.answered(request.loop, time.perf_counter() - request.started)
        return Reply(200, _encode(oip.response(request.loop, tensors.id, answers, tensors.outputs, output, self._router.names)))

    async def _outcomes(self, request: Request) -> Reply:
        self._router.service(request.loop)
        body = await self._body(request)
        try:
            accepted = self._router.accept(request.loop, body, "http")
        finally:
            self._bytes -= len(body)
        self._metrics.accepted(request.loop, len(accepted))
        seen = [{"id": a.row.id, "prediction": a.row.prediction, "unit": a.row.unit, "flags": a.flags} for a in accepted]
        return Reply(202, _encode({"accepted": len(seen), "outcomes": seen}))

    async def _model(self, request: Request) -> Reply:
        predictor = self._router.service(request.loop).predictor
        return Reply(200, _encode(oip.metadata(request.loop, predictor.digest, predictor.package.manifest)))

    async def _model_ready(self, request: Request) -> Reply:
        self._router.service(request.loop)
        return Reply(200, _encode({"name": request.loop, "ready": True}))

    async def _live(self, _: Request) -> Reply:
        return Reply(200, b'{"live":true}')

    async def _ready(self, _: Request) -> Reply:
        return Reply(200 if self.ready else 503, _encode({"ready": self.ready, "loops": self._router.loops}))

    async def _server(self, _: Request) -> Reply:
        return Reply(200, _encode({"name": "loopwright", "version": self._version, "extensions": []}))

    async def _metrics_text(self, _: Request) -> Reply:
        return Reply(200, self._metrics.text(), CONTENT_TYPE.encode())

    async def _openapi(self, _: Request) -> Reply:
        return Reply(200, _encode(openapi.describe(self._version, [self._router.service(n) for n in self._router.loops])))

    # --- body, batch ---------------------------------------------------------------------------------------------

    async def _body(self, request: Request) -> bytes:
        """The whole body, within limits. Its length counts in `_bytes` until the caller takes it off."""
        headers = request.headers
        media, _, parameters = headers.get(b"content-type", b"").lower().partition(b";")
        if media.strip() != _JSON or (b"charset" in parameters and b"utf-8" not in parameters):
            raise Refusal(415)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal(415)
        if int(headers.get(b"content-length", b"0")) > MOST_BYTES:
            raise RequestTooLarge("bytes", MOST_BYTES)
        parts: list[bytes] = []
        size = 0
        try:
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part: bytes = message["body"]
                size += len(part)
                self._bytes += len(part)
                if size > MOST_BYTES:
                    raise RequestTooLarge("bytes", MOST_BYTES)
                if self._bytes > MOST_WAITING_BYTES:
                    raise Overloaded("more bytes are arriving than can be held; try again")
                parts.append(part)
                more = message["more_body"]
        except BaseException:
            self._bytes -= size
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _answers(self, loop: str, rows: list[dict[str, Any]], asked: Id | None) -> list[Prediction]:
        """Wait for the answers to a request's rows. Raises what the router gives instead."""
        count = len(rows)
        if self._rows + count > MOST_WAITING_ROWS:
            raise Overloaded("more rows are waiting than can be held; try again")
        ask = Ask(rows) if asked is None else Ask(rows, _row_ids(asked.id, count), asked.exact)
        running = asyncio.get_running_loop()
        future: asyncio.Future[list[Prediction]] = running.create_future()
        self._rows += count
        try:
            if count > INLINE_ROWS:
                work = running.run_in_executor(self._thread, self._router.answer, loop, [ask])
                found = (await work)[0]
                if isinstance(found, LoopwrightError):
                    raise found
                self._metrics.ran(loop, found)
                return found
            self._queue.setdefault(loop, []).append((ask, future))
            if not self._scheduled:
                self._scheduled = True
                running.call_soon(self._drain)
            return await future
        finally:
            self._rows -= count

    def _drain(self) -> None:
        """Answer everything that waits: per loop, in runs of at most 1,024 rows."""
        self._scheduled = False
        queue, self._queue = self._queue, {}
        for loop, waiting in queue.items():
            run: list[tuple[Ask, asyncio.Future[list[Prediction]]]] = []
            rows = 0
            for item in waiting:
                if rows + len(item[0].rows) > MOST_BATCH_ROWS:
                    self._run(loop, run)
                    run, rows = [], 0
                run.append(item)
                rows += len(item[0].rows)
            self._run(loop, run)

    def _run(self, loop: str, run: list[tuple[Ask, "asyncio.Future[list[Prediction]]"]]) -> None:
        try:
            results: list[Any] = list(self._router.answer(loop, [ask for ask, _ in run]))
        except Exception as error:  # noqa: BLE001  # each request that waits is told
            results = [error] * len(run)
        answered = [a for result in results if isinstance(result, list) for a in result]
        if answered:
            self._metrics.ran(loop, answered)
        for (_, future), result in zip(run, results, strict=True):
            if future.done():  # the client went away
                continue
            if isinstance(result, list):
                future.set_result(result)
            else:
                future.set_exception(result)


class _Body:
    """The receiving end of one request, which knows whether the body has been read to its end."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        self._receive, self._left = receive, 0
        self._whole = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        message = await self._receive()
        self._whole = message["type"] == "http.disconnect" or not message["more_body"]
        return message

    async def leave(self) -> bool:
        """Read on for a while without keeping anything, so that the client hears the answer; whether to close then."""
        if self._whole:
            return False
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while self._left < DISCARD_BYTES:
                    message = await self.receive()
                    self._left += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return False
        except TimeoutError:
            pass
        return True


async def _answer(scope: Scope, send: Send, reply: Reply, *, close: bool) -> None:
    headers = [
        (b"content-type", reply.media),
        (b"content-length", str(len(reply.body)).encode()),
        *reply.extra,
    ]
    if reply.id:
        headers.append((b"x-request-id", reply.id.encode("latin-1")))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})


def _asked_id(headers: Headers) -> Id | None:
    """The id that a client gave its request. Raises RequestMalformed for an X-Request-Id that is no id."""
    given = headers.get(b"x-request-id")
    if given is not None:
        if not _REQUEST_ID.fullmatch(given):
            raise RequestMalformed("X-Request-Id must be 1 to 128 visible ASCII characters")
        text = given.decode().lower()
        bare = text.replace("-", "") if _UUID.fullmatch(text) else text
        return Id(bare if is_trace_id(bare) else hashlib.sha256(given).hexdigest()[:32], exact=True)
    parent = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    trace = parent.group(1).decode() if parent is not None else ""
    return Id(trace, exact=False) if is_trace_id(trace) else None


def _row_ids(id: str, count: int) -> list[str]:
    """An id for each row: the request's own for a single one, else derived from it, the same ones at every retry."""
    if count == 1:
        return [id]
    return [id[:12] + hashlib.sha256(f"{id}:{i}".encode()).hexdigest()[:20] for i in range(count)]
