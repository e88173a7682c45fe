"""The verb `doctor`."""

import os
import re
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from loopwright.base import telemetry
from loopwright.base.errors import LoopwrightError
from loopwright.base.jumps import JUMP_SECONDS, jumped
from loopwright.base.memory import memory_limit
from loopwright.base.outbound_http import problem as receiver_problem
from loopwright.base.outbound_http import receiver
from loopwright.base.printable import url_without_secrets
from loopwright.base.settings import SETTINGS, unknown_settings
from loopwright.base.text import count
from loopwright.base.tokens import ADVICE, exposed
from loopwright.records.entries import Problem
from loopwright.stores import openlineage
from loopwright.stores.home import Home
from loopwright.stores.upkeep_state import LEASE_SECONDS
from loopwright.verbs.checked import Checked, CheckItem
from loopwright.verbs.integrity import attempted, missing, serving

LIBRARIES = (
    "onnxruntime", "onnx", "ndonnx", "scikit-learn", "lightgbm", "deltalake", "duckdb", "pyarrow", "sqlalchemy", "msgspec",
    "uvicorn",
)  # fmt: skip

MAX_SAID = 3
"""Maximum number of problems named in one item of the doctor."""


def doctor(home: Home) -> Checked:
    """Check the installation: versions, settings, disks, stores. Every failed item names the next step."""
    items = [
        CheckItem(name="python", ok=sys.version_info >= (3, 11), detail=sys.version.split()[0]),
        *_libraries(),
        CheckItem(name="telemetry", ok=not telemetry.problem(), detail=telemetry.problem() or "of libraries: off"),
        *_settings(home),
        *_unknown(),
        _disk(home),
        _private(home),
        _sqlite(home),
        *(_stores(home) if home.exists else []),
        _checked("exposure", lambda: _exposed(home)),
        *_webhook(home),
        *_openlineage(home),
        *_protocols(home),
        CheckItem(
            name="cores",
            ok=(os.cpu_count() or 1) >= home.settings.workers,
            detail=f"{os.cpu_count()} cores, {count(home.settings.workers, 'worker')}",
        ),
        _memory(home),
    ]
    return Checked(what="this installation", ok=all(i.ok for i in items), items=items)


def _stores(home: Home) -> list[CheckItem]:
    return [
        _checked("ledger", lambda: _ledger(home)),
        _checked("lake", lambda: _lake(home)),
        _checked("packages", lambda: _packages(home)),
        _online(home),
        _checked("upkeep", lambda: _upkeep(home)),
        _checked("clock", lambda: _clock(home)),
    ]


