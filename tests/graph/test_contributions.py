"""Shapley values against their definition, on trees made at random; and files that do not fit."""

from itertools import combinations
from math import factorial
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.base.arrays import Array
from loopwright.graph.contributions import Explainer, Explanation, Linear, PackedArray, Trees, decode, encode, linked, numbers

FEATURES = 5


class Node:
    """A node as a person would write it: a leaf has a value, any other a question."""

    def __init__(self, rng: Any, depth: int, cover: float) -> None:
        self.cover, self.value = cover, float(rng.normal())
        self.column, self.threshold = int(rng.integers(FEATURES)), float(rng.integers(-2, 3))
        self.words = sorted(rng.choice(6, size=rng.integers(0, 4), replace=False).tolist()) if self.column == 4 else None
        self.missing_left = bool(rng.integers(2)) and self.words is None
        share = 1.0 if rng.random() < 0.05 else float(rng.uniform(0.1, 0.9))  # nobody may have gone right
        grows = depth > 0 and rng.random() < 0.85
        self.children = [Node(rng, depth - 1, cover * share), Node(rng, depth - 1, cover * (1 - share))] if grows else []

    def goes_left(self, x: Array) -> bool:
        value = x[self.column]
        if self.words is not None:
            return bool(not np.isnan(value) and np.isfinite(value) and int(value) in self.words and value > -1)
        return self.missing_left if np.isnan(value) else bool(value <= self.threshold)

    def expected(self, x: Array, told: set[int]) -> float:
        """What the tree says where only some features are told."""
        if not self.children:
            return self.value
        if self.column in told:
            return self.children[0 if self.goes_left(x) else 1].expected(x, told)
        shares = [child.cover / self.cover if self.cover else 0.5 for child in self.children]
        return sum(share * child.expected(x, told) for share, child in zip(shares, self.children, strict=True))


def by_definition(roots: list[Node], x: Array) -> Array:
    """Shapley 1953: the mean over all orders of what a feature adds."""
    worth = {
        told: sum(root.expected(x, set(told)) for root in roots)
        for size in range(FEATURES + 1)
        for told in combinations(range(FEATURES), size)
    }
    found = np.zeros(FEATURES)
    for i in range(FEATURES):
        rest = [j for j in range(FEATURES) if j != i]
        for size in range(FEATURES):
            weight = factorial(size) * factorial(FEATURES - size - 1) / factorial(FEATURES)
            for told in combinations(rest, size):
                found[i] += weight * (worth[tuple(sorted((*told, i)))] - worth[told])
    return found


def stored(roots: list[Node], **changes: Any) -> Trees:
    """Trees as the file has them, level by level."""
    order, level = list(roots), list(roots)
    while level:
        level = [child for node in level for child in node.children]
        order += level
    inner = [node for node in order if node.children]
    sets = [node.words for node in inner if node.words is not None]
    thresholds = [node.threshold if node.words is None else sets.index(node.words) for node in inner]
    plain: dict[str, Any] = {
        "nodes": len(order),
        "roots": len(roots),
        "leaf": np.packbits([not node.children for node in order]).tobytes(),
        "cover": numbers(np.array([node.cover for node in order])),
        "column": numbers(np.array([node.column for node in inner], dtype=np.int64)),
        "threshold": numbers(np.array(thresholds, dtype=np.float64)),
        "missing_left": np.packbits(np.array([node.missing_left for node in inner], dtype=bool)).tobytes(),
        "value": numbers(np.array([node.value for node in order if not node.children])),
        "width": 1,
        "target": numbers(np.zeros(len(roots), dtype=np.int64)),
        "by_set": np.packbits(np.array([node.words is not None for node in inner], dtype=bool)).tobytes(),
        "sets": sets,
    }
    return Trees(**{**plain, **changes})


def whole(*parts: Trees | Linear, **changes: Any) -> Explanation:
    plain: dict[str, Any] = {
        "unit": "number",
        "link": "NONE",
        "features": [f"f{i}" for i in range(FEATURES)],
        "place": numbers(np.arange(FEATURES)),
        "base": [0.0],
        "parts": list(parts),
    }
    return Explanation(**{**plain, **changes})


