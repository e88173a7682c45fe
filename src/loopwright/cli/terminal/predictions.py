"""Predictions of the log, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import number, short
from loopwright.cli.terminal.cells import table
from loopwright.verbs.predictions import PredictionList


def predictions(value: PredictionList) -> RenderableType:
    """A line a prediction, and where the next ones begin."""
    if not value.rows:
        return Text("no prediction in the log is like that")
    rows = [
        [f"{r.at:%Y-%m-%d %H:%M:%S}", r.unit, r.answer, number(r.score), r.flags, short(r.package), r.id] for r in value.rows
    ]
    more = [Text(f"the next ones: --before {value.before}", style="dim")] if value.before else []
    return Group(table(["when", "key", "answer", "score", "flags", "package", "id"], rows, right=["score"]), *more)
