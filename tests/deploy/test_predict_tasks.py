"""One package answering, of every task: labels, values, and what counts as a failure of the model."""

from pathlib import Path
from typing import Any

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import pytest
from tests.deploy.loops import NOW, Weather

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import DeclarationInvalid, PackageRefused, Unavailable
from loopwright.deploy.serving.predictor import Predictor
from loopwright.develop.features import trace_rule
from loopwright.graph.session import Graph, feed_rows
from loopwright.records.declarations import Column
from loopwright.records.evaluation import Evaluation
from loopwright.records.package import Conversion, Golden, Manifest, Output, Reference, Training
from loopwright.records.prediction import Prediction
from loopwright.stores.packages.probe import Probed, probe
from loopwright.stores.packages.store import Packages, encode_json

COLUMNS = {"x": Column("float", nullable=True), "word": Column("string", nullable=True), "at": Column("timestamp")}
CLASSES = Output(task="multiclass", classes=["a", "b", "c"], names=["a", "b", "c"])
QUANTILES = Output(task="regression", names=["q0.1", "q0.9"], quantiles=[0.1, 0.9])
TARGETS = Output(task="regression", names=["cost", "weight"])


def rule(function: Any, output: Output, middle: tuple[float, ...] = (0.0,)) -> bytes:
    return trace_rule(function, COLUMNS, output, middle)


def predictor(folder: Path, output: Output, model: bytes, heuristic: bytes, **changes: Any) -> Predictor:
    evaluation = Evaluation(
        rows=1, positives=0, threshold=0.5, metrics={}, slices={}, latency_p50_us=1, latency_p99_us=1, size_bytes=1,
        train_seconds=1, value_per_prediction=0,
    )  # fmt: skip
    row = {"x": 2.0, "word": "b", "at": 0}
    graph = Graph(model)
    golden = [Golden(request=row, context={}, score=float(graph.score(feed_rows(graph, COLUMNS, [row]))[0]))]
    given: dict[str, Any] = {
        "format": 1, "loop": "tasks", "candidate": "by-hand", "phase": 2, "created_at": NOW, "by": "tests", "declaration": "0" * 64,
        "request": COLUMNS, "key": ["word"], "event_time": "at", "context": [], "features": [], "vocabulary": {}, "slices": [],
        "threshold": 0.5, "params": {}, "seed": 0, "conversion": Conversion(rows=1, max_difference=0.0), "commit": "",
        "training": Training(examples="0" * 64, rows=1, as_of=NOW, first=NOW, last=NOW, sources={}, seconds=1.0),
        "environment": {}, "parent": "", "release": {}, "files": {}, "output": output, **changes,
    }  # fmt: skip
    files = {
        "model.onnx": model,
        "heuristic.onnx": heuristic,
        "evaluation.json": encode_json(evaluation),
        "reference.json": encode_json(Reference(columns=[], golden=golden)),
    }
    made = Packages(folder / "packages").write(Manifest(**given), files)
    package = Probed(made.digest, made.manifest, made.files)
    found = Predictor(package, Weather(), SimulatedClock(NOW))
    found.check_golden()
    return found


def answers(given: Predictor, *rows: tuple[float | None, str | None]) -> list[Prediction]:
    return given.answer([{"x": x, "word": word} for x, word in rows])


def test_of_several_classes_the_likeliest_is_the_label(tmp_path: Path) -> None:
    model = rule(lambda f: ndx.where(nde.fill_null(f.x, 0.0) > 1, ndx.asarray("c"), ndx.asarray("a")), CLASSES)
    found = answers(predictor(tmp_path, CLASSES, model, rule(lambda f: f.word, CLASSES)), (2.0, "b"), (0.0, "b"))
    assert [(a.label, a.score, a.values) for a in found] == [("c", 1.0, [0.0, 0.0, 1.0]), ("a", 1.0, [1.0, 0.0, 0.0])]


def test_a_rule_that_names_no_class_says_that_all_are_alike(tmp_path: Path) -> None:
    words = rule(lambda f: f.word, CLASSES)
    found = answers(predictor(tmp_path, CLASSES, words, words), (None, "b"), (None, "z"), (None, None))
    assert [a.label for a in found] == ["b", "a", "a"]
    assert found[1].values == found[2].values == pytest.approx([1 / 3] * 3)
    assert not any(a.flags for a in found)


