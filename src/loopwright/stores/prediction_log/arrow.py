"""Predictions and outcomes as Arrow tables: fixed columns, then one column per contract column, typed by the contract."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa

from loopwright.base.errors import LoopwrightError, NotFound, PackageRefused
from loopwright.graph.columns import ARROW_TYPES
from loopwright.records.declarations import Column
from loopwright.records.prediction import OutcomeRow, Prediction
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home

_TIME = ARROW_TYPES["timestamp"]
_TEXT = "__text"

FIXED: dict[str, pa.Schema] = {
    "predictions": pa.schema(
        {
            "_id": pa.string(),
            "_at": _TIME,
            "_package": pa.string(),
            "_arm": pa.string(),
            "_probability": pa.float64(),
            "_score": pa.float64(),
            "_label": pa.bool_(),
            "_flags": pa.list_(pa.string()),
            "_latency_us": pa.float64(),
            "_unit": pa.string(),
            "_context_age_s": pa.float64(),
            "_segment": pa.string(),
        }
    ),
    "outcomes": pa.schema(
        {
            "_id": pa.string(),
            "_prediction": pa.string(),
            "_unit": pa.string(),
            "_known_at": _TIME,
            "_received_at": _TIME,
            "_provenance": pa.string(),
        }
    ),
}
FIXED["shadows"] = FIXED["predictions"]
"""Columns that every table of that kind has; `_at`, `_known_at`, `_received_at` in microseconds, UTC.

`_label` is a string where it is a class. Where packages give several numbers there is a column `_values`, a list of float32;
`_of_file`, a boolean, if files were predicted (null counts as false); and `_generation`, an integer, the generation of the release that
answered, where servers logged it (null: by an earlier version).
"""
ANSWERS = ("predictions", "shadows")
"""The kinds whose records are predictions. A shadow has the id of the prediction whose request it answered again, and no request of its own."""

_VALUES = pa.list_(pa.float32())


def to_table(
    kind: str, records: Sequence[Any], contract: Mapping[str, Column], existing: pa.Schema | None = None
) -> tuple[pa.Table, list[str]]:
    """Records of one kind as a table [N rows], in order, and the values that could not be typed.

    A column's type is that of `existing` (the Delta table's schema) if it is there, else the contract's, else that of its
    first value. Values that do not fit are stored as JSON text in a column named `COLUMN__text`, never dropped.
    """
    fixed = FIXED[kind]
    columns = {name: _fixed(records, name, type) for name, type in zip(fixed.names, fixed.types, strict=True)}
    if kind in ANSWERS:
        columns |= _answers(records, existing)
    rows = [{**r.request, **r.context} for r in records] if kind in ANSWERS else [r.values for r in records]
    misfits = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        type = _type(name, values, contract, existing)
        if type is None:
            continue
        try:
            columns[name] = _array(values, type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            misfits.append(f"column {name!r} does not fit type {type}, kept as text in {name + _TEXT!r}: {error}")
            columns[name + _TEXT] = pa.array(
                [None if v is None else msgspec.json.encode(v).decode() for v in values], pa.string()
            )
    return pa.table(columns), misfits


def contract_of(home: Home, kind: str, loop: str, records: Iterable[Any]) -> dict[str, Column]:
    """The contract columns of these records: of predictions from the manifests of their packages, of outcomes from the loop.

    Columns without a contract (package gone, ledger down) are left out: they get the type of their values.
    """
    columns: dict[str, Column] = {}
    if kind in ANSWERS:
        for package in dict.fromkeys(r.package for r in records):
            try:
                manifest = home.packages.manifest(package)
            except (NotFound, PackageRefused):
                continue
            columns |= manifest.request
            for need in manifest.context:
                columns |= need.columns
        return columns
    try:
        declared = home.ledger.latest(LoopRecord, loop=loop)
    except LoopwrightError:
        return columns
    if declared is None:
        return columns
    return msgspec.convert(declared.record.declaration["outcome"]["table"]["columns"], dict[str, Column])


def to_prediction(row: Mapping[str, Any], request: Iterable[str], context: Iterable[str]) -> Prediction:
    """A prediction from its row of the table (timestamps as microseconds)."""
    return Prediction(
        id=row["_id"],
        at=row["_at"],
        package=row["_package"],
        arm=row["_arm"],
        probability=row["_probability"],
        request={name: row.get(name) for name in request},
        context={name: row.get(name) for name in context},
        context_age_s=row["_context_age_s"],
        score=row["_score"],
        label=row["_label"],
        flags=row["_flags"],
        latency_us=row["_latency_us"],
        unit=row["_unit"],
        segment=row.get("_segment"),
        values=row.get("_values"),
        of_file=bool(row.get("_of_file")),
        generation=row.get("_generation") or 0,
    )


def to_outcome(row: Mapping[str, Any]) -> OutcomeRow:
    """An outcome from its row of the table (timestamps as microseconds)."""
    return OutcomeRow(
        id=row["_id"],
        prediction=row["_prediction"],
        unit=row["_unit"],
        values={name: value for name, value in row.items() if not name.startswith("_")},
        known_at=row["_known_at"],
        received_at=row["_received_at"],
        provenance=row["_provenance"],
    )


def rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as dicts, timestamps as microseconds since 1970 (UTC)."""
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(_TIME).cast(pa.int64()))
    return table.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types


