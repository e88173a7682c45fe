"""Batch predictions for a file: its rows go through the serving engine, batch by batch, and each row is logged once.

A row's id is derived from the job (the loop, the file's content, the caller's name for the job), the job's start and the row
number; or it is the value of a column, used like a request's `X-Request-Id`. So an interrupted job resumes, and a repeated
job logs nothing and returns the answers that are in the log.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from loopwright.base.errors import (
    ColumnUnknown,
    IngestRefused,
    LedgerUnavailable,
    LoopwrightError,
    NotFound,
    Unavailable,
    UsageError,
)
from loopwright.base.ids import digest, trace_id_of
from loopwright.base.lock import FileLock
from loopwright.base.progress import Progress, Silent
from loopwright.data.ingest.contract import RowOrigin, conform
from loopwright.data.ingest.source import AS_DETECTED, open_source
from loopwright.data.ingest.source_reader import OpenSource, Reading
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import InService, Registry, Watcher
from loopwright.deploy.serving.release_files import follow
from loopwright.graph.columns import ARROW_TYPES
from loopwright.records.declarations import Table
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import rows as plain_rows
from loopwright.stores.prediction_log.bulk import Before, EarlierRows, Predicted, earlier
from loopwright.stores.prediction_log.commit import commit

ROWS = 10_000
"""Rows per graph run: the maximum of a request."""

_EPOCH_MARGIN = timedelta(days=1)
"""Answers of a job are searched from this long before its start: the clock may have been set back since."""


def predict(
    home: Home,
    loop: str,
    source: Any,
    out: Path,
    *,
    id_column: str = "",
    request_id: str = "",
    reading: Reading = AS_DETECTED,
    progress: Progress | None = None,
) -> Predicted:
    """Answer every row of a source (see `open_source`), log it like a request's, and write all rows with their answers to `out`.

    Raises UsageError for a source that cannot be read or lacks columns, NotFound where nothing serves the loop, Unavailable while
    another process predicts the same job, and what the engine raises; rows logged by then are not logged again.
    """
    make_writer = _writer(out)
    try:
        opened = open_source(source, reading=reading)
        _keep_source(source, out)
        job = digest(msgspec.json.encode([loop, opened.digest, id_column, request_id]))
        with _alone(home, job), _serving(home, loop) as (engine, service, unlogged):
            return _Job(home, loop, job, opened, engine, service, id_column, progress or Silent()).run(
                out, make_writer, unlogged
            )
    except IngestRefused as error:
        raise UsageError(f"{error.source} cannot be predicted: {error.why}") from error


@contextmanager
def _alone(home: Home, job: str) -> Iterator[None]:
    lock = FileLock(home.folder("batches") / f"{job[:32]}.lock")
    with ExitStack() as held:
        held.callback(lock.close)
        try:
            held.enter_context(lock.hold(0.0))
        except TimeoutError as error:
            raise Unavailable("another process is predicting this file for the loop; wait until it is done") from error
        yield


@contextmanager
def _serving(home: Home, loop: str) -> Iterator[tuple[ServingEngine, InService, Counter[str]]]:
    """An engine of its own with this loop in service; and how many rows of it could not be logged."""
    unlogged: Counter[str] = Counter()
    refusals: list[str] = []
    watcher = Watcher(
        swapped=lambda _loop, _arms: None,
        refused=lambda _loop, why: refusals.append(why),
        unlogged=lambda name, count: unlogged.update({name: count}),
    )
    with suppress(LedgerUnavailable):
        follow(home)  # a release may have been made in another home, and no server of this one follows it
    if not (home.path / "served" / f"{loop}.json").exists():
        raise NotFound("package in service of loop", loop, next_step=f"put one into service with `loopwright release {loop}`")
    engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock, watcher))
    try:
        try:
            service = engine.registry.serve_only(loop)
        except Unavailable as error:
            raise Unavailable(f"{error}: {'; '.join(refusals)}") from error
        yield engine, service, unlogged
    finally:
        engine.close()


class _Chunk(NamedTuple):
    """A batch of a file's rows: `frame` [N], row numbers [N], rows that could not be split into columns, share of the file read so far."""

    frame: pa.Table
    numbers: npt.NDArray[np.int64]
    broken: pa.Table
    done: float


