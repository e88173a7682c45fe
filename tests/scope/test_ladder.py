from datetime import UTC, datetime
from typing import get_args

from loopwright.records.declarations import Candidate
from loopwright.records.evaluation import Comparison, Estimate, Leaderboard, LeaderboardRow
from loopwright.scope.ladder import LADDER, climbed, rung

ROWS = {"heuristic": 1, "logistic": 2, "trees": 3, "network": 4}


def board(winner: str, *comparisons: tuple[str, str, float, float]) -> Leaderboard:
    rows = [
        LeaderboardRow(rank=i + 1, candidate=name, phase=phase, package=f"{name}-digest", measures={}, intervals={}, met={}, score=0.5)
        for i, (name, phase) in enumerate(ROWS.items())
    ]  # fmt: skip
    return Leaderboard(
        turn="t",
        as_of=datetime(2024, 1, 1, tzinfo=UTC),
        examples="e",
        rows=rows,
        comparisons=[
            Comparison(
                challenger=challenger,
                incumbent=incumbent,
                metric="average_precision",
                difference=Estimate((low + high) / 2, low, high, 100),
                latency_difference_us=1.0,
            )
            for challenger, incumbent, low, high in comparisons
        ],
        weights={},
        verdict="",
        winner=f"{winner}-digest",
    )


def test_the_ladder_has_the_phases_that_candidates_can_have() -> None:
    field = next(f for f in Candidate.__annotations__.items() if f[0] == "phase")
    assert [r.phase for r in LADDER] == [1, *get_args(field[1])]


def test_a_rung_that_does_not_pay_is_not_climbed_and_the_text_says_so() -> None:
    text = rung(board("trees", ("trees", "logistic", 0.01, 0.03), ("network", "trees", -0.01, 0.002)))
    assert text == (
        "Rung 3 of 4, optimised simple model: trees wins. "
        "Rung 4 (network) does not pay: -0.004 [-0.010, 0.002] average_precision against trees."
    )


def test_a_rung_that_would_pay_is_said_too() -> None:
    assert "Rung 3 (trees) would pay: +0.020" in rung(board("logistic", ("trees", "logistic", 0.01, 0.03)))


def test_the_top_and_an_untried_rung() -> None:
    assert rung(board("network", ("network", "trees", 0.1, 0.2))).endswith("There is no rung above.")
    assert rung(board("heuristic")).endswith("Nothing above it was tried.")
    assert [climbed(board(name)) for name in ROWS] == [1, 2, 3, 4]
