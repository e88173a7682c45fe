"""Trials: hours of trouble in a short time, on a real server under load. The long ones are `slow`; LOOPWRIGHT_SOAK_SECONDS makes the soak longer."""

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.deploy.bodies import BAD
from tests.deploy.loops import LOOP, flight, opened, package
from tests.postgres import Postgres, find_binaries
from tests.server.running import Server, running
from tests.server.storm import ANSWER_BYTES, Summary
from tests.services import needed
from tests.waiting import PATIENCE_SECONDS, until

from loopwright.base.clock import RealClock
from loopwright.base.errors import LoopwrightError
from loopwright.base.settings import Settings
from loopwright.deploy import releases
from loopwright.server.http.connection import ARRIVAL_SECONDS
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit, verify

PREDICT = f"/loops/{LOOP}/predict"
SOAK_SECONDS = float(os.environ.get("LOOPWRIGHT_SOAK_SECONDS", "45"))
INTERNAL = re.compile(
    rb"Traceback|site-packages|\.py\b|0x[0-9a-f]{6,}|/(?:root|home|usr|tmp|proc)/|msgspec|onnx|uvicorn|httptools", re.IGNORECASE
)


class Storm:
    """A running `tests.server.storm`."""

    def __init__(self, server: Server, folder: Path, *, seconds: float, rate: float, connections: int = 16) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        line = [sys.executable, "-m", "tests.server.storm", server.state.data, PREDICT]
        self._process = subprocess.Popen(
            [*line, str(seconds), str(rate), str(connections), str(folder)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        assert self._process.stdin is not None
        json.dump([flight(i, delay=float(i % 90)) for i in range(200)], self._process.stdin)
        self._process.stdin.close()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def end(self) -> Summary:
        assert self._process.wait(SOAK_SECONDS + PATIENCE_SECONDS) == 0
        return self.summary

    @property
    def summary(self) -> Summary:
        return msgspec.json.decode((self.folder / "summary.json").read_bytes(), type=Summary)

    def answers(self) -> tuple[list[str], set[str]]:
        """The ids answered, in order, and the first eight digits of the packages that answered."""
        rows = np.fromfile(self.folder / "answers", np.uint8).reshape(-1, ANSWER_BYTES)
        packages = {bytes(row).hex() for row in np.unique(rows[:, 16:], axis=0)}
        return [bytes(row).hex() for row in rows[:, :16]], packages


class Held(msgspec.Struct, frozen=True):
    """What a process holds: resident bytes, open descriptors, threads."""

    rss: int
    fds: int
    threads: int


def held(pid: int) -> Held | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        rss, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))  # type: ignore[index]  # both are there
        return Held(rss * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())), threads)
    except (FileNotFoundError, ProcessLookupError, TypeError):
        return None


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres(needed(find_binaries(), "PostgreSQL", "postgresql"))
    yield server
    server.remove()


@pytest.fixture
def home(tmp_path: Path, postgres: Postgres) -> Iterator[Home]:
    with opened(tmp_path / "home", RealClock(), ledger=postgres.empty_database()) as home:
        yield home


def capacity(server: Server, folder: Path) -> float:
    """Requests a second that the server answers when more are sent than it can, measured for some seconds."""
    summary = Storm(server, folder, seconds=4, rate=30_000, connections=32).end()
    return sum(summary.statuses.values()) / 4


def each_id_once(home: Home, ids: list[str]) -> None:
    commit(home, LOOP)
    logged = home.lake.read(f"predictions.{LOOP}", columns=["_id"])["_id"].to_pylist()
    known = set(logged)
    assert len(known) == len(logged)
    assert len(set(ids)) == len(ids)
    assert not set(ids) - known
    assert verify(home) == []


