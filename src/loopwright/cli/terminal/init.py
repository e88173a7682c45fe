"""Files of a new loop, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.cli.terminal.cells import plain
from loopwright.verbs.init import Made


def made(value: Made) -> RenderableType:
    """The files that were written, notes, and the next steps."""
    files = [Text.assemble(("wrote ", "dim"), plain(f)) for f in value.files]
    notes = [Text.assemble(("note: ", "dim"), plain(note)) for note in value.notes]
    return Group(*files, *notes, *(Text.assemble(("next: ", "bold"), plain(step)) for step in value.next_steps))
