"""Who serves in this process: the loops in service, each with its package made ready, and the hot swap to another.

A swap loads, checks and warms the new package beside the old one, which answers meanwhile; then one assignment puts it in
place. Requests that were taken before finish on the package they began with.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loopwright.deploy import served as local
from loopwright.deploy.context import ContextStore
from loopwright.deploy.decode import Decoder
from loopwright.deploy.outcome import OutcomeDecoder
from loopwright.deploy.overrun import Overruns
from loopwright.deploy.predict import Predictor
from loopwright.deploy.recent import Recent
from loopwright.deploy.segments import LOAD_SECONDS, Segments
from loopwright.records.clock import Clock
from loopwright.records.errors import LoopNotFound, LoopwrightError
from loopwright.records.ids import NAME
from loopwright.records.packages import Packages
from loopwright.records.releases import ReleaseState

RETRY_SECONDS = 5.0


class InService(NamedTuple):
    """What serves one loop in this process: its own package's predictor, and with it those of its segments."""

    state: ReleaseState
    predictor: Predictor
    segments: Segments
    decode: Decoder
    outcomes: OutcomeDecoder | None
    refuse_unloggable: bool
    durable: bool
    recent: Recent


class Watcher(NamedTuple):
    """Who is told: a package was put into service (loop, digest) or refused (loop, why), rows could not be logged (loop, how many)."""

    swapped: Callable[[str, str], None]
    refused: Callable[[str, str], None]
    unlogged: Callable[[str, int], None]


class Services:
    """The loops in service under `home` (a folder). `refresh` follows the local copies, also while requests are answered."""

    def __init__(
        self, home: Path, packages: Packages, online: ContextStore, clock: Clock, watcher: Watcher | None = None
    ) -> None:
        self._home, self._packages, self._online, self._clock = home, packages, online, clock
        self._watcher = watcher or Watcher(lambda _loop, _digest: None, lambda _loop, _why: None, lambda _loop, _count: None)
        self._loops: dict[str, InService] = {}
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self._failed: dict[str, float] = {}
        self._overruns = Overruns()
        self._names: dict[str, list[str]] = {}

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
        release = predictor.package.manifest.release
        self._loops[loop] = InService(
            state=copy.state,
            predictor=predictor,
            segments=segments,
            decode=decode,
            outcomes=OutcomeDecoder(copy.outcome) if copy.outcome is not None else None,
            refuse_unloggable=release.get("on_unloggable") == "refuse",
            durable=release.get("durability") == "disk",
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
