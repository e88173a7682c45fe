"""Hostile packages, each a folder as somebody could have put it there, and the paths on which one is met.

`python -m tests.deploy.hostile HOME PATH DIGEST...` walks one path with each of them and says on standard output what came of it.
"""

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper
from tests.deploy.loops import LOOP, NOW, NOW_US, Weather, declared, flight, opened

from loopwright.base.errors import LoopwrightError
from loopwright.base.ids import digest as sha256
from loopwright.deploy import releases
from loopwright.deploy.gate import gate
from loopwright.deploy.serving.explanations import Explanations
from loopwright.deploy.serving.registry import Registry, Watcher
from loopwright.records.package import FileInfo
from loopwright.records.prediction import Prediction
from loopwright.records.releases import Arm, ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.outcomes.rescore import segment_packages
from loopwright.stores.packages import probe
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.packages.probe_task import Limits
from loopwright.stores.packages.store import Package, encode_json
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter
from loopwright.verbs.release import release
from loopwright.verbs.trace import trace

GOOD, EXAMPLES = "good.txt", "examples.parquet"
SECRET = "secret.bin"


def graph(nodes: list[Any], *, output: str = "score", type: int = TensorProto.FLOAT, **more: Any) -> onnx.ModelProto:
    """A graph over the column `delay`."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("delay", TensorProto.DOUBLE, ["N"])],
        [helper.make_tensor_value_info(output, type, ["N"])],
        **more,
    )
    model: onnx.ModelProto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model


def outside(name: str = "w") -> TensorProto:
    """A tensor whose values are in a file beside the process."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=f"./{SECRET}")
    return tensor


def sparse(values: TensorProto) -> Any:
    """A sparse tensor of one value."""
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    return helper.make_sparse_tensor(values, indices, [1])


def times(*before: Any, **more: Any) -> onnx.ModelProto:
    """A graph that multiplies the delay with a tensor `w`."""
    nodes = [helper.make_node("Cast", ["delay"], ["d"], to=TensorProto.FLOAT), helper.make_node("Mul", ["d", "w"], ["score"])]
    return graph([*before, *nodes], **more)


def branch(values: TensorProto) -> Any:
    """An If with a constant in it, as `w`."""
    constant = helper.make_node("Constant", [], ["o"], value=values)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])])
    return helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner)


def endless(trips: int = 2**62, *, output: str = "score", type: int = TensorProto.FLOAT, where: float | None = None) -> bytes:
    """A Loop of so many trips; `where`: only of rows with a longer delay than that."""
    one = helper.make_tensor("one", TensorProto.DOUBLE, [1], [1.0])
    infos = [("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("v", TensorProto.DOUBLE, ["N"])]
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Add", ["v", "one"], ["vo"])],
        "body",
        [helper.make_tensor_value_info(*info) for info in infos],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("vo", TensorProto.DOUBLE, ["N"]),
        ],
        [one],
    )
    before: list[Any] = [helper.make_node("Identity", ["most"], ["trips"])]
    if where is not None:
        before = [
            helper.make_node("ReduceMax", ["delay"], ["longest"], keepdims=0),
            helper.make_node("Greater", ["longest", "limit"], ["late"]),
            helper.make_node("Where", ["late", "most", "none"], ["trips"]),
        ]
    loop = helper.make_node("Loop", ["trips", "", "delay"], ["o"], body=body)
    squashed = [helper.make_node("Sub", ["o", "o"], ["zero"]), helper.make_node("Cast", ["zero"], [output], to=type)]
    constants = [
        helper.make_tensor("most", TensorProto.INT64, [], [trips]),
        helper.make_tensor("none", TensorProto.INT64, [], [1]),
        helper.make_tensor("limit", TensorProto.DOUBLE, [], [where or 0.0]),
    ]
    used = constants if where is not None else constants[:1]
    return bytes(graph([*before, loop, *squashed], output=output, type=type, initializer=used).SerializeToString())