def _chunks(opened: OpenSource) -> Iterator[_Chunk]:
    """The rows of a source in parts of at most `ROWS`; a row that could not be cut comes with its neighbours."""
    before = 0.0
    for batch in opened.batches():
        broken, count = batch.broken, len(batch.frame)
        for at in range(0, max(count, 1), ROWS):
            numbers = batch.rows[at : at + ROWS]
            last = inf if at + ROWS >= count else float(numbers[-1])
            with_them = pc.less_equal(broken["_row"], last)
            done = before + (batch.done - before) * min((at + ROWS) / max(count, 1), 1.0)
            yield _Chunk(batch.frame.slice(at, ROWS), numbers, broken.filter(with_them), done)
            broken = broken.filter(pc.invert(with_them))
        before = batch.done


class _Job:
    """One file on its way through the engine."""

    def __init__(
        self,
        home: Home,
        loop: str,
        job: str,
        opened: OpenSource,
        engine: ServingEngine,
        service: InService,
        id_column: str,
        progress: Progress,
    ) -> None:
        self._home, self._engine, self._service, self._id_column, self._progress = home, engine, service, id_column, progress
        manifest = service.predictor.package.manifest
        self._table = _requests(loop, service)
        self._opened = opened.narrowed(self._table)
        self._manifest, self._job = manifest, job
        entry = home.ledger.latest(Predicted, loop=loop, key=job)
        self._again = entry is not None
        begun = entry.record.begun if entry is not None else home.clock.now()
        package = service.predictor.digest
        self._record = Predicted(
            loop=loop, file=opened.name, digest=opened.digest, encoding=opened.encoding, begun=begun, package=package
        )
        self._prefix = f"{round(begun.timestamp() * 1000):012x}{job[:10]}"
        self._reasons, self._flags, self._counts = Counter[str](), Counter[str](), Counter[str]()
        self._ignored: dict[str, None] = {}
        self._first_refused = 0
        self._schema = self._out_schema()

    def run(self, out: Path, make_writer: "Callable[[Path, pa.Schema], _Writer]", unlogged: Counter[str]) -> Predicted:
        """All rows, answered and written; the record of it."""
        loop, record = self._record.loop, self._record
        if not self._again:
            self._home.ledger.put(record, loop=loop, key=self._job)
        temporary = out.with_name(f".{out.name}.{self._job[:12]}.part")
        try:
            with self._before() as found, make_writer(temporary, self._schema) as write:
                for chunk in _chunks(self._opened):
                    last = int(chunk.numbers[-1]) if len(chunk.numbers) else 0
                    lines = self._lines(chunk, found.upto(last) if found is not None else {})
                    write(pa.Table.from_pylist(lines, self._schema))
                    self._progress.advance(f"predict {record.file}", chunk.done, 1.0)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        self._engine.close()
        with suppress(LoopwrightError):  # upkeep does it otherwise
            commit(self._home, loop)
        record = msgspec.structs.replace(
            record,
            out=str(out),
            rows=sum(self._counts.values()),
            **{name: self._counts[name] for name in ("repeated", "refused")},
            logged=self._counts["answered"] - unlogged[loop],
            unlogged=unlogged[loop],
            reasons=dict(self._reasons.most_common()),
            flags=dict(self._flags.most_common()),
            ignored=list(self._ignored),
            first_refused=self._first_refused,
        )
        self._home.ledger.put(record, loop=loop, key=self._job)
        return record

    @contextmanager
    def _before(self) -> Iterator[EarlierRows | None]:
        """Earlier answers to this file in the log; None where there can be none."""
        if not (self._again or self._id_column):
            yield None
            return
        schema = pa.schema([("_row", pa.int64()), ("_id", pa.string())])
        ids = (pa.table([c.numbers, self._ids(c)], schema=schema) for c in _chunks(self._opened))
        since = None if self._id_column else self._record.begun - _EPOCH_MARGIN
        with earlier(self._home, self._record.loop, ids, list(self._table.columns), since) as found:
            yield found

    def _ids(self, chunk: _Chunk) -> list[str | None]:
        """The id of each row [N]; None where its column has none."""
        if not self._id_column:
            return [f"{self._prefix}{number:010x}" for number in chunk.numbers.tolist()]
        if self._id_column not in chunk.frame.column_names:
            raise ColumnUnknown("--id", self._id_column, chunk.frame.column_names)
        names = chunk.frame[self._id_column].cast(pa.string()).to_pylist()
        return [trace_id_of(name) if name else None for name in names]

    def _lines(self, chunk: _Chunk, before: dict[int, Before]) -> list[dict[str, Any]]:
        """A line for each row of a chunk, in order."""
        record = self._record
        origin = RowOrigin(record.file, record.digest, record.begun)
        absent, optional = self._table.columns if self._opened.loose else (), self._service.decode.optional
        whose = f"the requests of loop {record.loop!r}"
        judged = conform(
            self._table, chunk.frame, origin=origin, rows=chunk.numbers, absent=absent, optional=optional, whose=whose
        )
        self._ignored.update(dict.fromkeys(n for n in chunk.frame.column_names if n not in self._taken))
        self._reasons.update(judged.counts)
        lines = {row["_row"]: {"_row": row["_row"], "_error": row["_reason"]} for row in judged.bad.to_pylist()}
        for row in chunk.broken.to_pylist():
            self._refuse(lines, row["_row"], "cannot be cut into columns", row["_reason"])
        ids = self._ids(chunk)
        asked: dict[int, tuple[dict[str, Any], str]] = {}
        for at, row in zip(judged.at.tolist(), plain_rows(judged.good), strict=True):
            number, sent = int(chunk.numbers[at]), {n: v for n, v in row.items() if v is not None or n not in optional}
            self._place(number, ids[at], sent, before.get(number), asked, lines)
        self._answer(asked, lines)
        self._counts["refused"] += sum("_error" in line for line in lines.values())
        self._first_refused = self._first_refused or min((n for n, line in lines.items() if "_error" in line), default=0)
        return [lines[number] for number in sorted(lines)]

    def _place(
        self,
        number: int,
        id: str | None,
        sent: dict[str, Any],
        before: Before | None,
        pending: dict[int, tuple[dict[str, Any], str]],
        lines: dict[int, dict[str, Any]],
    ) -> None:
        """Queue a valid row for prediction, unless its id was seen before."""
        answer = before.answer if before is not None else None
        if id is None:
            self._refuse(lines, number, f"{self._id_column}: missing")
        elif before is not None and before.first != number:
            self._refuse(lines, number, f"{self._id_column}: the id of an earlier row", f"the same id as row {before.first:,}")
        elif answer is not None and any(answer.request.get(n, v) != v for n, v in sent.items()):
            self._refuse(lines, number, "the id was answered before, for another request", f"see `loopwright trace {id}`")
        elif answer is not None:
            lines[number] = self._line(number, answer)
            self._counts["repeated"] += 1
        else:
            pending[number] = sent, id

    def _refuse(self, lines: dict[int, dict[str, Any]], number: int, reason: str, detail: str = "") -> None:
        self._reasons[reason] += 1
        lines[number] = {"_row": number, "_error": f"{reason} ({detail})" if detail else reason}

    def _answer(self, pending: dict[int, tuple[dict[str, Any], str]], lines: dict[int, dict[str, Any]]) -> None:
        """Answer and log rows; with durability `disk` sync them before any answer is written."""
        if not pending:
            return
        rows, ids = [row for row, _ in pending.values()], [id for _, id in pending.values()]
        answers = self._engine.answer(self._record.loop, [PredictionRequest(rows, ids, of_file=True)])[0]
        if isinstance(answers, LoopwrightError):
            raise answers
        if (sync := self._engine.synced(self._record.loop)) is not None:
            sync()
        self._counts["answered"] += len(answers)
        lines.update({number: self._line(number, a) for number, a in zip(pending, answers, strict=True)})

    # --- the file that is written --------------------------------------------------------------------------------

    @property
    def _taken(self) -> set[str]:
        """The columns of a file that are read."""
        return {
            self._id_column,
            *(name if c.source is None else c.source for name, c in self._table.columns.items()),
            *self._table.columns,
        }

    def _out_schema(self) -> pa.Schema:
        """Row number, id, key and time of the request, then the logged answer, or the reason why there is none."""
        manifest = self._manifest
        own = list(dict.fromkeys([*manifest.key, manifest.event_time]))
        label = {"string": pa.string(), "boolean": pa.bool_()}.get(manifest.output.shape.answer)
        texts = ("_package", "_arm", "_segment", "_error")
        return pa.schema(
            [
                ("_row", pa.int64()),
                ("_id", pa.string()),
                *((name, ARROW_TYPES[manifest.request[name].type]) for name in own),
                ("_score", pa.float64()),
                *([] if label is None else [("_label", label)]),
                *((f"_value_{name}", pa.float64()) for name in manifest.output.names),
                ("_flags", pa.list_(pa.string())),
                *((name, pa.string()) for name in texts),
            ]
        )

    def _line(self, number: int, answer: Prediction) -> dict[str, Any]:
        self._flags.update(answer.flags)
        values = zip((f"_value_{name}" for name in self._manifest.output.names), answer.values or (), strict=False)
        return {
            **answer.request,
            "_row": number,
            "_id": answer.id,
            "_score": answer.score,
            "_label": answer.label,
            **dict(values),
            "_flags": answer.flags,
            "_package": answer.package,
            "_arm": answer.arm,
            "_segment": answer.segment,
        }


