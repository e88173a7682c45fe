import asyncio
import threading

import pytest

from loopwright.base.errors import NotFound, Overloaded, Unavailable
from loopwright.server.http.slots import Slots


class Work:
    """Calls that end when they are let go; how many ran at once at most."""

    def __init__(self) -> None:
        self.go, self.lock = threading.Event(), threading.Lock()
        self.running = self.most = 0

    def __call__(self) -> str:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.go.wait(60)
        with self.lock:
            self.running -= 1
        return "done"


async def until_running(work: Work, count: int) -> None:
    async with asyncio.timeout(60):
        while work.running < count:
            await asyncio.sleep(0.005)


def test_more_calls_than_slots_wait_and_more_than_may_wait_are_told_at_once() -> None:
    work = Work()

    async def run() -> list[object]:
        slots = Slots(3, waiting=5, seconds=60)
        tasks = [asyncio.ensure_future(slots(work, "page")) for _ in range(8)]
        await until_running(work, 3)
        with pytest.raises(Overloaded, match="3 others are being answered and 5 wait"):
            await slots(work, "page")
        work.go.set()
        answers = await asyncio.gather(*tasks)
        return [*answers, await slots(work, "page")]

    assert asyncio.run(run()) == ["done"] * 9
    assert work.most == 3


def test_call_that_takes_too_long_is_told_and_holds_its_slot_until_it_ends() -> None:
    work = Work()

    async def run() -> str:
        slots = Slots(1, waiting=1, seconds=0.2)
        for what in ("the page of loop a", "the page of loop b"):  # it runs; it waits for the thread that nobody waits for
            with pytest.raises(Unavailable, match=f"{what}: not there within"):
                await slots(work, what)
        assert (work.running, work.most) == (1, 1)
        work.go.set()
        async with asyncio.timeout(60):
            while work.running:
                await asyncio.sleep(0.005)
        return await slots(work, "page")

    assert asyncio.run(run()) == "done"
    assert work.most == 1


def test_errors_of_a_call_are_raised_and_free_its_slot() -> None:
    async def run() -> None:
        slots = Slots(1, waiting=0, seconds=60)
        for _ in range(3):
            with pytest.raises(NotFound):
                await slots(lambda: (_ for _ in ()).throw(NotFound("loop", "x")), "page")

    asyncio.run(run())


def test_slot_is_free_again_where_there_is_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> str:
        slots = Slots(1, waiting=0, seconds=60)
        with monkeypatch.context() as patch:
            patch.setattr("loopwright.server.http.slots.start", no_thread)
            for _ in range(3):
                with pytest.raises(Overloaded, match="page: no thread is available"):
                    await slots(lambda: "never", "page")
        return await slots(lambda: "done", "page")

    assert asyncio.run(run()) == "done"
