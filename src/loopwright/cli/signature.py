"""Derive a command from a verb's function: its parameters become arguments and options, its docstring their help."""

import inspect
import re
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from loopwright.base.errors import LoopwrightError
from loopwright.base.settings import SETTINGS, load_settings

Parameter = inspect.Parameter

NOT_ASKED = ("home", "progress", "announce")
"""Parameters that the door fills in itself."""

SPELLED = {"as_format": "--as", "from_file": "--from", "import_file": "--import"}
"""Options whose natural name is a Python keyword."""


def loops_served(incomplete: str) -> list[str]:
    """The loops of this home that begin so, as a shell completes them: by its folders, since a ledger takes too long to open."""
    try:
        home = load_settings({}).home
    except LoopwrightError:
        return []
    names = {path.name.removesuffix(".json") for folder in ("served", "log") for path in (home / folder).glob("[a-z0-9]*")}
    return sorted(name for name in names if name.startswith(incomplete))


COMPLETIONS: dict[str, Callable[[str], list[str]]] = {"loop": loops_served}
"""Shell completion of arguments, by name."""

_ARG = re.compile(r"(\w+): (.*)")


def help_of(call: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The prose of a function's docstring, and the help of each parameter from its `Args:` lines."""
    prose, _, rest = inspect.cleandoc(call.__doc__ or "").partition("\nArgs:\n")
    found: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        if match := _ARG.fullmatch(line.strip()) if line.startswith("    ") and not line.startswith("     ") else None:
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return prose.strip(), found


def parameters(call: Callable[..., Any]) -> list[Parameter]:
    """The parameters that a user may set for a verb: those before the `*` become arguments, those after it options.

    `**options: Unpack[T]` adds one option for each field of the typed dictionary T, empty by default.

    Raises TypeError for a parameter whose annotation is a string: types must be real so that they can be inspected.
    """
    _, text = help_of(call)
    asked = [p for p in inspect.signature(call).parameters.values() if p.name not in NOT_ASKED]
    found = []
    for parameter in asked:
        if parameter.kind is Parameter.VAR_KEYWORD:
            (group,) = get_args(parameter.annotation)
            text |= help_of(group)[1]
            fields = get_type_hints(group).items()
            found += [Parameter(name, Parameter.KEYWORD_ONLY, default=kind(), annotation=kind) for name, kind in fields]
        else:
            found.append(parameter)
    return [_parameter(p, text.get(p.name, "")) for p in found]


def _parameter(parameter: Parameter, text: str) -> Parameter:
    if isinstance(parameter.annotation, str):
        raise TypeError(f"parameter {parameter.name}: annotate it with a type, not with the text {parameter.annotation!r}")
    type_, default = _required(parameter.annotation), parameter.default
    is_argument = parameter.kind is not Parameter.KEYWORD_ONLY
    info: Any
    if is_argument:
        complete = COMPLETIONS.get(parameter.name)
        info = typer.Argument(help=text, metavar=parameter.name.upper(), show_default=False, autocompletion=complete)
    else:
        flag = SPELLED.get(parameter.name, "--" + parameter.name.replace("_", "-"))
        names = [f"{flag}/--no-{flag[2:]}"] if type_ is bool and default is True else [flag]
        info = typer.Option(*names, help=text, show_default=default not in ("", None, False))
    if default is None:
        type_ = type_ | None
    return Parameter(parameter.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[type_, info])


def _required(annotation: Any) -> Any:
    """For `Path | None`, the option takes a `Path`."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [a for a in get_args(annotation) if a is not NoneType]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def settings_parameters(*, shown: tuple[str, ...], taken: tuple[str, ...] = ()) -> list[Parameter]:
    """One option for each setting that is not `taken` by the verb itself; those not `shown` work but are not in its help."""
    return [
        Parameter(
            "setting_" + setting.field,
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    "--" + setting.field.replace("_", "-"),
                    help=setting.help,
                    show_default=False,
                    hidden=setting.field not in shown,
                    metavar=setting.field.upper(),
                ),
            ],
        )
        for setting in SETTINGS
        if setting.field not in taken
    ]


def flag_parameter(name: str, option: Any) -> Parameter:
    """A flag, off by default."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])


def json_parameter() -> Parameter:
    """`--json`."""
    text = "one JSON document on standard output, nothing else there"
    return flag_parameter("as_json", typer.Option("--json", help=text, show_default=False))


def no_serve_parameter() -> Parameter:
    """`--no-serve`."""
    return flag_parameter("no_serve", typer.Option("--no-serve", help="end afterwards instead of serving", show_default=False))
