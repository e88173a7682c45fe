import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.deploy.loops import model_graph, package
from tests.deploy.serving.test_predictor import endless

from loopwright.base.errors import PackageRefused
from loopwright.records.package import Golden
from loopwright.stores.packages.probe import open_probed, probe, probe_all
from loopwright.stores.packages.probe_task import Limits, ProbeReport, Task
from loopwright.stores.packages.store import Package, Packages


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return package(Packages(tmp_path_factory.mktemp("packages")))


def changed(good: Package, **files: bytes) -> Package:
    """The package with other bytes, as if somebody had forged a folder."""
    return Package(good.digest, good.manifest, {**good.files, **{name.replace("_", "."): data for name, data in files.items()}})


def test_a_good_package_passes(good: Package) -> None:
    found = probe(good)
    assert found.golden == 5
    assert found.max_difference <= 1e-6
    assert 0 < found.one_row_us < 1e6


def test_mark_of_a_probe_does_not_count_where_it_was_copied_to(tmp_path: Path) -> None:
    """It may have been made by whoever made the package."""
    here = Packages(tmp_path / "here")
    made = package(here)
    here.mark_probed(made.digest)
    assert Packages(here.folder).is_probed(made.digest)
    shutil.copytree(here.folder, tmp_path / "there")
    there = Packages(tmp_path / "there")
    assert not there.is_probed(made.digest)
    assert open_probed(there, made.digest).digest == made.digest  # probed now, and marked
    assert Packages(there.folder).is_probed(made.digest)


def graph(nodes: list[onnx.NodeProto], inputs: dict[str, int], **more: Any) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, ["N"]) for n, t in inputs.items()],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        **more,
    )
    domains = sorted({n.domain for n in nodes} | {""})
    model = helper.make_model(made, opset_imports=[helper.make_opsetid(d, 21 if not d else 1) for d in domains], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def external() -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    nodes = [helper.make_node("Cast", ["delay"], ["d"], to=TensorProto.FLOAT), helper.make_node("Mul", ["d", "w"], ["score"])]
    return graph(nodes, {"delay": TensorProto.DOUBLE}, initializer=[tensor])


def hungry() -> bytes:
    """Asks for 32 GiB."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [2**33])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["delay"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["d", "sum"], ["score"]),
    ]
    return graph(nodes, {"delay": TensorProto.DOUBLE}, initializer=[shape])


HOSTILE = {
    "junk": (b"\x00" * 100, "not an ONNX model|no graph"),
    "empty": (b"", "no graph"),
    "cut off": (model_graph()[:-200], "not an ONNX model|cannot be loaded|no graph"),
    "external data": (external(), "outside the graph"),
    "custom operators": (
        graph([helper.make_node("Evil", ["delay"], ["score"], domain="com.evil")], {"delay": TensorProto.DOUBLE}),
        "domain",
    ),
    "no such column": (
        graph([helper.make_node("Identity", ["secret"], ["score"])], {"secret": TensorProto.FLOAT}),
        "no column",
    ),
    "column of another type": (
        graph([helper.make_node("Identity", ["delay"], ["score"])], {"delay": TensorProto.FLOAT}),
        "does not fit column",
    ),
    "no score": (
        graph([helper.make_node("Cast", ["delay"], ["score"], to=TensorProto.FLOAT)], {"delay": TensorProto.DOUBLE}).replace(
            b"score", b"other"
        ),
        "no output `score`",
    ),
    "other answers": (model_graph(0.051), "golden request 0"),
    "more memory than there may be": (hungry(), "fails on a golden request|more memory|killed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packages_are_refused(good: Package, name: str) -> None:
    data, why = HOSTILE[name]
    with pytest.raises(PackageRefused, match=why):
        probe(changed(good, model_onnx=data), limits=Limits(cpu_seconds=5))


def test_an_endless_graph_runs_out_of_time(good: Package) -> None:
    with pytest.raises(PackageRefused, match="computing time"):
        probe(changed(good, model_onnx=endless()), limits=Limits(cpu_seconds=1))
    with pytest.raises(PackageRefused, match="did not end"):
        probe(changed(good, model_onnx=endless()), wall_seconds=1.0)


def test_scores_must_be_probabilities(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["delay"], ["score"], to=TensorProto.FLOAT)]
    model = graph(nodes, {"delay": TensorProto.DOUBLE})
    made = package(Packages(tmp_path), model=model)
    assert max(g.score for g in made.reference.golden) > 1
    with pytest.raises(PackageRefused, match="no probability"):
        probe(made)


def test_slices_that_the_manifest_names_must_be_there(tmp_path: Path) -> None:
    made = package(Packages(tmp_path), slices=["origin_slice", "night"])
    with pytest.raises(PackageRefused, match="'night'"):
        probe(made)


def test_a_golden_request_that_cannot_be_run(tmp_path: Path) -> None:
    made = package(Packages(tmp_path), golden=[Golden(request={"delay": "x"}, context={}, score=0.5)])
    with pytest.raises(PackageRefused, match="golden request"):
        probe(made)
    assert np.isfinite(made.reference.golden[0].score)


def test_of_many_packages_each_is_refused_for_its_own_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one brings down the process that they are probed in together."""
    store = Packages(tmp_path)
    made = [package(store, weight=0.05 + i / 100) for i in range(4)]
    wrong = package(store, weight=0.2, golden=list(made[0].reference.golden))
    greedy = changed(package(store, weight=0.3), model_onnx=hungry())
    many = [*made, wrong]
    assert probe_all(many).keys() == {wrong.digest}
    monkeypatch.setattr("loopwright.stores.packages.probe.TOGETHER", 3)
    found = probe_all([greedy, *many])
    assert found.keys() == {wrong.digest, greedy.digest}
    assert "golden request" in found[wrong.digest]
    run = getattr(sys.modules["loopwright.stores.packages.probe"], "_run")  # noqa: B009  # a name of its own module

    def dies_of_many(digest: str, tasks: list[Task], seconds: float) -> list[ProbeReport]:
        if len(tasks) > 1:
            raise PackageRefused(digest, "its probe crashed (SIGSEGV)")
        return list(run(digest, tasks, seconds))

    with monkeypatch.context() as patched:
        patched.setattr("loopwright.stores.packages.probe._run", dies_of_many)
        assert probe_all(many).keys() == {wrong.digest}
    slow = probe_all(made, most_us=0.001)
    assert slow.keys() == {p.digest for p in made}
    assert "one row takes" in slow[made[0].digest]
    assert probe_all([]) == {}
