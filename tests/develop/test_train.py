"""The whole of stage develop on made-up flights with known causes."""

import math
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm as lgb
import ndonnx as ndx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from optuna.trial import FixedTrial
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import average_precision_score, confusion_matrix
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.develop.flights import (
    COLUMNS,
    CONTEXT,
    NEED,
    OUTCOME,
    REQUEST,
    SCOPE,
    START,
    prepared,
    store,
    table,
)

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import (
    CandidatesFailed,
    ConversionRefused,
    Damaged,
    DeclarationInvalid,
    ExamplesRefused,
    PackageRefused,
)
from loopwright.base.progress import Silent
from loopwright.base.settings import Settings
from loopwright.develop.calibrate import threshold
from loopwright.develop.leaderboard import reweigh
from loopwright.develop.mlmodel import _load_pyfunc
from loopwright.develop.onnx.parity import agreement
from loopwright.develop.output import Goal
from loopwright.develop.train import develop
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Feeder, Graph
from loopwright.records.declarations import Candidate, Guard, Objective, Release, Scope, TimeSplit, Value
from loopwright.records.evaluation import Leaderboard
from loopwright.stores.home import Home
from loopwright.stores.packages.store import FILES


def boosted(trial: Any) -> lgb.LGBMClassifier:
    return lgb.LGBMClassifier(
        n_estimators=trial.suggest_int("n_estimators", 20, 60),
        num_leaves=7,
        verbose=-1,
        n_jobs=1,
        deterministic=True,
        force_row_wise=True,
    )


def network() -> Any:
    return make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=15, random_state=0))


CANDIDATES = [
    Candidate("simple", lambda: make_pipeline(StandardScaler(), LogisticRegression())),
    Candidate("boosted", boosted, phase=3, encoding="ordinal", trials=3),
    Candidate("network", network, phase=4),
]


class Story(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def home_in(path: Path) -> Home:
    return Home(Settings(home=path, by="tester"), SimulatedClock(START + timedelta(days=61)))


def run(home: Home, rows: pa.Table, **changes: Any) -> Leaderboard:
    examples = changes.pop("examples", None) or store(home, rows)
    params = changes.pop("params", None)
    declared: dict[str, Any] = {"candidates": CANDIDATES, "split": TimeSplit(validation="14d")} | changes
    return develop(prepared(home, examples, **declared), params=params, turn="t1")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Leaderboard, Story]]:
    home, story = home_in(tmp_path_factory.mktemp("home")), Story()
    yield home, run(home, table(), progress=story, parent="p" * 64), story
    home.close()


Done = tuple[Home, Leaderboard, Story]


def validation() -> pa.Table:
    rows = table()
    last = max(rows.column("_decided_at").to_pylist())
    return rows.filter(pa.array([d > last - timedelta(days=14) for d in rows.column("_decided_at").to_pylist()]))


def test_all_rungs_are_on_the_board(done: Done) -> None:
    _, board, story = done
    assert sorted((r.phase, r.candidate) for r in board.rows) == [
        (1, "heuristic"),
        (2, "simple"),
        (3, "boosted"),
        (4, "network"),
    ]
    assert [r.rank for r in board.rows] == [1, 2, 3, 4]
    assert board.weights == {"catch late flights": 3.0, "answer at once": 1.0, "no carrier left out": 1.0}
    assert len(board.comparisons) == 6
    simple = next(c for c in board.comparisons if (c.challenger, c.incumbent) == ("simple", "heuristic"))
    assert simple.difference.low > 0  # the data were made so
    assert "simple beats heuristic by" in board.verdict
    assert next(r.candidate for r in board.rows if r.package == board.winner) != "heuristic"
    assert any(line.startswith("simple: average precision") for line in story.lines)


