"""Checks of a request's row before the model runs: its times, ranges and known categories."""

from collections.abc import Collection
from typing import NamedTuple
from weakref import WeakValueDictionary

from loopwright.records.package import Manifest

_KNOWN: "WeakValueDictionary[frozenset[str], frozenset[str]]" = WeakValueDictionary()


def _once(texts: frozenset[str]) -> frozenset[str]:
    """Share the texts that several packages have."""
    return _KNOWN.setdefault(texts, texts)


class RowChecks(NamedTuple):
    """Columns to check in a row: times, ranges (name, minimum, maximum), and known categories."""

    times: list[str]
    ranges: list[tuple[str, float, float]]
    categories: list[tuple[str, frozenset[str]]]

    @staticmethod
    def of(manifest: Manifest) -> "RowChecks":
        """The checks of a row with all columns of the contract."""
        request, endless = manifest.request, float("inf")
        return RowChecks(
            [name for name, column in request.items() if column.type == "timestamp"],
            [
                (name, -endless if c.minimum is None else c.minimum, endless if c.maximum is None else c.maximum)
                for name, c in request.items()
                if c.minimum is not None or c.maximum is not None
            ],
            [
                (name, _once(frozenset(known)))
                for name, c in request.items()
                if c.type == "string" and (known := c.categories if c.categories is not None else manifest.vocabulary.get(name))
            ],
        )

    def only(self, names: Collection[str]) -> "RowChecks":
        """Checks of a row that has exactly the columns `names`."""
        return RowChecks(
            [name for name in self.times if name in names],
            [check for check in self.ranges if check[0] in names],
            [check for check in self.categories if check[0] in names],
        )
