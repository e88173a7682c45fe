from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, recall_score
from tests.traffic import OUTCOME, START, WEEK

from loopwright.monitor.decay import Decay
from loopwright.monitor.quality import quality
from loopwright.records.declarations import Outcome
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.package import Output
from loopwright.records.windows import Quality
from loopwright.tasks import metrics


def evaluation(**metrics: float) -> Evaluation:
    return Evaluation(
        rows=1000,
        positives=300,
        threshold=0.5,
        metrics={name: Estimate(v, v - 0.01, v + 0.01, 1000) for name, v in metrics.items()},
        slices={},
        latency_p50_us=1.0,
        latency_p99_us=1.0,
        size_bytes=1,
        train_seconds=1.0,
        value_per_prediction=0.0,
    )


def joined(
    n: int = 2000, *, pending: float = 0.2, seed: int = 0, noise: float = 0.2, rate: float = 0.3, is_reversed: bool = False
) -> pa.Table:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < rate
    score = np.clip(np.where(truth != is_reversed, 0.7, 0.3) + rng.normal(0, noise, n), 0, 1)
    known = [bool(t) if k else None for t, k in zip(truth, rng.random(n) >= pending, strict=True)]
    return pa.table(
        {
            "_package": ["a" if i % 3 else "b" for i in range(n)],
            "_arm": ["champion"] * n,
            "_unit": [f"u{i}" for i in range(n)],
            "_score": score,
            "_label": score >= 0.5,
            "_truth": pa.array(known, pa.bool_()),
            "_mature": pa.array([True] * n, pa.bool_()),
            "_stated": pa.array([True] * n, pa.bool_()),
        }
    )


def measure(
    table: pa.Table, *, by: float | None = 0.05, minimum_rows: int = 100, metric: str = "average_precision", **promised: float
) -> Quality:
    slices = {"side": np.array(["left" if i % 2 else "right" for i in range(table.num_rows)], dtype=object)}
    evaluations = {p: evaluation(**(promised or {"average_precision": 0.9})) for p in ("a", "b")}
    return quality(
        table,
        slices,
        evaluations,
        START,
        START + WEEK,
        outcome=OUTCOME,
        outputs={},
        known_at=START + WEEK + timedelta(days=1),
        decay=Decay(metric, by),
        minimum_rows=minimum_rows,
    )


def parts(table: pa.Table) -> tuple[Any, Any, Any]:
    known = table.filter(pa.array([t is not None for t in table["_truth"].to_pylist()]))
    return tuple(known[name].to_numpy() for name in ("_truth", "_score", "_label"))


def test_metrics_are_of_the_rows_with_an_outcome_and_agree_with_scikit_learn() -> None:
    table = joined()
    found = measure(table)
    truth, score, label = parts(table)
    assert (found.rows, found.with_outcome) == (2000, len(truth))
    assert found.with_outcome < 2000
    assert found.metrics["average_precision"].value == pytest.approx(average_precision_score(truth, score))
    assert found.metrics["recall"].value == pytest.approx(recall_score(truth, label))
    for estimate in found.metrics.values():
        assert estimate.low <= estimate.value <= estimate.high or np.isclose(estimate.low, estimate.value, atol=0.02)
    assert set(found.by_package) == {"a", "b"}
    assert found.by_package["a"]["recall"].n + found.by_package["b"]["recall"].n == found.with_outcome


def test_slices_are_measured_on_their_own_rows() -> None:
    table = joined()
    found = measure(table)
    odd = table.filter(pa.array([i % 2 == 1 for i in range(2000)]))
    truth, _, label = parts(odd)
    assert found.slices["side"]["left"]["recall"].value == pytest.approx(recall_score(truth, label))
    assert found.slices["side"]["left"]["recall"].n == len(truth)
    assert "recall_gap:side" in found.metrics


def test_decay_needs_a_drop_that_is_large_and_sure() -> None:
    table = joined(noise=0.4)
    now = measure(table).metrics["average_precision"].value
    assert measure(table, average_precision=now + 0.12).state == "decayed"
    assert measure(table, average_precision=now + 0.03).state == "ok"
    assert measure(table, average_precision=now - 0.2).state == "ok"
    assert measure(table, by=None, average_precision=now + 0.12).state == "ok"
    thin = joined(60, noise=0.5)
    value = measure(thin, minimum_rows=10).metrics["average_precision"]
    assert measure(thin, minimum_rows=10, average_precision=min(value.high - 0.001, value.value + 0.06)).state == "ok"


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "brier", "f1", "precision", "log_loss"])
@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_base_rate_alone_is_no_decay_and_a_reversed_relation_is(metric: str, rate: float) -> None:
    promised = {metric: metrics.compute(metric, *parts(joined(200_000, noise=0.4)))}
    other = measure(joined(6000, noise=0.4, rate=rate), metric=metric, minimum_rows=100, **promised)
    assert other.state == "ok"
    assert other.decay is not None
    assert other.decay.now.value == pytest.approx(promised[metric], rel=0.12)
    if metric != "roc_auc":
        assert other.decay.now.n < other.metrics.get(metric, other.decay.now).n or metric not in other.metrics
    assert (
        measure(joined(6000, noise=0.4, rate=rate, is_reversed=True), metric=metric, minimum_rows=100, **promised).state
        == "decayed"
    )


