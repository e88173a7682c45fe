"""What a plan of a release costs: an answer beside that of a direct release, and the judge on a large log. Writes a section of RESULTS.md.

    make bench                                   # this after the others
    python -m benchmarks.releases --quick        # fewer rounds, 200,000 rows: a minute

The loop is the small one of the test suite; answers are those of an engine with its log, in this process.
"""

import argparse
import resource
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from benchmarks.report import machine, put, table
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, Weather, flight, opened, package
from tests.deploy.rollouts import Rollout

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.deploy.judge import judge
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.deploy.strategies import Strategy
from loopwright.records.declarations import AB, Canary, Full, Guard, Release

PART = 500_000
GUARDS = [Guard("average_precision", tolerance=0.05, slices=["origin_slice"]), Guard("roc_auc"), Guard("log_loss")]
PLAN: list[Canary | AB | Full] = [Canary(share=0.5), Full()]


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


def judged(folder: Path, rows: int) -> tuple[float, float]:
    """Seconds and MiB (at the most, above what was there) of a verdict over a log of so many rows with outcomes."""
    rollout = Rollout(folder, {"weight": 0.0501}, plan=PLAN, release=Release(guards=GUARDS, plan=PLAN))
    with rollout.home as home:
        rollout.serve(2000, timedelta(minutes=10))
        rollout.serve(10, timedelta(minutes=40))
        predicted, known = (home.lake.read(f"{kind}.{LOOP}") for kind in ("predictions", "outcomes"))
        rng = np.random.default_rng(0)
        for first in range(0, rows, PART):
            count = min(PART, rows - first)
            ids = pa.array([f"{first + i:032x}" for i in range(count)])
            units = pa.array([f"flight-{first + i}" for i in range(count)])
            chosen = pa.array(rng.integers(0, min(predicted.num_rows, known.num_rows), count))
            for kind, of, columns in (
                ("predictions", predicted, {"_id": ids, "_unit": units}),
                ("outcomes", known, {"_id": pa.array([f"{first + i + 2**40:032x}" for i in range(count)]), "_prediction": ids, "_unit": units}),
            ):  # fmt: skip
                part = of.take(chosen)
                for name, values in columns.items():
                    part = part.set_column(part.column_names.index(name), name, values)
                home.lake.write(f"{kind}.{LOOP}", part, mode="append")
        rollout.clock.advance(timedelta(hours=3))
        states = [entry.record for entry in releases.history(home, LOOP)]
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        judge(home, rollout.loop, states, rollout.clock.now())
        taken = time.perf_counter() - begun
        return taken, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


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
        count = 200_000 if quick else 2_000_000
        seconds, mib = judged(Path(folder) / "judged", count)
        full = seconds * 10_000_000 / count
        met = "met" if full <= 10 else "**not met**"
        lines.append([f"a verdict over {count:,} rows, 3 guards, a slice", f"{seconds:.1f} s, {mib:,.0f} MiB more", "", ""])
        lines.append(["... over 10 million, in proportion", f"{full:.0f} s", "<= 10 s", met])
    put(
        "Releases",
        table(["what", "measured", "bound", ""], lines) + "\n" + machine(["onnxruntime", "pyarrow", "duckdb", "numpy"]),
    )


if __name__ == "__main__":
    main()
