"""The verb `drift`."""

from typing import Any

import msgspec

from loopwright.records.windows import Quality, Window
from loopwright.stores.home import Home
from loopwright.verbs.known_loop import known_loop


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """Monitoring windows and quality over time, oldest first; the newest revision of each."""

    loop: str
    windows: list[Window]
    quality: list[Quality]


def drift(home: Home, loop: str) -> DriftReport:
    """Show monitoring windows and quality over time, oldest first.

    Args:
        loop: name of the loop.
    """
    known_loop(home, loop)
    return DriftReport(loop=loop, windows=revisions(home, Window, loop), quality=revisions(home, Quality, loop))


def revisions(home: Home, kind: type[Any], loop: str, limit: int | None = None) -> list[Any]:
    """The windows of a loop that have ended, oldest first, the newest revision of each."""
    newest = home.ledger.newest(kind, loops=[loop], per="key", limit=limit)
    now = home.clock.now()  # a window that ends later was closed while the clock was ahead
    return sorted((e.record for e in newest if e.record.end <= now), key=lambda r: r.start)
