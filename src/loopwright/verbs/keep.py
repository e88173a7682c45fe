"""Verbs that look after what is kept: verification of every byte at rest, and the doctor."""

import os
import shlex
import shutil
import sys
from typing import Literal

import msgspec

from loopwright.records import telemetry
from loopwright.records.errors import LoopwrightError, Unavailable
from loopwright.records.home import PRIVATE_FOLDER, Home
from loopwright.records.ledger.record import Problem
from loopwright.records.memory import memory_limit
from loopwright.records.settings import SETTINGS
from loopwright.verbs.results import Checked, CheckItem, Verified

LIBRARIES = (
    "onnxruntime",
    "onnx",
    "ndonnx",
    "scikit-learn",
    "lightgbm",
    "deltalake",
    "duckdb",
    "pyarrow",
    "sqlalchemy",
    "msgspec",
    "uvicorn",
)


def verify(home: Home) -> Verified:
    """Check every byte at rest: logs, lake, packages, ledger and its audit chain; all damage is named, nothing is changed."""
    from loopwright.data.examples import verify as verify_examples
    from loopwright.records.predictions.commit import verify as verify_logs

    problems: list[Problem] = []
    checked: dict[str, int] = {}
    for table in home.lake.names():
        problems += home.lake.verify(table)
    checked["tables"] = len(home.lake.names())
    problems += home.packages.verify()
    checked["packages"] = len(home.packages.list())
    problems += home.ledger.verify()
    checked["ledger entries"] = home.ledger.count()
    problems += verify_logs(home)
    checked["log segments"] = sum(1 for _ in (home.path / "log").rglob("*.open")) + sum(
        1 for _ in (home.path / "log").rglob("*.sealed")
    )
    problems += verify_examples(home)
    checked["examples files"] = sum(1 for _ in (home.path / "examples").glob("*.parquet"))
    return Verified(ok=not problems, checked=checked, problems=problems)


def doctor(home: Home) -> Checked:
    """Versions, settings, disks: what would bite in production. Every item that is not well says what to do."""
    items = [
        CheckItem(name="python", ok=sys.version_info >= (3, 11), detail=sys.version.split()[0]),
        *_libraries(),
        CheckItem(name="telemetry", ok=not telemetry.problem(), detail=telemetry.problem() or "of libraries: off"),
        *_settings(home),
        _disk(home),
        _private(home),
        _sqlite(home),
        _ledger(home),
        _lake(home),
        _online(home),
        _exposed(home),
        *_openlineage(home),
        *_protocols(home),
        CheckItem(
            name="cores",
            ok=(os.cpu_count() or 1) >= home.settings.workers,
            detail=f"{os.cpu_count()} cores, {home.settings.workers} worker{'' if home.settings.workers == 1 else 's'}",
        ),
        _memory(home),
    ]
    return Checked(what="this installation", ok=all(i.ok for i in items), items=items)


