"""The verb `trace`."""

import datetime as dt
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from loopwright.base.clock import moment_at
from loopwright.base.errors import NotExplained, NotFound, PackageRefused, PredictionNotFound
from loopwright.base.ids import time_of, trace_id_of
from loopwright.deploy.serving.explanations import PackageReasons
from loopwright.graph.session import Feeder
from loopwright.records.attempts import Attempts
from loopwright.records.declarations import SHAPES, Loop, Outcome, Task
from loopwright.records.examples import Examples
from loopwright.records.package import Manifest, Output
from loopwright.records.prediction import Contributions, Prediction
from loopwright.records.releases import ReleaseState
from loopwright.render import notebook
from loopwright.render.words import cell
from loopwright.stores.home import Home
from loopwright.stores.outcomes.join import Statement, history
from loopwright.stores.packages.probe import Probed, open_probed
from loopwright.stores.prediction_log.read import find, loops
from loopwright.stores.prediction_log.retention import retained_since
from loopwright.tasks import metrics
from loopwright.verbs.history import releases_of
from loopwright.verbs.known_loop import known_loop


class FileUsed(msgspec.Struct, frozen=True, kw_only=True):
    """A source file that went into training: its table, the table's version, its name and SHA-256."""

    table: str
    version: int
    file: str
    sha256: str


class TracedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a prediction. `value` is in `currency`, relative to the value table; None without one.

    `truth` is the label in the form of the task (several targets by name), `kind` the kind of the answer, empty if it has none.
    """

    truth: bool | str | float | dict[str, float]
    known_at: datetime
    values: dict[str, Any]
    kind: str
    value: float | None
    currency: str


class TracedStatement(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome that arrived about a prediction. `truth` is the label that it gives, None where it takes back what stood.

    `counts`: it is the one that is believed; of several the last known is.
    """

    truth: bool | str | float | dict[str, float] | None
    known_at: datetime
    received_at: datetime
    provenance: str
    counts: bool

    @property
    def words(self) -> str:
        """The outcome's value, when it became known, its origin, and whether it counts."""
        what = "taken back" if self.truth is None else cell(self.truth)
        return f"{what}, known {self.known_at:%Y-%m-%d %H:%M:%S} UTC, by {self.provenance}" + (
            "; this one counts" * self.counts
        )


class ShadowAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a package that no client saw answered to the same request."""

    package: str
    score: float
    label: bool | str | None
    flags: list[str]
    latency_us: float

    @property
    def words(self) -> str:
        """Its answer in a word, with the score."""
        return f"{cell(self.score if self.label is None else self.label)} (score {self.score:.4g}) by {self.package[:12]}"


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction, with its training files and its money.

    `explained` are its feature contributions, recomputed from the logged row. `optional` are columns that the client
    may omit; `filled_in` are values set by the server. `trained_until` is the decision time of the newest training row
    of the package, `known_at` the moment of that training: it used what was known then. `rule_label` is the label
    of the heuristic; `valued`: a value table is declared. `statements` are all outcomes that arrived about it, as received.
    """

    id: str
    loop: str
    at: datetime
    request: dict[str, Any]
    context: dict[str, Any]
    context_age_s: float | None
    features: dict[str, float | None] = {}
    score: float
    threshold: float = float("nan")
    label: bool | str | None
    heuristic: float | str | None = None
    flags: list[str]
    latency_us: float
    arm: str
    shadow: ShadowAnswer | None = None
    package: str
    candidate: str = ""
    commit: str = ""
    trained_until: datetime | None = None
    known_at: datetime | None = None
    training_rows: int = 0
    files: list[FileUsed] = []
    release: ReleaseState | None = None
    outcome: TracedOutcome | None = None
    statements: list[TracedStatement] = []
    task: Task = "binary"
    values: dict[str, float] = {}
    explained: Contributions | None = None
    optional: list[str] = []
    filled_in: list[str] = []
    rule_label: bool | None = None
    valued: bool = True
    package_error: str = ""
    """Why the package cannot be read; then only the fields of the log are valid."""

    @property
    def answer(self) -> str:
        """The answer in a word: yes or no, a class, or the number itself."""
        return cell(self.score if self.label is None else self.label)

    @property
    def has_gauge(self) -> bool:
        """Whether a threshold on a probability decides the label, so that a scale from 0 to 1 shows both."""
        return SHAPES[self.task].has_border and SHAPES[self.task].is_probability

    @property
    def request_shown(self) -> dict[str, Any]:
        """The request for a person: which columns the server filled in, and which may be left out and are not there."""
        absent = {n: "none (optional)" for n, value in self.request.items() if value is None and n in self.optional}
        shown = self.request | absent
        return {f"{n} (filled in by the server)" if n in self.filled_in else n: value for n, value in shown.items()}

    @property
    def rule_answer(self) -> str:
        """The heuristic's answer, in a word: with its score where that is more than yes or no."""
        if self.heuristic is None:
            return "not known" if self.package_error else "nothing"
        if self.rule_label is None:
            return cell(self.heuristic)
        return cell(self.rule_label) + ("" if self.heuristic in (0.0, 1.0) else f" (score {self.heuristic:.4g})")

    @property
    def truth_missing(self) -> str:
        """Why no outcome is here, in a word: it is pending, or needs the unreadable package."""
        return "" if self.outcome is not None else "not known without the package" if self.package_error else "pending"

    @property
    def worth(self) -> str:
        """Its money in words, or why there is none."""
        if self.outcome is None and self.package_error:
            return self.truth_missing
        if self.outcome is None and self.valued:
            return "not known until the outcome is"
        if self.outcome is None or self.outcome.value is None:
            return "no value table is declared"
        return f"{self.outcome.value:+,.2f} {self.outcome.currency}"

    @property
    def hit(self) -> bool | None:
        """Whether the label was right; None if there is no label, or the truth is not known."""
        return None if self.outcome is None or self.label is None else self.outcome.truth == self.label

    def _repr_html_(self) -> str:
        """HTML for a notebook: the answer and its sources, request, context, contributions or features, package, outcome."""
        outcome, explained = self.outcome, self.explained
        happened = {} if outcome is None else {"truth": cell(outcome.truth), "value": outcome.value, **outcome.values}
        moved = {} if explained is None or explained.contributions is None else explained.largest
        parts = {
            f"{self.loop}: prediction {self.id}": {
                "answer": self.answer,
                "score": self.score,
                "at": self.at,
                "flags": self.flags,
                **({"unseen answer": self.shadow.words} if self.shadow is not None else {}),
            },
            "Request": self.request_shown,
            "Context": self.context,
            f"Contributions to the {explained.unit}" if explained is not None else "": moved,
            "Features": self.features,
            "Package": {
                "package": self.package_error or self.package,
                "candidate": self.candidate,
                "trained until": self.trained_until,
                "as known at": self.known_at,
            },
            "Outcome": happened or {"": self.truth_missing},
            "Outcomes received": {str(s.received_at): s.words for s in self.statements} if len(self.statements) > 1 else {},
        }
        return "".join(notebook.facts(title, values) for title, values in parts.items())


