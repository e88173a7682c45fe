"""A fleet is watched as a whole: it does not drift from itself, and decays against what it promised together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.admitted import unprobed
from tests.traffic import COLUMNS, LOOP, OUTCOME, START, THRESHOLD, WEEK, Row, World, histogram, package, rows, truths

from loopwright.graph.session import Feeder, Graph
from loopwright.monitor.fleet import Fleets
from loopwright.monitor.windows import Watched, watch
from loopwright.records.declarations import Monitor, Retrain
from loopwright.records.evaluation import Estimate, FleetBoard, Leaderboard
from loopwright.records.package import Segment
from loopwright.records.prediction import Prediction
from loopwright.records.releases import ReleaseState
from loopwright.stores.packages.store import Package
from loopwright.stores.prediction_log.read import predictions
from loopwright.tasks import metrics


class Fleet(World):
    """The world with a package of its own for the largest airport, whose scores are quite others."""

    def __init__(self, folder: Path, *, told: bool = True) -> None:
        super().__init__(folder)
        made = package(self.home, weight=1.5)
        manifest = msgspec.structs.replace(made.manifest, segment=Segment(column="origin", value="EWR"), files={})
        self.own = unprobed(self.home.packages, self.home.packages.write(manifest, made.files))
        self.scores = {p.digest: Graph(p.files["model.onnx"]) for p in (self.package, self.own)}
        entry = self.home.ledger.latest(ReleaseState, loop=LOOP)
        assert entry is not None
        state = msgspec.structs.replace(entry.record, generation=2, fleet="origin", segments={"EWR": self.own.digest})
        self.home.ledger.swap(f"release.{LOOP}", 1, state, loop=LOOP)
        if told:
            self.home.ledger.put(self.board(), loop=LOOP, key="t")

    def package_of(self, row: Row) -> Package:
        return self.own if row["origin"] == "EWR" else self.package

    def answer(self, given: Sequence[Row]) -> list[float]:
        found = np.zeros(len(given))
        for digest, graph in self.scores.items():
            mine = np.array([self.package_of(r).digest == digest for r in given])
            found[mine] = graph.score(Feeder(graph, COLUMNS)([r for r, m in zip(given, mine, strict=True) if m]))
        return [float(s) for s in found]

    def board(self) -> Leaderboard:
        given = rows(4000, START - 2 * WEEK, seed=99)
        score, truth = np.array(self.answer(given)), np.array(truths(given)) > 15
        reached = metrics.intervals(["average_precision", "roc_auc", "recall"], truth, score, score >= THRESHOLD, seed=0)
        fleet = FleetBoard(
            by="origin",
            metric="average_precision",
            as_of=START,
            segments=[],
            serving={"EWR": self.own.digest},
            gain=Estimate(0.01, 0.0, 0.02, 4000),
            rest=0,
            verdict="",
            metrics=reached,
            outputs=[histogram("score", "output", score.tolist())],
        )
        return Leaderboard(
            turn="t",
            as_of=START,
            examples="0" * 64,
            rows=[],
            comparisons=[],
            weights={},
            verdict="",
            winner=self.package.digest,
            fleet=fleet,
        )

    def predict(self, given: Sequence[Row], *, flags: Sequence[str] = ()) -> list[Prediction]:
        whole, answers, logged = self.package, self.answer(given), []
        score = dict(zip([r["flight"] for r in given], answers, strict=True))
        for made in (whole, self.own):
            self.package = made
            part = [r for r in given if (r["origin"] == "EWR") == (made is self.own)]
            logged += super().predict(part, flags=flags)
        self.package = whole
        assert all(p.score == pytest.approx(score[p.request["flight"]]) for p in logged)
        return logged


def look(world: World, decay: float | None = 0.04) -> Watched:
    retrain = Retrain(decay=decay, drift=1, cooldown="0s")
    return watch(world.home, loop_name=LOOP, monitor=Monitor(), retrain=retrain, outcome=OUTCOME, until=world.clock.now())


def state_of(found: Watched) -> dict[str, Any]:
    return {c.column: c.state for c in found.windows[-1].columns}


def test_a_fleet_does_not_drift_from_itself(tmp_path: Path) -> None:
    world = Fleet(tmp_path / "told")
    world.week(0)
    found = look(world)
    assert found.windows[0].reference == world.package.digest
    assert set(found.windows[0].packages) == {world.package.digest, world.own.digest}
    assert state_of(found) == {"origin": "ok", "delay": "ok", "hour": "ok", "wind": "ok", "score": "ok"}
    assert found.trigger is None
    world.home.close()
    other = Fleet(tmp_path / "untold", told=False)
    other.week(0)
    assert state_of(look(other))["score"] != "ok", "against the global package alone its score would have drifted"
    other.home.close()


def test_what_moves_for_all_is_drift(tmp_path: Path) -> None:
    world = Fleet(tmp_path)
    world.week(0, shift=25.0)
    found = look(world, decay=None)
    assert "delay" in found.windows[0].drifted
    assert "score" in found.windows[0].drifted
    assert found.trigger is not None
    assert found.trigger.cause == "drift"
    world.home.close()


def test_a_fleet_decays_against_what_it_promised_together(tmp_path: Path) -> None:
    world = Fleet(tmp_path)
    world.week(0)
    assert [q.state for q in look(world).qualities] == ["ok"]
    world.week(1, noise=60.0)
    found = look(world)
    assert found.qualities[-1].state == "decayed"
    assert set(found.qualities[-1].by_package) == {world.package.digest, world.own.digest}
    assert found.trigger is not None
    assert found.trigger.cause == "decay"
    promised = world.board().fleet
    assert promised is not None
    assert f"it was {promised.metrics['roc_auc'].value:.3f}" in found.trigger.reason
    world.home.close()


def test_each_segment_is_a_slice_unless_one_is_declared(tmp_path: Path) -> None:
    world = Fleet(tmp_path)
    world.week(0)
    logged = predictions(world.home, LOOP)
    fleets = Fleets(world.home, LOOP)
    assert fleets.slices(logged, {"origin": np.array([])}) == {}
    (found,) = fleets.slices(logged, {}).values()
    assert found.tolist() == logged["origin"].to_pylist()
    assert fleets.together(world.package.digest) == {world.package.digest, world.own.digest}
    without = Fleets(world.home, "another")
    assert without.slices(logged, {}) == {}
    assert without.whole(world.package) is world.package
    world.home.close()