@contextmanager
def watching(*pids: Callable[[], int]) -> Iterator[list[list[Held]]]:
    """What processes hold, looked at twice a second in a thread of its own."""
    over = threading.Event()
    series: list[list[Held]] = [[] for _ in pids]

    def watch() -> None:
        while not over.wait(max(0.5, SOAK_SECONDS / 500)):
            for pid, seen in zip(pids, series, strict=True):
                found = held(pid())
                if found is not None:
                    seen.append(found)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield series
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_soak(home: Home, postgres: Postgres, tmp_path: Path) -> None:
    """At 60 % of capacity, with swaps, rollbacks, killed workers and a ledger that goes and comes."""
    first, second = (package(home.packages, weight=w).digest for w in (0.05, 0.06))
    releases.release(home, LOOP, first, why="first")
    kills: list[float] = []
    with running(home, workers=2, tend=True) as server:
        rate = 0.6 * capacity(server, tmp_path / "capacity")

        def swap() -> None:
            with suppress(LoopwrightError):  # the ledger is away
                releases.release(home, LOOP, random.choice([first, second]), why="swap")

        def roll_back() -> None:
            with suppress(LoopwrightError):
                releases.rollback(home, LOOP, why="back")

        def kill_a_worker() -> None:
            pid = server.state.workers[1]  # the first is left alive, to see what it holds over time
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                kills.append(time.time())

        def restart_the_ledger() -> None:
            postgres.stop()
            time.sleep(1)
            postgres.start()

        troubles, rng, made = [swap, roll_back, kill_a_worker, restart_the_ledger], random.Random(3), list[str]()
        storm = Storm(server, tmp_path / "storm", seconds=SOAK_SECONDS, rate=rate)
        with watching(lambda: server.state.workers[0], lambda: server.process.pid) as series:
            while storm.runs:
                time.sleep(rng.uniform(0.5, 3.0))
                trouble = troubles[len(made)] if len(made) < len(troubles) else rng.choice([swap, *troubles])  # each once
                trouble()
                made.append(trouble.__name__)
        summary = storm.end()
        again = Home(home.settings, home.clock)
        until(lambda: releases.serving(again, LOOP) is not None)
        again.close()
    print(f"{rate:.0f} a second, {summary.answered} answered, {Counter(made)}, p50 {summary.p50}, p99 {summary.p99}")
    ids, packages = storm.answers()
    assert set(summary.statuses) == {200}, summary.odd
    assert len(ids) == summary.answered > 1000
    assert packages <= {first[:8], second[:8]}
    assert set(made) == {trouble.__name__ for trouble in troubles}
    late = 1.5 + summary.lag  # a busy machine: the load hears of it when it is its turn
    stray = [cut for cut in summary.cut if not any(-0.5 <= cut - kill <= late for kill in kills)]
    assert stray == [], "a connection was cut whose worker was not killed"
    assert len(summary.cut) <= 16 * len(kills)
    each_id_once(home, ids)
    for seen in series:
        flat(seen[len(seen) // 4 :])


def flat(series: list[Held]) -> None:
    """Memory, descriptors and threads do not grow from the middle of a time to its end."""
    half = len(series) // 2
    early, late = (
        Held(*(int(np.median([getattr(h, name) for h in part])) for name in ("rss", "fds", "threads")))
        for part in (series[:half], series[half:])
    )
    assert late.rss <= early.rss * 1.05 + 8 * 2**20
    assert late.fds <= early.fds + 12
    assert late.threads <= early.threads + 3


@pytest.mark.slow
def test_a_thousand_swaps_and_a_hundred_rollbacks(home: Home, postgres: Postgres, tmp_path: Path) -> None:
    digests = [package(home.packages, weight=w).digest for w in (0.05, 0.06)]
    releases.release(home, LOOP, digests[0], why="first")
    with running(home, workers=2) as server:
        storm = Storm(server, tmp_path / "storm", seconds=120, rate=400, connections=8)
        for i in range(1000):
            releases.release(home, LOOP, digests[(i + 1) % 2], why="swap")
        postgres.stop()
        try:
            away = Home(Settings(home=home.path, ledger=home.settings.ledger, by="ann"), home.clock)
            for i in range(100):
                wanted = digests[(i + 1) % 2]
                releases.rollback(away, LOOP, to=wanted[:16], why="back")
                until(lambda wanted=wanted: answering(server) == {wanted})
        finally:
            postgres.start()
        summary = storm.end()
    print(f"{summary.answered} answered meanwhile, p99 {summary.p99}")
    assert set(summary.statuses) == {200}, summary.odd
    assert summary.cut == []
    ids, packages = storm.answers()
    assert packages == {d[:8] for d in digests}
    again = Home(home.settings, home.clock)
    each_id_once(again, ids)
    again.close()


def answering(server: Server) -> set[str]:
    """The packages that answer on some fresh connections, so that every worker is asked sooner or later."""
    found = set()
    for _ in range(6):
        client = server.data()
        reply = client.post(PREDICT, flight())
        assert reply.status == 200, reply.body
        found.add(reply.json["package"])
        client.close()
    return found


def mutated(rng: random.Random, good: bytes) -> bytes:
    """A body that was lawful, with something done to it."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + rng.randint(1, 8)] = b""
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 6))
            case 2:
                data[at:at] = rng.choice(
                    [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"1e999", b"\\u0000", b"-", b"\xff", b"true"]
                )
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            case _:
                data[at : at + 1] = rng.randbytes(1)
    return bytes(data)


@pytest.mark.slow
def test_a_hundred_thousand_bad_bodies(home: Home) -> None:
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    bad = [b.body for b in BAD if len(b.body) < 20_000]
    goods = [json.dumps(row).encode() for row in (flight(), [flight(), flight(2)])]
    with running(home) as server:
        parts = server.data()
        worker = server.state.workers[0]
        statuses: dict[int, int] = {}
        lock = threading.Lock()

        def send(seed: int, count: int) -> None:
            rng, own = random.Random(seed), dict[int, int]()
            for start in range(0, count, 500):
                connection = http.client.HTTPConnection(parts.host, parts.port, timeout=PATIENCE_SECONDS)
                for i in range(start, min(start + 500, count)):
                    body = bad[i % len(bad)] if i % 4 == 0 else mutated(rng, rng.choice(goods))
                    path = PREDICT if i % 5 else f"/v2/models/{LOOP}/infer" if i % 2 else f"/loops/{LOOP}/outcomes"
                    connection.request(
                        "POST",
                        path,
                        body,
                        {"Content-Type": "application/json", "Authorization": "Bearer only-for-tests-0123456789"},
                    )
                    answer = connection.getresponse()
                    text = answer.read()
                    own[answer.status] = own.get(answer.status, 0) + 1
                    assert answer.status < 500, (answer.status, text[:500], body[:500])
                    assert not INTERNAL.search(text), (text[:500], body[:500])
                connection.close()
            with lock:
                for status, number in own.items():
                    statuses[status] = statuses.get(status, 0) + number

        send(0, 4000)
        before = held(worker)
        threads = [threading.Thread(target=send, args=(seed, 24_000)) for seed in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = held(worker)
        assert server.state.workers[0] == worker
        assert parts.post(PREDICT, flight()).status == 200
    print(statuses, before, after)
    assert sum(statuses.values()) == 100_000
    assert statuses[400] + statuses[422] > 50_000
    assert before is not None
    assert after is not None
    assert after.rss <= before.rss + 32 * 2**20
    assert after.fds <= before.fds + 4


def test_requests_generated_from_the_description(home: Home, tmp_path: Path) -> None:
    """schemathesis reads /openapi.json and sends what it allows, and what it does not."""
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    with running(home) as server:
        line = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.state.data}/openapi.json"]
        line += ["--max-examples", "25", "--seed", "1", "--phases", "examples,coverage,fuzzing", "--workers", "1"]
        line += ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"]
        done = subprocess.run(
            [*line, "--header", "Authorization: Bearer only-for-tests-0123456789"],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        print(done.stdout[-2500:])
        assert server.data().post(PREDICT, flight()).status == 200


def test_a_slow_sender_holds_nobody_up(home: Home) -> None:
    """Headers and bodies that trickle in on many connections, while others are answered."""
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    with running(home) as server:
        client = server.data()
        began = time.monotonic()
        slow = [socket.create_connection((client.host, client.port), PATIENCE_SECONDS) for _ in range(200)]
        for i, raw in enumerate(slow):
            raw.sendall(
                f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
                + (b"Content-Length: 100\r\n\r\n{" if i % 2 else b"")
            )
        for _ in range(50):
            assert client.post(PREDICT, flight()).status == 200
        for raw in slow:  # they still wait: nobody was answered only because they had been given up
            raw.setblocking(False)
            with suppress(OSError) if time.monotonic() - began > ARRIVAL_SECONDS else pytest.raises(BlockingIOError):
                raw.recv(1)
            raw.close()
