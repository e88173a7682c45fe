"""The packages in memory: measured, bounded, the least recently used goes, and nobody who answers notices."""

import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tests.deploy.loops import NOW_US, Weather, flight, opened, package

from loopwright.base.errors import PackageNotFound
from loopwright.deploy.serving import package_cache
from loopwright.deploy.serving.package_cache import Load, PackageCache, Shared
from loopwright.deploy.serving.predictor import Predictor
from loopwright.records.declarations import Column
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import open_probed


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return opened(tmp_path)


def digests(home: Home, count: int) -> list[str]:
    return [package(home.packages, weight=0.01 * (i + 1)).digest for i in range(count)]


def maker(home: Home) -> Callable[[str], Predictor]:
    return lambda digest: Predictor(open_probed(home.packages, digest), Weather(), home.clock)


def test_the_least_recently_used_goes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 1 MiB: what one really takes is measured below, in a process where nothing else allocates."""
    monkeypatch.setattr(package_cache, "allocated", partial(next, count(0, 2**20)))
    names = digests(home, 5)
    loads: list[Load] = []
    gone: list[str] = []
    cached = PackageCache(maker(home), None, gone.extend, loads.append)
    for name in names:
        assert cached.load(name).digest == name
    assert cached.bytes == sum(load.bytes for load in loads) > 0
    assert gone == []
    room = int(3.4 * 2**20)
    cached = PackageCache(maker(home), room, gone.extend, loads.append)
    for name in names[:3]:
        cached.load(name)
    assert cached.find(names[0]) is not None
    cached.touch(names[1])
    cached.load(names[3])
    assert gone == [names[2]], "the others were used after it"
    assert names[3] in cached
    assert cached.find(names[2]) is None
    assert cached.bytes <= room
    assert loads[-1].evicted == 1
    assert (loads[-1].packages, loads[-1].held) == (len(cached), cached.bytes)
    assert loads[-1].seconds > 0


def test_the_newest_stays_however_small_the_budget(home: Home) -> None:
    gone: list[str] = []
    cached = PackageCache(maker(home), 1, gone.extend)
    names = digests(home, 3)
    for name in names:
        cached.load(name)
        assert name in cached
    assert (gone, len(cached)) == (names[:2], 1)


def test_who_answers_with_one_that_goes_finishes_with_it(home: Home) -> None:
    cached = PackageCache(maker(home), 1)
    first, second = digests(home, 2)
    held = cached.load(first)
    cached.load(second)
    assert first not in cached
    assert held.answer([flight(pushed_back_at=NOW_US)])[0].package == first


def test_what_is_dropped_is_no_longer_counted(home: Home) -> None:
    cached = PackageCache(maker(home))
    names = digests(home, 3)
    for name in names:
        cached.load(name)
    cached.drop([*names, "0" * 64])
    assert (len(cached), cached.bytes) == (0, 0)


def test_one_that_cannot_be_loaded_changes_nothing(home: Home) -> None:
    cached = PackageCache(maker(home))
    cached.load(digests(home, 1)[0])
    before = len(cached), cached.bytes
    with pytest.raises(PackageNotFound):
        cached.load("0" * 64)
    assert (len(cached), cached.bytes) == before


def test_threads_load_each_package_once(home: Home) -> None:
    names, made = digests(home, 6), list[str]()

    def make(digest: str) -> Predictor:
        made.append(digest)
        return maker(home)(digest)

    cached = PackageCache(make)
    threads = [Thread(target=lambda i=i: [cached.load(n) for n in names[i:] + names[:i]]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(names)
    assert len(cached) == 6


def test_what_packages_have_in_common_is_there_once(home: Home) -> None:
    shared = Shared()

    def ready(**changes: Any) -> Predictor:
        made = package(home.packages, **changes)
        return Predictor(made, Weather(), home.clock, ready=shared.graph)

    one, same, other = ready(), ready(threshold=0.7), ready(weight=0.4)
    assert one.digest != same.digest
    assert one.graph is same.graph
    assert one.graph is not other.graph
    asked = [p.answer([flight(pushed_back_at=NOW_US)])[0] for p in (one, same, other)]
    assert asked[0].score == asked[1].score != asked[2].score
    assert asked[2].score == pytest.approx(maker(home)(other.digest).answer([flight(pushed_back_at=NOW_US)])[0].score)
    assert shared.decoder(one.package.manifest) is shared.decoder(other.package.manifest)
    wider = package(home.packages, request={**one.package.manifest.request, "gate": Column("string")})
    assert shared.decoder(wider.manifest) is not shared.decoder(one.package.manifest)
    graph = weakref.ref(one.graph)
    del one, same
    assert graph() is None, "it goes with the last that holds it"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc tells what is allocated")
def test_what_a_package_takes_is_measured(tmp_path: Path) -> None:
    """What the cached says of 60 packages is what the process grew by, in a process of its own."""
    digests(opened(tmp_path), 66)
    done = subprocess.run([sys.executable, "-c", GROW, str(tmp_path)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    said, grown = map(int, done.stdout.split())
    assert 0.6 < said / grown < 1.6, (said, grown)


GROW = """
import ctypes, sys
from pathlib import Path
from tests.deploy.loops import Weather, opened
from loopwright.deploy.serving.registry import Registry
from loopwright.base import heap

def held():
    # Pages of files come and go as the system likes: they do not count.
    status = Path("/proc/self/status").read_text()
    return sum(int(status.partition(name + ":")[2].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap")) * 1024

def fill():
    # What the heap has free is used up: packages that go there make the process no larger.
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    for size in (65536, 8192, 1024, 128):
        grown = heap._library().mallinfo2().arena
        while heap._library().mallinfo2().arena == grown:
            for _ in range(100):
                library.memset(ctypes.c_void_p(library.malloc(size)), 1, size)

home = opened(Path(sys.argv[1]))
cached = Registry(home.path, home.packages, Weather(), home.clock).package_cache
names = home.packages.list()
for name in names[:6]:
    cached.load(name)
fill()
before, first = held(), cached.bytes
for name in names[6:]:
    cached.load(name)
print(cached.bytes - first, held() - before)
"""


def test_graphs_run_on_as_many_threads_as_the_setting_says(home: Home) -> None:
    made = package(home.packages)
    one, two = (Shared(threads).graph(made, "model.onnx") for threads in (1, 2))
    rows = [dict(g.request) | dict(g.context) for g in made.reference.golden] * 50
    before = len(list(Path("/proc/self/task").iterdir()))
    third = Shared(3).graph(made, "model.onnx")
    assert len(list(Path("/proc/self/task").iterdir())) == before + 2
    assert one(rows) == two(rows) == third(rows)
