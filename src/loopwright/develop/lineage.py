"""Lineage of features by the graph: columns that the code mentions without using them are not listed."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import ndonnx as ndx
import numpy as np
import onnx

from loopwright.develop.features import TracedFeatures, trace, trace_rule, trace_slices
from loopwright.develop.onnx.items import captured_by
from loopwright.develop.output import goal_of
from loopwright.graph.session import METADATA, column_parts
from loopwright.records.declarations import Column, Heuristic, Outcome, Slice
from loopwright.records.package import Lineage

# The contents of an array of a given shape do not depend on the contents of the array whose shape was taken.
_VALUE_FREE = ("Shape", "Size")


def lineage(traced: TracedFeatures, heuristic: bytes, slices: Sequence[Slice], origins: Lineage | None = None) -> Lineage:
    """The lineage of a package: that of its features, heuristic and slices, added to the columns and labels of `origins`."""
    return msgspec.structs.replace(
        origins or Lineage(),
        features=feature_columns(traced),
        heuristic=_columns(heuristic),
        slices={s.name: _columns(trace_slices([s], traced.columns) or b"") for s in slices},
    )


def feature_columns(traced: TracedFeatures) -> dict[str, list[str]]:
    """For each feature the columns whose values reach it, in the order of the contract."""
    arrays = {**traced.numbers, **traced.categories}
    # On the trace: in a package's graph columns share inputs, and it cannot be seen which one is used.
    outputs = {f"feature.{i}": arrays[name] for i, name in enumerate(traced.order)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about their own workings
        model = ndx.build(dict(traced.arguments), outputs, drop_unused=True)
    column_of = {part.name: name for name in traced.arguments for part in column_parts(name, traced.columns[name])}
    maker = {out: node for node in model.graph.node for out in node.output if out}
    found: dict[str, list[str]] = {}
    for i, name in enumerate(traced.order):  # a nullable array leaves a graph as two outputs: its values and where it is null
        ends = {f"feature.{i}{part}" for part in ("", "_values", "_null")} & {o.name for o in model.graph.output}
        reaching = {column_of[tensor] for tensor in _before(ends, maker) if tensor in column_of}
        found[name] = [column for column in traced.columns if column in reaching]
    return found


def columns_used(traced: TracedFeatures, heuristic: bytes, slices: bytes | None) -> set[str]:
    """The columns that features, heuristic and slices cannot be computed without."""
    return {*traced.used, *_columns(heuristic), *(_columns(slices) if slices is not None else [])}


def used_by(
    columns: Mapping[str, Column],
    features: Callable[[Any], Any],
    heuristic: Heuristic,
    outcome: Outcome,
    slices: Sequence[Slice],
) -> set[str]:
    """The columns that the code of a loop cannot be computed without. Raises DeclarationInvalid for code that cannot be traced."""
    rule = trace_rule(heuristic.rule, columns, goal_of(outcome, np.array([])).output)
    return columns_used(trace(features, columns), rule, trace_slices(slices, columns))


def _columns(model: bytes) -> list[str]:
    """The columns that a graph of ours uses."""
    [metadata] = [p.value for p in onnx.load_from_string(model).metadata_props if p.key == METADATA]
    columns: list[str] = json.loads(metadata)["columns"]
    return columns


def _before(ends: set[str], maker: Mapping[str, onnx.NodeProto]) -> set[str]:
    """All tensors whose values reach one of `ends`."""
    seen, edge = set(ends), list(ends)
    while edge:
        node = maker.get(edge.pop())
        if node is not None and node.op_type not in _VALUE_FREE:
            new = {*node.input, *captured_by(node)} - seen
            seen |= new
            edge += new
    return seen
