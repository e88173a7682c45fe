"""From requests to answers: one graph run per batch, the log, repeated requests. One engine per worker process."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from math import inf
from typing import Any, Literal, NamedTuple

import msgspec

from loopwright.base import failpoints
from loopwright.base.clock import microseconds
from loopwright.base.errors import LogUnavailable, LoopwrightError, NotFound, Overloaded, RequestConflict, Unavailable
from loopwright.base.ids import new_ids
from loopwright.base.supervision import start
from loopwright.deploy.serving.heartbeat import FOLDER
from loopwright.deploy.serving.idempotency import Claim, EarlierAnswer, IdempotencyStore
from loopwright.deploy.serving.outcomes import CheckedOutcome
from loopwright.deploy.serving.registry import InService, Registry
from loopwright.records.prediction import Prediction
from loopwright.stores.prediction_log.damage import noted
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter, Retired

Kind = Literal["predictions", "outcomes"]
KINDS: tuple[Kind, ...] = ("predictions", "outcomes")
MAX_SEALS = 16
QUIET_SECONDS = 60.0
"""Idle time after which a loop's log is closed, to free its file: there may be thousands of loops."""


class PredictionRequest(NamedTuple):
    """One request: its rows, and the client's ids of the rows, if any; `request` is the request's own id, if not the first.

    A taken id is an error only where `exact`; else the rows get other ids.
    After `until` (`time.perf_counter`) the heuristic answers. `gone`: the client has disconnected; the rows are flagged.
    """

    rows: list[dict[str, Any]]
    ids: list[str] | None = None
    exact: bool = True
    until: float = inf
    request: str = ""
    gone: bool = False
    of_file: bool = False
    """Rows of a file are logged as such, and not remembered for the same ids again: they would push out the requests that are."""


UNDELIVERED = "undelivered"
"""Flag of answers whose client had disconnected (a reset connection, a cancelled call)."""


