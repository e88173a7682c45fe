"""One step of a release, in a process of its own that may die at a fail point: `python -m tests.server.releasing STEP HOME PACKAGE`."""

import sys
from collections.abc import Callable
from pathlib import Path

from tests.deploy.loops import LOOP

from loopwright.base.clock import RealClock
from loopwright.base.settings import Settings
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.engine import ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.server.processes.crashes import condemn, record_bad, withdraw_bad
from loopwright.stores.home import Home


def released(home: Home, package: str) -> None:
    """Put the package into service."""
    releases.release(home, LOOP, package, why="second")


def followed(home: Home, package: str) -> None:
    """A server comes to know of a release that was made elsewhere."""
    path = release_files.path_of(home, LOOP)
    before = path.read_bytes()
    released(home, package)
    path.write_bytes(before)
    release_files.follow(home)


def switched(home: Home, package: str) -> None:
    """A worker switches to the package, and answers."""
    engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock))
    engine.registry.refresh()
    released(home, package)
    engine.registry.refresh()
    engine.close()


def back(home: Home, package: str) -> None:
    """A rollback without the ledger, recorded afterwards."""
    released(home, package)
    down = Home(Settings(home=home.path, ledger="sqlite:////proc/no/such/ledger.db", by="ann"), home.clock)
    releases.rollback(down, LOOP, why="the ledger is down")
    release_files.follow(home)


def gone_back(home: Home, package: str) -> None:
    """A rollback with the ledger."""
    released(home, package)
    releases.rollback(home, LOOP, why="it is no better")


def condemned(home: Home, package: str) -> None:
    """The package turns out bad."""
    released(home, package)
    condemn(home, package, "crash", "three deaths")
    withdraw_bad(home)
    record_bad(home)


STEPS: dict[str, Callable[[Home, str], None]] = {
    f.__name__: f for f in (released, followed, switched, back, gone_back, condemned)
}

if __name__ == "__main__":
    step, folder, digest = sys.argv[1:]
    with Home(Settings(home=Path(folder), by="tests"), RealClock()) as opened:
        STEPS[step](opened, digest)
