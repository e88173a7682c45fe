"""Every kind of estimator: fitted, converted, and compared with itself; or refused by name before that."""

from collections.abc import Callable, Iterator
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
import xgboost as xgb
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.covariance import EllipticEnvelope
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.feature_selection import RFE, SelectFromModel, SelectKBest
from sklearn.impute import KNNImputer, MissingIndicator, SimpleImputer
from sklearn.linear_model import (
    LogisticRegression,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDOneClassSVM,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor, RegressorChain
from sklearn.naive_bayes import CategoricalNB, GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, LocalOutlierFactor, RadiusNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from loopwright.base.arrays import Array
from loopwright.base.errors import ConversionRefused
from loopwright.develop.fit import TrainingData, fit, predict
from loopwright.develop.onnx.convert import convert, refuse_inconvertible
from loopwright.develop.onnx.parity import difference, load, tolerance
from loopwright.develop.output import Goal, goal_of
from loopwright.develop.rehearsal import CannotFit, made_up, rehearse
from loopwright.graph.session import Graph
from loopwright.records.declarations import Candidate, Column, Outcome, Table

CANDIDATE = Candidate("x", LogisticRegression)
LANDINGS = Table("landings", {"id": Column("string"), "at": Column("timestamp")}, key=["id"], event_time="at")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small forests on many threads take longer, not shorter."""
    with threadpool_limits(1):
        yield


def data(n: int = 400, missing: float = 0.0, seed: int = 0) -> tuple[Array, dict[str, Array]]:
    """A matrix of six columns (the fourth of codes), and a truth for each task."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, 6)) * [1, 10, 100, 1, 0.1, 1]
    matrix[:, 3] = rng.integers(0, 9, n)
    height = matrix[:, 0] + matrix[:, 1] / 10 + np.sin(matrix[:, 3]) + rng.normal(size=n) * 0.3
    matrix[rng.random(matrix.shape) < missing] = np.nan
    truth = {
        "binary": height > 0.5,
        "multiclass": np.array(["low", "mid", "high"], dtype=object)[np.digitize(height, [-1, 1])],
        "regression": np.abs(height) * 10 + 0.5,
        "several": np.column_stack([height, height**2]),
        "ranking": np.digitize(height, [-1, 0, 1]).astype(np.float64),
        "anomaly": np.zeros(n, dtype=bool),
    }
    return matrix.astype(np.float32), {**truth, "quantiles": truth["regression"]}


def goal(task: str, truth: Array) -> Goal:
    if task == "several":
        return goal_of(Outcome(LANDINGS, {"a": "a", "b": "b"}, task="regression"), truth)
    if task == "quantiles":
        return goal_of(Outcome(LANDINGS, "a", task="regression", quantiles=[0.1, 0.5, 0.9]), truth)
    group = "id" if task == "ranking" else None
    return goal_of(Outcome(LANDINGS, "a", task=task, group=group), truth)  # type: ignore[arg-type]  # a literal


def gap(estimator: Any, task: str, missing: float = 0.0, scale: float = 1.0) -> tuple[float, float]:
    """The largest difference between estimator and graph on rows not fitted on, and what is allowed."""
    matrix, truths = data(missing=missing)
    truth = truths[task] * scale if scale != 1.0 else truths[task]
    aim = goal(task, truth)
    refuse_inconvertible("x", estimator, aim)
    fitted, _ = fit(CANDIDATE, estimator, TrainingData(matrix, truth, group=np.arange(len(matrix)) // 10), aim)
    others = data(missing=missing, seed=1)[0]
    others[0] = 0.0
    apart = 0.0
    for exact in (False, True):
        graph = load(
            "x", convert("x", fitted, matrix.shape[1], aim, exact=exact).SerializeToString()
        )  # lawful in a package, too
        found = aim.answers(graph.run({"matrix": others})["raw"])
        apart = max(apart, float(difference(found, predict(fitted, others, aim), aim).max()))
    return apart, tolerance(fitted, aim)[0]


def lightgbm(**more: Any) -> Any:
    return lgb.LGBMClassifier(n_estimators=12, verbose=-1, n_jobs=1, **more)


def lightgbm_number(**more: Any) -> Any:
    return lgb.LGBMRegressor(n_estimators=12, verbose=-1, n_jobs=1, **more)


def xgboost(**more: Any) -> Any:
    return xgb.XGBClassifier(n_estimators=12, n_jobs=1, **more)


def xgboost_number(**more: Any) -> Any:
    return xgb.XGBRegressor(n_estimators=12, n_jobs=1, **more)


def scaled(estimator: Any) -> Any:
    return make_pipeline(StandardScaler(), estimator)


BAG = {"boosting_type": "rf", "bagging_fraction": 0.6, "bagging_freq": 1}
FOREST = {"n_estimators": 5, "random_state": 0}

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "lightgbm": lightgbm,
    "lightgbm steep": lambda: lightgbm(sigmoid=2.0),
    "lightgbm one against all": lambda: lightgbm(objective="multiclassova"),
    "lightgbm forest": lambda: lightgbm(**BAG),
    "lightgbm dart": lambda: lightgbm(boosting_type="dart"),
    "lightgbm categories": lambda: lightgbm(categorical_feature=[3]),
    "xgboost": xgboost,
    "xgboost dart": lambda: xgboost(booster="dart", rate_drop=0.3),
    "xgboost forest": lambda: xgb.XGBRFClassifier(n_estimators=10, n_jobs=1),
    "tree": lambda: DecisionTreeClassifier(random_state=0),
    "random forest": lambda: RandomForestClassifier(**FOREST),
    "extra trees": lambda: ExtraTreesClassifier(**FOREST),
    "gradient boosting": lambda: GradientBoostingClassifier(**FOREST),
    "histogram boosting": lambda: HistGradientBoostingClassifier(max_iter=10),
    "scaled lightgbm": lambda: scaled(lightgbm()),
    "scaled xgboost": lambda: make_pipeline(RobustScaler(), xgboost()),
    "scaled forest": lambda: make_pipeline(MinMaxScaler(), RandomForestClassifier(**FOREST)),
    "boosted components": lambda: make_pipeline(PCA(3), lightgbm()),
    "logistic regression": lambda: scaled(LogisticRegression()),
    "stochastic gradient": lambda: scaled(SGDClassifier(loss="modified_huber", random_state=0)),
    "discriminant analysis": LinearDiscriminantAnalysis,
    "neural network": lambda: scaled(MLPClassifier((8,), max_iter=20, random_state=0)),
    "nearest neighbours": KNeighborsClassifier,
    "naive Bayes": GaussianNB,
    "prior": DummyClassifier,
    "calibrated lightgbm": lambda: CalibratedClassifierCV(lightgbm(), cv=2),
    "calibrated in steps": lambda: CalibratedClassifierCV(lightgbm(), cv=2, method="isotonic"),
    "calibrated by temperature": lambda: CalibratedClassifierCV(lightgbm(), cv=2, method="temperature"),
    "calibrated xgboost": lambda: CalibratedClassifierCV(xgboost(), cv=2),
    "calibrated vectors": lambda: scaled(CalibratedClassifierCV(LinearSVC(), cv=2)),
    "voting": lambda: VotingClassifier([("a", lightgbm()), ("b", xgboost())], voting="soft", weights=[1, 2]),
    "stacking": lambda: StackingClassifier([("a", lightgbm()), ("b", scaled(LogisticRegression()))], cv=2, passthrough=True),
    "bagging": lambda: BaggingClassifier(lightgbm(), n_estimators=3, max_features=0.5, random_state=0),
    "bagging votes": lambda: scaled(BaggingClassifier(RidgeClassifier(), n_estimators=3, random_state=0)),
    "boosting of stumps": lambda: AdaBoostClassifier(n_estimators=5, random_state=0),
    "one against the rest": lambda: OneVsRestClassifier(lightgbm()),
    "searched": lambda: GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [2, 3]}, cv=2),
    "some columns": lambda: make_pipeline(make_column_transformer((StandardScaler(), [0, 1]), ("drop", [2]), remainder="passthrough"), LogisticRegression(max_iter=500)),
    "encoded": lambda: make_pipeline(make_column_transformer((OneHotEncoder(handle_unknown="ignore", drop="first"), [3]), (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), [3]), remainder=MaxAbsScaler()), LogisticRegression(max_iter=500)),
    "binned": lambda: make_pipeline(KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"), LogisticRegression()),
    "binned unevenly": lambda: make_pipeline(KBinsDiscretizer(12, quantile_method="averaged_inverted_cdf"), LogisticRegression(max_iter=500)),
    "binned unevenly into codes": lambda: make_pipeline(KBinsDiscretizer(12, encode="ordinal", quantile_method="averaged_inverted_cdf"), LogisticRegression(max_iter=500)),
    **{f"rows of {norm} norm one": lambda norm=norm: make_pipeline(Normalizer(norm), LogisticRegression()) for norm in ("l1", "l2", "max")},  # type: ignore[misc]  # the usual way to keep a value
    "frequent terms": lambda: make_pipeline(MinMaxScaler(clip=True), TfidfTransformer(sublinear_tf=False), LogisticRegression()),
    "terms without norm": lambda: make_pipeline(MinMaxScaler((1, 9), clip=True), TfidfTransformer(norm=None, sublinear_tf=True), LogisticRegression(max_iter=500)),
    "categories": lambda: make_pipeline(make_column_transformer(("passthrough", [3])), CategoricalNB(min_categories=9)),
    "bent": lambda: make_pipeline(make_union(QuantileTransformer(n_quantiles=50), PowerTransformer()), PolynomialFeatures(2, interaction_only=True), LogisticRegression()),
    "selected": lambda: make_pipeline(SelectKBest(k=4), RFE(LogisticRegression(), n_features_to_select=3), SelectFromModel(RandomForestClassifier(**FOREST)), lightgbm()),
    "side by side": lambda: make_pipeline(make_union(PCA(2), SelectKBest(k=2)), xgboost()),
}  # fmt: skip

