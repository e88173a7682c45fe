"""Predictions of the log, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import number, short
from loopwright.cli.terminal.cells import table
from loopwright.records.prediction import explained
from loopwright.verbs.predictions import PredictionList


def predictions(value: PredictionList) -> RenderableType:
    """A line a prediction, and where the next ones begin."""
    if not value.rows:
        return Text("no prediction in the log is like that")
    rows = [
        [f"{r.at:%Y-%m-%d %H:%M:%S}", r.unit, r.answer, number(r.score), r.flags, short(r.package), r.id] for r in value.rows
    ]
    said = explained(flag for r in value.rows for flag in r.flags)
    said += [f"the next ones: --before {value.before}"] if value.before else []
    more = [Text(line, style="dim") for line in said]
    return Group(table(["when", "key", "answer", "score", "flags", "package", "id"], rows, right=["score"]), *more)
