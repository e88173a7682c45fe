"""Explanations beside those of `shap`, on real data and on every kind of model; and what has none."""

import warnings
from collections.abc import Iterator
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
import shap
import xgboost as xgb
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingRegressor,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, PolynomialFeatures, QuantileTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from loopwright.base.arrays import Array
from loopwright.develop.fit import Several, as_wanted, predict
from loopwright.develop.onnx.explanation import Files, explanation
from loopwright.develop.output import Answers, Goal
from loopwright.graph.contributions import Explainer, decode, linked
from loopwright.graph.session import Graph
from loopwright.records.package import Output

BINARY = Goal(output=Output())
CLASSES = ["a", "b", "c"]
MULTICLASS = Goal(output=Output(task="multiclass", classes=CLASSES, names=CLASSES))
REGRESSION = Goal(output=Output(task="regression"))
BOOSTED: dict[str, Any] = {"n_estimators": 20, "n_jobs": 1}
LIGHT: dict[str, Any] = {**BOOSTED, "verbose": -1, "random_state": 0}

Data = tuple[Array, Array]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small forests on many threads take longer, not shorter."""
    with threadpool_limits(1):
        yield


def data(goal: Goal, *, holes: bool = False) -> Data:
    load = {"binary": load_breast_cancer, "multiclass": load_wine}.get(goal.output.task, load_diabetes)
    matrix, truth = load(return_X_y=True)
    matrix = matrix.astype(np.float32)
    if holes:
        matrix[np.random.default_rng(0).random(matrix.shape) < 0.15] = np.nan
    return matrix, truth


def made(estimator: Any, goal: Goal, matrix: Array, names: list[str] | None = None) -> tuple[Files, Answers]:
    given = predict(estimator, matrix, goal)
    answers = {"features": matrix, "score": given.score} | ({"values": given.values} if goal.output.names else {})
    names = names or [f"f{i}" for i in range(matrix.shape[1])]
    return explanation(estimator, goal, names, matrix, np.arange(len(matrix)), answers), given


def ready(files: Files, matrix: Array) -> tuple[Explainer, Array]:
    """What explains, and the matrix that it explains."""
    assert not files.about.why, files.about.why
    graph = files.files.get("explain.onnx")
    found = Graph(graph).run({"features": matrix})["matrix"] if graph else matrix
    return decode(files.files["explanation.msgpack"]), found


def by_shap(estimator: Any, matrix: Array) -> tuple[Array, Array]:
    """Base [K] and contributions [N, K, F] of shap, path-dependent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer = shap.TreeExplainer(estimator, feature_perturbation="tree_path_dependent")
        found = np.asarray(explainer.shap_values(as_wanted(estimator, matrix)))
        base = np.ravel(explainer.expected_value)
    found = np.moveaxis(found, 2, 1) if found.ndim == 3 else found[:, None]
    return (base[1:], found[:, 1:]) if found.shape[1] == 2 else (base, found)  # of two classes it gives both


