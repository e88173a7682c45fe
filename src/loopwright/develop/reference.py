"""The reference of a package: distributions of its columns and scores on the validation rows, and golden requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base.arrays import Array, spread_rows
from loopwright.graph.columns import arrow_array, numbers, value_counts
from loopwright.graph.session import Feeder, Graph
from loopwright.records.declarations import Column
from loopwright.records.package import Golden, Histogram
from loopwright.tasks.metrics import Answered

BINS = 20
CATEGORIES = 100
GOLDEN = 20


def histograms(
    request: Mapping[str, Column], context: Mapping[str, Column], table: pa.Table, predictions: Answered
) -> list[Histogram]:
    """One histogram per request and context column (timestamps have none), one of the score [N], and one of a class label."""
    found = [
        histogram(name, role, column, table.column(name))
        for role, columns in (("request", request), ("context", context))
        for name, column in columns.items()
        if column.type != "timestamp"
    ]
    found.append(numeric("score", "output", predictions.score, len(predictions.score)))
    if predictions.label is not None and predictions.label.dtype == object:
        found.append(
            histogram("label", "output", Column("string"), pa.chunked_array([pa.array(predictions.label, pa.string())]))
        )
    return found


def histogram(name: str, role: str, column: Column, values: pa.ChunkedArray) -> Histogram:
    """The histogram of one column: at most 20 bins between quantiles for numbers, the 100 most frequent categories otherwise.

    An array column is represented by the mean of each array.
    """
    if column.type in ("float", "integer", "array"):
        return numeric(name, role, numbers(values), len(values))
    plain, null = arrow_array(name, msgspec.structs.replace(column, nullable=True), values)  # not all of it was sent
    words = plain if column.type == "string" else np.where(plain, "true", "false").astype(object)
    kept = words if null is None else words[~null]
    counts = sorted(value_counts(pa.array(kept, type=pa.string())).items(), key=lambda c: (-c[1], c[0]))
    top = sorted(counts[:CATEGORIES])
    return Histogram(
        column=name,
        role=role,
        edges=[],
        categories=[word for word, _ in top],
        counts=[*(count for _, count in top), sum(count for _, count in counts[CATEGORIES:])],
        missing=len(plain) - len(kept),
        rows=len(plain),
        mean=None,
        minimum=None,
        maximum=None,
    )


def numeric(name: str, role: str, values: Array, rows: int) -> Histogram:
    """The histogram of numbers (float64, nulls left out) among `rows` rows.

    Edges are quantiles, so that bins hold alike many rows; bin i holds edges[i - 1] <= x < edges[i]. NaN counts as missing.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return Histogram(
            column=name,
            role=role,
            edges=[],
            categories=[],
            counts=[0],
            missing=rows,
            rows=rows,
            mean=None,
            minimum=None,
            maximum=None,
        )
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], method="higher"))
    edges = edges[(edges > values.min()) & np.isfinite(edges)]
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    finite = values[np.isfinite(values)]
    return Histogram(
        column=name,
        role=role,
        edges=[float(e) for e in edges],
        categories=[],
        counts=[int(c) for c in counts],
        missing=rows - len(values),
        rows=rows,
        mean=float(finite.mean()) if len(finite) else None,
        minimum=float(finite.min()) if len(finite) else None,
        maximum=float(finite.max()) if len(finite) else None,
    )


def served_rows(columns: Mapping[str, Column], table: pa.Table, indices: Sequence[int] | Array) -> list[dict[str, Any]]:
    """Rows of a table as the server sees them: Python values by column, timestamps as microseconds."""
    part = table.select([name for name in columns if name in table.column_names]).take(pa.array(indices, type=pa.int64()))
    for i, name in enumerate(part.column_names):
        if columns[name].type == "timestamp":
            part = part.set_column(i, name, part.column(name).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()))
    rows: list[dict[str, Any]] = part.to_pylist()
    return rows


def golden(
    graph: Graph, columns: Mapping[str, Column], request: Mapping[str, Column], context: Mapping[str, Column], table: pa.Table
) -> list[Golden]:
    """Up to 20 rows spread over the table, each with the score that the graph gives for it alone."""
    feeder = Feeder(graph, columns)
    found = []
    for row in served_rows(columns, table, spread_rows(len(table), GOLDEN)):
        given = {name: row[name] for name in request}, {name: row.get(name) for name in context}
        found.append(Golden(request=given[0], context=given[1], score=float(graph.score(feeder([row]))[0])))
    return found
