"""More loops than are loaded before they are asked, behind a real server: each comes when it is asked, nobody else waits."""

import asyncio
import gc
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.deploy.loops import flight, opened, package
from tests.server.running import Client, Reply, Server, running
from tests.waiting import until

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.engine import ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.server.api.loading import Loading
from loopwright.stores.prediction_log.read import find

COUNT = release_files.FEW + 6
BROKEN = f"l{COUNT - 1}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = opened(tmp_path_factory.mktemp("home"), RealClock())
    for i in range(COUNT):
        digest = package(home.packages, weight=0.01 * (i % 5 + 1), loop=f"l{i}").digest
        releases.release(home, f"l{i}", digest, why="first")
    shutil.move(home.packages.folder / digest, home.path / "spare")
    with running(home) as server:
        yield server


def loaded(client: Client) -> float:
    text = client.get("/metrics").body.decode()
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("loopwright_packages_loaded "))


def predict(client: Client, number: int) -> Reply:
    return client.post(f"/loops/l{number}/predict", flight())


def test_it_is_ready_with_none_of_them_loaded(client: Client) -> None:
    assert client.get("/readyz").status == 200
    assert loaded(client) == 0
    answer = predict(client, 3)
    assert answer.status == 200
    assert loaded(client) == 1
    assert predict(client, 3).json["score"] == answer.json["score"]


def test_every_route_of_a_loop_loads_it(client: Client, server: Server) -> None:
    state = releases.serving(server.home, "l10")
    assert state is not None
    model = client.get("/v2/models/l10").json
    assert model["name"] == "l10"
    assert client.get("/v2/models/l11/ready").json["ready"] is True
    outcome = client.post("/loops/l12/outcomes", {"flight": "UA1", "arr_delay": 3.0})
    assert outcome.status == 404, "no turn has made its contract of outcomes known"
    assert predict(client, 10).json["package"] == state.champion.package


def test_unknown_loops_are_unknown_at_once(client: Client) -> None:
    for name in ("nobody", "l999", "L3"):
        assert client.post(f"/loops/{name}/predict", flight()).status == 404


def test_one_that_cannot_be_loaded_is_unavailable_and_the_others_are_not(client: Client, server: Server) -> None:
    for path in (f"/loops/{BROKEN}/predict", f"/loops/{BROKEN}/predict"):
        reply = client.post(path, flight())
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
        assert str(server.home.path) not in reply.body.decode()
    assert predict(client, 4).status == 200


def test_many_clients_ask_many_cold_loops_at_once(server: Server) -> None:
    """Every answer is of its own loop's package, each request is logged once, and health answers meanwhile, again and again."""
    wanted = {f"l{i}": releases.serving(server.home, f"l{i}") for i in range(20, 60)}

    def ask(start: int) -> list[Reply]:
        client = server.data()
        return [predict(client, 20 + (start * 7 + step) % 40) for step in range(40)]

    health, well = server.data(), 0
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, i) for i in range(8)]
        while not all(a.done() for a in asking):
            assert health.get("/livez").status == 200
            well += 1
    replies = [reply for a in asking for reply in a.result()]
    assert {r.status for r in replies} == {200}
    assert well >= 10
    for i, reply in enumerate(replies):
        start, step = divmod(i, 40)
        state = wanted[f"l{20 + (start * 7 + step) % 40}"]
        assert state is not None
        assert reply.json["package"] == state.champion.package
    assert len({r.json["id"] for r in replies}) == len(replies)
    seen = find(server.home, replies[0].json["id"])
    assert seen is not None
    assert seen[1].package == replies[0].json["package"]


def test_a_release_of_a_cold_loop_serves_when_it_is_asked(client: Client, server: Server) -> None:
    home = server.home
    newer = package(home.packages, weight=0.9, loop="l61").digest
    releases.release(home, "l61", newer, why="before anybody asked")
    assert predict(client, 61).json["package"] == newer
    later = package(home.packages, weight=0.8, loop="l61").digest
    releases.release(home, "l61", later, why="while it serves")
    until(lambda: predict(client, 61).json["package"] == later)


def test_what_has_been_loaded_is_not_looked_at_by_the_garbage_collector(tmp_path: Path) -> None:
    home = opened(tmp_path, RealClock())
    for i in range(COUNT):
        releases.release(home, f"l{i}", package(home.packages, loop=f"l{i}").digest, why="first")
    engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock))
    engine.registry.refresh()
    cold = [name for name in engine.registry.loops if not engine.registry.ready(name)]
    before = gc.get_freeze_count()
    loading = Loading(engine.registry)
    try:
        asyncio.run(loading.ready(cold[0]))
        assert engine.registry.ready(cold[0])
        assert gc.get_freeze_count() > before + 1000
    finally:
        gc.unfreeze()
        loading.close()
        engine.close()
        home.close()
