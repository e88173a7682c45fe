"""The parts of a fitted estimator as ONNX; see `dispatch`. The modules imported here register their functions."""

from loopwright.develop.onnx.estimators import models, nested, transformers
from loopwright.develop.onnx.estimators.dispatch import converts, decision, known, predict, probabilities, quick, transform
from loopwright.develop.onnx.estimators.nested import before

__all__ = [
    "before", "converts", "decision", "known", "models", "nested", "predict", "probabilities", "quick", "transform",
    "transformers",
]  # fmt: skip
