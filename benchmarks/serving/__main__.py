"""Our server beside what teams use today, in one run. Writes the section "Serving" of RESULTS.md.

    make bench-serving                # or: python -m benchmarks.serving [--quick] [--peers MLflow,BentoML] [--cache FOLDER]

Everybody serves the same LightGBM, from an environment of its own, with one worker, one row a request, alone on the machine while it is
measured: each is started, must give the right probability for 64 flights (1e-6; otherwise nothing is reported at all), is loaded by wrk
with 1, 8 and 32 connections, and is ended again, in turn, three times over. Medians are reported. Answers are checked during load, too.
A contestant that fails gets a row that says why; the others go on.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.report import RESULTS, put
from benchmarks.serving import flights
from benchmarks.serving.columns import COLUMNS
from benchmarks.serving.contestants import CONTESTANTS, TOLERANCE, Contestant, Place
from benchmarks.serving.environments import default_cache, python_of, versions
from benchmarks.serving.found import Found
from benchmarks.serving.load import script, wrk
from benchmarks.serving.peers import pipeline
from benchmarks.serving.section import CONNECTIONS, OPEN, OURS, section
from benchmarks.serving.started import Failed, Server, adopt_orphans, below, end_all, free_port

CAPACITY_SHARE = 0.6
BUILD_SECONDS = 180
KEPT_BY = {"onnx": "fastapi", "whole-onnx": "fastapi", "joblib": "fastapi"}
"""In which environment a model is made that several peers serve."""


class Run:
    """One run of the benchmark."""

    def __init__(self, folder: Path, cache: Path, *, seconds: float, rounds: int) -> None:
        self.folder, self.cache, self.seconds, self.rounds = folder, cache, seconds, rounds
        self.found = Found()
        self.home = folder / "home"
        self.rows: list[dict[str, Any]] = []
        self.expected: list[float] = []
        self.pythons: dict[str, Path] = {"": Path(sys.executable)}
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Progress."""
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def prepare(self, contestants: list[Contestant]) -> list[Contestant]:
        """Train ours, make environments and the peers' models; who is ready. Raises RuntimeError when ours cannot be trained."""
        self.say("training our loops on the flights of three months")
        flights.train(self.folder)
        self.rows = flights.hand_over(self.home, self.folder)
        fitted, _ = pipeline.fit(self.folder)
        import pandas as pd

        self.expected = [float(p) for p in fitted.predict_proba(pd.DataFrame(self.rows, columns=COLUMNS))[:, 1]]
        ready, kept = [], set[str]()
        for contestant in contestants:
            try:
                self._build(contestant, kept)
            except (RuntimeError, subprocess.SubprocessError, OSError) as error:
                self.give_up(contestant, error)
            else:
                ready.append(contestant)
        return ready

    def _build(self, contestant: Contestant, kept: set[str]) -> None:
        environment = contestant.environment
        if environment not in self.pythons:
            self.pythons[environment] = python_of(environment, self.cache)
            self.found.versions[environment] = versions(self.pythons[environment])
        if not contestant.keep or contestant.keep in kept:
            return
        self.say(f"making the model of {contestant.name}")
        owner = KEPT_BY.get(contestant.keep, contestant.environment)
        place = Place(self.pythons.setdefault(owner, python_of(owner, self.cache)), self.folder, self.home, 0)
        variables = {**os.environ, **contestant.environ(place)}
        line = [str(place.python), "-m", "benchmarks.serving.peers.pipeline", contestant.keep, str(self.folder)]
        done = subprocess.run(
            line, cwd=flights.ROOT, env=variables, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
        if done.returncode:
            raise RuntimeError(f"its model cannot be made: {done.stderr.strip()[-400:]}")
        kept.add(contestant.keep)

    def give_up(self, contestant: Contestant, error: Exception) -> None:
        """Leave a contestant out from now on; its row says why."""
        self.found.failed[contestant.name] = _told(error)
        self.say(f"{contestant.name} FAILED: {_told(error)}")

    def start(self, contestant: Contestant, path: str = "") -> Server:
        """The server of a contestant, checked on all rows. Raises Failed; SystemExit when it gives other probabilities than it should."""
        place = Place(self.pythons[contestant.environment], self.folder, self.home, free_port())
        if contestant.name == OURS:
            (self.home / "serve.json").unlink(missing_ok=True)
        bodies = [contestant.encoded(row) for row in self.rows]
        checks = [contestant.right(row, p) for row, p in zip(self.rows, self.expected, strict=True)]
        server = Server(
            contestant.line(place),
            place.port,
            path=path or contestant.path,
            first=bodies[0],
            right=lambda answer: isinstance(answer, dict),
            folder=self.folder,
            variables=contestant.environ(place),
            cwd=flights.ROOT,
        )
        try:
            for number, (body, right) in enumerate(zip(bodies, checks, strict=True)):
                status, answer = server.ask(body)
                if status != 200:
                    raise Failed(f"answered {status}: {str(answer)[:200]}")
                if not right(answer):
                    raise SystemExit(
                        f"{contestant.name} answers row {number} with {str(answer)[:300]}, not {self.expected[number]!r} within "
                        f"{TOLERANCE}: nothing is compared"
                    )
        except (OSError, ValueError) as error:
            server.end()
            raise Failed(f"{type(error).__name__}: {error}") from error
        except BaseException:
            server.end()
            raise
        return server

    def closed(self, server: Server, contestant: Contestant, connections: int, seconds: float) -> Any:
        """Load by wrk, with checked answers."""
        bodies = [contestant.encoded(row) for row in self.rows]
        checks = [(b, contestant.right(r, p)) for b, r, p in zip(bodies, self.rows, self.expected, strict=True)]
        return wrk(server, script(bodies, self.folder), connections=connections, seconds=seconds, checks=checks)

    def in_turn(self, contestants: list[Contestant], measure: Callable[[Contestant, int], None]) -> None:
        """`measure` for each contestant in turn, round after round; one that fails twice is left out from then on."""
        for number in range(self.rounds):
            for contestant in contestants:
                if contestant.name not in self.found.failed:
                    try:
                        measure(contestant, number)
                    except (Failed, subprocess.SubprocessError, OSError, ValueError, LookupError) as error:
                        if contestant.name in self.found.stumbled or self.rounds == 1:
                            self.give_up(contestant, error)
                        else:
                            self.found.stumbled[contestant.name] = f"{measure.__name__}, round {number + 1}: {_told(error)}"
                            self.say(f"{contestant.name}, {self.found.stumbled[contestant.name]}")

    def throughput(self, contestant: Contestant, number: int) -> None:
        """Start, warm up, 1, 8 and 32 connections, memory."""
        name = contestant.name
        with self.start(contestant) as server:
            self.found.note("start", name, server.start_seconds)
            self.closed(server, contestant, 4, min(2, self.seconds))
            for connections in CONNECTIONS:
                used = server.cpu_seconds()
                told = self.closed(server, contestant, connections, self.seconds)
                for mode, after, before in zip(("user", "kernel"), server.cpu_seconds(), used, strict=True):
                    self.found.note(f"{mode} {connections}", name, (after - before) / (told.rate * self.seconds) * 1e6)
                self.found.note(f"rate {connections}", name, told.rate)
                self.found.note(f"p50 {connections}", name, told.p50)
            self.found.note("memory", name, server.memory_mib())
        rates = ", ".join(f"{self.found.last(f'rate {c}', name):,.0f}" for c in CONNECTIONS)
        self.say(
            f"round {number + 1}: {name}: up in {server.start_seconds:.1f} s; {rates} requests/s at {CONNECTIONS} connections"
        )

    def arrivals(self, contestant: Contestant, number: int) -> None:
        """Open-loop load at 60 % of what it did with 32 connections."""
        name = contestant.name
        rate = CAPACITY_SHARE * self.found.median("rate 32", OURS if contestant.echoes else name)
        if math.isnan(rate):
            raise Failed("no open-loop load without a throughput at 32 connections")
        bodies = self.folder / "bodies.json"
        bodies.write_text(json.dumps([contestant.encoded(row).decode() for row in self.rows]))
        with self.start(contestant) as server:
            self.closed(server, contestant, 4, min(2, self.seconds))
            line = [sys.executable, "-m", "benchmarks.serving.arrivals", str(server.port), server.path, str(rate)]
            line += [str(self.seconds * 2), str(bodies)]
            done = subprocess.run(
                line, cwd=flights.ROOT, capture_output=True, text=True, timeout=self.seconds * 2 + 60, check=False
            )
        if done.returncode:
            raise Failed(f"open-loop load: {done.stderr.strip()[-300:]}")
        told = json.loads(done.stdout)
        if told["lost"]:
            raise Failed(f"open-loop load: {told['lost']} of {told['sent']} requests were not answered")
        for key, value in told.items():
            self.found.note(f"open {key}", name, value)
        self.found.note("open tail", name, told["p99"] / told["p50"])
        self.say(f"round {number + 1}: {name} at {rate:,.0f} arrivals/s: {told}")

    def durability(self, ours: Contestant, number: int) -> None:
        """Both of our loops on one server, in turns."""
        with self.start(ours) as server:
            for loop in (flights.LOOP, flights.DISK) * 2:
                server.path = f"/loops/{loop}/predict"
                if number == 0:
                    self.closed(server, ours, 4, min(2, self.seconds))
                self.found.note(f"rate 32 {loop}", ours.name, self.closed(server, ours, 32, self.seconds).rate)
        both = {loop: f"{self.found.median(f'rate 32 {loop}', ours.name):,.0f}" for loop in (flights.LOOP, flights.DISK)}
        self.say(f"round {number + 1}: durability: requests/s at 32 connections {both}")


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[-400:] or type(error).__name__


def chosen(names: str) -> list[Contestant]:
    """Ours, and the peers that are asked for. Raises SystemExit for one that is unknown."""
    if not names:
        return CONTESTANTS
    wanted = [name.strip().lower() for name in names.split(",")]
    found = [c for c in CONTESTANTS if c.name == OURS or any(c.name.lower().startswith(w) for w in wanted)]
    if unknown := [w for w in wanted if not any(c.name.lower().startswith(w) for c in CONTESTANTS)]:
        raise SystemExit(f"no peer begins with {unknown}: there are {', '.join(c.name for c in CONTESTANTS)}")
    return found


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """In the end no process is left that this one started, nor one that those started."""
    adopt_orphans()
    try:
        yield
    finally:
        end_all(below(os.getpid())[1:])


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where the peers' environments are kept (default: %(default)s)"
    )
    parser.add_argument("--peers", default="", help="beginnings of names, with commas between: only these and ours")
    parser.add_argument("--seconds", type=float, default=4, help="length of each load")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--raw", type=Path, help="also write every number measured, as JSON")
    parser.add_argument("--quick", action="store_true", help="one short round, printed only")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        print("this benchmark needs wrk (Debian and Ubuntu: apt-get install wrk)", file=sys.stderr)
        return 2
    contestants = chosen(args.peers)
    if args.quick:
        args.seconds, args.rounds = 1.0, 1
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, _terminated)
    args.cache.mkdir(parents=True, exist_ok=True)
    with ended(), tempfile.TemporaryDirectory(prefix="lw-serving-") as scratch:
        run = Run(Path(scratch), args.cache.resolve(), seconds=args.seconds, rounds=args.rounds)
        ready = run.prepare(contestants)
        run.in_turn(ready, run.throughput)
        run.in_turn([c for c in ready if c.name in OPEN], run.arrivals)
        run.in_turn([c for c in ready if c.name == OURS], run.durability)
    text = section(run.found, [c.name for c in contestants], seconds=args.seconds, rounds=args.rounds)
    if args.raw:
        args.raw.write_text(json.dumps(run.found.raw(), indent=1))
    measured = run.found.has("rate 32", OURS)
    if measured and not args.quick:
        put("Serving", text, args.out)
    print(text)
    run.say("done" if measured else "ours was not measured: nothing is written")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
