"""The command `loopwright`: every verb of the table, with the settings as options, before or after the verb.

Exit codes: 0 done; 1 the answer is no, or it cannot be done; 2 wrong use. With `--json`, standard output holds exactly
one JSON document (the answer, or `{"error": ...}`); progress and everything else goes to standard error.
"""

import errno
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from inspect import Signature
from pathlib import Path
from traceback import format_exception
from typing import Annotated, Any

import typer
from typer.completion import show_callback
from typer.exceptions import Abort, Exit, TyperException

from loopwright import __version__
from loopwright.base.errors import UsageError
from loopwright.base.printable import printable
from loopwright.cli.coercion import Command, Group
from loopwright.cli.signature import (
    Parameter,
    flag_parameter,
    help_of,
    json_parameter,
    no_serve_parameter,
    parameters,
    settings_parameters,
)
from loopwright.verbs import VERBS, Verb, loaded

PROGRAM = "loopwright"
COMPLETE = "_LOOPWRIGHT_COMPLETE"
"""Environment variable by which a shell requests completions; the scripts of `--completion` set it."""

SHELLS = ("bash", "zsh", "fish")
ABOUT = """Run a machine-learning system through its whole life cycle: scope, data, develop, deploy, monitor, business.

LOOP is the name of a loop in the ledger, or the path of a loop file."""
EVERYWHERE = "Options also work after the command; each setting is also an environment variable (docs/reference/settings.md)."
THEN = {"demo": "loopwright.cli.serve:serve_and_open"}
"""What follows a verb whose answer was shown, unless `--no-serve` or `--json` is there."""

TRAINS = ("demo", "replay", "run", "serve", "tend")
"""Verbs that fit models of any size. The others start no threads for linear algebra, which takes as long as loading NumPy."""

COLLECTED_AT = 10_000
"""Objects allocated before garbage is collected: at Python's own 700 it walks the modules of a command over and over."""

_SERVING = (
    "host", "port", "control_port", "grpc_port", "workers", "threads", "memory", "token", "tokens", "traces", "trace_share",
    "events",
)  # fmt: skip
SHOWN = {"serve": ("home", *_SERVING), "demo": ("home", "port", "control_port")}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit. The traceback of a fault of ours is printable too: messages quote names of files."""
    sys.excepthook = lambda *fault: print(printable("".join(format_exception(*fault)), newlines=True), end="", file=sys.stderr)
    _open_standard_streams()
    gc.set_threshold(COLLECTED_AT)
    gc.disable()  # until the verb is loaded: collections take a tenth of that time and find nothing
    code = run(sys.argv[1:] if argv is None else argv)
    gc.freeze()  # else the interpreter walks every module again at exit, a fifth of a short command's time
    sys.exit(code)


def _open_standard_streams() -> None:
    """Give descriptors 0, 1 and 2 that the caller closed to /dev/null: else a database could become standard output."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    nowhere = Path(os.devnull)
    sys.stdout = sys.stdout or nowhere.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or nowhere.open("w", encoding="utf-8")


