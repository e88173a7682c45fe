import math
import subprocess
import sys
from typing import Any

import ndonnx as ndx
import numpy as np
import pytest
from tests.develop.flights import COLUMNS, SCOPE, SLICES, features, table

from loopwright.develop.features import NULL, OTHER, WORDS, Vocabulary, trace, trace_rule, trace_slices
from loopwright.records.columns import arrow_feed
from loopwright.records.declarations import Column, Slice
from loopwright.records.errors import DeclarationInvalid
from loopwright.records.graph import Graph, feed_rows

ROW: dict[str, Any] = {
    "flight": "F1", "at": 5 * 3_600_000_000, "delay": 400.0, "distance": 1000, "hub": True, "carrier": "UA", "gate": None,
    "score": None, "wind": None,
}  # fmt: skip


def test_features_are_what_the_function_says() -> None:
    traced = trace(features, COLUMNS)
    vocabulary = {"carrier": Vocabulary(["AA", "UA"], False, False), "gate": Vocabulary(["G1"], True, False)}
    graph = Graph(traced.matrix_graph(vocabulary, "ordinal"))
    assert traced.names(vocabulary, "ordinal") == ["delay", "log_distance", "hub", "wind", "hour", "carrier", "gate"]
    matrix = graph.run(feed_rows(graph, COLUMNS, [ROW, {**ROW, "carrier": "ZZ", "gate": "G9", "wind": 2.0}]))["features"]
    assert matrix.dtype == np.float32
    assert matrix.tolist()[0] == pytest.approx([300, math.log1p(1000), 1, 8, 5, 1, 2])  # null gate: K + 1
    assert matrix.tolist()[1][3:] == pytest.approx([2, 5, 2, 1])  # unseen carrier and gate: K


def test_onehot_gives_an_own_column_only_to_what_training_saw() -> None:
    traced = trace(lambda f: {"gate": f.gate}, COLUMNS)
    rows = [{**ROW, "gate": g} for g in ("G1", None, "new")]
    for vocabulary, names, expected in (
        (Vocabulary(["G1", "G2"], False, False), ["gate=G1", "gate=G2"], [[1, 0], [0, 0], [0, 0]]),
        (Vocabulary(["G1"], True, True), ["gate=G1", f"gate={OTHER}", f"gate={NULL}"], [[1, 0, 0], [0, 0, 1], [0, 1, 0]]),
    ):
        graph = Graph(traced.matrix_graph({"gate": vocabulary}, "onehot"))
        assert traced.names({"gate": vocabulary}, "onehot") == names
        assert graph.run(feed_rows(graph, COLUMNS, rows))["features"].tolist() == expected


def test_vocabulary_keeps_the_most_frequent_sorted() -> None:
    words = [f"w{i:03d}" for i in range(300) for _ in range(1 + i)]
    found = Vocabulary.learn(words, None)
    assert found.words == [f"w{i:03d}" for i in range(300 - WORDS, 300)]
    assert found.other
    assert not found.null
    null = np.array([True, False])
    assert Vocabulary.learn(["", "b"], null) == Vocabulary(["b"], True, False)
    assert Vocabulary.learn(["b", "b"], ~np.array([False, False])) == Vocabulary([], True, False)


def test_only_used_columns_are_inputs() -> None:
    assert trace(features, COLUMNS).used == ["at", "delay", "distance", "hub", "carrier", "gate", "wind"]


def test_the_same_features_are_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from tests.develop.flights import *; from loopwright.develop.features import *\n"
        "v = {'carrier': Vocabulary(['AA'], False, False), 'gate': Vocabulary(['G1'], True, False)}\n"
        "print(hashlib.sha256(trace(features, COLUMNS).matrix_graph(v, 'onehot')).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path)) + ":."},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


