"""Measure some windows from their rows: answers with a known outcome, their latency, their value."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import NotFound, PackageRefused
from loopwright.business.totals import WindowTotals
from loopwright.graph.columns import arrow_feed
from loopwright.records.declarations import Outcome
from loopwright.records.evaluation import Estimate, added
from loopwright.records.package import Output
from loopwright.records.windows import Quality, ValueWindow
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import Known, known, with_truth
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.read import predictions
from loopwright.tasks import metrics

Array = np.ndarray[Any, Any]

MAX_ROWS = 200_000
"""About so many predictions are read with all their columns at a time."""

MAX_NOW = 4
"""At most so many windows are now."""

_COLUMNS = ("_at", "_truth", "_package", "_label", "_score", "_values", "_unit")


class Delivery(NamedTuple):
    """What `weeks` delivered, those with complete outcomes and enough of them; `known` are their N rows, each of window `of` [N].

    `weeks` is empty where none is like that; `known` is None without rows. `slices` maps slice name to its value on each row [N], by the
    package that answered it; None where that has no such slice, or is gone.
    """

    weeks: Sequence[WindowTotals]
    known: Known | None
    of: Array
    latencies: Array
    slices: Mapping[str, Array] = MappingProxyType({})

    @property
    def qualities(self) -> list[Quality]:
        """The quality of each window."""
        return [w.quality for w in self.weeks if w.quality is not None]

    @property
    def values(self) -> list[ValueWindow]:
        """The account of each window."""
        return [w.value for w in self.weeks if w.value is not None]

    @property
    def per_prediction(self) -> Estimate | None:
        """Money over no model per prediction with an outcome."""
        total, n = added([v.over_no_model for v in self.values]), sum(v.with_outcome for v in self.values)
        return Estimate(total.value / n, total.low / n, total.high / n, n, total.too_few) if n else None

    def metrics(self, names: Sequence[str]) -> dict[str, Estimate]:
        """Compute the metrics that are defined on rows, over all rows together.

        What is independent are units and windows: what is bad about a week is bad for all of its rows. The wider interval counts.
        A gap between slices is in `gap`.
        """
        return self._metrics([name for name in names if name.partition(":")[0] not in metrics.GAPS])

    def gap(self, name: str) -> tuple[Estimate | None, int]:
        """A gap between slices, and how many rows the second largest value of the slice has: so many tell it."""
        slice_name = name.partition(":")[2]
        values = self.slices.get(slice_name)
        if values is None or not (there := values != None).any():  # noqa: E711 (elementwise)
            return None, 0
        counts = np.sort(np.unique(values[there].astype(str), return_counts=True)[1])
        if len(counts) < 2:
            return None, 0
        return self._at(there, self.weeks)._metrics([name]).get(name), int(counts[-2])

    def _metrics(self, names: Sequence[str]) -> dict[str, Estimate]:
        if self.known is None or not len(self.known.truth):
            return {}
        usable = {n: metrics.problem(n, self.slices, self.known.output) == "" for n in names if n != "value_per_prediction"}
        rows = [name for name, usable_name in usable.items() if usable_name and metrics.of_rows(name)]
        by_unit = self._by(rows, self.known.units)
        if len(np.unique(self.of)) < 2:
            return by_unit
        by_window = self._by(rows, self.of)
        return {name: _wider(by_unit[name], by_window[name]) for name in rows}

    def newest(self, count: int) -> "Delivery":
        """That of the newest windows."""
        weeks = self.weeks[-count:]
        return self._at(self.of >= len(self.weeks) - len(weeks), weeks)

    def _at(self, mine: Array, weeks: Sequence[WindowTotals]) -> "Delivery":
        """That of some rows (a mask)."""
        found = self.known
        if found is not None:
            groups = None if found.groups is None else found.groups[mine]
            found = found._replace(truth=found.truth[mine], given=found.given.at(mine), groups=groups, units=found.units[mine])
        slices = {name: values[mine] for name, values in self.slices.items()}
        return Delivery(weeks, found, self.of[mine], self.latencies, slices)

    def _by(self, names: Sequence[str], units: Array) -> dict[str, Estimate]:
        assert self.known is not None
        of = self.known
        return metrics.intervals(
            names, of.truth, *of.given, output=of.output, groups=of.groups, units=units, seed=0, slices=self.slices
        )


def life(
    home: Home,
    loop: str,
    outcome: Outcome,
    weeks: Sequence[WindowTotals],
    *,
    unit: str,
    minimum_rows: int,
    latency: bool,
    slices: Sequence[str] = (),
) -> Delivery:
    """The delivery of the whole life, with these slices. Windows with fewer than `minimum_rows` outcomes do not count, as in monitoring, where others have more."""
    complete = [w for w in weeks if w.quality is not None and w.quality.with_outcome and w.quality.mature_at is None]
    enough = [w for w in complete if w.quality is not None and w.quality.with_outcome >= minimum_rows] or complete
    took = _latencies(home, loop, weeks) if latency else np.zeros(0)
    if not enough:
        return Delivery([], None, np.zeros(0, np.int64), took)
    now = home.clock.now()
    tables, values = [], []
    for part in _stretches(enough):
        joined = with_truth(home, loop, outcome, start=part[0].start, end=part[-1].end, known_at=now)
        joined = joined.filter(pc.is_valid(joined["_truth"]))
        values.append(_sliced(home, joined, slices))
        tables.append(joined.select([n for n in joined.column_names if n in (*_COLUMNS, outcome.group, unit)]))
    table = pa.concat_tables(tables, promote_options="permissive")
    found = known(table, outcome, _outputs(home, table), unit)
    start = np.array([w.start.timestamp() for w in enough])
    at = table["_at"].cast(pa.int64()).to_numpy()[found.rows] / 1e6
    of_slices = {name: np.concatenate([each[name] for each in values])[found.rows] for name in slices}
    return Delivery(enough, found, np.searchsorted(start, at, side="right") - 1, took, of_slices)


def now_of(life: Delivery, names: Sequence[str]) -> Delivery:
    """The delivery of the newest window; of a few where fewer are too few to tell."""
    for count in range(1, min(MAX_NOW, len(life.weeks)) + 1):
        found = life.newest(count)
        if not any(one.too_few for one in found.metrics(names).values()):
            return found
    return life.newest(1)


def newest_latencies(home: Home, loop: str, weeks: Sequence[WindowTotals]) -> Array:
    """Latency of every logged prediction of the newest window that has any, microseconds [N]."""
    asked = [w for w in weeks if w.window.rows]
    return _latencies(home, loop, asked[-1:])


def _latencies(home: Home, loop: str, weeks: Sequence[WindowTotals]) -> Array:
    """Latency of every logged prediction of windows that follow each other, microseconds [N]."""
    if not weeks:
        return np.zeros(0)
    found = predictions(home, loop, start=weeks[0].start, end=weeks[-1].end, columns=["_latency_us"])["_latency_us"]
    return np.asarray(found.to_numpy())


def _stretches(weeks: Sequence[WindowTotals]) -> Iterator[list[WindowTotals]]:
    """Windows that follow each other, of about `MAX_ROWS` predictions each."""
    part: list[WindowTotals] = []
    for week in weeks:
        if part and (part[-1].end != week.start or sum(w.window.rows for w in part) + week.window.rows > MAX_ROWS):
            yield part
            part = []
        part.append(week)
    yield part


def _sliced(home: Home, table: pa.Table, names: Sequence[str]) -> dict[str, Array]:
    """The value of these slices on each row [N], by the graph of the package that answered it; None where there is none."""
    found = {name: np.full(table.num_rows, None, dtype=object) for name in names}
    package = table["_package"].to_numpy().astype(str)
    for digest in np.unique(package).tolist() if names else []:
        try:
            opened = open_probed(home.packages, digest)
            graph = opened.graph("slices.onnx") if "slices.onnx" in opened.files else None
        except (NotFound, PackageRefused):
            continue
        own = [name for name in names if graph is not None and name in graph.outputs]
        if graph is None or not own or any(name not in table.column_names for name in graph.columns):
            continue
        rows = np.flatnonzero(package == digest)
        for name, values in graph.run(arrow_feed(graph, opened.columns, table.take(pa.array(rows))), own).items():
            found[name][rows] = values
    return found


def _outputs(home: Home, table: pa.Table) -> dict[str, Output]:
    """Outputs of the packages that answered, by digest; deleted packages are left out."""
    found = {}
    for digest in pc.unique(table["_package"]).to_pylist():
        try:
            found[digest] = home.packages.manifest(digest).output
        except (NotFound, PackageRefused):
            continue
    return found


def _wider(one: Estimate, other: Estimate) -> Estimate:
    low, high = np.fmin(one.low, other.low), np.fmax(one.high, other.high)
    return Estimate(one.value, float(low), float(high), one.n, one.too_few)
