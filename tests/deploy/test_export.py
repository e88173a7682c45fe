"""A package as one graph for other servers: the same answers, nulls and all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
import yaml
from google.protobuf import text_format
from onnx import TensorProto, helper
from tests.admitted import unprobed
from tests.deploy.loops import LOOP, NOW, model_graph, opened, package
from tests.develop.flights import table
from tests.develop.onnx.estimators.test_ensemble import boosted, built, data
from tests.develop.segments import linear, trees
from tests.develop.test_train import home_in, run
from tritonclient.grpc import model_config_pb2

from loopwright.base.errors import ExportRefused, UsageError
from loopwright.deploy import releases
from loopwright.deploy.export import OLDEST, OPSET, export, feed
from loopwright.deploy.older_trees import older
from loopwright.deploy.repositories import FORMATS
from loopwright.develop.onnx.estimators.trees import read
from loopwright.graph.session import METADATA, Feeder, Graph
from loopwright.records.declarations import Candidate, Column
from loopwright.records.package import Segment
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import Probed
from loopwright.stores.packages.store import Packages
from loopwright.verbs.export import export as export_verb

CANDIDATES = [Candidate("lines", linear, encoding="onehot"), Candidate("trees", trees, encoding="ordinal")]

Rows = list[dict[str, Any]]


class Made(NamedTuple):
    """Packages by candidate, and the rows that they were made of."""

    home: Home
    packages: dict[str, Probed]
    rows: Rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Packages trained on made-up flights: text that may be null, numbers that may be null, times, integers, booleans."""
    with home_in(tmp_path_factory.mktemp("home")) as home:
        flights = table()
        board = run(home, flights, candidates=CANDIDATES)
        packages = {r.candidate: unprobed(home.packages, home.packages.read(r.package)) for r in board.rows}
        columns = packages["trees"].columns
        yield Made(home, packages, flights.select([c for c in flights.column_names if c in columns]).to_pylist())


def exported(package: Probed, rows: Rows, opset: int = OPSET) -> dict[str, Any]:
    found = export(package, opset=opset)
    return Graph(found.model).run(feed(found, package.columns, rows))


def served(package: Probed, rows: Rows) -> Any:
    graph = package.graph("model.onnx")
    return graph.score(Feeder(graph, package.columns)(rows))


@pytest.mark.parametrize("opset", [OPSET, 19])
@pytest.mark.parametrize("candidate", ["lines", "trees", "heuristic"])
def test_an_exported_graph_answers_as_it_is_served(made: Made, candidate: str, opset: int) -> None:
    package = made.packages[candidate]
    assert sum(row["gate"] is None for row in made.rows) > 100
    assert sum(row["wind"] is None for row in made.rows) > 100
    found, scores = exported(package, made.rows, opset), served(package, made.rows)
    assert np.array_equal(found["score"], scores) if opset == OPSET else np.abs(found["score"] - scores).max() < 1e-6
    assert found["label"].tolist() == [score >= package.manifest.threshold for score in found["score"].tolist()]
    ops = {n.op_type for n in onnx.load_model_from_string(export(package, opset=opset).model).graph.node}
    assert ("TreeEnsemble" in ops) == (candidate == "trees" and opset == OPSET)


COLUMNS = {
    "amount": Column("float", nullable=True), "rate": Column("float"), "count": Column("integer", nullable=True), "items": Column("integer"),
    "vip": Column("boolean", nullable=True), "new": Column("boolean"), "word": Column("string", nullable=True), "name": Column("string"),
    "seen": Column("timestamp", nullable=True), "image": Column("array", nullable=True, shape=[2, 2]), "count_null": Column("float"),
}  # fmt: skip
INPUTS: dict[str, tuple[int, list[list[Any]]]] = {
    "floats": (TensorProto.DOUBLE, [["amount", "values", 7.5], ["rate", "plain"], ["count", "number", -3.0], ["vip", "number", 0.5], ["amount", "values"], ["count_null", "plain"]]),
    "integers": (TensorProto.INT64, [["count", "values", 9], ["items", "plain"], ["seen", "plain"]]),
    "booleans": (TensorProto.BOOL, [["vip", "values", True], ["new", "plain"], ["amount", "null"], ["word", "null"], ["vip", "values"]]),
    "strings": (TensorProto.STRING, [["word", "values", "none"], ["name", "plain"]]),
}  # fmt: skip


