"""The ladder of adoption: a loop climbs a rung only when the one below has been measured and the next one pays.

The four phases are those of Chip Huyen's talk (Stanford MLSys Seminar, episode 5): a simple heuristic first, a complex
model last.
"""

from collections.abc import Mapping
from typing import NamedTuple

from loopwright.base.text import interval
from loopwright.records.evaluation import Comparison, Leaderboard, LeaderboardRow
from loopwright.tasks.metrics import metric


class Rung(NamedTuple):
    """One phase: its number as in `Candidate.phase`, its name, and the requirement to reach it."""

    phase: int
    name: str
    meaning: str


LADDER: tuple[Rung, ...] = (
    Rung(
        1,
        "before machine learning: a heuristic",
        "a rule that people could apply by hand; it is also what answers when a model fails",
    ),
    Rung(2, "simplest model", "a model that learns, with nothing tuned; it shows what learning is worth"),
    Rung(3, "optimised simple model", "better features, a searched model of the same kind, more or fresher data"),
    Rung(4, "complex model", "only when the rung below has shown its limits"),
)


def climbed(leaderboard: Leaderboard) -> int:
    """The phase (1 to 4) of the winner."""
    return _row(leaderboard, leaderboard.winner).phase


def rung(leaderboard: Leaderboard) -> str:
    """The winner's rung on the ladder and the gain of the next rung, in one or two sentences.

    A rung pays when the 95 % interval of its difference to the incumbent is above zero (paired bootstrap on the same
    validation rows, as `develop` measured it).
    """
    winner = _row(leaderboard, leaderboard.winner)
    here = LADDER[winner.phase - 1]
    text = f"Rung {here.phase} of {len(LADDER)}, {here.name}: {winner.candidate} wins."
    names = {row.candidate: row for row in leaderboard.rows}
    above = [c for c in leaderboard.comparisons if c.challenger in names and names[c.challenger].phase > winner.phase]
    if above:
        return f"{text} {_verdict(above[-1], names)}"
    if winner.phase == len(LADDER):
        return f"{text} There is no rung above."
    return f"{text} Nothing above it was tried."


def _verdict(comparison: Comparison, rows: Mapping[str, LeaderboardRow]) -> str:
    d = comparison.difference
    phase = rows[comparison.challenger].phase
    better = d.low > 0 if metric(comparison.metric).higher else d.high < 0
    better = better and not d.too_few and (comparison.money is None or comparison.money.high >= 0)
    pays = "would pay" if better else "does not pay"
    return (
        f"Rung {phase} ({comparison.challenger}) {pays}: {interval(d, sign=True)} "
        f"{comparison.metric} against {comparison.incumbent}."
    )


def _row(leaderboard: Leaderboard, winner: str) -> LeaderboardRow:
    """The winner's row: named by its package or, in older boards, by its candidate."""
    for row in leaderboard.rows:
        if winner in (row.package, row.candidate):
            return row
    return leaderboard.rows[0]
