"""The online store: context steps per store and key (see `data.examples.asof`) for look-ups while serving, in SQLite or in Redis.

    steps       the steps of one key as bytes, and the search for a moment in them
    embedded    one SQLite file
    redis       a Redis server, for several machines

Lightweight: the prediction path reads it. Its content can always be rebuilt from the lake.
"""

from pathlib import Path
from typing import Protocol

from loopwright.base.errors import ExtraMissing
from loopwright.stores.online.embedded import Embedded
from loopwright.stores.online.steps import Fed, Items, Steps


class Online(Protocol):
    """A key-value table of steps. Every method raises Unavailable when it does not answer, Damaged for invalid content.

    Writes of other processes are visible within 0.1 s. Safe to share among threads; a forked child opens its own connections.
    """

    def write(self, store: str, items: Items, fed: Fed) -> int:
        """Replace all steps of a store by `items` (key, packed steps) and return how many keys changed.

        Nothing is written where a newer version of the table is in already.
        """
        ...

    def mark(self, store: str, until: int) -> None:
        """Say that a store that was fed has all that was known until a moment (microseconds since 1970, UTC)."""
        ...

    def fed(self, store: str, /) -> Fed | None:
        """The state of a store; None when it was never fed."""
        ...

    def get_many(self, store: str, keys: list[str], /) -> list[Steps | None]:
        """The steps of each key, None where there are none."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def open_online(url: str, folder: Path) -> Online:
    """The table that a setting names: `embedded` (a file in `folder`) or `redis://...`; opened on first use.

    Raises ExtraMissing when it is Redis and the extra is not installed.
    """
    if url == "embedded":
        return Embedded(folder / "steps.db")
    try:
        from loopwright.stores.online.redis import RedisOnline  # here: an extra
    except ImportError as error:
        raise ExtraMissing("redis", "an online table in Redis") from error
    return RedisOnline(url)
