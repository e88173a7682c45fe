"""The serving benchmark measures what it says: stalls are charged, wrong answers stop it, everything that was started ends."""

import ast
import contextlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.serving import arrivals
from benchmarks.serving.columns import COLUMNS, NUMBERS
from benchmarks.serving.contestants import CONTESTANTS, contestant
from benchmarks.serving.environments import ENVIRONMENTS
from benchmarks.serving.found import Found
from benchmarks.serving.load import said
from benchmarks.serving.section import CONNECTIONS, Target, section
from benchmarks.serving.started import Failed, Server, free_port
from tests.services import needed

ROOT = Path(__file__).parents[2]

WRK = """Running 1s test @ http://127.0.0.1:1/predict
  1 threads and 32 connections
  Latency Distribution
     50%  831.00us
     75%    1.02ms
     90%    1.51ms
     99%    2.33s
  24312 requests in 1.00s, 5.31MB read
Requests/sec:  24284.31
Transfer/sec:      5.30MB
"""

# Answers at once, except that it stalls once for 300 ms, 2 seconds after its first request.
STALLING = """
import asyncio, sys, time
began = stalled = 0.0
class Answer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        global began, stalled
        began = began or time.monotonic()
        if not stalled and time.monotonic() - began > 2:
            stalled = 1.0
            time.sleep(0.3)
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
async def main():
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""

# Serves, after it has put a process into a session of its own.
DAEMONISING = """
import http.server, subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200); self.send_header("content-length", "2"); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

STARTS = """
import json, sys
from pathlib import Path
from benchmarks.serving.started import Server, adopt_orphans, free_port
adopt_orphans()
port = free_port()
line = [sys.executable, "-c", sys.argv[1], str(port)]
with Server(line, port, path="/", first=b"{}", right=lambda answer: answer == {}, folder=Path(sys.argv[2]), variables={}, cwd=Path.cwd()) as server:
    assert server.memory_mib() > 1
    print(json.dumps([server.process.pid, int(server.said.read_text().split()[0])]))
"""


@contextlib.contextmanager
def listening(code: str) -> Iterator[int]:
    """The port that a server, given as code, listens on and prints."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.kill()


def test_reads_what_wrk_says() -> None:
    told = said(WRK)
    assert (told.rate, told.p50, told.p99) == (24284.31, 831.0, 2.33e6)
    with pytest.raises(Failed, match="cannot read"):
        said("unable to connect to 127.0.0.1:1 Connection refused")
    with pytest.raises(Failed, match="not one answer"):
        said(WRK.replace("24284.31", "0.00"))


def test_open_loop_charges_a_stall_to_all_that_were_due_meanwhile() -> None:
    with listening(STALLING) as port:
        told = arrivals.run(port, "/", rate=200, seconds=3, bodies=["{}"])
    assert told["lost"] == 0
    # a tenth of the requests fell into the 300 ms; who sends the next request only after the answer would have seen one
    assert told["p99"] > 200_000, told


def test_open_loop_takes_no_error_for_an_answer() -> None:
    with listening(STALLING.replace("200 OK", "503 Service Unavailable")) as port, pytest.raises(RuntimeError, match="503"):
        arrivals.run(port, "/", rate=200, seconds=1, bodies=["{}"])


def test_what_a_server_has_started_ends_with_it(tmp_path: Path) -> None:
    line = [sys.executable, "-c", STARTS, DAEMONISING, str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    ids = json.loads(done.stdout)
    assert len(ids) == 2
    assert [one for one in ids if Path(f"/proc/{one}").exists()] == []


def test_a_server_that_ends_says_why_and_takes_no_other_process_with_it(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "raise SystemExit('the port is taken')"]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        with pytest.raises(Failed, match="ended with 1: the port is taken"):
            Server(line, free_port(), path="/", first=b"{}", right=bool, folder=tmp_path, variables={}, cwd=tmp_path)
        assert other.poll() is None


def test_a_probability_is_right_within_a_millionth() -> None:
    right = contestant("MLServer").right({}, 0.25)
    assert right({"outputs": [{"data": [0.75, 0.25 + 9e-7]}]})
    assert not right({"outputs": [{"data": [0.75, 0.25 + 2e-6]}]})
    assert not right({"outputs": [{"data": [0.75, float("nan")]}]})
    assert not right({"outputs": []})
    assert contestant("echo on uvicorn").right({"a": 1}, 0.25)({"a": 1})
    assert not contestant("echo on uvicorn").right({"a": 1}, 0.25)({"a": 2})


def test_everybody_is_sent_all_columns() -> None:
    row = {name: NUMBERS[name][0](NUMBERS[name][1]) if name in NUMBERS else "JFK" for name in COLUMNS}
    assert len(COLUMNS) == 15
    for one in CONTESTANTS:
        text = one.encoded(row).decode()
        assert [name for name in COLUMNS if f'"{name}"' not in text] == [], one.name
        assert one.environment in {"", *ENVIRONMENTS}
    [flight] = [
        node
        for node in ast.parse((ROOT / "benchmarks/serving/peers/flight.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    fields = {ast.unparse(a.target): ast.unparse(a.annotation) for a in flight.body if isinstance(a, ast.AnnAssign)}
    assert list(fields) == COLUMNS
    assert fields == {name: NUMBERS[name][0].__name__ if name in NUMBERS else "str" for name in COLUMNS}


@pytest.mark.parametrize(
    ("ratio", "at_least", "verdict"),
    [
        (3.0, True, "met"),
        (2.9, True, "**not met**"),
        (3.0, False, "met"),
        (3.1, False, "**not met**"),
        (math.nan, True, "**not measured**"),
        (math.nan, False, "**not measured**"),
    ],
)
def test_a_target_is_met_or_not(ratio: float, at_least: bool, verdict: str) -> None:
    assert Target("x", ratio, 3, at_least).cells()[-1] == verdict


def test_the_section_names_who_failed_and_shows_the_others() -> None:
    found = Found()
    for name, rate in (("loopwright", 20_000.0), ("MLflow", 100.0)):
        for connections in CONNECTIONS:
            for factor in (0.5, 1.0, 1.5):  # the median is the middle one
                found.note(f"rate {connections}", name, rate * factor)
                found.note(f"p50 {connections}", name, 1e6 / rate * factor)
    found.failed["Ray Serve"] = "no `right` answer"
    text = section(found, ["loopwright", "MLflow", "Ray Serve"], seconds=1, rounds=3)
    assert "| throughput at 32 connections / MLflow | 200 | >= 100 | met |" in text
    assert "| throughput at 32 connections / Ray Serve |  | >= 100 | **not measured** |" in text
    assert "| p50 at one connection: MLflow's / ours | 200 | >= 20 | met |" in text
    assert "**Ray Serve failed**: `no right answer`" in text


@pytest.mark.slow
def test_a_quick_run_beside_the_echo(tmp_path: Path) -> None:
    needed(shutil.which("wrk"), "wrk", "wrk")
    raw, results = tmp_path / "raw.json", tmp_path / "RESULTS.md"
    line = [sys.executable, "-m", "benchmarks.serving", "--quick", "--peers", "echo on our", "--cache", str(tmp_path / "cache")]
    line += ["--raw", str(raw), "--out", str(results)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads(raw.read_text())
    assert told["failed"] == {}
    names = {"loopwright", "echo on our HTTP layer"}
    assert {name for name, rates in told["numbers"]["rate 32"].items() if rates[0] > 0} == names
    assert told["numbers"]["rate 32 flight-delay-disk"]["loopwright"]
    assert not results.exists(), "a quick run is printed only"
