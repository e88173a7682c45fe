"""Requests to packages: which package answers a loop, hot swap, the log, repeated requests. One per worker process.

A swap loads, checks and warms the new package beside the old one, which answers meanwhile; then one assignment puts it in
place. Requests that were taken before finish on the package they began with.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from loopwright.deploy import served as local
from loopwright.deploy.context import ContextStore
from loopwright.deploy.decode import Decoder
from loopwright.deploy.outcome import Accepted, OutcomeDecoder
from loopwright.deploy.overrun import Overruns
from loopwright.deploy.predict import Predictor
from loopwright.deploy.recent import Recent
from loopwright.deploy.segments import LOAD_SECONDS, Segments
from loopwright.records.clock import Clock
from loopwright.records.errors import LogUnavailable, LoopNotFound, LoopwrightError, NotFound, RequestConflict, Unavailable
from loopwright.records.graph import microseconds
from loopwright.records.ids import NAME, new_ids
from loopwright.records.packages import Packages
from loopwright.records.predictions.log import LogWriter
from loopwright.records.predictions.record import Prediction
from loopwright.records.predictions.segment import log_folder
from loopwright.records.releases import ReleaseState

RETRY_SECONDS = 5.0


class Ask(NamedTuple):
    """One request: its rows, and the ids the client gave them, if any. A taken id is an error only where `exact`."""

    rows: list[dict[str, Any]]
    ids: list[str] | None = None
    exact: bool = True


class InService(NamedTuple):
    """What serves one loop in this process: its own package's predictor, and with it those of its segments."""

    state: ReleaseState
    predictor: Predictor
    segments: Segments
    decode: Decoder
    outcomes: OutcomeDecoder | None
    refuse_unloggable: bool
    recent: Recent


class Watcher(NamedTuple):
    """Who is told: a package was put into service (loop, digest) or refused (loop, why), rows could not be logged (loop, how many)."""

    swapped: Callable[[str, str], None]
    refused: Callable[[str, str], None]
    unlogged: Callable[[str, int], None]