def every_type() -> bytes:
    """A graph that takes each type in each way that there is, and gives a number in which each counts."""
    nodes, summed = [], []
    for name, (type, parts) in INPUTS.items():
        source = name
        if type == TensorProto.STRING:
            nodes += [
                helper.make_node(
                    "LabelEncoder",
                    [name],
                    ["words"],
                    domain="ai.onnx.ml",
                    keys_strings=["none", "ann"],
                    values_floats=[1.0, 2.0],
                )
            ]
            source = "words"
        nodes += [
            helper.make_node("Cast", [source], [f"{name}_f"], to=TensorProto.DOUBLE),
            helper.make_node("Mod", [f"{name}_f", "big"], [f"{name}_m"], fmod=1),
        ]
        nodes += [helper.make_node("MatMul", [f"{name}_m", f"{name}_w"], [f"{name}_s"])]
        summed.append(f"{name}_s")
        assert parts
    nodes += [
        helper.make_node("Cast", ["image"], ["image_f"], to=TensorProto.DOUBLE),
        helper.make_node("ReduceSum", ["image_f", "axes"], ["image_s"], keepdims=0),
    ]
    nodes += [
        helper.make_node("Sum", [*summed, "image_s"], ["all"]),
        helper.make_node("Cast", ["all"], ["score"], to=TensorProto.FLOAT),
    ]
    rng = np.random.default_rng(1)
    weights = [
        helper.make_tensor(f"{n}_w", TensorProto.DOUBLE, [len(p)], rng.normal(size=len(p))) for n, (_, p) in INPUTS.items()
    ]
    constants = [
        helper.make_tensor("big", TensorProto.DOUBLE, [], [1e6]),
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info(n, t, ["N", len(p)]) for n, (t, p) in INPUTS.items()]
    inputs.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 2, 2]))
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [*weights, *constants])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 4)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    entries = {
        "columns": list(COLUMNS),
        "inputs": {**{n: p for n, (_, p) in INPUTS.items()}, "image": [["image", "values"]]},
        "outputs": {},
    }
    helper.set_model_props(model, {METADATA: json.dumps(entries)})
    return bytes(model.SerializeToString())


def odd_rows(count: int = 3000) -> Rows:
    rng = np.random.default_rng(0)

    def one(i: int) -> dict[str, Any]:
        row = {
            "amount": float(rng.normal()), "rate": float(rng.normal()), "count": int(rng.integers(-5, 5)), "items": int(2**53 + rng.integers(9)),
            "vip": bool(i % 2), "new": bool(i % 3), "word": ["none", "some", ""][i % 3], "name": ["ann", "bob"][i % 2],
            "seen": NOW, "image": rng.normal(size=(2, 2)).tolist(), "count_null": float(i % 2),
        }  # fmt: skip
        return {name: None if COLUMNS[name].nullable and rng.random() < 0.3 else value for name, value in row.items()}

    return [one(i) for i in range(count)]


@pytest.mark.parametrize("opset", [OPSET, 17, OLDEST])
def test_nulls_of_every_type_in_every_place_answer_as_they_are_served(tmp_path: Path, opset: int) -> None:
    store, rows = Packages(tmp_path), odd_rows()
    model = every_type()
    base = package(store, request=COLUMNS, context=[], key=["name"], event_time="seen", slices=[])
    files = {**base.files, "model.onnx": model, "reference.json": b'{"columns":[],"golden":[]}'}
    own = Probed(base.digest, base.manifest, files)
    assert [p.name for p in export(own, opset=opset).inputs if p.mask] == ["count_null_", "vip_null", "word_null", "image_null"]
    assert np.array_equal(exported(own, rows, opset)["score"], served(own, rows))


@pytest.mark.parametrize("opset", [OPSET, OLDEST])
def test_values_that_mean_missing_are_null_in_an_exported_graph(tmp_path: Path, opset: int) -> None:
    rows = odd_rows()
    written = {"amount": -200, "count": -200, "word": " "}
    columns = {n: msgspec.structs.replace(c, missing=["?", str(written[n])]) if n in written else c for n, c in COLUMNS.items()}
    base = package(Packages(tmp_path), request=columns, context=[], key=["name"], event_time="seen", slices=[])
    own = Probed(
        base.digest, base.manifest, {**base.files, "model.onnx": every_type(), "reference.json": b'{"columns":[],"golden":[]}'}
    )
    sent = [row | {n: value for n, value in written.items() if row[n] is None} for row in rows]
    for name, value in written.items():
        assert sum(row[name] == value for row in sent) > 50
    assert np.array_equal(exported(own, sent, opset)["score"], served(own, rows))


def test_trees_written_with_the_older_operator_give_the_same_sums() -> None:
    matrix, truth = data()
    categories = matrix.copy()
    categories[:, 3] = np.abs(np.nan_to_num(np.round(matrix[:, 3] * 4)))
    for given, more in ((matrix, {}), (categories, {"categorical_feature": [3]})):
        grown = read(boosted().fit(given, (truth == "a") ^ (given[:, 3] % 3 == 1), **more))
        assert grown is not None
        for exact in (False, True):
            model = built(grown.trees, grown.base, exact=exact)
            before = Graph(model.SerializeToString()).run({"x": given})["y"]
            modes = {n for node in model.graph.node if node.op_type == "TreeEnsemble" for n in _modes(node)}
            assert (modes & {4, 6} != set()) == bool(more)
            assert not older(model.graph)
            assert {n.op_type for n in model.graph.node} & {"TreeEnsemble", "TreeEnsembleRegressor"} == {
                "TreeEnsembleRegressor"
            }
            next(o for o in model.opset_import if o.domain == "ai.onnx.ml").version = 3
            after = Graph(model.SerializeToString()).run({"x": given})["y"]
            assert np.abs(after - before).max() < 1e-6


