"""Requests to answers: one graph run for what came together, the log, repeated requests. One per worker process."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from loopwright.deploy.context import ContextStore
from loopwright.deploy.outcome import Accepted
from loopwright.deploy.recent import Recent
from loopwright.deploy.services import Services, Watcher
from loopwright.deploy.shelf import BUDGET
from loopwright.deploy.vitals import Vitals
from loopwright.records import failpoints
from loopwright.records.clock import Clock
from loopwright.records.errors import LogUnavailable, LoopwrightError, NotFound, RequestConflict, Unavailable
from loopwright.records.graph import microseconds
from loopwright.records.ids import new_ids
from loopwright.records.packages import Packages
from loopwright.records.predictions.log import LogWriter
from loopwright.records.predictions.record import Prediction
from loopwright.records.predictions.segment import log_folder

Kind = Literal["predictions", "outcomes"]
KINDS: tuple[Kind, ...] = ("predictions", "outcomes")


class Ask(NamedTuple):
    """One request: its rows, and the ids the client gave them, if any. A taken id is an error only where `exact`.

    After `until` (`time.perf_counter`) the heuristic answers.
    """

    rows: list[dict[str, Any]]
    ids: list[str] | None = None
    exact: bool = True
    until: float = inf


class Router(Services):
    """The loops in service, answering. `refresh` may be called meanwhile, in another thread."""

    def __init__(
        self,
        home: Path,
        packages: Packages,
        online: ContextStore,
        clock: Clock,
        watcher: Watcher | None = None,
        *,
        budget: int = BUDGET,
        vitals: Vitals | None = None,
    ) -> None:
        super().__init__(home, packages, online, clock, watcher, budget=budget, vitals=vitals)
        self._writers: dict[tuple[str, str], LogWriter] = {}
        self._writing = threading.Lock()
        self._noted = _Noted()

    def answer(self, loop: str, asks: Sequence[Ask]) -> list[list[Prediction] | LoopwrightError]:
        """Answer several requests of one loop together, in one write to the log; an answer or an error for each.

        What is answered is logged, unless the log cannot be written and the loop says to serve all the same.
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

    def _answer(self, loop: str, asks: Sequence[Ask], seconds: float) -> list[list[Prediction] | LoopwrightError]:
        service = self.service(loop)
        if service.durable:
            self._note_lost(loop)
        now = self._clock.now()
        batch = _Batch(rows=[], ids=[], asked=[], places={}, fresh=iter(new_ids(now, sum([len(ask.rows) for ask in asks]))))
        slots = [_slots(service.recent, ask, batch) for ask in asks]
        answers: list[Prediction] = []
        if batch.rows:
            left = seconds if seconds < inf else None
            try:
                answers = service.segments.answer(batch.rows, ids=batch.ids, at_us=microseconds(now), seconds=left)
            except Unavailable as error:
                return [error] if len(asks) == 1 else [self.answer(loop, [ask])[0] for ask in asks]
            try:
                self._append(loop, "predictions", answers)
            except LogUnavailable as error:
                self._watcher.unlogged(loop, len(answers))
                if service.refuse_unloggable:
                    return [slot if isinstance(slot, LoopwrightError) else error for slot in slots]
            if batch.places:
                for answer, asked in zip(answers, batch.asked, strict=True):
                    if asked is not None:
                        service.recent.keep(answer, asked)
        return [_found(slot, answers) for slot in slots]

    def accept(self, loop: str, body: bytes, provenance: str) -> list[Accepted]:
        """Check and log posted outcomes. Raises LoopNotFound, LogUnavailable, and what `OutcomeDecoder` raises."""
        service = self.service(loop)
        if service.outcomes is None:
            raise NotFound("outcome contract of loop", loop, next_step="run a turn, so that the ledger knows the loop")
        if service.durable:
            self._note_lost(loop)
        accepted = service.outcomes(body, received_at=microseconds(self._clock.now()), provenance=provenance)
        self._append(loop, "outcomes", [a.row for a in accepted])
        failpoints.hit("outcome.stored")
        return accepted

    def synced(self, loop: str) -> Callable[[], None] | None:
        """None where the loop's durability is `process`; else what blocks until all that was appended for it is on the disk.

        To be asked for after `answer` or `accept`, in the same thread; called in any, by several at once, who share the work. What
        is called raises LogUnavailable if anything of the loop was lost since that thread began to answer. Raises LoopNotFound.
        """
        if not self.service(loop).durable:
            return None
        writers = {kind: self._writer(loop, kind) for kind in KINDS}
        marks = [(writer, writer.mark(self._noted.lost.pop((loop, kind), None))) for kind, writer in writers.items()]

        def wait() -> None:
            for writer, mark in marks:
                writer.sync(mark)

        return wait

    # --- the log -------------------------------------------------------------------------------------------------

    def _append(self, loop: str, kind: Kind, records: Any) -> None:
        (self._writers.get((loop, kind)) or self._writer(loop, kind)).append(records)

    def _writer(self, loop: str, kind: Kind) -> LogWriter:
        with self._writing:
            writer = self._writers.get((loop, kind))
            if writer is None:
                writer = LogWriter(log_folder(self._home, loop), kind, losing=lambda: self._forget(loop))
                self._writers[loop, kind] = writer
            return writer

    def _note_lost(self, loop: str) -> None:
        """Remember for `synced` what had been lost before this thread began, so that no answer of before is taken for logged."""
        for kind in KINDS:
            self._noted.lost.setdefault((loop, kind), self._writer(loop, kind).lost)

    def _forget(self, loop: str) -> None:
        if (service := self._loops.get(loop)) is not None:
            service.recent.clear()

    def tick(self) -> None:
        """Let the logs seal what is old enough; to be called about once a second."""
        for writer in list(self._writers.values()):
            with contextlib.suppress(LogUnavailable):  # counted and told when rows are to be written
                writer.tick()

    def close(self) -> None:
        """Seal the logs."""
        for writer in list(self._writers.values()):
            writer.close()


