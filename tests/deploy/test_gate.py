from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from tests.deploy.hostile import endless
from tests.deploy.loops import COLUMNS, LOOP, NOW, declared, heuristic_graph, model_graph, opened, package
from tests.traffic import examples_file

from loopwright.base.errors import Damaged, GateFailed
from loopwright.deploy import releases
from loopwright.deploy.gate import GateResult, check_release, gate
from loopwright.graph.columns import arrow_schema
from loopwright.records.declarations import GroupSplit, Guard, Objective, Release, Scope, StratifiedSplit, Task, TimeSplit
from loopwright.records.evaluation import Estimate, Leaderboard, LeaderboardRow
from loopwright.records.examples import Examples
from loopwright.records.package import Lineage, Origin
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package, encode_json
from loopwright.tasks.plausibility import perfect_on_few, practically_perfect
from loopwright.tasks.split import Split, divide

ROWS = 4000
START = NOW - timedelta(days=40)


@pytest.fixture(scope="module")
def examples() -> pa.Table:
    """Rows whose truth follows the delay with noise, in 40 days before NOW."""
    rng = np.random.default_rng(3)
    delay = rng.normal(10, 20, ROWS)
    origin = rng.choice(["EWR", "JFK", "LGA"], ROWS)
    decided = [START + timedelta(days=40) * (i / ROWS) for i in range(ROWS)]
    columns = {
        "flight": [f"UA{i}" for i in range(ROWS)],
        "pushed_back_at": decided,
        "origin": origin.tolist(),
        "delay": delay.tolist(),
        "hour": rng.integers(0, 24, ROWS).tolist(),
        "tail": [None] * ROWS,
        "night": [False] * ROWS,
        "wind": np.full(ROWS, 8.0).tolist(),
        "gust": [None] * ROWS,
    }
    table = pa.table(columns, schema=arrow_schema(COLUMNS))
    truth = delay + rng.normal(0, 12, ROWS) > 15
    more = {
        "_decided_at": pa.array(decided, pa.timestamp("us", tz="UTC")),
        "_known_at": pa.array(decided, pa.timestamp("us", tz="UTC")),
        "_label": pa.array(truth),
        "_unit": table.column("flight"),
        "_prediction": pa.nulls(ROWS, pa.string()),
    }
    for name, values in more.items():
        table = table.append_column(name, values)
    return table


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return opened(tmp_path)


def scope(**target: Any) -> Scope:
    objectives = [Objective("rank", owner="ops", metric="average_precision", **(target or {"at_least": 0.5}))]
    return msgspec.structs.replace(declared().scope, objectives=objectives)


def measured(home: Home, made: Package, **metrics: Estimate) -> Package:
    """The package with another evaluation."""
    evaluation = msgspec.structs.replace(made.evaluation, metrics={**made.evaluation.metrics, **metrics})
    return home.packages.write(
        msgspec.structs.replace(made.manifest, files={}), {**made.files, "evaluation.json": encode_json(evaluation)}
    )


def old(home: Home, weight: float = 0.05, last: datetime = START, **more: Any) -> Package:
    """A package trained long ago."""
    made = package(home.packages, weight=weight, **more)
    training = msgspec.structs.replace(made.manifest.training, last=last)
    return home.packages.write(msgspec.structs.replace(made.manifest, training=training, files={}), made.files)


def failed(result: GateResult) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


