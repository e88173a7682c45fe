import asyncio
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from random import Random
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tests.deploy.loops import EVER, LOOP, NOW_US, flight, opened, package
from tests.server.api.test_oip import tensors_of
from tests.server.running import TOKEN, Server, running
from tests.waiting import PATIENCE_SECONDS, until
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as messages_of_triton
from tritonclient.utils import InferenceServerException

from loopwright.base.clock import RealClock
from loopwright.base.errors import Overloaded, RequestMalformed, RequestTooLarge
from loopwright.base.ids import is_trace_id
from loopwright.deploy import releases
from loopwright.server.api import grpc_limits, grpc_messages
from loopwright.server.api.grpc_limits import Arrivals, Late
from loopwright.server.api.grpc_messages import messages, parse
from loopwright.server.http.admission import Admission
from loopwright.stores.online.steps import Fed, pack
from loopwright.stores.prediction_log.read import find

PREDICT = f"/loops/{LOOP}/predict"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = opened(tmp_path_factory.mktemp("home"), RealClock())
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    home.online.write("weather", [("JFK", pack([EVER[0]], [[NOW_US, 20.0, None]]))], Fed(1, *EVER))
    with running(home, workers=2, LOOPWRIGHT_GRPC_PORT="0") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.state.grpc)
    yield client
    client.close()


@pytest.fixture
def channel(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.state.grpc) as channel:
        yield channel


def inputs(count: int = 2, **changes: Any) -> list[Any]:
    found = []
    for name, datatype, values in tensors_of(
        [{**flight(i), "pushed_back_at": "2024-05-01T09:00:00Z", **changes} for i in range(count)]
    ):
        tensor = triton.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        found.append(tensor)
    return found


def typed(count: int = 2) -> Any:
    """The same request with typed contents, as KServe's own clients send it, in our messages."""
    fields = {"BYTES": "bytes_contents", "FP64": "fp64_contents", "INT64": "int64_contents", "BOOL": "bool_contents"}
    request = messages()["ModelInferRequest"](model_name=LOOP, id="typed")
    request.parameters["null"].string_param = "-"
    for name, datatype, values in tensors_of([flight(i) for i in range(count)]):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=values.shape)
        getattr(tensor.contents, fields[datatype]).extend(values.ravel().tolist())
    return request


def called(channel: Any, request: Any, method: str = "ModelInfer", **more: Any) -> Any:
    kind = messages()[method.removesuffix("Infer") + "InferResponse" if method == "ModelInfer" else f"{method}Response"]
    call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}", response_deserializer=kind.FromString)
    body = request if isinstance(request, bytes) else request.SerializeToString()
    return call(body, timeout=PATIENCE_SECONDS, **more)


