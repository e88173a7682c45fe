"""Own code beside a library, or beside less of it; see docs/decisions/0011. Writes a section of RESULTS.md.

python -m benchmarks.alternatives            # half a minute
"""

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
from benchmarks.report import RESULTS, machine, put, table
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from tests.deploy.loops import NOW_US

from loopwright.base.clock import RealClock
from loopwright.deploy.serving.idempotency import Claim, IdempotencyStore
from loopwright.develop.features import Vocabulary, trace
from loopwright.develop.onnx.items import GraphReader
from loopwright.graph.session import Graph, feed_arrays
from loopwright.loop import load_loop
from loopwright.records.prediction import Prediction
from loopwright.server.api.spans import SampledRequest, Spans, Stage

ROOT = Path(__file__).parents[1]
encode = msgspec.json.Encoder().encode
LIBRARIES = ("onnxruntime", "opentelemetry-sdk", "msgspec", "numpy")
ROUNDS, CALLS = 60, 100
STAGES = ("predict", "decode", "wait", "answer", "encode")

Steps = Mapping[str, Callable[[], object]]


def least(steps: Steps) -> dict[str, float]:
    """Microseconds of a call of each, the least of the rounds, in turns."""
    found = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                step()
            found[name] = min(found[name], (time.perf_counter() - began) / CALLS * 1e6)
    return found


def prediction() -> Prediction:
    """One answer of a usual size."""
    fixed: dict[str, Any] = {
        "probability": 1.0,
        "context": {},
        "context_age_s": None,
        "flags": [],
        "latency_us": 90.0,
        "unit": "u",
    }
    return Prediction(id="0" * 32, at=NOW_US, package="a" * 64, arm="champion", request={}, score=0.25, label=False, **fixed)


def claims(folder: Path) -> Steps:
    """A request id is claimed, answered and logged: in our file, and in SQLite with a write-ahead log that is not synced."""
    store, answers, ids = IdempotencyStore(folder / "requests"), [prediction()], count()
    database = sqlite3.connect(folder / "claims.db", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE claim (id TEXT PRIMARY KEY, request BLOB, answers BLOB, logged INTEGER) WITHOUT ROWID")

    def own() -> None:
        claim = store.claim("flights", f"request-{next(ids)}", bytes(16))
        assert isinstance(claim, Claim)
        store.keep(claim, answers)
        store.logged(claim)

    def in_sqlite() -> None:
        id = f"request-{next(ids)}"
        database.execute("INSERT OR IGNORE INTO claim VALUES (?, ?, NULL, 0)", (id, bytes(16)))
        database.execute("UPDATE claim SET answers = ? WHERE id = ?", (encode(answers), id))
        database.execute("UPDATE claim SET logged = 1 WHERE id = ?", (id,))

    return {"claims of request ids: ours": own, "claims of request ids: SQLite": in_sqlite}


class Nowhere(SpanExporter):
    """Takes every span and sends none."""

    def export(self, spans: Any) -> SpanExportResult:
        """See the library."""
        return SpanExportResult.SUCCESS


def spans() -> Steps:
    """What the thread that answers a sampled request spends on its five spans."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    tracer, own = (
        provider.get_tracer("loopwright"),
        Spans("http://127.0.0.1:9/v1/traces", 1.0, RealClock(), "0", lambda *_: None),
    )
    stages = [Stage(name, 0.0, 1.0) for name in STAGES[1:]]

    def ours() -> None:
        own.tell(SampledRequest("predict", "flights", "0" * 32, {}, (), stages, {}, False))

    def library() -> None:
        for name in STAGES:
            tracer.start_span(name, attributes={"loop": "flights"}).end()

    return {"spans of a request: ours": ours, "spans of a request: opentelemetry-sdk": library}


def graphs() -> Steps:
    """The features of the flights on one row: a graph with columns side by side, and one without."""
    loop = load_loop(ROOT / "examples" / "flights")
    traced = trace(loop.features, loop.columns)
    words = {name: Vocabulary.learn(["EWR", "JFK", "LGA", "AA", "B6"], None, []) for name in traced.categories}
    made = {"ours": Graph(traced.matrix_graph(words, "ordinal"))}
    with patch.object(GraphReader, "_in_lane", lambda *_: False):
        made["no lanes"] = Graph(traced.matrix_graph(words, "ordinal"))
    kinds = {"string": np.array(["EWR"], dtype=object), "float": np.ones(1), "integer": np.ones(1, dtype=np.int64)}
    columns = {name: (kinds.get(c.type, np.ones(1, dtype=np.int64)), None) for name, c in loop.columns.items()}
    nulls = {name: (values, np.zeros(1, dtype=np.bool_)) for name, (values, _) in columns.items()}
    row = {name: nulls[name] if column.nullable else columns[name] for name, column in loop.columns.items()}
    return {
        f"features of one row: {name}": partial(graph.run, feed_arrays(graph, row), ["features"])
        for name, graph in made.items()
    }


def main() -> int:
    """Measure and write the section."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for steps in (graphs(), claims(Path(folder)), spans()):
            took = least(steps)
            own = next(iter(took.values()))
            rows += [[name, f"{us:.1f}", f"{us / own:.2f}"] for name, us in took.items()]
    text = (
        machine(LIBRARIES)
        + "\n"
        + table(["what", "µs", "ratio to ours"], rows)
        + "\nReproduce: `python -m benchmarks.alternatives`.\n"
    )
    print(text)
    put("Own code beside a library", text, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
