"""A small loop with months of made traffic, for tests of monitoring and business: real package, log, outcomes, ledger."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests.admitted import unprobed

from loopwright.base.clock import SimulatedClock
from loopwright.base.ids import digest, new_id
from loopwright.base.settings import Settings
from loopwright.develop.features import trace_rule, trace_slices
from loopwright.graph.session import Feeder, Graph
from loopwright.records.declarations import (
    Budget,
    Column,
    Heuristic,
    Objective,
    Outcome,
    Scope,
    Slice,
    Table,
    Value,
)
from loopwright.records.evaluation import Evaluation
from loopwright.records.package import ContextNeed, Conversion, Histogram, Lineage, Manifest, Origin, Reference, Training
from loopwright.records.prediction import OutcomeRow, Prediction
from loopwright.records.releases import CHAMPION, Arm, ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import Probed
from loopwright.stores.packages.store import encode_json
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter
from loopwright.tasks import metrics

LOOP = "late"
START = datetime(2024, 3, 4, tzinfo=UTC)
WEEK = timedelta(days=7)
THRESHOLD = 0.4
VALUE = Value(true_positive=120, false_positive=-15, false_negative=-60)

REQUEST = {
    "flight": Column("string"),
    "at": Column("timestamp"),
    "origin": Column("string", categories=["EWR", "JFK", "LGA"]),
    "delay": Column("float", minimum=-120, maximum=1440),
    "hour": Column("integer", minimum=0, maximum=23),
}
WIND = {"wind": Column("float", nullable=True)}
COLUMNS = {**REQUEST, **WIND}
LANDINGS = Table(
    "landings",
    {"flight": Column("string"), "landed_at": Column("timestamp"), "arr_delay": Column("float")},
    key=["flight"],
    event_time="landed_at",
)
WAIT = timedelta(hours=3)
OUTCOME = Outcome(LANDINGS, "arr_delay > 15", wait="3h")
SCOPE = Scope(
    problem="Tell which flights will land late.",
    objectives=[
        Objective("catch late flights", owner="operations", metric="average_precision", at_least=0.6, weight=3),
        Objective("answer at once", owner="product", metric="latency_p99_ms", at_most=5),
        Objective("no airport left out", owner="partners", metric="recall_gap:origin", at_most=0.3),
    ],
    heuristic=Heuristic("delay > 15"),
    value=VALUE,
    budget=Budget(usd_per_month=10, usd_per_hour=0.1),
)

Row = dict[str, Any]


def rows(count: int, start: datetime, *, seed: int = 0, shift: float = 0.0, span: timedelta = WEEK) -> list[Row]:
    """`count` requests with their context, evenly over `span` from `start`; `shift` is added to every delay."""
    rng = np.random.default_rng([seed, int(start.timestamp())])
    delay = rng.exponential(18, count) - 8 + shift
    wind = rng.uniform(0, 30, count)
    hour = rng.integers(5, 24, count)
    origin = rng.choice(["EWR", "JFK", "LGA"], count, p=[0.4, 0.35, 0.25])
    step = span / count
    return [
        {
            "flight": f"F{seed}-{int(start.timestamp())}-{i}",
            "at": int((start + step * i).timestamp() * 1e6),
            "origin": str(origin[i]),
            "delay": float(delay[i]),
            "hour": int(hour[i]),
            "wind": None if i % 10 == 0 else float(wind[i]),
        }
        for i in range(count)
    ]


def truths(given: Sequence[Row], *, seed: int = 0, noise: float = 8.0) -> list[float]:
    """The arrival delay of each row: departure delay and wind, and chance. More `noise` makes a model's promise hollow."""
    rng = np.random.default_rng([seed, 7, len(given)])
    return [
        r["delay"] + 0.4 * (r["wind"] or 10.0) - 4 + float(e)
        for r, e in zip(given, rng.normal(0, noise, len(given)), strict=True)
    ]


def model(weight: float = 0.15) -> bytes:
    """A graph with output `score`: late when delay and wind are large."""

    def rule(f: Any) -> Any:
        return 1 / (1 + ndx.exp(ndx.astype(-weight * (f.delay + 0.4 * nde.fill_null(f.wind, 10.0) - 19.0), ndx.float32)))

    return trace_rule(rule, COLUMNS)


