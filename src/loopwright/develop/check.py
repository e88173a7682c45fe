"""Checks of `loopwright check` before anything runs: features, heuristic and slices become graphs, every candidate passes its rehearsal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base.errors import ConversionRefused, DeclarationInvalid, ExamplesRefused
from loopwright.base.text import count
from loopwright.develop.examples import matrices, split_examples
from loopwright.develop.features import TracedFeatures, trace, trace_rule, trace_slices
from loopwright.develop.fit import TrainingData
from loopwright.develop.output import Goal, goal_of
from loopwright.develop.rehearsal import CannotFit, made_up, reason, rehearsed
from loopwright.graph.session import Graph
from loopwright.records.declarations import Candidate, Column, Heuristic, Objective, Outcome, Sampling, Slice, TimeSplit
from loopwright.tasks import metrics
from loopwright.tasks.split import Split


class GraphsChecked(msgspec.Struct, frozen=True):
    """One item (name, whether it is well, detail) per thing looked at, the names of the features, and which items are doubtful.

    `used` are the columns that graphs use; None if some code could not be traced. `traced` are the features, if they could.
    """

    items: list[tuple[str, bool, str]]
    features: list[str]
    doubtful: set[str] = set()
    used: set[str] | None = None
    traced: TracedFeatures | None = None


def check(
    *,
    columns: Mapping[str, Column],
    features: Callable[[Any], Any],
    heuristic: Heuristic,
    outcome: Outcome,
    slices: Sequence[Slice],
    candidates: Sequence[Candidate],
    objectives: Sequence[Objective],
    split: Split | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    examples: pa.Table | None = None,
) -> GraphsChecked:
    """Look at everything that becomes a graph, and at the metrics the objectives name. Raises nothing that a user can mend.

    Candidates are checked by the rehearsal that `run` makes, on the training rows of `examples`; without examples, on made-up
    numbers, which a candidate that cannot be fitted on them is only doubted for.
    """
    found: list[TracedFeatures] = []
    columns_used: set[str] = set()

    def of_features() -> str:
        traced = trace(features, columns)
        found.append(traced)
        used = traced.used
        columns_used.update(used)
        categories = f", {len(traced.categories)} of them categories" if traced.categories else ""
        return f"{count(len(traced.order), 'feature')}{categories}, from {len(used)} of {count(len(columns), 'column')}"

    def of_heuristic() -> str:
        rule = Graph(trace_rule(heuristic.rule, columns, goal_of(outcome, np.array([])).output))
        columns_used.update(rule.columns)
        return "a graph over " + (", ".join(rule.columns) or "no column")

    def of_slices() -> str:
        made = trace_slices(slices, columns)
        if made is None:
            return "none declared"
        graph = Graph(made)
        columns_used.update(graph.columns)
        return ", ".join(graph.outputs)

    items = [_item("features", of_features), _item("heuristic", of_heuristic), _item("slices", of_slices)]
    traced = all(ok for _, ok, _ in items)
    doubtful: set[str] = set()
    sampling = sampling or Sampling()
    real = _real(found[0], examples, outcome, candidates, split or TimeSplit(), sampling, seed) if found else None
    training_data, goal = real or _invented(outcome, len(found[0].order) if found else 1)
    failed = rehearsed(candidates, training_data, goal, seed=seed, weighed=sampling.balanced or bool(sampling.weights))
    for candidate in candidates:
        error, name = failed.get(candidate.name), f"candidate {candidate.name}"
        doubted = real is None and isinstance(error, CannotFit)
        doubtful.update([name] if doubted else [])
        items.append((name, error is None or doubted, _verdict(candidate, reason(error) if error else "", doubted=doubted)))
    names = [s.name for s in slices]
    wrong = [why for o in objectives if (why := metrics.problem(o.metric, names, outcome) or metrics.unattainable(o))]
    items.append(("objectives", not wrong, "; ".join(wrong) or f"{len(objectives)} with metrics that can be measured"))
    return GraphsChecked(
        items, found[0].order if found else [], doubtful, columns_used if traced else None, found[0] if found else None
    )


def _real(
    traced: TracedFeatures,
    examples: pa.Table | None,
    outcome: Outcome,
    candidates: Sequence[Candidate],
    split: Split,
    sampling: Sampling,
    seed: int,
) -> tuple[Callable[[Candidate], TrainingData], Goal] | None:
    """The training data of each candidate, as `run` makes it; None if the rows cannot be split."""
    if examples is None:
        return None
    try:
        parts = split_examples(examples, split, sampling, outcome, seed=seed)
    except (ExamplesRefused, DeclarationInvalid):
        return None
    _, made = matrices(traced, examples, parts.training, {c.encoding for c in candidates})
    weight, rows = parts.drawn.weight, parts.drawn.rows

    def training_data(candidate: Candidate) -> TrainingData:
        return TrainingData(made[candidate.encoding], parts.truth, group=parts.groups, weight=weight).at(rows)

    return training_data, parts.goal


def _invented(outcome: Outcome, columns: int) -> tuple[Callable[[Candidate], TrainingData], Goal]:
    training_data = made_up(outcome, columns)
    return lambda _: training_data, goal_of(outcome, training_data.truth)


def _verdict(candidate: Candidate, why: str, *, doubted: bool) -> str:
    if doubted:
        return f"not rehearsed on examples yet; on made-up numbers it {why}"
    return why or f"can become a graph{f', {candidate.trials} trials' if candidate.trials else ''}"


def _item(name: str, look: Callable[[], str]) -> tuple[str, bool, str]:
    try:
        return name, True, look()
    except (DeclarationInvalid, ConversionRefused) as error:
        return name, False, str(error)
