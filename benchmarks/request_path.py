"""What the request path costs: in process beside a bare ONNX run, over HTTP beside a bare echo. Writes a section of RESULTS.md.

    make bench                        # or: python -m benchmarks.request_path --seconds 5 --rounds 3

Ratios, not absolute numbers, are the result: machines differ, and one machine drifts by a factor of two within an hour. What
is compared is therefore measured in turns (A B A B ...), and medians are reported. Everything of ours is switched on:
contract, context, flags, prediction log with durability `process`, metrics, ids. The load comes from `wrk` in a second process.
"""

import argparse
import asyncio
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime
import uvloop
from benchmarks.report import RESULTS, machine, put, table

from loopwright.base.settings import load_settings
from loopwright.deploy.serving.context import Contexts
from loopwright.deploy.serving.deadlines import Overruns
from loopwright.deploy.serving.decode import Decoder
from loopwright.deploy.serving.engine import ServingEngine
from loopwright.deploy.serving.heartbeat import Heartbeat
from loopwright.deploy.serving.predictor import Predictor
from loopwright.deploy.serving.registry import Registry
from loopwright.deploy.serving.release_files import read
from loopwright.deploy.serving.suspects import FILE as SUSPECTS
from loopwright.deploy.serving.suspects import Suspects
from loopwright.graph.session import Feeder, Graph
from loopwright.records.answer import Answer
from loopwright.records.package import Manifest
from loopwright.server.api.access import Access
from loopwright.server.api.app import DataPlane
from loopwright.server.api.metrics import Metrics
from loopwright.server.http.connection import Connection, Server
from loopwright.server.http.request import Reply, Request, refusal
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.writer import LogWriter

HERE = Path(__file__).parent
LOOP = "late-arrival"
DEMO_UNTIL = datetime(2013, 4, 8, tzinfo=UTC)
LIBRARIES = ("onnxruntime", "msgspec", "uvicorn", "httptools", "uvloop", "lightgbm", "numpy")
BATCHES = (1, 32)
CONNECTIONS = (1, 8, 32)
ECHOES = ("bare echo on uvicorn", "bare echo on our own HTTP layer")
MAX_SLOWER, MIN_SHARE = 2.5, 0.4
BARE, ANSWER, HTTP, WHOLE = "bare", "answer", "HTTP: parse the request, frame the answer", "whole"
POST = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{body}]==]\n'


def command(*arguments: str, home: Path) -> list[str]:
    """A loopwright command line in `home`."""
    return [sys.executable, "-m", "loopwright", "--home", str(home), *arguments]


def prepare(home: Path) -> None:
    """A trained and released loop: the first days of the demo, unless `home` has it already."""
    if not (home / "served" / f"{LOOP}.json").is_file():
        print(f"training the flights loop in {home} ...", flush=True)
        subprocess.run(
            command("demo", "--no-serve", "--end", f"{DEMO_UNTIL:%Y-%m-%d}", home=home), check=True, stdout=subprocess.DEVNULL
        )


def body_of(manifest: Manifest, golden: dict[str, Any]) -> bytes:
    """A request as a client would send it: a golden one, decided while its context is fresh."""
    times = {name for name, column in manifest.request.items() if column.type == "timestamp"}
    moment = (DEMO_UNTIL - timedelta(hours=1)).isoformat()
    return msgspec.json.encode({name: moment if name in times else value for name, value in golden.items()})


class Wire:
    """Stands where a connection's transport is: takes what is written, and counts it."""

    written = 0

    def write(self, data: bytes) -> None:
        """An answer."""
        self.written += 1
        self.answer = data

    def is_closing(self) -> bool:
        """It never does."""
        return False

    def get_extra_info(self, name: str, default: object = None) -> object:
        """The client's address."""
        return ("127.0.0.1", 1) if name == "peername" else default


