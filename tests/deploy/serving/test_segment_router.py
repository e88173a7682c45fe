import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, NOW, REQUESTS, Weather, flight, model_graph, opened, package

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import NotFound, PackageNotFound, PackageRefused, ReleaseConflict
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving import segment_router as serving_fleet
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry, Watcher
from loopwright.deploy.serving.segment_router import MISSING, check_segment
from loopwright.records.declarations import Column
from loopwright.records.package import Segment, unused_optional
from loopwright.records.prediction import Prediction
from loopwright.records.releases import ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.read import find

ODD = [
    "",
    " ",
    "JFK",
    "global",
    "Ünïcode ✈",
    "a/../b",
    "x" * 10_000,
    "JF\u041a",
    "'; DROP TABLE release; --",
    "tab\tnew\nline",
    '{"json": 1}',
]
"""Texts that a segment may have; none of them becomes a name of a file or a pointer."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return opened(tmp_path)


def of_tail(home: Home, tail: str, weight: float, **changes: Any) -> Package:
    return package(home.packages, weight=weight, segment=Segment(column="tail", value=tail), **changes)


def fleet(home: Home, tails: list[str], weight: float = 0.05, **changes: Any) -> dict[str, str]:
    return {tail: of_tail(home, tail, weight + (i + 1) / 1000, **changes).digest for i, tail in enumerate(tails)}


def release(home: Home, tails: list[str], weight: float = 0.05) -> ReleaseState:
    own = package(home.packages, weight=weight).digest
    return releases.release(home, LOOP, own, fleet="tail", segments=fleet(home, tails, weight), why="a fleet").record


class Served:
    """An engine, and what it told."""

    def __init__(self, home: Home) -> None:
        self.refused: list[str] = []
        watcher = Watcher(lambda *_: None, lambda _, why: self.refused.append(why), lambda *_: None)
        self.engine = ServingEngine(Registry(home.path, home.packages, Weather(), home.clock, watcher))
        self.engine.registry.refresh()

    def ask(self, *tails: str | None, **changes: Any) -> list[Prediction]:
        rows = [flight(i, tail=tail, delay=5.0 * i, **changes) for i, tail in enumerate(tails)]
        (result,) = self.engine.answer(LOOP, [PredictionRequest(self.engine.registry.service(LOOP).decode(text(rows)).rows)])
        assert isinstance(result, list), result
        return result

    @property
    def loaded(self) -> list[str]:
        return self.engine.registry.service(LOOP).segments.loaded


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine: what is asked is loaded, except where a test says otherwise."""
    monkeypatch.setattr("loopwright.deploy.serving.registry.LOAD_SECONDS", 60.0)
    monkeypatch.setattr(serving_fleet, "SWITCH_SECONDS", 60.0)


@pytest.fixture
def serving(home: Home) -> Iterator[Served]:
    release(home, ODD)
    found = Served(home)
    yield found
    found.engine.close()


def test_rows_of_one_batch_go_to_the_package_of_their_segment_in_order(home: Home, serving: Served) -> None:
    state = releases.serving(home, LOOP)
    assert state is not None
    tails = [*ODD, None, "never seen", *reversed(ODD), None]
    answers = serving.ask(*tails)
    own = state.champion.package
    assert [a.package for a in answers] == [own if t is None else state.segments.get(t, own) for t in tails]
    assert [a.segment for a in answers] == [t if t in ODD else None for t in tails]
    assert [a.unit for a in answers] == [f"UA{i}" for i in range(len(tails))]
    assert len({a.package for a in answers}) == len(ODD) + 1
    for i, (tail, answer) in enumerate(zip(tails, answers, strict=True)):
        (alone,) = serving.ask(*([None] * i), tail)[-1:]
        assert (alone.score, alone.package, alone.flags) == (answer.score, answer.package, answer.flags)


def test_a_prediction_remembers_its_segment_in_the_log_and_in_the_table(home: Home, serving: Served) -> None:
    answers = serving.ask("JFK", None)
    serving.engine.close()
    assert [find(home, a.id) for a in answers] == [(LOOP, a) for a in answers]
    commit(home, LOOP)
    assert [find(home, a.id) for a in answers] == [(LOOP, a) for a in answers]
    assert [a.segment for a in answers] == ["JFK", None]