TREES: list[tuple[Goal, Any, bool, str]] = [
    (BINARY, lgb.LGBMClassifier(**LIGHT), True, "log-odds"),
    (BINARY, xgb.XGBClassifier(**BOOSTED), True, "log-odds"),
    (BINARY, RandomForestClassifier(10, random_state=0), True, "probability"),
    (BINARY, ExtraTreesClassifier(8, random_state=0), False, "probability"),
    (BINARY, GradientBoostingClassifier(n_estimators=30), False, "log-odds"),
    (BINARY, HistGradientBoostingClassifier(max_iter=30), True, "log-odds"),
    (MULTICLASS, lgb.LGBMClassifier(**LIGHT), True, "margin"),
    (MULTICLASS, xgb.XGBClassifier(**BOOSTED), False, "margin"),
    (MULTICLASS, RandomForestClassifier(10, random_state=0), True, "probability"),
    (MULTICLASS, HistGradientBoostingClassifier(max_iter=20), False, "margin"),
    (REGRESSION, lgb.LGBMRegressor(**LIGHT), True, "number"),
    (REGRESSION, lgb.LGBMRegressor(**LIGHT, boosting_type="dart"), False, "number"),
    (REGRESSION, lgb.LGBMRegressor(**LIGHT, boosting_type="rf", subsample=0.5, subsample_freq=1), False, "number"),
    (REGRESSION, lgb.LGBMRegressor(**LIGHT, objective="poisson"), True, "logarithm"),
    (REGRESSION, xgb.XGBRegressor(**BOOSTED), True, "number"),
    (REGRESSION, xgb.XGBRegressor(**BOOSTED, booster="dart", rate_drop=0.3), False, "number"),
    (REGRESSION, RandomForestRegressor(8, random_state=0), True, "number"),
    (REGRESSION, GradientBoostingRegressor(n_estimators=30), False, "number"),
    (REGRESSION, HistGradientBoostingRegressor(max_iter=30), True, "number"),
    (REGRESSION, DecisionTreeRegressor(max_depth=6), True, "number"),
]


@pytest.mark.parametrize(("goal", "estimator", "holes", "unit"), TREES, ids=lambda v: type(v).__name__)
def test_trees_are_explained_as_shap_explains_them(goal: Goal, estimator: Any, holes: bool, unit: str) -> None:
    matrix, truth = data(goal, holes=holes)
    estimator.fit(as_wanted(estimator, matrix), truth)
    files, given = made(estimator, goal, matrix)
    assert (files.about.method, files.about.unit) == ("TreeSHAP", unit)
    explainer, matrix = ready(files, matrix)
    found = explainer.contributions(matrix)
    base, expected = by_shap(estimator, matrix)
    if getattr(estimator, "boosting_type", "") == "rf":  # LightGBM averages its answers and forgets to average their parts
        base, expected = base / estimator.n_estimators, expected / estimator.n_estimators
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(explainer.base - base).max() <= 1e-6 * max(1, np.abs(base).max())
    answered = linked(explainer.link, explainer.base + found.sum(axis=2))
    assert answered is not None
    answers = goal.answers(answered)
    assert np.abs(answers.score - given.score).max() <= 1e-6 * max(1, np.abs(given.score).max())


def random_rows(rows: int, *, holes: bool) -> Array:
    """Numbers, whole numbers and codes of categories, with holes, zeros, negative codes and infinities where asked for."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(rows, 6)).astype(np.float32)
    matrix[:, 3:] = rng.integers(0, [40, 5, 12], (rows, 3))
    if holes:
        matrix[rng.random(matrix.shape) < 0.1] = np.nan
        matrix[rng.random(matrix.shape) < 0.02] = 0.0
        matrix[rng.random(matrix.shape) < 0.01] = np.float32(1e-36)
        matrix[rng.random(rows) < 0.02, 3] = 17.9
        matrix[rng.random(rows) < 0.02, 4] = -1.0
        matrix[rng.random(rows) < 0.02, 5] = 1e6
        matrix[rng.random(rows) < 0.02, 0] = -np.inf
        matrix[rng.random(rows) < 0.02, 1] = np.inf
    return matrix


@pytest.mark.parametrize("missing_in_training", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_categories_and_missing_values_of_lightgbm(missing_in_training: bool, classes: int) -> None:
    """LightGBM's own explanation of its splits by category, for values that training had and for others."""
    matrix, odd = random_rows(1500, holes=False), random_rows(300, holes=True)
    if missing_in_training:
        matrix[np.random.default_rng(2).random(matrix.shape) < 0.1] = np.nan
    number = np.nan_to_num(matrix[:, 0]) + np.isin(matrix[:, 3], [1, 5, 7, 20, 33]) * 2 + (matrix[:, 4] == 2)
    truth = np.digitize(number, [0.5, 1.5][: classes - 1])
    estimator = lgb.LGBMClassifier(**LIGHT, min_child_samples=5, cat_smooth=1).fit(matrix, truth, categorical_feature=[3, 4, 5])
    goal = BINARY if classes == 2 else MULTICLASS
    files, _ = made(estimator, goal, matrix)
    explainer, _ = ready(files, matrix)
    assert any(part.sets for part in _parts(files))
    for rows in (matrix[:150], odd):
        expected = np.asarray(estimator.booster_.predict(rows, pred_contrib=True)).reshape(len(rows), -1, 7)
        found = explainer.contributions(rows)
        assert np.abs(found - expected[:, :, :-1]).max() < 1e-9
        assert np.abs(explainer.base - expected[0, :, -1]).max() < 1e-9