def _memory(home: Home) -> CheckItem:
    """Whether the machine, or this container, has what all workers may fill with packages."""
    settings = home.settings
    asked = settings.memory * settings.workers
    there = memory_limit() // 2**20
    detail = f"packages may take {settings.memory} MiB in each of {settings.workers} workers; {there} MiB may be used here"
    return CheckItem(name="memory", ok=asked <= there * 3 // 4, detail=detail)


def _libraries() -> list[CheckItem]:
    from importlib.metadata import PackageNotFoundError, version  # here and not above: `--help` must start fast

    found = []
    for library in LIBRARIES:
        try:
            found.append(CheckItem(name=library, ok=True, detail=version(library)))
        except PackageNotFoundError:
            found.append(CheckItem(name=library, ok=False, detail="not installed: install loopwright again"))
    return found


def _settings(home: Home) -> list[CheckItem]:
    secret = {"token"}
    values = msgspec.structs.asdict(home.settings)
    shown = {
        s.env: ("set" if values[s.field] else "not set") if s.field in secret else str(values[s.field]).split("@")[-1]
        for s in SETTINGS
    }
    return [CheckItem(name=name, ok=True, detail=value or "default") for name, value in shown.items()]


def _disk(home: Home) -> CheckItem:
    try:
        home.make()
    except Unavailable as error:
        return CheckItem(name="disk", ok=False, detail=str(error))
    free = shutil.disk_usage(home.path).free
    return CheckItem(
        name="disk",
        ok=free > 2 << 30,
        detail=f"{free / 2**30:.1f} GiB free in {home.path}" + ("" if free > 2 << 30 else ": make room, the log needs it"),
    )


def _private(home: Home) -> CheckItem:
    """Whether other users of this machine can read predictions and their data."""
    mode = home.path.stat().st_mode & 0o777 if home.path.is_dir() else PRIVATE_FOLDER
    private, shared = not mode & 0o077, mode & 0o077 == 0o070
    detail = "its owner's alone" if private else "shared with its group" if shared else f"mode {mode:04o}"
    advice = "" if private or shared else f": others can read what is in it; run `chmod -R go= {shlex.quote(str(home.path))}`"
    return CheckItem(name="home", ok=private or shared, detail=f"{home.path}: {detail}{advice}")


def _sqlite(home: Home) -> CheckItem:
    import sqlite3

    version = sqlite3.sqlite_version_info
    used = home.settings.ledger_url.startswith("sqlite")
    old = version < (3, 51, 3)
    detail = sqlite3.sqlite_version + (
        " (before 3.51.3: a WAL reset can lose a commit after a crash; one process writes at a time, prefer PostgreSQL for a team)"
        if old and used
        else ""
    )
    return CheckItem(name="sqlite", ok=True, detail=detail)


def _ledger(home: Home) -> CheckItem:
    from loopwright.records.errors import LedgerUnavailable

    try:
        return CheckItem(
            name="ledger", ok=True, detail=f"{home.ledger.count():,} entries in {home.settings.ledger_url.split('@')[-1]}"
        )
    except LedgerUnavailable as error:
        return CheckItem(name="ledger", ok=False, detail=str(error))


def _lake(home: Home) -> CheckItem:
    names = home.lake.names()
    return CheckItem(name="lake", ok=True, detail=f"{len(names)} tables in {home.settings.lake_root.split('@')[-1]}")


def _openlineage(home: Home) -> list[CheckItem]:
    from loopwright.records.openlineage import problem
    from loopwright.records.outgoing import receiver

    target = home.settings.openlineage
    if not target:
        return []
    why = problem(target, receiver(home.settings, "openlineage"))
    return [CheckItem(name="openlineage", ok=not why, detail=why or f"events go to {target.split('@')[-1]}")]


def _protocols(home: Home) -> list[CheckItem]:
    """What gRPC, spans and events need, where they are asked for: libraries, and receivers that may be called."""
    from importlib.metadata import PackageNotFoundError, version  # here and not above: `--help` must start fast

    from loopwright.records.outgoing import problem, receiver

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
            why = problem(receiver(settings, name))
            items.append(CheckItem(name=name, ok=not why, detail=why or f"go to {url}"))
    return items


def _online(home: Home) -> CheckItem:
    try:
        home.online.fed("doctor")
    except LoopwrightError as error:
        why = f"{error}: predictions go on, without context and aggregates"
        return CheckItem(name="online table", ok=False, detail=why)
    return CheckItem(name="online table", ok=True, detail="answers")


def _exposed(home: Home) -> CheckItem:
    loopback = home.settings.host in ("127.0.0.1", "::1", "localhost")
    ok = loopback or home.settings.has_token
    return CheckItem(
        name="exposure",
        ok=ok,
        detail="loopback only"
        if loopback
        else "token set"
        if ok
        else f"{home.settings.host} without LOOPWRIGHT_TOKEN: `serve` will refuse",
    )
