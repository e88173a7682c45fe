import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import onnx
import pyarrow as pa
import pytest

from loopwright.base.clock import microseconds
from loopwright.develop.features import build, trace
from loopwright.features import is_null
from loopwright.graph.columns import arrow_feed, arrow_schema
from loopwright.graph.session import NAT, Feeder, Graph, feed_arrays, feed_rows
from loopwright.records.declarations import Column

COLUMNS = {
    "distance": Column("float"),
    "wind": Column("float", nullable=True),
    "gates": Column("integer", nullable=True),
    "hub": Column("boolean"),
    "night": Column("boolean", nullable=True),
    "carrier": Column("string"),
    "tail": Column("string", nullable=True),
    "at": Column("timestamp"),
    "seen": Column("timestamp", nullable=True),
    "score": Column("float"),
    "never": Column("float"),
}
TYPES = {
    "float": (ndx.float64, ndx.nfloat64),
    "integer": (ndx.int64, ndx.nint64),
    "boolean": (ndx.bool, ndx.nbool),
    "string": (ndx.utf8, ndx.nutf8),
}


def echo() -> Graph:
    """See `echo_model`."""
    return Graph(echo_model())


def echo_model() -> bytes:
    """A graph that gives back what it was given, null or not, so that every way of feeding can be checked."""
    given: dict[str, Any] = {
        name: ndx.argument(
            shape=("N",), dtype=ndx.DateTime64DType("us") if c.type == "timestamp" else TYPES[c.type][c.nullable]
        )
        for name, c in COLUMNS.items()
    }
    f = given
    outputs = {
        "distance2": f["distance"] + 0,
        "wind2": nde.fill_null(f["wind"], -1.0),
        "wind_null2": nde.get_mask(f["wind"]),
        "gates2": nde.fill_null(f["gates"], -1),
        "hub2": ~f["hub"],
        "night2": nde.fill_null(f["night"], False),
        "carrier2": nde.static_map(f["carrier"], {"UA": "United"}, default="other"),
        "tail2": nde.fill_null(f["tail"], "none"),
        "hour2": (ndx.astype(f["at"], ndx.int64) // 3_600_000_000) % 24,
        "unseen2": ndx.isnan(f["seen"]),
        "score": ndx.astype(f["score"] * 2, ndx.float32),
    }
    return build(COLUMNS, given, outputs)


ROWS: list[dict[str, Any]] = [
    {
        "distance": 1.5, "wind": None, "gates": 3, "hub": True, "night": None, "carrier": "UA", "tail": None,
        "at": datetime(2013, 1, 1, 5, tzinfo=UTC), "seen": None, "score": 0.25,
    },
    {
        "distance": -2.0, "wind": float("nan"), "gates": None, "hub": False, "night": True, "carrier": "", "tail": "N1",
        "at": datetime(2013, 1, 1, 5, tzinfo=timezone(timedelta(hours=-5))), "seen": datetime(1969, 1, 1, tzinfo=UTC), "score": 0.5,
    },
]  # fmt: skip


def plain(outputs: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [None if v != v else v for v in array.tolist()] for name, array in outputs.items()}


EXPECTED: dict[str, list[Any]] = {
    "distance2": [1.5, -2.0],
    "wind2": [-1.0, None],  # null is null, NaN stays NaN
    "wind_null2": [True, False],
    "gates2": [3, -1],
    "hub2": [False, True],
    "night2": [False, True],
    "carrier2": ["United", "other"],
    "tail2": ["none", "N1"],
    "hour2": [5, 10],
    "unseen2": [True, False],
    "score": [0.5, 1.0],
}


def test_rows_enter_as_the_contract_says() -> None:
    graph = echo()
    assert plain(graph.run(feed_rows(graph, COLUMNS, ROWS))) == EXPECTED
    for i, row in enumerate(ROWS):  # one row alone takes the quick way
        assert plain(graph.run(feed_rows(graph, COLUMNS, [row]))) == {name: [values[i]] for name, values in EXPECTED.items()}


def test_arrow_enters_like_rows() -> None:
    graph = echo()
    schema = arrow_schema({n: c for n, c in COLUMNS.items() if n != "never"})
    table = pa.Table.from_pylist(ROWS, schema=schema)
    assert plain(graph.run(arrow_feed(graph, COLUMNS, table))) == EXPECTED
    large = table.set_column(table.column_names.index("tail"), "tail", table.column("tail").cast(pa.large_string()))
    chunked = pa.concat_tables([large.slice(0, 1), large.slice(1)])
    assert plain(graph.run(arrow_feed(graph, COLUMNS, chunked))) == EXPECTED
    assert plain(graph.run(arrow_feed(graph, COLUMNS, table.slice(0, 0)))) == {name: [] for name in EXPECTED}


def test_lists_and_arrays_enter_like_rows() -> None:
    graph = echo()
    lists: dict[str, list[Any]] = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    assert plain(graph.run(Feeder(graph, COLUMNS).lists(lists))) == EXPECTED
    arrays = {
        name: (
            np.array([microseconds(v) if isinstance(v, datetime) else NAT if v is None else v for v in values])
            if COLUMNS[name].type == "timestamp"
            else np.array([{"string": "", "float": 0.0}.get(COLUMNS[name].type, 0) if v is None else v for v in values]),
            np.array([v is None for v in values]) if None in values else None,
        )
        for name, values in lists.items()
    }
    assert plain(graph.run(feed_arrays(graph, arrays))) == EXPECTED


def test_only_used_columns_are_inputs_in_order_of_the_contract() -> None:
    graph = echo()
    assert "never" not in graph.columns
    assert graph.columns == [name for name in COLUMNS if name in graph.columns]
    assert {part for i in graph.inputs for column, part in i.parts if column == "wind"} == {"values", "null"}
    assert sorted(i.name for i in graph.inputs) == ["booleans", "floats", "integers", "strings"]


def test_an_output_may_have_the_name_of_a_column() -> None:
    graph = echo()
    assert "score" in graph.outputs
    assert "score" in graph.columns
    feed = feed_rows(graph, COLUMNS, ROWS)
    assert graph.score(feed).tolist() == [0.5, 1.0]
    assert list(graph.run(feed, ["tail2", "score"])) == ["tail2", "score"]


def test_a_null_where_none_is_allowed_is_refused() -> None:
    graph = echo()
    for name in ("distance", "hub", "carrier", "at"):
        with pytest.raises(ValueError, match=name):
            feed_rows(graph, COLUMNS, [{**ROWS[0], name: None}])
        with pytest.raises(KeyError, match=name):
            feed_rows(graph, COLUMNS, [{k: v for k, v in ROWS[0].items() if k != name}])
    without = {k: v for k, v in ROWS[0].items() if k != "wind"}  # a nullable column may be left out
    assert graph.run(feed_rows(graph, COLUMNS, [without]))["wind_null2"].tolist() == [True]
    table = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0] if name != "distance"} | {"distance": [None, 1.0]})
    with pytest.raises(ValueError, match="distance"):
        arrow_feed(graph, COLUMNS, table)