def _parts(files: Files) -> Any:
    import msgspec

    from loopwright.graph.contributions import Explanation

    return msgspec.msgpack.decode(files.files["explanation.msgpack"], type=Explanation).parts


LINEAR: list[tuple[Goal, Any, str]] = [
    (BINARY, LogisticRegression(max_iter=5000), "log-odds"),
    (BINARY, SGDClassifier(loss="log_loss", random_state=0), "log-odds"),
    (MULTICLASS, LogisticRegression(max_iter=5000), "margin"),
    (REGRESSION, LinearRegression(), "number"),
    (REGRESSION, Ridge(), "number"),
    (REGRESSION, PoissonRegressor(), "logarithm"),
]


@pytest.mark.parametrize(("goal", "estimator", "unit"), LINEAR, ids=lambda v: type(v).__name__)
def test_linear_models_are_explained_as_shap_explains_them(goal: Goal, estimator: Any, unit: str) -> None:
    matrix, truth = data(goal)
    pipeline = make_pipeline(StandardScaler(), estimator).fit(matrix.astype(np.float64), truth)
    files, given = made(pipeline, goal, matrix)
    assert (files.about.method, files.about.unit) == ("linear", unit)
    explainer, scaled = ready(files, matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by = shap.LinearExplainer(estimator, shap.maskers.Independent(scaled, max_samples=len(scaled)))
        expected = np.asarray(by.shap_values(scaled))
    expected = np.moveaxis(expected, 2, 1) if expected.ndim == 3 else expected[:, None]
    found = explainer.contributions(scaled)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(explainer.base - np.ravel(by.expected_value)).max() <= 1e-6 * max(1, np.abs(explainer.base).max())
    answered = linked(explainer.link, explainer.base + found.sum(axis=2))
    assert answered is not None
    assert np.abs(goal.answers(answered).score - given.score).max() <= 1e-6 * max(1, np.abs(given.score).max())


def raw_of(estimator: Any, matrix: Array, unit: str) -> Array:
    """What the contributions of an estimator must add up to."""
    wanted = as_wanted(estimator, matrix)
    if unit in ("log-odds", "margin"):
        return np.asarray(estimator.decision_function(wanted))
    if unit == "logarithm":
        logs: Array = np.log(np.asarray(estimator.predict(wanted)))
        return logs
    return np.asarray(estimator.predict_proba(wanted)[:, 1] if unit == "probability" else estimator.predict(wanted))


COLUMNS = ColumnTransformer(
    [
        ("scaled", StandardScaler(), [0, 1]),
        (
            "words",
            make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore", sparse_output=False)),
            [3, 4],
        ),
        (
            "bins",
            make_union(
                KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"),
                QuantileTransformer(n_quantiles=50),
            ),
            [2],
        ),
        ("gone", "drop", [5]),
    ]
)
NESTED: list[tuple[Goal, Any, str]] = [
    (BINARY, make_pipeline(COLUMNS, LogisticRegression(max_iter=2000)), "log-odds"),
    (BINARY, make_pipeline(COLUMNS, HistGradientBoostingClassifier(max_iter=20)), "log-odds"),
    (BINARY, make_pipeline(SelectKBest(k=3), RandomForestClassifier(10, random_state=0)), "probability"),
    (BINARY, make_pipeline(SimpleImputer(add_indicator=True), StandardScaler(), LogisticRegression()), "log-odds"),
    (BINARY, GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {}, cv=2), "log-odds"),
    (
        BINARY,
        VotingClassifier(
            [("a", RandomForestClassifier(8, random_state=0)), ("b", ExtraTreesClassifier(8, random_state=0))],
            voting="soft",
            weights=[3, 1],
        ),
        "probability",
    ),
    (REGRESSION, BaggingRegressor(Ridge(), n_estimators=5, max_features=0.5, random_state=0), "number"),
    (
        REGRESSION,
        VotingRegressor([("a", make_pipeline(StandardScaler(), Ridge())), ("b", DecisionTreeRegressor(max_depth=4))]),
        "number",
    ),
    (REGRESSION, make_pipeline(COLUMNS, xgb.XGBRegressor(n_estimators=20, objective="count:poisson")), "logarithm"),
]