TAKES_NAN: dict[str, Callable[[], Any]] = {
    "lightgbm": lightgbm,
    "xgboost": xgboost,
    "tree": lambda: DecisionTreeClassifier(random_state=0),
    "random forest": lambda: RandomForestClassifier(**FOREST),
    "histogram boosting": lambda: HistGradientBoostingClassifier(max_iter=10),
    "imputed": lambda: make_pipeline(SimpleImputer(add_indicator=True), StandardScaler(), LogisticRegression()),
    "indicated": lambda: make_pipeline(make_union(MissingIndicator(features="all"), SimpleImputer(strategy="median")), LogisticRegression(max_iter=500)),
    "scaled": lambda: scaled(lightgbm()),
}  # fmt: skip

REGRESSORS: dict[str, Callable[[], Any]] = {
    **{f"lightgbm {o}": lambda o=o: lightgbm_number(objective=o) for o in ("regression", "huber", "fair", "poisson", "quantile", "mape", "gamma", "tweedie")},  # type: ignore[misc]  # the usual way to keep a value
    **{f"xgboost {o}": lambda o=o: xgboost_number(objective=o) for o in ("reg:squarederror", "reg:absoluteerror", "count:poisson", "reg:gamma", "reg:tweedie")},  # type: ignore[misc]  # as above
    "lightgbm of roots": lambda: lightgbm_number(reg_sqrt=True),
    "lightgbm forest": lambda: lightgbm_number(**BAG),
    "xgboost forest": lambda: xgb.XGBRFRegressor(n_estimators=10, n_jobs=1),
    "ridge": Ridge,
    "poisson": lambda: scaled(PoissonRegressor()),
    "random forest": lambda: RandomForestRegressor(**FOREST),
    "gradient boosting": lambda: GradientBoostingRegressor(**FOREST),
    "histogram boosting": lambda: HistGradientBoostingRegressor(max_iter=10, loss="gamma"),
    "support vectors": lambda: scaled(SVR()),
    "neural network": lambda: scaled(MLPRegressor(hidden_layer_sizes=(8,), max_iter=20, random_state=0)),
    "nearest neighbours": KNeighborsRegressor,
    "mean": DummyRegressor,
    "stacking": lambda: StackingRegressor([("a", lightgbm_number()), ("b", Ridge())], cv=2),
    "voting": lambda: VotingRegressor([("a", xgboost_number()), ("b", Ridge())], weights=[1, 3]),
    "bagging": lambda: BaggingRegressor(lightgbm_number(), n_estimators=3, random_state=0),
    "boosting": lambda: AdaBoostRegressor(n_estimators=5, random_state=0),
    "of the logarithm": lambda: TransformedTargetRegressor(lightgbm_number(), func=np.log1p, inverse_func=np.expm1),
    "of a scaled target": lambda: TransformedTargetRegressor(Ridge(), transformer=MinMaxScaler()),
}  # fmt: skip

OTHERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "several: once each": ("several", lightgbm_number),
    "several: xgboost": ("several", xgboost_number),
    "several: at once": ("several", lambda: RandomForestRegressor(**FOREST)),
    "several: network": ("several", lambda: scaled(MLPRegressor(hidden_layer_sizes=(8,), max_iter=20, random_state=0))),
    "several: chain": ("several", lambda: RegressorChain(Ridge(), order=[1, 0])),
    "several: wrapped": ("several", lambda: MultiOutputRegressor(Ridge())),
    "quantiles: lightgbm": ("quantiles", lightgbm_number),
    "quantiles: xgboost": ("quantiles", xgboost_number),
    "quantiles: gradient boosting": ("quantiles", lambda: GradientBoostingRegressor(**FOREST)),
    "quantiles: histogram boosting": ("quantiles", lambda: HistGradientBoostingRegressor(max_iter=10)),
    "quantiles: linear": ("quantiles", lambda: scaled(QuantileRegressor(alpha=0))),
    "ranking: lightgbm": ("ranking", lambda: lgb.LGBMRanker(n_estimators=10, verbose=-1, n_jobs=1)),
    "ranking: xgboost": ("ranking", lambda: xgb.XGBRanker(n_estimators=10, n_jobs=1)),
    "ranking: pipeline": ("ranking", lambda: scaled(lgb.LGBMRanker(n_estimators=10, verbose=-1, n_jobs=1))),
    "ranking: point by point": ("ranking", lightgbm_number),
    "anomaly: forest": ("anomaly", lambda: IsolationForest(n_estimators=10, max_features=0.5, random_state=0)),
    "anomaly: vectors": ("anomaly", lambda: scaled(OneClassSVM())),
    "anomaly: linear": ("anomaly", lambda: scaled(SGDOneClassSVM(random_state=0))),
    "anomaly: neighbours": ("anomaly", lambda: LocalOutlierFactor(novelty=True)),
    "anomaly: ellipse": ("anomaly", lambda: EllipticEnvelope(random_state=0)),
}  # fmt: skip


