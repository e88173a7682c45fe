"""A model for every segment: who gets one, who serves, and that chance does not decide."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.stats import false_discovery_control
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from tests.develop import flights
from tests.develop.flights import COLUMNS, OUTCOME, SCOPE, START, store, table
from tests.develop.segments import LINEAR, TREES, carriers

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import ConversionRefused
from loopwright.base.ids import digest
from loopwright.base.progress import Silent
from loopwright.base.settings import Settings
from loopwright.develop.fleet import FALSE_SHARE, MIN_JUDGED, choose, develop_fleet
from loopwright.develop.train import Work, develop, fit_candidate
from loopwright.graph.columns import arrow_feed, segment_texts
from loopwright.graph.session import Graph
from loopwright.records.declarations import (
    Budget,
    Candidate,
    Fleet,
    Heuristic,
    Objective,
    Outcome,
    Sampling,
    Scope,
    TimeSplit,
    to_builtins,
)
from loopwright.records.evaluation import FleetBoard, Leaderboard, SegmentModel
from loopwright.records.package import Output, Segment
from loopwright.stores.home import Home
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered


def home_in(path: Path) -> Home:
    return Home(Settings(home=path, by="tester"), SimulatedClock(START + timedelta(days=61)))


def prepared(home: Home, rows: pa.Table, **changes: Any) -> Work:
    examples = changes.pop("examples", None) or store(home, rows)
    declared: dict[str, Any] = {"candidates": [LINEAR], "split": TimeSplit(validation="20d")} | changes
    return flights.prepared(home, examples, **declared)


def fleet(work: Work, board: Leaderboard, by: str = "carrier", **changes: Any) -> tuple[FleetBoard, list[SegmentModel]]:
    kept: list[SegmentModel] = []
    arguments = {"serving": {}, "done": {}, "keep": kept.append} | {
        k: changes.pop(k) for k in ("serving", "done") if k in changes
    }
    return develop_fleet(work, board, Fleet(by=by, **({"minimum_rows": 150} | changes)), **arguments), kept  # type: ignore[arg-type]  # by name


class Made:
    """A turn's work, its global leaderboard, its fleet."""

    def __init__(self, path: Path, rows: pa.Table, **changes: Any) -> None:
        self.home = home_in(path)
        self.home.ledger.count()  # begun before any package, as a turn does
        self.work = prepared(self.home, rows, **changes)
        self.board = develop(self.work, turn="t1")
        self.fleet, self.kept = fleet(self.work, self.board)


