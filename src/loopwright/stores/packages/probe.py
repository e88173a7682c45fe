"""The first load of a package: in a child process with limits, since ONNX is a memory-unsafe parser's input.

Only a package that passed becomes a `Probed`, and only a `Probed` loads graphs: code that runs a package requires one. A passed package
is marked by its digest, so that starting a worker, or tracing a prediction, does not probe it again. A release always probes it.
"""

import signal
import subprocess
import sys
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loopwright.base.errors import PackageRefused
from loopwright.base.ids import digest as sha256
from loopwright.base.scratch import scratch_folder
from loopwright.graph import contributions
from loopwright.graph.session import Graph
from loopwright.records.package import tolerance
from loopwright.stores.packages.probe_task import Limits, ProbeReport, Task
from loopwright.stores.packages.store import FILES, Package, Packages

WALL_SECONDS = 60.0
TOGETHER = 32
"""Number of packages probed in one child process."""

_ROOT = str(Path(__file__).resolve().parents[3])
_START = f"import sys; sys.path.insert(0, {_ROOT!r}); from loopwright.stores.packages.sandbox import main; main()"


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of a probe: golden requests run, the largest difference, time to load and to answer one row."""

    golden: int
    max_difference: float
    load_ms: float
    one_row_us: float


class Probed(Package):
    """A package that passed its probe, the only kind whose graphs are loaded outside the probe's child process.

    Created only in this module (`tests/test_architecture.py`).
    """

    def graph(self, name: str, *, threads: int = 1, lean: bool = False) -> Graph:
        """The graph of that file, loaded (`threads`, `lean`: see `Graph`). Raises PackageRefused where the runtime refuses it."""
        try:
            return Graph(self.files[name], threads=threads, lean=lean)
        except Exception as error:  # the runtime raises many kinds
            raise PackageRefused(self.digest, f"{name} cannot be loaded: {type(error).__name__}") from error

    def model(self, name: str) -> Any:
        """The ONNX model of that file, parsed."""
        import onnx  # here: no worker parses a model

        return onnx.load_model_from_string(self.files[name])


def admit(store: Packages, package: Package) -> tuple[Probed, ProbeResult]:
    """Probe a package, whether or not that was done before, and mark it in its store. Raises PackageRefused."""
    found = probe(package)
    return _marked(store, package), found


def open_probed(store: Packages, digest: str, *, keep: Container[str] = FILES) -> Probed:
    """The package of that digest with the files `keep`, probed now unless it is marked. Raises as `Packages.read`, and as `probe`."""
    if store.is_probed(digest):
        found = store.read(digest, keep=keep)
        return Probed(digest, found.manifest, found.files)
    admitted, _ = admit(store, store.read(digest))
    return Probed(digest, admitted.manifest, {name: data for name, data in admitted.files.items() if name in keep})


def admit_all(
    store: Packages, packages: Iterable[Package], *, most_us: float = float("inf"), again: bool = True
) -> tuple[dict[str, Probed], dict[str, str]]:
    """The packages that pass, by digest, and why each other one is refused; see `probe_all`. Not `again`: unless they are marked."""
    known: list[Package] = []
    new: list[Package] = []
    for package in packages:
        (new if again or not store.is_probed(package.digest) else known).append(package)
    refused = probe_all(new, most_us=most_us)
    passed = {p.digest: Probed(p.digest, p.manifest, p.files) for p in known}
    return passed | {p.digest: _marked(store, p) for p in new if p.digest not in refused}, refused


def _marked(store: Packages, package: Package) -> Probed:
    """Mark and return a package that has just passed. The mark covers the bytes of its digest, so other bytes get no mark."""
    if all(sha256(package.files.get(name, b"")) == info.sha256 for name, info in package.manifest.files.items()):
        store.mark_probed(package.digest)
    return Probed(package.digest, package.manifest, package.files)


def probe(package: Package, *, limits: Limits | None = None, wall_seconds: float = WALL_SECONDS) -> ProbeResult:
    """Load a package's graphs in a confined child process and run its golden requests there.

    Raises PackageRefused naming the reason: an unsafe graph, a crash, too much memory or time, graph and manifest that
    disagree, scores that are no probabilities (of other tasks: no finite numbers), golden answers that differ.
    """
    (report,) = _run(package.digest, [_task(package, limits or Limits())], wall_seconds)
    return _judge(package, report)


def probe_all(packages: Sequence[Package], *, most_us: float = float("inf")) -> dict[str, str]:
    """Probe many packages, some in one child process, and return the reason of each refusal by digest; empty when all pass.

    When a child dies its packages are probed again one by one, so that one package cannot fail another. One that
    takes more than `most_us` microseconds for a row is refused too.
    """
    refused: dict[str, str] = {}
    for start in range(0, len(packages), TOGETHER):
        part = packages[start : start + TOGETHER]
        limits = Limits(cpu_seconds=Limits().cpu_seconds + 2 * len(part))
        try:
            reports: Sequence[ProbeReport | None] = _run(
                part[0].digest, [_task(p, limits) for p in part], WALL_SECONDS + 2 * len(part)
            )
        except PackageRefused:
            reports = [None] * len(part)
        for package, report in zip(part, reports, strict=True):
            try:
                found = probe(package) if report is None else _judge(package, report)
            except PackageRefused as error:
                refused[package.digest] = error.why
                continue
            if found.one_row_us > most_us:
                refused[package.digest] = f"one row takes {found.one_row_us / 1000:.0f} ms, more than {most_us / 1000:g} ms"
    return refused


def _task(package: Package, limits: Limits) -> Task:
    return Task(
        limits=limits,
        graphs={
            name: data for name, data in package.files.items() if name.endswith(".onnx") and name not in contributions.FILES
        },
        columns=package.columns,
        rows=[{**g.request, **g.context} for g in package.reference.golden],
        width=len(package.manifest.output.names),
        explanation={name: data for name, data in package.files.items() if name in contributions.FILES},
        calibration=package.manifest.calibration,
    )


def _judge(package: Package, report: ProbeReport) -> ProbeResult:
    golden, _ = package.reference.golden, package.evaluation  # either raises where it cannot be read
    if report.problem:
        raise PackageRefused(package.digest, report.problem)
    if not golden:
        raise PackageRefused(
            package.digest,
            "it has no golden requests, so its answers cannot be verified: build it again with `loopwright run LOOP`",
        )
    if missing := [name for name in package.manifest.slices if name not in report.outputs.get("slices.onnx", [])]:
        raise PackageRefused(package.digest, f"slices.onnx has no output {missing[0]!r}, which the manifest names")
    worst, output = 0.0, package.manifest.output
    least, most = output.shape.score
    kind = "probability" if most < 2 else "number"
    for i, (answer, score) in enumerate(zip(golden, report.scores.get("model.onnx", []), strict=True)):
        difference = abs(answer.score - score)
        if not difference <= tolerance(output, answer.score):
            raise PackageRefused(package.digest, f"golden request {i} gives {score!r}, not {answer.score!r}")
        worst = max(worst, difference)
    for name, scores in report.scores.items():
        if wrong := [s for s in scores if not least <= s <= most]:
            raise PackageRefused(package.digest, f"{name} gives score {wrong[0]!r}, which is no {kind}")
    return ProbeResult(golden=len(golden), max_difference=worst, load_ms=report.load_ms, one_row_us=report.one_row_us)


def _run(digest: str, tasks: list[Task], wall_seconds: float) -> list[ProbeReport]:
    with scratch_folder("loopwright-probe-") as empty:
        try:
            # -I: no environment, no user site, nothing from the working directory.
            done = subprocess.run(
                [sys.executable, "-I", "-c", _START],
                input=msgspec.msgpack.encode(tasks),
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
        raise PackageRefused(
            digest, f"its probe used more than {tasks[0].limits.cpu_seconds} s of computing time, or was killed"
        )
    if done.returncode < 0:
        raise PackageRefused(digest, f"its probe crashed ({signal.Signals(-done.returncode).name})")
    if done.returncode != 0:
        raise PackageRefused(digest, "its probe failed; it may need more memory than a probe may use")
    try:
        return msgspec.msgpack.decode(done.stdout, type=list[ProbeReport])
    except ValueError as error:
        raise PackageRefused(digest, "its probe gave no report") from error
