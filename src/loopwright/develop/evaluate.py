"""Evaluation of one candidate: every metric overall and on every slice, with intervals; latency, size, training time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.clock import Clock
from loopwright.base.heap import allocated
from loopwright.graph.session import Feeder, Graph
from loopwright.records.declarations import Column, Value
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.package import Output
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered

SLICE_ROWS, SLICE_VALUES = 30, 50
"""A slice's value is evaluated from 30 rows on; at most its 50 most frequent values are."""

LATENCY_ROUNDS, LATENCY_RUNS, LOADING_ROUNDS = 5, 400, 4


def evaluate(
    truth: Array,
    predictions: Answered,
    *,
    output: Output,
    threshold: float,
    slices: Mapping[str, Array],
    groups: Array | None = None,
    units: Array | None = None,
    value: Value | None = None,
    wanted: Sequence[str] = (),
    seed: int,
    latency: tuple[float, float],
    loading: tuple[float, int] | None = None,
    size: int,
    seconds: float,
) -> Evaluation:
    """Measure answers against `truth` on N validation rows; both as `tasks.metrics` has them for the task of `output`.

    `slices` maps slice -> string [N]; `groups` [N] are those of a ranking, `units` [N] what is independent; `wanted` names further metrics (gaps); `latency` is
    (p50, p99) in microseconds, `loading` what `loading` measures.
    """
    gap = metrics.gap(output.task)
    gaps = [f"{gap}:{name}" for name in slices] if gap else []
    valued = value is not None and value.is_set
    every = [name for name in metrics.measured(output) if valued or name != "value_per_prediction"]
    names = list(dict.fromkeys([*every, *gaps, *(w for w in wanted if metrics.of_rows(w))]))

    def measured(rows: Array, names: Sequence[str], of: Mapping[str, Array]) -> dict[str, Estimate]:
        by_row: dict[str, Any] = {n: p if p is None else p[rows] for n, p in (("groups", groups), ("units", units))}
        return metrics.intervals(
            names, truth[rows], *predictions.at(rows), output=output, seed=seed, value=value, slices=of, **by_row
        )

    overall = measured(np.ones(len(truth), dtype=np.bool_), names, slices)
    by_slice: dict[str, dict[str, dict[str, Estimate]]] = {}
    for name, of in slices.items():
        words, counts = np.unique(np.asarray(of, dtype=str), return_counts=True)
        kept = [str(words[i]) for i in np.argsort(-counts, kind="stable")[:SLICE_VALUES] if counts[i] >= SLICE_ROWS]
        by_slice[name] = {word: measured(np.asarray(of == word), every, {}) for word in sorted(kept)}
    worth = overall.get("value_per_prediction")
    return Evaluation(
        rows=len(truth),
        positives=int(truth.sum()) if output.shape.has_border else 0,
        threshold=threshold,
        metrics=overall,
        slices=by_slice,
        latency_p50_us=latency[0],
        latency_p99_us=latency[1],
        size_bytes=size,
        train_seconds=seconds,
        value_per_prediction=worth.value if worth is not None and len(truth) else 0.0,
        load_ms=loading and loading[0],
        memory_bytes=loading and loading[1],
        small_groups=metrics.small_groups(slices, SLICE_ROWS),
        reliability=metrics.reliability(output, truth, predictions, units),
    )


def latency(
    graph: Graph,
    columns: Mapping[str, Column],
    rows: Sequence[Mapping[str, Any]],
    clock: Clock,
    *,
    rounds: int = LATENCY_ROUNDS,
    runs: int = LATENCY_RUNS,
) -> tuple[float, float]:
    """Median and 99th percentile, in microseconds, of one row made into a feed and run through the graph, in this process.

    Each run counts with the least time of some rounds: what its row takes, not how long other work of the machine held it up.
    """
    feeder = Feeder(graph, columns)
    for row in rows[:50]:
        graph.score(feeder([row]))
    times = np.empty((rounds, runs))
    for round_ in range(rounds):
        for i in range(runs):
            row = rows[i % len(rows)]
            start = clock.monotonic()
            graph.score(feeder([row]))
            times[round_, i] = clock.monotonic() - start
    p50, p99 = np.percentile(times.min(axis=0), [50, 99]) * 1e6
    return float(p50), float(p99)


def loading(graph: bytes, clock: Clock, *, rounds: int = LOADING_ROUNDS) -> tuple[float, int]:
    """Measure a graph in this process: milliseconds to load and answer a first row, and its bytes in memory.

    Each is the least of some rounds: what the graph takes, not what else went on meanwhile.
    """
    times, sizes = [], []
    for _ in range(rounds):
        before, start = allocated(), clock.monotonic()
        loaded = Graph(graph)
        loaded.run(loaded.empty_feed(1))
        times.append(clock.monotonic() - start)
        sizes.append(allocated() - before)
        del loaded
    return min(times) * 1e3, max(min(sizes), len(graph))


def measures(evaluation: Evaluation) -> dict[str, float]:
    """Every measure of an evaluation by metric name, package measures included."""
    return {name: estimate.value for name, estimate in evaluation.metrics.items()} | evaluation.package_measures
