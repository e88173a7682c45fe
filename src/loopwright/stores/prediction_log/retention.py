"""Retention of predictions and outcomes, and compaction: old rows, small files, and files that no version needs any more.

A commit adds a file, so a busy loop makes thousands a day. They are compacted (Delta's OPTIMIZE: a version with other files and
the same rows), rows older than the retention are deleted, and files that no version of the last week needs are removed. Readers keep
the version they began with, so no row is read twice or missed. All of it is recorded in the ledger.
"""

from datetime import datetime, timedelta
from typing import ClassVar

from loopwright.records.entries import Record
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.segment import table_name

SAFE = timedelta(days=7)
"""Time that replaced files stay, for readers of older versions of the table."""

_MOMENT = {"predictions": "_at", "outcomes": "_known_at", "shadows": "_at"}


class Retained(Record, frozen=True, kw_only=True):
    """Upkeep of one of a loop's tables: `deleted` rows older than `before`, `fewer` files, `removed` files for good.

    `version` is the table's after it.
    """

    kind: ClassVar[str] = "retention"
    table: str
    version: int
    before: datetime | None = None
    deleted: int = 0
    fewer: int = 0
    removed: int = 0


def retained_since(home: Home, loop: str) -> datetime | None:
    """Since when a loop's predictions are complete; None if none was ever deleted."""
    done = home.ledger.find(Retained, loop=loop, key=table_name("predictions", loop))
    return max((e.record.before for e in done if e.record.before is not None), default=None)


def retain(home: Home, loop: str, *, before: datetime | None, max_files: int, busy: bool) -> list[Retained]:
    """Delete rows older than `before`, compact when there are more than `max_files` files, remove unneeded files.

    `busy`: rows were added, so looking for files is worth it. `max_files` 0 disables compaction. Raises the errors of the
    lake.
    """
    done = []
    for kind, moment in _MOMENT.items():
        name = table_name(kind, loop)
        last = home.ledger.latest(Retained, loop=loop, key=name)
        due = last is not None and last.record.removed == 0 and home.clock.now() - last.at > SAFE
        if not (busy or due or before is not None) or not home.lake.exists(name):
            continue
        deleted = home.lake.delete_before(name, moment, before) if before is not None else 0
        full = max_files > 0 and busy and len(home.lake.files(name)) > max_files
        fewer = home.lake.compact(name) if full else 0
        removed = home.lake.vacuum(name, older=SAFE) if due or deleted or fewer else 0
        if deleted or fewer or removed:
            version = home.lake.version(name)
            made = Retained(
                table=name, version=version, before=before if deleted else None, deleted=deleted, fewer=fewer, removed=removed
            )
            home.ledger.put(made, loop=loop, key=name)
            done.append(made)
        elif due:
            home.ledger.put(Retained(table=name, version=home.lake.version(name), removed=-1), loop=loop, key=name)
    return done