class Router:
    """The loops in service under `home` (a folder). `refresh` follows the local copies; `answer` may be called meanwhile."""

    def __init__(
        self, home: Path, packages: Packages, online: ContextStore, clock: Clock, watcher: Watcher | None = None
    ) -> None:
        self._home, self._packages, self._online, self._clock = home, packages, online, clock
        self._watcher = watcher or Watcher(lambda _loop, _digest: None, lambda _loop, _why: None, lambda _loop, _count: None)
        self._loops: dict[str, InService] = {}
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self._failed: dict[str, float] = {}
        self._writers: dict[tuple[str, str], LogWriter] = {}
        self._writing = threading.Lock()
        self._overruns = Overruns()
        self._names: dict[str, list[str]] = {}

    # --- who serves ----------------------------------------------------------------------------------------------

    @property
    def loops(self) -> list[str]:
        """The loops in service."""
        return sorted(self._loops)

    def service(self, loop: str) -> InService:
        """What serves a loop. Raises LoopNotFound."""
        found = self._loops.get(loop)
        if found is None:
            raise LoopNotFound(loop, self.loops[:5])
        return found

    def names(self, package: str) -> list[str]:
        """The names of the values of a package that was put into service in this process, also where another serves by now."""
        return self._names.get(package, [])

    def refresh(self) -> list[str]:
        """Load what changed in the local copies, and what requests could not wait for; the loops that were switched.

        A package that is refused changes nothing.
        """
        switched = []
        for path in sorted((self._home / "served").glob("*.json")):
            loop = path.name.removesuffix(".json")
            if not NAME.fullmatch(loop):
                continue
            try:
                stat = path.stat()
                stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
                retry = loop in self._failed and self._clock.monotonic() - self._failed[loop] >= RETRY_SECONDS
                if self._stamps.get(loop) == stamp and not retry:
                    continue
                self._stamps[loop] = stamp
                copy = local.read(path)
                if copy is not None:
                    self._switch(loop, copy)
                    switched.append(loop)
                self._failed.pop(loop, None)
            except Exception as error:  # noqa: BLE001  # a runtime that chokes on a package must not end the following
                self._failed[loop] = self._clock.monotonic()
                known = isinstance(error, LoopwrightError)
                self._watcher.refused(loop, str(error) if known else f"it cannot be loaded: {type(error).__name__}")
        for service in list(self._loops.values()):
            service.segments.load()
        return switched

    def _switch(self, loop: str, copy: local.Served) -> None:
        digest = copy.state.arms[0].package
        before = self._loops.get(loop)
        if before is not None and before.predictor.digest == digest:
            predictor, decode = before.predictor, before.decode
        else:
            predictor = self._load(digest)
            manifest = predictor.package.manifest
            decode = Decoder(manifest.request, optional=manifest.may_lack)
        segments = Segments(
            copy.state,
            predictor,
            self._load,
            self._clock,
            lambda why: self._watcher.refused(loop, why),
            before.segments if before is not None else None,
            LOAD_SECONDS,
        )
        self._loops[loop] = InService(
            state=copy.state,
            predictor=predictor,
            segments=segments,
            decode=decode,
            outcomes=OutcomeDecoder(copy.outcome) if copy.outcome is not None else None,
            refuse_unloggable=predictor.package.manifest.release.get("on_unloggable") == "refuse",
            recent=before.recent if before is not None else Recent(),
        )
        self._watcher.swapped(loop, digest)

    def _load(self, digest: str) -> Predictor:
        """A package made ready and tried. Raises what reading it raises, and PackageRefused."""
        predictor = Predictor(self._packages.read(digest), self._online, self._clock, self._overruns)
        self._names[digest] = predictor.package.manifest.output.names
        predictor.check_golden()
        predictor.warm()
        return predictor

    # --- answering -----------------------------------------------------------------------------------------------

    def answer(self, loop: str, asks: Sequence[Ask]) -> list[list[Prediction] | LoopwrightError]:
        """Answer several requests of one loop together, in one write to the log; an answer or an error for each.

        What is answered is logged, unless the log cannot be written and the loop says to serve all the same.
        Raises LoopNotFound.
        """
        service = self.service(loop)
        now = self._clock.now()
        batch = _Batch(rows=[], ids=[], asked=[], places={})
        slots: list[list[Prediction | int] | LoopwrightError] = []
        for ask in asks:
            try:
                slots.append(_slots(service.recent, ask, batch, now))
            except RequestConflict as error:
                slots.append(error)
        answers: list[Prediction] = []
        if batch.rows:
            try:
                answers = service.segments.answer(batch.rows, ids=batch.ids, at_us=microseconds(now))
            except Unavailable as error:
                return [error] if len(asks) == 1 else [self.answer(loop, [ask])[0] for ask in asks]
            try:
                self._append(loop, "predictions", answers)
            except LogUnavailable as error:
                self._watcher.unlogged(loop, len(answers))
                if service.refuse_unloggable:
                    return [slot if isinstance(slot, LoopwrightError) else error for slot in slots]
            for answer, asked in zip(answers, batch.asked, strict=True):
                if asked is not None:
                    service.recent.keep(answer, asked)
        return [
            slot if isinstance(slot, LoopwrightError) else [answers[a] if isinstance(a, int) else a for a in slot]
            for slot in slots
        ]

    def accept(self, loop: str, body: bytes, provenance: str) -> list[Accepted]:
        """Check and log posted outcomes. Raises LoopNotFound, LogUnavailable, and what `OutcomeDecoder` raises."""
        service = self.service(loop)
        if service.outcomes is None:
            raise NotFound("outcome contract of loop", loop, next_step="run a turn, so that the ledger knows the loop")
        accepted = service.outcomes(body, received_at=microseconds(self._clock.now()), provenance=provenance)
        self._append(loop, "outcomes", [a.row for a in accepted])
        return accepted

    # --- the log -------------------------------------------------------------------------------------------------

    def _append(self, loop: str, kind: Literal["predictions", "outcomes"], records: Any) -> None:
        writer = self._writers.get((loop, kind))
        if writer is None:
            with self._writing:
                writer = self._writers.setdefault((loop, kind), LogWriter(log_folder(self._home, loop), kind))
        writer.append(records)

    def tick(self) -> None:
        """Let the logs seal what is old enough; to be called about once a second."""
        for writer in list(self._writers.values()):
            with contextlib.suppress(LogUnavailable):  # counted and told when rows are to be written
                writer.tick()

    def close(self) -> None:
        """Seal the logs."""
        for writer in list(self._writers.values()):
            writer.close()


class _Batch(NamedTuple):
    """Rows to be answered in one run: their ids, the digest of each request whose id the client gave, and ids to places."""

    rows: list[dict[str, Any]]
    ids: list[str]
    asked: list[int | None]
    places: dict[str, int]


def _slots(recent: Recent, ask: Ask, batch: _Batch, now: datetime) -> list[Prediction | int]:
    """Each row's earlier answer, or its place in the batch, where it is put. RequestConflict leaves the batch as it was."""
    first, count = len(batch.rows), len(ask.rows)
    if ask.ids is None:
        batch.rows.extend(ask.rows)
        batch.ids.extend(new_ids(now, count))
        batch.asked.extend([None] * count)
        return list(range(first, first + count))
    digests = [hash(msgspec.msgpack.encode(row)) for row in ask.rows]
    slots: list[Prediction | int] = []
    ids = list(ask.ids)
    try:
        earlier = [_earlier(recent, batch, id, asked) for id, asked in zip(ids, digests, strict=True)]
    except RequestConflict:
        if ask.exact:
            raise
        ids, earlier = new_ids(now, count), [None] * count
    for row, id, asked, found in zip(ask.rows, ids, digests, earlier, strict=True):
        if found is None:
            found = batch.places[id] = len(batch.rows)
            batch.rows.append(row)
            batch.ids.append(id)
            batch.asked.append(asked)
        slots.append(found)
    return slots


def _earlier(recent: Recent, batch: _Batch, id: str, asked: int) -> Prediction | int | None:
    place = batch.places.get(id)
    if place is None:
        return recent.find(id, asked)
    if batch.asked[place] != asked:
        raise RequestConflict(id)
    return place