def _memory(home: Home) -> CheckItem:
    """Whether the machine, or this container, has enough memory for the package caches of all workers."""
    settings = home.settings
    asked = settings.memory * settings.workers
    there = memory_limit() // 2**20
    detail = f"packages may take {settings.memory} MiB in each worker; {there} MiB may be used here"
    return CheckItem(name="memory", ok=asked <= there * 3 // 4, detail=detail)


def _libraries() -> list[CheckItem]:
    found = []
    for library in LIBRARIES:
        try:
            found.append(CheckItem(name=library, ok=True, detail=version(library)))
        except PackageNotFoundError:
            found.append(CheckItem(name=library, ok=False, detail="not installed: install loopwright again"))
    return found


def _settings(home: Home) -> list[CheckItem]:
    return [
        CheckItem(name=s.env, ok=True, detail=_shown(s.field, str(getattr(home.settings, s.field))) or "default")
        for s in SETTINGS
    ]


def _unknown() -> list[CheckItem]:
    return [
        CheckItem(name=name, ok=True, detail=f"is no setting: {advice}", warning=True)
        for name, advice in unknown_settings().items()
    ]


def _shown(field: str, value: str) -> str:
    """A setting as it may be shown: whether a secret is set, of a URL where it leads, without user, password and query."""
    if field in ("token", "otlp_headers"):
        return "set" if value else "not set"
    if field in ("webhook", "openlineage", "traces", "events"):
        return url_without_secrets(value)
    return _place(value)


def _place(url: str) -> str:
    """The place of a database or folder: its URL without user, password (which may hold `?`) and query; a path unchanged."""
    scheme, is_url, rest = url.partition("://")
    return f"{scheme}://{re.sub(r'^[^:/]*(:[^@]*)?@', '', rest).partition('?')[0]}" if is_url else url


def _disk(home: Home) -> CheckItem:
    there = next(folder for folder in (home.path, *home.path.parents) if folder.is_dir())
    if not os.access(there, os.W_OK):
        return CheckItem(
            name="disk", ok=False, detail=f"{there} cannot be written to: give it to this user, or name another home"
        )
    free = shutil.disk_usage(there).free
    return CheckItem(
        name="disk",
        ok=free > 2 << 30,
        detail=f"{free / 2**30:.1f} GiB free in {home.path}" + ("" if free > 2 << 30 else ": make room, the log needs it"),
    )


def _private(home: Home) -> CheckItem:
    """Whether other users of this machine can read predictions and their data."""
    if not home.path.is_dir():
        detail = (
            f"there is none at {home.path} yet: the first command that writes makes it; --home or LOOPWRIGHT_HOME names another"
        )
        return CheckItem(name="home", ok=True, detail=detail, warning=True)
    mode = home.path.stat().st_mode & 0o777
    private, shared = not mode & 0o077, mode & 0o077 == 0o070
    detail = "its owner's alone" if private else "shared with its group" if shared else f"mode {mode:04o}"
    advice = "" if private or shared else f": others can read what is in it; run `chmod -R go= {shlex.quote(str(home.path))}`"
    return CheckItem(name="home", ok=private or shared, detail=f"{home.path}: {detail}{advice}")


def _sqlite(home: Home) -> CheckItem:
    version = sqlite3.sqlite_version_info
    used = home.settings.ledger_url.startswith("sqlite")
    old = used and version < (3, 51, 3)
    why = (
        " (before 3.51.3: a WAL reset can lose a commit after a crash; loopwright's processes never write and checkpoint at once, "
        "but let no other program open the ledger; PostgreSQL for a team)"
    )
    return CheckItem(name="sqlite", ok=True, detail=sqlite3.sqlite_version + (why if old else ""), warning=old)


def _checked(name: str, ask: Callable[[], CheckItem]) -> CheckItem:
    """An item; not well where it could not even be looked at."""
    try:
        return ask()
    except (LoopwrightError, OSError) as error:
        return CheckItem(name=name, ok=False, detail=f"cannot be looked at: {error}")


def _items(name: str, problems: list[Problem], well: str) -> CheckItem:
    found = "; ".join(f"{problem.where}: {problem.what}" for problem in problems[:MAX_SAID])
    more = f"; and {len(problems) - MAX_SAID} more: `loopwright verify`" if len(problems) > MAX_SAID else ""
    return CheckItem(name=name, ok=not problems, detail=found + more if problems else well)


def _ledger(home: Home) -> CheckItem:
    behind = home.ledger.seen.behind()
    where = _place(home.settings.ledger_url)
    return CheckItem(name="ledger", ok=not behind, detail=behind or f"{home.ledger.count():,} entries in {where}")


def _lake(home: Home) -> CheckItem:
    """Check that every table can be opened and that none is missing."""
    names = home.lake.names()
    unreadable = [p for name in names for p in attempted(f"table {name}", partial(_opened, home, name))]
    where = _place(home.settings.lake_root)
    return _items("lake", [*unreadable, *missing(home)], f"{count(len(names), 'table')} in {where}")


def _opened(home: Home, table: str) -> list[Problem]:
    home.lake.version(table)
    return []


def _packages(home: Home) -> CheckItem:
    return _items("packages", serving(home), "those that serve are whole")


def _upkeep(home: Home) -> CheckItem:
    """Whether upkeep runs, by its lease; a dead or expired lease is a warning."""
    lease = home.ledger.lease("tend", LEASE_SECONDS)
    if lease is None:
        return CheckItem(name="upkeep", ok=True, detail="no upkeep runs: `loopwright serve` does, or `loopwright tend`")
    if lease.state == "held":
        return CheckItem(name="upkeep", ok=True, detail=f"{lease.holder} tends")
    why = {
        "dead": "died; the next one goes on at once",
        "over": "has not renewed its lease",
        "void": f"has a lease until {lease.until:%Y-%m-%d %H:%M} UTC, too far in the future: a clock was wrong, and the next one goes on",
    }[lease.state]
    return CheckItem(name="upkeep", ok=lease.state != "void", detail=f"no upkeep runs: {lease.holder} {why}", warning=True)


def _clock(home: Home) -> CheckItem:
    """Whether the wall clock is consistent with upkeep and the ledger."""
    now, why = home.clock.now(), jumped(home.path, home.clock)
    newest = home.ledger.history(limit=1)
    if not why and newest and (newest[0].at - now).total_seconds() > JUMP_SECONDS:
        why = f"the newest ledger entry is of {newest[0].at:%Y-%m-%d %H:%M} UTC, after now: the clock was ahead, or is behind"
    return CheckItem(name="clock", ok=not why, detail=why or f"{now:%Y-%m-%d %H:%M} UTC")


def _webhook(home: Home) -> list[CheckItem]:
    if not home.settings.webhook:
        return []
    why = receiver_problem(receiver(home.settings, "webhook"))
    return [CheckItem(name="webhook", ok=not why, detail=why or f"alerts go to {url_without_secrets(home.settings.webhook)}")]


def _openlineage(home: Home) -> list[CheckItem]:
    target = home.settings.openlineage
    if not target:
        return []
    why = openlineage.problem(target, receiver(home.settings, "openlineage"))
    return [CheckItem(name="openlineage", ok=not why, detail=why or f"events go to {url_without_secrets(target)}")]


def _protocols(home: Home) -> list[CheckItem]:
    """gRPC, spans and events, where they are switched on: their libraries, and whether their receivers may be called."""
    settings, items = home.settings, []
    for name, asked, extra, libraries in (
        ("gRPC", settings.grpc_port >= 0, "grpc", ("grpcio", "protobuf")),
        ("traces", bool(settings.traces), "otel", ("opentelemetry-proto",)),
    ):
        try:
            found = ", ".join(f"{library} {version(library)}" for library in libraries) if asked else ""
            items += [CheckItem(name=name, ok=True, detail=found)] if asked else []
        except PackageNotFoundError:
            items.append(CheckItem(name=name, ok=False, detail=f"not installed: pip install 'loopwright[{extra}]'"))
    sinks: tuple[tuple[Literal["traces", "events"], str], ...] = (("traces", settings.traces), ("events", settings.events))
    for name, url in sinks:
        if url:
            why = receiver_problem(receiver(settings, name))
            items.append(CheckItem(name=name, ok=not why, detail=why or f"go to {url_without_secrets(url)}"))
    return items


def _online(home: Home) -> CheckItem:
    try:
        home.online.fed("doctor")
    except LoopwrightError as error:
        why = f"{error}: predictions go on, without context and aggregates"
        return CheckItem(name="online table", ok=False, detail=why)
    return CheckItem(name="online table", ok=True, detail="answers")


def _exposed(home: Home) -> CheckItem:
    """Whether the server would start with this address and these tokens."""
    settings = home.settings
    why = exposed(settings)  # also if the address needs no token, a bad token file keeps the server from starting
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        return CheckItem(name="exposure", ok=True, detail="loopback only")
    if not settings.has_token:
        return CheckItem(name="exposure", ok=False, detail=f"{settings.host} without LOOPWRIGHT_TOKEN: `serve` will refuse")
    return CheckItem(name="exposure", ok=not why, detail=f"{why}: `serve` will refuse; {ADVICE}" if why else "token set")
