"""Inputs and outputs of one monitoring window against the reference of the package that served: the window record."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.graph.columns import numbers, value_counts
from loopwright.monitor.drift.baseline import DriftBaseline
from loopwright.monitor.drift.distances import bins, jensen_shannon, measurable, psi, reached, wasserstein
from loopwright.monitor.drift.limits import Variation, assumed_share, judged
from loopwright.monitor.drift.measures import Cuts, MeasureValue, cuts_of, described, measured, natural
from loopwright.records.declarations import Column, Monitor, duration
from loopwright.records.package import Histogram
from loopwright.records.windows import ColumnWindow, Finding, State, Window
from loopwright.stores.packages.store import Package

IDENTIFIER_SHARE = 0.5
"""A text column names things rather than kinds when its reference leaves more than this share of rows out of its categories,
or has more categories than this share of rows."""

WORST_FIRST: tuple[State, ...] = ("drift", "watch", "ok")

MIN_REFERENCE = 50
"""With fewer rows of the reference, and no history, nothing is judged."""

CHANCE = 40
"""PSI by chance alone stays below this share of a row: over 20 bins its deviation is 6 / rows."""

YEAR = timedelta(days=365.25)
MAX_FALSE_ALARM = 0.05
"""Highest share of false alarms of one window, however long windows are."""

LOGGED = {"score": "_score", "label": "_label"}
"""Outputs in the reference -> their column in the prediction log."""


def watched_columns(package: Package) -> list[str]:
    """The monitored request and context columns of a package: they can be measured, and they reach the model."""
    reasons = skipped(package)
    inputs = [h.column for h in package.reference.columns if h.role != "output" and h.column not in reasons]
    return [name for name in inputs if package.manifest.lineage.reaches_model(name)]


def skipped(package: Package) -> dict[str, str]:
    """Columns of the contract that are not watched for drift, and why. Their nulls and flags show in the window's flags."""
    found = {}
    histograms = {h.column: h for h in package.reference.columns}
    for name, column in package.columns.items():
        if reason := _reason(name, column, histograms.get(name), package.manifest.key):
            found[name] = reason
    return found


def _reason(name: str, column: Column, reference: Histogram | None, key: list[str]) -> str:
    if column.type == "timestamp":
        return "a moment: it always moves on"
    if reference is None or not measurable(reference):
        return "the package's reference has no distribution of it"
    if column.type == "string" and max(reference.counts[-1], len(reference.categories)) > IDENTIFIER_SHARE * reference.rows:
        return "names things rather than kinds: too many values"
    if name in key and column.type in ("integer", "float"):
        return "part of the key"
    return ""


def main_package(predictions: pa.Table, segment_packages: Mapping[str, str] | None = None) -> str:
    """The package that answered most rows, itself or by its segment packages (`segment_packages`: package -> loop package); empty without rows."""
    rows: dict[str, int] = {}
    for package, count in packages_of(predictions).items():
        own = (segment_packages or {}).get(package, package)
        rows[own] = rows.get(own, 0) + count
    return max(sorted(rows), key=lambda p: rows[p]) if rows else ""


def rows_by_arm(predictions: pa.Table) -> dict[str, pa.Table]:
    """The rows of each arm (name); empty if one arm answered all of them."""
    names = pc.unique(predictions["_arm"]).to_pylist()
    return {name: predictions.filter(pc.equal(predictions["_arm"], name)) for name in sorted(names)} if len(names) > 1 else {}


def packages_of(predictions: pa.Table) -> dict[str, int]:
    """Rows by package."""
    return _counts(predictions["_package"])


class DriftContext(NamedTuple):
    """Baseline of a window in addition to the package's reference.

    `previous` windows, newest first; `features` values [N] of features that are no columns; `impact` of a column on the answers.
    """

    baseline: DriftBaseline | None = None
    previous: Sequence[Window] = ()
    features: Mapping[str, pa.ChunkedArray] = MappingProxyType({})
    impact: Callable[[Histogram], float | None] | None = None


