"""One change is made once: by the thread that is late, the local copy, or the request that is sent again."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.deploy.loops import LOOP, opened, package
from tests.deploy.test_releases import three_releases, without_ledger

from loopwright.base.errors import PackageNotFound, ReleaseConflict, RequestConflict
from loopwright.deploy import release_commit, releases
from loopwright.deploy.serving import release_files
from loopwright.records.entries import Entry
from loopwright.records.releases import ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.ledger.store import Ledger
from loopwright.verbs.release import release
from loopwright.verbs.rollback import rollback


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path) as found:
        yield found


class SlowLedger(Ledger):
    """A ledger whose calls from threads of a rollback stop, before or after they are carried out, until they are let go on."""

    def __init__(self, ledger: Ledger) -> None:
        self.__dict__.update(ledger.__dict__)
        self.stops: list[bool] = []
        self.stopped: list[threading.Event] = []

    def find(self, *given: Any, **named: Any) -> Any:
        return self._slowly(super().find, *given, **named)

    def swap(self, *given: Any, **named: Any) -> Any:
        return self._slowly(super().swap, *given, **named)

    def _slowly(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        self._stop()
        try:
            return call(*given, **named)
        finally:
            self._stop()

    def _stop(self) -> None:
        if threading.current_thread().name == "rollback" and self.stops and self.stops.pop(0):
            waits = threading.Event()
            self.stopped.append(waits)
            assert waits.wait(60)

    def go_on(self) -> None:
        """Let the thread that was stopped first go on."""
        if self.stopped:
            self.stopped.pop(0).set()

    def end(self) -> None:
        """Let every thread go on to its end."""
        self.stops.clear()
        while self.stopped:
            self.go_on()
        for thread in threading.enumerate():
            if thread.name == "rollback":
                thread.join(60)


def slow(home: Home) -> SlowLedger:
    ledger = SlowLedger(home.ledger)
    home.__dict__["ledger"] = ledger
    return ledger


def packages(home: Home) -> list[str]:
    return [entry.record.champion.package for entry in releases.history(home, LOOP)]


def test_rollback_that_is_late_is_carried_out_once(home: Home) -> None:
    """The thread that reads the history after the local change was recorded went "one before" once more."""
    a, b, c = three_releases(home)
    ledger = slow(home)
    ledger.stops = [True]
    answer = releases.rollback(home, LOOP, why="c is bad").record
    assert answer.champion.package == b
    release_files.follow(home)
    ledger.end()
    release_files.follow(home)
    assert packages(home) == [a, b, c, b]
    copy = release_files.read(release_files.path_of(home, LOOP))
    assert copy is not None
    assert (copy.state, copy.unrecorded) == (answer, 0)


STEPS = st.lists(st.sampled_from(["go on", "follow", "again", "other process"]), max_size=8)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.booleans(), min_size=1, max_size=12), steps=STEPS)
def test_any_interleaving_of_late_thread_local_change_and_retry_is_one_change(
    home: Home, monkeypatch: pytest.MonkeyPatch, stops: list[bool], steps: list[str]
) -> None:
    monkeypatch.setattr(releases, "LEDGER_SECONDS", 0.05)
    first, second = package(home.packages).digest, package(home.packages, weight=0.06).digest
    for digest in (first, second):
        releases.release(home, LOOP, digest, why="by hand")
    before = releases.history(home, LOOP)
    ledger = slow(home)
    ledger.stops = list(stops)
    key = f"key-{len(before)}"

    def go_back(of: Home) -> None:
        answers.append(releases.rollback(of, LOOP, why="it is bad", request=key).record)

    answers: list[ReleaseState] = []
    try:
        go_back(home)
        for step in steps:
            match step:
                case "go on":
                    ledger.go_on()
                case "follow":
                    release_files.follow(home)
                case "again":
                    go_back(home)
                case "other process":
                    with Home(home.settings, home.clock) as other:
                        go_back(other)
    finally:
        ledger.end()
    release_files.follow(home)
    go_back(home)
    history = releases.history(home, LOOP)
    assert len(history) == len(before) + 1
    assert all(answer == history[-1].record for answer in answers)
    assert history[-1].record.champion.package == first
    copy = release_files.read(release_files.path_of(home, LOOP))
    assert copy is not None
    assert (copy.state, copy.unrecorded) == (history[-1].record, 0)
    home.__dict__.pop("ledger")


@pytest.mark.parametrize("down", [False, True])
def test_of_many_rollbacks_from_one_generation_one_is_made(home: Home, down: bool) -> None:
    a, b, c = three_releases(home)
    of, barrier, outcomes = without_ledger(home) if down else home, Barrier(6), []

    def race() -> None:
        barrier.wait()
        try:
            outcomes.append(releases.rollback(of, LOOP, why="bad", expected=3).record.champion.package)
        except ReleaseConflict:
            outcomes.append("lost")

    threads = [Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    release_files.follow(home)
    assert sorted(outcomes) == sorted([b, *["lost"] * 5])
    assert packages(home) == [a, b, c, b]


def test_idempotency_key_gives_the_same_answer_after_a_restart_and_from_another_process(home: Home) -> None:
    _, b, _ = three_releases(home)
    answer = rollback(home, LOOP, request_id="r1")
    with Home(home.settings, home.clock) as again:
        assert rollback(again, LOOP, request_id="r1") == answer
        with pytest.raises(RequestConflict):
            rollback(again, LOOP, request_id="r1", to=b[:8])
        assert rollback(again, LOOP, request_id="r2").generation == 5
        assert rollback(again, LOOP, request_id="r1") == answer, "also when others came after it"
    assert len(releases.history(home, LOOP)) == 5


def test_idempotency_key_of_a_rollback_without_the_ledger_is_recorded_with_it(home: Home) -> None:
    three_releases(home)
    down = without_ledger(home)
    answers = [releases.rollback(down, LOOP, why="bad", request="r1").record for _ in range(2)]
    release_files.follow(home)
    answers += [releases.rollback(of, LOOP, why="bad", request="r1").record for of in (home, down)]
    assert answers == [answers[0]] * 4
    assert len(releases.history(home, LOOP)) == 4


def test_idempotency_key_of_a_release_is_kept_where_it_changed_nothing(home: Home) -> None:
    a, b, c = three_releases(home)
    asked = releases.arguments("release", package=c, force=False)
    answer = release(home, LOOP, c, request_id="r1")
    assert answer.generation == 3
    releases.release(home, LOOP, b, why="by somebody else")
    assert release(home, LOOP, c, request_id="r1").generation == 3, "it does not undo what came after it"
    entry = releases.release(home, LOOP, a, why="x", request="r2")
    assert releases.release(home, LOOP, a, why="x", request="r2") == entry
    found = release_commit.answered(home, LOOP, "r1", asked)
    assert found is not None
    with pytest.raises(RequestConflict):
        release(home, LOOP, a, request_id="r1")
    assert packages(home) == [a, b, c, b, a]


@pytest.mark.parametrize("change", [release, rollback])
def test_idempotency_key_with_another_reason_is_refused(home: Home, change: Callable[..., Any]) -> None:
    """The reason is in the audit trail for good: a request that gives another one is another request."""
    a, *_ = three_releases(home)
    given = {"package": a} if change is release else {}
    answer = change(home, LOOP, **given, why="better at night", request_id="r1")
    assert change(home, LOOP, **given, why="better at night", request_id="r1") == answer
    for other in ("worse by day", ""):
        with pytest.raises(RequestConflict):
            change(home, LOOP, **given, why=other, request_id="r1")


def test_rollback_to_the_heuristic_names_the_command_that_serves_it(home: Home) -> None:
    three_releases(home)
    with pytest.raises(PackageNotFound, match="`loopwright release LOOP heuristic --why REASON` serves the rule"):
        rollback(home, LOOP, to="heuristic")


def test_release_after_a_local_rollback_comes_after_it(home: Home) -> None:
    a, b, c = three_releases(home)
    releases.rollback(without_ledger(home), LOOP, why="ledger down")
    releases.release(home, LOOP, a, why="rather this one")
    assert packages(home) == [a, b, c, b, a]


def test_files_of_earlier_versions_with_an_unrecorded_rollback_are_recorded(home: Home) -> None:
    a, b, c = three_releases(home)
    entry: Entry[ReleaseState] = releases.rollback(without_ledger(home), LOOP, why="ledger down")
    path = release_files.path_of(home, LOOP)
    data = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**data, "unrecorded": True}))
    copy = release_files.read(path)
    assert copy is not None
    assert copy.pending == [entry.record]
    release_files.follow(home)
    assert packages(home) == [a, b, c, b]
