"""The verb `leaderboard`."""

import msgspec

from loopwright.base.errors import NotFound, SegmentNotFound
from loopwright.base.text import interval
from loopwright.records.evaluation import Leaderboard
from loopwright.records.releases import ReleaseState
from loopwright.render import notebook
from loopwright.stores.home import Home
from loopwright.verbs.known_loop import known_loop

MAX_BOARDS = 50
"""Number of the newest leaderboards that are searched for a turn, a fleet and a larger comparison."""


class Standings(Leaderboard, frozen=True, kw_only=True):
    """A leaderboard, and the package that serves the loop now ("" without one).

    `larger` is the newest turn that compared more candidates ("": none did).
    """

    serving: str = ""
    larger: str = ""

    def _repr_html_(self) -> str:
        """In a notebook: the candidates with every objective's measure, and the verdict."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.intervals))
        marks = {self.winner: "wins"}
        marks[self.serving] = "wins, serves" if self.serving == self.winner else "serves"
        rows = [
            [
                r.rank,
                r.candidate,
                ", ".join(filter(None, (marks.get(r.package), "may be best" if r.may_be_best else ""))),
                r.phase,
                r.score,
                *((interval(i) if (i := r.intervals.get(n)) else "") for n in names),
                r.package[:12],
            ]
            for r in self.rows
        ]
        columns = ["", "candidate", "", "phase", "score", *(n.replace("_", " ") for n in names), "package"]
        return notebook.table(columns, rows) + f"<p>{notebook.text(self.verdict)}</p>"


def leaderboard(home: Home, loop: str, *, weights: str = "", segment: str | None = None, turn: str = "") -> Standings:
    """Compare the candidates of the latest turn by the weighted objectives; show the winner, the serving package and the latest fleet.

    A retraining compares only the heuristic and the candidate that it trains again: `turn` shows an earlier turn.

    Args:
        loop: name of the loop.
        turn: the turn to show, as the answer names it (default: the latest).
        weights: weights by objective, as `name=number,name=number`; other objectives keep their weight.
        segment: show only this segment of the fleet.
    """
    declared = known_loop(home, loop)
    boards = home.ledger.find(Leaderboard, loop=loop, limit=MAX_BOARDS)
    if not boards:
        raise NotFound("leaderboard of loop", loop, next_step="make one with `loopwright run LOOP`")
    board = next((e.record for e in boards if e.record.turn.startswith(turn)), None)
    if board is None:
        raise NotFound("turn with a leaderboard", turn, near=[e.record.turn for e in boards[:3]])
    full = next((e.record.turn for e in boards if len(e.record.rows) > len(board.rows)), "")
    fleet = next((e.record.fleet for e in boards if e.record.fleet is not None), None)
    if segment is not None:
        found = [m for m in fleet.segments if m.segment == segment] if fleet is not None else []
        if fleet is None or not found:
            raise SegmentNotFound(segment, [m.segment for m in fleet.segments] if fleet is not None else [])
        fleet = msgspec.structs.replace(fleet, segments=found)
    board = msgspec.structs.replace(board, fleet=fleet)
    if weights:
        from loopwright.develop.leaderboard import parse_weights, reweigh  # here: it loads NumPy

        board = reweigh(board, declared.scope.objectives, parse_weights(weights, declared.scope.objectives))
    now = home.ledger.latest(ReleaseState, loop=loop)
    serving = "" if now is None or now.record.champion.heuristic else now.record.champion.package
    return Standings(**{name: getattr(board, name) for name in board.__struct_fields__}, serving=serving, larger=full)
