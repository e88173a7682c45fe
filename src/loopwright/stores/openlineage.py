"""OpenLineage events (https://openlineage.io/spec/2-0-2/OpenLineage.json): job runs with their inputs and outputs, column by column.

Sent to a file (one JSON document a line) or to an HTTP address, under the same rules as webhooks. Sending never fails the
work: events that cannot be sent are counted and logged, and dropped.

A local table is `file` and its path, one in object storage its bucket and path; examples, packages and jobs are in the
namespace `loopwright`. The version of a table is Delta's, that of a file, of examples and of a package its SHA-256.
"""

import importlib.metadata
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from loopwright.base.clock import Clock
from loopwright.base.errors import AddressRefused
from loopwright.base.ids import new_id
from loopwright.base.outbound_http import Receiver, post, receiver
from loopwright.base.outbound_http import problem as receiver_problem
from loopwright.base.settings import Settings
from loopwright.records.declarations import Column
from loopwright.records.examples import Examples
from loopwright.records.package import Lineage, Manifest, Origin

LOG = logging.getLogger("loopwright.openlineage")
NAMESPACE, LABEL = "loopwright", "_label"
EVENT_BYTES = 8 * 2**20
REST_SECONDS = 30.0
"""After a failed event, the next ones are only counted for this long."""

_SPEC = "https://openlineage.io/spec/"
_EVENT = f"{_SPEC}2-0-2/OpenLineage.json#/$defs/RunEvent"
_FACETS = {  # facet -> version and name of its schema
    "columnLineage": ("1-2-0", "ColumnLineageDatasetFacet"),
    "dataQualityAssertions": ("1-1-0", "DataQualityAssertionsDatasetFacet"),
    "dataQualityMetrics": ("1-0-3", "DataQualityMetricsInputDatasetFacet"),
    "documentation": ("1-1-0", "DocumentationJobFacet"),
    "errorMessage": ("1-0-1", "ErrorMessageRunFacet"),
    "jobType": ("2-0-4", "JobTypeJobFacet"),
    "nominalTime": ("1-0-1", "NominalTimeRunFacet"),
    "outputStatistics": ("1-0-2", "OutputStatisticsOutputDatasetFacet"),
    "parent": ("1-2-0", "ParentRunFacet"),
    "processing_engine": ("1-1-1", "ProcessingEngineRunFacet"),
    "schema": ("1-2-0", "SchemaDatasetFacet"),
    "version": ("1-0-1", "DatasetVersionDatasetFacet"),
}

Json = dict[str, Any]


class JobRun(msgspec.Struct):
    """A running job. The caller adds its inputs and outputs; the completion event includes them.

    `wanted` is false without a receiver: then nothing need be added.
    """

    wanted: bool
    inputs: list[Json] = []
    outputs: list[Json] = []


class OpenLineage:
    """Sends events to `target`: a path, an http(s) URL, or empty for none. Counts sent and unsent events."""

    def __init__(self, target: str, clock: Clock, *, to: Receiver | None = None, namespace: str = "loopwright") -> None:
        self.target, self.sent, self.unsent = target, 0, 0
        self._to, self._namespace = (to or Receiver(target))._replace(url=_endpoint(target)), namespace
        self._clock, self._resting_until = clock, float("-inf")

    @contextmanager
    def run(self, job: str, *, kind: str, about: str = "", facets: Mapping[str, Json] | None = None) -> Iterator[JobRun]:
        """Emit the start of `job`, and at the end of the block its completion, failure (an exception) or abort.

        `kind` is the type of job (INGESTION, STEP), `about` its description; `facets` are further facets of the run.
        """
        run = JobRun(bool(self.target))
        if not run.wanted:
            yield run
            return
        about_job = {"documentation": facet("documentation", description=about)} if about else {}
        job_type = facet("jobType", processingType="BATCH", integration="LOOPWRIGHT", jobType=kind)
        named = {"namespace": NAMESPACE, "name": job, "facets": {"jobType": job_type, **about_job}}
        id = run_id(new_id(self._clock.now()))
        told = {"processing_engine": facet("processing_engine", name="loopwright", version=_version()), **(facets or {})}
        self._tell("START", named, id, told, run)
        try:
            yield run
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"[:2000]
            told["errorMessage"] = facet("errorMessage", message=text, programmingLanguage="Python")
            self._tell("FAIL" if isinstance(error, Exception) else "ABORT", named, id, told, run)
            raise
        self._tell("COMPLETE", named, id, told, run)

    def _tell(self, type: str, job: Json, id: str, facets: Json, run: JobRun) -> None:
        event = {
            "eventType": type,
            "eventTime": self._clock.now().isoformat(),
            "run": {"runId": id, "facets": facets},
            "job": job,
            "inputs": run.inputs,
            "outputs": run.outputs,
            "producer": _producer(),
            "schemaURL": _EVENT,
        }
        self._send(msgspec.json.encode(_renamed(event, self._namespace)))

    def _send(self, body: bytes) -> None:
        now = self._clock.monotonic()
        if now < self._resting_until:
            self.unsent += 1
            return
        try:
            if self.target.startswith(("http://", "https://")):
                post(self._to, body, limit=EVENT_BYTES)
            else:
                _append(Path(self.target), body)
            self.sent += 1
        except (AddressRefused, OSError) as error:
            self.unsent += 1
            self._resting_until = now + REST_SECONDS
            LOG.warning("OpenLineage: an event could not be sent (not sent so far: %d): %s", self.unsent, str(error)[:300])


