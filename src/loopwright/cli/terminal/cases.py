"""Releases that wait, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import short
from loopwright.cli.terminal.checks import tick
from loopwright.render.words import word
from loopwright.verbs.cases import Case, Cases


def cases(value: Cases) -> RenderableType:
    """Each release that waits, one below the other."""
    if not value.cases:
        return Text("no release waits")
    return Group(*(part for shown in value.cases for part in (case(shown), Text(""))))


def case(value: Case) -> RenderableType:
    """What it is, what it waits for or how it ended, who said what, and the checks of its gate."""
    ends = f"until {word(value.expires)}" if value.state == "waiting" else f"since {word(value.opened)}"
    of = f" ({value.candidate})" if value.candidate else ""
    said = (
        f"{value.loop}: release of {short(value.package)}{of}, {value.state} {ends}, asked for by {value.by}: {word(value.why)}"
    )
    lines = [Text(said)] + [Text(f"  {value.detail}")] * bool(value.detail)
    lines += [tick(False, blocker.name, blocker.detail) for blocker in value.waits_for]
    lines += [tick(a.answer == "approve", a.name, f"{a.answer}: {a.why} ({word(a.at)})") for a in value.approvals]
    return Group(*lines, *(tick(check.passed, check.name, check.detail) for check in value.checks))
