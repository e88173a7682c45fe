import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from threading import Event, Thread

import msgspec
import onnx
import pytest
from tests.admitted import unprobed
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, Weather, flight, model_graph, opened, package

from loopwright.base import failpoints
from loopwright.base.errors import LogUnavailable, LoopNotFound, LoopwrightError, NotFound, RequestConflict, Unavailable
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine, digest
from loopwright.deploy.serving.idempotency import Claim, IdempotencyStore
from loopwright.deploy.serving.registry import Registry, Watcher
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import find, predictions
from loopwright.stores.prediction_log.segment import log_folder


class Told:
    """Remembers what an engine tells."""

    def __init__(self) -> None:
        self.swapped: list[str] = []
        self.refused: list[str] = []
        self.unlogged = 0

    def watcher(self) -> Watcher:
        def unlogged(_loop: str, count: int) -> None:
            self.unlogged += count

        return Watcher(
            lambda _, arms: self.swapped.extend(a.package for a in arms), lambda _, why: self.refused.append(why), unlogged
        )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return opened(tmp_path)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def engine(home: Home, told: Told) -> Iterator[ServingEngine]:
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock, told.watcher()))
    engine.registry.refresh()
    yield engine
    failpoints.arm("")
    engine.close()


def ask(
    engine: ServingEngine, *numbers: int, ids: list[str] | None = None, exact: bool = True, **changes: object
) -> PredictionRequest:
    return PredictionRequest(
        engine.registry.service(LOOP).decode(text([flight(n, **changes) for n in numbers])).rows, ids, exact
    )


def answered(result: list[Prediction] | LoopwrightError) -> list[Prediction]:
    assert isinstance(result, list), result
    return result


def test_what_is_answered_is_logged_once(engine: ServingEngine, home: Home) -> None:
    results = [answered(r) for r in engine.answer(LOOP, [ask(engine, 1), ask(engine, 2, 3), ask(engine, 4)])]
    assert [[a.unit for a in r] for r in results] == [["UA1"], ["UA2", "UA3"], ["UA4"]]
    ids = [a.id for r in results for a in r]
    assert len(set(ids)) == 4
    assert sorted(predictions(home, LOOP)["_id"].to_pylist()) == sorted(ids)
    engine.close()
    assert commit(home, LOOP).predictions == 4
    assert find(home, ids[2]) == (LOOP, results[1][1])
    assert verify(home) == []


def test_unknown_loops_touch_nothing(engine: ServingEngine, home: Home) -> None:
    for name in ("nobody", "..", "late-arrival/../late-arrival", ""):
        with pytest.raises(LoopNotFound):
            engine.registry.service(name)
    assert not log_folder(home.path, "nobody").exists()


def test_the_same_id_again(engine: ServingEngine, home: Home) -> None:
    first = answered(engine.answer(LOOP, [ask(engine, 1, ids=["a" * 32])])[0])
    again, other, fresh = engine.answer(
        LOOP,
        [
            ask(engine, 1, ids=["a" * 32]),
            ask(engine, 2, ids=["a" * 32]),
            ask(engine, 2, ids=["a" * 32], exact=False),
        ],
    )
    assert answered(again)[0] == first[0]
    assert isinstance(other, RequestConflict)
    assert answered(fresh)[0].id != "a" * 32
    within = engine.answer(
        LOOP, [ask(engine, 5, ids=["b" * 32]), ask(engine, 5, ids=["b" * 32]), ask(engine, 6, ids=["b" * 32])]
    )
    assert answered(within[0])[0] == answered(within[1])[0]
    assert isinstance(within[2], RequestConflict)
    ids = predictions(home, LOOP)["_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 3


def test_one_row_and_two_under_one_id_are_a_conflict_and_nothing_of_it_is_logged(engine: ServingEngine, home: Home) -> None:
    engine.answer(LOOP, [ask(engine, 1, ids=["a" * 32])])
    two = ask(engine, 1, 8, ids=["c" * 32, "d" * 32])._replace(request="a" * 32)
    (result,) = engine.answer(LOOP, [two])
    assert isinstance(result, RequestConflict)
    assert predictions(home, LOOP).num_rows == 1


def test_another_worker_gives_the_same_answer_and_logs_nothing(engine: ServingEngine, home: Home) -> None:
    other = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock))
    other.registry.refresh()
    first = engine.answer(LOOP, [ask(engine, 1, 2, ids=["a" * 32, "b" * 32])])
    assert other.answer(LOOP, [ask(other, 1, 2, ids=["a" * 32, "b" * 32])]) == first
    assert isinstance(other.answer(LOOP, [ask(other, 3, ids=["a" * 32])])[0], RequestConflict)
    another = answered(other.answer(LOOP, [ask(other, 3, ids=["a" * 32], exact=False)])[0])
    assert another[0].id != "a" * 32
    other.close()
    assert predictions(home, LOOP).num_rows == 3