def of_settings(settings: Settings, clock: Clock) -> OpenLineage:
    """The receiver of events in the settings."""
    to = receiver(settings, "openlineage")
    return OpenLineage(settings.openlineage, clock, to=to, namespace=settings.openlineage_namespace)


def problem(target: str, to: Receiver | None = None) -> str:
    """Why events to `target` would fail, as far as can be checked without sending one; empty if nothing is wrong."""
    try:
        if target.startswith(("http://", "https://")):
            return receiver_problem(to or target)
        if target:
            _append(Path(target), b"")
    except (AddressRefused, OSError) as error:
        return str(error)
    return ""


def run_id(id: str) -> str:
    """One of our ids as the UUID (version 7, RFC 9562) of a run: the same for the same id."""
    number = int(id, 16) & ~(0xF << 76) & ~(0x3 << 62)
    return str(uuid.UUID(int=number | 7 << 76 | 2 << 62))


def facet(name: str, /, **fields: Any) -> Json:
    """A facet by its name in the specification, with its producer and its schema."""
    version, schema = _FACETS[name]
    return {"_producer": _producer(), "_schemaURL": f"{_SPEC}facets/{version}/{schema}.json#/$defs/{schema}", **fields}


def part_of(turn: str, loop: str) -> Json:
    """The facet of a run that is a step of a turn."""
    return facet("parent", run={"runId": run_id(turn)}, job={"namespace": NAMESPACE, "name": loop})


# --- datasets --------------------------------------------------------------------------------------------------------


def table_name(lake: str, name: str) -> tuple[str, str]:
    """Namespace and name of a table in the lake at `lake` (a folder or an URL)."""
    url = urlsplit(lake)
    if url.scheme and url.netloc:
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}", f"{url.path.strip('/')}/{name}".lstrip("/")
    return "file", str(Path(lake).absolute() / name)


def table(lake: str, name: str, version: int, columns: Mapping[str, Column] | None = None) -> Json:
    """A version of a table of the lake at `lake`; with the columns of its contract, where they are known."""
    namespace, name = table_name(lake, name)
    facets = {"version": facet("version", datasetVersion=str(version))}
    if columns is not None:
        facets["schema"] = _schema((n, c.type, c.description) for n, c in columns.items())
    return {"namespace": namespace, "name": name, "facets": facets}


def source(name: str, digest: str, path: Path | None = None) -> Json:
    """Dataset of an ingested source: a file by its path, anything else by its name."""
    where = ("file", str(path.absolute())) if path is not None else (NAMESPACE, f"source.{name}")
    return {"namespace": where[0], "name": where[1], "facets": {"version": facet("version", datasetVersion=digest)}}


def judged(rows: int, reasons: Mapping[str, int], columns: Iterable[str]) -> Json:
    """The input facets of a source that a contract judged: number of rows, and of faults per column and kind.

    `reasons` maps `COLUMN: RULE` to the rows that broke it.
    """
    broken = [(reason.partition(": "), count) for reason, count in reasons.items() if count]
    of_columns = [
        {"assertion": rule or column, "success": False, "actual": str(count), **({"column": column} if rule else {})}
        for (column, _, rule), count in broken
    ]
    well = sorted(set(columns) - {column for (column, _, _), _ in broken})
    assertions = of_columns + [{"assertion": "contract", "success": True, "column": column} for column in well]
    return {
        "dataQualityMetrics": facet("dataQualityMetrics", rowCount=rows, columnMetrics={}),
        "dataQualityAssertions": facet("dataQualityAssertions", assertions=assertions),
    }


