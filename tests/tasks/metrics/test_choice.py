"""Choosing among many: p-values, step-down, confidence set and the winner's curse, beside `arch`, exact tests and known truths."""

import numpy as np
import pytest
from arch.bootstrap import MCS, StepM
from scipy.stats import binomtest

from loopwright.records.evaluation import Estimate
from loopwright.records.package import Output
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered, Contest

N = 800


def contest(metric: str, truth: np.ndarray, scores: np.ndarray, units: np.ndarray | None = None) -> Contest:
    given = [Answered(score, score > 0.5) for score in scores]
    return metrics.contest(metric, truth, given, seed=1, output=Output(), units=units)


def models(seed: int, noises: list[float], n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the scores [K, N] of models with so much noise."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=n)
    truth = rng.random(n) < 1 / (1 + np.exp(-2 * signal))
    return truth, np.stack([1 / (1 + np.exp(-2 * signal - noise * rng.normal(size=n))) for noise in noises])


@pytest.mark.parametrize(("more", "less"), [(3, 0), (9, 1), (12, 0), (14, 3), (30, 12), (60, 55)])
def test_p_of_a_recall_is_that_of_the_exact_sign_test(more: int, less: int) -> None:
    truth, old = np.ones(200, dtype=bool), np.zeros(200)
    new = old.copy()
    new[:more], old[more : more + less] = 1.0, 1.0
    found = contest("recall", truth, np.stack([new, old])).p(0, 1)
    exact = float(binomtest(more, more + less, alternative="greater").pvalue)
    assert 0.8 * exact <= found <= 4 * exact
    assert contest("recall", truth, np.stack([new, old])).p(1, 0) == 1.0


def test_p_counts_units_and_needs_events() -> None:
    truth, scores = models(0, [0.3, 1.5], 400)
    alone = contest("brier", truth, scores).p(0, 1)
    four_of_each = contest("brier", np.repeat(truth, 4), np.repeat(scores, 4, axis=1), np.repeat(np.arange(400), 4))
    assert four_of_each.p(0, 1) == pytest.approx(alone, rel=0.05)
    assert alone < 0.01
    assert contest("recall", np.arange(400) < 9, scores).p(0, 1) == 1.0, "nine positives are too few to tell"
    assert contest("brier", truth, np.stack([scores[0], scores[0]])).adjusted([(0, 1), (1, 0)]) == [1.0, 1.0]


@pytest.mark.parametrize("seed", range(2, 6))
def test_step_down_takes_whom_stepm_takes(seed: int) -> None:
    truth, scores = models(seed, [1.0, 0.2, 0.4, 1.0, 1.0, 1.8])
    losses = np.square(scores - truth).T
    step = StepM(losses[:, 0], losses[:, 1:], size=0.05, reps=1000, block_size=1, seed=seed)
    step.compute()
    adjusted = contest("brier", truth, scores).adjusted([(i, 0) for i in range(1, 6)])
    clear = {i for i, p in enumerate(adjusted) if not 0.02 < p < 0.1}
    assert {i for i in clear if adjusted[i] <= 0.05} == clear & set(step.superior_models)
    assert len(clear) >= 4


def test_step_down_costs_more_for_more_candidates_and_less_for_alike_ones() -> None:
    truth, scores = models(5, [1.2, 0.9] + [1.2] * 20)
    alone, among = (
        contest("brier", truth, part).adjusted([(i, 0) for i in range(1, len(part))])[0] for part in (scores[:2], scores)
    )
    alike = contest("brier", truth, np.concatenate([scores[:2], np.tile(scores[2], (20, 1))]))
    assert alone < among
    assert alone <= alike.adjusted([(i, 0) for i in range(1, 22)])[0] < among, "twenty copies are one more candidate"


@pytest.mark.parametrize("seed", range(4))
def test_confidence_set_is_that_of_hansen_lunde_and_nason(seed: int) -> None:
    truth, scores = models(seed, [0.3, 0.3, 0.35, 1.5, 2.5])
    losses = np.square(scores - truth).T
    oracle = MCS(losses, size=0.05, reps=1000, block_size=1, seed=seed)
    oracle.compute()
    assert set(contest("brier", truth, scores).confidence_set()) == set(oracle.included)
    assert not {3, 4} & set(oracle.included)


def test_figure_of_the_best_of_equal_models_loses_its_luck() -> None:
    luck, left = [], []
    for seed in range(60):
        truth, scores = models(seed, [1.0] * 12, 400)
        side = contest("average_precision", truth, scores)
        values = np.array([metrics.compute("average_precision", truth, s, s > 0.5) for s in scores])
        among = side.confidence_set()
        best = int(values.argmax())
        luck.append(values.max() - values.mean())
        left.append(luck[-1] + dict(zip(among, side.winners_curse(among), strict=True))[best])
    assert np.mean(luck) > 0.01
    assert abs(np.mean(left)) < 0.25 * np.mean(luck)
    truth, scores = models(0, [0.1, 2.5])
    assert contest("brier", truth, scores).winners_curse([0]) == [0.0], "who is surely best was not chosen by chance"


def test_luck_is_taken_off_never_added() -> None:
    truth, scores = models(1, [1.0] * 6)
    for metric, worse in (("average_precision", -1), ("log_loss", 1)):
        side = contest(metric, truth, scores)
        assert all(worse * by >= 0 for by in side.winners_curse(range(6)))
        assert any(side.winners_curse(range(6)))


def test_estimates_of_groups_are_drawn_to_their_mean_as_far_as_chance_explains() -> None:
    rng = np.random.default_rng(0)
    alike = [Estimate(v, v - 0.2, v + 0.2, 50) for v in rng.normal(1, 0.1, 100).tolist()]
    assert np.ptp([one.value for one in metrics.pooled(alike)]) < 0.25 * np.ptp([one.value for one in alike])
    apart = [Estimate(v, v - 0.001, v + 0.001, 50) for v in rng.normal(1, 0.1, 100).tolist()]
    assert [one.value for one in metrics.pooled(apart)] == pytest.approx([one.value for one in apart], abs=1e-4)
    assert metrics.pooled(apart[:2]) == apart[:2]


def test_without_rows_nobody_is_better() -> None:
    nothing = contest("average_precision", np.zeros(0, dtype=bool), np.zeros((3, 0)))
    assert nothing.adjusted([(1, 0), (2, 0)]) == [1.0, 1.0]
    assert nothing.confidence_set() == []
