"""Trees as an operator: the newer one where leaves hold one number, the older where they hold several, never both in a graph."""

from typing import Any

import lightgbm as lgb
import ndonnx as ndx
import numpy as np
import onnx
import pytest
from sklearn.ensemble import RandomForestClassifier, VotingClassifier

from loopwright.base.arrays import Array
from loopwright.develop.onnx.convert import convert
from loopwright.develop.onnx.estimators.ensemble import ensemble, older
from loopwright.develop.onnx.estimators.trees import Tree, leaf, read
from loopwright.develop.output import Goal
from loopwright.graph.session import Graph
from loopwright.records.package import Output

CLASSES = ["a", "b", "c"]


def data() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(1500, 4)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.1] = np.nan
    return matrix, np.array(CLASSES)[np.digitize(np.nan_to_num(matrix[:, 0] * matrix[:, 1]), [-0.3, 0.3])]


def boosted() -> Any:
    return lgb.LGBMClassifier(n_estimators=8, num_leaves=5, n_jobs=1, verbose=-1, random_state=0)


def forest() -> Any:
    return RandomForestClassifier(6, max_depth=4, n_jobs=1, random_state=0)


def built(trees: list[Tree], base: Array, *, exact: bool) -> onnx.ModelProto:
    x = ndx.argument(shape=("N", 4), dtype=ndx.float32)
    model: onnx.ModelProto = ndx.build({"x": x}, {"y": ensemble(trees, x, base, exact=exact)})
    return model


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node if node.op_type.startswith("TreeEnsemble")}


@pytest.mark.parametrize(
    ("estimator", "operator"),
    [
        (boosted(), {"TreeEnsemble"}),
        (forest(), {"TreeEnsembleRegressor"}),
        (VotingClassifier([("trees", boosted()), ("forest", forest())], voting="soft"), {"TreeEnsembleRegressor"}),
    ],
    ids=["boosted", "forest", "both"],
)
@pytest.mark.parametrize("exact", [True, False])
def test_one_operator_for_all_trees_of_a_graph(estimator: Any, operator: set[str], *, exact: bool) -> None:
    matrix, truth = data()
    estimator.fit(matrix, truth)
    goal = Goal(output=Output(task="multiclass", classes=CLASSES, names=CLASSES))
    model = convert("it", estimator, 4, goal, exact=exact)
    assert operators(model) == operator
    found = Graph(model.SerializeToString()).run({"matrix": matrix})["raw"]
    assert np.abs(found - estimator.predict_proba(matrix)).max() < (1e-12 if exact and operator == {"TreeEnsemble"} else 1e-6)


def test_both_operators_give_the_same_sums() -> None:
    matrix, truth = data()
    found = read(boosted().fit(matrix, truth == "a"))
    assert found is not None
    base = np.array([0.25])
    newer = built(found.trees, base, exact=False)
    with older():
        other = built(found.trees, base, exact=False)
    assert (operators(newer), operators(other)) == ({"TreeEnsemble"}, {"TreeEnsembleRegressor"})
    sums = [Graph(m.SerializeToString()).run({"x": matrix})["y"] for m in (newer, other)]
    assert np.abs(sums[0] - sums[1]).max() < 1e-6
    assert newer.ByteSize() < 0.7 * other.ByteSize()


@pytest.mark.parametrize("exact", [True, False])
def test_a_tree_that_is_but_a_leaf_and_a_base_add_their_number(*, exact: bool) -> None:
    matrix, _ = data()
    graph = Graph(built([leaf(1.5, 0), leaf(-2.0, 1)], np.array([10.0, 20.0]), exact=exact).SerializeToString())
    assert np.array_equal(graph.run({"x": matrix})["y"], np.tile([11.5, 18.0], (len(matrix), 1)))


def test_a_leaf_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        built([leaf(float("nan"), 0)], np.zeros(1), exact=True)
