"""Leaks that a scan must find, honest features that it must leave alone, and how often chance is called a leak."""

from datetime import UTC, datetime, timedelta
from typing import Any

import ndonnx.extensions as nde
import numpy as np
import pyarrow as pa
import pytest
from scipy import special, stats
from sklearn import datasets
from sklearn.metrics import roc_auc_score

from loopwright.base.arrays import Array
from loopwright.base.progress import Silent
from loopwright.develop.features import trace
from loopwright.develop.leakage import leaks, scan
from loopwright.graph.columns import arrow_schema
from loopwright.records.declarations import Column, Task
from loopwright.records.evaluation import Suspect
from loopwright.tasks.leak_measures import area, fit
from loopwright.tasks.leakage import ROWS
from loopwright.tasks.registry import TASKS

START = datetime(2024, 1, 1, tzinfo=UTC)


def look(
    label: Any, columns: dict[str, tuple[Column, Any]], task: Task = "binary", key: tuple[str, ...] = (), **more: Any
) -> list[Suspect]:
    """Scan columns, each of them a feature of its own name (or `features` of them)."""
    n = len(label)
    given = {name: column for name, (column, _) in columns.items()}
    table = pa.table({name: pa.array(v, from_pandas=False) for name, (_, v) in columns.items()}, schema=arrow_schema(given))
    apart = more.pop("apart", timedelta(minutes=1))
    decided = pa.array([START + apart * i for i in range(n)], pa.timestamp("us", tz="UTC"))
    for name, values in {
        "_decided_at": decided,
        "_known_at": decided,
        "_label": pa.array(label),
        "_unit": pa.array([f"u{i}" for i in range(n)]),
        "_prediction": pa.nulls(n, pa.string()),
    }.items():
        table = table.append_column(name, values)
    features = more.pop("features", lambda f: {name: f[name] for name in given})
    return scan(trace(features, given), table, task=task, key=list(key), **more).suspects


FLOAT, MAYBE, STRING = Column("float"), Column("float", nullable=True), Column("string")


def named(found: list[Suspect]) -> list[tuple[str, str]]:
    return [(s.feature, s.kind) for s in found]


def test_leaks_are_found_and_named_with_their_columns() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    label = rng.random(n) < 0.2
    noise = rng.random(n) < 0.003
    size = rng.normal(size=n)
    found = look(
        label,
        {
            "honest": (FLOAT, size + label),
            "filled_in_later": (FLOAT, np.where(label ^ noise, 1.0, 0.0)),
            "reversed": (FLOAT, np.where(label, -50.0, 50.0) + rng.normal(size=n)),
            "in_the_middle": (FLOAT, np.where(label, rng.uniform(-1, 1, n), rng.choice([-3.0, 3.0], n) + size / 9)),
            "status": (STRING, np.where(label, "refunded", rng.choice(["paid", "open"], n)).tolist()),
            "refund": (MAYBE, [float(abs(s)) if y else None for s, y in zip(size, label, strict=True)]),
            "noise": (FLOAT, rng.normal(size=n)),
        },
    )
    assert ("honest", "tells") not in named(found)
    assert {s.feature for s in found} == {"filled_in_later", "reversed", "in_the_middle", "status", "refund"}
    refund = next(s for s in found if s.kind == "missing")
    assert refund.columns == ["refund"]
    assert refund.why.startswith("where it is missing the label is false in 100.0%")
    assert "AUC 0.99" in next(s.why for s in found if s.feature == "filled_in_later")


def test_one_number_of_an_array_is_enough() -> None:
    rng = np.random.default_rng(9)
    n = 2000
    label = rng.random(n) < 0.4
    image = rng.normal(size=(n, 2, 3)).astype(np.float32)
    clean = look(label, {"image": (Column("array", shape=[2, 3]), image.reshape(n, 6).tolist())})
    image[:, 1, 2] = label * 9 - 4
    found = look(label, {"image": (Column("array", shape=[2, 3]), image.reshape(n, 6).tolist())})
    assert (clean, named(found)) == ([], [("image", "tells")])


