"""Loops that are not in memory yet: the requests for one wait while its package is loaded in a thread; all others are answered."""

import asyncio
import gc
from collections.abc import Callable

from loopwright.base.errors import LoopNotFound, Overloaded
from loopwright.base.supervision import Pool
from loopwright.deploy.serving.registry import Registry

MAX_WAITING = 1024

Then = Callable[[Exception | None], None]


def settle() -> None:
    """Exclude loaded objects from garbage collection: with thousands of packages a full collection takes 0.3 s."""
    gc.collect(1)
    gc.freeze()


class Loading:
    """Loads one loop at a time, in the order of requests. Used in the event loop's thread; `close` waits for the last."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._thread = Pool("loading", 1)
        self._waiting: dict[str, list[Then]] = {}
        self._count = 0

    def close(self) -> None:
        """Cancel loads that have not started, and wait for the running one."""
        self._thread.shutdown(cancel_futures=True)

    def when_ready(self, loop: str, then: Then) -> None:
        """Call `then` once the loop is ready, or with the error that it is not. Raises LoopNotFound, and Overloaded when too many wait."""
        if not self._registry.knows(loop):
            raise LoopNotFound(loop, self._registry.loops[:5])
        if self._count >= MAX_WAITING:
            raise Overloaded("the server is overloaded: too many requests wait for a package to load; try again")
        self._count += 1
        waiting = self._waiting.get(loop)
        if waiting is not None:
            waiting.append(then)
            return
        self._waiting[loop] = [then]

        def work() -> None:
            self._registry.load(loop)
            settle()

        self._thread.run(work, lambda _: self._loaded(loop, None), lambda error: self._loaded(loop, error))

    async def ready(self, loop: str) -> None:
        """Wait until the loop is ready. Raises as `when_ready`, and the errors of loading it."""
        if self._registry.ready(loop):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def then(error: Exception | None) -> None:
            if future.done():  # the client went away
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.when_ready(loop, then)
        await future

    def _loaded(self, loop: str, error: Exception | None) -> None:
        for then in self._waiting.pop(loop):
            self._count -= 1
            then(error)