def _requests(loop: str, service: InService) -> Table:
    """The contract of a loop's requests applied to a file's rows: values out of range or category are flagged, not refused."""
    manifest = service.predictor.package.manifest
    columns = {
        name: msgspec.structs.replace(column, minimum=None, maximum=None, categories=None, filled=None)
        for name, column in service.decode.columns.items()
    }
    return Table(loop, columns, key=list(manifest.key), event_time=manifest.event_time, ignore=["*"])


# --- formats -----------------------------------------------------------------------------------------------------------

_Writer = Any
"""A context manager that gives a function to write the next table with."""


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    with pq.ParquetWriter(path, schema) as writer:
        yield writer.write_table


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    flat = pa.schema([(f.name, pa.string() if pa.types.is_list(f.type) else f.type) for f in schema])
    with pa_csv.CSVWriter(path, flat) as writer:

        def write(table: pa.Table) -> None:
            for i, field in enumerate(table.schema):
                if pa.types.is_list(field.type):
                    table = table.set_column(i, field.name, pc.binary_join(table.column(i).cast(pa.list_(pa.string())), ";"))
            writer.write_table(table)

        yield write


@contextmanager
def _json_lines(path: Path, _: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    with path.open("wb") as file:
        encode = msgspec.json.Encoder().encode_lines

        def write(table: pa.Table) -> None:
            file.write(encode(table.to_pylist()))

        yield write


FORMATS: dict[str, Callable[[Path, pa.Schema], _Writer]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
"""Output format, by file suffix."""


def _keep_source(source: Any, out: Path) -> None:
    """Raise UsageError if writing `out` would overwrite the source, under any name or link."""
    path = Path(source) if isinstance(source, str | Path) else None
    if path is None or not path.exists():
        return
    if (out.exists() and out.samefile(path)) or (path.is_dir() and out.resolve().is_relative_to(path.resolve())):
        raise UsageError(f"--out {out}: is the file that is read, or lies in the folder that is; write the answers elsewhere")


def _writer(out: Path) -> Callable[[Path, pa.Schema], _Writer]:
    """The writer for `out`. Raises UsageError for a name without a known suffix, or a missing folder."""
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out}: must end in one of {', '.join(FORMATS)}")
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"--out {out}: must be a file in a folder that exists")
    return FORMATS[out.suffix.lower()]
