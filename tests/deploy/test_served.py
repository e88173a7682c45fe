from pathlib import Path

import pytest
from tests.deploy.loops import LANDINGS, LOOP, opened, package

from loopwright.deploy import controller, served
from loopwright.records.errors import Damaged
from loopwright.records.ids import NAME


def test_following_makes_mends_and_leaves_alone(tmp_path: Path) -> None:
    home = opened(tmp_path)
    assert served.follow(home) == []
    controller.release(home, LOOP, package(home.packages).digest, why="first")
    path = served.path_of(home, LOOP)
    before = path.stat()
    assert served.follow(home) == []
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    path.unlink()
    assert served.follow(home) == [LOOP]
    path.write_bytes(b"{half")
    with pytest.raises(Damaged):
        served.read(path)
    assert served.follow(home) == [LOOP]
    found = served.read(path)
    assert found is not None
    assert (found.outcome, found.past, found.unrecorded) == (LANDINGS, [], False)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_file_is_nobody(tmp_path: Path) -> None:
    assert served.read(tmp_path / "nothing.json") is None


def test_pointer_names_are_lawful_for_every_loop() -> None:
    names = ["a", "late-arrival", "x" * 56, "x" * 57, "x" * 64, "y" * 64]
    pointers = [served.pointer_name(name) for name in names]
    assert all(NAME.fullmatch(pointer) for pointer in pointers)
    assert len(set(pointers)) == len(names)
