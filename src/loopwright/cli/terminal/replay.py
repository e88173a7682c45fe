"""A replay, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import count as _count
from loopwright.base.text import interval, number, short
from loopwright.cli.terminal.cells import heading, state, table
from loopwright.records.windows import edge
from loopwright.render.words import word
from loopwright.verbs.replay import Replayed


def replayed(value: Replayed) -> RenderableType:
    """One line per window, and the money compared with never retraining and with the heuristic."""
    metric = value.metric.replace("_", " ")
    rows = [
        [
            edge(w.start, w.end - w.start),
            w.rows,
            state(w.state),
            number(w.moved),
            "provisional" if w.provisional else interval(w.metric),
            number(w.metric_never),
            number(w.metric_heuristic),
            short(w.package),
            *([number(w.value)] if value.valued else []),
            Text(word(w.event) if w.event else ""),
        ]
        for w in value.weeks
    ]
    columns = ["from", "rows", "inputs", "moved, × limit", metric, "never", "heuristic", "package"]
    columns += [*([value.currency] if value.valued else []), ""]
    money: RenderableType = table(
        ["", f"value in {value.currency} over no model", f"the loop earns more by {value.currency}"],
        [
            [f"this loop ({value.policy})", interval(value.value), Text("")],
            ["never retrained", interval(value.value_never), interval(value.over_never)],
            ["heuristic only", interval(value.value_heuristic), interval(value.over_heuristic)],
        ],
    )
    end = (
        f"{_count(value.predictions, 'prediction')}, {_count(value.retrainings, 'retraining')}, {_count(len(value.packages), 'package')}, "
        f"{value.start:%Y-%m-%d} to {value.end:%Y-%m-%d}, in {value.seconds:.0f} s"
    )
    return Group(
        heading(value.loop),
        table(columns, rows, right=["rows", "moved, × limit", "never", "heuristic", value.currency]),
        money if value.valued else Text("no value table is declared, so nobody knows what it is worth"),
        Text(end),
    )
