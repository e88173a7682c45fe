"""How much a column moves the answers: whether drift in it matters.

The column's values are drawn anew from the reference, independent of all else, and the rows are scored again (permutation
importance; Breiman 2001, Fisher, Rudin and Dominici 2019), so also values beyond the reference count for what they do to
the answers. The unit is the usual difference between the answers to two requests.
"""

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from loopwright.base.arrays import Array, spread_rows
from loopwright.graph.columns import ARROW_TYPES, arrow_feed
from loopwright.graph.session import Graph
from loopwright.monitor.drift.measures import quantiles
from loopwright.records.declarations import Column
from loopwright.records.package import Histogram
from loopwright.stores.packages.probe import Probed

ROWS = 1000
"""Rows of a window, evenly spread, that are scored again."""

SEED = 20
LARGEST = 2.0**63 - 1024
"""The largest float64 that is an int64."""

DRAWN = ("float", "integer", "boolean", "string")
"""Types of columns whose values can be drawn."""


class Impact:
    """Impact of columns on a package's answers to the rows of one window."""

    def __init__(self, package: Probed, rows: pa.Table) -> None:
        self._package = package
        self._rows = rows.take(pa.array(spread_rows(rows.num_rows, ROWS)))

    def __call__(self, reference: Histogram) -> float | None:
        """Mean change of the answer when the column is drawn from its reference, as a share of the usual difference of two answers.

        None where that cannot be told: a feature or answer, an array, answers that are all the same.
        """
        name = reference.column
        if name not in self._package.columns or name not in self._rows.column_names:
            return None
        if name not in self._graph.columns:
            return 0.0
        column = self._package.columns[name]
        if column.type not in DRAWN or not self._unit:
            return None
        place = self._rows.column_names.index(name)
        drawn = pa.array(self._drawn(reference, column)).cast(ARROW_TYPES[column.type])
        moved = self._answers(self._rows.set_column(place, name, drawn)) - self._own
        return float(np.abs(moved).max(axis=1).mean()) / self._unit

    def _drawn(self, reference: Histogram, column: Column) -> list[Any]:
        """A value for each row from the reference; null as often as there, where the contract allows it."""
        rng, rows = np.random.default_rng(SEED), self._rows.num_rows
        if reference.categories:
            shares = np.array(reference.counts[: len(reference.categories)], dtype=np.float64)
            words = rng.choice(np.array(reference.categories, dtype=object), rows, p=shares / shares.sum())
            found = [word == "true" for word in words] if column.type == "boolean" else words.tolist()
        else:
            values = quantiles(reference, rng.random(rows))
            found = (
                np.clip(np.rint(values), -LARGEST, LARGEST).astype(np.int64) if column.type == "integer" else values
            ).tolist()
        null = rng.random(rows) < reference.missing / max(reference.rows, 1)
        return [None if n and column.nullable else value for value, n in zip(found, null, strict=True)]

    def _answers(self, rows: pa.Table) -> Array:
        """The answers to rows [N], float64 [N, K]: probabilities of classes or several numbers where there are, else the score."""
        name = "values" if "values" in self._graph.outputs else "score"
        found = self._graph.run(arrow_feed(self._graph, self._package.columns, rows), [name])[name]
        return np.asarray(found.reshape(rows.num_rows, -1), dtype=np.float64)

    @cached_property
    def _graph(self) -> Graph:
        return self._package.graph("model.onnx")

    @cached_property
    def _own(self) -> Array:
        return self._answers(self._rows)

    @cached_property
    def _unit(self) -> float:
        """Mean difference of the answers to two rows drawn at random."""
        other = np.random.default_rng(SEED).permutation(self._own)
        return float(np.abs(self._own - other).max(axis=1).mean())
