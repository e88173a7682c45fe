"""What a plan of a release costs: an answer beside that of a direct release, and the judge on a large log. Writes a section of RESULTS.md.

    make bench                                   # this after the others
    python -m benchmarks.releases --quick        # fewer rounds, 500,000 rows: a minute

The loop is the small one of the test suite. Answers are those of an engine with its log, in this process, and those of a real server
(one worker), asked by `wrk` in a second process for one flight after another, so that every arm gets its units.
"""

import argparse
import json
import multiprocessing
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from benchmarks.report import machine, put, table
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, Weather, flight, hours_graph, opened, package
from tests.deploy.rollouts import Rollout
from tests.server.running import TOKEN, running

from loopwright.base.clock import RealClock, SimulatedClock
from loopwright.base.settings import Settings
from loopwright.deploy import releases
from loopwright.deploy.judge import judge
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.deploy.strategies import Strategy
from loopwright.records.declarations import Canary, Full, Guard, Release, Shadow
from loopwright.records.declarations.stages import AnyStage
from loopwright.stores.home import Home
from loopwright.verbs.known_loop import known_loop

PART = 500_000
SLICES = 20
METRICS = ("average_precision", "roc_auc", "log_loss", "brier", "accuracy", "precision", "recall", "f1")
GUARDS = [Guard(metric, tolerance=0.05, slices=["hour_slice"]) for metric in METRICS]
PLAN: list[AnyStage] = [Canary(share=0.5), Full()]


def answer_times(folder: Path, rows: int, rounds: int) -> tuple[float, float]:
    """Median seconds of one call with so many rows: a direct release, and a canary with half of the units, in turns."""
    engines = []
    for name in ("direct", "canary"):
        home = opened(folder / f"{name}-{rows}", RealClock())
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        if name == "canary":
            new = package(home.packages, weight=0.06).digest
            releases.release(home, LOOP, new, strategy=Strategy(name, "", PLAN), why="second")
        engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock))
        engine.registry.refresh()
        engines.append(engine)
    seconds: list[list[float]] = [[], []]
    for i in range(rounds):
        for engine, taken in zip(engines, seconds, strict=True):
            decoded = engine.registry.service(LOOP).decode(text([flight(rows * i + k) for k in range(rows)])).rows
            begun = time.perf_counter()
            engine.answer(LOOP, [PredictionRequest(decoded)])
            taken.append(time.perf_counter() - begun)
    for engine in engines:
        engine.close()
    return statistics.median(seconds[0]), statistics.median(seconds[1])


SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {token}"
local n = 0
request = function()
  n = n + 1
  return wrk.format(nil, nil, nil, string.format([==[{body}]==], n))
