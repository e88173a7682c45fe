"""Drift measures of a column in a window, in one table; each is a number that is comparable between windows.

Nearly all are shares of rows: a share has a known sampling error, needs no distribution, and no outlier moves it. The one
that is no share, the mean, is there because a share ends at 0 and 1: it tells how far a column went beyond its range.

Shares are compared on Anscombe's arcsine scale (1948), where the sampling variance is 1 / (4n + 2) for every share.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base.arrays import Array
from loopwright.base.text import number, share
from loopwright.graph.columns import numbers, value_counts
from loopwright.records.package import Histogram

CATEGORY_SHARE = 0.01
"""Categories with less than this share of the reference are judged together."""

MAX_CATEGORIES = 20
"""So many categories of a column are judged at most, the most frequent ones; the others together."""

FEWEST = 20
"""With fewer values that are not null only the share of nulls is judged."""

CLIP = 20.0
"""Values count as at most this many reference deviations from the median, so that one absurd value moves no mean."""

SMALLEST = 1e-300
"""A smaller deviation cannot be divided by."""

SORTED_ROWS = 20_000
"""The most frequent number is looked for among so many rows, evenly spread."""


class Measure(NamedTuple):
    """`floor`: the least difference that matters, as a share, or in deviations of the reference where it is no share.

    `spread`: the standard deviation from window to window that is assumed until windows tell it, on the scale of comparison.
    """

    text: str
    floor: float
    spread: float = 0.05
    share: bool = True


MEASURES = {
    "mean": Measure("mean", 0.1, spread=0.3, share=False),
    "low": Measure("share below {cut}", 0.05, spread=0.12),
    "middle": Measure("share below {cut}", 0.05, spread=0.12),
    "high": Measure("share below {cut}", 0.05, spread=0.12),
    "constant": Measure("share of the most frequent value", 0.1),
    "category": Measure("share of {of}", 0.02),
    "unnamed": Measure("share of values that the reference does not name", 0.02),
    "newcomer": Measure("share of one value that the reference does not name", 0.02),
    "nulls": Measure("share of nulls", 0.01),
    "out_of_range": Measure("share out of the contract's range", 0.01),
    "new_category": Measure("share of categories that the contract does not name", 0.01),
}
"""Measures by name. The measure of one category is named `category:NAME`, that of all other named ones together `category:`."""


class Cuts(msgspec.Struct, frozen=True, kw_only=True):
    """What of a column's reference its measures need: quantiles (.1, .5, .9) and deviation of numbers; or categories.

    `categories` are judged one by one, `named` are all that the reference names; None for numbers.
    """

    low: float = 0.0
    middle: float = 0.0
    high: float = 0.0
    deviation: float = 1.0
    categories: list[str] | None = None
    named: list[str] = []


class MeasureValue(NamedTuple):
    """A measure of one window: its value on the scale of comparison, and the variance of that by the sampling of rows."""

    value: float
    variance: float


@lru_cache(maxsize=1024)
def measure(name: str) -> Measure:
    """The measure of that name."""
    return MEASURES[name.partition(":")[0]]


def natural(name: str, value: float, cuts: Cuts) -> float:
    """A value on the scale of comparison as people read it: a share, or a mean in the column's own unit."""
    if measure(name).share:
        return math.sin(min(max(value, 0.0), math.pi / 2)) ** 2
    return cuts.middle + cuts.deviation * value


def described(name: str, value: float, low: float, high: float, cuts: Cuts) -> str:
    """A measure in words: `share of nulls 30 %, usual 0 % to 0.4 %`; arguments are on the scale of comparison."""
    of = name.partition(":")[2]
    cut = number(getattr(cuts, name)) if name in ("low", "middle", "high") else ""
    text = measure(name).text.format(of=repr(of) if of else "other categories", cut=cut)
    shown = share if measure(name).share else number
    now, least, most = (shown(natural(name, v, cuts)) for v in (value, low, high))
    return f"{text} {now}, usual {least} to {most}"


