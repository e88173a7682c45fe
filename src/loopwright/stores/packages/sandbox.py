"""The probe's child process: load a package's graphs and answer its golden requests, within limits.

Reads MessagePack from standard input, a list with a `Task` for each package, and writes a list of `ProbeReport` to standard output.
The limits, those of the first task, are set before a byte of a package is parsed; after that the child can only harm
itself.
"""

import os
import resource
import sys
import time
from typing import Any

import msgspec

from loopwright.base.errors import PackageRefused
from loopwright.graph.check import check_graph
from loopwright.graph.contributions import Reasons
from loopwright.graph.session import Feeder, Graph
from loopwright.stores.packages.probe_task import Limits, ProbeReport, Task


def confine(limits: Limits) -> None:
    """Set the limits of this process; they cannot be raised again."""
    for what, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def examine(task: Task) -> ProbeReport:
    """Check, load and run every graph of a task."""
    outputs: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    one_row = 0.0
    started = time.perf_counter()
    for name, data in task.graphs.items():
        try:
            check_graph(data, name=name)
            graph = Graph(data)
        except PackageRefused as refused:
            return ProbeReport(problem=refused.why)
        except Exception as error:  # noqa: BLE001  # the runtime raises many kinds
            return ProbeReport(problem=f"{name} cannot be loaded: {type(error).__name__}")
        outputs[name] = graph.outputs
        if problems := graph.problems(task.columns):
            return ProbeReport(problem=f"{name}: {problems[0]}")
        wanted = [] if name == "slices.onnx" else ["score", "values"] if task.width else ["score"]
        if lacking := [output for output in wanted if output not in graph.outputs]:
            return ProbeReport(problem=f"{name} has no output `{lacking[0]}`")
        if not task.rows:
            continue
        try:
            feeder = Feeder(graph, task.columns)
            found = graph.run(feeder(task.rows))
            if name == "model.onnx":
                one_row = _one_row_us(graph, feeder, task.rows)
        except Exception as error:  # noqa: BLE001
            return ProbeReport(problem=f"{name} fails on a golden request: {type(error).__name__}")
        if wrong := [n for n, values in found.items() if len(values) != len(task.rows)]:
            return ProbeReport(
                problem=f"{name}: output {wrong[0]!r} has {len(found[wrong[0]])} values for {len(task.rows)} rows"
            )
        if "values" in wanted and found["values"].shape != (len(task.rows), task.width):
            return ProbeReport(problem=f"{name}: output `values` has the shape {found['values'].shape}, not [N, {task.width}]")
        if "score" in found:
            scores[name] = [float(s) for s in found["score"]]
    return ProbeReport(outputs=outputs, scores=scores, load_ms=(time.perf_counter() - started) * 1e3, one_row_us=one_row)


def unexplained(task: Task) -> str:
    """Why the explanation does not belong to the model; empty if it does, or if there is none."""
    if not task.explanation:
        return ""
    try:
        before = task.explanation.get("explain.onnx")
        if before is not None:
            check_graph(before, name="explain.onnx")
        graph = Graph(task.graphs["model.onnx"])
        explanation = task.explanation["explanation.msgpack"]
        reasons = Reasons(graph, task.columns, explanation, None if before is None else Graph(before))
        if not task.rows:
            return ""
        answers = graph.run(Feeder(graph, task.columns)(task.rows), ["values" if task.width else "score"])
        return reasons.problem(task.rows, next(iter(answers.values())).reshape(len(task.rows), -1), task.calibration)
    except PackageRefused as refused:
        return refused.why
    except Exception as error:  # noqa: BLE001  # the decoder and the runtime raise many kinds
        return f"its explanation cannot be used: {type(error).__name__}"


def _one_row_us(graph: Any, feeder: Any, rows: list[dict[str, Any]], runs: int = 50) -> float:
    times = []
    for i in range(runs):
        started = time.perf_counter()
        graph.score(feeder([rows[i % len(rows)]]))
        times.append(time.perf_counter() - started)
    return sorted(times)[runs // 2] * 1e6


def main() -> None:
    """Entry of the child process."""
    output = os.dup(1)
    os.dup2(2, 1)  # output of libraries must not mix with the report
    tasks = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[Task])
    confine(tasks[0].limits)
    reports = []
    for task in tasks:
        try:
            report = examine(task)
            why = report.problem or unexplained(task)
            reports.append(ProbeReport(problem=why) if why else report)
        except MemoryError:
            reports.append(ProbeReport(problem="needs more memory than a probe may use"))
    with os.fdopen(output, "wb") as out:
        out.write(msgspec.msgpack.encode(reports))
    os._exit(0)


if __name__ == "__main__":
    main()