def forest(seed: int, trees: int = 3, depth: int = 6) -> tuple[list[Node], Array]:
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-3, 4, (12, FEATURES)).astype(np.float64)
    matrix[:, 4] = rng.choice([0, 1, 2, 3.7, 5, 9, -1, np.nan, np.inf, -0.5], 12)
    matrix[rng.random(matrix.shape) < 0.15] = np.nan
    matrix[0, :2] = [np.inf, -np.inf]
    return [Node(rng, depth, 100.0) for _ in range(trees)], matrix


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_trees_by_the_definition(seed: int) -> None:
    """With the same feature asked again along a path, categories, missing values, infinities, ways that nobody went, single leaves."""
    roots, matrix = forest(seed)
    explainer = decode(encode(whole(stored(roots))))
    found = explainer.contributions(matrix)[:, 0]
    for row, x in zip(found, matrix, strict=True):
        assert np.abs(row - by_definition(roots, x)).max() < 1e-12
        assert explainer.base[0] + row.sum() == pytest.approx(sum(r.expected(x, {0, 1, 2, 3, 4}) for r in roots), abs=1e-12)


def test_many_rows_are_each_as_alone() -> None:
    roots, matrix = forest(7, trees=40, depth=7)
    many = np.repeat(matrix, 200, axis=0)
    explainer = Explainer(whole(stored(roots)))
    together = explainer.contributions(many)
    alone = np.concatenate([explainer.contributions(row[None]) for row in matrix])
    assert np.abs(together - np.repeat(alone, 200, axis=0)).max() < 1e-12
    assert explainer.contributions(many[:0]).shape == (0, 1, FEATURES)


def test_deep_paths_keep_their_precision() -> None:
    """Sixty features along one path: a chain, whose Shapley values are known when all shares are alike."""
    depth = 60
    leaf = np.array([[*[False] * 1, *([True, False] * (depth - 1)), True, True]]).ravel()
    part = Trees(
        nodes=2 * depth + 1,
        roots=1,
        leaf=np.packbits(leaf).tobytes(),
        cover=numbers(np.array([1.0, *np.repeat(0.5 ** np.arange(1, depth + 1), 2)])),
        column=numbers(np.arange(depth)),
        threshold=numbers(np.zeros(depth)),
        missing_left=np.packbits(np.zeros(depth, dtype=bool)).tobytes(),
        value=numbers(np.array([*[0.0] * depth, 1.0])),
        width=1,
        target=numbers(np.zeros(1, dtype=np.int64)),
    )
    names = [f"f{i}" for i in range(depth)]
    explainer = Explainer(whole(part, features=names, place=numbers(np.arange(depth))))
    found = explainer.contributions(np.ones((1, depth)))[0, 0]
    assert explainer.base[0] == pytest.approx(0.5**depth, rel=1e-9)
    assert found == pytest.approx(np.full(depth, (1 - 0.5**depth) / depth), rel=1e-9)  # all are alike, and add up to the rest


def test_columns_of_one_feature_are_added_up_and_parts_add() -> None:
    rng = np.random.default_rng(0)
    matrix, coefficients, mean = rng.normal(size=(20, 5)), rng.normal(size=(2, 3)), rng.normal(size=3)
    lines = Linear(
        coefficients=numbers(coefficients),
        column=numbers(np.array([4, 0, 2])),
        mean=numbers(mean),
        target=numbers(np.array([1, 0])),
    )
    roots, _ = forest(3)
    made = whole(lines, stored(roots), features=["a", "b"], place=numbers(np.array([0, 1, 0, 1, 1])), base=[10.0, 20.0])
    explainer = Explainer(made)
    found = explainer.contributions(matrix)
    away = matrix[:, [4, 0, 2]] - mean
    trees = Explainer(whole(stored(roots))).contributions(matrix)[:, 0]
    second = np.column_stack([trees[:, [0, 2]].sum(axis=1), trees[:, [1, 3, 4]].sum(axis=1)])  # its only output is the first
    assert found[:, 1] == pytest.approx(np.column_stack([away[:, 1:] @ coefficients[0, 1:], away[:, 0] * coefficients[0, 0]]))
    assert found[:, 0] == pytest.approx(
        np.column_stack([away[:, 1:] @ coefficients[1, 1:], away[:, 0] * coefficients[1, 0]]) + second
    )
    assert explainer.base[1] == pytest.approx(20 + coefficients[0] @ mean)


