"""Every task through the whole loop: from examples to a released package, two weeks live, outcomes, upkeep, retraining, reports."""

import io
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.console.browser import served
from tests.journeys.tasks import CASES, END, START, Case, fill

from loopwright import Home
from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.cli.terminal import rendered
from loopwright.console.app import routes
from loopwright.deploy.export import export, feed
from loopwright.develop.mlmodel import _load_pyfunc
from loopwright.graph.session import Graph
from loopwright.records.evaluation import Leaderboard
from loopwright.records.examples import Examples
from loopwright.records.windows import ValueWindow
from loopwright.replay import replay
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.read import predictions
from loopwright.tasks import metrics
from loopwright.turn import turn
from loopwright.verbs.drift import drift, revisions
from loopwright.verbs.leaderboard import leaderboard
from loopwright.verbs.loop_page import loop_page
from loopwright.verbs.replay import Replayed, summarise
from loopwright.verbs.report import report as report_verb
from loopwright.verbs.trace import trace as trace_verb


class Lived(NamedTuple):
    """A loop after its two weeks."""

    case: Case
    home: Home
    summary: Replayed


@pytest.fixture(scope="module", params=list(CASES))
def lived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    case = CASES[request.param]()
    folder: Path = tmp_path_factory.mktemp(request.param)
    with Home(Settings(home=folder, by="tests"), SimulatedClock(START)) as home:
        fill(home, case)
        run = replay(home, case.loop, start=START, end=END)
        yield Lived(case, home, summarise(home, case.loop, run, "declared"))


def test_what_nobody_ever_judged_is_learnt_from_and_the_rule_wins(tmp_path: Path) -> None:
    case = CASES["anomaly"]()
    with Home(Settings(home=tmp_path, by="tests"), SimulatedClock(START)) as home:
        fill(home, case, outcomes=False)
        turn(home, case.loop, as_of=START)
        [entry] = home.ledger.find(Leaderboard, loop=case.loop.name)
        forest = next(row for row in entry.record.rows if row.candidate == "forest")
        package = home.packages.read(forest.package)
    assert "forest is not known to pay: no outcome tells" in entry.record.verdict
    assert entry.record.verdict.endswith("heuristic wins, short of: find faults")
    assert (package.evaluation.rows, package.evaluation.metrics["average_precision"].n) == (0, 0)
    assert package.manifest.threshold > 0


def text(value: Any) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rendered(value))
    return console.export_text()


def test_the_examples_say_what_their_labels_are(lived: Lived) -> None:
    [first, *_] = lived.home.ledger.find(Examples, loop=lived.case.loop.name, newest=False)
    assert first.record.rows > 1000
    assert {
        "multiclass": "3 classes",
        "regression": "on average",
        "ranking": "groups",
        "anomaly": "with a known outcome",
    }[lived.case.loop.outcome.task] in first.record.summary


def test_the_better_candidate_wins_and_meets_its_objectives(lived: Lived) -> None:
    board = lived.home.ledger.find(Leaderboard, loop=lived.case.loop.name, newest=False)[0].record
    winner = next(row for row in board.rows if row.package == board.winner)
    assert winner.candidate != "heuristic", board.verdict
    assert all(winner.met.values()), winner.measures
    manifest = lived.home.packages.read(board.winner).manifest
    task = lived.case.loop.outcome.task
    assert manifest.output.task == task
    assert set(metrics.measured(manifest.output)) - {"value_per_prediction"} <= set(
        lived.home.packages.read(board.winner).evaluation.metrics
    )
    assert "winner" not in text(leaderboard(lived.home, lived.case.loop.name)).splitlines()[0]


def test_every_decision_is_answered_logged_and_judged(lived: Lived) -> None:
    table, output = predictions(lived.home, lived.case.loop.name), None
    assert table.num_rows == lived.summary.predictions > 300
    row = table.to_pylist()[0]
    output = lived.home.packages.read(row["_package"]).manifest.output
    assert len(row.get("_values") or []) == len(output.names)
    if output.task == "multiclass":
        assert row["_label"] == output.classes[int(np.argmax(row["_values"]))]
        assert row["_score"] == pytest.approx(max(row["_values"]))
    else:
        assert type(row["_label"]) is (bool if output.task == "anomaly" else type(None))
    if output.quantiles:
        assert all(r["_values"] == sorted(r["_values"]) for r in table.to_pylist())
    assert not any("degraded" in flags for flags in table["_flags"].to_pylist())


