"""Natural batching: requests that arrive while the worker is busy are answered as one batch: one graph run, one write to the log.

There is no timer: an idle worker answers at once. Between two runs the event loop gets control, so that health is answered under
any load. A durable loop's sync to disk runs in a thread, while the next batch runs.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from loopwright.base.errors import LogUnavailable, LoopNotFound, Overloaded
from loopwright.base.supervision import Pool
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.records.prediction import Prediction
from loopwright.server.api.loading import Loading
from loopwright.server.api.metrics import Metrics

MAX_WAITING_ROWS = 20_000
WAITING_SECONDS = 0.25
"""Maximum expected waiting time of a row, by the rate of recent batches, unless two batches hold all waiting rows: beyond it is 503."""

MAX_BATCH_ROWS = 256
MAX_ASIDE = 16
SYNC_THREADS = 4

Found = list[Prediction] | Exception


class PendingRequest(Protocol):
    """One request that waits for its answers."""

    @property
    def ask(self) -> PredictionRequest:
        """The rows and options of the request."""
        ...

    @property
    def gone(self) -> bool:
        """Whether its client is known to have gone."""
        ...

    def reply(self, answers: Found, /) -> Any:
        """The answer as it is sent, of the predictions or of an error. Never raises; may be called in a thread."""
        ...

    def send(self, reply: Any, /) -> None:
        """Send it; called in the loop's thread. Never raises."""
        ...


class _AnsweredBatch(NamedTuple):
    """An answered batch: its requests, the answer of each, the sync to wait for, and when it began."""

    waiting: list[PendingRequest]
    found: list[Found]
    sync: Callable[[], None] | None
    begun: float


