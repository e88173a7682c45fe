"""Answers requests by a release: each row goes to the package of its segment, every other row to the arm of its unit.

Segment packages are loaded on first use, into the cache that all loops share. Where one cannot
be loaded, or cannot answer at all, the arms answer instead (flag `missing_segment`); also, temporarily, where loading
it would delay the request: a request loads packages for a bounded time, the rest are loaded in the background.
"""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from loopwright.base.clock import Clock
from loopwright.base.errors import LoopwrightError, PackageRefused, Unavailable
from loopwright.deploy.serving.arms import Arms, Ids, Moments, Rows, in_groups
from loopwright.deploy.serving.package_cache import PackageCache
from loopwright.deploy.serving.predictor import Predictor
from loopwright.records.declarations import Column
from loopwright.records.prediction import Prediction
from loopwright.records.releases import ReleaseState
from loopwright.stores.packages.store import Package

RETRY_SECONDS = 5.0
LOAD_SECONDS = 0.2
"""Time that a request may spend on loading packages; it loads at least one."""

SWITCH_SECONDS = 0.5
"""Time that a switch may spend on loading packages, and time that background loading may delay the next request."""

MISSING = "missing_segment"


class SegmentRouter:
    """The packages of one release state: `arms` are loaded, segment packages come from the `package_cache`.

    `refused` is called with the reason why a package could not be loaded. New packages of segments in use under `before` are
    loaded first, so that a switch does not delay requests. An answer may load packages for `load_seconds`; the packages that
    it, or a switch, had to skip are loaded by `load`.
    """

    def __init__(
        self,
        state: ReleaseState,
        arms: Arms,
        package_cache: PackageCache,
        clock: Clock,
        refused: Callable[[str], None],
        before: "SegmentRouter | None" = None,
        load_seconds: float = float("inf"),
    ) -> None:
        self._column, self._packages, self._arms = state.fleet, state.segments, arms
        self._package_cache, self._clock, self._refused = package_cache, clock, refused
        self._failed: dict[str, float] = {}
        self._generation = state.generation
        self._wanted: dict[str, str] = {}
        self._load_seconds = load_seconds
        self._loading = threading.Lock()
        asked: set[str] = before._lawful if before is not None else set()
        self._lawful: set[str] = asked & set(state.segments.values())
        """Requested packages that are valid for their segments."""
        if before is not None:
            asked_for = {s: d for s, d in state.segments.items() if before._packages.get(s) in asked}
            self._wanted.update({digest: segment for segment, digest in asked_for.items() if digest not in self._lawful})
            self.load()

    def load(self) -> None:
        """Load packages that answers had to skip, for a bounded time; call it repeatedly, in a thread of its own."""
        until = self._clock.monotonic() + SWITCH_SECONDS
        for digest, segment in list(self._wanted.items()):
            if self._clock.monotonic() > until:
                return
            self._ready(segment, digest)
            self._wanted.pop(digest, None)

    @property
    def waits(self) -> bool:
        """Whether answers had to leave something to `load`."""
        return bool(self._wanted)

    @property
    def loaded(self) -> list[str]:
        """The packages of segments that are in memory."""
        return sorted(digest for digest in self._lawful if digest in self._package_cache)

    def answer(self, rows: Rows, *, ids: Ids = None, at_us: Moments = None, seconds: float | None = None) -> list[Prediction]:
        """Answer N rows in order, with one graph run per package. Otherwise as `Predictor.answer`."""
        if not self._packages:
            return self._arms.answer(rows, ids=ids, at_us=at_us, seconds=seconds)
        until = self._clock.monotonic() + self._load_seconds
        return in_groups([self._segment(row) for row in rows], rows, ids, at_us, partial(self._answer, until, seconds))

    def _segment(self, row: Mapping[str, Any]) -> str | None:
        """The segment of a row if it has a package of its own."""
        value = row.get(self._column)
        if value is None:
            return None
        text = str(value)
        return text if text in self._packages else None

    def _answer(
        self, until: float, seconds: float | None, segment: str | None, rows: Rows, ids: Ids, at_us: Moments
    ) -> list[Prediction]:
        if segment is None:
            return self._arms.answer(rows, ids=ids, at_us=at_us, seconds=seconds)
        predictor = self._in_time(segment, self._packages[segment], until)
        if predictor is not None:
            try:
                return predictor.answer(rows, ids=ids, at_us=at_us, seconds=seconds, generation=self._generation)
            except Unavailable:  # its model and its heuristic have both failed
                pass
        answers = self._arms.answer(rows, ids=ids, at_us=at_us, seconds=seconds)
        for answer in answers:
            answer.flags.append(MISSING)
        return answers

    def _in_time(self, segment: str, digest: str, until: float) -> Predictor | None:
        """The predictor of a package; None if it is not loaded and no time is left."""
        found = self._cached(digest)
        if found is None and self._clock.monotonic() > until:
            self._wanted[digest] = segment
            return None
        return found or self._ready(segment, digest)

    def _cached(self, digest: str) -> Predictor | None:
        return self._package_cache.find(digest) if digest in self._lawful else None

    def _ready(self, segment: str, digest: str) -> Predictor | None:
        """The predictor of a package, loaded if necessary; None while it cannot be loaded."""
        found = self._cached(digest)
        if found is not None:
            return found
        with self._loading:
            found = self._cached(digest)
            failed = self._failed.get(digest)
            if found is not None or (failed is not None and self._clock.monotonic() - failed < RETRY_SECONDS):
                return found
            self._arms.touch()  # the loop's own package must not be evicted for this one
            try:
                found = self._package_cache.load(digest)
                check_segment(found.package, self._arms.champion.package, self._column, segment)
                self._lawful.add(digest)
            except Exception as error:  # noqa: BLE001  # a runtime that chokes on a package must not end the answering
                found = None
                self._failed[digest] = self._clock.monotonic()
                why = str(error) if isinstance(error, LoopwrightError) else f"it cannot be loaded: {type(error).__name__}"
                self._refused(f"segment {segment[:80]!r}, answered by the loop's own package: {why}")
            return found


