"""An OpenAPI 3.1 description of the data plane, generated from the contracts of the loops in service."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from loopwright.deploy.serving.explanations import BEFORE
from loopwright.deploy.serving.registry import InService
from loopwright.records.declarations import Column
from loopwright.records.package import Manifest, Output
from loopwright.server.api.oip import DATATYPES, outputs
from loopwright.server.api.repository import NOT_LOADED
from loopwright.stores.outcomes.contract import KNOWN_AT, OutcomeContract

_TYPES: dict[str, dict[str, Any]] = {
    "float": {"type": "number"},
    "integer": {"type": "integer", "format": "int64"},
    "boolean": {"type": "boolean"},
    "string": {"type": "string"},
    "timestamp": {"type": "string", "format": "date-time"},
    "array": {"type": "number", "format": "float"},
}
_TEXT, _INTEGER = {"type": "string"}, {"type": "integer"}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _record(optional: Collection[str] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object: its properties, all required but those of `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object"} | ({"required": required} if required else {}) | {"properties": properties}


_ID = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_PREDICTION = {**_ID, "description": "that of the prediction; the key will do, too"}
_PACKAGE = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_ABOUT_ERROR = {"code": _TEXT, "message": _TEXT, "fields": _array(_record(field=_TEXT, reason=_TEXT)), "id": _TEXT}
_ERROR = _record(error=_record(**_ABOUT_ERROR))
_OIP_ERROR = _record(_ABOUT_ERROR, error=_TEXT, **_ABOUT_ERROR)
_SEGMENT = {"type": "string", "description": "the segment whose own package answered; absent where the loop's did"}
_ANSWER = _record(
    ("segment",),
    id=_ID,
    score={"type": "number"},
    label={"type": ["boolean", "string", "null"]},
    package=_PACKAGE,
    arm=_TEXT,
    flags=_array(_TEXT),
    segment=_SEGMENT,
)
_REASONS: dict[str, Any] = {
    "contributions": {
        "type": "object",
        "additionalProperties": {"type": "number"},
        "description": "with `explain=true`: what each feature contributed; they and `base` add up to the raw score, in `unit`",
    },
    "base": {"type": "number"},
    "unit": _TEXT,
    "of": {"type": "string", "description": "the output that is explained, where there are several"},
    "why": {"type": "string", "description": "why there are no contributions"},
}
_TENSOR = _record(
    ("parameters", "data"), name=_TEXT, datatype=_TEXT, shape=_array(_INTEGER), parameters={"type": "object"}, data=_array({})
)
_OIP_ANSWER = _record(model_name=_TEXT, model_version=_PACKAGE, id=_TEXT, outputs=_array(_TENSOR))
_OIP_MODEL = _record(name=_TEXT, versions=_array(_PACKAGE), platform=_TEXT, inputs=_array(_TENSOR), outputs=_array(_TENSOR))
_STATISTICS = _record(
    model_stats=_array(
        _record(
            name=_TEXT, version=_PACKAGE, inference_count=_INTEGER, execution_count=_INTEGER, inference_stats={"type": "object"}
        )
    )
)
_CONFIG_TENSOR = _record(name=_TEXT, data_type=_TEXT, dims=_array(_INTEGER))
_CONFIG = _record(name=_TEXT, platform=_TEXT, backend=_TEXT, input=_array(_CONFIG_TENSOR), output=_array(_CONFIG_TENSOR))
_STATE = {"type": "string", "enum": ["READY", "UNAVAILABLE"]}
_INDEX = _array(_record(("version", "reason"), name=_TEXT, version=_TEXT, state=_STATE, reason=_TEXT))
_TAKEN = {"id": _TEXT, "prediction": _TEXT, "unit": _TEXT, "flags": _array(_TEXT)}
_ACCEPTED = _record(accepted=_INTEGER, outcomes=_array(_record(_TAKEN, **_TAKEN)))
_READY = _record(ready={"type": "boolean"})
_JSON = "application/json"
_BINARY_LENGTH = "the length of the JSON part of a body with binary tensors"
_VERSION = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{1,64}$"},
    "description": "the package that serves, or the beginning of its digest",
}
_REFUSALS = {
    400: "the request cannot be read",
    401: "a token is required",
    404: "nothing is served at this path",
    405: "this path does not allow that method; the header `Allow` names those it does",
    408: "the request did not come to its end in time",
    421: "this server does not answer for that host",
    429: "too many wrong tokens came from this address",
    431: "the headers are larger than 16 KiB",
    500: "something failed; the server's own log says what",
    503: "more load than can be held, or nothing that could answer",
}
_REFUSED_BODIES = {
    409: "the id was given to another request",
    413: "more than 10 MiB, or more than 10,000 rows",
    415: "not JSON by its type, or compressed",
    422: "what breaks the contract, field by field",
}
_REFUSED_WITH = {
    401: {"WWW-Authenticate": {"schema": _TEXT}},
    405: {"Allow": {"schema": _TEXT}},
    429: {"Retry-After": {"schema": {"type": "integer"}}},
    503: {"Retry-After": {"schema": {"type": "integer"}}},
}


def answer_schema(output: Output) -> dict[str, Any]:
    """The JSON schema of an answer of a package with this output."""
    number: dict[str, Any] = {"type": "number"}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    label: dict[str, Any] = {"type": "boolean"}
    if output.shape.has_classes:
        label = {"type": "string", "enum": output.classes}
    elif not output.shape.answer:
        label = {"type": "null"}
    each = probability if output.shape.is_probability else number
    values = {"type": "object", "properties": dict.fromkeys(output.names, each), "additionalProperties": False}
    own = {"score": each, "label": label} | ({"values": values} if output.names else {})
    return {**_ANSWER, "properties": {**_ANSWER["properties"], **own, **_REASONS}}


def _explained(manifest: Manifest) -> tuple[str, list[dict[str, Any]]]:
    """The operation's text on explanations, and the query parameter that requests them, if the package has them."""
    told = manifest.explained
    if told is None or told.why:
        return f"Answers are not explained: {BEFORE if told is None else told.why}.", []
    how = f"With `explain=true` an answer has the contribution of each feature ({told.method}); with the base they add up"
    parameter = {"name": "explain", "in": "query", "schema": {"type": "boolean", "default": False}}
    return f"{how} to the raw score, in the unit {told.unit!r}.", [parameter]


