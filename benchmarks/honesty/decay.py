"""Claims about decay: how often an unchanged model is called decayed, in a window and in a year, and how often a worse one is."""

from datetime import timedelta

import numpy as np
from benchmarks.honesty.claims import Claim, Verdict

from loopwright.base.arrays import Array
from loopwright.monitor.decay import Decay, decay_check, decay_level
from loopwright.records.evaluation import Estimate
from loopwright.records.windows import DecayCheck
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered

AUC = "roc_auc"
DECAY = Decay(AUC, 0.05, decay_level(timedelta(days=7)))
WEEKS = 52


def rows(rng: np.random.Generator, n: int, strength: float) -> tuple[Array, Answered]:
    """Labels [n] and answers: one in four is positive; a strength of 1 gives a ROC AUC of .80, .75 gives .74."""
    signal = rng.normal(size=n)
    truth = rng.random(n) < 1 / (1 + np.exp(1.4 - 1.5 * strength * signal))
    score = 1 / (1 + np.exp(-signal))
    return truth, Answered(score, score > 0.5)


def measured(rng: np.random.Generator, n: int, shock: float = 0.0, strength: float = 1.0, metric: str = AUC) -> Estimate:
    """The metric of n rows that share a shock: a deviation of the logarithm of the strength."""
    truth, answers = rows(rng, n, strength * float(np.exp(shock * rng.normal())))
    return metrics.intervals([metric], truth, *answers, seed=0)[metric]


def life(rng: np.random.Generator, promised: Estimate, strengths: Array, n: int, shock: float) -> list[DecayCheck]:
    """The checks of windows of n rows, one for each strength."""
    checks: list[DecayCheck] = []
    for strength in strengths.tolist():
        checks.append(decay_check(measured(rng, n, shock, strength), promised, DECAY, checks, checks))
    return checks


def _unchanged(validation: int, n: int, metric: str = AUC) -> Claim:
    decay = DECAY._replace(metric=metric)

    def trial(rng: np.random.Generator) -> Verdict:
        check = decay_check(measured(rng, n, metric=metric), measured(rng, validation, metric=metric), decay)
        return Verdict(True, not check.cause)

    name = f"decay, unchanged model, validation of {validation:,} rows, a window of {n:,}: {metric}"
    level = 1 - DECAY.level
    return Claim(name, "has not decayed", trial, 2000, nominal=level, least=level)


def _stationary(validation: int, n: int, shock: float, cause: str, nominal: float) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        checks = life(rng, measured(rng, validation, shock), np.ones(WEEKS), n, shock)
        return Verdict(True, all(check.cause != cause for check in checks))

    shocks = f"shocks of {shock}" if shock else "no shocks"
    name = f"decay, stationary year, {shocks}, validation of {validation:,}, windows of {n:,}: {cause}"
    return Claim(name, "nothing decays in the year", trial, 300, nominal=nominal, least=nominal)


def _dropped(validation: int, n: int, strength: float, least: float) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        checks = life(rng, measured(rng, validation), np.array([*[1.0] * 8, strength]), n, 0.0)
        return Verdict(True, checks[-1].cause == "drop")

    name = f"decay, signal of {strength:.0%} in the ninth window, validation of {validation:,}, windows of {n:,}"
    return Claim(name, "has decayed in that window", trial, 200, nominal=least, least=least)


def _slow(validation: int, n: int, last: float, least: float) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        checks = life(rng, measured(rng, validation), np.linspace(1, last, WEEKS), n, 0.0)
        return Verdict(True, any(check.cause for check in checks))

    name = f"decay, signal falls to {last:.0%} over a year, validation of {validation:,}, windows of {n:,}"
    return Claim(name, "has decayed within the year", trial, 200, nominal=least, least=least)


CLAIMS = [
    _unchanged(300, 500),
    _unchanged(300, 500, "brier"),
    _unchanged(300, 500, "recall"),
    _unchanged(2000, 2000),
    *(_stationary(300, 500, shock, "drop", 0.8) for shock in (0.0, 0.15, 0.3)),
    *(_stationary(2000, 2000, shock, "drop", 0.8) for shock in (0.15, 0.3)),
    *(_stationary(validation, 500, shock, "harm", 0.95) for validation in (300, 2000) for shock in (0.0, 0.15, 0.3)),
    _dropped(2000, 2000, 0.5, 0.9),
    _dropped(300, 500, 0.2, 0.8),
    _slow(2000, 2000, 0.3, 0.9),
]
