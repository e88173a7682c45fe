import shutil
import socket
import threading
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Thread

import msgspec
import pytest
from tests.deploy.loops import LANDINGS, LOOP, NOW, opened, package
from tests.waiting import PATIENCE_SECONDS

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import NotFound, PackageNotFound, PackageRefused, ReleaseConflict
from loopwright.base.settings import Settings
from loopwright.cli.terminal import rendered
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.stores.home import Home
from loopwright.verbs.release import release
from loopwright.verbs.rollback import rollback


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return opened(tmp_path)


def wait(home: Home, hours: float) -> None:
    assert isinstance(home.clock, SimulatedClock)
    home.clock.advance(timedelta(hours=hours))


def three_releases(home: Home) -> list[str]:
    digests = [package(home.packages, weight=w).digest for w in (0.05, 0.06, 0.07)]
    for digest in digests:
        releases.release(home, LOOP, digest, why=f"{digest[:4]} is better")
        wait(home, 24)
    return digests


def test_release_is_a_generation_with_its_reason_and_lineage(home: Home) -> None:
    made = package(home.packages)
    entry = releases.release(home, LOOP, made.digest[:8], why="it is the first", by="ann")
    state = entry.record
    assert (state.generation, state.action, state.by, state.why, state.since) == (1, "release", "ann", "it is the first", NOW)
    assert [(a.name, a.package, a.share, a.heuristic) for a in state.arms] == [("champion", made.digest, 1.0, False)]
    assert [(link.source, link.role) for link in home.ledger.links(entry.id)] == [(made.digest, "released")]
    assert releases.serving(home, LOOP) == state
    assert release_files.read(release_files.path_of(home, LOOP)) == release_files.ReleaseFile(state=state, outcome=LANDINGS)


def test_a_lost_race_is_told(home: Home) -> None:
    a, b = package(home.packages), package(home.packages, weight=0.06)
    releases.release(home, LOOP, a.digest, why="first", expected=0)
    with pytest.raises(ReleaseConflict):
        releases.release(home, LOOP, b.digest, why="late", expected=0)
    assert [e.record.generation for e in releases.history(home, LOOP)] == [1]


