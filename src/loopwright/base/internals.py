"""Private names of other libraries: one table lists all that are used, and `internal` looks them up.

A library may move them in any release. Then only the code that needs the name fails, with an error that names the library and the
next step, or it works without the name, as its row says.
"""

from importlib import import_module, metadata
from typing import Any, NamedTuple

from loopwright.base.errors import LibraryChanged


class Internal(NamedTuple):
    """A private name of a library, the code that needs it, and what happens without it."""

    library: str
    name: str
    needed_by: str
    otherwise: str


INTERNALS: tuple[Internal, ...] = (
    Internal("scikit-learn", "_gamma", "SVC, NuSVC, SVR, NuSVR, OneClassSVM", "the candidate is refused"),
    Internal("scikit-learn", "_transformer_to_input_indices", "ColumnTransformer", "the candidate is refused"),
    Internal("scikit-learn", "_scaler", "PowerTransformer with standardize", "the candidate is refused"),
    Internal("scikit-learn", "_raw_predict_init", "GradientBoosting*", "the candidate is refused"),
    Internal("scikit-learn", "_predictors", "HistGradientBoosting*", "the candidate is refused"),
    Internal("scikit-learn", "_baseline_prediction", "HistGradientBoosting*", "the candidate is refused"),
    Internal(
        "skl2onnx", "_supported_operators", "the check before fitting", "skl2onnx refuses after the fit what it cannot convert"
    ),
    Internal("onnxruntime", "_sess", "a microsecond a request", "the public session answers"),
    Internal("prometheus-client", "_sum", "observing many durations at once", "each is observed by the bound of its bucket"),
    Internal(
        "prometheus-client", "_buckets", "observing many durations at once", "each is observed by the bound of its bucket"
    ),
)


def internal(owner: Any, name: str) -> Any:
    """A private `name` of `INTERNALS`: an attribute of an object, or a module below the package that `owner` names.

    Raises LibraryChanged where the library has it no longer.
    """
    row = next(row for row in INTERNALS if row.name == name)
    try:
        return import_module(f"{owner}.{name}") if isinstance(owner, str) else getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise LibraryChanged(row.library, metadata.version(row.library), name, row.needed_by) from error
