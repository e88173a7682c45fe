"""Messages between the probe and its child process (`sandbox.py`): tasks and reports."""

from typing import Any

import msgspec

from loopwright.records.declarations import Column
from loopwright.records.package import Calibration


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a probe: address space in bytes, CPU seconds, open files. Files written: none at all."""

    memory: int = 4 * 2**30
    cpu_seconds: int = 30
    files: int = 64


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Graphs by file name, the contract, and rows (request and context together) to answer; `width` is that of the values.

    `explanation` are the files that explain the answers of model.onnx (`graph.contributions.FILES`), those that there are.
    """

    limits: Limits
    graphs: dict[str, bytes]
    columns: dict[str, Column]
    rows: list[dict[str, Any]]
    width: int = 0
    explanation: dict[str, bytes] = {}
    calibration: Calibration | None = None


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the child: `problem` is empty if it passed. Scores by graph; times in microseconds for one row."""

    problem: str = ""
    outputs: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    load_ms: float = 0.0
    one_row_us: float = 0.0