def test_measures_are_those_of_the_graph_on_the_validation_rows(done: Done) -> None:
    home, board, _ = done
    rows = validation()
    truth = rows.column("_label").to_numpy()
    for line in board.rows:
        package = home.packages.read(line.package)
        graph = Graph(package.files["model.onnx"])
        score = graph.run(arrow_feed(graph, package.columns, rows))["score"]
        assert line.measures["average_precision"] == pytest.approx(average_precision_score(truth, score), abs=1e-9)
        assert package.evaluation.rows == len(rows)
        assert package.evaluation.metrics["average_precision"] == line.intervals["average_precision"]
        assert package.evaluation.slices["hub"].keys() == {"yes", "no"}
        assert line.met["catch late flights"] == (line.measures["average_precision"] >= 0.5)
        assert line.detail is not None
        assert line.detail.confusion is not None
        said = score >= package.manifest.threshold
        assert line.detail.confusion.counts == confusion_matrix(truth, said).tolist()
        assert next(p.rate for p in line.detail.trade if p.used) == pytest.approx(said.mean())
        explained = package.manifest.explained is not None and not package.manifest.explained.why
        assert sum(line.detail.importance.values()) == pytest.approx(1.0 if explained else 0.0)
        assert set(line.detail.importance) <= {name.split("=")[0] for name in package.manifest.features}


def test_a_package_holds_everything(done: Done) -> None:
    home, board, _ = done
    for line in board.rows:
        package = home.packages.read(line.package)
        manifest = package.manifest
        explains = {"simple": ["explain.onnx", "explanation.msgpack"], "boosted": ["explanation.msgpack"]}.get(
            line.candidate, []
        )
        assert set(package.files) == {*FILES} - {"explain.onnx", "explanation.msgpack"} | {*explains}
        assert manifest.explained is not None
        assert bool(manifest.explained.why) == (not explains)
        assert f"Its answers are {'' if explains else 'not '}explained" in package.card
        assert (manifest.loop, manifest.candidate, manifest.phase, manifest.by) == (
            "late-arrival",
            line.candidate,
            line.phase,
            "tester",
        )
        assert manifest.created_at == home.clock.now()
        assert (manifest.key, manifest.event_time, manifest.context, manifest.parent) == (["flight"], "at", NEED, "p" * 64)
        assert manifest.training.sources == {"departures": 3}
        assert manifest.training.last < min(validation().column("_decided_at").to_pylist())
        assert manifest.slices == ["carrier", "hub", "gate"]
        assert manifest.environment["onnxruntime"]
        assert Graph(package.files["model.onnx"]).problems(package.columns) == []
        assert Graph(package.files["heuristic.onnx"]).outputs == ["score"]
        assert sorted(Graph(package.files["slices.onnx"]).outputs) == ["carrier", "gate", "hub"]
        assert manifest.threshold == threshold(SCOPE, OUTCOME, np.zeros(0), 0.5)
    boosted_package = home.packages.read(next(r.package for r in board.rows if r.candidate == "boosted"))
    assert set(boosted_package.manifest.params) == {"n_estimators"}
    assert boosted_package.manifest.vocabulary["carrier"] == ["AA", "B6", "EV", "UA"]
    assert boosted_package.manifest.features == ["delay", "log_distance", "hub", "wind", "hour", "carrier", "gate"]
    assert boosted_package.manifest.conversion.max_difference <= 1e-6
    assert boosted_package.manifest.conversion.rows > len(validation())


def test_golden_requests_get_their_answers(done: Done) -> None:
    home, board, _ = done
    for line in board.rows:
        package = home.packages.read(line.package)
        graph = Graph(package.files["model.onnx"])
        feeder = Feeder(graph, package.columns)
        assert len(package.reference.golden) == 20
        for golden in package.reference.golden:
            assert set(golden.request) == set(REQUEST)
            assert set(golden.context) == set(CONTEXT)
            assert graph.score(feeder([{**golden.request, **golden.context}]))[0] == golden.score


