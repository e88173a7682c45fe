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
from loopwright.deploy.serving.engine import Ask, Router, digest
from loopwright.deploy.serving.idempotency import Claim, Recent
from loopwright.deploy.serving.registry import Registry, Watcher
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import find, predictions
from loopwright.stores.prediction_log.segment import log_folder


class Told:
    """Remembers what a router tells."""

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
def router(home: Home, told: Told) -> Iterator[Router]:
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    router = Router(Registry(home.path, home.packages, Weather(), home.clock, told.watcher()))
    router.registry.refresh()
    yield router
    failpoints.arm("")
    router.close()


def ask(router: Router, *numbers: int, ids: list[str] | None = None, exact: bool = True, **changes: object) -> Ask:
    return Ask(router.registry.service(LOOP).decode(text([flight(n, **changes) for n in numbers])).rows, ids, exact)


def answered(result: list[Prediction] | LoopwrightError) -> list[Prediction]:
    assert isinstance(result, list), result
    return result


def test_what_is_answered_is_logged_once(router: Router, home: Home) -> None:
    results = [answered(r) for r in router.answer(LOOP, [ask(router, 1), ask(router, 2, 3), ask(router, 4)])]
    assert [[a.unit for a in r] for r in results] == [["UA1"], ["UA2", "UA3"], ["UA4"]]
    ids = [a.id for r in results for a in r]
    assert len(set(ids)) == 4
    assert sorted(predictions(home, LOOP)["_id"].to_pylist()) == sorted(ids)
    router.close()
    assert commit(home, LOOP).predictions == 4
    assert find(home, ids[2]) == (LOOP, results[1][1])
    assert verify(home) == []


def test_unknown_loops_touch_nothing(router: Router, home: Home) -> None:
    for name in ("nobody", "..", "late-arrival/../late-arrival", ""):
        with pytest.raises(LoopNotFound):
            router.registry.service(name)
    assert not log_folder(home.path, "nobody").exists()


