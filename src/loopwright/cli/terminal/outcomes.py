"""The counts of outcomes, in a terminal."""

from datetime import timedelta

from rich.console import Group, RenderableType

from loopwright.base.text import count as _count
from loopwright.base.text import duration_text
from loopwright.cli.terminal.cells import fact_table, heading, table
from loopwright.cli.terminal.tables import quarantine_lines
from loopwright.records.ingestions import DOUBT
from loopwright.verbs.outcomes import OutcomesReport


def outcomes(value: OutcomesReport) -> RenderableType:
    """Predictions and outcomes apart: each of the two adds up; and why rows of the file are not among them, with the next step."""
    came = f"{_count(value.accepted, 'row')}, {value.quarantined:,} to quarantine"
    came += f"; {value.undated:,} without a time: known from now on" if value.undated else ""
    came += f"; read as {value.encoding}{DOUBT * (value.encoding == 'cp1252')}" if value.encoding else ""
    facts = fact_table(
        f"{value.loop}: outcomes",
        [
            *([("accepted now", came)] if value.file else []),
            ("outcomes so far", value.outcomes),
            ("  matched", f"{value.matched:,} belong to a prediction"),
            ("  known before their decision", f"{value.known_before_decision:,} belong to a later one: not trained on"),
            ("  unmatched", f"{value.unmatched:,} belong to no prediction that was logged"),
            ("  known later", f"{value.known_later:,} become known in the future: count from then on"),
            ("  repeated", f"{value.repeated:,} brought what was already there"),
            ("predictions", value.joined + value.pending + value.overdue),
            ("  joined", f"{value.joined:,} have an outcome with a label"),
            ("  pending", f"{value.pending:,} may still get one"),
            ("  overdue", f"{value.overdue:,} have none, and the wait for it is over"),
            ("contradicting", f"{value.contradicting:,} predictions or keys whose outcomes differ: the one known last counts"),
        ],
    )
    curves = table(
        ["outcome", "known", "half within", "90 % within", "all within"],
        [
            [d.label or "any", f"{d.count:,}", *(duration_text(timedelta(seconds=d.seconds[i])) for i in (5, 9, 10))]
            for d in value.delays
        ],
        right=["known", "half within", "90 % within", "all within"],
    )
    delays: list[RenderableType] = [heading("How long outcomes take, in the newest training data"), curves]
    return Group(
        facts, *(delays if value.delays else []), *(quarantine_lines(value.table, value.reasons) if value.quarantined else [])
    )
