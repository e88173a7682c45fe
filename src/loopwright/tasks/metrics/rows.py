"""Rows made ready (sorted once), by task, so that metrics under weights are a few passes over memory.

Each class has `units` (what is drawn in a bootstrap: rows, or whole groups of rows) and `values(w)`: every metric [R, M] under
weights [R, units]. A metric that is undefined on the rows (recall without positives) is NaN, never 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loopwright.base.errors import DeclarationInvalid
from loopwright.records.package import Output
from loopwright.tasks.metrics.answered import Answered, Array
from loopwright.tasks.metrics.table import GAPS, quantiles_of

Slices = Mapping[str, Array]

GAP_ROWS = 30
"""A slice value counts in a gap when its rate has at least so many rows under it: the rates of a handful of rows differ by chance."""

_BINS = 10
_TINY = np.finfo(np.float64).eps


def ratio(over: Array, under: Array) -> Array:
    """`over` / `under`, NaN where that is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under > 0, over / under, np.nan)


class Gap:
    """Largest minus smallest rate over the values of a slice [N]; a rate is the sum of `over` [N] by the sum of `under` [N]."""

    def __init__(self, of: Array, over: Array, under: Array) -> None:
        _, code = np.unique(np.asarray(of, dtype=str), return_inverse=True)
        kept = (
            np.flatnonzero((np.bincount(code, weights=under) >= GAP_ROWS)[code]) if len(code) else np.array([], dtype=np.int64)
        )
        self._rows = kept[np.argsort(code[kept], kind="stable")]
        starts = np.append(0, np.flatnonzero(np.diff(code[self._rows])) + 1)
        self._starts = starts if len(kept) else np.array([], dtype=np.int64)
        self._over, self._under = over[self._rows].astype(np.float64), under[self._rows].astype(np.float64)

    def values(self, w: Array) -> Array:
        """The gap [R] under weights [R, N]."""
        if len(self._starts) < 2:
            return np.full(len(w), np.nan)
        part = w[:, self._rows]
        rates = ratio(
            np.add.reduceat(part * self._over, self._starts, axis=1), np.add.reduceat(part * self._under, self._starts, axis=1)
        )
        return np.asarray(np.fmax.reduce(rates, axis=1) - np.fmin.reduce(rates, axis=1))


def _slice(slices: Slices | None, name: str, of: str) -> Array:
    if slices is None or of not in slices:
        raise DeclarationInvalid("metric", [(name, f"no slice {of!r}")])
    return slices[of]


class Calibration:
    """Expected calibration error of scores [N] in [0, 1] against how often they are right [N] (bool)."""

    def __init__(self, score: Array, right: Array) -> None:
        bins = np.minimum((score * _BINS).astype(np.int64), _BINS - 1)
        self._order = np.argsort(bins, kind="stable")
        self._starts = np.append(0, np.flatnonzero(np.diff(bins[self._order])) + 1)
        self._error = (right.astype(np.float64) - score)[self._order]

    def values(self, w: Array) -> Array:
        """The error [R] under weights [R, N]."""
        sums = np.add.reduceat(w[:, self._order] * self._error, self._starts, axis=1)
        return np.asarray(np.abs(sums).sum(axis=1) / w.sum(axis=1))