def test_what_was_answered_and_perhaps_not_logged_is_logged_by_who_is_asked_again(engine: ServingEngine, home: Home) -> None:
    """As when a worker dies between the two: here it could not log, and the loop says to refuse then."""
    asked = ask(engine, 1, ids=["a" * 32])
    recent = IdempotencyStore(home.path / "run" / "requests")
    claim = recent.claim(LOOP, "a" * 32, digest(asked.rows))
    assert isinstance(claim, Claim)
    predictor = engine.registry.service(LOOP).predictor
    kept = predictor.answer([dict(row) for row in asked.rows], ids=["a" * 32])
    recent.keep(claim, kept)
    whose = int.from_bytes(b"gone", "little")  # of a process that is not
    place = claim.place + 60 - 4
    recent._open()[place : place + 4] = whose.to_bytes(4, "little")
    recent.close()
    assert answered(engine.answer(LOOP, [ask(engine, 1, ids=["a" * 32])])[0]) == kept
    assert answered(engine.answer(LOOP, [ask(engine, 1, ids=["a" * 32])])[0]) == kept
    assert predictions(home, LOOP)["_id"].to_pylist() == ["a" * 32]


def test_a_swap_is_followed_and_repeated_ids_outlive_it(engine: ServingEngine, home: Home, told: Told) -> None:
    first = answered(engine.answer(LOOP, [ask(engine, 1, ids=["a" * 32])])[0])[0]
    second = package(home.packages, weight=0.06)
    releases.release(home, LOOP, second.digest, why="better")
    assert engine.registry.refresh() == [LOOP]
    assert engine.registry.refresh() == []
    assert answered(engine.answer(LOOP, [ask(engine, 2)])[0])[0].package == second.digest
    assert answered(engine.answer(LOOP, [ask(engine, 1, ids=["a" * 32])])[0])[0] == first
    assert told.swapped == [first.package, second.digest]


@pytest.mark.parametrize("harm", ["missing", "damaged", "golden", "copy", "unloadable"])
def test_a_package_that_cannot_be_loaded_leaves_the_old_one_serving(
    engine: ServingEngine, home: Home, told: Told, harm: str
) -> None:
    old = engine.registry.service(LOOP).predictor.digest
    wrong = list(package(home.packages).reference.golden)
    made = package(home.packages, weight=0.06, golden=wrong if harm == "golden" else None)
    if harm == "unloadable":  # lawful as ONNX, and yet the runtime cannot load it
        model = onnx.load_model_from_string(made.files["model.onnx"])
        model.graph.node[0].op_type = "NoSuchOperator"
        forged = home.packages.write(
            msgspec.structs.replace(made.manifest, files={}), {**made.files, "model.onnx": model.SerializeToString()}
        )
        made = unprobed(home.packages, forged)
    releases.release(home, LOOP, made.digest, why="bad")
    if harm == "missing":
        shutil.rmtree(home.path / "packages" / made.digest)
    if harm == "damaged":
        (home.path / "packages" / made.digest / "model.onnx").write_bytes(b"x")
    if harm == "copy":
        release_files.path_of(home, LOOP).write_bytes(b"{")
    assert engine.registry.refresh() == []
    assert len(told.refused) == 1
    assert answered(engine.answer(LOOP, [ask(engine, 1)])[0])[0].package == old
    assert engine.registry.refresh() == []
    assert len(told.refused) == 1
    releases.release(home, LOOP, package(home.packages, weight=0.07).digest, why="mended")
    assert engine.registry.refresh() == [LOOP]


def test_swaps_while_answering_mix_nothing(engine: ServingEngine, home: Home) -> None:
    digests = [engine.registry.service(LOOP).predictor.digest, package(home.packages, weight=0.06).digest]
    over, failures = Event(), []

    def swap() -> None:
        for i in range(12):
            releases.release(home, LOOP, digests[(i + 1) % 2], why="back and forth")
            engine.registry.refresh()
        over.set()

    thread = Thread(target=swap)
    thread.start()
    seen = set()
    while not over.is_set():
        answers = answered(engine.answer(LOOP, [ask(engine, 1, 2, 3)])[0])
        if len({a.package for a in answers}) != 1:
            failures.append(answers)
        seen.add(answers[0].package)
    thread.join()
    assert not failures
    assert seen == set(digests)


def unwritable(home: Home) -> None:
    """Take the log's folder away and put a file there: nothing can be written (root heeds no permissions)."""
    folder = home.path / "log"
    if folder.exists():
        shutil.rmtree(folder)
    folder.write_bytes(b"")


def test_what_cannot_be_logged_is_served_and_told(engine: ServingEngine, home: Home, told: Told) -> None:
    unwritable(home)
    assert len(answered(engine.answer(LOOP, [ask(engine, 1, 2)])[0])) == 2
    assert told.unlogged == 2
    (home.path / "log").unlink()
    assert len(answered(engine.answer(LOOP, [ask(engine, 3)])[0])) == 1
    assert told.unlogged == 2
    assert predictions(home, LOOP).num_rows == 1