@pytest.mark.parametrize(("goal", "estimator", "unit"), NESTED, ids=lambda v: type(v).__name__)
def test_what_comes_before_is_traced_back_to_the_features(goal: Goal, estimator: Any, unit: str) -> None:
    """The columns that one feature became are added up; and a feature that changes nothing contributes nothing."""
    matrix = random_rows(400, holes=False)
    number = np.exp(0.3 * matrix[:, 0] + (matrix[:, 3] % 3 == 0) + np.sin(matrix[:, 2]))
    truth = number > np.median(number) if goal is BINARY else number
    estimator.fit(as_wanted(estimator, matrix), truth)
    names = ["a", "b", "c", "d", "kind=x", "kind=y"]
    files, _ = made(estimator, goal, matrix, names)
    assert files.about.unit == unit
    explainer, explained = ready(files, matrix)
    assert explainer.features == ["a", "b", "c", "d", "kind"]
    found = explainer.contributions(explained)
    assert found.shape == (400, 1, 5)
    apart = np.abs(explainer.base + found.sum(axis=2)[:, 0] - raw_of(estimator, matrix, unit)).max()
    assert apart < (1e-4 if unit == "logarithm" else 1e-6)
    for column, feature in ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 4)):
        changed = matrix.copy()
        changed[:, column] = np.roll(changed[:, column], 1)
        graph = files.files.get("explain.onnx")
        again = Graph(graph).run({"features": changed})["matrix"] if graph else changed
        other = [i for i in range(explained.shape[1]) if not np.array_equal(again[:, i], explained[:, i])]
        assert {int(explainer_place(files)[i]) for i in other} <= {feature}


def explainer_place(files: Files) -> Array:
    import msgspec

    from loopwright.graph.contributions import Explanation

    found: Explanation = msgspec.msgpack.decode(files.files["explanation.msgpack"], type=Explanation)
    return found.place.array()


def test_quantiles_and_targets_each_have_their_own() -> None:
    matrix, truth = data(REGRESSION)
    each = [lgb.LGBMRegressor(**LIGHT, objective="quantile", alpha=q).fit(matrix, truth) for q in (0.1, 0.5, 0.9)]
    goal = Goal(output=Output(task="regression", names=["q0.1", "q0.5", "q0.9"], quantiles=[0.1, 0.5, 0.9]))
    files, _ = made(Several(each), goal, matrix)
    explainer, _ = ready(files, matrix)
    found = explainer.contributions(matrix)
    for k, one in enumerate(each):
        base, expected = by_shap(one, matrix)
        assert np.abs(found[:, k] - expected[:, 0]).max() < 1e-9 * np.abs(expected).max()
        assert explainer.base[k] == pytest.approx(base[0], rel=1e-9)
    targets = np.column_stack([truth, -truth + matrix[:, 0] * 100])
    two = Goal(output=Output(task="regression", names=["up", "down"]))
    for several in (
        RandomForestRegressor(10, random_state=0).fit(matrix.astype(np.float64), targets),
        Ridge().fit(matrix.astype(np.float64), targets),
        MultiOutputRegressor(Ridge()).fit(matrix.astype(np.float64), targets),
    ):
        files, _ = made(several, two, matrix)
        explainer, _ = ready(files, matrix)
        sums = explainer.base + explainer.contributions(matrix).sum(axis=2)
        assert np.abs(sums - several.predict(matrix.astype(np.float64))).max() < 1e-6 * np.abs(targets).max()