end
"""
RELEASES: dict[str, list[AnyStage]] = {"direct": [], "two arms": PLAN, "shadow": [Shadow(), Full()]}


class Load(NamedTuple):
    """What `wrk` measured: requests a second, median and 99th percentile in microseconds."""

    throughput: float
    p50: float
    p99: float


def load(url: str, folder: Path, connections: int, seconds: int) -> Load:
    """Ask a server for one flight after another."""
    script = folder / "flights.lua"
    body = json.dumps(flight(0)).replace("%", "%%").replace("UA0", "UA%d")
    script.write_text(SCRIPT.format(token=TOKEN, body=body))
    line = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), f"{url}/loops/{LOOP}/predict"]
    output = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        raise RuntimeError(output)
    units = {"us": 1.0, "ms": 1e3, "s": 1e6}
    named = {
        name: float(value) * units[unit]
        for name, value, unit in re.findall(r"^ +(50|99)% +([\d.]+)(us|ms|s)$", output, re.MULTILINE)
    }
    return Load(float(re.findall(r"Requests/sec: +([\d.]+)", output)[0]), named["50"], named["99"])


def over_http(folder: Path, *, seconds: int, rounds: int) -> list[list[str]]:
    """Rows of the table: servers with each kind of release, asked in turns; medians of the rounds."""
    took: dict[tuple[str, int], list[Load]] = {}
    with ExitStack() as servers:
        urls = {}
        for name, plan in RELEASES.items():
            home = opened(folder / name.replace(" ", "-"), RealClock())
            releases.release(home, LOOP, package(home.packages).digest, why="first")
            if plan:
                releases.release(
                    home, LOOP, package(home.packages, weight=0.06).digest, strategy=Strategy(name, "", plan), why="second"
                )
            urls[name] = servers.enter_context(running(home, workers=1)).state.data
            load(urls[name], folder, 4, 2)
        for _ in range(rounds):
            for name, url in urls.items():
                for connections in (1, 32):
                    took.setdefault((name, connections), []).append(load(url, folder, connections, seconds))
    median = {key: Load(*map(statistics.median, zip(*loads, strict=True))) for key, loads in took.items()}
    direct, unseen = (median[name, 1] for name in ("direct", "shadow"))
    lines = [
        ("server, 32 connections: throughput, two arms half and half over direct", median["two arms", 32].throughput / median["direct", 32].throughput, 0.8, True),
        ("server, 1 connection: p50, shadow of everything over none", unseen.p50 / direct.p50, 1.1, False),
        ("server, 1 connection: p99, shadow of everything over none", unseen.p99 / direct.p99, 1.3, False),
        ("server, 32 connections: throughput, shadow of what time is left for over none", median["shadow", 32].throughput / median["direct", 32].throughput, 0.9, True),
    ]  # fmt: skip
    return [
        [what, f"{ratio:.2f}", f"{'>=' if least else '<='} {bound}", "met" if (ratio >= bound if least else ratio <= bound) else "**not met**"]
        for what, ratio, bound, least in lines
    ]  # fmt: skip


def logged(folder: Path, rows: int) -> Rollout:
    """A canary of half of the units with so many logged rows, each with its outcome: rows that the loop answered, under other ids and hours."""
    package = {"of_slices": hours_graph(), "slices": ["hour_slice"]}
    new, release = {"weight": 0.0501, **package}, Release(guards=GUARDS, plan=PLAN)
    rollout = Rollout(folder, new, plan=PLAN, old=package, release=release)
    home = rollout.home
    rollout.serve(2000, timedelta(minutes=10))
    rollout.serve(10, timedelta(minutes=40))
    predicted, known = (home.lake.read(f"{kind}.{LOOP}") for kind in ("predictions", "outcomes"))
    known = known.take(pc.index_in(predicted["_id"], known["_prediction"]))
    predicted, known = (of.filter(known["_id"].is_valid()) for of in (predicted, known))
    rng, arm = np.random.default_rng(0), predicted["_arm"].to_numpy().astype(str)
    sides = [np.flatnonzero(arm == name) for name in np.unique(arm)]
    for first in range(0, rows, PART):
        numbers = pa.array(np.arange(first, first + min(PART, rows - first))).cast(pa.string())
        one, other = (rng.choice(side, len(numbers)) for side in sides)  # units are divided evenly
        chosen = pa.array(np.where(rng.random(len(numbers)) < 0.5, one, other))
        units = pc.binary_join_element_wise("flight", numbers, "-")
        ids = pc.utf8_lpad(numbers, 32, "0")
        hours = pa.array(rng.integers(0, SLICES, len(numbers)))
        for kind, of, columns in (
            ("predictions", predicted, {"_id": ids, "_unit": units, "flight": units, "hour": hours}),
            ("outcomes", known, {"_id": pc.utf8_lpad(numbers, 32, "f"), "_prediction": ids, "_unit": units}),
        ):
            part = of.take(chosen)
            for name, values in columns.items():
                part = part.set_column(part.column_names.index(name), name, values)
            home.lake.write(f"{kind}.{LOOP}", part, mode="append")
    rollout.clock.advance(timedelta(hours=3))
    return rollout


def judged(folder: Path, rows: int) -> tuple[float, float, float]:
    """Seconds, seconds of processor, and MiB (at the most, above what was there) of a verdict over a log of so many rows with outcomes."""
    rollout = logged(folder, rows)
    rollout.home.close()
    with multiprocessing.get_context("spawn").Pool(
        1
    ) as pool:  # a process of its own: memory that making the rows took is not there
        return pool.apply(_verdict, (folder, rollout.clock.now()))


def _verdict(folder: Path, now: datetime) -> tuple[float, float, float]:
    with Home(Settings(home=folder, by="benchmark", port=0, control_port=0), SimulatedClock(now)) as home:
        loop, states = known_loop(home, LOOP), [entry.record for entry in releases.history(home, LOOP)]
        before, begun, used = _peak(), time.perf_counter(), time.process_time()
        judge(home, loop, states, now)
        return time.perf_counter() - begun, time.process_time() - used, (_peak() - before) / 1024


def _peak() -> int:
    """KiB of memory that this process had at the most (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for rows, most in ((1, 1.05), (32, 1.25)):
            direct, canary = answer_times(Path(folder), rows, 500 if quick else 4000)
            ratio = canary / direct
            met = "met" if ratio <= most else "**not met**"
            lines.append(
                [f"an answer to {rows} row{'s' * (rows > 1)}, canary 50 % over direct", f"{ratio:.2f}", f"<= {most}", met]
            )
        if shutil.which("wrk") is None:
            lines.append(["over HTTP: not measured, needs wrk (Debian and Ubuntu: apt-get install wrk)", "", "", "**not met**"])
        else:
            lines += over_http(Path(folder), seconds=3 if quick else 10, rounds=3 if quick else 5)
        count = 500_000 if quick else 10_000_000
        seconds, used, mib = judged(Path(folder) / "judged", count)
        what = f"a verdict over {count:,} rows, {len(GUARDS)} guards, {SLICES} slice values"
        lines.append(
            [what, f"{seconds:.1f} s, {used:.1f} s of processor", "<= 10 s", "met" if seconds <= 10 else "**not met**"]
        )
        lines.append(
            ["... memory above what was there", f"{mib:,.0f} MiB", "<= 1,024 MiB", "met" if mib <= 1024 else "**not met**"]
        )
    put(
        "Releases",
        table(["what", "measured", "bound", ""], lines) + "\n" + machine(["onnxruntime", "pyarrow", "duckdb", "numpy"]),
    )


if __name__ == "__main__":
    main()
