"""Thousands of packages behind one server, in turns beside one of them. Writes the section "Many models" of RESULTS.md.

    python -m benchmarks.serving.many [--loops 5000] [--hot 100] [--segments 500] [--seconds 2] [--rounds 8] [--folder FOLDER]

A loop over 15 columns of a flight is trained with 50 trees of 31 leaves; its package is copied as often as asked, each with
trees of other weights and golden answers of its own. With `--folder` what was made is kept there and used again.
"""

import argparse
import http.client
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
from benchmarks.report import RESULTS, machine, put, table
from benchmarks.serving import flights
from benchmarks.serving.load import said

from loopwright.base.settings import load_settings
from loopwright.deploy.serving import release_files
from loopwright.graph.session import Graph, feed_rows
from loopwright.records.package import Segment
from loopwright.records.releases import Arm
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package, encode_json

LOOP = "small"
FILE = "benchmarks/serving/loop_small.py"
FLEET = "fleet"
LIBRARIES = ("onnxruntime", "msgspec", "uvloop", "httptools", "lightgbm", "numpy")
CONNECTIONS = (1, 8, 32)
PROBES = 150
"""Requests a second to the one hot loop while others are loaded."""


def say(text: str) -> None:
    """Progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


# --- thousands of packages ---------------------------------------------------------------------------------------------


def train(folder: Path) -> Path:
    """A home with the small loop trained and released."""
    home = folder / "home"
    if not (home / "served" / f"{LOOP}.json").is_file():
        say("training a loop of 50 trees on the flights of three months")
        flights.tables(folder)
        lines = [("ingest", n, str(folder / f"{n}.parquet"), "--loop", FILE) for n in ("departures", "landings")]
        for line in [*lines, ("run", FILE)]:
            subprocess.run(flights.command(home, *line), cwd=flights.ROOT, capture_output=True, timeout=600, check=True)
    return home


class Copies:
    """Packages like one that was trained: trees with other weights, golden answers to match."""

    def __init__(self, home: Home) -> None:
        copy = release_files.read(release_files.path_of(home, LOOP))
        assert copy is not None
        self.home, self.state = home, copy.state
        self.package = home.packages.read(copy.state.champion.package)
        self._model = onnx.load_model_from_string(self.package.files["model.onnx"])
        self._golden = [{**g.request, **g.context} for g in self.package.reference.golden]

    def make(self, seed: int, **changes: Any) -> Package:
        """One of them."""
        rng, model = np.random.default_rng(seed), onnx.ModelProto()
        model.CopyFrom(self._model)
        for attribute in (a for node in model.graph.node if node.op_type.startswith("TreeEnsemble") for a in node.attribute):
            if attribute.name == "leaf_weights":
                weights = onnx.numpy_helper.to_array(attribute.t)
                other = (weights * rng.uniform(0.8, 1.2, len(weights))).astype(weights.dtype)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(other))
            elif attribute.name in ("target_weights", "class_weights"):
                attribute.floats[:] = (np.array(attribute.floats) * rng.uniform(0.8, 1.2, len(attribute.floats))).tolist()
        data = model.SerializeToString()
        graph = Graph(data)
        scores = graph.score(feed_rows(graph, self.package.columns, self._golden)).tolist()
        reference = self.package.reference
        golden = [msgspec.structs.replace(g, score=s) for g, s in zip(reference.golden, scores, strict=True)]
        files = {n: d for n, d in self.package.files.items() if not n.startswith("expla")} | {
            "model.onnx": data,
            "reference.json": encode_json(msgspec.structs.replace(reference, golden=golden)),
        }
        return self.home.packages.write(msgspec.structs.replace(self.package.manifest, files={}, **changes), files)

    def release(self, loop: str, own: str, segments: dict[str, str] | None = None) -> None:
        """Into the ledger, and the local copy."""
        state = msgspec.structs.replace(
            self.state,
            loop=loop,
            generation=1,
            arms=[Arm(package=own)],
            fleet="flight" if segments else "",
            segments=segments or {},
            why="for the benchmark",
        )
        self.home.ledger.swap(release_files.pointer_name(loop), 0, state, loop=loop)


def name(number: int) -> str:
    """The name of a loop."""
    return f"shop-{number:04d}"


def make(folder: Path, loops: int, segments: int) -> Path:
    """A home in which so many loops are served, and one with a fleet of so many segments."""
    path = train(folder)
    with Home(load_settings({"home": path})) as home:
        copies = Copies(home)
        have = len(list((path / "served").glob("shop-*.json")))
        if have < loops:
            say(f"making {loops - have} packages")
            digests = {name(i): copies.make(i, loop=name(i)).digest for i in range(have, loops)}
            declared = home.ledger.latest(LoopRecord, loop=LOOP)
            assert declared is not None
            with home.ledger.batch():
                for loop, digest in digests.items():
                    home.ledger.put(msgspec.structs.replace(declared.record, name=loop), loop=loop, key=loop)
                    copies.release(loop, digest)
        if not release_files.path_of(home, FLEET).is_file():
            say(f"making a fleet of {segments} segments")
            own = copies.make(10**6, loop=FLEET).digest
            values = [str(i + 1) for i in range(segments)]
            made = {
                v: copies.make(10**6 + 1 + i, loop=FLEET, segment=Segment(column="flight", value=v)).digest
                for i, v in enumerate(values)
            }
            copies.release(FLEET, own, made)
        say("bringing the local copies up to date with the ledger")
        release_files.follow(home)
    return path


# --- a server, and who asks it -----------------------------------------------------------------------------------------


class Server:
    """`loopwright serve` over a home, one worker."""

    def __init__(self, home: Path) -> None:
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        line = flights.command(home, "serve", "--port", "0", "--control-port", "0", "--no-tend")
        began = time.perf_counter()
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)
        assert self.process.stdout is not None
        said_so: list[str] = []
        for text in self.process.stdout:
            said_so.append(text)
            if text.startswith("ready:"):
                break
        else:
            raise RuntimeError(f"the server ended: {''.join(said_so)[-2000:]}")
        self.ready_seconds = time.perf_counter() - began
        state = json.loads((home / "serve.json").read_bytes())
        self.worker: int = state["workers"][0]
        self.port = int(state["data"].rsplit(":", 1)[1])

    def resident_mib(self) -> float:
        """What the worker holds in memory, MiB."""
        return int(Path(f"/proc/{self.worker}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def metric(self, name: str) -> float:
        """A number of its /metrics."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    def end(self) -> None:
        """SIGTERM, and wait."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextmanager
def serving(home: Path) -> Iterator[Server]:
    """A server that is ended in any case."""
    server = Server(home)
    try:
        yield server
    finally:
        server.end()


def path_of(loop: str) -> str:
    """Where a loop predicts."""
    return f"/loops/{loop}/predict"


def ask_each(port: int, loops: Sequence[str], bodies: Sequence[bytes]) -> list[float]:
    """Ask loops one after the other over one connection; seconds each took. Raises RuntimeError for what is no answer of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took = []
    for i, loop in enumerate(loops):
        began = time.perf_counter()
        connection.request("POST", path_of(loop), bodies[i % len(bodies)], {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        took.append(time.perf_counter() - began)
        if answer.status != http.client.OK:
            raise RuntimeError(f"{loop} answered {answer.status}: {text[:300]!r}")
    connection.close()
    return took


def probe(port: int, seconds: float, bodies: Sequence[bytes]) -> list[float]:
    """Ask the hot loop `PROBES` times a second, whatever comes back when; seconds from when each was due."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began, took, number = time.perf_counter(), list[float](), 0
    while True:
        due = began + number / PROBES
        if due > began + seconds:
            connection.close()
            return took
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.request("POST", path_of(name(0)), bodies[number % len(bodies)], {"Content-Type": "application/json"})
        connection.getresponse().read()
        took.append(time.perf_counter() - due)
        number += 1


class Probe:
    """`probe` in a process of its own."""

    def __init__(self, port: int, seconds: float, bodies: Path) -> None:
        line = [sys.executable, "-m", "benchmarks.serving.many", "--probe", str(port), str(seconds), str(bodies)]
        self._process = subprocess.Popen(line, cwd=flights.ROOT, stdout=subprocess.PIPE, text=True)

    def end(self) -> list[float]:
        """What it measured."""
        text, _ = self._process.communicate(timeout=900)
        found: list[float] = json.loads(text)
        return found


_SCRIPT = """local paths, bodies = {PATHS}, {BODIES}
local made, at = {}, 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function init(arguments)
  for n = 1, COUNT do made[n] = wrk.format("POST", paths[(n - 1) % #paths + 1], nil, bodies[(n - 1) % #bodies + 1]) end
end
function request()
  at = at % #made + 1
  return made[at]
end
"""


class Load(NamedTuple):
    """Requests a second, median and 99th percentile in microseconds."""

    rate: float
    p50: float
    p99: float


def wrk(port: int, paths: Sequence[str], bodies: Sequence[bytes], connections: int, seconds: float, folder: Path) -> Load:
    """Closed-loop load that goes through paths and bodies in turn."""
    lua = folder / "many.lua"
    text = _SCRIPT.replace("PATHS", ", ".join(f'"{p}"' for p in paths)).replace("COUNT", str(math.lcm(len(paths), len(bodies))))
    lua.write_text(text.replace("BODIES", ",\n".join(f"[==[{body.decode()}]==]" for body in bodies)))
    line = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", "-s", str(lua), f"http://127.0.0.1:{port}/"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout
    if "Non-2xx" in done or "Socket errors" in done:
        raise RuntimeError(done)
    return Load(*said(done))


def quantile(values: Sequence[float], q: float) -> float:
    """The quantile of measured times."""
    return float(np.quantile(np.array(values), q))


# --- what is measured --------------------------------------------------------------------------------------------------


HOLD = """
import sys, time
from pathlib import Path
from loopwright.deploy.serving.engine import ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.stores.home import Home
from loopwright.base.settings import load_settings

way, path, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

home = Home(load_settings({"home": path}))
if way == "ours":
    engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock, budget=2**40))
    engine.registry.refresh()
    makers = [lambda loop=loop: engine.registry.load(loop) for loop in engine.registry.loops if loop.startswith("shop-")]
else:
    import numpy as np, onnxruntime as ort
    from loopwright.graph.session import Graph
    names = [home.packages.folder / d / "model.onnx" for d in home.packages.list() if home.packages.manifest(d).loop.startswith("shop-")]
    kept = []
    usual = Path(sys.argv[4]).read_bytes() if way == "usual" else b""
    feeds = {"usual": lambda: {"x": np.zeros((1, 15), np.float32)}, "bare": lambda: Graph(names[0].read_bytes()).empty_feed(1)}
    feed, options = feeds[way](), ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # by default a thousand of them are a thousand threads
    def session(name):
        made = ort.InferenceSession(usual or name.read_bytes(), options, providers=["CPUExecutionProvider"])
        made.run(None, feed)
        kept.append(made)
    makers = [lambda name=name: session(name) for name in names]
for make in makers[:20]:
    make()
before = held()
for make in makers[20 : 20 + count]:
    make()
print((held() - before) / count)
"""


def memory(home: Path, folder: Path, count: int) -> dict[str, float]:
    """Bytes that one of `count` packages takes in a process of its own: ours, and bare sessions of the runtime, each run once."""
    import lightgbm as lgb
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20_000, 15)).astype(np.float32)
    truth = (matrix[:, 0] + matrix[:, 3] * matrix[:, 4] + rng.normal(size=20_000) > 0).astype(int)
    fitted = lgb.LGBMClassifier(n_estimators=50, num_leaves=31, verbose=-1, n_jobs=1, random_state=0).fit(matrix, truth)
    usual = convert_lightgbm(fitted, initial_types=[("x", FloatTensorType([None, 15]))], zipmap=False)
    (folder / "usual.onnx").write_bytes(usual.SerializeToString())
    found = {}
    for way in ("usual", "bare", "ours"):
        line = [sys.executable, "-c", HOLD, way, str(home), str(count), str(folder / "usual.onnx")]
        found[way] = float(
            subprocess.run(line, capture_output=True, text=True, timeout=300, check=True, cwd=flights.ROOT).stdout
        )
    return found


class Cold(NamedTuple):
    """Each loop asked for the first time: seconds each took; and the hot one's, alone and meanwhile."""

    took: list[float]
    alone: list[float]
    meanwhile: list[float]


def cold(server: Server, loops: Sequence[str], bodies: list[bytes], folder: Path) -> Cold:
    """Ask loops that are not in memory, while the hot one is asked all the time."""
    file = folder / "bodies.json"
    file.write_text(json.dumps([b.decode() for b in bodies]))
    ask_each(server.port, [name(0)] * 200, bodies)
    alone = Probe(server.port, 5.0, file).end()
    seconds = 0.015 * len(loops)
    probing = Probe(server.port, seconds, file)
    time.sleep(1.5)
    began = time.perf_counter()
    took = ask_each(server.port, loops, bodies)
    loaded = time.perf_counter() - began
    meanwhile = probing.end()
    first = int(1.0 * PROBES)
    return Cold(took, alone, meanwhile[first : first + int(min(loaded, seconds - 2) * PROBES)])


Turns = dict[tuple[str, int], list[Load]]


def in_turns(ways: dict[str, Callable[[int], Load]], connections: Sequence[int], rounds: int) -> Turns:
    """Each way at each number of connections, A B A B."""
    found: Turns = {}
    for _ in range(rounds):
        for count in connections:
            for way, ask in ways.items():
                found.setdefault((way, count), []).append(ask(count))
    return found


def best(loads: Sequence[Load]) -> Load:
    """The quickest of each, over the rounds: what the machine's other work did not touch."""
    return Load(max(a.rate for a in loads), min(a.p50 for a in loads), min(a.p99 for a in loads))


def compared(found: Turns, connections: Sequence[int]) -> list[list[str]]:
    """Lines of a table: one (A) and many (B), and their ratios."""
    lines = []
    for count in connections:
        a, b = best(found["one", count]), best(found["many", count])
        lines.append([
            str(count), f"{a.p50:,.0f} / {a.p99:,.0f}", f"{b.p50:,.0f} / {b.p99:,.0f}", f"{b.p99 / a.p99:.2f}",
            f"{a.rate:,.0f}", f"{b.rate:,.0f}", f"{b.rate / a.rate:.2f}",
        ])  # fmt: skip
    return lines


# --- the run -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=5000)
    parser.add_argument("--hot", type=int, default=100)
    parser.add_argument("--segments", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="keep what is made there, and use it again")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file whose section is written")
    parser.add_argument("--probe", nargs=3, metavar=("PORT", "SECONDS", "BODIES"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.probe:
        port, seconds, file = asked.probe
        print(json.dumps(probe(int(port), float(seconds), [b.encode() for b in json.loads(Path(file).read_text())])))
        return
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="loopwright-many-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run(folder, asked)
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, asked: argparse.Namespace) -> None:
    """See `main`."""
    home = make(folder, asked.loops, asked.segments)
    bodies = rows(home)
    text = [INTRODUCTION.format(**vars(asked)), machine(LIBRARIES)]
    say("memory of a thousand")
    text.append(memory_text(memory(home, folder, min(1000, asked.loops - 20))))
    single = folder / "single"
    if not single.is_dir():
        shutil.copytree(home, single, ignore=lambda _, names: [n for n in names if len(n) == 64], dirs_exist_ok=True)
        for path in (single / "served").iterdir():
            if path.name != f"{name(0)}.json":
                path.unlink()
        copy = release_files.read(single / "served" / f"{name(0)}.json")
        assert copy is not None
        digest = copy.state.champion.package
        shutil.copytree(home / "packages" / digest, single / "packages" / digest)
        for ledger in single.glob("ledger.db*"):
            ledger.unlink()
    say("start of a server")
    with serving(single) as server:
        one_ready = server.ready_seconds
    with serving(home) as server:
        say(f"ready after {server.ready_seconds:.1f} s; asking {asked.loops} loops for the first time")
        loops = [name(i) for i in range(1, asked.loops)]
        found = cold(server, loops, bodies, folder)
        evicted, held = server.metric("loopwright_packages_evicted_total"), server.metric("loopwright_packages_loaded")
        text.append(cold_text(found, server, one_ready, held, evicted, asked.loops))
        hot = [name(i * (asked.loops // asked.hot)) for i in range(asked.hot)]
        ask_each(server.port, hot * 3, bodies)
        say("one package and many in turns")
        ways = {
            "one": lambda n: wrk(server.port, [path_of(name(0))], bodies, n, asked.seconds, folder),
            "many": lambda n: wrk(server.port, [path_of(loop) for loop in hot], bodies, n, asked.seconds, folder),
        }
        turns = in_turns(ways, CONNECTIONS, asked.rounds)
        text.append(many_text(compared(turns, CONNECTIONS), asked))
        say("a fleet")
        segments = [with_flight(bodies[i % len(bodies)], i + 1) for i in range(asked.segments)]
        beside = [with_flight(b, 9000 + i) for i, b in enumerate(bodies)]
        for _ in range(3):  # what a request may not wait for is loaded beside it
            ask_each(server.port, [FLEET] * asked.segments, segments)
            time.sleep(1.0)
        ways = {
            "one": lambda n: wrk(server.port, [path_of(FLEET)], beside, n, asked.seconds, folder),
            "many": lambda n: wrk(server.port, [path_of(FLEET)], segments, n, asked.seconds, folder),
        }
        turns = in_turns(ways, CONNECTIONS, asked.rounds)
        text.append(fleet_text(compared(turns, CONNECTIONS), asked))
    text.append("`python -m benchmarks.serving.many` writes this section again (about 5 minutes where nothing else runs).")
    put("Many models", "\n".join(text), asked.out)
    say(f"written to {asked.out}")


def rows(home: Path) -> list[bytes]:
    """Requests: the golden ones of the package."""
    with Home(load_settings({"home": home})) as opened:
        copy = release_files.read(release_files.path_of(opened, name(0)))
        assert copy is not None
        package = opened.packages.read(copy.state.champion.package)
    times = {n for n, c in package.manifest.request.items() if c.type == "timestamp"}
    made = []
    for golden in package.reference.golden:
        row = {n: v for n, v in golden.request.items() if n not in times}
        made.append(json.dumps(row).encode())
    return made


def with_flight(body: bytes, number: int) -> bytes:
    """The request of another segment."""
    return json.dumps({**json.loads(body), "flight": number}).encode()


INTRODUCTION = """{loops:,} loops behind one server with one worker, each with a package of its own (50 trees of 31 leaves over 15 columns of a
flight; other weights in each), {hot} of them hot. Contract, log (`process`), metrics and ids are on. A is one package, B many, measured
in turns (A B A B) in one server with the default budget; numbers are the best of {rounds} rounds of {seconds:g} s. Latencies in microseconds.
"""


def memory_text(found: dict[str, float]) -> str:
    """The memory of a package."""
    bare, usual, ours = (found[way] / 1e3 for way in ("bare", "usual", "ours"))
    lines = [
        ["LightGBM as onnxmltools converts it, a bare session (one thread)", f"{usual:,.0f}", f"{ours / usual:.2f}"],
        ["our own graph, a bare session (one thread)", f"{bare:,.0f}", f"{ours / bare:.2f}"],
        ["ours, ready to answer: session, contract, checks, manifest", f"{ours:,.0f}", ""],
    ]
    worst = max(ours / usual, ours / bare)
    verdict = "met" if worst <= 0.6 else "**not met**"
    head = f"### Memory of one of a thousand (target: at most 0.6 of a bare session: {verdict})\n\n"
    return head + table(["", "KB each, resident", "ours / this"], lines)


def cold_text(found: Cold, server: Server, one: float, held: float, evicted: float, loops: int) -> str:
    """Starting, and the first request to each."""
    ms = [quantile(found.took, q) * 1e3 for q in (0.5, 0.99)]
    alone, beside = ([quantile(v, q) * 1e3 for q in (0.5, 0.99)] for v in (found.alone, found.meanwhile))
    lines = [
        [f"from `loopwright serve` to ready, {loops:,} loops", f"{server.ready_seconds:.1f} s"],
        ["... one loop", f"{one:.1f} s"],
        ["first request to a loop that is not in memory, p50 / p99", f"{ms[0]:.1f} / {ms[1]:.1f} ms"],
        [f"a hot loop at {PROBES} requests a second meanwhile, p50 / p99", f"{beside[0]:.2f} / {beside[1]:.2f} ms"],
        ["... before", f"{alone[0]:.2f} / {alone[1]:.2f} ms"],
        ["packages in memory afterwards (went for others)", f"{held:,.0f} ({evicted:,.0f})"],
        ["memory of the worker afterwards", f"{server.resident_mib():,.0f} MiB"],
    ]
    return "### Loading on demand\n\n" + table(["", ""], lines)


_HEAD = ["connections", "A p50 / p99", "B p50 / p99", "p99 B / A", "A requests/s", "B requests/s", "B / A"]


def many_text(lines: list[list[str]], asked: argparse.Namespace) -> str:
    """One package against the hot ones of thousands."""
    verdict = "met" if float(lines[0][3]) <= 1.3 else "**not met**"
    head = f"### One package (A), {asked.hot} hot of {asked.loops:,} (B); target at one connection: p99 at most 1.3 times: {verdict}\n\n"
    return head + table(_HEAD, lines) + "\n" + BATCHES


BATCHES = """With one connection both are one row a run. With many, requests that wait for the same package are one run, and those for
many packages are many: what B loses is the batch, not the packages' number.
"""


def fleet_text(lines: list[list[str]], asked: argparse.Namespace) -> str:
    """A fleet of segments against its own package."""
    head = f"### A fleet at one URL: rows of no segment (A), of {asked.segments} segments in turn (B)\n\n"
    return head + table(_HEAD, lines)


if __name__ == "__main__":
    main()
