"""Hundreds of segments on one screen."""

import datetime as dt

import msgspec
from tests.cli.test_terminal import text_of
from tests.console import sample

from loopwright.records.evaluation import Estimate, FleetBoard, SegmentModel
from loopwright.records.releases import Arm, ReleaseState
from loopwright.verbs.history import History
from loopwright.verbs.loop_status import FleetStatus
from loopwright.verbs.status import Status
from loopwright.verbs.switched import Switched

NOW = dt.datetime(2024, 5, 1, tzinfo=dt.UTC)


def model(i: int, gain: float) -> SegmentModel:
    return SegmentModel(
        turn="t",
        segment=f"shop {i:03d}",
        package=f"{i:064x}",
        rows=3000 - i,
        judged=500,
        own=Estimate(0.7 + gain, 0.6, 0.8, 500),
        whole=Estimate(0.7, 0.6, 0.8, 500),
        difference=Estimate(gain, gain - 0.01, gain + 0.01, 500),
        chance=0.5,
    )


def board(count: int, metric: str = "average_precision") -> FleetBoard:
    models = [model(i, (count / 2 - i) / 1000) for i in range(count)]
    models.append(
        SegmentModel(turn="t", segment="few \x1b[31m", package="", rows=1200, judged=40, why="too few validation rows")
    )
    return FleetBoard(
        by="shop",
        metric=metric,
        as_of=NOW,
        segments=models,
        serving={m.segment: m.package for m in models[:3]},
        gain=Estimate(0.02, 0.01, 0.03, 9000),
        rest=12_345,
        verdict="3 are surely better and serve",
    )


def test_a_leaderboard_shows_the_best_and_the_worst_of_many() -> None:
    shown = text_of(msgspec.structs.replace(sample.leaderboard(), fleet=board(300)))
    for text in (
        "Fleet by shop",
        "shop 000",
        "shop 299",
        "own 000000",
        "289 more: --json has all",
        "3 are surely better",
        "12,345",
    ):
        assert text in shown, text
    assert "shop 150" not in shown
    assert "\x1b" not in shown
    assert shown.index("shop 000") < shown.index("shop 299")


def test_where_less_is_better_the_order_is_the_other_way_round() -> None:
    shown = text_of(msgspec.structs.replace(sample.leaderboard(), fleet=board(300, "log_loss")))
    assert shown.index("shop 299") < shown.index("shop 000")


def test_a_small_fleet_is_shown_whole() -> None:
    shown = text_of(msgspec.structs.replace(sample.leaderboard(), fleet=board(5)))
    assert all(f"shop 00{i}" in shown for i in range(5))
    assert "global: too few validation rows" in shown
    assert "more:" not in shown


def state(generation: int, package: str, segments: dict[str, str]) -> ReleaseState:
    return ReleaseState(
        loop="visits",
        generation=generation,
        arms=[Arm(package=package * 64)],
        strategy="direct",
        action="release",
        since=NOW,
        by="ann",
        why="better",
        fleet="shop",
        segments=segments,
    )


def test_history_counts_what_changed() -> None:
    many = {f"s{i}": f"{i:064x}" for i in range(300)}
    then = {**{s: p for s, p in many.items() if s != "s0"}, "s1": "f" * 64, "new": "e" * 64}
    shown = text_of(History(loop="visits", releases=[state(1, "a", many), state(2, "b", then)]))
    assert "300 (300 new)" in shown
    assert "300 (1 new, 1 replaced, 1 gone)" in shown
    one = text_of(History(loop="visits", releases=[state(1, "a", many), state(2, "b", {})], segment="s7"))
    assert "own 000000" in one
    assert "global bbbbbb" in one
    assert "segments" not in text_of(History(loop="visits", releases=[state(1, "a", {})]))


def test_status_and_a_release_say_how_many() -> None:
    serving = {f"s{i}": f"{i:064x}" for i in range(40)}
    loop = msgspec.structs.replace(
        sample.status().loops[0], fleet=FleetStatus(by="shop", serving=serving, judged=55, verdict="")
    )
    shown = text_of(Status(version="1", home="h", ledger="sqlite", loops=[loop]))
    assert "40 of 55 segments with a model are answered by it" in " ".join(shown.split())
    assert "and 28 more" in " ".join(shown.split())
    released = Switched(**msgspec.structs.asdict(state(3, "c", serving)))
    assert "40 packages of segments by shop" in text_of(released)