def histogram(name: str, role: str, values: Sequence[Any], *, categories: bool = False) -> Histogram:
    """The reference distribution of one column, as `develop` makes it."""
    known = [v for v in values if v is not None]
    if categories:
        names = sorted(set(known))
        names = names if len(names) <= 50 else names[:50]
        counts = [known.count(n) for n in names] + [sum(v not in names for v in known)]
        edges: list[float] = []
    else:
        names = []
        edges = np.unique(np.quantile(known, np.linspace(0, 1, 21)[1:-1])).tolist()
        counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1).tolist()
    return Histogram(
        column=name,
        role=role,
        edges=edges,
        categories=names,
        counts=counts,
        missing=len(values) - len(known),
        rows=len(values),
        mean=None if categories else float(np.mean(known)),
        minimum=None,
        maximum=None,
    )


def package(
    home: Home, *, weight: float = 0.15, as_of: datetime = START, shift: float = 0.0, lineage: Lineage | None = None
) -> Probed:
    """A package of the loop, measured on rows like those it will meet (moved by `shift`), written into `home`."""
    graph = model(weight)
    given = rows(4000, as_of - 2 * WEEK, seed=99, shift=shift)
    score = Graph(graph).score(Feeder(Graph(graph), COLUMNS)(given)).astype(np.float64)
    truth = np.array(truths(given)) > 15
    names = ["average_precision", "roc_auc", "recall", "precision", "recall_gap:origin"]
    slices = {"origin": np.array([r["origin"] for r in given])}
    evaluation = Evaluation(
        rows=len(given),
        positives=int(truth.sum()),
        threshold=THRESHOLD,
        metrics=metrics.intervals(names, truth, score, score >= THRESHOLD, seed=0, slices=slices),
        slices={},
        latency_p50_us=50.0,
        latency_p99_us=90.0,
        size_bytes=len(graph),
        train_seconds=1.0,
        value_per_prediction=20.0,
    )
    reference = Reference(
        columns=[
            histogram("flight", "request", [r["flight"] for r in given], categories=True),
            histogram("origin", "request", [r["origin"] for r in given], categories=True),
            histogram("delay", "request", [r["delay"] for r in given]),
            histogram("hour", "request", [r["hour"] for r in given]),
            histogram("wind", "context", [r["wind"] for r in given]),
            histogram("score", "output", score.tolist()),
        ],
        golden=[],
    )
    slice_graph = trace_slices([Slice("origin", lambda f: f.origin), Slice("night", lambda f: f.hour >= 21)], COLUMNS)
    manifest = Manifest(
        format=1,
        loop=LOOP,
        candidate="by-hand",
        phase=2,
        created_at=as_of,
        by="tests",
        declaration="0" * 64,
        request=REQUEST,
        key=["flight"],
        event_time="at",
        context=[ContextNeed(table="weather", by={"origin": "origin"}, columns=WIND, max_age_s=None)],
        features=[],
        vocabulary={},
        slices=["origin", "night"],
        threshold=THRESHOLD,
        params={"weight": weight},
        seed=0,
        training=Training(
            examples="0" * 64, rows=4000, as_of=as_of, first=as_of - 2 * WEEK, last=as_of, sources={}, seconds=1.0
        ),
        conversion=Conversion(rows=100, max_difference=0.0),
        commit="",
        environment={},
        parent="",
        release={},
        files={},
        lineage=lineage or Lineage(),
    )
    assert home.ledger.count() >= 0, "opened first: a home with packages and no ledger has lost it"
    written = home.packages.write(
        manifest,
        {
            "model.onnx": graph,
            "heuristic.onnx": trace_rule(lambda f: f.delay > 15, COLUMNS),
            "slices.onnx": slice_graph or b"",
            "evaluation.json": encode_json(evaluation),
            "reference.json": encode_json(reference),
        },
    )
    return unprobed(home.packages, written)


def lineage_without(*unused: str) -> Lineage:
    """What a package says of its columns where no feature uses these."""
    return Lineage(
        features={name: [name] for name in COLUMNS if name not in unused},
        columns={name: Origin(of=[f"requests.{name}"]) for name in COLUMNS},
    )


