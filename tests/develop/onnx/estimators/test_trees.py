"""Trees read from the libraries: thresholds, sums, categories and missing values to the last bit."""

from collections.abc import Iterator
from typing import Any

import lightgbm as lgb
import ndonnx as ndx
import numpy as np
import pytest
import xgboost as xgb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from loopwright.base.arrays import Array
from loopwright.develop.onnx.estimators.ensemble import ensemble
from loopwright.develop.onnx.estimators.trees import floor_float32, of_histogram, read
from loopwright.graph.session import Graph


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small forests on many threads take longer, not shorter."""
    with threadpool_limits(1):
        yield


def summed(part: Any, matrix: Array, *, exact: bool) -> Array:
    model = read(part)
    assert model is not None
    x = ndx.argument(shape=("N", matrix.shape[1]), dtype=ndx.float64 if matrix.dtype == np.float64 else ndx.float32)
    graph = ndx.build({"x": x}, {"y": ensemble(model.trees, x, model.base, model.less, exact=exact)})
    return Graph(graph.SerializeToString()).run({"x": matrix})["y"][:, 0]


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.floats(allow_nan=False))
def test_floor_is_the_largest_float32_not_above(value: float) -> None:
    floor = float(floor_float32(np.array([value]))[0])
    assert float(np.float32(floor)) == floor
    assert floor <= value
    with np.errstate(over="ignore"):
        assert floor == value or float(np.nextafter(np.float32(floor), np.float32(np.inf))) > value


def steps() -> tuple[Array, Array]:
    """Numbers one float32 step apart, and a truth that tells them from each other."""
    rng = np.random.default_rng(0)
    step = rng.integers(0, 8, 20_000)
    matrix = (1 + step * 2.0**-23).astype(np.float32)[:, None] * np.ones(3, dtype=np.float32)
    return matrix, (step % 2 == 1) * 1.0


def test_thresholds_between_neighbouring_numbers_are_kept() -> None:
    """Rounded to nearest they send rows down the wrong branch; float64 matrices keep them as they are."""
    matrix, truth = steps()
    model = lgb.LGBMRegressor(n_estimators=20, verbose=-1, n_jobs=1).fit(matrix, truth)
    expected = model.predict(matrix)
    for given_matrix in (matrix, matrix.astype(np.float64)):
        assert np.abs(summed(model, given_matrix, exact=True) - expected).max() < 1e-12
    found = read(model)
    assert found is not None
    rounded = [tree._replace(threshold=tree.threshold.astype(np.float32).astype(np.float64)) for tree in found.trees]
    x = ndx.argument(shape=("N", 3), dtype=ndx.float32)
    graph = Graph(ndx.build({"x": x}, {"y": ensemble(rounded, x, found.base, exact=True)}).SerializeToString())
    assert np.abs(graph.run({"x": matrix})["y"][:, 0] - expected).max() > 0.1


def test_sums_are_exact_to_forty_bits_whatever_their_size() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(2000, 4)).astype(np.float32)
    truth = (matrix[:, 0] * matrix[:, 1] + rng.normal(size=2000)) * 1e6 + 1e9
    for model in (
        lgb.LGBMRegressor(n_estimators=200, verbose=-1, n_jobs=1),
        RandomForestRegressor(10, max_depth=8, random_state=0, n_jobs=1),
        HistGradientBoostingRegressor(max_iter=50),
    ):
        expected = model.fit(matrix, truth).predict(matrix)
        factor = read(model).factor  # type: ignore[union-attr]  # they are models of trees
        off = {exact: np.abs(summed(model, matrix, exact=exact) * factor - expected).max() / 1e9 for exact in (True, False)}
        assert off[True] < 2.0**-39
        assert off[False] > 1e-9  # float32 alone


def test_xgboost_is_met_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(2000, 4)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.1] = np.nan
    truth = np.nan_to_num(matrix[:, 0] * matrix[:, 1]) * 1e7 + 1e6
    model = xgb.XGBRegressor(n_estimators=300, n_jobs=1).fit(matrix, truth)
    assert np.array_equal(summed(model, matrix, exact=False), model.predict(matrix))


@pytest.mark.filterwarnings("ignore:categorical_feature keyword")
def test_categories_are_members_of_sets() -> None:
    """Many levels in one split; unseen, negative and missing ones go right."""
    rng = np.random.default_rng(0)
    level = rng.integers(0, 60, 4000)
    effect = rng.normal(size=60)
    matrix = np.column_stack([level, rng.normal(size=4000)]).astype(np.float32)
    model = lgb.LGBMRegressor(n_estimators=20, verbose=-1, n_jobs=1, categorical_feature=[0], min_data_per_group=1)
    model.fit(matrix, effect[level] + matrix[:, 1])
    found = read(model)
    assert found is not None
    assert found.categorical == (0,)
    assert max(int(tree.equal.sum()) for tree in found.trees if tree.equal is not None) > 20
    others = np.column_stack([np.arange(-5, 95), np.zeros(100)]).astype(np.float32)
    others[::7, 0] = np.nan
    assert np.abs(summed(model, others, exact=True) - model.predict(others)).max() < 1e-12


@pytest.mark.parametrize("missing_in_training", [True, False])
def test_tiny_numbers_are_zero_to_lightgbm_and_missing_ones_go_its_way(missing_in_training: bool) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.choice([-1, -1e-35, -1e-40, -0.0, 0.0, 1e-40, 1e-35, 1, 2], size=(3000, 2)).astype(np.float32)
    if missing_in_training:
        matrix[rng.random(matrix.shape) < 0.2] = np.nan
    model = lgb.LGBMRegressor(n_estimators=20, verbose=-1, n_jobs=1)
    model.fit(matrix, np.nan_to_num(matrix[:, 0], nan=0.7) > 0)
    matrix[::5, 0] = np.nan
    assert np.abs(summed(model, matrix, exact=True) - model.predict(matrix)).max() < 1e-12


def test_a_histogram_tree_says_where_its_leaves_are() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(500, 2))
    model = HistGradientBoostingRegressor(max_iter=1).fit(matrix, matrix[:, 0])
    tree = of_histogram(model._predictors[0][0])
    assert ((tree.left < 0) == model._predictors[0][0].nodes["is_leaf"].astype(bool)).all()
