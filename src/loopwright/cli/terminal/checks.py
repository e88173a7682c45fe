"""Results of checks, in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.cli.terminal.cells import heading, plain, table
from loopwright.records.entries import Problem
from loopwright.render.words import word
from loopwright.verbs.checked import Checked, SampleRow


def checked(value: Checked) -> RenderableType:
    """A line an item, sample rows with their features, and the sum of it."""
    lines: list[RenderableType] = [tick(i.ok, i.name, i.detail, warning=i.warning, looked=i.checked) for i in value.items]
    bad, doubtful = sum(not i.ok for i in value.items), sum(i.warning for i in value.items)
    if value.sample:
        lines += [Text(""), heading(f"rows in, features out ({value.sample[0].source})"), _sampled(value.sample), Text("")]
    unseen = [i.name for i in value.items if not i.checked]
    well = f"well, but {', '.join(unseen)} could not be looked at" if unseen else "all is well"
    said = f"{bad} of {len(value.items)} not well" if bad else f"{doubtful} to look into" if doubtful else well
    return Group(*lines, Text(f"{word(value.what)}: {said}"))


def _sampled(sample: Sequence[SampleRow]) -> RenderableType:
    """A column of the screen per row: first the columns given, then the features."""
    names = [f"row {i + 1}" for i in range(len(sample))]
    given = [[name, *(_brief(row.columns[name]) for row in sample)] for name in sample[0].columns]
    made = [[name, *(_brief(row.features[name]) for row in sample)] for name in sample[0].features]
    return Group(table(["column", *names], given), table(["feature", *names], made))


def _brief(value: Any) -> str:
    """A value in at most 40 characters; of an array the first numbers."""
    if isinstance(value, list):
        return f"[{', '.join(_brief(v) for v in value[:3])}{', ...' if len(value) > 3 else ''}]"
    text = f"{value:.6g}" if isinstance(value, float) else "null" if value is None else plain(value).plain
    return text if len(text) <= 40 else text[:39] + "…"


def tick(ok: bool, name: str, detail: str, *, warning: bool = False, looked: bool = True) -> Text:
    """An item with its sign."""
    sign = ("– ", "dim") if not looked else ("▲ ", "yellow") if warning else ("✓ ", "green") if ok else ("✗ ", "bold red")
    return Text.assemble(sign, (word(name), "bold"), f"  {word(detail)}")


def problem_list(problems: Sequence[Problem]) -> RenderableType:
    """A line a problem."""
    return Group(*(tick(False, p.where, p.what) for p in problems))