def describe(version: str, services: Iterable[InService]) -> dict[str, Any]:
    """The whole document."""
    paths = _server_paths()
    schemas = {"Error": _ERROR, "ProtocolError": _OIP_ERROR, "Tensors": _OIP_ANSWER, "Model": _OIP_MODEL, "Ready": _READY}
    for service in services:
        loop, manifest = service.state.loop, service.predictor.package.manifest
        schemas[f"{loop}.answer"] = answer_schema(manifest.output)
        schemas[f"{loop}.request"] = {
            **_object(manifest.request, optional=manifest.may_lack),
            "description": f"may be left out: {', '.join(n for n in manifest.request if n in manifest.may_lack)}",
            "examples": [service.predictor.example],
        }
        schemas[f"{loop}.tensors"] = _tensors(manifest)
        answer = _one_or_many(_ref(f"{loop}.answer"))
        explained, explain = _explained(manifest)
        paths[f"/loops/{loop}/predict"] = {
            "post": _operation(
                f"Predict for {loop}",
                {"200": _answered(answer, traced=True)},
                body={_JSON: _one_or_many(_ref(f"{loop}.request"))},
                parameters=[*_request_headers(), *explain],
                description=explained,
            )
        }
        paths[f"/loops/{loop}/ready"] = {"get": _operation(f"Whether {loop} can be served", {"200": _answered(_ref("Ready"))})}
        if service.outcomes is not None:
            contract = OutcomeContract(service.outcomes.table)
            outcome = _object(contract.table.columns, optional=contract.optional)
            outcome["properties"] = {contract.fields[0]: _PREDICTION, KNOWN_AT: _TYPES["timestamp"], **outcome["properties"]}
            schemas[f"{loop}.outcome"] = outcome
            paths[f"/loops/{loop}/outcomes"] = {
                "post": _operation(
                    f"Outcomes of {loop}", {"202": _answered(_ACCEPTED)}, body={_JSON: _one_or_many(_ref(f"{loop}.outcome"))}
                )
            }
        paths[f"/v1/models/{loop}"] = {
            "get": _operation(f"Whether {loop} is ready", {"200": _answered(_ref("Ready"))}, oip=True)
        }
        paths[f"/v1/models/{loop}:predict"] = {"post": predict_instances(loop)}
        for action in ("load", "unload"):
            paths[f"/v2/repository/models/{loop}/{action}"] = {"post": _operation(f"Refused: {NOT_LOADED}", {}, oip=True)}
        for place, parameters in ((f"/v2/models/{loop}", []), (f"/v2/models/{loop}/versions/{{version}}", [_VERSION])):
            paths |= _model_paths(loop, place, parameters)
    _name_operations(paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "loopwright", "version": version},
        "servers": [{"url": "/", "description": "the server that this document comes from"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "asked for beyond loopback"}},
        },
    }


