"""The verb `history`."""

import shutil
from pathlib import Path

from tests.deploy.loops import LOOP, declared, opened, package

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.verbs.history import history


def test_history_names_the_candidate_of_each_package_that_is_still_there(tmp_path: Path) -> None:
    home = opened(tmp_path, RealClock())
    home.ledger.put(declared().record("loop.py"), loop=LOOP, key=LOOP)
    made = package(home.packages)
    releases.release(home, LOOP, made.digest, why="first")
    assert history(home, LOOP).candidates == {made.digest: "by-hand"}
    shutil.rmtree(home.path / "packages" / made.digest)
    assert history(home, LOOP).candidates == {}
