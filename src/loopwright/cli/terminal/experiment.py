"""An experiment, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import ABSENT, count, number, share, short
from loopwright.cli.terminal.cells import state, table
from loopwright.deploy.power import Power
from loopwright.verbs.experiment import ExperimentReport

MAX_PARTS = 10


def experiment(value: ExperimentReport) -> RenderableType:
    """The verdict, the sample ratio, the effects, days, power."""
    shown: list[RenderableType] = [Text(value.verdict)]
    if value.generation is not None:
        until = f" to {value.end:%Y-%m-%d %H:%M}" if value.end is not None else ", under way"
        shown.append(Text(f"release {value.generation}, {value.stage}, {value.start:%Y-%m-%d %H:%M} UTC{until}"))
        beside = f"{short(value.package)} {count(value.units, 'unit')}, {short(value.former)} {value.control_units:,}"
        sampled = f"; of 1 in {1 / value.sampled:.0f} units" if value.sampled < 1 else ""
        shown.append(Text(f"{beside}; due {share(value.due)} of both, p {value.uneven_p:.2g}{sampled}"))
    whole = [one for one in value.effects if not one.slice]
    parts = sorted((one for one in value.effects if one.slice), key=lambda one: one.p_adjusted)[:MAX_PARTS]
    if value.effects:
        columns = ["metric", "new", "old", "effect", "95 %", "at any look", "p (Holm)", "CUPED", "units", ""]
        rows = []
        for one in [*whole, *parts]:
            cuped = (
                f"{number(one.cuped, sign=True)} {_between(one.cuped_low, one.cuped_high)}" if one.cuped is not None else ABSENT
            )
            name = f"{one.name} (primary)" if one.primary else one.name
            ends = _between(one.low, one.high), _between(one.always_low, one.always_high)
            numbers = number(one.new), number(one.old), number(one.effect, sign=True)
            rows.append([name, *numbers, *ends, f"{one.p_adjusted:.2g}", cuped, one.units, state(one.answer)])
        shown.append(table(columns, rows, right=columns[1:-1]))
    if value.days:
        rows = [[d.day, number(d.effect, sign=True), _between(d.low, d.high), d.rows, d.control_rows] for d in value.days]
        shown.append(
            table([f"{value.days[0].metric} by day", "effect", "95 %", "rows", "control"], rows, right=["effect", "95 %"])
        )
    if value.power is not None:
        shown.append(_power(value.power))
    if value.exported:
        shown.append(Text(f"units are in {value.exported}"))
    return Group(*shown)


def _power(power: Power) -> RenderableType:
    rows = [[f"{point.days} days", point.units, number(point.smallest_effect)] for point in power.curve]
    head = f"smallest effect in {power.metric}, by {power.source}"
    return (
        table([head, "units in each arm", "seen in 80 %"], rows, right=["units in each arm", "seen in 80 %"])
        if rows
        else Text(head)
    )


def _between(low: float | None, high: float | None) -> str:
    return f"[{number(low, sign=True)}, {number(high, sign=True)}]" if low is not None and high is not None else ABSENT
