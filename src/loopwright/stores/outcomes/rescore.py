"""A package over whole tables: what its model, or its heuristic, says of every row, labelled as when serving."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base.errors import NotFound, PackageRefused
from loopwright.graph.columns import arrow_feed, segment_texts
from loopwright.records.package import Output
from loopwright.records.releases import ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import Probed, admit_all
from loopwright.tasks.metrics import Answered, aligned, answered


def score(
    package: Probed,
    rows: pa.Table,
    *,
    heuristic: bool = False,
    onto: Output | None = None,
    threads: int = 1,
    options: Any = None,
) -> Answered:
    """The answers for N rows of a table with the contract's columns; values in the order of `onto`'s names, or the package's own.

    `options` are the runtime's own: they can stop a run.

    Raises KeyError for a column that the table lacks, ValueError for a null that is not allowed.
    """
    manifest, graph = package.manifest, package.graph("heuristic.onnx" if heuristic else "model.onnx", threads=threads)
    found = graph.run(arrow_feed(graph, package.columns, rows), [o for o in ("score", "values") if o in graph.outputs], options)
    rule = manifest.heuristic_threshold if heuristic else None
    given = answered(manifest.output, found["score"], found.get("values"), manifest.threshold if rule is None else rule)
    if onto is None or given.values is None or onto.names == manifest.output.names:
        return given
    return given._replace(values=aligned(given.values, manifest.output.names, onto.names))


class SegmentPackages(NamedTuple):
    """Packages of segments by value of a request column; the loop's own package answers all other values."""

    column: str
    packages: Mapping[str, Probed]


def segment_packages(home: Home, state: ReleaseState | None) -> SegmentPackages | None:
    """Load the packages of segments in a release; unreadable and refused packages are left out, as in serving."""
    if state is None or not state.segments:
        return None
    whole = []
    for digest in set(state.segments.values()):
        with suppress(PackageRefused, NotFound):
            whole.append(home.packages.read(digest))
    passed, _ = admit_all(home.packages, whole, again=False)
    return SegmentPackages(
        state.fleet, {segment: passed[digest] for segment, digest in state.segments.items() if digest in passed}
    )


def routed(
    package: Probed,
    rows: pa.Table,
    segment_packages: SegmentPackages | None,
    *,
    onto: Output | None = None,
    options: Any = None,
) -> Answered:
    """Answer N rows, each by the package (the loop's or a segment's) that would serve it."""
    found = score(package, rows, onto=onto, threads=2, options=options)
    if segment_packages is None:
        return found
    of = np.array(segment_texts(rows[segment_packages.column]), dtype=object)
    parts = {name: part.copy() for name, part in found._asdict().items() if part is not None}
    for segment, own in segment_packages.packages.items():
        mine = np.flatnonzero(of == segment)
        if len(mine):
            answers = score(own, rows.take(pa.array(mine)), onto=onto or package.manifest.output, threads=2, options=options)
            for name, part in parts.items():
                part[mine] = getattr(answers, name)
    return Answered(**parts)


def together(outputs: list[Output]) -> Output:
    """One output that several of a task have in common: all classes of any, or the most numbers."""
    first = max(outputs, key=lambda output: len(output.names), default=Output())
    if not first.shape.has_classes:
        return first
    classes = sorted({c for output in outputs for c in output.classes})
    return msgspec.structs.replace(first, classes=classes, names=classes)
