"""Write the pages of docs/reference that come from the code: declarations.md, commands.md, settings.md, errors.md. `make docs` runs it.

`python docs/generate.py --check` writes nothing and fails when a page is not what the code says.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from loopwright.base import errors
from loopwright.base.settings import SETTINGS, Settings
from loopwright.cli.main import table
from loopwright.cli.signature import help_of, no_serve_parameter, parameters
from loopwright.records import declarations
from loopwright.records.turns import STAGES
from loopwright.render.http_errors import DOOR, STATUS
from loopwright.tasks.metrics.registry import GAPS, MEASURES, METRICS, PARTS
from loopwright.tasks.registry import TASKS
from loopwright.verbs import Verb

HERE = Path(__file__).parent / "reference"
compatibility: Any = import_module("compatibility")  # the script beside this one
NOTE = "<!-- Written by docs/generate.py from the code; `make docs` writes it again. -->\n\n"

COMMANDS = """# Commands

Every command accepts

- `--help`, which prints an example;
- `--json`, which prints exactly one JSON document on standard output (progress goes to standard error);
- every [setting](settings.md) as an option, before or after its name.

| exit code | meaning |
| --- | --- |
| 0 | done, or the answer is yes |
| 1 | the answer is no: the gate refused, a check found a problem, a part is down |
| 2 | wrong use: an unknown name, an invalid option, an invalid declaration |

`loopwright --completion SHELL` prints a completion script for bash, zsh or fish: it completes commands, options and loop names. Put
`source <(loopwright --completion bash)` into `~/.bashrc` (zsh: `~/.zshrc`; fish: `source` the output in `config.fish`).

`LOOP` is the name of a loop in the ledger, or the path of a loop file or its folder. Commands marked *also over HTTP* are available as
`/api/COMMAND` of the control API: `GET` to read, `POST` with a JSON object of the arguments to change something.

"""

SETTINGS_PAGE = """# Settings

Each setting is an environment variable and a command-line option; the option takes precedence. Nothing else configures an installation, and
importing the package reads no setting.

| environment variable | option | default | meaning |
| --- | --- | --- | --- |
"""

SETTINGS_END = """
`LOOPWRIGHT_HOME` contains all files of an installation with default settings:

| below home | what |
| --- | --- |
| `ledger.db` | the ledger, when it is SQLite |
| `ledger.json` | the newest ledger entry that this home has seen; detects a missing or older ledger |
| `clock.json` | the difference of time of day and uptime; detects clock jumps |
| `lake/` | the Delta tables, when they are local |
| `packages/` | packages, one folder each, named by digest |
| `log/` | prediction and outcome segments not yet in the lake |
| `batches/` | locks of files that `loopwright predict` is working on |
| `quarantine/` | damaged log segments, kept for inspection |
| `online/` | context and aggregates for serving |
| `served/` | the local copy of the release state; serving and rollback need no ledger |
| `locks/` | one file per loop that was rolled back: one change at a time |
| `bad/` | marks of packages that kill workers or fail permanently |
| `run/` | state that the workers of a server share, and recent requests with an id |
| `examples/` | training sets, named by digest |
| `reports/` | output of `loopwright report` |

A command that only reads reports a missing home; one that writes creates it and says so. Every command warns on standard error about a variable called
`LOOPWRIGHT_...` that is not in the table.

For a team, set `LOOPWRIGHT_LEDGER=postgresql://...` (install `loopwright[postgres]`) before the first command in a home: a home that had an SQLite ledger
refuses an empty one. Percent-encode special characters in user and password. Pass the token by the environment, because every user of the machine can read a command
line.
"""

ERRORS_PAGE = """# Errors

Every error that loopwright raises deliberately is a `LoopwrightError`. It has facts and the next step. It knows neither HTTP nor exit codes: command line and
server translate it. Over HTTP and with `--json` an error is
`{"error": {"code": ..., "message": ..., "fields": [...]}}`, its code being the class name in snake case, the same on the
command line, over HTTP, in the console and in metrics.

"""

DECLARATIONS_PAGE = """# Declarations

This page lists every class and field of a loop file. Import the classes from `loopwright`; they are frozen. A constructor refuses invalid values at once and
names every invalid field.

- A required text is not empty. A text has at most 200 characters (problem and description 5,000; SQL, categories and names in sources 10,000), all visible.
- A list has no duplicates.
- A duration is a text: `250ms`, `90s`, `15m`, `3h`, `7d`, `2w`, or a sum such as `1d 12h`.

The examples share these tables:

```python
from sklearn.linear_model import LogisticRegression

from loopwright import {names}

weather = Table(
    "weather",
    columns={{"airport": Column("string"), "at": Column("timestamp"), "temp": Column("float"), "wind": Column("float")}},
    key=["airport"],
    event_time="at",
)
flights = Table(
    "flights",
    columns={{"flight": Column("string"), "at": Column("timestamp"), "origin": Column("string"), "carrier": Column("string")}},
    key=["flight"],
    event_time="at",
)
landings = Table(
    "landings",
    columns={{"flight": Column("string"), "landed": Column("timestamp"), "delay": Column("float")}},
    key=["flight"],
    event_time="landed",
)
scope = Scope(
    problem="Warn passengers of a late arrival.",
    objectives=[Objective("warn in time", "operations", "average_precision", at_least=0.3)],
    heuristic=Heuristic(lambda c: c.carrier == "EV"),
)
```