def trace(home: Home, id: str) -> Trace:
    """Trace one prediction: back to its data, forward to its outcome and value.

    Args:
        id: the 32 hexadecimal digits that came with the answer, or the X-Request-Id that a request for one row was sent with.
    """
    found = find(home, trace_id_of(id))
    if found is None:
        raise PredictionNotFound(id, _deleted(home, id))
    loop, prediction = found
    logged = _logged(home, loop, prediction)
    declared = Attempts(loop).run("declaration", lambda: known_loop(home, loop), None)
    try:
        package = open_probed(home.packages, prediction.package)
    except (NotFound, PackageRefused) as error:
        request = _readable(prediction.request, declared.columns if declared is not None else {})
        return msgspec.structs.replace(logged, package_error=str(error), request=request)
    manifest = package.manifest
    features, heuristic = _recompute(package, prediction)
    statements = [] if declared is None else history(home, loop, prediction, declared.outcome)
    rule = manifest.threshold if manifest.heuristic_threshold is None else manifest.heuristic_threshold
    return msgspec.structs.replace(
        logged,
        request=_readable({n: prediction.request.get(n) for n in manifest.request}, manifest.request),
        context=_readable(prediction.context, {n: c for need in manifest.context for n, c in need.columns.items()}),
        features=features,
        threshold=rule if "degraded" in prediction.flags else manifest.threshold,
        heuristic=heuristic,
        candidate=manifest.candidate,
        commit=manifest.commit,
        trained_until=manifest.training.last,
        known_at=manifest.training.as_of,
        training_rows=manifest.training.rows,
        files=list(_files(home, manifest)),
        outcome=_outcome_of(prediction, manifest.output, declared, statements),
        statements=_statements(declared, statements),
        task=manifest.output.task,
        values=dict(zip(manifest.output.names, prediction.values or [], strict=False)),
        explained=_explained(package, prediction),
        optional=sorted(manifest.may_lack),
        filled_in=_filled_in(prediction, manifest),
        rule_label=heuristic >= rule if manifest.output.shape.has_border and isinstance(heuristic, float) else None,
        valued=declared is None or declared.scope.value.is_set,
    )


def _filled_in(prediction: Prediction, manifest: Manifest) -> list[str]:
    """The columns that the server filled in: the moment of the request, where no other was sent, and the number of the row."""
    if prediction.of_file:
        return []
    own = {"row_id": prediction.id, "ingested_at": prediction.at}
    filled = {name: own[column.filled] for name, column in manifest.request.items() if column.filled}
    filled.setdefault(manifest.event_time, prediction.at)
    return [name for name, value in filled.items() if prediction.request.get(name) == value]


def _logged(home: Home, loop: str, prediction: Prediction) -> Trace:
    """A prediction with the fields of the log only."""
    at = moment_at(prediction.at)
    return Trace(
        id=prediction.id,
        loop=loop,
        at=at,
        request=prediction.request,
        context=prediction.context,
        context_age_s=prediction.context_age_s,
        score=prediction.score,
        label=prediction.label,
        flags=prediction.flags,
        latency_us=prediction.latency_us,
        arm=prediction.arm,
        shadow=_shadow_of(home, loop, prediction.id),
        package=prediction.package,
        release=_release_of(home, loop, prediction, at),
    )


