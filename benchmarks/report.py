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


def machine(libraries: Sequence[str]) -> str:
    """What it was measured on, in one sentence."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    load = os.getloadavg()[0]
    text = f"Measured on {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; {versions}. "
    text += f"Load average of the machine at the end: {load:.1f}.\n"
    if load > 2 * (os.cpu_count() or 1):
        text += "**Other work kept the machine busy meanwhile: to be measured again on a quiet one.**\n"
    return text


def put(title: str, text: str, path: Path = RESULTS) -> None:
    """Write the section `title` (its text without the heading), in place of the one that is there."""
    old = path.read_text() if path.is_file() else ""
    sections: dict[str, str] = {}
    for part in old.split("\n## ")[1:]:
        name, _, body = part.partition("\n")
        sections[name] = body.strip("\n")
    sections[title] = text.strip("\n")
    path.write_text(_HEAD + "".join(f"\n## {name}\n\n{body}\n" for name, body in sections.items()))