class ServingEngine:
    """The loops of a `registry`, answering. The registry may be refreshed meanwhile, in another thread."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._home, self._clock = registry.home, registry.clock
        self._writers: dict[tuple[str, Kind], LogWriter] = {}
        self._writing = threading.Lock()
        self._turn = 0
        self._retiring: threading.Thread | None = None
        self._noted = _Noted()
        self._recent = IdempotencyStore(self._home / FOLDER / "requests")

    def answer(self, loop: str, asks: Sequence[PredictionRequest]) -> list[list[Prediction] | LoopwrightError]:
        """Answer several requests of one loop together, in one write to the log; an answer or an error for each.

        Answers are logged, unless the log cannot be written and the loop is declared to serve anyway.
        Raises LoopNotFound.
        """
        begun = time.perf_counter()
        untils = [ask.until for ask in asks]
        if min(untils) > begun:
            return self._answer(loop, asks, max(untils) - begun)
        found: dict[int, list[Prediction] | LoopwrightError] = {}
        for late in (False, True):
            places = [i for i, until in enumerate(untils) if (until <= begun) is late]
            if places:
                seconds = 0.0 if late else max(untils) - begun
                found.update(zip(places, self._answer(loop, [asks[i] for i in places], seconds), strict=True))
        return [found[i] for i in range(len(asks))]

    def _answer(self, loop: str, asks: Sequence[PredictionRequest], seconds: float) -> list[list[Prediction] | LoopwrightError]:
        service = self.registry.service(loop)
        if service.durable:
            self._note_lost(loop)
        now = self._clock.now()
        fresh = iter(new_ids(now, sum([len(ask.rows) for ask in asks])))
        batch = _Batch(rows=[], ids=[], fresh=fresh, claims=[], places={}, again=[])
        slots = [
            batch.put(ask.rows, ask.ids) if ask.ids is None or ask.of_file else self._slot(service, loop, ask, ask.ids, batch)
            for ask in asks
        ]
        answers: list[Prediction] = []
        try:
            if batch.rows:
                left = seconds if seconds < inf else None
                answers = service.segments.answer(batch.rows, ids=batch.ids, at_us=microseconds(now), seconds=left)
                for claim, place in batch.claims:
                    self._recent.keep(claim, answers[place])
            if any(ask.gone or ask.of_file for ask in asks):
                _mark(asks, slots, answers)
            if answers or batch.again:
                self._append(loop, "predictions", [*answers, *batch.again] if batch.again else answers)
        except Unavailable as error:
            unlogged = isinstance(error, LogUnavailable)
            if unlogged:
                self.registry.watcher.unlogged(loop, len(answers) + len(batch.again))
            if not unlogged or service.refuse_unloggable:
                self._leave(batch)
                if unlogged or len(asks) == 1:
                    return [slot if isinstance(slot, LoopwrightError) else error for slot in slots]
                return [self.answer(loop, [ask])[0] for ask in asks]
        except BaseException:
            self._leave(batch)
            raise
        for claim, _ in batch.claims:
            self._recent.logged(claim)
        return [answers[slot] if isinstance(slot, slice) else slot for slot in slots]

    def _slot(
        self, service: InService, loop: str, ask: PredictionRequest, ids: list[str], batch: "_Batch"
    ) -> slice | list[Prediction] | LoopwrightError:
        """The position of an identified request's rows in the batch, to which they are added; or its earlier answers; or a conflict."""
        id, asked = ask.request or ids[0], digest(ask.rows)
        there = batch.places.get(id)
        try:
            if there is not None:
                if there[0] != asked:
                    raise RequestConflict(id)
                return there[1]
            found = self._recent.claim(loop, id, asked)
        except (RequestConflict, Overloaded) as error:
            return error if ask.exact else batch.put(ask.rows, None)
        if isinstance(found, EarlierAnswer):
            if not found.logged or (service.durable and not found.own):  # the worker that answered may not have synced it
                batch.again.extend(found.answers)
            return found.answers
        place = batch.put(ask.rows, ids)
        batch.claims.append((found, place))
        batch.places[id] = asked, place
        return place

    def _leave(self, batch: "_Batch") -> None:
        for claim, _ in batch.claims:
            self._recent.leave(claim)

    def accept(self, loop: str, body: bytes, provenance: str) -> list[CheckedOutcome]:
        """Check and log posted outcomes. Raises LoopNotFound, LogUnavailable, and the errors of `OutcomeDecoder`."""
        service = self.registry.service(loop)
        if service.outcomes is None:
            raise NotFound("outcome contract of loop", loop, next_step="run a turn, so that the ledger knows the loop")
        if service.durable:
            self._note_lost(loop)
        accepted = service.outcomes(body, received_at=microseconds(self._clock.now()), provenance=provenance)
        self._append(loop, "outcomes", [a.row for a in accepted])
        failpoints.hit("outcome.stored")
        return accepted

    def synced(self, loop: str) -> Callable[[], None] | None:
        """None where the loop's durability is `process`; else a function that blocks until all appended rows are on the disk.

        Call `synced` after `answer` or `accept`, in the same thread; call its result in any thread, also concurrently: they share the
        work. It raises LogUnavailable if anything of the loop was lost since that thread began to answer. Raises LoopNotFound.
        """
        if not self.registry.service(loop).durable:
            return None
        writers = {kind: self._writer(loop, kind) for kind in KINDS}
        marks = [(writer, writer.mark(self._noted.lost.pop((loop, kind), None))) for kind, writer in writers.items()]

        def wait() -> None:
            for writer, mark in marks:
                writer.sync(mark)

        return wait

    # --- the log -------------------------------------------------------------------------------------------------

    def _append(self, loop: str, kind: Kind, records: Any) -> None:
        while True:
            writer = self._writers.get((loop, kind)) or self._writer(loop, kind)
            try:
                return writer.append(records)
            except Retired:  # just now
                self._forget((loop, kind), writer)

    def _forget(self, key: tuple[str, Kind], writer: LogWriter) -> None:
        with self._writing:
            if self._writers.get(key) is writer:
                del self._writers[key]

    def _retire(self, writers: list[tuple[tuple[str, Kind], LogWriter]]) -> None:
        for key, writer in writers:
            if writer.retire(QUIET_SECONDS):
                self._forget(key, writer)

    def _writer(self, loop: str, kind: Kind) -> LogWriter:
        with self._writing:
            writer = self._writers.get((loop, kind))
            if writer is None:
                writer = LogWriter(log_folder(self._home, loop), kind, losing=lambda: self._recent.forget(loop))
                self._writers[loop, kind] = writer
            return writer

    def _note_lost(self, loop: str) -> None:
        """Snapshot the loss counters for `synced` before this thread's answers, so that no earlier loss is missed."""
        for kind in KINDS:
            self._noted.lost.setdefault((loop, kind), self._writer(loop, kind).lost)

    def damaged(self) -> dict[str, int]:
        """Number of quarantined segments of each loop's log, as of the last upkeep."""
        return noted(self._home)

    def tick(self) -> None:
        """Let the logs seal old segments, and close idle ones; call it about once a second.

        At most `MAX_SEALS` at a time, in turns: of thousands of loops all may be due at once.
        """
        writers = list(self._writers.items())
        seals = 0
        quiet: list[tuple[tuple[str, Kind], LogWriter]] = []
        for place in range(len(writers)):
            key, writer = writers[(self._turn + place) % len(writers)]
            with contextlib.suppress(LogUnavailable):  # counted and reported at the next write
                seals += writer.tick()
            if len(quiet) < MAX_SEALS and writer.quiet(QUIET_SECONDS):
                quiet.append((key, writer))
            if seals >= MAX_SEALS:
                self._turn = (self._turn + place + 1) % len(writers)
                break
        if quiet and (self._retiring is None or not self._retiring.is_alive()):
            self._retiring = start("retire", lambda: self._retire(quiet), daemon=False)

    def close(self) -> None:
        """Seal the logs."""
        if self._retiring is not None:
            self._retiring.join()
        for writer in list(self._writers.values()):
            writer.close()
        self._recent.close()


