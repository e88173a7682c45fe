"""Whether the lake has the tables that the ledger says were ingested: homes may share a ledger, and only one of them the rows."""

from loopwright.base.errors import Damaged
from loopwright.records.ingestions import Ingested
from loopwright.stores.home import Home


def missing_rows(home: Home, table: str) -> str:
    """What to do where something was ingested into a table that the lake does not have: it is not empty, it is elsewhere. Else ""."""
    newest = home.ledger.latest(Ingested, key=table)
    if newest is None or home.lake.exists(table):
        return ""
    return (
        f"table {table!r} is missing in the lake {home.settings.lake_root}: the ledger has ingestions up to its version"
        f" {newest.record.version}, by {newest.by}; name the lake that has its rows (--lake, LOOPWRIGHT_LAKE), or restore it"
    )


def require_rows(home: Home, table: str) -> None:
    """Raise Damaged where rows are missing, see `missing_rows`."""
    if why := missing_rows(home, table):
        raise Damaged(why)
