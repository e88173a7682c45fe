"""Bounds in seconds that the product states, measured: they need a quiet machine, so no test asserts them. Writes a section of RESULTS.md.

    make bench                                   # this after the others
    python -m benchmarks.bounds --quick          # a few rounds of each: a minute

The loop is the small one of the test suite; a server has two workers on loopback.
"""

import argparse
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.report import RESULTS, machine, put, table
from tests.deploy.loops import LOOP, NOW_US, Weather, flight, opened, package
from tests.server.processes.test_supervisor import Load, ledger_away
from tests.server.running import Server, running
from tests.server.test_overload import share, under
from tests.waiting import until

from loopwright.base.clock import RealClock
from loopwright.base.settings import Settings
from loopwright.deploy import releases
from loopwright.deploy.serving.predictor import Predictor
from loopwright.server.api.spans import Spans
from loopwright.stores.home import Home
from loopwright.stores.ledger.store import Ledger
from loopwright.tasks import metrics
from loopwright.verbs.rollback import rollback

LIBRARIES = ("onnxruntime", "msgspec", "uvloop", "httptools", "numpy", "sqlalchemy")
PREDICT = f"/loops/{LOOP}/predict"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


class Bound(NamedTuple):
    """What was measured, in seconds, and the seconds that it may take; `unit` is how both are shown."""

    what: str
    seconds: float
    most: float
    unit: str = "s"

    def row(self) -> list[str]:
        """Its cells in the table."""
        factor = _UNITS[self.unit]
        met = "met" if self.seconds <= self.most else "**not met**"
        return [self.what, f"{self.seconds * factor:.3g} {self.unit}", f"<= {self.most * factor:g} {self.unit}", met]


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def fastest(call: Callable[[], object], number: int) -> float:
    """Seconds a call takes, by the quietest of five rounds."""
    return min(timeit.repeat(call, number=number, repeat=5)) / number


@contextmanager
def two_packages(folder: Path) -> Iterator[tuple[Home, list[str]]]:
    """A home in which two packages were released one after the other."""
    with opened(folder, RealClock()) as home:
        digests = [package(home.packages, weight=weight).digest for weight in (0.05, 0.06)]
        for digest in digests:
            releases.release(home, LOOP, digest, why="by hand")
        yield home, digests


def seen_by_all(server: Server, digest: str) -> bool:
    """Whether a package answers on six fresh connections in a row, so that each worker was asked."""
    for _ in range(6):
        client = server.data()
        found = client.post(PREDICT, flight()).json["package"]
        client.close()
        if found != digest:
            return False
    return True


def rollbacks(folder: Path, rounds: int) -> Iterator[Bound]:
    """Rollback under load until every worker answers by the other package: with the ledger, held by another, and silent."""
    with two_packages(folder) as (home, digests):
        with running(home, workers=2) as server, Load(server.state.data, 4):

            def back(who: Home, number: int) -> float:
                digest = digests[number % 2]

                def whole() -> None:
                    rollback(who, LOOP, to=digest[:12], why="a measurement")
                    until(lambda: seen_by_all(server, digest))

                return seconds_of(whole)

            yield Bound("rollback under load, until every worker answers so", max(back(home, n) for n in range(rounds)), 2.0)
            with ledger_away(home):
                down = Home(Settings(home=home.path, ledger="sqlite:////proc/no/such/ledger.db", by="bench"), home.clock)
                away = max(back(down, n) for n in range(rounds, 2 * rounds))
            yield Bound("the same without the ledger", away, 2.0)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none?connect_timeout=5"
            mute = Home(Settings(home=home.path, ledger=url, by="bench"), home.clock)
            took = seconds_of(lambda: rollback(mute, LOOP, why="a measurement"))
        yield Bound("the same with a ledger that never answers", took, 2.0)


def overload(folder: Path) -> Iterator[Bound]:
    """Far more rows than one worker can answer: what is accepted, and health, by their medians."""
    with two_packages(folder) as (home, _), running(home) as server:
        load, well = under(server, 140)
    yield Bound("overload: an accepted request of 250 rows, p50", share([s for s in load if s.status == 200], 0.5), 1.0, "ms")
    yield Bound("overload: health, p50", share(well, 0.5), 0.1, "ms")


def in_process(folder: Path) -> Iterator[Bound]:
    """What has no server around it."""
    with opened(folder, RealClock()) as home:
        predictor = Predictor(package(home.packages), Weather(), home.clock)
        rows = [flight(i, pushed_back_at=NOW_US) for i in range(20_000)]
        yield Bound("a row of a list of 20,000", seconds_of(lambda: predictor.answer(rows)) / len(rows), 80e-6, "us")
        url, clock = home.settings.ledger_url, home.clock
    took = [seconds_of(lambda: Ledger(url, clock=clock, by="bench").close()) for _ in range(9)]
    yield Bound("opening a ledger that is up to date", statistics.median(took), 0.05, "ms")
    spans = Spans("http://localhost", 0.0, clock, "0", lambda _what, _count: None)
    headers = {b"content-type": b"application/json", b"host": b"localhost"}
    yield Bound(
        "whether a request is traced, where it is not", fastest(lambda: spans.wants(TRACE, headers), 10_000), 5e-6, "us"
    )
    rng = np.random.default_rng(0)
    score = rng.random(50_000)
    truth = rng.random(50_000) < score
    names = ["average_precision", "roc_auc", "brier", "recall"]
    took_s = seconds_of(lambda: metrics.intervals(names, truth, score, score > 0.5, seed=0))
    yield Bound("intervals of four metrics over 50,000 rows", took_s, 4.0)


def cli(folder: Path) -> Iterator[Bound]:
    """What a command costs before it does anything, in processor time: at most twice what its library costs to import."""

    def best(script: str, *arguments: str) -> float:
        taken = []
        for _ in range(7):
            began = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", script, *arguments], stdout=subprocess.DEVNULL, check=True, cwd=folder)
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
        return min(taken)

    most = 2 * best("import typer")
    yield Bound(
        "--help, beside twice `import typer`", best("from loopwright.cli.main import main; main()", "--help"), most, "ms"
    )
    (folder / ".loopwright").mkdir(exist_ok=True)
    yield Bound("status of an empty home", best("from loopwright.cli.main import main; main()", "status"), 0.5, "ms")


def main() -> int:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a few rounds of each, printed only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = [
            *cli(folder),
            *in_process(folder / "a"),
            *rollbacks(folder / "b", 3 if args.quick else 50),
            *overload(folder / "c"),
        ]
    text = machine(LIBRARIES) + "\n" + table(["what", "measured", "bound", ""], [bound.row() for bound in found])
    text += "\nRollbacks by the slowest of all rounds.\n\nReproduce: `make bench`.\n"
    if not args.quick:
        put("Bounds", text, args.out)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
