"""The ledger: every artefact, decision and state change as one append-only record with its lineage.

About ten methods, however many concepts come: a new concept is a new `Record` type, not a new method.

`Ledger` is loaded when it is first asked for: whoever only needs the shape of a record does not load SQLAlchemy.
"""

from typing import TYPE_CHECKING, Any

from loopwright.records.entries import Entry, Link, Pointer, Problem, Record, Untyped

if TYPE_CHECKING:
    from loopwright.stores.ledger.store import Ledger

__all__ = ["Entry", "Ledger", "Link", "Pointer", "Problem", "Record", "Untyped"]


def __getattr__(name: str) -> Any:
    if name == "Ledger":
        from loopwright.stores.ledger.store import Ledger

        return Ledger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