def test_an_exported_graph_gives_what_was_served(lived: Lived) -> None:
    logged = predictions(lived.home, lived.case.loop.name).to_pylist()
    for digest in {row["_package"] for row in logged}:
        package, rows = open_probed(lived.home.packages, digest), [row for row in logged if row["_package"] == digest]
        exported = export(package)
        found, output = Graph(exported.model).run(feed(exported, package.columns, rows)), package.manifest.output
        assert found["score"].tolist() == pytest.approx([r["_score"] for r in rows], rel=1e-6, abs=1e-6)
        assert ("label" in found) == (output.task in ("binary", "multiclass", "anomaly"))
        if "label" in found:
            assert found["label"].tolist() == [r["_label"] for r in rows]
        for i, name in enumerate(output.names):
            prefix = "probability" if output.task == "multiclass" else "value"
            assert found[f"{prefix}_{name}"].tolist() == pytest.approx([r["_values"][i] for r in rows], rel=1e-6, abs=1e-6)


def test_mlflow_gives_what_was_served(lived: Lived) -> None:
    table = predictions(lived.home, lived.case.loop.name).slice(0, 20)
    rows = table.to_pylist()
    package = lived.home.packages.read(rows[0]["_package"])
    served = package.manifest.output
    loaded = _load_pyfunc(str(lived.home.packages.folder / package.digest))
    given = loaded.predict(table.select(list(lived.case.loop.requests.columns)).to_pandas())
    assert given["score"].tolist() == pytest.approx([r["_score"] for r in rows], rel=1e-5)
    assert ("label" in given) == (served.task in ("multiclass", "anomaly"))
    for i, name in enumerate(served.names):
        assert given[name].tolist() == pytest.approx([r["_values"][i] for r in rows], rel=1e-5, abs=1e-6)
    if "label" in given:
        assert given["label"].tolist() == [r["_label"] for r in rows]
    text = package.files["MLmodel"].decode()
    assert all(name in text for name in served.names)


def test_quality_is_measured_window_by_window(lived: Lived) -> None:
    found = drift(lived.home, lived.case.loop.name)
    assert [w.state for w in found.windows] == ["ok"] * len(found.windows) or "watch" in {w.state for w in found.windows}
    outputs = {c.column for w in found.windows for c in w.columns if c.role == "output"}
    assert outputs == ({"score", "label"} if lived.case.loop.outcome.task == "multiclass" else {"score"})
    metric = metrics.primary(lived.case.loop.outcome.task)
    for quality in found.quality:
        assert quality.with_outcome > (100 if quality.mature_at is None else 50)
        assert np.isfinite(quality.metrics[metric].value)
        assert quality.slices["side"]
    assert "truth known" in text(found)


def test_value_is_counted_where_it_is_declared(lived: Lived) -> None:
    values = revisions(lived.home, ValueWindow, lived.case.loop.name)
    assert len(values) >= 2
    if lived.case.loop.scope.value.is_set:
        assert lived.summary.over_heuristic.value > 0
    else:
        assert all(v.model.value == v.over_heuristic.value == 0 for v in values)


def test_it_was_retrained_and_released_again(lived: Lived) -> None:
    assert lived.summary.retrainings >= 1
    assert len(lived.summary.packages) >= 1
    assert np.isfinite(lived.summary.weeks[0].metric.value)
    assert np.isfinite(lived.summary.weeks[0].metric_never)
    assert np.isfinite(lived.summary.weeks[0].metric_heuristic)


def test_a_prediction_is_traced_to_its_truth(lived: Lived) -> None:
    table = predictions(lived.home, lived.case.loop.name)
    traces = [trace_verb(lived.home, id) for id in table["_id"].to_pylist()[:40]]
    trace = next(t for t in traces if t.outcome is not None)
    assert trace.outcome is not None
    shown = text(trace)
    assert trace.answer in shown
    assert {
        "multiclass": str,
        "anomaly": bool,
        "ranking": float,
        "regression": dict if lived.case.loop.name == "parcels" else float,
    }[trace.task] is type(trace.outcome.truth)
    assert set(trace.values) == set(lived.home.packages.read(trace.package).manifest.output.names)


def test_the_report_and_the_pages_speak_of_the_task(lived: Lived, tmp_path: Path) -> None:
    report = report_verb(lived.home, lived.case.loop.name, out=tmp_path)
    for objective in lived.case.loop.scope.objectives:
        assert objective.name in report.markdown
    assert "not measured" not in report.markdown
    valued = lived.case.loop.scope.value.is_set
    assert ("Money over no model" in report.markdown) == valued
    assert ("no value table" in report.markdown.lower()) == (not valued)
    page = loop_page(lived.home, lived.case.loop.name)
    assert page.status.stages
    id = predictions(lived.home, lived.case.loop.name)["_id"][0].as_py()
    with served(list(routes(lived.home))) as address:
        shown, traced, plain = (
            urllib.request.urlopen(f"{address}/{path}", timeout=600).read().decode()
            for path in (f"loops/{lived.case.loop.name}", f"predictions/{id}", f"predictions/{id}.json")
        )
    assert ("no value table" in shown.lower()) == (not valued)
    assert trace_verb(lived.home, id).answer in traced
    assert json.loads(plain)["task"] == lived.case.loop.outcome.task
    card = lived.home.packages.read(page.status.serving).files["card.md"].decode()
    assert "nan" not in card.lower().replace("finance", "")
