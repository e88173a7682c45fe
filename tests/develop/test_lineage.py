from typing import Any

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np

from loopwright.develop.features import trace, trace_rule
from loopwright.develop.lineage import feature_columns, lineage
from loopwright.graph.session import Graph, feed_rows
from loopwright.records.declarations import Column, Slice
from loopwright.records.package import Lineage, Origin

COLUMNS = {
    "x": Column("float"),
    "y": Column("float", nullable=True),
    "n": Column("integer", nullable=True),
    "yes": Column("boolean"),
    "word": Column("string", nullable=True),
    "at": Column("timestamp"),
}


def features(f: Any) -> dict[str, Any]:
    """Features whose text and whose graph say different things."""
    _unused = f.yes & (f.x > 0)
    both = f.x + nde.fill_null(f.y, 0.0)
    return {
        "both": both,
        "again": ndx.where(f.yes, both, ndx.astype(nde.fill_null(f.n, 0), ndx.float64)),
        "is_null": nde.get_mask(f.y),
        "hour": (ndx.astype(f.at, ndx.int64) // 3_600_000_000) % 24,
        "word": f.word,
        "long": f.word == "abc",
        "constant": ndx.ones_like(f.x),
    }


def test_features_have_the_columns_that_reach_them_in_the_graph() -> None:
    origins = Lineage(columns={"x": Origin(of=["t.x"])}, labels={"label": Origin(of=["o.z"])})
    traced = trace(features, COLUMNS)
    slices = [Slice("word", lambda f: f.word), Slice("late", lambda f: f.x > f.n)]
    made = lineage(traced, trace_rule(lambda f: f.x > 1, COLUMNS), slices, origins)
    assert made.features == {
        "both": ["x", "y"],
        "again": ["x", "y", "n", "yes"],
        "is_null": ["y"],
        "hour": ["at"],
        "word": ["word"],
        "long": ["word"],
        "constant": [],
    }
    assert made.heuristic == ["x"]
    assert made.slices == {"word": ["word"], "late": ["x", "n"]}
    assert (made.columns, made.labels) == (origins.columns, origins.labels)


def test_a_column_that_lineage_does_not_name_never_changes_a_feature() -> None:
    """Lineage against the graph itself: each column is disturbed, and only features that name it may move."""
    traced = trace(lambda f: {k: v for k, v in features(f).items() if k != "word"}, COLUMNS)
    made = feature_columns(traced)
    graph = Graph(traced.raw())
    base = {"x": 1.0, "y": 2.0, "n": 3, "yes": True, "word": "abc", "at": 0}
    other = {"x": 9.0, "y": None, "n": 8, "yes": False, "word": "b", "at": 5 * 3_600_000_000}
    names, moved = list(made), dict[str, set[str]]()
    start = graph.run(feed_rows(graph, COLUMNS, [base]), ["numbers"])["numbers"][0]
    for column, value in other.items():
        after = graph.run(feed_rows(graph, COLUMNS, [base | {column: value}]), ["numbers"])["numbers"][0]
        for i in np.flatnonzero(~((start == after) | (np.isnan(start) & np.isnan(after)))):
            moved.setdefault(names[i], set()).add(column)
    assert {name: columns - set(made[name]) for name, columns in moved.items()} == {name: set() for name in moved}
    assert moved["both"] == {"x", "y"}
