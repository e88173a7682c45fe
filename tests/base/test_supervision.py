import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.waiting import until

from loopwright.base import failpoints, log_lines, supervision
from loopwright.base.errors import Unavailable
from loopwright.base.supervision import Component, Pool, Repeating, down, report_to, start, state, states, together


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(supervision, "_registry", supervision._Registry())
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.01)
    log_lines.forget()
    yield
    failpoints.arm("")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError(), SystemExit(3), KeyError("x")])
def test_repeating_thread_goes_on_after_an_error(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    calls, working = [], threading.Event()

    def step() -> None:
        calls.append(down())
        if len(calls) <= 3:
            raise error
        if not working.is_set():
            working.wait(60)

    thread = Repeating("follow", step, 0.001).start()
    until(lambda: len(calls) == 4)
    assert calls == [[], ["follow"], ["follow"], ["follow"]]  # unready until a step has come to its end
    assert down() == ["follow"]
    working.set()
    until(lambda: down() == [])
    assert state().failures == {"follow": 3}
    thread.stop(60)
    said = [r for r in caplog.records if "follow failed and is begun again" in r.message]
    assert [r.levelname for r in said] == ["ERROR"]  # the repeats are counted


def test_repeating_thread_ends_when_its_step_says_so_and_when_stopped() -> None:
    steps: list[int] = []

    def once() -> bool:
        steps.append(1)
        return False

    Repeating("once", once, at_once=True).start()
    until(lambda: steps)
    last = Repeating("last", lambda: steps.append(2), 3600.0, at_last=True).start()
    last.stop(60)
    assert steps == [1, 2]


def test_a_step_that_blocks_works_once_it_has_begun_again() -> None:
    failpoints.arm("thread.link=EIO@1")
    begun, end = threading.Event(), threading.Event()

    def step() -> bool:
        begun.set()
        return not end.wait(60)

    thread = Repeating("link", step, blocks=True).start()
    assert begun.wait(60)
    assert (down(), state().failures) == ([], {"link": 1})
    end.set()
    thread.stop(60)


def test_a_thread_that_cannot_start_is_down_and_the_next_start_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    thread = Repeating("overruns", lambda: None, 0.001)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert not thread.start().started
    assert down() == ["overruns"]
    assert thread.start().started
    until(lambda: down() == [])
    thread.stop(60)


def test_a_thread_that_is_not_needed_is_counted_and_nothing_is_down() -> None:
    failpoints.arm("thread.spans=EIO@1")
    steps: list[int] = []
    thread = Repeating("spans", lambda: steps.append(1), 0.001, needed=False).start()
    until(lambda: steps)
    assert (state().failures, down()) == ({"spans": 1}, [])
    thread.stop(60)


def test_an_error_in_one_piece_of_work_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    failpoints.arm("thread.seal=ENOSPC")
    start("seal", lambda: None).join()
    start("retire", lambda: 1 // 0).join()
    assert state().failures == {"seal": 1, "retire": 1}
    assert down() == []
    assert "seal failed: OSError: [Errno 28] No space left on device" in caplog.text


def test_a_pool_counts_what_is_no_answer() -> None:
    def refuse() -> None:
        raise Unavailable("not now")

    pool = Pool("large-requests", 1)
    with pytest.raises(Unavailable):
        pool.submit(refuse).result()
    assert state().failures == {}
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result()
    assert state().failures == {"large-requests": 1}
    assert pool.submit(lambda: 5).result() == 5
    pool.shutdown()


def test_work_of_a_pool_tells_the_event_loop_its_result_or_its_error() -> None:
    pool = Pool("loading", 1)

    async def ask(work: Callable[[], object]) -> object:
        told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        pool.run(work, told.set_result, told.set_exception)
        return await told

    assert asyncio.run(ask(lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        asyncio.run(ask(lambda: 1 // 0))
    failpoints.arm("thread.loading=EIO")
    with pytest.raises(OSError, match="Input/output"):
        asyncio.run(ask(lambda: 7))
    pool.shutdown()
    with pytest.raises(RuntimeError):  # nobody is left waiting for ever
        asyncio.run(ask(lambda: 7))


def test_a_round_that_fails_is_counted_and_the_next_one_works() -> None:
    part = Component("logs")
    failpoints.arm("thread.logs=EIO@1")
    rounds: list[int] = []
    part.round(lambda: rounds.append(1))
    assert (rounds, down()) == ([], ["logs"])
    part.round(lambda: rounds.append(2))
    assert rounds == [2]
    assert (down(), state().failures) == ([], {"logs": 1})


def test_what_a_callback_raises_is_counted() -> None:
    async def run() -> None:
        supervision.watch_event_loop()
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert state().failures == {"event loop": 1}


def test_of_tasks_that_belong_together_one_error_ends_all_and_is_counted() -> None:
    ended: list[str] = []

    async def stay() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("http")

    async def fail() -> None:
        raise OSError("no")

    async def run() -> None:
        await together(http=stay(), grpc=fail())

    with pytest.raises(ExceptionGroup):
        asyncio.run(run())
    assert ended == ["http"]
    assert state().failures == {"grpc": 1}


def test_processes_read_from_each_other_what_failed(tmp_path: Path) -> None:
    report_to(tmp_path, "supervisor")
    Component("watch").failed(OSError("no"))
    assert states(tmp_path)["supervisor"].down == ["watch"]
    gone = supervision.ProcessState(pid=2**22 + 1, failures={"follow": 2}, down=["follow"])
    (tmp_path / f"worker-0{supervision.SUFFIX}").write_bytes(msgspec.json.encode(gone))
    (tmp_path / f"torn{supervision.SUFFIX}").write_bytes(b"{")
    found = states(tmp_path)
    assert (found["worker-0"].failures, found["worker-0"].down) == ({"follow": 2}, [])
    assert (found["supervisor"].pid, found["supervisor"].failures) == (os.getpid(), {"watch": 1})
    assert "torn" not in found


def test_a_state_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    report_to(tmp_path / "gone", "worker-0")
    Component("follow").failed(OSError("no"))
    assert down() == ["follow"]
