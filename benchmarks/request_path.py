"""What the request path costs: in process beside a bare ONNX run, over HTTP beside a bare echo. Writes a section of RESULTS.md.

    make bench                        # or: python -m benchmarks.request_path --seconds 5 --rounds 3

Ratios, not absolute numbers, are the result: machines differ, and one machine drifts by a factor of two within an hour. What
is compared is therefore measured in turns (A B A B ...), and medians are reported. Everything of ours is switched on:
contract, context, flags, prediction log with durability `process`, metrics, ids. The load comes from `wrk` in a second process.
"""

import argparse
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
from benchmarks.report import RESULTS, machine, put, table

from loopwright.deploy.decode import Decoder
from loopwright.deploy.overrun import Overruns
from loopwright.deploy.predict import Predictor
from loopwright.deploy.served import read
from loopwright.records.graph import Feeder, Graph
from loopwright.records.home import Home
from loopwright.records.package import Manifest
from loopwright.records.predictions.log import LogWriter
from loopwright.records.settings import load_settings

HERE = Path(__file__).parent
LOOP = "late-arrival"
DEMO_UNTIL = datetime(2013, 4, 8, tzinfo=UTC)
LIBRARIES = ("onnxruntime", "msgspec", "uvicorn", "httptools", "uvloop", "lightgbm", "numpy")
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


def microseconds_of(call: Callable[[], object], *, calls: int, rounds: int) -> float:
    """Median over rounds of the time of one call, in microseconds."""
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        took.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(took)


def in_process(home: Home, digest: str, *, calls: int, rounds: int) -> tuple[list[tuple[str, float]], bytes]:
    """Microseconds of each step of one single-row request, the whole, and the bare ONNX run; and the body used."""
    package = home.packages.read(digest)
    manifest = package.manifest
    body = body_of(manifest, package.reference.golden[0].request)
    decode = Decoder(manifest.request, optional=[manifest.event_time])
    predictor = Predictor(package, home.online, home.clock, Overruns())
    row = decode(body).rows[0]
    answer = predictor.answer([dict(row)])[0]
    if answer.flags:
        print(f"note: the request is flagged {answer.flags}")
    graph = Graph(package.files["model.onnx"])
    feeder = Feeder(graph, package.columns)
    full = {**answer.request, **answer.context}
    feed = feeder([full])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(package.files["model.onnx"], options, providers=["CPUExecutionProvider"])
    encode = msgspec.json.Encoder().encode
    reply = {"id": answer.id, "score": answer.score, "label": answer.label, "package": digest, "arm": "champion", "flags": []}
    with tempfile.TemporaryDirectory() as folder:
        log = LogWriter(Path(folder), "predictions")

        def whole() -> None:
            done = predictor.answer(decode(body).rows)
            log.append(done)
            encode({**reply, "id": done[0].id, "score": done[0].score})

        steps: list[tuple[str, Callable[[], object]]] = [
            ("bare ONNX run, feed ready", lambda: session.run(["score"], feed)),
            ("decode and check against the contract", lambda: decode(body)),
            ("build the feed", lambda: feeder([full])),
            ("context, flags, feed, run, record", lambda: predictor.answer([dict(row)])),
            ("append to the log", lambda: log.append([answer])),
            ("encode the answer", lambda: encode(reply)),
            ("whole path", whole),
        ]
        # in turns, so that a drifting machine drifts for all of them
        took: dict[str, list[float]] = {name: [] for name, _ in steps}
        for _ in range(rounds):
            for name, call in steps:
                took[name].append(microseconds_of(call, calls=calls, rounds=1))
        log.close()
    return [(name, statistics.median(values)) for name, values in took.items()], body


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


def echo() -> tuple[subprocess.Popen[bytes], int]:
    """The bare echo on the same HTTP server; returns when it listens."""
    process = subprocess.Popen([sys.executable, str(HERE / "echo.py")], stdout=subprocess.PIPE)
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
    """Median requests a second and median latency for ours and the echo at 1 and 32 connections."""
    servers = {"loopwright": serve(home), "bare echo": echo()}
    took: dict[tuple[str, int], list[tuple[float, float]]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for _, port in servers.values():  # warm up
                load(port, f"/loops/{LOOP}/predict", body, connections=4, seconds=1, folder=Path(folder))
            for _ in range(rounds):
                for connections in (1, 32):
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


def results(
    steps: list[tuple[str, float]], http: dict[tuple[str, int], tuple[float, float]], candidate: str, line: str, columns: int
) -> str:
    """The section of RESULTS.md."""
    took = dict(steps)
    bare, whole = took["bare ONNX run, feed ready"], took["whole path"]
    text = machine(LIBRARIES) + "\n"
    text += f"The loop is that of `examples/flights`, the package its `{candidate}`, the request one flight with {columns} columns, the\n"
    text += "context from the embedded online table. Contract, flags, log (durability `process`), metrics and ids are on.\n\n"
    ours, theirs = {c: http["loopwright", c] for c in (1, 32)}, {c: http["bare echo", c] for c in (1, 32)}
    text += table(
        ["what", "ratio"],
        [
            ["in process, one row: whole path / bare ONNX run", f"{whole / bare:.1f}"],
            ["HTTP, 1 connection: p50 / bare echo's", f"{ours[1][1] / theirs[1][1]:.1f}"],
            ["HTTP, 1 connection: throughput / bare echo's", f"{ours[1][0] / theirs[1][0]:.2f}"],
            ["HTTP, 32 connections: throughput / bare echo's", f"{ours[32][0] / theirs[32][0]:.2f}"],
        ],
    )
    text += "\n### Where the microseconds go (in process, one row)\n\n"
    text += table(["step", "us", "/ bare run"], [[name, f"{us:.1f}", f"{us / bare:.2f}"] for name, us in steps])
    text += "\nThe steps overlap: the fourth holds the feed and the run. The whole path decodes, answers, logs and encodes.\n"
    text += "\n### Over HTTP (one worker, one row a request, wrk)\n\n"
    rows = [
        [name, str(c), f"{rate:,.0f}", f"{p50:,.0f}"] for (name, c), (rate, p50) in sorted(http.items(), key=lambda i: i[0][1])
    ]
    text += table(["server", "connections", "requests/s", "p50 us"], rows)
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
            digest = served.state.arms[0].package
            manifest = home.packages.read(digest).manifest
            steps, body = in_process(home, digest, calls=args.calls, rounds=args.rounds)
        http = over_http(path, body, seconds=args.seconds, rounds=args.rounds)
    text = results(steps, http, manifest.candidate, "make bench", len(manifest.request))
    put("Request path", text, args.out)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
