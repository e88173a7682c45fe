"""The lease of a loop's turn: one turn at a time among all who share the ledger."""

from loopwright.base.holder import Holder
from loopwright.base.ids import scoped_name
from loopwright.stores.ledger.store import Ledger

LEASE_SECONDS = 60.0


def lease_name(loop: str) -> str:
    """The name of the lease in the ledger."""
    return scoped_name("turn", loop)


def turn_holder(ledger: Ledger, loop: str) -> Holder | None:
    """The process that runs a turn of the loop now; None where none does, or the one that did has ended."""
    lease = ledger.lease(lease_name(loop), LEASE_SECONDS)
    return lease.holder if lease is not None and lease.state == "held" else None
