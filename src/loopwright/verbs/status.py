"""The verb `status`: loops at a glance, worst first and a page at a time."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec

from loopwright import __version__
from loopwright.base.errors import Damaged, UsageError
from loopwright.base.holder import Holder
from loopwright.records.entries import Record
from loopwright.records.turns import LoopRecord, Turn
from loopwright.records.windows import Alert, Window
from loopwright.stores.home import Home
from loopwright.verbs.loop_status import LoopStatus, open_alerts, statuses

PAGE = 50
"""Loops on a page."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The server that runs over this home: its process, and where predictions, the console and (if it is on) gRPC are."""

    pid: int
    data: str
    control: str
    grpc: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Status of all loops; `server` is None if none runs. `total` counts all loops; these are one of the `pages`, worst first."""

    version: str
    home: str
    ledger: str
    loops: list[LoopStatus]
    server: Running | None = None
    total: int = 0
    page: int = 1
    pages: int = 1
    open_alerts: list[Alert] = []
    """Alerts of no loop: the clock, upkeep as a whole."""

    @property
    def ok(self) -> bool:
        """Whether everything could be looked at."""
        return not any(loop.errors for loop in self.loops)

    @property
    def paged(self) -> str:
        """The page that is shown, "" if all loops are."""
        shown = f"{len(self.loops)} of {self.total:,} loops, worst first (page {self.page} of {self.pages})"
        return f"\n{shown}: `--page N`, or `--all`" if self.pages > 1 else ""


class _AlertState(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = Alert.kind
    severity: str
    state: str


class _TurnState(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = Turn.kind
    state: str


class _WindowState(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = Window.kind
    state: str


class _ServedBy(msgspec.Struct):
    """The process that wrote `serve.json`: its number alone may be another one's by now."""

    holder: Holder


def status(home: Home, *, page: int = 1, all: bool = False) -> Status:
    """Show every loop and the state of its six stages, worst first, 50 per page.

    Args:
        page: page of the list.
        all: show every loop.
    """
    names = worst_first(home)
    pages = 1 if all else max(1, -(-len(names) // PAGE))
    if not 1 <= page <= pages:
        raise UsageError(f"no page {page}: there {'is 1 page' if pages == 1 else f'are {pages} pages'} of {PAGE} loops at most")
    shown = names if all else names[(page - 1) * PAGE : page * PAGE]
    return Status(
        version=__version__,
        home=str(home.path),
        ledger=home.settings.ledger_url.split("://")[0].split("+")[0],
        loops=[s for i in range(0, len(shown), PAGE) for s in statuses(home, shown[i : i + PAGE])],
        server=_server(home),
        total=len(names),
        page=page,
        pages=pages,
        open_alerts=open_alerts(home.ledger.newest(Alert, loops=[""], per="key")),
    )


def worst_first(home: Home) -> list[str]:
    """The names of all loops: those with critical alerts, with other alerts, with a failed turn or drift, to watch, the rest.

    If one of these records cannot be read, loops are ordered by name.
    """
    try:
        return sorted(home.ledger.loops(LoopRecord), key=_rank(home))
    except Damaged:
        return home.ledger.loops(LoopRecord)


def _rank(home: Home) -> Callable[[str], tuple[int, int, int, int, str]]:
    ledger = home.ledger
    critical: dict[str, int] = defaultdict(int)
    alerts: dict[str, int] = defaultdict(int)
    for entry in ledger.newest(_AlertState, per="key"):
        if entry.record.state == "open":
            alerts[entry.loop] += 1
            critical[entry.loop] += entry.record.severity == "critical"
    bad = {e.loop for e in ledger.newest(_TurnState) if e.record.state == "failed"}
    windows = {e.loop: e.record.state for e in ledger.newest(_WindowState)}
    watch = {"drift": -2, "watch": -1, "no data": -1}

    def rank(loop: str) -> tuple[int, int, int, int, str]:
        return -critical[loop], -alerts[loop], -(loop in bad), watch.get(windows.get(loop, ""), 0), loop

    return rank


def _server(home: Home) -> Running | None:
    """The running server of this home, from `serve.json`, unless that was left behind by a dead one."""
    try:
        said = (home.path / "serve.json").read_bytes()
        found, by = msgspec.json.decode(said, type=Running), msgspec.json.decode(said, type=_ServedBy)
    except (OSError, msgspec.DecodeError):
        return None
    if not by.holder.boot:  # the system identifies only the process
        return found if Path(f"/proc/{found.pid}").exists() else None
    return found if by.holder.here and not by.holder.dead else None
