"""Does the graph answer as the estimator does? Every validation row is compared, and the largest difference recorded.

The bound is 1e-6 for probabilities. Numbers (regression, ranking, anomaly scores) are compared relative to max(1, |number|), and
so are models that compute in float32 themselves (XGBoost, PyTorch): there it is 1e-5.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.base import BaseEstimator

from loopwright.base.arrays import Array
from loopwright.base.errors import ConversionRefused, PackageRefused
from loopwright.develop.fit import Several, predict
from loopwright.develop.output import Answers, Goal
from loopwright.graph.check import check_graph
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph
from loopwright.records.declarations import Column
from loopwright.records.package import Conversion

EXACT, SINGLE = 1e-6, 1e-5

_SINGLE = ("xgboost", "loopwright")


def tolerance(estimator: Any, goal: Goal) -> tuple[float, bool]:
    """The largest difference allowed, and whether it is relative to max(1, |number|)."""
    if goal.output.shape.is_probability and not computes_in_float32(estimator, set()):
        return EXACT, False
    return SINGLE, True


def computes_in_float32(part: Any, seen: set[int]) -> bool:
    """Whether a fitted estimator, or one inside it, computes in float32."""
    if id(part) in seen:
        return False
    seen.add(id(part))
    if isinstance(part, Several):
        return computes_in_float32(part.estimators, seen)
    if isinstance(part, list | tuple):
        return any(computes_in_float32(item, seen) for item in part)
    if not isinstance(part, BaseEstimator) and not type(part).__module__.startswith("sklearn."):
        return False
    if type(part).__module__.split(".")[0] in _SINGLE:
        return True
    return any(computes_in_float32(item, seen) for item in getattr(part, "__dict__", {}).values())


def difference(actual: Answers, expected: Answers, goal: Goal) -> Array:
    """Largest difference of the answers of each of N rows; 0 where the estimator itself returns no number that float32 can hold."""
    a, b = (np.column_stack([x.score, x.values]).astype(np.float64) for x in (actual, expected))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
        if not goal.output.shape.is_probability:
            apart = apart / np.maximum(1.0, np.abs(b))
    apart = np.where(np.abs(b) <= np.finfo(np.float32).max, np.where(np.isfinite(a), apart, np.inf), 0.0)
    largest: Array = apart.max(axis=1)
    return largest


def agreed(
    candidate: str,
    estimator: Any,
    goal: Goal,
    build: Callable[[Goal, bool], bytes],
    columns: Mapping[str, Column],
    table: pa.Table,
) -> tuple[bytes, Conversion, bool]:
    """The graph, how far it is from the estimator on the rows of `table`, and whether it is exact. Raises ConversionRefused when too far.

    `build` makes it for a goal, summing trees in float32 or, where that is not enough, exactly. Compared is the graph before
    sampling is undone and the score calibrated, which would only scale the differences.
    """
    plain, (bound, relative) = goal.plain, tolerance(estimator, goal)
    rows, worst = 0, 0.0
    for exact in (False, True):
        graph = build(plain, exact)
        rows, worst = agreement(candidate, graph, estimator, plain, columns, table)
        if worst <= bound:
            conversion = Conversion(rows=rows, max_difference=worst, tolerance=bound, relative=relative)
            return (graph if goal == plain else build(goal, exact)), conversion, exact
    raise ConversionRefused(candidate, apart(worst, rows, bound, "validation rows"))


def apart(worst: float, rows: int, bound: float, where: str) -> str:
    """Graph and estimator differ, in words."""
    return f"graph and estimator differ by up to {worst:.2g} on {rows:,} {where}, more than {bound:g}"


def agreement(
    candidate: str, graph: bytes, estimator: Any, goal: Goal, columns: Mapping[str, Column], table: pa.Table
) -> tuple[int, float]:
    """Number of rows compared, and the largest difference between graph and estimator.

    Compares the rows of `table`, and the same rows with values that a contract allows but the table may lack: nulls, NaN in
    floats, strings never seen. A row that the estimator itself refuses (NaN for most linear models) is not compared.
    """
    model = load(candidate, graph)
    rows, largest = 0, 0.0
    used = {name: columns[name] for name in model.columns}
    for given in [table, *_disturbed(used, table)]:
        found = answers(candidate, model, arrow_feed(model, columns, given))
        values = found.get("values", np.empty((len(found["score"]), 0)))
        for part, expected in accepted(estimator, found["features"], np.arange(len(values)), goal):
            far = difference(Answers(found["score"], values).at(part), expected, goal)
            largest = max(largest, float(far.max(initial=0.0)))
            rows += len(far)
    return rows, largest


def accepted(estimator: Any, matrix: Array, rows: Array, goal: Goal) -> Iterator[tuple[Array, Answers]]:
    """The estimator's answers to those rows (indices) that it accepts, in parts."""
    if not len(rows):
        return
    try:
        yield rows, predict(estimator, matrix[rows], goal)
    except (ValueError, IndexError):  # IndexError: CategoricalNB, of a code that training did not have
        finite = rows[np.isfinite(matrix[rows]).all(axis=1)]
        if len(finite) < len(rows):
            yield from accepted(estimator, matrix, finite, goal)
        elif len(rows) > 1:
            for half in np.array_split(rows, 2):
                yield from accepted(estimator, matrix, half, goal)


def load(candidate: str, graph: bytes) -> Graph:
    """The graph, ready to run. Raises ConversionRefused when the runtime, or the check of a package, refuses it."""
    try:
        check_graph(graph)
        return Graph(graph)  # one thread, as it serves: sums in another order differ in float32
    except PackageRefused as error:
        raise ConversionRefused(candidate, error.why) from error
    except Exception as error:  # the runtime raises many kinds
        raise ConversionRefused(
            candidate, f"the runtime refuses the graph: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def answers(candidate: str, graph: Graph, feed: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a graph. Raises ConversionRefused when it fails: one such row would fail a whole batch of requests."""
    try:
        return graph.run(feed)
    except Exception as error:  # the runtime raises many kinds
        raise ConversionRefused(candidate, f"the graph fails: {type(error).__name__}: {str(error)[:300]}") from error


def _disturbed(columns: Mapping[str, Column], table: pa.Table) -> list[pa.Table]:
    """Copies of (at most 2,000 rows of) a table: a third of the values of each column null, or strange."""
    rng = np.random.default_rng(0)
    part = table.slice(0, 2000)

    def replaced(strange: Callable[[Column], Any]) -> pa.Table:
        changed = part
        for name, column in columns.items():
            value = strange(column)
            if value is Ellipsis:
                continue
            values = part.column(name)
            hit = pa.array(rng.random(len(part)) < 1 / 3)
            changed = changed.set_column(
                changed.column_names.index(name), name, pc.if_else(hit, pa.scalar(value, type=values.type), values)
            )
        return changed

    return [
        replaced(lambda c: None if c.nullable else ...),
        replaced(lambda c: float("nan") if c.type == "float" else "\u2205 never seen" if c.type == "string" else ...),
    ]
