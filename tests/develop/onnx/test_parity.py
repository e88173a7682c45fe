"""Any pipeline on any typed, partly missing data: graph and estimator agree, or it is refused before it is fitted on all rows."""

from collections.abc import Iterator
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
import pytest
import xgboost as xgb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    BaggingRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingRegressor,
)
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDOneClassSVM
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, PolynomialFeatures, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from loopwright.base.arrays import Array
from loopwright.base.errors import ConversionRefused, DeclarationInvalid
from loopwright.develop.features import Encoding, Vocabulary, trace
from loopwright.develop.fit import TrainingData, fit
from loopwright.develop.onnx.convert import convert, refuse_inconvertible
from loopwright.develop.onnx.parity import agreed, difference
from loopwright.develop.output import Answers, Goal
from loopwright.develop.rehearsal import rehearse
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph
from loopwright.records.declarations import Candidate, Column
from loopwright.records.package import Output

COLUMNS = {
    "amount": Column("float", nullable=True),
    "count": Column("integer", nullable=True),
    "price": Column("float"),
    "flag": Column("boolean", nullable=True),
    "word": Column("string", nullable=True),
}
WORDS = [
    "",
    " ",
    "a",
    "A",
    "e\u0301",
    "\u00e9",
    "\u2603",
    "\U0001f600",
    "\u202e",
    "x" * 300,
    "\n",
    "(null)",
    "(other)",
    "0",
    "nan",
]
UNSEEN = ["\u00df", "a ", "\u0430", "\U0001f9ff", "y" * 300]
TAME = [0.0, -0.0, 1.0, -1.0, 0.1, 1 / 3, 1e-3, 12345.678, 2.0**24 + 1]
HUGE = [5e-324, -1e-310, 1e-40, -1e-40, 1e-35, -1e-35, 1e-30, 1e15, -1e20, 3e30]
ENDLESS = [float("inf"), float("-inf"), 1e300, -1e300, 3.5e38]
INTEGERS = [0, 1, -1, 7, 2**31, -(2**53) - 1, 2**53 + 1, 2**62, -(2**63)]

TASKS = {
    "binary": Goal(),
    "multiclass": Goal(output=Output(task="multiclass", classes=["a", "b", "c"], names=["a", "b", "c"])),
    "regression": Goal(output=Output(task="regression")),
    "several": Goal(output=Output(task="regression", names=["p", "q"])),
    "quantiles": Goal(output=Output(task="regression", names=["q0.2", "q0.7"], quantiles=[0.2, 0.7])),
    "ranking": Goal(output=Output(task="ranking")),
    "anomaly": Goal(output=Output(task="anomaly")),
}


def trees(**more: Any) -> dict[str, Any]:
    return {"n_estimators": 5, "n_jobs": 1, "random_state": 0, **more}


LGB = trees(verbose=-1, min_child_samples=5)
ENDS: dict[str, list[Any]] = {
    "class": [
        lambda: lgb.LGBMClassifier(**LGB),
        lambda: xgb.XGBClassifier(**trees()),
        lambda: RandomForestClassifier(**trees()),
        lambda: DecisionTreeClassifier(random_state=0),
        lambda: GradientBoostingClassifier(n_estimators=5, random_state=0),
        lambda: HistGradientBoostingClassifier(max_iter=5, random_state=0),
        lambda: LogisticRegression(max_iter=50),
        lambda: KNeighborsClassifier(3),
        lambda: MLPClassifier((4,), max_iter=5, random_state=0),
        lambda: CalibratedClassifierCV(lgb.LGBMClassifier(**LGB), cv=2),
        lambda: CalibratedClassifierCV(RandomForestClassifier(**trees()), cv=2, method="isotonic"),
        lambda: StackingClassifier([("a", lgb.LGBMClassifier(**LGB)), ("b", DecisionTreeClassifier(random_state=0))], cv=2),
    ],
    "number": [
        lambda: lgb.LGBMRegressor(**LGB),
        lambda: xgb.XGBRegressor(**trees()),
        lambda: RandomForestRegressor(**trees()),
        lambda: HistGradientBoostingRegressor(max_iter=5, random_state=0),
        Ridge,
        lambda: KNeighborsRegressor(3),
        lambda: BaggingRegressor(lgb.LGBMRegressor(**LGB), n_estimators=3, random_state=0),
        lambda: VotingRegressor([("a", lgb.LGBMRegressor(**LGB)), ("b", Ridge())]),
    ],
    "quantiles": [
        lambda: lgb.LGBMRegressor(**LGB),
        lambda: xgb.XGBRegressor(**trees()),
        lambda: HistGradientBoostingRegressor(max_iter=5, random_state=0),
    ],
    "ranking": [lambda: lgb.LGBMRanker(**LGB), lambda: xgb.XGBRanker(**trees()), lambda: lgb.LGBMRegressor(**LGB)],
    "anomaly": [lambda: IsolationForest(n_estimators=5, random_state=0), lambda: SGDOneClassSVM(random_state=0)],
}
STEPS: list[Any] = [
    StandardScaler,
    MinMaxScaler,
    RobustScaler,
    VarianceThreshold,
    lambda: SelectKBest(k=3),
    lambda: KBinsDiscretizer(3, encode="onehot-dense", quantile_method="averaged_inverted_cdf"),
    lambda: PolynomialFeatures(2),
]


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Encoding, Any, int, str]:
    """A task, an encoding of strings, an estimator, a seed of data, and how wild the numbers are."""
    task = draw(st.sampled_from(sorted(TASKS)))
    kind = {"binary": "class", "multiclass": "class", "regression": "number", "several": "number"}.get(task, task)
    steps = [step() for step in draw(st.lists(st.sampled_from(STEPS), max_size=2))]
    if draw(st.booleans()):
        steps.insert(0, SimpleImputer(add_indicator=draw(st.booleans())))
    end = draw(st.sampled_from(ENDS[kind]))()
    encoding: Encoding = draw(st.sampled_from(["ordinal", "onehot"]))
    wild = draw(st.sampled_from(["tame", "huge", "endless"]))
    return task, encoding, make_pipeline(*steps, end) if steps else end, draw(st.integers(0, 10_000)), wild


