"""Examples as candidates see them: loaded, divided into training and validation rows, with the matrices of their features."""

from collections.abc import Collection
from datetime import timedelta
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.arrays import Array
from loopwright.base.errors import ExamplesRefused, RecordNotFound
from loopwright.develop.features import Encoding, TracedFeatures, Vocabulary
from loopwright.develop.output import Goal, goal_of
from loopwright.develop.sampling import Drawn, draw, factors
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph
from loopwright.records.declarations import Outcome, Sampling
from loopwright.records.examples import Examples
from loopwright.records.package import Partition
from loopwright.stores.examples import read_examples
from loopwright.stores.home import Home
from loopwright.tasks.label import label_array
from loopwright.tasks.registry import TASKS
from loopwright.tasks.split import Split, divide


class SplitExamples(NamedTuple):
    """The examples of a turn as candidates see them: training and validation rows (indices), their truth, and the goal."""

    training: Array
    validation: Array
    partition: Partition
    known: Array
    truth: Array
    groups: Array | None
    drawn: Drawn
    goal: Goal


def split_examples(table: pa.Table, split: Split, sampling: Sampling, outcome: Outcome, *, seed: int) -> SplitExamples:
    """Split examples into training and validation rows, and sample the training rows. Raises ExamplesRefused."""
    training, validation, partition = divide(table, split, seed=seed, task=outcome.task)
    known = table.column("_label").is_valid().to_numpy()
    truth = label_array(
        table.column("_label").fill_null(False) if TASKS[outcome.task].learns_unjudged else table.column("_label")
    )
    groups = np.array(table.column(outcome.group).to_pylist(), dtype=object) if outcome.group else None
    drawn = draw(table, training, sampling, seed=seed)
    goal = goal_of(outcome, truth[training])
    goal = msgspec.structs.replace(goal, factors=factors(drawn.sampled, goal.output))
    return SplitExamples(training, validation, partition, known, truth, groups, drawn, goal)


def middle(goal: Goal, truth: Array) -> list[float]:
    """Value of a null answer of the heuristic, by target or quantile: the median of the training truth; 0 for other tasks."""
    return TASKS[goal.output.task].middle(truth) * max(len(goal.quantiles), 1)


def load(home: Home, examples: Examples, window: timedelta | None) -> pa.Table:
    """Read the examples, limited to the newest `window` if there is one. Raises ExamplesRefused if the file is gone."""
    try:
        table = read_examples(home, examples.digest)
    except RecordNotFound:
        raise ExamplesRefused(
            f"the examples file {examples.digest}.parquet is gone; build it again with `loopwright run LOOP --until data`"
        ) from None
    if window is not None:
        table = table.filter(
            pc.greater(table.column("_decided_at"), pa.scalar(examples.as_of - window, type=pa.timestamp("us", tz="UTC")))
        )
    return table


def matrices(
    traced: TracedFeatures, table: pa.Table, training: Array, encodings: Collection[Encoding]
) -> tuple[dict[str, Vocabulary], dict[str, Array]]:
    """The vocabulary of each string feature, learned on the training rows, and the matrix of all rows per encoding."""
    vocabulary: dict[str, Vocabulary] = {}
    if traced.categories:
        graph = Graph(traced.raw(), threads=2)
        raw = graph.run(arrow_feed(graph, traced.columns, table), [o for o in graph.outputs if o != "numbers"])
        for name in traced.categories:
            null = raw.get(f"null.{name}")
            vocabulary[name] = traced.vocabulary(name, raw[f"value.{name}"][training], None if null is None else null[training])
    made: dict[str, Array] = {}
    for encoding in sorted(encodings):
        graph = Graph(traced.matrix_graph(vocabulary, encoding), threads=2)
        made[encoding] = graph.run(arrow_feed(graph, traced.columns, table), ["features"])["features"]
    return vocabulary, made
