"""Feature values of single rows, as the user's function returns them: for inspection and for the user's own tests.

They come from the same trace as the serving graph, before numbers become float32 and strings become codes.
"""

import difflib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import ndonnx.extensions as nde
import numpy as np
import pyarrow as pa

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid
from loopwright.develop.features import TracedFeatures, build
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph, feed_rows
from loopwright.records.declarations import Column


class FeatureValues:
    """Computes features for rows of Python values, or of an Arrow table."""

    def __init__(self, traced: TracedFeatures) -> None:
        self.order, self.columns = traced.order, traced.columns
        outputs: dict[str, Any] = {}
        for name, array in traced.given.items():
            nullable = nde.is_nullable_dtype(array.dtype)
            outputs[f"value.{name}"] = nde.get_data(array) if nullable else array
            if nullable:
                outputs[f"null.{name}"] = nde.get_mask(array)
        self.graph = Graph(build(traced.columns, traced.arguments, outputs))

    def of_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Feature -> value for each row; `rows` as `row_values` gives them. Null is None, NaN stays NaN."""
        return self._rows(self.graph.run(feed_rows(self.graph, self.columns, rows)), len(rows))

    def of_table(self, table: pa.Table) -> list[dict[str, Any]]:
        """The same for the rows of an Arrow table that has the columns the features use."""
        return self._rows(self.graph.run(arrow_feed(self.graph, self.columns, table)), len(table))

    def _rows(self, arrays: Mapping[str, Array], count: int) -> list[dict[str, Any]]:
        values = {name: _values(arrays[f"value.{name}"], arrays.get(f"null.{name}")) for name in self.order}
        return [{name: column[i] for name, column in values.items()} for i in range(count)]


def _values(array: Array, null: Array | None) -> list[Any]:
    values: list[Any] = array.tolist()
    if null is None:
        return values
    whole: list[bool] = np.asarray(
        null.reshape(len(null), -1).all(axis=1)
    ).tolist()  # of an array every number is hidden, or some are
    return [None if hidden else _shown(v, h) for v, h, hidden in zip(values, null.tolist(), whole, strict=True)]


def _shown(value: Any, hidden: Any) -> Any:
    if isinstance(hidden, list):
        return [_shown(v, h) for v, h in zip(value, hidden, strict=True)]
    return None if hidden else value


def row_values(columns: Mapping[str, Column], row: Mapping[str, Any], needed: Sequence[str]) -> dict[str, Any]:
    """A row as input of a graph, from values as a user writes them; missing values are null where that is allowed.

    A timestamp is a datetime or ISO 8601 text, with a zone unless its column has one; an array is nested lists or a NumPy array.
    Raises DeclarationInvalid naming every column that is unknown, missing although `needed`, or of the wrong type.
    """
    problems, values = [], {}
    for name in row:
        if name not in columns:
            near = difflib.get_close_matches(str(name), columns, n=3) or sorted(columns)[:10]
            problems.append((str(name)[:80], f"no such column; there is {', '.join(near)}"))
    for name, column in columns.items():
        given = row.get(name)
        if given is None and (name in row or name in needed) and not column.nullable:
            problems.append(
                (name, "null, and the contract does not allow it" if name in row else "not given, and it cannot be null")
            )
        elif given is not None:
            try:
                values[name] = _value(column, given)
            except (ValueError, TypeError) as error:
                problems.append((name, str(error)))
    if problems:
        raise DeclarationInvalid("row", problems)
    return values


def _value(column: Column, value: Any) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    if column.type == "timestamp":
        return _moment(column, plain)
    if column.type == "array":
        try:
            array = np.asarray(value, dtype=np.float32)
        except (ValueError, TypeError):
            raise ValueError(f"is not numbers in the shape {column.shape}") from None
        if list(array.shape) != column.shape:
            raise ValueError(f"has shape {list(array.shape)}, not {column.shape}")
        if np.isnan(array).any():
            raise ValueError("contains a value that is not a number")
        return array
    wanted: dict[str, tuple[type, ...]] = {"float": (float, int), "integer": (int,), "boolean": (bool,), "string": (str,)}
    if not isinstance(plain, wanted[column.type]) or (isinstance(plain, bool) and column.type != "boolean"):
        raise TypeError(f"{value!r} is no {column.type}")
    return plain


def _moment(column: Column, value: Any) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise TypeError(f"{value!r} is not a time: write a datetime, or ISO 8601 text")
    if moment.tzinfo is None:
        if column.zone is None:
            raise ValueError(f"{value!r} has no zone: write it, such as 2013-01-01T05:00:00+00:00")
        moment = moment.replace(tzinfo=ZoneInfo(column.zone))
    return moment.astimezone(UTC)


def made_up(columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """Three rows made from a contract alone: minimum, middle and maximum values; nullable columns are null in the last."""
    return [
        {name: None if i == 2 and column.nullable else _made_up(column, i / 2) for name, column in columns.items()}
        for i in range(3)
    ]


def _made_up(column: Column, height: float) -> Any:
    low = column.minimum if column.minimum is not None else min(0.0, column.maximum or 0.0)
    high = column.maximum if column.maximum is not None else max(low, 0.0) + 1.0
    if column.type == "float":
        return low + (high - low) * height
    if column.type == "integer":
        return round(low + (high - low) * height)
    if column.type == "boolean":
        return height == 1
    if column.type == "string":
        words = column.categories or ["a", "b", "c"]
        return words[round((len(words) - 1) * height)]
    if column.type == "timestamp":
        return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=180) * height
    return np.full(column.shape or [1], height).tolist()