def test_numbers_are_held_exactly_in_the_narrowest_kind() -> None:
    for array, kind in (
        (np.array([0, 255]), "|u1"),
        (np.array([0, 256]), "<u2"),
        (np.array([-1, 70_000]), "<i4"),
        (np.array([0.5, -np.inf, np.nan]), "<f4"),
        (np.array([0.1]), "<f8"),
        (np.array([1e300]), "<f8"),
        (np.zeros(0), "<f4"),
    ):
        held = numbers(array)
        assert held.kind == kind
        assert np.array_equal(held.array(), array, equal_nan=held.kind.startswith("<f"))


def test_links() -> None:
    raw = np.array([[0.5, -1.0], [2.0, 3.0]])
    softmax, none = linked("SOFTMAX", raw), linked("NONE", raw)
    assert softmax is not None
    assert none is not None
    assert softmax.sum(axis=1) == pytest.approx([1, 1])
    assert np.array_equal(none, raw)
    for link, function in (
        ("LOGISTIC", lambda x: 1 / (1 + np.exp(-x))),
        ("EXP", np.exp),
        ("SQUARE", lambda x: np.sign(x) * x**2),
    ):
        found = linked(link, raw)
        assert found is not None
        assert found == pytest.approx(function(raw))
    assert linked("", raw) is None
    huge = linked("LOGISTIC", np.array([[-1e5]]))
    assert huge is not None
    assert huge[0, 0] == 0.0


def wrong() -> dict[str, Explanation]:
    """Files of somebody who means no good: places and counts that are not there."""
    good = stored(forest(1)[0])
    bad = msgspec.structs.replace
    many = len(good.threshold.array())
    return {
        "a column too far": whole(bad(good, column=numbers(np.full(many, FEATURES)))),
        "a column before the first": whole(bad(good, column=numbers(np.full(many, -1)))),
        "a column between two": whole(bad(good, column=numbers(np.full(many, 0.5)))),
        "more nodes than there are": whole(bad(good, nodes=good.nodes + 2)),
        "no roots": whole(bad(good, roots=0)),
        "a negative count": whole(bad(good, nodes=-1, roots=-1)),
        "a count past all memory": whole(bad(good, nodes=2**62, roots=2**62)),
        "nodes in a ring": whole(bad(good, leaf=good.leaf[::-1])),
        "too few covers": whole(bad(good, cover=numbers(np.ones(3)))),
        "too few values": whole(bad(good, value=numbers(np.ones(1)))),
        "values of no width": whole(bad(good, width=0)),
        "more outputs than there are": whole(bad(good, width=5)),
        "a target too far": whole(bad(good, target=numbers(np.full(good.roots, 3)))),
        "a set too far": whole(bad(good, sets=[])),
        "a feature too far": whole(good, place=numbers(np.full(FEATURES, FEATURES))),
        "no outputs": whole(good, base=[]),
        "numbers of no kind": whole(bad(good, cover=PackedArray("object", b"12345678"))),
        "half a number": whole(bad(good, cover=PackedArray("<f8", b"123"))),
        "too few coefficients": whole(
            Linear(
                coefficients=numbers(np.ones(1)),
                column=numbers(np.arange(2)),
                mean=numbers(np.ones(2)),
                target=numbers(np.arange(1)),
            )
        ),
        "too few means": whole(
            Linear(
                coefficients=numbers(np.ones(2)),
                column=numbers(np.arange(2)),
                mean=numbers(np.ones(3)),
                target=numbers(np.arange(1)),
            )
        ),
    }


@pytest.mark.parametrize("what", wrong())
def test_what_does_not_fit_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode(encode(wrong()[what]))


def test_bytes_that_are_no_explanation_are_refused() -> None:
    good = encode(whole(stored(forest(1)[0])))
    for data in (b"", b"{}", good[:100], good + b"x"):
        with pytest.raises(ValueError, match=r"\w"):
            decode(data)
    with pytest.raises(ValueError, match="shape"):
        decode(good).contributions(np.zeros((1, 2)))
