"""Import and export of contracts in the Open Data Contract Standard v3 (Bitol, https://bitol-io.github.io/open-data-contract-standard).

One table is one contract with one schema object. Facts that the standard has no field for become custom properties, so that a
contract survives a round trip unchanged; of a foreign contract, what a table can hold is imported, and the rest
is reported.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from loopwright.base.errors import DeclarationInvalid, FileMissing, UsageError
from loopwright.records.declarations import Column, ColumnType, Table, declaration_digest

API_VERSION = "v3.1.0"
LARGEST = 1 << 20
DEEPEST = 50

_LOGICAL: dict[str, str] = {
    "float": "number",
    "integer": "integer",
    "boolean": "boolean",
    "string": "string",
    "timestamp": "timestamp",
    "array": "array",
}
_TYPES: dict[str, ColumnType] = {
    "number": "float",
    "integer": "integer",
    "boolean": "boolean",
    "string": "string",
    "timestamp": "timestamp",
    "date": "timestamp",
    "array": "array",
}
_OURS = "loopwright"
_Facts = dict[str, Any]


class _Property(msgspec.Struct, rename="camel"):
    """The fields of a property that are read, with their types; the object and the contract below are alike."""

    name: str
    logical_type_options: _Facts | None = None
    primary_key_position: int | None = None
    tags: list[Any] | None = None
    quality: list[_Facts] | None = None
    custom_properties: list[_Facts] | None = None


class _Object(msgspec.Struct, rename="camel"):
    name: str
    properties: list[_Property] | None = None
    custom_properties: list[_Facts] | None = None


class _Document(msgspec.Struct, rename="camel"):
    schema: list[_Object] | None = None


def write(table: Table, file: Path) -> None:
    """Write a contract to a file: YAML, or JSON where the name ends in .json."""
    document = to_odcs(table)
    if file.suffix.lower() == ".json":
        text = msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"
    else:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    file.write_text(text, encoding="utf-8")


def read(file: Path, name: str = "") -> tuple[Table, list[str]]:
    """Read a contract file: the table of its schema object `name` (the only one if empty), and the facts that a table cannot hold.

    Raises FileMissing, UsageError when the file cannot be read, DeclarationInvalid when the contract is not a valid table.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UsageError(f"{file.name} is larger than a contract can be ({LARGEST >> 20} MiB)")
        _check_shape(data, file.name)
        document = yaml.safe_load(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileMissing(file) from error
    except OSError as error:
        raise UsageError(f"{file.name} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number or date that Python does not take
        raise UsageError(f"{file.name} is neither YAML nor JSON: {str(error).splitlines()[0]}") from error
    return from_odcs(document, name)


def _check_shape(data: bytes, name: str) -> None:
    """Raise UsageError for a document that would explode when expanded: by its aliases, or by its depth."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{name} uses YAML aliases, which can expand without limit: write the values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UsageError(f"{name} is nested more than {DEEPEST} levels deep, too deep for a data contract")


def to_odcs(table: Table) -> dict[str, Any]:
    """A contract as a document of the standard."""
    times = {"eventTime": table.event_time, "knownTime": table.known_time, "knownAfter": table.known_after}
    schema = {
        "name": table.name,
        "logicalType": "object",
        "physicalType": "table",
        "description": table.description,
        "properties": [_property(name, column, table) for name, column in table.columns.items()],
        "customProperties": _custom({**times, "ignore": table.ignore}),
    }
    return {
        "version": f"1.0.0+{declaration_digest(table)[:12]}",
        "apiVersion": API_VERSION,
        "kind": "DataContract",
        "id": table.name,
        "name": table.name,
        "status": "active",
        "schema": [_without_empty(schema)],
    }


def _property(name: str, column: Column, table: Table) -> dict[str, Any]:
    options = {"minimum": column.minimum, "maximum": column.maximum}
    written = column.format if column.type != "timestamp" else None
    if column.type == "timestamp":
        options = {"format": column.format, "timezone": column.zone is None, "defaultTimezone": column.zone}  # type: ignore[dict-item]  # options of a time
    valid = {"metric": "invalidValues", "type": "library", "arguments": {"validValues": column.categories}, "mustBe": 0}
    listed = {"items": {"name": "value", "logicalType": "number"}} if column.type == "array" else {}
    return _without_empty(
        {
            "name": name,
            "physicalName": column.source,
            "logicalType": _LOGICAL[column.type],
            "logicalTypeOptions": _without_empty(options),
            "required": not column.nullable,
            "primaryKey": name in table.key or None,
            "primaryKeyPosition": table.key.index(name) + 1 if name in table.key else None,
            "description": column.description,
            "tags": column.tags,
            **listed,
            "quality": [valid] if column.categories is not None else None,
            "customProperties": _custom(
                {
                    "shape": column.shape,
                    "format": written,
                    "missing": column.missing,
                    "optional": column.optional or None,
                    "filled": column.filled,
                }
            ),
        }
    )


def _without_empty(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts without empty values."""
    return {k: v for k, v in facts.items() if v is not None and v != "" and v != [] and v != {}}


def _custom(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"property": _OURS + k[0].upper() + k[1:], "value": v} for k, v in _without_empty(facts).items()]


def from_odcs(document: Any, name: str = "") -> tuple[Table, list[str]]:
    """The table of a document of the standard (see `read`), and the facts that a table cannot hold."""
    schema = _object(document, name)
    left = [f"{k} of the contract" for k in document if k not in _READ_OF_CONTRACT and document[k]]
    left += [f"{k} of {schema.get('name')}" for k in schema if k not in _READ_OF_OBJECT and schema[k]]
    columns: dict[str, Column] = {}
    keys: dict[str, int] = {}
    problems: list[tuple[str, str]] = []
    for found in schema.get("properties") or []:
        written = str(found.get("name", ""))
        try:
            columns[written] = _column(found, left)
        except DeclarationInvalid as error:
            problems += [(f"properties.{written}.{p.field}", p.reason) for p in error.problems]
        if found.get("primaryKey"):
            keys[written] = int(found.get("primaryKeyPosition") or len(keys) + 1)
    if problems:
        raise DeclarationInvalid("the data contract", problems)
    ours = _ours(schema)
    moments = [n for n, c in columns.items() if c.type == "timestamp" and not c.nullable]
    event_time = ours.get("eventTime") or (moments[0] if moments else "")
    if not event_time:
        why = "no column is a timestamp that is always there: a table needs one that says when a row happened"
        raise DeclarationInvalid("the data contract", [("properties", why)])
    if not keys:
        raise DeclarationInvalid("the data contract", [("properties", "no column has primaryKey: true")])
    if not ours.get("eventTime"):
        left.append(f"which column is the event time: taken was {event_time}")
    table = Table(
        name=name or str(schema.get("physicalName") or schema.get("name")),
        columns=columns,
        key=sorted(keys, key=keys.__getitem__),
        event_time=event_time,
        known_time=ours.get("knownTime"),
        known_after=ours.get("knownAfter", "0s"),
        description=str(schema.get("description") or ""),
        ignore=ours.get("ignore", []),
    )
    try:
        return msgspec.convert(msgspec.to_builtins(table), Table), left
    except msgspec.ValidationError as error:
        raise DeclarationInvalid("the data contract", [("schema", str(error))]) from error


def _object(document: Any, name: str) -> _Facts:
    """The schema object called `name`, or the only one, of a document in the standard's layout."""
    if not isinstance(document, dict) or document.get("kind") != "DataContract":
        raise DeclarationInvalid("the data contract", [("kind", "must be DataContract (Open Data Contract Standard v3)")])
    if not str(document.get("apiVersion", "")).startswith("v3."):
        raise DeclarationInvalid("the data contract", [("apiVersion", f"{document.get('apiVersion')!r} is not v3")])
    try:
        msgspec.convert(document, _Document)
    except msgspec.ValidationError as error:
        raise DeclarationInvalid("the data contract", [("schema", str(error))]) from error
    objects = {o["name"]: o for o in document.get("schema") or []}
    if name not in objects and len(objects) != 1:
        listed = ", ".join(objects) or "none"
        raise DeclarationInvalid("the data contract", [("schema", f"name one of its schema objects: {listed}")])
    return objects[name] if name in objects else next(iter(objects.values()))


_READ_OF_CONTRACT = ("version", "apiVersion", "kind", "id", "name", "status", "schema")
_READ_OF_OBJECT = ("name", "physicalName", "logicalType", "physicalType", "description", "properties", "customProperties")
_READ_OF_PROPERTY = (
    "name", "physicalName", "physicalType", "logicalType", "logicalTypeOptions", "required", "primaryKey", "primaryKeyPosition",
    "description", "tags", "items", "quality", "customProperties",
)  # fmt: skip


def _column(described: dict[str, Any], left: list[str]) -> Column:
    name, logical = described.get("name"), str(described.get("logicalType") or "")
    if logical not in _TYPES:
        known = ", ".join(_TYPES)
        raise DeclarationInvalid("property", [("logicalType", f"{logical or 'none'!r} cannot be a column: one of {known}")])
    left += [f"{k} of column {name}" for k in described if k not in _READ_OF_PROPERTY and described[k]]
    type, options, ours = _TYPES[logical], dict(described.get("logicalTypeOptions") or {}), _ours(described)
    options.pop("timezone", None)
    if type in ("float", "integer"):
        options.pop("format", None)  # a width in bits; ours have 64
    given: dict[str, Any] = {"minimum": options.pop("minimum", None), "maximum": options.pop("maximum", None)}
    zone, form = options.pop("defaultTimezone", None), options.pop("format", None) if type == "timestamp" else None
    if form is not None and "%" not in form and form not in ("unix", "unix_ms"):
        left.append(f"format {form} of column {name}")
        form = None
    left += [f"{k} of column {name}" for k in options]
    categories = None
    for rule in described.get("quality") or []:
        valid = (rule.get("arguments") or {}).get("validValues") if rule.get("metric") == "invalidValues" else None
        if valid is not None and type == "string" and rule.get("mustBe") == 0:
            categories = [str(v) for v in valid]
        else:
            left.append(f"quality rule {rule.get('name') or rule.get('metric') or rule.get('type')} of column {name}")
    written = described.get("physicalName")
    return Column(
        type,
        nullable=not described.get("required", False),
        minimum=given["minimum"],
        maximum=given["maximum"],
        categories=categories,
        tags=[str(t) for t in described.get("tags") or []],
        description=str(described.get("description") or ""),
        zone=zone or ("UTC" if logical == "date" else None),
        shape=ours.get("shape"),
        source=None if written is None or written == name else str(written),
        format=form or ours.get("format"),
        missing=ours.get("missing", []),
        optional=bool(ours.get("optional", False)),
        filled=ours.get("filled"),
    )


def _ours(described: dict[str, Any]) -> dict[str, Any]:
    """The custom properties that are ours, without the prefix."""
    pairs = {str(p.get("property")): p.get("value") for p in described.get("customProperties") or []}
    return {k.removeprefix(_OURS)[:1].lower() + k.removeprefix(_OURS)[1:]: v for k, v in pairs.items() if k.startswith(_OURS)}
