"""Trees as one ONNX operator, exactly: `TreeEnsemble` of ai.onnx.ml 5, or the older one where leaves hold several numbers.

Thresholds of scikit-learn and LightGBM are float64. Where the sum is float32, a row goes left when x <= t; that is the same as
x <= t', with t' the largest float32 that is <= t (rounding to nearest instead sends rows down the wrong branch). Float32 is enough
for a probability at the end of a graph. Where more is needed everything is float64: matrix, thresholds, leaves and sum. XGBoost
itself adds in float32, one tree after the other from its base score on, and so does the runtime on one thread: with the base score
as the first tree the sums are the same to the last bit.

The newer operator stores its numbers as tensors: a session needs half the memory and starts in two thirds of the time, for the same
answers at the same speed (measured: 307 KB for 50 trees rather than 626). But its leaves hold one number each. Trees whose leaves
hold several (forests over several classes or targets) are written with the older one, which gives float32 always; there each leaf
is split in two where more precision is needed: a multiple of a power of two so large that float32 adds them exactly, and the small
remainder. The two sums together are exact to 40 bits. A graph can use only one of the two operators: `older` selects the older.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ndonnx as ndx
import numpy as np
import spox.opset.ai.onnx.ml.v3 as ml3
import spox.opset.ai.onnx.ml.v5 as ml5

from loopwright.base.arrays import Array
from loopwright.develop.onnx.estimators.trees import Tree, floor_float32, leaf

_MODES, _EQUAL, _MEMBER = {"LEQ": 0, "LT": 1}, 4, 6

_OLDER: ContextVar[bool] = ContextVar("older", default=False)


@contextmanager
def older() -> Iterator[None]:
    """All trees that are written inside are written with the older operator."""
    token = _OLDER.set(True)
    try:
        yield
    finally:
        _OLDER.reset(token)


def ensemble(trees: Sequence[Tree], matrix: Any, base: Array, less: str = "LEQ", *, exact: bool) -> Any:
    """`base` [K] plus the sum of trees, over an ndonnx matrix [N, F], as an array [N, K].

    `less` is the comparison that goes left, LEQ or LT. `exact` returns float64, otherwise float32.
    """
    if _OLDER.get() or any(tree.value.shape[1] > 1 for tree in trees):
        return _several(trees, matrix, base, less, exact=exact)
    return _single([*(leaf(float(b), k) for k, b in enumerate(base) if b), *trees], matrix, len(base), less, exact=exact)


def _single(trees: Sequence[Tree], matrix: Any, outputs: int, less: str, *, exact: bool) -> Any:
    """With the newer operator, which has inner nodes and leaves apart; a tree that is but a leaf has a node that goes there anyway."""
    parts: dict[str, list[Array]] = {}

    def add(**arrays: Any) -> None:
        for name, array in arrays.items():
            parts.setdefault(name, []).append(np.asarray(array))

    nodes = leaves = 0
    for tree in trees:
        sets, right, ends = _sets(tree), tree.right.copy(), tree.left < 0
        for node, chain in sets.items():
            right[node] = tree.right[chain[-1]]
        inner = np.setdiff1d(np.flatnonzero(~ends), [link for chain in sets.values() for link in chain[1:]])
        place = leaves + np.cumsum(ends) - 1
        place[inner] = nodes + np.arange(len(inner))
        mode = np.full(len(tree.left), _MODES[less])
        mode[[n for n, chain in sets.items() if len(chain) == 1]] = _EQUAL
        mode[[n for n, chain in sets.items() if len(chain) > 1]] = _MEMBER
        for chain in (chain for _, chain in sorted(sets.items()) if len(chain) > 1):
            add(membership_values=[*tree.threshold[chain], np.nan])
        to, other, mode, missing = tree.left[inner], right[inner], mode[inner], tree.missing_left[inner]
        feature, split = tree.feature[inner], np.where(mode == _MEMBER, 0.0, tree.threshold[inner])
        if not len(inner):
            feature, split, mode, missing, to, other = (np.zeros(1, dtype=int) for _ in range(6))
        add(tree_roots=[nodes], nodes_featureids=feature, nodes_splits=split, nodes_modes=mode)
        add(nodes_truenodeids=place[to], nodes_trueleafs=ends[to], nodes_missing_value_tracks_true=missing)
        add(nodes_falsenodeids=place[other], nodes_falseleafs=ends[other])
        add(leaf_targetids=np.full(int(ends.sum()), tree.target), leaf_weights=tree.value[ends, 0])
        nodes, leaves = nodes + max(len(inner), 1), leaves + int(ends.sum())
    found = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    if not np.isfinite(found["leaf_weights"]).all():
        raise ValueError("a leaf is not a number")
    splits, kind = found.pop("nodes_splits"), np.float64 if exact else np.float32
    if not exact and less == "LEQ":
        splits = floor_float32(splits)
    tensors: dict[str, Any] = {
        name: found.pop(name).astype(kind) for name in ("leaf_weights", "membership_values") if name in found
    }
    modes = found.pop("nodes_modes").astype(np.uint8)
    return ndx.asarray(
        ml5.tree_ensemble(
            ndx.astype(matrix, ndx.float64 if exact else ndx.float32).unwrap_spox(),
            aggregate_function=1,
            n_targets=outputs,
            nodes_splits=splits.astype(kind),
            nodes_modes=modes,
            **tensors,
            **{name: values.astype(np.int64).tolist() for name, values in found.items()},
        )
    )


def _sets(tree: Tree) -> dict[int, list[int]]:
    """The nodes that ask whether x is one of several: the first of each, and all that ask in turn (they go left to the same place)."""
    if tree.equal is None:
        return {}
    asking = np.flatnonzero(tree.equal & (tree.left >= 0)).tolist()
    following = {
        n: int(tree.right[n]) for n in asking if tree.equal[tree.right[n]] and tree.left[tree.right[n]] == tree.left[n]
    }
    found = {}
    for node in set(asking) - set(following.values()):
        found[node] = [node]
        while found[node][-1] in following:
            found[node].append(following[found[node][-1]])
    return found


# --- the older operator ----------------------------------------------------------------------------------------------


def _several(trees: Sequence[Tree], matrix: Any, base: Array, less: str, *, exact: bool) -> Any:
    outputs, wide = len(base), matrix.dtype == ndx.float64
    step = _step(trees) if exact else 0.0
    nodes = _attributes([_in_two(tree, step, outputs) for tree in trees] if exact else trees, less)
    numbers: dict[str, Any] = {name: nodes.pop(name) for name in ("nodes_values", "target_weights")}
    if wide:
        numbers = {f"{name}_as_tensor": values for name, values in numbers.items()}
    else:
        numbers["nodes_values"] = floor_float32(numbers["nodes_values"]) if less == "LEQ" else numbers["nodes_values"]
        numbers = {name: values.tolist() for name, values in numbers.items()}
    if not exact:
        numbers["base_values_as_tensor" if wide else "base_values"] = base if wide else base.tolist()
    result = ndx.asarray(
        ml3.tree_ensemble_regressor(
            matrix.unwrap_spox(),
            n_targets=2 * outputs if exact else outputs,
            **numbers,
            **{name: values.tolist() for name, values in nodes.items()},
        )
    )
    if not exact:
        return result
    result = ndx.astype(result, ndx.float64)
    return result[:, :outputs] + result[:, outputs:] + ndx.asarray(base[None, :])


def _step(trees: Sequence[Tree]) -> float:
    """The power of two of which float32 adds multiples without error, whichever leaves of the trees are added."""
    most = sum(float(np.abs(t.value[t.left < 0]).max()) for t in trees)
    if not np.isfinite(most):
        raise ValueError("a leaf is not a number")
    return float(2.0 ** (np.ceil(np.log2(most)) - 22)) if most > 0 else 1.0


def _in_two(tree: Tree, step: float, outputs: int) -> Tree:
    """A tree whose leaves hold multiples of `step` and, `outputs` further, the small remainders."""
    large = np.round(tree.value / step) * step
    value = np.zeros((len(tree.left), 2 * outputs))
    value[:, tree.target : tree.target + tree.value.shape[1]] = large
    value[:, outputs + tree.target : outputs + tree.target + tree.value.shape[1]] = tree.value - large
    return tree._replace(value=value, target=0)


def _attributes(trees: Sequence[Tree], less: str) -> dict[str, Array]:
    """The attributes of the operator; trees follow one another, and so do the nodes of a tree."""
    parts: dict[str, list[Array]] = {}

    def add(**arrays: Array) -> None:
        for name, array in arrays.items():
            parts.setdefault(name, []).append(np.asarray(array))

    for number, tree in enumerate(trees):
        size, ends = len(tree.left), tree.left < 0
        mode = np.where(ends, "LEAF", f"BRANCH_{less}")
        if tree.equal is not None:
            mode = np.where(tree.equal & ~ends, "BRANCH_EQ", mode)
        add(
            nodes_treeids=np.full(size, number),
            nodes_nodeids=np.arange(size),
            nodes_featureids=np.where(ends, 0, tree.feature),
            nodes_modes=mode,
            nodes_values=np.where(ends, 0.0, tree.threshold),
            nodes_truenodeids=np.where(ends, 0, tree.left),
            nodes_falsenodeids=np.where(ends, 0, tree.right),
            nodes_missing_value_tracks_true=np.where(ends, False, tree.missing_left).astype(np.int64),
        )
        leaves, width = np.flatnonzero(ends), tree.value.shape[1]
        add(
            target_treeids=np.full(len(leaves) * width, number),
            target_nodeids=np.repeat(leaves, width),
            target_ids=np.tile(np.arange(tree.target, tree.target + width), len(leaves)),
            target_weights=tree.value[leaves].ravel(),
        )
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
