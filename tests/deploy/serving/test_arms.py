"""A release with two arms in one process: who answers, what goes back, and what cannot serve beside the champion."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, REQUESTS, Weather, flight, opened, package
from tests.deploy.strategies.half import HALF

from loopwright.base.clock import microseconds
from loopwright.base.errors import PackageRefused
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.arms import Arms
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.package_cache import PackageCache
from loopwright.deploy.serving.predictor import Predictor
from loopwright.deploy.serving.registry import Registry, Watcher
from loopwright.deploy.strategies import AT_ONCE
from loopwright.records.declarations import Column
from loopwright.records.package import Segment
from loopwright.records.prediction import Prediction
from loopwright.records.releases import Arm, BadPackage, ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.read import find

COUNT = 60


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return opened(tmp_path)


@pytest.fixture
def pair(home: Home) -> tuple[str, str]:
    """The champion, and the canary that answers half of the units."""
    old, new = package(home.packages).digest, package(home.packages, weight=0.06).digest
    releases.release(home, LOOP, old, why="first")
    releases.release(home, LOOP, new, strategy=HALF, why="is it better?")
    return old, new


class Served:
    """An engine, and what it told."""

    def __init__(self, home: Home) -> None:
        self.refused: list[str] = []
        self.stood_in: list[tuple[str, str]] = []
        self.swapped: list[list[Arm]] = []
        watcher = Watcher(
            lambda _, arms: self.swapped.append(list(arms)),
            lambda _, why: self.refused.append(why),
            lambda *_: None,
            stood_in=lambda _, missing, instead, why: self.stood_in.append((missing, instead)),
        )
        self.engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock, watcher))
        self.engine.registry.refresh()

    def ask(self, *numbers: int, ids: list[str] | None = None, of_file: bool = False, **changes: Any) -> list[Prediction]:
        body = text([flight(n, **changes) for n in numbers])
        rows = self.engine.registry.service(LOOP).decode(body).rows
        (found,) = self.engine.answer(LOOP, [PredictionRequest(rows, ids, of_file=of_file)])
        assert isinstance(found, list), found
        return found


@pytest.fixture
def served(home: Home, pair: tuple[str, str]) -> Iterator[Served]:
    found = Served(home)
    yield found
    found.engine.close()


def now(home: Home) -> ReleaseState:
    state = releases.serving(home, LOOP)
    assert state is not None
    return state


def test_each_unit_is_answered_by_its_arm_alone_or_in_a_batch(home: Home, served: Served, pair: tuple[str, str]) -> None:
    state = now(home)
    together = served.ask(*range(COUNT))
    assert [(a.arm, a.package, a.probability) for a in together] == [
        ((arm := state.arm_for(f"UA{n}")).name, arm.package, 0.5) for n in range(COUNT)
    ]
    assert {a.package for a in together} == set(pair)
    assert {a.generation for a in together} == {state.generation}
    alone = [served.ask(n)[0] for n in range(COUNT)]
    assert [(a.unit, a.arm, a.score, a.flags) for a in alone] == [(a.unit, a.arm, a.score, a.flags) for a in together]
    assert [a.arm for a in served.ask(*range(COUNT), of_file=True)] == [a.arm for a in together]


def test_rows_prepared_once_for_both_arms_get_the_answers_of_each_arm_by_itself(home: Home, pair: tuple[str, str]) -> None:
    cache = PackageCache(lambda key: Predictor(open_probed(home.packages, key), Weather(), home.clock))
    shared, apart = (Arms(now(home), cache, cache.load) for _ in range(2))
    assert shared._alike
    apart._alike = False
    ids = [f"{n:032x}" for n in range(1, COUNT + 1)]
    moment = microseconds(home.clock.now())
    given = [
        flight(n, pushed_back_at=moment, delay=2000.0 if n % 7 == 0 else 5.0 * n, origin="XXX" if n % 5 == 0 else "JFK")
        for n in range(COUNT)
    ]
    found = [
        [msgspec.structs.replace(a, latency_us=0.0) for a in arms.answer([dict(row) for row in given], ids=ids, at_us=moment)]
        for arms in (shared, apart)
    ]
    assert found[0] == found[1]
    assert len({a.arm for a in found[0]}) == 2
    assert any(a.flags for a in found[0])


def test_arm_is_logged_and_given_again_for_the_same_id(home: Home, served: Served) -> None:
    ids = [f"{n:032x}" for n in range(1, COUNT + 1)]
    first = served.ask(*range(COUNT), ids=ids)
    assert served.ask(*range(COUNT), ids=ids) == first
    served.engine.close()
    assert [find(home, a.id) for a in first] == [(LOOP, a) for a in first]


def test_another_process_and_another_release_of_the_same_salt_give_a_unit_the_same_arm(home: Home, served: Served) -> None:
    before = {a.unit: a.arm for a in served.ask(*range(COUNT))}
    other = Served(home)
    assert {a.unit: a.arm for a in other.ask(*range(COUNT))} == before
    other.engine.close()


def test_rows_whose_key_the_server_makes_are_assigned_by_the_unit_that_is_logged(home: Home) -> None:
    request = {**REQUESTS.columns, "flight": Column("string", filled="row_id")}
    old, new = (package(home.packages, weight=w, request=request).digest for w in (0.05, 0.06))
    releases.release(home, LOOP, old, why="first")
    releases.release(home, LOOP, new, strategy=HALF, why="second")
    served, state = Served(home), now(home)
    rows = [{name: value for name, value in flight(n).items() if name != "flight"} for n in range(COUNT)]
    decoded = served.engine.registry.service(LOOP).decode(text(rows)).rows
    (found,) = served.engine.answer(LOOP, [PredictionRequest(decoded)])
    assert isinstance(found, list)
    assert [a.arm for a in found] == [state.arm_for(a.unit).name for a in found]
    assert [a.unit for a in found] == [a.id for a in found]
    served.engine.close()


def test_declared_unit_has_one_arm_whatever_its_keys_and_without_it_the_key_decides(home: Home) -> None:
    old, new = package(home.packages).digest, package(home.packages, weight=0.06).digest
    releases.release(home, LOOP, old, why="first")
    releases.release(home, LOOP, new, strategy=HALF._replace(unit="tail"), why="second")
    served, state = Served(home), now(home)
    for tail in (f"N{i}" for i in range(20)):
        assert {a.arm for a in served.ask(*range(8), tail=tail)} == {state.arm_for(tail).name}
    without = served.ask(*range(COUNT), tail=None)
    assert [a.arm for a in without] == [state.arm_for(a.unit).name for a in without]
    served.engine.close()


def test_going_back_ends_the_division_first_and_then_goes_to_the_package_before(home: Home, pair: tuple[str, str]) -> None:
    old, new = pair
    releases.release(home, LOOP, new, why="all of it")
    third = package(home.packages, weight=0.07).digest
    releases.release(home, LOOP, third, strategy=HALF, why="and another")
    assert [(a.package, a.name) for a in now(home).arms] == [(new, "champion"), (third, "canary")]
    assert [releases.rollback(home, LOOP, why="no").record.arms for _ in range(2)] == [[Arm(package=new)], [Arm(package=old)]]


def test_going_back_works_without_the_ledger(home: Home, pair: tuple[str, str]) -> None:
    down = Home(msgspec.structs.replace(home.settings, ledger="sqlite:////proc/no/such/ledger.db"), home.clock)
    assert releases.rollback(down, LOOP, why="no").record.arms == [Arm(package=pair[0])]


@pytest.mark.parametrize("whose", [0, 1])
def test_bad_package_of_any_arm_goes_out_of_service(home: Home, pair: tuple[str, str], whose: int) -> None:
    before = package(home.packages, weight=0.07).digest
    releases.release(home, LOOP, before, why="long ago")
    for digest, strategy in zip(pair, (AT_ONCE, HALF), strict=True):
        releases.release(home, LOOP, digest, strategy=strategy, why="again")
    bad = BadPackage(loop=LOOP, package=pair[whose], cause="crash", detail="three deaths", since=home.clock.now())
    home.ledger.put(bad, loop=LOOP, key=bad.package)
    state = releases.withdraw(home, bad)
    assert state is not None
    assert state.arms == [Arm(package=before if whose == 0 else pair[0])], "what is bad is never promoted by the other's fault"
    assert releases.withdraw(home, bad) is None


def test_canary_that_cannot_be_loaded_changes_nothing_and_is_tried_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = package(home.packages).digest, package(home.packages, weight=0.06).digest
    releases.release(home, LOOP, old, why="first")
    served = Served(home)
    model = home.path / "packages" / new / "model.onnx"
    whole = model.read_bytes()
    releases.release(home, LOOP, new, strategy=HALF, why="second")
    model.write_bytes(b"damaged")
    assert served.engine.registry.refresh() == []
    assert {(a.arm, a.package, a.probability) for a in served.ask(*range(COUNT))} == {("champion", old, 1.0)}
    fresh = Served(home)  # as after a restart
    assert fresh.stood_in == [(new, old)]
    assert {(a.arm, a.package, a.probability) for a in fresh.ask(*range(COUNT))} == {("champion", old, 1.0)}
    model.write_bytes(whole)
    monkeypatch.setattr("loopwright.deploy.serving.registry.RETRY_SECONDS", 0.0)
    for each in (served, fresh):
        assert each.engine.registry.refresh() == [LOOP]
        assert {a.package for a in each.ask(*range(COUNT))} == {old, new}
        each.engine.close()


def test_package_with_another_contract_cannot_serve_beside_the_champion(home: Home) -> None:
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    more = package(home.packages, weight=0.06, request={**REQUESTS.columns, "gate": Column("string")})
    with pytest.raises(PackageRefused, match="contract differs from the loop's package in gate"):
        releases.release(home, LOOP, more.digest, strategy=HALF, why="second")
    releases.release(home, LOOP, more.digest, why="all requests have it from now on")


def test_segments_keep_their_packages_while_two_arms_answer_the_rest(home: Home, pair: tuple[str, str]) -> None:
    own = package(home.packages, weight=0.08, segment=Segment(column="tail", value="N1")).digest
    releases.release(home, LOOP, own, why="a segment's")
    state = now(home)
    assert (state.strategy, len(state.arms), state.segments) == (HALF.name, 2, {"N1": own})
    served = Served(home)
    assert {a.package for a in served.ask(*range(COUNT), tail="N1")} == {own}
    assert {a.package for a in served.ask(*range(COUNT), tail=None)} == set(pair)
    served.engine.close()


def test_heuristic_alone_may_be_an_arm(home: Home, pair: tuple[str, str]) -> None:
    state = now(home)
    arms = [state.arms[1], msgspec.structs.replace(state.champion, heuristic=True)]
    found = msgspec.structs.replace(state, generation=3, arms=arms, request="x")
    home.ledger.swap(f"release.{LOOP}", 2, found, loop=LOOP)
    release_files.follow(home)
    served = Served(home)
    answers = served.ask(*range(COUNT), delay=20.0)
    assert {("degraded" in a.flags, a.score == 1.0) for a in answers if a.arm == "champion"} == {(True, True)}
    assert {"degraded" in a.flags for a in answers if a.arm == "canary"} == {False}
    served.engine.close()


def test_packages_of_arms_that_are_gone_are_let_go_of(home: Home, served: Served, pair: tuple[str, str]) -> None:
    cache = served.engine.registry.package_cache
    served.ask(*range(COUNT))
    assert all(digest in cache for digest in pair)
    releases.rollback(home, LOOP, why="no")
    assert served.engine.registry.refresh() == [LOOP]
    assert [digest in cache for digest in pair] == [True, False]
    assert [[(a.name, a.share) for a in arms] for arms in served.swapped] == [
        [("champion", 0.5), ("canary", 0.5)],
        [("champion", 1.0)],
    ]
