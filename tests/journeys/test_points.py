"""Every fail point there is: killed there, and each error raised there, then begun again; what was told is there, once."""

import shutil
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from tests.journeys import life, synthetic
from tests.journeys.test_fleet import FILE as VISITS
from tests.journeys.test_fleet import START as FIRST_VISITS
from tests.journeys.test_fleet import world

from loopwright.base.clock import SimulatedClock
from loopwright.base.failpoints import POINTS
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.loop import load_loop
from loopwright.stores.home import Home

OF_PLANS = {"release.judged", "release.blocked"}
"""Reached by a release with a plan only: tests/deploy/test_controller.py dies there."""

NAMES = [name for name, _ in POINTS if name not in OF_PLANS]
TURN = ["turn.step.began", "turn.step.ran", "package.recorded"]
FLEET = ["turn.segment.kept"]
QUICK = ("log.append.", "log.sync", "log.commit.")
"""Those that every run of the tests walks; the slow ones walk the rest."""

FILLS = ("log.create", "log.append.write", "log.seal.write", "lake.committed", "package.partly")
"""Where something is written, so that the disk may be full."""

WRITES = ["log.append.write", "log.seal.write"]
AFTER_A_DEATH = ["log.recover.torn", "log.recover.cut"]
"""Passed only by who finds what a writer left that died in a write."""

_forks = get_context("forkserver")
_forks.set_forkserver_preload(["tests.journeys.life", "loopwright.stores.ledger.store", "alembic.command"])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Homes to begin each life in, to be copied."""
    folder = tmp_path_factory.mktemp("begun")
    synthetic.filled(folder / "turn", synthetic.START, synthetic.world()).close()
    loop = load_loop(VISITS)
    with Home(Settings(home=folder / "fleet", by="tests"), SimulatedClock(FIRST_VISITS)) as home:
        for table, rows in zip(("visits", "purchases"), world(), strict=True):
            ingest(home, loop.tables[table], rows)
    (folder / "serve").mkdir()
    return {name: folder / name for name in life.LIVES}


class Walk:
    """One life in a folder of its own, lived again and again."""

    def __init__(self, name: str, begun: Path, folder: Path) -> None:
        self.name, self.home, self.told = name, folder / "home", folder / "told"
        folder.mkdir()
        shutil.copytree(begun, self.home)

    def live(self, points: str = "") -> int:
        """Its exit: 0 lived to the end, 1 an error ended it, minus the signal that did."""
        return self._run(partial(life.live, self.name, self.home, self.told, points))

    def check(self) -> None:
        """Look at what is there, after a life without fail points."""
        assert self.live() == 0, self.told.with_suffix(".error").read_text()
        assert self._run(partial(life.check, self.name, self.home, self.told)) == 0, self.told.with_suffix(".error").read_text()

    def reached(self) -> set[str]:
        """The points of the last life's rules that it came to."""
        return set(self.told.with_suffix(".hits").read_text().split())

    def _run(self, what: Callable[[], Any]) -> int:
        process = _forks.Process(target=what)
        process.start()
        process.join(600)
        code = process.exitcode
        process.close()
        assert code is not None
        return code


@pytest.fixture
def walk(begun: dict[str, Path], tmp_path: Path) -> Callable[[str], Walk]:
    folders = (tmp_path / str(number) for number in range(9))
    return lambda name: Walk(name, begun[name], next(folders))


def life_of(point: str) -> str:
    return "turn" if point in TURN else "fleet" if point in FLEET else "serve"


@pytest.mark.parametrize("name", ["serve", *(pytest.param(n, marks=pytest.mark.slow) for n in ("turn", "fleet"))])
def test_every_point_is_reached(walk: Callable[[str], Walk], name: str) -> None:
    every = ";".join(f"{point}=delay:0" for point in NAMES)
    lived = walk(name)
    assert lived.live(every) == 0
    reached = lived.reached()
    if name == "serve":
        lived = walk(name)
        assert lived.live("log.append.write=tear@5") == -signal.SIGKILL
        assert lived.live(every) == 0
        reached |= lived.reached()
    assert {point for point in NAMES if life_of(point) == name} <= reached
    lived.check()


@pytest.mark.parametrize("point", [p if p.startswith(QUICK) else pytest.param(p, marks=pytest.mark.slow) for p in NAMES])
def test_killed_there_and_begun_again(walk: Callable[[str], Walk], point: str) -> None:
    lived = walk(life_of(point))
    if point in AFTER_A_DEATH:
        lived.live("log.append.write=tear@5")
    assert lived.live(f"{point}=kill@1") == -signal.SIGKILL
    assert lived.live(f"{point}={'tear' if point in WRITES else 'kill'}@2") in (-signal.SIGKILL, 0)
    lived.check()


@pytest.mark.slow
@pytest.mark.parametrize("point", NAMES)
def test_each_error_there_and_begun_again(walk: Callable[[str], Walk], point: str) -> None:
    for error in ("EIO", "ENOSPC") if point.startswith(FILLS) else ("EIO",):
        lived = walk(life_of(point))
        if point in AFTER_A_DEATH:
            lived.live("log.append.write=tear@5")
        assert lived.live(f"{point}={error}@1") in (0, 1)
        assert lived.reached() == {point}
        lived.check()
