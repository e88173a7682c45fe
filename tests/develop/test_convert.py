import warnings
from collections.abc import Iterator
from typing import Any

import lightgbm as lgb
import numpy as np
import onnxruntime as ort
import pytest
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from loopwright.develop.convert import (
    OPSETS,
    TOLERANCE,
    convert,
    exact_booster,
    exact_thresholds,
    floor_float32,
    refuse_inconvertible,
    register,
)
from loopwright.records.errors import ConversionRefused

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small forests on many threads take longer, not shorter."""
    with threadpool_limits(1):
        yield


def data(n: int = 3000, missing: float = 0.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(n, 6)).astype(np.float32)
    matrix[:, 3] = rng.integers(0, 9, n)
    truth = (matrix[:, 0] + matrix[:, 1] ** 2 + np.sin(matrix[:, 3]) + rng.normal(size=n) * 0.5 > 1).astype(int)
    matrix[rng.random(matrix.shape) < missing] = np.nan
    return matrix, truth


def gap(estimator: Any, matrix: Array) -> float:
    """The largest difference between the graph and the estimator."""
    return difference(convert("x", estimator, matrix.shape[1]), estimator, matrix)


def difference(model: Any, estimator: Any, matrix: Array) -> float:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run([model.graph.output[-1].name], {"matrix": matrix})[0][:, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(np.abs(found - estimator.predict_proba(matrix)[:, 1]).max())


def lightgbm(**more: Any) -> Any:
    return lgb.LGBMClassifier(n_estimators=40, verbose=-1, n_jobs=1, **more)


FINE: dict[str, tuple[Any, bool]] = {
    "lightgbm": (lightgbm, True),
    "random forest": (lambda: RandomForestClassifier(5, random_state=0), True),
    "extra trees": (lambda: ExtraTreesClassifier(5, random_state=0), True),
    "tree": (lambda: DecisionTreeClassifier(random_state=0), True),
    "gradient boosting": (lambda: GradientBoostingClassifier(n_estimators=10, random_state=0), False),
    "histogram boosting": (lambda: HistGradientBoostingClassifier(max_iter=20), True),
    "logistic regression": (lambda: make_pipeline(StandardScaler(), LogisticRegression()), False),
    "neural network": (lambda: make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=20, random_state=0)), False),
    "imputed": (lambda: make_pipeline(SimpleImputer(), lightgbm()), True),
    "some columns": (lambda: make_pipeline(make_column_transformer((StandardScaler(), [0, 1]), remainder="passthrough"), LogisticRegression()), False),
    "calibrated": (lambda: CalibratedClassifierCV(RandomForestClassifier(3, random_state=0), cv=2), False),
    "voting": (lambda: VotingClassifier([("a", lightgbm()), ("b", DecisionTreeClassifier(max_depth=4))], voting="soft", flatten_transform=False), False),
    "stacking": (lambda: StackingClassifier([("a", lightgbm()), ("b", DecisionTreeClassifier(max_depth=4))], cv=2), False),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_the_graph_agrees_with_the_estimator(name: str) -> None:
    make, takes_nan = FINE[name]
    matrix, truth = data()
    estimator = make()
    refuse_inconvertible("x", estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(matrix, truth)
    assert gap(estimator, matrix) <= TOLERANCE
    if takes_nan:  # also where training had none
        assert gap(estimator, data(missing=0.2)[0]) <= TOLERANCE


@pytest.mark.parametrize("name", ["lightgbm", "random forest", "histogram boosting"])
def test_it_agrees_when_training_had_missing_values(name: str) -> None:
    matrix, truth = data(missing=0.1)
    estimator = FINE[name][0]().fit(matrix, truth)
    assert gap(estimator, matrix) <= TOLERANCE


def test_rounding_to_nearest_would_not_have_agreed() -> None:
    """The reason for all this: left as they are, thresholds are rounded and send rows down the wrong branch."""
    rng = np.random.default_rng(0)
    step = rng.integers(0, 8, 20_000)
    matrix = (1 + step * 2.0**-23).astype(np.float32)[:, None] * np.ones(6, dtype=np.float32)  # one float32 step apart
    truth = (step % 2 == 1) ^ (rng.random(20_000) < 0.1)
    estimator = lightgbm().fit(matrix, truth)
    register()
    plain = convert_sklearn(
        estimator, initial_types=[("matrix", FloatTensorType([None, 6]))], options={"zipmap": False}, target_opset=OPSETS
    )
    assert difference(plain, estimator, matrix) > 0.1
    assert gap(estimator, matrix) <= TOLERANCE


def test_exact_thresholds_change_no_answer_and_no_original() -> None:
    matrix, truth = data()
    for name in ("lightgbm", "random forest", "histogram boosting", "stacking"):
        estimator = FINE[name][0]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(matrix, truth)
            before = estimator.predict_proba(matrix)
            exact = exact_thresholds(estimator)
            assert np.array_equal(exact.predict_proba(matrix), before)
            assert np.array_equal(estimator.predict_proba(matrix), before)
    holes = data(missing=0.3)[0]
    estimator = lightgbm().fit(matrix, truth)
    assert np.array_equal(exact_booster(estimator.booster_).predict(holes), estimator.booster_.predict(holes))


def test_floor_is_the_largest_float32_not_above() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate(
        [rng.normal(size=10_000) * 10.0 ** rng.integers(-30, 30, 10_000), [0.0, 0.1, -0.1, 1e-45, -1e-46, 1e300]]
    )
    floor = floor_float32(values)
    assert np.array_equal(floor.astype(np.float32).astype(np.float64), floor)
    assert (floor <= values).all()
    with np.errstate(over="ignore"):
        above = np.nextafter(floor.astype(np.float32), np.float32(np.inf)).astype(np.float64)
    assert (above > values).all()


REFUSED: dict[str, tuple[Any, str]] = {
    "python code": (lambda: make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()), "functiontransformer.*Python code"),
    "no probabilities": (RidgeClassifier, "no predict_proba"),
    "no estimator": (lambda: "LogisticRegression", "cannot be fitted"),
    "regressor of boosted trees": (lambda: make_pipeline(StandardScaler(), lgb.LGBMRanker()), "predict_proba"),
    "unknown part": (lambda: make_pipeline(Own(), LogisticRegression()), "'own' .Own. has no converter"),
}  # fmt: skip


class Own(StandardScaler):  # type: ignore[misc]  # scikit-learn has no types
    """A transformer of the user's own."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_converter_is_refused_by_name_before_fitting(name: str) -> None:
    make, why = REFUSED[name]
    with pytest.raises(ConversionRefused, match=why):
        refuse_inconvertible("x", make())


def test_real_measurements_agree() -> None:
    bunch = load_breast_cancer()
    matrix = bunch.data.astype(np.float32)
    for name in ("lightgbm", "random forest", "logistic regression"):
        estimator = FINE[name][0]().fit(matrix, bunch.target)
        assert gap(estimator, matrix) <= TOLERANCE
