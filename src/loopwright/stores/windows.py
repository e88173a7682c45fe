"""Windows in the ledger: the newest that had ended by a moment."""

from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from loopwright.records.entries import Entry
from loopwright.records.windows import ValueWindow, Window

if TYPE_CHECKING:  # it loads SQLAlchemy, which `--help` does without
    from loopwright.stores.ledger.store import Ledger

W = TypeVar("W", "Window", "ValueWindow")


def newest_ended(ledger: "Ledger", kind: type[W], loop: str, by: datetime) -> Entry[W] | None:
    """The last closed window of a loop that ended at `by` or before.

    Others were closed while the clock was ahead: they do not count, and their time span is closed again.
    """
    last = ledger.latest(kind, loop=loop)
    if last is None or last.record.end <= by:
        return last
    return next((entry for entry in ledger.find(kind, loop=loop) if entry.record.end <= by), None)