def window(
    predictions: pa.Table,
    package: Package | None,
    monitor: Monitor,
    start: datetime,
    end: datetime,
    context: DriftContext = DriftContext(),  # noqa: B008 (immutable)
    answered: pa.Table | None = None,
) -> Window:
    """The window [start, end) from its logged predictions [N rows], measured against `package`'s reference.

    `package` is the one that answered most rows (`main_package`), None when there are no rows. With fewer rows than the
    monitor's `minimum_rows` shares are measured anyway, but every state is `no data`: too few to judge does not mean ok.
    Outputs are measured on the rows `answered` if these are not all. All columns, measures and windows of a year together give
    `monitor.false_alarms_per_year` false alarms at most (Bonferroni). The state depends on the columns that move the
    answers, and on these: what else moves is recorded, not judged.
    """
    rows = predictions.num_rows
    flags = _counts(pc.list_flatten(predictions["_flags"].combine_chunks())) if rows else {}
    if package is None or not rows:
        return _window(start, end, "no data", "", predictions, flags, [], {}, monitor)
    reasons = skipped(package)
    found = [
        _column(
            histogram, (predictions if answered is None or histogram.role != "output" else answered)[logged], flags, package
        )
        for histogram in package.reference.columns
        if histogram.column not in reasons
        and (logged := LOGGED.get(histogram.column, histogram.column)) in predictions.column_names
        and measurable(histogram)
    ]
    cuts = context.baseline.features if context.baseline is not None else {}
    found += [_feature(name, cuts[name], values) for name, values in context.features.items() if name in cuts]
    judge = Judge(monitor, context, start, package, rows, tests=sum(len(m.found) for m in found if m.column.used))
    enough = rows >= monitor.minimum_rows
    columns = [judge(each) if enough else each.column for each in found]
    states = {c.state for c in columns if c.matters}
    state: State = next((s for s in WORST_FIRST if s in states), "no data")
    return _window(start, end, state, package.digest, predictions, flags, columns, reasons, monitor)


def _window(
    start: datetime,
    end: datetime,
    state: State,
    reference: str,
    predictions: pa.Table,
    flags: dict[str, int],
    columns: list[ColumnWindow],
    reasons: dict[str, str],
    monitor: Monitor,
) -> Window:
    rows = predictions.num_rows
    return Window(
        start=start,
        end=end,
        rows=rows,
        state=state,
        reference=reference,
        packages=packages_of(predictions) if rows else {},
        degraded=flags.get("degraded", 0) / rows if rows else 0.0,
        flags=flags,
        columns=columns,
        drifted=[c.column for c in sorted(columns, key=lambda c: -c.moved) if c.matters and c.state == "drift"],
        skipped=reasons,
        minimum_rows=monitor.minimum_rows,
    )


class _MeasuredColumn(NamedTuple):
    """A column that is measured and not judged yet; `reference` is None for a feature."""

    column: ColumnWindow
    cuts: Cuts
    found: dict[str, MeasureValue]
    reference: Histogram | None


def _column(reference: Histogram, values: pa.ChunkedArray, flags: Mapping[str, int], package: Package) -> _MeasuredColumn:
    rows, name = max(len(values), 1), reference.column
    counted, cuts = bins(reference, values), cuts_of(reference)
    out_of_range, new_category = flags.get(f"out_of_range:{name}", 0), flags.get(f"new_category:{name}", 0)
    found = measured(cuts, values, out_of_range, new_category) if len(values) else {}
    column = ColumnWindow(
        column=name,
        role="output" if reference.role == "output" else "context" if reference.role == "context" else "request",
        state="no data",
        psi=psi(*counted),
        jensen_shannon=jensen_shannon(*counted),
        wasserstein=wasserstein(reference, cuts, values),
        missing=values.null_count / rows,
        missing_reference=reference.missing / max(reference.rows, 1),
        out_of_range=out_of_range / rows,
        new_category=new_category / rows,
        mean=None if reference.categories else _mean(values),
        mean_reference=reference.mean,
        measures={n: round(m.value, 6) for n, m in found.items()},
        used=reference.role == "output" or package.manifest.lineage.reaches_model(name),
    )
    return _MeasuredColumn(column, cuts, found, reference)


def _feature(name: str, cuts: Cuts, values: pa.ChunkedArray) -> _MeasuredColumn:
    found = measured(cuts, values)
    column = ColumnWindow(
        column=name,
        role="feature",
        state="no data",
        psi=None,
        jensen_shannon=None,
        missing=natural("nulls", found["nulls"].value, cuts),
        missing_reference=0.0,
        out_of_range=0.0,
        new_category=0.0,
        mean=_mean(values),
        mean_reference=None,
        measures={n: round(m.value, 6) for n, m in found.items()},
    )
    return _MeasuredColumn(column, cuts, found, None)


