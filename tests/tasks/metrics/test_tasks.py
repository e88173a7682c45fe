"""The metrics of every other task: equal to scikit-learn's, undefined where theirs are not defined, intervals that cover."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk

from loopwright.records.declarations import Column, Outcome, Table, Value
from loopwright.records.package import Output
from loopwright.tasks import metrics
from loopwright.tasks.registry import TASKS
from loopwright.tasks.task import RowData

Array = np.ndarray[Any, Any]
WORDS = ["ant", "bee", "cat", "dog", "eel"]
CLASSES = Output(task="multiclass", classes=WORDS, names=WORDS)
NUMBER = Output(task="regression")
TARGETS = Output(task="regression", names=["x", "y"])
QUANTILES = Output(task="regression", names=["q0.1", "q0.5", "q0.9"], quantiles=[0.1, 0.5, 0.9])
RANKING = Output(task="ranking")


def classes(n: int, seed: int = 0, words: int = 4) -> tuple[Array, metrics.Answered]:
    """Truth among the first `words` classes, and a model of all five that is right more often than not; scores with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, words, n)
    raw = rng.random((n, 5)) + 0.7 * (np.arange(5) == truth[:, None])
    p = np.round(raw / raw.sum(axis=1, keepdims=True), 2)
    return np.array(WORDS, dtype=object)[truth], metrics.answered(CLASSES, p.max(axis=1), p, 0.5)


CLASS_ORACLES: dict[str, Any] = {
    "accuracy": lambda t, g: sk.accuracy_score(t.astype(str), g.label.astype(str)),
    "balanced_accuracy": lambda t, g: sk.recall_score(
        t.astype(str), g.label.astype(str), labels=sorted(set(t)), average="macro"
    ),
    "macro_f1": lambda t, g: sk.f1_score(t.astype(str), g.label.astype(str), average="macro"),
    "log_loss": lambda t, g: -np.mean(np.log(np.clip(g.values[np.arange(len(t)), [WORDS.index(w) for w in t]], 2.3e-16, 1))),
    "top_k:2": lambda t, g: sk.top_k_accuracy_score(t.astype(str), g.values, k=2, labels=WORDS),
    "top_k:3": lambda t, g: sk.top_k_accuracy_score(t.astype(str), g.values, k=3, labels=WORDS),
    "recall:cat": lambda t, g: sk.recall_score(t.astype(str), g.label.astype(str), labels=["cat"], average="macro"),
    "precision:bee": lambda t, g: sk.precision_score(t.astype(str), g.label.astype(str), labels=["bee"], average="macro"),
}


@pytest.mark.parametrize("name", CLASS_ORACLES)
def test_of_several_classes_equals_scikit_learn(name: str) -> None:
    for seed in range(4):
        truth, given = classes(n=200 + 31 * seed, seed=seed)
        found = metrics.compute(name, truth, *given, output=CLASSES)
        assert found == pytest.approx(CLASS_ORACLES[name](truth, given), abs=1e-9)


def test_a_class_that_the_model_does_not_know_is_wrong_and_costs_the_most() -> None:
    truth = np.array(["fox"] * 4 + ["ant"] * 4, dtype=object)
    p = np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (8, 1))
    given = metrics.answered(CLASSES, p.max(axis=1), p, 0.5)
    found = {name: metrics.compute(name, truth, *given, output=CLASSES) for name in ("accuracy", "top_k:5", "log_loss")}
    assert found["accuracy"] == found["top_k:5"] == 0.5
    assert found["log_loss"] == pytest.approx((36.04 - math.log(0.6)) / 2, abs=0.01)