class _Noted(threading.local):
    """Per-thread snapshot of each log writer's loss counter, taken before the first unsynced answer."""

    def __init__(self) -> None:
        self.lost: dict[tuple[str, Kind], int] = {}


class _Batch(NamedTuple):
    """A batch of rows, their ids, and fresh ones; claims and positions of identified requests; answers to log again."""

    rows: list[dict[str, Any]]
    ids: list[str]
    fresh: Iterator[str]
    claims: list[tuple[Claim, slice]]
    places: dict[str, tuple[bytes, slice]]
    again: list[Prediction]

    def put(self, rows: list[dict[str, Any]], ids: list[str] | None) -> slice:
        """Add rows, with fresh ids if they have none; returns their positions."""
        first = len(self.rows)
        self.rows.extend(rows)
        self.ids.extend(islice(self.fresh, len(rows)) if ids is None else ids)
        return slice(first, first + len(rows))


def digest(rows: list[dict[str, Any]]) -> bytes:
    """A digest of a request's rows, 16 bytes."""
    return blake2b(msgspec.msgpack.encode(rows), digest_size=16).digest()


def _mark(asks: Sequence[PredictionRequest], slots: Sequence[Any], answers: list[Prediction]) -> None:
    """Flag the rows of files, and answers whose client has gone, before they are logged."""
    for ask, slot in zip(asks, slots, strict=True):
        if not isinstance(slot, slice):
            continue
        if ask.of_file:
            answers[slot] = [msgspec.structs.replace(answer, of_file=True) for answer in answers[slot]]
        if ask.gone:
            for answer in answers[slot]:
                answer.flags.append(UNDELIVERED)
