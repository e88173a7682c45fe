"""A bounded thread pool for requests of the control port: few at once, a short queue, a timeout."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from loopwright.base.errors import Overloaded, Unavailable
from loopwright.base.supervision import start

T = TypeVar("T")


class Slots:
    """Runs calls in at most `at_once` threads; at most `waiting` more are queued, the rest are refused at once.

    A call that waits longer than `seconds` (0: for ever) is refused too. Its thread finishes and holds its slot until
    then, so that a hanging database blocks at most `at_once` threads.
    """

    def __init__(self, at_once: int, *, waiting: int, seconds: float) -> None:
        self._at_once, self._waiting, self._seconds = at_once, waiting, seconds
        self._slots = asyncio.Semaphore(at_once)
        self._asked = 0
        """Running and waiting calls, and threads whose caller has given up."""

    async def __call__(self, call: Callable[[], T], what: str) -> T:
        """Run `call` and return its result. Raises Overloaded when the queue is full, Unavailable on timeout, and exceptions of `call`."""
        if self._asked >= self._at_once + self._waiting:
            raise Overloaded(f"{what}: {self._at_once} others are being answered and {self._waiting} wait; try again")
        self._asked += 1
        try:
            async with asyncio.timeout(self._seconds or None):
                await self._slots.acquire()
        except TimeoutError:
            self._asked -= 1
            raise self._late(what) from None
        except BaseException:
            self._asked -= 1
            raise
        try:
            done = self._start(call)
        except RuntimeError as error:  # no thread to be had
            self._slots.release()
            self._asked -= 1
            raise Overloaded(f"{what}: no thread is available; try again") from error
        try:
            async with asyncio.timeout(self._seconds or None):
                return await done
        except TimeoutError:
            if done.done() and not done.cancelled():  # the call's own
                raise
            raise self._late(what) from None

    def _late(self, what: str) -> Unavailable:
        return Unavailable(f"{what}: not there within {self._seconds:.0f} s, the ledger or the lake is slow; try again")

    def _start(self, call: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def end(value: Any, error: BaseException | None) -> None:
            self._slots.release()
            self._asked -= 1
            if not done.done():
                if error is None:
                    done.set_result(value)
                else:
                    done.set_exception(error)

        def run() -> None:
            value, error = None, None
            try:
                value = call()
            except BaseException as raised:  # noqa: BLE001  # raised again in the caller
                error = raised
            with suppress(RuntimeError):  # the process ends, and no caller waits
                loop.call_soon_threadsafe(end, value, error)

        start("control", run)
        return done
