"""The Open Inference Protocol over gRPC: another door to the queue that HTTP requests wait in, in the same worker.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto, and the standard health
service (https://github.com/grpc/grpc/blob/master/doc/health-checking.md). HTTP headers are metadata here: authorization,
x-request-id, traceparent, tracestate.
Needs the extra `grpc`; imported only where a port is set.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from loopwright.base.errors import LoopwrightError, NotFound, NotSupported, Overloaded, RequestInvalid
from loopwright.base.log_lines import LOG
from loopwright.base.supervision import Pool, Repeating
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import InService
from loopwright.records.prediction import Prediction
from loopwright.render.http_errors import DOOR, describe, status_of
from loopwright.server.api import oip
from loopwright.server.api.access import Access
from loopwright.server.api.batches import Batches, Found
from loopwright.server.api.grpc_limits import Arrivals, Late, address_of, close_excess
from loopwright.server.api.grpc_messages import INLINE_BYTES, messages, parse
from loopwright.server.api.grpc_repository import Repository
from loopwright.server.api.metrics import Metrics
from loopwright.server.api.request_ids import ask, client_id, deadline, request_id
from loopwright.server.api.routes import Permission
from loopwright.server.api.spans import RequestTiming, Spans, traceresponse
from loopwright.server.http.admission import SPARE_PLACES, Admission
from loopwright.server.http.connection import ADDRESS_SHARE, ARRIVAL_SECONDS, CONNECTIONS, MAX_BYTES

MAX_CALLS = 512
"""Maximum number of running calls, and of arriving ones; health has slots of its own."""

MAX_HEALTH_CALLS, HEALTH_SECONDS = 64, 5.0
HANDSHAKE_SECONDS = 10
SWEEP_SECONDS = 0.5
LAST_CALL_SECONDS = 0.25
MAX_HELD_BYTES = 128 * 2**20

_SERVICE, _HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
_CONTENTS = {
    "BOOL": "bool_contents", "BYTES": "bytes_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
}  # fmt: skip
"""Datatype to the field that holds its elements; FP16 has none and is sent raw."""

_ABOUT = {"rpc.system.name": "grpc", "rpc.method": f"{_SERVICE}/ModelInfer", "rpc.response.status_code": "OK"}
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Call:
    """A prediction in the queue: its request, and the future of its answers."""

    __slots__ = ("ask", "found", "headers", "traced")

    def __init__(self, ask: PredictionRequest, answers: "asyncio.Future[Found]", traced: RequestTiming) -> None:
        self.ask, self.found, self.traced, self.headers = ask, answers, traced, traced.headers

    @property
    def gone(self) -> bool:
        """See `batches.PendingRequest`: the call was cancelled."""
        return self.found.done()

    def reply(self, answers: Found) -> Found:
        """See `batches.PendingRequest`."""
        return answers

    def send(self, answers: Found) -> None:
        """See `batches.PendingRequest`; nothing happens where the client has gone."""
        if not self.found.done():
            self.found.set_result(answers)


class Door:
    """The gRPC service of one worker. Calls wait in `batches`; `ready` says whether all loops are loaded."""

    def __init__(
        self,
        engine: ServingEngine,
        access: Access,
        metrics: Metrics,
        batches: Batches,
        ready: Callable[[], bool],
        *,
        version: str,
        spans: Spans | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._spans, self._admission = spans, admission or Admission(CONNECTIONS, ADDRESS_SHARE)
        self._arriving, self._health_arriving = (
            Arrivals(MAX_CALLS, ARRIVAL_SECONDS),
            Arrivals(MAX_HEALTH_CALLS, HEALTH_SECONDS),
        )
        self._calls = 0
        self._sweeping: Repeating | None = None
        self._registry, self._access, self._metrics = engine.registry, access, metrics
        self._batches, self._ready, self._version = batches, ready, version
        self._server: Any = None
        self._held, self._closing = 0, False
        self._large = Pool("large-calls", 2)
        self._repository = Repository(engine.registry, metrics, self._service, self._aside)

    async def open(self, address: str) -> int:
        """Serve at `host:port`, which other workers may share; the port. To be called in the loop. Raises RuntimeError where it is taken."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", MAX_BYTES),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.max_concurrent_streams", 1024),
                ("grpc.max_allowed_incoming_connections", self._admission.places + SPARE_PLACES),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
                ("grpc.max_connection_idle_ms", 300_000),
                ("grpc.max_connection_age_ms", 600_000),  # so that half a call does not hold its slot for ever
                ("grpc.max_connection_age_grace_ms", 30_000),
            ]
        )
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        port: int = self._server.add_insecure_port(address)
        await self._server.start()
        self._sweeping = Repeating("grpc-connections", lambda: self._sweep(port), SWEEP_SECONDS).start()
        return port

    def _sweep(self, port: int) -> None:
        """Keep the connections within their limits."""
        self._admission.evicted += close_excess(port, self._admission)

    async def close(self, seconds: float) -> None:
        """Accept no new calls, and finish the running ones within `seconds`.

        First refuse new calls as unavailable: while the library stops it would cut them off.
        """
        if self._server is not None:
            self._closing = True
            await asyncio.sleep(LAST_CALL_SECONDS)
            await self._server.stop(seconds)
            if self._sweeping is not None:
                self._sweeping.over.set()
            self._large.shutdown()

    async def _aside(self, work: Callable[..., Any], *args: Any) -> Any:
        return await self._large.call(work, *args)

    def _handlers(self) -> list[Any]:
        own: dict[str, tuple[Permission, Any]] = {
            "ServerLive": ("public", self._server_live),
            "ServerReady": ("public", self._server_ready),
            "ModelReady": ("public", self._model_ready),
            "ServerMetadata": ("observe", self._server_metadata),
            "ModelMetadata": ("observe", self._model_metadata),
            "ModelInfer": ("predict", self._infer),
            **self._repository.methods,
        }
        found = {}
        for name, (permission, answer) in own.items():
            found[name] = grpc.stream_unary_rpc_method_handler(self._guarded(f"{name}Request", permission, answer))
        health = grpc.stream_unary_rpc_method_handler(self._guarded("HealthCheckRequest", "public", self._health))
        return [
            grpc.method_handlers_generic_handler(_SERVICE, found),
            grpc.method_handlers_generic_handler(_HEALTH, {"Check": health}),
        ]

    def _guarded(self, kind: str, permission: Permission, answer: Any) -> Any:
        """A handler of raw bytes that checks access, and maps any error to a gRPC status without internal details.

        Called when the headers have arrived (as for a stream), so that our own limits bound calls with an incomplete message.
        """
        arriving = self._health_arriving if permission == "public" else self._arriving

        async def handle(messages: Any, context: Any) -> bytes:
            # A page in a browser cannot speak gRPC, so there is no Host to be forged.
            headers = {**_headers(context), b"host": b"localhost"}
            if status := self._access.refuse(permission, headers, address_of(context.peer())):
                self._metrics.failed("", DOOR[status][0])
                await context.abort(_STATUS[status], DOOR[status][1])
            loop, body = "", None
            try:
                body = await arriving.message(aiter(messages), address_of(context.peer()))
                self._held += len(body)
                self._calls += 1
                if self._closing:
                    raise Overloaded("this server is stopping; ask another, or try again")
                if self._held > MAX_HELD_BYTES:
                    raise Overloaded("the server is overloaded: too many bytes are in flight; try again")
                if self._calls > MAX_CALLS and permission != "public":
                    raise Overloaded("the server is overloaded: too many calls are in flight; try again")
                if self._batches.full and kind == "ModelInferRequest":
                    raise Overloaded("the server is overloaded: too many rows wait; try again")
                message = await self._aside(parse, kind, body) if len(body) > INLINE_BYTES else parse(kind, body)
                loop = getattr(message, "model_name", "")
                made: bytes = (await answer(message, headers, context)).SerializeToString()
                return made
            except Late:
                self._metrics.failed("", DOOR[408][0])
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, DOOR[408][1])
            except LoopwrightError as error:
                code, text, trailing = self._failure(error, loop)
                if self._spans is not None and kind == "ModelInferRequest":
                    about = {**_ABOUT, "rpc.response.status_code": code.name}
                    known = loop if self._registry.knows(loop) else ""
                    self._spans.failed("infer", known, request_id(headers) or os.urandom(16).hex(), headers, 0.0, about)
            except Exception as error:  # noqa: BLE001  # after any error the client gets a status and the server lives
                LOG.error("%s over gRPC failed", kind, exc_info=error)
                self._metrics.failed("", DOOR[500][0])
                code, text, trailing = grpc.StatusCode.INTERNAL, DOOR[500][1], ()
            finally:
                if body is not None:
                    self._held -= len(body)
                    self._calls -= 1
            await context.abort(code, text, trailing)
            return b""  # abort has raised

        return handle

    def _failure(self, error: LoopwrightError, loop: str) -> tuple[Any, str, tuple[tuple[str, str], ...]]:
        """The status of an error, its text, and when to try again."""
        status, code = status_of(error), error.code
        self._metrics.failed(loop if self._registry.knows(loop) else "", code)
        text: str = oip.error(describe(error))["error"]
        again = (("grpc-retry-pushback-ms", "1000"),) if status == 503 else ()
        code_ = (
            grpc.StatusCode.UNIMPLEMENTED if isinstance(error, NotSupported) else _STATUS.get(status, grpc.StatusCode.INTERNAL)
        )
        return code_, text[:4000], again

    # --- the protocol --------------------------------------------------------------------------------------------

    async def _server_live(self, _: Any, __: Any, ___: Any) -> Any:
        return messages()["ServerLiveResponse"](live=True)

    async def _server_ready(self, _: Any, __: Any, ___: Any) -> Any:
        return messages()["ServerReadyResponse"](ready=self._ready())

    async def _health(self, request: Any, _: Any, __: Any) -> Any:
        """Health of this server (""), of its service by name, of a loop. Raises NotFound for other names."""
        ready = self._ready()
        if request.service not in ("", _SERVICE, _HEALTH):
            if not self._registry.knows(request.service):
                raise NotFound("service", request.service)
            ready = request.service not in self._registry.unready
        return messages()["HealthCheckResponse"](status=1 if ready else 2)

    async def _server_metadata(self, _: Any, __: Any, ___: Any) -> Any:
        return messages()["ServerMetadataResponse"](
            name="loopwright", version=self._version, extensions=oip.REPOSITORY_EXTENSIONS
        )

    async def _service(self, loop: str, version: str) -> InService:
        await self._batches.loading.ready(loop)
        service = self._registry.service(loop)
        oip.check_version(loop, version, service.predictor.digest)
        return service

    async def _model_ready(self, request: Any, _: Any, __: Any) -> Any:
        await self._service(request.name, request.version)
        return messages()["ModelReadyResponse"](ready=True)

    async def _model_metadata(self, request: Any, _: Any, __: Any) -> Any:
        predictor = (await self._service(request.name, request.version)).predictor
        told = oip.metadata(request.name, predictor.digest, predictor.package.manifest)
        tensors = {
            side: [{k: v for k, v in tensor.items() if k != "parameters"} for tensor in told[side]]
            for side in ("inputs", "outputs")
        }
        return messages()["ModelMetadataResponse"](**{**told, **tensors})

    async def _infer(self, request: Any, headers: Mapping[bytes, bytes], context: Any) -> Any:
        started = time.perf_counter()
        service = await self._service(request.model_name, request.model_version)
        output = service.predictor.package.manifest.output
        id, left = client_id(headers), context.time_remaining()
        seconds = service.predictor.deadline
        until = deadline(headers, started, seconds if left is None else min(seconds, left))

        def decoded() -> tuple[oip.Tensors, list[dict[str, Any]]]:
            tensors = oip.Tensors.of(*_plain(request), service.decode.columns, oip.outputs(output))
            return tensors, service.decode.check(tensors.rows)

        def encoded(answers: list[Prediction]) -> Any:
            told = oip.response(request.model_name, tensors.id, answers, tensors.outputs, output, self._registry.names)
            return _response(told, as_raw=bool(request.raw_input_contents))

        large = request.ByteSize() > INLINE_BYTES
        tensors, rows = await self._aside(decoded) if large else decoded()
        traced = RequestTiming("infer", request.model_name, headers, started, time.perf_counter(), _ABOUT)
        call = Call(ask(rows, id, until), asyncio.get_running_loop().create_future(), traced)
        self._batches.put(request.model_name, call)
        found = await call.found
        if isinstance(found, Exception):
            raise found
        trailing = [("traceresponse", value.decode()) for _, value in traceresponse(self._spans, headers, found[0].id)]
        if whole := found[0].id if len(found) == 1 else id.id if id is not None else "":
            trailing.append(("x-request-id", whole))
        context.set_trailing_metadata(tuple(trailing))
        answer = await self._aside(encoded, found) if large else encoded(found)
        self._metrics.answered(request.model_name, time.perf_counter() - started)
        return answer


