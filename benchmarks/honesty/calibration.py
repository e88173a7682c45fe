"""Claims about money: what a value table's threshold earns of what is attainable, with scores that are probabilities and that are not."""

from functools import partial

import lightgbm as lgb
import numpy as np
from benchmarks.honesty.claims import Claim, Verdict
from sklearn.linear_model import LogisticRegression

from loopwright.base.arrays import Array
from loopwright.develop.calibrate import Unseen, choose, unseen
from loopwright.develop.fit import TrainingData, fit, predict
from loopwright.develop.output import Goal
from loopwright.graph.calibration import calibrated
from loopwright.records.declarations import Candidate, Value
from loopwright.records.package import Calibration

EVEN = Value(true_positive=3, false_positive=-1)
COSTLY = Value(true_positive=1, false_positive=-3)
DEAR = Value(true_positive=1, false_positive=-9)
FRESH = 20_000
BOOSTED = Candidate(
    "boosted", partial(lgb.LGBMClassifier, n_estimators=150, num_leaves=15, min_child_samples=10, verbose=-1, n_jobs=1)
)
LINEAR = Candidate("linear", LogisticRegression)


def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Columns [n, 6] and the true probability of each row [n]."""
    x = rng.normal(size=(n, 6))
    return x.astype(np.float32), 1 / (1 + np.exp(1.2 - 1.2 * x[:, 0] - 0.8 * x[:, 1] - 0.4 * x[:, 2]))


def attained(
    rng: np.random.Generator, candidate: Candidate, rows: int, value: Value, *, plain: bool = False
) -> tuple[float, float]:
    """Expected money per fresh row over doing nothing by the chosen threshold, and by the best one for these scores.

    `plain`: by the value table's threshold on the scores as they are.
    """
    matrix, p = draw(rng, rows)
    data, goal = TrainingData(matrix, rng.random(rows) < p), Goal()
    part, border = rng.permutation(rows) % 3, value.threshold()
    made = Calibration(threshold=border)
    if not plain:
        folds = [(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(3)]
        place, score = unseen(candidate, candidate.estimator(), data, folds, goal)
        made = choose(Unseen(score, data.truth[place], place), value, border, seed=0)
    estimator, _ = fit(candidate, candidate.estimator(), data, goal)
    fresh, true = draw(np.random.default_rng(0), FRESH)
    score = calibrated(made, predict(estimator, fresh, goal).score)
    gain = true * (value.true_positive - value.false_negative) + (1 - true) * (value.false_positive - value.true_negative)
    best = max(0.0, float(np.cumsum(gain[np.argsort(-score)]).max()))
    return float(gain[score >= made.threshold].sum()) / FRESH, best / FRESH


def _share(name: str, candidate: Candidate, rows: int, value: Value, share: float, least: float = 0.93) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        got, best = attained(rng, candidate, rows, value)
        return Verdict(True, got >= share * best)

    return Claim(f"value of {name}, {rows:,} rows", f"is {share:.0%} of the attainable or more", trial, 100, least=least)


def _no_loss(name: str, candidate: Candidate, rows: int) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        return Verdict(True, attained(rng, candidate, rows, DEAR)[0] >= -0.002)

    return Claim(f"value of {name}, dear false positives, {rows:,} rows", "is not below that of doing nothing", trial, 100)


def _untouched(rows: int, slope: float) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        odds = rng.normal(-1, 1.5, rows)
        score, true = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-slope * odds))
        made = choose(Unseen(score, rng.random(rows) < true, np.arange(rows)), EVEN, EVEN.threshold(), seed=0)
        return Verdict(True, bool(made.method) is (slope != 1))

    right = "are calibrated" if slope != 1 else "stay as they are"
    name = f"scores, {'twice too sure' if slope != 1 else 'right'}, {rows:,} rows"
    return Claim(name, right, trial, 200, least=0.9)


CLAIMS = [
    _share("boosted trees", BOOSTED, 1000, EVEN, 0.9),
    _share("boosted trees, costly false positives", BOOSTED, 4000, COSTLY, 0.7),
    _share("a logistic model, costly false positives", LINEAR, 2000, COSTLY, 0.8),
    _share("a logistic model", LINEAR, 2000, EVEN, 0.97),
    _share("a logistic model", LINEAR, 200, EVEN, 0.85),
    *(_no_loss("boosted trees", BOOSTED, rows) for rows in (200, 2000)),
    _no_loss("a logistic model", LINEAR, 500),
    _untouched(500, 1.0),
    _untouched(3000, 1.0),
    _untouched(1000, 0.5),
]