def classes(n: int, shares: list[float], *, is_reversed: bool = False) -> pa.Table:
    """Answers of a model that finds each of three classes in a share of its own, whatever the shares of the classes."""
    rng = np.random.default_rng(0)
    truth = rng.choice(3, n, p=shares)
    right = rng.random(n) < np.array([0.9, 0.7, 0.5])[truth]
    label = np.where(right != is_reversed, truth, (truth + 1) % 3)
    words = np.array(["ant", "bee", "cat"], dtype=object)
    table = joined(n, pending=0.0)
    for name, values in (("_truth", words[truth]), ("_label", words[label])):
        table = table.set_column(table.column_names.index(name), name, pa.array(values.tolist()))
    return table.append_column("_values", pa.array(np.eye(3)[label].tolist(), pa.list_(pa.float64())))


def test_shares_of_classes_alone_are_no_decay_and_a_reversed_relation_is() -> None:
    output = Output(task="multiclass", classes=["ant", "bee", "cat"], names=["ant", "bee", "cat"])

    def state(table: pa.Table) -> str:
        return quality(
            table, {}, {p: evaluation(balanced_accuracy=0.7) for p in ("a", "b")}, START, START + WEEK,
            outcome=Outcome(OUTCOME.table, "arr_delay", task="multiclass"), outputs={"a": output, "b": output},
            known_at=START + WEEK, decay=Decay(metrics.decay("multiclass"), 0.05), minimum_rows=100,
        ).state  # fmt: skip

    assert [state(classes(4000, shares)) for shares in ([0.6, 0.3, 0.1], [0.1, 0.2, 0.7])] == ["ok", "ok"]
    assert state(classes(4000, [0.6, 0.3, 0.1], is_reversed=True)) == "decayed"


def test_promise_that_few_events_tell_is_no_data() -> None:
    table, few = joined(), evaluation(average_precision=0.9)
    few.metrics["average_precision"] = Estimate(0.9, 0.5, 1.0, 40, too_few=True)
    found = quality(
        table, {}, {"a": few, "b": few}, START, START + WEEK, outcome=OUTCOME, outputs={}, known_at=START + WEEK,
        decay=Decay("average_precision", 0.05), minimum_rows=100,
    )  # fmt: skip
    assert (found.state, found.decay) == ("no data", None)


def test_each_package_is_checked_against_its_own_promise() -> None:
    table = joined(4000, pending=0.0)
    now = measure(table).metrics["average_precision"].value
    found = quality(
        table, {}, {"a": evaluation(average_precision=now), "b": evaluation(average_precision=now + 0.15)}, START, START + WEEK,
        outcome=OUTCOME, outputs={}, known_at=START + WEEK, decay=Decay("average_precision", 0.05), minimum_rows=100,
    )  # fmt: skip
    assert {digest: check.cause for digest, check in found.decay_by_package.items()} == {"a": "", "b": "drop"}
    assert found.decay is not None
    assert found.decay.promised.value == pytest.approx(now + 0.05, abs=0.001)


def test_too_few_outcomes_or_none_are_no_data() -> None:
    none = measure(joined(pending=1.0))
    assert (none.state, none.with_outcome, none.metrics, none.by_package) == ("no data", 0, {}, {})
    few = measure(joined(), minimum_rows=1999)
    assert (few.state, few.state_text) == ("no data", f"too few ({few.with_outcome:,} of 1,999)")
    assert none.state_text == "no data"
    assert measure(joined(0)).state == "no data"
    assert measure(joined(), roc_auc=0.9).state == "no data"


def test_the_same_rows_give_the_same_record() -> None:
    assert measure(joined()) == measure(joined())


def numbers(n: int, off: float, seed: int = 0) -> pa.Table:
    """Predictions of a number that are off by about `off`."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(100, 20, n)
    return pa.table(
        {
            "_package": ["a"] * n,
            "_mature": [True] * n,
            "_stated": [True] * n,
            "_arm": ["champion"] * n,
            "_unit": [f"u{i}" for i in range(n)],
            "_score": truth + rng.normal(0, off, n),
            "_label": pa.nulls(n, pa.bool_()),
            "_truth": pa.array([t if i % 5 else None for i, t in enumerate(truth)], pa.float64()),
        }
    )


@pytest.mark.parametrize(("off", "state"), [(10.0, "ok"), (10.3, "ok"), (16.0, "decayed"), (3.0, "ok")])
def test_an_error_that_grows_is_decay(off: float, state: str) -> None:
    found = quality(
        numbers(1500, off),
        {"side": np.array(["left", "right"] * 750, dtype=object)},
        {"a": evaluation(mae=8.0)},
        START,
        START + WEEK,
        outcome=Outcome(OUTCOME.table, "arr_delay", task="regression"),
        outputs={"a": Output(task="regression")},
        known_at=START + WEEK,
        decay=Decay("mae", 0.25),
        minimum_rows=100,
    )
    assert found.state == state
    assert (found.rows, found.with_outcome) == (1500, 1200)
    assert found.metrics["mae"].value == pytest.approx(off * np.sqrt(2 / np.pi), rel=0.1)
    assert set(found.slices["side"]["left"]) == {"mae", "mean_error"}
    assert np.isfinite(found.metrics["mae_gap:side"].value)
    assert not {"average_precision", "value_per_prediction"} & set(found.metrics)
