"""Answers explained by the packages that gave them, and what forged explanations are refused for."""

import gc
import math
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from sklearn.naive_bayes import GaussianNB
from tests.admitted import unprobed
from tests.deploy.loops import Weather
from tests.develop.flights import table
from tests.develop.segments import linear, trees
from tests.develop.test_train import home_in, run
from tests.stores.packages.test_probe import external

from loopwright.base.errors import NotExplained, PackageRefused
from loopwright.deploy.serving.explanations import (
    BEFORE,
    DEGRADED,
    MAX_READY,
    MAX_ROWS,
    MAX_WORK,
    Explanations,
    PackageReasons,
    most_rows,
    refuse,
)
from loopwright.deploy.serving.predictor import Predictor
from loopwright.graph.calibration import calibrated
from loopwright.graph.contributions import Explanation, decode, encode
from loopwright.records.declarations import Candidate
from loopwright.records.package import Output
from loopwright.records.prediction import Contributions, Prediction
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import Probed, open_probed, probe
from loopwright.stores.packages.store import Package, Packages

CANDIDATES = [
    Candidate("lines", linear, encoding="onehot"),
    Candidate("trees", trees, encoding="ordinal"),
    Candidate("bayes", GaussianNB, encoding="ordinal"),
]
FEATURES = ["delay", "log_distance", "hub", "wind", "hour", "carrier", "gate"]

