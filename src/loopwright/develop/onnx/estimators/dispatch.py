"""The parts of a fitted estimator as ONNX: one small function for each kind, over an ndonnx matrix [N, F].

    transform      the columns that a transformer returns, float64 [N, G]
    probabilities  of a classifier: of its second class [N, 1] if it has two classes, else of each [N, K]
    decision       `decision_function`: [N, 1], or [N, K] of several classes
    predict        the numbers of a regressor [N, K]

The matrix is float32 like the features; everything computed from it is float64, as scikit-learn is fitted here (see `fit`).
Nested estimators call the functions of their parts. A part without a function of its own is converted by skl2onnx, alone. Parts
that ONNX cannot express raise ValueError.
"""

import warnings
from functools import singledispatch
from typing import Any

import ndonnx as ndx
import onnx
import onnx.inliner
import onnxruntime as ort
import spox
from sklearn.base import is_classifier
from sklearn.feature_selection import SelectorMixin

from loopwright.base.errors import LibraryChanged
from loopwright.base.internals import internal
from loopwright.develop.onnx.estimators import trees
from loopwright.develop.onnx.estimators.arithmetic import column, columns, rows, sigmoid, single, softmax, wide
from loopwright.develop.onnx.estimators.ensemble import ensemble

OPSETS = {"": 21, "ai.onnx.ml": 3}


@singledispatch
def transform(part: Any, x: Any) -> Any:
    """See above."""
    if isinstance(part, SelectorMixin):
        return columns(x, part.get_support(indices=True))
    return foreign(part, x)


@singledispatch
def probabilities(part: Any, x: Any) -> Any:
    """See above."""
    if (model := trees.read(part)) is not None:
        return linked(model, summed(model, x))
    found = foreign(part, x)
    return found[:, 1:2] if len(part.classes_) == 2 else found


@singledispatch
def decision(part: Any, x: Any) -> Any:
    """See above."""
    if (model := trees.read(part)) is not None:
        return summed(model, x)
    return rows(foreign(part, x))


@singledispatch
def predict(part: Any, x: Any) -> Any:
    """See above."""
    if (model := trees.read(part)) is not None:
        return linked(model, summed(model, x))
    return rows(foreign(part, x))


FUNCTIONS = (transform, probabilities, decision, predict)


def known(kind: type) -> bool:
    """Whether a kind of part has a converter, our own or skl2onnx's."""
    if trees.reads(kind):
        return True
    own = any(function.dispatch(kind) is not function.dispatch(object) for function in FUNCTIONS)
    return own or issubclass(kind, SelectorMixin) or converts(kind)


def converts(kind: type) -> bool:
    """Whether skl2onnx has a converter for a kind of part; if that cannot be asked any more, it refuses the fitted part."""
    try:
        return kind in internal("skl2onnx", "_supported_operators").sklearn_operator_name_map
    except (LibraryChanged, AttributeError):
        return True


def choice(part: Any, x: Any) -> Any:
    """The class chosen by a classifier, as its number [N]."""
    odds = hasattr(part, "predict_proba")
    found = probabilities(part, x) if odds else decision(part, x)
    if len(part.classes_) > 2:
        return ndx.argmax(found, axis=1)
    return ndx.astype(found[:, 0] > (0.5 if odds else 0.0), ndx.int64)


def foreign(part: Any, x: Any) -> Any:
    """A part by skl2onnx: its last output, float64; in float64 where its converter and the runtime can."""
    import skl2onnx  # here: few parts need it, and it loads much of scikit-learn

    options = {id(part): {"zipmap": False}} if is_classifier(part) else None
    failed: Exception | None = None
    for kind, given in (
        (skl2onnx.common.data_types.DoubleTensorType, wide(x)),
        (skl2onnx.common.data_types.FloatTensorType, single(x)),
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model: onnx.ModelProto = skl2onnx.convert_sklearn(
                    part, initial_types=[("x", kind([None, part.n_features_in_]))], options=options, target_opset=OPSETS
                )
            model = onnx.inliner.inline_local_functions(model)
            quiet = ort.SessionOptions()
            quiet.log_severity_level = 4
            ort.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  # converters raise many kinds
            failed = error
            continue
        return wide(ndx.asarray(spox.inline(model)(x=given.unwrap_spox())[model.graph.output[-1].name]))
    raise ValueError(f"{type(part).__name__}: {type(failed).__name__}: {' '.join(str(failed).split())[:300]}") from failed


def quick(part: Any, x: Any) -> Any | None:
    """Probabilities of plain trees over the float32 matrix: float32, in one or two nodes. None for other estimators."""
    model = trees.read(part) if is_classifier(part) and x.dtype == ndx.float32 else None
    if model is None or model.categorical:
        return None
    return linked(model, ensemble(model.trees, x, model.base, model.less, exact=False))


def summed(model: trees.Model, x: Any) -> Any:
    """The sum of a model's trees, before its link."""
    x = single(x) if model.single else x
    if model.categorical:
        count = max(model.categorical) + 1
        cut = [ndx.trunc(column(x, i)) if i in model.categorical else column(x, i) for i in range(count)]
        x = ndx.concat([*cut, x[:, count:]], axis=1)
    return ensemble(model.trees, x, model.base, model.less, exact=not model.in_turn)


def linked(model: trees.Model, score: Any) -> Any:
    """Apply the link of a tree model to the sum of its trees."""
    links: dict[str, Any] = {"LOGISTIC": sigmoid, "SOFTMAX": softmax, "EXP": ndx.exp, "SQUARE": lambda y: ndx.sign(y) * y * y}
    score = score * model.factor if model.factor != 1.0 else score
    return links[model.link](score) if model.link in links else score