def _shadow_of(home: Home, loop: str, id: str) -> ShadowAnswer | None:
    found = find(home, id, loop, kind="shadows")
    return None if found is None else ShadowAnswer(**{n: getattr(found[1], n) for n in ShadowAnswer.__struct_fields__})


def _deleted(home: Home, id: str) -> str:
    """Why the prediction of an id may be gone, "" where no retention has reached its time."""
    try:
        at = time_of(id)
    except (ValueError, OverflowError):  # not an id, or one that a client made up
        return ""
    limits = [since for loop in loops(home) if (since := retained_since(home, loop)) is not None and at < since]
    return f"predictions of before {max(limits):%Y-%m-%d} are not kept (LOOPWRIGHT_KEEP)" if limits else ""


def _readable(values: dict[str, Any], columns: dict[str, Any]) -> dict[str, Any]:
    return {
        name: moment_at(value) if value is not None and name in columns and columns[name].type == "timestamp" else value
        for name, value in values.items()
    }


def _recompute(package: Probed, prediction: Prediction) -> tuple[dict[str, float | None], float | str]:
    """The features of one logged prediction and the heuristic's score (or class), by the package's own graphs."""
    columns = {**package.manifest.request, **{n: c for need in package.manifest.context for n, c in need.columns.items()}}
    row = {**prediction.request, **prediction.context}
    features: dict[str, float | None] = {}
    if package.manifest.features:
        graph = package.graph("model.onnx")
        matrix = graph.run(Feeder(graph, columns)([row]), ["features"])["features"][0]
        features = {n: None if v != v else float(v) for n, v in zip(package.manifest.features, matrix, strict=True)}
    rule, output = package.graph("heuristic.onnx"), package.manifest.output
    feed = Feeder(rule, columns)([row])
    if output.shape.has_classes:
        return features, output.classes[int(rule.answers(feed)[1][0].argmax())]
    return features, float(rule.score(feed)[0])


def _explained(package: Probed, prediction: Prediction) -> Contributions:
    """Feature contributions of a logged prediction, or the reason why there are none."""
    try:
        (found,) = PackageReasons(package, package.graph("model.onnx"))([prediction])
    except (NotExplained, PackageRefused) as error:
        return Contributions(why=error.why)
    return found


def _files(home: Home, manifest: Manifest) -> Iterator[FileUsed]:
    for entry in home.ledger.find(Examples, loop=manifest.loop):
        if entry.record.digest == manifest.training.examples:
            for source in entry.record.sources:
                for file, sha256 in source.files.items():
                    yield FileUsed(table=source.table, version=source.version, file=file, sha256=sha256)
            return


def _release_of(home: Home, loop: str, prediction: Prediction, at: dt.datetime) -> ReleaseState | None:
    """The release that answered: that of the logged generation; where none is logged, the newest of the package that had begun by then."""
    releases = releases_of(home, loop)
    if (logged := next((r for r in releases if r.generation == prediction.generation), None)) is not None:
        return logged
    mine = [r for r in releases if prediction.package in r.packages]
    return next((r for r in reversed(mine) if r.since <= at), mine[0] if mine else None)


def _label(outcome: Outcome, truth: Any) -> Any:
    return dict(zip(outcome.labels, truth, strict=True)) if isinstance(truth, list) else truth


def _statements(declared: Loop | None, statements: Sequence[Statement]) -> list[TracedStatement]:
    return [
        TracedStatement(
            truth=_label(declared.outcome, s.truth),
            known_at=moment_at(s.row.known_at),
            received_at=moment_at(s.row.received_at),
            provenance=s.row.provenance,
            counts=s.counts,
        )
        for s in statements
        if declared is not None
    ]


def _outcome_of(
    prediction: Prediction, output: Output, declared: Loop | None, statements: Sequence[Statement]
) -> TracedOutcome | None:
    counted = next((s for s in statements if s.counts), None)
    # Without a declaration nobody can say what its outcome is; `status` tells why.
    if declared is None or counted is None or declared.outcome.task != output.task:
        return None
    truth, row = counted.truth, counted.row
    label, values = prediction.label, prediction.values
    given = metrics.Answered(
        np.array([prediction.score]),
        None if label is None else np.array([label], dtype=object),
        None if values is None else np.array([values]),
    )
    happened = np.array([truth], dtype=object if isinstance(truth, str) else None)
    earned, _ = metrics.money(declared.scope.value, output, happened, given)
    return TracedOutcome(
        truth=_label(declared.outcome, truth),
        known_at=moment_at(row.known_at),
        values=_readable(row.values, declared.outcome.table.columns),
        kind=next((kind for kind, hit in metrics.kinds(output, happened, given).items() if hit[0]), ""),
        value=float(earned[0]) if declared.scope.value.is_set else None,
        currency=declared.scope.value.currency,
    )