def test_the_reference_is_of_the_validation_rows(done: Done) -> None:
    home, board, _ = done
    reference = home.packages.read(board.winner).reference
    by_name = {(h.column, h.role): h for h in reference.columns}
    rows = validation()
    assert by_name["delay", "request"].rows == len(rows)
    assert by_name["delay", "request"].mean == pytest.approx(np.mean(rows.column("delay").to_numpy()))
    assert by_name["wind", "context"].missing == rows.column("wind").null_count
    assert ("score", "request") in by_name  # a column and the output of the same name
    assert ("score", "output") in by_name


def test_the_card_says_what_a_reader_asks(done: Done) -> None:
    home, board, _ = done
    card = home.packages.read(board.winner).card
    for part in (
        SCOPE.problem,
        "operations",
        "≥ 0.5",
        "What it was trained on",
        "departures version 3",
        "loading / memory then",
        "### By carrier",
        "What to beware of",
    ):
        assert part in card


def test_mlflow_reads_the_folder_through_its_own_loader(done: Done, tmp_path: Path) -> None:
    home, board, _ = done
    package = home.packages.read(board.winner)
    text = package.files["MLmodel"].decode()
    assert "loader_module: loopwright.develop.mlmodel" in text
    folder = shutil.copytree(home.packages.folder / board.winner, tmp_path / "downloaded")
    loaded = _load_pyfunc(str(folder))
    rows = validation()
    frame = rows.select(list(REQUEST)).to_pandas()  # no context: it counts as missing
    answer = loaded.predict(frame)
    graph = Graph(package.files["model.onnx"])
    without = rows.set_column(rows.column_names.index("wind"), "wind", pa.nulls(len(rows), type=pa.float64()))
    expected = graph.run(arrow_feed(graph, package.columns, without))["score"]
    assert np.array_equal(answer["score"].to_numpy(), expected)
    assert np.array_equal(answer["label"].to_numpy(), expected >= package.manifest.threshold)
    (folder / "model.onnx").write_bytes(b"changed")
    with pytest.raises(PackageRefused):
        _load_pyfunc(str(folder))


def test_fixed_parameters_skip_the_search_and_give_the_same_model(done: Done, tmp_path: Path) -> None:
    home, board, _ = done
    first = home.packages.read(next(r.package for r in board.rows if r.candidate == "boosted"))
    other, story = home_in(tmp_path), Story()
    again = run(other, table(), candidates=[CANDIDATES[1]], params={"boosted": first.manifest.params}, progress=story)
    second = other.packages.read(next(r.package for r in again.rows if r.candidate == "boosted"))
    assert second.manifest.params == first.manifest.params
    assert second.files["model.onnx"] == first.files["model.onnx"]
    assert sorted(r.candidate for r in again.rows) == ["boosted", "heuristic"]