def examples(loop: str, made: Examples) -> Json:
    """Examples of a loop, with the columns that features may see."""
    columns = {**made.request, **made.context}
    fields = [*((n, c.type, c.description) for n, c in columns.items()), (LABEL, "label", "")]
    facets = {"version": facet("version", datasetVersion=made.digest), "schema": _schema(fields)}
    return {"namespace": NAMESPACE, "name": f"{loop}.examples", "facets": facets}


def package(loop: str, digest: str, manifest: Manifest) -> Json:
    """A package, with its features and the columns of the examples that each is computed from."""
    used = manifest.lineage.features
    how = _how("DIRECT", "TRANSFORMATION")
    origin = {"namespace": NAMESPACE, "name": f"{loop}.examples", "transformations": [how]}
    columns = {name: {"inputFields": [{**origin, "field": c} for c in columns]} for name, columns in used.items()}
    facets = {
        "version": facet("version", datasetVersion=digest),
        "schema": _schema((name, "feature", "") for name in used),
        "columnLineage": facet("columnLineage", fields=columns),
    }
    segment = f".{manifest.segment.value}" if manifest.segment is not None else ""
    return {"namespace": NAMESPACE, "name": f"{loop}.package.{manifest.candidate}{segment}", "facets": facets}


def origins(made: Lineage, lake: str) -> Json:
    """The facet of examples that leads their columns, and the label, back to columns of tables in the lake at `lake`."""

    def field(column: str, type: str, subtype: str, description: str) -> Json:
        table, _, name = column.rpartition(".")
        namespace, dataset = table_name(lake, table)
        return {"namespace": namespace, "name": dataset, "field": name, "transformations": [_how(type, subtype, description)]}

    def fields(origin: Origin, subtype: str) -> list[Json]:
        direct = [field(column, "DIRECT", subtype, origin.how) for column in origin.of]
        return direct + [field(column, "INDIRECT", "JOIN", "") for column in origin.by]

    found = {n: {"inputFields": fields(o, "AGGREGATION" if o.how else "IDENTITY")} for n, o in made.columns.items()}
    label = [f for origin in made.labels.values() for f in fields(origin, "TRANSFORMATION")]
    return facet("columnLineage", fields={**found, LABEL: {"inputFields": label}})


def copied(made: Json, read: Json, columns: Mapping[str, str]) -> Json:
    """A dataset whose columns (name -> name there) are unchanged copies of another's."""
    origin = {"namespace": read["namespace"], "name": read["name"], "transformations": [_how("DIRECT", "IDENTITY")]}
    fields = {name: {"inputFields": [{**origin, "field": there}]} for name, there in columns.items()}
    return {**made, "facets": {**made["facets"], "columnLineage": facet("columnLineage", fields=fields)}}


def written(dataset: Json, rows: int) -> Json:
    """A dataset as output: how many rows were written."""
    return {**dataset, "outputFacets": {"outputStatistics": facet("outputStatistics", rowCount=rows)}}


def _how(type: str, subtype: str, description: str = "") -> Json:
    return {"type": type, "subtype": subtype, "description": description, "masking": False}


def _schema(fields: Iterable[tuple[str, str, str]]) -> Json:
    said = [
        {"name": name, "type": type, **({"description": description} if description else {})}
        for name, type, description in fields
    ]
    return facet("schema", fields=said)


# --- sending ---------------------------------------------------------------------------------------------------------


def _endpoint(url: str) -> str:
    """The URL of a receiver; without a path, that of the specification's HTTP API."""
    return url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/api/v1/lineage"


def _renamed(value: Any, namespace: str) -> Any:
    """An event whose names in our own namespace are in another one, by a setting."""
    if namespace == NAMESPACE:
        return value
    if isinstance(value, Mapping):
        return {
            key: namespace if key == "namespace" and each == NAMESPACE else _renamed(each, namespace)
            for key, each in value.items()
        }
    return [_renamed(each, namespace) for each in value] if isinstance(value, list | tuple) else value


def _append(path: Path, line: bytes) -> None:
    """One line in one write, so that processes which write to the same file do not mix theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        if line:
            os.write(file, line + b"\n")
    finally:
        os.close(file)


@cache  # read from disk, and part of every facet
def _version() -> str:
    return importlib.metadata.version("loopwright")


def _producer() -> str:
    return f"urn:loopwright:{_version()}"
