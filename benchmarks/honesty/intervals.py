"""95 % intervals of metrics: how often they have the truth, by task, by number of rows, with units of many rows, with few, rare or heavy ones."""

from functools import cache

import numpy as np
from benchmarks.honesty.claims import Claim, Verdict
from benchmarks.honesty.worlds import (
    World,
    binary,
    counted,
    lognormal,
    multiclass,
    quantile,
    ranking,
    regression,
)

from loopwright.records.evaluation import Estimate
from loopwright.tasks import metrics

LARGE = 60_000

BINARY = ["average_precision", "roc_auc", "log_loss", "brier", "accuracy", "precision", "recall", "f1", "positive_rate"]
CLASSES = ["log_loss", "accuracy", "balanced_accuracy", "macro_f1", "top_k:3", "recall:eel"]
NUMBERS = ["mae", "rmse", "r2", "mean_error"]
QUANTILES = ["pinball", "pinball:0.9", "coverage:0.1-0.9"]
RANKING = ["ndcg:10", "map", "mrr"]
COUNTS = ["poisson_deviance", "d2", "mean_error", "calibration_ratio"]


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    """Errors with a bias of half their deviation."""
    return rng.normal(0.5, 1, n)


def students(rng: np.random.Generator, n: int) -> np.ndarray:
    """Errors whose fourth moment is infinite."""
    return rng.standard_t(3, n)


CELLS: list[tuple[str, World, int, list[str]]] = [
    ("binary, 500 rows", binary(0.2), 500, BINARY),
    ("binary, 1,000 rows, 2 % positive", binary(0.02), 1000, BINARY),
    ("binary, 60 customers of 20 to 100 rows", binary(0.2, 0.3), 60, BINARY),
    ("binary, 25 customers of 20 to 100 rows", binary(0.2, 0.3), 25, BINARY),
    ("binary, 10 customers of 20 to 100 rows", binary(0.2, 0.3), 10, BINARY),
    ("five classes, 400 rows", multiclass(), 400, CLASSES),
    ("five classes, 60 customers", multiclass(0.3), 60, CLASSES),
    ("numbers, normal errors, 200 rows", regression(normal), 200, NUMBERS),
    ("numbers, normal errors, 60 customers", regression(normal, 0.3), 60, NUMBERS),
    ("numbers, normal errors, 10 customers", regression(normal, 0.3), 10, NUMBERS),
    ("numbers, lognormal errors (1), 300 rows", lognormal(1), 300, NUMBERS[:2]),
    ("numbers, lognormal errors (2), 2,000 rows", lognormal(2), 2000, NUMBERS[:2]),
    ("numbers, t errors (3), 500 rows", regression(students, exact={"rmse": 3**0.5, "mean_error": 0.0}), 500, NUMBERS),
    ("three quantiles, 400 rows", quantile(), 400, QUANTILES),
    ("three quantiles, 60 customers", quantile(0.3), 60, QUANTILES),
    ("ranking, 100 groups", ranking(), 100, RANKING),
    ("ranking, 40 customers of 2 to 10 groups", ranking(0.3), 40, RANKING),
    ("counts, 300 rows", counted(), 300, COUNTS),
    ("counts, 60 customers", counted(0.3), 60, COUNTS),
]


@cache
def _truth(cell: int) -> dict[str, float]:
    """What the metrics of a cell's world are: as known, or the mean of many rows."""
    _, world, size, names = CELLS[cell]
    rng = np.random.default_rng(99)
    rows = world.draw(rng, size)
    units = size * max(1, LARGE // len(rows.truth))
    found = []
    for _ in range(4):
        rows = world.draw(rng, units)
        found.append({n: metrics.compute(n, rows.truth, *rows.given, output=world.output, groups=rows.groups) for n in names})
    return {name: world.exact.get(name, float(np.mean([one[name] for one in found]))) for name in names}


@cache
def _drawn(cell: int, seed: int) -> dict[str, Estimate]:
    _, world, size, names = CELLS[cell]
    rows = world.draw(np.random.default_rng([seed, cell]), size)
    return metrics.intervals(
        names, rows.truth, *rows.given, seed=seed % 4, output=world.output, groups=rows.groups, units=rows.units
    )


def _claim(cell: int, name: str) -> Claim:
    what = CELLS[cell][0]

    def trial(rng: np.random.Generator) -> Verdict:
        found = _drawn(cell, int(rng.bit_generator.seed_seq.entropy[0]))[name]  # type: ignore[attr-defined]  # all metrics of one draw
        definite = not found.too_few and not np.isnan(found.value)
        return Verdict(definite, found.low <= _truth(cell)[name] <= found.high)

    return Claim(f"{what}: {name}", "the 95 % interval has the truth", trial)


CLAIMS = [_claim(cell, name) for cell, (_, _, _, names) in enumerate(CELLS) for name in names]
