"""Drift baseline: how a column's measures usually vary from one window to the next, over the training history of a package.

The history is cut into stretches as long as a monitoring window, each is measured as a window is, and the spread of these
values tells from where a new window has moved (`limits`). Movement that occurred during training is not drift.
"""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from loopwright.base.arrays import Array, spread_rows
from loopwright.base.errors import Damaged, RecordNotFound
from loopwright.base.log_lines import LOG
from loopwright.graph.columns import arrow_feed
from loopwright.monitor.drift.distances import measurable
from loopwright.monitor.drift.limits import Variation, pooled, variation_of
from loopwright.monitor.drift.measures import Cuts, MeasureValue, cuts_of, cuts_of_numbers, measured
from loopwright.records.declarations import Monitor, duration
from loopwright.records.entries import Record
from loopwright.stores.examples import read_examples
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import Probed
from loopwright.tasks.metrics import answered

MIN_STRETCHES, MAX_STRETCHES = 4, 104
SCORED_ROWS = 1000
"""Rows of a stretch, evenly spread, that are scored to measure how scores and features vary."""


class DriftBaseline(Record, frozen=True, kw_only=True):
    """Variation of each measure by column (`score`, `label` and features among them), over `stretches` stretches of a package's history.

    `features`: cuts of the features that are no columns. Empty where the history is gone or shorter than MIN_STRETCHES windows.
    """

    kind: ClassVar[str] = "drift-baseline"
    package: str
    every: str
    stretches: int
    variation: dict[str, dict[str, Variation]] = {}
    features: dict[str, Cuts] = {}


def drift_baseline(home: Home, loop: str, package: Probed, monitor: Monitor) -> DriftBaseline:
    """The baseline of a package for windows of `monitor.every`; measured once and stored in the ledger."""
    key = f"{package.digest}:{monitor.every}:limits"
    entry = home.ledger.latest(DriftBaseline, loop=loop, key=key)
    if entry is not None:
        return entry.record
    history = _history(home, package)
    if history is None:
        return DriftBaseline(package=package.digest, every=monitor.every, stretches=0)
    stretches, at = _stretches(history, duration(monitor.every).total_seconds(), monitor.minimum_rows)
    found, features = measures_of(package, stretches, at) if len(stretches) >= MIN_STRETCHES else ({}, {})
    record = DriftBaseline(
        package=package.digest, every=monitor.every, stretches=len(stretches), variation=found, features=features
    )
    home.ledger.put(record, loop=loop, key=key, links=[(package.digest, "measured")])
    return record


def measures_of(
    package: Probed, stretches: list[pa.Table], at: Array
) -> tuple[dict[str, dict[str, Variation]], dict[str, Cuts]]:
    """Variation of each measure by column over `stretches`, numbered `at` [N] in time, and the cuts of features."""
    some = [_spread(stretch) for stretch in stretches]
    answers, features = _answers(package, some), derived_features(package, some)
    cuts = {name: cuts_of_numbers(np.concatenate([p.to_numpy() for p in parts])) for name, parts in features.items()}
    found = {name: variations([measured(cuts[name], part) for part in parts], at) for name, parts in features.items()}
    for reference in package.reference.columns:
        name = reference.column
        if not measurable(reference):
            continue
        output = reference.role == "output"
        parts = answers.get(name, []) if output else [s[name] for s in stretches if name in s.column_names]
        if len(parts) == len(stretches):
            found[name] = variations([measured(cuts_of(reference), part) for part in parts], at)
    return found, cuts


def derived_features(package: Probed, tables: list[pa.Table]) -> dict[str, list[pa.ChunkedArray]]:
    """The features of a package that are no column of its contract, on each table [N rows].

    Only those that some row has; empty where the package's graph does not give features, or a table lacks a column.
    """
    graph = package.graph("model.onnx")
    if "features" not in graph.outputs or any(name not in table.column_names for name in graph.columns for table in tables):
        return {}
    matrices = [graph.run(arrow_feed(graph, package.columns, table), ["features"])["features"] for table in tables]
    return {
        name: [pa.chunked_array([pa.array(matrix[:, i].astype(np.float64))]) for matrix in matrices]
        for i, name in enumerate(package.manifest.features)
        if name not in package.columns and any(np.isfinite(matrix[:, i]).any() for matrix in matrices)
    }


def variations(windows: list[dict[str, MeasureValue]], at: Array) -> dict[str, Variation]:
    """The variation of the measures that every window has."""
    names = [name for name in windows[0] if all(name in w for w in windows)]
    each = {name: variation_of([w[name] for w in windows], at) for name in names}
    return each | pooled({name: u for name, u in each.items() if name.startswith("category:")})


def _spread(table: pa.Table) -> pa.Table:
    return table.take(pa.array(spread_rows(table.num_rows, SCORED_ROWS)))


def _history(home: Home, package: Probed) -> pa.Table | None:
    """The examples that the package was trained and validated on; None when the file is gone or damaged."""
    try:
        return read_examples(home, package.manifest.training.examples, ["_decided_at", *package.columns])
    except RecordNotFound:
        return None
    except Damaged as error:  # the window is judged without a history, and `verify` finds the file
        LOG.warning("%s", error)
        return None


def _stretches(history: pa.Table, seconds: float, minimum_rows: int) -> tuple[list[pa.Table], Array]:
    """The history cut into whole stretches of that length, counted back from its end; those with enough rows, oldest first.

    Also the number of each in time, the newest -1. Of more than MAX_STRETCHES neighbouring pairs are taken, evenly spread.
    """
    at = history["_decided_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    if not len(at):
        return [], np.empty(0, np.int64)
    whole = int((at.max() - at.min()) / (seconds * 1e6))
    order = np.argsort(at, kind="stable")
    number = -1 - ((at.max() - at[order]) / (seconds * 1e6)).astype(np.int64)
    numbers, starts, rows = np.unique(number, return_index=True, return_counts=True)
    kept = np.flatnonzero((rows >= max(minimum_rows, 1)) & (numbers >= -whole))
    if len(kept) > MAX_STRETCHES:
        first = np.linspace(0, len(kept) - 2, MAX_STRETCHES // 2).astype(np.int64)
        kept = kept[np.unique([first, first + 1])]
    ordered = history.take(pa.array(order))
    return [ordered.slice(int(starts[i]), int(rows[i])) for i in kept], numbers[kept]


def _answers(package: Probed, stretches: list[pa.Table]) -> dict[str, list[pa.ChunkedArray]]:
    """The model's answers (score, and label if it is a class) to each stretch.

    Empty if the history lacks a column that the model needs.
    """
    graph, manifest = package.graph("model.onnx"), package.manifest
    names = [o for o in ("score", "values") if o in graph.outputs]
    found: dict[str, list[pa.ChunkedArray]] = {"score": [], "label": []}
    for stretch in stretches:
        if any(name not in stretch.column_names for name in graph.columns):
            return {}
        said = graph.run(arrow_feed(graph, package.columns, stretch), names)
        given = answered(manifest.output, said["score"], said.get("values"), manifest.threshold)
        found["score"].append(pa.chunked_array([pa.array(given.score)]))
        if given.label is not None and given.label.dtype == object:
            found["label"].append(pa.chunked_array([pa.array(given.label, pa.string())]))
    return found