def test_what_is_missing_may_tell_though_the_feature_does_not() -> None:
    rng = np.random.default_rng(1)
    n = 6000
    label = rng.random(n) < 0.3
    # Given for a tenth of the positives only: as a predictor weak (most positives lack it), as a sign of leakage plain.
    given = label & (rng.random(n) < 0.1)
    values = [1.0 if g else None for g in given]
    assert named(look(label, {"claim": (MAYBE, values)})) == [("claim", "missing")]
    # A features function that fills in what is missing hides nothing.
    assert named(look(label, {"claim": (MAYBE, values)}, features=lambda f: {"claim": nde.fill_null(f.claim, 0.5)})) == [
        ("claim", "missing")
    ]
    codes = [float(c) if g else None for c, g in zip(rng.permutation(n), label, strict=True)]
    found = look(label, {"code": (MAYBE, codes)}, features=lambda f: {"code": nde.fill_null(f.code, 3000.0)})
    assert named(found) == [("code", "missing")]
    at_random = [None if r < 0.1 else 1.0 for r in rng.random(n)]
    assert look(label, {"sensor": (MAYBE, at_random)}) == []
    assert look(label, {"words": (Column("string", nullable=True), [None if r < 0.5 else "x" for r in rng.random(n)])}) == []


def test_names_of_rows_and_row_numbers() -> None:
    rng = np.random.default_rng(2)
    n = 1000
    label = rng.random(n) < 0.5
    found = look(
        label,
        {
            "order_id": (STRING, [f"o{i}" for i in rng.permutation(n)]),
            "shop": (STRING, rng.choice(["a", "b"], n).tolist()),
            "number": (Column("integer"), rng.permutation(n)),
            "counter": (Column("integer"), np.arange(n) + 10_000),
        },
        key=("number",),
    )
    assert named(found) == [("order_id", "names"), ("number", "names"), ("counter", "order")]
    assert "1,000 different values in 1,000 rows" in found[0].why


def test_ids_in_order_of_time_are_named_with_the_drift_of_the_label() -> None:
    rng = np.random.default_rng(2)
    n = 1000
    label = rng.random(n) < np.linspace(0.1, 0.6, n)
    week = np.arange(n) // 20
    found = look(
        label,
        {
            "batch": (Column("integer"), week + 7),
            "week": (STRING, [f"W{w}" for w in week]),  # W10 is after W9
            "order_id": (STRING, [f"2024-{i}" for i in range(n)]),
            "mixed": (FLOAT, week + rng.normal(0, 20, n)),
        },
    )
    assert named(found) == [("batch", "order"), ("week", "order"), ("order_id", "names"), ("order_id", "order")]
    assert "the label changes with time (AUC 0.6" in found[0].why
    assert leaks(found) == []
    steady = look(rng.random(n) < 0.3, {"batch": (Column("integer"), week)})
    assert "changes with time" not in steady[0].why


def test_target_encoding_is_named_with_its_groups_and_the_rate_from_the_past_is_not() -> None:
    rng = np.random.default_rng(5)
    rate = rng.beta(1, 2, 400)
    customer = rng.integers(0, 400, 3000)
    label = rng.random(3000) < rate[customer]
    encoded = np.bincount(customer, label)[customer] / np.bincount(customer)[customer]
    columns = {
        "customer": (Column("integer"), customer),
        "rate_now": (FLOAT, encoded),
        "rate_before": (FLOAT, (rng.binomial(20, rate) / 20)[customer]),
    }
    [found] = look(label, columns)
    assert (found.feature, found.kind, found.columns) == ("rate_now", "encodes", ["rate_now"])
    assert found.why.startswith("follows the mean of the label by customer (squared correlation 1.000 over ")
    assert leaks([found]) == [found]


def test_rows_that_were_all_decided_at_one_moment_have_no_order() -> None:
    rng = np.random.default_rng(3)
    columns = {"counter": (Column("integer"), np.arange(1000))}  # a warning about a constant would be an error here
    assert look(rng.random(1000) < 0.5, columns, apart=timedelta(0)) == []


def test_a_number_that_stands_for_nothing_is_a_bin_of_its_own() -> None:
    rng = np.random.default_rng(10)
    label = rng.random(2000) < 0.4
    code = np.where(label, rng.permutation(2000).astype(float), 1000.0)  # in the middle of what it stands beside
    assert named(look(label, {"code": (FLOAT, code)})) == [("code", "tells")]


