"""Parts of the metrics of several tasks: ratios, gaps between slices, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid
from loopwright.tasks.task import Slices

GAP_ROWS = 30
"""Minimum number of rows under a slice value's rate for it to count in a gap: rates of fewer rows differ by chance."""

TINY = np.finfo(np.float64).eps
_BINS = 10


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


def of_slice(slices: Slices | None, name: str) -> Array:
    """The values [N] of the slice in a gap's name. Raises DeclarationInvalid without such a slice."""
    of = name.partition(":")[2]
    if slices is None or of not in slices:
        raise DeclarationInvalid("metric", [(name, f"no slice {of!r}")])
    return slices[of]


def gaps(names: Sequence[str], slices: Slices | None, rates: Mapping[str, tuple[Array, Array]]) -> dict[str, Gap]:
    """The gaps among the names of metrics, by name; `rates` are by a gap's own name the sums `over` and `under` of its rate, [N] each."""
    return {name: Gap(of_slice(slices, name), *rates[base]) for name in names if (base := name.partition(":")[0]) in rates}


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
