"""A turn, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import number
from loopwright.cli.terminal.cells import heading, plain, table
from loopwright.cli.terminal.checks import tick
from loopwright.verbs.run import TurnReport


def turn(value: TurnReport) -> RenderableType:
    """The steps of a turn, the state of its winner, and the next step."""
    steps = table(
        ["stage", "", "seconds"], [[stage, said, number(seconds)] for stage, said, seconds in value.steps], right=["seconds"]
    )
    released = "; nothing changed in service" if value.serves_already else "; released" if value.released else ""
    end = f"turn {value.turn}: {value.state}{released}"
    verdict = [] if any(value.verdict in summary for _, summary, _ in value.steps) else [plain(value.verdict)]
    left_out = "; ".join(f"{count:,} {why}" for why, count in value.rows_left_out.items())
    total = f"rows left out: {sum(value.rows_left_out.values()):,} ({left_out})"
    return Group(
        heading(value.loop),
        steps,
        *verdict,
        *([plain(total)] if left_out else []),
        Text(end),
        *(tick(value.released, "released" if value.released else "not released", r) for r in value.reasons),
        *([Text.assemble(("next: ", "bold"), plain(value.next_step))] if value.next_step else []),
    )
