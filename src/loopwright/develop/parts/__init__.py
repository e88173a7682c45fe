"""The parts of a fitted estimator as ONNX; see `dispatch`. The modules imported here register their functions."""

from loopwright.develop.parts import models, nested, transformers
from loopwright.develop.parts.dispatch import converts, decision, known, predict, probabilities, quick, transform
from loopwright.develop.parts.nested import before

__all__ = [
    "before",
    "converts",
    "decision",
    "known",
    "models",
    "nested",
    "predict",
    "probabilities",
    "quick",
    "transform",
    "transformers",
]
