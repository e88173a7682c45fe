"""Parity of serving and training: does a package answer logged requests the same with the context that was served as with what training joins?"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.text import count, share
from loopwright.data.examples.parity import Twice, served_and_joined
from loopwright.deploy.guards import Check
from loopwright.records.declarations import Loop
from loopwright.stores.home import Home
from loopwright.stores.outcomes.rescore import routed
from loopwright.stores.packages.probe import Probed

TOLERATED = 0.01
"""Of so many rows a column may differ: a row of context that arrives while a request is answered may or may not be in it."""

MIN_ROWS = 100
"""Fewer logged requests are too few to judge."""

SPAN = timedelta(days=7)
MAX_SHOWN = 5


class ColumnParity(msgspec.Struct, frozen=True, kw_only=True):
    """A context column of logged requests: in how many of `rows` it `differs` from what training finds, and how.

    `missing` were served without a value that training has, as of a feed that is late. `examples` are rows with id, served and joined value.
    """

    column: str
    table: str
    features: list[str]
    rows: int
    differs: int
    missing: int
    examples: list[dict[str, Any]] = []

    @property
    def share(self) -> float:
        """The share of the rows that differ."""
        return self.differs / self.rows if self.rows else 0.0

    @property
    def text(self) -> str:
        """One sentence on it."""
        late = f", {count(self.missing, 'row')} of them served without a value that is there" if self.missing else ""
        return f"{self.column} of {self.table} differs in {share(self.share)} of {count(self.rows, 'request')}{late}"


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How logged requests are answered with the context that was served, and with the one that training joins.

    `flips` is the share of the rows whose label (or number) changes; `not_compared` are columns and why.
    """

    loop: str
    package: str
    rows: int
    start: datetime | None
    end: datetime | None
    columns: list[ColumnParity]
    flips: float
    largest_difference: float
    not_compared: dict[str, str] = {}

    @property
    def skewed(self) -> list[ColumnParity]:
        """The columns that reach the package's answer and differ in more rows than is tolerated."""
        return [c for c in self.columns if c.share > TOLERATED and c.features]

    @property
    def ok(self) -> bool:
        """Whether serving and training agree."""
        return self.rows < MIN_ROWS or not self.skewed


def parity(home: Home, loop: Loop, package: Probed, *, start: datetime | None = None, end: datetime | None = None) -> Parity:
    """Compare the newest logged requests of a loop (by default of the last 7 days), answered twice by `package`."""
    until = end or home.clock.now()
    twice = served_and_joined(home, loop, start=start or until - SPAN, end=until)
    used = package.manifest.lineage
    own = {name for need in package.manifest.context for name in need.columns}
    columns = [
        _column(twice, name, sorted(feature for feature, of in used.features.items() if name in of))
        for name in twice.differs
        if name in own
    ]
    rows = twice.served.num_rows
    flips, largest = (0.0, 0.0)
    if any(c.differs and c.features for c in columns):
        with suppress(KeyError, ValueError):  # rows that it cannot answer: the gate's own check says so
            flips, largest = _flips(package, twice)
    moments = twice.served["_at"] if rows else None
    return Parity(
        loop=loop.name,
        package=package.digest,
        rows=rows,
        start=pc.min(moments).as_py() if moments is not None else None,
        end=pc.max(moments).as_py() if moments is not None else None,
        columns=sorted(columns, key=lambda c: (-c.share, c.column)),
        flips=flips,
        largest_difference=largest,
        not_compared=dict(twice.not_compared),
    )


def parity_check(home: Home, loop: Loop, package: Probed) -> list[Check]:
    """The check of the gate; nothing where there is no context, or too few requests were logged."""
    if not loop.context_columns:
        return []
    found = parity(home, loop, package)
    if found.rows < MIN_ROWS or not found.columns:
        return []
    if found.ok:
        return [
            Check(name="parity", passed=True, detail=f"{count(found.rows, 'logged request')}: served as training joins them")
        ]
    detail = "; ".join(c.text for c in found.skewed[:MAX_SHOWN])
    moved = f"{share(found.flips)} of the answers change"
    return [Check(name="parity", passed=False, detail=f"{detail}: {moved}. `loopwright parity {loop.name}` shows rows")]


def _column(twice: Twice, name: str, features: list[str]) -> ColumnParity:
    differs = twice.differs[name]
    served, joined = twice.served[name], twice.joined[name]
    missing = pc.sum(pc.and_(pc.and_(served.is_null(), joined.is_valid()), pc.fill_null(differs, False))).as_py() or 0
    shown = twice.served.append_column("_joined", joined).filter(pc.fill_null(differs, False)).slice(0, MAX_SHOWN)
    rows = zip(shown["_id"].to_pylist(), shown[name].to_pylist(), shown["_joined"].to_pylist(), strict=True)
    examples = [{"id": id, "served": one, "joined": other} for id, one, other in rows]
    total = int(pc.sum(differs).as_py() or 0)
    return ColumnParity(
        column=name,
        table=twice.tables[name],
        features=features,
        rows=len(differs) - differs.null_count,
        differs=total,
        missing=int(missing),
        examples=examples,
    )


def _flips(package: Probed, twice: Twice) -> tuple[float, float]:
    """The share of rows whose label changes (where there is none, whose score does), and the largest difference of the score."""
    one, other = (_answers(package, table) for table in (twice.served, twice.joined))
    moved = np.abs(np.asarray(one["score"], np.float64) - np.asarray(other["score"], np.float64))
    moved = moved.reshape(len(moved), -1).max(axis=1)
    labels = one.get("label"), other.get("label")
    changed = labels[0] != labels[1] if labels[0] is not None and labels[1] is not None else moved > 0
    return float(np.mean(changed)), float(np.nanmax(moved, initial=0.0))


def _answers(package: Probed, rows: pa.Table) -> Mapping[str, Any]:
    return routed(package, rows, None)._asdict()
