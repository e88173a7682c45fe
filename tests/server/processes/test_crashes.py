import http.client
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper
from tests.deploy.loops import LOOP, flight, golden, model_graph, opened, package
from tests.server.processes.test_supervisor import Load, ledger_away
from tests.server.running import Server, running
from tests.waiting import until

from loopwright.base.clock import RealClock
from loopwright.base.errors import LedgerUnavailable, PackageRefused
from loopwright.deploy import blocklist, releases
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.heartbeat import Busy, workers
from loopwright.deploy.serving.suspects import Suspects
from loopwright.monitor.alerts import open_alerts
from loopwright.records.package import Segment
from loopwright.records.releases import BadPackage
from loopwright.server.processes.crashes import (
    Deaths,
    QueriesOfDeath,
    blamed,
    condemn,
    crashed,
    kills_for_memory,
    record_bad,
    thread_of,
    withdraw_bad,
)
from loopwright.stores.home import Home

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("code", "out_of_memory", "counts"),
    [
        (-signal.SIGSEGV, False, True),
        (-signal.SIGABRT, False, True),
        (-signal.SIGFPE, False, True),
        (-signal.SIGKILL, True, True),
        (-signal.SIGKILL, False, False),
        (-signal.SIGTERM, True, False),
        (1, True, False),
        (0, False, False),
    ],
)
def test_which_ends_are_put_down_to_what_a_worker_was_doing(code: int, out_of_memory: bool, counts: bool) -> None:
    assert crashed(code, out_of_memory=out_of_memory) is counts


def test_the_thread_that_died_names_the_package() -> None:
    busy = [Busy(17, "answers", A), Busy(18, "loads", B)]
    assert blamed(busy, 17) == [A]
    assert blamed(busy, 18) == [B]
    assert blamed(busy, 19) == []  # another thread of ours
    assert blamed(busy, None) == [B]
    assert blamed(busy[:1], None) == [A]
    assert blamed([], None) == []
    dump = b"Fatal Python error: Floating point exception\n\nThread 0x0000000000000011 (most recent call first):\n"
    assert thread_of(dump + b'\nCurrent thread 0x00007f00 (most recent call first):\n  File "x.py", line 1') == 0x7F00
    assert thread_of(dump) is None
    assert kills_for_memory() >= 0


def test_three_deaths_within_five_minutes() -> None:
    deaths = Deaths()
    assert [deaths.count(A, at) for at in (0.0, 10.0, 301.0)] == [False] * 3  # the first is too long ago
    assert [deaths.count(B, at) for at in (1.0, 2.0, 3.0)] == [False, False, True]
    assert deaths.count(A, 302.0)
    assert [deaths.count(B, at) for at in (4.0, 5.0, 6.0)] == [False, False, True]  # released all the same


def test_deaths_of_one_input_count_once_and_those_of_others_against_the_package() -> None:
    deaths = Deaths()
    f, g, h, i = (bytes([n]) * 8 for n in range(4))
    assert not deaths.count(A, 0.0, [f, g])  # a batch
    assert [deaths.count(A, at, [f]) for at in (1.0, 2.0, 3.0)] == [False] * 3
    assert not deaths.count(A, 4.0, [g])  # the batch was f: this is the second cause
    assert [deaths.count(A, at, [h]) for at in (5.0,)] == [True]
    assert not deaths.count(A, 6.0, [i])


def test_an_input_that_struck_twice_is_told_once(home: Home, tmp_path: Path) -> None:
    digest = package(home.packages).digest
    queries = QueriesOfDeath(Suspects.fresh(tmp_path / "inputs"))
    assert not queries.trusts(digest, 0)
    assert queries.trusts(digest, 3)
    assert queries.trusts(digest, 0)  # it was seen to answer before
    assert queries.strike(digest, [b"1" * 8, b"2" * 8]) == []
    assert ["the heuristic answers it" in line for line in queries.strike(digest, [b"1" * 8])] == [True]
    assert queries.strike(digest, [b"1" * 8]) == []
    with ledger_away(home), pytest.raises(LedgerUnavailable):
        queries.record(home)
    fresh = Home(home.settings, home.clock)
    queries.record(fresh)
    queries.record(fresh)
    assert [(a.key, a.repeats) for a in open_alerts(fresh, LOOP)] == [(f"query-of-death:{digest[:12]}:{'31' * 8}", 0)]
    fresh.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return opened(tmp_path, RealClock())


