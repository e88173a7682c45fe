"""What `loopwright check` looks at before anything runs: do features, heuristic and slices become graphs, can every candidate be converted."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from loopwright.develop.convert import made_up, refuse_inconvertible, rehearse
from loopwright.develop.features import trace, trace_rule, trace_slices
from loopwright.develop.fit import first_trial
from loopwright.develop.goal import goal_of
from loopwright.develop.sampling import refuse_weights_of_its_own
from loopwright.records import metrics
from loopwright.records.declarations import Candidate, Column, Heuristic, Objective, Outcome, Sampling, Slice
from loopwright.records.errors import ConversionRefused, DeclarationInvalid
from loopwright.records.graph import Graph


class GraphsChecked(msgspec.Struct, frozen=True):
    """One item (name, whether it is well, detail) per thing looked at, and the names of the features."""

    items: list[tuple[str, bool, str]]
    features: list[str]


def check(
    *,
    columns: Mapping[str, Column],
    features: Callable[[Any], Any],
    heuristic: Heuristic,
    outcome: Outcome,
    slices: Sequence[Slice],
    candidates: Sequence[Candidate],
    objectives: Sequence[Objective],
    sampling: Sampling | None = None,
) -> GraphsChecked:
    """Look at everything that becomes a graph, and at the metrics the objectives name. Raises nothing that a user can mend."""
    names: list[str] = []

    def of_features() -> str:
        traced = trace(features, columns)
        names.extend(traced.order)
        used = traced.used
        categories = f", {len(traced.categories)} of them categories" if traced.categories else ""
        return f"{len(traced.order)} features{categories}, from {len(used)} of {len(columns)} columns"

    def of_heuristic() -> str:
        rule = trace_rule(heuristic.rule, columns, goal_of(outcome, np.array([])).output)
        return "a graph over " + (", ".join(Graph(rule).columns) or "no column")

    def of_slices() -> str:
        graph = trace_slices(slices, columns)
        return ", ".join(Graph(graph).outputs) if graph else "none declared"

    items = [_item("features", of_features), _item("heuristic", of_heuristic), _item("slices", of_slices)]
    items += [
        _item(f"candidate {c.name}", partial(_convertible, c, outcome, sampling or Sampling(), len(names) or 1))
        for c in candidates
    ]
    wrong = [why for o in objectives if (why := metrics.problem(o.metric, [s.name for s in slices], outcome))]
    items.append(("objectives", not wrong, "; ".join(wrong) or f"{len(objectives)} with metrics that can be measured"))
    return GraphsChecked(items, names)


def _convertible(candidate: Candidate, outcome: Outcome, sampling: Sampling, columns: int) -> str:
    estimator = first_trial(candidate, 0)
    lessons = made_up(outcome, columns)
    goal = goal_of(outcome, lessons.truth)
    refuse_inconvertible(candidate.name, estimator, goal)
    rehearse(candidate, estimator, lessons, goal)
    refuse_weights_of_its_own(candidate.name, estimator, weighed=sampling.balanced or bool(sampling.weights))
    search = f", {candidate.trials} trials" if candidate.trials else ""
    return f"{type(estimator).__name__} can become a graph{search}"


def _item(name: str, look: Callable[[], str]) -> tuple[str, bool, str]:
    try:
        return name, True, look()
    except (DeclarationInvalid, ConversionRefused) as error:
        return name, False, str(error)