def _server_paths() -> dict[str, Any]:
    """The paths without a loop."""
    alive, live = _record(status={"type": "string", "enum": ["alive"]}), _record(live={"type": "boolean"})
    models, server = _record(models=_array(_TEXT)), _record(name=_TEXT, version=_TEXT, extensions=_array(_TEXT))
    text = {"description": "in Prometheus's text format", "content": {"text/plain": {"schema": _TEXT}}}
    ready = {"200": _answered(_ref("Ready")), "503": {**_answered(_ref("Ready")), "description": "not yet, or no longer"}}
    described = {
        "/": _operation("Whether the server lives, as protocol V1 has it", {"200": _answered(alive)}),
        "/livez": _operation("Whether the server lives", {"200": _answered(live)}),
        "/readyz": _operation("Whether every loop can be served", ready),
        "/v2/health/live": _operation("Whether the server lives", {"200": _answered(live)}, oip=True),
        "/v2/health/ready": _operation("Whether every loop can be served", ready, oip=True),
        "/v2": _operation("Name, version and extensions", {"200": _answered(server)}, oip=True),
        "/v2/": _operation("Name, version and extensions", {"200": _answered(server)}, oip=True),
        "/v2/models/stats": _operation("Statistics of the loops in memory", {"200": _answered(_STATISTICS)}, oip=True),
        "/v1/models": _operation("The loops that are to be served", {"200": _answered(models)}, oip=True),
        "/metrics": _operation("Metrics", {"200": text}),
        "/openapi.json": _operation("This document", {"200": _answered({"type": "object"})}),
    }
    index = {"post": _operation("The loops and what serves them", {"200": _answered(_INDEX)}, oip=True)}
    return {path: {"get": operation} for path, operation in described.items()} | {"/v2/repository/index": index}


def _name_operations(paths: dict[str, Any]) -> None:
    """Give each operation an id that code generators can use, such as `post_loops_late_arrival_predict`."""
    names: set[str] = set()
    for path, operations in paths.items():
        for method, operation in operations.items():
            name = plain = re.sub("[^A-Za-z0-9]+", "_", f"{method}{path}").strip("_")
            count = 1
            while name in names:
                count += 1
                name = f"{plain}_{count}"
            names.add(name)
            operation["operationId"] = name


def predict_instances(loop: str) -> dict[str, Any]:
    """Protocol V1's prediction."""
    rows = {"type": "array", "items": _ref(f"{loop}.request"), "minItems": 1, "maxItems": 10_000}
    body, answered = _record(instances=rows), _record(predictions=_array(_ref(f"{loop}.answer")))
    summary = f"Predict for {loop}, by protocol V1"
    return _operation(
        summary, {"200": _answered(answered, traced=True)}, body={_JSON: body}, parameters=_request_headers(), oip=True
    )


