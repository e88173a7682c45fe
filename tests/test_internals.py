"""Private names of other libraries: each is in one table, is asked for in one way, and costs only what needs it when it is gone."""

import ast
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler
from sklearn.svm import SVR
from tests.deploy.loops import model_graph

from loopwright.base.errors import ConversionRefused, LibraryChanged
from loopwright.base.internals import INTERNALS, internal
from loopwright.develop.fit import fit
from loopwright.develop.onnx import estimators
from loopwright.develop.onnx.convert import convert
from loopwright.develop.output import goal_of
from loopwright.develop.rehearsal import made_up
from loopwright.graph import session
from loopwright.graph.session import Graph
from loopwright.records.declarations import Candidate, Column, Outcome, Table
from loopwright.server.api import metrics

SOURCE = Path(__file__).parent.parent / "src" / "loopwright"
LANDINGS = Table("landings", {"id": Column("string"), "at": Column("timestamp")}, key=["id"], event_time="at")

PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_mapping", "_exit"}
"""Names with an underscore that are documented: of named tuples, of rows of SQLAlchemy, of os."""


def own_names() -> set[str]:
    """Every private name that the source itself gives to something."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


def private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name != "_"


def private_uses(source: str, own: set[str]) -> Iterator[str]:
    """What a module uses of other libraries' private names without asking `internal`, as `line: name`."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".") if not alias.name.startswith("_")]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in ("loopwright", "__future__"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute) and node.attr not in own | PUBLIC:
            names = [node.attr]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            names = [str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant) and a.value not in own]
        yield from (f"{getattr(node, 'lineno', 0)}: {name}" for name in names if private(name))


def test_private_names_of_libraries_are_asked_for_in_one_way() -> None:
    own = own_names()
    found = [
        f"{path.relative_to(SOURCE)}:{use}" for path in SOURCE.rglob("*.py") for use in private_uses(path.read_text(), own)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import sklearn.ensemble._forest",
        "from sklearn.ensemble._forest import ForestClassifier",
        "from sklearn.linear_model import _base as base",
        "def f(part):\n    return part._gamma",
        "def f(part):\n    return getattr(part, '_gamma')",
    ],
)
def test_a_private_name_is_noticed(source: str) -> None:
    assert list(private_uses(source, own_names()))


def test_every_row_is_asked_for_and_nothing_else_is() -> None:
    asked = {
        call.args[1].value
        for path in SOURCE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "internal"
        if isinstance(call.args[1], ast.Constant)
    }
    assert asked == {row.name for row in INTERNALS}


# --- a name is gone ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, Any] = {  # what needs a name of scikit-learn
    "_gamma": SVR(),
    "_transformer_to_input_indices": make_pipeline(make_column_transformer((StandardScaler(), [0, 1])), LogisticRegression()),
    "_scaler": make_pipeline(PowerTransformer(), LogisticRegression()),
    "_raw_predict_init": GradientBoostingClassifier(n_estimators=2),
    "_predictors": HistGradientBoostingClassifier(max_iter=2),
    "_baseline_prediction": HistGradientBoostingClassifier(max_iter=2),
}
DOES_WITHOUT = {"_supported_operators", "_sess", "_sum", "_buckets"}  # a test each, below


def test_every_name_is_taken_away_in_a_test() -> None:
    assert set(REFUSED) | DOES_WITHOUT == {row.name for row in INTERNALS}


def outcome(estimator: Any) -> Outcome:
    return Outcome(
        LANDINGS,
        label="x" if isinstance(estimator, SVR) else "x > 1",
        task="regression" if isinstance(estimator, SVR) else "binary",
    )


def converted(estimator: Any, without: str = "") -> Any:
    """A fitted estimator as ONNX, with a private name of its parts taken away once it is fitted."""
    told = outcome(estimator)
    training_data = made_up(told, 3)
    goal = goal_of(told, training_data.truth)
    fitted, _ = fit(Candidate("x", lambda: estimator), estimator, training_data, goal)
    for part in [step for _, step in fitted.steps] if hasattr(fitted, "steps") else [fitted]:
        vars(part).pop(without, None)
    return convert("x", fitted, 3, goal)


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_of_scikit_learn_that_is_gone_costs_only_what_needs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert converted(REFUSED[name])
    for kind in type(REFUSED[name]).__mro__:
        if name in vars(kind):
            monkeypatch.delattr(kind, name)
    with pytest.raises(ConversionRefused) as refused:
        converted(REFUSED[name], without=name)
    version = metadata.version("scikit-learn")
    assert f"scikit-learn {version} has no `{name}` any more" in refused.value.why
    assert f"pip install 'scikit-learn<{version}'" in refused.value.why
    assert converted(LogisticRegression())


def test_without_the_list_of_converters_skl2onnx_refuses_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown(GaussianNB):  # type: ignore[misc]  # scikit-learn ships no types
        pass

    assert not estimators.converts(Unknown)
    monkeypatch.setitem(sys.modules, "skl2onnx._supported_operators", None)
    with pytest.raises(LibraryChanged, match=r"skl2onnx \d.*_supported_operators.*install an older skl2onnx"):
        internal("skl2onnx", "_supported_operators")
    assert estimators.converts(Unknown)
    with pytest.raises(ConversionRefused, match="Unknown"):
        converted(Unknown())
    assert converted(GaussianNB())


class Public:
    """An object of which only the public names are there."""

    def __init__(self, real: Any) -> None:
        self.__real = real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.__real, name)


def test_without_the_inner_session_the_public_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    data = model_graph()
    before = Graph(data)
    made = session._session
    monkeypatch.setattr(session, "_session", lambda data, threads: Public(made(data, threads)))
    after = Graph(data)
    feed = {i.name: np.zeros((3, *i.shape) if i.shape else 3, i.dtype) for i in before.inputs}
    assert after.score(feed).tolist() == before.score(feed).tolist()


def test_without_the_parts_of_a_histogram_each_duration_is_observed() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("seconds", "", buckets=metrics._SECONDS, registry=registry)
    counts = [0.0] * (len(metrics._SECONDS) + 1)
    counts[1], counts[-1] = 3.0, 1.0
    metrics._observe(Public(histogram), counts, 7.0)
    assert registry.get_sample_value("seconds_count") == 4
    assert registry.get_sample_value("seconds_bucket", {"le": str(metrics._SECONDS[0])}) == 0
    assert registry.get_sample_value("seconds_bucket", {"le": str(metrics._SECONDS[1])}) == 3
    assert registry.get_sample_value("seconds_bucket", {"le": "5.0"}) == 3