"""

DECLARED_BY_STAGE: dict[str, list[type[declarations.Declaration]]] = {
    "The loop": [declarations.Loop],
    "Scope": [declarations.Scope, declarations.Objective, declarations.Heuristic, declarations.Value, declarations.Budget],
    "Data": [
        declarations.Table,
        declarations.Column,
        declarations.Context,
        declarations.Aggregate,
        declarations.Outcome,
        declarations.Slice,
    ],
    "Develop": [
        declarations.Candidate,
        declarations.TimeSplit,
        declarations.GroupSplit,
        declarations.StratifiedSplit,
        declarations.Sampling,
        declarations.Fleet,
    ],
    "Deploy": [
        declarations.Release,
        declarations.Guard,
        declarations.Shadow,
        declarations.Canary,
        declarations.AB,
        declarations.Full,
    ],
    "Monitor": [declarations.Monitor, declarations.Retrain],
}


def declarations_page() -> str:
    """docs/reference/declarations.md."""
    classes = [cls for stage in DECLARED_BY_STAGE.values() for cls in stage]
    text = NOTE + DECLARATIONS_PAGE.format(names=", ".join(sorted(cls.__name__ for cls in classes)))
    for stage, group in DECLARED_BY_STAGE.items():
        text += f"- {stage}: {', '.join(f'[`{c.__name__}`](#{c.__name__.lower()})' for c in group)}\n"
    for stage, group in DECLARED_BY_STAGE.items():
        text += f"\n## {stage if stage.startswith('The') else 'Stage ' + stage.lower()}\n" + "".join(map(declaration, group))
    return text + metrics_section()


def metrics_section() -> str:
    """Every metric that an objective, a guard or `decay_metric` may name."""
    text = "\n## Metrics\n\nValues of `metric` and `decay_metric`. A class, target, quantile, K or slice follows `:`.\n\n"
    text += "| metric | tasks | better | meaning |\n| --- | --- | --- | --- |\n"
    parts = {f"{name}:": metric for name, metric in [*PARTS.items(), *GAPS.items()]}
    for name, metric in {**METRICS, **parts, **MEASURES}.items():
        better = "neither" if metric.best is None and name != "value_per_prediction" else "higher" if metric.higher else "lower"
        base = name.removesuffix(":")
        having = [
            t.name for t in TASKS.values() if name in t.metrics or (base != name and base in {**t.part_metrics, **t.gaps})
        ]
        tasks = ", ".join(having) if having else "all"
        text += f"| `{name}` | {tasks} | {better} | {cell(metric.help)} |\n"
    return text


def declaration(cls: type[declarations.Declaration]) -> str:
    """The section of one declaration: prose, a table of fields, an example."""
    prose, meanings, example = documented(cls)
    rows = [
        f"| `{f.name}` | `{cell(type_name(f.type))}` | {default_of(f)} | {cell(meanings.get(f.name, ''))} |\n"
        for f in msgspec.structs.fields(cls)
    ]
    table_ = "| field | type | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)
    return f"\n### {cls.__name__}\n\n{prose}\n\n{table_}\n```python\n{example}\n```\n"


def documented(cls: type) -> tuple[str, dict[str, str], str]:
    """A docstring's prose, its `Attributes` (name to meaning) and its `Example`."""
    parts = re.split(r"^(Attributes|Example):\n", inspect.cleandoc(cls.__doc__ or ""), flags=re.MULTILINE)
    section = {name: inspect.cleandoc("\n" + body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    entries = re.findall(r"^(\w+): (.*(?:\n +.*)*)", section.get("Attributes", ""), re.MULTILINE)
    return as_markdown(parts[0].strip()), dict(entries), section.get("Example", "")


def as_markdown(prose: str) -> str:
    """Docstring prose; aligned columns of words and meanings become a list."""
    paragraphs = (re.sub(r"^(\w+) {2,}", r"- `\1`: ", p, flags=re.MULTILINE) for p in prose.split("\n\n"))
    return "\n\n".join(re.sub(r"\n +", " ", p) for p in paragraphs)


def type_name(type_: object) -> str:
    """A type as one writes it, without its module."""
    if callable(type_) and hasattr(type_, "__name__") and not get_args(type_):
        return "function" if type_.__name__ == "Any" else str(type_.__name__).replace("NoneType", "None")
    if get_origin(type_) is Literal:
        return " or ".join(repr(a) for a in get_args(type_))
    if isinstance(type_, UnionType) or get_origin(type_) is Union:
        return " | ".join(type_name(a) for a in get_args(type_))
    return re.sub(r"[\w.]+\.(?=\w)", "", str(type_))


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """The default as one writes it, or "required"."""
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    shown = repr(value) if not isinstance(value, declarations.Declaration) else f"{type(value).__name__}()"
    return f"`{cell(shown)}`"


def in_stage_order(verbs: list[Verb]) -> Iterator[tuple[str, list[Verb]]]:
    """Verbs by stage, in the order of the loop; first those that are about the whole loop."""
    for stage in ("loop", *STAGES):
        found = [v for v in verbs if v.stage == stage]
        if found:
            yield stage, found


def commands() -> str:
    """docs/reference/commands.md."""
    verbs = table()
    text = NOTE + COMMANDS
    for stage, found in in_stage_order(verbs):
        names = ", ".join(f"[`{v.name}`](#{v.name})" for v in found)
        text += f"- {'the whole loop' if stage == 'loop' else stage}: {names}\n"
    for stage, found in in_stage_order(verbs):
        text += f"\n## {'The whole loop' if stage == 'loop' else stage.capitalize()}\n"
        text += "".join(command(verb) for verb in found)
    return text


def command(verb: Verb) -> str:
    """The paragraph of one command."""
    prose, help_ = help_of(verb.call)
    doors = " *Also over HTTP.*" if "http" in verb.doors else ""
    text = f"\n### {verb.name}\n\n{' '.join((prose or verb.help).split())}{doors}\n\n```console\n$ {verb.example}\n```\n"
    rows = [spelled(p, help_) for p in [*parameters(verb.call), *([no_serve_parameter()] if verb.name == "demo" else [])]]
    if rows:
        text += "\n| argument or option | meaning |\n| --- | --- |\n"
        text += "".join(f"| `{name}` | {cell(meaning)} |\n" for name, meaning in rows)
    return text


def spelled(parameter: inspect.Parameter, help_: dict[str, str]) -> tuple[str, str]:
    """How a parameter is written on the command line, and what it means."""
    type_, info = get_args(parameter.annotation)
    meaning = info.help or help_.get(parameter.name, "")
    if type(info).__name__ == "ArgumentInfo":
        name = parameter.name.upper() + ("..." if get_origin(type_) is list else "")
        return (name if parameter.default is inspect.Parameter.empty else f"[{name}]"), meaning
    flag = str((*info.param_decls, info.default)[0])  # typer keeps a lone name in `default`
    if type_ is bool:
        return flag, meaning
    if parameter.default is inspect.Parameter.empty:
        return f"{flag} {parameter.name.upper()}", f"{meaning} (required)"
    default = f" (default {parameter.default})" if parameter.default not in ("", None) else ""
    return f"{flag} {parameter.name.upper()}", meaning + default


def cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def settings() -> str:
    """docs/reference/settings.md."""
    text = NOTE + SETTINGS_PAGE
    defaults = Settings()
    for setting in SETTINGS:
        default = getattr(defaults, setting.field)
        shown = f"`{default}`" if default != "" else ""
        text += f"| `{setting.env}` | `--{setting.field.replace('_', '-')}` | {shown} | {cell(setting.help)} |\n"
    return text + SETTINGS_END


def error_tree(cls: type[errors.LoopwrightError], depth: int = 0) -> Iterator[tuple[int, type[errors.LoopwrightError]]]:
    """An error class and all below it, in the order of the source."""
    yield depth, cls
    for sub in cls.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield from error_tree(sub, depth + 1)


def errors_page() -> str:
    """docs/reference/errors.md."""
    text = NOTE + ERRORS_PAGE
    for depth, cls in error_tree(errors.LoopwrightError):
        text += f"{'  ' * depth}- `{cls.__name__}` (`{cls.code}`): {' '.join((cls.__doc__ or '').split())}\n"
    rows = [f"| {status} | `{code}` | {message} |" for status, (code, message) in DOOR.items()]
    statuses = [
        f"| {status} | {', '.join(f'`{kind.code}`' for kind, of in STATUS if of == status)} |"
        for status in sorted(dict(STATUS).values())
    ]
    return "\n".join([
        text,
        "## Over HTTP", "", "The status of an error is that of its class, or of the first class above it that has one:", "",
        "| status | errors |", "| --- | --- |", *dict.fromkeys(statuses), "",
        "What is refused at the door, before anything raised an error:", "",
        "| status | code | message |", "| --- | --- | --- |", *rows, "",
    ])  # fmt: skip


PAGES = {
    "compatibility.md": lambda: NOTE + compatibility.written(compatibility.names()),
    "declarations.md": declarations_page,
    "commands.md": commands,
    "settings.md": settings,
    "errors.md": errors_page,
}


def main() -> int:
    """Write the pages, or say which are not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is not current")
    checking = parser.parse_args().check
    if gone := compatibility.gone():
        print("names that docs/reference/compatibility.md freezes are gone from the code (its first lines say what to do):")
        print("\n".join(f"  {name}" for name in gone))
        return 1
    stale = [name for name, page in PAGES.items() if not (HERE / name).is_file() or (HERE / name).read_text() != page()]
    for name in stale:
        if not checking:
            (HERE / name).write_text(PAGES[name]())
        print(f"docs/reference/{name}: {'not current, run `make docs`' if checking else 'written'}")
    return int(checking and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