def numbers(n: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(1e6, 3, (n, 2)) * [1, 1e-6]
    return truth, truth + rng.normal(0.3, 1, (n, 2)) * [1, 0.1]


NUMBER_ORACLES: dict[str, Any] = {
    "mae": sk.mean_absolute_error,
    "rmse": sk.root_mean_squared_error,
    "r2": sk.r2_score,
    "mape": sk.mean_absolute_percentage_error,
    "mean_error": lambda t, p: np.mean(p - t),
}


@pytest.mark.parametrize("name", NUMBER_ORACLES)
def test_of_numbers_equals_scikit_learn(name: str) -> None:
    for seed in range(4):
        truth, said = numbers(150 + seed, seed)
        expected = NUMBER_ORACLES[name]
        one = metrics.compute(name, truth[:, 0], said[:, 0], output=NUMBER)
        both = metrics.compute(name, truth, said[:, 0], None, said, output=TARGETS)
        assert one == pytest.approx(expected(truth[:, 0], said[:, 0]), rel=1e-8)
        assert both == pytest.approx(expected(truth, said), rel=1e-8)
        if name in ("mae", "rmse", "r2"):
            second = metrics.compute(f"{name}:y", truth, said[:, 0], None, said, output=TARGETS)
            assert second == pytest.approx(expected(truth[:, 1], said[:, 1]), rel=1e-8)


def test_an_error_is_no_share_of_nothing() -> None:
    truth, said = np.array([0.0, 10.0, -4.0]), np.array([5.0, 11.0, -6.0])
    assert metrics.compute("mape", truth, said, output=NUMBER) == pytest.approx((0.1 + 0.5) / 2)
    assert math.isnan(metrics.compute("mape", np.zeros(3), said, output=NUMBER))


def test_of_quantiles_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, 400)
    said = rng.normal(0, 0.1, (400, 1)) + np.array([-1.28, 0.0, 1.28])

    def measured(name: str) -> float:
        return metrics.compute(name, truth, said[:, 1], None, said, output=QUANTILES)

    losses = [sk.mean_pinball_loss(truth, said[:, i], alpha=q) for i, q in enumerate(QUANTILES.quantiles)]
    assert measured("pinball:0.9") == pytest.approx(losses[2], abs=1e-12)
    assert measured("pinball") == pytest.approx(np.mean(losses), abs=1e-12)
    assert measured("coverage:0.1-0.9") == np.mean((said[:, 0] <= truth) & (truth <= said[:, 2]))
    assert measured("mae") == pytest.approx(sk.mean_absolute_error(truth, said[:, 1]))


