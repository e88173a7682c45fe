"""How far a column's distribution is from the package's reference: effect sizes, shown with every window.

Over the same bins, counts `reference` [B] and `current` [B]:

- PSI, the population stability index: the symmetrised Kullback-Leibler divergence, in nats (Lewis 1994, An introduction
  to credit scoring; Yurdakul 2018, Statistical properties of population stability index). 0.25 is the usual alarm.
- Jensen-Shannon distance: the square root of the divergence in bits (Lin 1991; Endres and Schindelin 2003), in [0, 1].

Both are biased upwards in small samples. Where nothing moved, PSI times nm/(n+m) is near chi-squared with B - 1 degrees
of freedom (Yurdakul 2018), so its expectation is (B - 1)(1/n + 1/m), and that of the divergence in bits an 8 ln 2-th of
it. That expectation is taken off. Assumptions: rows are independent, and bins are not nearly empty (see `bins`).

Both saturate: beyond the range of the reference all is in the last bin. The third does not:

- Wasserstein distance: by how many reference deviations the quantiles from .05 to .95 moved on average (Kantorovich 1942; Ramdas, Garcia
  Trillos and Cuturi 2017).

They judge alone where there is no history to know what is variation: then a column drifts when PSI *and* Jensen-Shannon
distance reach their thresholds. PSI is the effect size that people know, but a rare value that appears can blow it up; the
distance is bounded and holds it back. `watch` is half of both thresholds.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from loopwright.graph.columns import numbers, value_counts
from loopwright.monitor.drift.measures import Cuts, quantiles
from loopwright.records.package import Histogram

Array = np.ndarray[Any, Any]

MIN_EXPECTED = 5.0
"""Categories expected fewer times than this in the window are counted together (Cochran 1954)."""

QUANTILES = 200
"""So many quantiles are compared by the Wasserstein distance."""

TRIMMED = 0.05
"""Quantiles nearer to an end are not compared: the reference has no edge there."""

_EIGHT_LN_2 = 8 * math.log(2)
_PRIOR = 0.5  # added to every bin (Krichevsky and Trofimov 1981), so that an empty one is rare and not impossible


class Bins(NamedTuple):
    """The same bins counted twice: `reference` int64 [B], `current` int64 [B]; the last bin is of nulls, if there are any."""

    reference: Array
    current: Array


def psi(reference: Array, current: Array) -> float:
    """Population stability index of two count vectors [B], in nats, less its expectation without drift; at least 0."""
    p, q = _shares(reference), _shares(current)
    raw = float(np.sum((q - p) * np.log(q / p)))
    return max(0.0, raw - _expected(reference, current))


def jensen_shannon(reference: Array, current: Array) -> float:
    """Jensen-Shannon distance (base 2, in [0, 1]) of two count vectors [B], the divergence less its expectation without drift."""
    p, q = _shares(reference), _shares(current)
    middle = (p + q) / 2
    divergence = (
        float(np.sum(p * np.log2(p / middle) + q * np.log2(q / middle))) / 2 - _expected(reference, current) / _EIGHT_LN_2
    )
    return math.sqrt(max(0.0, divergence))


def wasserstein(reference: Histogram, cuts: Cuts, values: pa.ChunkedArray) -> float | None:
    """Mean distance of the quantiles of numbers [N] from those of the reference, in its deviations; None without numbers."""
    if cuts.categories is not None:
        return None
    kept = numbers(values)
    kept = kept[np.isfinite(kept)]
    if not len(kept):
        return None
    at = np.linspace(TRIMMED, 1 - TRIMMED, QUANTILES)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers near the largest float
        distance = float(np.abs(np.quantile(kept, at) - quantiles(reference, at)).mean() / cuts.deviation)
    return distance if np.isfinite(distance) else None


def reached(psi: float, jensen_shannon: float, *, psi_at: float, jensen_shannon_at: float) -> float:
    """The share of both thresholds that both distances reach: 1 is drift, 0.5 to be watched."""
    return min(psi / psi_at if psi_at else np.inf, jensen_shannon / jensen_shannon_at if jensen_shannon_at else np.inf)


def bins(reference: Histogram, values: pa.ChunkedArray) -> Bins:
    """Count `values` [N] (numbers, booleans or strings, with nulls) in the bins of the reference.

    Numbers go by the reference's edges: bin i holds edge i-1 <= x < edge i; NaN counts with the nulls. Where the reference
    saw one number only the bins are below it, it, and above it. Categories expected fewer than MIN_EXPECTED times among N
    rows are counted together with everything that the reference does not name.
    """
    edges, before = _edges(reference)
    current, missing = _numbers(edges, values) if edges else _categories(reference.categories, values)
    if not edges:
        rare = before[:-1] * len(values) < MIN_EXPECTED * max(reference.rows, 1)
        before, current = (np.append(c[:-1][~rare], c[-1] + c[:-1][rare].sum()) for c in (before, current))
        if not before[-1] and not current[-1]:
            before, current = before[:-1], current[:-1]
    if reference.missing or missing:
        before, current = np.append(before, reference.missing), np.append(current, missing)
    return Bins(before, current)


def measurable(reference: Histogram) -> bool:
    """Whether the reference has a distribution to measure against."""
    return bool(reference.rows and (_edges(reference)[0] or reference.categories))


def _edges(reference: Histogram) -> tuple[list[float], Array]:
    """Inner edges [B - 1] and reference counts [B]."""
    counts = np.asarray(reference.counts, dtype=np.int64)
    if not reference.edges and not reference.categories and reference.minimum is not None:
        return [reference.minimum, math.nextafter(reference.minimum, math.inf)], np.array([0, counts.sum(), 0])
    return reference.edges, counts


def _numbers(edges: Sequence[float], values: pa.ChunkedArray) -> tuple[Array, int]:
    kept = numbers(values)
    kept = kept[~np.isnan(kept)]
    found = np.bincount(np.searchsorted(np.asarray(edges), kept, side="right"), minlength=len(edges) + 1)
    return found, len(values) - len(kept)


def _categories(categories: Sequence[str], values: pa.ChunkedArray) -> tuple[Array, int]:
    counts = value_counts(values.cast(pa.string()))
    missing = counts.pop(None, 0)
    known = [counts.pop(c, 0) for c in categories]
    return np.array([*known, sum(counts.values())], dtype=np.int64), missing


def _shares(counts: Array) -> Array:
    smoothed = counts + _PRIOR
    return np.asarray(smoothed / smoothed.sum())


def _expected(reference: Array, current: Array) -> float:
    return (len(reference) - 1) * (1 / max(int(reference.sum()), 1) + 1 / max(int(current.sum()), 1))