def test_a_number_may_be_anything_but_infinite(tmp_path: Path) -> None:
    model = rule(lambda f: {"q0.1": 1 / f.x, "q0.9": 1e9 + f.x}, QUANTILES)
    heuristic = rule(lambda f: f.x, QUANTILES, (7.0, 8.0))
    found = answers(predictor(tmp_path, QUANTILES, model, heuristic), (-0.5, "b"), (0.0, "b"), (None, "b"))
    assert [(a.score, a.values, a.label) for a in found[:2]] == [(-2.0, [-2.0, 1e9], None), (0.0, [0.0, 0.0], None)]
    assert [a.flags for a in found] == [[], ["degraded"], []]


def test_a_value_that_fails_fails_the_row(tmp_path: Path) -> None:
    model = rule(lambda f: {"cost": f.x, "weight": 1 / (f.x - 2.5)}, TARGETS)
    given = predictor(tmp_path, TARGETS, model, rule(lambda f: {"weight": f.x, "cost": 2 * f.x}, TARGETS))
    found = answers(given, (2.0, "b"), (2.5, "b"))
    assert [(a.score, a.values, a.flags) for a in found] == [(2.0, [2.0, -2.0], []), (5.0, [5.0, 2.5], ["degraded"])]


def test_a_rule_without_a_number_says_the_middle() -> None:
    graph = Graph(rule(lambda f: f.x, TARGETS, (3.0, 4.0)))
    score, values = graph.answers(feed_rows(graph, COLUMNS, [{"x": None}, {"x": float("nan")}, {"x": 9.0}]))
    assert score.tolist() == [3.0, 3.0, 9.0]
    assert values.tolist() == [[3, 4], [3, 4], [9, 9]]


def test_an_anomaly_is_judged_by_the_threshold_of_who_answered(tmp_path: Path) -> None:
    odd = Output(task="anomaly")
    given = predictor(
        tmp_path, odd, rule(lambda f: 100 / f.x, odd), rule(lambda f: 5 + f.x, odd), threshold=40.0, heuristic_threshold=4.0
    )
    found = answers(given, (2.0, "b"), (5.0, "b"), (0.0, "b"))
    assert [(a.score, a.label, a.flags) for a in found] == [(50.0, True, []), (20.0, False, []), (5.0, True, ["degraded"])]


def test_a_ranking_has_a_score_and_no_label(tmp_path: Path) -> None:
    order = Output(task="ranking")
    given = predictor(tmp_path, order, rule(lambda f: -f.x, order), rule(lambda f: f.x, order))
    assert [(a.score, a.label, a.values, a.flags) for a in answers(given, (8.0, "b"))] == [(-8.0, None, None, [])]
    assert probe(given.package).max_difference <= 1e-5


def test_where_rule_and_model_fail_there_is_no_answer(tmp_path: Path) -> None:
    number = Output(task="regression")
    given = predictor(tmp_path, number, rule(lambda f: 1 / f.x, number), rule(lambda f: 2 / f.x, number))
    with pytest.raises(Unavailable):
        answers(given, (0.0, "b"))


def test_graphs_without_the_values_of_the_manifest_are_refused(tmp_path: Path) -> None:
    narrow = rule(lambda f: f.x, Output(task="regression"))
    for i, files in enumerate([(narrow, rule(lambda f: f.x, TARGETS)), (rule(lambda f: f.x, TARGETS), narrow)]):
        with pytest.raises(PackageRefused, match="has no output `values`"):
            predictor(tmp_path / str(i), TARGETS, *files)


@pytest.mark.parametrize(
    ("output", "function", "why"),
    [
        (CLASSES, lambda f: f.x, "a string, one of the classes"),
        (TARGETS, lambda f: f.word, "must be a number"),
        (TARGETS, lambda f: {"cost": f.x}, "must name cost, weight"),
        (TARGETS, lambda f: {"cost": f.x, "weight": f.word}, r"rule\['weight'\]"),
        (Output(task="anomaly"), lambda f: f.at, "must be a number"),
        (Output(), lambda f: {"a": f.x}, "give one array"),
    ],
)
def test_a_rule_of_the_wrong_kind_is_refused(output: Output, function: Any, why: str) -> None:
    with pytest.raises(DeclarationInvalid, match=why):
        rule(function, output)


def test_scores_are_those_of_the_graph(tmp_path: Path) -> None:
    number = Output(task="regression")
    given = predictor(tmp_path, number, rule(lambda f: f.x * 3, number), rule(lambda f: f.x, number))
    xs = np.random.default_rng(0).normal(0, 1e6, 200).astype(np.float32).astype(float)
    found = answers(given, *((float(x), "b") for x in xs))
    assert [a.score for a in found] == pytest.approx((xs * 3).tolist(), rel=1e-6)
