"""A package over whole tables: what its model, or its heuristic, says of every row, labelled as when serving."""

import msgspec
import pyarrow as pa

from loopwright.records.columns import arrow_feed
from loopwright.records.graph import Graph
from loopwright.records.metrics import Answered, aligned, answered
from loopwright.records.package import Output
from loopwright.records.packages import Package


def score(package: Package, rows: pa.Table, *, heuristic: bool = False, onto: Output | None = None, threads: int = 1) -> Answered:
    """The answers for N rows of a table with the contract's columns; values in the order of `onto`'s names, or the package's own.

    Raises KeyError for a column that the table lacks, ValueError for a null that is not allowed.
    """
    manifest, graph = package.manifest, Graph(package.files["heuristic.onnx" if heuristic else "model.onnx"], threads=threads)
    found = graph.run(arrow_feed(graph, package.columns, rows), [o for o in ("score", "values") if o in graph.outputs])
    rule = manifest.heuristic_threshold if heuristic else None
    given = answered(manifest.output, found["score"], found.get("values"), manifest.threshold if rule is None else rule)
    if onto is None or given.values is None or onto.names == manifest.output.names:
        return given
    return given._replace(values=aligned(given.values, manifest.output.names, onto.names))


def together(outputs: list[Output]) -> Output:
    """One output that several of a task have in common: all classes of any, or the most numbers."""
    first = max(outputs, key=lambda output: len(output.names), default=Output())
    if first.task != "multiclass":
        return first
    classes = sorted({c for output in outputs for c in output.classes})
    return msgspec.structs.replace(first, classes=classes, names=classes)
