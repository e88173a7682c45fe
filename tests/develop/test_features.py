import math
import subprocess
import sys
from typing import Any

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import pytest
from tests.develop.flights import COLUMNS, SCOPE, SLICES, features, table

from loopwright.base.errors import DeclarationInvalid
from loopwright.develop.features import NULL, OTHER, WORDS, Vocabulary, trace, trace_rule, trace_slices
from loopwright.features import category, local_time, seconds_between
from loopwright.graph.check import check_graph
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph, feed_rows
from loopwright.records.declarations import Column, Slice

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


@pytest.mark.parametrize(
    "mixing",
    [
        lambda f: f.delay - ndx.mean(f.delay),
        lambda f: ndx.cumulative_sum(f.delay),
        lambda f: ndx.sort(f.delay),
        lambda f: ndx.flip(f.delay),
        lambda f: f.delay / ndx.max(ndx.abs(f.delay)),
        lambda f: ndx.any(f.delay > 1) & (f.delay > 0),
    ],
)
def test_what_mixes_rows_is_refused_for_a_request_comes_alone(mixing: Any) -> None:
    with pytest.raises(DeclarationInvalid, match=r"features\['b'\].*depends on the other rows.*Aggregate") as refused:
        trace(lambda f: {"a": f.delay * 2, "b": mixing(f), "c": ndx.sin(f.delay)}, COLUMNS)
    assert "['a']" not in str(refused.value)
    assert "['c']" not in str(refused.value)
    with pytest.raises(DeclarationInvalid, match="depends on the other rows"):
        trace_rule(mixing, COLUMNS)


def test_what_mixes_the_numbers_of_one_row_is_fine() -> None:
    columns = {"image": Column("array", shape=[4, 4]), "x": Column("float")}
    traced = trace(lambda f: {"m": ndx.mean(f.image, axis=(1, 2)), "s": ndx.sort(f.image, axis=2), "x": ndx.log(f.x)}, columns)
    assert traced.order == ["m", "s", "x"]


def test_many_kinds_of_null_make_a_graph_that_may_be_served() -> None:
    columns = {
        "x": Column("float", nullable=True),
        "flag": Column("boolean", nullable=True),
        "code": Column("integer", nullable=True),
        "size": Column("string", categories=["s", "m"], nullable=True),
        "seen": Column("timestamp", nullable=True),
    }
    traced = trace(
        lambda f: {
            "x": f.x,
            "flag": f.flag,
            "code": category(f.code),
            "size": f.size,
            "since": seconds_between(f.seen, f.seen),
            "hour": local_time(f.seen).hour,
        },
        columns,
    )
    vocabulary = {name: Vocabulary(["1", "2"], null=True, other=False) for name in traced.categories}
    check_graph(traced.matrix_graph(vocabulary, "ordinal"))


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


def test_declared_categories_are_the_vocabulary_in_their_order() -> None:
    columns = {"size": Column("string", categories=["small", "large", "huge"]), "free": Column("string", nullable=True)}
    traced = trace(lambda f: {"size": f.size, "other": nde.fill_null(f.free, "none"), "free": f.free}, columns)
    assert traced.vocabulary("size", ["large", "large"], None) == Vocabulary(["small", "large", "huge"], False, False)
    assert traced.vocabulary("size", ["large", "odd"], None).other
    assert traced.vocabulary("free", ["b", "a"], None).words == ["a", "b"]
    assert traced.vocabulary("other", ["b", "a"], None).words == ["a", "b"]
    vocabulary = {name: traced.vocabulary(name, ["large"], None) for name in traced.order}
    rows = [{"size": w, "free": None} for w in ("small", "large", "huge", "never declared")]
    for encoding, expected in (("ordinal", [[0], [1], [2], [3]]), ("onehot", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])):
        graph = Graph(traced.matrix_graph(vocabulary, encoding))  # type: ignore[arg-type]  # one of the two encodings
        found = graph.run(feed_rows(graph, columns, rows))["features"]
        assert found[:, : len(expected[0])].tolist() == expected
        assert traced.names(vocabulary, encoding)[0] == ("size" if encoding == "ordinal" else "size=small")  # type: ignore[arg-type]  # see above