def ranked(groups: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Truth, score and group of rows in no order: graded relevance, tied scores, some groups with nothing relevant."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), rng.integers(1, 12, groups)))
    truth = rng.integers(0, 4, len(group)) * (rng.random(groups) < 0.8)[group]
    return truth.astype(np.float64), np.round(truth + rng.normal(0, 2, len(group)), 0), np.array([f"g{g}" for g in group])


def by_group(truth: Array, score: Array, group: Array, measure: Any) -> float:
    found = [measure(truth[group == g], score[group == g]) for g in np.unique(group) if truth[group == g].any()]
    return float(np.mean(found))


def _ndcg(k: int) -> Any:
    def of(truth: Array, score: Array) -> float:
        return 1.0 if len(truth) == 1 else float(sk.ndcg_score(truth[None, :], score[None, :], k=k))

    return of


def _reciprocal(truth: Array, score: Array) -> float:
    best = score[truth > 0].max()
    return 1 / (1 + np.sum((score >= best) & (truth == 0)) if (score[truth > 0] == best).any() else math.nan)


RANK_ORACLES: dict[str, Any] = {
    "ndcg:3": _ndcg(3),
    "ndcg:10": _ndcg(10),
    "map": lambda t, s: sk.average_precision_score(t > 0, s),
    "mrr": _reciprocal,
}


@pytest.mark.parametrize("name", RANK_ORACLES)
def test_of_rankings_equals_scikit_learn_group_by_group(name: str) -> None:
    for seed in range(4):
        truth, score, group = ranked(60, seed)
        found = metrics.compute(name, truth, score, output=RANKING, groups=group)
        assert found == pytest.approx(by_group(truth, score, group, RANK_ORACLES[name]), abs=1e-9)


def test_reciprocal_rank_with_one_relevant_row_is_scikit_learns_label_ranking_precision() -> None:
    rng = np.random.default_rng(0)
    truth = np.eye(6)[rng.integers(0, 6, 50)]
    score = np.round(rng.random((50, 6)), 1)
    group = np.repeat(np.arange(50), 6)
    found = metrics.compute("mrr", truth.ravel(), score.ravel(), output=RANKING, groups=group)
    assert found == pytest.approx(sk.label_ranking_average_precision_score(truth, score))


def removed(names: list[str], truth: Array, given: metrics.Answered, output: Output, groups: Array | None = None) -> None:
    """The influence of each row (or group) is by how much the metric falls when it is removed, to first order."""
    found = TASKS[output.task].statistics(names, RowData(truth, given, output, groups=groups))
    of = np.arange(len(truth)) if groups is None else groups
    for name, statistic in zip(names, found, strict=True):
        assert abs(statistic.influence.sum()) < 1e-6 * np.abs(statistic.influence).sum() + 1e-9
        sums = [statistic.influence[of == g].sum() for g in np.unique(of)]
        less = []
        for g in np.unique(of):
            left = of != g
            part = None if groups is None else groups[left]
            less.append(statistic.value - metrics.compute(name, truth[left], *given.at(left), output=output, groups=part))
        assert np.abs(np.array(less) - sums).max() < 0.06 * np.abs(sums).max(), name


def test_influence_is_what_a_row_adds() -> None:
    truth, given = classes(150)
    removed(
        ["accuracy", "macro_f1", "balanced_accuracy", "top_k:2", "log_loss", "recall:cat", "precision:bee"],
        truth,
        given,
        CLASSES,
    )
    actual, said = numbers(150)
    wide = metrics.Answered(said[:, 0], None, said)
    removed(["mae", "rmse", "r2", "mape", "mean_error", "rmse:y"], actual, wide, TARGETS)
    rng = np.random.default_rng(2)
    counts, score = rng.poisson(2, 200).astype(np.float64), np.exp(rng.normal(0.6, 0.3, 200))
    removed(["poisson_deviance", "d2", "calibration_ratio"], counts, metrics.Answered(score), Output(task="count"))


def test_a_ranking_counts_whole_groups() -> None:
    truth, score, group = ranked(60)
    removed(["ndcg:5", "map", "mrr"], truth, metrics.Answered(score), RANKING, group)


def _covered(draw: Any, names: list[str], output: Output, trials: int = 100) -> dict[str, int]:
    truth, given, groups = draw(20_000, 999)
    target = {n: metrics.compute(n, truth, *given, output=output, groups=groups) for n in names}
    hit = dict.fromkeys(names, 0)
    for seed in range(trials):
        truth, given, groups = draw(400, seed)
        found = metrics.intervals(names, truth, *given, output=output, groups=groups, seed=seed)
        for n in names:
            hit[n] += found[n].low <= target[n] <= found[n].high
    return hit


def _draw_classes(n: int, seed: int) -> Any:
    return *classes(n, seed), None


def _draw_numbers(n: int, seed: int) -> Any:
    truth, said = numbers(n, seed)
    return truth[:, 0], metrics.Answered(said[:, 0]), None


def _draw_ranked(n: int, seed: int) -> Any:
    truth, score, group = ranked(n // 4, seed)
    return truth, metrics.Answered(score), group


@pytest.mark.parametrize(
    ("draw", "names", "output"),
    [
        (_draw_classes, ["macro_f1", "accuracy", "log_loss"], CLASSES),
        (_draw_numbers, ["mae", "rmse", "mean_error"], NUMBER),
        (_draw_ranked, ["ndcg:10", "map", "mrr"], RANKING),
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(draw: Any, names: list[str], output: Output) -> None:
    for name, hit in _covered(draw, names, output).items():  # 95 % nominal; 100 trials: a standard error of 2 %
        assert 87 <= hit <= 100, (name, hit)


def test_gaps_of_every_task() -> None:
    of = np.array(["a", "b"] * 100, dtype=object)
    error = np.where(of == "a", 1.0, -3.0)
    assert metrics.compute("mae_gap:of", np.zeros(200), error, output=NUMBER, slices={"of": of}) == pytest.approx(2)
    assert metrics.compute("bias_gap:of", np.zeros(200), error, output=NUMBER, slices={"of": of}) == pytest.approx(4)
    truth = np.array(["ant"] * 200, dtype=object)
    p = np.where((of == "a")[:, None], [0.9, 0.1, 0, 0, 0], [0.1, 0.9, 0, 0, 0])
    given = metrics.answered(CLASSES, p.max(axis=1), p, 0.5)
    assert metrics.compute("recall_gap:of", truth, *given, output=CLASSES, slices={"of": of}) == pytest.approx(1)


def test_money_of_every_task() -> None:
    value = Value(correct=5, wrong=-2, under=-3, over=-1)
    truth = np.array(["ant", "bee"], dtype=object)
    p = np.array([[1.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]])
    given = metrics.answered(CLASSES, p.max(axis=1), p, 0.5)
    assert [m.tolist() for m in metrics.money(value, CLASSES, truth, given)] == [[5, -2], [0, 0]]
    said = metrics.Answered(np.array([8.0, 13.0, 10.0]))
    assert metrics.money(value, NUMBER, np.full(3, 10.0), said)[0].tolist() == [5 - 6, 5 - 3, 5]
    found = metrics.compute("value_per_prediction", np.full(3, 10.0), said.score, output=NUMBER, value=value)
    assert found == pytest.approx((-1 + 2 + 5) / 3)
    assert {k: v.tolist() for k, v in metrics.kinds(NUMBER, np.full(3, 10.0), said).items()} == {
        "under": [True, False, False],
        "over": [False, True, False],
        "exact": [False, False, True],
    }
    assert metrics.money(value, RANKING, np.zeros(2), metrics.Answered(np.zeros(2)))[0].tolist() == [0, 0]


def test_what_a_loop_cannot_measure_is_said_when_it_is_declared() -> None:
    assert "of a regression loop" in metrics.problem("average_precision", [], NUMBER)
    assert "declares 0.1, 0.5, 0.9" in metrics.problem("pinball:0.8", [], QUANTILES)
    assert "declares none" in metrics.problem("coverage:0.1-0.9", [], NUMBER)
    assert "no target 'z'" in metrics.problem("mae:z", [], TARGETS)
    assert "whole number" in metrics.problem("ndcg:ten", [], RANKING)
    assert "not a metric" in metrics.problem("recall_gap:x", ["x"], NUMBER)
    for name, output in [
        ("pinball:0.9", QUANTILES),
        ("pinball", QUANTILES),
        ("coverage:0.1-0.9", QUANTILES),
        ("mae:y", TARGETS),
        ("ndcg:5", RANKING),
        ("top_k:2", CLASSES),
        ("recall:ant", CLASSES),
        ("mae_gap:x", NUMBER),
        ("latency_p99_ms", RANKING),
    ]:
        assert metrics.problem(name, ["x"], output) == "", name


def test_every_task_has_a_primary_metric_that_it_measures() -> None:
    for output in (Output(), CLASSES, NUMBER, QUANTILES, TARGETS, RANKING, Output(task="anomaly")):
        names = metrics.measured(output)
        assert metrics.primary(output.task) in names
        assert set(metrics.summary(output)) <= set(names)
        assert not [why for n in names if (why := metrics.problem(n, [], output))]


def test_outcomes_are_asked_like_outputs() -> None:
    landed = Table(
        "landed", columns={"k": Column("string"), "at": Column("timestamp"), "y": Column("float")}, key=["k"], event_time="at"
    )
    outcome = Outcome(landed, {"y": "y", "z": "y * 2"}, task="regression")
    assert metrics.problem("mae:z", [], outcome) == ""
    assert "declares y, z" in metrics.problem("mae:q", [], outcome)


def test_the_guide_names_every_metric() -> None:
    text = (Path(__file__).parents[3] / "docs" / "guides" / "tasks.md").read_text()
    said = {name.partition(":")[0] for name in re.findall(r"`([a-z_0-9]+(?::[A-Z-]+)?)`", text)}
    assert {name for table in (metrics.METRICS, metrics.GAPS) for name in table} <= said
    assert {name for name in said if name.endswith("_gap")} <= set(metrics.GAPS)


COUNT_ORACLES: dict[str, Any] = {
    "poisson_deviance": sk.mean_poisson_deviance,
    "d2": lambda t, s: sk.d2_tweedie_score(t, s, power=1),
    "mae": sk.mean_absolute_error,
    "calibration_ratio": lambda t, s: s.sum() / t.sum(),
}


@pytest.mark.parametrize("name", COUNT_ORACLES)
def test_metrics_of_counts_equal_scikit_learn(name: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth, score = rng.poisson(2, 300).astype(np.float64), np.exp(rng.normal(0.6, 0.3, 300))
        found = metrics.compute(name, truth, score, output=Output(task="count"))
        assert found == pytest.approx(COUNT_ORACLES[name](truth, score), abs=1e-9)


def test_poisson_deviance_of_a_score_below_zero_is_large_and_finite() -> None:
    found = metrics.compute("poisson_deviance", np.array([1.0, 0.0]), np.array([-1.0, 0.5]), output=Output(task="count"))
    assert 30 < found < 100