class _Noted(threading.local):
    """Of each loop and kind how often something had been lost when this thread began to answer what it did not ask `synced` for."""

    def __init__(self) -> None:
        self.lost: dict[tuple[str, Kind], int] = {}


class _Batch(NamedTuple):
    """Rows to be answered in one run: their ids, the digest of each request whose id the client gave, ids to places, and fresh ids."""

    rows: list[dict[str, Any]]
    ids: list[str]
    asked: list[int | None]
    places: dict[str, int]
    fresh: Iterator[str]


def _slots(recent: Recent, ask: Ask, batch: _Batch) -> slice | list[Prediction | int] | RequestConflict:
    """Each row's earlier answer, or its place in the batch, where it is put. A conflict leaves the batch as it was."""
    first, count = len(batch.rows), len(ask.rows)
    if ask.ids is None:
        batch.rows.extend(ask.rows)
        batch.ids.extend(islice(batch.fresh, count))
        batch.asked.extend([None] * count)
        return slice(first, first + count)
    digests = [hash(msgspec.msgpack.encode(row)) for row in ask.rows]
    slots: list[Prediction | int] = []
    ids = list(ask.ids)
    try:
        earlier = [_earlier(recent, batch, id, asked) for id, asked in zip(ids, digests, strict=True)]
    except RequestConflict as error:
        if ask.exact:
            return error
        ids, earlier = list(islice(batch.fresh, count)), [None] * count
    for row, id, asked, found in zip(ask.rows, ids, digests, earlier, strict=True):
        if found is None:
            found = batch.places[id] = len(batch.rows)
            batch.rows.append(row)
            batch.ids.append(id)
            batch.asked.append(asked)
        slots.append(found)
    return slots


def _found(
    slot: slice | list[Prediction | int] | LoopwrightError, answers: list[Prediction]
) -> list[Prediction] | LoopwrightError:
    if isinstance(slot, slice):
        return answers[slot]
    return slot if isinstance(slot, LoopwrightError) else [answers[a] if isinstance(a, int) else a for a in slot]


def _earlier(recent: Recent, batch: _Batch, id: str, asked: int) -> Prediction | int | None:
    place = batch.places.get(id)
    if place is None:
        return recent.find(id, asked)
    if batch.asked[place] != asked:
        raise RequestConflict(id)
    return place
