"""Releases in service in this process: the loops, each with its package loaded, and the hot swap to another.

With few loops, all packages are loaded before the first request; with many, each on its first request, and as many
stay as the cache's memory budget holds.

A swap loads, checks and warms the new package while the old one answers; then one assignment replaces it.
Earlier requests finish on the package that they began with.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from loopwright.base import failpoints
from loopwright.base.clock import Clock
from loopwright.base.errors import LoopNotFound, LoopwrightError, Unavailable
from loopwright.deploy.example import example_request
from loopwright.deploy.serving import release_files as local
from loopwright.deploy.serving.arms import Arms
from loopwright.deploy.serving.context import ContextStore
from loopwright.deploy.serving.deadlines import Overruns
from loopwright.deploy.serving.decode import Decoder
from loopwright.deploy.serving.explanations import Explanations
from loopwright.deploy.serving.heartbeat import Heartbeat
from loopwright.deploy.serving.outcomes import OutcomeDecoder
from loopwright.deploy.serving.package_cache import BUDGET, RULE, Load, PackageCache, Shared, key_of
from loopwright.deploy.serving.predictor import Predictor
from loopwright.deploy.serving.segment_router import LOAD_SECONDS, SegmentRouter, check_contract
from loopwright.records.package import Lineage
from loopwright.records.releases import Arm, ReleaseState
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.packages.store import Packages

RETRY_SECONDS = 5.0

_READ = ("model.onnx", "heuristic.onnx", "reference.json")


class InService(NamedTuple):
    """A loop in service in this process: the predictors of its own package and of its segments."""

    state: ReleaseState
    predictor: Predictor
    segments: SegmentRouter
    decode: Decoder
    outcomes: OutcomeDecoder | None
    refuse_unloggable: bool
    durable: bool


class Watcher(NamedTuple):
    """Callbacks: packages were put into service (loop, arms) or refused (loop, reason); rows could not be logged (loop, count).

    `loaded`: a package was loaded into the cache. `stood_in`: a loop's declared package cannot be loaded, and none served here: its digest,
    the digest of the earlier one that serves instead ("" if none can), and the reason.
    """

    swapped: Callable[[str, Sequence[Arm]], None]
    refused: Callable[[str, str], None]
    unlogged: Callable[[str, int], None]
    loaded: Callable[[Load], None] = lambda _: None
    stood_in: Callable[[str, str, str, str], None] = lambda _loop, _declared, _instead, _why: None


STAND_INS = "stand-in"
"""The folder in which a server's workers record packages that serve instead of the declared ones."""


class StandIn(msgspec.Struct, frozen=True, kw_only=True):
    """The declared package of a loop, the earlier one that serves instead ("" if none can), and the reason."""

    package: str
    instead: str
    why: str


