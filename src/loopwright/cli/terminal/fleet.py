"""The models of a fleet, in a terminal."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import interval, number, short
from loopwright.cli.terminal.cells import MAX_SEGMENTS, heading, plain, table
from loopwright.records.evaluation import FleetBoard, SegmentModel
from loopwright.render.words import word
from loopwright.tasks.metrics import metric


def fleet(board: FleetBoard) -> RenderableType:
    """List the segments that gain most and least, and summarise the fleet in a sentence."""
    up = metric(board.metric).higher
    shown = sorted(board.segments, key=lambda m: (not m.package, -m.difference.value if up else m.difference.value, -m.rows))
    left_out = len(shown) - MAX_SEGMENTS
    half = MAX_SEGMENTS // 2
    parts = [shown] if left_out <= 0 else [shown[:half], shown[-half:]]
    rows: list[list[Any]] = []
    for part in parts:
        if rows:
            rows.append(["...", "", "", "", "", "", f"{left_out:,} more: --json has all"])
        rows += [_segment(m, m.segment in board.serving) for m in part]
    name = board.metric.replace("_", " ")
    columns = [board.by, "trained on", f"{name}: own", "global", "difference [95 %]", "to expect", "answered by"]
    return Group(
        heading(f"Fleet by {board.by}"),
        table(columns, rows, right=columns[1:6]),
        plain(board.verdict),
        Text(f"as of {word(board.as_of)}; {board.rest:,} training rows are of segments without a model", style="dim"),
    )


def _segment(model: SegmentModel, serves: bool) -> list[Any]:
    if not model.package:
        return [model.segment, f"{model.rows:,}", "", "", "", "", plain(f"global: {model.why}")]
    by = Text(f"own {short(model.package)}", style="green") if serves else Text("global")
    return [
        model.segment,
        f"{model.rows:,}",
        number(model.own.value),
        number(model.whole.value),
        interval(model.difference),
        number(model.expected.value),
        by,
    ]
