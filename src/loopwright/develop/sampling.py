"""Sampling and weights: the training rows that are fitted on, and the correction of probabilities in the graph.

Keeping the share s of a label, or weighing it by w, multiplies its odds in what an estimator learns by s * w. Dividing each
probability by that and making them sum to one again gives those of the rows as they were (Elkan 2001, The foundations of
cost-sensitive learning, theorem 2; Dal Pozzolo, Caelen, Johnson & Bontempi 2015, Calibrating probability with undersampling for
unbalanced classification; for more than two classes Saerens, Latinne & Decaestecker 2002, Adjusting the outputs of a classifier to
a priori probabilities). The share used is the one that was actually kept, not the declared one.
"""

import inspect
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from sklearn.calibration import CalibratedClassifierCV

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid, ExamplesRefused
from loopwright.develop.fit import last
from loopwright.records.declarations import Sampling
from loopwright.records.package import Output, Sampled
from loopwright.tasks.split import MIN_ROWS, draws, units

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "class_weight": (None,),
    "is_unbalance": (None, False),
    "unbalance": (None, False),
    "unbalanced_sets": (None, False),
    "scale_pos_weight": (None, 1),
}
"""Parameters by which an estimator weighs labels itself, and the values that do nothing."""


class Drawn(NamedTuple):
    """The training rows to fit on (indices, ascending), the weight of every example (float64 [N]) if any, and the record of both."""

    rows: Array
    weight: Array | None
    sampled: Sampled | None


def draw(examples: pa.Table, training: Array, sampling: Sampling, *, seed: int) -> Drawn:
    """Draw the training rows of examples and their weights.

    Raises DeclarationInvalid for labels that do not occur, ExamplesRefused when too few rows are kept to learn from.
    """
    if sampling == Sampling():
        return Drawn(training, None, None)
    label = labels(examples.column("_label"))
    there = {name: int((label[training] == name).sum()) for name in sorted(set(label[training].tolist()))}
    _check(sampling, there)
    rows = training
    if sampling.keep:
        share = np.array([sampling.keep.get(name, 1.0) for name in label[training].tolist()])
        part = units(examples.take(pa.array(training)))
        rows = training[draws(seed, "sampling", part) < share]
    kept = {name: int((label[rows] == name).sum()) for name in there}
    if len(rows) < MIN_ROWS or not all(kept.values()):
        raise ExamplesRefused(
            f"the sampling keeps {len(rows)} of {len(training)} training examples ({_shown(kept)}): at least {MIN_ROWS}, some of "
            "each label, are needed; raise `keep` in Loop(sampling=Sampling(...))"
        )
    weights = {name: sampling.weights.get(name, 1.0) for name in there}
    if sampling.balanced:
        weights = {name: len(rows) / (len(there) * count) for name, count in kept.items()}
    factors = {name: there[name] / kept[name] / weights[name] for name in there}
    largest = max(factors.values())
    weight = None if set(weights.values()) == {1.0} else np.array([weights.get(name, 1.0) for name in label.tolist()])
    sampled = Sampled(available=there, sampled=kept, weights=weights, factors={n: f / largest for n, f in factors.items()})
    return Drawn(rows, weight, sampled)


def labels(label: pa.ChunkedArray) -> Array:
    """Labels as text [N]: `true` and `false`, or a class. Raises DeclarationInvalid for numbers."""
    kind = label.type
    if pa.types.is_boolean(kind):
        return np.where(label.to_numpy(), "true", "false").astype(object)
    if pa.types.is_string(kind):
        return np.array(label.to_pylist(), dtype=object)
    raise DeclarationInvalid("Sampling", [("sampling", "samples by label: for tasks binary and multiclass only")])


def factors(sampled: Sampled | None, output: Output) -> list[float]:
    """The correction of a sampling, a factor per class in the order of the estimator's probabilities; empty if none is needed."""
    if sampled is None or len(set(sampled.factors.values())) == 1:
        return []
    return [sampled.factors[name] for name in (output.classes or ("false", "true"))]


def refuse_weights_of_its_own(candidate: str, estimator: Any, *, weighed: bool) -> None:
    """Refuse an unfitted estimator that weighs labels itself, which nothing would undo, or (`weighed`) that takes no weights.

    Inside CalibratedClassifierCV they are allowed: it calibrates on the original rows. Raises DeclarationInvalid naming the parameter.
    """
    params = estimator.get_params(deep=True) if hasattr(estimator, "get_params") else {}
    wrong = []
    for name, value in params.items():
        *path, parameter = name.split("__")
        holders = [estimator, *(params.get("__".join(path[: i + 1])) for i in range(len(path)))]
        neutral = parameter not in _NEUTRAL or any(value is n or value == n for n in _NEUTRAL[parameter])
        if not neutral and not any(isinstance(h, CalibratedClassifierCV) for h in holders):
            why = f"{name}={value!r} distorts the probabilities and nothing undoes it"
            wrong.append(("estimator", f"{why}: leave it out and declare Loop(sampling=Sampling(balanced=True)), or weights"))
    if weighed and not takes_weights(estimator):
        why = f"{type(last(estimator)).__name__} takes no weights (no `sample_weight` in fit)"
        wrong.append(("estimator", f"{why}: use Sampling(keep=...) instead"))
    if wrong:
        raise DeclarationInvalid(f"candidate {candidate}", wrong)


def takes_weights(estimator: Any) -> bool:
    """Whether `fit` of an estimator (of a pipeline's last step) takes a weight per row."""
    parameters = inspect.signature(last(estimator).fit).parameters
    return "sample_weight" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _check(sampling: Sampling, counts: dict[str, int]) -> None:
    wrong = [
        (f"{field}.{name}", f"no training example has this label; there is {_shown(counts)}")
        for field in ("keep", "weights")
        for name in getattr(sampling, field)
        if name not in counts
    ]
    if wrong:
        raise DeclarationInvalid("Sampling", wrong)


def _shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:10])