class Batches:
    """The queue of one worker. Call `put` and `aside` in the event loop's thread; `close` waits for work in threads.

    `traced`, if set, is called for each answered request with the times when its batch began and ended.
    """

    def __init__(self, engine: ServingEngine, metrics: Metrics) -> None:
        self._engine, self._registry, self._metrics = engine, engine.registry, metrics
        self._queue: dict[str, deque[PendingRequest]] = {}
        self._scheduled = False
        self._rows = self._asides = 0
        self._most, self._pace, self._before = MAX_WAITING_ROWS, 0.0, (0.0, 0)
        self._large = Pool("large-requests", 1)
        self._syncs = Pool("log-sync", SYNC_THREADS)
        self._unsynced: dict[str, list[_AnsweredBatch]] = {}
        self.traced: Callable[[Any, Found, float, float], None] | None = None
        self.loading = Loading(engine.registry)

    def close(self) -> None:
        """Wait for large requests in threads."""
        self.loading.close()
        self._large.shutdown()
        self._syncs.shutdown()

    def put(self, loop: str, waiting: PendingRequest) -> None:
        """Let a request wait for the next batch of its loop. Raises Overloaded when too many rows wait."""
        rows = len(waiting.ask.rows)
        if self._rows + rows > self._most:
            raise Overloaded("more rows are waiting than can be held; try again")
        if rows > MAX_BATCH_ROWS:
            self.aside(lambda: waiting.reply(self.answer(loop, [waiting])[0]), waiting.send, waiting.reply)
            return
        self._rows += rows
        queue = self._queue.get(loop)
        if queue is None:
            self._queue[loop] = deque((waiting,))
        else:
            queue.append(waiting)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._drain)

    @property
    def full(self) -> bool:
        """Whether so many rows are waiting that a new request is refused before it is decoded."""
        return self._rows > self._most - MAX_BATCH_ROWS

    def aside(self, work: Callable[[], Any], done: Callable[[Any], None], failed: Callable[[Exception], Any]) -> None:
        """Run `work` in a thread, then `done` with its result in the event loop; `failed` converts its exception. Raises Overloaded."""
        if self._asides >= MAX_ASIDE:
            raise Overloaded("more large requests are waiting than can be held; try again")
        self._asides += 1

        def finish(result: Any) -> None:
            self._asides -= 1
            done(result)

        self._large.run(work, finish, lambda error: finish(failed(error)))

    def answer(self, loop: str, waiting: list[PendingRequest]) -> list[Found]:
        """Answer requests together, in this thread, and wait until the answers may leave."""
        begun = time.perf_counter()
        found = self._answered(loop, waiting)
        error = _failure(self._sync_of(loop))
        if error is not None:
            found = self._unlogged(loop, found, error)
        if self.traced is not None:
            self._trace(waiting, found, begun, time.perf_counter())
        return found

    def _answered(self, loop: str, waiting: list[PendingRequest]) -> list[Found]:
        try:
            found: list[Found] = list(
                self._engine.answer(loop, [w.ask._replace(gone=True) if w.gone else w.ask for w in waiting])
            )
        except Exception as error:  # noqa: BLE001  # every waiting request gets the error
            return [error] * len(waiting)
        self._metrics.ran(loop, [a for f in found if isinstance(f, list) for a in f])
        return found

    def _drain(self) -> None:
        """Answer one batch of the next loop in turn."""
        loop, queue = next(iter(self._queue.items()))
        waiting = [queue.popleft()]
        rows = len(waiting[0].ask.rows)
        while queue and (rows := rows + len(queue[0].ask.rows)) <= MAX_BATCH_ROWS:
            waiting.append(queue.popleft())
        del self._queue[loop]
        if queue:
            self._queue[loop] = queue  # behind the others
        self._scheduled = bool(self._queue)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._drain)
        begun = time.perf_counter()
        self._measure(begun, sum([len(w.ask.rows) for w in waiting]))
        run = _AnsweredBatch(waiting, self._answered(loop, waiting), self._sync_of(loop), begun)
        if run.sync is None:
            self._finish(run)
        elif loop in self._unsynced:
            self._unsynced[loop].append(run)  # the sync that comes after the one under way is for all of these
        else:
            self._sync(loop, [run])

    def _measure(self, begun: float, rows: int) -> None:
        """Measure the seconds per row over consecutive batches without a pause; they set the maximum number of waiting rows."""
        before, count = self._before
        self._before = (begun, rows) if self._scheduled else (0.0, 0)
        if before:
            self._pace += 0.1 * ((begun - before) / count - self._pace)
            self._most = max(2 * MAX_BATCH_ROWS, min(MAX_WAITING_ROWS, int(WAITING_SECONDS / self._pace)))

    def _finish(self, run: _AnsweredBatch) -> None:
        done = 0.0 if self.traced is None else time.perf_counter()
        for waiting, found in zip(run.waiting, run.found, strict=True):
            self._rows -= len(waiting.ask.rows)
            waiting.send(waiting.reply(found))
        if self.traced is not None:
            self._trace(run.waiting, run.found, run.begun, done)

    def _trace(self, waiting: list[PendingRequest], answers: list[Found], begun: float, done: float) -> None:
        assert self.traced is not None
        for each, its in zip(waiting, answers, strict=True):
            self.traced(each, its, begun, done)

    # --- durable loops -------------------------------------------------------------------------------------------

    def _sync_of(self, loop: str) -> Callable[[], None] | None:
        """The sync that this thread's answers wait for."""
        try:
            return self._engine.synced(loop)
        except LoopNotFound:  # since the answers it is served no longer
            return None

    def _sync(self, loop: str, runs: list[_AnsweredBatch]) -> None:
        self._unsynced[loop] = []

        def work() -> list[LogUnavailable | None]:
            return [_failure(run.sync) for run in reversed(runs)][::-1]  # the newest first: it is for those before it, too

        def failed(error: Exception) -> None:
            self._synced(loop, runs, [LogUnavailable(f"the log cannot be synced: {type(error).__name__}")] * len(runs))

        self._syncs.run(work, lambda errors: self._synced(loop, runs, errors), failed)

    def _synced(self, loop: str, runs: list[_AnsweredBatch], errors: Sequence[LogUnavailable | None]) -> None:
        following = self._unsynced.pop(loop)
        if following:
            self._sync(loop, following)
        for run, error in zip(runs, errors, strict=True):
            self._finish(run if error is None else run._replace(found=self._unlogged(loop, run.found, error)))

    def _unlogged(self, loop: str, answers: list[Found], error: LogUnavailable) -> list[Found]:
        """Answers that could not be logged durably: returned, or replaced by the error if the loop refuses such answers."""
        self._metrics.unlogged(loop, sum(len(f) for f in answers if isinstance(f, list)))
        if self._registry.knows(loop) and not self._registry.service(loop).refuse_unloggable:
            return answers
        return [f if isinstance(f, Exception) else error for f in answers]


def _failure(sync: Callable[[], None] | None) -> LogUnavailable | None:
    try:
        if sync is not None:
            sync()
    except LogUnavailable as error:
        return error
    except Exception as error:  # noqa: BLE001  # every waiting request gets an answer, whatever the error
        return LogUnavailable(f"the log cannot be written: {type(error).__name__}")
    return None