@pytest.fixture(scope="module")
def different(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Ten carriers, of which the two largest are different."""
    made = Made(tmp_path_factory.mktemp("different"), carriers(8000, 10, 2, least=0.25))
    yield made
    made.home.close()


def test_where_segments_differ_the_fleet_wins(different: Made) -> None:
    found = different.fleet
    assert list(found.serving) == ["S000", "S001"]
    assert found.gain.low > 0.05
    assert found.metric == "average_precision"
    assert "2 are surely better and serve" in found.verdict
    by = {m.segment: m for m in found.segments}
    assert [m.rows for m in found.segments] == sorted((m.rows for m in found.segments), reverse=True)
    for segment in ("S000", "S001"):
        model = by[segment]
        assert model.difference.low > 0.1
        assert model.difference.value == pytest.approx(model.own.value - model.whole.value)
        assert model.chance < 1e-4
        assert 0 < model.expected.value <= model.difference.value


def test_the_gain_is_that_of_routing_each_row_to_its_package(different: Made) -> None:
    work, found = different.work, different.fleet
    rows = work.table.take(pa.array(work.judged))
    texts = segment_texts(rows.column("carrier"))
    score = np.zeros(len(rows))
    for package in {different.board.winner, *found.serving.values()}:
        graph = Graph(different.home.packages.read(package).files["model.onnx"])
        mine = np.array([found.serving.get(t or "", different.board.winner) == package for t in texts])
        score[mine] = graph.score(arrow_feed(graph, COLUMNS, rows))[mine]
        if package == different.board.winner:
            whole = graph.score(arrow_feed(graph, COLUMNS, rows))
    truth = work.truth[work.judged]
    measured = average_precision_score(truth, score) - average_precision_score(truth, whole)
    assert 0.8 * measured < found.gain.value <= measured, "less what chance adds to segments that were chosen for their gain"
    luck = measured - found.gain.value
    assert found.metrics["average_precision"].value == pytest.approx(average_precision_score(truth, score) - luck)
    assert found.gain.n == len(truth)


def test_a_segments_package_is_like_any_other_but_of_its_rows(different: Made) -> None:
    home, work = different.home, different.work
    model = different.fleet.segments[0]
    package, winner = home.packages.read(model.package), home.packages.read(different.board.winner)
    mine = np.array(work.table.column("carrier").to_pylist()) == model.segment
    assert package.manifest.segment == Segment(column="carrier", value=model.segment)
    assert winner.manifest.segment is None
    assert (package.manifest.candidate, package.manifest.params) == (winner.manifest.candidate, winner.manifest.params)
    assert (package.manifest.request, package.columns) == (winner.manifest.request, winner.columns)
    assert package.files.keys() == winner.files.keys()
    assert package.manifest.explained is not None
    assert (package.manifest.explained.method, package.manifest.explained.why) == ("linear", "")
    assert package.manifest.training.rows == model.rows == int(mine[work.training].sum())
    assert package.evaluation.rows == model.judged == int(mine[work.judged].sum())
    assert package.evaluation.metrics["average_precision"] == model.own
    assert package.manifest.conversion.rows >= model.judged
    assert len(package.reference.golden) > 0
    assert {g.request["carrier"] for g in package.reference.golden} == {model.segment}


def test_what_was_made_is_not_made_again(different: Made) -> None:
    done = {m.segment: m for m in different.fleet.segments[:4]}
    again, kept = fleet(different.work, different.board, done=done)
    assert {m.segment for m in kept} == {m.segment for m in different.fleet.segments[4:]}
    assert again.segments[:4] == different.fleet.segments[:4]
    assert list(again.serving) == list(different.fleet.serving)
    assert again.gain == different.fleet.gain, "also where the answers of a package are asked again"


def test_a_fleet_that_is_surely_worse_as_a_whole_does_not_serve(different: Made) -> None:
    """Segments whose packages were thought to gain, and answer all rows alike by the worst package there is."""
    worst = different.board.rows[-1].package
    thought = [msgspec.structs.replace(m, package=worst, chance=0.0) for m in different.fleet.segments]
    found, _ = fleet(different.work, different.board, done={m.segment: m for m in thought})
    assert len(choose(found.segments)) == len(thought)
    assert found.gain.high < 0
    assert (found.serving, found.metrics, found.outputs) == ({}, {}, [])
    assert "together they are surely worse than the global model, so none serves" in found.verdict


def test_a_new_package_follows_the_one_that_serves(different: Made) -> None:
    found, _ = fleet(different.work, different.board, serving={"S000": "a" * 64}, most=2)
    parents = [different.home.packages.read(m.package).manifest.parent for m in found.segments]
    assert parents == ["a" * 64, ""]


def test_small_segments_and_those_beyond_the_largest_are_the_global_models(different: Made) -> None:
    counts = pc.value_counts(different.work.table.column("carrier").take(pa.array(different.work.training))).to_pylist()
    rows = {c["values"]: c["counts"] for c in counts}
    least = sorted(rows.values())[4]
    found, _ = fleet(different.work, different.board, minimum_rows=least)
    assert {m.segment for m in found.segments} == {s for s, n in rows.items() if n >= least}
    assert found.rest == sum(n for n in rows.values() if n < least)
    few, _ = fleet(different.work, different.board, most=3)
    assert [m.rows for m in few.segments] == sorted(rows.values(), reverse=True)[:3]
    none, kept = fleet(different.work, different.board, minimum_rows=100_000)
    assert (none.segments, none.serving, none.gain.value, kept) == ([], {}, 0.0, [])
    assert "no segment by carrier got a model" in none.verdict


def test_null_long_and_lopsided_segments_have_no_model(tmp_path: Path) -> None:
    rows = carriers(4000, 4, 0)
    names = {"S001": None, "S002": "x" * 300, "S003": "only late ✈"}
    carrier = [names.get(c, c) for c in rows.column("carrier").to_pylist()]
    label = [c == "only late ✈" or late for c, late in zip(carrier, rows.column("_label").to_pylist(), strict=True)]
    rows = rows.set_column(rows.column_names.index("gate"), "gate", pa.array(carrier))
    rows = rows.set_column(rows.column_names.index("_label"), "_label", pa.array(label))
    with home_in(tmp_path) as home:
        work = prepared(home, rows)
        found, _ = fleet(work, develop(work, turn="t1"), by="gate")
        assert {m.segment: m.why for m in found.segments} == {
            "S000": "",
            "only late ✈": "only 1 of 2 kinds of outcome among its training rows",
        }
        assert found.rest == sum(1 for i in work.training if carrier[i] in (None, "x" * 300))


def test_an_integer_and_a_boolean_can_name_segments(tmp_path: Path) -> None:
    rows = carriers(3000, 3, 0)
    rows = rows.set_column(rows.column_names.index("distance"), "distance", pa.array([i % 2 for i in range(3000)], pa.int64()))
    with home_in(tmp_path) as home:
        work = prepared(home, rows)
        board = develop(work, turn="t1")
        assert {m.segment for m in fleet(work, board, by="distance")[0].segments} == {"0", "1"}
        assert {m.segment for m in fleet(work, board, by="hub")[0].segments} == {"True", "False"}


def test_too_few_rows_to_judge_by(tmp_path: Path) -> None:
    with home_in(tmp_path) as home:
        work = prepared(home, carriers(2400, 8, 0), split=TimeSplit(validation="10d"))
        found, kept = fleet(work, develop(work, turn="t1"), minimum_rows=100)
        assert {m.package for m in found.segments} == {""}
        assert all(m.judged < MIN_JUDGED and "too few validation rows" in m.why for m in found.segments)
        assert kept == found.segments
        assert found.serving == {}


def test_a_segment_that_cannot_be_fitted_leaves_the_others_alone(different: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Work, candidate: Candidate, params: Any) -> Any:
        if work.segment is not None and work.segment.value == "S001":
            raise ConversionRefused(candidate.name, "its graph differs")
        return fit_candidate(work, candidate, params)

    monkeypatch.setattr("loopwright.develop.fleet.fit_candidate", refuse)
    found, _ = fleet(different.work, different.board, most=3)
    assert [m.why for m in found.segments if m.segment == "S001"] == ["its graph differs"]
    assert list(found.serving) == ["S000"]


def test_the_time_to_train_is_bounded(different: Made) -> None:
    class Slow(Silent):
        def advance(self, what: str, done: float, total: float) -> None:
            assert what == "fleet"
            assert 1 <= done <= total
            late.append(done)

    late: list[float] = []
    scope = msgspec.structs.replace(SCOPE, budget=Budget(train_minutes=1e-9))
    work = msgspec.structs.replace(
        different.work, loop=msgspec.structs.replace(different.work.loop, scope=scope), progress=Slow()
    )
    found, kept = fleet(work, different.board)
    assert {m.why for m in found.segments} == {"the time to train was spent"}
    assert len(late) == len(kept) == len(found.segments)


def test_where_segments_do_not_differ_the_fleet_does_not_lose(tmp_path: Path) -> None:
    taken = 0
    for seed in range(4):
        made = Made(tmp_path / str(seed), carriers(4000, 8, 0, seed=seed))
        taken += len(made.fleet.serving)
        assert made.fleet.gain.low >= 0.0 or not made.fleet.serving
        assert "none is surely better" in made.fleet.verdict or made.fleet.serving
        made.home.close()
    assert taken <= 1


def test_the_heuristic_has_no_fleet(tmp_path: Path) -> None:
    def hopeless() -> Any:
        return LogisticRegression(C=1e-9)

    rule = Heuristic(lambda f: 1 / (1 + 2.718281828 ** (-0.12 * (f.delay - 15))))
    scope = Scope(problem="x", objectives=SCOPE.objectives[:1], heuristic=rule, value=SCOPE.value)
    with home_in(tmp_path) as home:
        work = prepared(home, carriers(2000, 3, 0), scope=scope, candidates=[Candidate("hopeless", hopeless)])
        board = develop(work, turn="t1")
        assert home.packages.manifest(board.winner).candidate == "heuristic"
        found, _ = fleet(work, board)
        assert (found.segments, found.serving) == ([], {})
        assert found.verdict == "the heuristic wins, and there is nothing to fit for a segment"


def test_trees_weights_and_sampling_carry_over(tmp_path: Path) -> None:
    made = Made(tmp_path, carriers(5000, 4, 1), candidates=[TREES], sampling=Sampling(balanced=True))
    segment = next(iter(made.fleet.serving))  # which of them is surely better is chance with 400 rows each
    manifest = made.home.packages.manifest(made.fleet.serving[segment])
    assert manifest.sampling == made.home.packages.manifest(made.board.winner).sampling
    rows = made.work.table.take(pa.array(made.work.judged))
    rows = rows.filter(pc.equal(rows.column("carrier"), segment))
    graph = Graph(made.home.packages.read(made.fleet.serving[segment]).files["model.onnx"])
    said, true = graph.score(arrow_feed(graph, COLUMNS, rows)).mean(), np.mean(rows.column("_label").to_pylist())
    assert said == pytest.approx(true, abs=0.06), "probabilities are those of real traffic"
    made.home.close()


def ridge() -> Ridge:
    """A function without parameters: one with some is taken for one that wants a trial."""
    return Ridge()


def test_a_number_can_be_predicted_by_segment(tmp_path: Path) -> None:
    rows = carriers(5000, 4, 1)
    delay = rows.column("delay").to_numpy()
    other = np.array(rows.column("carrier").to_pylist()) == "S000"
    label = np.where(other, -delay, delay) + np.random.default_rng(0).normal(size=len(rows))
    rows = rows.set_column(rows.column_names.index("_label"), "_label", pa.array(label))
    scope = Scope(
        problem="x",
        objectives=[Objective("close", owner="x", metric="mae", at_most=5)],
        heuristic=Heuristic(lambda f: f.delay * 0.0 + 100.0),
        value=SCOPE.value,
    )
    outcome = Outcome(OUTCOME.table, label="arr_delay", task="regression")
    with home_in(tmp_path) as home:
        examples = store(home, table(3000))
        examples = _stored(home, rows, examples)
        work = prepared(
            home,
            rows,
            examples=examples,
            scope=scope,
            outcome=outcome,
            slices=[],
            candidates=[Candidate("ridge", ridge)],
        )
        found, _ = fleet(work, develop(work, turn="t1"))
        assert found.metric == "mae"
        assert "S000" in found.serving
        assert found.gain.high < 0, "less error is the better"


def _stored(home: Home, rows: pa.Table, like: Any) -> Any:
    path = home.folder("examples") / "numbers.parquet"
    pq.write_table(rows, path)
    name = digest(path.read_bytes())
    path.rename(path.with_name(f"{name}.parquet"))
    return msgspec.structs.replace(like, digest=name, rows=len(rows))


# --- choosing ----------------------------------------------------------------------------------------------------


def model(i: int, p: float) -> SegmentModel:
    return SegmentModel(turn="t", segment=f"s{i}", package=f"{i:064x}", rows=10, judged=10, chance=p)


def test_choosing_is_benjamini_and_hochberg() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = np.where(rng.random(30) < 0.3, rng.random(30) ** 6, rng.random(30))
        expected = {f"s{i}" for i in np.flatnonzero(false_discovery_control(p, method="bh") <= FALSE_SHARE)}
        models = [model(i, float(v)) for i, v in enumerate(p)]
        assert set(choose(models)) == expected
    assert choose([]) == {}
    assert choose([SegmentModel(turn="t", segment="s", package="", rows=1, judged=1, chance=0.0, why="x")]) == {}


def test_chance_rarely_gives_a_segment_a_model() -> None:
    """Equally good models: one in twenty of the chances is below 0.05, and one fleet in twenty takes any segment at all."""
    rng = np.random.default_rng(3)
    fleets, segments, n = 60, 25, 150
    chances = np.empty((fleets, segments))
    for f in range(fleets):
        for s in range(segments):
            logit = 1.5 * rng.normal(size=n) - 1
            truth = rng.random(n) < 1 / (1 + np.exp(-logit))
            own, whole = (1 / (1 + np.exp(-logit - 0.3 * rng.normal(size=n))) for _ in range(2))
            given = [Answered(own, own > 0.5), Answered(whole, whole > 0.5)]
            chances[f, s] = metrics.contest("average_precision", truth, given, seed=0, output=Output()).p(0, 1)
    assert 0.03 < (chances < 0.05).mean() < 0.07
    fooled = sum(bool(choose([model(i, float(p)) for i, p in enumerate(row)])) for row in chances)
    assert fooled <= 7, "3 expected"
    merit = chances.copy()
    merit[:, :5] = rng.random((fleets, 5)) * 1e-4  # five segments that really gain
    taken = [set(choose([model(i, float(p)) for i, p in enumerate(row)])) for row in merit]
    wrong = [len(t - {f"s{i}" for i in range(5)}) / max(len(t), 1) for t in taken]
    assert all({f"s{i}" for i in range(5)} <= t for t in taken)
    assert np.mean(wrong) < 0.07, "at most one in twenty, on average"


@pytest.mark.slow
def test_three_hundred_segments(tmp_path: Path) -> None:
    """Thirty of 300 carriers are different: the fleet finds them, takes few others, and wins."""
    made = Made(tmp_path, carriers(150_000, 300, 30, least=0.7, spread=True), candidates=[TREES])
    found = made.fleet
    trained = [m for m in found.segments if m.package]
    truly = {f"S{i:03d}" for i in range(0, 300, 10)}
    assert len(trained) > 280
    assert len(truly & set(found.serving)) >= 20
    assert len(set(found.serving) - truly) <= 5
    assert found.gain.low > 0
    made.home.close()


def test_a_board_with_a_fleet_is_plain_data(different: Made) -> None:
    board = msgspec.structs.replace(different.board, fleet=different.fleet)
    entry = different.home.ledger.put(board, loop="late-arrival", key="t1")
    assert different.home.ledger.get(entry.id, Leaderboard).record.fleet == different.fleet
    assert to_builtins(different.fleet)["by"] == "carrier"