def two(home: Home) -> tuple[str, str]:
    first, second = package(home.packages).digest, package(home.packages, weight=0.06).digest
    releases.release(home, LOOP, first, why="first")
    releases.release(home, LOOP, second, why="second")
    return first, second


def settle(home: Home) -> list[str]:
    said = withdraw_bad(home)
    record_bad(home)
    return said


def arm(home: Home) -> tuple[str, str]:
    state = release_files.read(release_files.path_of(home, LOOP))
    assert state is not None
    return state.state.champion.package, "heuristic" if state.state.champion.heuristic else "champion"


def test_a_bad_package_goes_out_of_service_is_recorded_and_told(home: Home) -> None:
    first, second = two(home)
    assert "is marked bad: three deaths" in condemn(home, second, "crash", "three deaths")
    assert condemn(home, second, "crash", "three deaths") == ""  # it is about to be settled
    assert settle(home) == [f"loop {LOOP}: rolled back, package {first[:12]} serves"]
    assert settle(home) == []
    assert arm(home) == (first, "champion")
    state = releases.serving(home, LOOP)
    assert state is not None
    assert (state.action, state.by) == ("rollback", "loopwright")
    assert state.why == f"package {second[:12]} was marked bad: three deaths"
    assert home.ledger.latest(BadPackage, loop=LOOP, key=second).record.cause == "crash"  # type: ignore[union-attr]
    assert [(a.key, a.severity) for a in open_alerts(home, LOOP)] == [(f"bad-package:{second[:12]}", "critical")]


def test_where_nothing_served_before_the_heuristic_answers_alone(home: Home) -> None:
    only = package(home.packages).digest
    releases.release(home, LOOP, only, why="first")
    condemn(home, only, "failures", "it fails")
    assert settle(home) == [f"loop {LOOP}: rolled back, its heuristic alone serves"]
    assert arm(home) == (only, "heuristic")
    condemn(home, only, "crash", "its heuristic as well")
    assert settle(home) == []


def test_rolling_back_passes_over_packages_that_are_bad_or_damaged(home: Home) -> None:
    first, second = two(home)
    third = package(home.packages, weight=0.07).digest
    fourth = package(home.packages, weight=0.08).digest
    releases.release(home, LOOP, third, why="third")
    releases.release(home, LOOP, fourth, why="fourth")
    (home.path / "packages" / third / "model.onnx").write_bytes(b"damaged")
    for digest in (second, fourth):
        condemn(home, digest, "crash", "deaths")
    settle(home)
    assert arm(home) == (first, "champion")


def test_a_bad_package_is_released_by_force_only(home: Home) -> None:
    first, second = two(home)
    condemn(home, second, "crash", "three deaths")
    settle(home)
    with pytest.raises(PackageRefused, match=r"three deaths; `--force` puts it into service"):
        releases.release(home, LOOP, second, why="again")
    with pytest.raises(PackageRefused, match="marked bad"):
        releases.rollback(home, LOOP, to=second[:8], why="again")
    releases.release(home, LOOP, second, why="I know", force=True)
    assert arm(home) == (second, "champion")
    condemn(home, second, "crash", "once more")
    settle(home)
    assert arm(home) == (first, "champion")
    releases.rollback(home, LOOP, to=second[:8], why="I know", force=True)
    assert arm(home) == (second, "champion")


def test_without_the_ledger_it_goes_out_of_service_all_the_same(home: Home) -> None:
    first, second = two(home)
    with ledger_away(home):
        condemn(home, second, "hang", "it hangs")
        assert withdraw_bad(home) == [f"loop {LOOP}: rolled back, package {first[:12]} serves"]
        assert arm(home) == (first, "champion")
    fresh = Home(home.settings, home.clock)
    release_files.follow(fresh)
    assert settle(fresh) == []
    assert [m.settled for m in blocklist.marks(fresh)] == [True]
    assert fresh.ledger.latest(BadPackage, loop=LOOP, key=second) is not None
    assert [s.record.action for s in releases.history(fresh, LOOP)] == ["release", "release", "rollback"]
    assert fresh.ledger.verify() == []
    fresh.close()