def refused(act: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        act()
    return raised.value.code(), raised.value.details()


def test_a_client_of_triton_asks_what_there_is(client: Any, server: Server) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    told = client.get_server_metadata()
    assert (told.name, list(told.extensions)) == ("loopwright", ["model_repository", "model_configuration", "statistics"])
    model = client.get_model_metadata(LOOP)
    plain = server.data().get(f"/v2/models/{LOOP}").json
    for side in ("inputs", "outputs"):
        found = [(t.name, t.datatype, list(t.shape)) for t in getattr(model, side)]
        assert found == [(t["name"], t["datatype"], t["shape"]) for t in plain[side]]
    [version] = model.versions
    assert client.is_model_ready(LOOP)
    assert client.is_model_ready(LOOP, version[:12])
    for bad in ((LOOP, "0" * 12), ("nobody", "")):
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.is_model_ready(*bad)


def test_a_client_of_triton_gets_the_answers_that_http_gives(client: Any, server: Server) -> None:
    answer = client.infer(LOOP, inputs(3), request_id="q", parameters={"null": "-"})
    over_http = [server.data().post(PREDICT, flight(i)).json for i in range(3)]
    assert answer.as_numpy("score").tolist() == pytest.approx([a["score"] for a in over_http], abs=1e-6)
    assert answer.as_numpy("label").tolist() == [a["label"] for a in over_http]
    assert answer.get_response().id == "q"
    for id in answer.as_numpy("id").tolist():
        logged = find(server.home, id.decode())
        assert logged is not None
        assert logged[1].request["tail"] is None
    only = client.infer(LOOP, inputs(1), outputs=[triton.InferRequestedOutput("label")])
    assert [o.name for o in only.get_response().outputs] == ["label"]


def test_typed_contents_get_typed_contents(channel: Any, client: Any) -> None:
    answer = called(channel, typed())
    found = {o.name: o for o in answer.outputs}
    raw = client.infer(LOOP, inputs(), parameters={"null": "-"})
    assert list(found["score"].contents.fp64_contents) == pytest.approx(raw.as_numpy("score").tolist(), abs=1e-6)
    assert list(found["label"].contents.bool_contents) == raw.as_numpy("label").tolist()
    assert all(is_trace_id(v.decode()) for v in found["id"].contents.bytes_contents)
    assert not answer.raw_output_contents


def test_an_asynchronous_client_of_triton(server: Server) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(server.state.grpc) as client:
            return await asyncio.gather(*(client.infer(LOOP, inputs(1, delay=float(i))) for i in range(64)))

    scores = [float(a.as_numpy("score")[0]) for a in asyncio.run(ask())]
    assert scores == sorted(scores)
    assert len(set(scores)) == 64


def test_ids_and_traces_are_those_of_the_caller(channel: Any, server: Server) -> None:
    trace, id = "4bf92f3577b34da6a3ce929d0e0e4736", "1bf92f3577b34da6a3ce929d0e0e4731"
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    body = typed(1).SerializeToString()
    for metadata, wanted in (((("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),), trace), ((("x-request-id", id),), id)):
        _, done = call.with_call(body, metadata=metadata, timeout=PATIENCE_SECONDS)
        told = dict(done.trailing_metadata())
        assert told["x-request-id"] == wanted
        logged = find(server.home, wanted)
        assert logged is not None
        assert logged[1].unit == "UA0"
    other = typed(2).SerializeToString()
    again = called(channel, typed(1), metadata=(("x-request-id", id),))
    assert again.outputs[2].contents.bytes_contents == [id.encode()]
    another = typed(1)
    another.inputs[3].contents.fp64_contents[0] += 1
    assert refused(lambda: called(channel, another, metadata=(("x-request-id", id),)))[0] is grpc.StatusCode.ALREADY_EXISTS
    assert refused(lambda: called(channel, b"\xff", metadata=(("x-request-id", id),)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        refused(lambda: called(channel, typed(1), metadata=(("x-request-id", "a b"),)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    )
    assert called(channel, other, metadata=(("x-request-id", "ours-7"),)).id == "typed"


def test_a_deadline_that_is_over_is_answered_by_the_heuristic(channel: Any) -> None:
    answer = called(channel, typed(1), metadata=(("x-timeout-ms", "0"),))
    assert answer.outputs[4].contents.bytes_contents == [b"degraded"]
    code, told = refused(lambda: called(channel, typed(1), metadata=(("x-timeout-ms", "soon"),)))
    assert (code, "X-Timeout-Ms" in told) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def bad(change: Callable[[Any], Any]) -> Any:
    request = typed()
    change(request)
    return request


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (b"", grpc.StatusCode.NOT_FOUND, "no loop ''"),
        (b"noise", grpc.StatusCode.INVALID_ARGUMENT, "no message of this method"),
        (b"\x0a\x05ab", grpc.StatusCode.INVALID_ARGUMENT, "no message of this method"),
        (b"\x2a\x00" * 50_000, grpc.StatusCode.RESOURCE_EXHAUSTED, "fields"),
        (bad(lambda r: setattr(r, "model_name", "nobody")), grpc.StatusCode.NOT_FOUND, "nobody"),
        (bad(lambda r: setattr(r, "model_name", "../etc")), grpc.StatusCode.NOT_FOUND, "no loop"),
        (bad(lambda r: setattr(r, "model_version", "0" * 64)), grpc.StatusCode.NOT_FOUND, "version"),
        (bad(lambda r: r.ClearField("inputs")), grpc.StatusCode.INVALID_ARGUMENT, "inputs"),
        (bad(lambda r: r.inputs[0].shape.append(7)), grpc.StatusCode.INVALID_ARGUMENT, "inputs[0].shape"),
        (bad(lambda r: r.inputs[0].shape.__setitem__(0, 2**62)), grpc.StatusCode.RESOURCE_EXHAUSTED, "10,000 rows"),
        (bad(lambda r: setattr(r.inputs[0], "datatype", "FP128")), grpc.StatusCode.INVALID_ARGUMENT, "inputs[0].datatype"),
        (bad(lambda r: setattr(r.inputs[0], "name", "x")), grpc.StatusCode.INVALID_ARGUMENT, "'x' is not in the contract"),
        (bad(lambda r: r.inputs[0].contents.ClearField("bytes_contents")), grpc.StatusCode.INVALID_ARGUMENT, "says 2 values"),
        (
            bad(lambda r: r.inputs[0].contents.bytes_contents.__setitem__(0, b"\xff")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "not UTF-8",
        ),
        (bad(lambda r: r.raw_input_contents.append(b"1")), grpc.StatusCode.INVALID_ARGUMENT, "beside raw_input_contents"),
        (bad(lambda r: r.outputs.add(name="secret")), grpc.StatusCode.INVALID_ARGUMENT, "outputs[0].name"),
    ],
)
def test_bad_calls_are_refused_in_words(channel: Any, request_: Any, code: Any, words: str) -> None:
    found, told = refused(lambda: called(channel, request_))
    assert (found, words in told) == (code, True), told
    assert "Traceback" not in told
    assert called(channel, typed()).outputs


def test_every_infinity_and_every_lie_of_raw_contents_is_named(client: Any) -> None:
    tensors = inputs(1)
    delay = next(t for t in tensors if t.name() == "delay")
    for raw, words in (
        (struct.pack("<d", float("inf")), "must be finite numbers"),
        (struct.pack("<d", float("nan")), "must be finite numbers"),
        (b"1234567", "are 8 bytes, not 7"),
    ):
        delay._raw_content = raw
        with pytest.raises(InferenceServerException, match=words):
            client.infer(LOOP, tensors)


def test_a_message_over_the_limit_is_refused(channel: Any) -> None:
    assert refused(lambda: called(channel, b"\x1a" + b" " * (11 * 2**20)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_large_call_does_not_hold_up_the_others(channel: Any, client: Any) -> None:
    """Health is answered while it is decoded and run: again and again, for as long as the large call takes."""
    answered = 0
    large = threading.Thread(target=called, args=(channel, typed(10_000)))
    large.start()
    while large.is_alive():
        assert client.is_server_live()
        answered += 1
    large.join()
    assert answered >= 3


def test_health_as_grpc_has_it(channel: Any) -> None:
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    for service in (b"", b"inference.GRPCInferenceService", LOOP.encode()):
        assert check(b"\x0a%c%b" % (len(service), service), timeout=PATIENCE_SECONDS) == b"\x08\x01"
    assert refused(lambda: check(b"\x0a\x07unknown", timeout=PATIENCE_SECONDS))[0] is grpc.StatusCode.NOT_FOUND
    assert (
        refused(lambda: channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"", timeout=PATIENCE_SECONDS))[0]
        is grpc.StatusCode.UNIMPLEMENTED
    )


def half_sent(channel: Any, count: int) -> list[Any]:
    """Calls whose headers have gone and whose message never comes."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    method = "/inference.GRPCInferenceService/ModelInfer"
    return [over, *(channel.stream_unary(method).future(nothing()) for _ in range(count))]


def test_half_sent_calls_hold_up_nobody(server: Server) -> None:
    with grpc.insecure_channel(server.state.grpc, [("grpc.use_local_subchannel_pool", 1)]) as other:
        over, *calls = half_sent(other, 700)

        def answered() -> bool:
            """On a new connection, to either worker; UNAVAILABLE while the half-sent calls are young."""
            with grpc.insecure_channel(server.state.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30) == b"\x08\x01"
                try:
                    return bool(called(channel, typed(1)).model_name == LOOP)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    return False

        try:
            for _ in range(8):
                until(answered, 60)
        finally:
            over.set()
            for call in calls:
                call.cancel()


def test_message_that_does_not_come_is_given_up() -> None:
    async def never() -> Any:
        await asyncio.get_running_loop().create_future()
        yield b""

    async def soon() -> Any:
        yield b"x"

    async def nothing() -> Any:
        for _ in ():
            yield b""

    async def check() -> None:
        with pytest.raises(Late):
            await Arrivals(1, 0.01).message(never())
        with pytest.raises(RequestMalformed):
            await Arrivals(1, 60).message(nothing())
        arrivals = Arrivals(2, 60)
        old = [asyncio.create_task(arrivals.message(never())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await arrivals.message(soon())
        grpc_limits.YOUNG_SECONDS, before = -1.0, grpc_limits.YOUNG_SECONDS
        try:
            assert await arrivals.message(soon()) == b"x"
        finally:
            grpc_limits.YOUNG_SECONDS = before
        with pytest.raises(Late):
            await old[0]
        assert not old[1].done()
        shared = Arrivals(4, 60, 0.5)
        many = [asyncio.create_task(shared.message(never(), "10.0.0.1")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await shared.message(soon(), "10.0.0.1")
        assert await shared.message(soon(), "10.0.0.2") == b"x"
        for task in many:
            task.cancel()
        old[1].cancel()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("peer", "address"), [("ipv4:10.1.2.3:5", "10.1.2.3"), ("ipv6:%5B::ffff:10.1.2.3%5D:5", "10.1.2.3"), ("unix:", "")]
)
def test_address_of_a_peer_is_read(peer: str, address: str) -> None:
    assert grpc_limits.address_of(peer) == address


def test_idle_connections_over_the_limit_are_closed_and_others_answered(tmp_path: Any) -> None:
    home = opened(tmp_path, RealClock())
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    with running(home, LOOPWRIGHT_GRPC_PORT="0", LOOPWRIGHT_CONNECTIONS="40") as server, ExitStack() as stack:
        host, _, port = server.state.grpc.rpartition(":")
        idle = []
        for _ in range(200):
            raw = stack.enter_context(socket.create_connection((host, int(port)), 5))
            raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            raw.setblocking(False)
            idle.append(raw)

        def left() -> int:
            return sum(not ended(raw) for raw in idle)

        until(lambda: left() <= 20, 60)
        with grpc.insecure_channel(server.state.grpc) as channel:
            grpc.channel_ready_future(channel).result(30)
            assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30) == b"\x08\x01"
            assert called(channel, typed(1)).model_name == LOOP


def ended(raw: socket.socket) -> bool:
    """Whether the other side has closed a connection."""
    try:
        while raw.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_grpc_model_config_is_that_of_http(client: Any, server: Server) -> None:
    [version] = client.get_model_metadata(LOOP).versions
    plain = server.data().get(f"/v2/models/{LOOP}/config").json
    for model_version in ("", version[:12]):
        config = client.get_model_config(LOOP, model_version).config
        for side in ("input", "output"):
            found = [
                (t.name, model_config_pb2.DataType.Name(t.data_type), list(t.dims), getattr(t, "optional", False))
                for t in getattr(config, side)
            ]
            assert found == [(t["name"], t["data_type"], t["dims"], t.get("optional", False)) for t in plain[side]]
        for name in ("name", "platform", "backend", "default_model_filename", "max_batch_size"):
            assert getattr(config, name) == plain[name]
        assert config.version_policy.latest.num_versions == 1
    for unknown in ((LOOP, "0" * 12), ("nobody", "")):
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.get_model_config(*unknown)


def test_grpc_repository_index_names_loops_and_load_is_unimplemented(client: Any, channel: Any) -> None:
    [version] = client.get_model_metadata(LOOP).versions
    index = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state, m.reason) for m in index] == [(LOOP, version, "READY", "")]
    asked = messages_of_triton.RepositoryIndexRequest(ready=True)
    assert [m.name for m in called(channel, asked, "RepositoryIndex").models] == [LOOP]
    for act in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED.*loopwright release"):
            act(LOOP)
    with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED"):
        client.load_model(LOOP, config="{}", files={"file:1/model.onnx": b"0" * 100_000})
    assert client.is_model_ready(LOOP)


def test_grpc_statistics_count_requests_of_both_protocols_and_all_workers(client: Any, server: Server) -> None:
    def stats(version: str = "") -> Any:
        [one] = client.get_inference_statistics(LOOP, version).model_stats
        return one

    before = stats()
    client.infer(LOOP, inputs(40))
    server.data().post(PREDICT, flight())
    for _ in range(20):
        with pytest.raises(InferenceServerException):
            client.infer(LOOP, inputs(1)[:2])

    def grown() -> bool:  # each worker writes its counts once a second, also those of the tests before
        now = stats(before.version[:12])
        assert (now.name, now.version) == (LOOP, before.version)
        return bool(
            now.inference_count - before.inference_count >= 41
            and now.execution_count - before.execution_count >= 2
            and now.inference_stats.success.count - before.inference_stats.success.count >= 2
            and now.inference_stats.fail.count - before.inference_stats.fail.count >= 20
            and now.inference_stats.success.ns > before.inference_stats.success.ns
        )

    until(grown, PATIENCE_SECONDS)
    assert [s.name for s in client.get_inference_statistics().model_stats] == [LOOP]


def test_our_messages_are_those_of_triton() -> None:
    """The same fields under the same numbers: what one writes the other reads."""
    for name, ours in messages().items():
        theirs = getattr(messages_of_triton, name, None) or getattr(model_config_pb2, name, None)
        if theirs is None or name.startswith("HealthCheck"):
            continue
        known = {f.name: f for f in theirs.DESCRIPTOR.fields}
        for field in ours.DESCRIPTOR.fields:
            assert (field.number, field.type, field.is_repeated) == (
                known[field.name].number,
                5 if known[field.name].type == 14 else known[field.name].type,  # an enumeration is an int32 on the wire
                known[field.name].is_repeated,
            )
    request = messages_of_triton.ModelInferRequest(model_name="a", id="b", raw_input_contents=[b"c"])
    request.parameters["k"].double_param = 0.5
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1.5, 2.5])
    assert parse("ModelInferRequest", request.SerializeToString()).SerializeToString(
        deterministic=True
    ) == request.SerializeToString(deterministic=True)


def nested(tag: int, body: bytes) -> bytes:
    """A field that holds a message."""
    length, size = b"", len(body)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([tag << 3 | 2]) + length + bytes([size]) + body


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x2a\x00" * 5_000_000,  # inputs
        nested(5, b"\x22\x00" * 4_000_000),  # parameters of an input
        nested(5, b"\x18\x01" * 4_000_000),  # its shape
        nested(5, nested(5, b"\x42\x00" * 4_000_000)),  # its texts
        nested(6, b"\x12\x00" * 4_000_000),  # parameters of an output
        nested(5, nested(5, nested(3, b"\x01" * 9_000_000))),  # its integers, a byte each
        nested(5, nested(3, b"\x01" * 9_000_000)),  # its shape
        nested(5, nested(5, b"\x42\x00" * 9_000)) * 400,  # a little too much in each of many
    ],
)
def test_messages_are_bounded_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch, bomb: bytes) -> None:
    """Of millions of parts no more are looked at than a message may have."""
    numbers = 0
    read_number = grpc_messages._varint

    def counted(body: bytes, at: int) -> tuple[int, int]:
        nonlocal numbers
        numbers += 1
        return read_number(body, at)

    monkeypatch.setattr(grpc_messages, "_varint", counted)
    with pytest.raises(RequestTooLarge):
        parse("ModelInferRequest", bomb)
    assert numbers <= 2 * (grpc_messages.MAX_FIELDS_IN_ALL + 1)  # a tag and a length each


def test_large_messages_are_read_like_small_ones() -> None:
    whole = typed(5000)
    assert parse("ModelInferRequest", whole.SerializeToString()) == whole
    for size in (1, 70_000):
        for broken in (b"\x0b", b"\xff" * 20, b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
            with pytest.raises(RequestMalformed):
                parse("ModelInferRequest", nested(1, b"a" * size) + broken)


def test_a_token_is_asked_for_beyond_loopback(tmp_path: Any) -> None:
    home = opened(tmp_path / "home", RealClock(), host="0.0.0.0", token=TOKEN)
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    with running(home, LOOPWRIGHT_GRPC_PORT="0") as server:
        port = server.state.grpc.rpartition(":")[2]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            live = messages()["ServerLiveRequest"]()
            assert called(channel, live, "ServerLive").live
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                for request, method in ((typed(1), "ModelInfer"), (messages()["ServerMetadataRequest"](), "ServerMetadata")):
                    code, _ = refused(partial(called, channel, request, method, metadata=metadata))
                    assert code is grpc.StatusCode.UNAUTHENTICATED
            token = (("authorization", f"Bearer {TOKEN}"),)
            assert called(channel, typed(1), metadata=token).outputs


def test_calls_that_were_begun_are_answered_at_sigterm(tmp_path: Any) -> None:
    home = opened(tmp_path / "home", RealClock())
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    outcomes: list[Any] = []
    with running(home, check=False, LOOPWRIGHT_GRPC_PORT="0") as server, grpc.insecure_channel(server.state.grpc) as channel:
        answered = threading.Event()

        def ask() -> None:
            while True:
                try:
                    called(channel, typed(50))
                    outcomes.append(None)
                    answered.set()
                except grpc.RpcError as error:
                    outcomes.append(error.code())
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert answered.wait(PATIENCE_SECONDS)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert server.process.wait(PATIENCE_SECONDS) == 0
    assert {o for o in outcomes if o is not None} == {grpc.StatusCode.UNAVAILABLE}, "refused, not cut off"


def test_noise_gets_a_refusal_and_the_worker_lives(channel: Any, server: Server) -> None:
    workers, random = server.state.workers, Random(1)
    whole = typed(3).SerializeToString()
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    codes, said = set(), []
    for _ in range(400):
        body = bytearray(whole)
        for _ in range(random.randint(1, 8)):
            at = random.randrange(len(body))
            body[at : at + random.choice([0, 1, 1, 4])] = random.randbytes(random.choice([0, 1, 1, 3]))
        try:
            call(bytes(body), timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            codes.add(error.code())
            said.append(error.details())
    allowed = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes <= allowed
    assert not any("Traceback" in text for text in said)
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert server.state.workers == workers


def test_a_worker_that_is_killed_is_stood_in_for(server: Server) -> None:
    before = server.state.workers
    os.kill(before[0], signal.SIGKILL)
    until(lambda: all(server.state.workers) and server.state.workers[0] != before[0])
    for _ in range(4):  # each channel is a connection of its own, to either worker
        with grpc.insecure_channel(server.state.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert called(channel, typed(1), wait_for_ready=True).outputs


def test_excess_connections_are_closed_where_no_descriptor_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening, ExitStack() as opened_:
        port = listening.getsockname()[1]
        clients = [opened_.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        accepted = [opened_.enter_context(listening.accept()[0]) for _ in range(40)]
        with no_descriptor_left():
            assert grpc_limits.close_excess(port, Admission(30, 1.0)) == 10
        for client in clients:
            client.settimeout(0.0)
        ended = [client for client in clients if ended_by_server(client)]
        assert len(ended) == 10
        assert all(connection.fileno() >= 0 for connection in accepted)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """All that are free are taken, but for the one with which the folder of descriptors is read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 200, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def ended_by_server(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
