"""A sample request and outcome for the package in service, made from its evaluation data; documents and commands show it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any

from loopwright.records.declarations import Column, Table
from loopwright.records.package import Golden, Histogram, Manifest, Reference
from loopwright.stores.outcomes.contract import OutcomeContract


def example_request(manifest: Manifest, reference: Reference, now: datetime) -> dict[str, Any]:
    """A sample row with only the required columns of a request, as JSON values.

    Each column has the median, or the commonest value, of the rows that the package was judged on; a time is as far from `now` as it
    was from their decisions. Personal data, and names that nothing is learnt from, are made up.
    """
    seen = {h.column: h for h in reference.columns if h.role == "request"}
    row: dict[str, Any] = {}
    for name in [n for n in manifest.request if n not in manifest.may_lack]:
        column = manifest.request[name]
        made_up = "pii" in column.tags or (name in manifest.key and not manifest.lineage.reaches_model(name))
        value = None if made_up or name not in seen else _typical(column, seen[name])
        if column.type == "timestamp":
            value = _moment(name, manifest.event_time, reference.golden, now)
        row[name] = _made_up(column, manifest.vocabulary.get(name, [])) if value is None else _shaped(column, value)
    return row


def example_outcome(table: Table, prediction: str, words: Mapping[str, list[str]]) -> dict[str, Any]:
    """An outcome of the prediction with that id; `words` are common texts of the table's columns."""
    optional = OutcomeContract(table).optional
    values = {name: _made_up(column, words.get(name, [])) for name, column in table.columns.items() if name not in optional}
    return {table.prediction_field: prediction, **values}


def _typical(column: Column, seen: Histogram) -> Any:
    """The median of numbers (the lower edge of its bin, which is the value of a row), the most frequent text; None without values."""
    if column.type in ("string", "boolean"):
        count, word = max(zip(seen.counts, seen.categories, strict=False), default=(0, ""))
        return None if count < 2 else word if column.type == "string" else word == "true"
    if seen.minimum is None:
        return None
    half = sum(seen.counts) / 2
    middle = next(i for i, below in enumerate(accumulate(seen.counts)) if below >= half)
    value = [seen.minimum, *seen.edges][middle]
    return round(value) if column.type == "integer" else float(f"{value:.6g}")


def _moment(name: str, event_time: str, golden: Sequence[Golden], now: datetime) -> str:
    """A time as far from now as it was from the decisions of golden requests, in the middle of them."""
    pairs = [(g.request.get(name), g.request.get(event_time)) for g in golden]
    apart = sorted(moment - decided for moment, decided in pairs if moment is not None and decided is not None)
    delay = timedelta(microseconds=apart[len(apart) // 2] if apart else 0)
    return f"{now + delay:%Y-%m-%dT%H:%M:%SZ}"


def _made_up(column: Column, words: list[str]) -> Any:
    """A value by the contract alone: the middle of a range, a known category."""
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
    return _shaped(column, plain[column.type])


def _shaped(column: Column, value: Any) -> Any:
    for length in reversed(column.shape or []):
        value = [value] * length
    return value
