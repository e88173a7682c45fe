"""Completeness: entries of the ledger and of release files whose objects are missing."""

from collections.abc import Callable, Iterator
from itertools import chain

from loopwright.base.errors import LoopwrightError, NotFound, PackageRefused
from loopwright.base.ids import NAME
from loopwright.deploy.serving.release_files import read
from loopwright.records.entries import Problem
from loopwright.records.ingestions import Ingested
from loopwright.records.releases import ReleaseState
from loopwright.records.windows import Window
from loopwright.stores.home import Home


def attempted(where: str, look: Callable[[], list[Problem]]) -> list[Problem]:
    """The problems that `look` returns; if it fails, that is a problem too, and other checks go on."""
    try:
        return look()
    except (LoopwrightError, OSError) as error:
        return [Problem(where=where, what=f"cannot be looked at: {error}")]


def missing(home: Home) -> list[Problem]:
    """Objects that the ledger or a release file in `served/` names but that are missing or too old."""
    checks = {"releases": _releases, "served": _served, "tables": _tables, "predictions": _predictions}
    return list(chain.from_iterable(attempted(where, lambda c=check: list(c(home))) for where, check in checks.items()))  # type: ignore[misc]  # a default binds it


def serving(home: Home) -> list[Problem]:
    """The packages that serve now, by the ledger or by `served/`, and cannot be read; every byte of the others is read."""
    return attempted("releases", lambda: list(_unreadable(home)))


def _unreadable(home: Home) -> Iterator[Problem]:
    states = {e.loop: e.record for e in home.ledger.find(ReleaseState, newest=False)}
    found = {(loop, digest) for loop, state in states.items() for digest in state.packages}
    for path in sorted((home.path / "served").glob("*.json")):
        if NAME.fullmatch(path.stem) and (copy := read(path)) is not None:
            found |= {(path.stem, digest) for digest in copy.state.packages}
    for loop, digest in sorted(found):
        try:
            home.packages.read(digest)
        except (NotFound, PackageRefused) as error:
            why = error.why if isinstance(error, PackageRefused) else "it is missing"
            yield Problem(where=f"packages/{digest}", what=f"serves loop {loop}, and {why}")


def _releases(home: Home) -> Iterator[Problem]:
    """Report packages of any release that are missing: a rollback may need them."""
    there, named = set(home.packages.list()), {}
    for entry in home.ledger.find(ReleaseState, newest=False):
        named.update(dict.fromkeys(entry.record.packages, entry.loop))
    for digest, loop in named.items():
        if digest not in there:
            yield Problem(where=f"packages/{digest}", what=f"missing: it was released for loop {loop}")


def _served(home: Home) -> Iterator[Problem]:
    """Release files are readable, and not newer than the ledger."""
    for path in sorted((home.path / "served").glob("*.json")):
        if not NAME.fullmatch(path.stem):
            continue
        try:
            copy = read(path)
        except LoopwrightError as error:
            yield Problem(where=f"served/{path.name}", what=str(error))
            continue
        entry = home.ledger.latest(ReleaseState, loop=path.stem)
        known = entry.record.generation if entry is not None else 0
        if copy is not None and copy.state.generation - len(copy.pending) > known:
            what = f"at generation {copy.state.generation}, the ledger at {known}: the ledger was replaced by an older one"
            yield Problem(where=f"served/{path.name}", what=f"{what}; the newer package serves until somebody releases")


def _tables(home: Home) -> Iterator[Problem]:
    """Check that every ingested table exists, at the ingested version or a later one."""
    newest: dict[str, int] = {}
    for entry in home.ledger.find(Ingested, newest=False):
        newest[entry.record.table] = max(entry.record.version, newest.get(entry.record.table, 0))
    for table, version in sorted(newest.items()):
        yield from attempted(f"table {table}", lambda t=table, v=version: _at_least(home, t, v))  # type: ignore[misc]  # as above


def _at_least(home: Home, table: str, version: int) -> list[Problem]:
    if not home.lake.exists(table):
        return [Problem(where=f"table {table}", what=f"missing: the ledger has ingestions up to its version {version}")]
    now = home.lake.version(table)
    what = f"at version {now}, but the ledger has an ingestion into version {version}"
    return [Problem(where=f"table {table}", what=what)] if now < version else []


def _predictions(home: Home) -> Iterator[Problem]:
    """A loop with windows that have rows has a table of predictions."""
    for loop in home.ledger.loops(Window):
        entry = next((e for e in home.ledger.find(Window, loop=loop) if e.record.rows), None)
        if entry is not None and not home.lake.exists(f"predictions.{loop}"):
            what = f"missing: the window from {entry.record.start:%Y-%m-%d %H:%M} UTC has {entry.record.rows:,} predictions"
            yield Problem(where=f"table predictions.{loop}", what=what)
