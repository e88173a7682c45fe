"""Packages marked bad: they killed or hung workers, their model failed again and again, or they were judged worse on live traffic.

A mark is a file in home first, so that it holds while the ledger is down, and a record of the ledger as soon as that answers.
"""

from contextlib import suppress
from pathlib import Path

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import Damaged, LedgerUnavailable
from loopwright.deploy.serving.release_files import replace
from loopwright.records.releases import BadPackage
from loopwright.stores.home import Home

ALERT, DAMAGED_ALERT, QUERY_ALERT, SENT_BACK_ALERT = "bad-package", "damaged-package", "query-of-death", "sent-back"
"""Prefixes of the keys of alerts about bad packages, packages that cannot be loaded, inputs that kill models, and packages judged worse.

The beginning of the package's digest follows, and of an input its fingerprint.
"""
FORCED_ALERT, NOT_BEGUN_ALERT = "forced-release", "not-begun"
"""Prefixes of the keys of alerts about releases that a person forced, and that waited and will not begin."""
APPROVAL_ALERT = "approval"
"""Key of the alert that a release waits for an approval."""
ALERTS = (ALERT, DAMAGED_ALERT, QUERY_ALERT, SENT_BACK_ALERT, FORCED_ALERT, NOT_BEGUN_ALERT)


class BlockedPackage(msgspec.Struct, frozen=True, kw_only=True):
    """A package marked bad on this machine, whether it is out of service, and whether it is in the ledger with an alert."""

    package: BadPackage
    withdrawn: bool = False
    settled: bool = False


def mark(home: Home, package: BadPackage) -> None:
    """Mark a package bad on this machine at once; the ledger gets the mark when it is settled."""
    keep(home, BlockedPackage(package=package))
    failpoints.hit("bad.marked")


def keep(home: Home, mark: BlockedPackage) -> None:
    """Write the file of a mark, as a whole."""
    replace(_path(home, mark.package.package), msgspec.json.encode(mark))


def marks(home: Home) -> list[BlockedPackage]:
    """The marks made on this machine. Raises Damaged for a file that cannot be read."""
    found = []
    for path in sorted((home.path / "bad").glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=BlockedPackage))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise Damaged(f"bad/{path.name} cannot be read: {error}") from error
    return found


def bad_packages(home: Home, loop: str | None = None) -> dict[str, BadPackage]:
    """The packages that are marked bad, by digest: those the ledger knows, and those marked here while it was down."""
    found: dict[str, BadPackage] = {}
    with suppress(LedgerUnavailable):
        found = {e.key: e.record for e in home.ledger.find(BadPackage, loop=loop, newest=False)}
    return {**found, **marked_here(home, loop)}


def marked_here(home: Home, loop: str | None = None) -> dict[str, BadPackage]:
    """Packages marked as bad on this machine, without reading the ledger."""
    return {m.package.package: m.package for m in marks(home) if loop in (None, m.package.loop)}


def _path(home: Home, package: str) -> Path:
    return home.folder("bad") / f"{package}.json"