class Judge:
    """Judges the columns of one window: `tests` measures of columns that the model uses share its part of the year's false alarms."""

    def __init__(
        self, monitor: Monitor, context: DriftContext, start: datetime, package: Package, rows: int, tests: int
    ) -> None:
        self._monitor, self._context, self._start, self._rows = monitor, context, start, rows
        self._package = package
        self._every = duration(monitor.every)
        self._gap = max(1.0, (start - package.manifest.training.last) / self._every + 1)
        self._previous = [
            (w.start, {c.column: c for c in w.columns})
            for w in context.previous
            if w.reference == package.digest and w.state != "no data"
        ]
        share = min(monitor.false_alarms_per_year * self._every / YEAR, MAX_FALSE_ALARM)
        self._alpha = share / max(2 * tests, 1)  # each measure has two limits

    def __call__(self, each: _MeasuredColumn) -> ColumnWindow:
        """The column with its state, findings and, where it drifted, its impact."""
        name = each.column.column
        history = self._context.baseline.variation.get(name, {}) if self._context.baseline is not None else {}
        if history:
            moved, state, findings = self._against(each, history)
        elif each.reference is None or each.reference.rows < MIN_REFERENCE:
            return each.column
        else:
            moved, state, findings = self._without_history(each, each.reference)
        impact = self._impact(name, each) if state == "drift" and each.column.used else None
        return msgspec.structs.replace(each.column, state=state, moved=moved, findings=findings, impact=impact)

    def _impact(self, name: str, each: _MeasuredColumn) -> float | None:
        """The impact of a column; of a feature the largest of the columns behind it. None where it is not known."""
        if self._context.impact is None or each.column.role == "output":
            return None
        behind = [name] if each.reference is not None else self._package.manifest.lineage.features.get(name, [])
        found = [self._context.impact(h) for h in self._package.reference.columns if h.column in behind]
        return max(i for i in found if i is not None) if found and None not in found and len(found) == len(behind) else None

    def _against(self, each: _MeasuredColumn, variation: Mapping[str, Variation]) -> tuple[float, State, list[Finding]]:
        """How far the measures went beyond their `variation`: the farthest, the state, and what drifted, farthest first."""
        found: list[tuple[float, Finding]] = []
        most, watched = 0.0, False
        for name, now in each.found.items():
            if name not in variation:
                continue
            last, gap = self._last(each.column.column, name)
            verdict = judged(name, now, variation[name], each.cuts, self._alpha, last, gap)
            most, watched = max(most, verdict.moved), watched or verdict.watched
            if verdict.moved >= 1:
                low, high = (natural(name, v, each.cuts) for v in (verdict.low, verdict.high))
                text = described(name, now.value, verdict.low, verdict.high, each.cuts)
                value = natural(name, now.value, each.cuts)
                found.append((verdict.moved, Finding(measure=name, value=value, low=low, high=high, text=text)))
        found.sort(key=lambda pair: -pair[0])
        return most, "drift" if found else "watch" if watched else "ok", [finding for _, finding in found]

    def _last(self, column: str, name: str) -> tuple[float | None, float]:
        """The newest value of a measure that was as usual, and how many windows ago; None: that of the history."""
        for start, columns in self._previous:
            before = columns.get(column)
            if before is not None and name in before.measures and all(f.measure != name for f in before.findings):
                return before.measures[name], (self._start - start) / self._every
        return None, self._gap

    def _without_history(self, each: _MeasuredColumn, reference: Histogram) -> tuple[float, State, list[Finding]]:
        """By the size of distances, and by shares that are near constant in most systems, as if they varied by what `MEASURES` assumes."""
        shares = {"nulls": reference.missing, "out_of_range": 0, "new_category": 0}
        assumed = {n: assumed_share(count, reference.rows) for n, count in shares.items()}
        few = each._replace(found={n: m for n, m in each.found.items() if n in assumed})
        moved, state, findings = self._against(few, assumed)
        column, monitor = each.column, self._monitor
        least = max(monitor.psi, CHANCE / min(self._rows, reference.rows))
        far = reached(column.psi or 0, column.jensen_shannon or 0, psi_at=least, jensen_shannon_at=monitor.jensen_shannon)
        state = "drift" if far >= 1 or state == "drift" else "watch" if far >= 0.5 or state == "watch" else "ok"
        return max(moved, far), state, findings


def _mean(values: pa.ChunkedArray) -> float | None:
    """The mean of the numbers; None without any."""
    found = numbers(values)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else None


def _counts(values: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """Count of each text, most frequent first."""
    return dict(sorted(value_counts(values).items(), key=lambda pair: (-pair[1], pair[0])))