def run(argv: Sequence[str], verbs: Sequence[Verb] = ()) -> int:
    """Run one command of `verbs` (default: the whole table, and `serve`); the exit code is returned."""
    words = completing()
    if not argv and words is None:
        with redirect_stdout(sys.stderr):
            run(["--help"], verbs)
        return 2
    as_json = "--json" in argv
    try:
        code = build(verbs or table(), argv if words is None else words)(
            args=list(argv), prog_name=PROGRAM, standalone_mode=False
        )
        sys.stdout.flush()
    except TyperException as error:
        return wrong_use(error, as_json)
    except Exit as asked:
        return asked.exit_code
    except (Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        sys.stdout = None  # stdout has no reader any more, so nothing may be flushed to it at exit
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename is not None:
            raise
        sys.stdout = None  # as above
        print(f"loopwright: standard output or a file cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


def completing() -> list[str] | None:
    """The words that a shell wants completed, None outside of completion."""
    if COMPLETE not in os.environ:
        return None
    return next((os.environ[name] for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS") if name in os.environ), "").split()


def table() -> list[Verb]:
    """The verbs of the command line, `serve` (which only this door can do) in the place that its stage has."""
    serve = Verb(
        name="serve",
        stage="deploy",
        function="loopwright.cli.serve:serve",
        help="Serve predictions, the control API and the console.",
        example="loopwright serve --workers 2",
        changes=True,
        doors=("cli",),
    )
    found = [v for v in VERBS if "cli" in v.doors]
    place = next((i + 1 for i, v in enumerate(found) if v.name == "history"), len(found))
    return [*found[:place], serve, *found[place:]]


def wrong_use(error: TyperException, as_json: bool) -> int:
    """Report a command line error in one line, or as JSON."""
    context = getattr(error, "ctx", None)
    text = error.format_message()
    if as_json:
        print(json.dumps({"error": {"code": UsageError.code, "message": text}}))
    else:
        see = f"see `{context.command_path if context else PROGRAM} --help`"
        print(printable(f"{PROGRAM}: {text} ({see})", newlines=True), file=sys.stderr)
    return error.exit_code


def build(verbs: Sequence[Verb], argv: Sequence[str]) -> Callable[..., Any]:
    """The typer command group. Only a verb named in `argv` gets its parameters; the others are only lines of help."""
    app = typer.Typer(
        cls=Group,
        context_settings={"max_content_width": 110},
        name=PROGRAM,
        help=ABOUT,
        epilog=EVERYWHERE,
        rich_markup_mode=None,
        add_completion=completing() is not None,  # typer's own options would guess the shell: `--completion` takes its name
        pretty_exceptions_enable=False,
    )
    every = tuple(p.name.removeprefix("setting_") for p in settings_parameters(shown=()))

    def root(ctx: typer.Context, **options: Any) -> None:
        ctx.obj = options

    root.__signature__ = Signature([_context(), json_parameter(), _version(), _completion(), *settings_parameters(shown=every)])  # type: ignore[attr-defined]  # so typer sees it
    app.callback(invoke_without_command=False)(root)
    if not set(TRAINS) & set(argv):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before a verb loads NumPy, which reads it once
    for verb in verbs:
        if verb.name in argv:
            prose, _ = help_of(verb.call)
            example = f"\b\nExample:\n  {verb.example}"
            app.command(verb.name, cls=Command, help=prose or verb.help, short_help=verb.help, epilog=example)(command(verb))
        else:
            app.command(verb.name, help=verb.help, short_help=verb.help)(_nothing)
    return typer.main.get_command(app)


def command(verb: Verb) -> Callable[..., int]:
    """The function that typer calls for one verb, with the verb's parameters, `--json` and the settings."""
    own = parameters(verb.call)
    taken = tuple(p.name for p in own)

    def call(ctx: typer.Context, **options: Any) -> int:
        from loopwright.cli.answer import answer  # here: `--help` and completion open no home

        if not gc.isenabled():  # in a process of its own: see `main`
            _collect_again(verb)
        before: dict[str, Any] = ctx.obj or {}
        as_json = bool(options["as_json"] or before.get("as_json"))
        then = loaded(THEN[verb.name]) if verb.name in THEN and not (options["no_serve"] or as_json) else None
        return answer(
            verb, {p.name: options[p.name] for p in own}, _settings(before) | _settings(options), as_json=as_json, then=then
        )

    more = [no_serve_parameter()] if verb.name in THEN else []
    settings = settings_parameters(shown=SHOWN.get(verb.name, ("home",)), taken=taken)
    call.__signature__ = Signature([_context(), *own, *more, json_parameter(), *settings])  # type: ignore[attr-defined]  # so typer sees it
    return call


def _collect_again(verb: Verb) -> None:
    """Re-enable garbage collection, without the modules loaded so far. A verb that needs a home reads no data frame: Arrow skips pandas."""
    gc.freeze()
    gc.enable()
    if verb.needs_home:
        sys.meta_path.insert(0, _NoPandas())


class _NoPandas:
    """Has no pandas to import: Arrow loads it with the first value, to ask whether that is a data frame, and it takes as long as the ledger."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"{PROGRAM}: no data frame comes to this command", name=name)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("setting_"): v for k, v in options.items() if k.startswith("setting_") and v is not None}


def _context() -> Parameter:
    return Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)


def _version() -> Parameter:
    def show(wanted: bool) -> None:
        if wanted:
            print(f"loopwright {__version__}")
            raise Exit

    option = typer.Option("--version", help="the version, and nothing else", callback=show, is_eager=True, show_default=False)
    return flag_parameter("version", option)


def _completion() -> Parameter:
    def show(ctx: typer.Context, param: typer.CallbackParam, shell: str | None) -> None:
        if shell is None:
            return
        if shell not in SHELLS:
            raise typer.BadParameter(f"{shell!r} is none of {', '.join(SHELLS)}")
        with suppress(SystemExit):
            show_callback(ctx, param, shell)
        raise Exit

    text = "the script that completes commands, options and loops in bash, zsh or fish, and nothing else"
    option = typer.Option("--completion", help=text, callback=show, is_eager=True, show_default=False, metavar="SHELL")
    return Parameter("completion", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option])


def _nothing() -> None:
    """Placeholder of verbs that are not run."""
