"""How the outcomes stand, in a terminal."""

from rich.console import RenderableType

from loopwright.base.text import count as _count
from loopwright.cli.terminal.cells import fact_table
from loopwright.verbs.outcomes import OutcomesReport


def outcomes(value: OutcomesReport) -> RenderableType:
    """Predictions and outcomes apart: each of the two adds up."""
    predictions, delivered = value.joined + value.pending + value.overdue, value.accepted + value.quarantined
    return fact_table(
        f"{value.loop}: outcomes",
        [
            *([("accepted now", f"{_count(value.accepted, 'row')}, {value.quarantined:,} to quarantine")] if delivered else []),
            ("outcomes so far", value.outcomes),
            ("  matched", f"{value.matched:,} belong to a prediction"),
            (
                "  known before their decision",
                f"{value.known_before_decision:,} belong to a later one (of a file: by its event time): not trained on",
            ),
            ("  unmatched", f"{value.unmatched:,} belong to no prediction that was logged"),
            ("  known later", f"{value.known_later:,} become known in the future: count from then on"),
            ("  repeated", f"{value.repeated:,} brought what was already there"),
            ("predictions", predictions),
            ("  joined", f"{value.joined:,} have an outcome"),
            ("  pending", f"{value.pending:,} may still get one"),
            ("  overdue", f"{value.overdue:,} have none, and the wait for it is over"),
            (
                "contradicting",
                f"{value.contradicting:,} predictions or keys have outcomes that differ: the one known last counts",
            ),
        ],
    )