def test_odd_texts_are_categories_like_any_other() -> None:
    words = ["", " ", "a", "a\0b", "a\0c", "é", "e\u0301", "😀", "\u202e", "İ", "ß", "\n", "x" * 100_000]
    columns = {"text": Column("string"), "maybe": Column("string", nullable=True)}
    traced = trace(lambda f: {"text": f.text, "maybe": f.maybe}, columns)
    learned = Vocabulary.learn(words[1:], None)
    graph = Graph(traced.matrix_graph({"text": learned, "maybe": learned}, "ordinal"))
    rows: list[dict[str, Any]] = [*({"text": w, "maybe": w} for w in words), {"text": "A", "maybe": None}]
    found = graph.run(feed_rows(graph, columns, rows))["features"].tolist()
    code = {word: float(i) for i, word in enumerate(learned.words)}
    unseen = float(len(code))
    assert found[:-1] == [[code.get(w, unseen)] * 2 for w in words]  # the empty text was never seen: it is not null
    assert found[-1] == [unseen, unseen + 1]


def test_zero_false_empty_nan_and_null_are_five_things() -> None:
    columns = {
        "x": Column("float", nullable=True), "i": Column("integer", nullable=True), "b": Column("boolean", nullable=True),
        "s": Column("string", nullable=True), "at": Column("timestamp", nullable=True), "v": Column("array", nullable=True, shape=[2]),
    }  # fmt: skip

    def all_of(f: Any) -> dict[str, Any]:
        return {
            "filled": nde.fill_null(f.x, 7.0), "raw": f.x, "i": nde.fill_null(f.i, 7), "b": f.b, "s": f.s,
            "at": ndx.astype(ndx.isnan(f.at), ndx.float32), "v": nde.fill_null(f.v, 7.0), "v_raw": f.v,
        }  # fmt: skip

    traced = trace(all_of, columns)
    vocabulary = {"s": Vocabulary([""], True, False)}
    graph = Graph(traced.matrix_graph(vocabulary, "ordinal"))
    zero: dict[str, Any] = {"x": 0.0, "i": 0, "b": False, "s": "", "at": 0, "v": [0.0, 0.0]}
    nan = {**zero, "x": math.nan, "v": [math.nan, 1.0]}
    found = graph.run(feed_rows(graph, columns, [zero, nan, dict.fromkeys(zero)]))["features"]
    names = traced.names(vocabulary, "ordinal")
    assert names == ["filled", "raw", "i", "b", "s", "at", "v.0", "v.1", "v_raw.0", "v_raw.1"]
    expected = [
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [math.nan, math.nan, 0, 0, 0, 0, math.nan, 1, math.nan, 1],  # filling nulls does not fill NaN
        [7, math.nan, 7, math.nan, 2, 1, 7, 7, math.nan, math.nan],
    ]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))


def test_a_feature_may_have_several_values_per_row() -> None:
    columns = {"image": Column("array", shape=[4, 3]), "x": Column("float")}

    def of_image(f: Any) -> dict[str, Any]:
        weights = ndx.asarray(np.arange(6, dtype=np.float32).reshape(3, 2))
        return {
            "rows": ndx.mean(f.image, axis=2),
            "first": f.image[:, 0, 0] > 1,
            "x": f.x,
            "all": f.image,
            "mixed": f.image[:, 0, :] @ weights,
        }

    traced = trace(of_image, columns)
    assert traced.widths == {"rows": 4, "all": 12, "mixed": 2}
    graph = Graph(traced.matrix_graph({}, "ordinal"))
    images = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    found = graph.run(feed_rows(graph, columns, [{"image": i.tolist(), "x": 1.5} for i in images]))["features"]
    assert traced.names({}, "ordinal")[:6] == ["rows.0", "rows.1", "rows.2", "rows.3", "first", "x"]
    assert found.shape == (5, 4 + 1 + 1 + 12 + 2)
    np.testing.assert_allclose(found[:, :4], images.mean(axis=2), rtol=1e-6)
    np.testing.assert_array_equal(found[:, 6:18], images.reshape(5, 12))
    with pytest.raises(DeclarationInvalid, match="one value per row, but has 2 dimensions"):
        trace_slices([Slice("a", lambda f: f.image[:, 0, :] > 1)], columns)