def test_a_good_first_package_passes(home: Home, examples: pa.Table) -> None:
    result = gate(home, package(home.packages), scope=scope(), examples=examples)
    assert result.passed, result.checks
    assert [check.name for check in result.checks] == ["probe", "target rank"]
    assert (result.serving, result.rows) == ("", ROWS * 14 // 40)


def split_by(home: Home, made: Package, examples: pa.Table, split: Split, seed: int = 0) -> Package:
    """The package as if it had been trained on those examples, split so."""
    partition = divide(examples, split, seed=seed).partition
    return home.packages.write(msgspec.structs.replace(made.manifest, split=partition, files={}), made.files)


def test_only_the_validation_part_counts(home: Home, examples: pa.Table) -> None:
    made = split_by(home, package(home.packages), examples, TimeSplit(validation="4d"))
    assert gate(home, made, scope=scope(), examples=examples).rows == ROWS // 10


@pytest.mark.parametrize("split", [GroupSplit("origin", 0.5), StratifiedSplit(validation=0.3)])
def test_the_gate_judges_on_the_side_the_split_says(home: Home, examples: pa.Table, split: Split) -> None:
    made = split_by(home, package(home.packages), examples, split)
    validation = divide(examples, split, seed=0).validation
    assert gate(home, made, scope=scope(), examples=examples).rows == len(validation)
    # What serves was split by the same rule: it has seen none of these rows, though it was trained on others of the same time.
    serving = split_by(home, package(home.packages, weight=-0.05), examples, split)
    result = gate(home, made, scope=scope(), serving=serving, examples=examples)
    assert (result.rows, "favours" in str(result.checks)) == (len(validation), False)
    # With another seed it has.
    serving = split_by(home, package(home.packages, weight=-0.05), examples, StratifiedSplit(validation=0.1), seed=5)
    assert "favours" in str(gate(home, made, scope=scope(), serving=serving, examples=examples).checks)


def test_a_package_that_cannot_be_probed_fails(home: Home) -> None:
    made = package(home.packages)
    forged = Package(made.digest, made.manifest, {**made.files, "model.onnx": model_graph(0.2)})
    result = gate(home, forged, scope=scope())
    assert failed(result) == ["probe"]
    assert "golden request 0" in result.checks[0].detail


@pytest.mark.parametrize(
    ("target", "estimate", "passes"),
    [
        ({"at_least": 0.8}, Estimate(0.79, 0.75, 0.82, 1000), True),
        ({"at_least": 0.8}, Estimate(0.70, 0.66, 0.74, 1000), False),
        ({"at_most": 0.2}, Estimate(0.25, 0.18, 0.31, 1000), True),
        ({"at_most": 0.2}, Estimate(0.31, 0.25, 0.36, 1000), False),
        ({"at_least": 0.8}, Estimate(float("nan"), float("nan"), float("nan"), 0), False),
    ],
)
def test_a_target_fails_only_when_surely_missed(home: Home, target: dict[str, float], estimate: Estimate, passes: bool) -> None:
    made = measured(home, package(home.packages), average_precision=estimate)
    assert failed(gate(home, made, scope=scope(**target))) == ([] if passes else ["target rank"])


def test_a_target_that_what_serves_misses_as_well_does_not_stop_an_improvement(home: Home, examples: pa.Table) -> None:
    low = Estimate(0.3, 0.28, 0.32, 1000)
    better = measured(home, package(home.packages), average_precision=low)
    serving = old(home, weight=-0.05)
    assert gate(home, better, scope=scope(at_least=0.8), serving=serving, examples=examples).passed
    worse = measured(home, package(home.packages, weight=-0.05), average_precision=low)
    result = gate(home, worse, scope=scope(at_least=0.8), serving=old(home), examples=examples)
    assert failed(result) == ["target rank", "guard average_precision"]


def test_latency_and_unknown_measures(home: Home) -> None:
    quick = msgspec.structs.replace(scope(), objectives=[Objective("quick", owner="p", metric="latency_p99_ms", at_most=0.01)])
    assert failed(gate(home, package(home.packages), scope=quick)) == ["target quick"]
    unknown = msgspec.structs.replace(
        scope(), objectives=[Objective("odd", owner="p", metric="recall_gap:nowhere", at_most=0.1)]
    )
    result = gate(home, package(home.packages), scope=unknown)
    assert failed(result) == ["target odd"]
    assert "not measured" in result.checks[1].detail


def test_gaps_are_measured_on_the_rows(home: Home, examples: pa.Table) -> None:
    gap = msgspec.structs.replace(
        scope(), objectives=[Objective("fair", owner="p", metric="recall_gap:origin_slice", at_most=0.3)]
    )
    result = gate(home, package(home.packages), scope=gap, examples=examples)
    assert result.passed
    assert "recall_gap:origin_slice" in result.checks[1].detail


def test_no_worse_than_what_serves(home: Home, examples: pa.Table) -> None:
    good, bad = package(home.packages, weight=0.0501), package(home.packages, weight=-0.05)
    guards = [Guard("average_precision", 0.02), Guard("recall", 0.05, ["origin_slice"])]
    same = gate(home, good, scope=scope(), release=Release(guards=guards), serving=old(home), examples=examples)
    assert same.passed, same.checks
    assert [c.name for c in same.checks][2:] == [
        "guard average_precision",
        "guard recall",
        "guard recall on origin_slice=JFK",
        "guard recall on origin_slice=other",
    ]
    worse = gate(home, bad, scope=scope(), release=Release(guards=guards), serving=old(home), examples=examples)
    assert failed(worse) == [c.name for c in worse.checks if c.name.startswith("guard")]


def test_tolerance_is_tolerated(home: Home, examples: pa.Table) -> None:
    """Accuracy with a threshold that labels too much: worse by some hundredths."""
    other = package(home.packages, threshold=0.35)
    strict = gate(
        home, other, scope=scope(), release=Release(guards=[Guard("accuracy", 0.0)]), serving=old(home), examples=examples
    )
    lenient = gate(
        home, other, scope=scope(), release=Release(guards=[Guard("accuracy", 0.5)]), serving=old(home), examples=examples
    )
    assert failed(strict) == ["guard accuracy"]
    assert lenient.passed


@pytest.mark.parametrize(("threshold", "passed"), [(0.48, True), (0.35, False)])
def test_guard_without_tolerance_lets_through_what_chance_alone_makes(
    home: Home, examples: pa.Table, threshold: float, passed: bool
) -> None:
    made, serving = package(home.packages, threshold=threshold), old(home)
    for guards, expected in (([Guard("accuracy", 0.0)], False), ([Guard("accuracy")], passed)):
        result = gate(home, made, scope=scope(), release=Release(guards=guards), serving=serving, examples=examples)
        assert result.passed == expected, [c.detail for c in result.checks]


def test_a_slice_that_is_surely_worse_stops_what_is_better_overall(home: Home, examples: pa.Table) -> None:
    made = package(home.packages, model=model_graph(fails="jfk"))
    guards = [Guard("recall", 0.1, ["origin_slice"])]
    result = gate(
        home, made, scope=scope(), release=Release(guards=guards), serving=old(home, threshold=0.6), examples=examples
    )
    assert failed(result) == ["guard recall on origin_slice=JFK"], [c.detail for c in result.checks]


def test_package_is_compared_with_the_best_of_the_last_year_too(home: Home, examples: pa.Table) -> None:
    """What serves lost .02 of accuracy against the package before it; the next one loses nothing more, and is refused."""
    release = Release(guards=[Guard("accuracy", 0.01)])
    best = old(home, last=START - timedelta(days=1))
    first = gate(home, best, scope=scope(), release=release, examples=examples)
    assert (first.anchor, first.anchored_at) == (best.digest, NOW)
    serving, made = old(home, threshold=0.45), package(home.packages, threshold=0.451)

    def passed(result: GateResult, passed: bool = True) -> GateResult:
        home.ledger.put(msgspec.structs.replace(result, passed=passed), loop=LOOP, key=result.package)
        return gate(home, made, scope=scope(), release=release, serving=serving, examples=examples)

    kept = msgspec.structs.replace(first, package=serving.digest)
    result = passed(kept)
    assert failed(result) == ["guard accuracy against the best of the last year"], [c.detail for c in result.checks]
    assert (result.anchor, result.anchored_at) == (best.digest, NOW), "it stays until something is better"
    year_old = passed(msgspec.structs.replace(kept, anchored_at=NOW - timedelta(days=366)))
    assert year_old.passed
    assert year_old.anchor == serving.digest
    assert passed(msgspec.structs.replace(kept, anchor="0" * 64)).passed, "an anchor that is gone is not compared with"
    assert passed(kept, passed=False).anchor == serving.digest, "released against the guards: a new anchor"
    better = gate(home, package(home.packages), scope=scope(), release=release, serving=serving, examples=examples)
    assert better.anchor == better.package, "better than the anchor: the next ones are compared with it"


def test_rows_that_cannot_tell_hold_a_package_where_that_is_declared(home: Home, examples: pa.Table) -> None:
    few, made = examples.slice(ROWS - 300), package(home.packages, weight=0.045)
    for cannot_tell, expected in (("release", True), ("hold", False)):
        release = Release(guards=[Guard("accuracy", 0.001)], cannot_tell=cannot_tell)  # type: ignore[arg-type]  # both are its words
        result = gate(home, made, scope=scope(), release=release, serving=old(home), examples=few)
        assert result.passed == expected, [c.detail for c in result.checks]
        assert bool(result.unsure) == expected
        assert ("`cannot_tell=" in "".join(result.reasons)) != expected


def test_rows_that_the_serving_package_learnt_from_are_left_out_or_noted(home: Home, examples: pa.Table) -> None:
    made = package(home.packages)
    recent = old(home, weight=0.06, last=NOW - timedelta(days=6))
    result = gate(home, made, scope=scope(), serving=recent, examples=examples)
    assert "trained on" in result.checks[-1].detail
    older = old(home, weight=0.06, last=NOW - timedelta(days=10))
    assert gate(home, made, scope=scope(), serving=older, examples=examples).rows == ROWS // 4 - 1  # decided after, not at


def perfect(home: Home, made: Package) -> Package:
    """The package, as if it had answered every validation row right."""
    sure = Estimate(1.0, 1.0, 1.0, 1000)
    return measured(home, made, roc_auc=sure, average_precision=sure)


def test_practically_perfect_package_is_refused_until_a_person_accepts_it(home: Home, examples: pa.Table) -> None:
    made = perfect(home, package(home.packages))
    result = gate(home, made, scope=scope(), examples=examples)
    assert failed(result) == ["plausible"]
    assert "practically perfect" in result.reasons[0]
    assert f"loopwright release LOOP {made.digest[:12]} --despite-guard --why REASON" in result.next_step
    # Against a believable package it is refused as well; once a perfect one serves, somebody has accepted that.
    assert "plausible" in failed(gate(home, made, scope=scope(), serving=old(home), examples=examples))
    accepted = perfect(home, old(home))
    assert "plausible" not in failed(gate(home, made, scope=scope(), serving=accepted, examples=examples))


@pytest.mark.parametrize(
    ("task", "metrics", "rows", "positives", "said"),
    [
        ("binary", {"roc_auc": 0.9995, "average_precision": 0.995}, 500, 100, True),
        ("binary", {"roc_auc": 0.9995, "average_precision": 0.6}, 500, 100, False),  # a rare class: far from perfect
        ("binary", {"roc_auc": 0.985, "average_precision": 0.995}, 500, 100, False),
        ("binary", {"roc_auc": 1.0, "average_precision": 1.0}, 500, 9, False),
        ("binary", {"roc_auc": 1.0, "average_precision": 1.0}, 99, 50, False),
        ("regression", {"r2": 0.9995}, 500, 0, True),
        ("regression", {"r2": 0.99}, 500, 0, False),
        ("regression", {"r2": float("nan")}, 500, 0, False),
        ("multiclass", {"accuracy": 1.0, "macro_f1": 1.0}, 500, 0, True),
        ("multiclass", {"accuracy": 0.9995, "macro_f1": 0.3}, 500, 0, False),  # one class is nearly all there is
        ("ranking", {"ndcg:10": 1.0}, 500, 0, False),  # not all of its measures
    ],
)
def test_practically_perfect_is_told_from_good_and_from_few_rows(
    home: Home, task: Task, metrics: dict[str, float], rows: int, positives: int, said: bool
) -> None:
    found = {name: Estimate(value, value, value, rows) for name, value in metrics.items()}
    evaluation = package(home.packages).evaluation
    judged = msgspec.structs.replace(evaluation, rows=rows, positives=positives, metrics=found)
    assert bool(practically_perfect(judged, task)) is said


@pytest.mark.parametrize(
    ("roc_auc", "rows", "positives", "said"),
    [
        (1.0, 60, 30, "roc auc 1.0000 and average precision 1.0000 on 60 rows: practically perfect, on too few to tell"),
        (1.0, 500, 9, "on 500 rows, 9 of the rarer label: practically perfect, on too few to tell"),
        (0.98, 60, 30, ""),
        (1.0, 500, 100, ""),
    ],
)
def test_perfect_quality_on_few_rows_is_said_and_released(
    home: Home, examples: pa.Table, roc_auc: float, rows: int, positives: int, said: str
) -> None:
    sure = Estimate(roc_auc, roc_auc, roc_auc, rows)
    made = measured(home, package(home.packages), roc_auc=sure, average_precision=Estimate(1.0, 1.0, 1.0, rows))
    judged = msgspec.structs.replace(made.evaluation, rows=rows, positives=positives)
    assert said in perfect_on_few(judged, "binary")
    assert bool(perfect_on_few(judged, "binary")) == bool(said)
    few = home.packages.write(
        msgspec.structs.replace(made.manifest, files={}), dict(made.files) | {"evaluation.json": encode_json(judged)}
    )
    result = gate(home, few, scope=scope(), examples=examples)
    assert [c.detail for c in result.checks if c.name == "plausible" and c.passed] == (
        [perfect_on_few(judged, "binary")] if said else []
    )


def test_worse_without_a_feature_of_what_serves_cannot_be_compared(home: Home, examples: pa.Table) -> None:
    def of(made: Package, **features: list[str]) -> Package:
        lineage = Lineage(features=features, columns={name: Origin() for name in COLUMNS})
        return home.packages.write(msgspec.structs.replace(made.manifest, lineage=lineage, files={}), dict(made.files))

    bad = package(home.packages, weight=-0.05)
    guards = [Guard("average_precision", 0.02)]
    serving = of(old(home), delay=["delay"], hour=["hour"])
    without = gate(
        home, of(bad, hour=["hour"]), scope=scope(), release=Release(guards=guards), serving=serving, examples=examples
    )
    assert "cannot compare: the set of features changed (without delay)" in without.reasons[-1]
    for same in ({"delay": ["delay"], "hour": ["hour"]}, {"late": ["delay"], "hour": ["hour"], "more": ["night"]}):
        worse = gate(home, of(bad, **same), scope=scope(), release=Release(guards=guards), serving=serving, examples=examples)
        assert failed(worse)[-1] == "guard average_precision"
        assert "cannot compare" not in worse.reasons[-1]


def on_board(home: Home, serving: Package, advantage: float) -> None:
    """A leaderboard by which the package went into service, that much better than the rule."""
    rows = [
        LeaderboardRow(
            rank=rank,
            candidate=name,
            phase=phase,
            package=digest,
            measures={"average_precision": score},
            intervals={},
            met={},
            score=score,
        )
        for rank, name, phase, digest, score in (
            (1, "model", 2, serving.digest, 0.5 + advantage),
            (2, "rule", 1, "0" * 64, 0.5),
        )
    ]
    board = Leaderboard(
        turn="t1", as_of=NOW, examples="e", rows=rows, comparisons=[], weights={}, verdict="", winner=serving.digest
    )
    home.ledger.put(board, loop=LOOP, key="t1")


@pytest.mark.parametrize(
    ("rows", "advantage", "refused"),
    [
        (ROWS, 0.5, ""),  # the advantage that it had is surely gone
        (ROWS, 0.02, "which these rows do not exclude"),
        (300, 0.1, "which these rows do not exclude"),
        (50, 0.2, "too few rows to say whether the model that serves"),
        (300, None, ""),  # no leaderboard says that there was one
    ],
)
def test_rule_replaces_a_model_once_its_advantage_is_surely_gone(
    home: Home, examples: pa.Table, rows: int, advantage: float | None, refused: str
) -> None:
    rule = package(home.packages, model=heuristic_graph(), phase=1, candidate="rule")
    serving = old(home)
    if advantage is not None:
        on_board(home, serving, advantage)
    asked = examples.slice(ROWS - rows)
    result = gate(
        home,
        rule,
        scope=scope(at_least=0.01),
        release=Release(guards=[Guard("average_precision", 1.0)]),
        serving=serving,
        examples=asked,
    )
    assert failed(result) == (["rule"] if refused else [])
    assert refused in "".join(result.reasons)
    assert result.may_be_overridden
    other = gate(home, package(home.packages, weight=0.01), scope=scope(at_least=0.01), serving=serving, examples=asked)
    assert "rule" not in [check.name for check in other.checks], "models are judged by the guards alone"


def test_without_rows_the_result_says_that_nothing_was_compared(home: Home, examples: pa.Table) -> None:
    for rows in (None, examples.slice(0, 0), examples.slice(0, 50)):
        result = gate(home, package(home.packages), scope=scope(), serving=old(home), examples=rows)
        assert result.passed
        assert (result.rows, result.checks[-1].name) == (0, "guards")
        assert "not compared" in result.checks[-1].detail


def test_a_release_by_hand_passes_the_same_gate(home: Home, examples: pa.Table) -> None:
    digest = examples_file(home, examples)
    record = Examples(
        digest=digest,
        rows=ROWS,
        positives=1,
        as_of=NOW,
        first=START,
        last=NOW,
        sources=[],
        excluded={},
        request={},
        context={},
    )
    home.ledger.put(record, loop=LOOP, key=record.digest)
    serving = old(home)
    releases.release(home, LOOP, serving.digest, why="first")

    def candidate(weight: float) -> Package:
        made = package(home.packages, weight=weight)
        training = msgspec.structs.replace(made.manifest.training, examples=digest)
        return home.packages.write(msgspec.structs.replace(made.manifest, training=training, files={}), made.files)

    assert check_release(home, candidate(0.055), loop=LOOP, scope=scope()).rows > 0
    with pytest.raises(GateFailed, match="guard average_precision"):
        check_release(home, candidate(-0.05), loop=LOOP, scope=scope())
    assert [e.record.passed for e in home.ledger.find(GateResult, loop=LOOP, newest=False)] == [True, False]

    [path] = home.folder("examples").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=digest[:12]):
        check_release(home, candidate(0.055), loop=LOOP, scope=scope())


