from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest
from tests.deploy.loops import LANDINGS, LOOP, NOW, declared, opened, package

from loopwright.base.clock import RealClock
from loopwright.base.errors import Damaged
from loopwright.base.ids import NAME
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.records.releases import Arm, ReleaseState


def test_following_makes_mends_and_leaves_alone(tmp_path: Path) -> None:
    home = opened(tmp_path)
    assert release_files.follow(home) == []
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    path = release_files.path_of(home, LOOP)
    before = path.stat()
    assert release_files.follow(home) == []
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    path.unlink()
    assert release_files.follow(home) == [LOOP]
    path.write_bytes(b"{half")
    with pytest.raises(Damaged):
        release_files.read(path)
    assert release_files.follow(home) == [LOOP]
    found = release_files.read(path)
    assert found is not None
    assert (found.outcome, found.past, found.unrecorded) == (LANDINGS, [], False)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_release_made_while_the_ledger_is_read_is_not_taken_back(tmp_path: Path) -> None:
    home = opened(tmp_path)
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    asked_before = release_files._known(home, LOOP)[LOOP]
    second = releases.release(home, LOOP, package(home.packages, weight=0.06).digest, why="second").record
    assert not release_files.Follower(home)._mend(LOOP, asked_before)
    copy = release_files.read(release_files.path_of(home, LOOP))
    assert copy is not None
    assert copy.state == second


def test_key_of_outcomes_is_in_the_order_of_the_requests(tmp_path: Path) -> None:
    """So that the unit of a posted outcome is that of the predictions, in whatever order its table declares the key."""
    home, loop = opened(tmp_path), declared()
    requests = msgspec.structs.replace(loop.requests, key=["flight", "origin"])
    columns = {"origin": requests.columns["origin"], **LANDINGS.columns}
    landed = msgspec.structs.replace(LANDINGS, columns=columns, key=["origin", "flight"])
    loop = msgspec.structs.replace(loop, requests=requests, outcome=msgspec.structs.replace(loop.outcome, table=landed))
    home.ledger.put(loop.record("loop.py"), loop=LOOP, key=LOOP)
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    path = release_files.path_of(home, LOOP)
    path.unlink(missing_ok=True)
    release_files.follow(home)
    found = release_files.read(path)
    assert found is not None
    assert found.outcome is not None
    assert found.outcome.key == ["flight", "origin"]


def test_no_file_is_nobody(tmp_path: Path) -> None:
    assert release_files.read(tmp_path / "nothing.json") is None


def test_pointer_names_are_lawful_for_every_loop() -> None:
    names = ["a", "late-arrival", "x" * 56, "x" * 57, "x" * 64, "y" * 64]
    pointers = [release_files.pointer_name(name) for name in names]
    assert all(NAME.fullmatch(pointer) for pointer in pointers)
    assert len(set(pointers)) == len(names)


def arm(package: str) -> Arm:
    return Arm(package=package)


