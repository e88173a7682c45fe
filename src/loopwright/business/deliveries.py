"""Measure some windows from their rows: answers with a known outcome, their latency, their value."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import NotFound, PackageRefused
from loopwright.business.totals import WindowTotals
from loopwright.records.declarations import Outcome
from loopwright.records.evaluation import Estimate, added
from loopwright.records.package import Output
from loopwright.records.windows import Quality, ValueWindow
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import Known, known, with_truth
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

    `weeks` is empty where none is like that; `known` is None without rows.
    """

    weeks: Sequence[WindowTotals]
    known: Known | None
    of: Array
    latencies: Array

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
        """
        if self.known is None or not len(self.known.truth):
            return {}
        rows = [n for n in names if metrics.of_rows(n) and n != "value_per_prediction" and not _problem(n, self.known.output)]
        by_unit = self._by(rows, self.known.units)
        if len(np.unique(self.of)) < 2:
            return by_unit
        by_window = self._by(rows, self.of)
        return {name: _wider(by_unit[name], by_window[name]) for name in rows}

    def newest(self, count: int) -> "Delivery":
        """That of the newest windows."""
        weeks = self.weeks[-count:]
        mine = self.of >= len(self.weeks) - len(weeks)
        found = self.known
        if found is not None:
            groups = None if found.groups is None else found.groups[mine]
            found = found._replace(truth=found.truth[mine], given=found.given.at(mine), groups=groups, units=found.units[mine])
        return Delivery(weeks, found, self.of[mine], self.latencies)

    def _by(self, names: Sequence[str], units: Array) -> dict[str, Estimate]:
        assert self.known is not None
        of = self.known
        return metrics.intervals(names, of.truth, *of.given, output=of.output, groups=of.groups, units=units, seed=0)


def life(
    home: Home, loop: str, outcome: Outcome, weeks: Sequence[WindowTotals], *, unit: str, minimum_rows: int, latency: bool
) -> Delivery:
    """The delivery of the whole life. Windows with fewer than `minimum_rows` outcomes do not count, as in monitoring, where others have more."""
    complete = [w for w in weeks if w.quality is not None and w.quality.with_outcome and w.quality.mature_at is None]
    enough = [w for w in complete if w.quality is not None and w.quality.with_outcome >= minimum_rows] or complete
    took = _latencies(home, loop, weeks) if latency else np.zeros(0)
    if not enough:
        return Delivery([], None, np.zeros(0, np.int64), took)
    now = home.clock.now()
    tables = [_rows(home, loop, outcome, part, unit, now) for part in _stretches(enough)]
    table = pa.concat_tables(tables, promote_options="permissive")
    found = known(table, outcome, _outputs(home, table), unit)
    start = np.array([w.start.timestamp() for w in enough])
    at = table["_at"].cast(pa.int64()).to_numpy()[found.rows] / 1e6
    return Delivery(enough, found, np.searchsorted(start, at, side="right") - 1, took)


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


def _rows(home: Home, loop: str, outcome: Outcome, weeks: Sequence[WindowTotals], unit: str, now: datetime) -> pa.Table:
    joined = with_truth(home, loop, outcome, start=weeks[0].start, end=weeks[-1].end, known_at=now)
    wanted = dict.fromkeys([*_COLUMNS, outcome.group or "", unit])
    return joined.select([name for name in wanted if name in joined.column_names]).filter(pc.is_valid(joined["_truth"]))


def _outputs(home: Home, table: pa.Table) -> dict[str, Output]:
    """Outputs of the packages that answered, by digest; deleted packages are left out."""
    found = {}
    for digest in pc.unique(table["_package"]).to_pylist():
        try:
            found[digest] = home.packages.manifest(digest).output
        except (NotFound, PackageRefused):
            continue
    return found


def _problem(name: str, output: Output) -> str:
    return metrics.problem(name, [], output)


def _wider(one: Estimate, other: Estimate) -> Estimate:
    low, high = np.fmin(one.low, other.low), np.fmax(one.high, other.high)
    return Estimate(one.value, float(low), float(high), one.n, one.too_few)
