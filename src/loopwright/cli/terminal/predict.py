"""A predicted file, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import count as _count
from loopwright.base.text import short
from loopwright.cli.terminal.cells import ALIKE, fact_table, table
from loopwright.records.ingestions import DOUBT
from loopwright.records.prediction import explained
from loopwright.render.words import word
from loopwright.stores.prediction_log.bulk import Predicted


def predicted(value: Predicted) -> RenderableType:
    """Counts of rows by result, the reasons of refused rows, the flags of the others."""
    counts = [(name, getattr(value, name)) for name in ("logged", "repeated", "refused", "unlogged") if getattr(value, name)]
    facts = [("package", short(value.package)), *counts, ("columns ignored", value.ignored)]
    tables = [
        table([title, "rows"], [[name, count] for name, count in list(found.items())[:ALIKE]], right=["rows"])
        for title, found in (("refused because", value.reasons), ("flag", value.flags))
        if found
    ]
    refused = (
        f"; the first that was refused is row {value.first_refused:,}: its `_error` says why" if value.first_refused else ""
    )
    read = f"; {word(value.file)} was read as {value.encoding}{DOUBT * (value.encoding == 'cp1252')}" if value.encoding else ""
    written = Text(f"written to {word(value.out)}, a line for each row{refused}{read}", style="dim")
    flags = [Text(line, style="dim") for line in explained(value.flags)]
    return Group(fact_table(f"{value.loop}: {_count(value.rows, 'row')} of {value.file}", facts), *tables, *flags, written)