def test_a_mark_that_somebody_else_settled_changes_nothing(home: Home) -> None:
    first, second = two(home)
    releases.rollback(home, LOOP, why="by hand")
    condemn(home, second, "crash", "three deaths")
    assert settle(home) == []
    assert arm(home) == (first, "champion")


OTHER = "another-loop"


def deep() -> bytes:
    """A tree so deep that the runtime, which builds it by recursion, runs out of stack while it loads it."""
    depth = 200_000
    leaves = depth + 1
    inner = [float(-i) for i in range(depth)]
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * (depth + leaves),
        nodes_nodeids=list(range(depth + leaves)),
        nodes_modes=["BRANCH_LEQ"] * depth + ["LEAF"] * leaves,
        nodes_truenodeids=[depth + i for i in range(depth)] + [0] * leaves,
        nodes_falsenodeids=[*range(1, depth), 2 * depth] + [0] * leaves,
        nodes_featureids=[0] * (depth + leaves),
        nodes_values=inner + [0.0] * leaves,
        target_ids=[0] * leaves,
        target_nodeids=list(range(depth, depth + leaves)),
        target_treeids=[0] * leaves,
        target_weights=[0.5] * leaves,
    )
    nodes = [
        helper.make_node("Cast", ["delay"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["f", "column"], ["x"]),
        tree,
        helper.make_node("Reshape", ["y", "flat"], ["score"]),
    ]
    shapes = [
        helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
        helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
    ]
    asked = helper.make_tensor_value_info("delay", TensorProto.DOUBLE, ["N"])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "deep", [asked], [score], shapes)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def also_another_loop(home: Home) -> None:
    releases.release(home, OTHER, package(home.packages, loop=OTHER).digest, why="first")


def ask_until(home: Home, server: Server, package: str, **changes: Any) -> None:
    """Ask until `package` answers, once no worker serves another release: one that is late would answer for it."""

    def followed() -> bool:
        copy = release_files.read(release_files.path_of(home, LOOP))
        return copy is not None and all(worker.state != "lags" for worker in workers(home.path, copy.state))

    until(followed)

    def answers() -> bool:
        client = server.data()
        try:
            reply = client.post(f"/loops/{LOOP}/predict", flight(**changes))
        except (OSError, http.client.HTTPException):
            return False
        finally:
            client.close()
        return reply.status == 200 and bool(reply.json["package"] == package)

    until(answers)


def rolled_back_by_itself(home: Home, package: str, why: str) -> None:
    until(lambda: all(m.settled for m in blocklist.marks(home)), 60)
    until(
        lambda: (now := releases.serving(home, LOOP)) is not None and now.by == "loopwright", 60
    )  # made without the ledger, told soon
    state = releases.serving(home, LOOP)
    assert state is not None
    assert (state.champion.package, state.action, state.by) == (package, "rollback", "loopwright")
    assert why in state.why
    assert [a.severity for a in open_alerts(home, LOOP)] == ["critical"]


def test_a_package_that_kills_its_workers_goes_back_while_others_are_served(home: Home) -> None:
    good = package(home.packages).digest
    killer = package(home.packages, model=model_graph(fails="kill")).digest
    releases.release(home, LOOP, good, why="first")
    also_another_loop(home)
    with running(home, workers=2) as server:
        releases.release(home, LOOP, killer, why="looks well")
        ask_until(home, server, killer)
        with Load(server.state.data, 2, f"/loops/{OTHER}/predict") as load:
            until(lambda: len(load.answers) > 20)
            ask_until(home, server, good, delay=100.0)
            answered = len(load.answers)
            until(lambda: len(load.answers) > answered + 20)
        assert load.refused == []
        assert load.cut <= 20  # a connection ends with its worker
        rolled_back_by_itself(home, good, "3 times within 5 minutes, at last: a worker was killed by SIGFPE while asking it")
        with pytest.raises(PackageRefused, match="marked bad"):
            releases.release(home, LOOP, killer, why="again")
        assert server.data().get("/livez").status == 200


