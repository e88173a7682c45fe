"""A plan under way on a real server: requests, upkeep, a package that fails, and the way back while clients go on asking."""

from pathlib import Path

import msgspec
from tests.deploy.loops import LOOP, declared, flight, model_graph, opened, package
from tests.server.running import running
from tests.waiting import until

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.deploy.serving.heartbeat import workers
from loopwright.deploy.strategies import Strategy
from loopwright.records.declarations import Canary, Full
from loopwright.records.releases import Arm
from loopwright.stores.prediction_log.read import predictions
from loopwright.tend import upkeep
from loopwright.verbs.history import history

PLAN = Strategy("plan", "", [Canary(share=0.3, time="1h", rows=50), Full()])


def test_failing_canary_goes_back_by_itself_while_no_request_fails(tmp_path: Path) -> None:
    with opened(tmp_path, RealClock()) as home:
        loop = msgspec.structs.replace(declared(), outcome=msgspec.structs.replace(declared().outcome, wait="30d"))
        home.ledger.put(loop.record("loop.py"), loop=LOOP, key=LOOP)
        old = package(home.packages).digest
        new = package(home.packages, model=model_graph(fails="error")).digest
        releases.release(home, LOOP, old, why="first")
        state = releases.release(home, LOOP, new, strategy=PLAN, why="is it better?").record
        with running(home, workers=2) as server:
            until(lambda: [w.state for w in workers(home.path, state)] == ["serves", "serves"])
            client, arms, number = server.data(), dict[str, str](), 0

            def ask() -> bool:
                """Two hundred flights, half of them on which the new model fails; whether the release has gone back."""
                nonlocal number
                for _ in range(10):
                    rows = [flight(number + i, delay=90.0 if i % 2 else 5.0) for i in range(20)]
                    number += len(rows)
                    reply = client.post(f"/loops/{LOOP}/predict", rows)
                    assert reply.status == 200, reply.body
                    arms.update({row["flight"]: answer["arm"] for row, answer in zip(rows, reply.json, strict=True)})
                upkeep(home, loop, until=home.clock.now())
                now = releases.serving(home, LOOP)
                return now is not None and now.under_way is None

            until(ask, 90)
            back = releases.serving(home, LOOP)
            assert back is not None
            assert (back.arms, back.by) == ([Arm(package=old)], "loopwright")
            assert "degraded_share" in back.why
            until(lambda: [w.state for w in workers(home.path, back)] == ["serves", "serves"])
            answers = client.post(f"/loops/{LOOP}/predict", [flight(number + i, delay=90.0) for i in range(20)]).json
            assert {(a["package"], a["arm"], "degraded" in a["flags"]) for a in answers} == {(old, "champion", False)}
        logged = predictions(home, LOOP, columns=["_unit", "_arm"]).to_pylist()
        assert {row["_unit"]: row["_arm"] for row in logged if row["_unit"] in arms} == arms, (
            "the log names the arm that answered"
        )
        assert all(state.arm_for(unit).name == arm for unit, arm in arms.items() if arm != "champion")
        shown = history(home, LOOP).verdict
        assert shown is not None
        assert (shown.answer, shown.package) == ("back", new)
        assert len(shown.shown_by) == 20