WRONG: dict[str, tuple[Any, str]] = {
    "if": (lambda f: {"a": f.delay if f.delay > 3 else f.wind}, r"line \d+ .*ndx.where"),
    "math": (lambda f: {"a": math.sin(f.delay)}, r"line \d+ .*ndx.sin"),
    "numpy": (lambda f: {"a": np.sin(f.delay)}, r"line \d+ .*NumPy cannot be traced"),
    "unknown column": (lambda f: {"a": f.dealy}, "no column 'dealy'; there is delay"),
    "pandas": (lambda f: {"a": f.wind.fillna(0)}, "nde.fill_null"),
    "mixed types": (lambda f: {"a": f.carrier + 1}, "cannot be combined"),
    "loop": (lambda f: {"a": [x for x in f.delay]}, "cannot be looped over"),  # noqa: C416  # that is the point
    "no dictionary": (lambda f: f.delay, "must return a dictionary"),
    "nothing": (lambda f: {}, "must return a dictionary"),
    "constant": (lambda f: {"a": 1.0}, "must be an array made from the columns, not float"),
    "scalar": (lambda f: {"a": ndx.asarray(1.0)}, "uses no column"),
    "moment": (lambda f: {"a": f.at}, "a moment is not a feature"),
    "fixed length": (lambda f: {"a": ndx.asarray([1.0, 2.0, 3.0])}, "one value per row"),
    "name": (lambda f: {"a=b": f.delay}, "without ="),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_traced_says_where_and_what_to_write(name: str) -> None:
    function, expected = WRONG[name]
    with pytest.raises(DeclarationInvalid, match=expected):
        trace(function, COLUMNS)


def test_all_wrong_features_are_named_at_once() -> None:
    with pytest.raises(DeclarationInvalid) as caught:
        trace(lambda f: {"a": f.at, "b": 3, "c": f.delay}, COLUMNS)
    assert [p.field for p in caught.value.problems] == ["features['a']", "features['b']"]


def test_columns_that_would_share_an_input_are_refused() -> None:
    with pytest.raises(DeclarationInvalid, match="clashes"):
        trace(lambda f: {"a": f.x}, {"x": Column("float", nullable=True), "x_null": Column("boolean")})


def test_a_rule_always_answers() -> None:
    graph = Graph(trace_rule(SCOPE.heuristic.rule, COLUMNS))
    assert graph.score(feed_rows(graph, COLUMNS, [ROW, {**ROW, "delay": 1.0}, {**ROW, "delay": float("nan")}])).tolist() == [
        1,
        0,
        0,
    ]
    graph = Graph(trace_rule(lambda f: f.wind / 10, COLUMNS))
    winds = [5.0, None, float("nan"), 99.0, -1.0]
    assert graph.score(feed_rows(graph, COLUMNS, [{**ROW, "wind": w} for w in winds])).tolist() == [0.5, 0, 0, 1, 0]
    graph = Graph(trace_rule(lambda f: f.wind > 10, COLUMNS))
    assert graph.score(feed_rows(graph, COLUMNS, [{**ROW, "wind": w} for w in (11.0, None)])).tolist() == [1, 0]
    with pytest.raises(DeclarationInvalid, match="condition or a number"):
        trace_rule(lambda f: f.carrier, COLUMNS)


def test_slices_are_strings() -> None:
    data = trace_slices([*SLICES, Slice("windy", lambda f: f.wind > 10)], COLUMNS)
    assert data is not None
    graph = Graph(data)
    found = graph.run(feed_rows(graph, COLUMNS, [ROW, {**ROW, "gate": "G1", "hub": False, "wind": 11.0}]))
    assert {k: v.tolist() for k, v in found.items()} == {
        "carrier": ["UA", "UA"], "hub": ["yes", "no"], "gate": ["missing", "G1"], "windy": ["missing", "yes"],
    }  # fmt: skip
    assert trace_slices([], COLUMNS) is None
    with pytest.raises(DeclarationInvalid, match="string or a condition"):
        trace_slices([Slice("delay", lambda f: f.delay)], COLUMNS)


def test_serving_one_row_is_training_on_all() -> None:
    traced, rows = trace(features, COLUMNS), table(200)
    vocabulary = {"carrier": Vocabulary(["AA", "EV"], False, True), "gate": Vocabulary(["G1"], True, True)}
    graph = Graph(traced.matrix_graph(vocabulary, "onehot"))
    whole = graph.run(arrow_feed(graph, COLUMNS, rows))["features"]
    for i, row in enumerate(rows.select(list(COLUMNS)).to_pylist()):
        assert graph.run(feed_rows(graph, COLUMNS, [row]))["features"].tobytes() == whole[i : i + 1].tobytes()