def test_a_query_of_death_is_answered_by_the_heuristic_and_all_others_by_the_model(home: Home) -> None:
    """It kills the worker twice; then it does no harm, and the package is not rolled back for it."""
    first = package(home.packages).digest
    second = package(home.packages, model=model_graph(fails="kill")).digest
    releases.release(home, LOOP, first, why="first")
    releases.release(home, LOOP, second, why="second")
    deadly, flags, died = flight(7, delay=100.0), [], 0
    with running(home, workers=2) as server:
        ask_until(home, server, second)
        client = server.data()
        for number in range(20):
            client.post(f"/loops/{LOOP}/predict", flight(number))
        limit = time.monotonic() + 120
        while "query_of_death" not in flags and time.monotonic() < limit:
            try:
                flags = client.post(f"/loops/{LOOP}/predict", deadly).json.get("flags", [])
            except (OSError, http.client.HTTPException):
                died += 1
                time.sleep(0.1)
        assert {"degraded", "query_of_death"} <= set(flags)
        assert died == 2
        for number in range(20):  # in one request with others, and under another key, which is no feature
            reply = client.post(f"/loops/{LOOP}/predict", [flight(number, delay=float(number)), deadly | {"flight": "UA9"}])
            assert [a["flags"] for a in reply.json] == [["missing_context:weather"], flags]
            assert {a["package"] for a in reply.json} == {second}
        until(lambda: open_alerts(home, LOOP), 60)
        assert [(a.key.split(":")[0], a.severity) for a in open_alerts(home, LOOP)] == [("query-of-death", "warning")]
        assert 'flag="query_of_death"' in client.get("/metrics").body.decode()
    assert arm(home) == (second, "champion")
    assert blocklist.marks(home) == []


def test_a_package_that_kills_workers_while_it_is_loaded_goes_back(home: Home) -> None:
    good = package(home.packages).digest
    answers = golden(model_graph())
    killer = package(home.packages, model=deep(), golden=answers).digest
    releases.release(home, LOOP, good, why="first")
    also_another_loop(home)
    with running(home, workers=2) as server:
        releases.release(home, LOOP, killer, why="looks well")
        until(lambda: blocklist.marks(home))
        ask_until(home, server, good)
        rolled_back_by_itself(home, good, "was killed by SIGSEGV while loading it")
        assert server.data().post(f"/loops/{OTHER}/predict", flight()).status == 200


def test_a_server_starts_with_a_package_that_kills_its_workers(home: Home) -> None:
    killer = package(home.packages, model=deep(), golden=golden(model_graph())).digest
    releases.release(home, LOOP, killer, why="first")
    also_another_loop(home)
    with running(home) as server:
        ask_until(home, server, killer)
        reply = server.data().post(f"/loops/{LOOP}/predict", flight(delay=30.0))
        assert (reply.json["score"], reply.json["package"]) == (1.0, killer)
        assert "degraded" in reply.json["flags"]
        assert "degraded" not in server.data().post(f"/loops/{OTHER}/predict", flight()).json["flags"]
    assert arm(home) == (killer, "heuristic")


def test_a_segment_whose_package_kills_is_answered_by_the_loops_own(home: Home) -> None:
    good = package(home.packages).digest
    segment = Segment(column="origin", value="JFK")
    killer = package(home.packages, model=model_graph(fails="kill"), segment=segment).digest
    releases.release(home, LOOP, good, fleet="origin", segments={"JFK": killer}, why="first")
    with running(home) as server:
        ask_until(home, server, killer)
        ask_until(home, server, good, delay=100.0)
        assert "degraded" not in server.data().post(f"/loops/{LOOP}/predict", flight(delay=100.0)).json["flags"]
        rolled_back_by_itself(home, good, "killed by SIGFPE while asking it")


@pytest.mark.slow
def test_a_model_that_only_fails_goes_back(home: Home) -> None:
    good = package(home.packages).digest
    failing = package(home.packages, model=model_graph(fails="error")).digest
    releases.release(home, LOOP, good, why="first")
    releases.release(home, LOOP, failing, why="looks well")
    with running(home) as server:
        ask_until(home, server, failing)
        ask_until(home, server, good, delay=100.0)
        rolled_back_by_itself(home, good, "its model failed again and again, and the heuristic answered")
