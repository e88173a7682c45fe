"""Worlds that rows are drawn from: what a metric is there is known from many rows, so that one can count how often an interval has it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from loopwright.records.package import Output
from loopwright.tasks.metrics import Answered

Array = np.ndarray[Any, Any]
Rng = np.random.Generator

WORDS = ["ant", "bee", "cat", "dog", "eel"]
QUANTILES = Output(task="regression", names=["q0.1", "q0.5", "q0.9"], quantiles=[0.1, 0.5, 0.9])
CLASSES = Output(task="multiclass", classes=WORDS, names=WORDS)


class Rows(NamedTuple):
    """N rows of a world: truth, answers, the unit of each row, its group of a ranking, its slices."""

    truth: Array
    given: Answered
    units: Array | None = None
    groups: Array | None = None
    slices: dict[str, Array] | None = None


class World(NamedTuple):
    """Rows of some number of units; `exact` has the metrics that are known without drawing."""

    draw: Callable[[Rng, int], Rows]
    output: Output = Output()
    exact: dict[str, float] = {}  # never changed


def clusters(rng: Rng, count: int, few: int = 20, many: int = 100) -> Array:
    """The unit of each row of units with 20 to 100 rows each."""
    return np.repeat(np.arange(count), rng.integers(few, many + 1, count))


def binary(rate: float, dependence: float = 0.0, few: int = 20) -> World:
    """Positives at a rate, found by a score of AUC about .85; with `dependence` rows of a unit have a part of score and outcome in common."""

    def draw(rng: Rng, n: int) -> Rows:
        units = clusters(rng, n, few) if dependence else np.arange(n)
        common = rng.normal(0, 1, int(units.max()) + 1)[units]
        risk = dependence**0.5 * common + (1 - dependence) ** 0.5 * rng.normal(0, 1, len(units))
        logit = np.log(rate / (1 - rate)) - 1 + 1.8 * risk
        truth = rng.random(len(units)) < 1 / (1 + np.exp(-logit))
        score = 1 / (1 + np.exp(-(logit + 0.3)))
        return Rows(truth, Answered(score, score >= min(0.5, 2 * rate)), units)

    return World(draw)


def multiclass(dependence: float = 0.0) -> World:
    """Five classes, the rarest of a twentieth of the rows, right in about 70 %."""

    def draw(rng: Rng, n: int) -> Rows:
        units = clusters(rng, n) if dependence else np.arange(n)
        truth = rng.choice(5, len(units), p=[0.4, 0.25, 0.2, 0.1, 0.05])
        help_ = dependence**0.5 * rng.normal(0, 1, int(units.max()) + 1)[units] + 1
        raw = rng.gumbel(0, 1, (len(units), 5)) + (2 * help_)[:, None] * (np.arange(5) == truth[:, None])
        p = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
        label = np.array(WORDS, dtype=object)[p.argmax(axis=1)]
        return Rows(np.array(WORDS, dtype=object)[truth], Answered(p.max(axis=1), label, p), units)

    return World(draw, CLASSES)


def regression(error: Callable[[Rng, int], Array], dependence: float = 0.0, exact: dict[str, float] | None = None) -> World:
    """Numbers around 10 with errors of some distribution; with `dependence` rows of a unit share a part of their error."""

    def draw(rng: Rng, n: int) -> Rows:
        units = clusters(rng, n) if dependence else np.arange(n)
        off = error(rng, len(units))
        if dependence:
            off = (1 - dependence) ** 0.5 * off + dependence**0.5 * error(rng, int(units.max()) + 1)[units]
        truth = rng.normal(10, 3, len(units))
        return Rows(truth, Answered(truth + off), units)

    return World(draw, Output(task="regression"), exact or {})


def lognormal(sigma: float) -> World:
    """Errors whose logarithm is normal: a few rows make most of the error."""
    exact = {"mae": float(np.exp(sigma**2 / 2)), "rmse": float(np.exp(sigma**2)), "mean_error": float(np.exp(sigma**2 / 2))}
    return regression(lambda rng, n: rng.lognormal(0, sigma, n), exact=exact)


def quantile(dependence: float = 0.0) -> World:
    """Three quantiles of skewed numbers."""

    def draw(rng: Rng, n: int) -> Rows:
        units = clusters(rng, n) if dependence else np.arange(n)
        common = rng.normal(0, 1, int(units.max()) + 1)[units]
        size = np.exp(0.5 * (dependence**0.5 * common + (1 - dependence) ** 0.5 * rng.normal(0, 1, len(units))))
        truth = size * rng.exponential(1, len(units))
        said = (
            size[:, None] * np.array([0.1, 0.7, 2.2])[None, :] if not dependence else np.tile([0.1, 0.7, 2.4], (len(units), 1))
        )
        return Rows(truth, Answered(said[:, 1], None, said), units)

    return World(draw, QUANTILES)


def ranking(dependence: float = 0.0) -> World:
    """Groups of 2 to 12 rows of relevance 0 to 3."""

    def draw(rng: Rng, n: int) -> Rows:
        owner = clusters(rng, n, 2, 10) if dependence else np.arange(n)
        code = np.repeat(np.arange(len(owner)), rng.integers(2, 13, len(owner)))
        skill = np.exp(dependence**0.5 * rng.normal(0, 1, int(owner.max()) + 1)[owner])[code]
        truth = rng.integers(0, 4, len(code)).astype(np.float64)
        score = truth * skill + rng.normal(0, 2, len(code))
        return Rows(truth, Answered(score), owner[code] if dependence else None, code)

    return World(draw, Output(task="ranking"))


def counted(dependence: float = 0.0) -> World:
    """Counts of mean 2, over-dispersed."""

    def draw(rng: Rng, n: int) -> Rows:
        units = clusters(rng, n) if dependence else np.arange(n)
        known = rng.normal(0, 0.5, len(units))
        hidden = rng.normal(0, 0.4, int(units.max()) + 1)[units]
        truth = rng.poisson(2 * np.exp(known + hidden)).astype(np.float64)
        return Rows(truth, Answered(2 * np.exp(known + 0.08)), units)

    return World(draw, Output(task="count"))
