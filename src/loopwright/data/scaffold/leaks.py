"""Columns that a first loop file leaves out of its features, because they leak the label: see `tasks.leakage`."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from loopwright.data.scaffold.template import DraftTarget
from loopwright.tasks.leakage import LEAST, ScanData, of_columns, targets, together, values_of

ROWS = 20_000
"""Maximum number of rows examined, spread evenly over the file."""


def leaking(frame: pa.Table, columns: Collection[str], aim: DraftTarget) -> dict[str, str]:
    """Suspicious columns among these -> the reason."""
    known = np.flatnonzero(aim.known)
    if aim.truth is None or len(known) < LEAST:
        return {}
    rows = known[np.unique(np.linspace(0, len(known) - 1, ROWS).astype(np.int64))]
    look = ScanData(
        targets(pa.chunked_array([pa.array(aim.truth[rows])]), aim.task),
        np.random.default_rng(0).random(len(rows)) < 0.5,
        np.arange(len(rows)),
        aim.task,
    )
    some = frame.take(pa.array(rows))
    found = {s.feature: s.why for s in of_columns({name: some[name] for name in columns}, look)}
    parts = {n: part for n in columns if n not in found and (part := values_of(some[n])) is not None}
    for names, why, _ in together(parts, look):
        found |= {name: f"{' and '.join(names)} {why}" for name in names}
    return found