def cuts_of(reference: Histogram) -> Cuts:
    """The cuts of a reference histogram."""
    if reference.categories:
        counts = sorted(zip(reference.counts, reference.categories, strict=False), reverse=True)[:MAX_CATEGORIES]
        rows = max(sum(reference.counts), 1)
        judged = [category for count, category in counts if count >= CATEGORY_SHARE * rows]
        return Cuts(categories=judged, named=reference.categories)
    return _cuts(quantiles(reference, np.linspace(0.0, 1.0, 201)))


def cuts_of_numbers(values: Array) -> Cuts:
    """The cuts of numbers [N], at least one of which is finite."""
    return _cuts(np.quantile(values[np.isfinite(values)], np.linspace(0.0, 1.0, 201)))


def quantiles(reference: Histogram, at: Array) -> Array:
    """Quantiles of the numbers of a histogram at the shares `at` [N], linear within a bin."""
    counts = np.asarray(reference.counts, dtype=np.float64)
    shares = np.concatenate([[0.0], np.cumsum(counts) / max(counts.sum(), 1.0)])
    edges = [*reference.edges]
    first = edges[0] if edges else 0.0
    last = edges[-1] if edges else first
    points = [
        first if reference.minimum is None else reference.minimum,
        *edges,
        last if reference.maximum is None else reference.maximum,
    ]
    return np.asarray(np.interp(at, shares, points))


def measured(cuts: Cuts, values: pa.ChunkedArray, out_of_range: int = 0, new_category: int = 0) -> dict[str, MeasureValue]:
    """Every measure of `values` [N], N > 0 (numbers, booleans or texts, with nulls); NaN counts as null.

    `out_of_range` and `new_category` are the rows that the contract flagged.
    """
    rows = len(values)
    flagged = {"out_of_range": share_of(out_of_range, rows), "new_category": share_of(new_category, rows)}
    if cuts.categories is not None:
        known, found = _of_categories(cuts.categories, cuts.named, values)
    else:
        known, found = _of_numbers(cuts, values)
    return {"nulls": share_of(rows - known, rows), **flagged, **found}


def share_of(count: float, rows: int) -> MeasureValue:
    """A share of rows on the scale of comparison."""
    return MeasureValue(math.asin(math.sqrt((count + 0.375) / (rows + 0.75))), 1 / (4 * rows + 2))


def _of_numbers(cuts: Cuts, values: pa.ChunkedArray) -> tuple[int, dict[str, MeasureValue]]:
    kept = numbers(values)
    kept = kept[~np.isnan(kept)]
    if len(kept) < FEWEST:
        return len(kept), {}
    with np.errstate(over="ignore"):  # numbers near the largest float
        moved = np.clip((kept - cuts.middle) / cuts.deviation, -CLIP, CLIP)
    found = {"mean": MeasureValue(float(moved.mean()), float(moved.var()) / len(kept))}
    for name in ("low", "middle", "high"):
        cut = getattr(cuts, name)
        found[name] = share_of(float((kept < cut).sum() + (kept == cut).sum() / 2), len(kept))
    some = kept[:: max(1, len(kept) // SORTED_ROWS)]
    found["constant"] = share_of(int(np.unique(some, return_counts=True)[1].max()), len(some))
    return len(kept), found


def _of_categories(categories: list[str], named: list[str], values: pa.ChunkedArray) -> tuple[int, dict[str, MeasureValue]]:
    counts = value_counts(values.cast(pa.string()))
    known = sum(count for category, count in counts.items() if category is not None)
    if known < FEWEST:
        return known, {}
    known_names = set(named)
    unnamed = {category: count for category, count in counts.items() if category is not None and category not in known_names}
    found = {f"category:{c}": counts.get(c, 0) for c in categories}
    found["category:"] = known - sum(found.values()) - sum(unnamed.values())
    found |= {"unnamed": sum(unnamed.values()), "newcomer": max(unnamed.values(), default=0)}
    return known, {name: share_of(count, known) for name, count in found.items()}


def _cuts(points: Array) -> Cuts:
    low, middle, high = (float(points[i]) for i in (20, 100, 180))
    # The distance of these quantiles is 2.563 deviations of a normal distribution, and no tail makes it large.
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = (high - low) / 2.563 or float(points.std()) or max(abs(middle), 1.0)
    if not SMALLEST < deviation < math.inf:
        deviation = max(abs(middle), 1.0)
    return Cuts(low=low, middle=middle, high=high, deviation=deviation)
