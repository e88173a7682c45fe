"""Every task through every stage, over real components: who adds a task adds a case to tests/journeys/tasks.py, and nothing here."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.journeys.tasks import CONFORMANCE, END, START, Case, fill
from tests.server.running import Client, running

from loopwright import Home
from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.records.declarations import SHAPES, recorded_loop
from loopwright.records.evaluation import Leaderboard
from loopwright.records.examples import Examples
from loopwright.records.package import Output
from loopwright.records.windows import ValueWindow
from loopwright.replay import replay
from loopwright.server.api.openapi import answer_schema
from loopwright.stores.outcomes.join import outcomes
from loopwright.stores.prediction_log.read import find, predictions
from loopwright.tasks import metrics
from loopwright.tasks.registry import TASKS
from loopwright.verbs.drift import drift, revisions
from loopwright.verbs.report import report
from loopwright.verbs.trace import trace


class Lived(NamedTuple):
    """A loop after two weeks, and a client of a server that has it."""

    case: Case
    home: Home
    client: Client

    @property
    def output(self) -> Output:
        [board] = self.home.ledger.find(Leaderboard, loop=self.case.loop.name, newest=False)[:1]
        return self.home.packages.read(board.record.winner).manifest.output

    @property
    def asked(self) -> dict[str, Any]:
        row = {name: column[0] for name, column in self.case.asked.items()}
        return {"id": "new", **{name: v.item() if hasattr(v, "item") else v for name, v in row.items()}}


@pytest.fixture(scope="module", params=list(CONFORMANCE))
def lived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    case = CONFORMANCE[request.param]()
    with Home(Settings(home=tmp_path_factory.mktemp(request.param), by="tests"), SimulatedClock(START)) as home:
        fill(home, case)
        replay(home, case.loop, start=START, end=END)
        with running(home) as server:
            yield Lived(case, home, server.data())


def test_every_task_has_a_case() -> None:
    assert {make().loop.outcome.task for make in CONFORMANCE.values()} == set(TASKS) == set(SHAPES)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_facts_of_a_task_fit_each_other(task: Any) -> None:
    assert TASKS[task.name] is task
    assert {*task.summary, *task.watched, *task.card, *task.card_slices, task.primary, *task.shape.perfect} <= {
        *task.metrics,
        *metrics.measured(Output(task=task.name)),
        "map",
    }
    assert task.gap in ("", *task.gaps)
    assert (task.threshold is not None) == task.shape.has_border
    assert (task.estimator == "classifier") == task.shape.is_probability


def test_declaration_comes_back_from_its_record(lived: Lived) -> None:
    assert recorded_loop(lived.case.loop.record("loop.py")).outcome == lived.case.loop.outcome


def test_examples_are_described(lived: Lived) -> None:
    [first, *_] = lived.home.ledger.find(Examples, loop=lived.case.loop.name, newest=False)
    assert first.record.rows > 1000
    assert first.record.summary


def test_every_candidate_is_fitted_converted_and_measured(lived: Lived) -> None:
    [board] = lived.home.ledger.find(Leaderboard, loop=lived.case.loop.name, newest=False)[:1]
    rows = {row.candidate: row for row in board.record.rows}
    assert {c.name for c in lived.case.loop.candidates} < set(rows)
    for row in rows.values():
        package = lived.home.packages.read(row.package)
        names = [n for n in metrics.measured(package.manifest.output) if n != "value_per_prediction"]
        assert all(np.isfinite(package.evaluation.metrics[name].value) for name in names)
        if package.manifest.conversion is not None:
            assert package.manifest.conversion.max_difference <= package.manifest.conversion.tolerance
    winner = rows[next(n for n, row in rows.items() if row.package == board.record.winner)]
    assert winner.candidate != "heuristic"
    assert all(winner.met.values()), winner.measures


def test_json_and_open_inference_protocol_give_the_same_answer(lived: Lived) -> None:
    name, shape = lived.case.loop.name, lived.output.shape
    reply = lived.client.post(f"/loops/{name}/predict?explain=true", lived.asked)
    assert reply.status == 200, reply.body
    answer = reply.json
    assert answer["flags"] == []
    assert shape.score[0] <= answer["score"] <= shape.score[1]
    assert type(answer["label"]) is {"boolean": bool, "string": str, "": type(None)}[shape.answer]
    assert np.isfinite(answer["base"] + sum(answer["contributions"].values()))
    assert answer_schema(lived.output)["properties"]["label"]["type"] == (shape.answer or "null")
    kinds = {str: "BYTES", float: "FP64", int: "INT64"}
    asked = {**lived.asked, "at": "2024-02-26T10:00:00Z"}
    inputs = [{"name": n, "datatype": kinds[type(v)], "shape": [1], "data": [v]} for n, v in asked.items()]
    tensors = lived.client.post(f"/v2/models/{name}/infer", {"inputs": inputs})
    assert tensors.status == 200, tensors.body
    found = {o["name"]: o for o in tensors.json["outputs"]}
    assert found["score"]["data"] == pytest.approx([answer["score"]], rel=1e-6)
    assert ("label" in found) == bool(shape.answer)
    if "label" in found:
        assert (found["label"]["datatype"], found["label"]["data"]) == (
            {"boolean": "BOOL", "string": "BYTES"}[shape.answer],
            [answer["label"]],
        )
    logged = find(lived.home, answer["id"])
    assert logged is not None
    assert (logged[1].score, logged[1].label) == (answer["score"], answer["label"])


def test_outcome_is_taken_and_meets_its_prediction(lived: Lived) -> None:
    name = lived.case.loop.name
    assert lived.client.post(f"/loops/{name}/predict", {**lived.asked, "id": "told"}).status == 200
    row = {n: v[0].item() if hasattr(v[0], "item") else v[0] for n, v in lived.case.landed.items()}
    assert lived.client.post(f"/loops/{name}/outcomes", {"id": "told", **row}).status == 202
    assert len(outcomes(lived.home, name)) > 0
    logged = predictions(lived.home, name)["_id"].to_pylist()[:40]
    assert any(trace(lived.home, id).outcome is not None for id in logged)


def test_drift_quality_and_money_are_measured_window_by_window(lived: Lived) -> None:
    loop = lived.case.loop
    watched = drift(lived.home, loop.name)
    assert {c.column for w in watched.windows for c in w.columns if c.role == "output"} == (
        {"score", "label"} if lived.output.shape.has_classes else {"score"}
    )
    assert watched.quality
    for quality in watched.quality:
        assert np.isfinite(quality.metrics[metrics.primary(loop.outcome.task)].value)
        assert quality.slices["side"]
    counted = revisions(lived.home, ValueWindow, loop.name)
    assert len(counted) >= 2
    assert any(v.model.value != 0 for v in counted) == loop.scope.value.is_set


def test_report_and_card_speak_of_the_task(lived: Lived, tmp_path: Any) -> None:
    written = report(lived.home, lived.case.loop.name, out=tmp_path).markdown
    assert all(objective.name in written for objective in lived.case.loop.scope.objectives)
    assert "not measured" not in written
    digest = predictions(lived.home, lived.case.loop.name)["_package"][0].as_py()
    card = lived.home.packages.read(digest).files["card.md"].decode()
    assert TASKS[lived.case.loop.outcome.task].describe(lived.output).partition("{")[0][:20] in card
