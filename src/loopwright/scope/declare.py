"""The scope as an executable record: later gates, the leaderboard and the report read it from the ledger."""

from typing import ClassVar

import msgspec

from loopwright.records.declarations import Scope, declaration_digest, to_builtins
from loopwright.records.entries import Entry, Record
from loopwright.stores.home import Home


class ScopeRecord(Record, frozen=True, kw_only=True):
    """A loop's scope as declared (the heuristic as source text) and the digest of the declaration."""

    kind: ClassVar[str] = "scope"
    digest: str
    scope: Scope


def declare(home: Home, loop_name: str, scope: Scope) -> Entry[ScopeRecord]:
    """The ledger entry of this scope: the newest one if the scope is still the same, else a new one.

    Raises LedgerUnavailable when the ledger does not answer.
    """
    changed = declaration_digest(scope)
    newest = declared(home, loop_name)
    if newest is not None and newest.record.digest == changed:
        return newest
    readable = msgspec.convert(to_builtins(scope), Scope)
    return home.ledger.put(ScopeRecord(digest=changed, scope=readable), loop=loop_name, key=changed)


def declared(home: Home, loop_name: str) -> Entry[ScopeRecord] | None:
    """The newest scope record of a loop, or None."""
    return home.ledger.latest(ScopeRecord, loop=loop_name)