Made = tuple[Home, dict[str, Probed]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A home with a package of each candidate, trained on made-up flights."""
    with home_in(tmp_path_factory.mktemp("home")) as home:
        board = run(home, table(), candidates=CANDIDATES)
        yield home, {row.candidate: open_probed(home.packages, row.package) for row in board.rows}


def predictor(home: Home, package: Probed) -> Predictor:
    return Predictor(package, Weather(), home.clock)


def answered(home: Home, package: Probed) -> tuple[Predictor, list[Prediction]]:
    found = predictor(home, package)
    return found, found.answer([dict(g.request) for g in package.reference.golden])


def explanations(home: Home, *packages: Probed) -> Explanations:
    ready = {p.digest: predictor(home, p) for p in packages}
    return Explanations(home.packages, ready.__getitem__)


@pytest.mark.parametrize("candidate", ["lines", "trees"])
def test_contributions_add_up_to_the_score_that_was_answered(made: Made, candidate: str) -> None:
    home, packages = made
    package = packages[candidate]
    _, answers = answered(home, package)
    found = explanations(home, package)(answers)
    assert len({f.base for f in found}) == 1
    for explained, answer in zip(found, answers, strict=True):
        assert explained.contributions is not None
        assert explained.base is not None
        assert list(explained.contributions) == FEATURES
        assert (explained.of, explained.why) == (None, "")
        odds = explained.base + sum(explained.contributions.values())
        score = 1 / (1 + math.exp(-odds))
        calibration = package.manifest.calibration
        if calibration is None or not calibration.method:
            assert explained.unit == "log-odds"
            assert score == pytest.approx(answer.score, abs=1e-6)
        else:
            assert explained.unit == "log-odds before calibration"
            assert float(calibrated(calibration, score)) == pytest.approx(answer.score, abs=1e-5)
    moved = [f.contributions["delay"] for f in found if f.contributions]
    late = [a.request["delay"] for a in answers]
    assert np.corrcoef(moved, late)[0, 1] > 0.5  # the data were made so


def test_one_hot_columns_are_one_feature(made: Made) -> None:
    """Of a category only one column is 1, but those that are 0 speak too: the feature's contribution is that of all of them."""
    home, packages = made
    package = packages["lines"]
    assert sum(name.startswith("carrier=") for name in package.manifest.features) > 2
    _, answers = answered(home, package)
    by_carrier: dict[str, set[float]] = {}
    for answer, explained in zip(answers, explanations(home, package)(answers), strict=True):
        assert explained.contributions is not None
        by_carrier.setdefault(answer.request["carrier"], set()).add(round(explained.contributions["carrier"], 9))
    assert all(len(values) == 1 for values in by_carrier.values())
    assert len({next(iter(values)) for values in by_carrier.values()}) == len(by_carrier) > 1


def test_each_answer_by_its_own_package_and_none_by_the_heuristic(made: Made) -> None:
    home, packages = made
    lines, forest, bayes = (answered(home, packages[n])[1][:3] for n in ("lines", "trees", "bayes"))
    degraded = msgspec.structs.replace(lines[0], flags=["degraded"])
    given = [lines[0], forest[0], degraded, bayes[0], lines[1], forest[1]]
    found = explanations(home, *packages.values())(given)
    alone = [explanations(home, packages["lines"])([lines[0]])[0], explanations(home, packages["trees"])([forest[0]])[0]]
    assert found[:2] == alone
    assert found[2] == Contributions(why=DEGRADED)
    assert found[3].contributions is None
    assert "GaussianNB has no exact explanation" in found[3].why
    assert found[4].contributions is not None
    assert found[5].contributions is not None
    assert explanations(home)([degraded]) == [Contributions(why=DEGRADED)]  # no package is needed for that


def test_what_has_no_explanation_is_told_before(made: Made) -> None:
    home, packages = made
    assert packages["trees"].manifest.explained is not None
    assert packages["trees"].manifest.explained.method == "TreeSHAP"
    refuse("d" * 64, packages["trees"].manifest)
    for candidate, why in (("bayes", "GaussianNB"), ("heuristic", "a rule")):
        with pytest.raises(NotExplained, match=why):
            refuse("d" * 64, packages[candidate].manifest)
    old = msgspec.structs.replace(packages["trees"].manifest, explained=None)
    with pytest.raises(NotExplained, match="before answers were explained"):
        refuse("d" * 64, old)
    files = {n: d for n, d in packages["trees"].files.items() if not n.startswith("expl")}
    written = unprobed(home.packages, home.packages.write(old, files))
    _, answers = answered(home, written)
    assert [e.why for e in explanations(home, written)(answers)] == [BEFORE] * len(answers)


def test_a_package_is_made_ready_once_and_let_go_of_with_its_predictor(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    home, packages = made
    cached = list(answered(home, packages["trees"])[:1])
    answers = answered(home, packages["trees"])[1]
    explain = Explanations(home.packages, lambda _: cached[0])
    first = explain(answers)
    ready = id(explain._ready[cached[0]])
    assert explain(answers) == first
    assert id(explain._ready[cached[0]]) == ready
    gone = weakref.ref(cached.pop())
    gc.collect()
    assert gone() is None
    assert len(explain._ready) == 0
    many = [predictor(home, packages["trees"]) for _ in range(MAX_READY + 3)]
    for one in many:
        explain._package = lambda _, one=one: one  # type: ignore[misc]  # mypy has no types for such lambdas
        assert explain(answers) == first
    assert len(explain._ready) == MAX_READY
    monkeypatch.setattr("loopwright.deploy.serving.explanations.MAX_HELD", 0)
    explain._package = lambda _: held
    held = predictor(home, packages["trees"])
    assert explain(answers) == first
    assert list(explain._ready) == [held]


def test_the_larger_the_trees_the_fewer_rows_at_once(made: Made) -> None:
    manifest = made[1]["trees"].manifest
    assert manifest.explained is not None
    assert 0 < manifest.explained.elements < 15 * 5 * 4  # trees, leaves, features along a path
    assert most_rows(manifest) == MAX_ROWS
    assert most_rows(made[1]["lines"].manifest) == MAX_ROWS
    for elements, most in ((MAX_WORK // 10, 10), (MAX_WORK * 2, 1)):
        explained = msgspec.structs.replace(manifest.explained, elements=elements)
        assert most_rows(msgspec.structs.replace(manifest, explained=explained)) == most


def reasons(package: Package, output: Output) -> PackageReasons:
    changed = Probed(package.digest, msgspec.structs.replace(package.manifest, output=output), package.files)
    return PackageReasons(changed, changed.graph("model.onnx"))


def test_the_output_that_is_explained_is_the_one_that_the_score_is_of(made: Made) -> None:
    """Of quantiles that cross the one that ends up nearest to the median after sorting, of classes the one chosen."""
    package = made[1]["trees"]
    file = msgspec.msgpack.decode(package.files["explanation.msgpack"], type=Explanation)
    crossed = msgspec.structs.replace(file, base=[5.0, 1.0, 3.0], link="NONE")
    forged = Package(package.digest, package.manifest, {**package.files, "explanation.msgpack": encode(crossed)})
    _, answers = answered(made[0], package)
    names = ["q0.1", "q0.5", "q0.9"]
    output = Output(task="regression", names=names, quantiles=[0.1, 0.5, 0.9])
    for explained in reasons(forged, output)(answers):
        bases = {decode(encode(crossed)).base[0]: "q0.1", 1.0: "q0.5", 3.0: "q0.9"}
        assert explained.base is not None
        assert explained.of == bases[explained.base]
    classes = Output(task="multiclass", classes=["a", "b", "c"], names=["a", "b", "c"])
    chosen = [msgspec.structs.replace(a, label=label) for a, label in zip(answers, "cab", strict=False)]
    assert [e.of for e in reasons(forged, classes)(chosen)] == ["c", "a", "b"]
    targets = Output(task="regression", names=["x", "y", "z"])
    assert [e.of for e in reasons(forged, targets)(answers[:1])] == ["x"]
    with pytest.raises(PackageRefused, match="of 3 outputs, not 1"):
        reasons(forged, Output())


def forged(package: Package, **files: bytes) -> Package:
    return Package(package.digest, package.manifest, {**package.files, **{n.replace("_", "."): d for n, d in files.items()}})


def shifted(package: Package, by: float) -> bytes:
    file = msgspec.msgpack.decode(package.files["explanation.msgpack"], type=Explanation)
    return encode(msgspec.structs.replace(file, base=[b + by for b in file.base]))


def renamed(package: Package) -> bytes:
    model = onnx.load_model_from_string(package.files["explain.onnx"])
    for side in (model.graph.input[0], *model.graph.node):
        if isinstance(side, onnx.NodeProto):
            side.input[:] = ["other" if name == "features" else name for name in side.input]
        else:
            side.name = "other"
    return bytes(model.SerializeToString())


def test_a_good_package_passes_its_probe(made: Made) -> None:
    for candidate in ("lines", "trees", "bayes"):
        assert probe(made[1][candidate]).golden > 0


def test_an_explanation_of_something_else_is_refused(made: Made) -> None:
    lines, forest = made[1]["lines"], made[1]["trees"]
    cases: list[tuple[Package, str]] = [
        (forged(forest, explanation_msgpack=shifted(forest, 0.01)), "off by up to 0.00"),
        (forged(forest, explanation_msgpack=shifted(forest, float("nan"))), "not a number"),
        (forged(forest, explanation_msgpack=b"junk"), "cannot be used"),
        (forged(forest, explanation_msgpack=lines.files["explanation.msgpack"]), "cannot be used"),
        (forged(lines, explain_onnx=external()), "explain.onnx: reads data from outside"),
        (forged(lines, explain_onnx=b"junk"), "explain.onnx is not an ONNX model"),
        (forged(lines, explain_onnx=renamed(lines)), "cannot be used"),
        (forged(lines, explain_onnx=forest.files["model.onnx"]), "cannot be used"),
        (
            Package(lines.digest, lines.manifest, {n: d for n, d in lines.files.items() if n != "explain.onnx"}),
            "cannot be used|off by",
        ),
    ]
    for package, why in cases:
        with pytest.raises(PackageRefused, match=why):
            probe(package)


def test_files_that_are_damaged_after_the_release_cost_the_explanation_only(made: Made, tmp_path: Path) -> None:
    home, packages = made
    package = packages["lines"]
    held, answers = answered(home, package)
    store = Packages(shutil.copytree(home.packages.folder, tmp_path / "packages"))
    (store.folder / package.digest / "explain.onnx").unlink()
    found = Explanations(store, lambda _: held)(answers)
    assert {e.why for e in found} == {"file 'explain.onnx' is missing"}
    assert Explanations(home.packages, lambda _: held)(answers)[0].why == ""