def _headers(context: Any) -> dict[bytes, bytes]:
    metadata = context.invocation_metadata() or ()
    return {key.encode(): value.encode("latin-1", "replace") if isinstance(value, str) else value for key, value in metadata}


def _plain(request: Any) -> tuple[dict[str, Any], list[bytes | None]]:
    """A request as the values that `oip.Tensors` reads, and the raw contents of its inputs. Raises RequestInvalid."""
    raw: list[bytes | None] = list(request.raw_input_contents)
    inputs = []
    for i, tensor in enumerate(request.inputs):
        told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if not raw:
            told["data"] = _contents(tensor, i)
        elif tensor.HasField("contents"):
            raise RequestInvalid([(f"inputs[{i}].contents", "must not be there beside raw_input_contents")])
        inputs.append(told)
    if raw and len(raw) != len(inputs):
        raise RequestInvalid([("raw_input_contents", f"are {len(raw)}, the inputs are {len(inputs)}")])
    plain: dict[str, Any] = {"id": request.id, "inputs": inputs}
    if parameters := _parameters(request.parameters):
        plain["parameters"] = {k: v for k, v in parameters.items() if k != "binary_data_output"}
    if request.outputs:
        plain["outputs"] = [
            {"name": o.name, "parameters": {k: v for k, v in _parameters(o.parameters).items() if k != "binary_data"}}
            for o in request.outputs
        ]
    return plain, raw or [None] * len(inputs)


