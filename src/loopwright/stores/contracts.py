"""Contracts as the ledger keeps them, and how two of them differ. Commands that only look load nothing else of stage data."""

from typing import ClassVar

from loopwright.base.errors import TableNotFound, nearest
from loopwright.records.declarations import Table, to_builtins
from loopwright.records.entries import Record
from loopwright.stores.home import Home


class Contract(Record, frozen=True, kw_only=True):
    """A table's contract as the ledger keeps it; a new entry whenever the declaration changes."""

    kind: ClassVar[str] = "contract"
    digest: str
    table: Table


def changes(before: Table, after: Table) -> list[str]:
    """The differences of two contracts of a table: each field with its old -> new value."""
    old, new = (to_builtins(t) for t in (before, after))
    found = [f"{k}: {old[k]!r} -> {new[k]!r}" for k in old if k != "columns" and old[k] != new[k]]
    for name in dict.fromkeys([*old["columns"], *new["columns"]]):
        was, now = old["columns"].get(name), new["columns"].get(name)
        if was is None or now is None:
            found.append(f"{name}: {'absent' if was is None else was['type']} -> {'absent' if now is None else now['type']}")
        else:
            found += [f"{name}.{k}: {was[k]!r} -> {now[k]!r}" for k in was if was[k] != now[k]]
    return found


def contract(home: Home, name: str) -> Table:
    """The newest contract of a table. Raises TableNotFound with the names that are known."""
    entry = home.ledger.latest(Contract, key=name)
    if entry is None:
        raise TableNotFound(name, nearest(name, contracts(home)))
    return entry.record.table


def contracts(home: Home) -> list[str]:
    """The names of all tables with a contract."""
    return sorted({e.key for e in home.ledger.find(Contract)})
