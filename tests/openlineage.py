"""OpenLineage events read strictly: by the classes that the OpenLineage project generates from its published JSON schema."""

import re
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import attr
import msgspec
from openlineage.client import facet_v2 as facets
from openlineage.client.generated import base

Json = dict[str, Any]

FACETS: dict[str, dict[str, Any]] = {
    "run": {
        "parent": facets.parent_run.ParentRunFacet,
        "nominalTime": facets.nominal_time_run.NominalTimeRunFacet,
        "errorMessage": facets.error_message_run.ErrorMessageRunFacet,
        "processing_engine": facets.processing_engine_run.ProcessingEngineRunFacet,
    },
    "job": {
        "jobType": facets.job_type_job.JobTypeJobFacet,
        "documentation": facets.documentation_job.DocumentationJobFacet,
    },
    "dataset": {
        "schema": facets.schema_dataset.SchemaDatasetFacet,
        "version": facets.dataset_version_dataset.DatasetVersionDatasetFacet,
        "columnLineage": facets.column_lineage_dataset.ColumnLineageDatasetFacet,
    },
    "input": {
        "dataQualityMetrics": facets.data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet,
        "dataQualityAssertions": facets.data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet,
    },
    "output": {"outputStatistics": facets.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet},
}


def events(path: Path) -> list[Json]:
    """Every event of a file, each checked."""
    found = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    for event in found:
        check(event)
    return found


def check(event: Json) -> None:
    """AssertionError naming the place where an event is not as the specification says."""
    assert event["eventType"] in {t.value for t in base.EventType}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+\d\d:\d\d)", event["eventTime"])
    fits(event, base.RunEvent, "event")
    assert event["schemaURL"] == base.RunEvent._get_schema()
    _facets(event["run"].get("facets", {}), "run")
    _facets(event["job"].get("facets", {}), "job")
    for side, key in (("input", "inputs"), ("output", "outputs")):
        for dataset in event[key]:
            _facets(dataset.get("facets", {}), "dataset")
            _facets(dataset.get(f"{side}Facets", {}), side)


def _facets(found: Json, kind: str) -> None:
    for name, value in found.items():
        type = FACETS[kind][name]
        fits(value, type, f"{kind} facet {name}")
        assert value["_schemaURL"] == type._get_schema()
        assert re.match(r"[a-z][a-z0-9+.-]*:\S+$", value["_producer"]), "a URI"


def fits(value: Any, type: Any, where: str) -> None:
    """Whether JSON is of a type: every required field there, none that is unknown, each of its own type, none null."""
    origin, arguments = typing.get_origin(type), typing.get_args(type)
    if origin in (types.UnionType, typing.Union):
        [inner] = [a for a in arguments if a is not types.NoneType]
        fits(value, inner, where)
    elif origin is list:
        assert isinstance(value, list), where
        for i, item in enumerate(value):
            fits(item, arguments[0], f"{where}[{i}]")
    elif origin is dict:
        assert isinstance(value, dict), where
        if arguments[1] not in (
            base.RunFacet,
            base.JobFacet,
            base.DatasetFacet,
            base.InputDatasetFacet,
            base.OutputDatasetFacet,
        ):
            for name, item in value.items():
                fits(item, arguments[1], f"{where}.{name}")
    elif attr.has(type):
        _object(value, type, where)
    elif isinstance(type, types.GenericAlias) or type is Any:
        return
    elif issubclass(type, Enum):
        assert value in {t.value for t in type}, where
    else:
        assert isinstance(value, (int, float) if type is float else type), f"{where}: {value!r} is no {type}"
        assert type is bool or not isinstance(value, bool), where


def _object(value: Any, type: Any, where: str) -> None:
    assert isinstance(value, dict), where
    hints = typing.get_type_hints(type)
    fields = {a.name: a for a in attr.fields(type)}
    assert value.keys() <= fields.keys(), f"{where}: unknown {value.keys() - fields.keys()}"
    required = {n for n, a in fields.items() if a.default is attr.NOTHING} | ({"_producer", "_schemaURL"} & fields.keys())
    assert required <= value.keys(), f"{where}: without {required - value.keys()}"
    for name, item in value.items():
        fits(item, hints[name], f"{where}.{name}")
    with_validators = {n: v for n, v in value.items() if fields[n].validator is not None}
    for name, item in with_validators.items():
        fields[name].validator(None, fields[name], item)
