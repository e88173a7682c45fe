"""The declaration of a loop, from the ledger."""

from loopwright.base.errors import LoopNotFound, nearest
from loopwright.records.declarations import Loop, recorded_loop
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home


def known_loop(home: Home, name: str) -> Loop:
    """The loop as the ledger knows it (functions as source text). LoopNotFound with the nearest names, Damaged."""
    entry = home.ledger.latest(LoopRecord, loop=name)
    if entry is None:
        raise LoopNotFound(name, nearest(name, home.ledger.loops(LoopRecord)))
    return recorded_loop(entry.record)
