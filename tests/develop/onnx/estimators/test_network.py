import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from loopwright.base.arrays import Array
from loopwright.base.errors import ExtraMissing
from loopwright.develop.onnx.estimators.network import TorchClassifier

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnxscript  # noqa: F401  # the exporter stands on it
        import torch
except ImportError:
    torch = None  # what is tested then is that its lack is told

needs_torch = pytest.mark.skipif(
    torch is None, reason="PyTorch is not installed (more than 1 GB): pip install 'loopwright[torch]'"
)


def network(columns: int, outputs: int) -> Any:
    return torch.nn.Sequential(
        torch.nn.Linear(columns, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, outputs)
    )


def image(columns: int, outputs: int) -> Any:
    size = int(columns**0.5)
    layers = (torch.nn.Unflatten(1, (1, size, size)), torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    return torch.nn.Sequential(*layers, torch.nn.Linear(4 * (size - 2) ** 2, outputs))


def data() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(400, 9)).astype(np.float32)
    return matrix, matrix[:, 0] + matrix[:, 4] ** 2


@pytest.mark.skipif(torch is not None, reason="PyTorch is installed")
def test_without_torch_the_install_line_is_told() -> None:
    matrix, height = data()
    with pytest.raises(ExtraMissing, match=r"loopwright\[torch\]"):
        TorchClassifier(network).fit(matrix, height > 1)


def test_it_is_an_estimator_like_any_other() -> None:
    copy = clone(TorchClassifier(network, epochs=3, random_state=7))
    assert (copy.epochs, copy.random_state, copy.module) == (3, 7, network)


@needs_torch
def test_modules_and_their_graphs_agree() -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from loopwright.develop.fit import TrainingData, fit, predict
    from loopwright.develop.onnx.convert import convert, refuse_inconvertible
    from loopwright.develop.onnx.estimators.network import TorchRegressor
    from loopwright.develop.onnx.parity import difference
    from loopwright.develop.output import Goal
    from loopwright.graph.session import Graph
    from loopwright.records.declarations import Candidate
    from loopwright.records.package import Output

    matrix, height = data()
    three = Output(task="multiclass", classes=["a", "b", "c"], names=["a", "b", "c"])
    cases: list[tuple[Any, Any, Goal, float]] = [
        (TorchClassifier(network, epochs=5), height > 1, Goal(), 1e-9),
        (TorchClassifier(image, epochs=2), height > 1, Goal(), 1e-6),
        (TorchClassifier(network, epochs=5), np.array(["a", "b", "c"])[np.digitize(height, [0, 1])], Goal(output=three), 1e-9),
        (make_pipeline(StandardScaler(), TorchRegressor(network)), height * 1e6, Goal(output=Output(task="regression")), 1e-9),
        (
            TorchRegressor(network),
            np.column_stack([height, -height]),
            Goal(output=Output(task="regression", names=["a", "b"])),
            1e-9,
        ),
    ]
    for estimator, truth, goal, bound in cases:
        refuse_inconvertible("x", estimator, goal)
        fitted, _ = fit(Candidate("x", TorchClassifier), estimator, TrainingData(matrix, truth), goal)
        graph = Graph(convert("x", fitted, 9, goal).SerializeToString())
        found = goal.answers(graph.run({"matrix": matrix})["raw"])
        assert difference(found, predict(fitted, matrix, goal), goal).max() <= bound


@needs_torch
def test_a_seed_repeats_it_and_leaves_the_rest_alone() -> None:
    matrix, height = data()
    before = torch.random.get_rng_state()
    first, again, other = (
        TorchClassifier(network, epochs=2, random_state=seed).fit(matrix, height > 1).predict_proba(matrix)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
