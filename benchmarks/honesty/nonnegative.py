"""Quantities that cannot be below zero: intervals of calibration error, gaps between groups and size of a bias."""

from collections.abc import Callable

import numpy as np
from benchmarks.honesty.claims import Claim, Verdict

from loopwright.records.evaluation import Estimate
from loopwright.records.package import Output
from loopwright.tasks import metrics

Rng = np.random.Generator


def _calibration(name: str, n: int, off: float) -> Claim:
    """Scores that are off by up to `off` in the middle."""

    def chances(score: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(score + 4 * off * score * (1 - score), 0, 1))

    many = np.random.default_rng(1).beta(1, 3, 1_000_000)
    bins = np.minimum((many * 10).astype(np.int64), 9)
    true = float(np.abs(np.bincount(bins, chances(many) - many)).sum() / len(many))

    def trial(rng: Rng) -> Verdict:
        score = rng.beta(1, 3, n)
        truth = rng.random(n) < chances(score)
        found = metrics.intervals(["calibration_error"], truth, score, score >= 0.5, seed=0)["calibration_error"]
        return Verdict(True, found.low <= true <= found.high)

    return Claim(f"calibration error, {name}", "the 95 % interval has the truth", trial, definite=1.0)


def _gap(name: str, groups: list[tuple[int, float]]) -> Claim:
    """Groups of so many positives of which a share is recalled."""
    sizes, rates = zip(*groups, strict=True)
    of = np.repeat([f"g{i}" for i in range(len(groups))], sizes)

    def trial(rng: Rng) -> Verdict:
        label = rng.random(len(of)) < np.repeat(rates, sizes)
        truth = np.ones(len(of), dtype=bool)
        found = metrics.intervals(["recall_gap:of"], truth, label.astype(float), label, seed=0, slices={"of": of})
        estimate = found["recall_gap:of"]
        return Verdict(True, estimate.low <= max(rates) - min(rates) <= estimate.high)

    return Claim(f"recall gap, {name}", "the 95 % interval has the truth", trial, definite=1.0)


def _bias(off: float) -> Claim:
    def trial(rng: Rng) -> Verdict:
        found = metrics.intervals(["bias"], rng.normal(0, 1, 200), np.full(200, off), seed=0, output=Output(task="regression"))
        return Verdict(True, found["bias"].low <= off <= found["bias"].high)

    return Claim(f"bias of {off:g} deviations, 200 rows", "the 95 % interval has the truth", trial, definite=1.0)


def _surely(name: str, threshold: float, trial_of: Callable[[Rng], Estimate]) -> Claim:
    def trial(rng: Rng) -> Verdict:
        found = trial_of(rng)
        return Verdict(True, found.low <= threshold and found.low <= found.value <= found.high)

    return Claim(name, f"it is not surely above {threshold:g}", trial, nominal=0.975, least=0.95, definite=1.0)


def _perfect(rng: Rng) -> Estimate:
    score = rng.beta(1, 3, 1000)
    return metrics.intervals(["calibration_error"], rng.random(1000) < score, score, score >= 0.5, seed=0)["calibration_error"]


CLAIMS = [
    _surely("calibrated model, 1,000 rows", 0.02, _perfect),
    _calibration("none, 1,000 rows", 1000, 0.0),
    _calibration("small, 1,000 rows", 1000, 0.05),
    _calibration("large, 1,000 rows", 1000, 0.15),
    _calibration("large, 300 rows", 300, 0.15),
    _gap("30 equal groups of 60", [(60, 0.8)] * 30),
    _gap("5 equal groups of 200", [(200, 0.8)] * 5),
    _gap("2 groups of 200 and 300 that differ", [(200, 0.8), (300, 0.7)]),
    _gap("10 groups of 150 from .6 to .9", [(150, 0.6 + i / 30) for i in range(10)]),
    _gap("12 rows that are mostly missed among 3,000", [(1000, 0.86), (1000, 0.86), (1000, 0.84), (12, 0.05)]),
    _bias(0.0),
    _bias(0.1),
    _bias(0.5),
]
