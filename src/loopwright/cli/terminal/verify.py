"""The result of `verify`, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.cli.terminal.cells import plain
from loopwright.cli.terminal.checks import problem_list
from loopwright.verbs.verify import Verified


def verified(value: Verified) -> RenderableType:
    """The damage, if any, and the number of items verified."""
    checked = plain(value.checked)
    if value.ok:
        return Text.assemble(("✓ ", "green"), "no damage; read ", checked)
    return Group(problem_list(value.problems), Text.assemble((f"{len(value.problems)} damaged; read ", "bold red"), checked))
