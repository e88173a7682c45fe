"""Parity of serving and training, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import count, number, share, short
from loopwright.cli.terminal.cells import table
from loopwright.parity import MIN_ROWS, Parity
from loopwright.render.words import word


def parity(value: Parity) -> RenderableType:
    """What differs, most first, and what that does to the answers."""
    if not value.rows or value.start is None or value.end is None:
        return Text(f"{value.loop}: no request was logged in that time")
    head = f"{value.loop}: {count(value.rows, 'request')} of {word(value.start)} to {word(value.end)}, answered twice by {short(value.package)}"
    rows = [
        [c.column, c.table, c.rows, share(c.share), c.missing, ", ".join(c.features) or "no feature", _shown(c.examples)]
        for c in value.columns
    ]
    columns = ["column", "table", "rows", "differ", "served without", "reaches", "an example"]
    left = [Text(f"not compared: {name}: {why}") for name, why in value.not_compared.items()]
    return Group(Text(head), table(columns, rows, right=columns[2:5]), *left, Text(_verdict(value)))


def _shown(examples: list[dict[str, object]]) -> str:
    return "".join(f"{e['served']} served, {e['joined']} joined ({e['id']})" for e in examples[:1])


def _verdict(value: Parity) -> str:
    if value.rows < MIN_ROWS:
        return f"too few to judge ({value.rows} of {MIN_ROWS})"
    if value.ok:
        return "served as training joins it"
    moved = f"{share(value.flips)} of the answers change, the score by at most {number(value.largest_difference)}"
    return f"not served as training joins it: {', '.join(c.column for c in value.skewed)}; {moved}"
