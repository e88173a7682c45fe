from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, recall_score
from tests.traffic import OUTCOME, START, WEEK

from loopwright.monitor.quality import Decay, decayed, quality
from loopwright.records.declarations import Outcome
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.package import Output
from loopwright.records.windows import Quality


def evaluation(**metrics: float) -> Evaluation:
    return Evaluation(
        rows=1000,
        positives=200,
        threshold=0.5,
        metrics={name: Estimate(v, v - 0.01, v + 0.01, 1000) for name, v in metrics.items()},
        slices={},
        latency_p50_us=1.0,
        latency_p99_us=1.0,
        size_bytes=1,
        train_seconds=1.0,
        value_per_prediction=0.0,
    )


def joined(n: int = 2000, *, pending: float = 0.2, seed: int = 0, noise: float = 0.2) -> pa.Table:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    score = np.clip(np.where(truth, 0.7, 0.3) + rng.normal(0, noise, n), 0, 1)
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
        }
    )


def measure(table: pa.Table, *, by: float | None = 0.05, minimum_rows: int = 100, **promised: float) -> Quality:
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
        decay=Decay("average_precision", by),
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
    now = measure(joined()).metrics["average_precision"].value
    assert measure(joined(), average_precision=now + 0.1).state == "decayed"
    assert measure(joined(), average_precision=now + 0.04).state == "ok"
    assert measure(joined(), average_precision=now - 0.2).state == "ok"
    assert measure(joined(), by=None, average_precision=now + 0.1).state == "ok"
    thin = joined(60, noise=0.5)
    value = measure(thin, minimum_rows=10).metrics["average_precision"]
    assert measure(thin, minimum_rows=10, average_precision=min(value.high - 0.001, value.value + 0.06)).state == "ok"


def test_for_a_metric_where_less_is_better_decay_is_a_rise() -> None:
    up = Estimate(0.30, 0.28, 0.32, 500)
    assert decayed(up, 0.20, Decay("brier", 0.05))
    assert not decayed(up, 0.40, Decay("brier", 0.05))
    assert not decayed(up, 0.29, Decay("brier", 0.005))


def test_decay_is_a_share_of_the_promise_whatever_the_unit() -> None:
    assert not decayed(Estimate(31.0, 30.5, 31.5, 5000), 30.0, Decay("mae", 0.05))  # 1 of 30 is 3 %
    assert decayed(Estimate(31.6, 30.5, 32.5, 5000), 30.0, Decay("mae", 0.05))
    assert decayed(Estimate(0.28, 0.26, 0.29, 5000), 0.30, Decay("average_precision", 0.05))  # 0.02 of 0.30 is 7 %
    assert not decayed(Estimate(0.78, 0.76, 0.79, 5000), 0.80, Decay("average_precision", 0.05))


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
