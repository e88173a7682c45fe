"""Compute the money that predictions made, from the value table and the outcomes, and that of two alternatives.

The alternatives are evaluated on the very same rows: "no model" (nobody acts) and "heuristic only" (the package's own
`heuristic.onnx`).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import NotFound, PackageRefused
from loopwright.base.text import money as money_of
from loopwright.business.costs import compute_cost, serving_seconds, turn_seconds
from loopwright.records.declarations import Outcome, Scope, Value
from loopwright.records.evaluation import Leaderboard, LeaderboardRow, moved
from loopwright.records.package import Output
from loopwright.records.windows import ValueWindow
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import Known, known, matures, with_truth
from loopwright.stores.outcomes.rescore import score as score_rows
from loopwright.stores.packages.probe import Probed, open_probed
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered

Array = np.ndarray[Any, Any]
_MONEY = "value_per_prediction"


def value(
    truth: Array,
    answers: Answered,
    rule: Answered,
    table: Value,
    *,
    output: Output,
    start: datetime,
    end: datetime,
    known_at: datetime,
    predictions: int,
    cost: float = 0.0,
    units: Array | None = None,
) -> ValueWindow:
    """Compute the money of rows with a known outcome: `truth` [N], served answers (`answers`), the heuristic's (`rule`).

    `model`, `heuristic` and `no_model` are sums over the N rows; the differences are paired. `predictions` counts all rows
    of the window, with an outcome or not. Intervals are over `units` [N], rows where there are none (`tasks.metrics.total`).
    """
    model, nothing = metrics.money(table, output, truth, answers)
    other, _ = metrics.money(table, output, truth, rule)
    total = [metrics.total(each, units) for each in (model, other, model - nothing, model - other)]
    return ValueWindow(
        start=start,
        end=end,
        known_at=known_at,
        currency=table.currency,
        predictions=predictions,
        with_outcome=len(truth),
        model=total[0],
        heuristic=total[1],
        no_model=float(nothing.sum()),
        over_no_model=total[2],
        over_heuristic=total[3],
        cost=cost,
        counts={kind: int(mask.sum()) for kind, mask in metrics.kinds(output, truth, answers).items()},
    )


def account(
    home: Home,
    *,
    loop_name: str,
    scope: Scope,
    outcome: Outcome,
    start: datetime,
    end: datetime,
    known_at: datetime,
    unit: str = "",
) -> ValueWindow | None:
    """The money of the window [start, end) from the outcomes known at `known_at`; None when nothing was predicted in it.

    The heuristic is that of the package which answered. Rows of a package that is gone are left out of the comparison, and
    so count as without outcome, as do those whose wait is not over. The record is returned, not stored.
    """
    joined = with_truth(home, loop_name, outcome, start=start, end=end, known_at=known_at)
    if not joined.num_rows:
        return None
    seconds = serving_seconds(joined) + turn_seconds(home, loop_name, start=start, end=end)
    packages = {digest: package for digest in pc.unique(joined["_package"]).to_pylist() if (package := _package(home, digest))}
    joined_rows = joined.filter(pc.is_in(joined["_package"], value_set=pa.array(list(packages), pa.string())))
    outputs = {digest: package.manifest.output for digest, package in packages.items()}
    found = known(joined_rows, outcome, outputs, unit)
    rows = joined_rows.filter(pa.array(found.rows))
    rule, cost = _rule(packages, rows, found), compute_cost(seconds, scope.budget.usd_per_hour)

    def counted(mask: Any, predictions: int) -> ValueWindow:
        return value(
            found.truth[mask],
            found.given.at(mask),
            rule.at(mask),
            scope.value,
            units=found.units[mask],
            output=found.output,
            start=start,
            end=end,
            known_at=known_at,
            predictions=predictions,
            cost=cost * (predictions / joined.num_rows),
        )

    whole = msgspec.structs.replace(counted(slice(None), joined.num_rows), mature_at=matures(joined, end, outcome))
    parts = pc.value_counts(joined["_arm"]).to_pylist()
    if len(parts) == 1:
        return whole
    arm = rows["_arm"].to_numpy()
    return msgspec.structs.replace(whole, arms={p["values"]: counted(arm == p["values"], p["counts"]) for p in parts})


def _rule(packages: Mapping[str, Probed], rows: pa.Table, known: Known) -> Answered:
    """Answers of the heuristic to each logged row: that of the package that answered the row."""
    count, output = rows.num_rows, known.output
    score, label = np.zeros(count), None if known.given.label is None else np.zeros(count, dtype=known.given.label.dtype)
    digests = rows["_package"].to_numpy()
    for digest, package in packages.items():
        mine = np.flatnonzero(digests == digest)
        if len(mine):
            said = score_rows(package, rows.take(pa.array(mine)), heuristic=True)
            score[mine] = said.score
            if label is not None and said.label is not None:
                label[mine] = said.label
    return Answered(score, label, None if not output.names else np.zeros((count, len(output.names))))


def expected(board: Leaderboard) -> tuple[float, float]:
    """Money per prediction over no model that the leaderboard expects of its winner and of the heuristic; NaN if unmeasured."""
    per = {row.candidate: _expected(row) for row in board.rows}
    by_phase = {row.phase: row.candidate for row in board.rows}
    winner = next((row.candidate for row in board.rows if board.winner in (row.package, row.candidate)), "")
    return per.get(winner, float("nan")), per.get(by_phase.get(1, ""), float("nan"))


def _expected(row: LeaderboardRow) -> float:
    shrunk = row.shrunk.get(_MONEY)
    return row.measures.get(_MONEY, float("nan")) if shrunk is None else shrunk.value


def money_over_heuristic(board: Leaderboard) -> str:
    """Value per prediction of the winner minus that of the heuristic, with its 95 % interval; empty where not compared."""
    winner = next((row for row in board.rows if board.winner in (row.package, row.candidate)), None)
    heuristic = next((row for row in board.rows if row.phase == 1), None)
    if winner is None or heuristic is None:
        return ""
    pairs = (c.money for c in board.comparisons if (c.challenger, c.incumbent) == (winner.candidate, heuristic.candidate))
    money = next((m for m in pairs if m is not None), None)
    luck = sum(
        sign * (row.measures[_MONEY] - _expected(row)) for sign, row in ((1, winner), (-1, heuristic)) if _MONEY in row.shrunk
    )
    return "" if money is None else money_of(moved(money, -luck), sign=True)


def _package(home: Home, digest: str) -> Probed | None:
    try:
        return open_probed(home.packages, digest)
    except (NotFound, PackageRefused):
        return None