SEVERAL = ["lightgbm one against all", "calibrated in steps", "bagging votes", "one against the rest", "bent", "side by side"]
BOTH = [
    "lightgbm",
    "xgboost",
    "random forest",
    "gradient boosting",
    "histogram boosting",
    "logistic regression",
    "stochastic gradient",
]
BOTH += [
    "discriminant analysis",
    "neural network",
    "calibrated lightgbm",
    "calibrated by temperature",
    "stacking",
    "boosting of stumps",
]
CASES = [(name, "binary") for name in CLASSIFIERS if name not in SEVERAL]
CASES += [(name, "multiclass") for name in [*SEVERAL, *BOTH]]


@pytest.mark.filterwarnings("ignore:`XGBRF:FutureWarning")  # deprecated since XGBoost 3.3, and still converted
@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_classifier_and_its_graph_agree(name: str, task: str) -> None:
    apart, bound = gap(CLASSIFIERS[name](), task)
    assert apart <= bound


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("name", TAKES_NAN)
def test_they_agree_where_values_are_missing(name: str, missing: float) -> None:
    """Also where training had none: which way such a row goes is each library's own."""
    matrix, truths = data(missing=missing)
    estimator, _ = fit(CANDIDATE, TAKES_NAN[name](), TrainingData(matrix, truths["binary"]), Goal())
    holes = data(missing=0.3, seed=1)[0]
    graph = Graph(convert("x", estimator, matrix.shape[1], Goal()).SerializeToString())
    found = Goal().answers(graph.run({"matrix": holes})["raw"])
    assert difference(found, predict(estimator, holes, Goal()), Goal()).max() <= tolerance(estimator, Goal())[0]


