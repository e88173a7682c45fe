"""Contracts as the ledger keeps them, and how two of them differ. Commands that only look load nothing else of stage data."""

from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import msgspec

from loopwright.base.errors import Damaged, TableNotFound, nearest
from loopwright.records.declarations import Table, recorded_loop, to_builtins
from loopwright.records.entries import Record
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home


class Contract(Record, frozen=True, kw_only=True):
    """A table's contract as the ledger keeps it; a new entry whenever the declaration changes.

    `loop` in `file` declared it; "" where somebody made it count by name.
    """

    kind: ClassVar[str] = "contract"
    digest: str
    table: Table
    loop: str = ""
    file: str = ""


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


def as_stored(table: Table) -> Table:
    """A table as read back from the ledger (`minimum=0` becomes 0.0): its digest is that of the contract."""
    return msgspec.convert(msgspec.to_builtins(table), Table)


def disagreements(home: Home, table: Table, loop: str, file: str = "") -> list[tuple[str, str]]:
    """Problems: the other loops that declare a table differently than `loop` (in `file`) does, and how.

    A loop does not count whose file is gone, or declares `loop` now: it was renamed. One that never ran counts where the contract is its own.
    """
    known = {e.loop: e.record for e in home.ledger.newest(LoopRecord)}
    own = file or (known[loop].file if loop in known else "")
    problems = []
    entry = home.ledger.latest(Contract, key=table.name)
    newest = entry.record if entry is not None else None
    if newest is not None and newest.loop not in ("", loop, *known) and newest.file != own and Path(newest.file).is_file():
        differs = changes(newest.table, as_stored(table))
        problems.append((f"loop {newest.loop}", f"declares this table differently: {'; '.join(differs)}"))
    for name, record in sorted(known.items()):
        if name == loop or (record.file and (record.file == own or not Path(record.file).is_file())):
            continue
        with suppress(Damaged):
            other = recorded_loop(record).tables.get(table.name)
            if other is not None and (differs := changes(as_stored(other), as_stored(table))):
                problems.append((f"loop {name}", f"declares this table differently: {'; '.join(differs)}"))
    if problems:
        accept = f"loopwright contract {table.name} --loop {own or 'FILE'}"
        problems.append(
            ("next step", f"declare the table once, in a module that both loop files import; `{accept}` makes this one count")
        )
    return problems
