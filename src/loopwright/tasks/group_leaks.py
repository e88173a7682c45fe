"""Leaks that show only by groups of rows: target encodings, and copies of the label that a part of the rows has.

Target encodings. A column that is the same in all rows of a group (customer, shop) and follows the group's mean label more closely
than any honest column can. The mean of few labels is a noisy measure of the group's true rate; its reliability is the correlation
between the means of two halves of each group's rows, stepped up to all rows (Spearman 1910, Brown 1910). The squared correlation
of an honest column with the mean cannot be above it; a mean of the same labels has a correlation of 1, or nearly, if it is shrunk
towards the mean of all. Without its own row (leave-one-out) it differs within the group: then the rows with a higher label have the
lower value, in every group, while groups with more of the label have higher values.

A part of the rows. A column predicts the label too well among the rows of one group (a shop, a quarter of the time).

Assumes that labels of a group are independent given its rate: where they follow each other in time, halves are drawn at random.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from loopwright.base.arrays import Array
from loopwright.tasks.leak_measures import LeakTarget, Values, area, measured

MIN_GROUPS = 30
"""With fewer groups of two rows or more a column is not compared with their mean labels."""

MAX_GROUPINGS, MAX_JUDGED, MAX_PARTS = 12, 60, 8
"""Columns that group rows, columns that are judged within the parts of the rows, parts of one grouping: so many at most."""

MIN_IN_PART = 150
"""Rows of each label that a part must have (numbers: twice as many)."""

QUARTERS = 4
MEAN, LEFT_OUT = 0.8, 0.98
"""The squared correlation with mean labels, and the area within groups, from which a column is an encoding of the label."""

SIGMAS, CLEARLY = 3.0, 0.05


class Grouping(NamedTuple):
    """Rows in groups: `name` of the column (empty: by time), the group of each row int64 [N] (-1: none), the value of each group."""

    name: str
    group: Array
    values: Sequence[object]


class GroupLeak(NamedTuple):
    """A column that leaks the label by groups: how, the measure and the lower end of its interval."""

    why: str
    measure: float
    low: float


def groupings(parts: Mapping[str, Values]) -> list[Grouping]:
    """The columns that group rows: texts and whole numbers, with two rows a group or more on average."""
    found = []
    for name, part in parts.items():
        there = part.array[~part.missing]
        if not len(there) or (not part.is_text and not (there == np.rint(there)).all()):
            continue
        distinct, code = np.unique(there.astype(str) if part.is_text else there, return_inverse=True)
        if 1 < len(distinct) <= len(there) / 2:
            group = np.full(len(part.array), -1, dtype=np.int64)
            group[~part.missing] = code
            found.append(Grouping(name, group, distinct.tolist()))
    return found[:MAX_GROUPINGS]


def encoding(part: Values, of: Grouping, target: LeakTarget) -> GroupLeak | None:
    """Whether a column of numbers is a target encoding of the groups."""
    there = ~part.missing & (of.group >= 0) & np.isfinite(part.array)
    group, x, y = of.group[there], part.array[there], target.raw[there]
    rows = np.bincount(group) if len(group) else np.empty(0, np.int64)
    if (rows >= 2).sum() < MIN_GROUPS or not np.ptp(x):
        return None
    repeated = (rows >= 2)[group]
    group, x, y = group[repeated], (x[repeated] - x.mean()) / x.std(), y[repeated]
    rows = np.bincount(group)
    seen = np.flatnonzero(rows)
    level, mean = (np.bincount(group, v)[seen] / rows[seen] for v in (x, y))
    own, other = (np.full(len(rows), np.nan) for _ in range(2))
    own[seen], other[seen] = level, mean
    apart, differs = x - own[group], y - other[group]
    between = _correlation(level, mean, rows[seen])
    if np.abs(apart).max() < 1e-9:
        return _of_means(between, _reliability(group, y), len(seen), of.name, target)
    return _without_own_row(apart, differs, between, of.name, target)


def _of_means(between: float, reliable: float, groups: int, name: str, target: LeakTarget) -> GroupLeak | None:
    error = SIGMAS / (groups - 3) ** 0.5
    low = _lower(between, error) ** 2
    highest = _lower(reliable, -error)
    highest = 2 * highest / (1 + highest)
    if low <= max(MEAN, highest + CLEARLY):
        return None
    why = (
        f"follows the mean of {target.name} by {name} (squared correlation {between**2:.3f} over {groups:,} groups, "
        f"{highest:.2f} at most where it is not made of these labels): a target encoding that has each row's own label"
    )
    return GroupLeak(why, between**2, low)


def _without_own_row(apart: Array, differs: Array, between: float, name: str, target: LeakTarget) -> GroupLeak | None:
    mixed = np.abs(differs) > 1e-9
    if mixed.sum() < 2 * MIN_IN_PART or abs(np.corrcoef(apart[mixed], differs[mixed])[0, 1]) < MEAN:
        return None
    if between <= 0 or np.corrcoef(apart[mixed], differs[mixed])[0, 1] > 0:
        return None
    above = differs[mixed] > 0
    measure, low = area(apart[mixed], above)
    if low <= LEFT_OUT:
        return None
    why = (
        f"is lower in the rows of a {name} with a higher label, AUC {measure:.4f} within (at least {low:.3f}), and higher where their mean "
        "is higher: a target encoding that leaves out each row's own label, which can be computed back from it"
    )
    return GroupLeak(why, measure, low)


def _reliability(group: Array, y: Array) -> float:
    """Correlation between the mean labels of two random halves of each group."""
    order = np.lexsort((np.random.default_rng(0).random(len(group)), group))
    group, y = group[order], y[order]
    start = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    second = (np.arange(len(group)) - np.repeat(start, np.diff(np.append(start, len(group))))) % 2
    means = []
    for half in (0, 1):
        mine = second == half
        rows = np.bincount(group[mine], minlength=group.max() + 1)
        means.append(np.bincount(group[mine], y[mine], minlength=group.max() + 1)[group[start]] / rows[group[start]])
    return _correlation(means[0], means[1], np.diff(np.append(start, len(group))))


def _correlation(a: Array, b: Array, weight: Array) -> float:
    """Weighted correlation of [G]; 0 where one of them does not vary."""
    a, b = a - np.average(a, weights=weight), b - np.average(b, weights=weight)
    spread = float(np.sqrt((weight * a * a).sum() * (weight * b * b).sum()))
    return float((weight * a * b).sum()) / spread if spread > 0 else 0.0


def _lower(correlation: float, error: float) -> float:
    """A limit of a correlation, so many on Fisher's scale below it; at least 0."""
    return max(0.0, float(np.tanh(np.arctanh(min(abs(correlation), 1 - 1e-12)) - error)))


