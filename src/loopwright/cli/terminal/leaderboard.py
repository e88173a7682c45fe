"""Candidates and fleets, in a terminal."""

import math
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import interval, number, short
from loopwright.cli.terminal.cells import ALIKE, MAX_SEGMENTS, fact_table, heading, plain, table
from loopwright.records.evaluation import Detail, FleetBoard, Leaderboard, SegmentModel
from loopwright.render.words import word
from loopwright.tasks.metrics import metric


def leaderboard(board: Leaderboard) -> RenderableType:
    """Ranking of candidates, then every metric of each (too many for columns), then details of winner and serving package."""
    marks = {board.winner: ["wins"]}
    marks.setdefault(getattr(board, "serving", ""), []).append("serves")
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
            m.replace("_", " "),
            *(interval(r.intervals[m]) if m in r.intervals else number(r.measures.get(m, math.nan)) for r in board.rows),
        ]
        for m in measures
    ]
    weights = ", ".join(f"{n} ×{number(w)}" for n, w in board.weights.items())
    right = ["", "phase", "score"]
    return Group(
        table(["", "candidate", " ", "phase", "score", "objectives met", "package"], rows, right=right),
        table(["measure [95 %]", *(str(n) for n in names)], measured, right=[str(n) for n in names]),
        plain(board.verdict),
        Text(f"as of {word(board.as_of)}; objectives: {weights}", style="dim"),
        *([] if board.fleet is None else [_fleet(board.fleet)]),
        *(part for r in board.rows if r.package in marks and r.detail is not None for part in _detail(r.candidate, r.detail)),
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


def _fleet(fleet: FleetBoard) -> RenderableType:
    """The segments that gain most and those that gain least, and the whole in a sentence."""
    up = metric(fleet.metric).higher
    shown = sorted(fleet.segments, key=lambda m: (not m.package, -m.difference.value if up else m.difference.value, -m.rows))
    left_out = len(shown) - MAX_SEGMENTS
    half = MAX_SEGMENTS // 2
    parts = [shown] if left_out <= 0 else [shown[:half], shown[-half:]]
    rows: list[list[Any]] = []
    for part in parts:
        if rows:
            rows.append(["...", "", "", "", "", f"{left_out:,} more: --json has all"])
        rows += [_segment(m, m.segment in fleet.serving) for m in part]
    name = fleet.metric.replace("_", " ")
    columns = [fleet.by, "trained on", f"{name}: own", "global", "difference [95 %]", "answered by"]
    return Group(
        heading(f"Fleet by {fleet.by}"),
        table(columns, rows, right=columns[1:5]),
        plain(fleet.verdict),
        Text(f"as of {word(fleet.as_of)}; {fleet.rest:,} training rows are of segments without a model", style="dim"),
    )


def _segment(model: SegmentModel, serves: bool) -> list[Any]:
    if not model.package:
        return [model.segment, f"{model.rows:,}", "", "", "", plain(f"global: {model.why}")]
    by = Text(f"own {short(model.package)}", style="green") if serves else Text("global")
    return [
        model.segment,
        f"{model.rows:,}",
        number(model.own.value),
        number(model.whole.value),
        interval(model.difference),
        by,
    ]
