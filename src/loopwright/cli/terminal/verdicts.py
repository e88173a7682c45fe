"""The verdict on a stage of a release, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import ABSENT, count, number, share, short
from loopwright.cli.terminal.cells import state, table
from loopwright.records.verdicts import Verdict
from loopwright.render.words import word


def verdict(value: Verdict) -> RenderableType:
    """The answer, why, and what was compared: the new package's arm beside the control of the same time."""
    said = f"\nstage {value.stage + 1}, {word(value.at)}: {value.answer}. {value.why}"
    pairs = [] if value.score_difference is None else [f"scores differ by {number(value.score_difference)} in the mean"]
    pairs += [f"{share(value.flips)} of rows have another label"] if value.flips is not None else []
    beside = f"{short(value.package)} on {count(value.rows, 'row')}, {short(value.former)} on {value.control_rows:,} of the same time"
    outcomes = f"; with an outcome {value.with_outcome:,} and {value.control_with_outcome:,}"
    outcomes += f", of 1 in {1 / value.sampled:.0f} units" if value.sampled < 1 else ""
    columns = ["guard", "new", "old", "difference", "tolerance", "rows", ""]
    rows = []
    for f in value.findings:
        show = _percent if f.layer != "quality" else number
        between = f"[{show(f.low)}, {show(f.high)}]" if f.low is not None and f.high is not None else ABSENT
        rows.append([f.name, show(f.new), show(f.old), between, show(f.tolerance), f.rows, state(f.verdict)])
    shown = [table(columns, rows, right=columns[1:-1])] if rows else []
    ids = [Text(f"rows that show it: {', '.join(value.shown_by[:3])}; `loopwright trace ID`")] if value.shown_by else []
    return Group(Text(said), Text("; ".join([beside + outcomes, *pairs])), *shown, *ids)


def _percent(value: float | None) -> str:
    """A share, or a difference of shares, to a tenth of a per cent."""
    return ABSENT if value is None else f"{round(value, 3) + 0.0:.1%}"