class Counted:
    """A folder of served files, large: what is not noted in the list beside it is looked for once an hour."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(release_files, "FEW", 3)
        monkeypatch.setattr(release_files, "LOOK_SECONDS", 3600.0)
        self.folder, self.clock = folder / "served", RealClock()
        self.state = ReleaseState(
            loop="l0", generation=1, arms=[arm("0" * 64)], strategy="direct", action="release", since=NOW, by="tests", why=""
        )
        for i in range(20):
            self.write(f"l{i}", 1)

    def write(self, loop: str, generation: int) -> None:
        state = msgspec.structs.replace(self.state, loop=loop, generation=generation)
        release_files.write(self.folder / f"{loop}.json", release_files.ReleaseFile(state=state))

    def changes(self) -> release_files.Changes:
        return release_files.Changes(self.folder, self.clock)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(tmp_path, monkeypatch)


def test_a_change_of_one_loop_is_that_loop_and_no_look_at_the_others(counted: Counted) -> None:
    changes = counted.changes()
    assert changes() == changes.loops == sorted(f"l{i}" for i in range(20))
    assert changes() == []
    unnoted = counted.folder / "l7.json"
    unnoted.write_bytes(unnoted.read_bytes() + b" ")
    for i in (3, 5, 3):
        counted.write(f"l{i}", 2)
    counted.write("new", 1)
    assert changes() == ["l3", "l5", "new"], "the seventh was changed by hand, and is found when all are looked at"
    assert "new" in changes.loops
    assert changes() == []


def test_what_nobody_noted_is_found_in_time(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = counted.changes()
    changes()
    (counted.folder / "l7.json").write_bytes(b"{}")
    (counted.folder / "l8.json").unlink()
    (counted.folder / "by-hand.json").write_bytes(b"{}")
    (counted.folder / "NO NAME.json").write_bytes(b"{}")
    assert changes() == []
    monkeypatch.setattr(release_files, "LOOK_SECONDS", 0.0)
    assert changes() == ["by-hand", "l7", "l8"]
    assert "l8" not in changes.loops
    assert changes() == []


def test_a_small_folder_is_looked_at_each_time(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_files, "FEW", 20)
    changes = counted.changes()
    changes()
    (counted.folder / "l7.json").write_bytes(b"{}")
    assert changes() == ["l7"]


def test_the_list_is_bounded_and_no_change_is_lost_when_it_is_begun_anew(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_files, "MAX_NOTED", 64)
    changes = counted.changes()
    changes()
    noted = counted.folder.with_name("served.changed")
    for step in range(60):
        loop = f"l{step * 7 % 20}"
        counted.write(loop, step + 2)
        assert noted.stat().st_size <= 64
        if step % 3 == 0:
            assert loop in changes()
    changes()
    assert changes() == []
    noted.write_bytes(b"\xff\x00../../etc\nl4\n" * 9)
    counted.write("l2", 99)
    assert "l2" in changes()


def test_threads_that_write_are_all_heard(counted: Counted) -> None:
    changes = counted.changes()
    changes()

    def write(loop: str) -> None:
        for generation in range(2, 12):
            counted.write(loop, generation)

    threads = [Thread(target=write, args=[f"l{i}"]) for i in range(10)]
    heard: set[str] = set()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        heard.update(changes())
    heard.update(changes())
    assert heard == {f"l{i}" for i in range(10)}


def test_following_reads_the_loops_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release costs the work for one loop; what else is written into the ledger costs none."""
    home = opened(tmp_path)
    for i in range(8):
        releases.release(home, f"l{i}", package(home.packages, loop=f"l{i}").digest, why="first")
    monkeypatch.setattr(release_files, "FEW", 3)
    monkeypatch.setattr(release_files, "LOOK_SECONDS", 3600.0)
    follower = release_files.Follower(home)
    assert follower.follow() == []
    mended: list[str] = []
    mend = follower._mend

    def noted(loop: str, known: Any) -> bool:
        mended.append(loop)
        return mend(loop, known)

    monkeypatch.setattr(follower, "_mend", noted)
    home.ledger.put(declared().record("loop.py"), loop="other", key="other")
    assert (follower.follow(), mended) == ([], [])
    state = releases.serving(home, "l4")
    assert state is not None
    newer = msgspec.structs.replace(state, generation=2, arms=[arm(package(home.packages, weight=0.06, loop="l4").digest)])
    home.ledger.swap(release_files.pointer_name("l4"), 1, newer, loop="l4")  # as another machine does
    assert (follower.follow(), mended) == (["l4"], ["l4"])
    copy = release_files.read(release_files.path_of(home, "l4"))
    assert copy is not None
    assert copy.state == newer
    home.ledger.put(declared().record("loop.py"), loop="l5", key="l5")
    assert (follower.follow(), set(mended[1:])) == (["l5"], {"l4", "l5"}), "its contract of outcomes is new"
