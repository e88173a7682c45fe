"""Supervised threads and tasks: an error in one is logged and counted, and the work is restarted.

Every thread, pool and task of ours is started here (a test looks for others). While one that the process needs is down, from its
error until it works again, `down()` names it and the process reports itself as not ready. With `report_to` the counts are also
written to a file, from which the other processes of a server read them.
"""

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import LoopwrightError
from loopwright.base.files import replace_file
from loopwright.base.log_lines import say

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
SUFFIX = ".threads.json"

_T = TypeVar("_T")


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """State of a process's threads and tasks: errors so far by name, and the needed ones that are down now."""

    pid: int
    failures: dict[str, int] = {}
    down: list[str] = []


class _Registry:
    """The parts of this process that failed or are down. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()
        self._down: dict[int, Component] = {}
        self._path: Path | None = None

    def failed(self, part: "Component", *, down: bool) -> None:
        with self._lock:
            self._failures[part.name] += 1
            if down and part.needed:
                self._down[id(part)] = part
            self._write()

    def works(self, part: "Component") -> None:
        with self._lock:
            self._down.pop(id(part), None)
            self._write()

    def state(self) -> ProcessState:
        with self._lock:
            return self._state()

    def report_to(self, path: Path | None) -> None:
        with self._lock:
            self._path = path
            self._write()

    def _state(self) -> ProcessState:
        down = sorted({part.name for part in self._down.values()})
        return ProcessState(pid=os.getpid(), failures=dict(self._failures), down=down)

    def _write(self) -> None:
        if self._path is None:
            return
        with suppress(OSError):  # no room, or no descriptor to be had: with the next change
            replace_file(self._path, msgspec.json.encode(self._state()), durable=False)


_registry = _Registry()


def state() -> ProcessState:
    """Failures in this process so far, and threads that are down now."""
    return _registry.state()


def down() -> list[str]:
    """The needed threads and tasks of this process that are down, sorted."""
    return _registry.state().down


def report_to(folder: Path, process: str) -> None:
    """From now on write the state of this process into `folder`, under its name, whenever it changes."""
    _registry.report_to(folder / f"{process}{SUFFIX}")


def states(folder: Path) -> dict[str, ProcessState]:
    """States of the processes that report into `folder`, by name; a process that has ended has nothing down."""
    found = {}
    for path in sorted(folder.glob(f"[!.]*{SUFFIX}")):
        with suppress(OSError, ValueError):  # it was removed just now
            each = msgspec.json.decode(path.read_bytes(), type=ProcessState)
            alive = Path(f"/proc/{each.pid}").exists()
            found[path.name.removesuffix(SUFFIX)] = each if alive else msgspec.structs.replace(each, down=[])
    return found


class Component:
    """One thing of a process that must go on. `needed`: while it is down, the process is not ready."""

    def __init__(self, name: str, *, needed: bool = True) -> None:
        self.name, self.needed, self._failing = name, needed, False

    def failed(self, error: BaseException | str, *, down: bool = True) -> None:
        """Record a failure: count it, and log it unless `error` is "". With `down` the part counts as down until `works`. Never raises."""
        self._failing = down
        _registry.failed(self, down=down)
        why = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        with suppress(Exception):
            if why:
                again = " and is begun again" if down else ""
                say(f"thread.{self.name}", f"{self.name} failed{again}: {why}", logging.ERROR)

    def works(self) -> None:
        """Record that it works, or has ended in order."""
        if self._failing:
            self._failing = False
            _registry.works(self)

    def round(self, work: Callable[[], object]) -> None:
        """Run one round of a loop: an error is logged and counted, and the loop goes on."""
        try:
            failpoints.hit(f"thread.{self.name}")
            work()
        except Exception as error:  # noqa: BLE001  # the loop goes on after any error
            self.failed(error)
        else:
            self.works()


class Repeating:
    """A thread that calls `step` every `seconds` until `stop`, or until `step` returns False.

    A step that raises is called again after a pause of 0.1 s, 0.2 s ... 5 s. `at_once`: the first step comes without waiting; `at_last`: one more comes after `stop`. A step
    that `blocks` (waits for something outside) counts as working once it has begun again, any other once it has returned.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], object],
        seconds: float = 0.0,
        *,
        needed: bool = True,
        at_once: bool = False,
        at_last: bool = False,
        blocks: bool = False,
    ) -> None:
        self._part, self._step, self._seconds = Component(name, needed=needed), step, seconds
        self._first, self._at_last = 0.0 if at_once else seconds, at_last
        self._blocks = blocks
        self.over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin. Where the system has no thread to give, that is logged and counted, and the next `start` tries again."""
        thread = threading.Thread(target=self._run, name=self._part.name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._part.failed(error)
        else:
            self._thread = thread
        return self

    @property
    def started(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None

    def stop(self, seconds: float | None = None) -> None:
        """End it after the present step, and wait for that (at most `seconds`)."""
        self.over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _run(self) -> None:
        wait, pause = self._first, FIRST_PAUSE
        while not self.over.wait(wait):
            try:
                failpoints.hit(f"thread.{self._part.name}")
                if self._blocks:
                    self._part.works()
                if self._step() is False:
                    break
            except BaseException as error:  # noqa: BLE001  # the thread goes on after any error, also SystemExit
                self._part.failed(error)
                wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
            else:
                self._part.works()
                wait, pause = self._seconds, FIRST_PAUSE
        if self._at_last:
            self._part.round(self._step)
        self._part.works()


def start(name: str, work: Callable[[], object], *, daemon: bool = True) -> threading.Thread:
    """Start a thread for one piece of work; its exception is logged and counted. Raises RuntimeError where no thread can be started."""
    part = Component(name, needed=False)

    def run() -> None:
        try:
            failpoints.hit(f"thread.{name}")
            work()
        except BaseException as error:  # noqa: BLE001  # a thread has no caller to raise to
            part.failed(error, down=False)

    thread = threading.Thread(target=run, name=name, daemon=daemon)
    thread.start()
    return thread


class Pool(ThreadPoolExecutor):
    """A thread pool. An exception of the work is in its future and, unless it is an error of ours, logged and counted."""

    def __init__(self, name: str, threads: int) -> None:
        super().__init__(threads, name)
        self._part = Component(name, needed=False)

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> "Future[_T]":
        """See `ThreadPoolExecutor.submit`."""
        return super().submit(self._call, fn, *args, **kwargs)

    async def call(self, work: Callable[..., _T], *args: Any) -> _T:
        """Run `work` in the pool and await it."""
        return await asyncio.wrap_future(self.submit(work, *args))

    def run(self, work: Callable[[], _T], done: Callable[[_T], None], failed: Callable[[Exception], None]) -> None:
        """Run `work` in the pool; then call `done` with its result, or `failed` with its exception, in the running event loop."""
        loop = asyncio.get_running_loop()

        def deliver(future: "Future[_T]") -> None:
            if future.cancelled():
                return
            error = future.exception()
            with suppress(RuntimeError):  # the event loop is closed: nobody is waiting
                if error is None:
                    loop.call_soon_threadsafe(done, future.result())
                else:
                    loop.call_soon_threadsafe(failed, error if isinstance(error, Exception) else RuntimeError(repr(error)))

        try:
            self.submit(work).add_done_callback(deliver)
        except RuntimeError as error:  # no thread is available
            self._part.failed(error, down=False)
            loop.call_soon(failed, error)

    def _call(self, fn: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        try:
            failpoints.hit(f"thread.{self._part.name}")
            return fn(*args, **kwargs)
        except LoopwrightError:  # a normal answer, for the future's caller
            raise
        except BaseException as error:
            self._part.failed(error, down=False)
            raise


def watch_event_loop() -> None:
    """Log and count exceptions of callbacks and tasks of the running event loop that nobody awaits."""
    part = Component("event loop", needed=False)

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        part.failed(context.get("exception") or str(context.get("message")), down=False)

    asyncio.get_running_loop().set_exception_handler(handle)


async def together(**work: Awaitable[object]) -> None:
    """Await several things at once, by name. Where one raises, that is logged and counted, the others are cancelled, and it is raised.

    For tasks that the process cannot do without: it ends with them, and its supervisor restarts it.
    """

    async def run(name: str, one: Awaitable[object]) -> None:
        try:
            failpoints.hit(f"thread.{name}")
            await one
        except Exception as error:
            Component(name).failed(error)
            raise

    async with asyncio.TaskGroup() as group:
        for name, one in work.items():
            group.create_task(run(name, one), name=name)
