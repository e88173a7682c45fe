"""Candidates, in a terminal."""

import math

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import interval, number, short
from loopwright.cli.terminal import rendered
from loopwright.cli.terminal.cells import ALIKE, fact_table, heading, plain, table
from loopwright.records.evaluation import Detail, Leaderboard
from loopwright.render.words import word


def leaderboard(board: Leaderboard) -> RenderableType:
    """Ranking of candidates, then every metric of each (too many for columns), then details of winner and serving package."""
    marks = {board.winner: ["wins"]}
    marks.setdefault(getattr(board, "serving", ""), []).append("serves")
    shown = set(marks)
    for row in board.rows:
        if row.may_be_best:
            marks.setdefault(row.package, []).append("may be best")
    names = [Text(word(r.candidate), style="bold" if r.package == board.winner else "") for r in board.rows]
    rows = []
    for row, name in zip(board.rows, names, strict=True):
        met = Text(f"{sum(row.met.values())}/{len(row.met)}", style="green" if all(row.met.values()) else "yellow")
        rows.append(
            [row.rank, name, ", ".join(marks.get(row.package, ())), row.phase, number(row.score), met, short(row.package)]
        )
    measures = dict.fromkeys(m for row in board.rows for m in row.measures)
    measured = [
        [
            f"{m.replace('_', ' ')}, expected of the best",
            *(interval(r.shrunk[m]) if m in r.shrunk else "" for r in board.rows),
        ]
        for m in dict.fromkeys(m for row in board.rows for m in row.shrunk)
    ] + [
        [
            m.replace("_", " "),
            *(interval(r.intervals[m]) if m in r.intervals else number(r.measures.get(m, math.nan)) for r in board.rows),
        ]
        for m in measures
    ]
    weights = ", ".join(f"{n} ×{number(w)}" for n, w in board.weights.items())
    right, larger = ["", "phase", "score"], getattr(board, "larger", "")
    return Group(
        table(["", "candidate", " ", "phase", "score", "objectives met", "package"], rows, right=right),
        table(["measure [95 %]", *(str(n) for n in names)], measured, right=[str(n) for n in names]),
        plain(board.verdict),
        Text(f"turn {word(board.turn)}, as of {word(board.as_of)}; objectives: {weights}", style="dim"),
        *([Text(f"turn {word(larger)} compared more candidates: see --turn", style="dim")] if larger else []),
        *([] if board.fleet is None else [rendered(board.fleet)]),
        *(part for r in board.rows if r.package in shown and r.detail is not None for part in _detail(r.candidate, r.detail)),
    )


def _detail(candidate: str, detail: Detail) -> list[RenderableType]:
    """Feature importance, confusion matrix and the effect of other thresholds, as far as available."""
    parts: list[RenderableType] = []
    if detail.importance:
        shares = [(name, f"{share:.0%}") for name, share in list(detail.importance.items())[:ALIKE] if share >= 0.005]
        parts.append(fact_table(f"{candidate}: what moves its answers", shares))
    if detail.confusion is not None:
        labels, counts = detail.confusion.labels, detail.confusion.counts
        rows = [[truth, *of] for truth, of in zip(labels, counts, strict=True)]
        parts += [heading(f"{candidate}: truth (rows) and answer (columns)"), table(["", *labels], rows, right=labels)]
    if detail.calibration is not None:
        parts.append(plain(f"{candidate}: {detail.calibration.words}"))
    if detail.reliability:
        columns = ["scores", "mean score", "share positive [95 %]", "rows"]
        curve = [
            [f"{number(b.low)} to {number(b.high)}", number(b.score), interval(b.share), b.share.n] for b in detail.reliability
        ]
        parts += [heading(f"{candidate}: are its scores probabilities?"), table(columns, curve, right=columns[1:])]
    if detail.trade:
        valued = any(p.value is not None for p in detail.trade)
        columns = ["threshold", "answered yes", "precision", "recall", *(["value per prediction"] if valued else [])]
        lines = [
            [
                number(p.threshold) + (" ◂" if p.used else ""),
                f"{p.rate:.1%}",
                p.precision,
                p.recall,
                *([p.value] if valued else []),
            ]
            for p in detail.trade
        ]
        parts += [heading(f"{candidate}: thresholds (◂ the one in use)"), table(columns, lines, right=columns)]
    return parts
