"""RESULTS.md: one section per benchmark, each written by its own script and left alone by the others."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import loopwright  # noqa: F401 - before anything imports onnxruntime, whose telemetry it switches off

RESULTS = Path(__file__).parent / "RESULTS.md"
_HEAD = (
    "# Results\n\nOne section per benchmark; `make bench`, `bench-serving` and `bench-many` write them again. Ratios are the result, the absolute\n"
    "numbers only say where they come from: machines differ, and one machine drifts within an hour, so what is compared was\n"
    "measured in turns.\n"
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]) + "\n"


def software(libraries: Sequence[str]) -> str:
    """What it was measured with, in one sentence: enough where no time was measured."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return f"Measured on {platform.machine()}, Python {platform.python_version()}; {versions}.\n"


def machine(libraries: Sequence[str]) -> str:
    """What it was measured on, in one sentence."""
    load = os.getloadavg()[0]
    text = f"{software(libraries)[:-2]}; {os.cpu_count()} cores. Load average of the machine at the end: {load:.1f}.\n"
    if load > 2 * (os.cpu_count() or 1):
        text += "**Other work kept the machine busy meanwhile: to be measured again on a quiet one.**\n"
    return text


def section(title: str, path: Path = RESULTS) -> str:
    """The text of a section; empty where it is not there."""
    return _sections(path).get(title, "")


def _sections(path: Path) -> dict[str, str]:
    sections: dict[str, str] = {}
    for part in path.read_text().split("\n## ")[1:] if path.is_file() else []:
        name, _, body = part.partition("\n")
        sections[name] = body.strip("\n")
    return sections


def put(title: str, text: str, path: Path = RESULTS) -> None:
    """Write the section `title` (its text without the heading), in place of the one that is there."""
    sections = _sections(path)
    sections[title] = text.strip("\n")
    path.write_text(_HEAD + "".join(f"\n## {name}\n\n{body}\n" for name, body in sections.items()))
