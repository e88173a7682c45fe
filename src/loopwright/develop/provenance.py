"""Provenance of a package: the commit of the loop's code and the versions of the libraries that made it."""

import importlib.metadata
import inspect
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBRARIES = (
    "loopwright", "numpy", "onnx", "onnxruntime", "ndonnx", "spox", "skl2onnx", "scikit-learn", "lightgbm", "xgboost",
    "optuna", "duckdb", "pyarrow",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Versions of Python, the platform and the libraries that shape a package, and the processor on which it was measured."""
    return {"platform": platform.platform(terse=True), "processor": processor(), **libraries()}


def libraries() -> dict[str, str]:
    """Versions of Python and the libraries that shape a package."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def commit(code: Callable[..., Any] | str) -> str:
    """The git commit of the folder that holds `code`, with `-dirty` for uncommitted changes; empty outside of git."""
    git = shutil.which("git")
    try:
        folder = Path(inspect.getsourcefile(code) or "").parent if callable(code) else None
    except TypeError:
        folder = None
    if git is None or folder is None or not folder.is_dir():
        return ""
    head = _run([git, "-C", str(folder), "rev-parse", "HEAD"])
    return head + ("-dirty" if head and _run([git, "-C", str(folder), "status", "--porcelain", "--", "."]) else "")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