@pytest.mark.filterwarnings("ignore:`XGBRF:FutureWarning")  # deprecated since XGBoost 3.3, and still converted
@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_and_its_graph_agree(name: str) -> None:
    apart, bound = gap(REGRESSORS[name](), "regression")
    assert apart <= bound


@pytest.mark.parametrize("name", OTHERS)
def test_estimators_of_the_other_tasks_agree(name: str) -> None:
    task, make = OTHERS[name]
    apart, bound = gap(make(), task)
    assert apart <= bound


@pytest.mark.parametrize("name", ["lightgbm regression", "random forest", "histogram boosting", "ridge", "stacking"])
def test_numbers_of_any_size_are_exact(name: str) -> None:
    """Sums in float32 would be off by hundreds where targets are about 1e9; these are right to less than a thousandth."""
    apart, _ = gap(REGRESSORS[name](), "regression", scale=1e9)
    assert apart <= 1e-9


def test_real_measurements_agree() -> None:
    for dataset, task, makers in (
        (load_breast_cancer, "binary", (lightgbm, xgboost, CLASSIFIERS["stacking"], CLASSIFIERS["calibrated in steps"])),
        (load_wine, "multiclass", (lightgbm, xgboost, CLASSIFIERS["logistic regression"])),
        (load_diabetes, "regression", (lightgbm_number, Ridge, REGRESSORS["random forest"])),
    ):
        bunch = dataset()
        matrix = bunch.data.astype(np.float32)
        truth = {"binary": bunch.target == 1, "multiclass": bunch.target.astype(str), "regression": bunch.target}[task]
        aim = goal(task, truth)
        for make in makers:
            estimator, _ = fit(CANDIDATE, make(), TrainingData(matrix, truth), aim)
            graph = Graph(convert("x", estimator, matrix.shape[1], aim).SerializeToString())
            found = aim.answers(graph.run({"matrix": matrix})["raw"])
            assert difference(found, predict(estimator, matrix, aim), aim).max() <= tolerance(estimator, aim)[0]


def test_quantiles_that_cross_are_sorted() -> None:
    matrix, truths = data(n=60)
    aim = goal("quantiles", truths["quantiles"])
    estimator, _ = fit(CANDIDATE, QuantileRegressor(alpha=0), TrainingData(matrix, truths["quantiles"]), aim)
    matrix = matrix * 10
    each = np.column_stack([e.predict(matrix.astype(np.float64)) for e in estimator.estimators])
    assert (np.diff(each, axis=1) < 0).any()  # they do cross
    answers = predict(estimator, matrix, aim)
    assert np.array_equal(answers.values, np.sort(each, axis=1))
    assert np.array_equal(answers.score, answers.values[:, 1])


def test_a_ranker_learns_within_its_groups() -> None:
    """Rows come in any order; what is learned is the order within a group, not that some groups are better."""
    rng = np.random.default_rng(0)
    group, quality = np.repeat(np.arange(100), 10), rng.normal(size=1000)
    relevance = np.digitize(quality, [-0.5, 0.5]).astype(np.float64)
    matrix = np.column_stack([quality + rng.normal(size=1000) * 0.1, rng.normal(size=1000)]).astype(np.float32)
    mixed = rng.permutation(1000)
    training_data = TrainingData(matrix[mixed], relevance[mixed], group=np.array([f"g{g}" for g in group])[mixed])
    ranker, _ = fit(CANDIDATE, lgb.LGBMRanker(n_estimators=20, verbose=-1, n_jobs=1), training_data, goal("ranking", relevance))
    score = predict(ranker, matrix, goal("ranking", relevance)).score
    assert np.corrcoef(score, relevance)[0, 1] > 0.8


class Own(StandardScaler):  # type: ignore[misc]  # scikit-learn has no types
    """A transformer of the user's own."""


