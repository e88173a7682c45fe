"""Carry out one verb: open home, call it, show the answer or the error, and say how it went as an exit code."""

import errno
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from traceback import format_exception
from typing import Any, NoReturn

from loopwright.base.errors import (
    DeclarationInvalid,
    HomeNotFound,
    LoopwrightError,
    NotFound,
    RequestInvalid,
    Unavailable,
    UsageError,
    message_of,
)
from loopwright.base.printable import encoded, printable, printable_json
from loopwright.base.settings import load_settings, unknown_settings
from loopwright.cli.progress import listener
from loopwright.render.http_errors import DOOR
from loopwright.stores.home import Home
from loopwright.verbs import Verb

DONE, NO, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
WRITES_TO_SHARE = ("init", "contract", "export")
"""Verbs whose files (source, models for other servers) follow the user's umask; files of other verbs are as private as the home."""

WRONG_USE_ERRORS = (UsageError, NotFound)
ENVIRONMENT = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)
"""Error numbers that say something about the user's files and disks, not about a fault of this code."""


def answer(
    verb: Verb,
    arguments: dict[str, Any],
    settings: dict[str, Any],
    *,
    as_json: bool,
    then: Callable[[Home], None] | None = None,
) -> int:
    """Call `verb` and print its answer; returns the exit code. `then` runs after the answer was printed (`demo` serves)."""
    asked = inspect.signature(verb.call).parameters
    try:
        for name, advice in unknown_settings().items():
            print(f"loopwright: {name} is no setting: {advice}", file=sys.stderr)
        with (
            _quiet_stdout(as_json) as write,
            Home(load_settings(settings), on_made=_say_made) as home,
            _private(home, verb),
            _exits_raise(),
        ):
            if verb.needs_home and not home.exists:
                raise HomeNotFound(str(home.path))
            with listener(as_json=as_json) as progress:
                filled: dict[str, Any] = {"progress": progress, "announce": _announcer(home, write, as_json=as_json)}
                try:
                    result = verb.call(home, **arguments, **{name: filled[name] for name in filled if name in asked})
                except SystemExit as error:  # of user code: its exit code does not concern the answer
                    raise LoopwrightError(f"code of the loop ended the process (SystemExit: {error.code})") from error
            if "announce" not in asked:
                _show(result, write, as_json=as_json)
            if then is not None:
                then(home)
        return DONE if is_yes(result) else NO
    except LoopwrightError as error:
        if isinstance(error, DeclarationInvalid) and error.__cause__ is not None and load_settings(settings).traceback:
            print(printable("".join(format_exception(error)), newlines=True), end="", file=sys.stderr)
        return refuse(error, as_json=as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is not None and error.errno in ENVIRONMENT:
            return refuse(Unavailable(f"{error.filename!r} cannot be used: {error.strerror}"), as_json=as_json)
        if as_json:  # standard output promises a document; the traceback still goes to standard error
            print(json_text({"error": {"code": DOOR[500][0], "message": f"{type(error).__name__}: {message_of(error)}"}}))
        raise


@contextmanager
def _exits_raise() -> Iterator[None]:
    """Let `os._exit` raise SystemExit in this thread, to report that user code ended the command; children and threads still end."""
    leave, here = os._exit, (os.getpid(), threading.get_ident())

    def leave_elsewhere(status: int) -> NoReturn:
        if (os.getpid(), threading.get_ident()) == here:
            raise SystemExit(status)
        leave(status)

    os._exit = leave_elsewhere
    try:
        yield
    finally:
        os._exit = leave


def _say_made(path: Path) -> None:
    """Report that a home was created, in case the folder is wrong or the name misspelt."""
    print(printable(f"loopwright: made a new home, {path}"), file=sys.stderr)


def _private(home: Home, verb: Verb) -> AbstractContextManager[None]:
    return nullcontext() if verb.name in WRITES_TO_SHARE else home.private_files()


def is_yes(result: Any) -> bool:
    """Whether an answer means success: not if a check found errors, bytes are damaged, or a gate failed."""
    if isinstance(result, list):
        return all(is_yes(part) for part in result)
    ok = getattr(result, "ok", None)
    return bool(ok) if ok is not None else not getattr(result, "reasons", None)


def refuse(error: LoopwrightError, *, as_json: bool) -> int:
    """Say an error in one line (or one line a field); 2 if the question was wrong, else 1."""
    if as_json:
        print(json_text({"error": error_facts(error)}))
    else:
        print(printable(f"loopwright: {error}", newlines=True), file=sys.stderr)
    return WRONG_USE if isinstance(error, WRONG_USE_ERRORS) else NO


def error_facts(error: LoopwrightError) -> dict[str, Any]:
    """An error as data: its code (`loop_not_found`), its message, the fields it names, the nearest names."""
    facts: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, DeclarationInvalid | RequestInvalid):
        facts["fields"] = [{"field": p.field, "reason": p.reason} for p in error.problems]
    if isinstance(error, NotFound):
        facts["near"] = error.near
    return facts


def json_text(value: Any) -> str:
    """One JSON document without control characters; NaN and infinity become null."""
    return printable_json(encoded(value).decode())


def _announcer(home: Home, write: Callable[[str], None], *, as_json: bool) -> Callable[[str], None]:
    """The callback of a verb that runs until stopped, called when it is ready: a line for people, `serve.json` for machines."""

    def announce(line: str) -> None:
        if as_json:
            line = (home.path / "serve.json").read_text(encoding="utf-8")
        write(line if as_json else printable(line, newlines=True))
        sys.stdout.flush()

    return announce


def _show(result: Any, write: Callable[[str], None], *, as_json: bool) -> None:
    if as_json:
        write(json_text(result))
    elif result is not None:
        from loopwright.cli.terminal import show  # here and not above: it loads rich, which `--json` does not need

        show(result)


@contextmanager
def _quiet_stdout(wanted: bool) -> Iterator[Callable[[str], None]]:
    """While a verb runs for `--json`, output of it or a C library goes to standard error; yields the function that writes the answer."""
    if not wanted:
        yield print
        return
    out = sys.stdout
    real = out is sys.__stdout__
    out.flush()
    kept = os.dup(1) if real else -1
    if real:
        os.dup2(2, 1)
    sys.stdout = sys.stderr

    def restore() -> None:
        nonlocal kept
        sys.stdout = out
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)
            kept = -1

    def write(text: str) -> None:
        restore()
        print(text, flush=True)

    try:
        yield write
    finally:
        restore()