class Worker:
    """The whole path of one worker in this process, from the bytes of requests to the bytes of answers; only the system's sockets are not there."""

    def __init__(self, home: Home, body: bytes) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._folder = tempfile.TemporaryDirectory()
        Suspects.fresh(Path(self._folder.name) / SUSPECTS).close()
        heartbeat = Heartbeat.fresh(Path(self._folder.name) / "worker-0.heartbeat")
        self._engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock, heartbeat=heartbeat))
        self._engine.registry.refresh()
        metrics, access = Metrics(), Access(home.settings, always=False)
        self.plane = DataPlane(self._engine, access, metrics, home.clock, version="benchmark")
        head = f"POST /loops/{LOOP}/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request, self.wire = head.encode() + body, Wire()

    def seconds(self, application: Any, together: int, times: int) -> float:
        """Processor seconds for `times` times `together` requests that arrive at once."""

        async def run() -> float:
            server, wire = Server(application), self.wire
            connections = [Connection(server, asyncio.get_running_loop()) for _ in range(together)]
            for connection in connections:
                connection.connection_made(wire)
            begun = time.process_time()
            for _ in range(times):
                awaited = wire.written + together
                for connection in connections:
                    connection.data_received(self.request)
                while wire.written < awaited:
                    await asyncio.sleep(0)
            return time.process_time() - begun

        return self._runner.run(run())

    def close(self) -> None:
        """End it."""
        self.plane.close()
        self._engine.close()
        self._runner.close()
        self._folder.cleanup()


class Nothing:
    """Answers every request with the same bytes: what is left is HTTP."""

    def begin(self, _request: Request) -> Reply | None:
        """Nothing is refused."""
        return None

    def handle(self, _request: Request) -> Reply | None:
        """The same answer."""
        return Reply(200, b" " * 190, id="0" * 32)

    def failed(self, _request: Request, _error: Exception) -> Reply:
        """A limit was met."""
        return refusal(503)

    def is_health(self, _request: Request) -> bool:
        """No request is about health."""
        return False


def seconds_of(call: Callable[[], object], times: int) -> float:
    """Processor seconds of so many calls."""
    begun = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - begun