REFUSED: dict[str, tuple[str, Callable[[], Any], str]] = {
    "python code": ("binary", lambda: make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()), "functiontransformer.*Python code"),
    "python code deep inside": ("binary", lambda: StackingClassifier([("a", make_pipeline(FunctionTransformer(np.log1p), lightgbm()))]), "a__functiontransformer.*Python code"),
    "no probabilities": ("binary", RidgeClassifier, "no predict_proba.*CalibratedClassifierCV"),
    "no estimator": ("binary", lambda: "LogisticRegression", "cannot be fitted"),
    "a ranker for a class": ("binary", lambda: make_pipeline(StandardScaler(), lgb.LGBMRanker()), "LGBMRanker has no predict_proba"),
    "unknown part": ("binary", lambda: make_pipeline(Own(), LogisticRegression()), "'own' .Own. has no converter"),
    "a classifier for a number": ("regression", LogisticRegression, "LogisticRegression is no regressor"),
    "no quantiles": ("quantiles", lambda: scaled(Ridge()), "Ridge.*predicts no quantiles.*LGBMRegressor"),
    "no outlier detector": ("anomaly", lightgbm, "is no outlier detector"),
    "outliers of the training rows only": ("anomaly", LocalOutlierFactor, "is no outlier detector"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name_before_fitting(name: str) -> None:
    task, make, why = REFUSED[name]
    truth = data()[1][task]
    with pytest.raises(ConversionRefused, match=why):
        refuse_inconvertible("x", make(), goal(task, truth))


REHEARSED: dict[str, tuple[str, Callable[[], Any], str]] = {
    "linear trees": ("binary", lambda: lightgbm(linear_tree=True), "linear trees cannot be converted to ONNX"),
    "zero as missing": ("binary", lambda: lightgbm(zero_as_missing=True), "zero_as_missing"),
    "a linear booster": ("binary", lambda: xgboost(booster="gblinear"), "gblinear"),
    "no probability": ("binary", lambda: xgboost(objective="binary:hinge"), "binary:hinge cannot be converted to ONNX"),
    "machines of several classes": ("multiclass", lambda: CalibratedClassifierCV(SVC(), cv=2), "OneVsRestClassifier"),
    "a kernel of one's own": ("regression", lambda: SVR(kernel=lambda a, b: a @ b.T), "is Python code"),
    "lots": ("binary", lambda: DummyClassifier(strategy="stratified"), "answers at random"),
    "imputed by neighbours": ("binary", lambda: make_pipeline(KNNImputer(), lightgbm()), "KNNImputer cannot be converted to ONNX"),
    "a graph that fails": ("regression", lambda: scaled(RadiusNeighborsRegressor()), "."),
}  # fmt: skip


@pytest.mark.parametrize("name", REHEARSED)
def test_what_only_a_conversion_tells_is_found_in_a_rehearsal(name: str) -> None:
    task, make, why = REHEARSED[name]
    matrix, truths = data()
    aim = goal(task, truths[task])
    refuse_inconvertible("x", make(), aim)
    with pytest.raises(ConversionRefused, match=why):
        rehearse(CANDIDATE, make(), TrainingData(matrix, truths[task]), aim)


def test_a_rehearsal_leaves_the_estimator_alone_and_passes_what_is_fine() -> None:
    matrix, truths = data(n=2000)
    estimator = lightgbm()
    rehearse(CANDIDATE, estimator, TrainingData(matrix, truths["binary"]), Goal())
    assert not estimator.__sklearn_is_fitted__()
    rehearse(CANDIDATE, KNeighborsClassifier(1500), TrainingData(matrix, truths["binary"]), Goal())  # too many for so few rows


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "several", "quantiles", "ranking", "anomaly"])
def test_a_rehearsal_needs_no_data(task: str) -> None:
    """Before there are any examples, `check` rehearses on made-up numbers."""
    label = {"a": "a", "b": "b"} if task == "several" else "a"
    kind: Any = {"several": "regression", "quantiles": "regression"}.get(task, task)
    group, quantiles = ("id" if task == "ranking" else None), ([0.1, 0.9] if task == "quantiles" else [])
    outcome = Outcome(LANDINGS, label, task=kind, group=group, quantiles=quantiles)
    fine, odd = {
        "binary": (lightgbm(), lightgbm(linear_tree=True)),
        "multiclass": (lightgbm(), lightgbm(linear_tree=True)),
        "ranking": (lgb.LGBMRanker(n_estimators=5, verbose=-1), lightgbm_number(linear_tree=True)),
        "anomaly": (IsolationForest(n_estimators=5), OneClassSVM(kernel=lambda a, b: a @ b.T)),
    }.get(
        task, (lightgbm_number(objective="poisson" if task == "several" else "regression"), lightgbm_number(linear_tree=True))
    )
    training_data = made_up(outcome, 4)
    rehearse(CANDIDATE, fine, training_data, goal_of(outcome, training_data.truth))
    with pytest.raises(ConversionRefused):
        rehearse(CANDIDATE, odd, training_data, goal_of(outcome, training_data.truth))


