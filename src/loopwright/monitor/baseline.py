"""Drift baseline: how much a column usually moves from the reference, from one stretch of the training history to the next.

Rows are not independent: a week's flights share a week's weather, so every week differs from any fortnight before it by far
more than by chance, and a threshold for independent rows raises false alarms all year. Movement that occurred during
training is not drift. So the training history is cut into stretches as long as a monitoring
window, each is measured against the reference, and PSI counts as drift only above the 95th percentile of these values.
"""

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from loopwright.base.errors import Damaged, RecordNotFound
from loopwright.base.log_lines import LOG
from loopwright.graph.columns import arrow_feed
from loopwright.monitor.drift import bins, measurable, psi
from loopwright.records.declarations import Monitor, duration
from loopwright.records.entries import Record
from loopwright.stores.examples import read_examples
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import Probed
from loopwright.tasks.metrics import answered

QUANTILE = 0.95
MIN_STRETCHES, MAX_STRETCHES = 4, 60
SCORED_ROWS = 1000
"""Rows of a stretch, evenly spread, that are scored to measure how far scores move."""

Array = np.ndarray[Any, Any]


class DriftBaseline(Record, frozen=True, kw_only=True):
    """Usual movement (PSI by column, `score` among them) of a package over `stretches` stretches of its training history."""

    kind: ClassVar[str] = "drift-baseline"
    package: str
    every: str
    stretches: int
    psi: dict[str, float]


def drift_baseline(home: Home, loop: str, package: Probed, monitor: Monitor) -> dict[str, float]:
    """Column -> usual PSI between windows of `monitor.every`; measured once per package and stored in the ledger.

    Empty where the history is gone or shorter than MIN_STRETCHES windows: then every movement counts.
    """
    key = f"{package.digest}:{monitor.every}"
    entry = home.ledger.latest(DriftBaseline, loop=loop, key=key)
    if entry is not None:
        return entry.record.psi
    history = _history(home, package)
    if history is None:
        return {}
    stretches = _stretches(history, duration(monitor.every).total_seconds(), monitor.minimum_rows)
    found = movement(package, stretches) if len(stretches) >= MIN_STRETCHES else {}
    record = DriftBaseline(package=package.digest, every=monitor.every, stretches=len(stretches), psi=found)
    home.ledger.put(record, loop=loop, key=key, links=[(package.digest, "measured")])
    return found


def movement(package: Probed, stretches: list[pa.Table]) -> dict[str, float]:
    """The QUANTILE of PSI against the package's reference over `stretches`, by column that every stretch has."""
    answers = _answers(package, stretches)
    found = {}
    for reference in package.reference.columns:
        name = reference.column
        if not measurable(reference):
            continue
        if reference.role == "output":
            parts = answers.get(name, [])
        else:
            parts = [stretch[name] for stretch in stretches if name in stretch.column_names]
        if parts:
            found[name] = float(np.quantile([psi(*bins(reference, part)) for part in parts], QUANTILE))
    return found


def _history(home: Home, package: Probed) -> pa.Table | None:
    """The examples that the package was trained and validated on; None when the file is gone or damaged."""
    try:
        return read_examples(home, package.manifest.training.examples, ["_decided_at", *package.columns])
    except RecordNotFound:
        return None
    except Damaged as error:  # every movement counts then, and `verify` finds the file
        LOG.warning("%s", error)
        return None


def _stretches(history: pa.Table, seconds: float, minimum_rows: int) -> list[pa.Table]:
    """The history cut into whole stretches of that length, counted back from its end; those with enough rows."""
    at = history["_decided_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    if not len(at):
        return []
    age = ((at.max() - at) / (seconds * 1e6)).astype(np.int64)
    whole = int((at.max() - at.min()) / (seconds * 1e6))
    numbers, rows = np.unique(age[age < whole], return_counts=True)
    numbers = numbers[rows >= max(minimum_rows, 1)]
    if len(numbers) > MAX_STRETCHES:
        numbers = numbers[np.linspace(0, len(numbers) - 1, MAX_STRETCHES).astype(np.int64)]
    return [history.filter(pa.array(age == number)) for number in numbers]


def _answers(package: Probed, stretches: list[pa.Table]) -> dict[str, list[pa.ChunkedArray]]:
    """The model's answers (score, and label if it is a class) to SCORED_ROWS rows of each stretch.

    Empty if the history lacks a column that the model needs.
    """
    graph, manifest = package.graph("model.onnx"), package.manifest
    names = [o for o in ("score", "values") if o in graph.outputs]
    found: dict[str, list[pa.ChunkedArray]] = {"score": [], "label": []}
    for stretch in stretches:
        if any(name not in stretch.column_names for name in graph.columns):
            return {}
        chosen = np.unique(np.linspace(0, stretch.num_rows - 1, SCORED_ROWS).astype(np.int64))
        said = graph.run(arrow_feed(graph, package.columns, stretch.take(pa.array(chosen))), names)
        given = answered(manifest.output, said["score"], said.get("values"), manifest.threshold)
        found["score"].append(pa.chunked_array([pa.array(given.score)]))
        if given.label is not None and given.label.dtype == object:
            found["label"].append(pa.chunked_array([pa.array(given.label, pa.string())]))
    return found
