"""Predictions with their truth: the one join that monitoring, accounting and reports start from."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.arrays import Array
from loopwright.records.declarations import Outcome, duration
from loopwright.records.package import Output
from loopwright.stores.home import Home
from loopwright.stores.outcomes.join import decided, event_times, join, outcomes, unrepeated
from loopwright.stores.outcomes.rescore import together
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.prediction_log.scan import WHOLE, LogPart, outcomes_of, sampled
from loopwright.tasks.label import label_array, label_type, unit_array
from loopwright.tasks.metrics import Answered, aligned

EARLY = timedelta(days=1)
"""Outcomes known longer than this before the stretch of time asked for are not read."""


def with_truth(
    home: Home,
    loop: str,
    outcome: Outcome,
    *,
    start: datetime,
    end: datetime,
    known_at: datetime,
    part: LogPart = WHOLE,
) -> pa.Table:
    """The predictions of [start, end) (a `part` of the log) with `_mature`, and `_truth` (the label), `_known_at` and `_stated` of `join`, as known at `known_at`.

    A prediction is mature when the wait for its outcome is over. Before, it has no truth: among those whose outcome is known already
    the labels that are known soonest are too many. One row per prediction, the columns of
    `stores.prediction_log.read.predictions`, and those of `decided`. Of a sample of the units only what is committed is read.
    """

    def read(start: datetime, end: datetime, columns: Sequence[str] | None, arms: Sequence[str] | None = None) -> pa.Table:
        if part.sample is None:
            return decided(home, predictions(home, loop, start=start, end=end, columns=columns, arms=arms))
        return decided(home, sampled(home, loop, part.sample, start=start, end=end, columns=columns or [], arms=arms))

    asked = read(start, end, part.columns, part.arms)

    def others() -> pa.Table:
        return read(
            start - duration(outcome.wait), known_at, ["_at", "_unit", "_package", "_of_file", *event_times(home, asked)]
        )

    if part.sample is None:
        known = outcomes(home, loop, since=start - EARLY, known_by=known_at)
    else:
        known = unrepeated(outcomes_of(home, loop, asked, since=start - EARLY, known_by=known_at))
    joined = join(home, asked, known, outcome, known_by=known_at, others=others)
    mature = pc.less_equal(joined["_decided"], pa.scalar(known_at - duration(outcome.wait), pa.timestamp("us", tz="UTC")))
    rows = pc.if_else(mature, pa.array(range(joined.num_rows), pa.int64()), None)
    for name in ("_truth", "_known_at", "_stated"):
        joined = joined.set_column(joined.column_names.index(name), name, joined[name].take(rows))
    return joined.append_column("_mature", mature)


def matures(joined: pa.Table, end: datetime, outcome: Outcome) -> datetime | None:
    """When the wait is over for all predictions of a window that ends at `end`; None where it is."""
    return None if pc.all(joined["_mature"]).as_py() in (True, None) else end + duration(outcome.wait)


def without_absent(joined: pa.Table, earlier: Sequence[tuple[int, int]]) -> pa.Table:
    """Predictions of a window without their truth, where outcomes have stopped to arrive and absence means nothing.

    `earlier`: of windows before, how many outcomes arrived, for how many predictions. They have stopped where at most a quarter of what
    those let expect arrived, by chance (Poisson) in less than one of a thousand windows.
    """
    rows, arrived = (pc.sum(column).as_py() or 0 for column in (joined["_mature"], joined["_stated"]))
    before, of = (sum(counts) for counts in zip(*earlier, strict=True)) if earlier else (0, 0)
    expected = rows * before / max(of, 1)
    if arrived > expected / 4 or not expected or _poisson(arrived, expected) >= _SELDOM:
        return joined
    for name in ("_truth", "_known_at"):
        joined = joined.set_column(joined.column_names.index(name), name, pa.nulls(joined.num_rows, joined[name].type))
    return joined


_SELDOM = 0.001


def _poisson(most: int, expected: float) -> float:
    """The chance of at most so many."""
    logs = (i * math.log(expected) - expected - math.lgamma(i + 1) for i in range(most + 1))
    return math.fsum(map(math.exp, logs))


class Known(NamedTuple):
    """Logged answers with a known truth, N rows: their mask in the log, truth, answers, ranking groups, units.

    `output` is that of all packages that answered: their classes together.
    """

    rows: Array
    truth: Array
    given: Answered
    groups: Array | None
    output: Output
    units: Array


def known(joined: pa.Table, outcome: Outcome, outputs: Mapping[str, Output], unit: str = "") -> Known:
    """Select the predictions whose truth is known. `outputs` are the outputs of the packages that answered, by digest.

    `unit` is the column of the independent units, the key where it is empty.
    What a package answered for another task (the loop's has changed) is left out; a package that is gone counts as one of this task.
    """
    package = joined["_package"].to_numpy()
    other = [digest for digest, output in outputs.items() if output.task != outcome.task]
    rows = joined["_truth"].is_valid().to_numpy() & ~np.isin(package.astype(str), other)
    table = joined.filter(pa.array(rows))
    output = together([Output(task=outcome.task), *(o for o in outputs.values() if o.task == outcome.task)])
    label = None
    if outcome.shape.answer:
        label = label_array(table["_label"].cast(label_type(outcome)))
    values = _values(table, outputs, output) if output.names else None
    groups = np.array(table[outcome.group].to_pylist(), dtype=object).astype(str) if outcome.group else None
    given = Answered(table["_score"].to_numpy().astype(np.float64), label, values)
    return Known(rows, label_array(table["_truth"]), given, groups, output, unit_array(table, unit))


def _values(table: pa.Table, outputs: Mapping[str, Output], output: Output) -> Array:
    """The values of logged rows [N, K] in the order of `output.names`; 0 where a package has none of that name."""
    found = np.zeros((table.num_rows, len(output.names)))
    package = table["_package"].to_numpy()
    for digest in np.unique(package.astype(str)).tolist() if "_values" in table.column_names else []:
        rows = np.flatnonzero(package == digest)
        names = outputs[digest].names if digest in outputs else []
        logged = table["_values"].take(pa.array(rows)).combine_chunks()
        if names and not logged.null_count:
            found[rows] = aligned(np.asarray(logged.flatten()).reshape(len(rows), -1), names, output.names)
    return found
