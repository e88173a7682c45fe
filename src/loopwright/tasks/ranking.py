"""Ranking: the label is a relevance (0, 1, 2 ...) within the requests of a group, predicted is a score to sort by."""

from collections.abc import Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid
from loopwright.tasks.statistic import Statistic, quotient, ratio
from loopwright.tasks.task import LabelQuery, LabelSummary, Metric, RowData, TaskType

METRICS = {
    "map": Metric(True, 1.0, "mean over the groups of average precision (relevant is above 0)"),
    "mrr": Metric(True, 1.0, "mean over the groups of 1 / place of the first relevant row"),
}

PARTS = {
    "ndcg": Metric(True, 1.0, "normalised discounted cumulative gain of the first K: ndcg:10 (Jarvelin and Kekalainen 2002)")
}


def statistics(names: Sequence[str], data: RowData) -> list[Statistic]:
    """Ranking: `truth` (relevance, at least 0) and score [N], within groups [N]. What is averaged are groups: rows of one are not independent.

    Rows of equal score share their ranks: gain is their mean (McSherry and Najork 2008, as scikit-learn does), and the first
    relevant one counts as last among them. A group without relevant rows is left out.
    """
    if data.groups is None:
        raise DeclarationInvalid("metric", [(names[0] if names else "", "ranking needs the group of each row")])
    groups = Groups(data, data.groups)
    return [groups.statistic(name) for name in names]


class Groups:
    """Rows in groups, made ready."""

    def __init__(self, data: RowData, groups: Array) -> None:
        _, self.first_row, code = np.unique(np.asarray(groups, dtype=str), return_index=True, return_inverse=True)
        self.units = len(self.first_row)
        self.code, self.truth, self.score = code, np.asarray(data.truth, dtype=np.float64), data.answers.score

    def statistic(self, name: str) -> Statistic:
        """The mean of a metric over groups; what a group has of it stands in its first row."""
        each = self._each(name)
        there = np.isfinite(each)
        found = ratio(np.where(there, each, 0.0), there, "logit")
        influence, leverage = np.zeros((2, len(self.code)))
        influence[self.first_row], leverage[self.first_row] = found.influence, found.leverage
        return found._replace(influence=influence, leverage=leverage)

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
            return quotient(np.bincount(group, precision * relevant), np.bincount(group, relevant))
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
        return quotient(got, np.bincount(code, ideal))


def _summarise(labels: LabelQuery) -> LabelSummary:
    rows = labels.rows
    [(groups, relevant, low, high)] = labels.run(
        f"SELECT count(DISTINCT {labels.group}), count(*) FILTER (_label > 0), min(_label), max(_label) FROM kept"  # noqa: S608 - a declared column, quoted
    )
    alike = ""
    if rows and low == high:
        alike = f"all {rows:,} rows are equally relevant"
    elif rows and low < 0:
        alike = f"relevance is 0 or more, and there is {low:g}"
    return LabelSummary(0, f"{groups:,} groups, {relevant / max(rows, 1):.1%} of their rows relevant", alike)


RANKING = TaskType(
    name="ranking", estimator="regressor", leak_limit=0.99,
    metrics=METRICS, part_metrics=PARTS, primary="ndcg:10", summary=("ndcg:10", "mrr"),
    statistics=statistics, measured=lambda output, names: [*names, "ndcg:10"],
    summarise=_summarise, made_up=lambda part, targets: part.astype(np.float64),
    describe=lambda output: (
        "The score is for sorting requests of the same {group}: the larger, the further up. It means nothing by itself."
    ),
)  # fmt: skip