class Registry:
    """The loops in service under `home` (a folder). `refresh` follows the local copies, also while requests are answered."""

    def __init__(
        self,
        home: Path,
        packages: Packages,
        online: ContextStore,
        clock: Clock,
        watcher: Watcher | None = None,
        *,
        budget: int = BUDGET,
        heartbeat: Heartbeat | None = None,
        threads: int = 1,
    ) -> None:
        self._heartbeat = heartbeat
        self.home, self.clock = home, clock
        self._packages, self._online = packages, online
        self.watcher = watcher or Watcher(lambda _loop, _arms: None, lambda _loop, _why: None, lambda _loop, _count: None)
        self._known: list[str] = []
        self._loops: dict[str, InService] = {}
        self._changes = local.Changes(home / "served", clock)
        self._failed: dict[str, float] = {}
        self._switching = threading.RLock()
        self.package_cache = PackageCache(self._make, budget, self._gone, self.watcher.loaded)
        self.explanations = Explanations(packages, self.package_cache.load)
        self._own: dict[str, str] = {}
        """Digest of a package in service -> the loop whose own package it is."""
        self._overruns, self._shared = Overruns(), Shared(threads)
        self._names: dict[str, list[str]] = {}

    @property
    def loops(self) -> list[str]:
        """The loops that are to be served, sorted."""
        return self._known

    @property
    def loaded(self) -> list[InService]:
        """The loops whose packages are in memory, ordered by name."""
        return [service for _, service in sorted(self._loops.items())]

    def knows(self, loop: str) -> bool:
        """Whether a loop of that name is to be served."""
        place = bisect_left(self._known, loop)
        return place < len(self._known) and self._known[place] == loop

    def ready(self, loop: str) -> bool:
        """Whether a loop's package is in memory, so that it answers at once."""
        return loop in self._loops

    @property
    def unready(self) -> list[str]:
        """Loops that should be served but are not: their package cannot be loaded, and no other serves instead."""
        return sorted(loop for loop in list(self._failed) if loop not in self._loops and self.knows(loop))

    def service(self, loop: str) -> InService:
        """The service of a loop, loaded if necessary (see `load`). Raises LoopNotFound, and Unavailable while it cannot be loaded."""
        return self._loops.get(loop) or self._load(loop)

    def load(self, loop: str) -> None:
        """Make a loop ready; this takes milliseconds, so it is for a thread of its own. Raises as `service`."""
        self.service(loop)

    def serve_only(self, loop: str) -> InService:
        """Serve this loop and no other, as work on one loop does. Raises as `service`."""
        self._known = [loop]
        return self.service(loop)

    def _load(self, loop: str) -> InService:
        if not self.knows(loop):
            raise LoopNotFound(loop, self._known[:5])
        with self._switching:
            found = self._loops.get(loop)
            if found is not None:
                return found
            failed = self._failed.get(loop)
            if failed is None or self.clock.monotonic() - failed >= RETRY_SECONDS:
                found = self._try(loop)
            if found is None:
                raise Unavailable(f"loop {loop!r} cannot be served at the moment")
            return found

    def names(self, package: str) -> list[str]:
        """The names of the values of a package that was put into service in this process, also where another serves by now."""
        return self._names.get(package, [])

    def refresh(self) -> list[str]:
        """Load the changes of the local copies, and the packages that requests could not wait for; returns the switched loops.

        A refused package changes nothing.
        """
        changed = self._changes()
        if changed:
            self._known = self._changes.loops
        few = len(self._known) <= local.FEW
        now = self.clock.monotonic()
        again = [loop for loop, failed in list(self._failed.items()) if now - failed >= RETRY_SECONDS]
        switched = []
        for loop in dict.fromkeys([*changed, *again]):
            with self._switching:  # so that a package that is being loaded is not missed
                if (few or loop in self._loops) and self._try(loop) is not None:
                    switched.append(loop)
        for service in list(self._loops.values()):
            if service.segments.waits:
                service.segments.load()
        return switched

    def _try(self, loop: str) -> InService | None:
        """Switch to the release in the local copy; None if it cannot be loaded."""
        copy: local.ReleaseFile | None = None
        try:
            copy = local.read(self.home / "served" / f"{loop}.json")
            found = None if copy is None else self._switch(loop, copy)
        except Exception as error:  # noqa: BLE001  # a runtime that chokes on a package must not end the following
            known = isinstance(error, LoopwrightError)
            self._failed[loop] = self.clock.monotonic()
            why = str(error) if known else f"it cannot be loaded: {type(error).__name__}"
            self.watcher.refused(loop, why)
            stands_in = self._stand_in(loop, copy, why) if copy is not None and loop not in self._loops else None
            if self._heartbeat is not None and copy is not None:
                self._heartbeat.releases.refuses(copy.state)
            return stands_in
        self._failed.pop(loop, None)
        return found

    def _stand_in(self, loop: str, copy: local.ReleaseFile, why: str) -> InService | None:
        """Let the champion alone, or the newest earlier package that can be loaded and is not bad, serve instead; the declared is tried again."""
        declared, found = copy.state.champion, None
        alone = msgspec.structs.replace(copy.state, arms=[msgspec.structs.replace(declared, share=1.0)])
        for state in [*([alone] if copy.state.is_divided else []), *reversed(copy.past)]:
            package = state.champion.package
            if (package == declared.package and state is not alone) or (self.home / "bad" / f"{package}.json").exists():
                continue
            try:
                found = self._switch(loop, msgspec.structs.replace(copy, state=state))
                break
            except Exception as error:  # noqa: BLE001  # as in `_try`: after any error, the one before may work
                self.watcher.refused(loop, f"package {package[:12]} cannot stand in: {type(error).__name__}: {error}")
        instead = found.predictor.digest if found is not None else ""
        missing = declared.package if instead != declared.package else next(p for p in copy.state.packages if p != instead)
        self.watcher.stood_in(loop, missing, instead, why)
        return found

    def _gone(self, digests: list[str]) -> None:
        """After an eviction: forget the loops whose own packages were evicted; their next request loads them again."""
        for digest in digests:
            loop = self._own.pop(digest, None)
            if loop is not None:
                self._loops.pop(loop, None)
                if self._heartbeat is not None:
                    self._heartbeat.releases.forgets(loop)

    def _switch(self, loop: str, copy: local.ReleaseFile) -> InService:
        before = self._loops.get(loop)
        arms = Arms(copy.state, self.package_cache, self.package_cache.load)
        predictor = arms.champion
        for other in arms.others:
            check_contract(other.package, predictor.package)
        segments = SegmentRouter(
            copy.state,
            arms,
            self.package_cache,
            self.clock,
            lambda why: self.watcher.refused(loop, why),
            before.segments if before is not None else None,
            LOAD_SECONDS,
        )
        release = predictor.package.manifest.release
        service = InService(
            state=copy.state,
            predictor=predictor,
            segments=segments,
            decode=self._shared.decoder(predictor.package.manifest),
            outcomes=self._shared.outcomes(copy.outcome) if copy.outcome is not None else None,
            refuse_unloggable=release.get("on_unloggable") == "refuse",
            durable=release.get("durability") == "disk",
        )
        failpoints.hit("release.loaded")
        self._own.update(dict.fromkeys(arms.keys, loop))
        self._loops[loop] = service
        if before is not None:
            left = {*map(key_of, before.state.arms), *before.state.packages} - {*arms.keys, *copy.state.packages}
            for digest in left:
                self._own.pop(digest, None)
            self.package_cache.drop(left)
        if self._heartbeat is not None:
            self._heartbeat.releases.serves(copy.state)
        failpoints.hit("release.switched")
        self.watcher.swapped(loop, copy.state.arms)
        return service

    def _make(self, digest: str) -> Predictor:
        """Load and test a package. Raises the errors of reading it, and PackageRefused."""
        alone = digest.endswith(RULE)
        digest = digest.removesuffix(RULE)
        with self._heartbeat.loading(digest) if self._heartbeat is not None else nullcontext():
            package = open_probed(self._packages, digest, keep=_READ)
            decode = self._shared.decoder(package.manifest)
            whole = package.manifest
            package.manifest = msgspec.structs.replace(whole, request=decode.columns, lineage=Lineage())
            clock, heartbeat = self.clock, self._heartbeat
            predictor = Predictor(package, self._online, clock, self._overruns, self._shared.graph, heartbeat, model=not alone)
            with suppress(Exception):  # metadata of a package must not keep it from serving
                predictor.example = example_request(whole, package.reference, whole.created_at)
            self._names[digest] = package.manifest.output.names
            predictor.check_golden()
            predictor.warm()
        package.shed()
        return predictor