def test_a_window_trains_on_the_newest_history_only(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    board = run(home, table(), candidates=[CANDIDATES[0]], window=timedelta(days=40))
    training = home.packages.read(board.winner).manifest.training
    assert training.first > START + timedelta(days=20)
    assert training.rows < 2000


def odd(zero_as_missing: bool) -> lgb.LGBMClassifier:  # a parameter of LightGBM's
    """LightGBM with zero_as_missing has no equal in ONNX."""
    return lgb.LGBMClassifier(n_estimators=20, zero_as_missing=zero_as_missing, verbose=-1, n_jobs=1)


def test_candidate_that_fails_its_rehearsal_is_left_out_before_anything_is_fitted(tmp_path: Path) -> None:
    home, story = home_in(tmp_path), Story()
    board = run(home, table(), candidates=[CANDIDATES[0], Candidate("odd", lambda: odd(True))], progress=story)
    lines = [line for line in story.lines if "odd is left out: zero_as_missing" in line or "fitted in" in line]
    assert lines[0].startswith("odd is left out")
    assert sorted(r.candidate for r in board.rows) == ["heuristic", "simple"]
    with pytest.raises(ConversionRefused, match="'odd' cannot become one graph: zero_as_missing"):
        run(home, table(), candidates=[Candidate("odd", lambda: odd(True))])


def dies_later() -> Any:
    """Passes its rehearsal, and ends the process when it is fitted on all rows."""
    calls: list[None] = []

    def make() -> Any:
        calls.append(None)
        if len(calls) > 1:
            raise SystemExit(3)
        return make_pipeline(StandardScaler(), LogisticRegression())

    return make


class Ending(LogisticRegression):  # type: ignore[misc]  # scikit-learn has no types
    """A candidate of which one method raises what is no Exception."""

    def __init__(self, method: str = "", raised: type[BaseException] = SystemExit) -> None:
        super().__init__()
        self.method, self.raised = method, raised

    def __getattribute__(self, name: str) -> Any:
        if name == super().__getattribute__("__dict__").get("method"):
            raise self.raised
        return super().__getattribute__(name)


Ending.__module__ = "sklearn.linear_model"  # else it is refused as unknown, before any method is called


class Unspeakable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit


def unspeakable() -> Any:
    raise Unspeakable


def vectorised() -> Any:
    """Text has to be made a matrix in `features`: the pipeline gets numbers."""
    return make_pipeline(TfidfVectorizer(), LogisticRegression())


def raises() -> Any:
    raise RuntimeError("no such configuration")


FAILING: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (raises, "RuntimeError: no such configuration"),
    "nothing": (lambda: None, "returned NoneType, which cannot be fitted"),
    "weights": (lambda: LogisticRegression(class_weight="balanced"), "distorts the probabilities"),
    "ridge": (RidgeClassifier, "no predict_proba"),
    "tfidf": (vectorised, "cannot be fitted: AttributeError"),
}


def test_every_failing_candidate_is_left_out_and_named_and_the_others_go_on(tmp_path: Path) -> None:
    """In the verdict, the board, and the card of every package, with its reason."""
    home = home_in(tmp_path)
    failing = {**FAILING, "dies": (dies_later(), "SystemExit: 3"), "unspeakable": (unspeakable, "Unspeakable")}
    for method in ("fit", "predict_proba", "get_params", "set_params", "coef_"):
        for raised in (SystemExit, GeneratorExit):
            failing[f"{method}-{raised.__name__}".lower()] = (partial(Ending, method, raised), raised.__name__)
    board = run(home, table(), candidates=[*(Candidate(n, make) for n, (make, _) in failing.items()), CANDIDATES[0]])
    assert sorted(r.candidate for r in board.rows) == ["heuristic", "simple"]
    assert sorted(board.left_out) == sorted(failing)
    reweighed = reweigh(board, SCOPE.objectives, {"catch late flights": 1.0})
    for name, (_, why) in failing.items():
        assert why in board.left_out[name]
        for text in (board.verdict, reweighed.verdict):
            assert f"{name} is left out ({board.left_out[name]}" in text
        for row in board.rows:
            assert f"not compared with {name}, which is left out" in home.packages.read(row.package).card


def test_turn_without_any_candidate_left_names_each(tmp_path: Path) -> None:
    failing = [Candidate(name, make) for name, (make, _) in FAILING.items()]
    with pytest.raises(CandidatesFailed) as failed:
        run(home_in(tmp_path), table(), candidates=failing)
    assert [line.partition(":")[0] for line in failed.value.reasons] == [c.name for c in failing]


def test_fault_of_the_installation_is_no_fault_of_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_in(tmp_path)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(home.packages, "_place", full)
    with pytest.raises(OSError, match="No space"):
        run(home, table(), candidates=CANDIDATES[:1])


def test_a_candidate_refused_after_its_search_is_left_out_and_named(tmp_path: Path) -> None:
    """What is rehearsed is the first trial; the parameters found may still make something else of it."""
    searched = Candidate("odd", lambda trial: odd(isinstance(trial, FixedTrial)), phase=3, encoding="ordinal", trials=1)
    home, story = home_in(tmp_path), Story()
    board = run(home, table(), candidates=[CANDIDATES[0], searched], progress=story)
    assert sorted(r.candidate for r in board.rows) == ["heuristic", "simple"]
    assert "odd is left out (zero_as_missing" in board.verdict
    assert any("odd is left out: zero_as_missing" in line for line in story.lines)
    with pytest.raises(ConversionRefused, match="zero_as_missing"):
        run(home, table(), candidates=[searched])