def examples_file(home: Home, rows: pa.Table) -> str:
    """Write a file of examples under the SHA-256 of its bytes, which is returned."""
    written = home.folder("examples") / "unfinished"
    pq.write_table(rows, written)
    name = digest(written.read_bytes())
    written.rename(written.with_name(f"{name}.parquet"))
    return name


class World:
    """A home on a simulated clock in which the loop's traffic happens."""

    def __init__(self, folder: Path, *, start: datetime = START, **settings: Any) -> None:
        self.home = Home(Settings(home=folder, by="tests", **settings), SimulatedClock(start))
        self.package = package(self.home, as_of=start)
        self.release(self.package)

    @property
    def clock(self) -> SimulatedClock:
        """The clock, to be advanced."""
        clock = self.home.clock
        assert isinstance(clock, SimulatedClock)
        return clock

    def release(self, package: Probed) -> None:
        """`package` serves from now on."""
        self.package = package
        pointer = self.home.ledger.pointer(f"release.{LOOP}")
        generation = pointer.generation if pointer else 0
        state = ReleaseState(
            loop=LOOP,
            generation=generation + 1,
            arms=[Arm(package=package.digest)],
            strategy="direct",
            action="release",
            since=self.home.clock.now(),
            by="tests",
            why="a test",
        )
        self.home.ledger.swap(f"release.{LOOP}", generation, state, loop=LOOP)

    def predict(self, given: Sequence[Row], *, flags: Sequence[str] = ()) -> list[Prediction]:
        """Answer the rows with the serving package and log the predictions."""
        return self.predict_as(given, CHAMPION, self.package, flags)

    def predict_as(self, given: Sequence[Row], arm: str, package: Probed, flags: Sequence[str] = ()) -> list[Prediction]:
        """The same with the package of an arm."""
        graph = Graph(package.files["model.onnx"])
        scores = graph.score(Feeder(graph, COLUMNS)(given)).tolist()
        logged = [
            Prediction(
                id=new_id(datetime.fromtimestamp(row["at"] / 1e6, UTC)),
                at=row["at"],
                package=package.digest,
                arm=arm,
                probability=1.0,
                request={name: row[name] for name in REQUEST},
                context={name: row[name] for name in WIND},
                context_age_s=60.0,
                score=score,
                label=score >= THRESHOLD,
                flags=list(flags),
                latency_us=40.0,
                unit=row["flight"],
            )
            for row, score in zip(given, scores, strict=True)
        ]
        self._log("predictions", logged)
        return logged

    def tell(self, given: Sequence[Row], delays: Sequence[float], *, after: timedelta = WAIT) -> None:
        """The outcome of each row, known `after` its decision."""
        known = [row["at"] + int(after.total_seconds() * 1e6) for row in given]
        told = [
            OutcomeRow(
                id=digest(f"{row['flight']}{delay}{at}".encode())[:32],
                prediction="",
                unit=row["flight"],
                values={"landed_at": at, "arr_delay": delay},
                known_at=at,
                received_at=at,
                provenance="tests",
            )
            for row, delay, at in zip(given, delays, known, strict=True)
        ]
        self._log("outcomes", told)

    def correct(self, logged: Sequence[Prediction], delay: float) -> None:
        """Another outcome for each of these predictions, by id, known and received now."""
        now = int(self.clock.now().timestamp() * 1e6)
        stated = [
            OutcomeRow(
                id=digest(f"{p.id}{delay}".encode())[:32],
                prediction=p.id,
                unit="",
                values={"landed_at": now, "arr_delay": delay},
                known_at=now,
                received_at=now,
                provenance="tests",
            )
            for p in logged
        ]
        self._log("outcomes", stated)

    def _log(self, kind: Any, records: Sequence[Any]) -> None:
        writer = LogWriter(log_folder(self.home.path, LOOP), kind)
        writer.append(records)
        writer.close()
        commit(self.home, LOOP)

    def week(self, number: int, count: int = 1000, *, shift: float = 0.0, noise: float = 8.0) -> list[Row]:
        """The week `number` (0 first) happens: predictions and their outcomes; the clock ends when the wait for the last is over."""
        start = START + number * WEEK
        given = rows(count, start, shift=shift)
        self.predict(given)
        self.tell(given, truths(given, noise=noise))
        self.clock.advance_to(start + WEEK + WAIT)
        return given