def test_of_many_at_once_one_wins_each_generation(home: Home) -> None:
    digests = [package(home.packages, weight=0.05 + i / 100).digest for i in range(4)]
    barrier, outcomes = Barrier(12), []

    def race(i: int) -> None:
        barrier.wait()
        try:
            releases.release(home, LOOP, digests[i % 4], why="race", expected=0)
            outcomes.append("won")
        except ReleaseConflict:
            outcomes.append("lost")

    threads = [Thread(target=race, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 11 + ["won"]
    assert len(releases.history(home, LOOP)) == 1


def test_a_package_of_another_loop_is_refused(home: Home) -> None:
    made = package(home.packages, loop="another")
    with pytest.raises(PackageRefused, match="made for loop 'another'"):
        releases.release(home, LOOP, made.digest, why="x")
    with pytest.raises(PackageNotFound):
        releases.release(home, LOOP, "0123456789", why="x")
    assert releases.history(home, LOOP) == []


def test_who_served_when(home: Home) -> None:
    digests = three_releases(home)
    assert releases.serving(home, LOOP, NOW - timedelta(seconds=1)) is None
    for i, digest in enumerate(digests):
        state = releases.serving(home, LOOP, NOW + timedelta(hours=24 * i + 1))
        assert state is not None
        assert state.champion.package == digest


def test_rollback_to_before_to_a_package_and_to_a_time(home: Home) -> None:
    a, b, c = three_releases(home)
    assert releases.rollback(home, LOOP, why="bad").record.champion.package == b
    assert releases.rollback(home, LOOP, to=a[:6], why="bad").record.champion.package == a
    assert releases.rollback(home, LOOP, to="2024-05-03T12:00:00Z", why="bad").record.champion.package == c
    last = releases.rollback(home, LOOP, to="wednesday 12:00", why="bad").record
    assert (last.champion.package, last.action, last.generation) == (a, "rollback", 7)


def test_rollbacks_that_lead_nowhere(home: Home) -> None:
    with pytest.raises(NotFound, match="nothing serves yet"):
        releases.rollback(home, LOOP, why="x")
    made = package(home.packages)
    unused = package(home.packages, weight=0.9)
    releases.release(home, LOOP, made.digest, why="first")
    with pytest.raises(NotFound, match="only one package"):
        releases.rollback(home, LOOP, why="x")
    for never_served in (unused.digest[:8], "whenever"):
        with pytest.raises(PackageNotFound, match=f"no package that served '{never_served}' - .*loopwright history"):
            releases.rollback(home, LOOP, to=never_served, why="x")
    with pytest.raises(NotFound, match="the first one was at"):
        releases.rollback(home, LOOP, to="2020-01-01", why="x")


def test_a_damaged_package_is_not_gone_back_to(home: Home) -> None:
    a, _, _ = three_releases(home)
    (home.path / "packages" / a / "model.onnx").write_bytes(b"x")
    with pytest.raises(PackageRefused):
        releases.rollback(home, LOOP, to=a[:8], why="x")
    assert len(releases.history(home, LOOP)) == 3


def test_damaged_local_copy_keeps_nobody_from_going_back(home: Home) -> None:
    _, b, c = three_releases(home)
    copy = release_files.path_of(home, LOOP)
    copy.write_bytes(b"{")
    assert releases.rollback(home, LOOP, why="x").record.champion.package == b
    read = release_files.read(copy)
    assert read is not None
    assert read.state.champion.package == b
    copy.write_bytes(b"{")
    assert rollback(home, LOOP, why="x", request_id="again").champion.package == c
    copy.write_bytes(b"{")
    assert release(home, LOOP, b, why="x", request_id="next", force=True).champion.package == b


def without_ledger(home: Home) -> Home:
    """The same home, its ledger at an address where nothing is."""
    settings = msgspec.structs.replace(home.settings, ledger="sqlite:////proc/no/such/ledger.db")
    return Home(settings, home.clock)


def test_rollback_without_the_ledger_is_recorded_when_it_is_back(home: Home) -> None:
    a, b, c = three_releases(home)
    down = without_ledger(home)
    entry = releases.rollback(down, LOOP, to=a[:8], why="the ledger is down and c is bad")
    again = releases.rollback(down, LOOP, to=b[:8], why="rather this one")
    assert (entry.record.generation, again.record.generation) == (4, 5)
    local = release_files.read(release_files.path_of(home, LOOP))
    assert local is not None
    assert (local.state.champion.package, local.pending) == (b, [entry.record, again.record])
    assert release_files.follow(home) == [LOOP]
    history = [(e.record.generation, e.record.champion.package, e.record.action) for e in releases.history(home, LOOP)]
    assert history == [(1, a, "release"), (2, b, "release"), (3, c, "release"), (4, a, "rollback"), (5, b, "rollback")]
    local = release_files.read(release_files.path_of(home, LOOP))
    assert local is not None
    assert (local.state.champion.package, local.unrecorded) == (b, False)
    assert release_files.follow(home) == []
    assert home.ledger.verify() == []


def test_a_release_made_meanwhile_wins_over_an_unrecorded_rollback(home: Home) -> None:
    a, b, _ = three_releases(home)
    releases.rollback(without_ledger(home), LOOP, to=a[:8], why="ledger down here")
    elsewhere = Home(Settings(home=home.path.parent / "elsewhere", ledger=home.settings.ledger_url, by="bob"), home.clock)
    shutil.copytree(home.path / "packages" / b, elsewhere.folder("packages") / b)
    releases.release(elsewhere, LOOP, b, why="released on another machine")
    release_files.follow(home)
    local = release_files.read(release_files.path_of(home, LOOP))
    assert local is not None
    assert (local.state.champion.package, local.unrecorded) == (b, False)


def test_a_rollback_does_not_wait_for_a_ledger_that_does_not_answer(tmp_path: Path) -> None:
    """A database that takes the connection and never says a word, as behind a broken network."""
    with opened(tmp_path) as home, socket.create_server(("127.0.0.1", 0)) as silent:
        first, second = package(home.packages).digest, package(home.packages, weight=0.06).digest
        for digest in (first, second):
            releases.release(home, LOOP, digest, why="by hand")
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none?connect_timeout=3600"
        down = Home(Settings(home=home.path, ledger=url, by="ann"), home.clock)
        rollback(down, LOOP, why="the network is gone")
        copy = release_files.read(release_files.path_of(home, LOOP))
        assert copy is not None
        assert (copy.state.champion.package, copy.unrecorded) == (first, True)
        release_files.follow(home)
        assert [s.record.by for s in releases.history(home, LOOP)] == ["tests", "tests", "ann"]
        silent.close()
        for thread in threading.enumerate():
            if thread.name == "rollback":
                thread.join(PATIENCE_SECONDS)


def test_rollback_says_what_another_one_returns_to(home: Home) -> None:
    a, b, c = three_releases(home)
    assert release(home, LOOP, c).returns_to == "", "no rollback"
    back = rollback(home, LOOP, why="bad")
    assert (back.champion.package, back.returns_to) == (b, c)
    assert f"`loopwright rollback {LOOP}` once more returns to {c[:12]}" in str(rendered(back))
    again = rollback(home, LOOP, why="no, it was not")
    assert (again.champion.package, again.returns_to) == (c, b)
    assert rollback(home, LOOP, to=a[:8], why="rather the first").returns_to == c
