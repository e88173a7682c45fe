import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace as api
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio
from tests.deploy.loops import LOOP, flight, opened, package
from tests.receiver import receiving
from tests.server.api.test_grpc import typed
from tests.server.running import running
from tests.waiting import PATIENCE_SECONDS, until

from loopwright.base.clock import RealClock
from loopwright.base.ids import new_id, span_id
from loopwright.deploy import releases
from loopwright.records.prediction import Prediction
from loopwright.server.api import spans
from loopwright.server.api.spans import SampledRequest, Spans, Stage, parent, traceresponse

CLOCK = RealClock()
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent at the end may take longer on a busy machine than it has there."""
    monkeypatch.setattr(spans, "CLOSE_SECONDS", PATIENCE_SECONDS)


def answer(id: str, *flags: str) -> Prediction:
    return Prediction(
        id=id, at=0, package="3fa9" * 16, arm="champion", probability=1.0, request={}, context={}, context_age_s=None,
        score=0.5, label=True, flags=list(flags), latency_us=1.0, unit="u", segment="JFK",
    )  # fmt: skip


def told(id: str, headers: Mapping[bytes, bytes], *flags: str, failed: bool = False) -> SampledRequest:
    now = time.perf_counter()
    stages = [Stage("decode", now - 0.004, now - 0.003), Stage("wait", now - 0.003, now - 0.002)]
    stages += [Stage("answer", now - 0.002, now - 0.001), Stage("encode", now - 0.001, now)]
    return SampledRequest(
        "predict", "late-arrival", id, headers, [answer(id, *flags)], stages, {"http.response.status_code": 200}, failed
    )


def made(url: str, share: float = 1.0) -> tuple[Spans, "Counter[str]"]:
    counts: Counter[str] = Counter()
    return Spans(url, share, CLOCK, "0.0.1", lambda what, n: counts.update({what: n})), counts


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9999, 1.0])
def test_the_same_requests_are_sampled_as_by_opentelemetry(share: float) -> None:
    mine, theirs = made("http://localhost", share)[0], ParentBasedTraceIdRatio(share)
    edges = [f"{'1' * 16}{n % 2**64:016x}" for n in (0, round(share * 2**64) - 1, round(share * 2**64), 2**64 - 1)]
    for id in [new_id(CLOCK.now()) for _ in range(500)] + edges:
        decision = theirs.should_sample(None, int(id, 16), "predict").decision
        assert mine.wants(id, {}) == (decision is Decision.RECORD_AND_SAMPLE), id
        for flag in (0, 1):
            context = api.SpanContext(int(id, 16), int(CALLER, 16), is_remote=True, trace_flags=api.TraceFlags(flag))
            around = api.set_span_in_context(api.NonRecordingSpan(context))
            decision = theirs.should_sample(around, int(id, 16), "predict").decision
            header = {b"traceparent": f"00-{id}-{CALLER}-0{flag}".encode()}
            assert mine.wants(id, header) == (decision is Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize(
    "header",
    [
        "", "00", f"00-{TRACE}-{CALLER}", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{CALLER}-01",
        f"00-{TRACE.upper()}-{CALLER}-01", f"00-{TRACE}-{CALLER}-1", f" 00-{TRACE}-{CALLER}-01",
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_nobodys(header: str) -> None:
    assert parent({b"traceparent": header.encode()}) is None
    assert traceresponse(None, {b"traceparent": header.encode()}, TRACE) == ()
    assert not made("http://localhost", 0.0)[0].wants(TRACE, {b"traceparent": header.encode()})


def test_a_collector_gets_a_request_with_its_stages() -> None:
    id = new_id(CLOCK.now())
    with receiving() as collector:
        mine, counts = made(collector.url)
        before = time.time()
        mine.tell(told(id, {}, "degraded", "out_of_range:delay"))
        after = time.time()
        headers = {b"traceparent": f"00-{TRACE}-{CALLER}-01".encode(), b"tracestate": b"congo=t61rcWkgMzE"}
        other = new_id(CLOCK.now())
        mine.tell(told(other, headers, failed=True))
        mine.close()
    assert counts == {"sent": 2}
    [(path, said, body)] = collector.posted
    assert (path, said["content-type"]) == ("/v1/traces", "application/x-protobuf")
    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "loopwright"
    found = list(resource.scope_spans[0].spans)
    root, called = found[0], found[5]
    assert (root.trace_id.hex(), root.span_id.hex(), root.parent_span_id, root.kind) == (id, span_id(id), b"", 2)
    assert [s.name for s in found[:5]] == ["predict late-arrival", "decode", "wait", "answer", "encode"]
    assert all(s.parent_span_id == root.span_id and s.trace_id == root.trace_id for s in found[1:5])
    assert found[1].start_time_unix_nano == root.start_time_unix_nano
    assert found[4].end_time_unix_nano == root.end_time_unix_nano
    assert root.end_time_unix_nano - root.start_time_unix_nano == pytest.approx(4e6, abs=1e3)
    assert before - 1 <= root.end_time_unix_nano / 1e9 <= after + 1
    about = {a.key: a.value for a in root.attributes}
    assert [v.string_value for v in about["loopwright.flags"].array_value.values] == ["degraded", "out_of_range:delay"]
    assert about["loopwright.degraded"].bool_value
    assert about["http.response.status_code"].int_value == 200
    assert {k: about[f"loopwright.{k}"].string_value for k in ("loop", "package", "arm", "prediction.id", "segment")} == {
        "loop": "late-arrival",
        "package": "3fa9" * 16,
        "arm": "champion",
        "prediction.id": id,
        "segment": "JFK",
    }
    assert (called.trace_id.hex(), called.parent_span_id.hex(), called.trace_state) == (TRACE, CALLER, "congo=t61rcWkgMzE")
    assert (called.span_id.hex(), called.status.code) == (span_id(other), 2)
    assert len({s.span_id for s in found}) == len(found)


def test_a_refused_request_with_any_id_is_sampled_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "PAUSE_SECONDS", 3600.0)  # what is told is looked at, not sent
    mine, counts = made("http://localhost", 0.5)
    for i in range(400):
        mine.failed("predict", "late-arrival", f"order-{i}", {}, 0.0, {"http.response.status_code": 422})
    assert 150 < len(mine._waiting) < 250
    assert counts == {}


def test_a_caller_is_told_which_span_answered() -> None:
    given = {b"traceparent": f"00-{TRACE}-{CALLER}-01".encode()}
    assert traceresponse(None, given, TRACE) == ((b"traceresponse", f"00-{TRACE}-{span_id(TRACE)}-00".encode()),)
    assert traceresponse(made("http://localhost")[0], given, TRACE)[0][1].endswith(b"-01")
    assert traceresponse(None, {}, TRACE) == ()


def test_a_collector_that_is_down_costs_spans_that_are_counted_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MAX_WAITING", 5)
    monkeypatch.setattr(spans, "PAUSE_SECONDS", 60.0)  # until it is closed
    with receiving() as gone:
        pass
    mine, counts = made(gone.url)
    for _ in range(8):
        mine.tell(told(new_id(CLOCK.now()), {}))
    assert counts == {"lost": 3}
    mine.close()
    assert counts == {"lost": 8}


@pytest.mark.parametrize("url", ["http://collector.example:4318", "https://10.0.0.7/v1/traces", "ftp://localhost"])
def test_spans_go_to_https_or_this_machine_only(url: str) -> None:
    mine, counts = made(url)
    mine.tell(told(TRACE, {}))
    mine.close()
    assert counts == {"lost": 1}


def test_requests_of_a_server_leave_spans_over_http_and_grpc(tmp_path: Path) -> None:
    home = opened(tmp_path / "home", RealClock())
    digest = package(home.packages).digest
    releases.release(home, LOOP, digest, why="first")
    with (
        receiving() as collector,
        running(
            home,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_HEADERS="x-key=k",
            OTEL_TRACES_SAMPLER="parentbased_always_off",
            OTEL_SERVICE_NAME="late",
            OTEL_RESOURCE_ATTRIBUTES="team=ops%20%26%20co,service.name=other",
            LOOPWRIGHT_GRPC_PORT="0",
        ) as server,
    ):
        client = server.data()
        asked = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "congo=t61"}
        answer = client.post(f"/loops/{LOOP}/predict", flight(delay=5000), **asked)
        assert answer.json["id"] == TRACE
        assert answer.headers["traceresponse"] == f"00-{TRACE}-{span_id(TRACE)}-01"
        assert "traceresponse" not in client.post(f"/loops/{LOOP}/predict", flight()).headers
        other = TRACE[::-1]
        refused = client.post(f"/loops/{LOOP}/predict", {"delay": 1}, traceparent=f"00-{other}-{CALLER}-01")
        assert refused.status == 422
        third = "f" + TRACE[1:]
        with grpc.insecure_channel(server.state.grpc) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            _, done = call.with_call(
                typed(1).SerializeToString(), metadata=(("traceparent", f"00-{third}-{CALLER}-01"),), timeout=PATIENCE_SECONDS
            )
            fourth = "e" + TRACE[1:]
            with pytest.raises(grpc.RpcError):
                call(b"\x0a\x06nobody", metadata=(("traceparent", f"00-{fourth}-{CALLER}-01"),), timeout=PATIENCE_SECONDS)
        assert dict(done.trailing_metadata())["traceresponse"] == f"00-{third}-{span_id(third)}-01"
        until(lambda: b'loopwright_traced_requests_total{result="sent"} 4.0' in client.get("/metrics").body)
    found = [
        span
        for post in collector.posted
        for resource in ExportTraceServiceRequest.FromString(post.body).resource_spans
        for span in resource.scope_spans[0].spans
    ]
    by_trace = {t: [s for s in found if s.trace_id.hex() == t] for t in (TRACE, other, third, fourth)}
    assert len(found) == sum(map(len, by_trace.values())), "the request of nobody's trace is not sampled"
    stages = ["decode", "wait", "answer", "encode"]
    assert [s.name for s in by_trace[TRACE]] == [f"predict {LOOP}", *stages]
    assert [s.name for s in by_trace[third]] == [f"infer {LOOP}", *stages]
    [refused_call, _] = by_trace[fourth]
    about_call = {a.key: a.value.string_value for a in refused_call.attributes}
    assert (about_call["rpc.method"], about_call["rpc.response.status_code"], refused_call.status.code) == (
        "inference.GRPCInferenceService/ModelInfer",
        "NOT_FOUND",
        0,
    )
    assert [s.name for s in by_trace[other]] == [f"predict {LOOP}", "decode"]
    whole, *parts = by_trace[TRACE]
    assert (whole.parent_span_id.hex(), whole.trace_state) == (CALLER, "congo=t61")
    assert sum(p.end_time_unix_nano - p.start_time_unix_nano for p in parts) == pytest.approx(
        whole.end_time_unix_nano - whole.start_time_unix_nano, abs=4
    )
    about = {a.key: a.value for a in whole.attributes}
    assert about["loopwright.package"].string_value == digest
    assert "out_of_range:delay" in [v.string_value for v in about["loopwright.flags"].array_value.values]
    assert about["http.route"].string_value == "/loops/{loop}/predict"
    assert {a.key: a.value.string_value for a in by_trace[third][0].attributes}["rpc.system.name"] == "grpc"
    [status] = [a.value.int_value for a in by_trace[other][0].attributes if a.key == "http.response.status_code"]
    assert status == 422
    refusal = {a.key: a.value.string_value for a in by_trace[other][0].attributes}
    assert (refusal["http.request.method"], refusal["http.route"]) == ("POST", "/loops/{loop}/predict")
    [about_service] = {
        tuple((a.key, a.value.string_value) for a in resource.resource.attributes if a.key in ("service.name", "team"))
        for post in collector.posted
        for resource in ExportTraceServiceRequest.FromString(post.body).resource_spans
    }
    assert about_service == (("service.name", "late"), ("team", "ops & co"))
    assert {post.headers["x-key"] for post in collector.posted} == {"k"}