class YesNo:
    """Binary and anomaly: `truth` bool [N], score [N], label bool [N]; `earned` is money over no model [N], if there is any."""

    def __init__(
        self, names: Sequence[str], truth: Array, given: Answered, earned: Array | None, slices: Slices | None
    ) -> None:
        self.names, self.units = list(names), len(truth)
        self.truth = np.asarray(truth, dtype=np.bool_)
        self.score, self.label = given.score, np.asarray(given.label, dtype=np.bool_)
        self.earned = earned
        self.gaps = {name: self._gap(name, slices) for name in names if name.partition(":")[0] in GAPS}
        self.calibration = Calibration(self.score, self.truth) if "calibration_error" in names else None
        self.order = np.argsort(-self.score, kind="stable") if {"average_precision", "roc_auc"} & set(names) else None
        if self.order is not None:
            ranked = self.score[self.order]
            self.ends = np.append(np.flatnonzero(np.diff(ranked)), self.units - 1)
            self.ranked_truth = self.truth[self.order].astype(np.float64)

    def _gap(self, name: str, slices: Slices | None) -> Gap:
        base, _, of = name.partition(":")
        everything = np.ones(self.units, dtype=np.bool_)
        under = {"recall_gap": self.truth, "precision_gap": self.label, "positive_rate_gap": everything}[base]
        return Gap(_slice(slices, name, of), under & (self.truth if base == "precision_gap" else self.label), under)

    def values(self, w: Array) -> Array:
        """See the module."""
        total, positives = w.sum(axis=1), w @ self.truth
        tp, labelled = w @ (self.truth & self.label), w @ self.label
        curve = self._curve(w)
        return np.stack([self._one(name, w, total, positives, labelled, tp, curve) for name in self.names], axis=1)

    def _curve(self, w: Array) -> tuple[Array, Array]:
        """Positives and rows at or above each distinct score, [R, number of distinct scores]."""
        if self.order is None:
            return w[:, :0], w[:, :0]
        ranked = w[:, self.order]
        return np.cumsum(ranked * self.ranked_truth, axis=1)[:, self.ends], np.cumsum(ranked, axis=1)[:, self.ends]

    def _one(
        self, name: str, w: Array, total: Array, positives: Array, labelled: Array, tp: Array, curve: tuple[Array, Array]
    ) -> Array:
        found, n = curve
        match name:
            case "average_precision":
                with np.errstate(divide="ignore", invalid="ignore"):
                    steps = np.diff(found, axis=1, prepend=0.0) * np.where(n > 0, found / n, 0.0)
                return ratio(steps.sum(axis=1), positives)
            case "roc_auc":
                false = n - found
                area = (np.diff(false, axis=1, prepend=0.0) * (found - np.diff(found, axis=1, prepend=0.0) / 2)).sum(axis=1)
                return ratio(area, positives * (total - positives))
            case "accuracy":
                return np.asarray((total - labelled - positives + 2 * tp) / total)
            case "precision":
                return ratio(tp, labelled)
            case "recall":
                return ratio(tp, positives)
            case "f1":
                return ratio(2 * tp, labelled + positives)
            case "positive_rate":
                return np.asarray(labelled / total)
            case _:
                return self._of_probability(name, w, total)

    def _of_probability(self, name: str, w: Array, total: Array) -> Array:
        if name in self.gaps:
            return self.gaps[name].values(w)
        if name == "calibration_error" and self.calibration is not None:
            return self.calibration.values(w)
        if name == "brier":
            return np.asarray(w @ np.square(self.score - self.truth) / total)
        if name == "log_loss":
            p = np.clip(self.score, _TINY, 1 - _TINY)
            return np.asarray(w @ -np.where(self.truth, np.log(p), np.log1p(-p)) / total)
        return np.asarray(w @ self.earned / total)