def test_a_contract_that_disagrees_is_named() -> None:
    graph = echo()
    assert graph.problems(COLUMNS) == []
    changed = {**COLUMNS, "distance": Column("integer"), "wind": Column("float"), "tail": Column("string", nullable=True)}
    del changed["hub"]
    found = "; ".join(graph.problems(changed))
    for name in ("distance", "wind", "hub"):
        assert f"'{name}'" in found
    assert "tail" not in found


def test_arrays_enter_in_their_shape() -> None:
    columns = {"image": Column("array", shape=[2, 2]), "mood": Column("array", shape=[3], nullable=True), "x": Column("float")}
    traced = trace(
        lambda f: {"top": f.image[:, 0, :], "mood": nde.fill_null(f.mood, -1.0), "null": is_null(f.mood), "x": f.x}, columns
    )
    graph = Graph(traced.raw())
    assert {i.name: i.shape for i in graph.inputs} == {"image": (2, 2), "mood_values": (3,), "booleans": (1,), "floats": (1,)}
    assert graph.problems(columns) == []
    assert "'mood'" in graph.problems({**columns, "mood": Column("array", shape=[4], nullable=True)})[0]
    rows: list[dict[str, Any]] = [
        {"image": [[1, 2], [3, 4]], "mood": None, "x": 5.0},
        {"image": [5.0, 6.0, 7.0, 8.0], "mood": np.array([7.0, 8.0, 9.0]), "x": 6.0},
    ]
    expected = [[1, 2, -1, -1, -1, 1, 5], [5, 6, 7, 8, 9, 0, 6]]
    assert graph.run(feed_rows(graph, columns, rows))["numbers"].tolist() == expected
    assert graph.run(feed_rows(graph, columns, rows[:1]))["numbers"].tolist() == expected[:1]
    assert graph.run(Feeder(graph, columns).lists({n: [r[n] for r in rows] for n in columns}))["numbers"].tolist() == expected
    flat = [{"image": [1.0, 2, 3, 4], "mood": None, "x": 5.0}, {"image": [5.0, 6, 7, 8], "mood": [7.0, 8, 9], "x": 6.0}]
    table = pa.Table.from_pylist(flat, schema=arrow_schema(columns))
    assert graph.run(arrow_feed(graph, columns, table))["numbers"].tolist() == expected
    for wrong in ([1.0, 2.0], None):
        with pytest.raises(ValueError, match=r"reshape|null"):
            feed_rows(graph, columns, [{**rows[0], "image": wrong}])


