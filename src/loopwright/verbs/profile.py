"""The verb `profile`."""

from loopwright.data.ingest.profile import profiled
from loopwright.records.profiles import Profile
from loopwright.stores.home import Home


def profile(home: Home, table: str) -> Profile:
    """Profile a table: nulls, distinct values, ranges, quantiles, common values, rows per day, freshness.

    Args:
        table: name of a table.
    """
    return profiled(home, table)