def test_the_same_id_again(router: Router, home: Home) -> None:
    first = answered(router.answer(LOOP, [ask(router, 1, ids=["a" * 32])])[0])
    again, other, fresh = router.answer(
        LOOP,
        [
            ask(router, 1, ids=["a" * 32]),
            ask(router, 2, ids=["a" * 32]),
            ask(router, 2, ids=["a" * 32], exact=False),
        ],
    )
    assert answered(again)[0] == first[0]
    assert isinstance(other, RequestConflict)
    assert answered(fresh)[0].id != "a" * 32
    within = router.answer(
        LOOP, [ask(router, 5, ids=["b" * 32]), ask(router, 5, ids=["b" * 32]), ask(router, 6, ids=["b" * 32])]
    )
    assert answered(within[0])[0] == answered(within[1])[0]
    assert isinstance(within[2], RequestConflict)
    ids = predictions(home, LOOP)["_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 3


def test_one_row_and_two_under_one_id_are_a_conflict_and_nothing_of_it_is_logged(router: Router, home: Home) -> None:
    router.answer(LOOP, [ask(router, 1, ids=["a" * 32])])
    two = ask(router, 1, 8, ids=["c" * 32, "d" * 32])._replace(request="a" * 32)
    (result,) = router.answer(LOOP, [two])
    assert isinstance(result, RequestConflict)
    assert predictions(home, LOOP).num_rows == 1


def test_another_worker_gives_the_same_answer_and_logs_nothing(router: Router, home: Home) -> None:
    other = Router(Registry(home.path, home.packages, Weather(), home.clock))
    other.registry.refresh()
    first = router.answer(LOOP, [ask(router, 1, 2, ids=["a" * 32, "b" * 32])])
    assert other.answer(LOOP, [ask(other, 1, 2, ids=["a" * 32, "b" * 32])]) == first
    assert isinstance(other.answer(LOOP, [ask(other, 3, ids=["a" * 32])])[0], RequestConflict)
    another = answered(other.answer(LOOP, [ask(other, 3, ids=["a" * 32], exact=False)])[0])
    assert another[0].id != "a" * 32
    other.close()
    assert predictions(home, LOOP).num_rows == 3


def test_what_was_answered_and_perhaps_not_logged_is_logged_by_who_is_asked_again(router: Router, home: Home) -> None:
    """As when a worker dies between the two: here it could not log, and the loop says to refuse then."""
    asked = ask(router, 1, ids=["a" * 32])
    recent = Recent(home.path / "run" / "requests")
    claim = recent.claim(LOOP, "a" * 32, digest(asked.rows))
    assert isinstance(claim, Claim)
    predictor = router.registry.service(LOOP).predictor
    kept = predictor.answer([dict(row) for row in asked.rows], ids=["a" * 32])
    recent.keep(claim, kept)
    whose = int.from_bytes(b"gone", "little")  # of a process that is not
    place = claim.place + 60 - 4
    recent._open()[place : place + 4] = whose.to_bytes(4, "little")
    recent.close()
    assert answered(router.answer(LOOP, [ask(router, 1, ids=["a" * 32])])[0]) == kept
    assert answered(router.answer(LOOP, [ask(router, 1, ids=["a" * 32])])[0]) == kept
    assert predictions(home, LOOP)["_id"].to_pylist() == ["a" * 32]


def test_a_swap_is_followed_and_repeated_ids_outlive_it(router: Router, home: Home, told: Told) -> None:
    first = answered(router.answer(LOOP, [ask(router, 1, ids=["a" * 32])])[0])[0]
    second = package(home.packages, weight=0.06)
    releases.release(home, LOOP, second.digest, why="better")
    assert router.registry.refresh() == [LOOP]
    assert router.registry.refresh() == []
    assert answered(router.answer(LOOP, [ask(router, 2)])[0])[0].package == second.digest
    assert answered(router.answer(LOOP, [ask(router, 1, ids=["a" * 32])])[0])[0] == first
    assert told.swapped == [first.package, second.digest]


@pytest.mark.parametrize("harm", ["missing", "damaged", "golden", "copy", "unloadable"])
def test_a_package_that_cannot_be_loaded_leaves_the_old_one_serving(router: Router, home: Home, told: Told, harm: str) -> None:
    old = router.registry.service(LOOP).predictor.digest
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
    assert router.registry.refresh() == []
    assert len(told.refused) == 1
    assert answered(router.answer(LOOP, [ask(router, 1)])[0])[0].package == old
    assert router.registry.refresh() == []
    assert len(told.refused) == 1
    releases.release(home, LOOP, package(home.packages, weight=0.07).digest, why="mended")
    assert router.registry.refresh() == [LOOP]


def test_swaps_while_answering_mix_nothing(router: Router, home: Home) -> None:
    digests = [router.registry.service(LOOP).predictor.digest, package(home.packages, weight=0.06).digest]
    over, failures = Event(), []

    def swap() -> None:
        for i in range(12):
            releases.release(home, LOOP, digests[(i + 1) % 2], why="back and forth")
            router.registry.refresh()
        over.set()

    thread = Thread(target=swap)
    thread.start()
    seen = set()
    while not over.is_set():
        answers = answered(router.answer(LOOP, [ask(router, 1, 2, 3)])[0])
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


def test_what_cannot_be_logged_is_served_and_told(router: Router, home: Home, told: Told) -> None:
    unwritable(home)
    assert len(answered(router.answer(LOOP, [ask(router, 1, 2)])[0])) == 2
    assert told.unlogged == 2
    (home.path / "log").unlink()
    assert len(answered(router.answer(LOOP, [ask(router, 3)])[0])) == 1
    assert told.unlogged == 2
    assert predictions(home, LOOP).num_rows == 1


def test_what_cannot_be_logged_is_refused_where_the_loop_says_so(router: Router, home: Home, told: Told) -> None:
    releases.release(home, LOOP, package(home.packages, weight=0.06, release={"on_unloggable": "refuse"}).digest, why="strict")
    router.registry.refresh()
    unwritable(home)
    (result,) = router.answer(LOOP, [ask(router, 1, ids=["a" * 32])])
    assert isinstance(result, LogUnavailable)
    (home.path / "log").unlink()
    assert answered(router.answer(LOOP, [ask(router, 1, ids=["a" * 32])])[0])[0].id == "a" * 32


def test_a_row_that_nobody_can_answer_fails_alone(router: Router, home: Home) -> None:
    made = package(home.packages, model=model_graph(fails="nan"))
    files = {**made.files, "heuristic.onnx": made.files["model.onnx"]}
    broken = home.packages.write(msgspec.structs.replace(made.manifest, files={}), files)
    releases.release(home, LOOP, broken.digest, why="broken in two places")
    router.registry.refresh()
    good, bad = router.answer(LOOP, [ask(router, 1), ask(router, 2, delay=100.0)])
    assert answered(good)[0].flags == []
    assert isinstance(bad, Unavailable)


def test_who_waited_too_long_is_answered_by_the_heuristic_and_the_others_are_not(router: Router, home: Home) -> None:
    now = time.perf_counter()
    untils = [now - 1, now + 60, inf, now - 0.001]
    asks = [ask(router, i, delay=90.0)._replace(until=until) for i, until in enumerate(untils)]
    answers = [answered(result)[0] for result in router.answer(LOOP, asks)]
    assert [a.flags for a in answers] == [["degraded"], [], [], ["degraded"]]
    assert [a.request["flight"] for a in answers] == ["UA0", "UA1", "UA2", "UA3"]
    router.close()
    commit(home, LOOP)
    assert predictions(home, LOOP).num_rows == 4


def test_outcomes_are_checked_and_logged(router: Router, home: Home) -> None:
    (accepted,) = router.accept(LOOP, text({"flight": "UA1", "arr_delay": 3.0}), "http")
    router.accept(LOOP, text({"flight": "UA1", "arr_delay": 3.0}), "http")
    router.close()
    from loopwright.stores.outcomes.table import outcomes

    assert commit(home, LOOP).outcomes == 2
    assert outcomes(home, LOOP)["_id"].to_pylist() == [accepted.row.id]


def test_outcomes_need_a_contract(router: Router, home: Home) -> None:
    copy = release_files.read(release_files.path_of(home, LOOP))
    assert copy is not None
    release_files.write(release_files.path_of(home, LOOP), msgspec.structs.replace(copy, outcome=None))
    router.registry.refresh()
    with pytest.raises(NotFound, match="outcome contract"):
        router.accept(LOOP, text({"flight": "UA1", "arr_delay": 3.0}), "http")


def durable(router: Router, home: Home) -> None:
    releases.release(home, LOOP, package(home.packages, release={"durability": "disk"}).digest, why="must not be lost")
    router.registry.refresh()


def test_only_a_durable_loop_waits_for_the_disk(router: Router, home: Home) -> None:
    router.answer(LOOP, [ask(router, 1)])
    assert router.synced(LOOP) is None
    durable(router, home)
    router.answer(LOOP, [ask(router, 2)])
    wait = router.synced(LOOP)
    assert wait is not None
    wait()
    with pytest.raises(LoopNotFound):
        router.synced("nobody")


@pytest.mark.parametrize("kind", ["predictions", "outcomes"])
def test_a_sync_that_failed_is_told_to_whoever_appended_before_it(router: Router, home: Home, kind: str) -> None:
    durable(router, home)

    def logged(number: int) -> None:
        if kind == "predictions":
            router.answer(LOOP, [ask(router, number, ids=[f"{number:032x}"])])
        else:
            router.accept(LOOP, text({"flight": f"UA{number}", "arr_delay": 3.0}), "http")

    logged(1)
    first = router.synced(LOOP)
    assert first is not None
    failpoints.arm("log.sync=EIO@1")
    logged(2)
    with ThreadPoolExecutor(1) as other, pytest.raises(LogUnavailable):
        other.submit(first).result()
    # The second began before the loss and asks after it: its rows were in the same file.
    second = router.synced(LOOP)
    assert second is not None
    with pytest.raises(LogUnavailable):
        second()
    logged(2)
    third = router.synced(LOOP)
    assert third is not None
    third()
    router.close()
    done = commit(home, LOOP)
    # What was refused may be in the log; what was asked again with its id is there once.
    assert (done.predictions, done.problems) == ((2, []) if kind == "predictions" else (0, []))
    assert done.outcomes == (3 if kind == "outcomes" else 0)
