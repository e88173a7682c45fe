from collections.abc import Iterator

import pytest
from tests.deploy.loops import EVER, LOOP, NOW_US, opened, package
from tests.server.running import Client, Server, running

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.stores.online.steps import Fed, pack


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the small loop in service and weather at JFK, one for the tests of a module."""
    home = opened(tmp_path_factory.mktemp("home"), RealClock())
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    home.online.write("weather", [("JFK", pack([EVER[0]], [[NOW_US, 20.0, None]]))], Fed(1, *EVER))
    with running(home) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = server.data()
    yield client
    client.close()