def test_a_graph_without_metadata_is_read_by_the_naming_rule() -> None:
    wind = ndx.argument(shape=("N",), dtype=ndx.nfloat64)
    model = ndx.build({"wind": wind}, {"score": ndx.astype(nde.fill_null(wind, 0.5), ndx.float32)})
    graph = Graph(model.SerializeToString())
    assert graph.columns == ["wind"]
    assert graph.score(feed_rows(graph, COLUMNS, [{"wind": None}])).tolist() == [0.5]


def test_a_lean_graph_answers_alike() -> None:
    """Bit by bit, by the same names; what cannot be loaded is refused with the same words."""
    data = echo_model()
    plain, lean = Graph(data), Graph(data, lean=True)
    assert (lean.inputs, lean.columns, lean.outputs) == (plain.inputs, plain.columns, plain.outputs)
    feed = feed_rows(plain, COLUMNS, [{**ROWS[i % len(ROWS)], "distance": i / 7} for i in range(300)])
    for name, array in plain.run(feed).items():
        np.testing.assert_array_equal(lean.run(feed)[name], array, err_msg=name)
    for broken in (b"", b"no model", data[:-200]):
        told = []
        for way in (False, True):
            with pytest.raises(Exception) as refused:  # noqa: PT011  # the runtime's own, of a type that it does not export
                Graph(broken, lean=way)
            told.append(str(refused.value))
        assert told[0] == told[1]


def forest(trees: int = 50, depth: int = 5, width: int = 15) -> bytes:
    """A sum of random trees."""
    rng, inner, nodes = np.random.default_rng(0), 2**depth - 1, 2 ** (depth + 1) - 1
    tree, node = np.repeat(np.arange(trees), nodes), np.tile(np.arange(nodes), trees)
    branch = node < inner
    ensemble = onnx.helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=tree.tolist(), nodes_nodeids=node.tolist(),
        nodes_featureids=np.where(branch, rng.integers(0, width, len(node)), 0).tolist(),
        nodes_values=np.where(branch, rng.normal(size=len(node)), 0).tolist(),
        nodes_modes=["BRANCH_LEQ" if b else "LEAF" for b in branch],
        nodes_truenodeids=np.where(branch, 2 * node + 1, 0).tolist(),
        nodes_falsenodeids=np.where(branch, 2 * node + 2, 0).tolist(),
        target_treeids=tree[~branch].tolist(), target_nodeids=node[~branch].tolist(),
        target_ids=[0] * int((~branch).sum()), target_weights=rng.normal(size=int((~branch).sum())).tolist(),
    )  # fmt: skip
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [None, n]) for name, n in (("x", width), ("y", 1)))
    versions = [onnx.helper.make_opsetid("", 19), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    graph = onnx.helper.make_graph([ensemble], "forest", [x], [y])
    data: bytes = onnx.helper.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()
    return data


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files in memory are Linux's")
def test_a_lean_graph_of_trees_takes_a_third_of_the_memory(tmp_path: Path) -> None:
    """Fifty trees of 32 leaves, held forty times in a process of its own, against sessions as anybody makes them."""
    (tmp_path / "forest.onnx").write_bytes(forest())
    held = {}
    for way in ("bare", "lean"):
        command = [sys.executable, "-c", HOLD, way, str(tmp_path / "forest.onnx")]
        held[way] = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)
    assert held["lean"] < 0.4 * held["bare"], held


HOLD = """
import sys
from pathlib import Path
import numpy as np, onnxruntime as ort
from loopwright.graph.session import Graph

data, row = Path(sys.argv[2]).read_bytes(), {"x": np.zeros((1, 15), np.float32)}

def held():
    # Pages of files come and go as the system likes: they do not count.
    status = Path("/proc/self/status").read_text()
    return sum(int(status.partition(name + ":")[2].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap"))

def one():
    made = ort.InferenceSession(data, providers=["CPUExecutionProvider"]) if sys.argv[1] == "bare" else Graph(data, lean=True)
    made.run(None, row) if sys.argv[1] == "bare" else made.run(row)
    return made

first = [one() for _ in range(3)]
before = held()
more = [one() for _ in range(40)]
print(held() - before)
"""


@pytest.mark.parametrize(
    "moment", [datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC), datetime(2300, 5, 1, 3, 2, 1, 999_999, tzinfo=UTC)]
)
def test_microseconds_are_exact(moment: datetime) -> None:
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds(moment)) == moment


def test_a_moment_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        microseconds(datetime(2013, 1, 1))  # noqa: DTZ001  # that is the point