def quarters(decided: Array) -> Grouping:
    """The rows by quarters of the time [N] that they span."""
    first, span = decided.min(), max(int(np.ptp(decided)), 1)
    code = np.minimum((decided - first) * float(QUARTERS) / span, QUARTERS - 1).astype(np.int64)
    return Grouping("", code, [f"quarter {i + 1} of the time" for i in range(QUARTERS)])


def parts_of(of: Grouping) -> list[int]:
    """The codes of the largest groups."""
    rows = np.bincount(of.group[of.group >= 0], minlength=1)
    return [int(code) for code in np.argsort(-rows, kind="stable")[:MAX_PARTS] if rows[code] >= 2 * MIN_IN_PART]


def in_part(part: Values, of: Grouping, code: int, target: LeakTarget, limit: float) -> GroupLeak | None:
    """Whether a column of numbers predicts the label too well among the rows of one group."""
    rows = (of.group == code) & ~part.missing
    truth, values = target.truth[rows], part.array[rows]
    rarer = min(truth.sum(), (~truth).sum()) if target.is_class else len(truth) / 2
    if rarer < MIN_IN_PART or not np.ptp(values):
        return None
    measure, low = measured(values, truth)
    if low <= limit:
        return None
    where = f"{of.name} is {str(of.values[code])[:40]!r}" if of.name else of.values[code]
    unit = "AUC" if target.is_class else "R² of ranks"
    share = rows.mean()
    why = (
        f"tells {target.name} by itself in a part of the rows ({where}: {share:.0%}), {unit} {measure:.4f} (at least {low:.3f})"
    )
    return GroupLeak(why, measure, low)
