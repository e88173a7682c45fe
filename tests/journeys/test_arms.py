"""A release with two arms, from a request to the way back, through a real server: every page, log and number names the arm."""

import re
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.cli.test_terminal import text_of
from tests.console.browser import served as served_pages
from tests.deploy.loops import LOOP, declared, flight, opened, package
from tests.deploy.strategies.half import HALF
from tests.server.running import Client, Server, running
from tests.waiting import until

from loopwright.base.clock import RealClock, SimulatedClock
from loopwright.business.totals import served
from loopwright.business.value import account
from loopwright.console.app import routes
from loopwright.deploy import releases
from loopwright.deploy.serving.heartbeat import workers
from loopwright.monitor.windows import Watched, watch
from loopwright.records.declarations import Monitor, Retrain
from loopwright.records.releases import ReleaseState
from loopwright.records.windows import ValueWindow
from loopwright.stores.home import Home
from loopwright.stores.outcomes.join import outcomes
from loopwright.stores.prediction_log.read import predictions
from loopwright.verbs.history import history
from loopwright.verbs.trace import trace

COUNT = 80
ARMS = ["canary", "champion"]


def ask(server: Server, home: Home) -> dict[str, str]:
    """Requests one by one and in a batch, and the outcome of each; the arm that answered each unit."""
    client, arms = server.data(), dict[str, str]()
    bodies = [flight(n, delay=float(n)) for n in range(COUNT)]
    answers = [client.post(f"/loops/{LOOP}/predict", body).json for body in bodies[: COUNT // 2]]
    answers += client.post(f"/loops/{LOOP}/predict", bodies[COUNT // 2 :]).json
    for body, answer in zip(bodies, answers, strict=True):
        arms[body["flight"]] = answer["arm"]
    landed = home.clock.now().isoformat()
    told = [{"flight": f"UA{n}", "landed_at": landed, "arr_delay": float(n - 20 + 40 * (n % 2))} for n in range(COUNT)]
    assert client.post(f"/loops/{LOOP}/outcomes", told).status == 202
    return arms


def watched(home: Home, end: timedelta = timedelta(days=2)) -> Watched:
    return watch(
        home,
        loop_name=LOOP,
        monitor=Monitor(every="1d", minimum_rows=5),
        retrain=Retrain(),
        outcome=msgspec.structs.replace(declared().outcome, wait="1h"),
        until=home.clock.now() + end,
    )


def test_two_arms_from_request_to_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, RealClock()) as home:
        old, new = package(home.packages).digest, package(home.packages, weight=0.02).digest
        releases.release(home, LOOP, old, why="first")
        state = releases.release(home, LOOP, new, strategy=HALF, why="is it better?").record
        with running(home, workers=2) as server:
            arms = ask(server, home)
            assert arms == {unit: state.arm_for(unit).name for unit in arms}
            _check_log(home, arms, {"champion": old, "canary": new})
            _check_windows(home, server, arms, {"champion": old, "canary": new})
            _check_metrics(server, arms)
            assert [w.state for w in workers(home.path, state)] == ["serves", "serves"]
            back = releases.rollback(home, LOOP, why="it is not").record
            until(lambda: [w.state for w in workers(home.path, back)] == ["serves", "serves"])
            assert {(server.data().post(f"/loops/{LOOP}/predict", flight(n)).json["package"]) for n in range(8)} == {old}
        _check_history(home, state, {"champion": old, "canary": new})


def _check_log(home: Home, arms: dict[str, str], packages: dict[str, str]) -> None:
    rows = predictions(home, LOOP, columns=["_unit", "_arm", "_package", "_probability"]).to_pylist()
    assert {row["_unit"]: row["_arm"] for row in rows} == arms
    assert {(row["_package"], row["_probability"]) for row in rows} == {(digest, 0.5) for digest in packages.values()}
    assert all(row["_package"] == packages[row["_arm"]] for row in rows)
    known = outcomes(home, LOOP, known_by=home.clock.now() + timedelta(days=2))
    assert len(known) == COUNT


def _check_windows(home: Home, server: Server, arms: dict[str, str], packages: dict[str, str]) -> None:
    """Windows, quality and value of each arm add up to the whole; the pages show them."""
    found = watched(home)
    whole = next(w for w in found.windows if w.rows)
    counts = {arm: list(arms.values()).count(arm) for arm in ARMS}
    assert {name: w.rows for name, w in whole.arms.items()} == counts
    assert {name: w.packages for name, w in whole.arms.items()} == {arm: {packages[arm]: counts[arm]} for arm in ARMS}
    assert {name: w.reference for name, w in whole.arms.items()} == packages
    assert whole.reference == packages["champion"]
    quality = next(q for q in found.qualities if q.rows)
    assert sorted(quality.by_arm) == ARMS
    assert {name: quality.by_arm[name]["average_precision"].n for name in ARMS} == counts
    assert (
        quality.by_arm["canary"]["average_precision"].value == quality.by_package[packages["canary"]]["average_precision"].value
    )
    loop = declared()
    money = account(
        home, loop_name=LOOP, scope=loop.scope, outcome=msgspec.structs.replace(loop.outcome, wait="1h"), start=whole.start, end=whole.end,
        known_at=home.clock.now() + timedelta(days=2),
    )  # fmt: skip
    assert money is not None
    assert {name: part.predictions for name, part in money.arms.items()} == counts
    assert sum(part.model.value for part in money.arms.values()) == pytest.approx(money.model.value)
    assert sum(part.cost for part in money.arms.values()) == pytest.approx(money.cost)
    home.ledger.put(money, loop=LOOP, key=money.start.isoformat())
    _check_pages(server, money, packages)


def _check_pages(server: Server, money: ValueWindow, packages: dict[str, str]) -> None:
    later = Home(server.home.settings, SimulatedClock(server.home.clock.now() + timedelta(days=3)))  # the windows are over then
    with served_pages([*routes(later)]) as address:
        control = Client(address)
        page, told = control.get(f"/loops/{LOOP}").body.decode(), control.get(f"/loops/{LOOP}.json").json
        listed = control.get(f"/loops/{LOOP}/predictions").body.decode()
        control.close()
    windows, account_of = (page[page.index(f'id="{room}"') :] for room in ("monitor", "business"))
    for name, digest in packages.items():
        assert re.search(rf"{digest[:12]}.*?{name} 50", page), name
        assert f"<td>{name} " in windows
        assert f"<td>{name}</td>" in account_of
    assert [(a["name"], a["package"], a["share"]) for a in told["releases"][-1]["arms"]] == [
        (n, d, 0.5) for n, d in packages.items()
    ]
    assert (
        sorted(told["windows"][0]["arms"]) == sorted(told["quality"][0]["by_arm"]) == sorted(told["values"][0]["arms"]) == ARMS
    )
    assert " canary" in listed
    assert money.arms["champion"].currency == money.currency


def _check_metrics(server: Server, arms: dict[str, str]) -> None:
    def counted() -> dict[str, float]:
        text = server.data().get("/metrics").body.decode()
        return {
            arm: sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f'loopwright_predictions_total{{arm="{arm}"'))
            for arm in ARMS
        }  # fmt: skip

    until(lambda: counted() == {arm: list(arms.values()).count(arm) for arm in ARMS})
    text = server.data().get("/metrics").body.decode()
    assert sorted(re.findall(r'loopwright_serving_info\{arm="(\w+)"', text)) == ARMS


def _check_history(home: Home, state: ReleaseState, packages: dict[str, str]) -> None:
    told = history(home, LOOP)
    assert [len(release.arms) for release in told.releases] == [1, 2, 1]
    assert "(canary, 50%)" in text_of(told)
    rows = [(row.package, row.arm, row.share) for row in served(home, LOOP) if row.since == state.since]
    assert rows == [(packages["canary"], "canary", 0.5), (packages["champion"], "champion", 0.5)]
    id = predictions(home, LOOP, columns=["_id", "_arm"]).to_pylist()[0]["_id"]
    assert trace(home, id).arm in ARMS
