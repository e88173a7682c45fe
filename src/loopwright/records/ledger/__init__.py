"""The ledger: every artefact, decision and state change as one append-only record with its lineage.

About ten methods, however many concepts come: a new concept is a new `Record` type, not a new method.
"""

from loopwright.records.ledger.record import Entry, Link, Pointer, Problem, Record
from loopwright.records.ledger.store import Ledger

__all__ = ["Entry", "Ledger", "Link", "Pointer", "Problem", "Record"]
