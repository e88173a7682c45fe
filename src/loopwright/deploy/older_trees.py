"""Trees of ai.onnx.ml 5 (`TreeEnsemble`) as the operator before it (`TreeEnsembleRegressor`), which ONNX Runtime before 1.21 runs.

The older one always adds in float32, so where the newer adds in float64 the answer may differ in the seventh digit.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loopwright.base.arrays import Array

_MODES = {0: "BRANCH_LEQ", 1: "BRANCH_LT", 2: "BRANCH_GTE", 3: "BRANCH_GT", 4: "BRANCH_EQ", 5: "BRANCH_NEQ"}
_MEMBER = 6


class _Node(NamedTuple):
    """One node of the older operator: `yes` and `no` are numbers of nodes of the same tree."""

    mode: str
    feature: int = 0
    value: float = 0.0
    missing: int = 0
    yes: int = 0
    no: int = 0
    target: int = 0
    weight: float = 0.0


class _Trees:
    """The attributes of a `TreeEnsemble`, by name."""

    def __init__(self, node: Any) -> None:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.wide = given["nodes_splits"].data_type == TensorProto.DOUBLE
        self.given: dict[str, Any] = {
            name: numpy_helper.to_array(value) if isinstance(value, TensorProto) else value for name, value in given.items()
        }
        self._members = self._sets()

    def _sets(self) -> dict[int, list[float]]:
        """The members of each node that tests membership, in the order of nodes; NaN ends a set."""
        values: Iterator[float] = iter(self.given.get("membership_values", np.zeros(0)).tolist())
        found: dict[int, list[float]] = {}
        for node in np.flatnonzero(self.given["nodes_modes"] == _MEMBER).tolist():
            found[node] = []
            for value in values:
                if np.isnan(value):
                    break
                found[node].append(value)
        return found

    def tree(self, root: int) -> list[_Node]:
        """The nodes of one tree, the root first."""
        made: list[_Node | None] = []
        waiting = [(root, False, self._room(made, root, leaf=False))]
        while waiting:
            index, leaf, place = waiting.pop()
            if leaf:
                target, weight = self.given["leaf_targetids"][index], self.given["leaf_weights"][index]
                made[place] = _Node("LEAF", target=int(target), weight=float(weight))
                continue
            ends = [bool(self.given["nodes_trueleafs"][index]), bool(self.given["nodes_falseleafs"][index])]
            to = [int(self.given["nodes_truenodeids"][index]), int(self.given["nodes_falsenodeids"][index])]
            yes, no = (self._room(made, node, leaf=end) for node, end in zip(to, ends, strict=True))
            waiting += [(to[0], ends[0], yes), (to[1], ends[1], no)]
            self._ask(made, index, place, yes, no)
        return [node for node in made if node is not None]

    def _room(self, made: list[Any], index: int, *, leaf: bool) -> int:
        """Reserve a node, and further ones that test the values of a set in turn; returns the number of the first."""
        made += [None] * (1 if leaf else max(len(self._members.get(index, [0])), 1))
        return len(made) - (1 if leaf else max(len(self._members.get(index, [0])), 1))

    def _ask(self, made: list[Any], index: int, place: int, yes: int, no: int) -> None:
        mode, feature = int(self.given["nodes_modes"][index]), int(self.given["nodes_featureids"][index])
        tracks = self.given.get("nodes_missing_value_tracks_true")
        missing = int(tracks[index]) if tracks is not None else 0
        if mode != _MEMBER:
            made[place] = _Node(_MODES[mode], feature, float(self.given["nodes_splits"][index]), missing, yes, no)
            return
        values = self._members[index] or [float("nan")]
        for i, value in enumerate(values):
            following = place + i + 1 if i + 1 < len(values) else no
            made[place + i] = _Node("BRANCH_EQ", feature, value, missing, yes, following)


def older(graph: Any) -> bool:
    """Write the trees of a graph with the older operator; whether there were any that could not be."""
    left = False
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type != "TreeEnsemble":
            graph.node.append(node)
            continue
        trees = _Trees(node)
        if trees.given.get("aggregate_function", 1) != 1 or trees.given.get("post_transform", 0):
            left = True
            graph.node.append(node)
            continue
        graph.node.extend(_regressor(node, trees))
    return left


def _regressor(node: Any, trees: _Trees) -> list[Any]:
    numbers = [
        (tree, place, n) for tree, root in enumerate(trees.given["tree_roots"]) for place, n in enumerate(trees.tree(int(root)))
    ]
    leaves = [(tree, place, n) for tree, place, n in numbers if n.mode == "LEAF"]
    given: dict[str, Any] = {
        "n_targets": trees.given["n_targets"],
        "nodes_treeids": [tree for tree, _, _ in numbers],
        "nodes_nodeids": [place for _, place, _ in numbers],
        "nodes_featureids": [n.feature for _, _, n in numbers],
        "nodes_modes": [n.mode for _, _, n in numbers],
        "nodes_truenodeids": [n.yes for _, _, n in numbers],
        "nodes_falsenodeids": [n.no for _, _, n in numbers],
        "nodes_missing_value_tracks_true": [n.missing for _, _, n in numbers],
        "target_treeids": [tree for tree, _, _ in leaves],
        "target_nodeids": [place for _, place, _ in leaves],
        "target_ids": [n.target for _, _, n in leaves],
    }
    given |= _floats("nodes_values", [n.value for _, _, n in numbers], wide=trees.wide)
    given |= _floats("target_weights", [n.weight for _, _, n in leaves], wide=trees.wide)
    output = node.output[0]
    inner = f"{output}_older" if trees.wide else output
    made = [helper.make_node("TreeEnsembleRegressor", node.input, [inner], name=node.name, domain="ai.onnx.ml", **given)]
    if trees.wide:
        made.append(helper.make_node("Cast", [inner], [output], to=TensorProto.DOUBLE))
    return made


def _floats(name: str, values: list[float], *, wide: bool) -> dict[str, Any]:
    if not wide:
        return {name: values}
    array: Array = np.array(values, dtype=np.float64)
    return {f"{name}_as_tensor": onnx.numpy_helper.from_array(array)}
