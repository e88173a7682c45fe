"""Many loops in one process: each is loaded when it is first asked, as many stay as the budget holds, and none misses a release."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Thread

import pytest
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, Weather, flight, opened, package
from tests.waiting import until

from loopwright.base.errors import LoopNotFound, Unavailable
from loopwright.deploy import releases
from loopwright.deploy.serving import engine as router_module
from loopwright.deploy.serving import package_cache, registry, release_files
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.heartbeat import Heartbeat
from loopwright.deploy.serving.package_cache import Load
from loopwright.deploy.serving.registry import Registry, Watcher
from loopwright.records.package import Segment
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import predictions


class Many:
    """An engine over loops `l0`, `l1` ..., more than are loaded before they are asked; and what it told."""

    def __init__(self, home: Home, count: int) -> None:
        self.home = home
        self.swapped: list[str] = []
        self.refused: list[str] = []
        self.loads: list[Load] = []
        self.digests = {f"l{i}": self.release(f"l{i}", 0.01 * (i + 1)) for i in range(count)}
        self.engine = self.opened()

    def opened(self, budget: int = 2**30) -> ServingEngine:
        watcher = Watcher(
            lambda _, arms: self.swapped.extend(a.package for a in arms),
            lambda _, w: self.refused.append(w),
            print,
            self.loads.append,
        )
        engine = ServingEngine(Registry(self.home.path, self.home.packages, Weather(), self.home.clock, watcher, budget=budget))
        engine.registry.refresh()
        return engine

    def release(self, loop: str, weight: float) -> str:
        digest = package(self.home.packages, weight=weight, loop=loop).digest
        releases.release(self.home, loop, digest, why="first")
        return digest

    def ask(self, loop: str, id: str | None = None) -> Prediction:
        rows = self.engine.registry.service(loop).decode(text([flight()])).rows
        (result,) = self.engine.answer(loop, [PredictionRequest(rows, [id] if id else None)])
        assert isinstance(result, list), result
        return result[0]


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Many]:
    monkeypatch.setattr(release_files, "FEW", 2)
    monkeypatch.setattr(release_files, "LOOK_SECONDS", 3600.0)
    found = Many(opened(tmp_path), 6)
    yield found
    found.engine.close()


def test_each_is_loaded_when_it_is_first_asked(many: Many) -> None:
    engine = many.engine
    assert engine.registry.loops == sorted(many.digests)
    assert engine.registry.loaded == []
    assert not engine.registry.ready("l3")
    assert many.ask("l3").package == many.digests["l3"]
    assert engine.registry.ready("l3")
    assert [s.state.loop for s in engine.registry.loaded] == ["l3"]
    engine.registry.load("l4")
    engine.registry.load("l4")
    assert many.swapped == [many.digests["l3"], many.digests["l4"]]
    assert [load.package for load in many.loads] == many.swapped
    for unknown in ("l9", "..", "", "l3.json", "L3"):
        assert not engine.registry.knows(unknown)
        with pytest.raises(LoopNotFound):
            engine.registry.load(unknown)


def test_few_are_loaded_before_they_are_asked(many: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_files, "FEW", 6)
    engine = many.opened()
    assert all(engine.registry.ready(loop) for loop in many.digests)
    engine.close()


def test_a_release_reaches_those_in_memory_and_those_that_are_not(many: Many) -> None:
    many.ask("l1")
    newer = {loop: many.release(loop, weight) for loop, weight in (("l1", 0.5), ("l2", 0.6))}
    assert many.engine.registry.refresh() == ["l1"], "the other is not in memory, and need not be"
    assert not many.engine.registry.ready("l2")
    assert {loop: many.ask(loop).package for loop in newer} == newer
    releases.rollback(many.home, "l2", why="back")
    assert many.engine.registry.refresh() == ["l2"]
    assert many.ask("l2").package == many.digests["l2"]
    assert len(many.engine.registry.package_cache) == 2, "what no release names any more is not held"


def test_a_loop_that_comes_later_is_known_at_once(many: Many) -> None:
    digest = many.release("l77", 0.7)
    assert many.engine.registry.refresh() == []
    assert many.ask("l77").package == digest


def test_the_least_recently_asked_goes_and_comes_back(many: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**20
    heap = count(0, size)  # each package takes as much: what is measured differs with what the process has freed before
    monkeypatch.setattr(package_cache, "allocated", lambda: next(heap))
    many.engine.close()
    many.engine = many.opened(int(size * 3.4))
    for loop in ("l0", "l1", "l2"):
        many.ask(loop)
    first = many.ask("l0", id="a" * 32)
    many.ask("l3")
    assert [s.state.loop for s in many.engine.registry.loaded] == ["l0", "l2", "l3"]
    for loop in many.digests:
        many.ask(loop)
    assert not many.engine.registry.ready("l0")
    assert many.ask("l0", id="a" * 32) == first, "repeated ids outlive the package's stay"
    assert many.engine.registry.package_cache.bytes <= size * 3.4
    newer = many.release("l0", 0.9)
    assert many.engine.registry.refresh() == ["l0"]
    assert many.ask("l0").package == newer
    assert many.refused == []


def test_one_that_cannot_be_loaded_is_unavailable_and_recovers(many: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = many.home.packages.folder / many.digests["l5"]
    shutil.move(folder, many.home.path / "spare")
    for _ in range(3):
        with pytest.raises(Unavailable, match="l5"):
            many.engine.registry.load("l5")
    assert len(many.refused) == 1, "it is not tried for every request"
    assert many.ask("l1").package == many.digests["l1"]
    shutil.move(many.home.path / "spare", folder)
    monkeypatch.setattr(registry, "RETRY_SECONDS", 0.0)
    assert many.ask("l5").package == many.digests["l5"]


def test_the_own_package_of_a_fleet_goes_last(many: Many) -> None:
    """However many segments are asked: rows of no segment, and those that must wait, are always answered at once."""
    tails = [f"N{i}" for i in range(8)]
    made = {
        t: package(many.home.packages, weight=0.3 + i / 100, loop="l0", segment=Segment(column="tail", value=t)).digest
        for i, t in enumerate(tails)
    }
    releases.release(many.home, "l0", many.digests["l0"], fleet="tail", segments=made, why="a fleet")
    for digest in made.values():
        many.engine.registry.package_cache.load(digest)
    room = int(max(load.bytes for load in many.loads[2:]) * 3.4)
    many.engine.close()
    many.engine = many.opened(room)
    for tail in [*tails, *reversed(tails)] * 2:
        rows = many.engine.registry.service("l0").decode(text([flight(tail=tail)])).rows
        (result,) = many.engine.answer("l0", [PredictionRequest(rows)])
        assert isinstance(result, list)
        assert (result[0].package, result[0].flags) == (made[tail], [])
        assert many.engine.registry.ready("l0")
    assert sum(load.evicted for load in many.loads) > 8
    assert many.swapped.count(many.digests["l0"]) == 1, "it never went"


def test_threads_that_ask_at_once_load_it_once(many: Many) -> None:
    threads = [Thread(target=many.engine.registry.load, args=[f"l{i % 3}"]) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(many.swapped) == sorted(many.digests[f"l{i}"] for i in range(3))


def test_answers_and_releases_while_packages_come_and_go(many: Many) -> None:
    """Four threads ask loops that do not all fit, one releases and rolls back: every answer names a package of its loop."""
    for loop in many.digests:
        many.ask(loop)
    many.engine.close()
    many.engine = many.opened(int(max(load.bytes for load in many.loads[2:]) * 2.4))
    second = {loop: package(many.home.packages, weight=0.5 + int(loop[1:]) / 100, loop=loop).digest for loop in many.digests}
    wrong: list[object] = []
    over: list[int] = []

    def asks(start: int) -> None:
        step = start
        while not over:
            loop = f"l{step % 6}"
            try:
                found = many.ask(loop)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is wrong
                wrong.append(error)
                return
            if found.package not in (many.digests[loop], second[loop]) or found.flags:
                wrong.append(found)
            step += start + 1

    threads = [Thread(target=asks, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        for loop, digest in second.items():
            releases.release(many.home, loop, digest, why="newer")
            many.engine.registry.refresh()
        for loop in ("l1", "l3"):
            releases.rollback(many.home, loop, why="not so good")
            many.engine.registry.refresh()
    finally:
        over.append(1)
        for thread in threads:
            thread.join()
    assert (wrong, many.refused) == ([], [])
    many.engine.registry.refresh()
    last = {**second, "l1": many.digests["l1"], "l3": many.digests["l3"]}
    assert {loop: many.ask(loop).package for loop in last} == last
    assert many.refused == []


def open_files(home: Home) -> int:
    """How many files of the log this process has open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(link.readlink()).startswith(str(home.path / "log"))
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux tells which files are open")
def test_logs_of_quiet_loops_are_closed_and_opened_again(many: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of loops that were asked once do not hold a file each; no row is lost or doubled by it."""
    engine, home = many.engine, many.home
    first = {loop: many.ask(loop) for loop in many.digests}
    assert open_files(home) == 6
    for writer in engine._writers.values():
        writer.segment_seconds = 0.0
    monkeypatch.setattr(router_module, "MAX_SEALS", 2)
    engine.tick()
    assert sum(writer.quiet(0.0) or writer._sealing is not None for writer in engine._writers.values()) == 2, "in turns"
    monkeypatch.setattr(router_module, "QUIET_SECONDS", 0.0)

    def retired() -> bool:
        engine.tick()
        return not engine._writers

    until(retired)
    engine._retiring.join()  # type: ignore[union-attr]  # it has retired them
    assert open_files(home) == 0
    second = {loop: many.ask(loop) for loop in many.digests}
    engine.close()
    for loop in many.digests:
        commit(home, loop)
        assert sorted(predictions(home, loop)["_id"].to_pylist()) == sorted([first[loop].id, second[loop].id])
    assert verify(home) == []


def test_who_writes_while_a_log_is_closed_writes_to_the_next(many: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "QUIET_SECONDS", 0.0)
    answered: list[str] = []
    over: list[int] = []

    def asks() -> None:
        while not over:
            answered.append(many.ask("l1").id)

    many.ask("l1")
    threads = [Thread(target=asks) for _ in range(3)]
    for thread in threads:
        thread.start()
    retired = 0
    while retired < 20 or len(answered) < 100:
        for key, writer in list(many.engine._writers.items()):
            writer.seal()
            if writer.retire(0.0):
                many.engine._forget(key, writer)
                retired += 1
    over.append(1)
    for thread in threads:
        thread.join()
    many.engine.close()
    commit(many.home, "l1")
    ids = predictions(many.home, "l1")["_id"].to_pylist()
    assert len(ids) == len(set(ids)) == len(answered) + 1
    assert set(answered) < set(ids)
    assert verify(many.home) == []
    assert retired > 0


def spoil(home: Home, digest: str) -> bytes:
    path = home.path / "packages" / digest / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(b"damaged")
    return whole


def test_where_the_declared_package_is_damaged_the_newest_whole_one_before_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RETRY_SECONDS", 0.0)
    home = opened(tmp_path)
    bad, whole, damaged, declared = (package(home.packages, weight=0.01 * n).digest for n in (1, 2, 3, 4))
    for digest in (whole, bad, damaged, declared):
        releases.release(home, LOOP, digest, why="next")
    (home.folder("bad") / f"{bad}.json").write_bytes(b"{}")
    spoil(home, damaged)
    spoiled = spoil(home, declared)
    told: list[tuple[str, str, str]] = []
    heartbeat = Heartbeat.fresh(tmp_path / "worker-0.heartbeat")
    watcher = Watcher(
        lambda *_: None, lambda *_: None, lambda *_: None, stood_in=lambda _loop, d, i, why: told.append((d, i, why))
    )
    engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock, watcher, heartbeat=heartbeat))
    assert engine.registry.refresh() == [LOOP]
    assert engine.registry.unready == []
    assert told == [
        (declared, whole, f"package {declared[:12]} refused: model.onnx has 7 bytes, the manifest says {len(spoiled)}")
    ]

    def answers() -> str:
        rows = engine.registry.service(LOOP).decode(text([flight()])).rows
        (found,) = engine.answer(LOOP, [PredictionRequest(rows)])
        assert isinstance(found, list)
        return found[0].package

    state = releases.serving(home, LOOP)
    assert state is not None
    assert (answers(), heartbeat.releases.stands(state)) == (whole, "refuses")
    engine.registry.refresh()
    assert len(told) == 1  # what stands in goes on standing in
    (home.path / "packages" / declared / "model.onnx").write_bytes(spoiled)
    engine.registry.refresh()
    assert (answers(), heartbeat.releases.stands(state)) == (declared, "serves")
    engine.close()


def test_where_none_can_stand_in_the_loop_is_unready_and_that_is_told(tmp_path: Path) -> None:
    home = opened(tmp_path)
    only = package(home.packages).digest
    releases.release(home, LOOP, only, why="first")
    spoil(home, only)
    told: list[tuple[str, str]] = []
    watcher = Watcher(lambda *_: None, lambda *_: None, lambda *_: None, stood_in=lambda _loop, d, i, _why: told.append((d, i)))
    engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock, watcher))
    engine.registry.refresh()
    assert (engine.registry.unready, told) == ([LOOP], [(only, "")])
    with pytest.raises(Unavailable):
        engine.registry.service(LOOP)
    engine.close()
