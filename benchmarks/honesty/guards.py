"""Claims about the gate: how often a guard calls an equal package worse, and how often it sees a loss that it says it would see."""

from collections.abc import Iterator

import numpy as np
from benchmarks.honesty.claims import Claim, Verdict

from loopwright.base.arrays import Array
from loopwright.deploy.guards import GuardComparison, doubtful, verdicts
from loopwright.records.evaluation import standard_error
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered

AP = "average_precision"
CHAIN = [0.6, 0.64, 0.68, 0.72, 0.76, 0.8, 0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.08]
"""Noise of the scores of a first package and twelve after it, each about 1.5 % of average precision worse."""


def world(rng: np.random.Generator, n: int, *noises: float) -> Iterator[tuple[Array, Answered]]:
    """Labels [n] of one draw of rows, and the answers of a model for each noise of its score."""
    signal = rng.normal(size=n)
    truth = rng.random(n) < 1 / (1 + np.exp(1.6 - 1.6 * signal))
    for noise in noises:
        score = 1 / (1 + np.exp(-signal - noise * rng.normal(size=n)))
        yield truth, Answered(score, score > 0.5)


def comparison(rng: np.random.Generator, n: int, old: float, new: float, metric: str = AP) -> GuardComparison:
    """A guard without declared tolerance on n rows, on which two models have scores with so much noise."""
    (truth, incumbent), (_, challenger) = world(rng, n, old, new)
    difference = metrics.differences([metric], truth, challenger, incumbent, seed=1)[metric]
    own = metrics.intervals([metric], truth, *incumbent, seed=1)[metric]
    margin = max(standard_error(own), 0.01 * own.value)
    return GuardComparison("guard", "what serves", n, difference, margin, 1, True)


def last_released(rng: np.random.Generator, rows: int) -> int:
    """The last package of CHAIN that a gate with an anchor releases."""
    serving = 0
    for step in range(1, len(CHAIN)):
        pairs = [comparison(rng, rows, CHAIN[old], CHAIN[step]) for old in {0, serving}]
        if not any(v == "worse" or doubtful(c, v, "release") for c, v in zip(pairs, verdicts(pairs), strict=True)):
            serving = step
    return serving


def _equal(metric: str, rows: int, count: int) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        compared = [comparison(rng, rows, 0.6, 0.6, metric)._replace(margin=0.0, whole=False) for _ in range(count)]
        return Verdict(True, "worse" not in verdicts(compared))

    name = f"guard, equal package, {f'{count} slices of ' if count > 1 else ''}{rows:,} rows: {metric}"
    return Claim(name, "is not called worse", trial, 1000 if count == 1 else 200, nominal=0.975, least=0.975)


def _covers(metric: str, rows: int) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        found = comparison(rng, rows, 0.6, 0.6, metric).difference
        return Verdict(not found.too_few, found.low <= 0 <= found.high)

    return Claim(f"paired difference of equal packages, {rows:,} rows: {metric}", "lies in the interval", trial, definite=0.9)


def _sees(rows: int) -> Claim:
    losses = metrics.compute(AP, *_large(0.6)) - metrics.compute(AP, *_large(1.0))

    def trial(rng: np.random.Generator) -> Verdict:
        found = comparison(rng, rows, 0.6, 1.0)
        seen = found._replace(
            margin=max(0.0, losses - found.smallest_seen + found.margin)
        )  # the margin with which the loss is the smallest seen
        return Verdict(True, verdicts([seen]) == ["worse"])

    name = f"guard, loss of the smallest size that {rows:,} rows see"
    return Claim(name, "is called worse", trial, 1000, nominal=0.8, least=0.78)


def _large(noise: float) -> tuple[Array, Array, Array | None]:
    [(truth, given)] = world(np.random.default_rng(0), 400_000, noise)
    return truth, given.score, given.label


def _chain(rows: int) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        return Verdict(True, last_released(rng, rows) < 8)

    name = f"guard, 12 packages, each 1.5 % worse, {rows:,} rows"
    return Claim(name, "the eighth is never in service", trial, 100, nominal=0.9, least=0.8)


CLAIMS = [
    *(_equal(metric, 300, 1) for metric in (AP, "recall", "brier", "roc_auc")),
    _equal("recall", 150, 40),
    *(_covers(metric, rows) for metric in (AP, "recall", "brier", "roc_auc", "f1") for rows in (300, 3000)),
    _sees(2000),
    _chain(2000),
]