class Classes:
    """Multiclass: `truth` and label string [N], values [N, K] in the order of the output's classes."""

    def __init__(
        self, names: Sequence[str], truth: Array, given: Answered, output: Output, earned: Array | None, slices: Slices | None
    ) -> None:
        self.names, self.units, self.earned = list(names), len(truth), earned
        truth, label = np.asarray(truth, dtype=str), np.asarray(given.label, dtype=str)
        values = given.values if given.values is not None else np.zeros((self.units, len(output.classes)))
        self.right = truth == label
        self.classes = sorted({*output.classes, *truth.tolist()})
        self.true, self.said = (side[:, None] == np.array(self.classes)[None, :] for side in (truth, label))
        place = {c: i for i, c in enumerate(output.classes)}
        self.place = np.array([place.get(t, -1) for t in truth.tolist()], dtype=np.int64)
        known = self.place >= 0
        own = np.where(known, values[np.arange(self.units), self.place], 0.0)[:, None]
        later = np.arange(values.shape[1])[None, :] > self.place[:, None]
        self.before = np.where(known, ((values > own) | ((values == own) & later)).sum(axis=1), values.shape[1])
        self.loss = -np.log(np.clip(own[:, 0], _TINY, 1.0))
        self.calibration = Calibration(given.score, self.right) if "calibration_error" in names else None
        everything = np.ones(self.units, dtype=np.bool_)
        self.gaps = {
            name: Gap(_slice(slices, name, name.partition(":")[2]), self.right, everything)
            for name in names
            if name.partition(":")[0] in GAPS
        }

    def values(self, w: Array) -> Array:
        """See the module."""
        total = w.sum(axis=1)
        counts = w @ (self.true & self.said), w @ self.true, w @ self.said  # each [R, number of classes]
        return np.stack([self._one(name, w, total, *counts) for name in self.names], axis=1)

    def _one(self, name: str, w: Array, total: Array, found: Array, true: Array, said: Array) -> Array:
        base, _, of = name.partition(":")
        if name in self.gaps:
            return self.gaps[name].values(w)
        if name == "calibration_error" and self.calibration is not None:
            return self.calibration.values(w)
        if of and base in ("recall", "precision"):
            column = self.classes.index(of) if of in self.classes else None
            under = true if base == "recall" else said
            return np.full(len(w), np.nan) if column is None else ratio(found[:, column], under[:, column])
        match base:
            case "accuracy":
                return np.asarray(w @ self.right / total)
            case "balanced_accuracy":
                return _mean(ratio(found, true))
            case "macro_f1":
                return _mean(ratio(2 * found, true + said))
            case "log_loss":
                return np.asarray(w @ self.loss / total)
            case "top_k":
                return np.asarray(w @ (self.before < int(of)) / total)
            case _:
                return np.asarray(w @ self.earned / total)


def _mean(rates: Array) -> Array:
    """The mean over classes [R] of rates [R, C]; classes that do not occur (NaN) are left out."""
    there = np.isfinite(rates)
    return ratio(np.where(there, rates, 0.0).sum(axis=1), there.sum(axis=1).astype(np.float64))


class RegressionRows:
    """Regression: `truth` [N] or, of several targets, [N, T]; predicted are the score, the values by target, or by quantile."""

    def __init__(
        self, names: Sequence[str], truth: Array, given: Answered, output: Output, earned: Array | None, slices: Slices | None
    ) -> None:
        self.names, self.units, self.earned = list(names), len(truth), earned
        self.truth = np.asarray(truth, dtype=np.float64).reshape(self.units, -1)
        several = given.values is not None and not output.quantiles
        self.targets = output.names if several else []
        self.said = given.values if several and given.values is not None else given.score[:, None]
        self.error = self.said - self.truth
        self.centred = self.truth - self.truth.mean(axis=0)
        self.quantiles = output.quantiles
        self.by_quantile = given.values if given.values is not None else given.score[:, None]
        first = self.error[:, 0]
        everything = np.ones(self.units)
        self.gaps = {
            name: Gap(
                _slice(slices, name, name.partition(":")[2]), np.abs(first) if name.startswith("mae") else first, everything
            )
            for name in names
            if name.partition(":")[0] in GAPS
        }

    def values(self, w: Array) -> Array:
        """See the module."""
        total = w.sum(axis=1)
        return np.stack([self._one(name, w, total) for name in self.names], axis=1)

    def _one(self, name: str, w: Array, total: Array) -> Array:
        base, _, of = name.partition(":")
        if name in self.gaps:
            return self.gaps[name].values(w)
        if base in ("pinball", "coverage"):
            return self._of_quantiles(name, w, total)
        columns = [self.targets.index(of)] if of else list(range(self.error.shape[1]))
        error, truth = self.error[:, columns], self.truth[:, columns]
        match base:
            case "mae":
                each = w @ np.abs(error) / total[:, None]
            case "rmse":
                each = np.sqrt(w @ np.square(error) / total[:, None])
            case "mape":
                there = truth != 0
                each = ratio(w @ np.abs(np.divide(error, truth, where=there, out=np.zeros_like(error))), w @ there)
            case "mean_error":
                each = w @ error / total[:, None]
            case "bias":
                each = np.abs(w @ error / total[:, None])
            case "r2":
                centred = self.centred[:, columns]
                spread = w @ np.square(centred) - np.square(w @ centred) / total[:, None]
                each = 1 - ratio(w @ np.square(error), spread)
            case _:
                return np.asarray(w @ self.earned / total)
        return np.asarray(each.mean(axis=1))

    def _of_quantiles(self, name: str, w: Array, total: Array) -> Array:
        wanted = quantiles_of(name) or self.quantiles
        said = self.by_quantile[:, [self.quantiles.index(q) for q in wanted]]
        if name.startswith("coverage"):
            inside = (said[:, 0] <= self.truth[:, 0]) & (self.truth[:, 0] <= said[:, 1])
            return np.asarray(w @ inside / total)
        below = self.truth - said
        loss = np.maximum(np.array(wanted) * below, (np.array(wanted) - 1) * below)
        return np.asarray((w @ loss / total[:, None]).mean(axis=1))


