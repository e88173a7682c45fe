"""A contract, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import ABSENT, count, number
from loopwright.cli.terminal.cells import heading, table
from loopwright.records.declarations import Column
from loopwright.render.words import word
from loopwright.verbs.contract import ContractShown


def contract(value: ContractShown) -> RenderableType:
    """A contract's columns and versions."""
    of = value.table
    columns = [[n, c.type, _rules(c), n if c.source is None else c.source, c.description] for n, c in of.columns.items()]
    known = f", known {of.known} + {of.known_after}" if of.known_time or of.known_after != "0s" else ""
    parts: list[RenderableType] = [
        heading(f"{of.name}: key {', '.join(of.key)}, event time {of.event_time}{known}, {count(value.rows, 'row')}"),
        table(["column", "type", "rules", "in sources", ""], columns),
        table(
            ["version", "since", "by", "changes"],
            [[v.number, v.at, v.by, "\n".join(v.changes) or ABSENT] for v in value.versions],
        ),
    ]
    return Group(*parts, *(Text(word(note), style="dim") for note in value.notes))


def _rules(column: Column) -> str:
    """The rules of a column's values, in words."""
    low, high = column.minimum, column.maximum
    said = [
        "may be null" if column.nullable else "",
        f"from {number(low)}" if low is not None else "",
        f"to {number(high)}" if high is not None else "",
        f"one of {', '.join(column.categories)}" if column.categories is not None else "",
        f"times of {column.zone}" if column.zone else "",
        f"written {column.format}" if column.format else "",
        f"shape {column.shape}" if column.shape else "",
        f"filled: {column.filled}" if column.filled else "",
        "may be absent" if column.optional else "",
        ", ".join(column.tags),
    ]
    return "; ".join(part for part in said if part)