def test_of_two_classes_each_is_explained() -> None:
    """An estimator tells the second of two classes; the first is its opposite."""
    matrix, truth = data(BINARY)
    goal = Goal(output=Output(task="multiclass", classes=["a", "b"], names=["a", "b"]))
    for estimator in (RandomForestClassifier(10, random_state=0), GradientBoostingClassifier(n_estimators=10), Ridge_()):
        estimator.fit(matrix.astype(np.float64), truth)
        files, given = made(estimator, goal, matrix)
        explainer, explained = ready(files, matrix)
        found = explainer.contributions(explained)
        assert np.abs(found[:, 0] + found[:, 1]).max() < 1e-12
        answered = linked(explainer.link, explainer.base + found.sum(axis=2))
        assert answered is not None
        assert np.abs(answered - given.values).max() < 1e-6


def Ridge_() -> Any:  # noqa: N802  # a classifier made of two steps
    return make_pipeline(StandardScaler(), LogisticRegression())


@pytest.mark.parametrize("factors", [[1.0, 0.25], [0.1, 1.0]])
def test_what_undoes_a_sampling_is_in_the_base(factors: list[float]) -> None:
    matrix, truth = data(BINARY)
    goal = Goal(output=Output(), factors=factors)
    estimator = lgb.LGBMClassifier(**LIGHT).fit(matrix, truth)
    files, given = made(estimator, goal, matrix)
    assert files.about.unit == "log-odds"
    explainer, _ = ready(files, matrix)
    sums = explainer.base + explainer.contributions(matrix).sum(axis=2)
    answered = linked(explainer.link, sums)
    assert answered is not None
    assert np.abs(answered[:, 0] - given.score).max() < 1e-9
    plain, _ = made(estimator, BINARY, matrix)
    assert ready(plain, matrix)[0].base != pytest.approx(explainer.base)
    forest = RandomForestClassifier(10, random_state=0).fit(matrix.astype(np.float64), truth)
    assert made(forest, goal, matrix)[0].about.unit == "probability before sampling is undone"
    matrix, truth = data(MULTICLASS)
    goal = Goal(output=MULTICLASS.output, factors=[*factors, 0.5])
    estimator = lgb.LGBMClassifier(**LIGHT).fit(matrix, truth)
    files, given = made(estimator, goal, matrix)
    explainer, _ = ready(files, matrix)
    answered = linked(explainer.link, explainer.base + explainer.contributions(matrix).sum(axis=2))
    assert answered is not None
    assert np.abs(answered - given.values).max() < 1e-9


def test_what_follows_the_sum_is_said_in_the_unit() -> None:
    matrix, truth = data(BINARY)
    calibrated = CalibratedClassifierCV(lgb.LGBMClassifier(**LIGHT), ensemble=False, cv=3).fit(matrix.astype(np.float64), truth)
    files, _ = made(calibrated, BINARY, matrix)
    assert files.about.unit == "log-odds before calibration"
    explainer, _ = ready(files, matrix)
    inner = calibrated.calibrated_classifiers_[0].estimator
    sums = explainer.base + explainer.contributions(matrix).sum(axis=2)[:, 0]
    assert np.abs(sums - inner.predict_proba(matrix, raw_score=True)).max() < 1e-9
    linear = CalibratedClassifierCV(LinearSVC(), ensemble=False, cv=3).fit(matrix.astype(np.float64), truth)
    assert made(linear, BINARY, matrix)[0].about.unit == "margin before calibration"
    matrix, truth = data(REGRESSION)
    target = TransformedTargetRegressor(Ridge(), func=np.log, inverse_func=np.exp).fit(matrix.astype(np.float64), truth)
    assert made(target, REGRESSION, matrix)[0].about.unit == "number as the target was transformed"