def _model_paths(loop: str, place: str, parameters: list[Any]) -> dict[str, Any]:
    """The Open Inference Protocol's paths of a loop, at `place`."""
    answer = _answered(_ref("Tensors"), traced=True)
    answer["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    answer["headers"]["Inference-Header-Content-Length"] = {"schema": {"type": "integer"}, "description": _BINARY_LENGTH}
    length = _header("Inference-Header-Content-Length", {"type": "integer", "minimum": 2}, _BINARY_LENGTH)
    infer = _operation(
        f"Predict for {loop}, in tensors",
        {"200": answer},
        body={_JSON: _ref(f"{loop}.tensors"), "application/octet-stream": {"type": "string", "format": "binary"}},
        parameters=[*parameters, *_request_headers(), length],
        oip=True,
    )
    return {
        place: {"get": _operation(f"Tensors of {loop}", {"200": _answered(_ref("Model"))}, parameters=parameters, oip=True)},
        f"{place}/ready": {
            "get": _operation(f"Whether {loop} is ready", {"200": _answered(_ref("Ready"))}, parameters=parameters, oip=True)
        },
        f"{place}/config": {
            "get": _operation(f"Configuration of {loop}", {"200": _answered(_CONFIG)}, parameters=parameters, oip=True)
        },
        f"{place}/stats": {
            "get": _operation(f"Statistics of {loop}", {"200": _answered(_STATISTICS)}, parameters=parameters, oip=True)
        },
        f"{place}/infer": {"post": infer},
    }


def _tensors(manifest: Manifest) -> dict[str, Any]:
    """The JSON schema of an inference request: one tensor per column."""
    types = sorted({t for column in manifest.request.values() for t in DATATYPES[column.type]})
    tensor = {
        **_TENSOR,
        "properties": {
            **_TENSOR["properties"],
            "name": {"type": "string", "enum": list(manifest.request)},
            "datatype": {"type": "string", "enum": types},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        },
    }
    names = {"type": "string", "enum": list(outputs(manifest.output))}
    return _record(
        ("id", "parameters", "outputs"),
        id=_TEXT,
        parameters={"type": "object"},
        inputs={**_array(tensor), "minItems": 1},
        outputs=_array(_record(("parameters",), name=names, parameters={"type": "object"})),
    )


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


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _request_headers() -> list[dict[str, Any]]:
    """The headers that control a prediction."""
    return [
        _header("X-Request-Id", {"type": "string", "pattern": "^[!-~]{1,128}$"}, "the id; the same again gets the same answer"),
        _header(
            "traceparent",
            _TEXT,
            "W3C trace context (00-TRACE-SPAN-FLAGS): its trace id becomes the prediction's id; an invalid one is ignored",
        ),
        _header(
            "X-Timeout-Ms", {"type": "integer", "minimum": 0, "maximum": 999_999_999}, "deadline: then the heuristic answers"
        ),
    ]


def _answered(schema: dict[str, Any], *, traced: bool = False) -> dict[str, Any]:
    response: dict[str, Any] = {"description": "answered", "content": {_JSON: {"schema": schema}}}
    if traced:
        response["headers"] = {
            "X-Request-Id": {"schema": _TEXT, "description": "the id, where there is one of the whole request"},
            "traceresponse": {"schema": _TEXT, "description": "where traceparent was given: the span that answered"},
        }
    return response


def _operation(
    summary: str,
    answers: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    parameters: Sequence[dict[str, Any]] = (),
    description: str = "",
    oip: bool = False,
) -> dict[str, Any]:
    content = {_JSON: {"schema": _ref("ProtocolError" if oip else "Error")}}
    refusals = {**_REFUSALS, **(_REFUSED_BODIES if body is not None else {})}
    responses = {
        str(status): {"description": why, "content": content}
        | ({"headers": _REFUSED_WITH[status]} if status in _REFUSED_WITH else {})
        for status, why in sorted(refusals.items())
    }
    operation: dict[str, Any] = {"summary": summary, "responses": responses | answers}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {media: {"schema": schema} for media, schema in body.items()}}
    if description:
        operation["description"] = description
    if parameters:
        operation["parameters"] = list(parameters)
    return operation