def huge() -> bytes:
    """Asks for a matrix of 10^6 x 10^6."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["w"], keepdims=0),
    ]
    return bytes(
        times(*nodes, initializer=[helper.make_tensor("shape", TensorProto.INT64, [2], [10**6, 10**6])]).SerializeToString()
    )


def trained() -> bytes:
    """A graph whose training information has an initializer outside."""
    model = graph([helper.make_node("Cast", ["delay"], ["score"], to=TensorProto.FLOAT)])
    model.training_info.add().initialization.initializer.append(outside())
    return bytes(model.SerializeToString())


def functional() -> bytes:
    """A graph with a function that has a constant outside."""
    constant = helper.make_node("Constant", [], ["b"], value=outside())
    function = helper.make_function("f", "F", [], ["b"], [constant], [helper.make_opsetid("", 21)])
    model = times(helper.make_node("F", [], ["w"], domain="f"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("f", 1))
    return bytes(model.SerializeToString())


def nested(depth: int = 100_000) -> bytes:
    """JSON nested so deep."""
    return b"[" * depth + b"]" * depth


YES = helper.make_tensor("yes", TensorProto.BOOL, [], [True])

HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "external initializer": ({"model.onnx": times(initializer=[outside()]).SerializeToString()}, "outside the graph"),
    "external sparse initializer": ({"model.onnx": times(sparse_initializer=[sparse(outside())]).SerializeToString()}, "outside the graph"),
    "external sparse constant": (
        {"model.onnx": times(helper.make_node("Constant", [], ["w"], sparse_value=sparse(outside("")))).SerializeToString()}, "outside the graph",
    ),
    "external constant in a branch": ({"model.onnx": times(branch(outside()), initializer=[YES]).SerializeToString()}, "outside the graph"),
    "external data of the heuristic": ({"heuristic.onnx": times(sparse_initializer=[sparse(outside())]).SerializeToString()}, "outside the graph"),
    "external data of the slices": ({"slices.onnx": times(sparse_initializer=[sparse(outside())]).SerializeToString()}, "outside the graph"),
    "external data for training": ({"model.onnx": trained()}, "training information"),
    "external data in a function": ({"model.onnx": functional()}, "local functions"),
    "endless model": ({"model.onnx": endless()}, "computing time"),
    "endless heuristic": ({"heuristic.onnx": endless()}, "computing time"),
    "endless slices": ({"slices.onnx": endless(output="origin_slice", type=TensorProto.STRING)}, "computing time|cannot be loaded"),
    "more memory than there is": ({"model.onnx": huge()}, "fails on a golden request|more memory"),
    "deep evaluation": ({"evaluation.json": nested()}, "nested"),
    "deep reference": ({"reference.json": nested()}, "nested"),
    "deep golden request": ({"reference.json": b'{"columns":[],"golden":[{"request":{"delay":' + nested() + b'},"context":{},"score":0}]}'}, "nested"),
    "deep manifest": ({"manifest.json": nested()}, "nested"),
    "deep parameters": ({"params": {"deep": msgspec.json.decode(nested(500))}}, "nested"),
    "unknown slices": ({"slices": ["origin_slice", "night"]}, "no output 'night'"),
    "no golden requests": ({"reference.json": encode_json({"columns": [], "golden": []})}, "no golden requests"),
}  # fmt: skip


def put(home: Home, base: Package, changes: Mapping[str, Any]) -> str:
    """A folder of a package in `home`, its digests right, made without this product's own checks; its name."""
    files = {**base.files, **{n: d for n, d in changes.items() if "." in n and n != "manifest.json"}}
    infos = {name: FileInfo(sha256=sha256(data), size=len(data)) for name, data in sorted(files.items())}
    fields = {n: v for n, v in changes.items() if "." not in n}
    text = changes.get("manifest.json") or encode_json(msgspec.structs.replace(base.manifest, files=infos, **fields))
    folder = home.path / "packages" / sha256(text)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**files, "manifest.json": text}.items():
        (folder / name).write_bytes(data)
    return folder.name


def _release(home: Home, digest: str) -> str:
    return str(release(home, LOOP, digest))


def _gate(home: Home, digest: str) -> str:
    """As a turn does it."""
    result = gate(home, home.packages.read(digest), scope=declared().scope, examples=_examples(home))
    return "" if result.passed else str([f"{c.name}: {c.detail}" for c in result.checks if not c.passed])


def _champion(home: Home, digest: str) -> str:
    """It serves already, and a good one is to replace it."""
    good = home.packages.read((home.path / GOOD).read_text())
    result = gate(home, good, scope=declared().scope, examples=_examples(home), serving=home.packages.read(digest))
    return str([c.detail for c in result.checks if c.name == "guards"])


def _examples(home: Home) -> pa.Table:
    return pq.read_table(home.path / EXAMPLES)


def _serve(home: Home, digest: str) -> str:
    releases.release(home, LOOP, digest, why="forged")
    said: list[str] = []
    watcher = Watcher(lambda _loop, _digest: None, lambda _loop, why: said.append(why), lambda _loop, _count: None)
    services = Registry(home.path, home.packages, Weather(), home.clock, watcher)
    services.refresh()
    return str(said)


def _explain(home: Home, digest: str) -> str:
    services = Registry(home.path, home.packages, Weather(), home.clock)
    return str([e.why for e in Explanations(home.packages, services.package_cache.load)([_prediction(digest)])])


def _trace(home: Home, digest: str) -> str:
    prediction = _prediction(digest)
    with LogWriter(log_folder(home.path, LOOP), "predictions") as writer:
        writer.append([prediction])
    return str(trace(home, prediction.id))


def _prediction(digest: str) -> Prediction:
    return Prediction(
        id=digest[:32], at=NOW_US, package=digest, arm="champion", probability=1.0, request=flight(pushed_back_at=NOW_US),
        context={"wind": 1.0, "gust": None}, context_age_s=1.0, score=0.5, label=True, flags=[], latency_us=1.0, unit="UA1",
    )  # fmt: skip


def _open(home: Home, digest: str) -> str:
    """As replay, monitoring and the accounts of value do."""
    return str(open_probed(home.packages, digest))


def _beside(home: Home, digest: str) -> str:
    state = ReleaseState(
        loop=LOOP, generation=1, arms=[Arm(package=digest)], strategy="direct", action="release", since=NOW,
        by="tests", why="forged", fleet="origin", segments={"JFK": digest},
    )  # fmt: skip
    found = segment_packages(home, state)
    return "" if found is None else str(dict(found.packages) or "left out")


PATHS: dict[str, Callable[[Home, str], str]] = {
    "release": _release,
    "gate": _gate,
    "champion": _champion,
    "serve": _serve,
    "explain": _explain,
    "trace": _trace,
    "open": _open,
    "beside": _beside,
}


def main() -> None:
    """Meet each package on one path, and say what came of it."""
    folder, path, *digests = sys.argv[1:]
    home, said = opened(Path(folder)), {}
    os.chdir(home.path)
    setattr(probe, "Limits", partial(Limits, cpu_seconds=3))  # noqa: B010  # half a minute less for each endless graph
    for digest in digests:
        try:
            said[digest] = PATHS[path](home, digest)
        except LoopwrightError as error:
            said[digest] = str(error)
    print(msgspec.json.encode(said).decode())


if __name__ == "__main__":
    main()