def test_what_cannot_be_logged_is_refused_where_the_loop_says_so(engine: ServingEngine, home: Home, told: Told) -> None:
    releases.release(home, LOOP, package(home.packages, weight=0.06, release={"on_unloggable": "refuse"}).digest, why="strict")
    engine.registry.refresh()
    unwritable(home)
    (result,) = engine.answer(LOOP, [ask(engine, 1, ids=["a" * 32])])
    assert isinstance(result, LogUnavailable)
    (home.path / "log").unlink()
    assert answered(engine.answer(LOOP, [ask(engine, 1, ids=["a" * 32])])[0])[0].id == "a" * 32


def test_a_row_that_nobody_can_answer_fails_alone(engine: ServingEngine, home: Home) -> None:
    made = package(home.packages, model=model_graph(fails="nan"))
    files = {**made.files, "heuristic.onnx": made.files["model.onnx"]}
    broken = home.packages.write(msgspec.structs.replace(made.manifest, files={}), files)
    releases.release(home, LOOP, broken.digest, why="broken in two places")
    engine.registry.refresh()
    good, bad = engine.answer(LOOP, [ask(engine, 1), ask(engine, 2, delay=100.0)])
    assert answered(good)[0].flags == []
    assert isinstance(bad, Unavailable)


def test_who_waited_too_long_is_answered_by_the_heuristic_and_the_others_are_not(engine: ServingEngine, home: Home) -> None:
    now = time.perf_counter()
    untils = [now - 1, now + 60, inf, now - 0.001]
    asks = [ask(engine, i, delay=90.0)._replace(until=until) for i, until in enumerate(untils)]
    answers = [answered(result)[0] for result in engine.answer(LOOP, asks)]
    assert [a.flags for a in answers] == [["degraded"], [], [], ["degraded"]]
    assert [a.request["flight"] for a in answers] == ["UA0", "UA1", "UA2", "UA3"]
    engine.close()
    commit(home, LOOP)
    assert predictions(home, LOOP).num_rows == 4


def test_outcomes_are_checked_and_logged(engine: ServingEngine, home: Home) -> None:
    (accepted,) = engine.accept(LOOP, text({"flight": "UA1", "arr_delay": 3.0}), "http")
    engine.accept(LOOP, text({"flight": "UA1", "arr_delay": 3.0}), "http")
    engine.close()
    from loopwright.stores.outcomes.join import outcomes

    assert commit(home, LOOP).outcomes == 2
    assert outcomes(home, LOOP)["_id"].to_pylist() == [accepted.row.id]


def test_outcomes_need_a_contract(engine: ServingEngine, home: Home) -> None:
    copy = release_files.read(release_files.path_of(home, LOOP))
    assert copy is not None
    release_files.write(release_files.path_of(home, LOOP), msgspec.structs.replace(copy, outcome=None))
    engine.registry.refresh()
    with pytest.raises(NotFound, match="outcome contract"):
        engine.accept(LOOP, text({"flight": "UA1", "arr_delay": 3.0}), "http")


def durable(engine: ServingEngine, home: Home) -> None:
    releases.release(home, LOOP, package(home.packages, release={"durability": "disk"}).digest, why="must not be lost")
    engine.registry.refresh()


def test_only_a_durable_loop_waits_for_the_disk(engine: ServingEngine, home: Home) -> None:
    engine.answer(LOOP, [ask(engine, 1)])
    assert engine.synced(LOOP) is None
    durable(engine, home)
    engine.answer(LOOP, [ask(engine, 2)])
    wait = engine.synced(LOOP)
    assert wait is not None
    wait()
    with pytest.raises(LoopNotFound):
        engine.synced("nobody")


@pytest.mark.parametrize("kind", ["predictions", "outcomes"])
def test_a_sync_that_failed_is_told_to_whoever_appended_before_it(engine: ServingEngine, home: Home, kind: str) -> None:
    durable(engine, home)

    def logged(number: int) -> None:
        if kind == "predictions":
            engine.answer(LOOP, [ask(engine, number, ids=[f"{number:032x}"])])
        else:
            engine.accept(LOOP, text({"flight": f"UA{number}", "arr_delay": 3.0}), "http")

    logged(1)
    first = engine.synced(LOOP)
    assert first is not None
    failpoints.arm("log.sync=EIO@1")
    logged(2)
    with ThreadPoolExecutor(1) as other, pytest.raises(LogUnavailable):
        other.submit(first).result()
    # The second began before the loss and asks after it: its rows were in the same file.
    second = engine.synced(LOOP)
    assert second is not None
    with pytest.raises(LogUnavailable):
        second()
    logged(2)
    third = engine.synced(LOOP)
    assert third is not None
    third()
    engine.close()
    done = commit(home, LOOP)
    # What was refused may be in the log; what was asked again with its id is there once.
    assert (done.predictions, done.problems) == ((2, []) if kind == "predictions" else (0, []))
    assert done.outcomes == (3 if kind == "outcomes" else 0)
