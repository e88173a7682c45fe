import signal
import time
from pathlib import Path

import pytest
from tests.deploy.loops import LOOP, opened, package
from tests.server.test_supervisor import ledger_away

from loopwright.deploy import bad, controller, served
from loopwright.deploy.vitals import Busy
from loopwright.monitor.alerts import open_alerts
from loopwright.records.clock import RealClock
from loopwright.records.errors import PackageRefused
from loopwright.records.home import Home
from loopwright.records.releases import BadPackage
from loopwright.server.deaths import Deaths, blamed, condemn, crashed, kills_for_memory, record_bad, thread_of, withdraw_bad

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


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return opened(tmp_path, RealClock())


def two(home: Home) -> tuple[str, str]:
    first, second = package(home.packages).digest, package(home.packages, weight=0.06).digest
    controller.release(home, LOOP, first, why="first")
    controller.release(home, LOOP, second, why="second")
    return first, second


def settle(home: Home) -> list[str]:
    said = withdraw_bad(home)
    record_bad(home)
    return said


def arm(home: Home) -> tuple[str, str]:
    state = served.read(served.path_of(home, LOOP))
    assert state is not None
    return state.state.arms[0].package, state.state.arms[0].role


def test_a_bad_package_goes_out_of_service_is_recorded_and_told(home: Home) -> None:
    first, second = two(home)
    assert "is marked bad: three deaths" in condemn(home, second, "crash", "three deaths")
    assert condemn(home, second, "crash", "three deaths") == ""  # it is about to be settled
    assert settle(home) == [f"loop {LOOP}: rolled back, package {first[:12]} serves"]
    assert settle(home) == []
    assert arm(home) == (first, "champion")
    state = controller.serving(home, LOOP)
    assert state is not None
    assert (state.action, state.by) == ("rollback", "loopwright")
    assert state.why == f"package {second[:12]} was marked bad: three deaths"
    assert home.ledger.latest(BadPackage, loop=LOOP, key=second).record.cause == "crash"  # type: ignore[union-attr]
    assert [(a.key, a.severity) for a in open_alerts(home, LOOP)] == [(f"bad-package:{second[:12]}", "critical")]


def test_where_nothing_served_before_the_heuristic_answers_alone(home: Home) -> None:
    only = package(home.packages).digest
    controller.release(home, LOOP, only, why="first")
    condemn(home, only, "failures", "it fails")
    assert settle(home) == [f"loop {LOOP}: rolled back, its heuristic alone serves"]
    assert arm(home) == (only, "heuristic")
    condemn(home, only, "crash", "its heuristic as well")
    assert settle(home) == []


def test_rolling_back_passes_over_packages_that_are_bad_or_damaged(home: Home) -> None:
    first, second = two(home)
    third = package(home.packages, weight=0.07).digest
    fourth = package(home.packages, weight=0.08).digest
    controller.release(home, LOOP, third, why="third")
    controller.release(home, LOOP, fourth, why="fourth")
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
        controller.release(home, LOOP, second, why="again")
    with pytest.raises(PackageRefused, match="marked bad"):
        controller.rollback(home, LOOP, to=second[:8], why="again")
    controller.release(home, LOOP, second, why="I know", force=True)
    assert arm(home) == (second, "champion")
    condemn(home, second, "crash", "once more")
    settle(home)
    assert arm(home) == (first, "champion")
    controller.rollback(home, LOOP, to=second[:8], why="I know", force=True)
    assert arm(home) == (second, "champion")


def test_without_the_ledger_it_goes_out_of_service_all_the_same(home: Home) -> None:
    first, second = two(home)
    with ledger_away(home):
        began = time.monotonic()
        condemn(home, second, "hang", "it hangs")
        assert withdraw_bad(home) == [f"loop {LOOP}: rolled back, package {first[:12]} serves"]
        assert time.monotonic() - began < 2
        assert arm(home) == (first, "champion")
    fresh = Home(home.settings, home.clock)
    served.follow(fresh)
    assert settle(fresh) == []
    assert [m.settled for m in bad.marks(fresh)] == [True]
    assert fresh.ledger.latest(BadPackage, loop=LOOP, key=second) is not None
    assert [s.record.action for s in controller.history(fresh, LOOP)] == ["release", "release", "rollback"]
    assert fresh.ledger.verify() == []
    fresh.close()


def test_a_mark_that_somebody_else_settled_changes_nothing(home: Home) -> None:
    first, second = two(home)
    controller.rollback(home, LOOP, why="by hand")
    condemn(home, second, "crash", "three deaths")
    assert settle(home) == []
    assert arm(home) == (first, "champion")