def in_process(home: Home, digest: str, *, calls: int, rounds: int) -> tuple[dict[int, dict[str, float]], bytes]:
    """Processor microseconds a row of each step, for one row and for 32 that arrive together; and the body used."""
    package = open_probed(home.packages, digest)
    manifest = package.manifest
    body = body_of(manifest, package.reference.golden[0].request)
    decode = Decoder(manifest.request, optional=manifest.may_lack)
    predictor = Predictor(package, home.online, home.clock, Overruns())
    contexts = Contexts(manifest.context, manifest.event_time, home.online)
    graph = Graph(package.files["model.onnx"])
    feeder = Feeder(graph, package.columns)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(package.files["model.onnx"], options, providers=["CPUExecutionProvider"])
    encode = msgspec.json.Encoder().encode
    whole = Worker(home, body)
    took: dict[int, dict[str, list[float]]] = {count: {} for count in BATCHES}
    with tempfile.TemporaryDirectory() as folder:
        log = LogWriter(Path(folder), "predictions")
        for count in BATCHES:
            rows = [decode(body).rows[0] for _ in range(count)]
            answers = predictor.answer([dict(row) for row in rows])
            full = [{**a.request, **a.context} for a in answers]
            feed = feeder(full)
            a = answers[0]
            reply = Answer(a.id, a.score, a.label, a.package, a.arm, a.flags)
            if a.flags:
                print(f"note: the request is flagged {a.flags}")
            moment, ids = a.at, [a.id for a in answers]
            calls_of: dict[str, Callable[[], object]] = {
                BARE: lambda feed=feed: session.run(["score"], feed),  # type: ignore[misc]  # mypy knows no defaults of lambdas
                "decode and check against the contract": lambda count=count: [decode(body) for _ in range(count)],  # type: ignore[misc]  # as above
                "context": lambda rows=rows: contexts.find(rows, [[] for _ in rows]),  # type: ignore[misc]  # as above
                "feed": lambda full=full: feeder(full),  # type: ignore[misc]  # as above
                "graph run": lambda feed=feed: graph.score(feed),  # type: ignore[misc]  # as above
                ANSWER: lambda rows=rows, ids=ids, moment=moment: predictor.answer(rows, ids=ids, at_us=moment),  # type: ignore[misc]  # as above
                "log": lambda answers=answers: log.append(answers),  # type: ignore[misc]  # as above
                "encode": lambda reply=reply, count=count: [encode(reply) for _ in range(count)],  # type: ignore[misc]  # as above
            }
            times = max(1, calls // count)
            for _ in range(rounds):  # in turns, so that a drifting machine drifts for all of them
                done = {name: seconds_of(call, times) for name, call in calls_of.items()}
                done[HTTP] = whole.seconds(Nothing(), count, times)
                done[WHOLE] = whole.seconds(whole.plane, count, times)
                for name, seconds in done.items():
                    took[count].setdefault(name, []).append(seconds / times / count * 1e6)
            assert whole.wire.answer.startswith(b"HTTP/1.1 200"), whole.wire.answer
        log.close()
    whole.close()
    return {count: {name: min(values) for name, values in steps.items()} for count, steps in took.items()}, body


def steps_of(took: dict[str, float]) -> list[tuple[str, float]]:
    """The steps of the path, in order; they add up to the whole."""
    inside = [took["context"], took["feed"], took["graph run"]]
    outside = [took[HTTP], took["decode and check against the contract"], took[ANSWER], took["log"], took["encode"]]
    return [
        (HTTP, took[HTTP]),
        ("decode and check against the contract", took["decode and check against the contract"]),
        ("look up context", took["context"]),
        ("build the feed", took["feed"]),
        ("graph run", took["graph run"]),
        ("flags, labels, records", took[ANSWER] - sum(inside)),
        ("append to the log", took["log"]),
        ("encode the answer", took["encode"]),
        ("routes, access, queue, ids, metrics, cold caches", took[WHOLE] - sum(outside)),
    ]


def serve(home: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Our server with one worker, on a free port; returns when it is ready."""
    said = home / "serve.json"
    said.unlink(missing_ok=True)
    line = command("serve", "--port", "0", "--control-port", "0", "--workers", "1", "--no-tend", home=home)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        if said.is_file():
            return process, int(msgspec.json.decode(said.read_bytes())["data"].rpartition(":")[2])
        time.sleep(0.1)
    raise RuntimeError("the server did not become ready")


def echo(*, own: bool) -> tuple[subprocess.Popen[bytes], int]:
    """The bare echo on uvicorn, or on our own HTTP layer; returns when it listens."""
    line = [sys.executable, str(HERE / "echo.py"), "0", *(["own"] if own else [])]
    process = subprocess.Popen(line, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def load(port: int, path: str, body: bytes, *, connections: int, seconds: int, folder: Path) -> tuple[float, float]:
    """Requests a second and median latency in microseconds, by wrk."""
    script = folder / "post.lua"
    script.write_text(POST.replace("{body}", body.decode()))
    line = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), f"http://127.0.0.1:{port}{path}"]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"requests failed:\n{said}")
    rate, median = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"50%\s+([\d.]+)(us|ms|s)", said)
    if rate is None or median is None:
        raise RuntimeError(f"cannot read what wrk said:\n{said}")
    return float(rate[1]), float(median[1]) * {"us": 1.0, "ms": 1e3, "s": 1e6}[median[2]]


def over_http(home: Path, body: bytes, *, seconds: int, rounds: int) -> dict[tuple[str, int], tuple[float, float]]:
    """Median requests a second and median latency for ours and the echoes, by connections."""
    servers = {"loopwright": serve(home), ECHOES[0]: echo(own=False), ECHOES[1]: echo(own=True)}
    took: dict[tuple[str, int], list[tuple[float, float]]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for _, port in servers.values():  # warm up
                load(port, f"/loops/{LOOP}/predict", body, connections=4, seconds=1, folder=Path(folder))
            for _ in range(rounds):
                for connections in CONNECTIONS:
                    for name, (_, port) in servers.items():
                        done = load(
                            port, f"/loops/{LOOP}/predict", body, connections=connections, seconds=seconds, folder=Path(folder)
                        )
                        took.setdefault((name, connections), []).append(done)
    finally:
        for process, _ in servers.values():
            process.terminate()
        for process, _ in servers.values():
            process.wait(30)
    return {k: (statistics.median(r for r, _ in v), statistics.median(m for _, m in v)) for k, v in took.items()}


def _met(met: bool) -> str:
    return "met" if met else "**not met**"


def results(
    steps: dict[int, dict[str, float]],
    http: dict[tuple[str, int], tuple[float, float]],
    candidate: str,
    line: str,
    columns: int,
) -> str:
    """The section of RESULTS.md."""
    text = machine(LIBRARIES) + "\n"
    text += f"The loop is that of `examples/flights`, the package its `{candidate}`, the request one flight with {columns} columns, the\n"
    text += "context from the embedded online table (three look-ups). Contract, flags, log (durability `process`), metrics and ids are on.\n\n"
    one = steps[1]
    rows = [["in process, one row: whole path / bare ONNX run", f"{one[WHOLE] / one[BARE]:.1f}", "", ""]]
    for name in ECHOES:
        slower, kept = http["loopwright", 1][1] / http[name, 1][1], http["loopwright", 32][0] / http[name, 32][0]
        rows += [
            [f"1 connection: p50 / that of the {name}", f"{slower:.2f}", "<= 2.5", _met(slower <= MAX_SLOWER)],
            [f"32 connections: throughput / that of the {name}", f"{kept:.2f}", ">= 0.4", _met(kept >= MIN_SHARE)],
        ]
    text += table(["what", "ratio", "target", ""], rows)
    text += "\nA row that comes alone pays for all of the path. `perf` says of its processor time in process: 63 % Python's interpreter (some 150\n"
    text += "calls, a flat profile), 18 % ONNX Runtime, 6 % memory, 5 % the kernel (the log's write). What would take more of it away: a Python\n"
    text += "built with profile-guided optimisation (this one is not), one compiled step from the body to the feed and to the record, and fewer\n"
    text += "nodes before the trees.\n"
    text += "\n### Where the microseconds go (processor time a row; requests that arrive together run as one batch)\n\n"
    parts = {count: dict(steps_of(steps[count])) for count in BATCHES}
    names = list(parts[1])
    share = {c: lambda us, c=c: [f"{us:.1f}", f"{us / steps[c][WHOLE]:.0%}"] for c in BATCHES}
    cells = [[name, *share[1](parts[1][name]), *share[32](parts[32][name])] for name in names]
    total = ["**whole path, without the system's sockets**", *share[1](steps[1][WHOLE]), *share[32](steps[32][WHOLE])]
    beside = ["beside it: bare ONNX run, feed ready", *share[1](steps[1][BARE]), *share[32](steps[32][BARE])]
    text += table(["step", "one row, us", "share", "of 32, us", "share"], [*cells, total, beside])
    text += "\nEach step is timed alone, so in a warm cache; what the steps take longer in their places is in the last one.\n"
    text += "\n### Over HTTP (one worker, one row a request, wrk in a second process)\n\n"
    found = [
        [name, str(c), f"{rate:,.0f}", f"{p50:,.0f}"] for (name, c), (rate, p50) in sorted(http.items(), key=lambda i: i[0][1])
    ]
    text += table(["server", "connections", "requests/s", "p50 us"], found)
    return text + f"\nReproduce: `{line}`.\n"


def main() -> int:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a home with the demo in it (default: a new one, trained first)")
    parser.add_argument("--seconds", type=int, default=5, help="length of each load")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--calls", type=int, default=2000, help="calls a round in process")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one short round")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.rounds, args.calls = 1, 1, 500
    if shutil.which("wrk") is None:
        print("this benchmark needs wrk (Debian and Ubuntu: apt-get install wrk)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        path: Path = args.home or Path(scratch) / "home"
        prepare(path)
        with Home(load_settings({"home": path})) as home:
            served = read(path / "served" / f"{LOOP}.json")
            assert served is not None
            digest = served.state.champion.package
            manifest = home.packages.read(digest).manifest
            steps, body = in_process(home, digest, calls=args.calls, rounds=args.rounds)
        http = over_http(path, body, seconds=args.seconds, rounds=args.rounds)
    text = results(steps, http, manifest.candidate, "make bench", len(manifest.request))
    put("Request path", text, args.out)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