def test_a_package_that_is_endless_on_the_examples_only_does_not_pass(
    home: Home, examples: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its golden requests are short delays, and answered at once."""
    monkeypatch.setattr("loopwright.deploy.gate.EXAMPLES_SECONDS", 1.0)
    made = package(home.packages, model=endless(where=30.0))
    monkeypatch.setattr("loopwright.deploy.gate.ONE_ROW_US", 0.0)
    result = gate(home, made, scope=scope(), examples=examples)
    failed = {c.name: c.detail for c in result.checks if not c.passed}
    assert failed["answers"] == "it does not answer the loop's examples in bounded time"


def test_serving_package_that_is_endless_on_the_examples_does_not_keep_the_next_one_out(
    home: Home, examples: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopwright.deploy.gate.EXAMPLES_SECONDS", 5.0)
    serving, made = package(home.packages, model=endless(where=30.0)), package(home.packages)
    monkeypatch.setattr("loopwright.deploy.gate.ONE_ROW_US", 0.0)
    result = gate(home, made, scope=scope(), examples=examples, serving=serving)
    details = {c.name: c.detail for c in result.checks}
    assert "cannot be run on these rows (it does not answer them in bounded time)" in details["guards"]
    assert not [c for c in result.checks if c.name in ("answers", "guards") and not c.passed]
