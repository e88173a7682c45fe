"""The parts of a fitted estimator as ONNX; see `dispatch`. The modules imported here register their functions."""

from loopwright.develop.parts import models, nested, transformers
from loopwright.develop.parts.dispatch import decision, known, predict, probabilities, quick, transform
from loopwright.develop.parts.nested import before

__all__ = ["before", "decision", "known", "models", "nested", "predict", "probabilities", "quick", "transform", "transformers"]