@pytest.mark.filterwarnings("ignore:`XGBRF:FutureWarning")  # deprecated since XGBoost 3.3, and still converted
@pytest.mark.parametrize("name", sorted(CLASSIFIERS.keys() - {"lightgbm one against all"}))  # LightGBM wants more of them there
def test_multiclass_of_two_classes_gives_the_probability_of_each(name: str) -> None:
    matrix, truths = data()
    truth = np.where(truths["binary"], "yes", "no").astype(object)
    aim = goal("multiclass", truth)
    fitted, _ = fit(CANDIDATE, CLASSIFIERS[name](), TrainingData(matrix, truth), aim)
    graph = load("x", convert("x", fitted, matrix.shape[1], aim).SerializeToString())
    found = aim.answers(graph.run({"matrix": matrix})["raw"])
    assert found.values.shape == (len(matrix), 2)
    assert float(difference(found, predict(fitted, matrix, aim), aim).max()) <= tolerance(fitted, aim)[0]


def test_code_that_training_lacks_says_nothing_of_the_class() -> None:
    """scikit-learn's own raises IndexError for it; a graph that fails would fail a whole batch of requests."""
    codes = np.arange(300, dtype=np.float32).reshape(-1, 1) % 5
    truth = np.random.default_rng(0).random(300) < codes[:, 0] / 5
    fitted, _ = fit(CANDIDATE, CategoricalNB(), TrainingData(codes, truth), Goal())
    graph = load("x", convert("x", fitted, 1, Goal()).SerializeToString())
    unknown = np.array([[5.0], [6.0], [-1.0], [np.nan], [1e9]], dtype=np.float32)
    assert graph.run({"matrix": unknown})["raw"][:, 0].tolist() == pytest.approx([truth.mean()] * 5)
    rehearse(Candidate("x", CategoricalNB), CategoricalNB(), TrainingData(codes, truth), Goal())


class Rare(LogisticRegression):  # type: ignore[misc]  # scikit-learn has no types
    """Cannot be fitted on few rows."""

    def fit(self, matrix: Array, truth: Array) -> Any:
        if len(matrix) < 1000:
            raise ValueError("too few")
        return super().fit(matrix, truth)


def test_rehearsal_sees_the_one_missing_value_of_a_column() -> None:
    """What the real fit would fail by is among the few rows: the least, the largest and a missing value of each column."""
    matrix, truths = data(n=5000)
    matrix[1234, 2] = np.nan
    with pytest.raises(CannotFit, match="NaN"):
        rehearse(CANDIDATE, LogisticRegression(), TrainingData(matrix, truths["binary"]), Goal())


def test_rehearsal_takes_all_rows_where_few_are_not_enough() -> None:
    matrix, truths = data(n=2000)
    rehearse(CANDIDATE, Rare(), TrainingData(matrix, truths["binary"]), Goal())
    with pytest.raises(CannotFit, match="too few"):
        rehearse(CANDIDATE, Rare(), TrainingData(matrix[:900], truths["binary"][:900]), Goal())


def test_a_class_that_training_lacks_is_named() -> None:
    matrix, truths = data()
    two = truths["multiclass"] != "mid"
    aim = goal("multiclass", truths["multiclass"])
    estimator, _ = fit(CANDIDATE, lightgbm(), TrainingData(matrix[two], truths["multiclass"][two]), aim)
    with pytest.raises(ConversionRefused, match="2 of 3 classes"):
        convert("x", estimator, 6, aim)