def _modes(node: Any) -> list[int]:
    [found] = [onnx.numpy_helper.to_array(a.t).tolist() for a in node.attribute if a.name == "nodes_modes"]
    return list(found)


def test_what_has_no_form_in_an_older_operator_set_is_refused_by_its_name(made: Made) -> None:
    with pytest.raises(ExportRefused, match=r"operator set 17: .*BitwiseXor"):
        export(made.packages["trees"], opset=17)
    for opset in (OLDEST - 1, OPSET + 1):
        with pytest.raises(UsageError, match=f"from {OLDEST} to {OPSET}"):
            export(made.packages["trees"], opset=opset)


def test_a_graph_that_does_not_give_the_golden_answers_is_refused(tmp_path: Path) -> None:
    own = package(Packages(tmp_path))
    with pytest.raises(ExportRefused, match="golden request 0"):
        export(Probed(own.digest, own.manifest, {**own.files, "model.onnx": model_graph(0.2)}))


def test_the_triton_repository_fits_its_model(made: Made) -> None:
    package = made.packages["trees"]
    found = export(package)
    files = FORMATS["triton"](found, package.manifest)
    config = text_format.Parse(files[f"{LOOP}/config.pbtxt"].decode(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == (LOOP, "onnxruntime", 0)
    graph = onnx.load_model_from_string(files[f"{LOOP}/1/model.onnx"]).graph
    kinds = {"TYPE_FP64": 11, "TYPE_FP32": 1, "TYPE_INT64": 7, "TYPE_BOOL": 9, "TYPE_STRING": 8}
    for ours, theirs in ((config.input, graph.input), (config.output, graph.output)):
        assert [i.name for i in ours] == [i.name for i in theirs]
        assert [kinds[model_config_pb2.DataType.Name(i.data_type)] for i in ours] == [
            i.type.tensor_type.elem_type for i in theirs
        ]
        assert [len(i.dims) for i in ours] == [len(i.type.tensor_type.shape.dim) for i in theirs]


def test_the_mlflow_model_names_what_its_environment_needs(made: Made) -> None:
    package = made.packages["trees"]
    found = export(package)
    files = FORMATS["mlflow"](found, package.manifest)
    model = yaml.safe_load(files["MLmodel"])
    flavour = model["flavors"]["python_function"]
    assert (flavour["loader_module"], flavour["data"]) == ("mlflow.onnx", "model.onnx")
    assert {flavour["env"]["conda"], flavour["env"]["virtualenv"], "requirements.txt", "model.onnx"} <= files.keys()
    assert [i["name"] for i in json.loads(model["signature"]["inputs"])] == [p.name for p in found.inputs]
    assert [i["name"] for i in json.loads(model["signature"]["outputs"])] == [p.name for p in found.outputs]
    for written in (files, package.files):
        assert yaml.safe_load(written["python_env.yaml"])["dependencies"] == ["-r requirements.txt"]
        [pip] = [d["pip"] for d in yaml.safe_load(written["conda.yaml"])["dependencies"] if isinstance(d, dict)]
        assert pip == written["requirements.txt"].decode().splitlines()
    assert any(line.startswith("loopwright==") for line in package.files["requirements.txt"].decode().splitlines())
    own = yaml.safe_load(package.files["MLmodel"])["flavors"]["python_function"]
    assert own["env"] == flavour["env"]


def test_one_of_a_fleet_is_exported_only_where_that_is_said(tmp_path: Path) -> None:
    home = opened(tmp_path / "home")
    whole, own = package(home.packages), package(home.packages, weight=0.3, segment=Segment(column="tail", value="N1"))
    releases.release(home, LOOP, whole.digest, fleet="tail", segments={"N1": own.digest}, why="a fleet")
    with pytest.raises(ExportRefused, match="only rows whose tail is 'N1'; `--alone`"):
        export_verb(home, own.digest, to=tmp_path / "a")
    with pytest.raises(ExportRefused, match="1 packages of segments answer beside it"):
        export_verb(home, whole.digest, to=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert export_verb(home, whole.digest[:12], to=tmp_path / "a", alone=True).files == ["model.onnx"]


@pytest.mark.parametrize("format", FORMATS)
def test_the_verb_writes_each_format_once(tmp_path: Path, format: str) -> None:
    home = opened(tmp_path / "home")
    own = package(home.packages)
    found = export_verb(home, own.digest[:12], as_format=format, to=tmp_path / "out")
    assert all((tmp_path / "out" / name).is_file() for name in found.files)
    assert [(p.name, p.type, p.shape) for p in found.inputs] == [("delay", "float64", ["N"]), ("wind", "float64", ["N"])]
    assert [p.name for p in found.outputs] == ["score", "label"]
    assert msgspec.json.encode(found)
    with pytest.raises(UsageError, match="exists already"):
        export_verb(home, own.digest[:12], as_format=format, to=tmp_path / "out")
    with pytest.raises(UsageError, match="one of onnx, triton, mlflow"):
        export_verb(home, own.digest[:12], as_format="coreml", to=tmp_path / "other")
