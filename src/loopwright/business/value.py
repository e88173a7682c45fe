"""Value: the money that predictions made, from the scope's value table and the outcomes, beside two alternatives.

The alternatives are evaluated on the very same rows: "no model" (nobody acts) and "heuristic only" (the package's own
`heuristic.onnx`). Each row's money depends only on truth, the model's label and the heuristic's label, so a window is
eight counts, and a bootstrap over its rows (Efron 1979) is a multinomial draw of those counts: exact, and quick.
"""

from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.business.costs import compute_cost, serving_seconds, turn_seconds
from loopwright.records.columns import arrow_feed
from loopwright.records.declarations import Outcome, Scope, Value
from loopwright.records.errors import NotFound, PackageRefused
from loopwright.records.evaluation import Estimate, Leaderboard
from loopwright.records.graph import Graph
from loopwright.records.home import Home
from loopwright.records.packages import Package
from loopwright.records.truth import with_truth
from loopwright.records.windows import ValueWindow

Array = np.ndarray[Any, Any]

RESAMPLES = 2000
KINDS = ("true positive", "false positive", "true negative", "false negative")


def money(value: Value, truth: Array, label: Array) -> Array:
    """Money of each row [N], float64, in the table's currency, from `truth` bool [N] and `label` bool [N]."""
    table = np.array([[value.true_negative, value.false_positive], [value.false_negative, value.true_positive]])
    return np.asarray(table[truth.astype(np.int64), label.astype(np.int64)])


def value(
    truth: Array,
    label: Array,
    heuristic: Array,
    table: Value,
    *,
    start: datetime,
    end: datetime,
    known_at: datetime,
    predictions: int,
    cost: float = 0.0,
    seed: int = 0,
) -> ValueWindow:
    """Money of the rows whose outcome is known: `truth`, `label` (the model's), `heuristic` (its label), bool [N] each.

    `model`, `heuristic` and `no_model` are sums over the N rows; the differences are paired. `predictions` counts all rows
    of the window, with an outcome or not. Intervals: 95 % percentiles of RESAMPLES seeded resamples of the rows.
    """
    cells = np.bincount(truth.astype(np.int64) * 4 + label.astype(np.int64) * 2 + heuristic.astype(np.int64), minlength=8)
    in_truth, in_label, in_heuristic = (np.array([bool(cell & bit) for cell in range(8)]) for bit in (4, 2, 1))
    model, other = money(table, in_truth, in_label), money(table, in_truth, in_heuristic)
    nothing = money(table, in_truth, np.zeros(8, dtype=np.bool_))
    n = int(cells.sum())
    drawn = np.random.default_rng(seed).multinomial(n, cells / n, size=RESAMPLES) if n else np.zeros((1, 8))

    def total(per_cell: Array) -> Estimate:
        low, high = np.percentile(drawn @ per_cell, [2.5, 97.5])
        return Estimate(float(cells @ per_cell), float(low), float(high), n)

    kinds = (in_truth & in_label, ~in_truth & in_label, ~in_truth & ~in_label, in_truth & ~in_label)
    return ValueWindow(
        start=start,
        end=end,
        known_at=known_at,
        currency=table.currency,
        predictions=predictions,
        with_outcome=n,
        model=total(model),
        heuristic=total(other),
        no_model=float(cells @ nothing),
        over_no_model=total(model - nothing),
        over_heuristic=total(model - other),
        cost=cost,
        counts={kind: int(cells[mask].sum()) for kind, mask in zip(KINDS, kinds, strict=True)},
    )


def account(
    home: Home, *, loop_name: str, scope: Scope, outcome: Outcome, start: datetime, end: datetime, known_at: datetime
) -> ValueWindow | None:
    """The money of the window [start, end) from the outcomes known at `known_at`; None when nothing was predicted in it.

    The heuristic is that of the package which answered. Rows of a package that is gone are left out of the comparison, and
    so count as without outcome. The record is returned, not stored.
    """
    joined = with_truth(home, loop_name, outcome, start=start, end=end, known_at=known_at)
    if not joined.num_rows:
        return None
    seconds = serving_seconds(joined) + turn_seconds(home, loop_name, start=start, end=end)
    parts = []
    for digest in pc.unique(joined["_package"]).to_pylist():
        package = _package(home, digest)
        if package is not None:
            rows = joined.filter(pc.and_(pc.equal(joined["_package"], digest), pc.is_valid(joined["_truth"])))
            parts.append((_bools(rows["_truth"]), _bools(rows["_label"]), heuristic_label(package, rows)))
    truth, label, heuristic = (np.concatenate([part[i] for part in parts] or [np.zeros(0, np.bool_)]) for i in range(3))
    return value(
        truth,
        label,
        heuristic,
        scope.value,
        start=start,
        end=end,
        known_at=known_at,
        predictions=joined.num_rows,
        cost=compute_cost(seconds, scope.budget.usd_per_hour),
    )


def heuristic_label(package: Package, rows: pa.Table) -> Array:
    """What the package's heuristic says of logged rows, bool [N]: its score at the package's threshold, as the fall-back does."""
    if not rows.num_rows:
        return np.zeros(0, dtype=np.bool_)
    graph = Graph(package.files["heuristic.onnx"])
    return np.asarray(graph.score(arrow_feed(graph, package.columns, rows)).reshape(-1) >= package.manifest.threshold)


def expected(board: Leaderboard) -> tuple[float, float]:
    """Money per prediction over no model that the leaderboard expects of its winner and of the heuristic; NaN if unmeasured."""
    per = {row.candidate: row.measures.get("value_per_prediction", float("nan")) for row in board.rows}
    by_phase = {row.phase: row.candidate for row in board.rows}
    winner = next((row.candidate for row in board.rows if board.winner in (row.package, row.candidate)), "")
    return per.get(winner, float("nan")), per.get(by_phase.get(1, ""), float("nan"))


def _package(home: Home, digest: str) -> Package | None:
    try:
        return home.packages.read(digest)
    except (NotFound, PackageRefused):
        return None


def _bools(values: pa.ChunkedArray) -> Array:
    return np.asarray(values.to_numpy(), dtype=np.bool_)
