"""Rendering of answers in a terminal: a layout for some types, and a generic one for all others.

Strings go to the terminal as they are (no markup is read from them); control characters are escaped (`base/printable.py`).
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.text import Text

from loopwright.cli.terminal.cells import fact_table, plain, table
from loopwright.cli.terminal.escaped import Escaped

PIPE_WIDTH = 140
"""Columns of an answer that goes into a pipe or a file."""

PICTURES = {
    "Status": "loops:status", "LoopStatus": "loops:loop_status", "Leaderboard": "leaderboard:leaderboard",
    "Standings": "leaderboard:leaderboard", "FleetBoard": "fleet:fleet", "History": "history:history", "Switched": "switched:switched",
    "Trace": "trace:trace", "PredictionList": "predictions:predictions", "Predicted": "predict:predicted",
    "OutcomesReport": "outcomes:outcomes", "Node": "lineage:lineage", "DriftReport": "drift:drift", "TurnReport": "run:turn",
    "Replayed": "replay:replayed", "Tended": "tend:tended", "Checked": "checks:checked", "Verified": "verify:verified",
    "ReportFile": "report:report", "ExportedPackage": "export:exported", "Made": "init:made",
    "list[Ingested]": "tables:ingested", "list[OutcomesMended]": "tables:ingested", "Quarantined": "tables:quarantined",
    "ContractShown": "contract:contract", "Profile": "tables:profile", "Case": "cases:case", "Cases": "cases:cases", "Parity": "parity:parity",
    "ExperimentReport": "experiment:experiment",
}  # fmt: skip
"""Module and function by the name of an answer's type, as text: a command loads the picture of its own answer only.

Other types are shown field by field."""


def show(value: Any) -> None:
    """Print an answer for a person to standard output."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)
    console.print(Escaped(rendered(value)))


def rendered(value: Any) -> RenderableType:
    """An answer as something that rich can print."""
    is_list = isinstance(value, list | tuple)
    kind = f"list[{type(value[0]).__name__}]" if is_list and value else type(value).__name__
    if kind in PICTURES:
        module, _, name = PICTURES[kind].partition(":")
        picture: RenderableType = getattr(import_module(f"{__name__}.{module}"), name)(value)
        return picture
    if is_list:
        return _rows(value)
    if isinstance(value, msgspec.Struct):
        return fact_table(_title(type(value)), [(n.replace("_", " "), getattr(value, n)) for n in value.__struct_fields__])
    return plain(value)


def _title(kind: type) -> str:
    """The name of a type in words: `OutcomesReport` is "outcomes report"."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip()


def _rows(values: Sequence[Any]) -> RenderableType:
    if not values:
        return Text("nothing")
    if not isinstance(values[0], msgspec.Struct):
        return plain(list(values))
    if len(values) == 1:
        return rendered(values[0])
    fields = values[0].__struct_fields__
    return table([f.replace("_", " ") for f in fields], [[getattr(v, f) for f in fields] for v in values])
