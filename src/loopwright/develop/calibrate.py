"""Scores that are probabilities, and the threshold from which acting on them pays.

A value table sets the threshold of scores that are probabilities (Elkan 2001); those of boosted trees are not. So where it does, each
candidate is fitted again on folds of the training rows (`tasks.split.folds`), and its scores of the rows that these were not fitted
on decide. Validation rows decide nothing: on them is measured what is promised.

sigmoid   log odds of the score, times a, plus c (Platt 1999, Probabilistic outputs for support vector machines, with his labels)
beta      a ln s - b ln(1 - s) + c with a, b >= 0 (Kull, Silva Filho & Flach 2017, Beta calibration)
isotonic  any rising line (Zadrozny & Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates)

They are a ladder: each takes over only if its log loss is surely lower than that of the best before it, in pairs on rows that it was not
fitted on. The same holds for a threshold that earned more there than the value table's. No score is acted on where acting
lost money, by more than a standard error.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid
from loopwright.base.text import interval
from loopwright.develop.fit import TrainingData, fit, last, predict
from loopwright.develop.output import Goal
from loopwright.graph.calibration import SMALLEST, calibrated
from loopwright.records.declarations import Candidate, Outcome, Scope, Value
from loopwright.records.evaluation import Estimate, standard_error
from loopwright.records.package import Calibration
from loopwright.tasks import metrics
from loopwright.tasks.registry import TASKS
from loopwright.tasks.statistic import TINY
from loopwright.tasks.task import Border

MIN_OF_A_LABEL, MIN_ISOTONIC = 30, 1000
"""Rows of the rarer label (and units) from which on a calibration is tried, and one of any shape is."""

NEVER = float(np.nextafter(1.0, 2.0))
"""A threshold that no score reaches."""

_FOLDS = 5
_UNREGULARISED = 1e9


class Unseen(NamedTuple):
    """Scores [N] of training rows by models that were not fitted on them, with their truth, bool [N], and their units [N]."""

    score: Array
    truth: Array
    units: Array

    def at(self, rows: Array) -> "Unseen":
        """Some of the rows (a mask)."""
        return Unseen(*(part[rows] for part in self))


def unseen(
    candidate: Candidate, estimator: Any, training_data: TrainingData, folds: Sequence[tuple[Array, Array]], goal: Goal
) -> tuple[Array, Array]:
    """Rows (indices) and their scores [N] by copies of an unfitted estimator; folds are rows to fit on and rows to score.

    Raises DeclarationInvalid where a copy cannot be fitted or cannot score.
    """
    scores = []
    if not folds:
        raise DeclarationInvalid(
            f"candidate {candidate.name}", [("estimator", "too few training rows for folds with both labels")]
        )
    for fitted, judged in folds:
        copy, _ = fit(candidate, clone(estimator), training_data.at(fitted), goal)
        try:
            scores.append(predict(copy, training_data.matrix[judged], goal).score)
        except (ValueError, IndexError) as error:
            raise DeclarationInvalid(f"candidate {candidate.name}", [("estimator", f"cannot predict: {error}")]) from error
        if no_number := int((~np.isfinite(scores[-1])).sum()):
            why = f"{no_number:,} of {len(judged):,} rows give no number"
            raise DeclarationInvalid(f"candidate {candidate.name}", [("estimator", why)])
    return np.concatenate([judged for _, judged in folds]), np.concatenate(scores)


def calibrates_itself(estimator: Any) -> bool:
    """Whether a calibration is declared already."""
    return isinstance(last(estimator), CalibratedClassifierCV)


def threshold(scope: Scope, outcome: Outcome, score: Array, share: float) -> float:
    """The score from which a label is positive, by `score` [N] and the `share` of positives; 0 for tasks without a threshold."""
    decide = TASKS[outcome.task].threshold
    pays = scope.value.threshold() if scope.value.is_set else None
    return 0.0 if decide is None else float(decide(Border(score, share, outcome.alert_share, pays)))


def choose(rows: Unseen, value: Value, border: float, *, seed: int) -> Calibration:
    """The calibration and the threshold; `border` is that of the value table."""
    rarer, units = int(min(rows.truth.sum(), (~rows.truth).sum())), len(np.unique(rows.units))
    if min(rarer, units) < MIN_OF_A_LABEL:
        few = f"{units} units" if units < rarer else f"{rarer} of the rarer label"
        why = f"too few to tell: {few} among {len(rows.truth):,} training rows not fitted on, of {MIN_OF_A_LABEL}"
        return _threshold(Calibration(why=why, threshold=border), rows, rows.score, value, seed)
    fold = _fold_of(rows.units, seed)
    scores, changes, best = {"": rows.score}, {}, ""
    for name, make in _METHODS.items():
        crossed = _crossed(make, rows, fold) if name != "isotonic" or rarer >= MIN_ISOTONIC else None
        if crossed is None:
            continue
        scores[name] = crossed
        changes[name] = _change(scores, name, "", rows)
        step = changes[name] if not best else _change(scores, name, best, rows)
        if step.high < 0 and not step.too_few:
            best = name
    losses = {name: float(_loss(score, rows.truth).mean()) for name, score in scores.items()}
    chosen = (_METHODS[best](rows) if best else None) or Calibration(threshold=border)
    nearest = best or min(changes, key=lambda name: losses[name], default="")
    why = f"log loss {losses['']:.4f} to {losses[best]:.4f}" if best else "no calibration surely lowers the log loss"
    why += f", {nearest} {interval(changes[nearest], sign=True)}" if nearest else ""
    why += f" on {len(rows.truth):,} training rows not fitted on"
    made = msgspec.structs.replace(chosen, threshold=border, why=why, log_loss=losses)
    return _threshold(made, rows, scores[best], value, seed)


def _threshold(made: Calibration, rows: Unseen, crossed: Array, value: Value, seed: int) -> Calibration:
    """The calibration with its threshold. `crossed` [N] are scores calibrated by fits on other rows."""
    gain = np.where(rows.truth, value.true_positive - value.false_negative, value.false_positive - value.true_negative)
    border, by, fold = made.threshold, made.threshold_by, _fold_of(rows.units, seed)
    own = np.empty(len(gain))
    for k in np.unique(fold):
        own[fold == k] = _best(crossed[fold != k], gain[fold != k])
    earned, others = (np.where(crossed >= by_fold, gain, 0.0) for by_fold in (border, own))
    more = metrics.total(others - earned, rows.units, seed)
    if more.low > 0 and not more.too_few:
        border, by, earned = _best(calibrated(made, rows.score), gain), "the money of those rows", others
    total = metrics.total(earned, rows.units, seed)
    if total.value < -standard_error(total) or (border != made.threshold and total.value <= 0):
        border, by = NEVER, "the money of those rows, which acting loses"
    return msgspec.structs.replace(made, threshold=border, threshold_by=by, rows=len(gain), positives=int(rows.truth.sum()))


def _best(score: Array, gain: Array) -> float:
    """The threshold that earns most, half way to the next lower score; NEVER where acting on no score does."""
    if not len(score):
        return NEVER
    order = np.argsort(-score, kind="stable")
    ranked, sums = score[order], np.cumsum(gain[order])
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    place = int(sums[ends].argmax())
    if sums[ends][place] <= 0:
        return NEVER
    return float((ranked[ends[place]] + ranked[ends[place] + 1]) / 2) if place + 1 < len(ends) else 0.0


def _fold_of(units: Array, seed: int) -> Array:
    """A fold [N] for each row, the same for rows of a unit."""
    _, code = np.unique(units, return_inverse=True)
    return np.random.default_rng(seed).permutation(int(code.max()) + 1)[code] % _FOLDS


def _crossed(make: Callable[[Unseen], Calibration | None], rows: Unseen, fold: Array) -> Array | None:
    """Scores [N], each calibrated by a fit on the other folds; None where one cannot be made."""
    made = np.empty(len(fold))
    for k in range(_FOLDS):
        part = make(rows.at(fold != k))
        if part is None:
            return None
        made[fold == k] = calibrated(part, rows.score[fold == k])
    return made


def _loss(score: Array, truth: Array) -> Array:
    inside = np.clip(score, TINY, 1 - TINY)
    return np.asarray(-np.where(truth, np.log(inside), np.log1p(-inside)))


def _change(scores: dict[str, Array], new: str, old: str, rows: Unseen) -> Estimate:
    """Log loss per row of one method less that of another."""
    n = len(rows.truth)
    summed = metrics.total(_loss(scores[new], rows.truth) - _loss(scores[old], rows.truth), rows.units)
    return Estimate(summed.value / n, summed.low / n, summed.high / n, n, summed.too_few)


def _sigmoid(rows: Unseen) -> Calibration | None:
    inside = np.clip(rows.score, SMALLEST, 1 - SMALLEST)
    slope, level = _regressed(np.log(inside) - np.log(1 - inside), truth=rows.truth)
    return Calibration(method="sigmoid", coefficients=[slope, slope, level], threshold=0.5) if slope > 0 else None


def _beta(rows: Unseen) -> Calibration | None:
    """A side whose coefficient would be negative is left out, as the paper does: the line would not rise."""
    inside = np.clip(rows.score, SMALLEST, 1 - SMALLEST)
    sides = [np.log(inside), -np.log(1 - inside)]
    *slopes, level = _regressed(*sides, truth=rows.truth)
    if min(slopes) < 0:
        place = int(np.argmax(slopes))
        slope, level = _regressed(sides[place], truth=rows.truth)
        slopes = [slope if i == place else 0.0 for i in range(2)]
    return Calibration(method="beta", coefficients=[*slopes, level], threshold=0.5) if max(slopes) > 0 <= min(slopes) else None


def _isotonic(rows: Unseen) -> Calibration | None:
    made = IsotonicRegression(out_of_bounds="clip").fit(rows.score, rows.truth.astype(np.float64))
    points = list(zip(made.X_thresholds_.tolist(), made.y_thresholds_.tolist(), strict=True))
    return Calibration(method="isotonic", points=points, threshold=0.5) if len(points) > 1 else None


_METHODS: dict[str, Callable[[Unseen], Calibration | None]] = {"sigmoid": _sigmoid, "beta": _beta, "isotonic": _isotonic}
"""The methods, each with more freedom than the one before it."""


def _regressed(*columns: Array, truth: Array) -> list[float]:
    """Slopes and level of a logistic regression on Platt's labels: a row is positive by (N+ + 1) / (N+ + 2), negative by 1 / (N- + 2)."""
    positives = int(truth.sum())
    label = np.where(truth, (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2))
    rows = np.column_stack(columns)
    model, weight = LogisticRegression(C=_UNREGULARISED, solver="newton-cholesky"), np.concatenate([label, 1 - label])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scores that are all alike
        model.fit(np.concatenate([rows, rows]), np.repeat([1, 0], len(rows)), sample_weight=weight)
    return [*model.coef_[0].tolist(), float(model.intercept_[0])]
