"""Columns that a first loop file leaves out of its features, because they leak the label: see `tasks.leakage`."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from loopwright.base.arrays import spread_rows
from loopwright.data.scaffold.template import DraftTarget
from loopwright.tasks.leak_measures import LEAST
from loopwright.tasks.leakage import ScanData, by_group, of_columns, targets, together, values_of

ROWS = 20_000
"""Maximum number of rows examined, spread evenly over the file."""

MISSING_WITHOUT, MISSING_WITH = 0.9, 0.01
"""A column that is missing in at least this share of the rows without a label, and at most that of the others, is known with it."""


def leaking(frame: pa.Table, columns: Collection[str], aim: DraftTarget) -> dict[str, str]:
    """Suspicious columns among these -> the reason."""
    known = np.flatnonzero(aim.known)
    if aim.truth is None or len(known) < LEAST:
        return {}
    rows = known[spread_rows(len(known), ROWS)]
    look = ScanData(
        targets(pa.chunked_array([pa.array(aim.truth[rows])]), aim.task),
        np.random.default_rng(0).random(len(rows)) < 0.5,
        np.arange(len(rows)),
        aim.task,
    )
    some = frame.take(pa.array(rows))
    found = {s.feature: s.why for s in of_columns({name: some[name] for name in columns}, look)}
    found = _known_with_the_label(frame, columns, aim) | found
    parts = {n: part for n in columns if n not in found and (part := values_of(some[n])) is not None}
    for names, why, _ in together(parts, look):
        found |= {name: f"{' and '.join(names)} {why}" for name in names}
    everything = {n: part for n in columns if (part := values_of(some[n])) is not None}
    judged = {name: part for name, part in parts.items() if name not in found}
    return found | {name: leak.why for name, _, leak in by_group(judged, everything, look)}


def _known_with_the_label(frame: pa.Table, columns: Collection[str], aim: DraftTarget) -> dict[str, str]:
    """Columns that are missing where the label is, and nowhere else -> the reason. Where most are, those rows are empty."""
    unlabelled = ~aim.known
    if unlabelled.sum() < LEAST:
        return {}
    found = {}
    for name in columns:
        missing = frame[name].is_null().to_numpy()
        without, others = missing[unlabelled].mean(), missing[aim.known].mean()
        if without >= MISSING_WITHOUT and others <= MISSING_WITH:
            found[name] = f"missing in {without:.0%} of the rows without a label and in {others:.0%} of the others"
    return found if 2 * len(found) < len(columns) else {}