class Groups:
    """Ranking: `truth` (relevance, at least 0) and score [N], within groups [N]. Units are groups: rows of one are not independent.

    Rows of equal score share their places: gain is their mean (McSherry and Najork 2008, as scikit-learn does), and the first
    relevant one stands last among them. A group in which nothing is relevant says nothing and is left out.
    """

    def __init__(self, names: Sequence[str], truth: Array, given: Answered, groups: Array) -> None:
        self.names = list(names)
        _, code = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        self.units = int(code.max()) + 1 if len(code) else 0
        self.code, self.truth, self.score = code, np.asarray(truth, dtype=np.float64), given.score
        self.each = np.stack([self._each(name) for name in names], axis=1)  # [groups, M]

    def values(self, w: Array) -> Array:
        """See the module."""
        there = np.isfinite(self.each)
        return ratio(w @ np.where(there, self.each, 0.0), w @ there)

    def _each(self, name: str) -> Array:
        """The metric of each group."""
        order = np.lexsort((-self.score, self.code))
        code, score, truth = self.code[order], self.score[order], self.truth[order]
        first = np.append(0, np.flatnonzero(np.diff(code)) + 1)  # of each group
        starts = np.flatnonzero(np.append(True, (np.diff(code) != 0) | (np.diff(score) != 0)))  # of each run of equal scores
        group = code[starts]
        size = np.diff(np.append(starts, len(code)))
        place = starts - first[group]
        relevant = np.add.reduceat((truth > 0).astype(np.float64), starts)
        if name == "map":
            found = np.cumsum(relevant)
            before = (found - relevant)[np.searchsorted(starts, first)]
            precision = (found - before[group]) / (place + size)
            return ratio(np.bincount(group, precision * relevant), np.bincount(group, relevant))
        if name == "mrr":
            last = np.where(relevant > 0, 1.0 / (place + size - relevant + 1), 0.0)
            best = np.zeros(self.units)
            np.maximum.at(best, group, last)
            return np.where(best > 0, best, np.nan)
        return self._ndcg(int(name.partition(":")[2]), truth, code, first, starts, group, size, place)

    def _ndcg(
        self, k: int, truth: Array, code: Array, first: Array, starts: Array, group: Array, size: Array, place: Array
    ) -> Array:
        """Normalised discounted cumulative gain of the first `k`, gain = relevance, discount = log2 of place + 1."""
        weight = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, k + 2))))
        gain = np.add.reduceat(truth, starts) / size
        got = np.bincount(group, gain * (weight[np.minimum(place + size, k)] - weight[np.minimum(place, k)]))
        best = np.lexsort((-truth, code))
        at = np.arange(len(code)) - first[code]
        ideal = truth[best] * (weight[np.minimum(at + 1, k)] - weight[np.minimum(at, k)])
        return ratio(got, np.bincount(code, ideal))


def prepare(
    names: Sequence[str],
    truth: Array,
    given: Answered,
    *,
    output: Output,
    earned: Array | None,
    slices: Slices | None,
    groups: Array | None,
) -> Any:
    """The rows of a task made ready for these metrics."""
    if output.task == "multiclass":
        return Classes(names, truth, given, output, earned, slices)
    if output.task == "regression":
        return RegressionRows(names, truth, given, output, earned, slices)
    if output.task == "ranking":
        if groups is None:
            raise DeclarationInvalid("metric", [(names[0] if names else "", "ranking needs the group of each row")])
        return Groups(names, truth, given, groups)
    return YesNo(names, truth, given, earned, slices)