def rows(rng: Any, n: int, wild: str, words: list[str]) -> pa.Table:
    strange = {"tame": TAME, "huge": TAME + HUGE, "endless": TAME + HUGE + ENDLESS}[wild]

    def some(values: Any, missing: float) -> list[Any]:
        return [None if rng.random() < missing else v for v in values]

    def floats() -> list[float]:
        return [float(rng.choice(strange)) if rng.random() < 0.2 else float(rng.normal()) for _ in range(n)]

    def integers() -> list[int]:
        large = INTEGERS if wild != "tame" else INTEGERS[:4]
        return [large[rng.integers(len(large))] if rng.random() < 0.2 else int(rng.integers(-5, 9)) for _ in range(n)]

    return pa.table(
        {
            "amount": pa.array(some(floats(), 0.1), pa.float64()),
            "count": pa.array(some(integers(), 0.1), pa.int64()),
            "price": pa.array(floats(), pa.float64()),
            "flag": pa.array(some((rng.random(n) < 0.5).tolist(), 0.1), pa.bool_()),
            "word": pa.array(some([words[i] for i in rng.integers(0, len(words), n)], 0.1), pa.string()),
        }
    )


def truth_of(task: str, matrix: Array, rng: Any) -> Array:
    seen = np.clip(np.nan_to_num(matrix, nan=0.5, posinf=2, neginf=-2), -3, 3)
    height = seen @ rng.normal(size=matrix.shape[1]) + rng.normal(size=len(matrix))
    part = np.digitize(height, np.quantile(height, [0.3, 0.7]))
    if task == "several":
        return np.column_stack([height, height**2])
    found: Array = {
        "binary": height > np.median(height),
        "multiclass": np.array(["a", "b", "c"], dtype=object)[part],
        "ranking": part.astype(np.float64),
    }.get(task, height * 10.0 ** rng.integers(-2, 8))
    return found


def judge(case: tuple[str, Encoding, Any, int, str]) -> str:
    """Take one case through what training does; says where it ended, and fails where that is a surprise."""
    task, encoding, estimator, seed, wild = case
    goal, rng, candidate = TASKS[task], np.random.default_rng(seed), Candidate("x", Ridge)
    training, validation = rows(rng, 160, wild, WORDS), rows(rng, 80, wild, WORDS + UNSEEN)
    traced = trace(lambda f: {name: getattr(f, name) for name in COLUMNS}, COLUMNS)
    words = [w or "" for w in training.column("word").to_pylist()]
    null = training.column("word").is_null().to_numpy()
    vocabulary = {"word": Vocabulary.learn(words, null)}
    graph = Graph(traced.matrix_graph(vocabulary, encoding))
    matrix = graph.run(arrow_feed(graph, COLUMNS, training), ["features"])["features"]
    training_data = TrainingData(matrix, truth_of(task, matrix, rng), group=rng.integers(0, 12, len(matrix)))
    try:
        refuse_inconvertible("x", estimator, goal)
        rehearse(candidate, estimator, training_data, goal)
    except ConversionRefused:
        return "refused"
    except DeclarationInvalid:
        return "cannot be fitted"
    try:
        fitted, _ = fit(candidate, estimator, training_data, goal)
    except DeclarationInvalid:
        return "cannot be fitted"

    def build(goal: Goal, exact: bool) -> bytes:
        return traced.model_graph(vocabulary, encoding, convert("x", fitted, matrix.shape[1], goal, exact=exact), goal)

    agreed("x", fitted, goal, build, COLUMNS, validation)  # raises when they do not
    return "agreed"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small forests on many threads take longer, not shorter."""
    with threadpool_limits(1):
        yield


CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(cases())
def test_any_pipeline_agrees_or_is_refused_before(case: tuple[str, Encoding, Any, int, str]) -> None:
    judge(case)


@pytest.mark.slow
def test_most_pipelines_agree_on_hundreds_more() -> None:
    ends: list[str] = []

    @settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=CHECKS)
    @given(cases())
    def run(case: tuple[str, Encoding, Any, int, str]) -> None:
        ends.append(judge(case))

    run()
    assert ends.count("agreed") > 0.4 * len(ends)
    assert ends.count("refused") < 0.05 * len(ends)


def test_a_number_is_compared_by_its_size_and_a_probability_as_it_is() -> None:
    def answers(*score: float) -> Answers:
        return Answers(np.array(score), np.empty((len(score), 0)))

    numbers, odds = TASKS["regression"], TASKS["binary"]
    assert difference(answers(1e9 + 100, 0.5), answers(1e9, 0.4), numbers) == pytest.approx([1e-7, 0.1])
    assert difference(answers(0.5), answers(0.4), odds) == pytest.approx([0.1])
    inf, nan = float("inf"), float("nan")
    assert difference(answers(nan, inf, 1.0), answers(1.0, nan, 1e60), numbers).tolist() == [inf, 0.0, 0.0]
