"""A fleet is monitored as a whole: all its answers against the answers and the quality of the whole fleet when it was made.

The rows of a segment would drift from the rows of all segments from the first day, and each segment package answers too few
rows to be judged alone; so the loop's package represents all packages of its fleet. The quality of a segment is reported by
its slice and by its package.
"""

from collections.abc import Mapping
from copy import copy
from functools import cached_property

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base.arrays import Array
from loopwright.graph.columns import segment_texts
from loopwright.monitor.inputs import main_package
from loopwright.records.evaluation import Evaluation, FleetBoard, Leaderboard
from loopwright.records.releases import ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import Probed
from loopwright.stores.packages.store import Package

MAX_BOARDS = 50
"""Maximum number of leaderboards searched for the evaluation of a fleet: older releases are no longer judged."""

NULL = "null"
"""Name of rows without a segment in the slice of a fleet."""


class Fleets:
    """The fleets of a loop that served so far: nothing is read of a loop that never had one, but its releases."""

    def __init__(self, home: Home, loop: str) -> None:
        self._home, self._loop = home, loop

    @cached_property
    def _states(self) -> list[ReleaseState]:
        return [e.record for e in self._home.ledger.find(ReleaseState, loop=self._loop, newest=False) if e.record.segments]

    @cached_property
    def _segment_packages(self) -> dict[str, str]:
        """Package of a segment -> the loop's package with which it served last."""
        return {package: state.champion.package for state in self._states for package in state.segments.values()}

    @cached_property
    def _boards(self) -> dict[str, FleetBoard]:
        """Package of a loop -> the fleet that was evaluated with it."""
        found = self._home.ledger.find(Leaderboard, loop=self._loop, limit=MAX_BOARDS) if self._states else []
        return {
            e.record.winner: e.record.fleet for e in reversed(found) if e.record.fleet is not None and e.record.fleet.serving
        }

    def main(self, predictions: pa.Table) -> str:
        """The loop's package that answered most rows, itself or by its segment packages; empty without rows."""
        return main_package(predictions, self._segment_packages)

    def whole(self, package: Probed | None) -> Probed | None:
        """A loop's package with the answers of its fleet in its reference."""
        board = self._boards.get(package.digest) if package is not None else None
        if package is None or board is None:
            return package
        inputs = [h for h in package.reference.columns if h.role != "output"]
        made = copy(package)
        made.reference = msgspec.structs.replace(package.reference, columns=[*inputs, *board.outputs])
        return made

    def evaluation(self, package: Package) -> Evaluation:
        """The evaluation of a package; for one of a fleet, that of the whole fleet."""
        board = self._boards.get(self._segment_packages.get(package.digest, package.digest))
        found = package.evaluation
        if board is None:
            return found
        alone = {name: one for name, one in found.shrunk.items() if name not in board.metrics}
        return msgspec.structs.replace(found, metrics={**found.metrics, **board.metrics}, shrunk=alone)

    def together(self, package: str) -> set[str]:
        """The packages of a fleet: the loop's package and the segment packages that served with it."""
        return {package, *(segment for segment, own in self._segment_packages.items() if own == package)}

    def slices(self, predictions: pa.Table, declared: Mapping[str, Array]) -> dict[str, Array]:
        """The segment of every row [N] as a slice named by the fleet's column, unless the loop declares one of that name."""
        column = self._states[-1].fleet if self._states else ""
        if not column or column in declared or column not in predictions.column_names:
            return {}
        return {column: np.array([NULL if t is None else t for t in segment_texts(predictions[column])], dtype=object)}