def _parameters(args: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in args.items():
        which = value.WhichOneof("parameter_choice")
        found[name] = getattr(value, which) if which else None
    return found


def _contents(tensor: Any, i: int) -> Any:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        known = tensor.datatype in oip.NUMBERS
        why = "comes in raw_input_contents" if known else f"is no datatype: {tensor.datatype[:20]!r}"
        raise RequestInvalid([(f"inputs[{i}].datatype", why)])
    values = getattr(tensor.contents, field)
    if field != "bytes_contents":
        return values
    try:
        return tuple(str(v, "utf-8") for v in values)
    except UnicodeDecodeError:
        raise RequestInvalid([(f"inputs[{i}].contents", "is not UTF-8")]) from None


def _response(body: dict[str, Any], *, as_raw: bool) -> Any:
    """The answer as a message, with raw tensors if the request had raw ones."""
    made = messages()["ModelInferResponse"](model_name=body["model_name"], model_version=body["model_version"], id=body["id"])
    for tensor in body["outputs"]:
        output = made.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        for name, value in tensor.get("parameters", {}).items():
            output.parameters[name].string_param = value
        if as_raw:
            made.raw_output_contents.append(oip.packed(tensor["data"], tensor["datatype"]))
            continue
        text = tensor["datatype"] == "BYTES"
        values = [("" if v is None else str(v)).encode() if text else 0 if v is None else v for v in tensor["data"]]
        getattr(output.contents, _CONTENTS[tensor["datatype"]]).extend(values)
    return made
