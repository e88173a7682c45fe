"""PyTorch modules as scikit-learn estimators: fitted, put into pipelines, and converted like any other.

Needs the extra `torch`. A module is made by a function of yours, fitted with Adam (Kingma & Ba 2015) on this machine's processor,
and repeats itself for the same seed. It is never written to disk by PyTorch, nor read from there: a package holds the graph alone.
"""

import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted

from loopwright.base.arrays import Array
from loopwright.base.errors import ExtraMissing

_SINGLE = ("conv", "rnn", "gru", "lstm")


class _Network(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Common base of classifier and regressor.

    `module(columns, outputs)` returns a `torch.nn.Module` that maps float32 [N, columns] to [N, outputs]. Rows come in
    batches of `batch_size`, shuffled again in each of the `epochs`. It is fitted in float32 and predicts in float64, unless
    it has layers that ONNX Runtime supports in float32 only (convolutions, recurrent ones).
    """

    def __init__(
        self,
        module: Callable[[int, int], Any],
        *,
        epochs: int = 20,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        random_state: int | None = None,
    ) -> None:
        self.module = module
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def _train(self, matrix: Any, truth: Array, outputs: int, loss: str, sample_weight: Any) -> None:
        torch = _torch()
        x = torch.from_numpy(check_array(matrix, dtype=np.float32, copy=True))
        y = torch.from_numpy(truth)
        weight = torch.ones(len(x)) if sample_weight is None else torch.as_tensor(np.asarray(sample_weight, dtype=np.float32))
        self.n_features_in_ = x.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state or 0)
            module = self.module(x.shape[1], outputs)
            optimiser = torch.optim.Adam(module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
            far = getattr(torch.nn, loss)(reduction="none")
            module.train()
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).split(self.batch_size):
                    optimiser.zero_grad()
                    each = far(module(x[rows]), y[rows])
                    each = each if each.ndim == 1 else each.mean(dim=1)
                    ((each * weight[rows]).sum() / weight[rows].sum()).backward()
                    optimiser.step()
        single = any(word in type(layer).__name__.lower() for layer in module.modules() for word in _SINGLE)
        self.module_ = module.eval() if single else module.eval().double()
        self.single_ = single

    def _forward(self, matrix: Any) -> Array:
        check_is_fitted(self, "module_")
        torch = _torch()
        with torch.no_grad():
            kind = np.float32 if self.single_ else np.float64
            found: Array = self.module_(torch.from_numpy(check_array(matrix, dtype=kind, copy=True))).numpy()
        return found.astype(np.float64)

    def to_onnx(self) -> onnx.ModelProto:
        """The fitted module as ONNX: input `x` [N, columns] (float32 where `single_`, else float64), one output [N, outputs], before any softmax."""
        check_is_fitted(self, "module_")
        torch, held = _torch(), io.BytesIO()
        logger = logging.getLogger("torch.onnx._internal.exporter._registration")  # it warns of libraries that are not used
        level = logger.level
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            torch.onnx.export(
                self.module_,
                (torch.zeros(2, self.n_features_in_, dtype=torch.float32 if self.single_ else torch.float64),),
                held,
                input_names=["x"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                opset_version=20,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            logger.setLevel(level)
        model: onnx.ModelProto = onnx.inliner.inline_local_functions(onnx.load_from_string(held.getvalue()))
        return model


class TorchClassifier(ClassifierMixin, _Network):  # type: ignore[misc]  # scikit-learn has no types
    """A PyTorch module that classifies: one output for each class, before the softmax; fitted on cross-entropy."""

    def fit(self, matrix: Any, truth: Any, sample_weight: Any = None) -> "TorchClassifier":
        """Fit on a matrix [N, F] and classes [N]; `sample_weight` [N] weighs the rows. Raises ExtraMissing without PyTorch."""
        self.classes_, codes = np.unique(np.asarray(truth), return_inverse=True)
        self._train(matrix, codes.astype(np.int64), len(self.classes_), "CrossEntropyLoss", sample_weight)
        return self

    def predict_proba(self, matrix: Any) -> Array:
        """The probability of each class, float64 [N, K]."""
        found = self._forward(matrix)
        odds = np.exp(found - found.max(axis=1, keepdims=True))
        shares: Array = odds / odds.sum(axis=1, keepdims=True)
        return shares

    def predict(self, matrix: Any) -> Array:
        """The likeliest class of each row, [N]."""
        chosen: Array = self.classes_[self.predict_proba(matrix).argmax(axis=1)]
        return chosen


class TorchRegressor(RegressorMixin, _Network):  # type: ignore[misc]  # scikit-learn has no types
    """A PyTorch module that gives one number, or several; fitted on the squared error.

    The target is centred and scaled while fitting, so that a network need not learn its size.
    """

    def __sklearn_tags__(self) -> Any:
        """Declares support for several outputs."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, matrix: Any, truth: Any, sample_weight: Any = None) -> "TorchRegressor":
        """Fit on a matrix [N, F] and numbers [N] or [N, K]; `sample_weight` [N] weighs the rows. Raises ExtraMissing without PyTorch."""
        numbers = np.asarray(truth, dtype=np.float64)
        self.flat_ = numbers.ndim == 1
        numbers = numbers.reshape(len(numbers), -1)
        self.mean_, spread = numbers.mean(axis=0), numbers.std(axis=0)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        target = ((numbers - self.mean_) / self.scale_).astype(np.float32)
        self._train(matrix, target, target.shape[1], "MSELoss", sample_weight)
        return self

    def predict(self, matrix: Any) -> Array:
        """The numbers, float64 [N] or [N, K]."""
        found: Array = self._forward(matrix) * self.scale_ + self.mean_
        return found[:, 0] if self.flat_ else found


def _torch() -> Any:
    try:
        import onnxscript  # noqa: F401  # the exporter needs it: better missing now than after fitting
        import torch  # as above
    except ImportError:
        raise ExtraMissing("torch", "fitting a PyTorch module") from None
    return torch