@pytest.mark.parametrize("task", ["regression", "ranking"])
def test_numbers(task: Task) -> None:
    rng = np.random.default_rng(3)
    n = 3000
    target = np.exp(2 * rng.normal(size=n))
    found = look(
        target,
        {
            "copy": (FLOAT, target * 1.2 + 3),
            "log": (FLOAT, -np.log(target)),
            "good": (FLOAT, np.log(target) + rng.normal(0, 0.4, n)),
            "poor": (FLOAT, rng.normal(size=n)),
        },
        task=task,
    )
    assert named(found) == [("copy", "tells"), ("log", "tells")]
    several = [[float(t), float(u)] for t, u in zip(target, rng.normal(size=n), strict=True)]
    assert [s.why[:14] for s in look(several, {"copy": (FLOAT, target)}, task="regression")] == ["tells target 1"]


def test_several_classes_each_against_the_rest() -> None:
    rng = np.random.default_rng(4)
    label = rng.choice(["calm", "mild", "wild"], 3000)
    found = look(
        label.tolist(),
        {"alarm": (FLOAT, np.where(label == "wild", 1.0, 0.0)), "honest": (FLOAT, rng.normal(size=3000) + (label == "mild"))},
        task="multiclass",
    )
    assert named(found) == [("alarm", "tells")]
    assert "tells class 'wild' by itself" in found[0].why


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris", "diabetes", "digits"])
def test_public_data_without_leaks_have_no_suspects(name: str) -> None:
    data = getattr(datasets, f"load_{name}")()
    names = [f"x{i}" for i in range(data.data.shape[1])]
    task: Task = {"breast_cancer": "binary", "diabetes": "regression"}.get(name, "multiclass")  # type: ignore[assignment]
    label = data.target.astype(bool) if task == "binary" else data.target if task == "regression" else data.target.astype(str)
    label = label.astype(float).tolist() if task == "regression" else label.tolist()
    order = np.random.default_rng(0).permutation(len(label))
    columns = {n: (FLOAT, data.data[order, i].astype(float)) for i, n in enumerate(names)}
    assert look([label[i] for i in order], columns, task=task) == []


