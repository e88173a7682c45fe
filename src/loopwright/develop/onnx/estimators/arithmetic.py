"""Arithmetic of estimator parts, on ndonnx arrays and with as few nodes as possible."""

from collections.abc import Sequence
from typing import Any

import ndonnx as ndx
import numpy as np
import spox.opset.ai.onnx.v21 as _operators

from loopwright.base.arrays import Array

op: Any = _operators  # its operators are not marked as exported, so types would be refused


def wide(x: Any) -> Any:
    """The array as float64."""
    return x if x.dtype == ndx.float64 else ndx.astype(x, ndx.float64)


def single(x: Any) -> Any:
    """The array as float32."""
    return x if x.dtype == ndx.float32 else ndx.astype(x, ndx.float32)


def constant(values: Any) -> Any:
    """A constant, float64."""
    return ndx.asarray(np.array(values, dtype=np.float64))


def columns(x: Any, which: Any) -> Any:
    """Columns of x by their places."""
    return ndx.asarray(op.gather(x.unwrap_spox(), op.const(np.asarray(which, dtype=np.int64)), axis=1))


def taken(values: Array, which: Any) -> Any:
    """The values at places that are an array of any shape."""
    return ndx.asarray(op.gather(op.const(np.asarray(values, dtype=np.float64)), which.unwrap_spox()))


def times(x: Any, matrix: Array) -> Any:
    """The product with a matrix, float64."""
    return ndx.asarray(op.matmul(wide(x).unwrap_spox(), op.const(np.ascontiguousarray(matrix, dtype=np.float64))))


def side_by_side(arrays: Sequence[Any]) -> Any:
    """Arrays [N, ...] side by side, float64 where there are several."""
    return arrays[0] if len(arrays) == 1 else ndx.concat([wide(a) for a in arrays], axis=1)


def same(x: Any, row: Any) -> Any:
    """A constant row [K] for every row of x."""
    return ndx.where(ndx.isnan(x[:, :1]), constant(row)[None, :], constant(row)[None, :])


def mean(arrays: Sequence[Any], weights: Any = None) -> Any:
    """The mean of arrays, by weights where given."""
    share = np.ones(len(arrays)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = wide(arrays[0]) * float(share[0])
    for array, weight in zip(arrays[1:], share[1:], strict=True):
        total = total + wide(array) * float(weight)
    return total / float(share.sum())


def sigmoid(x: Any) -> Any:
    """The logistic function."""
    return ndx.asarray(op.sigmoid(x.unwrap_spox()))


def softmax(x: Any) -> Any:
    """The softmax of each row."""
    return ndx.asarray(op.softmax(x.unwrap_spox(), axis=1))


def shares(x: Any, classes: int) -> Any:
    """Rows made to sum to one; uniform where all are zero."""
    total = ndx.sum(x, axis=1, keepdims=True)
    return ndx.where(total == 0, 1 / classes, x / ndx.where(total == 0, 1.0, total))


def rows(x: Any) -> Any:
    """[N] or [N, K] as [N, K]."""
    return ndx.asarray(op.reshape(x.unwrap_spox(), op.const(np.array([0, -1]))))


def interpolated(x: Any, xs: Array, ys: Array) -> Any:
    """Straight lines through points with ascending xs, for x [N]; the first and last go on."""
    if len(xs) == 1:
        return ndx.where(ndx.isnan(x), float(ys[0]), float(ys[0]))
    after = ndx.clip(ndx.searchsorted(constant(xs), x, side="left"), 1, len(xs) - 1)
    slope = np.diff(ys) / np.where(np.diff(xs) == 0, 1.0, np.diff(xs))
    low, start, steep = (taken(a, after - 1) for a in (xs[:-1], ys[:-1], slope))
    return steep * (x - low) + start


def column(x: Any, i: int) -> Any:
    """One column, [N, 1]."""
    return x[:, i : i + 1]


def one_hot(choice: Any, classes: int) -> Any:
    """A choice [N] as a column for each class, float64."""
    return ndx.astype(ndx.expand_dims(choice, axis=1) == ndx.asarray(np.arange(classes)), ndx.float64)
