"""The queue of one worker, with a real engine: what waits together is answered together, and nobody is forgotten."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, Weather, flight, opened, package
from tests.waiting import PATIENCE_SECONDS

from loopwright.base import failpoints
from loopwright.base.errors import LogUnavailable, Overloaded
from loopwright.deploy import releases
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.server.api import batches
from loopwright.server.api.batches import Batches, Found
from loopwright.server.api.metrics import Metrics
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.read import predictions


class Asker:
    """A request that remembers what it got."""

    def __init__(self, engine: ServingEngine, *numbers: int) -> None:
        self.ask = PredictionRequest(engine.registry.service(LOOP).decode(text([flight(n) for n in numbers])).rows)
        self.gone = False
        self.got: Found | None = None
        self.at = 0.0

    def reply(self, found: Found) -> Any:
        return found

    def send(self, reply: Any) -> None:
        assert self.got is None, "answered twice"
        self.got, self.at = reply, time.perf_counter()

    @property
    def units(self) -> list[str]:
        assert isinstance(self.got, list), self.got
        return [a.unit for a in self.got]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return opened(tmp_path)


@pytest.fixture
def engine(home: Home) -> Iterator[ServingEngine]:
    yield from serving(home)


@pytest.fixture
def durable(home: Home) -> Iterator[ServingEngine]:
    yield from serving(home, durability="disk")


def serving(home: Home, **release: str) -> Iterator[ServingEngine]:
    releases.release(home, LOOP, package(home.packages, release=release).digest, why="first")
    engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock))
    engine.registry.refresh()
    yield engine
    failpoints.arm("")
    engine.close()


def runs(metrics: Metrics) -> int:
    line = next(line for line in metrics.text().decode().splitlines() if line.startswith("loopwright_runs_total{"))
    return int(float(line.rpartition(" ")[2]))


def run(engine: ServingEngine, work: Callable[[Batches, Metrics], Awaitable[None]]) -> None:
    """Call `work` in an event loop, with a queue."""
    metrics = Metrics()
    queue = Batches(engine, metrics)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await work(queue, metrics)

    try:
        asyncio.run(main())
    finally:
        queue.close()


async def answered(askers: list[Asker]) -> None:
    while any(asker.got is None for asker in askers):
        await asyncio.sleep(0.001)


def test_what_waits_together_is_one_run_and_each_gets_its_own(engine: ServingEngine, home: Home) -> None:
    askers = [Asker(engine, i, 100 + i) for i in range(20)]

    async def work(queue: Batches, metrics: Metrics) -> None:
        for asker in askers:
            queue.put(LOOP, asker)
        assert all(asker.got is None for asker in askers), "they wait for the event loop to come round"
        await answered(askers)
        assert runs(metrics) == 1

    run(engine, work)
    assert [asker.units for asker in askers] == [[f"UA{i}", f"UA{100 + i}"] for i in range(20)]
    engine.close()
    commit(home, LOOP)
    assert predictions(home, LOOP).num_rows == 40


def test_a_batch_is_bounded_and_the_event_loop_comes_round_between_two(engine: ServingEngine) -> None:
    askers = [Asker(engine, *range(100 * i, 100 * i + 100)) for i in range(5)]
    seen: list[int] = []

    async def work(queue: Batches, metrics: Metrics) -> None:
        for asker in askers:
            queue.put(LOOP, asker)
        while any(asker.got is None for asker in askers):
            seen.append(sum(asker.got is not None for asker in askers))
            await asyncio.sleep(0)
        assert runs(metrics) == 3

    run(engine, work)
    assert {0, 2, 4} <= set(seen)


def test_a_large_request_holds_up_nobody(engine: ServingEngine) -> None:
    large, small = Asker(engine, *range(3000)), Asker(engine, 7)

    async def work(queue: Batches, _metrics: Metrics) -> None:
        queue.put(LOOP, large)
        queue.put(LOOP, small)
        await answered([large, small])

    run(engine, work)
    assert small.at < large.at
    assert len(large.units) == 3000


def test_more_than_can_be_held_is_refused_and_the_rest_is_answered(
    engine: ServingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_ASIDE", 2)
    large, small = [Asker(engine, *range(300)) for _ in range(3)], [Asker(engine, *range(250)) for _ in range(200)]
    held: list[Asker] = []

    async def work(queue: Batches, _metrics: Metrics) -> None:
        for asker in [*large, *small]:
            try:
                queue.put(LOOP, asker)
                held.append(asker)
            except Overloaded:
                continue
        full = [queue.full]
        await answered(held)
        assert [*full, queue.full] == [True, False]
        again = Asker(engine, 1)
        queue.put(LOOP, again)
        await answered([again])

    run(engine, work)
    assert sum(asker in held for asker in large) == 2
    assert 0 < sum(asker in held for asker in small) < 200


def test_a_loop_that_is_gone_is_told_to_each_that_waits(engine: ServingEngine) -> None:
    askers = [Asker(engine, 1), Asker(engine, 2)]

    async def work(queue: Batches, _metrics: Metrics) -> None:
        for asker in askers:
            queue.put("nobody", asker)
        await answered(askers)

    run(engine, work)
    assert all(isinstance(asker.got, Exception) for asker in askers)


class Disk:
    """Counts the syncs of the log; the first one waits for `go`."""

    def __init__(self) -> None:
        self.syncs, self.go = 0, threading.Event()

    def hit(self, point: str) -> None:
        """In place of `failpoints.hit`."""
        if point == "log.sync":
            self.syncs += 1
            if self.syncs == 1:
                assert self.go.wait(PATIENCE_SECONDS)


def test_durable_answers_wait_for_the_disk_while_batches_run_and_share_syncs(
    durable: ServingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    monkeypatch.setattr(failpoints, "hit", disk.hit)
    first, later = Asker(durable, 1), [Asker(durable, i) for i in range(2, 6)]

    async def work(queue: Batches, metrics: Metrics) -> None:
        queue.put(LOOP, first)
        while not disk.syncs:
            await asyncio.sleep(0)
        for number, asker in enumerate(later, 2):
            queue.put(LOOP, asker)
            while runs(metrics) < number:  # the next batches run while the first one waits for the disk
                await asyncio.sleep(0)
        assert all(asker.got is None for asker in [first, *later])
        disk.go.set()
        await answered([first, *later])

    run(durable, work)
    assert disk.syncs == 2, "one for the first, one for all that waited meanwhile"
    assert first.at <= min(asker.at for asker in later)
    assert [asker.units for asker in [first, *later]] == [[f"UA{i}"] for i in range(1, 6)]


@pytest.mark.parametrize("rows", [1, 300])
def test_a_sync_that_fails_is_told_where_the_loop_says_refuse(home: Home, rows: int) -> None:
    for engine in serving(home, durability="disk", on_unloggable="refuse"):
        failpoints.arm("log.sync=EIO")
        asker = Asker(engine, *range(rows))

        async def work(queue: Batches, _metrics: Metrics, asker: Asker = asker) -> None:
            queue.put(LOOP, asker)
            await answered([asker])

        run(engine, work)
        assert isinstance(asker.got, LogUnavailable)


def test_a_sync_that_fails_is_counted_where_the_loop_says_serve(durable: ServingEngine) -> None:
    failpoints.arm("log.sync=EIO")
    asker = Asker(durable, 1)

    async def work(queue: Batches, metrics: Metrics) -> None:
        queue.put(LOOP, asker)
        await answered([asker])
        assert f'loopwright_unlogged_total{{loop="{LOOP}"}} 1.0' in metrics.text().decode()

    run(durable, work)
    assert asker.units == ["UA1"]


def test_rows_answered_after_their_client_had_gone_are_flagged_in_the_log(home: Home, engine: ServingEngine) -> None:
    async def ask() -> list[Asker]:
        waiting = Batches(engine, Metrics())
        askers = [Asker(engine, 1), Asker(engine, 2, 3), Asker(engine, 4)]
        askers[1].gone = True
        for asker in askers:
            waiting.put(LOOP, asker)
        while any(asker.got is None for asker in askers):
            await asyncio.sleep(0)
        waiting.close()
        return askers

    asyncio.run(ask())
    engine.close()
    commit(home, LOOP)
    flagged = {row["_unit"]: "undelivered" in row["_flags"] for row in predictions(home, LOOP).to_pylist()}
    assert flagged == {"UA1": False, "UA2": True, "UA3": True, "UA4": False}
