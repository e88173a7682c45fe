"""Inputs and outputs of one monitoring window against the reference of the package that served: the window record."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.graph.columns import numbers
from loopwright.monitor.drift import bins, jensen_shannon, measurable, psi, state_of
from loopwright.records.declarations import Column, Monitor
from loopwright.records.package import Histogram
from loopwright.records.windows import ColumnWindow, State, Window
from loopwright.stores.packages.store import Package

IDENTIFIER_SHARE = 0.5
"""A text column names things rather than kinds when its reference leaves more than this share of rows out of its categories,
or has more categories than this share of rows."""

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


def window(
    predictions: pa.Table,
    package: Package | None,
    monitor: Monitor,
    start: datetime,
    end: datetime,
    baseline: Mapping[str, float] | None = None,
    answered: pa.Table | None = None,
) -> Window:
    """The window [start, end) from its logged predictions [N rows], measured against `package`'s reference.

    `package` is the one that answered most rows (`main_package`), None when there are no rows. With fewer rows than the
    monitor's `minimum_rows` shares are measured anyway, but every state is `no data`: too few to judge does not mean ok.
    Outputs are measured on the rows `answered` if these are not all.
    `baseline` is the usual PSI of each column (see `monitor.baseline`); only movement beyond it counts. The state depends on
    the columns that reach the model and on its answers: movement of unused columns is recorded, not judged.
    """
    rows = predictions.num_rows
    flags = _counts(pc.list_flatten(predictions["_flags"].combine_chunks())) if rows else {}
    if package is None or not rows:
        return _window(start, end, rows, "no data", "", predictions, flags, [], {}, monitor)
    enough = rows >= monitor.minimum_rows
    reasons = skipped(package)
    columns = [
        _column(
            histogram,
            (predictions if answered is None or histogram.role != "output" else answered)[logged],
            flags,
            monitor,
            (baseline or {}).get(histogram.column, 0.0),
            enough=enough,
            used=histogram.role == "output" or package.manifest.lineage.reaches_model(histogram.column),
        )
        for histogram in package.reference.columns
        if histogram.column not in reasons
        and (logged := LOGGED.get(histogram.column, histogram.column)) in predictions.column_names
        and measurable(histogram)
    ]
    states = {c.state for c in columns if c.used}
    state: State = "no data" if not enough else "drift" if "drift" in states else "watch" if "watch" in states else "ok"
    return _window(start, end, rows, state, package.digest, predictions, flags, columns, reasons, monitor)


def _window(
    start: datetime,
    end: datetime,
    rows: int,
    state: State,
    reference: str,
    predictions: pa.Table,
    flags: dict[str, int],
    columns: list[ColumnWindow],
    reasons: dict[str, str],
    monitor: Monitor,
) -> Window:
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
        drifted=[c.column for c in sorted(columns, key=lambda c: -c.beyond) if c.used and c.state == "drift"],
        skipped=reasons,
        minimum_rows=monitor.minimum_rows,
    )


def _column(
    reference: Histogram,
    values: pa.ChunkedArray,
    flags: Mapping[str, int],
    monitor: Monitor,
    baseline: float,
    *,
    enough: bool,
    used: bool,
) -> ColumnWindow:
    rows = max(len(values), 1)
    counted = bins(reference, values)
    moved, distance = psi(*counted), jensen_shannon(*counted)
    state = state_of(max(0.0, moved - baseline), distance, psi_at=monitor.psi, jensen_shannon_at=monitor.jensen_shannon)
    return ColumnWindow(
        column=reference.column,
        role="output" if reference.role == "output" else "context" if reference.role == "context" else "request",
        state=state if enough else "no data",
        psi=moved,
        jensen_shannon=distance,
        missing=values.null_count / rows,
        missing_reference=reference.missing / max(reference.rows, 1),
        out_of_range=flags.get(f"out_of_range:{reference.column}", 0) / rows,
        new_category=flags.get(f"new_category:{reference.column}", 0) / rows,
        mean=None if reference.categories else _mean(values),
        mean_reference=reference.mean,
        baseline=baseline,
        used=used,
    )


def _mean(values: pa.ChunkedArray) -> float | None:
    """The mean of the numbers; None without any."""
    found = numbers(values)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else None


def _counts(values: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """Count of each text, most frequent first."""
    counted = pc.value_counts(values)
    pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
