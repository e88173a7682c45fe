"""A round of upkeep, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.cli.terminal.cells import table
from loopwright.cli.terminal.checks import problem_list
from loopwright.verbs.tend import Tended


def tended(value: Tended) -> RenderableType:
    """One line per loop, and the failures."""
    if not value.leader:
        return Text(f"nothing done: {value.held_by or 'another process'} runs upkeep already (`loopwright serve` includes it)")
    rows = [
        [loop, count, value.outcomes.get(loop, 0), value.windows.get(loop, 0), value.triggers.get(loop)]
        for loop, count in value.committed.items()
    ]
    columns = ["loop", "predictions", "outcomes", "windows closed", "retraining due"]
    moved = (
        table(columns, rows, right=columns[1:4]) if rows else Text("no loop to tend yet: `loopwright run LOOP` makes one known")
    )
    told = ", ".join(f"{count:,} of {loop}" for loop, count in value.events.items())
    events = [Text(f"told as events: {told}")] if told else []
    return Group(moved, *events, problem_list([*value.problems, *value.failed]))
