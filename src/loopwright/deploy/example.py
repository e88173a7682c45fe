"""A request that the package in service answers, and its outcome, made up from their contracts: what documents and commands show."""

from typing import Any

from loopwright.records.declarations import Column, Table
from loopwright.records.package import Manifest
from loopwright.stores.outcomes.contract import OutcomeContract


def example_request(manifest: Manifest) -> dict[str, Any]:
    """A row with the columns that a request must have and no others, as it stands in JSON: the middle of a range, a known category."""
    return {
        name: _value(column, manifest.vocabulary.get(name, []))
        for name, column in manifest.request.items()
        if name not in manifest.may_lack
    }


def example_outcome(table: Table, prediction: str) -> dict[str, Any]:
    """An outcome of the prediction with that id."""
    optional = OutcomeContract(table).optional
    values = {name: _value(column, []) for name, column in table.columns.items() if name not in optional}
    return {table.prediction_field: prediction, **values}


def _value(column: Column, words: list[str]) -> Any:
    low = column.minimum if column.minimum is not None else min(0.0, column.maximum or 0.0)
    high = column.maximum if column.maximum is not None else max(low, 0.0) + 1.0
    plain: dict[str, Any] = {
        "float": (low + high) / 2,
        "integer": round((low + high) / 2),
        "boolean": True,
        "string": (column.categories or words or ["text"])[0],
        "timestamp": "2024-05-01T09:00:00Z",
        "array": 0.5,
    }
    value = plain[column.type]
    for length in reversed(column.shape or []):
        value = [value] * length
    return value
