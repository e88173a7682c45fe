"""Explanations of answers: the contribution of each feature, computed by the answer's package from the logged row.

Requests that do not ask for explanations pay nothing: a package's explanation files are read on first use, and the matrix
of feature values is computed by the package's own graph.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from loopwright.base.arrays import Array
from loopwright.base.errors import NotExplained, PackageRefused
from loopwright.deploy.serving.predictor import Predictor
from loopwright.graph.contributions import FILES, Reasons
from loopwright.graph.session import Graph
from loopwright.records.package import Manifest
from loopwright.records.prediction import Contributions, Prediction
from loopwright.stores.packages.probe import Probed, open_probed
from loopwright.stores.packages.store import Packages

MAX_ROWS = 1000
"""Maximum number of rows of one request that are explained, fewer with large trees: at most `MAX_WORK` conditions times rows."""

MAX_WORK = 50_000_000

MAX_READY, MAX_HELD = 64, 2_000_000
"""Maximum number of packages kept ready to explain, and of their tree conditions in all: 100 MB, in addition to the packages."""

BEFORE = "the package was made before answers were explained: `loopwright run` makes one that explains them"
DEGRADED = "the heuristic answered: a rule has no contributions"


def refuse(package: str, manifest: Manifest) -> None:
    """Raise NotExplained for a package whose answers cannot be explained."""
    if manifest.explained is None or manifest.explained.why:
        raise NotExplained(package, BEFORE if manifest.explained is None else manifest.explained.why)


def most_rows(manifest: Manifest) -> int:
    """Maximum number of rows of one request that are explained: about a second's work."""
    return max(1, min(MAX_ROWS, MAX_WORK // max(_elements(manifest), 1)))


def _elements(manifest: Manifest) -> int:
    return manifest.explained.elements if manifest.explained is not None else 0


class PackageReasons:
    """The answers of one package, explained. Raises NotExplained where it cannot, PackageRefused where its files do not fit.

    `graph` is its model; `package` holds the files that explain it.
    """

    def __init__(self, package: Probed, graph: Graph) -> None:
        refuse(package.digest, package.manifest)
        self._output = output = package.manifest.output
        try:
            before = package.graph("explain.onnx") if "explain.onnx" in package.files else None
            self._reasons = Reasons(graph, package.columns, package.files["explanation.msgpack"], before)
        except Exception as error:  # the decoder and the runtime raise many kinds
            raise PackageRefused(package.digest, f"its explanation cannot be read: {type(error).__name__}") from error
        if len(self._reasons.explainer.base) != (outputs := max(len(output.names), 1)):
            raise PackageRefused(
                package.digest, f"its explanation is of {len(self._reasons.explainer.base)} outputs, not {outputs}"
            )

    def __call__(self, answers: Sequence[Prediction]) -> list[Contributions]:
        """The contributions of this package's answers, in order; for an answer of the heuristic, why there are none."""
        found = [Contributions(why=DEGRADED)] * len(answers)
        sound = [i for i, answer in enumerate(answers) if "degraded" not in answer.flags]
        if not sound:
            return found
        explainer, names = self._reasons.explainer, self._output.names
        contributions = self._reasons([{**answers[i].request, **answers[i].context} for i in sound])
        for row, place in zip(contributions, sound, strict=True):
            k = self._which(answers[place], explainer.base + row.sum(axis=1))
            moved = dict(zip(explainer.features, row[k].tolist(), strict=True))
            found[place] = Contributions(moved, float(explainer.base[k]), explainer.unit, names[k] if names else None)
        return found

    def _which(self, answer: Prediction, raw: Array) -> int:
        """The output that the score is: the class chosen, the first target, the quantile nearest the median (they are sorted)."""
        if self._output.shape.has_classes:
            return self._output.classes.index(str(answer.label))
        if self._output.quantiles:
            nearest = int(np.argmin([abs(q - 0.5) for q in self._output.quantiles]))
            return int(np.argsort(raw, kind="stable")[nearest])
        return 0


class Explanations:
    """Explains the answers of a server, whichever packages gave them; each package is prepared on first use.

    It takes milliseconds a row, so call it in a thread of its own; `package` returns the predictor of a digest, loading it if needed.
    """

    def __init__(self, packages: Packages, package: Callable[[str], Predictor]) -> None:
        self._packages, self._package = packages, package
        self._ready: WeakKeyDictionary[Predictor, PackageReasons | str] = WeakKeyDictionary()
        self._making = threading.Lock()

    def __call__(self, answers: Sequence[Prediction]) -> list[Contributions]:
        """The contributions of each answer, in order, or the reason why there are none. Never raises for files that a package lacks."""
        places: dict[str, list[int]] = {}
        for i, answer in enumerate(answers):
            places.setdefault(answer.package, []).append(i)
        found: list[Any] = [None] * len(answers)
        for package, rows in places.items():
            explained = self._explained(package, [answers[i] for i in rows])
            for i, one in zip(rows, explained, strict=True):
                found[i] = one
        return found

    def _explained(self, package: str, answers: Sequence[Prediction]) -> list[Contributions]:
        if all("degraded" in answer.flags for answer in answers):
            return [Contributions(why=DEGRADED)] * len(answers)
        try:
            reasons = self._reasons(package)
            return [Contributions(why=reasons)] * len(answers) if isinstance(reasons, str) else reasons(answers)
        except Exception as error:  # noqa: BLE001  # an error in the explanation must not affect the answers
            why = f"it failed: {type(error).__name__}"
            return [Contributions(why=error.why if isinstance(error, NotExplained | PackageRefused) else why)] * len(answers)

    def _reasons(self, digest: str) -> PackageReasons | str:
        predictor = self._package(digest)
        with self._making:
            found = self._ready.get(predictor)
            if found is None:
                found = self._make(predictor)
                self._make_room(predictor)
                self._ready[predictor] = found
            return found

    def _make_room(self, predictor: Predictor) -> None:
        new, held = _elements(predictor.package.manifest), sum(_elements(p.package.manifest) for p in list(self._ready))
        while self._ready and (len(self._ready) >= MAX_READY or held + new > MAX_HELD):
            held -= _elements(self._ready.popitem()[0].package.manifest)

    def _make(self, predictor: Predictor) -> PackageReasons | str:
        if predictor.graph is None:
            return DEGRADED
        try:
            refuse(predictor.digest, predictor.package.manifest)
            return PackageReasons(open_probed(self._packages, predictor.digest, keep=FILES), predictor.graph)
        except (NotExplained, PackageRefused) as error:
            return error.why
