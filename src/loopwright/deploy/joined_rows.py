"""The rows of both arms of a phase whose outcome is known: of a sample of the units where they are too many."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.arrays import Array
from loopwright.deploy.gate import slice_values
from loopwright.deploy.phases import Phase
from loopwright.deploy.traffic import Sides
from loopwright.records.declarations import Loop
from loopwright.records.releases import ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import EARLY, Known, known, with_truth
from loopwright.stores.packages.probe import Probed, open_probed
from loopwright.stores.prediction_log.scan import LogPart, UnitSample, known_outcomes
from loopwright.tasks.metrics import sequence

_COMPARED = ["_id", "_at", "_package", "_arm", "_score", "_label", "_values", "_unit", "_of_file"]


class JoinedRows(NamedTuple):
    """N rows: answers and truth, units (None: each row is one), arm (`Phase.side`), their rows of the log, slices; of one of 2^`halvings` units."""

    known: Known
    units: Array | None
    side: Array
    logged: pa.Table
    slices: dict[str, Array]
    halvings: int

    @property
    def parts(self) -> dict[tuple[str, str], Array]:
        """The rows [N] of all traffic, `("", "")`, and of each value of each slice."""
        found: dict[tuple[str, str], Array] = {("", ""): np.ones(len(self.side), np.bool_)}
        for name, values in sorted(self.slices.items()):
            code = pa.array(values).dictionary_encode()
            codes, words = code.indices.to_numpy(), code.dictionary.to_pylist()
            found |= {(name, word): codes == words.index(word) for word in sorted(words)}
        return found


def unit_sample(loop: Loop, state: ReleaseState, rows: int, most: int) -> UnitSample:
    """The units to look at so that of so many rows at most so many are left."""
    return UnitSample(loop.unit or "", state.salt, sequence.halvings_of(rows, most))


def joined_rows(
    home: Home, loop: Loop, phase: Phase, counted: Sides, at: datetime, *, most: int, sliced: bool = True
) -> JoinedRows | None:
    """The rows of a phase whose outcome is known at `at`, about `most` of them; None where there are none. `sliced`: with their slices."""
    outcome, rows, state = loop.outcome, counted.most("waited"), phase.states[-1]
    if outcome.absent is None and rows > most:
        rows = min(rows, known_outcomes(home, loop.name, since=phase.start - EARLY, known_by=at))
    sample = unit_sample(loop, state, rows, most)
    package = open_probed(home.packages, state.former.package) if sliced and state.former is not None else None
    part = LogPart(phase.arms, _columns(home, loop, phase, package), sample if sample.halvings else None)
    joined = with_truth(home, loop.name, outcome, start=phase.start, end=phase.ends[-1], known_at=at, part=part)
    side = phase.side(joined["_at"].to_numpy().astype("datetime64[us]"), joined["_arm"].to_numpy().astype(str))
    found = answered(home, loop, joined.filter(pa.array(side >= 0)))
    if found is None:
        return None
    rows_known = pa.array(found.rows)
    logged = joined.filter(pa.array(side >= 0)).filter(rows_known)
    slices = slice_values(package, logged, None) if package is not None else {}
    units = found.units if len(np.unique(found.units)) < len(found.units) else None
    return JoinedRows(found, units, side[side >= 0][found.rows], logged, slices, sample.halvings)


def answered(home: Home, loop: Loop, joined: pa.Table) -> Known | None:
    """The rows with a known truth of predictions joined with it; None without any prediction."""
    if not joined.num_rows:
        return None
    packages = pc.unique(joined["_package"]).to_pylist()
    outputs = {digest: open_probed(home.packages, digest).manifest.output for digest in packages}
    return known(joined, loop.outcome, outputs, loop.unit or "")


def _columns(home: Home, loop: Loop, phase: Phase, sliced: Probed | None) -> list[str]:
    """The columns of the log that a comparison needs."""
    packages = {arm.package for state in phase.states for arm in state.arms}
    times = [home.packages.manifest(digest).event_time for digest in sorted(packages)]
    of_slices: Sequence[str] = (
        sliced.graph("slices.onnx").columns if sliced is not None and "slices.onnx" in sliced.files else []
    )
    return list(dict.fromkeys(c for c in [*_COMPARED, loop.unit, loop.outcome.group, *times, *of_slices] if c))