def test_strangeness_is_explained_on_a_scale_that_adds() -> None:
    matrix, _ = data(BINARY)
    goal = Goal(output=Output(task="anomaly"))
    forest = IsolationForest(n_estimators=30, random_state=0).fit(matrix.astype(np.float64))
    files, given = made(forest, goal, matrix)
    assert files.about.unit == "binary logarithm of the strangeness"
    explainer, _ = ready(files, matrix)
    sums = explainer.base + explainer.contributions(matrix).sum(axis=2)[:, 0]
    assert np.abs(np.exp2(sums) + forest.offset_ - given.score).max() < 1e-9


def test_a_ranker_is_explained() -> None:
    matrix, truth = data(REGRESSION)
    relevance = np.digitize(truth, [100, 200])
    groups = [2] * (len(matrix) // 2)
    ranker = lgb.LGBMRanker(**LIGHT).fit(matrix[: sum(groups)], relevance[: sum(groups)], group=groups)
    goal = Goal(output=Output(task="ranking"))
    files, given = made(ranker, goal, matrix)
    explainer, _ = ready(files, matrix)
    assert np.abs(explainer.base + explainer.contributions(matrix).sum(axis=2)[:, 0] - given.score).max() < 1e-9


NOT: list[tuple[Goal, Any, str]] = [
    (BINARY, MLPClassifier(max_iter=20), "MLPClassifier"),
    (BINARY, GaussianNB(), "GaussianNB"),
    (REGRESSION, KNeighborsRegressor(), "KNeighborsRegressor"),
    (BINARY, make_pipeline(PCA(2), LogisticRegression()), "PCA mixes columns"),
    (BINARY, make_pipeline(PolynomialFeatures(), LogisticRegression()), "PolynomialFeatures mixes columns"),
    (BINARY, CalibratedClassifierCV(lgb.LGBMClassifier(**LIGHT), cv=2), "ensemble=False"),
    (BINARY, VotingClassifier([("a", lgb.LGBMClassifier(**LIGHT)), ("b", GaussianNB())], voting="soft"), "GaussianNB"),
    (BINARY, VotingClassifier([("a", lgb.LGBMClassifier(**LIGHT))], voting="soft"), "do not add up"),
]


@pytest.mark.parametrize(("goal", "estimator", "why"), NOT, ids=lambda v: type(v).__name__)
def test_what_has_no_exact_explanation_says_why(goal: Goal, estimator: Any, why: str) -> None:
    matrix, truth = data(goal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(matrix.astype(np.float64), truth)
    files, _ = made(estimator, goal, matrix)
    assert why in files.about.why
    assert not files.files
    assert not files.about.method


def test_an_explanation_that_is_not_of_the_graph_is_refused() -> None:
    matrix, truth = data(BINARY)
    estimator = lgb.LGBMClassifier(**LIGHT).fit(matrix, truth)
    answers = {"features": matrix, "score": predict(estimator, matrix, BINARY).score + 0.01}
    files = explanation(estimator, BINARY, [f"f{i}" for i in range(30)], matrix, np.arange(100), answers)
    assert "differ by up to 0.01" in files.about.why


def test_whatever_a_library_raises_costs_the_explanation_only() -> None:
    answers: dict[str, Array] = {"features": np.zeros((1, 2), dtype=np.float32), "score": np.zeros(1)}
    files = explanation(Ridge(), REGRESSION, ["a", "b"], np.zeros((1, 2), dtype=np.float32), np.arange(1), answers)
    assert "AttributeError" in files.about.why  # it was not fitted


def test_trees_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from loopwright.graph import contributions as arithmetic

    monkeypatch.setattr(arithmetic, "MAX_ELEMENTS", 100)
    matrix, truth = data(BINARY)
    files, _ = made(lgb.LGBMClassifier(**LIGHT).fit(matrix, truth), BINARY, matrix)
    assert "too large" in files.about.why
