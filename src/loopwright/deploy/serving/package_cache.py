"""The package cache of this process: LRU, bounded by a memory budget.

The size of a package is measured while it is loaded: by the allocator of the C library (the runtime's session) and by the
interpreter's count of its own blocks. Eviction only drops the reference: requests that still use the package finish with it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from loopwright.base.heap import allocated, give_back
from loopwright.deploy.serving.decode import Decoder
from loopwright.deploy.serving.outcomes import OutcomeDecoder
from loopwright.deploy.serving.predictor import Answerer, Predictor
from loopwright.graph.session import Feeder, Graph
from loopwright.records.declarations import Column, Table
from loopwright.records.package import Manifest
from loopwright.records.releases import Arm
from loopwright.stores.packages.probe import Probed

BUDGET = 1024 * 2**20
RULE = ":heuristic"
"""Behind a digest: the package without its model."""


def key_of(arm: Arm) -> str:
    """The cache key of an arm's package."""
    return arm.package + (RULE if arm.heuristic else "")


class Shared:
    """Interns parts that packages share, as long as one of them uses it: graphs (lean), contracts and their decoders."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._graphs: WeakValueDictionary[tuple[str, bytes, int], Answerer] = WeakValueDictionary()
        self._feeders: WeakValueDictionary[tuple[str, bytes], Feeder] = WeakValueDictionary()
        self._decoders: WeakValueDictionary[bytes, Decoder] = WeakValueDictionary()
        self._outcomes: WeakValueDictionary[bytes, OutcomeDecoder] = WeakValueDictionary()

    def graph(self, package: Probed, name: str) -> Answerer:
        """The graph of that file of a package. Raises PackageRefused when graph and manifest disagree."""
        key = package.manifest.files[name].sha256, _digest(package.columns), len(package.manifest.output.names)
        found = self._graphs.get(key)
        if found is None:
            found = self._graphs[key] = Answerer(package, name, lean=True, threads=self._threads, feeder=self._feeder)
        return found

    def _feeder(self, graph: Graph, columns: Mapping[str, Column]) -> Feeder:
        key = repr(graph.inputs), _digest(columns)
        found = self._feeders.get(key)
        if found is None:
            found = self._feeders[key] = Feeder(graph, columns)
        return found

    def decoder(self, manifest: Manifest) -> Decoder:
        """The decoder of a package's contract."""
        key = _digest([manifest.request, sorted(manifest.may_lack), manifest.key])
        found = self._decoders.get(key)
        if found is None:
            found = self._decoders[key] = Decoder(manifest.request, optional=manifest.may_lack, key=manifest.key)
        return found

    def outcomes(self, table: Table) -> OutcomeDecoder:
        """The decoder of a contract of outcomes."""
        key = _digest(table)
        found = self._outcomes.get(key)
        if found is None:
            found = self._outcomes[key] = OutcomeDecoder(table)
        return found


def _digest(value: Any) -> bytes:
    return blake2b(msgspec.msgpack.encode(value), digest_size=16).digest()


class Load(NamedTuple):
    """Statistics of one package load: seconds, bytes, packages now cached, and packages evicted."""

    package: str
    seconds: float
    bytes: int
    packages: int
    held: int
    evicted: int


class _CachedPackage(NamedTuple):
    predictor: Predictor
    bytes: int


class PackageCache:
    """`make` reads, prepares and tests a package. `budget` is in bytes (None: unlimited); the newest package is never evicted.

    `gone` is called with evicted packages, `on_load` with every load. Safe to use from several threads: packages are loaded
    one at a time, and lookups of cached packages never wait for a load.
    """

    def __init__(
        self,
        make: Callable[[str], Predictor],
        budget: int | None = BUDGET,
        gone: Callable[[list[str]], None] = lambda _: None,
        on_load: Callable[[Load], None] = lambda _: None,
    ) -> None:
        self._make, self._budget, self._gone, self._told = make, budget, gone, on_load
        self._held: OrderedDict[str, _CachedPackage] = OrderedDict()
        self._loading = threading.Lock()
        self.bytes = 0
        """Total size of the cached packages."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, digest: object) -> bool:
        return digest in self._held

    def find(self, digest: str) -> Predictor | None:
        """The package if it is cached; marks it as the most recently used."""
        held = self._held.get(digest)
        if held is None:
            return None
        self.touch(digest)
        return held.predictor

    def touch(self, digest: str) -> None:
        """Mark a package as the most recently used."""
        try:  # noqa: SIM105  # on the path of every request, where `suppress` takes half a microsecond
            self._held.move_to_end(digest)
        except KeyError:  # it went meanwhile
            pass

    def load(self, digest: str) -> Predictor:
        """The package, loaded on a cache miss. Raises the errors of `make`."""
        with self._loading:
            found = self.find(digest)
            if found is not None:
                return found
            started, before = time.perf_counter(), allocated()
            predictor = self._make(digest)
            seconds, taken = time.perf_counter() - started, allocated() - before
            least = sum(info.size for name, info in predictor.package.manifest.files.items() if name.endswith(".onnx"))
            held = _CachedPackage(predictor, min(max(taken, least), 16 * least + 2**20))  # others allocate at the same time
            self._held[digest] = held
            self.bytes += held.bytes
            evicted = self._shrink()
            self._told(Load(digest, seconds, held.bytes, len(self._held), self.bytes, len(evicted)))
        if evicted:
            self._gone(evicted)
            give_back()
        return predictor

    def drop(self, digests: Iterable[str]) -> None:
        """Evict packages that no release names any more."""
        with self._loading:
            for digest in digests:
                self._let_go(digest)

    def _shrink(self) -> list[str]:
        evicted: list[str] = []
        while self._budget is not None and self.bytes > self._budget and len(self._held) > 1:
            digest = next(iter(self._held))
            self._let_go(digest)
            evicted.append(digest)
        return evicted

    def _let_go(self, digest: str) -> None:
        held = self._held.pop(digest, None)
        if held is not None:
            self.bytes -= held.bytes
