"""Monitoring windows, in a terminal."""

from datetime import datetime

from rich.console import RenderableType
from rich.text import Text

from loopwright.cli.terminal.cells import state, table
from loopwright.records.windows import Quality, edge
from loopwright.verbs.drift import DriftReport


def drift(value: DriftReport) -> RenderableType:
    """A line a window: its inputs and its quality."""
    if not value.windows:
        return Text("no window closed yet: one closes whenever the loop's `Monitor(every=...)` has passed and upkeep runs")
    quality: dict[datetime, Quality] = {q.start: q for q in value.quality}
    metric = next((m for q in value.quality for m in q.metrics), "")
    rows = []
    for window in value.windows:
        found = quality.get(window.start)
        worst = max((c for c in window.columns if c.matters), key=lambda c: c.moved, default=None)
        rows.append(
            [
                edge(window.start, window.end - window.start),
                window.rows,
                state(window.state_text),
                f"{worst.moved:.1f} × {worst.column}" if worst and worst.moved else None,
                [*window.drifted, *(f"({name}: noted)" for name in window.noted)],
                state(found.state_text) if found else None,
                found.metrics.get(metric) if found else None,
                found.decay.since_release.text if found and found.decay else None,
                f"{found.with_outcome / found.rows:.0%}" if found and found.rows else None,
            ]
        )
    columns = [
        "from",
        "rows",
        "inputs",
        "moved, × limit",
        "drifted",
        "quality",
        metric.replace("_", " ") or "metric",
        "worse since release",
        "truth known",
    ]
    return table(columns, rows, right=["rows", "truth known"])