def test_packages_are_loaded_when_first_asked_and_kept_over_releases(home: Home, serving: Served) -> None:
    state = releases.serving(home, LOOP)
    assert state is not None
    assert serving.loaded == []
    serving.ask("JFK", None, "nobody")
    assert serving.loaded == [state.segments["JFK"]]
    releases.rollback(home, LOOP, segment="global", why="only another segment")
    serving.engine.registry.refresh()
    assert serving.loaded == [state.segments["JFK"]]
    newer = of_tail(home, "JFK", 0.2)
    releases.release(home, LOOP, newer.digest, why="a better one for JFK")
    serving.engine.registry.refresh()
    assert serving.loaded == [newer.digest], "what was asked before is ready before it is asked again"


@pytest.mark.parametrize("harm", ["missing", "damaged", "golden", "of another segment", "other contract"])
def test_a_package_that_cannot_be_loaded_is_stood_in_for_by_the_loops_own(
    home: Home, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = release(home, ["N1", "N2"])
    folder = home.path / "packages" / state.segments["N1"]
    spare = home.path / "spare"
    shutil.copytree(folder, spare)
    changed: Package | None = None
    if harm == "missing":
        shutil.rmtree(folder)
    elif harm == "damaged":
        (folder / "model.onnx").write_bytes(b"x")
    elif harm == "golden":
        changed = of_tail(home, "N1", 0.3, golden=list(package(home.packages).reference.golden))
    elif harm == "of another segment":
        changed = of_tail(home, "N2", 0.3)
    else:
        made = home.packages.read(state.segments["N1"])
        request = {n: c for n, c in made.manifest.request.items() if n != "night"}
        changed = home.packages.write(msgspec.structs.replace(made.manifest, request=request, files={}), made.files)
    if changed is not None:
        copy = release_files.read(release_files.path_of(home, LOOP))
        assert copy is not None
        wrong = msgspec.structs.replace(state, segments={**state.segments, "N1": changed.digest})
        release_files.write(release_files.path_of(home, LOOP), msgspec.structs.replace(copy, state=wrong))
    found = Served(home)
    first, second, third = found.ask("N1", "N2", None)
    assert (first.package, first.segment, first.flags) == (state.champion.package, None, [MISSING])
    assert (second.package, second.flags, third.flags) == (state.segments["N2"], [], [])
    found.ask("N1")
    assert len(found.refused) == 1, "it is not tried for every row"
    if harm in ("missing", "damaged"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(spare, folder)
        monkeypatch.setattr(serving_fleet, "RETRY_SECONDS", 0.0)
        assert found.ask("N1")[0].package == state.segments["N1"]
    found.engine.close()


def test_a_request_does_not_wait_for_hundreds_of_packages(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads for a bounded time; what is left is stood in for, and loaded beside it for the next request."""
    tails = [f"N{i}" for i in range(12)]
    state = release(home, tails)
    monkeypatch.setattr("loopwright.deploy.serving.registry.LOAD_SECONDS", 0.0)
    found = Served(home)
    first = found.ask(*tails)
    stood_in = [a for a in first if a.flags == [MISSING]]
    assert {a.package for a in stood_in} == {state.champion.package}
    assert len(stood_in) == len(tails) - len(found.loaded) > 0
    found.engine.registry.refresh()
    assert len(found.loaded) == len(tails)
    assert [a.package for a in found.ask(*tails)] == [state.segments[t] for t in tails]
    assert found.refused == []
    found.engine.close()


def test_a_switch_does_not_wait_for_hundreds_of_packages(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    tails = [f"N{i}" for i in range(12)]
    release(home, tails, 0.05)
    found = Served(home)
    found.ask(*tails)
    assert len(found.loaded) == len(tails)
    monkeypatch.setattr(serving_fleet, "SWITCH_SECONDS", 0.0)
    second = release(home, tails, 0.10)
    assert found.engine.registry.refresh() == [LOOP]
    answers = found.ask(*tails)
    assert {a.package for a in answers} <= set(second.packages)
    monkeypatch.setattr(serving_fleet, "SWITCH_SECONDS", 30.0)
    found.engine.registry.refresh()
    assert len(found.loaded) == len(tails)
    assert [a.package for a in found.ask(*tails)] == [second.segments[t] for t in tails]
    found.engine.close()


def test_a_package_that_cannot_answer_a_row_is_stood_in_for(home: Home) -> None:
    own = package(home.packages)
    made = of_tail(home, "N1", 0.3, model=model_graph(fails="nan"))
    broken = home.packages.write(
        msgspec.structs.replace(made.manifest, files={}), {**made.files, "heuristic.onnx": made.files["model.onnx"]}
    )
    releases.release(home, LOOP, own.digest, fleet="tail", segments={"N1": broken.digest}, why="broken twice")
    found = Served(home)
    rows = [flight(1, tail="N1", delay=100.0)]
    (result,) = found.engine.answer(LOOP, [PredictionRequest(found.engine.registry.service(LOOP).decode(text(rows)).rows)])
    assert isinstance(result, list)
    assert (result[0].package, result[0].flags) == (own.digest, [MISSING])
    found.engine.close()


def test_one_segment_goes_back_alone(home: Home) -> None:
    first = release(home, ["N1", "N2"], 0.05)
    second = release(home, ["N1", "N2"], 0.10)
    back = releases.rollback(home, LOOP, segment="N1", why="worse for N1").record
    assert (back.arms, back.segments) == (second.arms, {"N1": first.segments["N1"], "N2": second.segments["N2"]})
    assert (back.generation, back.action, back.fleet) == (3, "rollback", "tail")
    none = releases.rollback(home, LOOP, segment="N1", to="global", why="not even that").record
    assert none.segments == {"N2": second.segments["N2"]}
    again = releases.rollback(home, LOOP, segment="N1", to=second.segments["N1"][:8], why="it was right").record
    assert again.segments == second.segments
    with pytest.raises(PackageNotFound):
        releases.rollback(home, LOOP, segment="N1", to=second.segments["N2"][:8], why="of another segment")
    with pytest.raises(NotFound, match="nearest: N"):
        releases.rollback(home, LOOP, segment="N3", why="nobody")


def test_a_segment_that_never_had_another_package_goes_back_to_the_loops_own(home: Home) -> None:
    release(home, ["N1"])
    assert releases.rollback(home, LOOP, segment="N1", why="bad").record.segments == {}
    assert len(releases.rollback(home, LOOP, segment="N1", why="not so bad").record.segments) == 1


def test_a_segment_goes_back_to_a_time(home: Home) -> None:
    assert isinstance(home.clock, SimulatedClock)
    states = []
    for i in range(3):
        states.append(release(home, ["N1", "N2"], 0.05 + i / 10))
        home.clock.advance(timedelta(days=1))
    back = releases.rollback(home, LOOP, segment="N2", to=f"{NOW + timedelta(hours=30):%Y-%m-%dT%H:%M}", why="as on the 2nd")
    assert back.record.segments == {"N1": states[2].segments["N1"], "N2": states[1].segments["N2"]}


def test_the_whole_fleet_goes_back_in_one_step(home: Home) -> None:
    release(home, ["N1", "N2"], 0.05)
    mended = releases.rollback(home, LOOP, segment="N1", why="bad for N1").record
    second = release(home, ["N1", "N2", "N3"], 0.10)
    releases.rollback(home, LOOP, segment="N3", why="bad for N3")
    back = releases.rollback(home, LOOP, why="all of it is bad").record
    assert (back.arms, back.segments, back.fleet) == (mended.arms, mended.segments, "tail"), "as it was when last in service"
    forth = releases.rollback(home, LOOP, to=second.champion.package[:8], why="no, it was not").record
    assert forth.arms == second.arms
    assert "N3" not in forth.segments
    assert [e.record.generation for e in releases.history(home, LOOP)] == [1, 2, 3, 4, 5, 6]


def test_a_package_without_its_fleet_serves_alone(home: Home) -> None:
    first = release(home, ["N1"])
    other = package(home.packages, weight=0.4)
    state = releases.release(home, LOOP, other.digest, why="by hand").record
    assert (state.segments, state.fleet) == ({}, "")
    back = releases.rollback(home, LOOP, why="the fleet was better").record
    assert (back.arms, back.segments) == (first.arms, first.segments)


def test_a_segments_package_is_released_for_its_segment_only(home: Home) -> None:
    made = of_tail(home, "N1", 0.2)
    with pytest.raises(NotFound, match="beside one of the whole loop"):
        releases.release(home, LOOP, made.digest, why="alone")
    own = package(home.packages)
    releases.release(home, LOOP, own.digest, why="first")
    state = releases.release(home, LOOP, made.digest, why="N1 is different").record
    assert (state.champion.package, state.fleet, state.segments) == (own.digest, "tail", {"N1": made.digest})
    other = package(home.packages, weight=0.3, segment=Segment(column="origin", value="JFK"))
    with pytest.raises(PackageRefused, match="a fleet by 'origin'"):
        releases.release(home, LOOP, other.digest, why="another fleet")
    with pytest.raises(PackageRefused, match="made for tail=N1"):
        releases.release(home, LOOP, own.digest, fleet="tail", segments={"N2": made.digest}, why="swapped")
    with pytest.raises(PackageRefused, match="the whole loop"):
        releases.release(home, LOOP, own.digest, fleet="tail", segments={"N2": own.digest}, why="not a segment's")
    with pytest.raises(ReleaseConflict):
        releases.release(home, LOOP, made.digest, why="late", expected=1)
    assert len(releases.history(home, LOOP)) == 2


def test_a_segments_package_may_ask_for_fewer_columns_than_the_loops_own_and_not_for_more(home: Home) -> None:
    few = unused_optional(REQUESTS.columns, {"flight", "pushed_back_at", "origin", "delay", "tail"})
    own, loose = (package(home.packages, request=request) for request in (REQUESTS.columns, few))
    made = {name: of_tail(home, "N1", 0.06, request=request) for name, request in (("all", REQUESTS.columns), ("few", few))}
    check_segment(made["few"], own, "tail", "N1")
    check_segment(made["few"], loose, "tail", "N1")
    with pytest.raises(PackageRefused, match="its contract differs from the loop's package in hour, night"):
        check_segment(made["all"], loose, "tail", "N1")
    other = of_tail(home, "N1", 0.06, request={**few, "night": Column("boolean", description="another")})
    with pytest.raises(PackageRefused, match="in night"):
        check_segment(other, own, "tail", "N1")


def test_what_was_released_is_linked_once(home: Home) -> None:
    release(home, ["N1", "N2"])
    entry = releases.rollback(home, LOOP, segment="N1", to="global", why="x")
    back = releases.rollback(home, LOOP, segment="N1", why="y")
    own = back.record.champion.package
    assert [link.source for link in home.ledger.links(entry.id)] == [own]
    assert {link.source for link in home.ledger.links(back.id)} == {own, back.record.segments["N1"]}


def test_going_back_works_without_the_ledger(home: Home) -> None:
    first, second = release(home, ["N1", "N2"], 0.05), release(home, ["N1", "N2"], 0.10)
    settings = msgspec.structs.replace(home.settings, ledger="sqlite:////proc/no/such/ledger.db")
    down = Home(settings, home.clock)
    releases.rollback(down, LOOP, segment="N2", why="the ledger is down")
    copy = release_files.read(release_files.path_of(home, LOOP))
    assert copy is not None
    assert copy.state.segments == {"N1": second.segments["N1"], "N2": first.segments["N2"]}
    assert release_files.follow(home) == [LOOP]
    state = releases.serving(home, LOOP)
    assert state is not None
    assert (state.segments, state.generation) == (copy.state.segments, 3)
    assert home.ledger.verify() == []


def test_following_a_large_fleet_is_one_file_and_nothing_while_nothing_changes(home: Home) -> None:
    digests = fleet(home, ["N1"])
    own = package(home.packages).digest
    releases.release(home, LOOP, own, fleet="tail", segments=digests, why="first")
    present = releases.serving(home, LOOP)
    assert present is not None
    many = {f"N{i}": digests["N1"] for i in range(500)}
    states = [msgspec.structs.replace(present, segments=many, generation=i + 2) for i in range(120)]
    for state in states:
        home.ledger.swap(release_files.pointer_name(LOOP), state.generation - 1, state, loop=LOOP)
    follower = release_files.Follower(home)
    assert follower.follow() == [LOOP]
    path = release_files.path_of(home, LOOP)
    copy = release_files.read(path)
    assert copy is not None
    assert copy.state == states[-1]
    assert copy.past == states[-1 - len(copy.past) : -1]
    assert 1 <= len(copy.past) <= release_files.MAX_PACKAGES // 501
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert follower.follow() == []
    path.unlink()
    assert follower.follow() == [LOOP]


def test_a_swap_of_the_fleet_under_load_mixes_nothing(home: Home) -> None:
    states = [release(home, ["N1", "N2", "N3"], w) for w in (0.05, 0.10)]
    found = Served(home)
    lawful = [{s.package_of("N1"), s.package_of("N2"), s.package_of(None)} for s in states]
    over: list[int] = []

    def swap() -> None:
        for _ in range(8):
            releases.rollback(home, LOOP, why="back and forth")
            found.engine.registry.refresh()
        over.append(1)

    thread = Thread(target=swap)
    thread.start()
    seen = set()
    while not over:
        answers = found.ask("N1", "N2", None, "N1")
        packages = {a.package for a in answers}
        assert packages in lawful
        assert all(not a.flags for a in answers)
        seen.add(frozenset(packages))
    thread.join()
    assert len(seen) == 2
    found.engine.close()