def check_segment(package: Package, own: Package, column: str, segment: str) -> None:
    """Raise PackageRefused unless the package is made for this segment and fits the loop's `own` package."""
    manifest = package.manifest
    if manifest.segment is None or (manifest.segment.column, manifest.segment.value) != (column, segment):
        made = f"{manifest.segment.column}={manifest.segment.value[:80]}" if manifest.segment is not None else "the whole loop"
        raise PackageRefused(package.digest, f"it was made for {made}, not for {column}={segment[:80]}")
    check_contract(package, own)


def check_contract(package: Package, own: Package) -> None:
    """Raise PackageRefused unless a package accepts the requests of its loop, whose contract is that of the champion `own`."""
    manifest = package.manifest
    if manifest.loop != own.manifest.loop:
        raise PackageRefused(package.digest, f"it was made for loop {manifest.loop!r}, not {own.manifest.loop!r}")
    if manifest.output.task != own.manifest.output.task:
        raise PackageRefused(package.digest, f"it is of task {manifest.output.task}, not {own.manifest.output.task}")
    mine, theirs = manifest.request, own.manifest.request
    if differ := sorted(name for name in {**mine, **theirs} if not _takes(mine.get(name), theirs.get(name))):
        raise PackageRefused(package.digest, f"its contract differs from the loop's package in {', '.join(differ)[:200]}")


def _takes(column: Column | None, requested: Column | None) -> bool:
    """Whether a package with this column accepts every value that the loop's own package allows in a request.

    A package requires only the columns that its features use, so a package of another turn may require fewer.
    """
    if (
        column is None
        or requested is None
        or (requested.nullable and not column.nullable)
        or (requested.may_lack and not column.may_lack)
    ):
        return False
    freedom = {name: getattr(requested, name) for name in ("nullable", "optional", "retired")}
    return msgspec.structs.replace(column, **freedom) == requested