def test_agreement_is_tried_on_what_the_rows_lack(done: Done) -> None:
    """The graph of one model against another model: agreement must not be claimed."""
    home, board, _ = done
    packages = {r.candidate: home.packages.read(r.package) for r in board.rows}
    rows = validation()

    class Constant:
        """An estimator that answers 0.5, but 0.9 where a feature is missing or strange."""

        def predict_proba(self, matrix: Any) -> Any:
            odd = np.isnan(matrix).any(axis=1) | (matrix[:, 5] == 4)
            return np.stack([1 - np.where(odd, 0.9, 0.5)] * 2, axis=1)

    compared, difference = agreement("boosted", packages["boosted"].files["model.onnx"], Constant(), Goal(), COLUMNS, rows)
    assert compared > len(rows)
    assert difference > 0.1


def test_nothing_is_fitted_before_all_declarations_are_well(tmp_path: Path) -> None:
    home, story = home_in(tmp_path), Story()
    rows = table(300)
    bad = Scope(problem="p", objectives=[Objective("o", "me", "acuracy", at_least=0.5)], heuristic=SCOPE.heuristic)
    with pytest.raises(DeclarationInvalid, match="acuracy"):
        run(home, rows, scope=bad, progress=story)
    with pytest.raises(DeclarationInvalid, match="no slice"):
        run(home, rows, release=Release(guards=[Guard("recall_gap:crew")]), progress=story)
    with pytest.raises(DeclarationInvalid, match=r"ndx\.where"):
        run(home, rows, features=lambda f: {"a": ndx.sin(f.delay) if f.hub else f.delay}, progress=story)
    assert story.lines == []
    assert home.packages.list() == []


def test_damaged_or_missing_examples_are_refused(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    examples = store(home, table(300))
    path = home.folder("examples") / f"{examples.digest}.parquet"
    whole = path.read_bytes()
    pq.write_table(table(299), path)
    with pytest.raises(Damaged, match="SHA-256"):
        run(home, table(300), examples=examples)
    path.unlink()
    with pytest.raises(ExamplesRefused, match="is gone"):
        run(home, table(300), examples=examples)
    path.write_bytes(whole)
    with pytest.raises(ExamplesRefused, match="training part"):
        run(home, table(300), examples=examples, split=TimeSplit(validation="90d"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Value(true_positive=100, false_positive=-20, false_negative=-50), 20 / 170),
        (Value(true_positive=2, false_positive=1), 1e-6),
    ],
)
def test_the_threshold_is_where_acting_pays(value: Value, expected: float) -> None:
    scope = Scope(problem="p", objectives=SCOPE.objectives, heuristic=SCOPE.heuristic, value=value)
    assert threshold(scope, OUTCOME, np.zeros(0), 0.3) == pytest.approx(expected)
    assert not math.isnan(expected)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.6])
def test_threshold_without_value_labels_as_many_as_are_positive(share: float) -> None:
    scope = Scope(problem="p", objectives=SCOPE.objectives, heuristic=SCOPE.heuristic)
    score = np.random.default_rng(0).beta(1, 8, 2000)
    smooth, rough = (np.mean(s >= threshold(scope, OUTCOME, s, share)) for s in (score, np.round(score, 1)))
    assert smooth == pytest.approx(share, rel=0.1)
    assert share / 2 <= rough <= 2 * share
    rule = (score > 0.9).astype(float)
    assert threshold(scope, OUTCOME, rule, share) == 0.5, "a condition is its own label"
    assert threshold(scope, OUTCOME, np.full(50, 0.02), share) == 0.5, "what tells nobody apart calls nobody positive"
