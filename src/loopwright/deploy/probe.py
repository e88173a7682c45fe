"""The first load of a package: in a child process with limits, since ONNX is a memory-unsafe parser's input."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from loopwright.deploy.predict import GOLDEN_TOLERANCE
from loopwright.deploy.sandbox import Limits, Report, Task
from loopwright.records.errors import PackageRefused
from loopwright.records.packages import Package

WALL_SECONDS = 60.0

_ROOT = str(Path(__file__).resolve().parents[2])
_START = f"import sys; sys.path.insert(0, {_ROOT!r}); from loopwright.deploy.sandbox import main; main()"


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe measured: golden requests run, the largest difference, time to load and to answer one row."""

    golden: int
    max_difference: float
    load_ms: float
    one_row_us: float


def probe(package: Package, *, limits: Limits | None = None, wall_seconds: float = WALL_SECONDS) -> ProbeResult:
    """Load a package's graphs in a confined child process and run its golden requests there.

    Raises PackageRefused naming the reason: an unsafe graph, a crash, too much memory or time, graph and manifest that
    disagree, scores that are no probabilities, golden answers that differ by more than 1e-6.
    """
    golden = package.reference.golden
    task = Task(
        limits=limits or Limits(),
        graphs={name: data for name, data in package.files.items() if name.endswith(".onnx")},
        columns=package.columns,
        rows=[{**g.request, **g.context} for g in golden],
    )
    report = _run(package.digest, task, wall_seconds)
    if report.problem:
        raise PackageRefused(package.digest, report.problem)
    if missing := [name for name in package.manifest.slices if name not in report.outputs.get("slices.onnx", [])]:
        raise PackageRefused(package.digest, f"slices.onnx has no output {missing[0]!r}, which the manifest names")
    worst = 0.0
    for i, (answer, score) in enumerate(zip(golden, report.scores.get("model.onnx", []), strict=True)):
        difference = abs(answer.score - score)
        if not difference <= GOLDEN_TOLERANCE:
            raise PackageRefused(package.digest, f"golden request {i} gives {score!r}, not {answer.score!r}")
        worst = max(worst, difference)
    for name, scores in report.scores.items():
        if wrong := [s for s in scores if not -GOLDEN_TOLERANCE <= s <= 1 + GOLDEN_TOLERANCE]:
            raise PackageRefused(package.digest, f"{name} gives score {wrong[0]!r}, which is no probability")
    return ProbeResult(golden=len(golden), max_difference=worst, load_ms=report.load_ms, one_row_us=report.one_row_us)


def _run(digest: str, task: Task, wall_seconds: float) -> Report:
    with tempfile.TemporaryDirectory(prefix="loopwright-probe-") as empty:
        try:
            # -I: no environment, no user site, nothing from the working directory.
            done = subprocess.run(
                [sys.executable, "-I", "-c", _START],
                input=msgspec.msgpack.encode(task),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=empty,
                env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                timeout=wall_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PackageRefused(digest, f"its probe did not end within {wall_seconds:g} s") from error
    if done.returncode == -signal.SIGXCPU or done.returncode == -signal.SIGKILL:
        raise PackageRefused(digest, f"its probe used more than {task.limits.cpu_seconds} s of computing time, or was killed")
    if done.returncode < 0:
        raise PackageRefused(digest, f"its probe crashed ({signal.Signals(-done.returncode).name})")
    if done.returncode != 0:
        raise PackageRefused(digest, "its probe failed; it may need more memory than a probe may use")
    try:
        return msgspec.msgpack.decode(done.stdout, type=Report)
    except ValueError as error:
        raise PackageRefused(digest, "its probe gave no report") from error
