"""Rows of a batch that are ready for a graph, as several packages may share them."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from loopwright.deploy.serving.suspects import Values


class Prepared(NamedTuple):
    """N rows ready for a graph: settled, with their flags, units and context; `full` are rows and context together.

    `inputs` are the values that the model uses as the client sent them, `share_us` is the time that this took, for each row.
    """

    rows: Sequence[dict[str, Any]]
    inputs: Values
    names: Sequence[str]
    moments: Sequence[int]
    units: Sequence[str]
    flags: list[list[str]]
    contexts: Sequence[dict[str, Any]]
    ages: Sequence[float | None]
    full: Sequence[Mapping[str, Any]]
    share_us: float

    def part(self, places: Sequence[int]) -> "Prepared":
        """Some of the rows."""
        pick: Any = itemgetter(*places) if len(places) > 1 else lambda rows: (rows[places[0]],)
        full = pick(self.full)
        rows = full if self.full is self.rows else pick(self.rows)
        inputs = pick(self.inputs) if self.inputs else self.inputs
        names, moments, units, flags = pick(self.names), pick(self.moments), pick(self.units), pick(self.flags)
        return Prepared(rows, inputs, names, moments, units, flags, pick(self.contexts), pick(self.ages), full, self.share_us)