def at_area(area: float, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """A score whose true area under the curve is `area` (two normal distributions), and the truth."""
    truth = rng.random(n) < 0.3
    return rng.normal(size=n) + truth * np.sqrt(2) * stats.norm.ppf(area), truth


@pytest.mark.parametrize("n", [500, 3000])
def test_chance_alone_seldom_makes_a_suspect(n: int) -> None:
    rng = np.random.default_rng(5)
    low = np.array([area(*at_area(TASKS["binary"].leak_limit, n, rng))[1] for _ in range(2000)])
    # One in 741 is expected beyond three standard errors; more than 12 of 2,000 would have a probability below 1 in 10,000.
    assert (low > TASKS["binary"].leak_limit).sum() <= 12
    assert not any(area(*at_area(0.97, n, rng))[1] > TASKS["binary"].leak_limit for _ in range(500))


def test_noise_of_any_kind_makes_no_suspect() -> None:
    rng = np.random.default_rng(6)
    n = 800
    for _ in range(10):
        label = rng.random(n) < rng.uniform(0.05, 0.5)
        columns: dict[str, tuple[Column, Any]] = {f"n{i}": (FLOAT, rng.standard_t(1, n)) for i in range(5)}
        columns |= {f"s{i}": (STRING, rng.integers(0, 10**i, n).astype(str).tolist()) for i in range(1, 3)}
        columns |= {f"m{i}": (MAYBE, [None if r < i / 10 else 1.0 for r in rng.random(n)]) for i in range(1, 9)}
        assert look(label, columns) == []


def test_the_interval_is_that_of_delong() -> None:
    rng = np.random.default_rng(7)
    score, truth = at_area(0.85, 400, rng)
    found, low = area(score, truth)
    assert found == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    again = [roc_auc_score(truth[i], score[i]) for i in (rng.integers(0, 400, 400) for _ in range(1000))]
    assert (special.logit(found) - special.logit(low)) / 3 * found * (1 - found) == pytest.approx(np.std(again), rel=0.1)
    assert area(-score, truth)[0] == pytest.approx(found)
    perfect = np.arange(100) >= 80
    assert area(perfect.astype(float), perfect) == (1.0, 1 - 3 / 20)


def test_the_interval_of_a_correlation_is_fishers() -> None:
    rng = np.random.default_rng(8)
    rho, n = 0.9, 300
    low = []
    for _ in range(1000):
        x, e = rng.normal(size=n), rng.normal(size=n)
        y = stats.rankdata(rho * x + np.sqrt(1 - rho**2) * e) / n
        low.append(fit(x, y)[1])
    true = (6 / np.pi * np.arcsin(rho / 2)) ** 2  # Spearman's of two normals (Pearson 1907)
    assert (np.array(low) > true).mean() <= 0.01


def test_many_rows_are_sampled_evenly_and_the_work_is_said() -> None:
    class Steps(Silent):
        def __init__(self) -> None:
            self.seen: list[tuple[str, float, float]] = []

        def advance(self, what: str, done: float, total: float) -> None:
            self.seen.append((what, done, total))

    n = 3 * ROWS
    label = np.arange(n) % 2 == 0
    steps = Steps()
    # The last third leaks: seen only when all of the time is looked at.
    late = np.where(np.arange(n) >= n * 2 // 3, np.where(label, 1.0, 0.0), 0.5)
    found = look(label, {"late": (MAYBE, [None if v == 0.5 else v for v in late]), "b": (FLOAT, late * 0)}, progress=steps)
    assert [(s.feature, s.kind, "given (in 33% of the rows)" in s.why) for s in found] == [("late", "tells", True)]
    assert steps.seen == [("leakage scan", 1, 2), ("leakage scan", 2, 2)]


def test_anomalies_that_hardly_anybody_judged_tell_nothing() -> None:
    label = [None] * 198 + [True, False]
    assert look(label, {"x": (FLOAT, np.arange(200.0))}, task="anomaly") == []


def test_copy_of_the_label_is_named_on_few_rows_and_is_no_proof_of_a_leak() -> None:
    rng = np.random.default_rng(3)
    label = np.arange(60) % 4 == 0
    columns = {
        "recoded": (STRING, np.where(label, "J", "N").tolist()),
        "strong": (FLOAT, label + rng.normal(size=60)),
        "noise": (FLOAT, rng.normal(size=60)),
    }
    found = look(label, columns)
    assert named(found) == [("recoded", "perfect")]
    assert "without an error (60 rows, 15 of the rarer label): too few to tell an easy problem from a copy" in found[0].why
    assert leaks(found) == []
    number = rng.normal(size=80)
    assert named(
        look(number, {"copy": (FLOAT, 3 * number + 1), "near": (FLOAT, number + rng.normal(size=80) / 5)}, "regression")
    ) == [("copy", "perfect")]
    few = np.arange(60) < 8
    assert look(few, {"copy": (FLOAT, few.astype(float))}) == [], "eight rows of a label are perfect by chance"


def test_noise_on_few_rows_is_never_perfect() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        label = rng.permutation(60) < 10
        columns = {f"c{i}": (FLOAT, rng.normal(size=60)) for i in range(8)} | {
            "word": (STRING, rng.choice(["a", "b", "c"], 60).tolist())
        }
        assert look(label, columns) == []


def test_strong_honest_columns_of_a_rare_label_are_no_leak_alone_or_together() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    label = np.arange(n) % 10 == 0
    right = rng.permuted(np.arange(n) % 20 != 0)
    columns = {f"x{i}": (FLOAT, rng.normal(size=n) + np.sqrt(2) * special.ndtri(0.95) * label) for i in range(4)}
    assert roc_auc_score(label, sum(v for _, v in columns.values())) > 0.999
    late = {"late": (STRING, np.where(label == right, "yes", "no").tolist())}
    assert (label[label != right] == 0).mean() > 0.99
    assert look(label, columns | late) == []
    shared = 2 * rng.normal(size=n)  # what takes it from the one and from the other has no error of its own
    assert named(look(label, columns | {"gross": (FLOAT, label + shared), "net": (FLOAT, shared)})) == [
        ("gross + net", "together")
    ]
