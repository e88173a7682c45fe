"""One step of a release, in a process of its own that may die at a fail point: `python -m tests.server.releasing STEP HOME PACKAGE`."""

import sys
from collections.abc import Callable
from pathlib import Path

from tests.deploy.loops import LOOP

from loopwright.deploy import controller, served
from loopwright.deploy.router import Router
from loopwright.records.clock import RealClock
from loopwright.records.home import Home
from loopwright.records.settings import Settings
from loopwright.server.deaths import condemn, record_bad, withdraw_bad


def released(home: Home, package: str) -> None:
    """Put the package into service."""
    controller.release(home, LOOP, package, why="second")


def followed(home: Home, package: str) -> None:
    """A server comes to know of a release that was made elsewhere."""
    path = served.path_of(home, LOOP)
    before = path.read_bytes()
    released(home, package)
    path.write_bytes(before)
    served.follow(home)


def switched(home: Home, package: str) -> None:
    """A worker switches to the package, and answers."""
    router = Router(home.path, home.packages, home.online, home.clock)
    router.refresh()
    released(home, package)
    router.refresh()
    router.close()


def back(home: Home, package: str) -> None:
    """A rollback without the ledger, recorded afterwards."""
    released(home, package)
    down = Home(Settings(home=home.path, ledger="sqlite:////proc/no/such/ledger.db", by="ann"), home.clock)
    controller.rollback(down, LOOP, why="the ledger is down")
    served.follow(home)


def gone_back(home: Home, package: str) -> None:
    """A rollback with the ledger."""
    released(home, package)
    controller.rollback(home, LOOP, why="it is no better")


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
