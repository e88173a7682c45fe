"""An OpenAPI 3.1 description of the data plane, generated from the contracts of the loops in service."""

from collections.abc import Collection, Iterable
from typing import Any

from loopwright.deploy.services import InService
from loopwright.records.declarations import Column
from loopwright.records.package import Output

_TYPES: dict[str, dict[str, Any]] = {
    "float": {"type": "number"},
    "integer": {"type": "integer", "format": "int64"},
    "boolean": {"type": "boolean"},
    "string": {"type": "string"},
    "timestamp": {"type": "string", "format": "date-time"},
    "array": {"type": "number", "format": "float"},
}
_ID = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "fields": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"field": {"type": "string"}, "reason": {"type": "string"}},
                    },
                },
                "id": {"type": "string"},
            },
        }
    },
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": _ID,
        "score": {"type": "number"},
        "label": {"type": ["boolean", "string", "null"]},
        "package": {"type": "string"},
        "arm": {"type": "string"},
        "flags": {"type": "array", "items": {"type": "string"}},
        "segment": {"type": "string", "description": "the segment whose own package answered; absent where the loop's did"},
    },
}


def answer_schema(output: Output) -> dict[str, Any]:
    """The JSON schema of an answer of a package with this output."""
    number: dict[str, Any] = {"type": "number"}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    label: dict[str, Any] = {"type": "boolean"}
    if output.task == "multiclass":
        label = {"type": "string", "enum": output.classes}
    elif output.task in ("regression", "ranking"):
        label = {"type": "null"}
    each = probability if output.task in ("binary", "multiclass") else number
    values = {"type": "object", "properties": dict.fromkeys(output.names, each), "additionalProperties": False}
    own = {"score": each, "label": label} | ({"values": values} if output.names else {})
    return {**_ANSWER, "properties": {**_ANSWER["properties"], **own}}


def describe(version: str, services: Iterable[InService]) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": _ERROR}
    for service in services:
        loop, manifest = service.state.loop, service.predictor.package.manifest
        schemas[f"{loop}.answer"] = answer_schema(manifest.output)
        schemas[f"{loop}.request"] = _object(manifest.request, optional=manifest.may_lack)
        paths[f"/loops/{loop}/predict"] = {
            "post": _operation(
                f"Predict for {loop}", f"{loop}.request", "200", _one_or_many({"$ref": f"#/components/schemas/{loop}.answer"})
            )
        }
        if service.outcomes is not None:
            table = service.outcomes.table
            outcome = _object(table.columns, optional={*table.key, table.event_time, table.known})
            outcome["properties"] = {"id": _ID, "known_at": _TYPES["timestamp"], **outcome["properties"]}
            schemas[f"{loop}.outcome"] = outcome
            accepted = {"type": "object", "properties": {"accepted": {"type": "integer"}}}
            paths[f"/loops/{loop}/outcomes"] = {"post": _operation(f"Outcomes of {loop}", f"{loop}.outcome", "202", accepted)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "loopwright", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def column_schema(column: Column) -> dict[str, Any]:
    """The JSON schema of one column. Ranges and categories are described, not enforced: outside of them is flagged."""
    schema = dict(_TYPES[column.type])
    for length in reversed(column.shape or []):
        schema = {"type": "array", "items": schema, "minItems": length, "maxItems": length}
    if column.nullable:
        schema["type"] = [schema["type"], "null"]
    notes = [column.description] if column.description else []
    if column.minimum is not None or column.maximum is not None:
        notes.append(f"expected from {column.minimum} to {column.maximum}; flagged outside")
    if column.categories is not None:
        notes.append(f"expected: {', '.join(column.categories)}; others are flagged")
    return {**schema, "description": "; ".join(notes)} if notes else schema


def _object(columns: dict[str, Column], optional: Collection[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name in columns if name not in optional],
        "properties": {name: column_schema(column) for name, column in columns.items()},
    }


def _one_or_many(schema: dict[str, Any]) -> dict[str, Any]:
    return {"oneOf": [schema, {"type": "array", "items": schema, "maxItems": 10_000}]}


def _operation(summary: str, request: str, status: str, answer: dict[str, Any]) -> dict[str, Any]:
    body = {"application/json": {"schema": _one_or_many({"$ref": f"#/components/schemas/{request}"})}}
    error = {"description": "refused", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": body},
        "responses": {
            status: {"description": "answered", "content": {"application/json": {"schema": answer}}},
            "4XX": error,
            "5XX": error,
        },
    }