def _answers(records: Sequence[Any], existing: pa.Schema | None) -> dict[str, Any]:
    """The columns that depend on the task: `_label`, `_values` where there are some, `_of_file` and `_generation`.

    A loop whose task has changed retains the type of its table's labels; those of another type are text in `_label__text`.
    """
    labels = [r.label for r in records]
    wanted = pa.string() if any(isinstance(v, str) for v in labels) else pa.bool_()
    type = existing.field("_label").type if existing is not None and "_label" in existing.names else wanted
    fits = str if type == pa.string() else bool
    columns = {"_label": pa.array([v if isinstance(v, fits) else None for v in labels], type)}
    if any(v is not None and not isinstance(v, fits) for v in labels):
        columns["_label" + _TEXT] = pa.array(
            [None if v is None or isinstance(v, fits) else str(v) for v in labels], pa.string()
        )
    if any(r.values is not None for r in records):
        columns["_values"] = pa.array([r.values for r in records], _VALUES)
    if any(r.of_file for r in records):
        columns["_of_file"] = pa.array([r.of_file for r in records])
    if any(r.generation for r in records):
        columns["_generation"] = pa.array([r.generation or None for r in records], pa.int64())
    return columns


def _fixed(records: Sequence[Any], name: str, type: Any) -> Any:
    if name == "_label":
        return pa.nulls(len(records), type)
    values = [getattr(r, name[1:]) for r in records]
    return pa.array(values, pa.int64()).cast(type) if type == _TIME else pa.array(values, type)


def _type(name: str, values: list[Any], contract: Mapping[str, Column], existing: pa.Schema | None) -> Any:
    if existing is not None and name in existing.names:
        return existing.field(name).type
    if name in contract:
        return ARROW_TYPES[contract[name].type]
    value = next((v for v in values if v is not None), None)
    # A bool is an int to Python, so it is tested first.
    kinds = ((bool, "boolean"), (int, "integer"), (float, "float"), (str, "string"), (datetime, "timestamp"))
    return next(
        (ARROW_TYPES[type] for python, type in kinds if isinstance(value, python)), None if value is None else pa.string()
    )


def _array(values: list[Any], to: Any) -> Any:
    """Arrow values of type `to`; raises where that would change a value (Arrow itself takes true for 1 and cuts 2.5 to 2)."""
    if pa.types.is_timestamp(to):
        return pa.array(list(map(_microseconds, values)), pa.int64()).cast(to)
    kinds = set(map(type, values))
    if bool in kinds and not pa.types.is_boolean(to):
        raise TypeError("true is not a number")
    if float in kinds and pa.types.is_integer(to) and not all(v.is_integer() for v in values if type(v) is float):
        raise ValueError("not all are whole numbers")
    return pa.array(values, to)


def _microseconds(value: Any) -> int | None:
    if value is None or value.__class__ is int:
        return value
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(f"{value!r} is not a moment with a zone")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
